"""Clients that are not ours, unmodified from their registries, against a real server: they get the model's own answers.

`make test-clients` installs them in .clients. What they send by default is in clients/defaults.json, which the fast
part of the suite sends too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from serving import PROMPTS, Served, served

from runtime import Model, load
from runtime.bundle.store import read
from runtime.server import handler
from runtime.text.tokenizer import Tokenizer
from train import evaluate, tasks

ROOT = Path(__file__).parent.parent
BUNDLE = ROOT / "samples" / "student.bundle"
OWN, SCRIPTS = ROOT / ".clients", Path(__file__).parent / "clients"
PYTHON = OWN / "bin" / "python"
DEFAULTS = json.loads((SCRIPTS / "defaults.json").read_text(encoding="utf-8"))
LAST = "{% for m in messages %}{% if loop.last %}{{ m['content'] }}{% endif %}{% endfor %}"
PROBLEMS = 8

Sent = list[tuple[str, frozenset[str]]]  # of each request: the prompt's field, and all fields


@pytest.fixture(scope="module")
def model() -> Model:
    """The sample student with a template that gives it the last message alone, so that conversations can be sent."""
    return replace(load(BUNDLE, threads=1), tokenizer=Tokenizer(read(BUNDLE).tokenizer, LAST))


@pytest.fixture(scope="module")
def student(model: Model) -> Iterator[Served]:
    with served(model.share()) as server:
        yield server


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """The fields of each request that reaches the server."""
    seen: Sent = []

    def noting(model: Model, name: str, most: int | None, api: Any, body: Any, *more: Any) -> Any:
        seen.append((api.prompt, frozenset(body)))
        return reading(model, name, most, api, body, *more)

    reading = handler.read_server_requests
    monkeypatch.setattr(handler, "read_server_requests", noting)
    return seen


def known(sent: Sent) -> bool:
    """Whether each request has the fields of one in defaults.json."""
    recorded = {frozenset(entry["body"]) for entry in DEFAULTS}
    return bool(sent) and {fields for _, fields in sent} <= recorded


def ran(line: list[str], folder: Path) -> str:
    """What a client prints on stdout; it may read no network but the server, and no files of the user's."""
    own = {
        "HF_HOME": str(folder),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OPENAI", "LITELLM"))}
    done = subprocess.run(
        line, cwd=folder, env={**kept, **own}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def needs(path: Path) -> None:
    if not path.exists():
        pytest.skip(f"{path.relative_to(ROOT)} is not there; make test-clients installs it")


@pytest.mark.smoke
@pytest.mark.client
def test_openai_for_python_gets_the_model_s_answer(student: Served, model: Model, sent: Sent) -> None:
    expected, messages = model.generate(PROMPTS[0]).text, [{"role": "user", "content": PROMPTS[0]}]
    with student.client() as client:
        asked: Any = {"model": client.models.list().data[0].id, "messages": messages}
        raw: Any = {"model": asked["model"], "prompt": PROMPTS[0]}
        said: Any = {"model": asked["model"], "input": PROMPTS[0]}
        assert client.completions.create(**raw).choices[0].text == expected
        assert "".join(part.choices[0].text for part in client.completions.create(stream=True, **raw)) == expected
        assert client.chat.completions.create(**asked).choices[0].message.content == expected
        with client.chat.completions.stream(**asked) as stream:
            assert stream.get_final_completion().choices[0].message.content == expected
        assert client.responses.create(**said).output_text == expected
        with client.responses.stream(**said) as events:
            assert events.get_final_response().output_text == expected
    assert known(sent) and len(sent) == 6


@pytest.mark.smoke
@pytest.mark.client
def test_openai_for_node_gets_the_model_s_answer(student: Served, model: Model, sent: Sent, tmp_path: Path) -> None:
    needs(OWN / "node_modules" / "openai")
    line = [shutil.which("node") or "node", str(SCRIPTS / "openai_node.mjs"), str(OWN), f"{student.url}/v1", PROMPTS[0]]
    found = json.loads(ran(line, tmp_path))
    assert found.pop("model") == found.pop("retrieved") == "student"
    assert len(found) == 7 and set(found.values()) == {model.generate(PROMPTS[0]).text}
    assert known(sent) and len(sent) == 7


@pytest.mark.smoke
@pytest.mark.client
def test_litellm_gets_the_model_s_answer(student: Served, model: Model, sent: Sent, tmp_path: Path) -> None:
    needs(OWN / "bin" / "litellm")
    found = json.loads(ran([str(PYTHON), str(SCRIPTS / "with_litellm.py"), f"{student.url}/v1", PROMPTS[0]], tmp_path))
    assert len(found) == 6 and set(found.values()) == {model.generate(PROMPTS[0]).text}
    assert known(sent) and len(sent) == 6


@pytest.fixture(scope="module")
def score(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A file in GSM8K's layout, and what `train.evaluate` makes of it."""
    folder = tmp_path_factory.mktemp("problems")
    (task,) = tasks.choose_tasks("math")
    lines = [
        json.dumps({"question": p.prompt, "answer": p.answer}) for p in task.problems("test_families", PROBLEMS, 4)
    ]
    (folder / "problems.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    own = ["--bundle", str(BUNDLE), "--data", str(folder / "problems.jsonl"), "--split", "all", "--threads", "1"]
    return folder, float(evaluate.assess(evaluate.make_parser().parse_args(own))["accuracy"])


@pytest.mark.smoke
@pytest.mark.client
@pytest.mark.parametrize(
    ("kind", "path", "options"),
    [
        ("local-completions", "completions", ",tokenizer_backend=None,tokenized_requests=False"),
        ("local-chat-completions", "chat/completions", ""),
    ],
)
def test_lm_eval_s_score_is_train_evaluate_s(
    student: Served, sent: Sent, score: tuple[Path, float], kind: str, path: str, options: str
) -> None:
    needs(OWN / "bin" / "lm_eval")
    folder, accuracy = score
    line = [str(OWN / "bin" / "lm_eval"), "--model", kind, "--tasks", "gsm8k_here", "--include_path", str(SCRIPTS)]
    line += ["--model_args", f"model=student,base_url={student.url}/v1/{path}{options}", "--output_path", kind]
    ran(line + ["--apply_chat_template"] * ("chat" in kind), folder)
    (report,) = (folder / kind).rglob("results_*.json")
    found = json.loads(report.read_text(encoding="utf-8"))["results"]["gsm8k_here"]["exact_match,strict-match"]
    assert found == pytest.approx(accuracy, abs=1e-5) and 0 < accuracy < 1
    assert known(sent) and len(sent) == PROBLEMS


@pytest.mark.parametrize("entry", DEFAULTS, ids=lambda entry: f"{entry['client']} {entry['path']}")
def test_what_clients_send_by_default_passes(student: Served, entry: dict[str, Any]) -> None:
    answer = student.post(entry["body"], entry["path"])
    assert answer.status_code == 200, answer.text

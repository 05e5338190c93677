"""Published directories through the commands: exported and answered by ONNX Runtime, verified, distilled."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import torch
from foreign import BLOCK, CANVAS, Stock
from slow_decode import slow_decode

from export import onnx as export
from export import trt, verify
from runtime import load
from runtime.contract import GateSpec
from runtime.decoding.loop import generate
from runtime.decoding.options import DecodeOptions, Request
from runtime.text.tokenizer import Tokenizer
from train import collect, distill, evaluate, open_checkpoint
from train.data import prompts
from train.data.trajectories import read_shards
from train.huggingface.families import Overrides
from train.methods.table import METHODS
from train.torch_backend import TorchBackend, derive_contract

SIZES = ["--block", str(BLOCK), "--canvas", str(CANVAS)]
TEMPLATE = "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}"


def lines(folder: Path) -> Path:
    """Own data that fits a tiny context, one token a byte."""
    file = folder / "own.jsonl"
    made = ({"prompt": f"say {word} {n}\n", "answer": word} for n in range(90) for word in ("yes", "no, not"))
    file.write_text("".join(json.dumps(line) + "\n" for line in made))
    return file


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The JSON object on the last line of stdout."""
    values: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return values


BRIEF = ("llada", "bd3lm-qwen3")  # without a cache, and over one


@pytest.mark.parametrize(
    "name", [name if name in BRIEF else pytest.param(name, marks=pytest.mark.long) for name in foreign.FOREIGN]
)
def test_an_exported_directory_answers_as_the_stock_class(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "Tiny-1.5B-Chat"
    stock: Any = foreign.write(folder, name, seed=3, template=TEMPLATE, sharp=4.0)
    named = ["--family", name] if foreign.find_family(name) else []
    assert export.main(["--ckpt", str(folder), *SIZES, *named, "--json"]) == 0
    made = Path(told(capsys)["bundle"])
    assert made == tmp_path / "Tiny-1.5B-Chat.bundle"
    given = Overrides(block=BLOCK, canvas=CANVAS, family=foreign.find_family(name))
    model, read = load(made), open_checkpoint.load(folder, given)
    prompt, slow = (
        np.random.default_rng(4).integers(0, model.contract.vocab, 2 * BLOCK + 1),
        Stock(stock, read.count_vocab()),
    )
    answer, finish, _ = slow_decode(slow, model.contract, prompt.tolist(), CANVAS - 1, 0.4)  # type: ignore[arg-type]
    result = generate(model.backend, Request(prompt, DecodeOptions(CANVAS - 1)), gate=GateSpec(threshold=0.4))
    assert (list(result.token_ids), result.finish) == (answer, finish)
    chat = model.request("hi", max_new_tokens=4).prompt.tolist()
    tokenizer = read.read_tokenizer()
    special = [tokenizer.token_to_id(token) for token in ("<|startoftext|>", foreign.FOREIGN[name].ends[0])]
    assert chat == [special[0], *tokenizer.encode("hi", add_special_tokens=False).ids, special[1]]

    words = [str(made), "--ckpt", str(folder), *named, "--data", str(lines(tmp_path)), "--prompts", "4"]
    assert verify.main([*words, "--json"]) == 0 and told(capsys)["answers"] >= 4
    foreign.change_config(folder, note="another")
    assert verify.main(words) == 2
    assert "was not exported from" in capsys.readouterr().err


def test_a_bundle_is_verified_with_prompts_in_its_chat_template(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign.write(tmp_path / "model", "bd3lm-qwen3", template="x" * 56 + TEMPLATE)  # as long as the whole capacity
    assert export.main(["--ckpt", str(tmp_path / "model"), *SIZES]) == 0
    words = [str(tmp_path / "model.bundle"), "--ckpt", str(tmp_path / "model"), "--prompts", "2"]
    words += ["--data", str(lines(tmp_path))]
    assert verify.main(words) == 2 and "leave no room in a KV-cache capacity of 64" in capsys.readouterr().err
    assert verify.main([*words, "--raw"]) == 0


THINKING = "{{ messages[0].content }}{% if enable_thinking is defined and not enable_thinking %}!{% endif %}"


def test_a_bundle_carries_template_arguments_and_a_load_overrules_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign.write(tmp_path / "model", "bd3lm-qwen3", template=THINKING)
    made = tmp_path / "model.bundle"

    def prompt(**given: Any) -> str:
        tokenizer = load(made, verify="first", threads=1, **given).tokenizer
        return tokenizer.decode(tokenizer.encode_chat("hi"))

    assert export.main(["--ckpt", str(tmp_path / "model"), *SIZES]) == 0
    assert prompt() == "hi!" and prompt(template_args={"enable_thinking": True}) == "hi"
    thinking = ["--template-args", '{"enable_thinking": true}']
    assert export.main(["--ckpt", str(tmp_path / "model"), *SIZES, *thinking]) == 0
    assert prompt() == "hi" and prompt(template_args={"enable_thinking": False}) == "hi!"
    words = [str(made), "--ckpt", str(tmp_path / "model"), "--data", str(lines(tmp_path)), "--prompts", "2"]
    assert verify.main(words) == 0 and verify.main([*words, *thinking]) == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ('{"enable_thinkin": false}', "does not read enable_thinkin"), ("[]", "are list; expected an object"),
        ("{", "is not JSON"), ('{"messages": []}', "messages is given by the renderer itself"),
    ],
)  # fmt: skip
def test_wrong_template_arguments_are_one_line_and_exit_code_2(
    arguments: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign.write(tmp_path / "model", "sdar", template=THINKING)
    assert export.main(["--ckpt", str(tmp_path / "model"), *SIZES, "--template-args", arguments]) == 2
    err = capsys.readouterr().err
    assert reason in err and err.count("\n") == 1 and not (tmp_path / "model.bundle").exists()


@pytest.mark.parametrize(("command", "more"), [(export, ()), (trt, ("--graph-only", "--dialect", "trt"))])
def test_a_template_that_cannot_be_rendered_is_refused_at_export(
    command: Any, more: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign.write(tmp_path / "model", "sdar", template="{% unknown %}")
    assert command.main(["--ckpt", str(tmp_path / "model"), *SIZES, *more]) == 2
    err = capsys.readouterr().err
    assert "unknown tag 'unknown'" in err and err.count("\n") == 1 and not (tmp_path / "model.bundle").exists()


def test_a_refusal_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign.write(tmp_path, "sdar")
    foreign.change_config(tmp_path, model_type="sdar_moe")
    assert export.main(["--ckpt", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1


@pytest.fixture(scope="module", params=["dream", pytest.param("llada", marks=pytest.mark.long)])
def school(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a published teacher that has a chat template, own data, and its trajectories."""
    folder = tmp_path_factory.mktemp(request.param)
    foreign.write(folder / "teacher", request.param, template=TEMPLATE)
    lines(folder)
    assert collect.main(collecting(folder)) == 0
    return folder


def collecting(folder: Path) -> list[str]:
    few = ["--count", "4", "--shard", "4", "--batch", "4", "--temperatures", "0", "--no-bf16", *SIZES]
    where = ["--ckpt", str(folder / "teacher"), "--data", str(folder / "own.jsonl"), "--out"]
    return [*where, str(folder / "trajectories"), *few]


def distilling(folder: Path, out: Path, *extra: str) -> list[str]:
    where = ["--teacher", folder / "teacher", "--data", folder / "own.jsonl", "--trajectories", folder / "trajectories"]
    short = ["--steps", "2", "--batch", "2", "--no-only-right", "--no-bf16", *SIZES]
    return [*map(str, where), "--out", str(out), *short, *extra]


def test_prompts_are_collected_in_the_chat_template_as_the_runtime_gives_them(
    school: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read = open_checkpoint.load(school / "teacher", Overrides(block=BLOCK, canvas=CANVAS))
    chat = Tokenizer(read.tokenizer, read.chat_template)
    own = [json.loads(line) for line in (school / "own.jsonl").read_text().splitlines()]
    asked = {tuple(chat.encode_chat(line["prompt"]).tolist()) for line in own}
    assert {trajectory.prompt for trajectory in read_shards(school / "trajectories")} <= asked
    args = distill.make_parser().parse_args(distilling(school, school / "student"))
    assert {example.prompt for example in distill.make_ground_truth(args, read).select_examples(0)} <= asked
    assert prompts.make_encoder(read, raw=True)(["hi"]) == [chat.encode("hi").tolist()]
    assert collect.main([*collecting(school), "--raw"]) == 2
    assert collect.main([*collecting(school), "--block", "6", "--canvas", "12"]) == 2
    assert capsys.readouterr().err.count("trajectories of other settings") == 2
    assert distill.main([*distilling(school, school / "student"), "--block", "6", "--canvas", "12"]) == 2
    assert f"were collected with --block {BLOCK}, here it is 6; give the same" in capsys.readouterr().err


def test_a_published_teacher_is_distilled_into_a_directory_that_is_exported_and_answers(
    school: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "student"
    assert distill.main(distilling(school, out)) == 0
    assert distill.main(distilling(school, tmp_path / "student.pt")) == 0
    made, file = open_checkpoint.load(out), open_checkpoint.load(tmp_path / "student.pt")
    assert replace(made, weights={}) == replace(file, weights={}) and same(made.weights, file.weights)
    answers(["--ckpt", str(out)], capsys)


def test_a_published_teacher_is_distilled_into_an_adapter_that_is_exported_and_answers(
    school: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, low_rank = tmp_path / "adapter", ["--lora-rank", "2", "--lora-alpha", "3", "--learning-rate", "5"]
    assert distill.main([*distilling(school, out, *low_rank), "--json"]) == 0
    values = told(capsys)
    assert (values["out"], values["steps"]) == (str(out), 2) and {"seconds", "loss", "distil", "dlm"} <= values.keys()
    assert distill.main(distilling(school, tmp_path / "student.pt", *low_rank)) == 0
    base = open_checkpoint.load(school / "teacher", Overrides(block=BLOCK, canvas=CANVAS))
    made, file = (
        open_checkpoint.load(school / "teacher", Overrides(adapter=out)),
        open_checkpoint.load(tmp_path / "student.pt"),
    )
    assert replace(made, weights={}) == replace(file, weights={}) and same(made.weights, file.weights)
    name = "layers.1.mlp.down_proj.weight"
    assert (made.weights[name] - base.weights[name]).abs().max() > 1e-3
    assert torch.equal(made.weights["embed_tokens.weight"], base.weights["embed_tokens.weight"])
    answers(["--ckpt", str(school / "teacher"), "--adapter", str(out)], capsys)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def answers(source: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exports a student and asks it."""
    capsys.readouterr()
    assert export.main([*source, "--json"]) == 0
    made = load(told(capsys)["bundle"])
    assert (made.contract.attention, made.contract.block, made.contract.gate.threshold) == ("block_causal", BLOCK, 0.9)
    assert 1 <= len(made.generate("say yes 9\n", max_new_tokens=6).result.token_ids) <= 6


def test_a_directory_is_evaluated_under_both_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign.write(tmp_path / "model", "dream")
    words = ["--ckpt", str(tmp_path / "model"), "--data", str(lines(tmp_path)), "--split", "test", "--count", "2"]
    for attention in ("full", "block_causal"):
        assert evaluate.main([*words, *SIZES, "--attention", attention, "--json"]) == 0
        assert told(capsys)["attention"] == attention


@pytest.mark.parametrize("name", ["sdar", "fast-dllm-v2"])
def test_teachers_whose_prompts_share_a_block_with_the_answer_are_distilled_by_every_method(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign.write(tmp_path / "teacher", name)
    lines(tmp_path)
    assert collect.main(collecting(tmp_path)) == 0
    found = read_shards(tmp_path / "trajectories")
    assert {len(t.prompt) % BLOCK for t in found} - {0} and {len(t.tokens) for t in found} == {CANVAS + BLOCK - 1}
    before = open_checkpoint.load(tmp_path / "teacher", Overrides(block=BLOCK, canvas=CANVAS))
    for method in METHODS:
        words = distilling(tmp_path, tmp_path / f"{method}.pt", "--method", method)
        if not METHODS[method].from_trajectories:
            place = words.index("--trajectories")
            words = [word for word in [*words[:place], *words[place + 2 :]] if word != "--no-only-right"]
        assert distill.main(words) == 0
        made = open_checkpoint.load(tmp_path / f"{method}.pt")
        assert made.decoding == replace(before.decoding, gate=dict(METHODS[method].gate))
        assert not same(made.weights, before.weights) and all(w.isfinite().all() for w in made.weights.values())
    assert export.main(["--ckpt", str(tmp_path / "cdlm.pt")]) == 0
    made, model = open_checkpoint.load(tmp_path / "cdlm.pt"), load(tmp_path / "cdlm.bundle")
    backend = TorchBackend(made.build(), derive_contract(made))
    assert model.contract.alignment == "absolute"
    for length in range(1, 2 * BLOCK + 2):
        request = model.request("say yes 9"[:length], max_new_tokens=7, raw=True)
        assert model.generate(request.prompt, max_new_tokens=7).result.token_ids == generate(backend, request).token_ids

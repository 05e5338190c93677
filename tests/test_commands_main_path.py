"""The main path in small, by its own commands: teacher, trajectories, student, bundle, answer, evaluation."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from export import onnx as export
from runtime import generate, load
from runtime.contract import MODES
from runtime.decoding.loop import decode_steps
from runtime.decoding.loop import generate as decode
from runtime.decoding.options import DecodeOptions, Request
from train import collect, distill, evaluate, losses, open_checkpoint, tasks, teacher
from train.checkpoint import Checkpoint, Decoding
from train.data.bpe import train_tokenizer
from train.data.trajectories import NEVER_ACCEPTED, Trajectory, read_shards
from train.evaluation import evaluated_model, evaluation_run
from train.methods.table import WITH_CACHE
from train.storage import student_pt
from train.torch_backend import TorchBackend, derive_contract
from train.transformer.network import ModelConfig, Transformer, initialize

ANSWERS = {"yes": "yes, yes!", "no": "no, not now and not here."}  # of two blocks and of three
LINES = [
    {"prompt": f"{name} has {count} {thing}. Say {word}.\n", "answer": ANSWERS[word]}
    for name in ("Ana", "Eva", "Tom", "Ben")
    for thing in ("apples", "pens", "cups", "eggs")
    for count in range(2, 8)
    for word in ANSWERS
]
SHAPE = "--width 32 --layers 2 --heads 2 --kv-heads 1 --head-dim 16 --ffn 64 --vocab 300"
SMALL = f"{SHAPE} --block 4 --canvas 12 --context 64"


def call(main: Callable[[list[str]], int], words: str) -> int:
    """The exit code of a `train.*` command."""
    return main(words.split())


@dataclass(frozen=True, slots=True)
class School:
    """A folder with own data, a teacher that learnt it for some steps, and its trajectories."""

    data: Path
    teacher: Path
    trajectories: Path

    def collect(self, extra: str = "") -> str:
        settings = f"--count 24 --shard 8 --batch 4 --temperatures 0,1 --seed 5 --no-bf16 --data {self.data}"
        return f"--ckpt {self.teacher} --out {self.trajectories} {settings} {extra}"


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> School:
    folder = tmp_path_factory.mktemp("school")
    made = School(folder / "own.jsonl", folder / "teacher.pt", folder / "trajectories")
    made.data.write_text("".join(json.dumps(line) + "\n" for line in LINES), encoding="utf-8")
    words = f"--data {made.data} --out {made.teacher} --steps 150 --batch 16 --learning-rate 1e-2 --no-bf16 {SMALL}"
    # never under a causal mask: with that it needs no distillation here, and the student could not be better
    assert call(teacher.main, f"{words} --causal-every 0") == 0
    assert call(collect.main, made.collect()) == 0
    return made


@pytest.mark.parametrize(
    ("steps", "attention", "figures"),
    [(3, "full", {"masked"}), (4, "full", {"next", "blocks"}), *((3, a, {"next", "blocks"}) for a in WITH_CACHE)],
)
def test_every_second_update_of_a_full_teacher_is_under_causal_masks_and_every_one_of_others(
    school: School, tmp_path: Path, steps: int, attention: str, figures: set[str]
) -> None:
    words = f"--data {school.data} --init {school.teacher} --out {tmp_path / 'teacher.pt'} --batch 2 --no-bf16 {SMALL}"
    words += f" --attention {attention}"
    assert call(teacher.main, f"{words} --steps {steps}") == 0
    last = json.loads((tmp_path / "teacher.pt.log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert {"masked", "next", "blocks"} & last.keys() == figures
    contract = derive_contract(open_checkpoint.load(tmp_path / "teacher.pt"))
    assert contract.attention == attention and contract.modes == (MODES if attention == "causal_context" else MODES[:1])


@pytest.mark.parametrize("count", [1, 2, 7])
def test_no_prompt_is_lost_between_two_tasks(count: int) -> None:
    shards = collect.plan(tasks.choose_tasks("math,code"), count, [0.0], 4, 0)
    assert sum(len(shard.problems) for shard in shards) == count and [s.number for s in shards] == [*range(len(shards))]


def shards(school: School) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(school.trajectories.glob("shard-*"))}


def test_a_shard_that_is_gone_is_collected_again_and_is_the_same(
    school: School, capsys: pytest.CaptureFixture[str]
) -> None:
    before = shards(school)
    kept = school.trajectories / "shard-00000.safetensors"
    assert len(before) == 6 and len(set(before.values())) == 6
    (school.trajectories / "shard-00004.safetensors").unlink()  # one drawn at a temperature
    touched = kept.stat().st_mtime_ns
    assert call(collect.main, school.collect("--json")) == 0
    told = json.loads(capsys.readouterr().out)
    right = sum(t.right for t in read_shards(school.trajectories))
    assert told == {"collected": 48, "right": right, "shards": 6, "new": 8}  # those that were there count too
    assert shards(school) == before and kept.stat().st_mtime_ns == touched


@pytest.mark.parametrize("other", ["--seed 6", "--temperatures 0", "--batch 8", "--threshold 0.9", "--task code"])
def test_trajectories_of_other_settings_are_not_mixed(
    other: str, school: School, capsys: pytest.CaptureFixture[str]
) -> None:
    before, words = shards(school), school.collect(other)
    if "--task" in other:
        words = words.replace(f"--data {school.data}", "")
    assert call(collect.main, words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "of other settings" in err and err.count("\n") == 1
    assert shards(school) == before


def test_trajectories_of_a_file_that_has_changed_are_not_mixed(
    school: School, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / school.data.name).write_text(school.data.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert call(collect.main, school.collect().replace(str(school.data), str(tmp_path / school.data.name))) == 2
    assert "of other settings" in capsys.readouterr().err


def backend_of(path: Path) -> tuple[Checkpoint, TorchBackend]:
    saved = open_checkpoint.load(path)
    return saved, TorchBackend(saved.build(), derive_contract(saved, 8), keep_hidden=True)


def greedy(school: School) -> list[Trajectory]:
    return read_shards(school.trajectories)[:24]  # three shards of 8 at each temperature


def test_the_order_of_a_trajectory_rebuilds_every_canvas_that_the_decoder_had(school: School) -> None:
    saved, backend = backend_of(school.teacher)
    found = greedy(school)[:8]
    requests = [Request(np.array(t.prompt), DecodeOptions(12)) for t in found]
    taken, block = [0] * len(found), backend.contract.block
    for done in decode_steps(backend, requests, gate=collect.ONE_A_STEP):
        for step in done:
            t = found[step.row]
            taken[step.row] += 1
            state = t.tokens.masked_fill(
                (t.order == NEVER_ACCEPTED) | (t.order >= taken[step.row]), saved.decoding.mask_id
            )
            assert step.tokens.tolist() == state[step.block * block : (step.block + 1) * block].tolist()
    assert taken == [int((t.order != NEVER_ACCEPTED).sum()) for t in found]


def test_hidden_states_give_the_teachers_choice_back(school: School) -> None:
    saved, backend = backend_of(school.teacher)
    for t in greedy(school):
        settled = t.order != NEVER_ACCEPTED
        log_probs = losses.log_probs(backend.model.logits(t.hidden[settled].float()), saved.decoding.mask_id)
        chosen = log_probs.gather(-1, t.tokens[settled][:, None])[:, 0]
        assert (log_probs.max(-1).values - chosen).max() < 0.05  # hidden states are kept in fp16


def test_right_is_what_the_data_says(school: School) -> None:
    tokenizer = open_checkpoint.load(school.teacher).read_tokenizer()
    answers = {line["prompt"]: line["answer"] for line in LINES}
    found = read_shards(school.trajectories)
    for t in found:
        ids = t.tokens.tolist()
        text = tokenizer.decode(ids[: ids.index(1)] if 1 in ids else ids, skip_special_tokens=False)
        assert t.right == (text == answers[tokenizer.decode(list(t.prompt))])
    assert any(t.right for t in found)


@pytest.fixture(scope="module", params=["partial", pytest.param("completed", marks=pytest.mark.long)])
def student(request: pytest.FixtureRequest, school: School, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp(request.param) / "student.pt"
    words = f"--method cdlm --target {request.param} --teacher {school.teacher} --trajectories {school.trajectories}"
    words += f" --data {school.data} --steps 120 --batch 16 --learning-rate 5e-3 --no-bf16 --next-token 0.1 --out {out}"
    assert call(distill.main, words) == 0
    return out


def test_the_student_is_block_causal_and_better_under_its_mask_than_its_teacher(school: School, student: Path) -> None:
    saved, before = open_checkpoint.load(student), open_checkpoint.load(school.teacher)
    assert saved.decoding.attention == "block_causal" and saved.decoding.gate["rule"] == "threshold"
    task = tasks.from_file(school.data)
    problems = list(task.problems("train", 24, 1))
    right = []
    for weights in (before.weights, saved.weights):
        candidate = replace(saved, weights=weights)
        found = evaluation_run.evaluate(
            evaluated_model.make_torch_backend(candidate, 24, None, False), candidate.read_tokenizer(), task, problems
        )
        right.append(sum(found.right))
    assert right[1] > right[0], right


def test_student_bundle_answer_and_evaluation_are_one(
    student: Path, school: School, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main(["--ckpt", str(student)]) == 0
    folder = student.with_suffix(".bundle")
    reports = {}
    for kind, source in (("ckpt", student), ("bundle", folder)):
        out = student.with_name(f"{kind}.json")
        words = f"--{kind} {source} --data {school.data} --split train --count 16 --out {out} --json"
        capsys.readouterr()
        assert call(evaluate.main, words) == 0
        assert json.loads(capsys.readouterr().out)["problems"] == 16
        reports[kind] = json.loads(out.read_text(encoding="utf-8"))
    assert reports["ckpt"]["per_problem"] == reports["bundle"]["per_problem"]
    assert reports["ckpt"]["engine"] != reports["bundle"]["engine"]
    prompt = LINES[0]["prompt"]
    assert generate.main([str(folder), prompt, "--json", "--max-new-tokens", "12"]) == 0
    answer = json.loads(capsys.readouterr().out)
    saved, backend = backend_of(student)
    ids = np.array(saved.read_tokenizer().encode(prompt).ids)
    expected = [
        step.result for done in decode_steps(backend, [Request(ids, DecodeOptions(12))]) for step in done if step.result
    ]
    assert tuple(answer["token_ids"]) == expected[0].token_ids and answer["forwards"] == expected[0].forwards


def test_a_student_that_learned_next_tokens_too_drafts_for_itself(
    school: School, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its three modes, in PyTorch and both dialects: speculative answers equal causal ones, in fewer forward passes."""
    out, folder = tmp_path / "student.pt", tmp_path / "student.bundle"
    words = f"--method dparallel --attention causal_context --next-token 1 --teacher {school.teacher} --no-only-right"
    words += f" --trajectories {school.trajectories} --data {school.data} --steps 200 --batch 16 --no-bf16 --out {out}"
    assert call(distill.main, f"{words} --learning-rate 5e-3") == 0
    assert open_checkpoint.load(out).decoding.modes == MODES
    assert call(export.main, f"--ckpt {out}") == call(export.main, f"--ckpt {out} --dialect standard") == 0
    engines = (f"--ckpt {out}", *(f"--bundle {folder} --engine {name}-fp32" for name in ("ort", "standard")))
    reports: dict[str, dict[str, list[int]]] = {}
    for mode, source in itertools.product(MODES, engines):
        report = tmp_path / "report.json"
        words = f"{source} --data {school.data} --split train --count 16 --mode {mode} --out {report}"
        assert call(evaluate.main, words) == 0
        found = json.loads(report.read_text(encoding="utf-8"))
        assert found["mode"] == mode and reports.setdefault(mode, found["per_problem"]) == found["per_problem"]
    assert sum(reports["causal"]["forwards"]) > 1.3 * sum(reports["speculative"]["forwards"])
    assert call(evaluate.main, f"--ckpt {out} --data {school.data} --mode causal --threshold 0.5") == 2
    assert "which has no gate" in capsys.readouterr().err
    model, backend = load(folder), backend_of(out)[1]
    for line in LINES[:8]:
        answers = [model.generate(line["prompt"], max_new_tokens=12, mode=mode) for mode in ("speculative", "causal")]
        request = Request(model.request(line["prompt"]).prompt, DecodeOptions(12, mode="causal"))
        tokens = {answer.result.token_ids for answer in answers} | {decode(backend, request).token_ids}
        assert len(tokens) == 1, line


def untrained(folder: Path, **decoding: object) -> Path:
    """A teacher that knows nothing, with a tokenizer of the sample tasks."""
    texts = [text for p in tasks.choose_tasks("code")[0].problems("train", 30, 0) for text in (p.prompt, p.answer)]
    learned = train_tokenizer(texts, 500)
    shape = ModelConfig(learned.get_vocab_size(), 32, 1, 2, 1, 16, 48)
    how = {"alignment": "prompt", "attention": "full", "shift": False, "block": 8, "canvas": 64, "context": 256}
    how |= {"mask_id": 2, "eos_ids": (1,), "pad_id": 0, "gate": dict(teacher.TEACHER_GATE)} | decoding
    saved = Checkpoint(shape, Decoding(**how), dict(initialize(Transformer(shape), 0).state_dict()), learned.to_str())
    student_pt.save(saved, folder / "teacher.pt")
    return folder / "teacher.pt"


def test_a_sample_task_and_a_teacher_without_shift_go_the_same_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = untrained(tmp_path), tmp_path / "trajectories"
    words = f"--ckpt {source} --out {out} --task code --count 3 --temperatures 0.5"
    assert call(collect.main, words) == 0
    words = f"--teacher {source} --trajectories {out} --task code --steps 2 --batch 2 --out {tmp_path / 'student.pt'}"
    assert call(distill.main, words) == 2  # an untrained teacher is never right
    assert "no trajectory" in capsys.readouterr().err
    assert call(distill.main, f"{words} --no-only-right") == 0
    before, after = open_checkpoint.load(source).weights, open_checkpoint.load(tmp_path / "student.pt").weights
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(weight.isfinite().all() for weight in after.values())


@pytest.mark.parametrize(
    "decoding",
    [
        {"attention": "block_causal", "alignment": "absolute", "shift": True, "block": 1},
        {"attention": "causal", "shift": True, "modes": ("speculative", "causal")},
    ],
)
def test_teachers_that_fill_no_blocks_are_refused(
    decoding: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"--ckpt {untrained(tmp_path, **decoding)} --out {tmp_path / 'out'}"
    assert call(collect.main, words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: the teacher decodes token by token") and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("main", "flag"), [(teacher.main, ""), (collect.main, "--ckpt {}"), (evaluate.main, "--ckpt {}")]
)
def test_data_that_is_not_there_is_refused_in_one_line(
    main: Callable[[list[str]], int], flag: str, school: School, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = f"{flag.format(school.teacher)} --data {tmp_path}/none.jsonl --out {tmp_path / 'out'}"
    assert call(main, words) == 2
    err = capsys.readouterr().err
    assert "none.jsonl cannot be read" in err and err.startswith("error: ") and err.count("\n") == 1


def test_trajectories_of_another_teacher_are_refused(
    school: School, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = open_checkpoint.load(school.teacher)
    weights = {name: tensor + 0.01 for name, tensor in saved.weights.items()}
    student_pt.save(replace(saved, weights=weights), tmp_path / "same-shape.pt")
    student_pt.save(replace(saved, decoding=replace(saved.decoding, block=6)), tmp_path / "other-block.pt")
    merged = shutil.copytree(school.trajectories, tmp_path / "merged")
    (merged / "collect.json").unlink()
    for teacher_path, folders, said in (
        (tmp_path / "same-shape.pt", school.trajectories, "are of another teacher; collect them with this one"),
        (tmp_path / "other-block.pt", school.trajectories, "are of another teacher; collect them with this one"),
        (school.teacher, f"{school.trajectories} {merged}", "merged/collect.json does not name the teacher"),
    ):
        words = f"--teacher {teacher_path} --trajectories {folders} --out {tmp_path / 's.pt'}"
        assert call(distill.main, words) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and said in err and err.count("\n") == 1


def test_several_collections_are_learned_from_together(school: School, tmp_path: Path) -> None:
    more = tmp_path / "more"
    assert call(collect.main, school.collect("--seed 9").replace(str(school.trajectories), str(more))) == 0
    words = f"--teacher {school.teacher} --out {tmp_path / 's.pt'} --trajectories {school.trajectories}"
    found = [
        distill.choose_usable(
            distill.make_parser().parse_args(f"{words} {extra}".split()),
            open_checkpoint.load(school.teacher),
            False,
            True,
        )
        for extra in ("", more)
    ]
    assert [len(each) for each in found] == [48, 96]

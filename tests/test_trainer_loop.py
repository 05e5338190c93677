"""The training loop resumes to the bit, the stream repeats itself, and the noise stays where it belongs."""

from __future__ import annotations

import functools
import json
import re
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from runtime.errors import NumericalError, UserError
from train import tasks
from train.data.batches import CHUNK, Example, Stream, choose_width, encode, pad
from train.data.bpe import train_tokenizer
from train.masking import noise
from train.masking.noise import AnswerBlocks
from train.teacher import make_masked_loss
from train.torch_backend import derive_contract
from train.trainer.resume import forget
from train.trainer.training_loop import Loss, Recipe, make_optimizers, train_model
from train.transformer.network import Transformer, initialize

RECIPE = Recipe(steps=12, warmup=3, bf16=False, save_every=5)


class Stopped(Exception):
    """What stops a run in the middle."""


def run(
    out: Path, recipe: Recipe = RECIPE, stop: int | None = None, identity: str = "a"
) -> tuple[list[int], dict[str, Tensor]]:
    """The steps that were run, and weights and averages at the end; stopped in the loss of step `stop`."""
    model = initialize(Transformer(tiny.shape(0)), 0)
    done: list[int] = []

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        if step == stop:
            raise Stopped
        done.append(step)
        ids = torch.randint(0, tiny.VOCAB, (2, 6), generator=torch.Generator().manual_seed(step))
        logits = model.logits(model(ids, torch.full((2, 6), 6)))
        return F.cross_entropy(logits.flatten(0, 1), ids.flatten()), {"accuracy": 0.5}

    checked: Loss = loss_of
    try:
        average = train_model(model, checked, recipe, out, {"task": identity}).weights
    except Stopped:
        return done, {}
    return done, {**model.state_dict(), **{f"average of {name}": value for name, value in average.items()}}


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    whole, expected = run(tmp_path / "whole.pt")
    before, _ = run(tmp_path / "parts.pt", stop=7)
    after, resumed = run(tmp_path / "parts.pt")
    assert (whole, before, after) == (list(range(12)), list(range(7)), list(range(5, 12)))
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    assert (tmp_path / "parts.pt.resume").exists()  # until what came of it is written
    forget(tmp_path / "parts.pt")
    assert not (tmp_path / "parts.pt.resume").exists()


@pytest.mark.parametrize("error", [OSError(22, "Invalid argument"), EOFError(), RuntimeError("miniz")])
def test_a_stopped_run_that_was_cut_short_is_told_without_the_librarys_own_words(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    run(tmp_path / "run.pt", stop=7)
    kept = tmp_path / "run.pt.resume"
    told = re.escape(f"{kept} is not a stopped run to continue (it is damaged or cut short); delete it")
    content = kept.read_bytes()
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        kept.write_bytes(content[:length])
        with pytest.raises(UserError, match=told):
            run(tmp_path / "run.pt")
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(UserError, match=told):
        run(tmp_path / "run.pt")


def test_what_a_killed_run_left_of_a_save_goes_when_the_next_one_begins(tmp_path: Path) -> None:
    left = tmp_path / ".run.pt.resume.part"
    left.mkdir()
    (left / "run.pt.resume").write_bytes(b"half")
    run(tmp_path / "run.pt", stop=1)  # before it saves
    assert not left.exists()


def test_muon_has_the_layers_matrices_alone_and_both_optimizers_the_rate_of_the_step(tmp_path: Path) -> None:
    model = initialize(Transformer(tiny.shape(0)), 0)
    learned = dict(model.named_parameters())
    adamw, muon = make_optimizers(learned, replace(RECIPE, optimizer="muon"))
    assert muon is not None and make_optimizers(learned, RECIPE)[1] is None
    of_muon, of_adamw = (
        {id(each) for group in optimizer.param_groups for each in group["params"]} for optimizer in (muon, adamw)
    )
    assert of_muon == {id(p) for name, p in learned.items() if p.dim() == 2 and name.startswith("layers.")}
    assert of_adamw == {id(p) for p in learned.values()} - of_muon

    still = {name: p.clone() for name, p in learned.items()}
    frozen = replace(RECIPE, steps=3, learning_rate=0.0, optimizer="muon")
    assert all(torch.equal(run(tmp_path / "still.pt", frozen)[1][name], value) for name, value in still.items())
    plain, other = (run(tmp_path / f"{name}.pt", replace(RECIPE, optimizer=name))[1] for name in ("adamw", "muon"))
    assert not any(torch.equal(plain[name], other[name]) for name, p in learned.items() if id(p) in of_muon)


def test_another_identity_or_recipe_is_refused_by_name_and_the_stopped_run_stays(tmp_path: Path) -> None:
    out = tmp_path / "run.pt"
    run(out, stop=7)
    for changes, said in (
        ({"identity": "b"}, "differs in task (a there, b here); give the same"),
        (
            {"recipe": replace(RECIPE, clip=0.5, steps=9)},
            "differs in clip (1.0 there, 0.5 here), steps (12 there, 9 here)",
        ),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            run(out, **changes)
    done, _ = run(out, replace(RECIPE, save_every=3))  # how often it saves makes no difference
    assert done == list(range(5, 12))


@pytest.mark.parametrize(
    ("poison", "said"),
    [
        ("loss", "the loss is nan at update 4"),
        ("norm", "norm is nan at update 4"),
        ("rate", "not a number after update 1"),
    ],
)
def test_what_is_no_number_is_never_saved(poison: str, said: str, tmp_path: Path) -> None:
    model, out = initialize(Transformer(tiny.shape(0)), 0), tmp_path / "run.pt"

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        loss = model.logits(model(torch.ones(1, 4, dtype=torch.int64), torch.full((1, 4), 4))).square().mean()
        if step == 3 and poison == "loss":
            loss = loss * torch.nan
        if step == 3 and poison == "norm":
            loss = (loss - loss.detach()).sqrt()  # 0, its gradient endless
        return loss, {}

    recipe = replace(RECIPE, save_every=1, learning_rate=float("inf") if poison == "rate" else 1e-3)
    with pytest.raises(NumericalError, match=said):
        train_model(model, loss_of, recipe, out, {})
    kept = tmp_path / "run.pt.resume"
    if poison != "rate":
        state = torch.load(kept, weights_only=True)
        assert state["step"] == 3 and all(weight.isfinite().all() for weight in state["model"].values())
    assert kept.exists() == (poison != "rate")


def test_files_that_cannot_be_written_or_gone_on_with_are_told_in_one_line(tmp_path: Path) -> None:
    out = tmp_path / "run.pt"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"run.pt.log.jsonl cannot be written"):
        run(tmp_path / "file" / "run.pt")
    (tmp_path / "file").rename(tmp_path / "run.pt.resume")
    with pytest.raises(UserError, match=r"run.pt.resume is not a stopped run to continue .*delete it"):
        run(out)
    (tmp_path / "run.pt.resume").unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))  # bytes a file may have: as a disk that is full
    try:
        with pytest.raises(UserError, match=r"run.pt.resume cannot be written \(File too large\)"):
            run(out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt.log.jsonl"]


def test_a_log_that_a_full_disk_cut_off_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.trainer.training_loop.LOG_EVERY", 2)
    log = tmp_path / "run.pt.log.jsonl"
    run(tmp_path / "run.pt", stop=7)
    with open(log, "a") as file:
        file.write('{"step": 8, "norm": 0.')
    (tmp_path / ".run.pt.resume.part").mkdir()
    run(tmp_path / "run.pt")
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [2, 4, 6, 8, 10, 12]
    forget(tmp_path / "run.pt")
    assert [file.name for file in tmp_path.iterdir()] == [log.name]  # the empty folder of a killed save is gone too
    run(tmp_path / "run.pt", stop=7)
    log.write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"run\.pt\.log\.jsonl is not a log to continue"):
        run(tmp_path / "run.pt")


def test_a_log_that_cannot_be_added_to_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.trainer.training_loop.LOG_EVERY", 2)
    monkeypatch.setattr(
        "train.trainer.training_loop.tqdm", functools.partial(tqdm, disable=True)
    )  # it too writes into a file here
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(UserError, match=r"run\.pt\.log\.jsonl cannot be written \(File too large\)"):
            run(tmp_path / "run.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_averages_follow_the_weights_and_the_log_is_json(tmp_path: Path) -> None:
    _, state = run(tmp_path / "run.pt")
    start = initialize(Transformer(tiny.shape(0)), 0).state_dict()
    name = "embed_tokens.weight"
    moved = (state[name] - start[name]).norm()
    behind = (state[name] - state[f"average of {name}"]).norm()
    assert 0 < behind < moved
    lines = [json.loads(line) for line in (tmp_path / "run.pt.log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [12] and {"loss", "norm", "rate", "accuracy", "seconds"} <= lines[
        0
    ].keys()


def test_the_rate_rises_and_falls() -> None:
    recipe = Recipe(steps=100, learning_rate=1.0, warmup=10, floor=0.1)
    rates = [recipe.compute_rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[10] == pytest.approx(1.0) and rates[100] == pytest.approx(0.1)
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)


def stream(seed: int = 3, longest: int = 400, answer: int = 300) -> Stream:
    chosen = tasks.choose_tasks("math,code")
    texts = [text for task in chosen for p in task.problems("train", 40, 0) for text in (p.prompt, p.answer)]
    return Stream(chosen, train_tokenizer(texts, 400), tiny.END, 4, seed, longest, answer)


def test_the_examples_of_a_step_are_the_same_whenever_they_are_asked() -> None:
    first, second = stream(), stream()
    asked = {step: first.select_examples(step) for step in (0, 1, CHUNK, 2 * CHUNK - 1, 2 * CHUNK)}
    for step in (2 * CHUNK - 1, 0, 2 * CHUNK, 1, CHUNK):
        assert second.select_examples(step) == asked[step] and len(asked[step]) == 4
    assert asked[0] != asked[CHUNK] and stream(seed=4).select_examples(0) != asked[0]


def test_examples_keep_the_bounds_and_end_in_the_end_token() -> None:
    bounded = stream(longest=150, answer=90)
    for example in (e for step in range(CHUNK) for e in bounded.select_examples(step)):
        assert len(example.answer) <= 90 and len(example.prompt) + len(example.answer) <= 150
        assert example.answer[-1] == tiny.END and tiny.END not in example.prompt + example.answer[:-1]
    with pytest.raises(ValueError, match="raise --canvas"):
        stream(longest=3).select_examples(0)


def test_prompt_and_answer_are_encoded_apart() -> None:
    tokenizer = train_tokenizer(["ab ab ab ab"], 300)
    apart = encode(tokenizer, [("a", "b"), ("b", "<|end|>")], tiny.END)
    assert apart[0] == Example(tuple(tokenizer.encode("a").ids), (*tokenizer.encode("b").ids, tiny.END))
    assert apart[1].answer.count(tiny.END) == 1


def test_padding_is_on_the_right_and_short_batches_have_little() -> None:
    batch = pad([Example((5, 6), (7, 1)), Example((5,), tuple(range(3, 24)) * 2)], 0)
    assert batch.ids.shape == (2, 48) and batch.ids[0].tolist() == [5, 6, 7, 1] + [0] * 44
    assert batch.start.tolist() == [2, 1] and batch.length.tolist() == [4, 43]
    assert [choose_width(longest) for longest in (1, 8, 9, 64, 65, 97)] == [8, 8, 16, 64, 96, 128]


def laid_out(seed: int) -> AnswerBlocks:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 12, (32, 2), generator=generator).tolist()
    examples = [Example((5,) * prompt, (7,) * (answer - 1) + (tiny.END,)) for prompt, answer in sizes]
    return noise.lay_out(examples, tiny.contract(), 12, generator)


def test_answers_are_filled_to_their_blocks_or_to_the_whole_canvas() -> None:
    canvas = laid_out(0)
    size, answer = (canvas.length - canvas.start).tolist(), (canvas.answer_end - canvas.start).tolist()
    assert all(s in (12, -(-a // 4) * 4) for s, a in zip(size, answer, strict=True)) and {4, 8, 12} == set(size)
    for row, (start, end, stop) in enumerate(zip(canvas.start, canvas.answer_end, canvas.length, strict=True)):
        assert canvas.ids[row, end - 1] == tiny.END and (canvas.ids[row, :start] == 5).all()
        assert (canvas.ids[row, end:stop] == tiny.PAD).all()
    assert torch.equal(canvas.find_inside().sum(1), canvas.length - canvas.start)


def test_noise_touches_neither_the_prompt_nor_what_lies_behind_the_canvas() -> None:
    seed = tiny.choose_seed()
    canvas, generator = laid_out(seed), torch.Generator().manual_seed(seed)
    place = torch.arange(canvas.ids.shape[1])
    outside = (place < canvas.start[:, None]) | (place >= canvas.length[:, None])
    for masked in (
        noise.sample_uniform_mask(canvas, generator),
        noise.sample_block_mask(canvas, tiny.contract(), generator)[0],
    ):
        assert masked.any() and not (masked & outside).any(), f"seed {seed}"


def test_block_noise_is_what_block_wise_decoding_meets() -> None:
    seed = tiny.choose_seed()
    generator = torch.Generator().manual_seed(seed)
    drawn = set()
    for turn in range(20):
        canvas = laid_out(seed + turn)
        masked, decided = noise.sample_block_mask(canvas, tiny.contract(), generator)
        for row, (start, end, stop) in enumerate(zip(canvas.start, canvas.answer_end, canvas.length, strict=True)):
            blocks, chosen = masked[row, start:stop].view(-1, 4), decided[row, start:stop].view(-1, 4)
            first = int(blocks.any(1).int().argmax()) if blocks.any() else len(blocks)
            assert blocks[first + 1 :].all(), f"seed {seed}: a block behind the current one is not wholly masked"
            if chosen.any():
                first = int(chosen.any(1).int().argmax())
                assert torch.equal(chosen[first], blocks[first]) and chosen.any(1).sum() == 1, f"seed {seed}"
                assert not blocks[:first].any(), f"seed {seed}: a block before the drawn one is masked"
            last_real = (int(end - start) - 1) // 4
            assert blocks[last_real + 1 :].all(), f"seed {seed}: the current block is one without any answer"
            drawn.add((len(blocks), first))
    assert {(3, 0), (3, 1), (3, 2)} <= drawn, f"seed {seed}: {drawn}"


def test_a_step_whose_draw_masks_nothing_has_a_loss_of_zero(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"prompt": "say a", "answer": "a"}\n')
    task = tasks.from_file(tmp_path / "own.jsonl")
    one = replace(task, problems=lambda split, count, seed: task.problems("all", count, seed))  # wherever it falls
    saved = tiny.checkpoint(attention="full", canvas=4)
    shape = replace(saved.model, vocab=300)
    model = initialize(Transformer(shape), 0)
    loss_of = make_masked_loss(
        model, model, Stream([one], saved.read_tokenizer(), tiny.END, 1, 0, 60, 4), derive_contract(saved)
    )
    losses = [loss_of(step)[0] for step in range(60)]
    assert all(loss.isfinite() for loss in losses) and 0 < sum(loss == 0 for loss in losses) < 60


def test_uniform_noise_draws_a_ratio_for_each_row() -> None:
    canvas = laid_out(1)
    inside = canvas.find_inside().sum(1)
    shares = [
        noise.sample_uniform_mask(canvas, torch.Generator().manual_seed(seed)).sum(1) / inside for seed in range(60)
    ]
    spread = torch.stack(shares)
    assert 0.4 < spread.mean() < 0.6 and (spread < 0.1).any() and (spread > 0.9).any()


def test_weights_are_one_on_masked_answers_and_less_on_filler() -> None:
    canvas = AnswerBlocks(torch.zeros(1, 8, dtype=torch.int64), torch.tensor([2]), torch.tensor([4]), torch.tensor([6]))
    masked = torch.tensor([[False, False, True, False, True, True, False, False]])
    assert noise.make_weights(canvas, masked, 0.25).tolist() == [[0, 0, 1, 0, 0.25, 0.25, 0, 0]]

"""Directories of Nemotron-Labs-Diffusion and I-DLM: their answers in every mode against stock classes, wrong readings.

Oracle: transformers' own classes under float 4-D masks, everything recomputed at every step (`slow_causal`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import tiny
import torch
from foreign import BLOCK, CANVAS, VOCAB, YARN, Stock
from slow_causal import TooClose, slow_blocks, slow_causal

from export import onnx as export
from runtime import load as load_bundle
from runtime.contract import Contract
from runtime.decoding import block_layout, loop, sequence, speculation
from runtime.decoding.options import DecodeOptions, Request
from runtime.errors import UserError
from train.checkpoint import Checkpoint
from train.huggingface.families import Overrides
from train.open_checkpoint import load
from train.torch_backend import TorchBackend, derive_contract
from train.transformer.network import make_prefix_mask

SHARP = 4.0  # of the heads, so that some confidences pass a threshold
SMALL = {"nemotron": Overrides(canvas=CANVAS), "idlm": Overrides(family="idlm", block=BLOCK, canvas=CANVAS)}
ROPE = {"nemotron": YARN, "idlm": {}}
STRETCHED = {**YARN, "factor": 16.0, "original_max_position_embeddings": 32}  # as in the instruct models
ANSWERS = 200 if tiny.FULL else 24  # of a family and mode


def written(folder: Path, name: str, seed: int = 0, rope: dict[str, Any] | None = None) -> tuple[Stock, Checkpoint]:
    stock: Any = foreign.write(folder, name, seed, ROPE[name] if rope is None else rope, sharp=SHARP)
    read = load(folder, SMALL[name])
    return Stock(stock, derive_contract(read).vocab), read


@pytest.mark.parametrize("rope", [YARN, STRETCHED])
@pytest.mark.parametrize("name", foreign.CAUSAL)
def test_a_forward_is_that_of_the_stock_class(name: str, rope: dict[str, Any], tmp_path: Path) -> None:
    stock, read = written(tmp_path, name, 0, rope if name == "nemotron" else {})
    ids = torch.randint(VOCAB, (2, 30), generator=torch.Generator().manual_seed(1))
    visible = torch.randint(1, 31, (2, 30), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        model = read.build()
        ours = model.logits(model(ids, visible))
        theirs = stock.model(input_ids=ids, attention_mask=make_prefix_mask(visible, 30), use_cache=False).logits
    assert theirs.std() > 0.5 and float((ours - theirs).abs().max()) <= SHARP * 1e-5


def questions(rng: np.random.Generator, count: int) -> Iterator[tuple[list[int], int]]:
    """Prompts of every length around the borders of blocks, and how many tokens are asked for."""
    for number in range(count):
        length = 1 + number % (3 * BLOCK)
        yield rng.integers(3, 250, length).tolist(), int(rng.choice([1, BLOCK, CANVAS - 1]))


def slow(model: Any, spec: Contract, mode: str, prompt: list[int], wanted: int, threshold: float) -> list[int] | None:
    """The answer from the definition; None if a decision of it is a matter of rounding."""
    try:
        if mode == "block":
            return slow_blocks(model, spec, prompt, wanted, threshold)
        return slow_causal(model, spec, prompt, wanted)
    except TooClose:
        return None


def answer(backend: Any, mode: str, prompt: list[int], wanted: int, threshold: float, fused: bool = True) -> list[int]:
    more: dict[str, Any] = {"threshold": threshold} if mode == "block" else {}
    options = DecodeOptions(wanted, mode=mode, fused=fused, **more)
    return [*loop.generate(backend, Request(np.array(prompt, np.int64), options)).token_ids]


@pytest.mark.parametrize("name", foreign.CAUSAL)
def test_answers_of_every_mode_are_those_of_the_stock_class(name: str, tmp_path: Path) -> None:
    seed = tiny.choose_seed()
    stock, read = written(tmp_path, name, seed % 1000)
    spec, rng = derive_contract(read), np.random.default_rng(seed)
    backend, different, close = TorchBackend(read.build(), spec), 0, 0
    for mode in spec.modes:
        for number, (prompt, wanted) in enumerate(questions(rng, ANSWERS)):
            threshold = float(rng.choice([0.1, 0.3, 0.9]))
            right = slow(stock, spec, mode, prompt, wanted, threshold)
            close += right is None
            got = answer(backend, mode, prompt, wanted, threshold, fused=number % 2 == 0)
            different += right is not None and got != right
    assert different == 0 and close <= ANSWERS // 10, f"seed {seed}: {different} differ, {close} too close"


@pytest.mark.parametrize("precision", ["fp32"])
@pytest.mark.parametrize("dialect", ["ort", "standard"])
@pytest.mark.parametrize("name", foreign.CAUSAL)
def test_an_exported_directory_answers_as_pytorch_in_every_mode(
    name: str, dialect: str, precision: str, tmp_path: Path
) -> None:
    _, read = written(tmp_path / "model", name)
    words = [
        "--ckpt",
        str(tmp_path / "model"),
        "--canvas",
        str(CANVAS),
        "--out",
        str(tmp_path / "b"),
        "--capacity",
        "48",
    ]
    words += ["--dialect", dialect, *(["--family", "idlm", "--block", str(BLOCK)] if name == "idlm" else [])]
    assert export.main(words) == 0
    model, spec = load_bundle(tmp_path / "b", engine=f"{dialect}-fp32"), derive_contract(read)
    assert model.contract.modes == spec.modes and model.contract.attention == spec.attention
    torch_backend, rng = TorchBackend(read.build(), spec), np.random.default_rng(0)
    for mode in spec.modes:
        for prompt, wanted in questions(rng, 12):
            assert answer(model.backend, mode, prompt, wanted, 0.3) == answer(torch_backend, mode, prompt, wanted, 0.3)


Patch = Callable[[pytest.MonkeyPatch], None]


def everything_committed_both_ways(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sequence, "compute_committed_ends", block_layout.compute_block_ends)


def prompt_both_ways(patch: pytest.MonkeyPatch) -> None:
    def ends(spec: Contract, prompt: int, answer: int = 0) -> Any:
        own = block_layout.compute_committed_ends(spec, prompt, answer)
        return np.maximum(own, np.where(np.arange(len(own)) < prompt, prompt, 0))

    patch.setattr(sequence, "compute_committed_ends", ends)


def commits_both_ways(patch: pytest.MonkeyPatch) -> None:
    def ends(spec: Contract, prompt: int, answer: int = 0) -> Any:
        causal = block_layout.compute_committed_ends(spec, prompt, answer)
        return np.where(np.arange(len(causal)) < prompt, causal, block_layout.compute_block_ends(spec, prompt, answer))

    patch.setattr(sequence, "compute_committed_ends", ends)


def causal_blocks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sequence, "compute_block_ends", block_layout.compute_committed_ends)


def no_roll_back(patch: pytest.MonkeyPatch) -> None:
    def commit(self: Any, tokens: int) -> None:
        self.past += tokens if len(self.pending) else 1 + len(self.drafted)
        self.pending = sequence.NOTHING

    patch.setattr(speculation.Draft, "commit", commit)
    patch.setattr(speculation.Draft, "masks", property(lambda self: int(not len(self.pending))))


def unverified(patch: pytest.MonkeyPatch) -> None:
    real = speculation.SpeculativeProgress._confirm

    def confirm(self: Any, out: Any, slot: int, said: int) -> int:
        if said > 1:
            out.token[slot, : said - 1] = self.sequence.drafted
        return real(self, out, slot, said)

    patch.setattr(speculation.SpeculativeProgress, "_confirm", confirm)


def reading(**changes: Any) -> Callable[[Checkpoint], Checkpoint]:
    return lambda read: replace(read, decoding=replace(read.decoding, **changes))


def rope(**changes: Any) -> Callable[[Checkpoint], Checkpoint]:
    def changed(read: Checkpoint) -> Checkpoint:
        scaling = {k: v for k, v in {**read.model.rope_scaling, **changes}.items() if v is not None}
        return replace(read, model=replace(read.model, rope_scaling=scaling if changes else {}))

    return changed


def same(read: Checkpoint) -> Checkpoint:
    return read


def tied(read: Checkpoint) -> Checkpoint:
    weights = {name: tensor for name, tensor in read.weights.items() if not name.startswith("lm_head")}
    return replace(read, model=replace(read.model, tied=True), weights=weights)


WRONG: dict[str, tuple[Callable[[Checkpoint], Checkpoint], Patch, tuple[str, ...]]] = {
    # by name: how the checkpoint is misread, what the loop does wrong, and the modes that show it
    "all that is committed sees its block": (same, everything_committed_both_ways, ("block",)),
    "the prompt sees both ways": (same, prompt_both_ways, ("block",)),
    "a commit sees both ways": (same, commits_both_ways, ("block",)),
    "a block sees causally": (same, causal_blocks, ("block",)),
    "no seed, rows shifted instead": (reading(shift=True), lambda patch: None, ("block",)),
    "blocks at multiples of their size, both ways": (
        reading(attention="block_causal", alignment="absolute", modes=("block",)), lambda patch: None, ("block",)),
    "blocks of half the size": (reading(block=BLOCK // 2), lambda patch: None, ("block",)),
    "drafts unverified": (same, unverified, ("speculative",)),
    "no roll-back": (same, no_roll_back, ("speculative",)),
    "plain RoPE": (rope(), lambda patch: None, ("block", "speculative", "causal")),
    "YaRN's factor not below 1": (rope(factor=1.0), lambda patch: None, ("block", "speculative", "causal")),
    "YaRN's usual scale of cosines": (rope(mscale=None, mscale_all_dim=None, factor=16.0), lambda patch: None,
        ("block", "speculative", "causal")),
    "the head tied to the embedding": (tied, lambda patch: None, ("block", "speculative", "causal")),
}  # fmt: skip


@contextmanager
def patched(patch: Patch) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkey:
        patch(monkey)
        yield


@pytest.mark.parametrize("wrong", WRONG)
def test_each_wrong_reading_changes_answers(wrong: str, tmp_path: Path) -> None:
    change, patch, modes = WRONG[wrong]
    stretched = STRETCHED if "usual scale" in wrong else None
    stock, read = written(tmp_path, "nemotron", 3, stretched)
    misread = change(read)
    spec, rng = derive_contract(read), random.Random(0)
    backend = TorchBackend(misread.build(), derive_contract(misread))
    for mode in modes:
        changed = 0
        for prompt, wanted in questions(np.random.default_rng(rng.randrange(9)), 36):
            right = slow(stock, spec, mode, prompt, max(wanted, BLOCK), 0.3)
            with patched(patch):
                changed += right is not None and answer(backend, mode, prompt, max(wanted, BLOCK), 0.3) != right
        assert changed, f"{wrong}, {mode}"


def test_the_query_scale_is_refused_by_capacity_and_the_drafts_adapter_by_name(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "model"
    foreign.write(folder, "nemotron", 0, {**YARN, "original_max_position_embeddings": 40})
    read = load(folder, SMALL["nemotron"])
    assert read.decoding.context == 40
    words = ["--ckpt", str(folder), "--canvas", str(CANVAS), "--out", str(tmp_path / "b"), "--capacity"]
    assert export.main([*words, "41"]) == 2
    told = capsys.readouterr().err
    assert "--capacity is 41, but from position 40 on this model scales its queries" in told and told.count("\n") == 1
    assert export.main([*words, "40"]) == 0
    (folder / "linear_spec_lora").mkdir()
    (folder / "linear_spec_lora" / "adapter_config.json").write_text("{}")
    assert load(folder, SMALL["nemotron"]).decoding == read.decoding
    with pytest.raises(UserError, match="is an adapter for the drafts of nemotron alone"):
        load(folder, replace(SMALL["nemotron"], adapter=folder / "linear_spec_lora"))


def test_end_tokens_of_base_and_instruct_end_an_answer(tmp_path: Path) -> None:
    _, read = written(tmp_path, "nemotron")
    tokenizer = read.read_tokenizer()
    assert read.decoding.eos_ids == tuple(tokenizer.token_to_id(end) for end in ("</s>", "<|im_end|>"))
    assert read.decoding.mask_id == tokenizer.token_to_id("<SPECIAL_100>")

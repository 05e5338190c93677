"""Students as Hugging Face directories: they read back as they were, stock classes read them, nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import foreign
import pytest
import tiny
import torch
from foreign import BLOCK, CANVAS, FOREIGN
from safetensors.torch import load_file
from torch import Tensor

from runtime.errors import UserError
from train.checkpoint import Checkpoint
from train.destination import Output
from train.huggingface import directory_writer
from train.huggingface.families import Overrides
from train.huggingface.peft_train import LowRank
from train.methods import cdlm
from train.open_checkpoint import compute_fingerprint, load
from train.storage.student_pt import save
from train.torch_backend import derive_contract
from train.transformer.network import make_prefix_mask

SMALL = Overrides(block=BLOCK, canvas=CANVAS)
AS_READ = Overrides()


def student_of(saved: Checkpoint) -> Checkpoint:
    """Other weights, decoded as a student."""
    generator = torch.Generator().manual_seed(5)
    weights = {name: t + 0.1 * torch.randn(t.shape, generator=generator) for name, t in saved.weights.items()}
    decoding = replace(saved.decoding, attention="block_causal", gate=dict(cdlm.GATE))
    return replace(saved, decoding=decoding, weights=weights)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def refusal(output: Output, student: Checkpoint) -> str:
    with pytest.raises(UserError) as caught:
        output.check(student)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def whole(out: Path, teacher: Path, overrides: Overrides = SMALL) -> Output:
    return Output(out, teacher, overrides, None, torch.float32)


@pytest.mark.parametrize("name", ["dream", "llada", "bd3lm-qwen3"])
def test_a_directory_reads_back_as_the_student_and_in_the_teachers_names(name: str, tmp_path: Path) -> None:
    stock = foreign.write(tmp_path / "teacher", name, template="{{ bos_token }}{{ messages[0]['content'] }}")
    (tmp_path / "teacher" / "generation_config.json").write_text('{"max_length": 7}')
    (tmp_path / "teacher" / "modeling.py").write_text("raise SystemExit('this must never run')\n")
    student, out = student_of(load(tmp_path / "teacher", SMALL)), tmp_path / "Student-1.7B"
    output = whole(out, tmp_path / "teacher")
    output.check(student)
    output.write(student, student.weights)
    read = load(out)
    assert same(read.weights, student.weights) and derive_contract(read) == derive_contract(student)
    assert replace(read, weights={}) == replace(student, weights={})
    theirs = load_file(out / "model.safetensors")
    assert theirs.keys() == load_file(tmp_path / "teacher" / "model.safetensors").keys()
    if FOREIGN[name].stock != "Llama":
        stock.load_state_dict(theirs, strict=not FOREIGN[name].tied)
        ids, visible = torch.arange(20)[None], torch.full((1, 20), 9)
        model = read.build()
        with torch.no_grad():
            expected: Any = stock(input_ids=ids, attention_mask=make_prefix_mask(visible, 20), use_cache=False)
            assert (model.logits(model(ids, visible)) - expected.logits).abs().max() <= 1e-4
    config = [json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "teacher", out)]
    assert config[0] == config[1] and (out / "modeling.py").is_file() and (out / "generation_config.json").is_file()


@pytest.mark.parametrize(("given", "brief"), [(None, True), ({"enable_thinking": True}, False)])
def test_a_directory_is_read_with_the_template_arguments_it_was_trained_with(
    given: dict[str, Any] | None, brief: bool, tmp_path: Path
) -> None:
    from runtime.text.chat_template import render

    template, user = "{% if not enable_thinking %}brief{% endif %}", [{"role": "user", "content": "hi"}]
    foreign.write(tmp_path / "teacher", "bd3lm-qwen3", template=template)
    overrides = replace(SMALL, template_args=given)
    student = student_of(load(tmp_path / "teacher", overrides))
    whole(tmp_path / "one", tmp_path / "teacher", overrides).write(student, student.weights)
    whole(tmp_path / "two", tmp_path / "one", AS_READ).write(student, student.weights)  # a student's student
    save(student, tmp_path / "student.pt")
    for place in ("one", "two", "student.pt"):
        read = load(tmp_path / place).chat_template
        assert read is not None and render(read, user) == ("brief" if brief else "")
        other = load(tmp_path / place, Overrides(template_args={"enable_thinking": brief})).chat_template
        assert other is not None and render(other, user) == ("" if brief else "brief")


def test_flags_overrule_what_a_student_notes_of_itself(tmp_path: Path) -> None:
    foreign.write(tmp_path / "teacher", "dream")
    student = student_of(load(tmp_path / "teacher", SMALL))
    whole(tmp_path / "out", tmp_path / "teacher").write(student, student.weights)
    plain = load(tmp_path / "out").decoding
    assert load(tmp_path / "out", Overrides(attention="full")).decoding == replace(plain, attention="full")
    assert load(tmp_path / "out", Overrides(block=6, canvas=18)).decoding == replace(plain, block=6, canvas=18)
    as_dream = load(tmp_path / "out", Overrides(family="dream", canvas=32)).decoding
    assert (as_dream.attention, as_dream.block) == ("full", 32)
    before = compute_fingerprint(tmp_path / "out")
    note = tmp_path / "out" / "blockstep.json"
    sound = json.loads(note.read_text())
    note.write_text(json.dumps({**sound, "decoding": {**sound["decoding"], "shift": False}}))
    assert not load(tmp_path / "out").decoding.shift and compute_fingerprint(tmp_path / "out") != before
    for changes, said in (
        ({"format": 2}, "format 2"), ({"family": "gpt"}, "is gpt"), ({"files": "all"}, "lacks a family"),
        ({"decoding": {**sound["decoding"], "mask_id": 10**6}}, "the mask token's id is 1000000"),
        ({"decoding": {**sound["decoding"], "block": "4"}}, "'4' as block"),
        ({"decoding": {**sound["decoding"], "block": 0}}, "0 as block; expected a whole number from 1"),
        ({"decoding": {**sound["decoding"], "colour": 1}}, "unknown config keys colour"),
    ):  # fmt: skip
        note.write_text(json.dumps({**sound, **changes}))
        with pytest.raises(UserError, match=said):
            load(tmp_path / "out")


def test_weights_are_sharded_and_rounded_as_asked(tmp_path: Path) -> None:
    foreign.write(tmp_path / "teacher", "llada")
    student = student_of(load(tmp_path / "teacher", SMALL))
    (tmp_path / "out").mkdir()
    directory_writer.write_directory(
        tmp_path / "out", student, tmp_path / "teacher", SMALL, torch.bfloat16, shard=20_000
    )
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 2 and shards[-1].name == f"model-{len(shards):05}-of-{len(shards):05}.safetensors"
    assert all(sum(t.nbytes for t in load_file(file).values()) <= 20_000 for file in shards)
    read = load(tmp_path / "out")
    assert same(read.weights, {name: tensor.bfloat16() for name, tensor in student.weights.items()})
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("seed", [0, 5, 10, 1, 3, 4])  # Llama, Llama, Qwen2, Qwen3, Qwen3, none of them
def test_a_student_of_a_pt_file_is_a_stock_model_where_one_has_its_shape(seed: int, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    saved = replace(tiny.checkpoint(seed, shift=True), chat_template="{{ messages[0]['content'] }}")
    saved = replace(saved, model=replace(saved.model, rope_theta=500.0))
    save(saved, tmp_path / "teacher.pt")
    output, student = whole(tmp_path / "out", tmp_path / "teacher.pt", AS_READ), student_of(saved)
    if saved.model.qk_norm and saved.model.qkv_bias:
        assert "both norms and biases" in refusal(output, student)
        return
    output.check(student)
    output.write(student, student.weights)
    read = load(tmp_path / "out")
    assert same(read.weights, student.weights) and derive_contract(read) == derive_contract(student)
    assert replace(read, weights={}) == replace(student, weights={})
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    ids, visible, model = torch.arange(20)[None], torch.full((1, 20), 9), read.build()
    with torch.no_grad():
        expected = stock(input_ids=ids, attention_mask=make_prefix_mask(visible, 20), use_cache=False).logits
        assert (model.logits(model(ids, visible)) - expected).abs().max() <= 1e-4
    assert AutoTokenizer.from_pretrained(tmp_path / "out").mask_token_id == tiny.MASK


def test_the_older_student_survives_a_failing_write(tmp_path: Path) -> None:
    foreign.write(tmp_path / "teacher", "dream")
    student, out = student_of(load(tmp_path / "teacher", SMALL)), tmp_path / "out"
    whole(out, tmp_path / "teacher").write(student, student.weights)

    def half(folder: Path) -> None:
        (folder / "config.json").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        directory_writer.replace_folder(out, half)
    assert same(load(out).weights, student.weights)
    newer = student_of(student)
    whole(out, tmp_path / "teacher").write(newer, newer.weights)
    assert same(load(out).weights, newer.weights)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "teacher"]


@pytest.mark.parametrize("swaps", [True, False])
def test_a_directory_is_replaced_where_two_can_change_names_and_where_not(
    swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def holding(word: str) -> Callable[[Path], None]:
        decoding = {"format": 1, "family": "qwen3", "decoding": asdict(tiny.checkpoint().decoding)}
        note = json.dumps({**decoding, "files": [word, "blockstep.json"]})
        return lambda folder: ((folder / word).touch(), (folder / "blockstep.json").write_text(note))[0]

    seen: list[bool] = []

    def swap(new: Path, out: Path) -> bool:
        seen.append((new / "newer").exists() and (out / "older").exists())
        return swaps and swapping(new, out)

    swapping = directory_writer.swap
    monkeypatch.setattr(directory_writer, "swap", swap)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "out")
    directory_writer.replace_folder(tmp_path / "out", holding("older"))
    directory_writer.replace_folder(link, holding("newer"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["blockstep.json", "newer"]
    assert seen == [True] and sorted(path.name for path in tmp_path.iterdir()) == ["link", "out"]


def test_nothing_but_what_was_written_here_is_replaced(tmp_path: Path) -> None:
    foreign.write(tmp_path / "teacher", "dream")
    teacher, out = tmp_path / "teacher", tmp_path / "out"
    student = student_of(load(teacher, SMALL))
    out.mkdir()
    whole(out, teacher).check(student)  # an empty folder
    (out / "notes.txt").write_text("mine")
    assert "did not write (notes.txt)" in refusal(whole(out, teacher), student)
    with pytest.raises(UserError, match=r"notes\.txt"):
        whole(out, teacher).write(student, student.weights)
    (out / "notes.txt").unlink()
    whole(out, teacher).write(student, student.weights)
    whole(out, teacher).check(student)
    (out / "notes.txt").write_text("mine")
    assert "did not write (notes.txt)" in refusal(whole(out, teacher), student)
    foreign.write(tmp_path / "other", "dream")
    assert "did not write (config.json)" in refusal(whole(tmp_path / "other", teacher), student)
    assert "is the teacher" in refusal(whole(teacher, teacher), student)
    (tmp_path / "file").write_text("mine")
    assert "is a file" in refusal(whole(tmp_path / "file", teacher), student)
    (tmp_path / "folder.pt").mkdir()
    assert "is a directory" in refusal(whole(tmp_path / "folder.pt", teacher), student)


def test_a_student_of_more_than_a_gigabyte_is_no_file(tmp_path: Path) -> None:
    student = replace(tiny.checkpoint(), weights={"large": torch.empty(300_000_000, device="meta")})
    output = whole(tmp_path / "student.pt", tmp_path / "teacher.pt", AS_READ)
    assert "would hold 1.2 GB" in refusal(output, student)
    replace(output, dtype=torch.bfloat16).check(student)


def test_an_adapter_needs_a_plain_directory_as_its_base(tmp_path: Path) -> None:
    foreign.write(tmp_path / "teacher", "dream")
    save(tiny.checkpoint(), tmp_path / "teacher.pt")
    for teacher, overrides, said in (
        (tmp_path / "teacher.pt", AS_READ, "the teacher is a .pt file"),
        (tmp_path / "teacher", Overrides(adapter=tmp_path), "a base with an adapter of its own"),
    ):
        output = replace(whole(tmp_path / "out", teacher, overrides), low_rank=LowRank(2, 2.0))
        assert said in refusal(output, tiny.checkpoint())
        replace(output, path=tmp_path / "out.pt").check(tiny.checkpoint())
    assert not (tmp_path / "out").exists()

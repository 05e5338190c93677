"""Checkpoints on disk: what is written comes back, what is not one is refused in one line, and no code ever runs."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE

from runtime.errors import UserError
from train.checkpoint import Checkpoint
from train.open_checkpoint import load
from train.storage.output_files import replace_file
from train.storage.student_pt import save
from train.torch_backend import TorchBackend, derive_contract

GONE = object()


def refusal(path: Path) -> str:
    """The one line that loading (and building) this file is refused with."""
    with pytest.raises(UserError) as error:
        load(path).build()
    assert "\n" not in str(error.value)
    return str(error.value)


def saved(path: Path, **changes: Any) -> Path:
    """A sound checkpoint whose state was changed by hand: GONE removes a key, a dict as `config` is merged into it."""
    save(tiny.checkpoint(), path)
    state = torch.load(path, weights_only=True)
    if isinstance(changes.get("config"), dict):
        changes["config"] = kept({**state["config"], **changes["config"]})
    torch.save(kept({**state, **changes}), path)
    return path


def kept(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not GONE}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_is_saved_comes_back(seed: int, tmp_path: Path) -> None:
    written = replace(tiny.checkpoint(seed, alignment="absolute", shift=True), chat_template="{{ prompt }}")
    save(written, tmp_path / "new" / "student.pt")
    read = load(tmp_path / "new" / "student.pt")
    assert (read.model, read.decoding, read.tokenizer) == (written.model, written.decoding, written.tokenizer)
    assert read.chat_template == "{{ prompt }}" and derive_contract(read) == derive_contract(written)
    assert read.weights.keys() == written.weights.keys()
    assert all(torch.equal(read.weights[name], written.weights[name]) for name in written.weights)
    ids, visible = torch.arange(6)[None], torch.full((1, 6), 6)
    with torch.no_grad():
        assert torch.equal(read.build()(ids, visible), tiny.model(seed)(ids, visible))


def test_weights_of_sixteen_bits_are_built_in_fp32(tmp_path: Path) -> None:
    save(tiny.checkpoint(), tmp_path / "small.pt", torch.bfloat16)
    read = load(tmp_path / "small.pt")
    assert {tensor.dtype for tensor in read.weights.values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in read.build().state_dict().values()} == {torch.float32}


def test_special_tokens_in_a_text_are_text_to_the_tokenizer_that_is_read(tmp_path: Path) -> None:
    save(tiny.checkpoint(), tmp_path / "student.pt")
    ids = load(tmp_path / "student.pt").read_tokenizer().encode("a<|mask|>").ids
    assert tiny.MASK not in ids and len(ids) > 2


def test_an_older_file_survives_a_failing_write(tmp_path: Path) -> None:
    path = tmp_path / "student.pt"
    save(tiny.checkpoint(), path)
    before = path.read_bytes()
    unwritable: Any = (line for line in "a generator cannot be pickled")
    with pytest.raises(TypeError):
        save(replace(tiny.checkpoint(1), chat_template=unwritable), path)

    def half(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"student.pt cannot be written \(No space left"):
        replace_file(path, half)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["student.pt"]


class Attack:
    """Unpickling one creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("hidden", ["alone", "in the config", "raw pickle"])
def test_a_pickle_with_code_is_refused_and_nothing_of_it_runs(hidden: str, tmp_path: Path) -> None:
    path, marker = tmp_path / "student.pt", tmp_path / "marker"
    if hidden == "raw pickle":
        path.write_bytes(pickle.dumps(Attack(marker)))
    elif hidden == "alone":
        torch.save(Attack(marker), path)
    else:
        saved(path, config={"block": Attack(marker)})
    assert "run code" in refusal(path) and not marker.exists()
    pickle.loads(path.read_bytes()) if hidden == "raw pickle" else torch.load(path, weights_only=False)
    assert marker.exists(), "the file would have done nothing, so its refusal shows nothing"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "has format 2; this version reads formats up to 1"),
        ({"format": GONE}, "is not a blockstep checkpoint: got 'config'"),
        ({"model": GONE}, "is not a blockstep checkpoint"),
        ({"config": {"colour": "red", "depth": 3}}, "unknown config keys colour, depth"),
        ({"config": {"block": GONE, "width": GONE}}, "no config keys block, width"),
        ({"config": {"ffn": 47}}, "weights do not fit its config"),
        ({"model": {}}, "weights do not fit its config"),
    ],
)
def test_another_content_is_refused_by_name(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert said in refusal(saved(tmp_path / "student.pt", **changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"config": 5}, "under config"),
        ({"tokenizer": 5}, "under tokenizer"),
        ({"model": [1]}, "under model"),
        ({"model": {"norm.weight": 1}}, "under model"),
        ({"config": {"eos_ids": 1}}, "1 as eos_ids"),
        ({"config": {"layers": "2"}}, "'2' as layers"),
        ({"config": {"gate": None}}, "None as gate"),
    ],
)
def test_values_of_another_kind_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert said in refusal(saved(tmp_path / "student.pt", **changes))


def test_what_is_not_a_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "student.pt"
    assert "no checkpoint at" in refusal(path)
    assert "no checkpoint at" in refusal(tmp_path)
    for content in (b"", b"hello\n", b"PK\x03\x04 not a zip", bytes(range(256))):
        path.write_bytes(content)
        assert str(path) in refusal(path), content
    torch.save([1, 2], path)
    assert "got list" in refusal(path)
    torch.save({"state_dict": {}}, path)
    assert "got 'state_dict'" in refusal(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_truncated_file_is_refused(share: float, tmp_path: Path) -> None:
    path = tmp_path / "student.pt"
    save(tiny.checkpoint(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert str(path) in refusal(path)


def test_a_checkpoint_is_plain_values(tmp_path: Path) -> None:
    save(tiny.checkpoint(), tmp_path / "student.pt")
    state = torch.load(tmp_path / "student.pt", weights_only=True)
    assert sorted(state) == ["chat_template", "config", "format", "model", "tokenizer"] and state["format"] == 1
    assert state["config"]["eos_ids"] == [tiny.END] and isinstance(state["tokenizer"], str)
    assert isinstance(load(tmp_path / "student.pt"), Checkpoint)


def test_a_tokenizer_that_is_none_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="the checkpoint's tokenizer is damaged") as error:
        derive_contract(replace(tiny.checkpoint(), tokenizer="{}"))
    assert "\n" not in str(error.value)


def test_the_vocabulary_ends_with_the_tokenizer_but_holds_the_ids_that_decoding_needs() -> None:
    large = replace(tiny.checkpoint().model, vocab=320)
    source = replace(tiny.checkpoint(), model=large)
    known = source.read_tokenizer().get_vocab_size()
    assert known < 310 and source.count_vocab() == known
    assert replace(source, decoding=replace(source.decoding, mask_id=310)).count_vocab() == 311
    assert tiny.checkpoint().count_vocab() == tiny.VOCAB  # never more than there are embeddings


def test_ids_that_a_tokenizer_leaves_out_are_never_proposed() -> None:
    vocab = {f"t{i}": i for i in range(12) if i not in (5, 9)}
    source = replace(tiny.checkpoint(mask_id=2, pad_id=9), tokenizer=Tokenizer(BPE(vocab, [])).to_str())
    assert source.count_vocab() == 12 and source.list_missing_ids() == [
        5
    ]  # the pad is one, whatever the tokenizer says
    contract, logits = derive_contract(source), torch.zeros(1, 2, 12)
    logits[..., 5], logits[..., 7], logits[..., tiny.MASK] = 9.0, 3.0, 6.0
    heard = TorchBackend(source.build(), contract, barred=source.list_missing_ids()).propose(logits.clone())
    assert heard.token.tolist() == [[7, 7]]
    expected = torch.softmax(torch.tensor([3.0] + [0.0] * 9), 0)  # neither the mask nor the gap
    assert abs(float(heard.confidence[0, 0]) - float(expected[0])) < 1e-6 and np.isfinite(heard.entropy).all()


def endless(kind: type) -> Any:
    """A few bytes on disk, and 2 to the power of 60 words when it is compared, hashed or written out."""
    made: Any = kind(["x"])
    for _ in range(60):
        made = kind([made, made])
    return made


@pytest.mark.parametrize(
    "changes",
    [
        {"format": endless(list)}, {"config": endless(list)}, {"model": endless(list)}, {"tokenizer": endless(list)},
        {"chat_template": endless(list)}, {"model": {"a": endless(list)}}, {"config": {"block": endless(list)}},
        {"config": {"eos_ids": endless(tuple)}}, {"config": {"gate": {"rule": endless(list)}}},
        {"config": {"gate": {"threshold": endless(list)}}}, {"config": {"rope_scaling": {"factor": endless(list)}}},
        {"config": {"rope_scaling": {"rope_type": endless(list)}}}, {"config": {"alignment": endless(list)}},
    ],
    ids=range(13),
)  # fmt: skip
def test_values_nested_without_end_are_refused_at_once(changes: dict[str, Any], tmp_path: Path) -> None:
    assert "nested without end" in refusal(saved(tmp_path / "student.pt", **changes))


def test_a_value_that_holds_itself_is_refused(tmp_path: Path) -> None:
    circle: list[Any] = []
    circle.append(circle)
    assert "nested without end" in refusal(saved(tmp_path / "student.pt", config={"gate": circle}))


def test_a_key_whose_hash_never_ends_is_refused_before_it_is_taken(tmp_path: Path) -> None:
    path = saved(tmp_path / "whole.pt")
    pairs = b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(60))  # get i, make a pair, put it as i + 1
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "student.pt", "w") as new:
        for part in old.infolist():
            content = b"\x80\x02}X\x01\x00\x00\x00x\x85q\x00%bK\x01s." % pairs
            new.writestr(part.filename, content if part.filename.endswith("data.pkl") else old.read(part))
    assert "nested without end" in refusal(tmp_path / "student.pt")

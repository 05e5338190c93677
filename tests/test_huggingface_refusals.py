"""What cannot be read exactly of a published directory is refused, in one line that names it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import foreign
import pytest
import tiny
import tokenizers
import torch
from foreign import BLOCK, CANVAS, FOREIGN, VOCAB

from export import onnx as export
from runtime.bundle import store
from runtime.errors import UserError
from train.huggingface.families import Overrides
from train.open_checkpoint import load
from train.storage.student_pt import save
from train.torch_backend import derive_contract

SMALL = Overrides(block=BLOCK, canvas=CANVAS)
ODD: tuple[Any, ...] = (None, -1, 0, 10**12, 1.5, float("nan"), True, "x", [], [[1]], {}, {"a": [1]})


def refusal(folder: Path, overrides: Overrides = SMALL) -> str:
    """The one line that a directory is refused with."""
    with pytest.raises(UserError) as caught:
        derive_contract(load(folder, overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use_dora": True}, "use_dora"), ({"peft_type": "IA3"}, "'IA3'"), ({"bias": "all"}, "bias 'all'"),
        ({"r": 5}, "by its config it should be"), ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
    ],
)  # fmt: skip
def test_an_adapter_of_another_kind_is_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    foreign.write_adapter(
        tmp_path / "lora", foreign.write(tmp_path / "base", "dream"), "q_proj", "dream", 4, 6.0, **changes
    )
    assert reason in refusal(tmp_path / "base", Overrides(block=BLOCK, adapter=tmp_path / "lora"))


def test_an_adapter_for_what_the_model_lacks_is_refused(tmp_path: Path) -> None:
    foreign.write_adapter(tmp_path / "lora", foreign.write(tmp_path / "base", "dream"), "q_proj", "dream", 4, 6.0)
    foreign.write(tmp_path / "other", "llada")
    said = refusal(tmp_path / "other", Overrides(block=BLOCK, adapter=tmp_path / "lora"))
    assert "self_attn.q_proj" in said and "the model lacks" in said


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: foreign.change_config(folder, **changes)


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def slow_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "vocab.json")


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def lost_shard(folder: Path) -> None:
    foreign.shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def outside(folder: Path) -> None:
    foreign.shard(folder)
    file = folder / "model.safetensors.index.json"
    file.write_text(file.read_text().replace("model-00002", "../model-00002"))


def tensors(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        found = foreign.rename_tensors(FOREIGN["dream"], foreign.make_stock_model(FOREIGN["dream"], 0))
        change(found)
        foreign.save_file(found, folder / "model.safetensors")

    return apply


def no_mask(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("<|mask|>", "<|other|>"))
    config(mask_token_id=None)(folder)


def no_end(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("<|endoftext|>", "<|other|>"))
    config(eos_token_id=None)(folder)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (without("config.json"), "it has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
        (config(model_type="gpt_x"), "no such code is run"),
        (config(model_type="sdar_moe"), "mixture of experts"),
        (config(num_experts=8), "mixture of experts"),
        (config(quantization_config={"bits": 4}), "quantization_config"),
        (config(use_sliding_window=True), "use_sliding_window True"),
        (config(hidden_act="gelu"), "hidden_act 'gelu'"),
        (config(rope_scaling={"rope_type": "longrope", "factor": 2.0}), "'longrope' is not supported"),
        (config(rope_scaling={"rope_type": "yarn", "factor": 2.0}), "lacks original_max_position_embeddings"),
        (config(rope_scaling={"rope_type": "linear", "factor": -1}), "expected a number above 0"),
        (config(rope_theta=None), "None as rope_theta"),
        (config(rope_scaling={"rope_type": "default", "rope_theta": 7.0}), "has rope_theta 5000.0 and 7.0; remove"),
        (
            config(rope_parameters={"rope_type": "default", "rope_theta": 5.0}, rope_scaling={"rope_type": "linear"}),
            "has a rope_scaling and other rope_parameters",
        ),
        (lambda f: (f / "config.json").write_bytes("{}".encode("utf-16")), "not UTF-8 text at byte 0"),
        (config(hidden_size="32"), "'32' as hidden_size"),
        (config(num_attention_heads=3), "3 heads"),
        (config(num_hidden_layers=3), "lacks the tensor layers.2."),
        (config(num_hidden_layers=10**9), "from 1 to 1024"),
        (config(num_hidden_layers=1), "extra tensor model.layers.1."),
        (config(intermediate_size=64), "by its config it should be [32, 64]"),
        (config(tie_word_embeddings=True), "a head of its own"),
        (config(max_position_embeddings=12), "room for a prompt"),
        (config(mask_token_id=10**6), "expected one below the vocabulary of 288"),
        (config(mask_token_id=VOCAB - 1), "tokenizer is without the mask token"),
        (config(mask_token_id=5), "its tokenizer's mask_token '<|mask|>' is 2; give --mask-id"),
        (no_mask, "without the mask token '<|mask|>'"),
        (no_end, "names no end token"),
        (config(pad_token_id=-2), "has -2 as pad_token_id; expected an id below 288, not the mask 2: remove it there"),
        (without("model.safetensors"), "has no weights"),
        (pickled, "as pickles (pytorch_model.bin)"),
        (cut, "truncated or damaged"),
        (lost_shard, "model-00002-of-00002.safetensors is missing"),
        (outside, "names '../model-00002-of-00002.safetensors'"),
        (tensors(lambda t: t.pop("model.norm.weight")), "lacks the tensor norm.weight"),
        (
            tensors(lambda t: t.pop("lm_head.weight")),
            "no output head (lm_head.weight), and its config.json does not tie",
        ),
        (tensors(lambda t: t.update(adapter=torch.ones(2))), "extra tensor adapter"),
        (tensors(lambda t: t.update({"norm.weight": torch.ones(32)})), "norm.weight a second time"),
        (tensors(lambda t: t.update({"lm_head.weight": torch.ones(9, 32)})), "lm_head.weight is [9, 32]"),
        (tensors(lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)})), "is I8, quantized"),
        (slow_tokenizer, "only a slow tokenizer (vocab.json)"),
        (without("tokenizer.json"), "has no tokenizer"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json is not a tokenizer"),
    ],
)
def test_what_cannot_be_read_exactly_is_refused_in_one_line(
    spoil: Callable[[Path], object], reason: str, tmp_path: Path
) -> None:
    foreign.write(tmp_path, "dream")
    spoil(tmp_path)
    assert reason in refusal(tmp_path)


@pytest.mark.parametrize("name", ["dream", "llada"])
def test_no_value_of_a_config_ends_in_anything_but_a_checkpoint_or_one_line(name: str, tmp_path: Path) -> None:
    foreign.write(tmp_path, name)
    read = 0
    for file in (tmp_path / "config.json", tmp_path / "tokenizer_config.json"):
        sound = file.read_text()
        for key, value in itertools.product([*json.loads(sound), "rope_parameters", "chat_template"], ODD):
            file.write_text(json.dumps({**json.loads(sound), key: value}))
            try:
                derive_contract(load(tmp_path, SMALL))
                read += 1
            except UserError as error:
                assert "\n" not in str(error)
        file.write_text(sound)
    assert read > 20  # what says nothing of the model may be anything


def test_overrides_are_for_directories_and_an_unknown_directory_can_be_named(tmp_path: Path) -> None:
    save(tiny.checkpoint(), tmp_path / "student.pt")
    assert "--block was given with" in refusal(tmp_path / "student.pt", Overrides(block=4))
    foreign.write(tmp_path / "new", "sdar")
    foreign.change_config(tmp_path / "new", model_type="trado")
    assert load(tmp_path / "new", Overrides(family="sdar", block=BLOCK)).decoding.gate["threshold"] == 0.85
    named = Overrides(family="sdar", block=BLOCK, canvas=CANVAS, mask_id=7)
    assert load(tmp_path / "new", named).decoding.mask_id == 7
    assert "--canvas" in refusal(tmp_path / "new", Overrides(family="sdar", block=5, canvas=12))


def test_a_block_that_only_the_user_can_know_is_asked_for(tmp_path: Path) -> None:
    foreign.write(tmp_path, "sdar")
    assert "has no block_size, and sdar comes in several; give --block" in refusal(tmp_path, Overrides(canvas=CANVAS))
    foreign.change_config(tmp_path, block_size=2 * BLOCK)
    assert load(tmp_path, Overrides(canvas=2 * CANVAS)).decoding.block == 2 * BLOCK


@pytest.mark.parametrize(("folder", "block"), [("sdar", 3), ("sdar", 7), ("I-DLM-8B", 4), ("idlm", 8)])
def test_a_config_that_may_be_of_two_families_is_asked_about(folder: str, block: int, tmp_path: Path) -> None:
    foreign.write(tmp_path / folder, "sdar")
    foreign.change_config(tmp_path / folder, block_size=block)
    reason = refusal(tmp_path / folder, SMALL)
    assert f"block_size {block}, which may be SDAR or I-DLM; name its --family, sdar or idlm" in reason
    assert load(tmp_path / folder, replace(SMALL, family="sdar")).decoding.attention == "block_causal"
    as_idlm = load(tmp_path / folder, replace(SMALL, family="idlm")).decoding
    assert (as_idlm.attention, as_idlm.shift, as_idlm.block) == ("causal", True, BLOCK)
    assert "--block (4 in the" in refusal(tmp_path / folder, Overrides(family="idlm"))


NAMED: tuple[tuple[dict[str, Any], str], ...] = (  # as these directories' configs say, and what the line names
    ({"model_type": "llada2_moe", "architectures": ["LLaDA2MoeModelLM"], "num_experts": 256}, "experts (llada2_moe)"),
    ({"model_type": "llada", "architectures": ["LLaDAMoEModelLM"], "num_experts": 64}, "mixture of experts (llada)"),
    ({"model_type": "sdar_moe"}, "reads most of the experts"),
    (
        {"model_type": "diffusion_gemma", "canvas_length": 256, "vision_config": {"a": 1}},
        "is DiffusionGemma, which is not supported: each of its steps is conditioned on",
    ),
    ({"model_type": "lfm2_diffusion", "canvas_length": 128}, "LFM2.5-Diffusion starts from random tokens"),
    ({"model_type": "lfm2"}, "some of its layers are convolutions"),
    ({"model_type": "nemotron_labs_diffusion_vlm"}, "is a vision model (nemotron_labs_diffusion_vlm)"),
    ({"architectures": ["NemotronLabsDiffusionVLMModel"]}, "is a vision model"),
    ({"model_type": "llava_llada", "vision_config": {"hidden_size": 8}}, "is a vision model (llava_llada)"),
)  # fmt: skip


@pytest.mark.parametrize("family", [None, "sdar"])
@pytest.mark.parametrize(("changes", "reason"), NAMED)
def test_a_family_that_cannot_be_decoded_is_refused_by_name_even_if_another_is_named(
    changes: dict[str, Any], reason: str, family: str | None, tmp_path: Path
) -> None:
    foreign.write(tmp_path, "dream")
    foreign.change_config(tmp_path, **changes)
    told = refusal(tmp_path, replace(SMALL, family=family))
    assert reason in told and "not supported" in told and told.startswith(str(tmp_path / "config.json"))


def add_tokens(folder: Path, *tokens: str) -> None:
    file = folder / "tokenizer.json"
    engine = tokenizers.Tokenizer.from_file(str(file))
    engine.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in tokens])
    engine.save(str(file))


def test_a_tokenizer_tells_dreamon_from_dream(tmp_path: Path) -> None:
    foreign.write(tmp_path, "dream")
    add_tokens(tmp_path, "<|expand|>")
    for family in (None, "dream", "dparallel-dream"):
        assert "has the token <|expand|>, so that it is DreamOn" in refusal(tmp_path, replace(SMALL, family=family))


def test_padding_and_the_tokenizers_own_end_end_an_answer_of_dreams_shape_too(tmp_path: Path) -> None:
    foreign.write(tmp_path, "dream")
    add_tokens(tmp_path, "<|dlm_pad|>", "<|im_end|>")
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token": "<|im_end|>"}))
    read = load(tmp_path, SMALL)
    find = read.read_tokenizer().token_to_id
    assert read.decoding.eos_ids == (find("<|endoftext|>"), find("<|dlm_pad|>"), find("<|im_end|>"))


BY_CLASS = {"dream-reasoner": "Dream", "stable-diffcoder": "llama", "efficient-dlm": "qwen3"}


@pytest.mark.parametrize("name", BY_CLASS)
def test_a_model_type_of_another_model_is_overruled_by_the_class_and_never_enough(name: str, tmp_path: Path) -> None:
    foreign.write(tmp_path, name)
    by_class = load(tmp_path, SMALL).decoding
    foreign.change_config(tmp_path, auto_map=None)
    assert load(tmp_path, SMALL).decoding == by_class
    foreign.change_config(tmp_path, architectures=["OtherForCausalLM"])
    known = "an extra tensor model.layers.0.self_attn.k_norm" if name == "dream-reasoner" else "or name its --family"
    assert known in refusal(tmp_path)
    assert load(tmp_path, replace(SMALL, family=name)).decoding == by_class


@pytest.mark.parametrize("name", [*BY_CLASS, "illada", "open-dcoder"])
def test_a_mask_that_only_the_tokenizers_vocabulary_has_is_found_or_asked_for(name: str, tmp_path: Path) -> None:
    foreign.write(tmp_path, name)
    given = replace(SMALL, family=foreign.find_family(name))
    before = load(tmp_path, given).decoding.mask_id
    settings, tokenizer = tmp_path / "tokenizer_config.json", tmp_path / "tokenizer.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "mask_token": None}))
    foreign.change_config(tmp_path, mask_token_id=None)
    assert load(tmp_path, given).decoding.mask_id == before
    tokenizer.write_text(tokenizer.read_text().replace(json.dumps(FOREIGN[name].mask), '"<|other|>"'))
    assert "give --mask-id" in refusal(tmp_path, given)


def test_ends_and_gate_of_the_command_line_overrule_a_directorys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    foreign.write(folder, "dream")
    no_end(folder)
    words = ["--ckpt", str(folder), "--block", str(BLOCK), "--canvas", str(CANVAS)]
    assert export.main([*words, "--eos-ids", "9,7", "--gate", "threshold=0.6,comparator=>,min=2"]) == 0
    made = store.read(tmp_path / "model.bundle").contract
    assert made.eos_ids == (9, 7)
    assert (made.gate.threshold, made.gate.comparator, made.gate.min, made.gate.rule) == (0.6, ">", 2, "threshold")
    capsys.readouterr()
    for extra, said in (
        ([], "names no end token"), (["--eos-ids", "9,x"], "'9,x' is not a list of ids"),
        (["--eos-ids", "5000"], "5000 as eos_token_id"),
        (["--eos-ids", "9", "--gate", "threshold"], "'threshold' is not a KEY=VALUE"),
        (["--eos-ids", "9", "--gate", "colour=2"], "'colour=2' is not a KEY=VALUE"),
        (["--eos-ids", "9", "--gate", "threshold=1.5"], "1.5"), (["--eos-ids", "9", "--gate", "min=no"], "gate.min"),
    ):  # fmt: skip
        assert export.main([*words, *extra]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and said in err

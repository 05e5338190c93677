"""An adapter of PEFT's is merged as PEFT applies it, or refused by the key that makes it another formula."""

from __future__ import annotations

import json
import typing
from dataclasses import fields
from pathlib import Path
from typing import Any

import foreign
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from runtime.errors import UserError
from train.huggingface import peft_merge
from train.huggingface.families import Overrides
from train.open_checkpoint import load
from train.transformer.network import make_prefix_mask

# PEFT asks transformers by an older name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
MERGED = (True, False, "gaussian", "orthogonal", "eva", "mica")
REFUSED = ("pissa", "pissa_niter_4", "olora", "corda", "lora_ga", "loftq")
NEEDY = ("eva", "corda", "lora_ga", "loftq")  # PEFT makes these from data, gradients or with scipy


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    foreign.write(folder, "dream")
    return folder


def stock_model() -> Any:
    return foreign.make_stock_model(foreign.FOREIGN["dream"], 0)


def write_trained(folder: Path, convert: bool = False, **config: Any) -> None:
    """Writes an adapter that PEFT makes, changed as training would; convert: with PEFT's conversion to plain LoRA."""
    torch.manual_seed(1)
    wanted = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], **config})
    model = get_peft_model(stock_model(), wanted)
    if convert:
        model.save_pretrained(folder / "initial")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.2 * torch.randn(parameter.shape)
    model.save_pretrained(folder, path_initial_model_for_weight_conversion=str(folder / "initial") if convert else None)


def change_config(folder: Path, **values: Any) -> None:
    file = folder / peft_merge.CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def measure_difference(base: Path, folder: Path) -> float:
    """The largest difference of our logits from PEFT's. Raises UserError if the adapter is refused."""
    ours = load(base, Overrides(block=4, canvas=12, adapter=folder, family="cdlm-dream")).build()
    theirs = PeftModel.from_pretrained(stock_model(), folder).eval()
    ids, visible = torch.arange(20)[None] + 30, torch.full((1, 20), 20)
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=make_prefix_mask(visible, 20), use_cache=False).logits
        return float((ours.logits(ours(ids, visible)) - expected).abs().max())


def refusal(base: Path, folder: Path) -> str:
    """The one line that an adapter is refused with."""
    with pytest.raises(UserError) as caught:
        load(base, Overrides(block=4, canvas=12, adapter=folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_init_that_peft_names_is_tried_here() -> None:
    kinds = typing.get_args(typing.get_type_hints(LoraConfig)["init_lora_weights"])
    named = {name for kind in kinds for name in typing.get_args(kind)}
    assert {name.replace("[number of iters]", "4") for name in named} <= {*MERGED, *REFUSED}


@pytest.mark.parametrize("init", [*MERGED, *REFUSED])
def test_an_init_gives_the_logits_of_peft_or_is_refused(init: str | bool, base: Path, tmp_path: Path) -> None:
    write_trained(tmp_path, init_lora_weights=True if init in NEEDY else init)
    change_config(tmp_path, init_lora_weights=init, **({"eva_config": {"rho": 1.0}} if init == "eva" else {}))
    if init in MERGED:
        assert measure_difference(base, tmp_path) <= 1e-4
        return
    said = refusal(base, tmp_path)
    assert f"init_lora_weights {init!r}" in said and "merge_and_unload" in said
    assert ("path_initial_model_for_weight_conversion" in said) == (init != "loftq")


@pytest.mark.filterwarnings("ignore:.* changes the base weights of the model:UserWarning")
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_what_peft_converts_is_merged(init: str, base: Path, tmp_path: Path) -> None:
    write_trained(tmp_path, convert=True, init_lora_weights=init)
    assert measure_difference(base, tmp_path) <= 1e-4


@pytest.mark.parametrize(
    "config",
    [
        {"task_type": "CAUSAL_LM", "lora_dropout": 0.3, "use_rslora": True, "revision": "main"},
        {"layers_to_transform": [1], "layers_pattern": "layers", "exclude_modules": ["k_proj"]},
        {"target_modules": "all-linear", "megatron_core": "other", "qalora_group_size": 4},
    ],
)
def test_keys_that_leave_the_formula_are_merged(config: dict[str, Any], base: Path, tmp_path: Path) -> None:
    write_trained(tmp_path, **config)
    change_config(tmp_path, corda_config={}, lora_ga_config=None, a_later_key=None, another=[], runtime_config={"a": 1})
    with pytest.warns(UserWarning):  # of the keys it does not know
        assert measure_difference(base, tmp_path) <= 1e-4


def test_no_other_key_is_merged(base: Path, tmp_path: Path) -> None:
    write_trained(tmp_path)
    sound = (tmp_path / peft_merge.CONFIG).read_text()
    names = {field.name for field in fields(LoraConfig)} - {*peft_merge.FREE, *peft_merge.ALLOWED}
    assert len(names) > 15
    for name in (*sorted(names), "a_later_key"):
        change_config(tmp_path, **{name: {"a": 1}})
        assert f"has {name} {{'a': 1}}, which is not known" in refusal(base, tmp_path)
        (tmp_path / peft_merge.CONFIG).write_text(sound)
    for name in peft_merge.ALLOWED:
        for odd in (1, "x", [True], "true"):
            change_config(tmp_path, **{name: odd})
            assert f"has {name} {odd!r}; expected" in refusal(base, tmp_path)
            (tmp_path / peft_merge.CONFIG).write_text(sound)


@pytest.mark.parametrize(
    "config", [{"target_modules": ["q_proj"]}, {"exclude_modules": ["down_proj"]}, {"layers_to_transform": 0}]
)
def test_tensors_that_the_config_does_not_target_are_refused(
    config: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    write_trained(tmp_path)
    change_config(tmp_path, **config)
    assert "adapter_config.json does not target" in refusal(base, tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target_modules", None), ("target_modules", {"q_proj": 1}), ("target_modules", 5), ("target_modules", [1]),
        ("exclude_modules", 5), ("exclude_modules", [["q_proj"]]),
        ("target_modules", ".*q_proj"), ("target_modules", "all-linear"), ("exclude_modules", ".*down_proj"),
    ],
)  # fmt: skip
def test_modules_that_peft_reads_otherwise_are_refused(name: str, value: Any, base: Path, tmp_path: Path) -> None:
    write_trained(tmp_path)
    change_config(tmp_path, **{name: value})
    assert f"has {name} {value!r}; expected a list of module names" in refusal(base, tmp_path)


def test_a_module_that_is_named_whole_is_in_whatever_layers_are_chosen(base: Path, tmp_path: Path) -> None:
    names = [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]
    write_trained(tmp_path, target_modules=names)
    change_config(tmp_path, target_modules=names, layers_to_transform=[1])
    assert measure_difference(base, tmp_path) <= 1e-4


def test_a_folder_without_an_adapter_is_not_taken_for_a_broken_download(base: Path, tmp_path: Path) -> None:
    assert f"no adapter at {tmp_path}: it has no adapter_config.json; give" in refusal(base, tmp_path)
    assert "no adapter at" in refusal(base, tmp_path / "nowhere")


def test_an_adapter_next_to_the_weights_is_not_left_out(tmp_path: Path) -> None:
    foreign.write(tmp_path, "dream")
    write_trained(tmp_path)
    with pytest.raises(UserError, match=r"has an adapter next to its weights, .*; give --adapter"):
        load(tmp_path, Overrides(block=4, canvas=12))
    assert measure_difference(tmp_path, tmp_path) <= 1e-4


def test_a_tensor_under_two_names_is_refused(base: Path, tmp_path: Path) -> None:
    write_trained(tmp_path)
    file = tmp_path / peft_merge.WEIGHTS
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file({**tensors, name.replace(".weight", ".default.weight"): tensors[name] + 1}, file)
    assert "a second time" in refusal(base, tmp_path)

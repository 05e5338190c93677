"""Low-rank training: the base stays, a resumed run is the same, and PEFT applies what is written as it was trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import foreign
import pytest
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from train.huggingface import peft_merge, peft_train
from train.huggingface.families import FAMILIES, Overrides
from train.huggingface.peft_train import LowRank
from train.huggingface.weights import list_expected_shapes, map_stored_names
from train.open_checkpoint import load
from train.trainer.training_loop import Recipe, train_model
from train.transformer.network import Transformer, make_prefix_mask

RECIPE = Recipe(steps=9, learning_rate=0.05, warmup=1, bf16=False, save_every=4)
LOW_RANK = LowRank(rank=2, alpha=3.0)


class Stopped(Exception):
    """What stops a run in the middle."""


def trained(out: Path, stop: int | None = None, recipe: Recipe = RECIPE) -> tuple[Transformer, dict[str, Tensor]]:
    """A model whose adapter learnt for some updates, and the averages; stopped in the loss of update `stop`."""
    model = tiny.model(0)
    peft_train.inject(model, LOW_RANK, seed=1)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        if step == stop:
            raise Stopped
        ids = torch.randint(0, tiny.VOCAB, (2, 6), generator=torch.Generator().manual_seed(step))
        return F.cross_entropy(model.logits(model(ids, torch.full((2, 6), 6))).flatten(0, 1), ids.flatten()), {}

    return model, train_model(model, loss_of, recipe, out, {}).weights


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_only_the_adapter_learns_and_a_resumed_run_is_the_same(optimizer: str, tmp_path: Path) -> None:
    recipe = replace(RECIPE, optimizer=optimizer)
    model, whole = trained(tmp_path / "whole", recipe=recipe)
    with pytest.raises(Stopped):
        trained(tmp_path / "parts", 6, recipe)
    assert set(torch.load(tmp_path / "parts.resume", weights_only=True)["model"]) == set(whole)
    _, resumed = trained(tmp_path / "parts", recipe=recipe)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert len(peft_train.collect_pairs(whole)) == len(peft_train.LINEARS) * model.config.layers
    before = tiny.model(0).state_dict()
    after = {name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(pair["B"].abs().max() > 0 for pair in peft_train.collect_pairs(whole).values())


def test_an_adapter_begins_as_nothing_and_depends_on_its_seed_alone() -> None:
    ids, visible = torch.arange(6)[None], torch.full((1, 6), 6)
    first, second, other, plain = (tiny.model(0) for _ in range(4))
    peft_train.inject(first, LOW_RANK, seed=1)
    torch.rand(1)
    state = torch.get_rng_state()
    peft_train.inject(second, LOW_RANK, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    peft_train.inject(other, LOW_RANK, seed=2)
    name = "layers.0.self_attn.q_proj.lora_A.default.weight"
    assert torch.equal(first.get_parameter(name), second.get_parameter(name))
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))
    with torch.no_grad():
        assert torch.equal(first(ids, visible), plain(ids, visible))


def test_what_is_merged_computes_what_was_trained(tmp_path: Path) -> None:
    model, _ = trained(tmp_path / "run")
    learned = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    whole = peft_merge.merge_pairs(tiny.model(0).state_dict(), peft_train.collect_pairs(learned), LOW_RANK.scale)
    merged, base = tiny.model(0), tiny.model(0)
    merged.load_state_dict(whole)
    ids, visible = torch.arange(6)[None], torch.full((1, 6), 6)
    with torch.no_grad():
        ours, theirs, before = (each.logits(each(ids, visible)) for each in (merged, model, base))
    assert (ours - theirs).abs().max() < 1e-4 and (before - theirs).abs().max() > 0.1


# PEFT asks transformers by an older name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["dream", "llada"])
def test_a_written_adapter_is_one_to_peft_and_to_us(name: str, tmp_path: Path) -> None:
    stock: Any = foreign.write(tmp_path / "base", name)
    family = next(each for each in FAMILIES if each.name == name)
    saved = load(tmp_path / "base", Overrides(block=foreign.BLOCK, canvas=foreign.CANVAS))
    generator = torch.Generator().manual_seed(3)
    pairs: peft_merge.Pairs = {}
    for target, shape in list_expected_shapes(saved.model).items():
        if target.split(".")[-2] in peft_train.LINEARS and target.endswith("weight"):
            a, b = (torch.randn(size, generator=generator) * 0.3 for size in ((2, shape[1]), (shape[0], 2)))
            pairs[target] = {"A": a, "B": b}
    (tmp_path / "lora").mkdir()
    peft_merge.write(
        tmp_path / "lora", pairs, 3.0, map_stored_names(tmp_path / "base", family.renames), tmp_path / "base"
    )
    read = peft_merge.merge(saved.weights, tmp_path / "lora", family.renames)
    expected = peft_merge.merge_pairs(saved.weights, pairs, 1.5)
    assert read.keys() == expected.keys() and all(torch.equal(read[each], expected[each]) for each in read)
    stored = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    if name == "llada":
        assert "base_model.model.model.transformer.blocks.1.ff_out.lora_A.weight" in stored
        return
    from peft import PeftModel

    applied = PeftModel.from_pretrained(stock, tmp_path / "lora").eval()
    model = Transformer(saved.model)
    model.load_state_dict(read)
    ids, visible = torch.arange(20)[None], torch.randint(1, 21, (1, 20), generator=generator)
    with torch.no_grad():
        theirs = applied(input_ids=ids, attention_mask=make_prefix_mask(visible, 20), use_cache=False).logits
        assert (model.logits(model(ids, visible)) - theirs).abs().max() <= 1e-4 * theirs.abs().max()

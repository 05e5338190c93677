"""Puts low-rank adapters (Hu et al. 2021, arXiv 2106.09685) into a model for training, with the peft library."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from runtime.errors import UserError
from train.transformer.network import Transformer

from .peft_merge import Pairs

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # as CDLM, arXiv 2511.19269
PART = re.compile(r"(.+)\.lora_([AB])\.default\.weight")


@dataclass(frozen=True, slots=True)
class LowRank:
    """The size of an adapter: it adds alpha / rank * B A to a weight, with B [out, rank] and A [rank, in]."""

    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def parse_lora_options(rank: int | None, alpha: float | None) -> LowRank | None:
    """Returns the requested adapter, or None to train all weights. alpha: defaults to the rank. Raises UserError."""
    if rank is None:
        if alpha is not None:
            raise UserError(f"--lora-alpha is {alpha:g}, but there is no --lora-rank; give both or neither")
        return None
    if rank < 1:
        raise UserError(f"--lora-rank is {rank}; expected at least 1")
    if alpha is not None and not 0 < alpha < math.inf:
        raise UserError(f"--lora-alpha is {alpha:g}; expected a number above 0")
    if find_spec("peft") is None:
        raise UserError("--lora-rank needs the package peft, which is not installed; pip install peft")
    return LowRank(rank, float(rank if alpha is None else alpha))


def inject(model: Transformer, low_rank: LowRank, seed: int) -> None:
    """Freezes the model and adds an adapter to each linear layer of attention and MLP: A random by the seed, B zero."""
    from peft import LoraConfig, inject_adapter_in_model  # not at the top: takes seconds

    config = LoraConfig(r=low_rank.rank, lora_alpha=low_rank.alpha, target_modules=list(LINEARS))  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)


def collect_pairs(trained: Mapping[str, Tensor]) -> Pairs:
    """Returns A and B of each weight, from the parameters of a model that `inject` adapted."""
    found: Pairs = {}
    for name, tensor in trained.items():
        match = PART.fullmatch(name)
        if match is None:
            raise AssertionError(f"{name} was trained, but is not part of the adapter")
        found.setdefault(f"{match[1]}.weight", {})[match[2]] = tensor
    return found


@contextmanager
def disable_adapters(model: Transformer) -> Iterator[None]:
    """Disables the adapters of a model that `inject` adapted, for the duration of the block."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)

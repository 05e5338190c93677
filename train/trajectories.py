"""Trajectories on disk: what a teacher answered, in which order it settled on it, and how sure it was.

One int a token rebuilds every state of the decoding; the hidden state at finalisation gives the teacher's distribution
back through its head, at a thirtieth of the logits' size (CDLM, arXiv 2511.19269).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from runtime.errors import UserError

from .checkpoint import replace_file

NEVER = -1


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One decoding. tokens and order int64 [canvas]; hidden fp16 [canvas, width].

    order: the step at which the teacher finalised the position, NEVER behind the end token; `right`: graded.
    """

    prompt: tuple[int, ...]
    tokens: Tensor
    order: Tensor
    hidden: Tensor
    right: bool


def write_shard(path: Path, trajectories: Sequence[Trajectory]) -> None:
    """One safetensors file; written beside and renamed, so that a shard that exists is whole."""
    longest = max(len(t.prompt) for t in trajectories)
    prompt = torch.full((len(trajectories), longest), NEVER, dtype=torch.int32)
    for row, trajectory in enumerate(trajectories):
        prompt[row, : len(trajectory.prompt)] = torch.tensor(trajectory.prompt)
    tensors = {
        "prompt": prompt,
        "tokens": torch.stack([t.tokens for t in trajectories]).to(torch.int32),
        "order": torch.stack([t.order for t in trajectories]).to(torch.int16),
        "hidden": torch.stack([t.hidden for t in trajectories]).to(torch.float16),
        "right": torch.tensor([t.right for t in trajectories]),
    }
    replace_file(path, lambda temporary: save_file(tensors, temporary))


def read_shards(folder: Path) -> list[Trajectory]:
    """All trajectories of a folder. Raises UserError where there are none, or a shard is damaged."""
    paths = sorted(folder.glob("shard-*.safetensors"))
    if not paths:
        raise UserError(f"no trajectories in {folder}; write some with python -m train.collect --out {folder}")
    found = []
    for path in paths:
        try:
            shard = load_file(path)
            found += _unpack(shard)
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"{path} is not a shard of trajectories ({error}); delete it and collect again") from None
    return found


def _unpack(shard: dict[str, Tensor]) -> list[Trajectory]:
    rows = zip(
        shard["prompt"], shard["tokens"].long(), shard["order"].long(), shard["hidden"], shard["right"], strict=True
    )
    return [Trajectory(tuple(p[p != NEVER].tolist()), t, o, h, bool(r)) for p, t, o, h, r in rows]

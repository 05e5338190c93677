"""Writes and reads trajectories: a teacher's answers, the order in which it unmasked them, and its hidden states.

From the order, one integer per token, every state of the decoding can be rebuilt. From the hidden state at which a
token was unmasked, the teacher's head computes the distribution again; the state is a thirtieth of the logits' size
(CDLM, arXiv 2511.19269).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from runtime.errors import UserError, describe_error
from train.huggingface.families import Overrides
from train.storage.output_files import replace_file

NEVER_ACCEPTED = -1
MOST_POSITIONS = 2**15 - 1  # of an answer: a shard has the order as int16
SETTINGS = "collect.json"  # file in a folder of trajectories: the settings of their collection


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One decoding. tokens and order int64 [positions]; hidden fp16 [positions, width].

    positions: as many as `compute_longest_answer` returns; the canvas, if blocks begin at the prompt's end. order: the
    number of the step that unmasked the position, NEVER_ACCEPTED after the end token. right: whether it is correct.
    """

    prompt: tuple[int, ...]
    tokens: Tensor
    order: Tensor
    hidden: Tensor
    right: bool

    def count_tokens(self) -> int:
        """Returns how many tokens prompt and answer have together."""
        return len(self.prompt) + int((self.order != NEVER_ACCEPTED).sum())


def write_shard(path: Path, trajectories: Sequence[Trajectory]) -> None:
    """Writes one safetensors file under another name and renames it, so that a shard that exists is complete.

    Raises UserError if it cannot be written.
    """
    longest = max(len(t.prompt) for t in trajectories)
    prompt = torch.full((len(trajectories), longest), NEVER_ACCEPTED, dtype=torch.int32)
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
    """Reads all trajectories of a folder. Raises UserError if there are none, or a shard is damaged."""
    paths = sorted(folder.glob("shard-*.safetensors"))
    if not paths:
        raise UserError(f"no trajectories in {folder}; write some with blockstep train collect --out {folder}")
    found = []
    for path in paths:
        try:
            found += _unpack(load_file(path))
        except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"{path} is not a shard of trajectories ({error}); delete it and collect again") from None
    return found


def read_collections(
    folders: Sequence[Path], teacher: str, overrides: Overrides, stepwise: bool = False
) -> list[Trajectory]:
    """Reads the trajectories of several collections; checks that each is from this teacher with these overrides.

    teacher: its fingerprint. stepwise: whether every state is needed, which takes a collection of one token per step.
    Raises UserError for a folder of another teacher, or without collect.json, such as one of shards copied by hand.
    """
    for folder in folders:
        settings = _check_origin(folder, teacher, overrides)
        if stepwise and "threshold" in settings:
            raise UserError(
                f"{folder} was collected with --threshold {settings['threshold']}, several tokens per step, but "
                "this method learns from the states between; collect without --threshold"
            )
    return [trajectory for folder in folders for trajectory in read_shards(folder)]


def _check_origin(folder: Path, teacher: str, overrides: Overrides) -> dict[str, Any]:
    path = folder / SETTINGS
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        theirs = {"ckpt_sha256": settings["ckpt_sha256"], **settings.get("overrides", {})}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = describe_error(error)
        raise UserError(
            f"{path} does not name the teacher of these trajectories ({reason}); give folders that blockstep "
            "train collect wrote, several by their names instead of merged"
        ) from None
    if theirs.pop("ckpt_sha256") != teacher:
        raise UserError(f"the trajectories in {folder} are of another teacher; collect them with this one")
    ours = {name: str(value) for name, value in asdict(overrides).items() if value is not None}
    for name in sorted((ours.keys() | theirs.keys()) - {"adapter", "attention"}):  # the fingerprint covers the adapter
        if ours.get(name) != theirs.get(name):
            there, here = (side.get(name, "the checkpoint's own") for side in (theirs, ours))
            raise UserError(
                f"the trajectories in {folder} were collected with --{name.replace('_', '-')} {there}, here it is "
                f"{here}; give the same"
            )
    return settings


def count_right(path: Path) -> tuple[int, int]:
    """Returns how many trajectories of a shard are right, and how many it holds. Raises UserError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as shard:
            right = shard.get_tensor("right")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a shard of trajectories ({error}); delete it and collect again") from None
    return int(right.sum()), len(right)


def _unpack(shard: dict[str, Tensor]) -> list[Trajectory]:
    """Returns the trajectories of a shard. Raises KeyError or ValueError unless `write_shard` could have written it."""
    prompt, tokens, order, hidden, right = (shard[name] for name in ("prompt", "tokens", "order", "hidden", "right"))
    kinds = [part.dtype for part in (prompt, tokens, order, hidden, right)]
    if kinds != [torch.int32, torch.int32, torch.int16, torch.float16, torch.bool]:
        raise ValueError(f"its tensors are {', '.join(str(kind).removeprefix('torch.') for kind in kinds)}")
    sizes = {len(part) if part.dim() else -1 for part in (prompt, tokens, order, hidden, right)}
    dims = [part.dim() for part in (prompt, tokens, order, hidden, right)]
    if dims != [2, 2, 2, 3, 1] or len(sizes) != 1 or not tokens.shape == order.shape == hidden.shape[:2]:
        raise ValueError("its tensors do not fit together")
    rows = zip(prompt, tokens.long(), order.long(), hidden, right, strict=True)
    return [Trajectory(tuple(p[p != NEVER_ACCEPTED].tolist()), t, o, h, bool(r)) for p, t, o, h, r in rows]

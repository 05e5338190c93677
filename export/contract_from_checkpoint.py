"""Makes a bundle's contract from a checkpoint, checks its chat template, and chooses the bundle's default path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from runtime.contract import Contract
from runtime.decoding.block_layout import count_room_for_answer
from runtime.errors import UserError
from runtime.files import is_in_cache, name_of, resolve_name
from runtime.text import chat_template
from train.checkpoint import Checkpoint
from train.torch_backend import derive_contract
from train.transformer.rope import QUERY_SCALE, find_longest

CAPACITY = 1024  # positions, by default


def check_template(source: Checkpoint) -> None:
    """Raises UserError for a chat template that cannot be rendered: at the export, not at the bundle's first prompt."""
    if source.chat_template is not None:
        chat_template.check(source.chat_template)


def choose_default_out(ckpt: Path) -> Path:
    """Returns a bundle's default path: next to the checkpoint, or in the current folder for one in a download cache.

    ckpt: a checkpoint's file or directory, or the adapter's folder if there is one, since that makes another model.

    A directory's name keeps what follows a dot (SDAR-1.7B-Chat). A path that ends in `..` is resolved to have a name.
    """
    ckpt = resolve_name(ckpt)
    name = name_of(ckpt) if ckpt.is_dir() else ckpt.stem
    return (Path() if is_in_cache(ckpt) else ckpt.parent) / f"{name}.bundle"


def check_query_scale(source: Checkpoint, capacity: int) -> None:
    """Raises UserError if, within the capacity, the model scales queries by position, which no graph here computes."""
    longest = find_longest(source.model.rope_scaling)
    if longest is not None and capacity > longest:
        raise UserError(
            f"--capacity is {capacity}, but from position {longest} on this model scales its queries (Llama 4's "
            f"{QUERY_SCALE}), which is not supported; expected 1 to {longest}"
        )


def make_export_contract(source: Checkpoint, capacity: int | None, top_k: int = 0, candidates: int = 0) -> Contract:
    """Returns a checkpoint's contract with a KV-cache capacity (positions) and counts of top tokens and candidates.

    Raises UserError if the capacity exceeds the model's context or leaves no room for an answer, or if a count exceeds
    the tokens that the graph can predict.
    """
    context = source.decoding.context
    check_query_scale(source, capacity or min(CAPACITY, context))
    if capacity is not None and not 1 <= capacity <= context:
        raise UserError(f"--capacity is {capacity}; expected 1 to {context}, the context the model was trained with")
    excluded = {source.decoding.mask_id, *source.list_missing_ids()}  # tokens that the graph never predicts
    predictable = source.count_vocab() - len(excluded)
    if not 0 <= top_k <= predictable:
        raise UserError(
            f"--top-k is {top_k}; expected 0, for the top-1 token alone, to {predictable}, the tokens it may give"
        )
    if not 0 <= candidates <= predictable:
        raise UserError(
            f"--candidates is {candidates}; expected 0, for no decisions, to {predictable}, the tokens it may give"
        )
    contract = replace(
        derive_contract(source, top_k=top_k, candidates=candidates), capacity=capacity or min(CAPACITY, context)
    )
    if not count_room_for_answer(contract, 1):
        least = (contract.block if contract.has_cache else contract.canvas) + 1
        raise UserError(
            f"a KV-cache capacity of {contract.capacity} leaves no room for an answer; expected at least {least}"
        )
    return contract

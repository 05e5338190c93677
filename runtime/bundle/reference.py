"""Reads and writes an engine's recorded reference: forward passes and answers that PyTorch computed, in one .npz file.

It shows, on machines without PyTorch, what an engine has to compute. It is read as strictly as the rest of a bundle: no
pickles, known arrays of known types, sizes checked before memory is taken.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend import Floats, Forward, Ints
from ..contract import Contract
from ..errors import UserError, describe_error
from .manifest import MANIFEST, RecordedReference, check_regular

FILE_LIMIT = 1 << 20  # bytes of a file
ARRAY_LIMIT = 16 << 20  # bytes of all its arrays together, unpacked
FORWARDS_LIMIT = 1 << 12
TOP = 32  # log-probabilities per logits row
KEYS, VALUES = "keys", "values"  # these and the next are figures of a replay, see `runtime.proof.judge`
TOP_MEAN, BEST, ENTROPY, LARGEST = "top_log_prob", "log_prob", "entropy", "largest_log_prob"
TOP_SPREAD, SPREAD_LEAST = "top_spread", 3  # over at least SPREAD_LEAST top tokens, the best left out
ANSWERS = "answers"  # its bound is on a decision's margin; precisions whose answers may differ have none
MAGIC = b"\x93NUMPY\x01\x00"
HEADER = re.compile(rb"\{'descr': '([^']{1,16})', 'fortran_order': (False|True), 'shape': \(([0-9, ]*)\), \} *\n")
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # with other methods, zipfile unpacks more than requested
INTS, FLOATS = np.dtype("<i4"), np.dtype("<f4")
ARRAYS = {  # name: type and count of dimensions
    "begins": (INTS, 1),  # per forward pass, as the next three: 1 if a sequence begins with it
    "past_length": (INTS, 1),
    "width": (INTS, 1),
    "count": (INTS, 1),  # logits rows
    "input_ids": (INTS, 1),  # of all forward passes, one after the other, as the next two
    "visible": (INTS, 1),
    "rows": (INTS, 1),
    "top_token": (INTS, 2),  # [all rows, K], the best first
    "top_logprob": (FLOATS, 2),
    "entropy": (FLOATS, 1),  # [all rows]
    "norms": (FLOATS, 3),  # [forward passes, layers, keys and values]
    "prompt_length": (INTS, 1),  # per answer, as the next three
    "answer_length": (INTS, 1),
    "wanted": (INTS, 1),
    "margin": (FLOATS, 1),
    "prompt_ids": (INTS, 1),  # of all answers, one after the other
    "answer_ids": (INTS, 1),
}


@dataclass(frozen=True, slots=True)
class RecordedForward:
    """Holds one teacher-forced forward pass of a sequence and what PyTorch computed in it.

    Args:
        begins: whether a sequence begins with it, in an empty KV cache.
        forward: its inputs, for one sequence.
        top_token, top_logprob: the most probable tokens of each row, best first, and their log-probabilities, nats.
            int64 and fp32 [n, K]
        entropy: of each row, nats. fp32 [n]
        norms: mean Euclidean norm of the keys and of the values that it wrote, over heads and positions, before
            anything is cast to an engine's type. fp32 [layers, 2], [0, 2] without a KV cache
    """

    begins: bool
    forward: Forward
    top_token: Ints
    top_logprob: Floats
    entropy: Floats
    norms: Floats


@dataclass(frozen=True, slots=True)
class RecordedAnswer:
    """Holds a whole greedy answer, decoded with the contract's gate. wanted: new tokens requested; margin: the smallest
    difference of probabilities by which PyTorch took a decision in it."""

    prompt: Ints
    wanted: int
    tokens: tuple[int, ...]
    margin: float


@dataclass(frozen=True, slots=True)
class Reference:
    """Holds forward passes in the order in which an engine has to run them, and answers, if any."""

    forwards: tuple[RecordedForward, ...]
    answers: tuple[RecordedAnswer, ...] = field(default=())


def write_reference(file: Path, reference: Reference) -> None:
    """Writes a reference. Raises ValueError if the file is larger than `read_reference` allows."""
    passes, answers = reference.forwards, reference.answers
    arrays = {
        "begins": [each.begins for each in passes],
        "past_length": [each.forward.past_length[0] for each in passes],
        "width": [each.forward.input_ids.shape[1] for each in passes],
        "count": [each.forward.rows.shape[1] for each in passes],
        "input_ids": np.concatenate([each.forward.input_ids[0] for each in passes]),
        "visible": np.concatenate([each.forward.visible[0] for each in passes]),
        "rows": np.concatenate([each.forward.rows[0] for each in passes]),
        "top_token": np.concatenate([each.top_token for each in passes]),
        "top_logprob": np.concatenate([each.top_logprob for each in passes]),
        "entropy": np.concatenate([each.entropy for each in passes]),
        "norms": np.stack([each.norms for each in passes]),
        "prompt_length": [len(each.prompt) for each in answers],
        "answer_length": [len(each.tokens) for each in answers],
        "wanted": [each.wanted for each in answers],
        "margin": [each.margin for each in answers],
        "prompt_ids": np.concatenate([np.zeros(0, np.int64), *(each.prompt for each in answers)]),
        "answer_ids": [token for each in answers for token in each.tokens],
    }
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (kind, _) in ARRAYS.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(arrays[name], kind), (1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy")  # has a fixed date: equal numbers give equal files
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content.getvalue())
    if (size := file.stat().st_size) > FILE_LIMIT:
        raise ValueError(f"a reference of {size} bytes, above {FILE_LIMIT}")


def read_reference(folder: Path, recorded: RecordedReference, contract: Contract) -> Reference:
    """Reads the reference that a manifest names. Raises UserError for a file that is damaged or does not fit."""
    file = check_regular(folder / recorded.file)
    try:
        with open(file, "rb") as handle:
            content = handle.read(FILE_LIMIT + 1)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); copy or export the bundle again") from None
    if len(content) > FILE_LIMIT:
        raise UserError(f"{file} has more than {FILE_LIMIT} bytes, too many for a reference; export the bundle again")
    if hashlib.sha256(content).hexdigest() != recorded.sha256:
        raise UserError(f"{file} is damaged: its sha256 is not the manifest's; copy or export the bundle again")
    check_bounds(folder, recorded, contract)
    try:
        reference = parse_arrays(unpack(content), contract)
    except (ValueError, LookupError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = describe_error(error, 200)
        raise UserError(f"{file} is not a reference of this bundle ({reason}); export the bundle again") from None
    if recorded.first_load > (count := len(reference.forwards)):
        reason = f"first_load is {recorded.first_load}; expected at most {count}, the forward passes of {recorded.file}"
        raise UserError(f"{folder / MANIFEST}: {reason}; export the bundle again")
    return reference


def list_figures(contract: Contract) -> set[str]:
    """Returns the names of the figures by which engines of a contract are judged."""
    top = {TOP_MEAN} if contract.top_k else set[str]()
    spread = {TOP_SPREAD} if contract.top_k >= SPREAD_LEAST else set[str]()
    norms = {KEYS, VALUES} if contract.has_cache else set[str]()
    return {BEST, ENTROPY, LARGEST} | top | spread | norms


def check_bounds(folder: Path, recorded: RecordedReference, contract: Contract) -> None:
    """Raises UserError unless the manifest bounds exactly the figures of `list_figures`; older bundles may lack a bound
    for `top_spread`."""
    figures = list_figures(contract)
    for place, names in (
        ("bounds", recorded.bounds.keys() - {ANSWERS}), ("first_load_bounds", recorded.first_load_bounds.keys())
    ):  # fmt: skip
        if names not in (figures, figures - {TOP_SPREAD}):
            reason = f"{place} has {sorted(names)}; expected {sorted(figures)}"
            raise UserError(f"{folder / MANIFEST}: {reason}; export the bundle again")


def unpack(content: bytes) -> dict[str, NDArray[Any]]:
    """Returns the arrays of a reference's .npz file. Raises ValueError, or what zipfile raises, for other content."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if sorted(names) != sorted(f"{name}.npy" for name in ARRAYS):
            raise ValueError(f"it holds {', '.join(names[:4])!r}...; expected {', '.join(ARRAYS)}")
        if sum(entry.file_size for entry in entries) > ARRAY_LIMIT:
            raise ValueError(f"its arrays take more than {ARRAY_LIMIT} bytes")
        if any(entry.compress_type not in METHODS for entry in entries):
            raise ValueError("it is compressed by another method than deflate")
        return {name: parse_array(name, read_entry(archive, f"{name}.npy")) for name in ARRAYS}


def read_entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """Returns an entry's bytes, at most the length that it declares, beyond which `ZipFile.read` would unpack."""
    with archive.open(name) as content:
        return content.read(archive.getinfo(name).file_size)


def parse_array(name: str, content: bytes) -> NDArray[Any]:
    """Makes an array from the bytes of an .npy file. Raises ValueError if its header does not fit the bytes.

    The header is matched by a pattern; numpy would evaluate it, and a malformed one could raise any exception.
    """
    kind, dimensions = ARRAYS[name]
    end = len(MAGIC) + 2 + int.from_bytes(content[len(MAGIC) : len(MAGIC) + 2], "little")
    header = HEADER.fullmatch(content[len(MAGIC) + 2 : end])
    if not content.startswith(MAGIC) or header is None:
        raise ValueError(f"{name} does not have the header of an .npy file of format 1.0")
    shape, data = tuple(int(size) for size in header[3].split(b",") if size.strip()), content[end:]
    whole = len(shape) == dimensions and all(size <= ARRAY_LIMIT for size in shape)
    plain = header[1].decode("latin-1") == kind.str and header[2] == b"False"
    if not plain or not whole or math.prod(shape) * kind.itemsize != len(data):
        found = f"{header[1].decode('latin-1')} {list(shape)}"
        raise ValueError(f"{name} is {found}; expected {kind.str} of {dimensions} dimensions")
    return np.frombuffer(data, kind).reshape(shape)


def parse_arrays(arrays: Mapping[str, NDArray[Any]], contract: Contract) -> Reference:
    """Makes a reference from its arrays. Raises ValueError for inputs that an engine of the contract could not run."""
    a: dict[str, Any] = {
        name: part.astype(np.int64 if part.dtype == INTS else np.float32) for name, part in arrays.items()
    }
    check_numbers(a, contract)
    widths, counts = a["width"].tolist(), a["count"].tolist()
    ids, visible = split(a["input_ids"], widths), split(a["visible"], widths)
    rows, entropy = split(a["rows"], counts), split(a["entropy"], counts)
    tokens, log_probs = split(a["top_token"], counts), split(a["top_logprob"], counts)
    passes = tuple(
        RecordedForward(
            bool(a["begins"][i]),
            Forward(ids[i][None], a["past_length"][i : i + 1], visible[i][None], rows[i][None], contract.top_k > 0),
            tokens[i],
            log_probs[i],
            entropy[i],
            a["norms"][i],
        )
        for i in range(len(widths))
    )
    for each in passes:
        check_forward(each.forward, contract)
    prompts, answers = (split(a[f"{part}_ids"], a[f"{part}_length"].tolist()) for part in ("prompt", "answer"))
    described = zip(prompts, a["wanted"].tolist(), answers, a["margin"].tolist(), strict=True)
    return Reference(passes, tuple(RecordedAnswer(p, n, tuple(t.tolist()), margin) for p, n, t, margin in described))


def split(part: NDArray[Any], lengths: Sequence[int]) -> list[NDArray[Any]]:
    """Cuts an array into parts of these lengths. Raises ValueError unless they add up to the array's length."""
    if min(lengths, default=1) < 0 or sum(lengths) != len(part):
        raise ValueError("its lengths do not add up")
    return np.split(part, np.cumsum(lengths)[:-1]) if lengths else []


def check_numbers(a: Mapping[str, NDArray[Any]], contract: Contract) -> None:
    """Raises ValueError unless the arrays' shapes fit each other and their numbers fit the contract."""
    forwards, layers = len(a["begins"]), contract.layers if contract.has_cache else 0
    rows, k = a["top_token"].shape
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("past_length", "width", "count"), (forwards,))
    shapes |= {"visible": a["input_ids"].shape, "norms": (forwards, layers, 2), "rows": (rows,), "entropy": (rows,)}
    shapes |= {"top_logprob": (rows, k)}
    shapes |= dict.fromkeys(("answer_length", "wanted", "margin"), a["prompt_length"].shape)
    for name, shape in shapes.items():
        if a[name].shape != shape:
            raise ValueError(f"{name} is {list(a[name].shape)}; expected {list(shape)}")
    if not 1 <= forwards <= FORWARDS_LIMIT or not a["begins"][0] or not 1 <= k <= TOP:
        raise ValueError(f"it has {forwards} forward passes and {k} top tokens; expected some of both")
    least = {"width": 1, "count": 1, "visible": 1, "prompt_length": 1, "wanted": 1}
    for name, part in a.items():
        if not np.isfinite(part).all() or (part.dtype == np.int64 and (part < least.get(name, 0)).any()):
            raise ValueError(f"{name} has a value out of range")
    if (a["margin"] < 0).any():
        raise ValueError("margin has a number below 0, but margins are at least 0")
    if (a["prompt_length"] + a["wanted"] > contract.capacity).any():
        raise ValueError(f"an answer and its prompt are beyond the capacity {contract.capacity}")
    for name in ("input_ids", "top_token", "prompt_ids", "answer_ids"):
        if (a[name] >= contract.vocab).any():
            raise ValueError(f"{name} has an id that is not below the vocabulary of {contract.vocab}")


def check_forward(forward: Forward, contract: Contract) -> None:
    """Raises ValueError for inputs that would make an engine of the contract read or write out of bounds."""
    width, past = forward.input_ids.shape[1], int(forward.past_length[0])
    end = past + width
    if end > contract.capacity or (past and not contract.has_cache):
        raise ValueError(f"a forward pass of {width} tokens after {past} is beyond the capacity {contract.capacity}")
    least = 1 if contract.has_cache else width
    if forward.visible.min() < least or forward.visible.max() > end or forward.rows.max() >= width:
        raise ValueError(f"a forward pass sees or predicts positions that are not among its {end}")

"""Estimates by arithmetic whether an engine fits a device: python -m export.fit student.bundle --device orin-nano"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

from runtime.bundle.store import Bundle, Engine, read
from runtime.cli import DONE, FAILED, make_cli_parser, option, print_json, run
from runtime.engines.registry import KINDS
from runtime.errors import UserError, describe_error

MEMORY = {  # GB; a Jetson's is shared by CPU and GPU, a card's is its own
    "orin-nano": 8, "orin-nx": 16, "agx-orin": 64, "thor": 128,
    "rtx-4060": 8, "rtx-4070": 12, "rtx-4080": 16, "rtx-4090": 24, "rtx-5090": 32,
}  # fmt: skip
SYSTEM = 2.0  # GB for the system, the CUDA context and the libraries; an assumption, not a measurement
BYTES = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.FLOAT16: 2, onnx.TensorProto.BFLOAT16: 2}
MOST = 1 << 20  # positions; longer KV caches are not searched
DESCRIPTION = (
    "Estimates from shapes whether an engine's weights, KV cache and activations fit the memory of a Jetson or RTX "
    "card. GB are 1e9 bytes. The largest capacity is at most the context that the model was trained with. "
    "Exit 1 if --device is given and too small."
)
HELP = {
    "engine": f"name of an engine in the bundle, or {' or '.join(KINDS)} (default: TensorRT's, else the first)",
    "system-gb": f"memory assumed for the system, CUDA and libraries, in GB (default: {SYSTEM:g})",
}


@dataclass(frozen=True, slots=True)
class EngineShape:
    """Holds the sizes that decide an engine's memory, in elements; `weights` and `item` (one KV-cache number) in bytes.

    widest: tokens of the widest forward pass, None if that is the capacity; scores: whether attention scores are held
    in memory, which fused operators avoid; delta: whether new keys and values are held next to the KV cache; cached:
    whether there is a KV cache.
    """

    weights: int
    item: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    vocab: int
    block: int
    batch: int
    widest: int | None
    scores: bool
    delta: bool
    cached: bool


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Holds the bytes that an engine needs at a KV-cache capacity (positions)."""

    capacity: int
    weights: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.activations


@dataclass(frozen=True, slots=True)
class Verdict:
    """Holds whether an engine fits a device at a `MemoryNeed`'s capacity, and the largest capacity that fits, or None.

    The largest capacity is at most the context that the model was trained with, if the bundle records it.
    """

    device: str
    memory_gb: float
    system_gb: float
    fits: bool
    largest_capacity: int | None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run(lambda: fit(parse_options(argv)))


OPTIONS = (
    option("bundle", type=Path, metavar="BUNDLE", help="bundle, a folder that blockstep export wrote"),
    option("--device", choices=tuple(MEMORY), help="device to estimate for (default: all)"),
    option("--engine", metavar="NAME", help=HELP["engine"]),
    option("--capacity", type=int, metavar="N", help="KV-cache capacity, in positions (default: the engine's)"),
    option("--batch", type=int, metavar="N", help="batch size, in sequences (default: the engine's)"),
    option("--system-gb", type=float, default=SYSTEM, metavar="GB", help=HELP["system-gb"]),
    option("--json", action="store_true", help="print one JSON object, sizes in bytes"),
)


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    args = make_cli_parser("export.fit", DESCRIPTION, OPTIONS).parse_args(argv)
    for name in ("capacity", "batch"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}; expected at least 1")
    if args.system_gb < 0:
        raise UserError(f"--system-gb is {args.system_gb:g}; expected a number from 0 on")
    return args


def fit(args: argparse.Namespace) -> int:
    """Reads the bundle, adds up the memory that the engine needs, and prints it."""
    bundle = read(args.bundle)
    engine = choose_engine(bundle, args.engine)
    shape = derive_engine_shape(bundle, engine, args.batch)
    capacity = args.capacity or (engine.build.capacity if engine.build else bundle.contract.capacity)
    context = read_trained_context(bundle)
    if context is not None and capacity > context:
        raise UserError(f"--capacity is {capacity}; expected 1 to {context}, the context the model was trained with")
    need = compute_need(shape, capacity)
    devices = (args.device,) if args.device else tuple(MEMORY)
    verdicts = [judge_fit(device, shape, need, args.system_gb, context) for device in devices]
    if args.json:
        summary = {"bundle": str(args.bundle), "engine": engine.name, "batch": shape.batch, "context": context}
        print_json({**summary, **asdict(need), "total": need.total, "devices": [asdict(each) for each in verdicts]})
    else:
        print("\n".join(report(engine.name, need, verdicts, context)))
    return FAILED if args.device and not verdicts[0].fits else DONE


def choose_engine(bundle: Bundle, name: str | None) -> Engine:
    """Returns the engine of that name or kind, by default the first TensorRT engine, else the first engine."""
    if name is not None:
        return bundle.find_engine(name)
    return next((engine for engine in bundle.engines if engine.kind.native_code), bundle.engines[0])


def read_trained_context(bundle: Bundle) -> int | None:
    """Returns the context (positions) that the model was trained with; None for a bundle that does not record it."""
    context = bundle.provenance.get("context")
    return context if type(context) is int and context > 0 else None


def derive_engine_shape(bundle: Bundle, engine: Engine, batch: int | None) -> EngineShape:
    """Returns an engine's shape from the contract and the shapes of its graph's weights; reads no values."""
    contract, build = bundle.contract, engine.build
    file = bundle.path / engine.graph
    try:
        graph = onnx.load(file, load_external_data=False).graph
    except Exception as error:  # protobuf's and the system's errors have no common class
        raise UserError(f"{file} cannot be read ({describe_error(error, 100)}); export it again") from None
    sizes = {initializer.name: tuple(initializer.dims) for initializer in graph.initializer}
    caches = [BYTES[i.type.tensor_type.elem_type] for i in graph.input if i.name == "past_key_values.0.key"]
    hidden = _find_size(sizes, file, "norm.weight", 1)
    stored = (engine.model,) if build else tuple(engine.files)
    return EngineShape(
        weights=sum((bundle.path / name).stat().st_size for name in stored),
        item=caches[0] if caches else BYTES[onnx.TensorProto.FLOAT],
        hidden=hidden,
        ffn=_find_size(sizes, file, ".down_proj", hidden),
        heads=_find_size(sizes, file, ".o_proj", hidden) // contract.head_dim,
        kv_heads=contract.kv_heads,
        head_dim=contract.head_dim,
        layers=contract.layers,
        vocab=contract.vocab,
        block=contract.block,
        batch=batch or engine.batch,
        widest=max(most for _, most in build.profiles) if build else None,
        scores=engine.cache == "delta" or not contract.has_cache,
        delta=engine.cache == "delta",
        cached=bool(caches),
    )


def compute_need(shape: EngineShape, capacity: int) -> MemoryNeed:
    """Returns the bytes that an engine needs at a capacity.

    The activations are the hidden states and the largest of what attention, MLP and head need.
    """
    width = capacity if shape.widest is None else min(shape.widest, capacity)
    tokens, keys = shape.batch * width, capacity + width if shape.delta else capacity
    position = 2 * shape.layers * shape.kv_heads * shape.head_dim * shape.item * shape.batch
    cache = (capacity + (width if shape.delta else 0)) * position if shape.cached else 0
    packed = (shape.heads + 2 * shape.kv_heads) * shape.head_dim * shape.item
    scores = shape.heads * keys * (4 + shape.item) if shape.scores else 0  # fp32 scores, and their softmax
    mask = keys * shape.item
    attention = tokens * (packed + scores + mask)
    mlp = tokens * 3 * shape.ffn * shape.item
    head = 3 * 4 * shape.batch * shape.block * shape.vocab  # logits, probabilities and their product, in fp32
    return MemoryNeed(
        capacity, shape.weights, cache, 2 * tokens * shape.hidden * shape.item + max(attention, mlp, head)
    )


def judge_fit(
    device: str, shape: EngineShape, need: MemoryNeed, system_gb: float, context: int | None = None
) -> Verdict:
    """Returns whether an engine fits a device, and the largest KV-cache capacity that fits, at most `context`."""
    left = (MEMORY[device] - system_gb) * 1e9
    low, high = 0, context or MOST  # the largest capacity that fits is in [low, high]
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if compute_need(shape, middle).total <= left else (low, middle - 1)
    return Verdict(device, float(MEMORY[device]), system_gb, need.total <= left, low or None)


def report(engine: str, need: MemoryNeed, verdicts: Sequence[Verdict], context: int | None) -> Iterator[str]:
    """Yields the lines of the plain report, in GB."""
    yield f"{engine} at a KV-cache capacity of {need.capacity} positions, in GB of 1e9 bytes, estimated from shapes"
    for name in ("weights", "cache", "activations", "total"):
        yield f"  {name:<12}{getattr(need, name) / 1e9:>9.3f}"
    yield f"{'device':<12}{'memory':>8}{'system':>8}{'fits':>6}{'largest capacity':>18}"
    for each in verdicts:
        most = "none" if each.largest_capacity is None else f"{each.largest_capacity:,}"
        most = f"over {MOST:,}" if context is None and each.largest_capacity == MOST else most
        fits = "yes" if each.fits else "no"
        yield f"{each.device:<12}{each.memory_gb:>8g}{each.system_gb:>8g}{fits:>6}{most:>18}"
    if context is None:
        yield "no capacity may exceed the trained context, which this bundle does not record; export it again"
    else:
        yield f"the largest capacity is at most {context:,}, the context the model was trained with"
    yield "system is an assumption (--system-gb); building an engine on the device takes more than running it"


def _find_size(sizes: dict[str, tuple[int, ...]], file: Path, part: str, other: int) -> int:
    """Returns the length of the vector `part`, or the size of the matrix `part` in the dimension other than `other`."""
    for name, dims in sizes.items():
        if part == name and len(dims) == 1:
            return dims[0]
        if part in name and len(dims) == 2 and other in dims:
            return dims[0] if dims[1] == other else dims[1]
    raise UserError(
        f"{file} has no weights of {part.strip('.')} in it; expected a step graph that blockstep export wrote"
    )


if __name__ == "__main__":
    sys.exit(main())

"""A tiny student that TensorRT has fused attention for, its graph, and a plan of an engine of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import tiny

from export.contract_from_checkpoint import make_export_contract
from export.trt_engines.builder import BuilderSettings
from export.trt_engines.gpu_support import TrtLibrary
from export.trt_engines.graphs import GraphRecipe, Graphs
from export.trt_engines.plan import GraphRequest, Plan
from runtime.contract import Contract
from train.checkpoint import Checkpoint
from train.transformer.network import ModelConfig, Transformer, initialize

SEED = 5
LIBRARY = TrtLibrary("rtx", "1", (75, 80, 86, 89, 120, 121))


def make_student(**changes: Any) -> Checkpoint:
    """A tiny checkpoint with heads of 64, for which TensorRT has fused attention."""
    source = tiny.checkpoint(SEED)
    own = {"vocab": source.read_tokenizer().get_vocab_size(), "qk_norm": True, **changes}
    shape = ModelConfig(**{"width": 64, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 64, "ffn": 128, **own})
    weights = initialize(Transformer(shape), SEED).state_dict()
    return replace(source, model=shape, weights={name: 3 * weight for name, weight in weights.items()})


def make_graph(
    folder: Path, source: Checkpoint, dialect: str = "trt", precision: str = "fp16"
) -> tuple[Path, Contract]:
    contract = make_export_contract(source, 64)
    return Graphs(source, contract, GraphRecipe(dialect, precision, 1, None)).write(folder)[0], contract


def plan(dialect: str) -> Plan:
    return Plan(
        GraphRequest(dialect, "fp16", 64, 1, "float16", {}),
        ((4, 4),),
        "sm89",
        None,
        LIBRARY,
        BuilderSettings("rtx", (89,)),
    )

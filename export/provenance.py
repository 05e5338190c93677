"""Records what a bundle was made of: checkpoint fingerprint, exporter, libraries, the model's shape and context."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import torch

from runtime.engines.ort.no_telemetry import ort
from runtime.perf.op_counts import ModelShape
from train import open_checkpoint
from train.checkpoint import Checkpoint
from train.huggingface.families import Overrides
from train.transformer.network import ModelConfig

EXPORTER = 2  # version of the graphs that export writes; raised if they change


def collect_provenance(ckpt: Path, overrides: Overrides, source: Checkpoint) -> dict[str, Any]:
    """Returns what a bundle was made of, its model's shape, from which `runtime.roofline` counts operations, and the
    context (positions) that it was trained with, which no engine's capacity may exceed."""
    return {
        "checkpoint_sha256": open_checkpoint.compute_fingerprint(ckpt, overrides),
        "exporter": EXPORTER,
        "versions": {"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": ort.__version__},
        "shape": asdict(derive_shape(source.model)),
        "context": source.decoding.context,
    }


def derive_shape(model: ModelConfig) -> ModelShape:
    """Returns the sizes and counts that decide what a forward pass costs."""
    return ModelShape(
        hidden=model.width,
        layers=model.layers,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        ffn=model.ffn,
        vocab=model.vocab,
        tied=model.tied,
        qk_norm=model.qk_norm,
        qkv_bias=model.qkv_bias,
    )

"""Whatever a manifest or a config says, what comes of it is a bundle, a shape or one line."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.bundle.manifest import parse
from runtime.contract import parse_contract
from runtime.errors import LONGEST, UserError
from train.huggingface.families import find_family
from train.huggingface.reader import NormalizedConfig, make_model_config

GOLDEN = Path(__file__).parent / "golden"
MANIFESTS = [json.loads(file.read_text()) for file in sorted(GOLDEN.glob("*.bundle/manifest.json"))]
CONFIG = json.loads((GOLDEN / "directory" / "config.json").read_text())
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    | st.sampled_from([0, 1, 4, 10**12, "threshold", "entropy", "../a", "full", "none"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def places(values: Any) -> list[tuple[Any, Any]]:
    """Every container and key in it."""
    entries = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [pair for key, value in list(entries) for pair in ((values, key), *places(value))]


@st.composite
def damaged(draw: st.DrawFn, sound: list[Any]) -> Any:
    """Sound values with one to three of them replaced or removed."""
    made = copy.deepcopy(draw(st.sampled_from(sound)))
    for _ in range(draw(st.integers(1, 3))):
        if found := places(made):
            holder, key = draw(st.sampled_from(found))
            if draw(st.booleans()):
                holder[key] = draw(VALUES)
            else:
                del holder[key]
    return made


def one_line(error: UserError) -> None:
    assert "\n" not in str(error) and str(error).isprintable() and 0 < len(str(error)) <= 2 * LONGEST


@settings(max_examples=150)
@given(values=damaged(MANIFESTS))
def test_a_manifest_is_a_bundle_or_one_line(values: Any) -> None:
    try:
        made = parse(GOLDEN / "ort.bundle", values)
    except UserError as error:
        return one_line(error)
    assert made.contract == parse_contract(made.contract.as_dict())
    names = [*made.texts, *(name for engine in made.engines for name in engine.files)]
    assert all(Path(name).name == name for name in names)
    assert made.find_engine(made.engines[0].name) == made.engines[0]


@settings(max_examples=100)
@given(values=damaged([CONFIG]))
def test_a_config_is_a_shape_or_one_line(values: Any) -> None:
    if not isinstance(values, dict):
        return
    try:
        shape = make_model_config(
            NormalizedConfig(Path("config.json"), values, find_family(values, "qwen3", Path("config.json")))
        )
    except UserError as error:
        return one_line(error)
    assert shape.heads % shape.kv_heads == 0 and shape.head_dim % 2 == 0 and shape.layers <= 1024


@given(text=st.text())
def test_a_message_is_one_line_that_no_terminal_obeys(text: str) -> None:
    error = UserError(f"got {text}; expected another")
    one_line(error)
    assert str(error).startswith("got") and str(error).endswith("; expected another")

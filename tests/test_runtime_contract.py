"""The contract: what is refused, each in one line that names the field, and that it survives a round trip."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tiny

from runtime.checked_fields import NUMBER_LIMIT
from runtime.contract import FIELD_LIMITS, GateSpec, name_cache_part, parse_contract, parse_gate, size
from runtime.errors import UserError

FULL = {"attention": "full", "cache": "none"}


def test_a_contract_survives_the_round_trip_through_json() -> None:
    gate = {"rule": "factor", "threshold": 2.5, "min": 2, "sub_block": 2, "eos_guard": 0.25}
    contract = tiny.contract(gate=gate, eos_ids=[1, 3], shift=True, alignment="end", top_k=4, batch=2)
    assert contract.gate == GateSpec(**gate) and contract.eos_ids == (1, 3)
    assert parse_contract(json.loads(json.dumps(contract.as_dict()))) == contract


@pytest.mark.parametrize("longest", [None, 9])
def test_the_longest_prompt_is_written_where_there_is_one(longest: int | None) -> None:
    contract = tiny.contract(max_prompt=longest)
    assert contract.as_dict().get("max_prompt") == longest and ("max_prompt" in contract.as_dict()) == bool(longest)
    assert parse_contract(contract.as_dict()) == contract


def test_the_caches_parts_have_the_ecosystems_names() -> None:
    kinds = ["0.key", "0.value", "1.key", "1.value"]
    assert [name_cache_part(part) for part in range(4)] == [(f"past_key_values.{k}", f"present.{k}") for k in kinds]


@pytest.mark.parametrize(
    ("gate", "inside", "outside"),
    [
        (GateSpec(), [0.0, 0.5, 1.0], [-0.01, 1.01]),
        (GateSpec(metric="entropy", comparator="<="), [0.0, 2.0, 3.17], [-0.01, 3.18]),  # ln 24
        (GateSpec(rule="factor"), [0.0, 1.0, 100.0], [-0.01]),
    ],
)
def test_a_threshold_has_the_range_of_its_metric(gate: GateSpec, inside: list[float], outside: list[float]) -> None:
    assert [gate.check_threshold(value, tiny.VOCAB) for value in inside] == inside
    for value in (*outside, float("nan")):
        with pytest.raises(UserError, match=rf"threshold {value} is outside \[0, .*\] of {gate.metric}; give one"):
            gate.check_threshold(value, tiny.VOCAB)
    with pytest.raises(UserError, match=r"^a threshold was given, but this gate accepts a fixed count per step"):
        GateSpec(rule="count").check_threshold(0.5, tiny.VOCAB)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"alignment": "left"}, "contract.alignment is 'left'"),
        ({"attention": "both"}, "contract.attention is 'both'"),
        ({"cache": "copy"}, "contract.cache is 'copy'"),
        ({"cache": "none"}, "contract.cache is none"),
        ({"attention": "full"}, "contract.cache is in_place"),
        ({"shift": 1}, "contract.shift is 1"),
        ({"block": 0}, "contract.block is 0"),
        ({"block": True}, "contract.block is True"),
        ({"block": 4.0}, "contract.block is 4.0"),
        ({"canvas": 13}, "contract.canvas 13"),
        ({"capacity": "64"}, "contract.capacity is '64'"),
        ({"vocab": -1}, "contract.vocab is -1"),
        ({"layers": 0}, "contract.layers is 0"),
        ({"kv_heads": None}, "contract.kv_heads is None"),
        ({"head_dim": 0}, "contract.head_dim is 0"),
        ({"batch": 0}, "contract.batch is 0"),
        ({"top_k": -1}, "contract.top_k is -1"),
        ({"top_k": 24}, "contract.top_k is 24, not below the vocabulary of 24"),
        ({"max_prompt": 0}, "contract.max_prompt is 0; expected a whole number from 1 to"),
        ({"mask_id": 24}, "contract.mask_id is 24, not below"),
        ({"pad_id": -1}, "contract.pad_id is -1"),
        ({"pad_id": 24}, "contract.pad_id is 24, not below the vocabulary of 24"),
        ({"eos_ids": [1, 24]}, "contract.eos_ids is 24, not below"),
        ({"eos_ids": ["1"]}, "contract.eos_ids is '1'"),
        ({"eos_ids": 1}, "contract.eos_ids is 1;"),
        ({"eos_ids": []}, "contract.eos_ids is empty"),
        ({"mask_id": 1}, "contract.mask_id 1 is an end token"),
        ({"family": "dream", "colour": 1}, "contract has unknown fields colour, family"),
        ({"gate": None}, "gate is NoneType"),
        ({"gate": {"rule": "best"}}, "gate.rule is 'best'"),
        ({"gate": {"metric": "margin"}}, "gate.metric is 'margin'"),
        ({"gate": {"comparator": "=="}}, "gate.comparator is '=='"),
        ({"gate": {"threshold": float("nan")}}, "gate.threshold is nan"),
        ({"gate": {"threshold": -0.5}}, "gate.threshold is -0.5"),
        ({"gate": {"threshold": "0.9"}}, "gate.threshold is '0.9'"),
        ({"gate": {"min": 0}}, "gate.min is 0"),
        ({"gate": {"max": 2}}, "gate has unknown fields max"),
        ({"gate": {"sub_block": 1.5}}, "gate.sub_block is 1.5"),
        ({"gate": {"eos_guard": -1}}, "gate.eos_guard is -1"),
        ({"gate": {"eos_guard": 1.5}}, "gate.eos_guard is 1.5; expected a share"),
        ({"gate": {"rule": "factor", "metric": "entropy"}}, "gate.rule factor"),
        ({"gate": {"metric": "entropy"}}, "gate: entropy >="),
        ({"gate": {"comparator": "<"}}, "gate: confidence <"),
        ({"gate": {"temperature": 1}}, "gate has unknown fields temperature"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_contract({**tiny.CONTRACT, **changes})
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "most"), sorted(FIELD_LIMITS.items()))
def test_a_number_may_be_its_largest_and_no_more(name: str, most: int) -> None:
    block = {"canvas": most} if name == "block" else {}  # a multiple of it
    assert getattr(parse_contract({**tiny.CONTRACT, **block, name: most}), name) == most
    with pytest.raises(UserError, match=f"contract.{name} is {most + 1}; expected a whole number from 1 to {most}$"):
        parse_contract({**tiny.CONTRACT, name: most + 1})


def test_a_size_without_a_limit_of_its_own_has_that_of_all_numbers() -> None:
    context = size("context")
    assert context.holds(NUMBER_LIMIT) and not context.holds(NUMBER_LIMIT + 1) and not context.holds(0)


def test_a_gates_numbers_have_bounds_too() -> None:
    assert parse_gate({"max": None, "sub_block": 1}) == GateSpec(sub_block=1)
    assert parse_gate({"rule": "factor", "threshold": NUMBER_LIMIT, "min": NUMBER_LIMIT}).threshold == NUMBER_LIMIT
    assert parse_contract({**tiny.CONTRACT, "max_prompt": 1}).max_prompt == 1
    for wrong in ({"threshold": NUMBER_LIMIT + 1}, {"min": NUMBER_LIMIT + 1}):
        with pytest.raises(UserError, match=str(NUMBER_LIMIT + 1)):
            parse_gate({"rule": "factor", **wrong})


@pytest.mark.parametrize("name", sorted(tiny.CONTRACT))
def test_a_missing_field_is_named(name: str) -> None:
    with pytest.raises(UserError, match=f"contract lacks {name};"):
        parse_contract({key: value for key, value in tiny.CONTRACT.items() if key != name})


@pytest.mark.parametrize("value", [None, [], "contract", 3])
def test_what_is_not_an_object_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match="expected an object"):
        parse_contract(value)


def test_a_gate_of_an_authors_code_is_accepted() -> None:
    assert parse_gate({}) == GateSpec()
    assert parse_gate({"comparator": ">", "threshold": 0.85}).comparator == ">"
    assert parse_gate({"metric": "entropy", "comparator": "<=", "threshold": 0.45}).metric == "entropy"


def test_a_full_model_has_no_cache_and_any_alignment() -> None:
    assert parse_contract({**tiny.CONTRACT, **FULL, "alignment": "absolute"}).cache == "none"

"""What a runtime-only install brings is pinned, listed, and what SECURITY.md says of its limits is so."""

from __future__ import annotations

import json
import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from runtime import load_check
from runtime.bundle import strict_json
from runtime.text import chat_template

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = {
    canonicalize_name(line.partition("==")[0]): line.partition("==")[2]
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
}
PARTS = json.loads((ROOT / "samples" / "results" / "bom.json").read_text(encoding="utf-8"))["components"]


def closure(lines: list[str]) -> set[str]:
    """The libraries that these requirements bring here, and what they bring in turn."""
    found, left = set[str](), [Requirement(line) for line in lines]
    while left:
        wanted = left.pop()
        name = canonicalize_name(wanted.name)
        if name in found or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        try:
            left += [Requirement(line) for line in requires(wanted.name) or []]
        except PackageNotFoundError as error:
            raise AssertionError(f"{name} is not installed, so what it needs is not known") from error
    return found


@pytest.mark.skipif(version("tokenizers") != PINS["tokenizers"], reason="other versions than the pinned ones are here")
def test_every_part_of_a_runtime_only_install_is_pinned_and_in_its_bill_of_materials() -> None:
    brought = closure([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cpu"]])
    assert {"numpy", "onnxruntime", "tokenizers", "protobuf"} <= brought and "torch" not in brought
    assert brought - PINS.keys() == set()
    listed = {canonicalize_name(part["name"]): part["version"] for part in PARTS}
    assert listed.keys() >= brought and all(PINS[name] == version for name, version in listed.items())


def test_every_library_that_an_extra_names_is_pinned() -> None:
    apart = {"onnxruntime-gpu", "tensorrt"}  # for machines with a GPU, which nothing here was tried on
    lines = [*PROJECT["dependencies"], *(line for each in PROJECT["optional-dependencies"].values() for line in each)]
    assert {canonicalize_name(Requirement(line).name) for line in lines} - PINS.keys() == apart


def test_pins_are_within_the_bounds() -> None:
    for lines in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        for wanted in map(Requirement, lines):
            pin = PINS.get(canonicalize_name(wanted.name))
            assert pin is None or wanted.specifier.contains(pin), wanted


def test_security_says_the_limits_that_there_are() -> None:
    told = " ".join((ROOT / "SECURITY.md").read_text(encoding="utf-8").split())
    assert (
        f"{load_check.SECONDS} s and one second more per {load_check.RATE >> 20} MB" in told and load_check.COPIES == 4
    )
    assert load_check.MEMORY == 1 << 30 and "1 GB and four times" in told
    assert f"{strict_json.MOST >> 20} MB at most" in told
    assert f"({'.'.join(map(str, chat_template.JINJA))} or newer)" in told
    assert re.search(r"TensorRT engine \| \*\*no\*\*", told)

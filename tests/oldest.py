"""Prints the oldest versions that pyproject.toml allows, as constraints for pip: python tests/oldest.py NAME ...

A NAME is an extra, or a library that any extra names. Of several bounds of one library the highest counts.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import tomllib

BOUND = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?>=([0-9.]+)")


def oldest(project: dict[str, Any], names: list[str]) -> dict[str, str]:
    """The lower bound of every library that the project itself and these extras or libraries stand for."""
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for name in names for line in extras.get(name, ()))]
    alone = [name for name in names if name not in extras]
    lines += [line for each in extras.values() for line in each if re.split(r"[^A-Za-z0-9._-]", line)[0] in alone]
    found: dict[str, str] = {}
    for line in lines:
        match = BOUND.match(line)
        if match is None:
            raise SystemExit(f"error: {line!r} has no lower bound; expected NAME>=VERSION")
        name, version = match[1].lower(), match[2]
        found[name] = max(found.get(name, version), version, key=lambda text: [int(part) for part in text.split(".")])
    return found


if __name__ == "__main__":
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    print("\n".join(f"{name}=={version}" for name, version in sorted(oldest(project, sys.argv[1:]).items())))

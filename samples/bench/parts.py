"""Lists the packages of this environment, with licenses and sizes: python samples/bench/parts.py --out FILE.md"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from importlib.metadata import Distribution, distributions
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the table."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--out", type=Path, required=True, help="Markdown file to write; sizes in MB of 10^6 bytes")
    args = p.parse_args(argv)
    parts = sorted(distributions(), key=count_bytes, reverse=True)
    lines = [
        "# A runtime-only install", "",
        "What `pip install '.[cpu]'` brings next to blockstep itself, written by `make bom`; CycloneDX in `bom.json`. "
        f"Python {'.'.join(platform.python_version_tuple()[:2])}, {platform.system()} {platform.machine()}.", "",
        "| | version | license | MB |", "|---|---|---|---|",
        *(
            f"| {part.metadata['Name']} | {part.version} | {read_license(part)} | {count_bytes(part) / 1e6:.1f} |"
            for part in parts
        ),
        f"| **{len(parts)} packages** | | | **{sum(map(count_bytes, parts)) / 1e6:.0f}** |", "",
    ]  # fmt: skip
    args.out.write_text("\n".join(lines), encoding="utf-8")
    print(lines[-2])
    return 0


def count_bytes(part: Distribution) -> int:
    """Returns the bytes of a package's files, compiled ones included."""
    return sum(
        Path(str(file.locate())).stat().st_size for file in part.files or () if Path(str(file.locate())).is_file()
    )


def read_license(part: Distribution) -> str:
    """Returns the license in the package's own words: its SPDX expression, else its classifier, else its field."""
    values = part.metadata
    named = [text.split(" :: ")[-1] for text in values.get_all("Classifier") or () if text.startswith("License")]
    return str(values["License-Expression"] or (named[0] if named else (values["License"] or "").split("\n")[0]))


if __name__ == "__main__":
    raise SystemExit(main())

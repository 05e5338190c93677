"""The planted faults (tests/reliability/planted_faults.py) still fit the code that they are planted in."""

from __future__ import annotations

from pathlib import Path

from fault_table import FAULTS

ROOT = Path(__file__).parent.parent


def test_each_fault_can_be_planted_and_its_test_files_are_there() -> None:
    counts = {fault.name: (ROOT / fault.file).read_text(encoding="utf-8").count(fault.old) for fault in FAULTS}
    assert len(counts) == 40 and {name: count for name, count in counts.items() if count != 1} == {}
    files = {f"tests/test_{name}.py" for fault in FAULTS for name in fault.tests.split()}
    assert [file for file in sorted(files) if not (ROOT / file).is_file()] == []

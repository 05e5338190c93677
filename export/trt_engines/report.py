"""Reports what a build did and found: prints a line at once, and keeps values for the JSON object at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TextIO


@dataclass(frozen=True, slots=True)
class BuildReport:
    """Holds the checks and engines so far, as plain values for JSON; prints a line for each to `stream`."""

    stream: TextIO
    checks: list[dict[str, Any]] = field(default_factory=list)
    engines: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(check["ok"] for check in self.checks)

    def check(self, name: str, ok: bool, detail: str) -> bool:
        """Records and prints a check; returns `ok`."""
        self.say(f"[{'ok' if ok else 'x'}] {name}: {detail}")
        self.checks.append({"name": name, "ok": ok, "detail": detail})
        return ok

    def record_engine(self, name: str, line: str, **values: Any) -> None:
        """Records and prints what was done with an engine."""
        self.say(f"{name}: {line}")
        self.engines.append({"name": name, **values})

    def say(self, line: str) -> None:
        print(line, file=self.stream, flush=True)

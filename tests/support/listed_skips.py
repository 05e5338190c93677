"""A pytest plugin for .ci/run: a test that is skipped for a reason which is not listed here fails the run.

A missing tool would otherwise switch its tests off without a word.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

# A part of the test's id, a part of the reason pytest gives, and why no machine of ours runs it.
LISTED = (
    ("test_engines_gpu.py", "", "no machine that runs this has an NVIDIA GPU; make gpu-report runs it"),
    ("test_samples_contenders.py", "gguf is not installed", "llama.cpp takes 20 minutes to build; make bench runs it"),
    ("test_samples_contenders.py", "llama-cpp-python is not installed", "the same"),
    ("test_runtime_load_check.py", "the stack's limit cannot be raised here", "a container may bound what root raises"),
    ("test_reliability_faults.py", "this system lets no process be watched", "a container may forbid ptrace"),
    ("test_reliability_sections.py", "this system lets no process be watched", "the same"),
    ("test_triton_server.py", "there is no wheel of Triton for this machine", "NVIDIA builds it for x86-64 alone"),
)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # with workers, only the process that hears of all of them decides
        config.pluginmanager.register(Watch())


class Watch:
    """Collects what was skipped, and fails the session for what is not listed."""

    def __init__(self) -> None:
        self.unlisted: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._look_at(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._look_at(report)

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        yield
        if self.unlisted:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.unlisted:
            terminalreporter.write_line(f"skipped, and not listed in tests/support/listed_skips.py: {line}", red=True)

    def _look_at(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(part in report.nodeid and why in reason for part, why, _ in LISTED):
            self.unlisted.append(f"{report.nodeid}: {reason}")

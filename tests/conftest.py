"""Ctrl-C and threads in tests, and the last lines of a test run: how many tests were skipped, and why."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator

import pytest
import torch


def pytest_configure() -> None:
    """Let Ctrl-C reach the processes that tests start: a shell starts jobs in the background without it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Give each test the number of threads that the first had, whatever the commands of others were told."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = Counter(_reason(report) for report in terminalreporter.stats.get("skipped", []))
    terminalreporter.section(f"{skipped.total()} skipped")
    for reason, number in skipped.most_common():
        terminalreporter.line(f"{number:5d}  {reason}")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")

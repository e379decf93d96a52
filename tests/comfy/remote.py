"""Tests that run in another interpreter: a pytest of its own there, whose reports are passed on one by one."""

from __future__ import annotations

import _thread
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

REPORTS = "ONRW_TEST_REPORTS"
"""Environment variable with the file that the inner pytest writes its reports to; set in the inner one alone."""
SILENCE = 900  # seconds without a report after which the inner pytest is given up


class Remote:
    """A run of some tests under another interpreter.

    Args:
        command: The interpreter.
        environment: Its environment variables.
        root: pytest's root directory, from which test ids count.
        ids: The tests.
    """

    def __init__(self, command: Path, environment: dict[str, str], root: Path, ids: list[str]) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.written = Path(self.folder.name) / "reports.jsonl"
        self.written.touch()
        self.printed = Path(self.folder.name) / "output.txt"
        self.found: dict[str, list[dict[str, Any]]] = {}
        self.position = 0
        self.start = time.monotonic()
        arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={root}", *ids]
        with self.printed.open("w") as output:
            self.process = subprocess.Popen(
                [command, *arguments],
                cwd=root,
                env={**environment, REPORTS: str(self.written)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def reports(self, nodeid: str) -> list[dict[str, Any]]:
        """Those of one test in pytest's serialised form, once all are there; incomplete if the run broke off."""
        heard = time.monotonic()
        while True:
            ended = self.process.poll() is not None
            if self._read():
                heard = time.monotonic()
            found = self.found.get(nodeid, [])
            if ended or (found and found[-1]["when"] == "teardown"):
                return found
            if time.monotonic() - heard > SILENCE:
                self.process.kill()
                self.process.wait()
            time.sleep(0.05)

    def _read(self) -> bool:
        """Take in what has been written since; whether it was anything."""
        with self.written.open(encoding="utf-8") as file:
            file.seek(self.position)
            lines = file.readlines()
            if lines and not lines[-1].endswith("\n"):
                lines.pop()
        for line in lines:
            self.position += len(line.encode())
            report = json.loads(line)
            self.found.setdefault(report["nodeid"], []).append(report)
        return bool(lines)

    @property
    def output(self) -> str:
        """What the inner pytest printed."""
        return self.printed.read_text(errors="replace")

    def close(self) -> None:
        """End the inner pytest as by Ctrl-C, so that it stops its servers; tests may be left, after -x."""
        if os.name == "posix":
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()


def write(config: pytest.Config, report: pytest.TestReport) -> None:
    """In the inner pytest: pass a report on."""
    data = config.hook.pytest_report_to_serializable(config=config, report=report)
    with open(os.environ[REPORTS], "a", encoding="utf-8") as file:
        file.write(json.dumps(data) + "\n")


def stop_with_parent() -> None:
    """In the inner pytest: end as by Ctrl-C, servers and all, once the outer one is gone however it ended."""
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts jobs in the background without it

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        _thread.interrupt_main()

    threading.Thread(target=watch, daemon=True).start()


def replay(item: pytest.Item, remote: Remote) -> Counter[str]:
    """In the outer pytest: report a test as the inner one did; how many phases had which outcome."""
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    found = remote.reports(item.nodeid)
    reports = [hook.pytest_report_from_serializable(config=item.config, data=data) for data in found]
    for report in reports:
        if report.skipped and isinstance(report.longrepr, list):
            report.longrepr = tuple(report.longrepr)  # place and reason, which JSON made a list
    if not found or found[-1]["when"] != "teardown":
        reports.append(
            pytest.TestReport(
                item.nodeid,
                item.location,
                keywords={},
                outcome="failed",
                longrepr=f"the run in ComfyUI's interpreter broke off:\n{remote.output[-4000:]}",
                when="call",
            )
        )
    for report in reports:
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    outcomes = [report.outcome for report in reports if report.when == "call" or report.outcome != "passed"]
    return Counter(["failed" if "failed" in outcomes else outcomes[-1]])

"""The verdict on pip-audit's report: vulnerabilities fail, and an audit that was not made is not called a good one."""

import importlib.util
import json
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "audit"
VULNERABLE = {"name": "a", "version": "1", "vulns": [{"id": "X-1", "fix_versions": ["2"]}]}
GOOD = {"name": "b", "version": "1", "vulns": []}
SKIPPED = {"name": "c", "skip_reason": "not found"}


@pytest.fixture(scope="module")
def verdict():
    if not SCRIPT.exists():
        pytest.skip("a source tree without .ci")
    spec = importlib.util.spec_from_loader("onrw_audit", SourceFileLoader("onrw_audit", str(SCRIPT)))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.verdict


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([VULNERABLE, GOOD], 1, "a 1: X-1, mended in 2"),
        ([GOOD], 0, "no known vulnerability in 1"),
        ([GOOD, SKIPPED], 0, "not known to the service: c"),
        ([SKIPPED, SKIPPED], 0, "skipped: the service knows none of the 2"),
    ],
)
def test_verdicts(verdict, packages, code, said):
    found, text = verdict(json.dumps({"dependencies": packages}), "")
    assert found == code and said in text


@pytest.mark.parametrize("report", ["", "no JSON", "[]", "{}"])
def test_no_report_is_no_verdict(verdict, report):
    assert verdict(report, "warning\nConnectionError: no network\n") == (
        0,
        "audit: skipped: ConnectionError: no network",
    )

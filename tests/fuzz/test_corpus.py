"""Every kept input through its target, and the fuzzer itself for a moment."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("onrw_fuzz_targets", HERE / "targets.py")
targets = importlib.util.module_from_spec(spec)
spec.loader.exec_module(targets)

KEPT = sorted(path for path in (HERE / "corpus").rglob("*") if path.is_file())


@pytest.mark.parametrize("name", targets.TARGETS)
def test_valid_inputs(name):
    found = list(targets.seeds(name))
    assert found
    for data in found:
        targets.TARGETS[name](data)
        targets.TARGETS[name](data[: len(data) // 2])


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name[:12]}")
def test_kept_inputs(path):
    targets.TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.skipif(not importlib.util.find_spec("atheris"), reason="atheris is not installed: pip install atheris")
def test_the_fuzzer_runs(tmp_path):
    command = [sys.executable, HERE / "fuzz.py", "key", "--inputs", "500", "--work", tmp_path]
    assert subprocess.run(command).returncode == 0
    run = json.loads((tmp_path / "key" / "runs.jsonl").read_text())
    assert run["inputs"] >= 500 and run["edges"] > 10 and not run["finding"]

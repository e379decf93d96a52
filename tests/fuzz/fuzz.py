"""The coverage-guided fuzzer: ``python tests/fuzz/fuzz.py key --inputs 1000000``.

It mutates inputs, keeps those that reach new branches of `onrw_core` (atheris, a libFuzzer for Python), and stops at
the first that is a finding. Runs go on where the last one ended: what is kept lies in the folder of `--work`, and a
line of figures is added to ``runs.jsonl`` there after each round. `--report` sums them up.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
ROUND_SECONDS = 300  # so long at most may a run that is stopped have worked for nothing
LARGEST = {"image": 4096, "registry": 16384, "pickle": 8192, "onnx": 8192}  # bytes of an input; of the others 2048
EDGES = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)")
UNITS = re.compile(r"stat::number_of_executed_units:\s+(\d+)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", nargs="?")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="in all rounds together")
    parser.add_argument("--seconds", type=float, default=7200, help="of CPU time in all rounds together, if sooner")
    parser.add_argument("--rounds", type=int, default=10**9, help=f"at most, of {ROUND_SECONDS} s each")
    parser.add_argument("--work", type=Path, default=Path("bench-fuzz"), help="what is found is kept here")
    parser.add_argument("--report", action="store_true", help="say what was done so far")
    arguments = parser.parse_args()
    if arguments.report:
        return report(arguments.work)
    folder = arguments.work / arguments.target
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    from targets import seeds

    for number, seed in enumerate(seeds(arguments.target)):
        (folder / "corpus" / f"seed-{number}").write_bytes(seed)
    for _ in range(arguments.rounds):
        runs = figures(folder)
        inputs, seconds = arguments.inputs - sum(r["inputs"] for r in runs), sum(r["seconds"] for r in runs)
        if inputs <= 0 or seconds >= arguments.seconds:
            return 0
        run = one_round(arguments.target, folder, inputs, min(ROUND_SECONDS, arguments.seconds - seconds))
        with open(folder / "runs.jsonl", "a") as file:
            file.write(json.dumps(run) + "\n")
        if run["finding"]:
            print(f"{arguments.target}: a finding, {run['finding']}", file=sys.stderr)
            return 1
    return 0


def one_round(target: str, folder: Path, inputs: int, seconds: float) -> dict:
    """Fuzz in a process of its own; a dictionary of figures."""
    kept = [str(path) for path in (folder / "corpus", HERE / "corpus" / target) if path.is_dir()]
    command = [sys.executable, str(HERE / "fuzz.py"), "--child", target, *kept]
    command += [f"-runs={inputs}", f"-max_total_time={max(1, int(seconds))}", f"-artifact_prefix={folder}/"]
    command += [f"-max_len={LARGEST.get(target, 2048)}", "-print_final_stats=1", "-rss_limit_mb=4096", "-timeout=600"]
    before = _cpu_seconds()
    done = subprocess.run(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, errors="replace")
    (folder / "last.log").write_text(done.stderr)
    edges = EDGES.findall(done.stderr)
    units = UNITS.search(done.stderr)
    crash = re.search(r"Test unit written to (\S+)", done.stderr)
    return {
        "inputs": int(units[1]) if units else 0,
        "seconds": round(_cpu_seconds() - before, 1),
        "edges": int(edges[-1][0]) if edges else 0,
        "corpus": int(edges[-1][2]) if edges else 0,
        "finding": crash[1] if crash else ("" if done.returncode == 0 else f"exit {done.returncode}, see last.log"),
        "time": round(time.time()),
    }


def _cpu_seconds() -> float:
    times = os.times()
    return times.children_user + times.children_system


def child(arguments: list[str]) -> None:
    """The process that fuzzes."""
    import atheris

    target, *options = arguments
    logging.disable(logging.WARNING)  # of damaged metadata
    with atheris.instrument_imports(include=["onrw_core"]):
        from targets import TARGETS
    atheris.Setup([target, *options], TARGETS[target])
    atheris.Fuzz()


def figures(folder: Path) -> list[dict]:
    path = folder / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def report(work: Path) -> int:
    print("| target | inputs | CPU seconds | edges reached | inputs kept | findings |\n|-|-|-|-|-|-|")
    for folder in sorted(path for path in work.iterdir() if path.is_dir()):
        runs = figures(folder)
        if runs:
            inputs, seconds = sum(r["inputs"] for r in runs), sum(r["seconds"] for r in runs)
            findings = sum(bool(r["finding"]) for r in runs)
            last = runs[-1]
            print(
                f"| {folder.name} | {inputs:,} | {seconds:,.0f} | {max(r['edges'] for r in runs)} | {last['corpus']} | "
                f"{findings} |"
            )
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        sys.exit(main())

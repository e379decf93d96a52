"""`onrw bench command`: time that the command `onrw embed` adds to `pipeline.embed`.

Each photo is marked in turn by the library in this process and by the command in a process of its own, with the same
arguments. CPU time is given as well as wall time. Before each run the speed of a matrix product is measured, which is
lower while other programs use the machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from ..commands.common import number
from ..commands.embed import PRESETS, make_marker
from ..commands.marker import Source
from ..imaging import files as images
from ..payload.keys import ENVIRONMENT, Key
from ..payload.message import photo_id
from .cache import publish
from .photos import SUFFIXES

__all__ = ["add_arguments", "run"]

LIBRARY, COMMAND, MARKING = "pipeline.embed", "onrw embed", "of that, marking"
PRODUCT, PRODUCT_SECONDS = 1024, 0.3  # side of the matrices, and how long they are multiplied
WARM_UP_ITERATIONS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `onrw bench command`."""
    add = parser.add_argument
    add("--images", type=Path, required=True, help="folder of photos")
    add("--limit", type=number(int, 1, 1000), default=2, metavar="N", help="at most so many photos (default: 2)")
    add("--size", type=number(int, 64, 4096), default=512, metavar="N", help="working size (default: 512)")
    add("--preset", choices=PRESETS, default="fast", help="settings of the method (default: fast)")
    add("--iterations", type=number(int, 1, 10000), metavar="N", help="largest number of steps (default: preset's)")
    add("--threads", type=number(int, 1, 1024), default=os.cpu_count(), metavar="N", help="default: one a core")
    add("--json", type=Path, help="report file")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark, print its table, write JSON; 0 on success."""
    photos = sorted(path for path in args.images.iterdir() if path.suffix.lower() in SUFFIXES)[: args.limit]
    if not photos:
        raise ValueError(f"--images {args.images}: no photos in it")
    torch.set_num_threads(args.threads)
    rows: dict[str, list[dict[str, float]]] = {LIBRARY: [], COMMAND: [], MARKING: []}
    with tempfile.TemporaryDirectory() as folder:
        key = Key.new()
        marked = Path(folder) / "marked.png"
        _library(args, key, photos[0], marked, WARM_UP_ITERATIONS)()  # what is computed once
        for photo in photos:
            library, _ = _timed(_library(args, key, photo, marked, args.iterations), resource.RUSAGE_SELF)
            command, output = _timed(partial(_command, args, key, photo, marked), resource.RUSAGE_CHILDREN)
            rows[LIBRARY].append(library)
            rows[COMMAND].append(command)
            rows[MARKING].append({"seconds": output["seconds"], "product_gflops": command["product_gflops"]})
    report = {"photos": len(photos), "threads": args.threads, "cores": os.cpu_count(), "rows": rows}
    print(_table(report))
    if args.json:
        publish(args.json, report)
    return 0


def _words(args: argparse.Namespace, photo: Path, marked: Path, iterations: int | None) -> list[str]:
    words = ["embed", str(photo), "-o", str(marked), "--size", str(args.size), "--preset", args.preset, "--json"]
    words += ["--threads", str(args.threads), "--device", "cpu", "--overwrite"]
    return words if iterations is None else [*words, "--iterations", str(iterations)]


def _library(args: argparse.Namespace, key: Key, photo: Path, marked: Path, iterations: int | None) -> Callable:
    """A call of `pipeline.embed` for a photo; its inputs are prepared before."""
    from ..commands.cli import build_parser

    words = _words(args, photo, marked, iterations)
    marker = make_marker(build_parser(words).parse_args(words), key, None)
    content = images.read(photo)
    digest = hashlib.sha256(content).hexdigest()
    message = photo_id(key, f"{marker.seed} {digest}")  # as the command chooses it
    decoded = marker.decode((photo, marked), Source(content, digest, message))
    return lambda: marker.optimise(decoded)


def _command(args: argparse.Namespace, key: Key, photo: Path, marked: Path) -> dict[str, Any]:
    """The JSON output of the command, run in a process of its own."""
    words = [sys.executable, "-m", "onrw_core", *_words(args, photo, marked, args.iterations)]
    done = subprocess.run(words, env=os.environ | {ENVIRONMENT: key.text()}, capture_output=True, text=True)
    if not done.stdout:
        raise OSError(f"onrw embed {photo}: ended with {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def _timed(work: Callable[[], Any], whose: int) -> tuple[dict[str, float], Any]:
    """Wall and CPU seconds of a piece of work, CPU time of this process or of its children; and the result."""
    speed = _product_gflops()
    before, wall = resource.getrusage(whose), time.perf_counter()
    result = work()
    wall, after = time.perf_counter() - wall, resource.getrusage(whose)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": wall, "cpu_seconds": cpu, "product_gflops": speed}, result


def _product_gflops() -> float:
    """The machine's speed now: 10^9 operations a second of a float32 matrix product, by the wall clock."""
    matrix, count, start = torch.ones(PRODUCT, PRODUCT), 0, time.perf_counter()
    while time.perf_counter() - start < PRODUCT_SECONDS:
        matrix @ matrix
        count += 1
    return 2 * PRODUCT**3 * count / (time.perf_counter() - start) / 1e9


def _table(report: dict[str, Any]) -> str:
    lines = [f"{'':<18}{'seconds':>9}{'CPU s':>8}{'cores':>7}{'GFLOP/s before':>16}"]
    for name, runs in report["rows"].items():
        mean = {figure: fmean(run[figure] for run in runs) for figure in runs[0]}
        cpu = mean.get("cpu_seconds")
        shares = "" if cpu is None else f"{cpu:>8.1f}{cpu / mean['seconds']:>7.2f}"
        lines.append(f"{name:<18}{mean['seconds']:>9.1f}{shares:<15}{mean['product_gflops']:>16.0f}")
    return "\n".join(
        [*lines, f"mean of {report['photos']} photos; {report['threads']} threads, {report['cores']} cores"]
    )

"""`onrw bench faults`: recovery of a folder run from faults of its process, its disk and its input.

Small images are marked once without faults; that is the reference. Then the same command is run repeatedly with a real
fault at a random moment, in a process of its own:

    kill        SIGKILL
    interrupt   SIGINT, as Ctrl-C sends it
    full        no file may grow beyond a random size (RLIMIT_FSIZE): short writes, and errors after them
    read-only   the folder of the results loses its write permission (not as root, who may write everywhere)
    removed     a photo disappears
    race        several processes with the same command at once, one of which is killed

After each fault everything that is visible has to be right (`check`), and at last a run in peace has to bring about the
reference, byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
from PIL import Image

from ..commands.common import number
from ..commands.journal import JOURNAL
from ..imaging.atomic import is_temporary
from ..imaging.formats import open_image
from ..payload.keys import Key
from ..payload.registry import Registry

__all__ = ["FAULTS", "Bench", "Fault", "add_arguments", "run"]

FAULTS = ("kill", "interrupt", "full", "read-only", "removed", "race")
SIDE = 192  # pixels of the images
MARK = ["--size", str(SIDE), "--iterations", "2", "--target-psnr", "32", "--threads", "1"]
EXPECTED = {0, 1, 2, 130, -signal.SIGKILL}  # exit codes of a run with a fault


class Fault(Exception):
    """A violated condition, after a fault or at the end."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS), help="kinds (default: all)")
    parser.add_argument("--count", type=number(int, 1, 10**6), default=20, metavar="N", help="of each kind (20)")
    parser.add_argument(
        "--photos", type=number(int, 1, 1000), default=4, metavar="N", help="images in the folder (default: 4)"
    )
    parser.add_argument("--processes", type=number(int, 2, 64), default=4, metavar="N", help="of a race (4)")
    parser.add_argument("--seed", type=number(int, 0, 2**53), default=0)


def run(arguments: argparse.Namespace) -> int:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="onrw-faults-") as folder:
        bench = Bench(Path(folder), arguments.photos, arguments.processes, random.Random(arguments.seed))
        for kind in arguments.faults:
            if kind == "read-only" and os.geteuid() == 0:
                print("read-only: skipped, root may write everywhere")
                continue
            codes: Counter[int] = Counter()
            for _ in range(arguments.count):
                codes += bench.suffer(kind)
            told = ", ".join(f"{code}: {times}" for code, times in sorted(codes.items()))
            print(f"{kind}: {arguments.count} faults, nothing wrong (exit codes {told})", flush=True)
    print(f"{time.perf_counter() - start:.0f} s")
    return 0


class Bench:
    """A folder of images, and the reference: its results without faults.

    Args:
        folder: An empty one.
        photos: Number of images.
        processes: Of a race.
        random: Moments, sizes and victims.
    """

    def __init__(self, folder: Path, photos: int, processes: int, random: random.Random) -> None:
        self.folder, self.processes, self.random = folder, processes, random
        self.context = multiprocessing.get_context("forkserver")  # the imports are done once
        self.context.set_forkserver_preload(["onrw_core.commands.marker", "onrw_core.commands.embed"])
        Key.new().save(folder / "a.key")
        (folder / "in").mkdir()
        for i in range(photos):
            coarse = np.random.default_rng(i).integers(60, 196, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / "in" / f"{i}.png")
        self.sources = _digests(folder / "in")
        begin = time.perf_counter()
        self._finish()
        self.seconds = time.perf_counter() - begin
        self.reference = _digests(folder / "out")
        self._clear()

    def suffer(self, kind: str) -> Counter[int]:
        """Cause one fault of a kind during a run; returns the exit codes of the processes.

        Raises:
            Fault: If anything is wrong afterwards.
        """
        moment = self.random.uniform(0, self.seconds)
        codes: list[int] = []
        if kind in ("kill", "interrupt"):
            process = self._start()
            time.sleep(moment)
            _signal(process, signal.SIGKILL if kind == "kill" else signal.SIGINT)
            codes = [_end(process)]
        elif kind == "full":
            largest = max(path.stat().st_size for path in (self.folder / "in").iterdir())
            codes = [_end(self._start(self.random.randrange(2 * largest)))]
        elif kind == "read-only":
            process = self._start()
            time.sleep(moment)
            out = self.folder / "out"
            out.mkdir(exist_ok=True)
            out.chmod(0o555)
            codes = [_end(process)]
            out.chmod(0o755)
        elif kind == "removed":
            process = self._start()
            time.sleep(moment)
            victim = self.random.choice(sorted((self.folder / "in").iterdir()))
            content = victim.read_bytes()
            victim.unlink()
            codes = [_end(process)]
            victim.write_bytes(content)
        else:
            processes = [self._start() for _ in range(self.processes)]
            time.sleep(moment)
            _signal(processes[0], signal.SIGKILL)
            codes = [_end(process) for process in processes]
        self.check(codes)
        self._finish()
        self.check([0])
        if _digests(self.folder / "out") != self.reference:
            raise Fault("the folder is another one than without the fault")
        if any(map(is_temporary, (self.folder / "out").iterdir())):
            raise Fault("unfinished files are left")
        self._clear()
        return Counter(codes)

    def check(self, codes: list[int]) -> None:
        """Check the conditions that hold at every moment.

        Raises:
            Fault: If it does not.
        """
        errors = "".join(path.read_text(errors="replace") for path in self.folder.glob("*.err"))
        if not set(codes) <= EXPECTED or "Traceback" in errors:
            raise Fault(f"exit codes {codes}, and on stderr:\n{errors}")
        if _digests(self.folder / "in") != self.sources:
            raise Fault("a photo was changed")
        results, noted = _digests(self.folder / "out"), _noted(self.folder / "out" / JOURNAL)
        for name, digest in results.items():
            with open_image(self.folder / "out" / name) as image:
                image.load()
            if digest != self.reference.get(name, digest):
                raise Fault(f"{name} is another one than without the fault")
            if noted.get(name) != digest:
                raise Fault(f"{name} is not in the journal")
        registry = self.folder / "ids.db"
        if registry.exists() and registry.stat().st_size:
            registered = {entry.file_hash for entry in Registry(registry).entries()}
            if not set(noted.values()) <= registered:
                raise Fault("a marked photo is not in the registry")
            ids = [entry.id for entry in Registry(registry).entries()]
            if len(ids) != len(set(ids)):
                raise Fault("two photos have one id, or one photo two entries")

    def _finish(self) -> None:
        """Run the command without a fault, to its end."""
        if code := _end(self._start()):
            errors = "".join(path.read_text(errors="replace") for path in self.folder.glob("*.err"))
            raise Fault(f"a run without a fault ends with {code}:\n{errors}")

    def _start(self, limit: int | None = None) -> ForkServerProcess:
        """The command in a process of its own, whose files do not grow beyond `limit` bytes."""
        process = self.context.Process(target=_command, args=(self.folder, limit))
        process.start()
        return process

    def _clear(self) -> None:
        for path in [*(self.folder / "out").iterdir(), *self.folder.glob("ids.db*"), *self.folder.glob("*.err")]:
            path.unlink()


def _command(folder: Path, limit: int | None) -> None:
    from ..commands.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts jobs in the background without it
    os.chdir(folder)
    sys.stdout = open(os.devnull, "w")
    sys.stderr = open(f"{os.getpid()}.err", "w", buffering=1)
    if limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.exit(main(["embed", "in", "-o", "out", "--key", "a.key", "--registry", "ids.db", *MARK]))


def _signal(process: ForkServerProcess, number: int) -> None:
    if process.is_alive():
        os.kill(process.pid, number)


def _end(process: ForkServerProcess) -> int:
    process.join()
    return process.exitcode


def _digests(folder: Path) -> dict[str, str]:
    """Digests of the images of a folder, by name."""
    if not folder.exists():
        return {}
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != JOURNAL and not is_temporary(path)
    }


def _noted(journal: Path) -> dict[str, str]:
    """Name -> SHA-256 of the results in a journal; a line that is cut short is left out."""
    noted = {}
    for line in journal.read_text().splitlines() if journal.exists() else ():
        try:
            fields = json.loads(line)
        except ValueError:
            continue
        if "output" in fields:
            noted[fields["output"]] = fields["output_sha256"]
    return noted

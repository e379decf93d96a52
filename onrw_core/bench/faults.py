"""`onrw bench faults`: recovery of a folder run from faults of its process, its disk and its input.

Small images are marked once without faults; that is the reference. Then the same command is run repeatedly with a real
fault at a random moment of its work, in a process of its own:

    kill        SIGKILL
    interrupt   SIGINT, as Ctrl-C sends it
    full        no file may grow beyond a random size (RLIMIT_FSIZE): short writes, and errors after them
    read-only   the folder of the results loses its write permission, which binds root, too: see `_give_up_privileges`
    removed     a photo disappears that has not been read yet
    race        several processes with the same command at once, one of which is killed

After each fault everything that is visible has to be right (`check`), and at last a run in peace has to bring about the
reference, byte for byte.

Each kind is known by an exit code (`EFFECT`), and those faults are counted that took effect: a process that had ended
before, or finished undisturbed, shows nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
from PIL import Image

from ..commands.cli import BAD_INPUT, INTERRUPTED, OK, SOME_FAILED
from ..commands.common import number
from ..commands.journal import AHEAD, JOURNAL
from ..commands.output import complain
from ..imaging.atomic import is_temporary
from ..imaging.formats import open_image
from ..payload.keys import Key
from ..payload.registry import Registry

__all__ = ["FAULTS", "Bench", "Fault", "add_arguments", "permissions_bind", "run", "took_effect"]

KILLED = -9  # exit code; Windows, where the module is imported as well, has no signal.SIGKILL
FAILED = {SOME_FAILED, BAD_INPUT}
EFFECT = {  # exit codes by which a fault took effect
    "kill": {KILLED},
    "interrupt": {INTERRUPTED},
    "full": FAILED,
    "read-only": FAILED,
    "removed": FAILED,
    "race": {KILLED},
}
FAULTS = tuple(EFFECT)
EXPECTED = {OK}.union(*EFFECT.values())  # exit codes of a run with a fault
SIDE = 128  # pixels of the images
MARK = ["--size", str(SIDE), "--iterations", "2", "--target-psnr", "32", "--threads", "1"]
CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3


class Fault(Exception):
    """A violated condition, after a fault or at the end."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS), help="kinds (default: all)")
    parser.add_argument("--count", type=number(int, 1, 10**6), default=20, metavar="N", help="of each kind (20)")
    parser.add_argument(
        "--photos",
        type=number(int, AHEAD + 2, 1000),
        default=4,
        metavar="N",
        help=f"images in the folder, {AHEAD + 2} or more: {AHEAD + 1} are read at once (default: 4)",
    )
    parser.add_argument("--processes", type=number(int, 2, 64), default=4, metavar="N", help="of a race (4)")
    parser.add_argument("--seed", type=number(int, 0, 2**53), default=0)


def run(arguments: argparse.Namespace, prepare: Callable[[], None] | None = None) -> int:
    """Run the benchmark; `prepare` is that of `Bench`."""
    start, code = time.perf_counter(), OK
    with tempfile.TemporaryDirectory(prefix="onrw-faults-") as folder:
        bench = Bench(Path(folder), arguments.photos, arguments.processes, random.Random(arguments.seed), prepare)
        for kind in arguments.faults:
            if kind == "read-only" and not permissions_bind():
                print("read-only: skipped, root may write everywhere")
                continue
            all_codes: Counter[int] = Counter()
            effective = 0
            for _ in range(arguments.count):
                codes = bench.suffer(kind)
                effective += took_effect(kind, codes)
                all_codes.update(codes)
            told = ", ".join(f"{code}: {times}" for code, times in sorted(all_codes.items()))
            print(
                f"{kind}: {effective} of {arguments.count} took effect, nothing wrong (exit codes {told})", flush=True
            )
            if not effective:
                complain(f"{kind}: no fault took effect, so that nothing is shown; raise --count")
                code = SOME_FAILED
    print(f"{time.perf_counter() - start:.0f} s")
    return code


def took_effect(kind: str, codes: list[int]) -> bool:
    """Whether a process ended by a fault of this kind."""
    return not EFFECT[kind].isdisjoint(codes)


def permissions_bind() -> bool:
    """Whether a folder can be made read-only for the command."""
    return os.geteuid() != 0 or sys.platform == "linux"


class Bench:
    """A folder of images, and the reference: its results without faults.

    Args:
        folder: An empty one.
        photos: Number of images.
        processes: Of a race.
        random: Moments, sizes and victims.
        prepare: Called in each process before the command; tests replace the model by it.
    """

    def __init__(
        self,
        folder: Path,
        photos: int,
        processes: int,
        random: random.Random,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.folder, self.processes, self.random, self.prepare = folder, processes, random, prepare
        self.context = multiprocessing.get_context("forkserver")  # the imports are done once
        self.context.set_forkserver_preload(["onrw_core.commands.marker", "onrw_core.commands.embed"])
        Key.new().save(folder / "a.key")
        (folder / "in").mkdir()
        for i in range(photos):
            coarse = np.random.default_rng(i).integers(60, 196, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / "in" / f"{i}.png")
        self.sources = _digests(folder / "in")
        self.seconds = self._finish()
        self.reference = _digests(folder / "out")
        self.largest = max(path.stat().st_size for path in [*(folder / "out").iterdir(), folder / "ids.db"])
        self._clear()

    def suffer(self, kind: str) -> list[int]:
        """Cause one fault of a kind during a run; returns the exit codes of the processes.

        Raises:
            Fault: If anything is wrong afterwards.
        """
        out, photos = self.folder / "out", sorted((self.folder / "in").iterdir())
        limit = self.random.randrange(self.largest) if kind == "full" else None
        processes = [self._start(limit) for _ in range(self.processes if kind == "race" else 1)]
        # A photo can be removed as long as it is not read, which is done ahead of the work.
        read = AHEAD + 1 if kind == "removed" else 0
        done = self.random.uniform(0, len(photos) - read)
        if kind != "full":
            self._begun(processes[0])
            time.sleep(self.seconds * done / len(photos))
        if kind in ("kill", "race"):
            _signal(processes[0], signal.SIGKILL)
        elif kind == "interrupt":
            _signal(processes[0], signal.SIGINT)
        elif kind == "read-only":
            out.chmod(0o555)
        elif kind == "removed":
            victim = self.random.choice(photos[int(done) + read :])
            content = victim.read_bytes()
            victim.unlink()
        codes = [_end(process) for process in processes]
        if kind == "read-only":
            out.chmod(0o755)
        elif kind == "removed":
            victim.write_bytes(content)
        self.check(codes)
        self._finish()
        self.check([0])
        if _digests(self.folder / "out") != self.reference:
            raise Fault("the folder is another one than without the fault")
        if any(map(is_temporary, (self.folder / "out").iterdir())):
            raise Fault("unfinished files are left")
        self._clear()
        return codes

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
        with tempfile.TemporaryDirectory() as folder:  # of a copy: SQLite mends what it opens
            for path in self.folder.glob("ids.db*"):
                shutil.copy(path, folder)
            entries = Registry.create(Path(folder) / "ids.db").entries()
        if not set(noted.values()) <= {entry.file_hash for entry in entries}:
            raise Fault("a marked photo is not in the registry")
        ids = [entry.id for entry in entries]
        if len(ids) != len(set(ids)):
            raise Fault("two photos have one id, or one photo two entries")

    def _finish(self) -> float:
        """Run the command without a fault, to its end. Returns the seconds since its work began."""
        process = self._start()
        self._begun(process)
        begin = time.perf_counter()
        if code := _end(process):
            errors = "".join(path.read_text(errors="replace") for path in self.folder.glob("*.err"))
            raise Fault(f"a run without a fault ends with {code}:\n{errors}")
        return time.perf_counter() - begin

    def _begun(self, process: ForkServerProcess) -> None:
        """Wait until the work has begun: first of all, the command makes the folder of the results."""
        while not (self.folder / "out").exists() and process.is_alive():
            time.sleep(0.002)

    def _start(self, limit: int | None = None) -> ForkServerProcess:
        """The command in a process of its own, whose files do not grow beyond `limit` bytes."""
        process = self.context.Process(target=_command, args=(self.folder, limit, self.prepare))
        process.start()
        return process

    def _clear(self) -> None:
        shutil.rmtree(self.folder / "out")
        for path in [*self.folder.glob("ids.db*"), *self.folder.glob("*.err")]:
            path.unlink()


def _command(folder: Path, limit: int | None, prepare: Callable[[], None] | None) -> None:
    from ..commands.cli import main

    if prepare is not None:
        prepare()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts jobs in the background without it
    _give_up_privileges()
    os.chdir(folder)
    sys.stdout = open(os.devnull, "w")
    sys.stderr = open(f"{os.getpid()}.err", "w", buffering=1)
    if limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.exit(main(["embed", "in", "-o", "out", "--key", "a.key", "--registry", "ids.db", *MARK]))


def _give_up_privileges() -> None:
    """Be bound by permissions as any user is: root without its capabilities (Linux) may not write everywhere."""
    if os.geteuid() == 0 and permissions_bind():
        libc = ctypes.CDLL(None, use_errno=True)
        none = (ctypes.c_uint32 * 6)()
        if libc.capset((ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), none):
            raise OSError(ctypes.get_errno(), "cannot give up the capabilities of root")


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

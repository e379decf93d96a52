"""Jobs on a Ray cluster: workers that load the model once, and none of whose deaths loses a job.

A worker is a Ray actor, a process on one of the machines, with a GPU or some cores of its own. Each has two jobs at a
time, so that it never waits for the next. When a worker dies, its jobs go to the front of the queue and another worker
is started in its place; a job that was lost once runs alone from then on, so that a photo that kills its workers is
found out and given up, and no other with it.

What the workers need beside the model (the key, the message) goes to them in a call of a method: from process memory to
process memory. The arguments of a constructor would be kept by the cluster's head, and those of a command be seen in
the list of processes.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from itertools import chain
from typing import Any

from . import __version__
from .folder import Job, Outcome, attempt

__all__ = ["LOCAL", "stream"]

LOCAL = "local"
THREADS = 4  # of a worker without a GPU, where the machines have so many
DEPTH = 2  # jobs that a worker has at a time
ATTEMPTS = 3  # of a job whose workers die
RESTARTS = 3  # of workers in a row, with no job done in between, for each of them
WAIT_SECONDS = 600.0  # for a first worker to be placed and to load its model

log = logging.getLogger(__name__)


class Worker:
    """A process of the cluster that does jobs. Its methods may run in several threads."""

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.optimiser = threading.Lock()

    def start(self, make: Callable[..., Any], *arguments: Any) -> tuple[str, str]:
        """Load what jobs need; returns the version of this package here, and the name of this process."""
        self.marker = make(*arguments)
        return __version__, f"{os.getpid()} on {socket.gethostname()}"

    def do(self, job: Job, content: bytes) -> Any:
        """A job from file content to file content; a second one may be decoded and encoded beside it."""
        photo = self.marker.decode(job, content)
        with self.optimiser:
            marked = self.marker.optimise(photo)
        return self.marker.encode(marked)


def stream(
    jobs: Iterable[Job],
    read: Callable[[Job], bytes | None],
    make: Callable[..., Any],
    arguments: tuple,
    *,
    address: str,
    workers: int | None = None,
    threads: int | None = None,
    gpu: bool = True,
) -> Iterator[tuple[Job, Outcome]]:
    """Do jobs on a cluster.

    Args:
        jobs: What is to be done.
        read: Done here: the content of a photo's file, or None where there is nothing to be done.
        make: Called in each worker with `arguments`; returns what has the stages `decode(job, content)`, `optimise` and
            `encode`, each called with what the one before returned.
        arguments: Not shown anywhere; small ones (below 100 KB) travel from memory to memory.
        address: As `ray.init` takes it, or "local" for a cluster of this machine's own, for this call.
        workers: How many; by default as many as the cluster has GPUs, or groups of `threads` cores.
        threads: Of each worker.
        gpu: Whether each gets a GPU where the cluster has any.

    Yields:
        (job, outcome), in the order in which they are done.

    Raises:
        ValueError: If Ray is not installed or the cluster cannot be used.
        OSError: If the workers die faster than they do jobs.
    """
    contents = ((job, attempt(read, job)) for job in jobs)
    for first in contents:
        if isinstance(first[1], bytes):
            break
        yield first
    else:
        return  # no cluster is needed
    with _connected(address, workers, threads) as ray:
        gpus, threads, workers = _shares(ray, workers, threads, gpu)
        # On a GPU the cores are idle enough to decode and encode beside the optimisation.
        kind = ray.remote(Worker).options(num_gpus=gpus, num_cpus=threads, max_concurrency=DEPTH if gpus else 1)

        def hire() -> tuple[Any, tuple[Any, None]]:
            worker = kind.remote(threads)
            return worker.start.remote(make, *arguments), (worker, None)

        yield from _assign(ray, hire, workers, chain([first], contents), read)


def _assign(
    ray: Any, hire: Callable[[], tuple], workers: int, contents: Iterator[tuple], read: Callable[[Job], bytes | None]
) -> Iterator[tuple[Job, Outcome]]:
    """Give jobs to whoever has room, and hire for whoever is lost, until all jobs are done."""
    calls = dict(hire() for _ in range(workers))  # under way: the worker, and the job or None for the start
    ready: dict[Any, list[Job]] = {}  # workers that have started, with their jobs
    names: dict[Any, str] = {}
    again: deque[Job] = deque()
    lost: Counter[Job] = Counter()
    last, deaths = False, 0
    while True:
        for worker, jobs in list(ready.items()):
            while len(jobs) < DEPTH and not any(lost[job] for job in jobs) and not (again and jobs):
                if again:
                    job = again.popleft()
                    content = attempt(read, job)
                else:
                    job, content = next(contents, (None, None))
                if job is None:
                    last = True
                    break
                if isinstance(content, bytes):
                    jobs.append(job)
                    calls[worker.do.remote(job, content)] = worker, job
                else:
                    yield job, content
        if last and not again and not any(ready.values()):
            return
        done, _ = ray.wait(list(calls), num_returns=1, timeout=None if ready else WAIT_SECONDS)
        if not done:
            raise OSError(f"cluster: no worker could start within {WAIT_SECONDS:.0f} s; give it free cores or GPUs")
        worker, job = calls.pop(done[0])
        outcome = _outcome(ray, done[0])
        if isinstance(outcome, ray.exceptions.RayError):
            jobs, deaths = ready.pop(worker, []), deaths + 1
            if deaths > RESTARTS * workers:
                raise OSError(f"cluster: workers die faster than they mark photos; Ray's logs say why ({outcome})")
            log.warning("worker %s was lost; another takes its place", names.get(worker, "that was starting"))
            calls = dict([*((call, told) for call, told in calls.items() if told[0] is not worker), hire()])
            for job in reversed(jobs):
                lost[job] += 1
                if lost[job] < ATTEMPTS:
                    again.appendleft(job)
                else:
                    yield job, ChildProcessError(f"{job[0]}: its worker died {ATTEMPTS} times; has it enough memory?")
        elif job is not None:
            ready[worker].remove(job)
            deaths = 0
            yield job, outcome
        elif isinstance(outcome, Exception):
            raise outcome
        elif outcome[0] != __version__:
            raise ValueError(f"cluster: a worker has onrw {outcome[0]}, not {__version__}; install the same everywhere")
        else:
            ready[worker], names[worker] = [], outcome[1]
            log.info("worker %s has started", names[worker])


def _outcome(ray: Any, call: Any) -> Outcome:
    """What a call returned or raised; a `RayError` where its worker is lost."""
    try:
        return ray.get(call)
    except ray.exceptions.RayTaskError as error:
        return error.cause
    except ray.exceptions.RayError as error:
        return error


def _shares(ray: Any, workers: int | None, threads: int | None, gpu: bool = True) -> tuple[int, int, int]:
    """GPUs and threads of a worker, and how many workers.

    Raises:
        ValueError: If no machine has room for one.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores, gpus = (sum(int(machine.get(kind, 0)) for machine in machines) for kind in ("CPU", "GPU"))
    gpus *= gpu
    if threads is None:
        largest = max(int(machine.get("CPU", 0)) for machine in machines)
        threads = max(1, min(THREADS, largest, cores // (workers or gpus or 1)))
    room = sum(
        min(int(machine.get("CPU", 0)) // threads, int(machine.get("GPU", 0)) if gpus else cores)
        for machine in machines
    )
    if not room:
        raise ValueError(f"cluster: no machine has {threads} cores{' beside a GPU' * bool(gpus)}; give fewer --threads")
    return min(gpus, 1), threads, workers or room


@contextmanager
def _connected(address: str, workers: int | None, threads: int | None) -> Iterator[Any]:
    """Ray, connected to a cluster, or to one of this machine's own."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    try:
        import ray
    except ImportError:
        raise ValueError("--ray: Ray is not installed; `pip install 'onrw[ray]'`") from None
    options = {"address": address, "logging_level": logging.ERROR, "log_to_driver": False}
    if address == LOCAL:
        cores = max(os.cpu_count() or 1, (workers or 0) * (threads or 1))
        options |= {"include_dashboard": False, "num_cpus": cores}
        os.environ.setdefault("RAY_worker_niceness", "0")  # as nice as this process, not nicer by 15
    try:
        ray.init(**options)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"--ray {address}: cannot be reached ({error}); `ray status` says whether it runs") from error
    try:
        with redirect_stdout(sys.stderr):  # where Ray says what the machines complain of
            yield ray
    finally:
        ray.shutdown()

"""Jobs on a Ray cluster, by workers that load the model once; jobs of a worker that dies are repeated.

A worker is a Ray actor, a process on a machine of the cluster with its own GPU or cores. Each has two jobs at a time,
so that it never waits for the next. When a worker dies, its jobs go to the front of the queue and another worker is
started. A job that was lost once runs alone from then on, so that a photo that makes workers die is identified and
given up without affecting other photos.

The key and the message are passed to the workers in a method call, from process memory to process memory. Arguments of
a constructor would be kept by the head of the cluster, and command-line arguments would be visible in the process list.
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

from .. import __version__
from ..payload.keys import ENVIRONMENT
from .journal import Job, Outcome, attempt

__all__ = ["LOCAL", "stream"]

LOCAL = "local"
THREADS = 4  # largest default number of a worker without a GPU
DEPTH = 2  # jobs of a worker at a time
ATTEMPTS = 3  # attempts at a job whose workers die
RESTARTS = 3  # consecutive deaths per worker, with no job done in between, before giving up
WAIT_SECONDS = 600.0  # until a first worker has been placed and has loaded its model

log = logging.getLogger(__name__)


class Worker:
    """A worker process of the cluster. Its methods may run in several threads."""

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.optimiser = threading.Lock()

    def start(self, make: Callable[..., Any], *arguments: Any) -> tuple[str, str]:
        """Load the model; returns the version of this package on this machine, and the name of this process."""
        self.marker = make(*arguments)
        return __version__, f"{os.getpid()} on {socket.gethostname()}"

    def do(self, job: Job, content: Any) -> Any:
        """Run a job from what was read to the result; a second job may be decoded and encoded at the same time."""
        photo = self.marker.decode(job, content)
        with self.optimiser:
            marked = self.marker.optimise(photo)
        return self.marker.encode(marked)


def stream(
    jobs: Iterable[Job],
    read: Callable[[Job], Any],
    make: Callable[..., Any],
    arguments: tuple,
    *,
    address: str,
    workers: int | None = None,
    threads: int | None = None,
    gpu: bool = True,
) -> Iterator[tuple[Job, Outcome]]:
    """Run jobs on a cluster.

    Args:
        jobs: The jobs.
        read: Called in this process: returns what `decode` takes of a photo, or None where nothing is to be done.
        make: Called in each worker with `arguments`; returns an object with the stages `decode(job, content)`,
            `optimise` and `encode`; each takes the result of the stage before.
        arguments: Arguments of `make`. They are logged nowhere; small ones (below 100 KB) stay in memory.
        address: As for `ray.init`, or "local" for a temporary cluster of this machine.
        workers: Number of workers; default: the number of GPUs of the cluster, or of groups of `threads` cores.
        threads: Threads of each worker.
        gpu: Whether each worker gets a GPU, if the cluster has any.

    Yields:
        (job, outcome), in order of completion.

    Raises:
        ValueError: Ray is not installed, or the cluster cannot be used.
        OSError: The workers die faster than they complete jobs.
    """
    contents = ((job, attempt(read, job)) for job in jobs)
    for first in contents:
        if _is_work(first[1]):
            break
        yield first
    else:
        return  # no job is left for the cluster
    with _connected(address, workers, threads) as ray:
        gpus, threads, workers = _shares(ray, workers, threads, gpu)
        # With a GPU, the cores are free to decode and encode during the optimisation.
        kind = ray.remote(Worker).options(num_gpus=gpus, num_cpus=threads, max_concurrency=DEPTH if gpus else 1)

        def hire() -> tuple[Any, tuple[Any, None]]:
            worker = kind.remote(1 if gpus else threads)  # with a GPU, two jobs share the cores
            return worker.start.remote(make, *arguments), (worker, None)

        yield from _assign(ray, hire, workers, chain([first], contents), read)


def _assign(
    ray: Any, hire: Callable[[], tuple], workers: int, contents: Iterator[tuple], read: Callable[[Job], Any]
) -> Iterator[tuple[Job, Outcome]]:
    """Distribute jobs to workers, and replace workers that die, until all jobs are done."""
    # Calls under way, with the worker, and the job or None for the start.
    calls: dict[Any, tuple[Any, Job | None]] = dict(hire() for _ in range(workers))
    ready: dict[Any, list[Job]] = {}  # workers that have started, with their jobs
    names: dict[Any, str] = {}
    again: deque[Job] = deque()
    lost: Counter[Job] = Counter()
    last, deaths = False, 0
    job: Job | None
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
                if _is_work(content):
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
                raise OSError(f"cluster: workers die faster than they complete photos; see the logs of Ray ({outcome})")
            log.warning("worker %s was lost; another takes its place", names.get(worker, "that was starting"))
            calls = dict([*((call, told) for call, told in calls.items() if told[0] is not worker), hire()])
            for job in reversed(jobs):
                lost[job] += 1
                if lost[job] < ATTEMPTS:
                    again.appendleft(job)
                else:
                    yield (
                        job,
                        ChildProcessError(
                            f"{job[0]}: its worker died {ATTEMPTS} times; check that it has enough memory"
                        ),
                    )
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


def _is_work(content: Any) -> bool:
    return content is not None and not isinstance(content, Exception)


def _outcome(ray: Any, call: Any) -> Outcome:
    """The result of a call or the exception that it raised; a `RayError` if its worker has died."""
    try:
        return ray.get(call)
    except ray.exceptions.RayTaskError as error:
        return error.cause
    except ray.exceptions.RayError as error:
        return error


def _shares(ray: Any, workers: int | None, threads: int | None, gpu: bool = True) -> tuple[int, int, int]:
    """GPUs and threads of each worker, and the number of workers.

    Raises:
        ValueError: No machine has enough cores for a worker.
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
    """Ray, connected to a cluster, or to a temporary cluster of this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage statistics are sent
    try:
        import ray
    except ImportError:
        raise ValueError("--ray: Ray is not installed; `pip install 'onrw[ray]'`") from None
    options: dict[str, Any] = {"address": address, "logging_level": logging.ERROR, "log_to_driver": False}
    if address == LOCAL:
        cores = max(os.cpu_count() or 1, (workers or 0) * (threads or 1))
        options |= {"include_dashboard": False, "num_cpus": cores}
        os.environ.setdefault("RAY_worker_niceness", "0")  # the priority of this process, not lower by 15
    with _key_hidden():
        try:
            ray.init(**options)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"--ray {address}: cannot be reached ({error}); check it with `ray status`") from error
        try:
            with redirect_stdout(sys.stderr):  # Ray prints warnings of the machines to stdout
                yield ray
        finally:
            ray.shutdown()


@contextmanager
def _key_hidden() -> Iterator[None]:
    """Remove the key from the environment meanwhile: every process of a cluster would inherit it."""
    secret = os.environ.pop(ENVIRONMENT, None)
    try:
        yield
    finally:
        if secret is not None:
            os.environ[ENVIRONMENT] = secret

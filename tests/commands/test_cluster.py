"""The cluster: jobs are given, lost workers replaced, and the files those of one machine."""

import json
import logging
import os
import random
import re
import shutil
import signal
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from onrw_core import __version__
from onrw_core.commands import cli, cluster
from onrw_core.commands.journal import JOURNAL
from onrw_core.imaging import files as images
from onrw_core.mini.weights import UNET_FILE, WEIGHTS
from onrw_core.payload.keys import Key


class RayError(Exception):
    """A lost worker, to the stand-in for Ray."""


class RayTaskError(RayError):
    def __init__(self, cause):
        self.cause = cause


class FakeWorker:
    """An actor's handle."""


class FakeRay:
    """Workers that answer in any order, and die of photos that are called "poison".

    Attributes:
        alive: Workers, each with its calls under way.
        hired: How many there ever were.
        done: Jobs by the workers that did them.
        most: The largest number of calls under way of one worker.
    """

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, dies_after=(), stillborn=0):
        self.random = random.Random(0)
        self.dies_after, self.stillborn = list(dies_after), stillborn
        self.alive, self.hired, self.done, self.most = {}, 0, [], 0

    def hire(self):
        self.hired += 1
        worker = FakeWorker()
        worker.number = self.hired
        worker.do = SimpleNamespace(remote=lambda job, content: self._call(worker, job))
        self.alive[worker.number] = []
        return self._call(worker, None), (worker, None)

    def _call(self, worker, job):
        call = (worker.number, job, object())
        self.alive.get(worker.number, []).append(call)
        self.most = max(self.most, len(self.alive.get(worker.number, [])))
        return call

    def wait(self, calls, num_returns, timeout):
        firsts = [call for call in calls if call[0] not in self.alive or self.alive[call[0]][0] == call]
        return [self.random.choice(firsts)], None

    def get(self, call):
        number, job, _ = call
        if number not in self.alive:
            raise RayError("dead")
        dies = job is None and self.hired <= self.stillborn
        dies |= job is not None and job[0].name == "poison"
        if self.dies_after and len(self.done) >= self.dies_after[0]:
            self.dies_after.pop(0)
            dies = True
        if dies:
            del self.alive[number]
            raise RayError("died")
        self.alive[number].remove(call)
        if job is None:
            return __version__, f"number {number}"
        if job[0].name == "bad":
            raise RayTaskError(ValueError("bad photo"))
        self.done.append(job)
        return f"marked {job[0].name}"


def assign(ray, names, workers=2, read=lambda job: b"content"):
    jobs = [(Path(name), Path("out") / name) for name in names]
    contents = iter([(job, read(job)) for job in jobs])
    return [(job[0].name, outcome) for job, outcome in cluster._assign(ray, ray.hire, workers, contents, read)]


NAMES = [f"photo{i}" for i in range(20)]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_job_is_done_once(workers):
    ray = FakeRay()
    outcomes = assign(ray, NAMES, workers)
    assert sorted(outcomes) == sorted((name, f"marked {name}") for name in NAMES)
    assert ray.hired == workers and ray.most == cluster.DEPTH


@pytest.mark.parametrize("workers", [1, 3])
def test_lost_workers_lose_nothing(workers):
    ray = FakeRay(dies_after=[0, 3, 3, 11, 19])
    outcomes = assign(ray, NAMES, workers)
    assert sorted(outcomes) == sorted((name, f"marked {name}") for name in NAMES)
    assert ray.hired == workers + 5


def test_a_photo_that_kills_is_given_up_and_no_other():
    for workers in (1, 2):
        outcomes = dict(assign(ray := FakeRay(), [*NAMES[:5], "poison", *NAMES[5:]], workers))
        assert isinstance(error := outcomes.pop("poison"), ChildProcessError) and "poison" in str(error)
        assert outcomes == {name: f"marked {name}" for name in NAMES}
        assert ray.hired == workers + cluster.ATTEMPTS


def test_errors_and_what_was_done_before_are_passed_on():
    ray = FakeRay()
    contents = {"before": None, "missing": ValueError("missing")}
    names = ["a", "before", "bad", "missing"]
    outcomes = dict(assign(ray, names, read=lambda job: contents.get(job[0].name, b"content")))
    assert outcomes["a"] == "marked a" and outcomes["before"] is None
    assert str(outcomes["bad"]) == "bad photo" and outcomes["missing"] is contents["missing"]
    assert len(ray.done) == 1


def test_workers_that_never_live_end_the_run():
    with pytest.raises(OSError, match="die faster"):
        assign(ray := FakeRay(stillborn=10**9), NAMES)
    assert ray.hired == 2 + 2 * cluster.RESTARTS


def test_workers_of_another_version_end_the_run(monkeypatch):
    monkeypatch.setattr(cluster, "__version__", "other")
    with pytest.raises(ValueError, match="install the same everywhere"):
        assign(FakeRay(), NAMES)


def test_shares():
    def shares(*machines, workers=None, threads=None, gpu=True):
        nodes = [{"Alive": True, "Resources": machine} for machine in machines]
        return cluster._shares(SimpleNamespace(nodes=lambda: nodes), workers, threads, gpu)

    assert shares({"CPU": 16.0}, {"CPU": 6.0}) == (0, 4, 5)
    assert shares({"CPU": 2.0}) == (0, 2, 1)
    assert shares({"CPU": 2.0}, {"CPU": 2.0}) == (0, 2, 2)
    assert shares({"CPU": 2.0}, workers=2) == (0, 1, 2)
    assert shares({"CPU": 2.0}, threads=1) == (0, 1, 2)
    assert shares({"CPU": 32.0, "GPU": 4.0}, {"CPU": 8.0}) == (1, 4, 4)
    assert shares({"CPU": 32.0, "GPU": 4.0}, gpu=False) == (0, 4, 8)
    with pytest.raises(ValueError, match="fewer --threads"):
        shares({"CPU": 2.0}, threads=4)


def test_no_cluster_where_nothing_is_to_be_done():
    job = (Path("a"), Path("b"))
    stream = cluster.stream([job], lambda job: None, None, (), address="nowhere")
    assert list(stream) == [(job, None)]


def test_workers_are_for_clusters(tmp_path, capsys):
    words = ["embed", "none.png", "-o", "out.png", "--workers", "2"]
    assert cli.main(words) == 2 and "--ray" in capsys.readouterr().err


@pytest.mark.skipif(not find_spec("ray"), reason="Ray is not installed: pip install 'onrw[ray]'")
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for secrets in /proc")
@pytest.mark.skipif(not (WEIGHTS / UNET_FILE).exists(), reason="the embedded model's weights are not there")
def test_a_killed_worker_changes_nothing(tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.chdir(tmp_path)
    key = Key.new()
    key.save("my.key")
    Path("in").mkdir()
    for seed in range(6):
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(f"in/{seed}.png")
    Path("in/bad.png").write_text("no picture")
    words = ["--key", "my.key", "--size", "64", "--iterations", "2", "--target-psnr", "20", "--threads", "1"]
    assert cli.main(["embed", "in", "-o", "one", *words]) == 1
    monkeypatch.setenv("ONRW_KEY", key.text())
    words = words[2:]  # the key from the environment
    capsys.readouterr()

    logs = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # sockets are in it: their paths have to be short
    monkeypatch.setenv("RAY_TMPDIR", str(logs))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    caplog.set_level(logging.INFO, logger=cluster.__name__)
    killed, visible = [], []

    def write(*arguments, **options):
        if not killed:
            started = re.findall(r"worker (\d+) on .* has started", caplog.text)
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    visible.append((process / "cmdline").read_bytes() + (process / "environ").read_bytes())
                except OSError:
                    pass  # ended, or another user's
            os.kill(killed.append(int(started[0])) or killed[0], signal.SIGKILL)
        return plain(*arguments, **options)

    plain = images.write
    monkeypatch.setattr(images, "write", write)
    try:
        code = cli.main(["embed", "in", "-o", "two", *words, "--json", "--ray", "local", "--workers", "2"])
        secrets = (key.secret, key.secret.hex().encode())
        texts = [path.read_bytes() for path in logs.rglob("*") if path.is_file()] + visible
    finally:
        shutil.rmtree(logs, ignore_errors=True)
    out, err = capsys.readouterr()
    assert code == 1 and "bad.png" in err
    assert sorted(json.loads(line)["input"] for line in out.splitlines()) == [f"in/{seed}.png" for seed in range(6)]
    assert f"worker {killed[0]} on" in caplog.text and "was lost" in caplog.text
    assert len(texts) > len(visible) > 3 and not any(secret in text for secret in secrets for text in texts)
    one, two = ({path.name: path.read_bytes() for path in Path(folder).iterdir()} for folder in ("one", "two"))
    assert sorted(one.pop(JOURNAL).splitlines()) == sorted(two.pop(JOURNAL).splitlines())
    assert len(one) == 6 and one == two

"""Folder runs with real faults, each of which takes effect; and that the checks see what they are for.

The model and the reader are stood in for, so that a run takes a second; `onrw bench faults` has the real ones.
"""

import argparse
import multiprocessing
import random
import sqlite3
from pathlib import Path

import pytest

from onrw_core.bench import faults
from onrw_core.bench.faults import FAULTS, Bench, Fault, permissions_bind, took_effect
from onrw_core.commands.journal import JOURNAL
from onrw_core.payload.registry import Registry

from .stand_in import install

ROOT = Path(__file__).parents[2]
TRIES = 3  # for one fault to take effect: on a busy machine a process may be done before its moment

posix = pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs POSIX")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)  # for the processes, which import `install`
        yield Bench(tmp_path_factory.mktemp("faults"), 3, processes=2, random=random.Random(1), prepare=install)


@posix
@pytest.mark.parametrize(
    "kind, processes", [*((kind, 2 if kind == "race" else 1) for kind in FAULTS), ("race", 4)], ids=str
)
def test_faults(bench, kind, processes):
    if kind == "read-only" and not permissions_bind():
        pytest.skip("root may write everywhere, and gives that up on Linux only")
    bench.processes = processes
    codes = []
    while not took_effect(kind, codes):
        assert len(codes) < TRIES * processes, f"no fault took effect: exit codes {codes}"
        codes += bench.suffer(kind)


@pytest.mark.parametrize("code, effective", [(0, 0), (-9, 2)])
def test_faults_without_effect_are_no_success(monkeypatch, capsys, code, effective):
    class Still:
        def __init__(self, *_):
            pass

        def suffer(self, kind):
            return [code]

    monkeypatch.setattr(faults, "Bench", Still)
    parser = argparse.ArgumentParser()
    faults.add_arguments(parser)
    assert faults.run(parser.parse_args(["--faults", "kill", "--count", "2"])) == (not effective)
    out, err = capsys.readouterr()
    assert f"kill: {effective} of 2 took effect" in out and ("no fault took effect" in err) == (not effective)


@posix
def test_what_is_wrong_is_seen(bench):
    out = bench.folder / "out"
    bench._finish()
    bench.check([0])
    content = (out / "0.png").read_bytes()

    def wrong(match):
        with pytest.raises(Fault, match=match):
            bench.check([0])

    (out / "0.png").write_bytes(content + b"x")
    wrong("another one")
    (out / "0.png").write_bytes(content)
    journal = (out / JOURNAL).read_text()
    (out / JOURNAL).write_text(journal[:-40])
    wrong("not in the journal")
    (out / JOURNAL).write_text(journal)
    Registry(bench.folder / "ids.db").add(Registry(bench.folder / "ids.db").entries()[0].id, note="again")
    wrong("two entries")
    with sqlite3.connect(bench.folder / "ids.db") as connection:
        connection.execute("DELETE FROM entries")
    wrong("not in the registry")
    with pytest.raises(Fault, match="exit codes"):
        bench.check([-11])
    (bench.folder / "in" / "new.png").touch()
    wrong("photo was changed")
    (bench.folder / "in" / "new.png").unlink()

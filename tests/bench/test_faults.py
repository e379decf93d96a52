"""Folder runs with real faults: kills, a full disk, races; and that the checks see what they are for."""

import multiprocessing
import random
import sqlite3

import pytest

from onrw_core.bench.faults import Bench, Fault
from onrw_core.commands.journal import JOURNAL
from onrw_core.mini.weights import UNET_FILE, WEIGHTS
from onrw_core.payload.registry import Registry

pytestmark = [
    pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs POSIX"),
    pytest.mark.skipif(not (WEIGHTS / UNET_FILE).exists(), reason="the embedded model's weights are not there"),
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("faults"), photos=1, processes=2, random=random.Random(1))


@pytest.mark.parametrize("kind", ["kill", "full", "race"])
def test_faults(bench, kind):
    codes = bench.suffer(kind)
    assert sum(codes.values()) == (2 if kind == "race" else 1)


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
    (bench.folder / "in" / "1.png").touch()
    wrong("photo was changed")
    (bench.folder / "in" / "1.png").unlink()

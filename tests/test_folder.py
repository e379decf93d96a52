"""Folders: what is done is not done again, whatever ends a run, and the work streams."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from onrw_core import cli, pipeline
from onrw_core.commands import embed, models
from onrw_core.extractors.keyed import KeyedExtractor
from onrw_core.folder import AHEAD, JOURNAL, Journal, finish_all, keyed, local
from onrw_core.keys import Key
from onrw_core.message import photo_id

NAMES = ("a", "b", "c", "d")
KEY = Key(bytes(range(32)))


class Work:
    """Stands in for the diffusion model: adds the bits as noise. Ends the run before the photo number `stop`."""

    def __init__(self):
        self.done, self.stop = 0, None

    def __call__(self, image, model, autoencoder, extractor, bits, **_):
        if self.done == self.stop:
            raise KeyboardInterrupt
        self.done += 1
        marked = image.clone()
        marked[0, 0, : len(bits)] = bits.float()
        return SimpleNamespace(image=marked, psnr=40.0, ssim=0.99, iterations=1, seconds=0.1)


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty folder with a key and four photos in `in`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "embed", stub := Work())
    monkeypatch.setattr(embed, "load_model", lambda *_: models.Loaded(None, None, lambda prompt: None))
    nothing = SimpleNamespace(bits=[], detected=False, log10_p=0.0)
    monkeypatch.setattr(KeyedExtractor, "read", lambda self, image, **_: nothing)
    KEY.save("my.key")
    Path("in").mkdir()
    for seed, name in enumerate(NAMES):
        photo(f"in/{name}.png", seed)
    return stub


def photo(path, seed):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)


def run(*words, folder="in", out="out"):
    return cli.main(["embed", folder, "-o", out, "--key", "my.key", "--json", *words])


def files(folder="out"):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name != JOURNAL}


def test_resumes_after_an_interruption(work, capsys):
    assert run(out="whole") == 0
    assert work.done == 4 and "already" not in capsys.readouterr().err
    work.done, work.stop = 0, 2
    assert run() == cli.INTERRUPTED
    assert sorted(files()) == ["a.png", "b.png"]  # neither half-written ones nor temporary ones
    work.stop = None
    assert run() == 0 and work.done == 4
    out, err = capsys.readouterr()
    assert "2 of 4 photos were marked already" in err and out.count('"input": "in/c.png"') == 1
    assert files() == files("whole")
    assert sorted(Path("out", JOURNAL).read_text().splitlines()) == sorted(
        Path("whole", JOURNAL).read_text().splitlines()
    )
    assert run() == 0 and work.done == 4


def test_whatever_ends_it_before_a_file_has_its_name(work, monkeypatch):
    replace = "onrw_core.files.os.replace"
    with monkeypatch.context() as patch:
        patch.setattr(replace, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run() == cli.INTERRUPTED
    assert files() == {}
    assert run() == 0 and sorted(files()) == [f"{name}.png" for name in NAMES]


def test_a_bad_photo_is_tried_again(work, capsys):
    Path("in/b.png").write_text("no picture")
    assert run() == 1 and work.done == 3
    assert "b.png" in capsys.readouterr().err
    photo("in/b.png", 9)
    assert run() == 0 and work.done == 4


def test_other_settings_are_refused_by_name(work, capsys):
    assert run("--iterations", "3") == 0
    before = files()
    for words, reason in (
        (["--iterations", "4"], "--iterations (was 3, now 4);"),
        ([], "--iterations (was 3, now not given);"),
        (["--iterations", "3", "--seed", "1"], "--seed (was not given, now 1);"),
        (["--iterations", "3", "--id", "c0ffee"], "--text, --id or --bits;"),
        (["--iterations", "3", "--prompt", "a cat"], "--prompt;"),
    ):
        assert run(*words) == 2
        err = capsys.readouterr().err
        assert reason in err and "--overwrite" in err and "another folder" in err
    assert files() == before and work.done == 4
    assert run("--iterations", "4", "--overwrite") == 0 and work.done == 8
    assert run("--iterations", "4") == 0 and work.done == 8


def test_files_of_others_are_refused(work, capsys):
    Path("out").mkdir()
    photo("out/b.png", 7)
    assert run() == 2 and "exists" in capsys.readouterr().err
    assert run("--overwrite") == 0 and work.done == 4


def test_changed_files_are_marked_again_when_asked(work, capsys):
    assert run() == 0
    photo("in/a.png", 10)
    photo("out/c.png", 11)
    Path("out/d.png").unlink()
    assert run() == 1 and work.done == 5
    err = capsys.readouterr().err
    assert "in/a.png has changed" in err and "out/c.png has changed" in err and err.count("error") == 2
    assert run("--overwrite") == 0 and work.done == 7


def test_photos_marked_in_their_place_are_marked_once(work):
    work.stop = 2
    assert run("--overwrite", out="in") == cli.INTERRUPTED
    work.stop = None
    assert run("--overwrite", out="in") == 0 and work.done == 4
    assert run("--overwrite", out="in") == 0 and work.done == 4


def test_a_torn_line_costs_one_photo(work):
    assert run() == 0
    journal = Path("out", JOURNAL)
    journal.write_bytes(journal.read_bytes()[:-20])
    Path("out/d.png").unlink()  # a line is written before its file has its name
    assert run() == 0 and work.done == 5
    assert run() == 0 and work.done == 5
    assert journal.read_text().count('"d.png"') == 2


def test_no_secret_in_the_journal(work):
    for words in (["--text", "Ann 5"], ["--id", "c0ffee", "--overwrite"], ["--overwrite"]):
        assert run(*words, "--prompt", "a certain place") == 0
    text = Path("out", JOURNAL).read_text()
    for secret in (KEY.secret.hex(), KEY.text(), "Ann 5", "c0ffee", "a certain place"):
        assert secret not in text
    assert len([line for line in text.splitlines() if "options" in line]) == 3
    other = Key(bytes(32))
    assert keyed(KEY, "message", "a") != keyed(other, "message", "a") != keyed(other, "message", "b")


def test_single_files_have_no_journal(work):
    assert cli.main(["embed", "in/a.png", "-o", "one.png", "--key", "my.key"]) == 0
    assert not list(Path().rglob(JOURNAL))
    assert run() == 0 and files()["a.png"] == Path("one.png").read_bytes()


def test_ids_follow_from_key_seed_and_photo(work, capsys):
    ids = []
    for number, words in enumerate(([], [], ["--seed", "1"])):
        assert run(*words, out=f"out{number}") == 0
        ids.append([json.loads(line)["bits"] for line in capsys.readouterr().out.splitlines()])
    assert ids[0] == ids[1] and not set(ids[0]) & set(ids[2]) and len(set(ids[0])) == 4
    assert photo_id(KEY, "x").value != photo_id(Key(bytes(32)), "x").value


def test_journal_of_a_folder_that_is_not_there(tmp_path):
    journal = Journal(tmp_path / "none", {})
    assert not journal.expects(tmp_path / "none" / "a.png") and not (tmp_path / "none").exists()


def test_reading_work_and_writing_overlap_within_bounds():
    counts, most, lock = {"read": 0, "finished": 0}, [], threading.Lock()
    second_read, second_worked = threading.Event(), threading.Event()

    def read(job):
        with lock:
            counts["read"] += 1
            most.append(counts["read"] - counts["finished"])
        if job == 1:
            second_read.set()
        return job

    def work(item):
        if item == 0:
            assert second_read.wait(5)  # the next one is read meanwhile
        if item == 1:
            second_worked.set()
        return item

    def finish(job, outcome):
        assert outcome == job
        if job == 0:
            assert second_worked.wait(5)  # the next one is worked on meanwhile
        with lock:
            counts["finished"] += 1

    finish_all(local(range(50), read, work), finish)
    assert counts == {"read": 50, "finished": 50}
    assert max(most) <= 2 * AHEAD + 3


def test_outcomes_are_passed_on():
    def read(job):
        if job == 1:
            raise ValueError("bad")
        return None if job == 2 else job

    seen = []
    finish_all(local(range(4), read, lambda item: -item), lambda *pair: seen.append(pair))
    assert [job for job, _ in seen] == [0, 1, 2, 3]
    assert seen[0][1] == 0 and str(seen[1][1]) == "bad" and seen[2][1] is None and seen[3][1] == -3
    with pytest.raises(ZeroDivisionError):
        finish_all(local(range(4), read, lambda item: item), lambda job, _: 1 / 0)

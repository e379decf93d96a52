"""Folders: what is done is not done again, whatever ends a run, and the work streams."""

import errno
import hashlib
import json
import os
import resource
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from onrw_core import models, pipeline
from onrw_core.commands import cli, embed, messages
from onrw_core.commands.folders import expand
from onrw_core.commands.journal import AHEAD, JOURNAL, Journal, finish_all, keyed, local
from onrw_core.commands.output import LineFormatter
from onrw_core.extractors.keyed.extractor import KeyedExtractor
from onrw_core.extractors.reading import Reading
from onrw_core.payload.keys import Key
from onrw_core.payload.message import Decoded, decode, encode_id, photo_id
from onrw_core.payload.registry import Registry

from .. import dummies

NAMES = ("a", "b", "c", "d")
KEY = Key(bytes(range(32)))


class Work:
    """Stands in for the diffusion model and the reader: the bits are the first pixels.

    Ends the run before the photo number `stop`; the photos whose numbers are in `weak` cannot be read.
    """

    def __init__(self):
        self.done, self.stop, self.weak = 0, None, ()

    def __call__(self, image, model, autoencoder, extractor, bits, **_):
        if self.done == self.stop:
            raise KeyboardInterrupt
        marked = image.clone()
        marked[0, 0, : len(bits)] = 0.0 if self.done in self.weak else bits.float()
        self.done += 1
        return dummies.marked(marked, bits, extractor)


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty folder with a key and four photos in `in`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "embed", stub := Work())
    monkeypatch.setattr(embed, "load_model", lambda *_: models.Loaded(None, None, lambda prompt: None))
    monkeypatch.setattr(KeyedExtractor, "read", read)
    KEY.save("my.key")
    Path("in").mkdir()
    for seed, name in enumerate(NAMES):
        photo(f"in/{name}.png", seed)
    return stub


def read(extractor, image, key, **_):
    logits = image[0, 0, : extractor.num_bits] * 2 - 1
    found = bool((logits > 0).any())
    return Reading(found, -9.0 * found, logits, decode(logits, key) if found else Decoded(), 0.0)


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
    assert "2 of 4 photos were already marked" in err and out.count('"input": "in/c.png"') == 1
    assert files() == files("whole")
    assert sorted(Path("out", JOURNAL).read_text().splitlines()) == sorted(
        Path("whole", JOURNAL).read_text().splitlines()
    )
    assert run() == 0 and work.done == 4


def test_whatever_ends_it_before_a_file_has_its_name(work, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("onrw_core.imaging.atomic.os.link", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
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
        (["--iterations", "3", "--seed", "1"], "--seed (was 0, now 1);"),
        (["--iterations", "3", "--id", "c0ffee"], "--text, --id or --bits;"),
        (["--iterations", "3", "--prompt", "a cat"], "--prompt;"),
        (["--iterations", "3", "--decoder-size", "64"], "--decoder-size (was not given, now 64);"),
        (["--iterations", "3", "--decoder-input", "imagenet"], "--decoder-input (was not given, now imagenet);"),
        (["--iterations", "3", "--config", "folder"], "--config (was not given, now folder);"),
    ):
        assert run(*words) == 2
        err = capsys.readouterr().err
        assert reason in err and "--overwrite" in err and "another folder" in err
    assert files() == before and work.done == 4
    assert run("--iterations", "4", "--overwrite") == 0 and work.done == 8
    assert run("--iterations", "4") == 0 and work.done == 8


def test_every_option_is_recorded_or_known_not_to_matter(work):
    words = ["embed", "in", "-o", "out", "--key", "my.key"]
    parser = cli.build_parser(words)
    arguments = parser.parse_args(words)
    names, plain = set(vars(arguments)), embed._options(arguments, KEY)
    assert set(embed.UNRECORDED) | set(embed.DIGESTED) | set(embed.LATER) <= names
    for name in names - {"mask"}:  # a file
        changed = SimpleNamespace(**vars(arguments) | {name: "another"})
        kept = name in (*embed.UNRECORDED, "key")  # the key itself is given apart
        assert (embed._options(changed, KEY) == plain) == kept, name


def test_folders_of_earlier_versions_are_continued(work):
    """Their journals have these options alone, at these values."""
    options = {"--preset": "fast", "--spare": False, "--label": "none", "--no-public": False, "--model": "mini"}
    options |= {"--extractor": "keyed", "--seed": 0}
    assert run() == 0
    recorded = json.loads(Path("out", JOURNAL).read_text().splitlines()[0])["options"]
    assert {name: value for name, value in recorded.items() if not str(value).startswith("keyed:")} == options


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


def test_a_journal_that_is_a_pipe_or_a_device_is_refused(work, capsys):
    """A pipe would be waited for, and /dev/zero be read until memory ends."""
    Path("out").mkdir()
    journal = Path("out", JOURNAL)
    for make in (lambda: os.mkfifo(journal), lambda: journal.symlink_to("/dev/zero")):
        make()
        assert run() == 2 and work.done == 0
        assert f"{journal}: is a pipe or a device; give a file in its place" in capsys.readouterr().err
        journal.unlink()
    journal.symlink_to("none")
    assert run() == 0


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
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        finish_all(local(range(4), read, lambda item: item), lambda job, _: 1 / 0)


JUNK = [
    "[" * 100_000,
    "9" * 5000,
    "7",
    "null",
    '["settings", "options"]',
    '{"settings": "x", "options": ["--preset"]}',
    '{"settings": ["x"], "options": {"--preset": "fast"}}',
    '{"settings": "x", "options": {"--preset": {"deep": []}}}',
    '{"output": ["a.png"], "output_sha256": "0", "source_sha256": "0", "settings": "x"}',
    '{"output": "a.png", "output_sha256": 0, "source_sha256": "0", "settings": "x"}',
    '{"output": "a.png", "output_sha256": "0", "source_sha256": "0", "settings": {}}',
    '{"output": "a.png"}',
    "\udcff",
]


def test_lines_that_are_no_entries_are_left_out(tmp_path):
    good = Journal(tmp_path, {"--preset": "fast"})
    good.note(tmp_path / "a.png", b"a", "0" * 64)
    lines = (tmp_path / JOURNAL).read_text()
    junk = "\n".join(JUNK).encode(errors="surrogateescape")
    (tmp_path / JOURNAL).write_bytes(junk + b"\n" + lines.encode() + junk)
    again = Journal(tmp_path, {"--preset": "fast"})
    assert (again.entries, again.runs) == (good.entries, good.runs)
    with pytest.raises(ValueError, match="other settings: --preset"):
        Journal(tmp_path, {"--preset": "paper"}).expects(tmp_path / "a.png")


# ---- a mark that cannot be read


def test_a_mark_that_cannot_be_read_is_no_success(work, capsys, caplog):
    work.weak = (1, 2)
    assert run() == cli.NOT_READABLE == 3
    out, err = capsys.readouterr().out, caplog.text
    assert [json.loads(line)["readable"] for line in out.splitlines()] == [True, False, False, True]
    assert err.count("written, but its watermark cannot be read") == 2 and "out/b.png" in err and "bits" not in err
    assert sorted(files()) == [f"{name}.png" for name in NAMES]
    work.weak = ()
    assert run() == 0 and work.done == 6  # those two are not done yet
    assert run() == 0 and work.done == 6


def test_a_single_mark_that_cannot_be_read(work, capsys):
    work.weak = (0,)
    words = ["embed", "in/a.png", "-o", "one.png", "--key", "my.key"]
    assert cli.main(words) == 3 and Path("one.png").exists()
    assert "NOT read back" in capsys.readouterr().out
    assert cli.main([*words, "--bits", "01" * 24, "--overwrite"]) == 0
    work.weak = range(9)
    assert cli.main([*words, "--bits", "01" * 24, "--overwrite"]) == 3


def test_a_result_that_was_edited_is_not_replaced_unasked(work, capsys):
    work.weak = (1,)
    assert run() == 3
    photo("out/b.png", 30)
    before = files()["b.png"]
    work.weak = ()
    assert run() == 1 and files()["b.png"] == before
    assert "already exists" in capsys.readouterr().err


# ---- which files, and what they become


def names(folder="out"):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def saved(path, mode="RGB", **options):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 64)).convert(mode).save(path, **options)


def test_results_keep_tree_and_file_format(work, capsys):
    saved("photos/a.jpg")
    saved("photos/b.JPE", format="JPEG")
    saved("photos/c.jfif")
    saved("photos/2019/deep/a.webp", lossless=True)
    saved("photos/2019/d.tif")
    saved("photos/e.gif", mode="P")
    saved("photos/f.jpg", mode="CMYK")
    saved("photos/g", format="PNG")
    saved("photos/h.jpg", format="PNG")  # named wrongly
    saved("photos/i.avif")
    saved("photos/j.bmp")
    assert run(folder="photos") == 0
    kinds = {
        "2019/d.tif": "TIFF",
        "2019/deep/a.webp": "WEBP",
        "a.jpg": "JPEG",
        "b.JPE": "JPEG",
        "c.jfif": "JPEG",
        "e.png": "PNG",
        "f.png": "PNG",
        "g.png": "PNG",
        "h.png": "PNG",
        "i.png": "PNG",
        "j.bmp": "BMP",
    }
    assert names() == sorted([*kinds, JOURNAL])
    for name, kind in kinds.items():
        with Image.open(Path("out", name)) as result:
            assert result.format == kind, name
    with Image.open("out/a.jpg") as result:
        assert result.layer[0][1:3] == result.layer[1][1:3] == (1, 1)  # 4:4:4
    err = capsys.readouterr().err
    assert "palette becomes RGB in PNG: photos/e.gif" in err and "CMYK becomes RGB in PNG: photos/f.jpg" in err
    assert "AVIF becomes PNG: photos/i.avif" in err
    done = work.done
    assert run(folder="photos") == 0 and work.done == done == 11


def test_nothing_is_left_out_without_a_word(work, capsys):
    saved("photos/a.jpg")
    Path("photos/readme.txt").write_text("hello")
    Path("photos/noise").write_bytes(b"no picture")
    Path("photos/shot.cr2").write_bytes(b"II*\0")
    Path("photos/b.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(32))
    os.mkfifo("photos/c.png")
    Path("photos/gone.png").symlink_to("nowhere.png")
    Path("photos/.hidden.jpg").write_bytes(b"")
    Path("photos/.cache").mkdir()
    Path("photos/loop").symlink_to(".")
    assert run(folder="photos") == 1
    err = capsys.readouterr().err
    assert "left out: hidden files: photos/.hidden.jpg" in err and "hidden folders: photos/.cache" in err
    assert "links to folders: photos/loop" in err
    assert "pipes, devices and broken links: photos/c.png, photos/gone.png" in err
    assert "unsupported formats: photos/noise, photos/readme.txt, photos/shot.cr2" in err
    assert "photos/b.heic: is a HEIC image, which cannot be read; export it as JPEG or PNG" in err
    assert names() == ["a.jpg", JOURNAL]


def test_a_folder_that_can_be_listed_and_not_entered_does_not_stop_the_others(work, monkeypatch, capsys):
    saved("photos/a.jpg")
    saved("photos/closed/b.jpg")
    stat = os.stat

    def of_another_user(path, *arguments, **options):
        if "closed/b" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", of_another_user)
    assert expand(["photos"]) == [Path("photos/a.jpg")]
    err = capsys.readouterr().err
    assert "photos/closed/b.jpg" in err and err.startswith("onrw: left out: ")


def test_a_folder_of_results_inside_is_no_input(work):
    saved("photos/a.jpg")
    assert run(folder="photos", out="photos/marked") == 0
    assert run(folder="photos", out="photos/marked") == 0 and work.done == 1
    assert names("photos") == ["a.jpg", "marked/a.jpg", f"marked/{JOURNAL}"]


def test_one_name_with_two_suffixes(work):
    saved("photos/a.jpg")
    saved("photos/a.png")
    saved("photos/a.gif")
    assert run(folder="photos") == 0
    assert names() == ["a.gif.png", "a.jpg", "a.png", JOURNAL]
    assert run("--format", "webp", folder="photos", out="webp") == 0
    assert names("webp") == ["a.gif.webp", "a.jpg.webp", "a.png.webp", JOURNAL]


def test_names_of_any_length(work, capsys):
    long, cjk = "n" * 251, "\u5199" * 83
    saved(f"photos/{long}.png")
    saved(f"photos/{cjk}.jpg")
    saved(f"photos/{long}.gif")
    saved("photos/" + "m" * 252, format="PNG")  # with ".png" it would be too long
    before = work.done
    assert run(folder="photos") == 1
    err = capsys.readouterr().err
    assert err.count("its name is too long for the file system") == 2
    assert names() == sorted([f"{long}.png", f"{cjk}.jpg", JOURNAL]) and work.done == before + 2
    assert run(folder=f"photos/{long}.png", out=f"{long}.png") == 0
    assert run(folder=f"photos/{long}.png", out=f"{long}n.png") == 2
    err = capsys.readouterr().err
    assert f"output {long}n.png: its name is too long for the file system" in err and JOURNAL not in err


# ---- disks


def test_a_full_disk_ends_the_run(work, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("onrw_core.imaging.atomic.os.fsync", full)
    assert run() == 2 and work.done < 4
    err = capsys.readouterr().err
    assert "No space left on device" in err and "make room" in err and err.count("error") == 1
    assert files() == {}
    monkeypatch.undo()


def test_a_line_cut_short_is_no_entry(tmp_path):
    journal = Journal(tmp_path, {"--preset": "fast"})
    journal.note(tmp_path / "a.png", b"a", "0" * 64)
    size = (tmp_path / JOURNAL).stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            journal.note(tmp_path / "b.png", b"b", "1" * 64)  # the disk takes 20 bytes of it
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "b.png" not in journal.entries
    journal.note(tmp_path / "c.png", b"c", "2" * 64)
    assert set(Journal(tmp_path, {}).entries) == {"a.png", "c.png"}


def test_what_a_killed_run_left_is_removed(work):
    Path("out/sub").mkdir(parents=True)
    saved("in/sub/e.png")
    for place in ("out", "out/sub"):
        Path(place, ".onrw-0123456789ab.tmp").write_bytes(b"half")
    assert run() == 0
    assert not list(Path("out").rglob("*.tmp"))


# ---- names in what is printed


def test_no_name_prints_a_second_line(work, capsys, caplog):
    forged = "a\nout.png: marked (p = 1e-30), id c0ffee\x1b[2K\u202e.png"
    saved(f"photos/{forged}")
    Path("photos/b\nonrw: error: forged.png").write_text("no picture")
    Path("photos/c\nonrw: forged.txt").write_text("no picture")
    work.weak = (0,)
    assert cli.main(["embed", "photos", "-o", "out", "--key", "my.key"]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1 and "a\\nout.png" in out and "\x1b" not in out and "\u202e" not in out
    for line in err.splitlines():
        assert line.startswith("onrw: ") and not line.startswith(("onrw: error: forged", "onrw: forged")), line
    for record in caplog.records:
        assert len(LineFormatter("onrw: %(message)s").format(record).splitlines()) == 1
    assert "its watermark cannot be read" in caplog.text
    assert "b\\nonrw" in err and "c\\nonrw" in err
    assert cli.main(["extract", "photos", "--key", "my.key"]) in (1, 2)
    assert len(capsys.readouterr().out.splitlines()) == 1


class FewIds:
    """Stands in for `photo_id` where ids are few, so that photos of different names want the same one."""

    def __init__(self, count):
        self.count, self.rows = count, {}

    def __call__(self, key, photo, num_bits):
        seed, digest, *number = photo.split()
        first = self.rows.setdefault(digest, len(self.rows) // 2)  # photos in pairs want one id
        return encode_id(f"{(first + 100 * int(number[0] if number else 0)) % 0xFFFF:x}", key, num_bits)


def ids_of(capsys):
    return {json.loads(line)["input"]: json.loads(line)["bits"] for line in capsys.readouterr().out.splitlines()}


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(messages, "photo_id", few := FewIds(4))
    return few


def test_no_two_photos_of_a_folder_share_an_id(work, few, capsys):
    assert run() == 0
    ids = ids_of(capsys)
    assert len(set(ids.values())) == len(NAMES)
    photo("in/0-first.png", 50)  # sorts before the others, and wants the id of one that is done
    few.rows[hashlib.sha256(Path("in/0-first.png").read_bytes()).hexdigest()] = 0
    assert run() == 0
    (new,) = ids_of(capsys).values()
    assert new not in ids.values()
    assert run("--overwrite", "--target-psnr", "40") == 0  # the same ids again, in whatever order
    again = ids_of(capsys)
    assert {**ids, "in/0-first.png": new} == again


def test_no_two_photos_of_a_registry_share_an_id(work, few, capsys):
    assert run("--registry", "ids.db", out="one") == 0
    first = ids_of(capsys)
    Path("others").mkdir()
    for seed, name in enumerate(NAMES):
        photo(f"others/{name}.png", 90 + seed)
    few.rows.clear()
    assert run("--registry", "ids.db", folder="others", out="two") == 0
    second = ids_of(capsys)
    assert len({*first.values(), *second.values()}) == 2 * len(NAMES)
    few.rows.clear()
    assert run("--registry", "ids.db", "--overwrite", "--target-psnr", "40", out="one") == 0
    assert ids_of(capsys) == first  # the same pictures keep theirs
    assert len({entry.id for entry in Registry("ids.db").entries()}) == 2 * len(NAMES)


def test_an_id_that_another_process_gave_meanwhile_is_not_given_again(work, few, capsys, monkeypatch):
    """Both looked before either wrote."""
    monkeypatch.setattr(Registry, "has_another", lambda *_: False)
    assert run("--registry", "ids.db", out="one") == 0
    photo("in/other.png", 77)
    Path("in2").mkdir()
    Path("in/other.png").rename("in2/other.png")
    few.rows.clear()
    capsys.readouterr()
    assert run("--registry", "ids.db", folder="in2", out="two") == 2
    assert "another image was given the id" in capsys.readouterr().err
    assert not Path("two/other.png").exists()


def test_a_registry_given_later_gets_what_is_done(work, capsys, caplog):
    assert run() == 0
    ids = ids_of(capsys)
    assert run("--registry", "ids.db", "--note", "late") == 0 and work.done == len(NAMES)
    entries = {entry.file_hash: entry for entry in Registry("ids.db").entries()}
    assert len(entries) == len(NAMES)
    for name, content in files().items():
        entry = entries[hashlib.sha256(content).hexdigest()]
        bits = encode_id(entry.id, KEY).bits.tolist()
        assert "".join(map(str, bits)) == ids[f"in/{name}"] and entry.note == "late" and entry.perceptual_hash
    assert run("--registry", "ids.db", "--note", "late") == 0 and run("--registry", "ids.db") == 0
    assert "--note" not in caplog.text
    assert run("--registry", "ids.db", "--note", "later still") == 0
    assert len(Registry("ids.db").entries()) == len(NAMES)
    (warning,) = caplog.messages
    assert warning.startswith(f"--note: not stored for {len(NAMES)} photos that ids.db has with another note")
    assert run("--registry", "other.db", "--note", "later still") == 0 and len(caplog.messages) == 1  # the remedy
    assert {entry.note for entry in Registry("other.db").entries()} == {"later still"}


def test_a_journal_of_before_has_no_ids(work, capsys):
    """Its photos have the first candidate each."""
    assert run() == 0
    lines = [json.loads(line) for line in Path("out", JOURNAL).read_text().splitlines()]
    Path("out", JOURNAL).write_text(
        "".join(json.dumps({k: v for k, v in d.items() if k != "id"}) + "\n" for d in lines)
    )
    ids = ids_of(capsys)
    assert run("--registry", "ids.db") == 0 and work.done == len(NAMES)
    registered = {tuple(encode_id(entry.id, KEY).bits.tolist()) for entry in Registry("ids.db").entries()}
    assert registered == {tuple(map(int, bits)) for bits in ids.values()}


def test_ids_run_out_with_an_error(work, monkeypatch, capsys):
    monkeypatch.setattr(messages, "photo_id", lambda key, photo, bits: encode_id("c0ffee", key, bits))
    assert run() == 1
    assert "ids of 48 bits are taken" in capsys.readouterr().err and len(files()) == 1


def test_an_id_that_is_no_candidate_is_an_error(work, capsys):
    assert run() == 0
    text = Path("out", JOURNAL).read_text()
    Path("out", JOURNAL).write_text(text.replace('"id": "keyed:', '"id": "keyed:0'))
    assert run("--registry", "ids.db") == 2
    assert "cannot have given" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["name", "journal"])
def test_the_registry_has_no_entry_of_a_file_that_was_not_written(work, capsys, monkeypatch, place):
    """Since its name was taken at the last moment, or since the journal could not be written."""
    if place == "name":
        link = os.link

        def taken(source, target):
            if Path(target).name == "b.png":
                Path(target).write_bytes(b"another's")
            link(source, target)

        monkeypatch.setattr(os, "link", taken)
    else:
        note = Journal.note

        def refused(journal, result, *rest, **more):
            if result.name == "b.png":
                raise OSError("no more")
            note(journal, result, *rest, **more)

        monkeypatch.setattr(Journal, "note", refused)
    assert run("--registry", "ids.db") == 1 and "b.png" in capsys.readouterr().err
    written = {hashlib.sha256(Path(f"out/{name}.png").read_bytes()).hexdigest() for name in "acd"}
    assert {entry.file_hash for entry in Registry("ids.db").entries()} == written

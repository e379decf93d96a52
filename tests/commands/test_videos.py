"""``onrw embed`` and ``onrw extract`` on videos: one message, read from frames of the written file."""

import hashlib
import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onrw_core.commands import messages
from onrw_core.commands.cli import main
from onrw_core.imaging.video import transcode
from onrw_core.payload.keys import Key
from onrw_core.payload.message import encode_id
from onrw_core.payload.registry import Registry

av = pytest.importorskip("av")

SIDE, COUNT = 192, 4
SAMPLE = Path(__file__).parents[2] / "onrw_core" / "samples" / "monument.jpg"
QUICK = ("--preset", "quick", "--iterations", "6", "--quality", "80", "--size", str(SIDE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A key, and a pan over a sample photo."""
    folder = tmp_path_factory.mktemp("videos")
    Key(bytes(range(32))).save(folder / "my.key")
    with Image.open(SAMPLE) as image:
        pixels = np.asarray(image.convert("RGB").resize((288, 288)))
    with av.open(folder / "film.mp4", "w") as output:
        video = output.add_stream("libx264", rate=8, options={"crf": "10"})
        video.height, video.width, video.pix_fmt = SIDE, SIDE, "yuv420p"
        for number in range(COUNT):
            window = np.ascontiguousarray(pixels[40 : 40 + SIDE, 10 * number : 10 * number + SIDE])
            frame = av.VideoFrame.from_ndarray(window, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 8)
            output.mux(video.encode(frame))
        output.mux(video.encode())
    return folder


@pytest.fixture
def onrw(folder, capsys):
    def run(*words):
        code = main([*map(str, words), "--key", str(folder / "my.key")])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_video_is_marked_and_read(onrw, folder, tmp_path):
    result, ids = tmp_path / "marked.mkv", tmp_path / "ids.db"
    code, out, err = onrw(
        "embed", folder / "film.mp4", "-o", result, "--id", "c0ffee", *QUICK, "--registry", ids, "--json"
    )
    line = json.loads(out)
    assert (code, line["frames"], line["readable"]) == (0, COUNT, True), err
    assert line["ssimulacra2"] > 79.9 and line["seconds_per_frame"] > 0
    assert len(Registry(ids).lookup("c0ffee")) == 1
    code, out, _ = onrw("extract", result, "--json", "--frames", "3", "--registry", ids)
    assert code == 0 and json.loads(out)["id"] == "c0ffee"
    code, _, err = onrw("embed", result, "-o", tmp_path / "again.mp4", "--id", "c0ffee", *QUICK)
    assert code == 2 and "of this key already (id c0ffee" in err
    assert {path.name for path in tmp_path.iterdir()} == {"marked.mkv", "ids.db"}


def test_the_bits_of_a_video_are_printed(onrw, folder, tmp_path):
    """Those that were embedded, in the words of both commands."""
    result, bits = tmp_path / "marked.mkv", "01" * 16
    code, out, err = onrw("embed", folder / "film.mp4", "-o", result, "--bits", bits, *QUICK, "--verbose")
    assert code == 0 and f"32 raw bits, bits {bits}, {COUNT} frames" in out, err
    code, out, _ = onrw("extract", result, "--verbose", "--frames", "2")
    assert code == 0 and out.count("\n") == 1
    assert "marked.mkv: marked (" in out and out.rstrip().endswith(f"; bits {bits}")


def test_a_video_that_cannot_be_registered_is_not_written(onrw, folder, tmp_path, monkeypatch):
    """As an image: what has its name is registered."""

    def refused(*_, **__):
        raise ValueError("the registry is full")

    monkeypatch.setattr(Registry, "add_for_result", refused)
    words = ("-o", tmp_path / "marked.mp4", "--id", "c0ffee", *QUICK, "--iterations", "1", "--registry", tmp_path / "a")
    code, _, err = onrw("embed", folder / "film.mp4", *words)
    assert code == 2 and "the registry is full" in err
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


@pytest.fixture
def one_first_id(monkeypatch):
    """All videos want the same id first, and then different ones."""

    def photo_id(key, photo, num_bits):
        kind, digest, *number = photo.split()
        assert kind == "video"
        return encode_id(digest[:5] + number[0] if number else "c0ffee", key, num_bits)

    monkeypatch.setattr(messages, "photo_id", photo_id)


def test_a_video_whose_id_another_image_has_gets_the_next_one(onrw, folder, tmp_path, one_first_id):
    ids = tmp_path / "ids.db"
    registry = Registry.create(ids)
    registry.add("c0ffee", file_hash="ab", perceptual_hash="0123456789abcdef")
    words = ("embed", folder / "film.mp4", *QUICK, "--iterations", "1", "--registry", ids)
    results = [tmp_path / "one.mp4", tmp_path / "two.mp4"]
    for result in results:  # and the same one when it is marked again
        code, _, err = onrw(*words, "-o", result)
        assert code in (0, 3), err  # after one step it need not be readable
    own = {entry.file_hash: entry.id for entry in registry.entries() if entry.id != "c0ffee"}
    assert set(own) == {hashlib.sha256(result.read_bytes()).hexdigest() for result in results}
    assert len(set(own.values())) == 1 and len(registry.lookup("c0ffee")) == 1


def test_videos_of_one_command_get_different_ids(onrw, folder, tmp_path, one_first_id):
    other = tmp_path / "other.mkv"
    transcode(folder / "film.mp4", other, lambda frames: (frame.flip(-1) for frame in frames))
    words = (*QUICK, "--iterations", "1", "--json")
    code, out, err = onrw("embed", folder / "film.mp4", other, "-o", tmp_path / "out", *words)
    assert code in (0, 3), err
    bits = [json.loads(line)["bits"] for line in out.splitlines()]
    assert len(set(bits)) == 2


def test_an_unmarked_video_holds_nothing(onrw, folder):
    code, out, _ = onrw("extract", folder / "film.mp4", "--plain")
    assert code == 0 and "nothing found" in out


@pytest.mark.parametrize(
    "words, reason",
    [
        (["film.mp4", "photo.png", "-o", "out/"], "photo.png: is no video; mark photos and videos in two runs"),
        (["film.mp4", "-o", "marked.png"], "marked.png: unknown file format; use one of the suffixes .mp4"),
        (["film.mp4", "-o", "film.mp4"], "film.mp4: is the input itself"),
        (["film.mp4", "other/film.mp4", "-o", "out/"], "is the result of two videos"),
        (["film.mp4", "-o", "marked.mp4", "--spare"], "--spare: is for photos alone"),
        (["none.mp4", "-o", "marked.mp4"], "none.mp4: no such file"),
        (["pipe.mp4", "-o", "marked.mp4"], "pipe.mp4: is a pipe or a device; give a file in its place"),
        (["film.mp4", "-o", "pipe.mp4", "--overwrite"], "output pipe.mp4: is not a regular file; name another"),
        (["film.mp4", "-o", "n" * 300 + ".mp4"], "its name is too long for the file system; give it"),
        (["film.mp4", "-o", "film.mp4/marked.mp4"], "output film.mp4: cannot be written"),
    ],
)
def test_bad_arguments_are_named(onrw, folder, monkeypatch, words, reason):
    monkeypatch.chdir(folder)
    if not Path("pipe.mp4").exists():
        os.mkfifo("pipe.mp4")
    for message in (["--text", "Ann"], []):  # an id of its own follows from the file
        code, _, err = onrw("embed", *words, *message, *QUICK)
        assert code == 2 and reason in err

"""Video files: frames are changed one by one, everything else of the file is kept."""

from __future__ import annotations

import builtins
import errno
import io
from contextlib import contextmanager
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from onrw_core.imaging.video import VideoError, _pixels, is_video, read_frames, sample, transcode

av = pytest.importorskip("av")

COUNT, RATE, WIDTH, HEIGHT = 12, 8, 96, 64


def levels(number: int) -> np.ndarray:
    """Frame `number`: blocks of colours that move by 4 pixels."""
    blocks = np.random.default_rng(0).integers(40, 216, (HEIGHT // 16, WIDTH // 16, 3)).astype(np.uint8)
    return np.roll(blocks.repeat(16, 0).repeat(16, 1), 4 * number, 1)


def write(path, *, sound="aac", size=(HEIGHT, WIDTH), rotation=0, **tags):
    with av.open(path, "w") as output:
        video = output.add_stream("libx264", rate=RATE, options={"crf": "4", "g": "4"})
        video.height, video.width, video.pix_fmt = *size, "yuv420p"
        for name, value in tags.items():
            setattr(video.codec_context, name, value)
        if rotation:
            video.set_display_rotation(rotation)
        audio = output.add_stream(sound, rate=48000, layout="mono") if sound else None
        output.metadata.update({"title": "A film", "artist": "Ann"})
        output.set_chapters(
            [{"id": 1, "start": 0, "end": 500, "time_base": Fraction(1, 1000), "metadata": {"title": "one"}}]
        )
        for number in range(COUNT):
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(levels(number)[: size[0], : size[1]]), format="rgb24"
            )
            frame.pts = number * (number + 9) // 10  # the distances of the frames differ
            frame.time_base = Fraction(1, RATE)
            output.mux(video.encode(frame))
        output.mux(video.encode())
        if audio:
            noise = np.random.default_rng(1).normal(0, 0.1, (1, 1024)).astype(np.float32)
            for number in range(40):
                block = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
                block.rate, block.pts = 48000, 1024 * number
                output.mux(audio.encode(block))
            output.mux(audio.encode())
    return path


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write(tmp_path_factory.mktemp("film") / "film.mov", color_range=1, colorspace=1)


def times(path):
    with av.open(path) as container:
        return [float(frame.time) for frame in container.decode(video=0)]


def packets(path, kind):
    with av.open(path) as container:
        return [bytes(packet) for packet in container.demux(**{kind: 0}) if packet.size]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_frames_are_changed_and_the_rest_is_kept(film, tmp_path, suffix):
    seen = []

    def brighter(frames):
        for frame in frames:
            seen.append(frame)
            yield (frame + 12 / 255).clamp(0, 1)

    result = tmp_path / f"result{suffix}"
    assert transcode(film, result, brighter, crf=4) == COUNT
    with av.open(result) as container:
        assert container.metadata["title"] == "A film"
        assert container.chapters()[0]["metadata"]["title"] == "one"
        frames = list(container.decode(video=0))
    assert packets(result, "audio") == packets(film, "audio")
    start, before = times(result)[0], times(film)
    assert [time - start for time in times(result)] == pytest.approx(before, abs=0.002)  # a container may delay all
    assert int(frames[0].colorspace) == 1 and int(frames[0].color_range) == 1
    for number, (frame, before) in enumerate(zip(frames, seen, strict=True)):
        assert np.abs(before.permute(1, 2, 0).numpy() * 255 - levels(number)).mean() < 8  # chroma at half resolution
        change = _pixels(frame).permute(1, 2, 0).numpy() * 255 - before.permute(1, 2, 0).numpy() * 255
        assert change.mean() == pytest.approx(12, abs=0.3) and np.abs(change - 12).mean() < 3.5


def test_a_turned_video_becomes_upright(tmp_path):
    film = write(tmp_path / "turned.mov", rotation=90, sound=None)
    transcode(film, tmp_path / "upright.mp4", lambda frames: frames, crf=4)
    with av.open(tmp_path / "upright.mp4") as container:
        frame = next(container.decode(video=0))
    assert (frame.width, frame.height, int(frame.rotation)) == (HEIGHT, WIDTH, 0)
    turned = sample(film, 1)
    assert turned.shape == (1, 3, WIDTH, HEIGHT)
    expected = np.rot90(levels(0), 1)
    assert np.abs(frame.to_ndarray(format="rgb24") - expected.astype(float)).mean() < 8


def test_odd_sizes_keep_their_pixels(tmp_path):
    film = tmp_path / "odd.mkv"
    with av.open(film, "w") as output:
        video = output.add_stream("libx264", rate=RATE, options={"crf": "4"})
        video.height, video.width, video.pix_fmt = 65, 75, "yuv444p"
        output.mux(video.encode(av.VideoFrame.from_ndarray(np.full((65, 75, 3), 99, np.uint8), format="rgb24")))
        output.mux(video.encode())
    transcode(film, tmp_path / "result.mp4", lambda frames: frames)
    assert sample(tmp_path / "result.mp4", 3).shape == (1, 3, 65, 75)


def test_sampled_frames_are_spread_over_the_video(film):
    numbers = []
    for frame in sample(film, 3):
        errors = [np.abs(frame.permute(1, 2, 0).numpy() * 255 - levels(number)).mean() for number in range(COUNT)]
        numbers.append(int(np.argmin(errors)))
    assert numbers == sorted(set(numbers)) and numbers[0] < 6 and numbers[-1] > 7
    assert len(sample(film, 64)) <= COUNT


def test_an_error_leaves_nothing_behind(film, tmp_path):
    def broken(frames):
        yield next(frames)
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        transcode(film, tmp_path / "result.mp4", broken)
    (tmp_path / "there.mp4").write_bytes(b"film")
    with pytest.raises(FileExistsError):
        transcode(film, tmp_path / "there.mp4", lambda frames: frames)
    assert [path.name for path in tmp_path.iterdir()] == ["there.mp4"]
    assert (tmp_path / "there.mp4").read_bytes() == b"film"


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda path: path, "no such file"),
        (lambda path: path.write_bytes(b"no film" * 99), "cannot be processed"),
        (lambda path: write(path, color_trc=16), "high dynamic range"),
        (lambda path: write(path, size=(32, 96)), "at least 64"),
    ],
)
def test_videos_that_cannot_be_taken_are_named(tmp_path, make, reason):
    film = tmp_path / "film.mp4"
    make(film)
    with pytest.raises(VideoError, match=rf"film\.mp4: .*{reason}"):
        transcode(film, tmp_path / "result.mp4", lambda frames: frames)


def test_streams_and_suffixes_that_do_not_fit_are_refused(film, tmp_path):
    with pytest.raises(VideoError, match=r"result\.webm: cannot hold the audio of film\.mov \(aac\); write an \.mkv"):
        transcode(film, tmp_path / "result.webm", lambda frames: frames)
    with pytest.raises(VideoError, match="unknown suffix '.avi'"):
        transcode(film, tmp_path / "result.avi", lambda frames: frames)
    assert is_video("a/FILM.MP4") and not is_video("a/film.png")


def test_without_the_library_the_remedy_is_named(film, tmp_path, monkeypatch):
    imported = builtins.__import__

    def missing(name, *rest):
        if name == "av":
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(VideoError, match=r"pip install 'onrw\[video\]'"):
        sample(film, 1)


def test_webm(tmp_path):
    film = write(tmp_path / "film.mkv", sound=None)
    assert transcode(film, tmp_path / "film.webm", lambda frames: frames, crf=20) == COUNT
    assert torch.isfinite(sample(tmp_path / "film.webm", 2)).all()


PLAYLISTS = {
    "ffconcat": "ffconcat version 1.0\nfile private.mp4\n",
    "concat": "file private.mp4\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nprivate.mp4\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet '
    'mimeType="video/mp4"><Representation id="0" bandwidth="1"><BaseURL>private.mp4</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
}


@pytest.mark.parametrize("content", PLAYLISTS.values(), ids=PLAYLISTS)
@pytest.mark.parametrize("name", ["film.mp4", "film.m3u8"])
def test_a_video_cannot_be_made_of_other_files(film, tmp_path, monkeypatch, content, name):
    """Whatever a received file is, and whatever its name: the frames of another file are not its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "private.mp4").write_bytes(film.read_bytes())
    (tmp_path / name).write_text(content)
    for read in (
        lambda: sample(name, 2),
        lambda: list(read_frames(name)),
        lambda: transcode(name, "result.mp4", lambda frames: frames),
    ):
        with pytest.raises(VideoError, match=f"^{name}: (is no MP4, MOV, MKV or WebM|cannot be processed)"):
            read()
    assert not (tmp_path / "result.mp4").exists()


def test_a_name_that_is_a_protocol_is_a_files_name(film, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "private.mp4").write_bytes(film.read_bytes())
    (tmp_path / "concat:private.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match="cannot be processed"):
        sample("concat:private.mp4", 1)
    (tmp_path / "concat:private.mp4").write_bytes(film.read_bytes())
    (tmp_path / "private.mp4").unlink()
    assert len(sample("concat:private.mp4", 1)) == 1


def with_reference(content: bytes, other: str) -> bytes:
    """A MOV file whose samples lie in another file: its data reference names that in place of the file itself."""
    name = other.encode()
    alias = bytearray(150)
    alias[8:10] = (2).to_bytes(2, "big")  # the version of an alias record
    alias[50], alias[51 : 51 + len(name)] = len(name), name
    alias[131] = alias[133] = 1  # in the same folder
    path = b"/x/" + name
    path += b"\0" * (len(path) % 2)
    alias += (2).to_bytes(2, "big") + len(path).to_bytes(2, "big") + path + b"\xff\xff\0\0"
    reference = (len(alias) + 12).to_bytes(4, "big") + b"alis" + bytes(4) + bytes(alias)
    at = content.index(b"dref") + 12  # after the version and the number of entries
    grown = len(reference) - int.from_bytes(content[at : at + 4], "big")
    result = bytearray(content[:at] + reference + content[at + int.from_bytes(content[at : at + 4], "big") :])
    for box in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        size = content.index(box) - 4
        result[size : size + 4] = (int.from_bytes(content[size : size + 4], "big") + grown).to_bytes(4, "big")
    return bytes(result)


def test_a_movie_that_refers_to_another_file_does_not_open_it(tmp_path, monkeypatch):
    """Of a version of libav that follows such references, this shows that it does so where it is told to only."""
    monkeypatch.chdir(tmp_path)
    film = write(tmp_path / "private.mov", sound=None)
    (tmp_path / "film.mov").write_bytes(with_reference(film.read_bytes(), "private.mov"))
    content = (tmp_path / "film.mov").read_bytes()
    data = content.index(b"mdat")
    size = int.from_bytes(content[data - 4 : data], "big")
    (tmp_path / "film.mov").write_bytes(content[: data + 4] + bytes(size - 8) + content[data - 4 + size :])
    with av.open("film.mov", container_options={"enable_drefs": "1"}) as container:
        assert sum(1 for _ in container.decode(video=0)) == COUNT  # the samples of private.mov
    with pytest.raises(VideoError):
        sample("film.mov", 2)


def test_tags_that_mp4_does_not_have_are_named(film, tmp_path, caplog):
    with av.open(film) as source, av.open(tmp_path / "own.mkv", "w") as output:
        copy = output.add_stream_from_template(source.streams.video[0])
        output.metadata.update({"title": "A film", "MYTAG": "mine"})
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                output.mux(packet)
    transcode(tmp_path / "own.mkv", tmp_path / "result.mkv", lambda frames: frames)
    assert not caplog.records
    transcode(tmp_path / "own.mkv", tmp_path / "result.mp4", lambda frames: frames)
    assert caplog.messages == [
        f"{tmp_path / 'result.mp4'}: these metadata of the input are lost, an .mkv would hold them: MYTAG"
    ]


def test_metadata_that_are_no_text_are_copied(film, tmp_path):
    content = film.read_bytes()
    assert content.count(b"A film") == 1
    (tmp_path / "old.mov").write_bytes(content.replace(b"A film", b"A f\xeflm"))  # Latin-1
    assert len(sample(tmp_path / "old.mov", 2)) == 2
    transcode(tmp_path / "old.mov", tmp_path / "result.mov", lambda frames: frames)
    assert b"A f\xeflm" in (tmp_path / "result.mov").read_bytes()


def test_the_default_track_stays_the_default(tmp_path):
    played = av.stream.Disposition.default | av.stream.Disposition.forced
    with av.open(tmp_path / "a.mkv", "w") as output:
        video = output.add_stream("libx264", rate=RATE)
        video.height, video.width, video.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        tracks = [output.add_stream("aac", rate=48000, layout="mono") for _ in range(2)]
        tracks[0].disposition, tracks[1].disposition = av.stream.Disposition(0), played
        output.mux(video.encode(av.VideoFrame.from_ndarray(levels(0), format="rgb24")))
        output.mux(video.encode())
        for track in tracks:
            block = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            block.rate, block.pts = 48000, 0
            output.mux(track.encode(block))
            output.mux(track.encode())
    transcode(tmp_path / "a.mkv", tmp_path / "b.mkv", lambda frames: frames)
    with av.open(tmp_path / "b.mkv") as result:
        assert [stream.disposition for stream in result.streams.audio] == [av.stream.Disposition(0), played]


def test_a_video_that_changes_its_size_is_named(tmp_path):
    with av.open(tmp_path / "a.mkv", "w") as output:
        stream = output.add_stream("mjpeg", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        for number in range(4):
            image = Image.fromarray(levels(number)).resize((WIDTH * (1 + number // 2), HEIGHT * (1 + number // 2)))
            content = io.BytesIO()
            image.save(content, "JPEG")
            packet = av.Packet(content.getvalue())
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, RATE), True
            packet.pts = packet.dts = number
            output.mux(packet)
    with pytest.raises(VideoError, match=r"a\.mkv: changes its size within the video; split it first"):
        sample(tmp_path / "a.mkv", 4)
    with pytest.raises(VideoError, match=r"a\.mkv: changes its size within the video; split it first"):
        transcode(tmp_path / "a.mkv", tmp_path / "b.mkv", lambda frames: frames)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_full_disk_is_named_and_no_fault_of_the_input(film, tmp_path, monkeypatch, suffix, capfd):
    full = OSError(errno.ENOSPC, "No space left on device")

    class Full(io.FileIO):
        def write(self, content):
            if self.tell() + len(content) > 4096:
                raise full
            return super().write(content)

    @contextmanager
    def on_a_full_disk(path, **options):
        with Full(tmp_path / "unfinished", "w") as file:
            yield file

    monkeypatch.setattr("onrw_core.imaging.video.atomic_write", on_a_full_disk)
    with pytest.raises(OSError) as caught:
        transcode(film, tmp_path / f"result{suffix}", lambda frames: frames)
    assert caught.value is full and not capfd.readouterr().err

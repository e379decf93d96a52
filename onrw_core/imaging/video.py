"""Reading and writing video files (MP4, MOV, MKV, WebM) by PyAV, the package `av` of the extra [video].

One video stream is decoded, changed frame by frame and encoded again; audio, subtitles, chapters and metadata are
copied unchanged. Frames are 8-bit RGB, upright. They are converted from and to YUV by the colour space and range of the
file, whose tags are kept. No more than the frames in the decoder and the encoder are held in memory.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from .atomic import Undo, atomic_write
from .pixels import MIN_SIDE
from .regular import check_regular
from .rounding import LEVELS, to_8bit

__all__ = ["CRF", "SUFFIXES", "VideoError", "is_video", "read_frames", "sample", "transcode", "write_frames"]

# Suffix -> container and encoder. WebM admits neither H.264 nor AAC.
SUFFIXES = {
    ".mp4": ("mp4", "libx264"),
    ".mov": ("mov", "libx264"),
    ".mkv": ("matroska", "libx264"),
    ".webm": ("webm", "libvpx-vp9"),
}
CRF = 18  # constant rate factor: the one below which H.264 is usually called visually lossless
KEPT_FORMATS = ("yuv420p", "yuv422p", "yuv444p")  # 8 bit; others become yuv420p
HIGH_DYNAMIC_RANGE = (16, 18)  # transfer characteristics of ITU-T H.273: PQ and HLG
DEFAULT_RATE = Fraction(25)  # frames a second, where a file states none
# The content of a file, not its suffix, decides what reads it: a "film.mp4" that is a playlist would be made of other
# files. So libav may use no readers but these, which are of the containers in `SUFFIXES` and open no second file.
CONFINED = {"format_whitelist": "mov,matroska", "protocol_whitelist": "file"}
ANY_BYTES = {"metadata_errors": "surrogateescape"}  # texts that are no UTF-8, as of old cameras, are copied as they are
# Keys by which a container or a program describes the file that it writes.
OF_THE_FILE = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration"}

logger = logging.getLogger(__name__)


class VideoError(ValueError):
    """A video that cannot be read or written; the message names the file, the reason and the remedy."""


@dataclass(frozen=True)
class _Picture:
    """What a video's first frame tells of all: degrees of rotation, pixel format, and the tags of its colours."""

    rotation: int
    format: str
    colorspace: int
    color_range: int
    color_primaries: int
    color_trc: int


def is_video(path: str | os.PathLike) -> bool:
    """Whether a file has the suffix of a video."""
    return Path(path).suffix.lower() in SUFFIXES


def transcode(
    source: str | os.PathLike,
    target: str | os.PathLike,
    change: Callable[[Iterator[Tensor]], Iterable[Tensor]],
    *,
    crf: int = CRF,
    overwrite: bool = False,
    commit: Callable[[Path], Undo] = lambda written: None,
) -> int:
    """Write a video whose frames are changed, atomically, in the format of its suffix.

    Args:
        source: A video file.
        target: The file to write, H.264 in MP4, MOV and MKV, VP9 in WebM.
        change: Frames to changed frames, one by one and in order; each (3, H, W) in [0, 1], upright.
        crf: Constant rate factor of the encoder, 0 to 51; lower is better and larger.
        overwrite: Replace an existing file.
        commit: Called with the complete file before it gets its name; see `atomic_write`.

    Returns:
        The number of frames.

    Raises:
        VideoError: No video, a damaged one, high dynamic range, or streams that the target's format cannot hold.
        FileExistsError: `target` exists, and `overwrite` is false.
    """
    source, target = Path(source), Path(target)
    if target.suffix.lower() not in SUFFIXES:
        raise VideoError(f"{target}: unknown suffix {target.suffix!r}; use one of {', '.join(SUFFIXES)}")
    suffix = target.suffix.lower()
    with _opened(source) as container, atomic_write(target, overwrite=overwrite, commit=commit) as file:
        options = _flags(container, suffix)
        with _written(file, SUFFIXES[suffix][0], options) as (output, check):
            count = _Transcoding(source, target, container, output, crf).run(change, check)
        file.flush()
        _warn_of_lost(container, Path(file.name), target)
    return count


def sample(path: str | os.PathLike, count: int) -> Tensor:
    """Frames of a video at even distances of time, (F, 3, H, W) in [0, 1], upright.

    Args:
        path: A video file.
        count: At most so many, fewer of shorter videos.

    Raises:
        VideoError: No video, or a damaged one.
    """
    path = Path(path)
    with _opened(path) as container:
        stream = container.streams.video[0]
        start = float((stream.start_time or 0) * stream.time_base)
        length = _seconds(container, stream)
        frames: dict[Any, Tensor] = {}
        for number in range(count):
            time = start + (number + 0.5) / count * length
            container.seek(int(time / stream.time_base), stream=stream)  # to the key frame before it
            frame = None
            for frame in container.decode(stream):
                if frame.time is None or frame.time >= time:
                    break
            if frame is not None:
                frames.setdefault(frame.pts, _pixels(frame))
    if not frames:
        raise VideoError(f"{path}: has no frame that can be decoded; obtain the file again")
    if len({frame.shape for frame in frames.values()}) > 1:
        raise _changes_size(path)
    return torch.stack(list(frames.values()))


def read_frames(path: str | os.PathLike) -> Iterator[Tensor]:
    """The frames of a video in order, each (3, H, W) in [0, 1], upright.

    Raises:
        VideoError: No video, or a damaged one.
    """
    with _opened(Path(path)) as container:
        yield from map(_pixels, container.decode(container.streams.video[0]))


def write_frames(path: str | os.PathLike, frames: Iterable[Tensor], rate: Fraction, *, crf: int = CRF) -> None:
    """Write frames of even sides, each (3, H, W) in [0, 1], as a video in H.264 without sound.

    Args:
        path: The file, replaced if it exists; one of `SUFFIXES`.
        frames: In order.
        rate: Frames a second.
        crf: See `transcode`.
    """
    container, encoder = SUFFIXES[Path(path).suffix.lower()]
    with atomic_write(path) as file, _written(file, container, {}) as (output, check):
        stream = output.add_stream(encoder, rate=rate, options={"crf": str(crf)})
        stream.pix_fmt = KEPT_FORMATS[0]
        for number, frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width = frame.shape[-2:]
            output.mux(stream.encode(_frame(frame).reformat(format=stream.pix_fmt, interpolation=_interpolation())))
            check()
        output.mux(stream.encode())


class _Transcoding:
    """One run of `transcode`."""

    def __init__(self, source: Path, target: Path, container: Any, output: Any, crf: int) -> None:
        self.source, self.target = source, target
        self.container, self.output = container, output
        self.video = container.streams.video[0]
        self.picture = _picture(source)
        self.crf = crf
        self.waiting: deque = deque()  # decoded frames whose changed ones are still to come
        self.end = 0  # presentation time of the next frame where a file states none
        self._copy_metadata()
        self.encoder = self._add_encoder()
        self.copies = self._add_copies()

    def run(self, change: Callable[[Iterator[Tensor]], Iterable[Tensor]], check: Callable[[], None]) -> int:
        count = 0
        for changed in change(self._frames()):
            self.output.mux(self.encoder.encode(self._encodable(changed, self.waiting.popleft())))
            check()
            count += 1
        self.output.mux(self.encoder.encode())
        if not count:
            raise VideoError(f"{self.source}: has no frame that can be decoded; obtain the file again")
        return count

    def _frames(self) -> Iterator[Tensor]:
        """The video's frames; packets of other streams are copied as they come."""
        for packet in self.container.demux([self.video, *(stream for stream, _ in self.copies)]):
            if packet.stream is self.video:
                for frame in packet.decode():
                    self.waiting.append(frame)
                    yield _pixels(frame)
            elif packet.dts is not None:
                packet.stream = next(copy for stream, copy in self.copies if stream is packet.stream)
                self.output.mux(packet)

    def _encodable(self, changed: Tensor, decoded: Any) -> Any:
        """A changed frame as the encoder takes it, with the time of the decoded one."""
        if changed.shape[-2:] != (self.encoder.height, self.encoder.width):
            raise _changes_size(self.source)
        frame = _frame(changed).reformat(
            format=self.encoder.pix_fmt,
            dst_colorspace=self.picture.colorspace,
            dst_color_range=self.picture.color_range,
            interpolation=_interpolation(),
        )
        frame.pts = self.end if decoded.pts is None else decoded.pts
        frame.time_base = decoded.time_base or self.video.time_base
        self.end = frame.pts + (decoded.duration or 1)
        return frame

    def _copy_metadata(self) -> None:
        self.output.metadata.update(self.container.metadata)
        if chapters := self.container.chapters():
            self.output.set_chapters(chapters)

    def _add_encoder(self) -> Any:
        picture, video = self.picture, self.video
        name = SUFFIXES[self.target.suffix.lower()][1]
        rate = video.average_rate or video.guessed_rate or DEFAULT_RATE
        options = {"crf": str(self.crf)} | ({"b": "0"} if name == "libvpx-vp9" else {})
        stream = self.output.add_stream(name, rate=rate, options=options)
        turned = picture.rotation % 180 != 0
        width, height = (video.height, video.width) if turned else (video.width, video.height)
        stream.width, stream.height = width, height
        stream.pix_fmt = picture.format if picture.format in KEPT_FORMATS else "yuv420p"
        if stream.pix_fmt == "yuv420p" and (width % 2 or height % 2):
            stream.pix_fmt = "yuv444p"  # chroma of half size needs even sides
        context = stream.codec_context
        context.time_base = video.time_base
        for tag in ("colorspace", "color_range", "color_primaries", "color_trc"):
            setattr(context, tag, getattr(picture, tag))
        if video.sample_aspect_ratio:
            ratio = video.sample_aspect_ratio
            context.sample_aspect_ratio = 1 / ratio if turned else ratio
        stream.metadata.update(video.metadata)
        return stream

    def _add_copies(self) -> list[tuple[Any, Any]]:
        """Pairs of the other streams and their copies."""
        copies = []
        for stream in self.container.streams:
            if stream is self.video:
                continue
            if stream.type not in ("audio", "subtitle"):
                if stream.type != "data" or not self.container.chapters():  # MOV has its chapters in such a stream
                    logger.warning("%s: a stream of type %s is left out", self.source, stream.type)
                continue
            try:
                copy = self.output.add_stream_from_template(stream)
            except ValueError as error:
                codec = getattr(stream, "name", None)  # none where the library does not know it
                remedy = "write an .mkv" if codec else "convert it, or remove that stream"
                raise VideoError(
                    f"{self.target}: cannot hold the {stream.type} of {self.source.name} "
                    f"({codec or 'of an unknown kind'}); {remedy}"
                ) from error
            copy.metadata.update(stream.metadata)
            copy.disposition = stream.disposition  # which one is played by default, which subtitles are forced
            copies.append((stream, copy))
        return copies


def _changes_size(path: Path) -> VideoError:
    return VideoError(f"{path}: changes its size within the video; split it first")


def _warn_of_lost(source: Any, written: Path, target: Path) -> None:
    """Name the metadata of a video that are not in its result: MP4 and MOV have a list of keys."""
    with _container(written) as result:
        there = {key.lower() for key in result.metadata} | OF_THE_FILE
    lost = sorted(key for key in source.metadata if key.lower() not in there)
    if lost:
        logger.warning("%s: these metadata of the input are lost, an .mkv would hold them: %s", target, ", ".join(lost))


def _interpolation() -> Any:
    """How chroma is resampled: with full accuracy, as otherwise frames become darker by one level."""
    modes = _library().video.reformatter.Interpolation
    return modes.BILINEAR | modes.ACCURATE_RND | modes.FULL_CHR_H_INT | modes.FULL_CHR_H_INP


def _flags(source: Any, suffix: str) -> dict[str, str]:
    """Options of the container: the index of MP4 and MOV comes first, and keys such as com.apple.* stay as they are."""
    if suffix not in (".mp4", ".mov"):
        return {}
    own_keys = any("." in key for key in source.metadata)
    return {"movflags": "+faststart" + ("+use_metadata_tags" if own_keys else "")}


def _library() -> Any:
    """PyAV.

    Raises:
        VideoError: It is not installed.
    """
    try:
        import av
    except ImportError:
        raise VideoError("videos need the package av; install it with: pip install 'onrw[video]'") from None
    return av


class _Writer:
    """A file that keeps its first error and takes nothing after it.

    PyAV prints the tracebacks of errors that follow another, and raises one of its own that hides it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.name, self.at = file, file.name, 0
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        self._try(lambda: self.file.write(content))
        return len(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._try(lambda: self.file.seek(offset, whence))
        return self.at

    def tell(self) -> int:
        return self.at

    def check(self) -> None:
        """Raise the error that was kept."""
        if self.error is not None:
            raise self.error

    def _try(self, action: Callable[[], int]) -> None:
        if self.error is None:
            try:
                action()
                self.at = self.file.tell()
            except OSError as error:
                self.error = error


@contextmanager
def _written(file: BinaryIO, container: str, options: dict[str, str]) -> Iterator[tuple[Any, Callable[[], None]]]:
    """A container for writing to a file, and what raises an error of that file.

    Raises:
        OSError: The file cannot be written.
    """
    writer = _Writer(file)
    try:
        with _library().open(writer, "w", format=container, options=options, **ANY_BYTES) as output:
            yield output, writer.check
    finally:
        writer.check()  # in place of the library's errors that follow from it


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A video file, opened for reading; errors of the library name it."""
    av = _library()
    check_regular(path, VideoError)
    try:
        with _container(path) as container:
            if not container.streams.video:
                raise VideoError(f"{path}: has no video stream; give a video")
            container.streams.video[0].thread_type = "AUTO"
            yield container
    except av.error.FFmpegError as error:
        reason = error.strerror or error
        raise VideoError(f"{path}: cannot be processed ({reason}); obtain the file again, or convert it") from error


def _container(path: Path) -> Any:
    av = _library()
    try:
        # An absolute path: a file may be named "concat:private.mp4", which libav understands as a protocol.
        return av.open(os.path.abspath(path), container_options=CONFINED, **ANY_BYTES)
    except av.error.ArgumentError:
        raise VideoError(f"{path}: is no MP4, MOV, MKV or WebM, whatever its name; convert it to one") from None


def _picture(path: Path) -> _Picture:
    with _opened(path) as container:
        frame = next(container.decode(video=0), None)
    if frame is None:
        raise VideoError(f"{path}: has no frame that can be decoded; obtain the file again")
    if min(frame.width, frame.height) < MIN_SIDE:
        raise VideoError(f"{path}: is {frame.width}x{frame.height} pixels; at least {MIN_SIDE} on each side are needed")
    if int(frame.color_trc) in HIGH_DYNAMIC_RANGE:
        raise VideoError(f"{path}: has high dynamic range, which 8 bits cannot hold; convert it to BT.709 first")
    if frame.interlaced_frame:
        raise VideoError(f"{path}: is interlaced; deinterlace it first")
    if frame.format.components[0].bits > 8:
        logger.warning("%s: has more than 8 bits per channel; the result has 8", path)
    return _Picture(
        int(frame.rotation),
        frame.format.name,
        int(frame.colorspace),
        int(frame.color_range),
        int(frame.color_primaries),
        int(frame.color_trc),
    )


def _frame(image: Tensor) -> Any:
    """A frame for the encoder."""
    levels = rearrange(to_8bit(image.cpu()), "c h w -> h w c").contiguous().numpy()
    return _library().VideoFrame.from_ndarray(levels, format="rgb24")


def _pixels(frame: Any) -> Tensor:
    """RGB of a decoded frame, upright: (3, H, W) in [0, 1]."""
    levels = frame.to_ndarray(format="rgb24", interpolation=_interpolation())
    turned = np.rot90(levels, round(frame.rotation / 90))  # counter-clockwise, both
    return torch.from_numpy(rearrange(turned, "h w c -> c h w").copy()).float().div_(LEVELS)


def _seconds(container: Any, stream: Any) -> float:
    """Duration of a video."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1e6

"""``onrw embed`` on videos: each is one clip with one message, marked frame by frame while it is read and written.

Videos come one after the other. Audio, subtitles, chapters and metadata are copied (`imaging.video`). The message is
read back from frames of the written file.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from ..extractors.reading import Reading
from ..imaging.atomic import Undo, remove_abandoned
from ..imaging.regular import open_regular
from ..imaging.video import SUFFIXES, VideoError, is_video, sample, transcode
from ..payload.message import Message, bit_string
from ..payload.registry import Registry, perceptual_hash
from ..pipeline import Marked
from .common import Batch, Progress, p_value
from .extract import FRAMES
from .folders import check_free, check_name, make_folder
from .kept import check_results, sides_of
from .marker import Marker
from .messages import VIDEO, Messages
from .output import json_line, say

__all__ = ["embed_videos"]

BLOCK = 2**20  # bytes that are hashed at a time


def embed_videos(
    arguments: argparse.Namespace, marker: Marker, given: Message | None, registry: Registry | None
) -> int:
    """Mark the videos of a command; returns its exit code.

    Args:
        arguments: Of the command.
        marker: Marks their frames.
        given: The message; None for an id of its own for each video.
        registry: Where the ids are recorded, or None.

    Raises:
        ValueError: Photos among the videos, an option that is for photos alone, or results that cannot be written.
    """
    for option in ("ray", "write_label", "spare"):
        if getattr(arguments, option):
            raise ValueError(f"--{option.replace('_', '-')}: is for photos alone; leave it out for videos")
    jobs = _jobs(arguments.inputs, arguments.output, arguments.overwrite)
    check_results(arguments, [("output", result) for _, result in jobs], others=sides_of(arguments.registry))
    for folder in {result.parent for _, result in jobs}:
        make_folder(folder)
        remove_abandoned(folder)
    messages = Messages(given, marker.key, VIDEO, marker.extractor.num_bits, None, registry)
    batch = Batch(len(jobs))
    for source, result in jobs:
        place = batch.place()
        try:
            message = given or messages.take(_digest(source), partial(_look, source))
            figures, reading = _transcoded(arguments, marker, source, result, message, registry, own=given is None)
            batch.unreadable += not reading.carries(message)
            _show(arguments, place, source, result, message, figures, reading)
        except Exception as error:
            batch.failed(source, error)
    return batch.code


@dataclass
class _Figures:
    """The figures of a clip's frames.

    Attributes:
        count: Number of frames.
        quality: Least SSIMULACRA2, before compression.
        worst: Largest visible error at the worst place.
        psnr: Sum over the frames, dB.
        first: Seconds of the first frame.
        seconds: Of all frames.
    """

    count: int = 0
    quality: float = 100.0
    worst: float = 0.0
    psnr: float = 0.0
    first: float = 0.0
    seconds: float = 0.0

    def add(self, marked: Marked) -> None:
        self.count += 1
        self.quality = min(self.quality, marked.judgement.quality)
        self.worst = max(self.worst, marked.judgement.worst)
        self.psnr += marked.psnr
        self.first = self.first or marked.seconds
        self.seconds += marked.seconds

    @property
    def per_frame(self) -> float:
        """Seconds of each frame after the first."""
        return (self.seconds - self.first) / max(1, self.count - 1)


def _transcoded(
    arguments: argparse.Namespace,
    marker: Marker,
    source: Path,
    result: Path,
    message: Message,
    registry: Registry | None,
    own: bool,
) -> tuple[_Figures, Reading]:
    """Write a video with its frames marked, which is read and registered before it gets its name."""
    figures = _Figures()
    readings: list[Reading] = []

    def note(written: Path) -> Undo:
        frames = sample(written, FRAMES)
        readings.append(marker.extractor.for_bits(len(message.bits)).read(frames, marker.key))
        if registry is None:
            return None
        look, text = perceptual_hash(frames[0]), arguments.note
        return registry.add_for_result(
            message.value, file_hash=_digest(written), perceptual_hash=look, note=text, own=own
        )

    with Progress(source.name) as progress:

        def marked(frames: Iterator[Tensor]) -> Iterator[Tensor]:
            for each in marker.mark_clip(frames, source, message, progress):
                figures.add(each)
                progress.frame(figures.count)
                yield each.image

        transcode(source, result, marked, crf=arguments.crf, overwrite=arguments.overwrite, commit=note)
    return figures, readings[0]


def _show(
    arguments: argparse.Namespace,
    place: str,
    source: Path,
    result: Path,
    message: Message,
    figures: _Figures,
    reading: Reading,
) -> None:
    """Print the result of a video."""
    readable = reading.carries(message)
    if arguments.json:
        json_line(
            input=str(source),
            output=str(result),
            bits=bit_string(message.bits),
            frames=figures.count,
            ssimulacra2=round(figures.quality, 2),
            worst=round(figures.worst, 2),
            psnr=round(figures.psnr / figures.count, 3),
            seconds=round(figures.seconds, 2),
            seconds_per_frame=round(figures.per_frame, 2),
            detected=reading.detected,
            readable=readable,
            log10_p=round(reading.log10_p, 2),
        )
        return
    shown = f"{len(message.bits)} raw bits" if message.kind == "raw" else f"{message.kind} {message.value}"
    if arguments.verbose:
        shown += f", bits {bit_string(message.bits)}"
    say(
        f"{place}{source} -> {result}: {shown}, {figures.count} frames, SSIMULACRA2 at least {figures.quality:.1f} "
        f"before compression, {figures.per_frame:.1f} s a frame after the first, "
        f"{'read back' if readable else 'NOT read back'} ({p_value(reading.log10_p)})"
    )


def _look(video: Path) -> str:
    """What the registry compares videos by: the `perceptual_hash` of the first of the frames that are read."""
    return perceptual_hash(sample(video, FRAMES)[0])


def _jobs(inputs: list[str], output: str, overwrite: bool) -> list[tuple[Path, Path]]:
    """Pairs of videos and results; several results go into a folder."""
    sources, target = [Path(name) for name in inputs], Path(output)
    for source in sources:
        if not is_video(source):
            raise ValueError(f"{source}: is no video; mark photos and videos in two runs")
    if len(sources) > 1 or os.path.isdir(target) or output.endswith(("/", os.sep)):
        jobs = [(source, target / source.name) for source in sources]
    else:
        jobs = [(sources[0], target)]
    seen: set[Path] = set()
    originals = {os.path.realpath(source): source for source in sources}
    for source, result in jobs:
        if not is_video(result):
            raise ValueError(f"output {result}: unknown file format; use one of the suffixes {', '.join(SUFFIXES)}")
        check_name(result)
        written = Path(os.path.realpath(result))  # results that exist may be links to one file
        if written in seen:
            raise ValueError(f"output {result}: is the result of two videos; mark them in two runs")
        seen.add(written)
        if originals.get(str(written), source) != source:
            raise ValueError(f"output {result}: would replace the input {originals[str(written)]}; name another folder")
        check_free(source, result, lambda _: overwrite)
    return jobs


def _digest(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open_regular(path, VideoError) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()

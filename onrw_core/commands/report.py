"""What is known about one image, in words for people: the report of ``onrw verify`` and ``onrw serve``.

A report says what was found, how sure that is, where the image lay in the marked frame, what the public label and
the metadata of the file say, and what the registry knows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..api import detect
from ..extractors.keyed.extractor import KeyedExtractor
from ..extractors.reading import Detection, Pose, Reading
from ..imaging import files
from ..imaging.source_type import read_source_type
from ..payload.keys import Key
from ..payload.registry import Registry
from .detect import MEANINGS
from .lookup import COPIED, Known, known

__all__ = ["Examiner", "Report", "certainty", "label", "message", "one_in", "position"]

SAME = {
    True: f"no: {COPIED}",
    False: "yes, it looks like the registered image",
    None: "cannot be told",
}
"""Whether an image is the registered one, by `Known.copied`."""
UPRIGHT = 0.05  # degrees of rotation below which an image counts as not turned
UNSCALED = 0.005  # relative change of size below which it counts as not scaled


@dataclass(frozen=True)
class Report:
    """The report of an image.

    Attributes:
        name: Name of its file.
        image: The decoded file.
        key: Fingerprint of the key; None without a key.
        reading: The reading with that key; None without a key.
        known: Entries of the registry; None without a registry.
        public: The public layer, which needs no key.
    """

    name: str
    image: files.DecodedImage
    key: str | None
    reading: Reading | None
    known: Known | None
    public: Detection

    @property
    def found(self) -> bool:
        """Whether there is a watermark, of this key or of an unknown one."""
        return self.reading is not None and self.reading.detected or self.public.found

    @property
    def headline(self) -> str:
        """The result in one sentence."""
        if self.reading is not None and self.reading.detected:
            return f"Marked with this key: {message(self.reading)}."
        if self.public.found:
            other = "only its key shows whose it is" if self.reading is None else "not with this key"
            return f"Marked with ONRW; {other}."
        return "No watermark found." if self.reading is not None else "No watermark found without a key."

    def rows(self) -> list[tuple[str, str]]:
        """(heading, text) of the details."""
        height, width = self.image.rgb.shape[-2:]
        rows = [("Image", f"{self.name}, {width} x {height} pixels, {self.image.format or 'pixels'}")]
        if self.reading is not None:
            rows.append(("How sure", certainty(self.reading.log10_p, self.reading.detected)))
            if self.reading.detected and self.reading.pose is not None:
                rows.append(("Position", position(self.reading.pose, (height, width), self.reading.negative)))
            rows.append(("Key", f"fingerprint {self.key}"))
        rows.append(("Public label", label(self.public)))
        stated = read_source_type(self.image.info.get("xmp", b""))
        if stated is not None:
            rows.append(("Metadata", f"{MEANINGS.get(stated, stated)}; everybody can write and remove metadata"))
        if self.known is not None:
            rows.append(("Registry", "\n".join(self.known.lines()) or "nothing known"))
            if self.known.entries:
                rows.append(("Same image", SAME[self.known.copied]))
        return rows

    def lines(self) -> list[str]:
        """The report as text: the headline, and a line for each detail."""
        return [
            f"{self.name}: {self.headline}",
            *(f"  {heading + ':':14}{line}" for heading, text in self.rows() for line in text.splitlines()),
        ]


class Examiner:
    """Makes reports.

    Args:
        key: Key of the watermarks; None to report only what needs no key.
        registry: Where ids are looked up.
        fpr: Largest false-positive rate.
    """

    def __init__(self, key: Key | None, registry: Registry | None = None, fpr: float = 1e-6) -> None:
        self.key, self.registry, self.fpr = key, registry, fpr
        self.extractor = None if key is None else KeyedExtractor(key)

    def __call__(self, name: str, content: bytes, max_pixels: int = files.MAX_PIXELS) -> Report:
        """The report of a file.

        Args:
            name: Its name, for the report and for errors.
            content: Its bytes.
            max_pixels: Largest number of pixels.

        Raises:
            ImageError: Not an image that can be read, see `files.load`.
        """
        image = files.load(name, content, max_pixels=max_pixels)
        reading = None if self.extractor is None else self.extractor.read(image.rgb, self.key, fpr=self.fpr)
        return Report(
            name=Path(name).name,
            image=image,
            key=None if self.key is None else self.key.fingerprint,
            reading=reading,
            known=self._known(reading, image.rgb),
            public=detect(image.rgb, fpr=self.fpr),
        )

    def _known(self, reading: Reading | None, image: Tensor) -> Known | None:
        if self.registry is None or reading is None or self.key is None or self.extractor is None:
            return None
        return known(self.registry, self.extractor, reading, image, self.key, self.fpr)


def message(reading: Reading) -> str:
    """The message of a detected watermark."""
    found = reading.message
    if found.kind == "text":
        return f'the text "{found.value}"'
    if found.kind == "id":
        return f"the id {found.value}"
    return "a message of a later version (update onrw to read it)" if found.version else "its message is damaged"


def certainty(log10_p: float, found: bool) -> str:
    """The p-value of presence in a sentence.

    Args:
        log10_p: Its logarithm to base 10.
        found: Whether it is small enough to say that there is a watermark.
    """
    share = f"{one_in(log10_p)} unmarked images would give this result"
    return f"only {share}" if found else f"{share}, so it is no evidence of a watermark"


def one_in(log10_p: float) -> str:
    """A probability as "1 in 300" or "1 in 10^54"."""
    return f"1 in {10**-log10_p:.2g}" if log10_p > -2 else f"1 in 10^{math.floor(-log10_p)}"


def label(public: Detection) -> str:
    """The public label in a sentence."""
    if not public.found:
        return "none found"
    if public.label is None:
        return "present, but cannot be read"
    return f"{MEANINGS[public.label]}; everybody can write and remove this label"


def position(pose: Pose, size: tuple[int, int], negative: bool = False) -> str:
    """Where an image lay in the marked frame.

    Args:
        pose: Its position.
        size: (height, width) of the image.
        negative: Whether its colours are those of a negative.
    """
    changes = ["colour negative"] if negative else []
    if pose.flipped:
        changes.append("mirrored")
    if abs(pose.rotation) >= UPRIGHT:
        changes.append(f"turned by {pose.rotation:.1f} degrees")
    if abs(pose.scale - 1) >= UNSCALED:
        changes.append(f"scaled to {pose.scale:.0%}")
    height, width = (round(side / pose.scale) for side in size)
    how = ", ".join(changes) or "neither turned nor scaled"
    return f"{how}; it shows {width} x {height} pixels of the marked frame"

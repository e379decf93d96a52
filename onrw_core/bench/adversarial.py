"""`onrw bench adversarial`: removal and forgery by somebody who has marked images but not the key (`adversary`).

Every case is a changed image that is read blindly with the key, and without a key for the public layer. The price of a
case is what the adversary's image has lost against the one that he began with: PSNR and SSIMULACRA2. Marks and readings
are cached in the output folder, and an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ..attacks import Attack, parse, suite
from ..commands.models import add_device, chosen_device
from ..extractors.keyed.extractor import KeyedExtractor
from ..extractors.keyed.pilot_search import detect
from ..imaging.metrics import psnr
from ..imaging.rounding import round_8bit
from ..imaging.ssimulacra2 import ssimulacra2
from ..imaging.thumbnail import LIKE, Thumbnail, likeness
from ..mini import load_mini
from ..payload.keys import Key
from ..stages.noise_optimisation import PRESETS
from .adversary import aligned_estimate, at_place, copied, estimated_tile, rank_one, subtracted, tiled
from .cache import Cache, generator_for, publish
from .marking import marked
from .measure import tell
from .photos import Photo, load_photos
from .statistics import judge
from .systems import Onrw, Outcome

__all__ = ["Adversary", "Case", "add_arguments", "run"]

OUT = Path("bench-adversarial")
PRESENCE_LIMIT = -6.0  # log10 of the false-positive rate
GAINS = (1.0, 2.0, 4.0)  # of a subtracted or pasted tile
COPIES = (0.5, 1.0)  # factors of copied high frequencies
PRICES = (36.0, 30.0)  # dB that an adversary pays for subtracting an aligned estimate
FURTHER = 3  # marks of other keys on top
MEANWHILE = ("crop=.5", "rotation=3", "resize=.64")  # changes of a marked image before it is marked again
STRIPPED = ("identity", "crop=.9", "crop=.5")  # after the public layer is gone; a crop shifts the tiles
TURNED = "rotation=3+resize=.94"  # the same, for the deep search: scale .97
QUESTIONS = 6  # to a reader who says whether he finds a watermark
ASKED = {"noise": (0.02, 1.0), "blur": (1.0, 30.0), "jpeg": (80.0, 1.0)}  # weakest and strongest change between them
ORIGINALS = "onrw12"  # attacks after which an image must not be taken for a copy

KINDS = ("tile", "aligned", "stripped", "further", "meanwhile", "asked", "forged", "originals")  # of cases

SURVIVES, FORGED = "should still be read", "forged if present"

Record = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """An image that an adversary made.

    Attributes:
        name: The same for all photos.
        meaning: `SURVIVES` or `FORGED`.
        image: (3, H, W).
        before: The image that he began with, if it has the same size.
        note: Record of the mark that is looked for.
        deep: Whether the deep search is used.
    """

    name: str
    meaning: str
    image: Tensor
    before: Tensor | None
    note: Record
    deep: bool = False


@dataclass(frozen=True)
class Victim:
    """A marked photo that is attacked.

    Attributes:
        photo: The photo.
        image: (3, H, W), marked.
        note: Record of the mark.
    """

    photo: Photo
    image: Tensor
    note: Record

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[1], self.image.shape[2]

    @cached_property
    def tile(self) -> Tensor:
        """What its tiles have in common."""
        return estimated_tile([self.image])

    def case(self, name: str, changed: Tensor, before: Tensor | None) -> Case:
        """A case whose mark should still be read; see `Case`."""
        return Case(name, SURVIVES, changed, before, self.note)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `onrw bench adversarial`."""
    add = parser.add_argument
    add("--images", type=Path, required=True, help="folder of photos")
    add("--match", default="*", help="only files of this pattern")
    add("--limit", type=int, default=12, metavar="N", help="photos that are attacked (default: 12)")
    add("--pictures", type=int, nargs="+", default=[1, 2, 12], metavar="N", help="numbers of images that are averaged")
    add(
        "--cases", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help=f"of {', '.join(KINDS)} (default: all)"
    )
    add("--size", type=int, default=512, help="pixels of the shorter side that photos are brought to (default: 512)")
    add("--preset", choices=PRESETS, default="quick", help="of the marks (default: quick)")
    visible = parser.add_mutually_exclusive_group()
    visible.add_argument("--quality", type=float, metavar="Q", help="SSIMULACRA2 of the marks (default: 90)")
    visible.add_argument("--target-psnr", type=float, metavar="DB", help="instead of a quality")
    add("--deep", action="store_true", help="also read turned images without pilot by the deep search; slow")
    add("--seed", type=int, default=0)
    add_device(parser)
    add("--out", type=Path, default=OUT, help="folder of marks, readings and report")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark, print its table, write JSON; 0 on success."""
    args.device = chosen_device(args.device)
    photos = load_photos(args.images, args.size, args.match, max([args.limit, *args.pictures]))
    key = Key(hashlib.sha256(f"onrw benchmark {args.seed}".encode()).digest())
    settings = PRESETS[args.preset].with_(quality=args.quality, target_psnr=args.target_psnr)
    visible = f"quality {settings.quality:g}" if settings.quality is not None else f"{settings.target_psnr:g} dB"
    mini = load_mini(args.device)
    system = Onrw(f"ONRW {visible}", KeyedExtractor(key), settings, mini, args.size, key.fingerprint, args.device)
    adversary = Adversary(system, photos, key, args.seed, args.out)
    rows = adversary.rows(photos[: args.limit], args.pictures, args.cases, args.deep)
    report = {"size": args.size, "seed": args.seed, "preset": args.preset, "marks": visible, "cases": rows}
    print(table(report))
    publish(args.out / "report.json", report)
    return 0


class Adversary:
    """Makes and reads the cases.

    Args:
        system: Marks with the keyed extractor.
        photos: All photos, those that are attacked first.
        key: The key.
        seed: Of the benchmark.
        out: The benchmark's folder.
    """

    def __init__(self, system: Onrw, photos: list[Photo], key: Key, seed: int, out: Path) -> None:
        self.system, self.photos, self.key, self.seed = system, photos, key, seed
        self.one_id = replace(system, name=f"{system.name} one id")
        self.others = []
        for number in range(FURTHER):
            secret = torch.randint(256, (32,), generator=generator_for(seed, "further key", number))
            other = Key(bytes(secret.tolist()))
            name = f"{system.name} further {number + 1}"
            extractor = KeyedExtractor(other, system.num_bits)
            self.others.append(replace(system, name=name, extractor=extractor, fingerprint=other.fingerprint))
        self.caches = {s.name: Cache(out, s, seed) for s in (system, self.one_id, *self.others)}
        self._estimates: dict[tuple[str, int], Tensor] = {}
        self._tiles: dict[int, Tensor] = {}

    def rows(self, attacked: list[Photo], pictures: list[int], kinds: Iterable[str], deep: bool) -> list[Record]:
        """A row for each case, as `_row` gives it.

        Args:
            attacked: The photos that are attacked.
            pictures: Numbers of images that are averaged.
            kinds: Of `KINDS`.
            deep: Whether to use the deep search as well.
        """
        outcomes: dict[tuple[str, str], list[Record]] = {}
        for number, photo in enumerate(attacked, 1):
            original = self._marked(self.system, photo)[0]
            registered = self.system.extractor.read(original).thumbnail(original)
            for case in self.cases(photo, pictures, kinds, deep):
                record = self.outcome(photo, case, registered)
                outcomes.setdefault((case.name, case.meaning), []).append(record)
            tell(f"{number}/{len(attacked)} {photo.name}")
        return [_row(*kind, records) for kind, records in outcomes.items()]

    def cases(self, photo: Photo, pictures: list[int], kinds: Iterable[str], deep: bool) -> Iterator[Case]:
        """The marked photo, and the cases of some kinds; see `rows`."""
        image, note = self._marked(self.system, photo)
        victim = Victim(photo, image, note)
        made = {
            "tile": lambda: self.without_tile(victim, pictures),
            "aligned": lambda: self.without_average(victim, pictures),
            "stripped": lambda: self.stripped(victim, deep),
            "further": lambda: self.marked_further(victim),
            "meanwhile": lambda: self.changed_and_marked(victim),
            "asked": lambda: self.asked(victim),
            "forged": lambda: self.forged(victim),
            "originals": lambda: self.originals(victim),
        }
        yield victim.case("nothing", image, image)
        for kind in kinds:
            yield from made[kind]()

    def without_tile(self, victim: Victim, pictures: list[int]) -> Iterator[Case]:
        """Less what its own tiles, and those of several images, have in common."""
        image, size = victim.image, victim.size
        for gain in GAINS:
            yield victim.case(f"own tile subtracted x{gain:g}", image - gain * tiled(victim.tile, size), image)
        for count in pictures:
            if count > 1:
                tile = self._common_tile(count)
                yield victim.case(f"tile of {count} images subtracted x2", image - 2 * tiled(tile, size), image)
        yield victim.case("own tiles' first component subtracted", image - rank_one(image), image)

    def without_average(self, victim: Victim, pictures: list[int]) -> Iterator[Case]:
        """Less the average of several images, aligned by their places."""
        for decibels in PRICES:
            for which, ids in ((self.system, "an id each"), (self.one_id, "one id")):
                for count in pictures:
                    image, note = self._marked(which, victim.photo)
                    part = at_place(self._estimate(which, count), image, self._place(victim.photo))
                    label = f"{count} images, {ids}, aligned, subtracted at {decibels:g} dB"
                    yield Case(label, SURVIVES, subtracted(image, part, decibels), image, note)

    def stripped(self, victim: Victim, deep: bool) -> Iterator[Case]:
        """The public layer removed, and then changed."""
        image = victim.image
        subtracting = (round_8bit(image - gain * tiled(victim.tile, victim.size)) for gain in GAINS)
        stripped = next((each for each in subtracting if not detect(each[None]).found), None)
        if stripped is None:
            return
        for text in STRIPPED:
            changed = self._changed(victim.photo, stripped, text, text)
            begun = image if text == "identity" else None
            yield victim.case(f"public layer subtracted, then {text}", changed, begun)
        if deep:
            turned = self._changed(victim.photo, stripped, TURNED, TURNED)
            yield replace(victim.case(f"public layer subtracted, then {TURNED}, deep", turned, None), deep=True)

    def marked_further(self, victim: Victim) -> Iterator[Case]:
        """Marked by further keys, and then attacked."""
        photo, again = victim.photo, victim.image
        for number, other in enumerate(self.others, 1):
            again, _ = self._marked(other, replace(photo, image=again))
            yield victim.case(f"marked by {number} further keys", again, victim.image)
        for each in suite(ORIGINALS):
            changed = self._changed(photo, again, each, f"again {each}")
            yield victim.case(f"marked by {FURTHER} further keys, then {ORIGINALS}", changed, None)

    def changed_and_marked(self, victim: Victim) -> Iterator[Case]:
        """Changed, and then marked by a further key."""
        photo = victim.photo
        for text in MEANWHILE:
            changed = round_8bit(self._changed(photo, victim.image, text, text))
            later = replace(photo, name=f"{photo.name}-{text.split('=')[0]}", image=changed)
            remarked, _ = self._marked(self.others[0], later)
            yield victim.case(f"{text}, then marked by a further key", remarked, changed)

    def asked(self, victim: Victim) -> Iterator[Case]:
        """Changed about as little as makes a reader say that there is nothing, by bisection of the strength."""
        for name, ends in ASKED.items():
            kept, lost = (math.log(end) for end in ends)
            for _ in range(QUESTIONS):
                middle = (kept + lost) / 2
                if self.system.extractor.read(self._at(victim, name, middle)).detected:
                    kept = middle
                else:
                    lost = middle
            label = f"reader asked {QUESTIONS} times, {name}"
            yield victim.case(label, self._at(victim, name, lost), victim.image)

    def forged(self, victim: Victim) -> Iterator[Case]:
        """Its tile or its high frequencies in another photo."""
        if len(self.photos) == 1:
            return
        other = self.photos[(self.photos.index(victim.photo) + 1) % len(self.photos)].image
        for gain in GAINS:
            pasted = other + gain * tiled(victim.tile, (other.shape[1], other.shape[2]))
            yield Case(f"own tile pasted elsewhere x{gain:g}", FORGED, pasted, other, victim.note)
        for gain in COPIES:
            label = f"high frequencies copied elsewhere x{gain:g}"
            yield Case(label, FORGED, copied(victim.image, other, gain), other, victim.note)

    def originals(self, victim: Victim) -> Iterator[Case]:
        """Attacked only: none of them is a copy."""
        for each in suite(ORIGINALS):
            changed = self._changed(victim.photo, victim.image, each, f"original {each}")
            yield victim.case(f"no copy: {ORIGINALS}", changed, None)

    def outcome(self, photo: Photo, case: Case, registered: Thumbnail | None) -> Record:
        """The record of a case, from the cache or newly read.

        Args:
            photo: The photo that is attacked.
            case: The case.
            registered: Thumbnail of the photo as it was marked.
        """
        cache, image = self.caches[self.system.name], round_8bit(case.image)
        digest = Photo("", image).digest[:16]
        text = f"{photo.name}: {case.name}{' deep' if case.deep else ''}"
        record = cache.reading(digest, text)
        if record is None:
            reading = self.system.extractor.read(image, deep=case.deep)
            found = Outcome(reading.bits, reading.logits, reading.log10_p, reading.seconds)
            expected = torch.tensor([int(b) for b in case.note["bits"]])
            public = detect(image[None])
            record = {"mark": digest, "attack": text, **judge(found, expected, self.key, case.note["id"])}
            seen = reading.thumbnail(image)
            similar = None if registered is None or seen is None else likeness(registered, seen)
            record |= {"public": public.found, "likeness": similar}
            if case.before is not None:
                pair = image[None], case.before[None]
                record |= {"psnr": float(psnr(*pair)), "ssimulacra2": ssimulacra2(*pair).item()}
            cache.keep_reading(record)
        return record

    def _changed(self, photo: Photo, image: Tensor, change: Attack | str, purpose: str) -> Tensor:
        attack = parse(change) if isinstance(change, str) else change
        return attack(image[None], self._generator(photo, purpose)).images[0]

    def _at(self, victim: Victim, name: str, log_strength: float) -> Tensor:
        """Changed by an attack of this strength."""
        strength = math.exp(log_strength)
        text = f"{name}={round(strength) if name == 'jpeg' else format(strength, '.3g')}"
        return round_8bit(self._changed(victim.photo, victim.image, text, name))

    def _estimate(self, which: Onrw, count: int) -> Tensor:
        """The aligned average of so many images, made once."""
        if (which.name, count) not in self._estimates:
            self._estimates[which.name, count] = aligned_estimate(*self._several(which, count))
        return self._estimates[which.name, count]

    def _common_tile(self, count: int) -> Tensor:
        """What the tiles of so many images have in common, made once."""
        if count not in self._tiles:
            self._tiles[count] = estimated_tile(self._several(self.system, count)[0])
        return self._tiles[count]

    def _several(self, which: Onrw, count: int) -> tuple[list[Tensor], list[tuple[int, int]]]:
        """So many marked images and their places."""
        chosen = self.photos[:count]
        return [self._marked(which, photo)[0] for photo in chosen], [self._place(photo) for photo in chosen]

    def _place(self, photo: Photo) -> tuple[int, int]:
        return self.system.extractor.for_image(photo.image[None], again=True).place

    def _marked(self, which: Onrw, photo: Photo) -> tuple[Tensor, Record]:
        shared = which is self.one_id
        return marked(which, self.caches[which.name], photo, self.key, self.seed, which.name, shared=shared)

    def _generator(self, photo: Photo, purpose: str) -> torch.Generator:
        return generator_for(self.seed, photo.name, purpose)


def _row(name: str, meaning: str, records: list[Record]) -> Record:
    priced = [r for r in records if "psnr" in r]
    told = [r["likeness"] < LIKE for r in records if r["likeness"] is not None]
    return {
        "case": name,
        "meaning": meaning,
        "n": len(records),
        "present": fmean(r["log10_presence"] <= PRESENCE_LIMIT for r in records),
        "bit_accuracy": fmean(r["accuracy"] for r in records),
        "message": fmean(r["message"] for r in records),
        "public": fmean(r["public"] for r in records),
        "copied": fmean(told) if told else None,
        "psnr": fmean(r["psnr"] for r in priced) if priced else None,
        "ssimulacra2": fmean(r["ssimulacra2"] for r in priced) if priced else None,
        "seconds": fmean(r["seconds"] for r in records),
    }


def table(report: Record) -> str:
    """The report as a table."""
    lines = [
        f"{report['marks']}, {report['preset']}, {report['size']} px; presence and message of the secret layer, public "
        "layer, readings told to be copies, price to the adversary",
        f"{'case':64} {'n':>4} {'pres.':>6} {'bits':>6} {'mess.':>6} {'pub.':>6} {'copy?':>6} {'dB':>5} {'SSIM2':>6} "
        f"{'s':>6}",
    ]
    for row in report["cases"]:
        shares = [row[name] for name in ("present", "bit_accuracy", "message", "public", "copied")]
        prices = [f"{'-' if row[name] is None else format(row[name], '.1f'):>{width}}" for name, width in PRICED]
        cells = [f"{'-' if share is None else format(share, '.1%'):>6}" for share in shares]
        label = row["case"] + (" (forgery)" if row["meaning"] == FORGED else "")
        lines.append(" ".join([f"{label:64}", f"{row['n']:4}", *cells, *prices, f"{row['seconds']:6.1f}"]))
    return "\n".join(lines)


PRICED = (("psnr", 5), ("ssimulacra2", 6))

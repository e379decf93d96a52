"""``onrw demo``: embedding, attacks and extraction on a bundled photo, with an overview image.

The photo is marked with an id, the marked photo is cropped, rotated, compressed and so on, and each result is read
from its pixels alone. As controls, the unmarked photo is read, and the marked photo with a wrong key.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..imaging.atomic import atomic_write
from ..models import load_model
from ..payload.keys import Key
from ..strict_json import to_json
from .common import Progress, number, p_value
from .embed import PRESETS
from .models import add_device, add_model, chosen_device
from .output import say

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

__all__ = ["add_arguments", "run"]

PHOTO = Path(__file__).parents[1] / "samples" / "monument.jpg"
PROMPT = "the Washington Monument behind cherry blossom"
ID = "c0ffee"
FPR = 1e-6
ATTACKS = (
    ("as it is", "identity"),
    ("half cropped away", "crop=0.5"),
    ("turned by 10 degrees", "rotation=10"),
    ("a third of its pixels", "resize=0.33"),
    ("JPEG quality 50", "jpeg=50"),
    ("twice as bright", "brightness=2"),
    ("blurred", "blur=1"),
    ("noise", "noise=0.05"),
    ("turned, cropped, JPEG", "rotation=5+crop=0.6+jpeg=60"),
    ("screenshot of a page", "screenshot-border=0.75"),
)


@dataclass(frozen=True)
class Outcome:
    """An image and its reading.

    Attributes:
        title: Description of the attack.
        attack: The attack in the form of `onrw attack`.
        image: (3, H, W) in [0, 1].
        detected: Whether a watermark was detected.
        log10_p: log10 of the p-value of the detection.
        id: The id that was read, or None.
        expected: The correct reading: the id, or None.
    """

    title: str
    attack: str
    image: Tensor
    detected: bool
    log10_p: float
    id: str | None
    expected: str | None

    @property
    def right(self) -> bool:
        return self.id == self.expected and self.detected == (self.expected is not None)

    @property
    def words(self) -> str:
        if not self.detected:
            return f"nothing found ({p_value(self.log10_p)})"
        return f"{'id ' + self.id if self.id else 'marked, id not readable'} ({p_value(self.log10_p)})"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", default="onrw-demo", metavar="DIR", help="folder (default: onrw-demo)")
    parser.add_argument("--preset", choices=PRESETS, default="fast", help="preset of the optimisation (default: fast)")
    parser.add_argument(
        "--iterations",
        type=number(int, 1, 10000),
        metavar="N",
        help="largest number of iterations (default: that of the preset)",
    )
    parser.add_argument("--size", type=number(int, 64, 512), default=512, metavar="N", help="side of the photo (512)")
    add_model(parser)
    add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    import torch
    import torch.nn.functional as F

    from .. import pipeline
    from ..attacks import parse
    from ..extractors.keyed.extractor import KeyedExtractor
    from ..imaging import files as images
    from ..imaging.rounding import round_8bit
    from ..payload.message import encode_id
    from ..stages.noise_optimisation import PRESETS as SETTINGS

    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    key_file = folder / "demo.key"
    if not key_file.exists():
        if any(folder.iterdir()):
            raise ValueError(f"folder {folder}: contains other files; name a new folder by -o DIR")
        Key.new().save(key_file)
    key = Key.load(key_file)
    message, extractor = encode_id(ID, key), KeyedExtractor(key)

    original = images.load(PHOTO).rgb
    if arguments.size != original.shape[-1]:
        smaller = F.interpolate(original[None], size=2 * [arguments.size], mode="bicubic", antialias=True)
        original = round_8bit(smaller)[0]
    images.save(folder / "original.png", original, overwrite=True)

    loaded = load_model(arguments.model, chosen_device(arguments.device), arguments.config)
    say(f"marking {folder / 'original.png'} with the id {ID} ...")
    with Progress("marking") as progress:
        marked = pipeline.embed(
            original.to(loaded.device),
            loaded.model,
            loaded.autoencoder,
            extractor,
            message.bits,
            positive=loaded.encode(PROMPT),
            null=loaded.encode(""),
            settings=SETTINGS[arguments.preset].with_(iterations=arguments.iterations),
            generator=torch.Generator().manual_seed(0),
            size=arguments.size,
            on_inversion=progress.inversion,
            on_state=progress.optimisation,
        )
    images.save(folder / "marked.png", marked.image.cpu(), overwrite=True)
    say(
        f"{folder / 'marked.png'}: SSIMULACRA2 {marked.judgement.quality:.1f}, worst place "
        f"{marked.judgement.worst:.1f}, {marked.psnr:.2f} dB, {marked.iterations} iterations, "
        f"{marked.seconds:.0f} s"
    )

    def outcome(title: str, attack: str, image: Tensor, reader: KeyedExtractor, expected: str | None) -> Outcome:
        reading = reader.read(image, fpr=FPR)
        result = Outcome(title, attack, image, reading.detected, reading.log10_p, reading.message.id, expected)
        say(f"  {title:24}{result.words}")
        return result

    marked_image = images.load(folder / "marked.png").rgb
    attacked: list[Outcome] = []
    for title, text in ATTACKS:
        image = parse(text)(marked_image[None], torch.Generator().manual_seed(0)).images[0]
        images.save(folder / f"attacked-{len(attacked):02}-{text.split('=')[0]}.png", image, overwrite=True)
        attacked.append(outcome(title, text, image, extractor, ID))
    controls = [
        outcome("the unmarked photo", "identity", original, extractor, None),
        outcome("a wrong key", "identity", marked_image, KeyedExtractor(Key.new()), None),
    ]

    figures = {"ssimulacra2": marked.judgement.quality, "worst": marked.judgement.worst, "psnr": marked.psnr}
    figures |= {"ssim": marked.ssim, "iterations": marked.iterations, "seconds": marked.seconds}
    lines = [
        {"title": o.title, "attack": o.attack, "detected": o.detected, "log10_p": round(o.log10_p, 2), "id": o.id}
        for o in attacked + controls
    ]
    with atomic_write(folder / "readings.json") as file:
        file.write((to_json({**figures, "id": ID, "readings": lines}, indent=1) + "\n").encode())
    quality = f"SSIMULACRA2 {marked.judgement.quality:.1f}, {marked.psnr:.1f} dB"
    with atomic_write(folder / "overview.png") as file:
        overview(original, marked_image, quality, attacked, controls).save(file, "PNG")
    right = sum(o.right for o in attacked + controls)
    say(f"{right} of {len(attacked + controls)} readings right; see {folder / 'overview.png'}")
    return 0


WIDTH, MARGIN, GAP = 1600, 40, 20
LINE = 24  # height of a line of text
INK, FAINT, PAPER, GOOD, BAD = "#1c1c1e", "#6b6b70", "#ffffff", "#1f8a4c", "#c0392b"
AMPLIFIED = 10
COLUMNS = 5


def overview(original: Tensor, marked: Tensor, quality: str, attacked: list[Outcome], controls: list[Outcome]) -> Image:
    """The overview: original, marked image and difference; below, the attacked images with their readings."""
    from PIL import Image, ImageDraw, ImageFont

    large = (WIDTH - 2 * MARGIN - 2 * GAP) // 3
    small = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) // COLUMNS
    rows = -(-len(attacked) // COLUMNS)
    head, row = 60, small + 3 * LINE + GAP
    height = MARGIN + head + large + 2 * LINE + GAP + rows * row + 2 * LINE + MARGIN
    page = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(page)

    def write(x: float, y: float, text: str, size: int = 18, colour: str = INK) -> None:
        draw.text((x, y), text, fill=colour, font=ImageFont.load_default(size))

    def verdict(x: int, y: int, outcome: Outcome) -> None:
        colour = GOOD if outcome.right else BAD
        draw.ellipse((x, y + 5, x + 11, y + 16), fill=colour)
        write(x + 18, y, outcome.words, 16, colour)

    write(MARGIN, MARGIN - 6, f"The id {ID}, hidden in a photo and read back from its pixels alone", 30)
    y = MARGIN + head
    difference = (0.5 + AMPLIFIED * (marked - original)).clamp(0, 1)
    panels = (
        ("original", original, ""),
        ("marked", marked, quality),
        ("difference", difference, f"x {AMPLIFIED}, grey = none"),
    )
    for i, (title, image, note) in enumerate(panels):
        x = MARGIN + i * (large + GAP)
        page.paste(_fitted(image, large), (x, y))
        write(x, y + large + 8, title)
        write(x + draw.textlength(title + "  ", ImageFont.load_default(18)), y + large + 8, note, 18, FAINT)
    y += large + 2 * LINE + GAP
    for i, outcome in enumerate(attacked):
        x, top = MARGIN + i % COLUMNS * (small + GAP), y + i // COLUMNS * row
        page.paste(_fitted(outcome.image, small), (x, top))
        write(x, top + small + 6, outcome.title)
        verdict(x, top + small + 6 + LINE, outcome)
    y += rows * row
    x = MARGIN
    for outcome in controls:
        write(x, y, f"{outcome.title}:")
        verdict(x + 190, y, outcome)
        x += WIDTH // 2 - MARGIN
    return page


def _fitted(image: Tensor, side: int) -> Image:
    """An image, resized and centred in a light square."""
    from einops import rearrange
    from PIL import Image

    from ..imaging.rounding import to_8bit

    full = Image.fromarray(rearrange(to_8bit(image), "c h w -> h w c").numpy())
    scale = side / max(full.size)
    width, height = (max(1, round(length * scale)) for length in full.size)
    square = Image.new("RGB", (side, side), "#f2f2f4")
    square.paste(full.resize((width, height), Image.Resampling.LANCZOS), ((side - width) // 2, (side - height) // 2))
    return square

"""Make the pictures of the example workflows, workflows/*.jpg: python tests/comfy/draw_thumbnails.py

Each shows what its template makes, on the sample images; marked ones are marked by the preset quick, and what the cards
and the bars say is read from them. The page writes the name below.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from templates import TEMPLATES  # noqa: E402

import onrw_core as onrw  # noqa: E402
from onrw_core.attacks import attack  # noqa: E402
from onrw_core.imaging import files  # noqa: E402
from onrw_core.payload.message import photo_id  # noqa: E402
from onrw_core.pipeline import Marked  # noqa: E402

SAMPLES = ROOT / "onrw_core" / "samples"
KEY, TEXT = onrw.Key(bytes(range(32))), "Ann 5"
SIDE = 512
DARK, GREEN, AMBER, LIGHT = (30, 33, 38), (80, 190, 120), (214, 160, 60), (238, 238, 238)
AUDITED = {
    "JPEG 50": ("jpeg", 50.0),
    "cropped to half": ("crop", 0.5),
    "turned by 25 degrees": ("rotation", 25.0),
    "blurred": ("blur", None),
    "noise": ("noise", None),
    "a quarter of its size": ("resize", 0.25),
}
"""Words -> attack and its strength; the usual one if None."""


def sample(name: str) -> Tensor:
    return files.load(next(SAMPLES.glob(f"{name}.*"))).rgb


def picture(image: Tensor, side: int = SIDE) -> Image.Image:
    levels = (image.clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()
    return Image.fromarray(levels).resize((side, side), Image.Resampling.LANCZOS)


def label(drawn: Image.Image, words: str, at: tuple[int, int], size: int = 15) -> None:
    font = ImageFont.load_default(size)
    ImageDraw.Draw(drawn).text(at, words, fill="white", font=font, stroke_width=2, stroke_fill="black")


def card(drawn: Image.Image, words: str, top: int = 396) -> None:
    """A card as the nodes show it."""
    draw = ImageDraw.Draw(drawn)
    draw.rounded_rectangle([40, top, SIDE - 40, top + 84], 10, fill=DARK)
    draw.rectangle([40, top + 6, 48, top + 78], fill=GREEN)
    draw.line([70, top + 44, 84, top + 58, 108, top + 26], fill=GREEN, width=7)
    draw.text((128, top + 20), words, fill=LIGHT, font=ImageFont.load_default(36))


def read(image: Tensor) -> str:
    """The text that is read from an image."""
    reading = onrw.extract(image, key=KEY)
    assert reading.message.text == TEXT, reading.message
    return reading.message.text


def strips(parts: dict[str, Image.Image]) -> Image.Image:
    """Pictures side by side, as parts of one."""
    drawn = Image.new("RGB", (SIDE, SIDE))
    for number, (words, part) in enumerate(parts.items()):
        left = SIDE * number // len(parts)
        drawn.paste(part.crop((left, 0, SIDE, SIDE)), (left, 0))
        if left:
            ImageDraw.Draw(drawn).line([left, 0, left, SIDE], fill="white", width=2)
        label(drawn, words, (left + 10, 10), 24)
    return drawn


def one_node(marked: Marked) -> Image.Image:
    image = onrw.embed(SAMPLES / "monument.jpg", key=KEY, text=TEXT, settings="quick").image
    drawn = picture(image)
    card(drawn, read(image))
    return drawn


def before_and_after(marked: Marked) -> Image.Image:
    original = sample("portrait")
    change = 0.5 + 10 * (marked.image - original)
    return strips({"before": picture(original), "marked": picture(marked.image), "change x 10": picture(change)})


def from_noise(image: Tensor) -> Tensor:
    """From noise at the left to the image, which fills most of it."""
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(1))
    clean = torch.linspace(-0.1, 3.0, image.shape[-1]).clamp(0, 1)
    return clean * image + (1 - clean) * noise


def generated(
    model: str, left: float, top: float, side: float, sampling: bool = False
) -> Callable[[Marked], Image.Image]:
    """What a model draws, as a part of the drawing (shares of its side), and the id that it gets."""

    def draw(marked: Marked) -> Image.Image:
        whole = sample("drawing")
        x, y, width = (round(share * whole.shape[-1]) for share in (left, top, side))
        image = whole[:, y : y + width, x : x + width]
        drawn = picture(from_noise(image) if sampling else image)
        label(drawn, model, (24, 16), 54)
        card(drawn, f"id {photo_id(KEY, model).value}")
        return drawn

    return draw


def sampled(marked: Marked) -> Image.Image:
    drawn = picture(from_noise(marked.image))
    card(drawn, read(marked.image))
    return drawn


def stages(marked: Marked) -> Image.Image:
    original = sample("portrait")
    noise = torch.randn(original.shape, generator=torch.Generator().manual_seed(1)) * 0.2 + 0.5
    parts = {
        "your image": original,
        "1 invert": 0.6 * original + 0.4 * noise,
        "2 optimise": 0.5 + 10 * (marked.image - original),
        "3 denoise": marked.image,
    }
    drawn = Image.new("RGB", (SIDE, SIDE))
    for number, (words, part) in enumerate(parts.items()):
        corner = SIDE // 2 * (number % 2), SIDE // 2 * (number // 2)
        drawn.paste(picture(part, SIDE // 2), corner)
        label(drawn, words, (corner[0] + 10, corner[1] + 8), 24)
    return drawn


def received(marked: Marked) -> Image.Image:
    image = attack("rotation", 25.0)(marked.image[None]).images[0]
    drawn = picture(image)
    card(drawn, read(image))
    return drawn


def three(marked: Marked) -> Image.Image:
    drawn = Image.new("RGB", (SIDE, SIDE), DARK)
    draw = ImageDraw.Draw(drawn)
    for number, name in enumerate(("drawing", "monument", "portrait")):
        top = 16 + 164 * number
        drawn.paste(picture(sample(name), 152), (16, top))
        draw.rectangle([184, top, 190, top + 152], fill=GREEN)
        id = photo_id(KEY, name).value
        draw.text((212, top + 54), f"id {id}", fill=LIGHT, font=ImageFont.load_default(36))
    return drawn


def film(marked: Marked) -> Image.Image:
    drawn, image = Image.new("RGB", (SIDE, SIDE), (12, 12, 12)), sample("monument")
    draw = ImageDraw.Draw(drawn)
    for row in range(2):
        for number in range(3):
            left, top = 10 + 168 * number, 66 + 208 * row
            first = 40 * (3 * row + number)
            drawn.paste(picture(image[:, 120:420, first : first + 300], 156), (left, top))
        for hole in range(16):
            for top in (46 + 208 * row, 228 + 208 * row):
                draw.rectangle([8 + 32 * hole, top, 24 + 32 * hole, top + 12], fill=LIGHT)
    return drawn


def bars(marked: Marked) -> Image.Image:
    """The bits that are right after attacks on the marked image."""
    drawn = Image.blend(picture(marked.image), Image.new("RGB", (SIDE, SIDE), DARK), 0.8)
    draw = ImageDraw.Draw(drawn)
    for number, (words, (kind, strength)) in enumerate(AUDITED.items()):
        attacked = attack(kind, strength)(marked.image[None], torch.Generator().manual_seed(0)).images[0]
        share = float((onrw.extract(attacked, key=KEY).bits == marked.bits).float().mean())
        top = 16 + 82 * number
        draw.rectangle([24, top + 36, 24 + round(464 * share), top + 64], fill=GREEN if share >= 0.95 else AMBER)
        label(drawn, f"{words}: {share:.0%}", (24, top), 24)
    return drawn


SCENES = {
    "Save with one node": one_node,
    "Mark a photo": before_and_after,
    "Text to image - SD 1.5": generated("SD 1.5", 0.0, 0.2, 0.8),
    "Text to image - SDXL": generated("SDXL", 0.3, 0.3, 0.7),
    "Text to image - Flux": generated("Flux", 0.05, 0.3, 0.55),
    "Text to image by stages - SD 1.5": generated("SD 1.5", 0.0, 0.3, 0.7, sampling=True),
    "Text to image by stages - Flux": generated("Flux", 0.3, 0.2, 0.7, sampling=True),
    "Any model - embedded watermark": generated("any model", 0.0, 0.0, 1.0),
    "Read and verify": received,
    "Four stages": stages,
    "Sampler graph": sampled,
    "Folder of images": three,
    "Video frames": film,
    "Audit a watermark": bars,
}


def main() -> None:
    marked = onrw.embed(SAMPLES / "portrait.jpg", key=KEY, text=TEXT, settings="quick")
    for template in TEMPLATES:
        SCENES[template.name](marked).save(ROOT / "workflows" / f"{template.name}.jpg", quality=88)


if __name__ == "__main__":
    main()

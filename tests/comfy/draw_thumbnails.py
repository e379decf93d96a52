"""Make the pictures of the example workflows, workflows/*.jpg: python tests/comfy/draw_thumbnails.py

Each shows what its template does, on the sample images; marked ones are marked by the preset quick.
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

SAMPLES = ROOT / "onrw_core" / "samples"
KEY, TEXT = onrw.Key(bytes(range(32))), "Ann 5"
SIDE, BAND = 512, 64
DARK, GREEN, AMBER, LIGHT = (30, 33, 38), (80, 190, 120), (214, 160, 60), (238, 238, 238)
BARS = {
    "jpeg": 0.98,
    "crop": 0.97,
    "blur": 0.96,
    "rotation": 0.94,
    "noise": 0.84,
    "resize": 0.7,
}  # a sketch of the chart


def sample(name: str) -> Tensor:
    return files.load(next(SAMPLES.glob(f"{name}.*"))).rgb


def picture(image: Tensor, side: int = SIDE) -> Image.Image:
    levels = (image.clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()
    return Image.fromarray(levels).resize((side, side), Image.Resampling.LANCZOS)


def label(drawn: Image.Image, words: str, at: tuple[int, int], size: int = 15) -> None:
    font = ImageFont.load_default(size)
    ImageDraw.Draw(drawn).text(at, words, fill="white", font=font, stroke_width=2, stroke_fill="black")


def card(drawn: Image.Image, words: str, top: int) -> None:
    """A card as the nodes show it."""
    draw = ImageDraw.Draw(drawn)
    draw.rounded_rectangle([40, top, SIDE - 40, top + 84], 10, fill=DARK)
    draw.rectangle([40, top + 6, 48, top + 78], fill=GREEN)
    draw.line([70, top + 44, 84, top + 58, 108, top + 26], fill=GREEN, width=7)
    draw.text((128, top + 20), words, fill=LIGHT, font=ImageFont.load_default(36))


def strips(parts: dict[str, Image.Image]) -> Image.Image:
    """Pictures side by side, as parts of one."""
    drawn = Image.new("RGB", (SIDE, SIDE))
    for number, (words, part) in enumerate(parts.items()):
        left = SIDE * number // len(parts)
        drawn.paste(part.crop((left, 0, SIDE, SIDE)), (left, 0))
        if left:
            ImageDraw.Draw(drawn).line([left, 0, left, SIDE], fill="white", width=2)
        label(drawn, words, (left + 8, 6))
    return drawn


def one_node(marked: Tensor) -> Image.Image:
    drawn = picture(sample("monument"))
    card(drawn, TEXT, 330)
    return drawn


def before_and_after(marked: Tensor) -> Image.Image:
    original = sample("portrait")
    change = 0.5 + 10 * (marked - original)
    return strips({"before": picture(original), "marked": picture(marked), "change x 10": picture(change)})


def generated(model: str) -> Callable[[Tensor], Image.Image]:
    """A drawing that appears from noise."""

    def draw(marked: Tensor) -> Image.Image:
        image = sample("drawing")
        noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(1))
        clean = torch.linspace(-0.4, 1.4, image.shape[-1]).clamp(0, 1)
        drawn = picture(clean * image + (1 - clean) * noise)
        label(drawn, model, (24, 20), 54)
        return drawn

    return draw


def noisy(marked: Tensor) -> Image.Image:
    noise = torch.rand(marked.shape, generator=torch.Generator().manual_seed(1))
    return strips({f"{share:.0%}": picture(share * marked + (1 - share) * noise) for share in (0.1, 0.4, 0.7, 1.0)})


def stages(marked: Tensor) -> Image.Image:
    original = sample("portrait")
    noise = torch.randn(original.shape, generator=torch.Generator().manual_seed(1)) * 0.2 + 0.5
    parts = {
        "image": original,
        "1 invert": 0.5 * original + 0.5 * noise,
        "2 optimise": 0.5 + 10 * (marked - original),
        "3 denoise": marked,
    }
    drawn = Image.new("RGB", (SIDE, SIDE))
    for number, (words, part) in enumerate(parts.items()):
        corner = SIDE // 2 * (number % 2), SIDE // 2 * (number // 2)
        drawn.paste(picture(part, SIDE // 2), corner)
        label(drawn, words, (corner[0] + 10, corner[1] + 8), 22)
    return drawn


def received(marked: Tensor) -> Image.Image:
    drawn = picture(attack("rotation", 25.0)(marked[None]).images[0])
    card(drawn, TEXT, 330)
    return drawn


def three(marked: Tensor) -> Image.Image:
    drawn = Image.new("RGB", (SIDE, SIDE), DARK)
    for number, name in enumerate(("drawing", "monument", "portrait")):
        place = 24 + 72 * number
        drawn.paste(picture(sample(name), 310), (place, place - 10))
    return drawn


def film(marked: Tensor) -> Image.Image:
    drawn, image = Image.new("RGB", (SIDE, SIDE), (12, 12, 12)), sample("monument")
    draw = ImageDraw.Draw(drawn)
    for row in range(2):
        for number in range(3):
            left, top = 10 + 168 * number, 44 + 208 * row
            first = 40 * (3 * row + number)
            drawn.paste(picture(image[:, 120:420, first : first + 300], 156), (left, top))
        for hole in range(16):
            for top in (24 + 208 * row, 206 + 208 * row):
                draw.rectangle([8 + 32 * hole, top, 24 + 32 * hole, top + 12], fill=LIGHT)
    return drawn


def bars(marked: Tensor) -> Image.Image:
    drawn = Image.blend(picture(sample("monument")), Image.new("RGB", (SIDE, SIDE), DARK), 0.75)
    draw = ImageDraw.Draw(drawn)
    for number, (words, share) in enumerate(BARS.items()):
        top = 24 + 68 * number
        draw.rectangle([24, top + 24, 24 + round(440 * share), top + 50], fill=GREEN if share >= 0.9 else AMBER)
        label(drawn, words, (24, top), 18)
    return drawn


SCENES = {
    "Save with one node": one_node,
    "Mark a photo": before_and_after,
    "Text to image - SD 1.5": generated("SD 1.5"),
    "Text to image - SDXL": generated("SDXL"),
    "Text to image - Flux": generated("Flux"),
    "Any model - embedded watermark": generated("any model"),
    "Read and verify": received,
    "Four stages": stages,
    "Sampler graph": noisy,
    "Folder of images": three,
    "Video frames": film,
    "Audit a watermark": bars,
}


def main() -> None:
    marked = onrw.embed(SAMPLES / "portrait.jpg", key=KEY, text=TEXT, settings="quick").image
    for template in TEMPLATES:
        drawn = SCENES[template.name](marked)
        draw = ImageDraw.Draw(drawn)
        draw.rectangle([0, SIDE - BAND, SIDE, SIDE], fill=DARK)
        draw.rectangle([0, SIDE - BAND, 8, SIDE], fill=GREEN)
        draw.text((24, SIDE - BAND + 16), template.name, fill=LIGHT, font=ImageFont.load_default(26))
        drawn.save(ROOT / "workflows" / f"{template.name}.jpg", quality=88)


if __name__ == "__main__":
    main()

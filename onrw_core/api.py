"""The Python interface: `embed` a message in an image, `extract` it, and `detect` the public layer without a key.

    import onrw_core as onrw

    key = onrw.Key.load("my.key")
    marked = onrw.embed("photo.jpg", text="Ann 5", key=key)
    marked.save("marked.png")
    reading = onrw.extract("received.jpg", key=key)
    print(reading.detected, reading.log10_p, reading.message.text)
    print(onrw.detect("received.jpg").label)

An image is the path of a file, a Pillow image, or a tensor (3, H, W) of floating point in [0, 1], at least 64 pixels on
each side. Alpha channel and metadata of a file are kept in the file that `MarkedImage.save` writes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TypeAlias

import PIL.Image
import torch
from torch import Tensor

from . import pipeline
from .arguments import as_path, as_whole, check_type, check_types
from .extractors import KEYED, LABELS, MOST_FRAMES, NO_LABEL
from .extractors.base import Extractor
from .extractors.keyed import pilot_search
from .extractors.loading import load_extractor
from .extractors.reading import Detection, Reading
from .imaging import files
from .imaging.pixels import MIN_SIDE, as_rgb, opaque_area
from .imaging.video import is_video, sample
from .models import MINI, load_model
from .payload.keys import Key, check_key, hidden_keys
from .payload.message import Message, encode_id, encode_text, raw
from .stages.noise_optimisation import PRESETS, Settings, preset_for
from .torch_modes import in_own_modes

__all__ = ["LABELS", "PRESETS", "Detection", "Image", "Key", "MarkedImage", "detect", "embed", "extract"]

Image: TypeAlias = str | os.PathLike[str] | PIL.Image.Image | Tensor

SEEDS = 2**64  # of torch's generators

_model = lru_cache(maxsize=1)(load_model)  # the last model stays loaded


@dataclass(frozen=True)
class MarkedImage:
    """A marked image.

    Attributes:
        image: (3, H, W) in [0, 1], multiples of 1/255, on the CPU, the size of the original.
        bits: The embedded bits, (k,) of 0/1.
        ssimulacra2: SSIMULACRA2; with a mask, inside of it.
        worst: Visible error at the worst place, in butteraugli's units.
        psnr: PSNR in dB; with a mask, inside of it.
        ssim: SSIM of the whole image.
        iterations: Number of iterations of the optimisation.
        seconds: Wall time.
        label: The public label that the image has: of an image that had a public layer before, the label of that one;
            None without public layer, as for third-party decoders.
    """

    image: Tensor
    bits: Tensor
    ssimulacra2: float
    worst: float
    psnr: float
    ssim: float
    iterations: int
    seconds: float
    label: str | None
    _original: files.DecodedImage = field(repr=False)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False, write_label: bool = False) -> None:
        """Write the image in the format of the suffix, with the original's alpha channel and metadata.

        Args:
            path: The file.
            overwrite: Replace an existing file (the original included).
            write_label: State the public label in the metadata as well, as Digital Source Type.

        Raises:
            ImageError: Unknown suffix, existing file, alpha or a label that the format does not support, or not
                writable.
            ValueError: There is no label to write, or `path` is none.
        """
        path = as_path("path", path)
        label = None if self.label == NO_LABEL else self.label
        if write_label and label is None:
            raise ValueError("write_label: there is no public label; give one to embed(label=...)")
        like = files.with_label(self._original, label, path, write=write_label)
        files.save(path, self.image, like=like, overwrite=overwrite)


@hidden_keys()
@in_own_modes
def embed(
    image: Image,
    *,
    key: Key | None = None,
    text: str | None = None,
    id: str | None = None,
    bits: str | Tensor | None = None,
    settings: str | Settings = "fast",
    extractor: str | os.PathLike[str] | Extractor = KEYED,
    model: str | os.PathLike[str] = MINI,
    prompt: str = "",
    mask: Tensor | None = None,
    label: str | None = NO_LABEL,
    size: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> MarkedImage:
    """Embed a message in an image; give one of `text`, `id` and `bits`.

    Args:
        image: See the module.
        key: Key of the watermark; needed unless raw bits are embedded for a third-party decoder.
        text: Up to 10 ASCII characters or 9 bytes of UTF-8.
        id: Hexadecimal, up to 18 digits; up to 6 take 48 bits.
        bits: Raw bits, a string of 0 and 1 or a tensor (k,), without error correction and check.
        settings: A preset's name, or settings such as ``PRESETS["fast"].with_(quality=95)``. A preset is
            adapted to the extractor (`Extractor.marking`), settings are used unchanged.
        extractor: The extractor that is to read the watermark: "keyed", "rivagan", a decoder file, or an `Extractor`.
        model: "mini" for the embedded model, or the path of a Stable Diffusion checkpoint.
        prompt: Description of the image.
        mask: (1, 1, H, W) in [0, 1]: area of the watermark; None for the whole image.
        label: Public label of a keyed watermark, one of `LABELS`, which everybody can read; None for a watermark
            without public layer. Where it is "none", the label of `settings` is kept. A public layer that the image has
            keeps its label, see `MarkedImage.label`.
        size: The shorter side at which the image is optimised, pixels; None: its own, from 512 up to four megapixels
            in all (`default_working_size`), above one with fewer iterations (`iterations_at`).
        seed: Seed of all random draws, 0 to 2^64 - 1.
        device: Device of model and extractor.

    Raises:
        ValueError: Invalid input; the message names the input and the remedy.
    """
    size = None if size is None else as_whole("size", size, MIN_SIDE, unit=" of pixels")
    seed = as_whole("seed", seed, 0, SEEDS - 1)
    check_types(mask=(mask, Tensor | None), settings=(settings, str | Settings), prompt=(prompt, str))
    as_path("model", model)
    device = _usable(device)
    original = _decoded(image)
    reader = _extractor(extractor, key)
    message = _message(key, text, id, bits, reader.sizes)
    if isinstance(settings, str):
        settings = preset_for(settings, reader)
    if label != NO_LABEL:
        settings = replace(settings, label=label)
    loaded = _model(os.fspath(model), device)
    marked = pipeline.embed(
        original.rgb.to(device),
        loaded.model,
        loaded.autoencoder,
        reader.for_bits(len(message.bits)).to(device),
        message.bits,
        positive=loaded.encode(prompt),
        null=loaded.encode(""),
        settings=settings,
        generator=torch.Generator().manual_seed(seed),
        size=size,
        mask=opaque_area(mask, original.alpha),
    )
    quality, worst = marked.judgement.quality, marked.judgement.worst
    figures = quality, worst, marked.psnr, marked.ssim, marked.iterations, marked.seconds
    return MarkedImage(marked.image.cpu(), message.bits, *figures, marked.label, original)


@hidden_keys()
@in_own_modes
def extract(
    image: Image,
    *,
    key: Key | None = None,
    fpr: float = 1e-6,
    search: bool = True,
    deep: bool = False,
    frames: int = 8,
    extractor: str | os.PathLike[str] | Extractor = KEYED,
    device: str = "cpu",
) -> Reading:
    """Read a watermark from an image or a clip, without the original.

    Args:
        image: See the module. Also the path of a video (extra [video]), or the frames of a clip, (F, 3, H, W): the
            frames are read together.
        key: Key of the watermark; without a key, a third-party decoder gives bits without a message.
        fpr: Largest false-positive rate, between 0 and 1.
        search: Whether to search all rotations and scales if nothing is detected without a search.
        deep: Whether to search small rotations and scales by the key alone after that, for minutes.
        frames: Of a video, read so many frames, 1 to 64, at even distances of time.
        extractor: See `embed`.
        device: Device of a third-party decoder.

    Raises:
        ValueError: Invalid input; the message names the input and the remedy.
    """
    frames = as_whole("frames", frames, 1, MOST_FRAMES)
    check_types(search=(search, bool), deep=(deep, bool))
    if isinstance(image, Tensor):
        pixels = as_rgb(image, batch=image.ndim == 4, min_side=MIN_SIDE)
    elif isinstance(image, (str, os.PathLike)) and is_video(image):
        pixels = sample(image, frames)
    else:
        pixels = _decoded(image).rgb
    return _extractor(extractor, key).to(_usable(device)).read(pixels, key, search=search, fpr=fpr, deep=deep)


@hidden_keys()
@in_own_modes
def detect(image: Image, *, fpr: float = 1e-6, search: bool = True) -> Detection:
    """Find the public layer of a watermark and its label, without a key.

    Everybody can read, write and remove the public layer: it tells that an image carries a watermark of this kind, and
    not whose.

    Args:
        image: See the module.
        fpr: Largest false-positive rate, between 0 and 1.
        search: Whether to search all rotations and scales if nothing is detected without a search.

    Raises:
        ValueError: Invalid input; the message names the input and the remedy.
    """
    check_type("search", search, bool)
    return pilot_search.detect(_decoded(image).rgb[None], search=search, fpr=fpr)


def _decoded(image: Image) -> files.DecodedImage:
    if isinstance(image, Tensor):
        return files.DecodedImage(as_rgb(image, min_side=MIN_SIDE).cpu())
    if isinstance(image, PIL.Image.Image):
        return files.from_pil(image)
    if not isinstance(image, (str, os.PathLike)):
        raise ValueError(
            f"image: is a {type(image).__name__}; give a path, a Pillow image or a tensor (3, height, width)"
        )
    return files.load(as_path("image", image))


def _usable(device: str) -> str:
    """A device that torch has here, and that holds values, which "meta" does not.

    Raises:
        ValueError: It has not.
    """
    check_type("device", device, str)
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device}: cannot be used ({str(error).splitlines()[0]}); use cpu") from None
    return device


def _extractor(extractor: str | os.PathLike[str] | Extractor, key: Key | None) -> Extractor:
    if key is not None:
        check_key(key)
    return extractor if isinstance(extractor, Extractor) else load_extractor(extractor, key)


def _message(
    key: Key | None, text: str | None, id: str | None, bits: str | Tensor | None, sizes: tuple[int, ...]
) -> Message:
    if sum(given is not None for given in (text, id, bits)) != 1:
        raise ValueError("message: give one of text, id and bits")
    if bits is not None:
        return raw(bits)
    if key is None:
        raise ValueError("key: a text or an id needs a key; create one with `onrw key new -o FILE` and Key.load(FILE)")
    size = sizes[0] if len(sizes) == 1 else None
    if text is not None:
        return encode_text(text, key, size)
    assert id is not None
    return encode_id(id, key, size)

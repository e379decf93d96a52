"""Reading and writing image files, with alpha channel and metadata.

Pixels are converted to 8-bit RGB: grey and palette images become RGB (transparency becomes alpha), CMYK and grey with a
colour profile are converted by it to sRGB, the orientation is applied. Alpha and the metadata of `metadata` are kept in
saved files; metadata that the format does not support is named in a warning. Images that do not fit 8-bit RGB (16 bit,
animation) are refused.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageCms, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from .atomic import Undo, atomic_write
from .formats import FORMATS, HEIF_BRANDS, open_image
from .metadata import collect, orient, split_png, with_chunks, writing
from .pixels import MIN_SIDE, as_rgb
from .regular import open_regular
from .rounding import LEVELS, to_8bit
from .source_type import read_source_type, with_source_type
from .tiff import encode_tiff

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "MIN_SIDE",
    "DecodedImage",
    "ImageError",
    "check_free",
    "check_holds",
    "encode",
    "from_pil",
    "labelled",
    "load",
    "read",
    "save",
    "with_label",
    "write",
]

MAX_PIXELS = 100_000_000
MAX_BYTES = 2**30  # of a file; MAX_PIXELS of 8 bits and four channels have 400 MB
JPEG_QUALITY = 95

NO_ALPHA = ("JPEG", "BMP")
MOST_SIDE = {"JPEG": 65500, "WEBP": 16383}  # pixels

BITS_PER_SAMPLE = 258  # TIFF tag
ICC_SPACE = slice(16, 20)  # the colour space in a colour profile
PROFILED = {("CMYK", b"CMYK"), ("L", b"GRAY"), ("LA", b"GRAY")}  # modes converted by a profile of that colour space
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

logger = logging.getLogger(__name__)


class ImageError(ValueError):
    """An image that cannot be read or written; the message names the file, the reason and the remedy."""


@dataclass(frozen=True)
class DecodedImage:
    """An image with its alpha channel and metadata.

    Attributes:
        rgb: (3, H, W), float32, multiples of 1/255, upright.
        alpha: (1, H, W) likewise, or None.
        info: Metadata that `save` keeps: "exif", "xmp", "iptc", "photoshop", "icc_profile" and "comment" (bytes), "dpi"
            (x, y), "xmp_extension" (JPEG segments, unchanged), "chunks" and "tones" (PNG chunks, unchanged); "dropped"
            names metadata that cannot be kept.
        format: Pillow's name of the file format, "" without a file.
        mode: Pillow's mode of the pixels in the file, such as "L" or "RGBA".
        lossless: Whether the file is losslessly compressed.
        path: The file, or None.
    """

    rgb: Tensor
    alpha: Tensor | None = None
    info: dict = field(default_factory=dict)
    format: str = ""
    mode: str = "RGB"
    lossless: bool = True
    path: Path | None = None


def read(path: str | os.PathLike) -> bytes:
    """The content of an image file, not decoded.

    Raises:
        ImageError: Missing, empty, unreadable, no regular file, or larger than any image that `load` accepts.
    """
    path = Path(path)
    with open_regular(path, ImageError) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise ImageError(f"{path}: has {size // 10**6} MB, too large for an image; scale it down first")
        try:
            content = file.read()
        except OSError as error:
            raise ImageError(f"{path}: cannot be read ({error})") from error
    if not content:
        raise ImageError(f"{path}: is empty")
    return content


def load(path: str | os.PathLike, content: bytes | None = None, *, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Read an image file.

    Args:
        path: The file.
        content: Its content, if `read` was called before.
        max_pixels: Largest number of pixels, at most `MAX_PIXELS`.

    Raises:
        ImageError: Missing, empty, truncated or not an image; animated, 16 bit, below 64 pixels or above `max_pixels`
            (found in the header, before anything is decoded).
    """
    path = Path(path)
    content = read(path) if content is None else content
    chunks: list[tuple[bytes, bytes]] = []
    if content.startswith(PNG_SIGNATURE):
        pixels, chunks = split_png(content)
    else:
        pixels = content
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes and of damaged metadata; the relevant cases are errors here.
            warnings.simplefilter("ignore")
            with open_image(io.BytesIO(pixels)) as image:
                _check(path, image, max_pixels)
                return _decode(path, image, chunks, content)
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise ImageError(_too_large(path, max_pixels)) from None
    except UnidentifiedImageError:
        if content[4:8] == b"ftyp" and content[8:12] in HEIF_BRANDS:
            raise ImageError(f"{path}: is a HEIC image, which cannot be read; export it as JPEG or PNG") from None
        raise ImageError(f"{path}: is not an image, or of an unknown format; convert it to PNG or JPEG") from None
    except Exception as error:  # decoders raise any kind of error on damaged files: OSError, TypeError, struct.error
        raise ImageError(f"{path}: is damaged or truncated ({error}); obtain the file again") from error


def from_pil(image: Image.Image) -> DecodedImage:
    """Convert a Pillow image, by the rules of the module.

    Raises:
        ImageError: Animated, 16 bit, below 64 pixels or above 100 megapixels.
    """
    name = Path(getattr(image, "filename", "") or "image")
    _check(name, image)
    return replace(_decode(name, image, [], b""), path=None, lossless=True)


def save(
    path: str | os.PathLike,
    rgb: Tensor,
    like: DecodedImage | None = None,
    *,
    overwrite: bool = False,
    quality: int = JPEG_QUALITY,
) -> None:
    """Write an image file atomically, in the format of its suffix.

    Args:
        path: The file; its suffix is one of `FORMATS`.
        rgb: (3, H, W) in [0, 1].
        like: Image whose alpha and metadata are kept.
        overwrite: Replace an existing file (the input included).
        quality: Quality of JPEG (colours at full resolution) and WebP, 1-100; WebP is lossless at 100, or if `like` is
            lossless WebP.

    Raises:
        ImageError: Unknown suffix, existing file, alpha that the format does not support, or not writable.
        ValueError: Pixels that `as_rgb` refuses.
    """
    path = Path(path)
    check_free(path, None if like is None else like.path, overwrite)
    write(path, encode(path, rgb, like, quality=quality), overwrite=overwrite)


def check_free(path: Path, source: Path | None, overwrite: bool) -> None:
    """Raise an error if a file exists and must not be replaced.

    Raises:
        ImageError: `path` exists and `overwrite` is false, or it is not a regular file.
    """
    if path.exists() and not path.is_file():
        raise ImageError(f"{path}: is not a regular file; name another")
    if path.exists() and not overwrite:
        own = source is not None and source.exists() and path.samefile(source)
        raise ImageError(f"{path}: {'is the input itself' if own else 'already exists'}; name another or overwrite it")


def encode(
    path: str | os.PathLike, rgb: Tensor, like: DecodedImage | None = None, *, quality: int = JPEG_QUALITY
) -> bytes:
    """The content of the file that `save` writes for these arguments.

    Raises:
        ImageError: Unknown suffix, or alpha or metadata that the format does not support.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ImageError(f"{path}: unknown suffix {path.suffix!r}; use one of {', '.join(FORMATS)}")
    kind = FORMATS[path.suffix.lower()]
    levels = _levels(path, kind, rgb, like)
    info = {} if like is None else like.info
    options, lost = writing(kind, info)
    if lost:
        logger.warning("%s: %s does not support these of the input, which are lost: %s", path, kind, ", ".join(lost))
    try:
        if kind == "TIFF":
            return encode_tiff(levels, **options)
        content = io.BytesIO()
        lossless = quality == 100 or (like is not None and like.format == "WEBP" and like.lossless)
        Image.fromarray(levels).save(content, kind, **_options(kind, quality, lossless), **options)
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be written ({error})") from error
    return with_chunks(content.getvalue(), info) if kind == "PNG" else content.getvalue()


def write(
    path: str | os.PathLike, content: bytes, commit: Callable[[], Undo] = lambda: None, *, overwrite: bool = True
) -> None:
    """Write the result of `encode` atomically.

    Args:
        path: The file.
        content: Its bytes.
        commit: Called when the bytes are on the disk, before they get the file's name; see `atomic_write`.
        overwrite: Whether an existing file may be replaced.

    Raises:
        ImageError: Not writable, or a file that must not be replaced.
    """
    try:
        with atomic_write(path, overwrite=overwrite, commit=lambda written: commit()) as file:
            file.write(content)
    except FileNotFoundError:
        raise ImageError(f"{path}: its folder does not exist; make it first") from None
    except FileExistsError:
        raise ImageError(f"{path}: already exists; name another or overwrite it") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be written ({error})") from error


def labelled(image: DecodedImage, label: str, path: str | os.PathLike) -> DecodedImage:
    """A copy of an image whose metadata state a label as Digital Source Type.

    Args:
        image: The image.
        label: See `source_type`.
        path: The file that it is for.

    Raises:
        ImageError: The file's format has no XMP, or that of the image is damaged.
    """
    if FORMATS.get(Path(path).suffix.lower()) == "BMP":
        raise ImageError(f"{path}: BMP has no metadata for a label; write PNG, JPEG, WebP or TIFF")
    try:
        xmp = with_source_type(image.info.get("xmp", b""), label)
    except ValueError as error:
        raise ImageError(
            f"{image.path or path}: {error}; without a label in the metadata it is kept as it is"
        ) from None
    return replace(image, info=image.info | {"xmp": xmp})


def with_label(image: DecodedImage, label: str | None, path: str | os.PathLike, write: bool) -> DecodedImage:
    """A marked image whose metadata agree with its public label; a warning says where they do not, or did not.

    Args:
        image: The image.
        label: Its public label, see `source_type`; None where it has none to state.
        path: The file that it is for.
        write: State the label in the metadata.

    Raises:
        ImageError: See `labelled`.
    """
    stated = read_source_type(image.info.get("xmp", b""))
    if label is not None and stated not in (None, label):
        what = "replaced by" if write else "not changed, but the public label of the watermark is"
        logger.warning("%s: the label in the metadata, %s, is %s %s", path, stated, what, label)
    if write and label is None:
        logger.warning("%s: its public layer has no label, so none is stated in the metadata", path)
    return labelled(image, label, path) if write and label is not None else image


def check_holds(path: str | os.PathLike, like: DecodedImage) -> None:
    """Raise an error if the format of a result does not support the size or the transparency of `like`.

    Args:
        path: The result, its suffix one of `FORMATS`.
        like: Image of the same size and alpha; an opaque alpha channel may be lost.

    Raises:
        ImageError: See above.
    """
    kind = FORMATS[Path(path).suffix.lower()]
    height, width = like.rgb.shape[-2:]
    if max(height, width) > MOST_SIDE.get(kind, max(height, width)):
        raise ImageError(f"{path}: {kind} cannot hold {width}x{height} pixels; write PNG or TIFF")
    if kind in NO_ALPHA and like.alpha is not None and like.alpha.min() < 1:
        raise ImageError(f"{path}: {kind} cannot hold the transparency of the input; write PNG, WebP or TIFF")


def _check(path: Path, image: Image.Image, max_pixels: int = MAX_PIXELS) -> None:
    """Check the header before an image is decoded."""
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(_too_large(path, max_pixels))
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{path}: is {width}x{height} pixels; at least {MIN_SIDE} on each side are needed")
    # MPO, as phones write it, is a JPEG followed by a depth map or a second view; the first image is used.
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise ImageError(f"{path}: has {frames} frames or pages; save one of them as an image")
    if _deep(image):
        raise ImageError(f"{path}: has more than 8 bits per channel, which would be lost; convert it to 8 bit first")


def _too_large(path: Path, max_pixels: int) -> str:
    return f"{path}: has more than {max_pixels // 10**6} megapixels; scale it down first"


def _deep(image: Image.Image) -> bool:
    """More than 8 bits per channel: by raw mode or tag, since Pillow reads 16-bit RGB as 8-bit RGB."""
    if image.mode.startswith(("I", "F")):
        return True
    if isinstance(image, TiffImageFile) and max(image.tag_v2.get(BITS_PER_SAMPLE, (8,))) > 8:
        return True
    arguments: Any = image.tile[0][3] if isinstance(image, PngImageFile) and image.tile else ""
    return ";16" in (arguments if isinstance(arguments, str) else str(arguments[0]))


def _lossless(kind: str, content: bytes) -> bool:
    """Whether a file is losslessly compressed; of WebP, its first chunk of pixels is of either kind."""
    if kind != "WEBP":
        return kind not in ("JPEG", "MPO", "AVIF")
    at = 12
    while at + 8 <= len(content):
        if content[at : at + 4] in (b"VP8L", b"VP8 "):
            return content[at : at + 4] == b"VP8L"
        at += 8 + (int.from_bytes(content[at + 4 : at + 8], "little") + 1) // 2 * 2
    return False


def _decode(path: Path, image: Image.Image, chunks: list, content: bytes) -> DecodedImage:
    kind, mode = image.format or "", image.mode
    image.load()
    info = collect(image, chunks, content)
    upright = _to_rgb(path, orient(image, info), info)
    lossless = _lossless(kind, content)
    pixels = torch.from_numpy(np.stack([np.asarray(band) for band in upright.split()])).float().div_(LEVELS)
    alpha = pixels[3:] if len(pixels) == 4 else None
    return DecodedImage(pixels[:3], alpha, info, "JPEG" if kind == "MPO" else kind, mode, lossless, path)


def _to_rgb(path: Path, image: Image.Image, info: dict) -> Image.Image:
    """RGB or RGBA, by the rules of the module; a profile of another colour space is applied and removed from `info`."""
    profile = info.get("icc_profile", b"")
    if profile and profile[ICC_SPACE] != b"RGB ":
        del info["icc_profile"]
        if (image.mode, profile[ICC_SPACE]) in PROFILED:
            try:
                return _by_profile(image, profile)
            except (ImageCms.PyCMSError, OSError, ValueError):
                logger.warning("%s: its colour profile cannot be used; colours are converted without it", path)
        else:
            info["dropped"] = (*info.get("dropped", ()), "the colour profile, which is damaged or of other colours")
    transparent = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    try:
        return image.convert("RGBA" if transparent else "RGB")
    except ValueError as error:
        raise ImageError(f"{path}: pixels of mode {image.mode} are not supported; convert it to RGB") from error


def _transformed(image: Image.Image, source: io.BytesIO, target: ImageCms.core.CmsProfile) -> Image.Image:
    """An image in RGB, from one profile to another."""
    result = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    assert result is not None  # None is for conversion in place
    return result


def _by_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """Conversion to sRGB by a colour profile; grey stays grey."""
    source, target = io.BytesIO(profile), ImageCms.createProfile("sRGB")
    if image.mode == "CMYK":
        return _transformed(image, source, target)
    if "transparency" in image.info:
        image = image.convert("LA")
    grey = _transformed(image.getchannel("L"), source, target).getchannel("G")
    bands = [grey] * 3 + ([image.getchannel("A")] if image.mode == "LA" else [])
    return Image.merge("RGBA" if len(bands) == 4 else "RGB", bands)


def _levels(path: Path, kind: str, rgb: Tensor, like: DecodedImage | None) -> np.ndarray:
    """Colours and alpha, (H, W, 3 or 4) of uint8."""
    rgb = as_rgb(rgb, str(path)).cpu()
    alpha = None
    if like is not None:
        check_holds(path, like)
        alpha = None if kind in NO_ALPHA else like.alpha
    if alpha is not None and alpha.shape[-2:] != rgb.shape[-2:]:
        raise ImageError(f"{path}: alpha of {tuple(alpha.shape[-2:])} pixels does not fit {tuple(rgb.shape[-2:])}")
    channels = rgb if alpha is None else torch.cat([rgb, alpha])
    return rearrange(to_8bit(channels), "c h w -> h w c").contiguous().numpy()


def _options(kind: str, quality: int, lossless: bool) -> dict:
    if kind == "JPEG":
        return {"quality": quality, "subsampling": "4:4:4"}
    if kind == "WEBP":
        # exact: keeps colours of fully transparent pixels
        return {"quality": 100 if lossless else quality, "lossless": lossless, "exact": True, "method": 4}
    return {}

"""Reading and writing picture files without losing what they hold beside the colours.

Pixels are brought to 8-bit RGB by these rules: grey and palette become RGB (transparency becomes alpha), CMYK goes
through its colour profile to sRGB, the EXIF orientation is applied. Alpha, EXIF, XMP, colour profile, resolution and
text chunks are carried over to what is saved. What 8-bit RGB cannot hold (16 bit, animation) is refused.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from .files import atomic_write
from .rounding import LEVELS

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "MIN_SIDE",
    "ImageError",
    "Picture",
    "check_alpha",
    "check_free",
    "encode",
    "load",
    "read",
    "save",
    "write",
]

MIN_SIDE = 64
MAX_PIXELS = 100_000_000
MAX_BYTES = 2**30  # of a file; MAX_PIXELS of 8 bits and four channels are 400 MB
JPEG_QUALITY = 95

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
NO_ALPHA = ("JPEG", "BMP")

BITS_PER_SAMPLE = 258  # TIFF tag
# What is worth keeping of a TIFF's own directory: description, make, model, software, date, artist, copyright, and the
# EXIF and GPS directories. The rest says how that file is laid out.
EXIF_DIRECTORIES = (34665, 34853)
TIFF_TAGS = (270, 271, 272, 305, 306, 315, 33432, *EXIF_DIRECTORIES)
ORIENTATION = 274
ICC_SPACE = slice(16, 20)  # where a colour profile names its colour space

logger = logging.getLogger(__name__)


class ImageError(ValueError):
    """A picture that cannot be read or written, named, with the reason and the remedy."""


@dataclass(frozen=True)
class Picture:
    """A picture and what came with it.

    Attributes:
        rgb: (3, H, W), float32, multiples of 1/255, upright.
        alpha: (1, H, W) likewise, or None.
        info: What `save` carries over: "exif" and "xmp" and "icc_profile" (bytes), "dpi" (x, y), "text" (PNG chunks),
            "comment" (JPEG).
        format: Pillow's name of the file format, "" if there is no file.
        mode: Pillow's mode of the pixels in the file, such as "L" or "RGBA".
        path: Where it was read from.
    """

    rgb: Tensor
    alpha: Tensor | None = None
    info: dict = field(default_factory=dict)
    format: str = ""
    mode: str = "RGB"
    path: Path | None = None


def read(path: str | os.PathLike) -> bytes:
    """A picture file's content, not decoded.

    Raises:
        ImageError: Missing, empty, unreadable, or larger than any picture that `load` takes.
    """
    path = Path(path)
    if not path.exists():
        raise ImageError(f"{path}: no such file")
    if path.is_dir():
        raise ImageError(f"{path}: is a folder, not a picture")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ImageError(f"{path}: has {size // 10**6} MB, too much for a picture; scale it down first")
        content = path.read_bytes()
    except PermissionError:
        raise ImageError(f"{path}: cannot be read; check its permissions") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error})") from error
    if not content:
        raise ImageError(f"{path}: is empty")
    return content


def load(path: str | os.PathLike, content: bytes | None = None) -> Picture:
    """Read a picture file.

    Args:
        path: The file.
        content: What `read` returned for it, where the caller has that already.

    Raises:
        ImageError: Missing, empty, truncated or not a picture; animated, 16 bit, below 64 pixels or above 100
            megapixels (found in the header, before anything is decoded).
    """
    path = Path(path)
    file = io.BytesIO(read(path) if content is None else content)
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes and of broken metadata; what matters of it is an error here.
            warnings.simplefilter("ignore")
            with Image.open(file) as image:
                _check(path, image)
                return _decode(path, image)
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise ImageError(_too_large(path)) from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: is not a picture, or of an unknown format; convert it to PNG or JPEG") from None
    except Exception as error:  # decoders meet broken files with whatever comes: OSError, TypeError, struct.error
        raise ImageError(f"{path}: is damaged or truncated ({error}); get the file again") from error


def save(
    path: str | os.PathLike,
    rgb: Tensor,
    like: Picture | None = None,
    *,
    overwrite: bool = False,
    quality: int = JPEG_QUALITY,
) -> None:
    """Write a picture file, whole or not at all; the suffix says the format.

    Args:
        path: Ends in one of `FORMATS`.
        rgb: (3, H, W) in [0, 1].
        like: Where alpha and metadata come from.
        overwrite: Replace a file that is already there (the input included).
        quality: Of JPEG (colours at full resolution) and WebP (100: lossless), 1-100.

    Raises:
        ImageError: Unknown suffix, file already there, alpha that the format cannot hold, or not writable.
    """
    path = Path(path)
    check_free(path, None if like is None else like.path, overwrite)
    write(path, encode(path, rgb, like, quality=quality))


def check_free(path: Path, source: Path | None, overwrite: bool) -> None:
    """Refuse to replace a file without leave.

    Raises:
        ImageError: See above.
    """
    if path.exists() and not overwrite:
        own = source is not None and source.exists() and path.samefile(source)
        raise ImageError(f"{path}: {'is the input itself' if own else 'already exists'}; name another or overwrite it")


def encode(path: str | os.PathLike, rgb: Tensor, like: Picture | None = None, *, quality: int = JPEG_QUALITY) -> bytes:
    """What `save` writes, the arguments being the same.

    Raises:
        ImageError: Unknown suffix, or alpha or metadata that the format cannot hold.
    """
    path, content = Path(path), io.BytesIO()
    if path.suffix.lower() not in FORMATS:
        raise ImageError(f"{path}: unknown suffix {path.suffix!r}; use one of {', '.join(FORMATS)}")
    kind = FORMATS[path.suffix.lower()]
    image = _encode(path, kind, rgb, like)
    options = _options(kind, quality) | _metadata(path, kind, {} if like is None else like.info)
    try:
        image.save(content, kind, **options)
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be written ({error})") from error
    return content.getvalue()


def write(path: str | os.PathLike, content: bytes, commit: Callable[[], None] = lambda: None) -> None:
    """Write what `encode` returned, whole or not at all, over whatever is there.

    Args:
        path: The file.
        content: Its bytes.
        commit: Called when the bytes are on the disk and before they get the file's name. If it raises, they never do.

    Raises:
        ImageError: Not writable.
    """
    try:
        with atomic_write(path) as file:
            file.write(content)
            file.flush()
            commit()
    except FileNotFoundError:
        raise ImageError(f"{path}: its folder does not exist; make it first") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be written ({error})") from error


def check_alpha(path: str | os.PathLike, like: Picture) -> None:
    """Refuse a result whose format would lose the transparency of `like`; alpha that is opaque everywhere may go.

    Args:
        path: The result, its suffix one of `FORMATS`.
        like: Where alpha comes from.

    Raises:
        ImageError: See above.
    """
    kind = FORMATS[Path(path).suffix.lower()]
    if kind in NO_ALPHA and like.alpha is not None and like.alpha.min() < 1:
        raise ImageError(f"{path}: {kind} cannot hold the transparency of the input; write PNG, WebP or TIFF")


def _check(path: Path, image: Image.Image) -> None:
    """Refuse by the header what is not to be decoded."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(_too_large(path))
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{path}: is {width}x{height} pixels; at least {MIN_SIDE} on each side are needed")
    # MPO is what phones write: a JPEG with a depth map or a second view behind it. The first picture is the picture.
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise ImageError(f"{path}: has {image.n_frames} frames or pages; save the one you mean as a picture of its own")
    if _deep(image):
        raise ImageError(f"{path}: has more than 8 bits per channel, which would be lost; convert it to 8 bit first")


def _too_large(path: Path) -> str:
    return f"{path}: has more than {MAX_PIXELS // 10**6} megapixels; scale it down first"


def _deep(image: Image.Image) -> bool:
    """More than 8 bits per channel. Pillow reads 16-bit RGB as 8-bit RGB; only the raw mode or the tag tells."""
    if image.mode.startswith(("I", "F")):
        return True
    if image.format == "TIFF" and max(image.tag_v2.get(BITS_PER_SAMPLE, (8,))) > 8:
        return True
    arguments = image.tile[0][3] if image.format == "PNG" and image.tile else ""
    return ";16" in (arguments if isinstance(arguments, str) else str(arguments[0]))


def _decode(path: Path, image: Image.Image) -> Picture:
    kind, mode = image.format or "", image.mode
    text = dict(image.text) if kind == "PNG" else {}  # reads the file to its end: there is text after the pixels
    image.load()
    if kind == "TIFF":
        image.info["exif"] = _tiff_exif(image)
    upright = ImageOps.exif_transpose(image)
    info = {key: upright.info[key] for key in ("exif", "xmp", "icc_profile", "comment") if upright.info.get(key)}
    if text:
        info["text"] = text
    dpi = tuple(float(value) for value in upright.info.get("dpi", ()))
    if len(dpi) == 2 and all(0 < value < 1e6 for value in dpi):
        info["dpi"] = dpi
    upright = _to_rgb(path, upright)
    profile = info.get("icc_profile", b"")
    if profile and profile[ICC_SPACE] != b"RGB ":
        del info["icc_profile"]  # of the grey or CMYK values that are no longer there
    pixels = torch.from_numpy(np.stack([np.asarray(band) for band in upright.split()])).float().div_(LEVELS)
    alpha = pixels[3:] if len(pixels) == 4 else None
    return Picture(pixels[:3], alpha, info, "JPEG" if kind == "MPO" else kind, mode, path)


def _to_rgb(path: Path, image: Image.Image) -> Image.Image:
    """RGB or RGBA, by the rules of the module."""
    profile = image.info.get("icc_profile")
    if image.mode == "CMYK" and profile:
        try:
            return ImageCms.profileToProfile(
                image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except ImageCms.PyCMSError:
            logger.warning("%s: its CMYK profile cannot be used; colours are converted without it", path)
    transparent = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    try:
        return image.convert("RGBA" if transparent else "RGB")
    except ValueError as error:
        raise ImageError(f"{path}: pixels of mode {image.mode} are not supported; convert it to RGB") from error


def _tiff_exif(image: Image.Image) -> bytes:
    """A TIFF's directory reduced to what describes the picture; its orientation is kept for the transposition."""
    kept, source = Image.Exif(), image.getexif()
    for tag in (*TIFF_TAGS, ORIENTATION):
        if tag in source:
            kept[tag] = source.get_ifd(tag) if tag in EXIF_DIRECTORIES else source[tag]
    return kept.tobytes() if kept else b""


def _encode(path: Path, kind: str, rgb: Tensor, like: Picture | None) -> Image.Image:
    if rgb.dim() != 3 or len(rgb) != 3:
        raise ImageError(f"{path}: expected colours of shape (3, H, W), got {tuple(rgb.shape)}")
    alpha = None
    if like is not None:
        check_alpha(path, like)
        alpha = None if kind in NO_ALPHA else like.alpha
    if alpha is not None and alpha.shape[-2:] != rgb.shape[-2:]:
        raise ImageError(f"{path}: alpha of {tuple(alpha.shape[-2:])} pixels does not fit {tuple(rgb.shape[-2:])}")
    channels = rgb.detach().cpu() if alpha is None else torch.cat([rgb.detach().cpu(), alpha])
    levels = (channels.clamp(0, 1) * LEVELS).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def _options(kind: str, quality: int) -> dict:
    if kind == "JPEG":
        return {"quality": quality, "subsampling": "4:4:4"}
    if kind == "WEBP":
        # exact: colours under full transparency stay
        return {"quality": quality, "lossless": quality == 100, "exact": True, "method": 4}
    return {"compression": "tiff_adobe_deflate"} if kind == "TIFF" else {}


def _metadata(path: Path, kind: str, info: dict) -> dict:
    """Arguments of Pillow's save that carry `info` over, as far as the format can hold it."""
    kept = {key: info[key] for key in ("exif", "icc_profile", "dpi", "xmp") if key in info}
    if kind == "JPEG" and "comment" in info:
        kept["comment"] = info["comment"]
    if "text" not in info:
        return kept
    if kind != "PNG":
        logger.warning("%s: %s cannot hold the text chunks of the input; write PNG to keep them", path, kind)
        return kept
    chunks = PngImagePlugin.PngInfo()
    for key, value in info["text"].items():
        if isinstance(value, PngImagePlugin.iTXt):
            chunks.add_itxt(key, value, value.lang, value.tkey)
        else:
            chunks.add_text(key, value)
    return kept | {"pnginfo": chunks}

"""Metadata of image files, read from and written to each format.

Exif, XMP, IPTC and colour profile exist in several formats, text chunks in PNG alone. Text chunks are kept unchanged,
including repeated keywords, translations and large texts; only Exif, XMP and IPTC in such chunks are extracted, since
they may contain the orientation. Metadata that a format does not support is returned by name.

References: PNG specification (11.3.3), Exif 2.32, XMP specification part 3, IPTC IIM 4.2, Adobe Photoshop file formats
(image resource 0x0404), TIFF 6.0.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

from PIL import Image, PngImagePlugin
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

__all__ = ["collect", "orient", "split_png", "tiff_tags", "writing"]

ORIENTATION = 274
EXIF, GPS, INTEROPERABILITY = 34665, 34853, 40965
DIRECTORIES = (EXIF, GPS)
# Tags kept of a TIFF directory: description, make, model, software, date, artist, copyright, and the Exif and GPS
# directories. The others describe the layout of the file.
KEPT_TIFF_TAGS = (270, 271, 272, 305, 306, 315, 33432, *DIRECTORIES)
TIFF_XMP, TIFF_IPTC, TIFF_PHOTOSHOP, TIFF_ICC = 700, 33723, 34377, 34675

TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
TONE_CHUNKS = (b"gAMA", b"cHRM", b"sRGB", b"cICP")  # colour space of an image without a profile
PROFILE_CHUNK = b"iCCP"
TAKEN_CHUNKS = (*TEXT_CHUNKS, *TONE_CHUNKS, PROFILE_CHUNK)
XMP_KEYWORD = "XML:com.adobe.xmp"
EXIF_KEYWORDS = ("Raw profile type exif", "Raw profile type APP1")
IPTC_KEYWORDS = ("Raw profile type iptc", "Raw profile type 8bim")
XMP_PROFILE_KEYWORD = "Raw profile type xmp"
MOST_TEXT = 2**24  # bytes of a decompressed text that is parsed; longer texts are kept unparsed

IPTC_RESOURCE = 0x0404
IPTC_HEADER = b"8BIM\x04\x04\0\0"
PHOTOSHOP_HEADER = b"Photoshop 3.0\0"
EXIF_HEADER = b"Exif\0\0"
SEGMENT = 65533  # bytes that a JPEG segment holds

XMP_ORIENTATION = re.compile(rb'\s*tiff:Orientation="([0-9])"|<tiff:Orientation>([0-9])</tiff:Orientation>')
# JPEG segments that are read (JFIF, Exif and XMP, profile and MPO, Photoshop) or describe the pixels (Adobe).
KNOWN_SEGMENTS = ("APP0", "APP1", "APP2", "APP13", "APP14", "COM")

Chunk = tuple[bytes, bytes]


# ---- reading


def split_png(content: bytes) -> tuple[bytes, list[Chunk]]:
    """A PNG file without the chunks that are kept unchanged, and these chunks as (type, data).

    Pillow would keep one text per keyword, and refuse files with a large text or profile.
    """
    rest, chunks, at = [content[:8]], [], 8
    while at + 12 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        kind, data = content[at + 4 : at + 8], content[at + 8 : end - 4]
        whole = end <= len(content) and zlib.crc32(kind + data) == int.from_bytes(content[end - 4 : end], "big")
        if kind in TAKEN_CHUNKS and whole:
            chunks.append((kind, data))
        else:
            rest.append(content[at:end])
        at = end
    return b"".join([*rest, content[at:]]), chunks


def collect(image: Image.Image, chunks: list[Chunk]) -> dict:
    """The metadata of an opened and decoded image, see `files.DecodedImage.info`.

    Args:
        image: From Pillow.
        chunks: What `split_png` took out of its file.
    """
    found = {key: image.info[key] for key in ("exif", "xmp", "icc_profile") if image.info.get(key)}
    if isinstance(found.get("xmp"), str):
        found["xmp"] = found["xmp"].encode()
    comment = image.info.get("comment")
    if comment:
        found["comment"] = comment if isinstance(comment, bytes) else comment.encode("latin-1", "replace")
    dpi = tuple(float(value) for value in image.info.get("dpi", ()))
    if len(dpi) == 2 and all(0 < value < 1e6 for value in dpi):
        found["dpi"] = dpi
    dropped = []
    if isinstance(image, TiffImageFile):
        found.pop("exif", None)
        found |= _of_tiff(image)
    elif isinstance(image, JpegImageFile):  # MPO is a kind of JPEG
        segments = [data for name, data in image.applist if name == "APP13" and data.startswith(PHOTOSHOP_HEADER)]
        iptc = _iptc(b"".join(data.removeprefix(PHOTOSHOP_HEADER) for data in segments))
        if iptc:
            found["iptc"] = iptc
        names = sorted({name for name, _ in image.applist if name not in KNOWN_SEGMENTS})
        dropped += [f"{name} segments" + " (where C2PA manifests are)" * (name == "APP11") for name in names]
        if image.format == "MPO":
            dropped.append("the images after the first (depth map, other views)")
    elif isinstance(image, PngImageFile):
        names = sorted({chunk[0].decode("latin-1") for chunk in image.private_chunks})
        dropped += [f"{name} chunks" + " (a C2PA manifest)" * (name == "caBX") for name in names]
    for kind, data in chunks:
        if kind == PROFILE_CHUNK:
            found["icc_profile"] = _text(b"zTXt", data)  # a name and compressed data, as in that chunk
    if not found.get("icc_profile", b"-"):
        del found["icc_profile"]
        dropped.append("the colour profile, which is damaged")
    found |= _of_text([chunk for chunk in chunks if chunk[0] in TEXT_CHUNKS], found)
    tones = [chunk for chunk in chunks if chunk[0] in TONE_CHUNKS]
    if tones and "icc_profile" not in found:
        found["tones"] = tones
    if dropped:
        found["dropped"] = tuple(dropped)
    return found


def _of_tiff(image: TiffImageFile) -> dict:
    """The descriptive tags of a TIFF directory, with the orientation for `orient`."""
    kept, source, found = Image.Exif(), image.getexif(), {}
    for tag in (*KEPT_TIFF_TAGS, ORIENTATION):
        if tag in source:
            kept[tag] = source.get_ifd(tag) if tag in DIRECTORIES else source[tag]
    if kept:
        found["exif"] = kept.tobytes()
    iptc = _bytes(image.tag_v2.get(TIFF_IPTC)) or _iptc(_bytes(image.tag_v2.get(TIFF_PHOTOSHOP)))
    return found | ({"iptc": iptc} if iptc else {})


def _bytes(value: object) -> bytes:
    """A TIFF tag of bytes, also if written as 32-bit numbers."""
    if isinstance(value, tuple):
        value = b"".join(v.to_bytes(4, "little") for v in value) if all(isinstance(v, int) for v in value) else b""
    return value if isinstance(value, bytes) else b""


def _iptc(resources: bytes) -> bytes:
    """IPTC among Photoshop's image resources; empty if there is none."""
    at = 0
    while resources[at : at + 4] == b"8BIM" and at + 12 <= len(resources):
        kind = int.from_bytes(resources[at + 4 : at + 6], "big")
        start = at + 6 + (resources[at + 6] + 2) // 2 * 2  # the name and its length, padded to even
        size = int.from_bytes(resources[start : start + 4], "big")
        if kind == IPTC_RESOURCE:
            return resources[start + 4 : start + 4 + size]
        at = start + 4 + (size + 1) // 2 * 2
    return b""


def _of_text(chunks: list[Chunk], found: dict) -> dict:
    """Exif, XMP and IPTC in text chunks, unless `found` elsewhere; the other chunks unchanged."""
    taken: dict = {}
    others = []
    for kind, data in chunks:
        keyword = data.split(b"\0", 1)[0].decode("latin-1")
        name, value = "", b""
        if keyword == XMP_KEYWORD:
            name, value = "xmp", _text(kind, data)
        elif keyword == XMP_PROFILE_KEYWORD:
            name, value = "xmp", _profile(_text(kind, data))
        elif keyword in EXIF_KEYWORDS:
            name, value = "exif", _profile(_text(kind, data))
            if value.startswith(b"http"):  # APP1 contains either
                name, value = "xmp", value.split(b"\0", 1)[-1]
        elif keyword in IPTC_KEYWORDS:
            name, value = "iptc", _profile(_text(kind, data))
            value = _iptc(value) if value.startswith(b"8BIM") else value
        if not value:
            others.append((kind, data))
        elif name not in found and name not in taken:
            taken[name] = value
    return taken | ({"chunks": others} if others else {})


def _text(kind: bytes, data: bytes) -> bytes:
    """The text of a chunk; empty if it is malformed or too large to be parsed."""
    _, _, value = data.partition(b"\0")
    packed = kind == b"zTXt"
    if packed:
        value = value[1:]
    elif kind == b"iTXt":
        packed, value = value[:1] == b"\1", value[2:].split(b"\0", 2)[-1]
    if packed:
        unpacking = zlib.decompressobj()
        try:
            value = unpacking.decompress(value, MOST_TEXT)
        except zlib.error:
            return b""
        return b"" if unpacking.unconsumed_tail else value
    return value


def _profile(text: bytes) -> bytes:
    """ImageMagick's "Raw profile": a name, a length and hexadecimal digits, on separate lines."""
    parts = text.split(b"\n", 3)
    try:
        return bytes.fromhex(b"".join(parts[3].split()).decode("ascii")) if len(parts) == 4 else b""
    except ValueError:
        return b""


def orient(image: Image.Image, info: dict) -> Image.Image:
    """Apply the orientation of Exif or XMP, and remove it from `info`."""
    exif = Image.Exif()
    try:
        exif.load(info.get("exif", b""))
        orientation = exif.get(ORIENTATION)
    except Exception:  # Pillow's parser raises any kind of error on damaged Exif
        orientation = None
    match = XMP_ORIENTATION.search(info.get("xmp", b""))
    if match:
        info["xmp"] = XMP_ORIENTATION.sub(b"", info["xmp"])
        orientation = orientation or int(match[1] or match[2])
    if ORIENTATION in exif:
        del exif[ORIENTATION]
        info["exif"] = exif.tobytes()
        if not len(exif):
            del info["exif"]
    method = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation or 1)
    return image if method is None else image.transpose(method)


# ---- writing


def writing(kind: str, info: dict) -> tuple[dict, list[str]]:
    """Arguments of Pillow's save that write `info` in the format `kind`, and the names of lost metadata.

    The tags of TIFF are those of `tiff_tags`.
    """
    lost = list(info.get("dropped", ()))
    held = {
        "JPEG": {"exif", "xmp", "iptc", "icc_profile", "dpi", "comment"},
        "PNG": {"exif", "xmp", "iptc", "icc_profile", "dpi", "comment", "chunks", "tones"},
        "WEBP": {"exif", "xmp", "icc_profile"},
        "TIFF": {"exif", "xmp", "iptc", "icc_profile", "dpi"},
        "BMP": {"dpi"},
    }[kind]
    options = {key: value for key, value in info.items() if key in held}
    if kind == "JPEG":
        limits = {"exif": len(EXIF_HEADER), "comment": 0, "xmp": 29, "iptc": len(PHOTOSHOP_HEADER) + 13}
        for key, header in limits.items():
            if len(options.get(key, b"")) > SEGMENT - header:
                del options[key]
        if "exif" in options and not options["exif"].startswith(EXIF_HEADER):
            options["exif"] = EXIF_HEADER + options["exif"]
        if "iptc" in options:
            segment = PHOTOSHOP_HEADER + _resource(options.pop("iptc"))
            options["extra"] = b"\xff\xed" + (len(segment) + 2).to_bytes(2, "big") + segment
        held &= {*options, "iptc"} if "extra" in options else {*options}
    elif kind == "PNG":
        options = {key: value for key, value in options.items() if key in ("exif", "icc_profile", "dpi")}
        options["pnginfo"] = _png_text(info)
    names = {
        "exif": "Exif",
        "xmp": "XMP",
        "iptc": "IPTC",
        "icc_profile": "the colour profile",
        "comment": "the comment",
        "chunks": "PNG text chunks",
        "dpi": "the resolution",
    }
    if all(chunk != b"sRGB" for chunk, _ in info.get("tones", ())):  # sRGB is the default without a profile
        names["tones"] = "PNG's gamma and primaries"
    return options, lost + [name for key, name in names.items() if key in info and key not in held]


def _png_text(info: dict) -> PngImagePlugin.PngInfo:
    text = PngImagePlugin.PngInfo()
    if "xmp" in info:
        text.add_itxt(XMP_KEYWORD, info["xmp"].decode("utf-8", "replace"))
    if "iptc" in info:
        data = _resource(info["iptc"])
        text.add_text("Raw profile type iptc", f"\niptc\n{len(data):8}\n{data.hex()}\n", zip=True)
    if "comment" in info:
        text.add_text("Comment", info["comment"].decode("latin-1"))
    for kind, data in (*info.get("tones", ()), *info.get("chunks", ())):
        text.add(kind, data)
    return text


def _resource(iptc: bytes) -> bytes:
    """IPTC as an image resource of Photoshop."""
    return IPTC_HEADER + len(iptc).to_bytes(4, "big") + iptc + b"\0" * (len(iptc) % 2)


def tiff_tags(info: dict) -> Iterator[tuple[int, object]]:
    """The tags of `info` in a TIFF directory."""
    exif = Image.Exif()
    exif.load(info.get("exif", b""))
    for tag in KEPT_TIFF_TAGS:
        if tag in DIRECTORIES:
            inner = dict(exif.get_ifd(tag))
            if tag == EXIF and INTEROPERABILITY in inner:
                inner[INTEROPERABILITY] = dict(exif.get_ifd(INTEROPERABILITY))
            if inner:
                yield tag, inner
        elif tag in exif:
            yield tag, exif[tag]
    for key, tag in (("xmp", TIFF_XMP), ("iptc", TIFF_IPTC), ("icc_profile", TIFF_ICC)):
        if key in info:
            yield tag, info[key]

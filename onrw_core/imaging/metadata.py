"""Metadata of image files, read from and written to each format.

Exif, XMP, IPTC and colour profile exist in several formats, text chunks in PNG alone. Chunks are kept unchanged,
including repeated keywords, translations and large texts; only Exif, XMP and IPTC in text chunks are extracted, since
they may contain the orientation. Metadata that a format does not support is returned by name.

References: PNG specification (11.3), Exif 2.32, XMP specification part 3, IPTC IIM 4.2, Adobe Photoshop file formats
(image resources), TIFF 6.0.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable

from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from . import tiff
from .source_type import encoding_of

__all__ = ["collect", "orient", "split_png", "with_chunks", "writing"]

ORIENTATION, RESOLUTION_UNIT, RESOLUTIONS = 274, 296, (282, 283)
TIFF_XMP, TIFF_IPTC, TIFF_PHOTOSHOP, TIFF_ICC = 700, 33723, 34377, 34675
APART = (TIFF_XMP, TIFF_IPTC, TIFF_PHOTOSHOP, TIFF_ICC)  # read and written as in the other formats
# Tags of a TIFF directory that describe how the pixels of a file are stored. Each file has its own.
LAYOUT = {
    *range(254, 260),  # kind of image, size, bits, compression
    *range(262, 267),  # colours of a pixel, halftones, bit order
    *(273, 274, 277, 278, 279, 280, 281, 282, 283, 284, 288, 289, 290, 291, 292, 293, 296, 317),
    *range(320, 329),  # palette, halftones, tiles, lines of a fax
    *(332, 334, 336, 338, 339, 340, 341, 342, 346, 347, 433, 559),  # inks, further channels, kind of numbers
    *range(512, 522),  # old JPEG, and the place of a thumbnail
    *range(529, 533),  # luminance and chrominance
    *range(32994, 32999),  # alpha, depth
    *(33421, 33422),  # mosaic of a sensor
    *range(48129, 48346),  # JPEG XR
}
# Tags that are true of the file that they come from alone: further images and other parts of a file that they point to,
# a curve for each level, Photoshop's layers, and those that make a file a raw image (DNG).
BOUND = {301, 330, 400, 33424, 34310, 37724, 65024, *range(50706, 51180), *range(52525, 52600)}
BOUND -= {50784, 50838, 50839, 50844}  # layers of Alias, labels of ImageJ, coefficients of satellites

TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
TONE_CHUNKS = (b"gAMA", b"cHRM", b"sRGB")  # colour space of an image without a profile
PROFILE_CHUNK, RESOLUTION_CHUNK = b"iCCP", b"pHYs"
READ_CHUNKS = (b"tRNS", b"acTL", b"fcTL", b"fdAT", b"eXIf", RESOLUTION_CHUNK)  # by Pillow, and the critical ones
# Chunks that stay true of other pixels, of those that the standard does not call safe to copy: time, colour space,
# light of the display, order of a stereo pair, physical size.
TRUE_CHUNKS = (b"tIME", b"cICP", b"mDCV", b"cLLI", b"sTER", b"sCAL")
PLACED_CHUNKS = (b"oFFs", b"sTER", b"sCAL", RESOLUTION_CHUNK)  # which have sides
BACKGROUND_CHUNK, BITS_CHUNK, APPLE_CHUNK = b"bKGD", b"sBIT", b"iDOT"
MANIFEST_CHUNK = b"caBX"
WEBP_CHUNKS = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"ICCP", b"EXIF", b"XMP ")  # that are read
WEBP_MANIFEST = b"C2PA"
LOOP_EXTENSIONS = (b"NETSCAPE2.0", b"ANIMEXTS1.0")  # of GIF: how often an animation is shown
XMP_KEYWORD = "XML:com.adobe.xmp"
EXIF_KEYWORDS = ("Raw profile type exif", "Raw profile type APP1")
IPTC_KEYWORDS = ("Raw profile type iptc", "Raw profile type 8bim")
XMP_PROFILE_KEYWORD = "Raw profile type xmp"
MOST_TEXT = 2**24  # bytes of a decompressed text that is parsed; longer texts are kept unparsed

IPTC_RESOURCE = 0x0404
# Resources with sides: thumbnails, guides, slices, and paths.
PLACED_RESOURCES = {0x0408, 0x0409, 0x040C, 0x041A, *range(2000, 2999)}
PHOTOSHOP_HEADER = b"Photoshop 3.0\0"
EXIF_HEADER = b"Exif\0\0"
XMP_HEADER, XMP_EXTENSION_HEADER = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
PADDING = b"\0\t\n\r "
SEGMENT = 65533  # bytes that a JPEG segment holds
JPEG_MARKER, END_OF_IMAGE = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]"), 0xD9  # of those with a length, and the end
# JPEG segments that are read or describe the pixels, by their first bytes.
KNOWN_SEGMENTS = {
    "APP0": (b"JFIF\0",),
    "APP1": (b"Exif\0", XMP_HEADER, XMP_EXTENSION_HEADER),
    "APP2": (b"ICC_PROFILE\0", b"MPF\0"),
    "APP13": (PHOTOSHOP_HEADER,),
    "APP14": (b"Adobe",),
    "COM": (b"",),
}

TIFF_NAMESPACE = "http://ns.adobe.com/tiff/1.0/"
# Prefixes of that namespace, the orientation as an element, or the tags in which it may be an attribute, and that
# attribute, with any prefix. What may repeat ends before the next "<" or has a largest length, so that the time is
# linear in the length of the packet.
XMP_PREFIX = re.compile(rf"""xmlns:([^\s=<>"':]{{1,99}})\s*=\s*["']{re.escape(TIFF_NAMESPACE)}["']""", re.ASCII)
XMP_ORIENTATION = re.compile(
    r"""
    <!--(?:(?!--).)*-->
    | <(?P<element>[^\s<>"'=/:]{1,99}):Orientation(?:\s[^<>]*)?>\s*(?P<inside>[0-9])\s*</(?P=element):Orientation\s*>
    | (?P<tag><(?:[^<>"']|"[^"<]*"|'[^'<]*')*)
    """,
    re.ASCII | re.DOTALL | re.VERBOSE,
)
XMP_ATTRIBUTE = re.compile(
    r"""
    "[^"]*" | '[^']*'
    | \s(?P<attribute>[^\s<>"'=/:]{1,99}):Orientation\s*=\s*(?P<quote>["'])\s*(?P<value>[0-9])\s*(?P=quote)
    """,
    re.ASCII | re.VERBOSE,
)

Chunk = tuple[bytes, bytes]


# ---- reading


def split_png(content: bytes) -> tuple[bytes, list[Chunk]]:
    """A PNG file with the chunks alone that Pillow has to read, and the others as (type, data).

    Pillow would keep one text per keyword, and refuse files with a large text or profile.
    """
    rest, chunks, at = [content[:8]], [], 8
    while at + 12 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        kind, data = content[at + 4 : at + 8], content[at + 8 : end - 4]
        whole = end <= len(content) and zlib.crc32(kind + data) == int.from_bytes(content[end - 4 : end], "big")
        read = kind[:1].isupper() or (kind in READ_CHUNKS and not _without_unit(kind, data))
        if whole and kind.isalpha() and not read:  # other names are damage, which Pillow reports
            chunks.append((kind, data))
        else:
            rest.append(content[at:end])
        at = end
    return b"".join([*rest, content[at:]]), chunks


def _without_unit(kind: bytes, data: bytes) -> bool:
    """Whether a chunk states the shape of the pixels without a resolution."""
    return kind == RESOLUTION_CHUNK and data[8:] == b"\0"


def collect(image: Image.Image, chunks: list[Chunk], content: bytes) -> dict:
    """The metadata of an opened and decoded image, see `files.DecodedImage.info`.

    Args:
        image: From Pillow.
        chunks: What `split_png` took out of its file.
        content: The file; empty if there is none.
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
    dropped: list[str] = []
    if isinstance(image, TiffImageFile):
        found.pop("exif", None)
        if not {*RESOLUTIONS} <= {*image.tag_v2}:
            found.pop("dpi", None)  # Pillow's default
        found |= _of_tiff(image, content, dropped)
    elif isinstance(image, JpegImageFile):  # MPO is a kind of JPEG
        found |= _of_jpeg(image, content, dropped)
    elif image.format == "WEBP":
        dropped += _unknown_in_webp(content)
    elif image.format == "GIF" and "extension" in image.info:
        name, _ = image.info["extension"]
        if name not in LOOP_EXTENSIONS:
            dropped.append(f"GIF's extension {name.decode('latin-1')}")
    for kind, data in chunks:
        if kind == PROFILE_CHUNK:
            found["icc_profile"] = _text(b"zTXt", data)  # a name and compressed data, as in that chunk
    if not found.get("icc_profile", image.info.get("icc_profile", b"-")):  # of JPEG, None if parts of it are missing
        found.pop("icc_profile", None)
        dropped.append("the colour profile, which is damaged")
    if isinstance(image, PngImageFile):
        found |= _of_text([chunk for chunk in chunks if chunk[0] in TEXT_CHUNKS], found, dropped)
        kept = _of_chunks(image, chunks, dropped)
        if kept:
            found["chunks"] = [*found.get("chunks", ()), *kept]
    tones = [chunk for chunk in chunks if chunk[0] in TONE_CHUNKS]
    if tones and "icc_profile" not in found:
        found["tones"] = tones
    if dropped:
        found["dropped"] = tuple(dropped)
    return found


def _of_jpeg(image: JpegImageFile, content: bytes, dropped: list[str]) -> dict:
    """Photoshop's resources and extended XMP; what is not read goes by name into `dropped`."""

    def segments(segment: str, header: bytes) -> list[bytes]:
        return [data for name, data in image.applist if name == segment and data.startswith(header)]

    parts = segments("APP13", PHOTOSHOP_HEADER)
    found: dict = _of_photoshop(b"".join(data.removeprefix(PHOTOSHOP_HEADER) for data in parts), dropped)
    extension = segments("APP1", XMP_EXTENSION_HEADER)
    if extension:
        found["xmp_extension"] = extension
    unknown = {name for name, data in image.applist if not data.startswith(KNOWN_SEGMENTS.get(name, ()))}
    dropped += [f"{name} segments" + " (where C2PA manifests are)" * (name == "APP11") for name in sorted(unknown)]
    if len(segments("COM", b"")) > 1:
        dropped.append("the comments before the last")
    if len(segments("APP1", XMP_HEADER)) > 1:
        dropped.append("the XMP before the last")
    width, height = image.info.get("jfif_density", (1, 1))
    if image.info.get("jfif_unit") == 0 and width != height:
        dropped.append("the shape of the pixels")
    if image.format == "MPO":
        dropped.append("the images after the first (depth map, other views)")
    elif content[_end_of_jpeg(content) :].strip(b"\0\r\n"):
        dropped.append("the data after the image (such as the video of a motion photo)")
    return found


def _end_of_jpeg(content: bytes) -> int:
    """Where the first image of a JPEG file ends."""
    at = 2
    while found := JPEG_MARKER.search(content, at):
        marker, at = found[0][-1], found.end()
        if marker == END_OF_IMAGE:
            return at
        at += int.from_bytes(content[at : at + 2], "big")
    return len(content)


def _unknown_in_webp(content: bytes) -> list[str]:
    """The names of the chunks of a WebP file that are not read."""
    lost, at = set(), 12
    while at + 8 <= len(content):
        kind = content[at : at + 4]
        if kind not in WEBP_CHUNKS:
            lost.add(f"{kind.decode('latin-1')} chunks" + " (a C2PA manifest)" * (kind == WEBP_MANIFEST))
        at += 8 + (int.from_bytes(content[at + 4 : at + 8], "little") + 1) // 2 * 2
    return sorted(lost)


def _of_tiff(image: TiffImageFile, content: bytes, dropped: list[str]) -> dict:
    """The descriptive tags of a TIFF directory, with the orientation for `orient`, IPTC and Photoshop's resources."""
    directory = tiff.parse(content or image.getexif().tobytes().removeprefix(EXIF_HEADER))
    resources = _of_photoshop(_swapped(directory, TIFF_PHOTOSHOP), dropped)
    iptc = _swapped(directory, TIFF_IPTC) or resources.pop("iptc", b"")
    found: dict = resources | ({"iptc": iptc} if iptc else {})
    if directory.number(RESOLUTION_UNIT) == 1 and len({directory.data(tag) for tag in RESOLUTIONS}) > 1:
        dropped.append("the shape of the pixels")
    kept = _descriptive(directory, dropped)
    kept.fields = {tag: value for tag, value in kept.fields.items() if tag not in APART}
    if ORIENTATION in directory.fields:
        # Pillow turns TIFF itself, and removes the tag. That it was there says that XMP does not count.
        left = image.getexif().get(ORIENTATION, 1)
        if left == 1:
            found["turned"] = directory.number(ORIENTATION)
        kept.fields[ORIENTATION] = tiff.numbers(directory.order, tiff.SHORT, [left])
    if kept.fields:
        found["exif"] = EXIF_HEADER + tiff.exif_of(kept)
    return found


def _descriptive(directory: tiff.Directory, dropped: list[str]) -> tiff.Directory:
    """A directory without the layout of its file; what cannot be kept goes by name into `dropped`."""
    kept, lost = {}, [*directory.damaged]
    for tag, value in directory.fields.items():
        if tag in BOUND or (isinstance(value, tiff.Field) and value.kind not in tiff.CARRIED_TYPES):
            lost.append(tag)
        elif tag not in LAYOUT:
            kept[tag] = value
    lost = [tag for tag in lost if tag not in LAYOUT]
    if lost:
        dropped.append(_named(lost))
    return tiff.Directory(directory.order, kept)


def _named(tags: Iterable[int]) -> str:
    return f"TIFF tags {', '.join(str(ExifTags.TAGS.get(tag, tag)) for tag in sorted({*tags}))}"


def _swapped(directory: tiff.Directory, tag: int) -> bytes:
    """A tag of bytes, also if written as 32-bit numbers."""
    data, found = directory.data(tag), directory.fields.get(tag)
    if isinstance(found, tiff.Field) and found.kind == tiff.LONG and directory.order == "big":
        return b"".join(data[at : at + 4][::-1] for at in range(0, len(data), 4))
    return data


def _resources(content: bytes) -> tuple[list[tuple[int, bytes, bytes]], bytes]:
    """Photoshop's image resources as (number, data, whole with its header), and what is not one."""
    found, at = [], 0
    while content[at : at + 4] == b"8BIM" and at + 12 <= len(content):
        start = at + 6 + (content[at + 6] + 2) // 2 * 2  # the name and its length, padded to even
        size = int.from_bytes(content[start : start + 4], "big")
        if start + 4 + size > len(content):
            break
        end = start + 4 + (size + 1) // 2 * 2
        whole = content[at:end]
        number = int.from_bytes(content[at + 4 : at + 6], "big")
        found.append((number, content[start + 4 : start + 4 + size], whole + bytes(len(whole) % 2)))
        at = end
    return found, content[at:]


def _of_photoshop(content: bytes, dropped: list[str]) -> dict:
    """IPTC, and the other resources together."""
    resources, rest = _resources(content)
    if rest.strip(b"\0"):
        dropped.append("Photoshop's resources that are damaged")
    iptc = next((data for number, data, _ in resources if number == IPTC_RESOURCE), b"")
    others = b"".join(whole for number, _, whole in resources if number != IPTC_RESOURCE)
    return {key: value for key, value in (("iptc", iptc), ("photoshop", others)) if value}


def _of_chunks(image: PngImageFile, chunks: list[Chunk], dropped: list[str]) -> list[Chunk]:
    """The chunks besides texts and colour spaces that are true of 8-bit RGB; the others go by name into `dropped`."""
    kept: list[Chunk] = []
    lost: set[str] = set()
    channels = len(image.getbands()) + ("transparency" in image.info)
    for kind, data in chunks:
        if kind in (*TEXT_CHUNKS, *TONE_CHUNKS, PROFILE_CHUNK, APPLE_CHUNK):
            continue  # read elsewhere; a table of contents of the compressed pixels
        if kind in TRUE_CHUNKS:
            # Of grey, RGB has another matrix.
            true = kind != b"cICP" or image.mode not in ("L", "LA", "1")
        elif kind == BACKGROUND_CHUNK:
            true = len(data) == 6  # of grey and of palettes, it is shorter
        elif kind == BITS_CHUNK:
            true = data == b"\x08" * channels and channels > 2  # the mark changes the last of 8 bits
        else:
            true = kind[3:].islower()  # safe to copy
        if true:
            kept.append((kind, data))
        else:
            name = kind.decode("latin-1")
            lost.add(f"{name} chunks" + " (a C2PA manifest)" * (kind == MANIFEST_CHUNK))
    dropped += sorted(lost)
    return kept


def _of_text(chunks: list[Chunk], found: dict, dropped: list[str]) -> dict:
    """Exif, XMP and IPTC in text chunks, unless `found` elsewhere; the other chunks unchanged."""
    repeated = "PNG text chunks with other Exif, XMP or IPTC than the first"
    taken: dict = {}
    others = []
    for kind, data in chunks:
        keyword = data.split(b"\0", 1)[0].decode("latin-1")
        values: dict[str, bytes] = {}
        if keyword == XMP_KEYWORD:
            values["xmp"] = _text(kind, data)
        elif keyword == XMP_PROFILE_KEYWORD:
            values["xmp"] = _profile(_text(kind, data))
        elif keyword in EXIF_KEYWORDS:
            value = _profile(_text(kind, data))
            # APP1 contains either
            values = {"xmp": value.split(b"\0", 1)[-1]} if value.startswith(b"http") else {"exif": value}
        elif keyword in IPTC_KEYWORDS:
            damaged: list[str] = []
            value = _profile(_text(kind, data))
            values = _of_photoshop(value, damaged) if value.startswith(b"8BIM") else {"iptc": value}
            values = {} if damaged else values
        if not any(values.values()):
            others.append((kind, data))
        first = taken | found
        if any(value and not _alike(value, first.get(key, value)) for key, value in values.items()):
            dropped += [repeated] * (repeated not in dropped)
        taken = {key: value for key, value in values.items() if value and key not in found} | taken
    return taken | ({"chunks": others} if others else {})


def _alike(one: bytes, other: bytes) -> bool:
    """Whether two Exif or other metadata are one, written by programs of which some add a header or padding."""
    return _without_header(one).strip(PADDING) == _without_header(other).strip(PADDING)


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
    """Apply the orientation of Exif or XMP, and remove it from `info` with what is false of turned pixels."""
    thumbnail = False
    orientation = None
    exif = _without_header(info.get("exif", b""))
    directory = tiff.parse(exif)
    entry = directory.fields.get(ORIENTATION)
    if isinstance(entry, tiff.Field):
        orientation = directory.number(ORIENTATION)
        # In place, since notes of camera makers have offsets in the whole of Exif.
        upright = tiff.numbers(directory.order, tiff.SHORT, [ORIENTATION, tiff.SHORT]).data
        upright += tiff.numbers(directory.order, tiff.LONG, [1]).data
        upright += tiff.numbers(directory.order, tiff.SHORT, [1, 0]).data
        exif = exif[: entry.at] + upright + exif[entry.at + len(upright) :]
        thumbnail = bool(directory.following)
        info["exif"] = EXIF_HEADER + exif
        if len(directory.fields) == 1 and not thumbnail:
            del info["exif"]
    if "xmp" in info:
        info["xmp"], stated = _upright_xmp(info["xmp"])
        orientation = orientation or stated
    turned = info.pop("turned", None)  # by Pillow
    method = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation or 1)
    if method is None and turned not in range(2, 9):
        return image
    lost = []
    if thumbnail:
        at = len(EXIF_HEADER) + directory.following
        info["exif"] = info["exif"][:at] + bytes(4) + info["exif"][at + 4 :]
        lost.append("Exif's thumbnail")
    if (turned or orientation) in (5, 6, 7, 8) and "dpi" in info:
        info["dpi"] = info["dpi"][::-1]
    resources, _ = _resources(info.get("photoshop", b""))
    if any(number in PLACED_RESOURCES for number, _, _ in resources):
        info["photoshop"] = b"".join(whole for number, _, whole in resources if number not in PLACED_RESOURCES)
        if not info["photoshop"]:
            del info["photoshop"]
        lost.append("Photoshop's resources that are not turned (thumbnail, guides, slices, paths)")
    placed = [chunk for chunk in info.get("chunks", ()) if chunk[0] in PLACED_CHUNKS]
    if placed:
        info["chunks"] = [chunk for chunk in info["chunks"] if chunk not in placed]
        lost += _chunk_names(placed)
    if lost:
        info["dropped"] = (*info.get("dropped", ()), *lost)
    return image if method is None else image.transpose(method)


def _without_header(exif: bytes) -> bytes:
    """Exif as a TIFF file; some programs write the header twice."""
    return re.sub(rb"^(Exif\0\0){1,2}", b"", exif)


def _upright_xmp(xmp: bytes) -> tuple[bytes, int | None]:
    """A packet without the orientation, all else as it is; and the orientation.

    Packets that are no XML are searched as well: viewers find the orientation in them, too.
    """
    encoding = encoding_of(xmp) or "latin-1"  # any bytes; names and values of interest are ASCII
    try:
        text = xmp.decode(encoding)
    except UnicodeError:
        return xmp, None
    prefixes = {"tiff", *XMP_PREFIX.findall(text)}
    values: list[int] = []

    def without(match: re.Match[str], prefix: str, value: str) -> str:
        if match[prefix] not in prefixes:
            return match[0]
        values.append(int(match[value]))
        return ""

    def upright(match: re.Match[str]) -> str:
        if match["tag"]:
            return XMP_ATTRIBUTE.sub(lambda each: without(each, "attribute", "value"), match["tag"])
        return without(match, "element", "inside")

    text = XMP_ORIENTATION.sub(upright, text)
    return (text.encode(encoding), values[0]) if values else (xmp, None)


# ---- writing


def writing(kind: str, info: dict) -> tuple[dict, list[str]]:
    """Arguments of Pillow's save that write `info` in the format `kind`, and the names of lost metadata.

    Those of TIFF are for `encode_tiff`. Texts and other chunks of PNG are written by `with_chunks`.
    """
    lost = list(info.get("dropped", ()))
    held = {
        "JPEG": {"exif", "xmp", "xmp_extension", "iptc", "photoshop", "icc_profile", "dpi", "comment"},
        "PNG": {"exif", "xmp", "iptc", "photoshop", "icc_profile", "dpi", "comment", "chunks", "tones"},
        "WEBP": {"exif", "xmp", "icc_profile"},
        "TIFF": {"exif", "xmp", "iptc", "photoshop", "icc_profile", "dpi"},
        "BMP": {"dpi"},
    }[kind]
    options = {key: value for key, value in info.items() if key in held}
    if kind == "JPEG":
        options, held = _for_jpeg(options, lost)
    elif kind == "PNG":
        options = {key: value for key, value in options.items() if key in ("exif", "icc_profile", "dpi")}
    elif kind == "TIFF":
        options = {"directory": _for_tiff(options, lost)} | ({"dpi": info["dpi"]} if "dpi" in info else {})
    names = {
        "exif": "Exif",
        "xmp": "XMP",
        "xmp_extension": "extended XMP",
        "iptc": "IPTC",
        "photoshop": "Photoshop's resources",
        "icc_profile": "the colour profile",
        "comment": "the comment",
        "chunks": ", ".join(_chunk_names(info.get("chunks", ()))),
        "dpi": "the resolution",
    }
    if all(chunk != b"sRGB" for chunk, _ in info.get("tones", ())):  # sRGB is the default without a profile
        names["tones"] = "PNG's gamma and primaries"
    return options, lost + [name for key, name in names.items() if key in info and key not in held]


def _chunk_names(chunks: Iterable[Chunk]) -> list[str]:
    kinds = {kind for kind, _ in chunks}
    text = ["PNG text chunks"] if kinds & {*TEXT_CHUNKS} else []
    return [*text, *(f"{kind.decode('latin-1')} chunks" for kind in sorted(kinds - {*TEXT_CHUNKS}))]


def _for_jpeg(options: dict, lost: list[str]) -> tuple[dict, set[str]]:
    """The options with further segments, and the keys of what fits; parts that do not fit go by name into `lost`."""
    if "exif" in options:
        options["exif"] = EXIF_HEADER + options["exif"].removeprefix(EXIF_HEADER)
        options["exif"] = _fitting(options["exif"], lost)
    for key, header in (("exif", b""), ("comment", b""), ("xmp", XMP_HEADER)):
        if len(options.get(key, b"")) > SEGMENT - len(header):
            del options[key]
    extra = []
    if "xmp" in options:
        extra.append((b"\xe1", XMP_HEADER + options["xmp"]))
        extra += [(b"\xe1", segment) for segment in options.get("xmp_extension", ())]
    else:
        options.pop("xmp_extension", None)
    room = SEGMENT - len(PHOTOSHOP_HEADER)
    iptc = _resource(options["iptc"]) if "iptc" in options else b""
    resources = [iptc, *(whole for _, _, whole in _resources(options.get("photoshop", b""))[0])]
    if len(iptc) > room:
        del options["iptc"]
    if any(len(whole) > room for whole in resources[1:]):
        lost.append("Photoshop's resources of more than 64 KB")
    segment = b""
    for whole in (each for each in [*resources, b""] if len(each) <= room):
        if segment and (not whole or len(segment) + len(whole) > room):
            extra.append((b"\xed", PHOTOSHOP_HEADER + segment))
            segment = b""
        segment += whole
    held = {*options}
    options = {key: value for key, value in options.items() if key in ("exif", "icc_profile", "dpi", "comment")}
    if extra:
        options["extra"] = b"".join(b"\xff" + marker + struct.pack(">H", len(s) + 2) + s for marker, s in extra)
    return options, held


def _fitting(exif: bytes, lost: list[str]) -> bytes:
    """Exif without the largest of its tags as long as it is too large for a JPEG, and would be lost as a whole."""
    if len(exif) <= SEGMENT:
        return exif
    directory, left_out = tiff.parse(exif.removeprefix(EXIF_HEADER)), []
    sizes = {tag: len(value.data) for tag, value in directory.fields.items() if isinstance(value, tiff.Field)}
    smaller = exif
    for tag in sorted(sizes, key=lambda tag: -sizes[tag]):
        if len(smaller) <= SEGMENT:
            break
        del directory.fields[tag]
        left_out.append(tag)
        smaller = EXIF_HEADER + tiff.exif_of(directory)
    if len(smaller) > SEGMENT:
        return exif
    lost.append(_named(left_out))
    return smaller


def _for_tiff(options: dict, lost: list[str]) -> tiff.Directory:
    """The directory of a TIFF file; what it cannot have goes by name into `lost`."""
    source = tiff.parse(_without_header(options.get("exif", b"")))
    if "exif" in options and not source.fields:
        lost.append("Exif, which is damaged")
    if source.following:
        lost.append("Exif's thumbnail")
    directory = _descriptive(source, lost)
    for key, tag, kind in (
        ("xmp", TIFF_XMP, 1),
        ("iptc", TIFF_IPTC, 7),
        ("photoshop", TIFF_PHOTOSHOP, 1),
        ("icc_profile", TIFF_ICC, 7),
    ):
        if key in options:
            directory.fields[tag] = tiff.Field(kind, options[key])
    return directory


def with_chunks(content: bytes, info: dict) -> bytes:
    """A PNG file with the texts and other chunks of `info`."""
    chunks: list[Chunk] = []
    if "xmp" in info:
        encoding = encoding_of(info["xmp"]) or "utf-8"
        text = info["xmp"].decode(encoding, "replace").removeprefix("\ufeff").encode()
        chunks.append((b"iTXt", XMP_KEYWORD.encode() + b"\0\0\0\0\0" + text))
    if "iptc" in info or "photoshop" in info:
        data = info.get("photoshop", b"") + (_resource(info["iptc"]) if "iptc" in info else b"")
        profile = f"\niptc\n{len(data):8}\n{data.hex()}\n".encode()
        chunks.append((b"zTXt", IPTC_KEYWORDS[0].encode() + b"\0\0" + zlib.compress(profile)))
    if "comment" in info:
        chunks.append((b"tEXt", b"Comment\0" + info["comment"]))
    at = 8 + 12 + 13  # behind the header, where all of them may be
    written = (
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        for kind, data in (*info.get("tones", ()), *chunks, *info.get("chunks", ()))
    )
    return b"".join([content[:at], *written, content[at:]])


def _resource(iptc: bytes) -> bytes:
    """IPTC as an image resource of Photoshop."""
    return struct.pack(">4sHHI", b"8BIM", IPTC_RESOURCE, 0, len(iptc)) + iptc + b"\0" * (len(iptc) % 2)

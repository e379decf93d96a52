"""What a picture holds beside its pixels, from every format into every other, and named where it cannot go."""

import io
import logging
import struct
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps, IptcImagePlugin, PngImagePlugin, TiffImagePlugin

from onrw_core.imaging.files import ImageError, encode, load, save
from onrw_core.imaging.metadata import orient, split_png
from onrw_core.imaging.tiff import parse

ORIENTATION, ARTIST, EXIF, GPS, EXPOSURE, INTEROPERABILITY = 274, 315, 34665, 34853, 33434, 40965
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6" dc:rights="Ann"/></x:xmpmeta>'
IPTC = b"\x1c\x02\x50\x00\x03Ann\x1c\x02\x78\x00\x05Spree"  # 2:80 by-line, 2:120 caption


def pixels(height=80, width=100):
    y, x = np.mgrid[:height, :width]
    return np.stack([2 * x, 2 * y, x + y], -1).astype(np.uint8)


def camera_exif(**tags):
    """Directories in the directory, as every camera writes them."""
    exif = Image.Exif()
    exif[271], exif[ARTIST] = "Maker", "A. Nonymous"
    exif.get_ifd(EXIF).update({EXPOSURE: 0.01, 37500: b"note" * 9, 36867: "2020:01:02 03:04:05"})
    exif.get_ifd(GPS).update({1: "N", 2: (52.0, 31.0, 12.0)})
    for tag, value in tags.items():
        exif[int(tag[1:])] = value
    return exif


def photoshop(iptc=IPTC):
    resource = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc + b"\0" * (len(iptc) % 2)
    other = b"8BIM\x03\xed\x03abc" + struct.pack(">I", 3) + b"xyz\0"  # a named resource of odd size before it
    return other + resource


def camera_jpeg(path, **options):
    segment = b"Photoshop 3.0\0" + photoshop()
    extra = b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment
    Image.fromarray(pixels()).save(
        path, "JPEG", exif=camera_exif(), xmp=XMP.replace(b"6", b"1"), extra=extra, dpi=(300, 300), **options
    )


def profile_text(name, data):
    return f"\n{name}\n{len(data):8}\n{data.hex()}\n"


def text_chunks(path):
    return split_png(path.read_bytes())[1]


def icc(space, gamma):
    """A colour profile of grey, with a tone curve of its own."""
    header = bytearray(128)
    header[8:12], header[12:24], header[36:40] = b"\x02\x10\0\0", b"mntr" + space + b"XYZ ", b"acsp"
    white = struct.pack(">iii", 63190, 65536, 54061)  # D50
    header[68:80] = white
    point, curve = b"XYZ \0\0\0\0" + white, b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(gamma * 256), 0)
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"grey\0" + bytes(78 + 3)
    tags, at, body = b"", 128 + 4 + 12 * 3, b""
    for name, data in ((b"desc", text), (b"wtpt", point), (b"kTRC", curve)):
        tags += name + struct.pack(">II", at + len(body), len(data))
        body += data
    whole = bytes(header) + struct.pack(">I", 3) + tags + body
    return struct.pack(">I", len(whole)) + whole[4:]


# ---- carried


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_what_a_camera_s_jpeg_holds_goes_into_every_format(tmp_path, suffix, caplog):
    camera_jpeg(tmp_path / "a.jpg")
    picture = load(tmp_path / "a.jpg")
    with caplog.at_level(logging.WARNING):
        save(tmp_path / f"b{suffix}", picture.rgb, like=picture, quality=100)
    again = load(tmp_path / f"b{suffix}")
    exif = Image.Exif()
    exif.load(again.info["exif"])
    assert exif[ARTIST] == "A. Nonymous" and exif.get_ifd(EXIF)[EXPOSURE] == pytest.approx(0.01)
    assert exif.get_ifd(EXIF)[36867] == "2020:01:02 03:04:05" and exif.get_ifd(GPS)[2] == (52.0, 31.0, 12.0)
    assert b'dc:rights="Ann"' in again.info["xmp"]
    if suffix == ".webp":
        assert "IPTC" in caplog.text and "iptc" not in again.info
    else:
        assert again.info["iptc"] == IPTC and "lost" not in caplog.text
    if suffix != ".jpg":
        assert torch.equal(again.rgb, picture.rgb)
    save(tmp_path / "c.jpg", again.rgb, like=again)
    with Image.open(tmp_path / "c.jpg") as file:
        assert file.getexif().get_ifd(GPS)[1] == "N"
        if suffix != ".webp":
            assert IptcImagePlugin.getiptcinfo(file)[(2, 80)] == b"Ann"


def test_a_tiff_s_tags_are_read_by_others(tmp_path):
    camera_jpeg(tmp_path / "a.jpg")
    picture = load(tmp_path / "a.jpg")
    save(tmp_path / "b.tif", picture.rgb, like=picture)
    with Image.open(tmp_path / "b.tif") as file:
        assert np.array_equal(np.asarray(file), (picture.rgb * 255).round().byte().permute(1, 2, 0).numpy())
        assert file.info["dpi"] == (300, 300) and IptcImagePlugin.getiptcinfo(file)[(2, 120)] == b"Spree"
        assert file.getexif().get_ifd(EXIF)[EXPOSURE] == pytest.approx(0.01)


def test_interoperability_directories(tmp_path):
    exif = camera_exif()
    exif.get_ifd(EXIF)[INTEROPERABILITY] = {1: "R98"}
    Image.fromarray(pixels()).save(tmp_path / "a.jpg", exif=exif)
    picture = load(tmp_path / "a.jpg")
    save(tmp_path / "b.tif", picture.rgb, like=picture)
    with Image.open(tmp_path / "b.tif") as file:
        assert file.getexif().get_ifd(EXIF)[EXPOSURE] == pytest.approx(0.01)


def test_text_chunks_stay_as_they_are(tmp_path):
    text = PngImagePlugin.PngInfo()
    for words in ("first", "second", "first"):
        text.add_text("Comment", words)
    text.add_text("workflow", "x" * 2_000_000, zip=True)  # Pillow calls a file damaged whose text is so large
    text.add_itxt("Titel", "Äpfel", "de", "Titel", zip=True)
    Image.fromarray(pixels()).save(tmp_path / "a.png", pnginfo=text)
    picture = load(tmp_path / "a.png")
    save(tmp_path / "b.png", picture.rgb, like=picture)
    assert text_chunks(tmp_path / "b.png") == text_chunks(tmp_path / "a.png")
    assert len(text_chunks(tmp_path / "a.png")) == 5
    assert torch.equal(load(tmp_path / "b.png").rgb, picture.rgb)


def test_a_large_colour_profile_is_kept(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + bytes(2**21)
    Image.fromarray(pixels()).save(tmp_path / "a.png", icc_profile=profile)
    picture = load(tmp_path / "a.png")
    save(tmp_path / "b.png", picture.rgb, like=picture)
    assert picture.info["icc_profile"] == load(tmp_path / "b.png").info["icc_profile"] == profile


def test_gamma_is_kept_where_it_is_all_that_says_what_values_mean(tmp_path, caplog):
    text = PngImagePlugin.PngInfo()
    text.add(b"gAMA", struct.pack(">I", 100000))
    Image.fromarray(pixels()).save(tmp_path / "a.png", pnginfo=text)
    picture = load(tmp_path / "a.png")
    save(tmp_path / "b.png", picture.rgb, like=picture)
    with Image.open(tmp_path / "b.png") as file:
        assert file.info["gamma"] == 1.0
    with caplog.at_level(logging.WARNING):
        encode("b.jpg", picture.rgb, picture)
    assert "gamma" in caplog.text


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_keeps_its_tones(tmp_path, mode):
    """Half of a scale of gamma 1 is far brighter than half of sRGB's."""
    image = Image.fromarray(pixels()).convert("L").convert(mode)
    image.save(tmp_path / "a.png", icc_profile=icc(b"GRAY", 1.0))
    picture = load(tmp_path / "a.png")
    level = np.asarray(image.getchannel("L"))[40, 50] / 255
    expected = 1.055 * level ** (1 / 2.4) - 0.055
    assert picture.rgb[:, 40, 50].tolist() == pytest.approx([expected] * 3, abs=0.02) and expected > level + 0.1
    assert torch.equal(picture.rgb[0], picture.rgb[1]) and torch.equal(picture.rgb[1], picture.rgb[2])
    assert "icc_profile" not in picture.info and (picture.alpha is not None) == (mode == "LA")


# ---- other tags, segments and chunks

DESCRIPTIVE = {
    0x4746: 5,  # Rating
    0x9C9B: "Titel".encode("utf-16-le"),  # XPTitle
    316: "a computer",  # HostComputer
    50341: b"PrintIM\x000300\0\0\0\0",
    315: "Jürgen",
}


def described(**options):
    """Exif with tags that nobody listed, of the types that Windows writes."""
    directory = TiffImagePlugin.ImageFileDirectory_v2(**options)
    for tag, kind in ((0x9C9B, 1), (50341, 7), (0x4746, 3), (316, 2), (315, 2)):
        directory.tagtype[tag] = kind
    for tag, value in DESCRIPTIVE.items():
        directory[tag] = value.encode() if tag == 315 else value
    return directory


def exif_with(directory):
    return b"Exif\0\0" + directory._get_ifh() + directory.tobytes(8)


def raw_tags(path):
    """Type and bytes of the descriptive tags of a file, as they are in it."""
    content = path.read_bytes()
    if path.suffix != ".tif":
        with Image.open(path) as file:
            content = file.info["exif"].removeprefix(b"Exif\0\0")
    directory = parse(content)
    return {tag: (directory.fields[tag].kind, directory.fields[tag].data) for tag in DESCRIPTIVE}


@pytest.mark.parametrize("order", [b"II*\0\0\0\0\0", b"MM\0*\0\0\0\0"])
def test_any_descriptive_tag_goes_into_every_format_and_back(tmp_path, order, caplog):
    Image.fromarray(pixels()).save(tmp_path / "a.jpg", exif=exif_with(described(ifh=order)))  # 72 dpi for Pillow
    expected = raw_tags(tmp_path / "a.jpg")
    assert expected[315][1] == "Jürgen".encode() + b"\0" and expected[0x9C9B][0] == 1
    before = "a.jpg"
    with caplog.at_level(logging.WARNING):
        for after in ("b.tif", "c.png", "d.tif", "e.tif", "f.webp", "g.tif", "h.jpg"):
            picture = load(tmp_path / before)
            save(tmp_path / after, picture.rgb, like=picture, quality=100)
            assert raw_tags(tmp_path / after) == expected, after
            before = after
    assert [message.partition("lost: ")[2] for message in caplog.messages] == ["the resolution"]  # in WebP
    with Image.open(tmp_path / "g.tif") as file:
        assert file.getexif()[0x4746] == 5 and file.tag_v2[316] == "a computer"


def test_tags_of_a_file_s_own_pixels_stay_there(tmp_path, caplog):
    tags = described()
    for tag, kind, value in (
        (330, 4, 8),
        (50706, 1, b"\1\4\0\0"),
        (301, 3, (7,) * 9),
        (65000, 13, 8),
        (529, 5, (1.0,) * 3),
    ):
        tags.tagtype[tag] = kind
        tags[tag] = value
    tags[254], tags[278], tags[320] = 1, 7, (1,) * 768
    Image.fromarray(pixels()).save(tmp_path / "a.jpg", exif=exif_with(tags))
    Image.fromarray(pixels()).save(tmp_path / "a.tif", tiffinfo=tags)
    with caplog.at_level(logging.WARNING):
        for name in ("a.jpg", "a.tif"):
            caplog.clear()
            picture = load(tmp_path / name)
            save(tmp_path / "b.tif", picture.rgb, like=picture, overwrite=True)
            with Image.open(tmp_path / "b.tif") as file:
                assert np.array_equal(np.asarray(file), (picture.rgb * 255).round().byte().permute(1, 2, 0).numpy())
                assert not {254, 320, 330, 301, 50706, 65000, 529} & {*file.tag_v2} and file.tag_v2[278] != 7
            assert "lost: TIFF tags TransferFunction, SubIFDs, DNGVersion, 65000" in caplog.text
            assert raw_tags(tmp_path / "b.tif")[316] == (2, b"a computer\0")


def test_a_tag_too_large_for_jpeg_does_not_take_exif_with_it(tmp_path, caplog):
    tags = described()
    tags[65001] = b"x" * 70_000
    Image.fromarray(pixels()).save(tmp_path / "a.tif", tiffinfo=tags)
    picture = load(tmp_path / "a.tif")
    with caplog.at_level(logging.WARNING):
        save(tmp_path / "b.jpg", picture.rgb, like=picture)
    assert raw_tags(tmp_path / "b.jpg") == raw_tags(tmp_path / "a.tif") and "lost: TIFF tags 65001" in caplog.text


def test_damaged_tags_are_named(tmp_path, caplog):
    damaged = exif_with(described()).replace(b"\x9b\x9c\1\0", b"\x9b\x9c\x63\0")  # a type that there is not
    Image.fromarray(pixels()).save(tmp_path / "a.jpg", exif=damaged)
    Image.fromarray(pixels()).save(tmp_path / "b.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    with caplog.at_level(logging.WARNING):
        for name in ("a.jpg", "b.jpg"):
            picture = load(tmp_path / name)
            encode("c.tif", picture.rgb, picture)
    assert caplog.messages[0].endswith("lost: TIFF tags XPTitle")
    assert caplog.messages[1].endswith("lost: Exif, which is damaged")


def test_values_that_overlap_do_not_fill_the_memory():
    count = 20_000
    entry = struct.pack("<HHLL", 0, 7, count, 8)
    content = (
        b"II*\0"
        + struct.pack("<LH", 8, count)
        + b"".join(struct.pack("<H", 50_000 + at % 15_000) + entry[2:] for at in range(count))
    )
    found = parse(content)
    assert sum(len(field.data) for field in found.fields.values()) <= len(content) and found.damaged


def segment(marker, data):
    return bytes([255, marker]) + struct.pack(">H", len(data) + 2) + data


def segments(path):
    with Image.open(path) as file:
        return file.applist


def resource(number, data):
    return b"8BIM" + struct.pack(">HHL", number, 0, len(data)) + data + b"\0" * (len(data) % 2)


def test_extended_xmp_stays_in_jpeg_and_is_named_elsewhere(tmp_path, caplog):
    head = b"http://ns.adobe.com/xmp/extension/\0" + b"A" * 32 + struct.pack(">L", 90_000)
    parts = [head + struct.pack(">L", at) + b"x" * 45_000 for at in (0, 45_000)]
    packet = b'<x:xmpmeta xmpNote:HasExtendedXMP="' + b"A" * 32 + b'"/>'
    extra = b"".join(segment(0xE1, part) for part in parts)
    Image.fromarray(pixels()).save(tmp_path / "a.jpg", xmp=packet, extra=extra)
    picture = load(tmp_path / "a.jpg")
    with caplog.at_level(logging.WARNING):
        save(tmp_path / "b.jpg", picture.rgb, like=picture)
        assert not caplog.messages
        encode("b.png", picture.rgb, picture)
    found = [data for name, data in segments(tmp_path / "b.jpg") if name == "APP1"]
    assert found == [b"http://ns.adobe.com/xap/1.0/\0" + packet, *parts]
    assert caplog.messages[0].endswith("lost: extended XMP")


def test_photoshop_s_resources_are_carried(tmp_path, caplog):
    copyright, url, paths = (
        resource(0x040A, b"\1"),
        resource(0x040B, b"https://a.example"),
        resource(2000, b"p" * 50_000),
    )
    blocks = copyright + url + resource(0x0404, IPTC)
    extra = segment(0xED, b"Photoshop 3.0\0" + blocks) + segment(0xED, b"Photoshop 3.0\0" + paths)
    Image.fromarray(pixels()).save(tmp_path / "a.jpg", extra=extra)
    before = "a.jpg"
    with caplog.at_level(logging.WARNING):
        for after in ("b.tif", "c.jpg", "d.png", "e.tif", "f.jpg"):
            picture = load(tmp_path / before)
            save(tmp_path / after, picture.rgb, like=picture)
            assert picture.info["iptc"] == IPTC and picture.info["photoshop"] == copyright + url + paths
            before = after
        assert not caplog.messages
        encode("g.webp", picture.rgb, picture)
        assert caplog.messages[-1].endswith("lost: IPTC, Photoshop's resources")
        large = load(tmp_path / "a.jpg")
        large.info["photoshop"] += resource(1000, bytes(70_000))
        encode("g.jpg", large.rgb, large)
        assert caplog.messages[-1].endswith("lost: Photoshop's resources of more than 64 KB")
    with Image.open(tmp_path / "f.jpg") as file:
        assert file.info["photoshop"][0x040B] == b"https://a.example" and file.info["photoshop"][0x0404] == IPTC
    with Image.open(tmp_path / "e.tif") as file:
        assert file.tag_v2[34377] == copyright + url + paths


def test_other_segments_are_named(tmp_path, caplog):
    gain_map = segment(0xE2, b"urn:iso:std:iso:ts:21496:-1\0")
    extra = gain_map + segment(0xE1, b"http://example/\0") + segment(0xFE, b"first") + segment(0xFE, b"last")
    Image.fromarray(pixels()).save(tmp_path / "a.jpg", extra=extra)
    content = (tmp_path / "a.jpg").read_bytes().replace(b"JFIF\0\1\1\0\0\1\0\1", b"JFIF\0\1\1\0\0\2\0\1")
    picture = load(tmp_path / "a.jpg", content)
    with caplog.at_level(logging.WARNING):
        encode("b.jpg", picture.rgb, picture)
    assert caplog.text.strip().endswith(
        "APP1 segments, APP2 segments, the comments before the last, the shape of the pixels"
    )


def png_with(path, *chunks, mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(pixels()).convert(mode).save(file, "PNG", **options)
    content = file.getvalue()
    written = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    path.write_bytes(content[:33] + b"".join(written) + content[33:])


TRUE = [
    (b"tIME", b"\x07\xe8\1\2\3\4\5"),
    (b"bKGD", b"\0\1\0\2\0\3"),
    (b"sBIT", b"\x08\x08\x08"),
    (b"mDCV", bytes(24)),
    (b"cLLI", bytes(8)),
    (b"cICP", b"\x0c\x0d\0\1"),
    (b"oFFs", bytes(8) + b"\1"),
    (b"sTER", b"\0"),
    (b"pHYs", struct.pack(">IIB", 2, 1, 0)),
    (b"abCd", b"safe to copy"),
]


@pytest.mark.parametrize("profile", [False, True])
def test_chunks_that_stay_true_are_carried_and_named_elsewhere(tmp_path, profile, caplog):
    options = {"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()} if profile else {}
    png_with(tmp_path / "a.png", *TRUE, (b"iDOT", bytes(28)), **options)
    picture = load(tmp_path / "a.png")
    with caplog.at_level(logging.WARNING):
        save(tmp_path / "b.png", picture.rgb, like=picture)
        assert not caplog.messages
        encode("c.jpg", picture.rgb, picture)
    found = [chunk for chunk in text_chunks(tmp_path / "b.png") if chunk[0] != b"iCCP"]
    assert sorted(found) == sorted(TRUE)
    names = "abCd bKGD cICP cLLI mDCV oFFs pHYs sBIT sTER tIME".split()
    assert caplog.messages[0].endswith("lost: " + ", ".join(f"{name} chunks" for name in names))
    assert torch.equal(load(tmp_path / "b.png").rgb, picture.rgb)


@pytest.mark.parametrize(
    ("mode", "chunk"),
    [
        ("P", (b"bKGD", b"\1")),
        ("L", (b"bKGD", b"\0\1")),
        ("RGB", (b"sBIT", b"\5\6\5")),
        ("L", (b"sBIT", b"\x08")),
        ("L", (b"cICP", b"\x0c\x0d\0\1")),
        ("RGB", (b"abCD", b"not safe to copy")),
        ("P", (b"hIST", b"\0\1")),
    ],
)
def test_chunks_that_are_false_of_marked_rgb_are_named(tmp_path, mode, chunk, caplog):
    png_with(tmp_path / "a.png", chunk, mode=mode)
    picture = load(tmp_path / "a.png")
    with caplog.at_level(logging.WARNING):
        save(tmp_path / "b.png", picture.rgb, like=picture)
    assert not text_chunks(tmp_path / "b.png") and caplog.messages[0].endswith(f"lost: {chunk[0].decode()} chunks")


# ---- orientation


def turned_png(path, where):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    text, options = PngImagePlugin.PngInfo(), {}
    if where == "raw profile":
        text.add_text("Raw profile type exif", profile_text("exif", exif.tobytes()), zip=True)
    elif where == "APP1 profile":
        text.add_text("Raw profile type APP1", profile_text("generic", exif.tobytes()))
    elif where == "xmp":
        text.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=True)
    elif where == "xmp element":
        element = b"<rdf><tiff:Orientation>6</tiff:Orientation></rdf>"
        text.add_itxt("XML:com.adobe.xmp", element.decode())
    else:
        options["exif"] = exif
    Image.fromarray(pixels()).save(path, pnginfo=text, **options)


@pytest.mark.parametrize("where", ["exif", "raw profile", "APP1 profile", "xmp", "xmp element"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_pictures_are_turned_once_wherever_it_is_written(tmp_path, where, suffix):
    turned_png(tmp_path / "a.png", where)
    picture = load(tmp_path / "a.png")
    assert np.array_equal((picture.rgb * 255).byte().permute(1, 2, 0).numpy(), np.rot90(pixels(), -1))
    save(tmp_path / f"b{suffix}", picture.rgb, like=picture, quality=100)
    assert load(tmp_path / f"b{suffix}").rgb.shape == picture.rgb.shape
    with Image.open(tmp_path / f"b{suffix}") as file:
        assert ImageOps.exif_transpose(file).size == file.size == (80, 100)
    assert b"Orientation" not in (tmp_path / f"b{suffix}").read_bytes()


TIFF_NAMESPACE = "http://ns.adobe.com/tiff/1.0/"
HEAD = "<?xpacket begin='\ufeff'?><x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>"
TAIL = "</rdf:RDF></x:xmpmeta><?xpacket end='w'?>"


@pytest.mark.parametrize("exif", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    "description",
    [
        "<rdf:Description xmlns:tiff='{0}' a:b='1 > 0'| tiff:Orientation='6'|/>",
        '<rdf:Description xmlns:tiff="{0}"| tiff:Orientation = " 6 "| dc:rights="Änn"/>',
        "<rdf:Description xmlns:t = '{0}'\n|\tt:Orientation\n=\n'6'|></rdf:Description>",
        '<rdf:Description xmlns:t="{0}">|<t:Orientation>\n 6 \n</t:Orientation >|</rdf:Description>',
        '<rdf:Description xmlns:t="{0}">|<t:Orientation rdf:datatype="integer">6</t:Orientation>|</rdf:Description>',
        "<rdf:Description| tiff:Orientation='6'|/>",
        "<rdf:Description other:Orientation='1' xmlns:tiff='{0}'| tiff:Orientation='6'|/>",
    ],
)
def test_orientation_in_any_spelling_of_xmp(tmp_path, description, encoding, exif):
    text = HEAD + description.format(TIFF_NAMESPACE) + TAIL
    before, orientation, after = text.split("|")
    options = {"exif": camera_exif(_274=6)} if exif else {}
    Image.fromarray(pixels()).save(
        tmp_path / "a.jpg", xmp=(before + orientation + after).encode(encoding), quality=100, **options
    )
    picture = load(tmp_path / "a.jpg")
    assert picture.rgb.shape == (3, 100, 80)  # turned, and not twice
    assert picture.info["xmp"].decode(encoding) == before + after
    save(tmp_path / "b.tif", picture.rgb, like=picture)
    assert load(tmp_path / "b.tif").rgb.shape == (3, 100, 80)


@pytest.mark.parametrize(
    "other",
    [
        "<!-- <a tiff:Orientation='6'/> -->",
        "<a>tiff:Orientation='6'</a>",
        """<a b="tiff:Orientation='6'"/>""",
        "<a other:Orientation='6'/>",
        "<a xmlns:tiff='other' tiff:OrientationX='6'/>",
    ],
)
def test_what_only_looks_like_an_orientation(tmp_path, other):
    packet = (HEAD + other + TAIL).encode()
    Image.fromarray(pixels()).save(tmp_path / "a.jpg", xmp=packet)
    picture = load(tmp_path / "a.jpg")
    assert picture.rgb.shape == (3, 80, 100) and picture.info["xmp"] == packet


def test_a_tiff_that_is_turned_is_not_turned_again_by_xmp(tmp_path):
    packet = b"<a tiff:Orientation='6'/>"
    Image.fromarray(pixels()).save(tmp_path / "a.tif", tiffinfo={274: 6, 700: packet})
    picture = load(tmp_path / "a.tif")
    assert np.array_equal((picture.rgb * 255).byte().permute(1, 2, 0).numpy(), np.rot90(pixels(), -1))
    assert b"Orientation" not in picture.info["xmp"] and 274 not in parse(picture.info.get("exif", b"")[6:]).fields


def test_what_has_sides_is_turned_or_named_of_a_tiff_as_well(tmp_path, caplog):
    """Pillow turns the pixels of a TIFF itself."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    directory[274], directory[282], directory[283], directory[296] = 6, 300, 200, 2
    directory.tagtype[34377] = 1
    directory[34377] = resource(0x0408, b"guides")
    Image.fromarray(pixels()).save(tmp_path / "a.tif", tiffinfo=directory)
    picture = load(tmp_path / "a.tif")
    assert picture.rgb.shape == (3, 100, 80) and picture.info["dpi"] == (200, 300)
    with caplog.at_level(logging.WARNING):
        save(tmp_path / "b.tif", picture.rgb, like=picture)
    assert "lost: Photoshop's resources that are not turned" in caplog.text
    assert 34377 not in parse((tmp_path / "b.tif").read_bytes()).fields


def test_large_packets_take_no_longer_than_their_length():
    for part in (b" ", b"<a ", b'<a b="', b"<!-- ", b"<tiff:Orientation ", b" tiff:Orientation= ", b"xmlns:"):
        image, info = Image.new("RGB", (8, 8)), {"xmp": b"<a" + part * (2**19 // len(part))}
        begin = time.perf_counter()
        orient(image, info)
        assert time.perf_counter() - begin < 10, part  # by the square of it, minutes


def test_notes_of_makers_stay_where_they_are_and_thumbnails_are_not_turned(tmp_path, caplog):
    """A note of a maker has offsets that count from the begin of Exif."""
    exif = camera_exif(_274=6).tobytes()
    at = parse(exif[6:]).fields[274].at + 6
    count = int.from_bytes(exif[14:16], "big" if exif[6:8] == b"MM" else "little")
    following = 16 + 12 * count
    exif = exif[:following] + b"\0\0\0\x08" + exif[following + 4 :]
    Image.fromarray(pixels()).save(tmp_path / "a.jpg", exif=exif, dpi=(300, 200))
    extra = segment(0xED, b"Photoshop 3.0\0" + resource(0x040C, b"thumb") + resource(0x040A, b"\1"))
    Image.fromarray(pixels()).save(tmp_path / "a.jpg", exif=exif, dpi=(300, 200), extra=extra)
    with caplog.at_level(logging.WARNING):
        picture = load(tmp_path / "a.jpg")
        encode("b.jpg", picture.rgb, picture)
    found = picture.info["exif"]
    assert [i for i in range(len(exif)) if found[i] != exif[i]] and len(found) == len(exif)
    assert found[at + 12 : following] == exif[at + 12 : following] and found[following + 4 :] == exif[following + 4 :]
    assert picture.info["dpi"] == (200, 300) and picture.info["photoshop"] == resource(0x040A, b"\1")
    assert "lost: Exif's thumbnail, Photoshop's resources that are not turned" in caplog.text


def test_chunks_with_sides_are_not_kept_when_it_is_turned(tmp_path, caplog):
    exif = Image.Exif()
    exif[274] = 6
    png_with(tmp_path / "a.png", *TRUE, exif=exif)
    picture = load(tmp_path / "a.png")
    with caplog.at_level(logging.WARNING):
        save(tmp_path / "b.png", picture.rgb, like=picture)
    assert caplog.text.strip().endswith("lost: oFFs chunks, pHYs chunks, sTER chunks")
    assert len(text_chunks(tmp_path / "b.png")) == len(TRUE) - 3


def test_xmp_of_two_bytes_a_character_becomes_text_in_png(tmp_path):
    packet = (HEAD + "<a b='Änn'/>" + TAIL).encode("utf-16-be")
    Image.fromarray(pixels()).save(tmp_path / "a.tif", tiffinfo={700: packet})
    picture = load(tmp_path / "a.tif")
    save(tmp_path / "b.png", picture.rgb, like=picture)
    assert load(tmp_path / "b.png").info["xmp"].decode() == HEAD + "<a b='Änn'/>" + TAIL


def test_damaged_exif_is_no_damaged_picture(tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    picture = load(tmp_path / "a.jpg")
    for suffix in (".png", ".jpg", ".webp", ".tif"):
        save(tmp_path / f"b{suffix}", picture.rgb, like=picture)


# ---- lost, and named


def test_what_a_format_cannot_hold_is_named(tmp_path, caplog):
    turned_png(tmp_path / "a.png", "xmp")
    text = PngImagePlugin.PngInfo()
    text.add_text("prompt", "a workflow")
    Image.fromarray(pixels()).save(tmp_path / "b.png", pnginfo=text, exif=camera_exif(), dpi=(72, 72))
    for name, suffix, lost in (
        ("a", ".bmp", "XMP"),
        ("b", ".jpg", "PNG text chunks"),
        ("b", ".webp", "PNG text chunks, the resolution"),
        ("b", ".bmp", "Exif, PNG text chunks"),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            picture = load(tmp_path / f"{name}.png")
            save(tmp_path / f"c{suffix}", picture.rgb, like=picture, overwrite=True)
        assert f"c{suffix}: " in caplog.text and caplog.text.strip().endswith(f"lost: {lost}")


def test_manifests_and_second_pictures_are_named(tmp_path, caplog):
    manifest = b"\xff\xeb" + struct.pack(">H", 12) + b"JP" + bytes(8)
    Image.fromarray(pixels()).save(tmp_path / "a.jpg", extra=manifest)
    first = Image.fromarray(pixels())
    first.save(tmp_path / "b.jpg", "MPO", save_all=True, append_images=[first])
    data = b"caBX" + b"jumb"
    chunk = struct.pack(">I", 4) + data + struct.pack(">I", zlib.crc32(data))
    plain = io.BytesIO()
    first.save(plain, "PNG")
    (tmp_path / "c.png").write_bytes(plain.getvalue()[:33] + chunk + plain.getvalue()[33:])
    with caplog.at_level(logging.WARNING):
        for name in ("a.jpg", "b.jpg", "c.png"):
            picture = load(tmp_path / name)
            encode(name, picture.rgb, picture)
    assert "APP11 segments (where C2PA manifests are)" in caplog.messages[0]
    assert "depth map" in caplog.messages[1] and "caBX chunks (a C2PA manifest)" in caplog.messages[2]


def test_metadata_too_large_for_jpeg_is_named(tmp_path, caplog):
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "x" * 70_000)
    text.add_text("Raw profile type iptc", profile_text("iptc", photoshop(IPTC * 5000)))
    Image.fromarray(pixels()).save(tmp_path / "a.png", pnginfo=text)
    picture = load(tmp_path / "a.png")
    assert picture.info["iptc"] == IPTC * 5000
    with caplog.at_level(logging.WARNING):
        encode("a.jpg", picture.rgb, picture)
    assert "lost: XMP, IPTC" in caplog.text


@pytest.mark.parametrize(("suffix", "side"), [(".jpg", 65501), (".webp", 16384)])
def test_sides_that_a_format_cannot_hold(tmp_path, suffix, side):
    picture = load_of(torch.zeros(3, 64, side))
    with pytest.raises(ImageError, match=f"cannot hold {side}x64 pixels; write PNG or TIFF"):
        encode(f"a{suffix}", picture.rgb, picture)


def load_of(rgb):
    from onrw_core.imaging.files import DecodedImage

    return DecodedImage(rgb)


def test_webp_stays_lossless_or_lossy(tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "a.webp", lossless=True, exif=camera_exif())
    Image.fromarray(pixels()).save(tmp_path / "b.webp", quality=90)
    kept, lossy = load(tmp_path / "a.webp"), load(tmp_path / "b.webp")
    assert kept.lossless and not lossy.lossless
    save(tmp_path / "c.webp", kept.rgb, like=kept)
    save(tmp_path / "d.webp", lossy.rgb, like=lossy)
    assert torch.equal(load(tmp_path / "c.webp").rgb, kept.rgb)
    assert not load(tmp_path / "d.webp").lossless


@pytest.mark.parametrize(
    "profile", [{"icc_profile": b"no profile"}, {"extra": segment(0xE2, b"ICC_PROFILE\0\1\3" + icc(b"GRAY", 1))}]
)
def test_a_colour_profile_that_cannot_be_kept_is_named(tmp_path, profile, caplog):
    Image.fromarray(pixels()).save(tmp_path / "a.jpg", **profile)
    picture = load(tmp_path / "a.jpg")
    with caplog.at_level(logging.WARNING):
        encode(tmp_path / "b.jpg", picture.rgb, picture)
    assert "lost: the colour profile, which is damaged" in caplog.text


def test_a_second_packet_and_data_after_a_jpeg_are_named(tmp_path, caplog):
    packets = b"".join(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + name) for name in (b"<a/>", b"<b/>"))
    Image.fromarray(pixels()).save(tmp_path / "a.jpg", extra=packets, progressive=True, comment=b"\xff\xd9")
    picture = load(tmp_path / "a.jpg", (tmp_path / "a.jpg").read_bytes() + b"\0\0\0\x18ftypmp42" + b"\xff\xd9")
    assert picture.info["xmp"] == b"<b/>"
    with caplog.at_level(logging.WARNING):
        encode(tmp_path / "b.jpg", picture.rgb, picture)
    assert (
        "lost: the XMP before the last, the data after the image (such as the video of a motion photo)" in caplog.text
    )
    assert "dropped" not in load(tmp_path / "b.jpg", encode(tmp_path / "b.jpg", picture.rgb, load_of(picture.rgb))).info


@pytest.mark.parametrize("other", [False, True])
def test_a_second_exif_in_a_png_is_named_if_it_is_another(tmp_path, other, caplog):
    exif, second = Image.Exif(), Image.Exif()
    exif[ARTIST], second[ARTIST] = "Ann", "Bob" if other else "Ann"
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Raw profile type exif", profile_text("exif", second.tobytes()), zip=True)
    Image.fromarray(pixels()).save(tmp_path / "a.png", exif=exif, pnginfo=texts)
    picture = load(tmp_path / "a.png")
    with caplog.at_level(logging.WARNING):
        save(tmp_path / "b.png", picture.rgb, like=picture)
    assert ("PNG text chunks with other Exif" in caplog.text) == other
    assert Image.open(tmp_path / "b.png").getexif()[ARTIST] == "Ann"


def test_further_parts_of_webp_and_gif_are_named(tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "a.webp", xmp=b"<a/>", exif=camera_exif())
    content = (tmp_path / "a.webp").read_bytes() + b"C2PA\3\0\0\0abc\0"
    content = content[:4] + struct.pack("<I", len(content) - 8) + content[8:]
    assert load(tmp_path / "a.webp", content).info["dropped"] == ("C2PA chunks (a C2PA manifest)",)
    assert "dropped" not in load(tmp_path / "a.webp").info
    Image.fromarray(pixels()).save(tmp_path / "a.gif", comment="a comment", loop=1)
    content = (tmp_path / "a.gif").read_bytes()
    at = content.index(b"!\xfe")
    xmp = b"!\xff\x0bXMP DataXMP" + b"\4<a/>\0"
    assert load(tmp_path / "a.gif", content[:at] + xmp + content[at:]).info["dropped"] == (
        "GIF's extension XMP DataXMP",
    )
    assert "dropped" not in load(tmp_path / "a.gif").info

"""What a picture holds beside its pixels, from every format into every other, and named where it cannot go."""

import io
import logging
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps, IptcImagePlugin, PngImagePlugin

from onrw_core.imaging.files import ImageError, encode, load, save
from onrw_core.imaging.metadata import split_png

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

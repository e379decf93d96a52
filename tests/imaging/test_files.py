import errno
import fcntl
import io
import logging
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

import onrw_core
from onrw_core.imaging import atomic
from onrw_core.imaging import files as images
from onrw_core.imaging.atomic import atomic_write, remove_abandoned
from onrw_core.imaging.files import DecodedImage, ImageError, load, save
from onrw_core.payload.keys import Key

ORIENTATION, ARTIST = 274, 315


def pixels(height=80, width=100, channels=3, seed=0):
    smooth = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10, channels), dtype=np.uint8)
    return np.kron(smooth, np.ones((10, 10, 1), dtype=np.uint8))


def colours(height=80, width=100):
    return torch.from_numpy(pixels(height, width)).permute(2, 0, 1).float() / 255


def png_header(width, height, depth=8, kind=2):
    """A PNG that ends after its header."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0"))


# ---- reading


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".bmp"])
def test_round_trip_without_loss(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    save(path, colours(), quality=100)
    picture = load(path)
    assert torch.equal(picture.rgb, colours())
    assert picture.alpha is None and picture.rgb.dtype == torch.float32
    assert list(tmp_path.iterdir()) == [path]


def test_jpeg_quality_and_full_colour_resolution(tmp_path):
    path = tmp_path / "a.JPG"
    save(path, colours())
    with Image.open(path) as file:
        assert file.layer[0][1:3] == file.layer[1][1:3] == (1, 1)  # sampling factors: 4:4:4
    fine = (load(path).rgb - colours()).square().mean()
    save(path, colours(), overwrite=True, quality=20)
    assert fine < (load(path).rgb - colours()).square().mean() / 4


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "PA", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(tmp_path, mode):
    base = Image.fromarray(pixels())
    converted = base.convert("L").convert(mode) if mode in ("LA",) else base.convert(mode)
    if mode == "PA":
        converted = base.convert("P").convert("PA")
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr", "PA") else "a.png")
    converted.save(path)
    picture = load(path)
    expected = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) / 255
    assert torch.allclose(picture.rgb, expected, atol=1e-6)
    assert (picture.alpha is not None) == (mode in ("LA", "RGBA", "PA"))


def test_palette_transparency_becomes_alpha(tmp_path):
    image = Image.fromarray(pixels()).convert("P")
    image.save(tmp_path / "a.png", transparency=image.getpixel((0, 0)))
    alpha = load(tmp_path / "a.png").alpha
    assert alpha.shape == (1, 80, 100) and set(alpha.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(tmp_path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION], exif[ARTIST] = orientation, "A. Nonymous"
    Image.fromarray(pixels()).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as file:
        upright = np.array(ImageOps.exif_transpose(file))
    picture = load(tmp_path / "a.png")
    assert np.array_equal(picture.rgb.permute(1, 2, 0).numpy() * 255, upright)
    save(tmp_path / "b.png", picture.rgb, like=picture)
    with Image.open(tmp_path / "b.png") as file:
        assert file.getexif().get(ORIENTATION, 1) == 1
        assert file.getexif()[ARTIST] == "A. Nonymous"
    assert torch.equal(load(tmp_path / "b.png").rgb, picture.rgb)


def test_cmyk_goes_without_its_profile(tmp_path, caplog):
    broken = b"\0" * 16 + b"CMYK" + b"\0" * 200
    Image.fromarray(pixels()).convert("CMYK").save(tmp_path / "a.jpg", icc_profile=broken)
    with caplog.at_level(logging.WARNING):
        picture = load(tmp_path / "a.jpg")
    assert picture.rgb.shape == (3, 80, 100) and picture.mode == "CMYK"
    assert "icc_profile" not in picture.info and "profile" in caplog.text


def test_phone_pictures_of_several_frames_are_read(tmp_path):
    first, second = Image.fromarray(pixels()), Image.fromarray(pixels(seed=1))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second], quality=95)
    assert (load(tmp_path / "a.jpg").rgb - colours()).abs().mean() < 0.05


# ---- bad input


def truncated(tmp_path):
    save(tmp_path / "whole.jpg", colours())
    return (tmp_path / "whole.jpg").read_bytes()[:1500]


def broken_png(tmp_path):
    save(tmp_path / "whole.png", colours())
    data = bytearray((tmp_path / "whole.png").read_bytes())
    data[len(data) // 2] ^= 255
    return bytes(data)


def small(tmp_path):
    return encoded(Image.new("RGB", (63, 200)), "PNG")


def animated(tmp_path):
    frames = [Image.fromarray(pixels(seed=i)) for i in range(2)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def animated_webp(tmp_path):
    frames = [Image.fromarray(pixels(seed=i)) for i in range(2)]
    return encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])


def pages(tmp_path):
    return encoded(Image.fromarray(pixels()), "TIFF", save_all=True, append_images=[Image.fromarray(pixels(seed=1))])


def deep_grey(tmp_path):
    return encoded(Image.fromarray(pixels(channels=1)[..., 0].astype(np.uint16) * 257), "PNG")


def floats(tmp_path):
    return encoded(Image.fromarray(pixels(channels=1)[..., 0].astype(np.float32)), "TIFF")


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello, I am text " * 20, "not an image"),
        (truncated, "damaged or truncated"),
        (broken_png, "damaged or truncated"),
        (png_header(200, 200), "damaged or truncated"),
        (small, "63x200 pixels; at least 64"),
        (png_header(10001, 10000), "more than 100 megapixels"),
        (png_header(60000, 60000), "more than 100 megapixels"),
        (animated, "2 frames or pages"),
        (animated_webp, "2 frames or pages"),
        (pages, "2 frames or pages"),
        (deep_grey, "more than 8 bits"),
        (floats, "more than 8 bits"),
        (png_header(200, 200, depth=16), "more than 8 bits"),
        (png_header(200, 200, depth=16, kind=6), "more than 8 bits"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_files_are_named_with_the_reason(tmp_path, content, message):
    path = tmp_path / "bad.png"
    path.write_bytes(content(tmp_path) if callable(content) else content)
    with pytest.raises(ImageError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        load(tmp_path / "none.png")
    with pytest.raises(ImageError, match="is a folder"):
        load(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp", ".gif"])
def test_no_part_of_a_file_is_more_than_a_named_error(tmp_path, suffix):
    whole, part = tmp_path / f"whole{suffix}", tmp_path / f"part{suffix}"
    Image.fromarray(pixels()).save(whole)
    data = whole.read_bytes()
    for size in {*range(1, 400, 7), *range(400, len(data), len(data) // 20)}:
        part.write_bytes(data[:size])
        try:
            load(part)  # what is missing may be no more than the end of the metadata
        except ImageError as error:
            assert str(part) in str(error)


# ---- writing


def rich_png(path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[ARTIST] = "A. Nonymous"
    text = PngImagePlugin.PngInfo()
    text.add_text("prompt", '{"3": "a workflow"}')
    text.add_itxt("Titel", "Äpfel \N{RED APPLE}", "de", "Titel")
    Image.fromarray(pixels(channels=4)).save(path, icc_profile=profile, exif=exif, dpi=(300, 300), pnginfo=text)


def test_everything_is_kept_in_png(tmp_path):
    rich_png(tmp_path / "a.png")
    picture = load(tmp_path / "a.png")
    save(tmp_path / "b.png", picture.rgb, like=picture)
    with Image.open(tmp_path / "a.png") as before, Image.open(tmp_path / "b.png") as after:
        assert np.array_equal(np.array(before), np.array(after))
        assert after.text == before.text and after.text["Titel"].lang == "de"
        assert after.info["icc_profile"] == before.info["icc_profile"]
        assert after.getexif()[ARTIST] == "A. Nonymous"
        assert after.info["dpi"] == pytest.approx((300, 300), abs=0.1)


@pytest.mark.parametrize("suffix", [".webp", ".tif"])
def test_alpha_profile_and_exif_go_to_other_formats(tmp_path, suffix, caplog):
    rich_png(tmp_path / "a.png")
    picture = load(tmp_path / "a.png")
    with caplog.at_level(logging.WARNING):
        save(tmp_path / f"b{suffix}", picture.rgb, like=picture, quality=100)
    assert "text chunks" in caplog.text
    again = load(tmp_path / f"b{suffix}")
    assert torch.equal(again.rgb, picture.rgb) and torch.equal(again.alpha, picture.alpha)
    assert again.info["icc_profile"] == picture.info["icc_profile"]
    with Image.open(tmp_path / f"b{suffix}") as file:
        assert file.getexif()[ARTIST] == "A. Nonymous"
    save(tmp_path / "c.png", again.rgb, like=again)
    with Image.open(tmp_path / "c.png") as file:
        assert file.getexif()[ARTIST] == "A. Nonymous"
        assert 256 not in file.getexif()  # a TIFF's own layout is not the picture's


def test_jpeg_keeps_comment_resolution_and_exif(tmp_path):
    exif = Image.Exif()
    exif[ARTIST] = "A. Nonymous"
    image = Image.fromarray(pixels())
    image.save(tmp_path / "a.jpg", exif=exif, dpi=(72, 72), comment=b"made by hand")
    picture = load(tmp_path / "a.jpg")
    save(tmp_path / "b.jpg", picture.rgb, like=picture)
    with Image.open(tmp_path / "b.jpg") as file:
        assert file.info["comment"] == b"made by hand" and file.info["dpi"] == (72, 72)
        assert file.getexif()[ARTIST] == "A. Nonymous"


def test_jpeg_refuses_transparency_and_drops_opaque_alpha(tmp_path):
    see_through = DecodedImage(colours(), torch.full((1, 80, 100), 0.5))
    with pytest.raises(ImageError, match="cannot hold the transparency.*PNG"):
        save(tmp_path / "a.jpg", colours(), like=see_through)
    save(tmp_path / "a.jpg", colours(), like=DecodedImage(colours(), torch.ones(1, 80, 100)))
    assert load(tmp_path / "a.jpg").alpha is None
    with pytest.raises(ImageError, match="cannot hold the transparency"):
        images.check_holds(tmp_path / "a.bmp", see_through)
    images.check_holds(tmp_path / "a.png", see_through)


def test_existing_files_are_not_overwritten_unasked(tmp_path):
    path = tmp_path / "a.png"
    save(path, colours())
    before = path.read_bytes()
    with pytest.raises(ImageError, match="already exists"):
        save(path, 1 - colours())
    with pytest.raises(ImageError, match="is the input itself"):
        save(path, 1 - colours(), like=load(path))
    assert path.read_bytes() == before
    save(path, 1 - colours(), like=load(path), overwrite=True)
    assert torch.allclose(load(path).rgb, 1 - colours())


@pytest.mark.parametrize(
    ("error", "seen"), [(KeyboardInterrupt("by the user"), KeyboardInterrupt), (OSError("disk full"), ImageError)]
)
def test_interrupted_writing_leaves_nothing_half_done(tmp_path, monkeypatch, error, seen):
    path = tmp_path / "a.png"
    save(path, colours())
    before = path.read_bytes()

    def interrupted(self, file, *args, **kwargs):
        file.write(b"half")
        raise error

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(seen, match=str(error)):
        save(path, 1 - colours(), overwrite=True)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_bad_targets_say_what_is_wrong(tmp_path):
    with pytest.raises(ImageError, match="unknown suffix '.gif'"):
        save(tmp_path / "a.gif", colours())
    with pytest.raises(ImageError, match="folder does not exist"):
        save(tmp_path / "none" / "a.png", colours())
    with pytest.raises(ValueError, match="shape"):
        save(tmp_path / "a.png", colours()[None])
    with pytest.raises(ImageError, match="does not fit"):
        save(tmp_path / "a.png", colours(), like=DecodedImage(colours(), torch.zeros(1, 8, 8)))
    assert not list(tmp_path.iterdir())


def test_new_files_get_ordinary_permissions(tmp_path):
    with atomic_write(tmp_path / "a") as file:
        file.write(b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_limits_are_those_documented():
    assert (images.MIN_SIDE, images.MAX_PIXELS) == (64, 100_000_000)


def test_pipes_and_devices_are_no_pictures(tmp_path):
    """A pipe would be waited for, and /dev/zero be read until memory ends."""
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    for name in ("a.png", "b.png"):
        with pytest.raises(ImageError, match="is a pipe or a device"):
            load(tmp_path / name)
        with pytest.raises(ImageError, match="is not a regular file"):
            save(tmp_path / name, colours(), overwrite=True)


def test_links_are_followed(tmp_path):
    save(tmp_path / "target.png", colours())
    (tmp_path / "link.png").symlink_to("target.png")
    with pytest.raises(ImageError, match="already exists"):
        save(tmp_path / "link.png", 1 - colours())
    save(tmp_path / "link.png", 1 - colours(), overwrite=True)
    assert (tmp_path / "link.png").is_symlink()
    assert torch.allclose(load(tmp_path / "target.png").rgb, 1 - colours())


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path, monkeypatch, links):
    if not links:  # such as FAT

        def refused(*_):
            raise PermissionError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", refused)
    path = tmp_path / "a.png"
    images.write(path, b"mine", overwrite=False)
    assert path.read_bytes() == b"mine"
    path.unlink()
    with pytest.raises(ImageError, match="already exists"):
        images.write(path, b"mine", lambda: path.write_bytes(b"another's") and None, overwrite=False)
    assert path.read_bytes() == b"another's" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("others", [b"another's", b"mine"])
def test_work_for_a_file_that_is_not_written_is_taken_back(tmp_path, others):
    """But not where the same bytes got the name, from another process that marks the same photo."""
    path, done = tmp_path / "a.png", []

    def commit():
        done.append("commit")
        path.write_bytes(others)
        return lambda: done.append("undo")

    with pytest.raises(ImageError, match="already exists"):
        images.write(path, b"mine", commit, overwrite=False)
    assert done == (["commit", "undo"] if others != b"mine" else ["commit"]) and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ImageError, match="already exists"):
        images.write(path, b"mine", commit, overwrite=False)
    assert done.count("commit") == 1  # not begun where the name is taken before
    images.write(path, b"mine", commit)
    assert done[-1] == "commit" and path.read_bytes() == b"mine"


def test_names_of_any_length_can_be_written(tmp_path):
    for name in ("n" * 251 + ".png", "\u5199" * 83 + ".png"):
        save(tmp_path / name, colours())
        assert load(tmp_path / name).rgb.shape == (3, 80, 100)


def test_what_killed_processes_left_is_removed(tmp_path):
    (tmp_path / ".onrw-0123456789ab.tmp").write_bytes(b"half")
    (tmp_path / "a.tmp").write_bytes(b"another's")
    with atomic_write(tmp_path / "b") as file:
        remove_abandoned(tmp_path)
        file.write(b"whole")
    assert (tmp_path / "b").read_bytes() == b"whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tmp", "b"]
    remove_abandoned(tmp_path / "none")


KILLED = """
import os, signal, sys
from onrw_core.payload.keys import Key
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
Key.new().save(sys.argv[1])
"""


@pytest.mark.parametrize("locks", [True, False])  # False: as on Windows
def test_whatever_is_written_next_removes_what_a_killed_process_left(tmp_path, monkeypatch, locks):
    """Such as the whole secret of a key."""
    environment = os.environ | {"PYTHONPATH": str(Path(onrw_core.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a.key")], env=environment)
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".tmp"
    os.mkfifo(tmp_path / ".onrw-pipe.tmp")  # is not waited for
    if not locks:
        (tmp_path / ".onrw-pipe.tmp").unlink()
        monkeypatch.setattr(atomic, "fcntl", None)
    Key.new().save(tmp_path / "b.key")
    assert not left.exists() and (tmp_path / "b.key").exists()


def test_a_file_that_is_being_written_is_never_taken_for_abandoned(tmp_path, monkeypatch):
    """Not before it is locked, not when it is about to get its name, and not where permissions are tried."""
    flock, link = fcntl.flock, os.link

    def late_lock(file, flags):
        monkeypatch.setattr(fcntl, "flock", flock)
        remove_abandoned(tmp_path)
        flock(file, flags)

    def late_link(*names):
        remove_abandoned(tmp_path)
        link(*names)

    monkeypatch.setattr(os, "link", late_link)
    for name in "ab":
        monkeypatch.setattr(fcntl, "flock", late_lock)
        images.write(tmp_path / name, b"whole", overwrite=False)
    for check in (lambda: atomic.check_writable(tmp_path), lambda: atomic.are_one_file(tmp_path, "a", "A")):
        monkeypatch.setattr(fcntl, "flock", late_lock)
        check()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"whole", "b": b"whole"}


def test_bytes_are_on_the_disk_before_they_have_a_name(tmp_path, monkeypatch):
    order, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: order.append("sync") or fsync(file))
    images.write(tmp_path / "a", b"x", lambda: order.append("commit"))
    assert order.index("sync") < order.index("commit") < len(order) - 1  # then the folder

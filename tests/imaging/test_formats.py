import io
import re
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError

import onrw_core
from onrw_core.imaging.files import ImageError, load
from onrw_core.imaging.formats import READABLE, open_image


def encoded(kind):
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", READABLE)
def test_the_listed_formats_are_read(tmp_path, kind):
    (tmp_path / "photo.png").write_bytes(encoded(kind))
    assert load(tmp_path / "photo.png").rgb.shape == (3, 256, 256)


@pytest.mark.parametrize("kind", ["EPS", "PPM", "ICO", "TGA", "PCX"])
def test_no_other_is_whatever_its_name(tmp_path, kind):
    """PostScript would be run by Ghostscript."""
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(kind))
    with pytest.raises(UnidentifiedImageError, match="cannot identify"):
        open_image(path)
    with pytest.raises(ImageError, match="not an image, or of an unknown format"):
        load(path)


def test_pictures_are_opened_in_one_place():
    package = Path(onrw_core.__file__).parent
    sources = [*package.rglob("*.py"), *(package.parent / "nodes").rglob("*.py")]
    opening = [path.name for path in sources if re.search(r"\bImage\.open\(", path.read_text(encoding="utf-8"))]
    assert opening == ["formats.py"]

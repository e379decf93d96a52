"""Digital Source Type in XMP packets, and in the files that hold them."""

import xml.etree.ElementTree as ET

import pytest
import torch
from PIL import Image

from onrw_core.imaging import files
from onrw_core.imaging.source_type import IPTC, RDF, read_source_type, with_source_type

AI = "trainedAlgorithmicMedia"
LIGHTROOM = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}">
<rdf:Description rdf:about="uuid:1" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:e="{IPTC}" dc:format="image/jpeg"
 %s><dc:creator><rdf:Seq><rdf:li>Ann &amp; Bob \u00fc</rdf:li></rdf:Seq></dc:creator>%s</rdf:Description>
</rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""
URI = "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"


def test_new_packet():
    xmp = with_source_type(b"", AI)
    assert read_source_type(xmp) == AI and xmp.startswith(b"<?xpacket begin=") and xmp.endswith(b'<?xpacket end="w"?>')
    description = ET.fromstring(xmp).find(f".//{{{RDF}}}Description")
    assert description.get(f"{{{IPTC}}}DigitalSourceType") == URI.replace("digitalCapture", AI)


@pytest.mark.parametrize(
    ("attribute", "element"),
    [
        ("", ""),
        (f'e:DigitalSourceType="{URI}"', ""),
        ("", f"<e:DigitalSourceType>{URI}</e:DigitalSourceType>"),
        ("", f'<e:DigitalSourceType rdf:resource="{URI}/"/>'),
    ],
)
def test_packet_of_another_program(attribute, element):
    before = (LIGHTROOM % (attribute, element)).encode()
    assert read_source_type(before) == ("digitalCapture" if attribute or element else None)
    after = with_source_type(before, AI)
    assert read_source_type(after) == AI and URI.encode() not in after
    root = ET.fromstring(after)
    abouts = {d.get(f"{{{RDF}}}about") for d in root.iter(f"{{{RDF}}}Description")}
    assert abouts == {"uuid:1"} and root.find(f".//{{{RDF}}}li").text == "Ann & Bob \u00fc"
    again = with_source_type(with_source_type(after, "digitalCapture"), AI)
    assert again.count(b"DigitalSourceType") == 1 and len(again) == len(after)


@pytest.mark.parametrize(
    "xmp",
    [
        b"not XML",
        b"<a/>",
        b'<!DOCTYPE a [<!ENTITY b "c">]><x:xmpmeta xmlns:x="adobe:ns:meta/">&b;</x:xmpmeta>',
        b"<x:xmpmeta",
        '<!DOCTYPE a><x:xmpmeta xmlns:x="adobe:ns:meta/"/>'.encode("utf-16"),
        with_source_type(b"", AI).replace(b"</rdf:RDF>", b"<a>" * 3000 + b"</a>" * 3000 + b"</rdf:RDF>"),
    ],
)
def test_damaged_packets(xmp):
    assert read_source_type(xmp) is None
    with pytest.raises(ValueError, match="XMP"):
        with_source_type(xmp, AI)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings(encoding):
    xmp = with_source_type(b"", "digitalCapture").decode().lstrip("\ufeff").encode(encoding)
    assert read_source_type(xmp) == "digitalCapture"
    assert read_source_type(with_source_type(xmp, AI)) == AI


def test_a_list_of_alternatives():
    xmp = with_source_type(b"", "digitalCapture")
    attribute = f' Iptc4xmpExt:DigitalSourceType="{URI}"'.encode()
    alternatives = f"<rdf:Alt><rdf:li>{URI.replace('digitalCapture', AI)}</rdf:li></rdf:Alt>"
    listed = f"<Iptc4xmpExt:DigitalSourceType>{alternatives}</Iptc4xmpExt:DigitalSourceType>"
    assert attribute in xmp
    xmp = xmp.replace(attribute, b"").replace(b"/></rdf:RDF>", f">{listed}</rdf:Description></rdf:RDF>".encode())
    assert read_source_type(xmp) == AI
    assert read_source_type(with_source_type(xmp, "digitalCapture")) == "digitalCapture"


@pytest.mark.parametrize("value", ["x" * 200, "a b", "<script>", "", "../.."])
def test_other_values_are_not_shown(value):
    xmp = with_source_type(b"", "LABEL").replace(b"LABEL", value.replace("<", "&lt;").encode())
    assert read_source_type(xmp) is None


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif"])
def test_files_hold_it(tmp_path, name):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "in.png")
    picture = files.load(tmp_path / "in.png")
    picture.info["xmp"] = with_source_type(picture.info.get("xmp", b""), AI)
    files.save(tmp_path / name, torch.zeros(3, 64, 64), picture)
    assert read_source_type(files.load(tmp_path / name).info["xmp"]) == AI

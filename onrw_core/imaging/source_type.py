"""Digital Source Type in XMP: what kind of source a image comes from.

It is the property Iptc4xmpExt:DigitalSourceType of the IPTC Photo Metadata Standard 2024.1, whose value is a URI of the
IPTC NewsCodes "Digital Source Type". The standard has no field of IPTC IIM for it. A label is the last part of the URI,
such as "trainedAlgorithmicMedia".

References: IPTC Photo Metadata Standard 2024.1; XMP specification part 1 (7, serialisation as RDF/XML).
"""

from __future__ import annotations

import re
from xml.dom import minidom
from xml.parsers.expat import ExpatError

__all__ = ["encoding_of", "read_source_type", "source_type_uri", "with_source_type"]

VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"
IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
XMLNS = "http://www.w3.org/2000/xmlns/"
PROPERTY = "DigitalSourceType"
PREFIX = "Iptc4xmpExt"
EMPTY = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}"/></x:xmpmeta>'
    '<?xpacket end="w"?>'
).encode()
DECLARATION = b'<?xml version="1.0" encoding="utf-8"?>'  # which packets do not have
MOST_BYTES = 2**22  # of a packet that is parsed
DEEPEST = 100  # levels of elements; minidom goes through them by recursion
# The first character of a packet, "<", in encodings of two bytes; with a byte order mark before it or not.
WIDE = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be", b"<\0": "utf-16-le", b"\0<": "utf-16-be"}
TERM = re.compile(r"https?://cv\.iptc\.org/newscodes/digitalsourcetype/([A-Za-z]{1,80})/?")


def source_type_uri(label: str) -> str:
    """The URI of a public label."""
    return VOCABULARY + label


def read_source_type(xmp: bytes) -> str | None:
    """The label that an XMP packet states; None where it states none, or is damaged."""
    try:
        values = [value for value, _ in _found(_parsed(xmp))]
    except ValueError:
        return None
    match = TERM.fullmatch(values[0].strip()) if values else None
    return match[1] if match else None


def with_source_type(xmp: bytes, label: str) -> bytes:
    """An XMP packet that states a label, in place of what it stated before; all else is kept.

    Args:
        xmp: The packet; empty to make one.
        label: A term of the vocabulary, such as "digitalCapture".

    Raises:
        ValueError: The packet is damaged.
    """
    document = _parsed(xmp or EMPTY)
    for _, node in _found(document):
        parent = node.ownerElement if isinstance(node, minidom.Attr) else node.parentNode
        assert isinstance(parent, minidom.Element)
        parent.removeAttributeNode(node) if isinstance(node, minidom.Attr) else parent.removeChild(node)
    roots = document.getElementsByTagNameNS(RDF, "RDF")
    if not roots:
        raise ValueError("XMP: damaged, without rdf:RDF")
    descriptions = document.getElementsByTagNameNS(RDF, "Description")
    if descriptions:
        description = descriptions[0]
    else:
        prefix = f"{roots[0].prefix}:" if roots[0].prefix else ""
        description = roots[0].appendChild(document.createElementNS(RDF, f"{prefix}Description"))
        description.setAttributeNS(RDF, f"{prefix}about", "")
    description.setAttributeNS(XMLNS, f"xmlns:{PREFIX}", IPTC)
    description.setAttributeNS(IPTC, f"{PREFIX}:{PROPERTY}", source_type_uri(label))
    return b"".join(node.toxml("utf-8").removeprefix(DECLARATION) for node in document.childNodes)


def encoding_of(xmp: bytes) -> str | None:
    """The encoding of a packet of two bytes a character; None for UTF-8."""
    return WIDE.get(xmp[:2])


def _parsed(xmp: bytes) -> minidom.Document:
    """The document of a packet.

    Raises:
        ValueError: Not XML, too large, nested too deeply, or with a document type, which XMP does not have, and which
            may define entities.
    """
    encoding = encoding_of(xmp)
    try:
        xmp = xmp if encoding is None else xmp.decode(encoding).encode()
        if len(xmp) > MOST_BYTES or b"<!DOCTYPE" in xmp or b"<!ENTITY" in xmp:
            raise ValueError("too large, or with a document type")
        document = minidom.parseString(xmp.strip(b"\0 \t\r\n"))
        level: list[minidom.Node] = [document]
        for _ in range(DEEPEST):
            level = [child for node in level for child in node.childNodes]
        if level:
            raise ValueError("nested too deeply")
    except (ExpatError, ValueError, LookupError) as error:
        raise ValueError(f"XMP: damaged ({error})") from None
    return document


def _found(document: minidom.Document) -> list[tuple[str, minidom.Attr | minidom.Element]]:
    """The property wherever a packet states it: (value, attribute or element)."""
    found: list[tuple[str, minidom.Attr | minidom.Element]] = []
    for description in document.getElementsByTagNameNS(RDF, "Description"):
        attribute = description.getAttributeNodeNS(IPTC, PROPERTY)
        if attribute is not None:
            found.append((attribute.value, attribute))
    for element in document.getElementsByTagNameNS(IPTC, PROPERTY):
        resource = element.getAttributeNS(RDF, "resource")
        inside = [element, *element.getElementsByTagNameNS(RDF, "li")]  # of one value, or of a list of alternatives
        text = "".join(node.data for each in inside for node in each.childNodes if node.nodeType == node.TEXT_NODE)
        found.append((resource or text, element))
    return found

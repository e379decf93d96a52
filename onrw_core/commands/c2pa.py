"""``onrw c2pa``: the watermark of an image as a C2PA soft binding, and a signed manifest with it.

A soft binding tells a reader of the manifest which watermark the image carries, so that the manifest can be found
again in a repository when it was stripped. The assertion c2pa.soft-binding names the algorithm and the value that the
watermark carries. `ALGORITHM` is not in the C2PA's list of soft-binding algorithms, and the assertion says so:
validators that know listed algorithms alone ignore it.

The value is "FINGERPRINT:KIND:MESSAGE", the fingerprint of the key and what was read. It is public in the manifest.

Reference: C2PA technical specification 2.2: soft bindings, the assertions c2pa.soft-binding and c2pa.actions.v2.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from .common import add_fpr, add_key, add_overwrite, load_key
from .output import say

if TYPE_CHECKING:
    from c2pa import Signer

    from ..extractors.reading import Reading
    from ..payload.keys import Key

__all__ = ["ALGORITHM", "add_arguments", "run", "soft_binding"]

ALGORITHM = "onrw.watermark"
UNREGISTERED = "ONRW invisible watermark (not in the C2PA list of soft-binding algorithms)"
ALGORITHMS = ("es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519")
REMEDY = (
    "check that --certificate, --private-key and --algorithm belong together, and that the certificate is one for "
    "documents or C2PA, with its chain"
)
LONGEST_PEM = 2**20  # bytes
MIME = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "TIFF": "image/tiff"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="marked image")
    add_key(parser)
    add_fpr(parser)
    signing = parser.add_argument_group("signing (pip install 'onrw[c2pa]')")
    signing.add_argument("-o", "--output", metavar="OUT", help="image with a signed manifest, in the format of FILE")
    signing.add_argument("--certificate", metavar="PEM", help="your certificate, followed by its chain")
    signing.add_argument("--private-key", metavar="PEM", help="its private key")
    signing.add_argument("--algorithm", choices=ALGORITHMS, default="es256", help="of the key (default: es256)")
    add_overwrite(parser)


def run(arguments: argparse.Namespace) -> int:
    signing = (arguments.output, arguments.certificate, arguments.private_key)
    if any(signing) and not all(signing):
        raise ValueError("a signed manifest needs all of --output, --certificate and --private-key")
    key = load_key(arguments.key)

    from ..extractors.keyed.extractor import KeyedExtractor
    from ..imaging import files
    from ..imaging.source_type import read_source_type

    content = files.read(arguments.file)
    image = files.load(arguments.file, content)
    signer = None
    if arguments.output:
        output = Path(arguments.output)
        files.check_free(output, Path(arguments.file), arguments.overwrite)
        if image.format not in MIME or files.FORMATS.get(output.suffix.lower()) != image.format:
            raise ValueError(
                f"output {output}: signing keeps the pixels, so it has to be of the format of {arguments.file}, and "
                f"one of {', '.join(MIME)}"
            )
        signer = _signer(arguments)
    reading = KeyedExtractor(key).read(image.rgb, key, fpr=arguments.fpr)
    assertion: dict[str, Any] = {"label": "c2pa.soft-binding", "data": soft_binding(arguments.file, reading, key)}
    if signer is None:
        say(json.dumps(assertion))
        return 0
    label = read_source_type(image.info.get("xmp", b""))
    signed = _signed(content, MIME[image.format], manifest(output.name, assertion, label), signer, edit=label is None)
    files.write(output, signed, overwrite=arguments.overwrite)
    say(f"{arguments.file} -> {output}: signed manifest, soft binding {assertion['data']['blocks'][0]['value']}")
    return 0


def soft_binding(name: str, reading: Reading, key: Key) -> dict[str, Any]:
    """The data of the assertion c2pa.soft-binding.

    Args:
        name: Name of the image, for errors.
        reading: Its reading.
        key: The key of the reading.

    Raises:
        ValueError: No message was read.
    """
    if not reading.detected or reading.message.kind is None:
        raise ValueError(f"{name}: no message of this key was read, so there is nothing to bind; mark it first")
    value = f"{key.fingerprint}:{reading.message.kind}:{reading.message.value}"
    return {"alg": ALGORITHM, "name": UNREGISTERED, "blocks": [{"scope": {}, "value": value}]}


def manifest(title: str, assertion: dict[str, Any], label: str | None = None) -> dict[str, Any]:
    """The definition of a manifest: where the image comes from, that it was watermarked, and its soft binding.

    Args:
        title: Name of the file.
        assertion: The soft binding.
        label: Digital Source Type, with which the image counts as created; None for an edit of the file as it is,
            which keeps the manifest that it may have.
    """
    from ..imaging.source_type import source_type_uri

    actions = [{"action": "c2pa.watermarked.bound", "description": UNREGISTERED}]
    if label is not None:
        actions.insert(0, {"action": "c2pa.created", "digitalSourceType": source_type_uri(label)})
    return {
        "claim_generator_info": [{"name": "onrw", "version": __version__}],
        "title": title,
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}, assertion],
    }


def _signer(arguments: argparse.Namespace) -> Signer:
    """What signs with the user's certificate. No time stamp is asked for.

    Raises:
        ValueError: c2pa-python is missing, or certificate and key do not make a signer.
    """
    try:
        import c2pa
    except ImportError:
        raise ValueError("a signed manifest needs c2pa-python: pip install 'onrw[c2pa]'") from None
    pems = [_pem(path) for path in (arguments.certificate, arguments.private_key)]
    try:
        return c2pa.Signer.from_info(c2pa.C2paSignerInfo(arguments.algorithm, *pems, None))
    except c2pa.C2paError as error:
        raise ValueError(f"{arguments.certificate}: {error}; {REMEDY}") from None


def _pem(path: str) -> bytes:
    """The content of a PEM file; it may be a pipe, as of `<(...)`, but no device that never ends.

    Raises:
        ValueError: It is larger than any such file.
    """
    with open(path, "rb") as file:
        content = file.read(LONGEST_PEM + 1)
    if len(content) > LONGEST_PEM:
        raise ValueError(f"{path}: has more than {LONGEST_PEM >> 10} KiB, so it is no certificate or key; {REMEDY}")
    return content


def _signed(content: bytes, kind: str, definition: dict[str, Any], signer: Signer, edit: bool) -> bytes:
    """A file with a signed manifest.

    Args:
        content: The file.
        kind: Its MIME type.
        definition: See `manifest`.
        signer: See `_signer`.
        edit: Whether the manifest says that the file existed before.

    Raises:
        ValueError: It cannot be signed.
    """
    import c2pa

    # No trust list is consulted and no other manifest is fetched: nothing is sent.
    context = c2pa.Context.from_dict({"verify": {"verify_trust": False, "remote_manifest_fetch": False}})
    result = io.BytesIO()
    try:
        builder = c2pa.Builder(json.dumps(definition), context)
        if edit:
            builder.set_intent(c2pa.C2paBuilderIntent.EDIT)
        builder.sign(signer, kind, io.BytesIO(content), result)
    except c2pa.C2paError as error:
        raise ValueError(f"{definition['title']}: cannot be signed ({error}); {REMEDY}") from None
    return result.getvalue()

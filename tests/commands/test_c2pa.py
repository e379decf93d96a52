"""``onrw c2pa``: the soft-binding assertion, and manifests signed with a chain that the tests make."""

import datetime
import io
import json

import pytest
from PIL import Image

from onrw_core.commands.c2pa import ALGORITHM, soft_binding
from onrw_core.imaging import files
from onrw_core.imaging.source_type import with_source_type

from .test_extract import KEY, folder  # noqa: F401  (fixtures)
from .test_verify import onrw, reading  # noqa: F401

VALUE = f"{KEY.fingerprint}:id:000002"


def test_assertion(onrw):  # noqa: F811
    code, out, _ = onrw("c2pa", "photos/2.png", "--key", "my.key")
    assertion = json.loads(out)
    assert code == 0 and assertion["label"] == "c2pa.soft-binding"
    data = assertion["data"]
    assert data["alg"] == ALGORITHM and "not in the C2PA list" in data["name"]
    assert data["blocks"] == [{"scope": {}, "value": VALUE}]


def test_refused(onrw, folder):  # noqa: F811
    signing = ["--certificate", "none.pem", "--private-key", "none.pem"]
    for words, reason in (
        (["-o", "signed.png"], "all of --output, --certificate and --private-key"),
        (["-o", "signed.jpg", *signing], "of the format of"),
        (["-o", "photos/0.png", *signing], "already exists"),
        (["-o", "signed.png", *signing], "none.pem"),
        (["-o", "signed.png", "--certificate", "/dev/zero", "--private-key", "none.pem"], "/dev/zero: has more than"),
    ):
        code, _, err = onrw("c2pa", "photos/2.png", *words, "--key", "my.key")
        assert code == 2 and reason in err, err
    assert not list(folder.glob("signed.*"))
    with pytest.raises(ValueError, match="a.png: no message of this key"):
        soft_binding("a.png", reading(-0.7), KEY)


@pytest.fixture
def chain(folder):  # noqa: F811
    """chain.pem and private.pem: a signing certificate, its self-made root, and the key."""
    x509 = pytest.importorskip("cryptography.x509", reason="cryptography is not installed")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    begin = datetime.datetime(2026, 1, 1)
    root_key, leaf_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def name(text):
        oid = x509.NameOID
        return x509.Name([x509.NameAttribute(oid.COMMON_NAME, text), x509.NameAttribute(oid.ORGANIZATION_NAME, "Test")])

    def certificate(subject, public, is_root):
        usage = x509.KeyUsage(not is_root, False, False, False, False, is_root, is_root, False, False)
        made = x509.CertificateBuilder(name("Test root"), name(subject), public, x509.random_serial_number(), begin)
        made = made.not_valid_after(begin + datetime.timedelta(days=36500))
        made = made.add_extension(x509.BasicConstraints(is_root, None), critical=True)
        made = made.add_extension(usage, critical=True)
        made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
        made = made.add_extension(authority, critical=False)
        if not is_root:
            made = made.add_extension(
                x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False
            )
        return made.sign(root_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    leaf = certificate("Test signer", leaf_key.public_key(), False)
    (folder / "chain.pem").write_bytes(leaf + certificate("Test root", root_key.public_key(), True))
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "private.pem").write_bytes(leaf_key.private_bytes(serialization.Encoding.PEM, *private))


def actions(manifest):
    return next(a for a in manifest["assertions"] if a["label"] == "c2pa.actions.v2")["data"]["actions"]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_signed_manifest(onrw, chain, suffix):  # noqa: F811
    c2pa = pytest.importorskip("c2pa", reason="c2pa-python is not installed")
    image = files.load("photos/2.png")
    if suffix != ".png":
        image.info["xmp"] = with_source_type(b"", "trainedAlgorithmicMedia")
    files.save(f"marked{suffix}", image.rgb, image)
    signing = ["--certificate", "chain.pem", "--private-key", "private.pem"]
    code, out, err = onrw("c2pa", f"marked{suffix}", "--key", "my.key", "-o", f"signed{suffix}", *signing)
    assert code == 0 and VALUE in out, err
    content = files.read(f"signed{suffix}")
    reader = c2pa.Reader(Image.MIME[files.FORMATS[suffix]], io.BytesIO(content))
    assert reader.get_validation_state() == "Valid"
    # Everything holds but the trust in a root that nobody knows.
    assert [status["code"] for status in json.loads(reader.json())["validation_status"]] == [
        "signingCredential.untrusted"
    ]
    manifest = reader.get_active_manifest()
    binding = next(a for a in manifest["assertions"] if a["label"] == "c2pa.soft-binding")
    assert binding["data"]["alg"] == ALGORITHM and binding["data"]["blocks"][0]["value"] == VALUE
    first, *_, last = actions(manifest)
    assert last["action"] == "c2pa.watermarked.bound"
    if suffix == ".png":
        assert first["action"] == "c2pa.opened"
    else:
        assert first["digitalSourceType"].endswith("/trainedAlgorithmicMedia") and first["action"] == "c2pa.created"
    assert (files.load(f"signed{suffix}", content).rgb == files.load(f"marked{suffix}").rgb).all()


def test_certificate_and_key_that_do_not_belong_together(onrw, chain, folder):  # noqa: F811
    pytest.importorskip("c2pa", reason="c2pa-python is not installed")
    (folder / "chain.pem").write_text("no certificate")
    signing = ["--certificate", "chain.pem", "--private-key", "private.pem", "-o", "signed.png"]
    code, _, err = onrw("c2pa", "photos/2.png", "--key", "my.key", *signing)
    assert (
        code == 2
        and "--algorithm belong together" in err
        and "PRIVATE" not in err
        and not (folder / "signed.png").exists()
    )

"""Keys: the stream of wire format 1, the file, and that the secret stays secret."""

import logging
import os
import pickle

import pytest

from onrw_core.keys import Key, KeyFileError

SECRET = bytes(range(32))
LINE = "onrw-key-1:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"


def test_stream_is_wire_format_1():
    key = Key(SECRET)
    assert key.stream("carrier", 16).hex() == "329043d950976fb53c958f59086af9ba"
    assert key.stream("sync", 8).hex() == "1fbda22eb8aad959"
    assert key.fingerprint == "58287e78f6e9c955"
    assert Key(b"k" * 16).stream("carrier", 4) != Key(b"k" * 17).stream("carrier", 4)


def test_stream_is_a_prefix_and_separates_labels():
    key = Key(SECRET)
    assert key.stream("a", 100)[:10] == key.stream("a", 10)
    # Length prefixes: no key and label can be cut differently into another pair with the same bytes.
    assert Key(b"x" * 16).stream("xy", 8) != Key(b"x" * 17).stream("y", 8)


def test_secret_is_not_shown():
    key = Key(SECRET)
    assert SECRET.hex() not in repr(key) and "\\x01" not in repr(key) and SECRET.hex() not in str(key)
    assert key == Key(SECRET) and key != Key.new()
    assert pickle.loads(pickle.dumps(key)) == key


def test_save_and_load(tmp_path):
    path, key = tmp_path / "mark.key", Key.new()
    key.save(path)
    assert path.read_text().count("\n") == 1
    assert Key.load(path) == key
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600


def test_text_is_stable():
    assert Key(SECRET).text()[:-8] == LINE
    assert Key.parse("  " + Key(SECRET).text().replace("0a", "0A") + "\r\n") == Key(SECRET)


def test_save_refuses_to_overwrite(tmp_path):
    path, key = tmp_path / "mark.key", Key.new()
    key.save(path)
    with pytest.raises(KeyFileError, match="exists"):
        Key.new().save(path)
    assert Key.load(path) == key
    with pytest.raises(KeyFileError, match="cannot be written"):
        key.save(tmp_path / "nowhere" / "mark.key")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("hello", "not an ONRW key"),
        ("onrw-key-2:" + "00" * 36, "not an ONRW key"),
        ("onrw-key-1:0001", "cut short"),
        ("onrw-key-1:" + "zz" * 36, "not hexadecimal"),
        (LINE + "00000000", "checksum"),
        (LINE, "checksum"),
    ],
)
def test_malformed_keys_say_why_and_are_not_repeated(tmp_path, text, reason):
    path = tmp_path / "bad.key"
    path.write_text(text)
    with pytest.raises(KeyFileError, match=reason) as caught:
        Key.load(path)
    assert "bad.key" in str(caught.value)
    assert "0001" not in str(caught.value)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(KeyFileError, match="onrw key new"):
        Key.load(tmp_path / "none.key")
    with pytest.raises(KeyFileError):
        Key.load(tmp_path)
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    with pytest.raises(KeyFileError, match="not an ONRW key"):
        Key.load(tmp_path / "binary")


def test_environment(monkeypatch):
    key = Key.new()
    monkeypatch.setenv("ONRW_KEY", key.text())
    assert Key.from_environment() == key
    monkeypatch.delenv("ONRW_KEY")
    with pytest.raises(KeyFileError, match="ONRW_KEY"):
        Key.from_environment()


@pytest.mark.skipif(os.name != "posix", reason="file modes are a POSIX matter")
def test_world_readable_key_warns(tmp_path, caplog):
    path, key = tmp_path / "open.key", Key.new()
    key.save(path)
    with caplog.at_level(logging.WARNING):
        Key.load(path)
        assert not caplog.records
        path.chmod(0o644)
        assert Key.load(path) == key
    assert "chmod 600" in caplog.text
    assert key.secret.hex() not in caplog.text


@pytest.mark.parametrize("secret", [b"short", b"x" * 65, "text" * 8])
def test_secret_length(secret):
    with pytest.raises(KeyFileError, match="16 to 64 bytes"):
        Key(secret)

"""Keys: the stream of wire format 1, the file, and that the secret stays secret."""

import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import onrw_core
from onrw_core.payload.keys import Key, KeyFileError, excerpt, redacted
from onrw_core.payload.registry import Registry
from onrw_core.stages.noise_optimisation import PRESETS

SECRET = bytes(range(32))
CHOICES = ("mix", "space", "label", "composition", "mask")
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
    with pytest.raises(KeyFileError, match="not a regular file|directory"):
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
def test_a_key_open_to_others_warns(tmp_path, caplog):
    path, key = tmp_path / "open.key", Key.new()
    key.save(path)
    with caplog.at_level(logging.WARNING):
        Key.load(path)
        assert not caplog.records
        for mode in (0o644, 0o640, 0o604, 0o620):
            caplog.clear()
            path.chmod(mode)
            assert Key.load(path) == key
            assert "chmod 600" in caplog.text
    assert key.secret.hex() not in caplog.text


@pytest.mark.parametrize("secret", [b"short", b"x" * 65, "text" * 8])
def test_secret_length(secret):
    with pytest.raises(KeyFileError, match="16 to 64 bytes"):
        Key(secret)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "utf-16-be-bom"])
def test_encodings_of_windows(tmp_path, encoding):
    """PowerShell's `>` writes UTF-16, Notepad a byte order mark."""
    key, path = Key(SECRET), tmp_path / "a.key"
    text = key.text() + "\r\n"
    if encoding.endswith("-bom"):
        path.write_bytes(("\ufeff" + text).encode(encoding.removesuffix("-bom")))
    else:
        path.write_bytes(text.encode(encoding))
    path.chmod(0o600)
    assert Key.load(path) == key
    assert Key.parse("\ufeff" + text) == key


def test_a_keys_text_in_place_of_a_file_is_not_repeated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = Key(SECRET).text()
    for given in (text, text.removeprefix("onrw-key-1:"), f"./{text}", text.upper()):
        for use in (Key.load, Key.load_or_new, Key.new().save):
            with pytest.raises(KeyFileError, match="place of a file") as caught:
                use(given)
            assert SECRET.hex() not in str(caught.value).lower()
    assert list(tmp_path.iterdir()) == []


def test_redacted():
    text = Key(SECRET).text()
    assert redacted(f"a {text}, {text[11:]} b") == "a onrw-key-1:(hidden) onrw-key-1:(hidden) b"
    assert redacted(f"0x{text[11:]}1 '{text}'") == "0xonrw-key-1:(hidden) 'onrw-key-1:(hidden)"
    assert redacted(redacted(f"'{text}' is")) == redacted(f"'{text}' is")
    assert redacted("01" * 36) == "01" * 36  # raw bits
    assert SECRET.hex()[:20] not in excerpt(text) + excerpt(text[11:]) and excerpt("x" * 50) == repr("x" * 40 + "...")
    assert text[11:75] not in redacted(text[11:-1]) and redacted(text[11:-7]) == "onrw-key-1:(hidden)"
    digest = "0" * 64
    assert redacted(f"{digest}.png c0ffee") == f"{digest}.png c0ffee"


@pytest.mark.parametrize(
    "call",
    [
        lambda text: Key.from_environment(text),
        lambda text: Key.parse("x", text),
        lambda text: Registry(text),
        lambda text: onrw_core.embed(text, text="Ann", key=Key.new()),
        lambda text: onrw_core.embed(torch.zeros(3, 64, 64), text="Ann", key=Key.new(), settings=text),
        lambda text: onrw_core.embed(torch.zeros(3, 64, 64), text="Ann", key=Key.new(), label=text),
        lambda text: onrw_core.embed(torch.zeros(3, 64, 64), text="Ann", key=Key.new(), extractor=text),
        lambda text: onrw_core.embed(torch.zeros(3, 64, 64), text="Ann", key=Key.new(), model=text),
        lambda text: onrw_core.embed(torch.zeros(3, 64, 64), text="Ann", key=Key.new(), device=text),
        lambda text: onrw_core.extract(text, key=Key.new()),
        lambda text: onrw_core.extract(torch.zeros(3, 64, 64), device=text, key=Key.new()),
        lambda text: onrw_core.detect(text),
        *(lambda text, name=name: PRESETS["quick"].with_(**{name: text}) for name in CHOICES),
    ],
)
def test_errors_of_the_library_repeat_no_key(call):
    text = Key(SECRET).text()
    with pytest.raises((ValueError, OSError)) as caught:
        call(text)
    assert SECRET.hex()[:20] not in str(caught.value)


RACE = """if True:
    import sys
    from onrw_core.payload.keys import Key
    print("ready", file=sys.stderr, flush=True)
    sys.stdin.read()
    for turn in range(40):
        print(Key.load_or_new(f"{sys.argv[1]}/{turn}.key").fingerprint)
"""


def test_processes_that_make_one_key_get_one(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(onrw_core.__file__).parents[1])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    running = [subprocess.Popen(command, text=True, env=environment, **pipes) for _ in range(4)]
    for process in running:
        assert process.stderr.readline() == "ready\n"
    for process in running:
        process.stdin.close()
    results = [(process.stdout.read(), process.stderr.read()) for process in running]
    assert results[0][0].count("\n") == 40 and results == [results[0]] * 4 and results[0][1] == ""
    assert sorted(tmp_path.iterdir()) == sorted(tmp_path / f"{turn}.key" for turn in range(40))


def test_a_key_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    """What is seen at the name while it is written: nothing."""
    seen = []
    plain = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (seen.append((tmp_path / "a.key").exists()), plain(file)))
    Key.new().save(tmp_path / "a.key")
    assert seen[0] is False and [path.name for path in tmp_path.iterdir()] == ["a.key"]


def test_file_systems_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    key = Key.new()
    key.save(tmp_path / "a.key")
    with pytest.raises(KeyFileError, match="exists"):
        Key.new().save(tmp_path / "a.key")
    assert Key.load(tmp_path / "a.key") == key and len(list(tmp_path.iterdir())) == 1


def test_an_empty_key_file_says_what_to_do(tmp_path):
    (tmp_path / "a.key").touch()
    with pytest.raises(KeyFileError, match="empty, so no key; delete it"):
        Key.load_or_new(tmp_path / "a.key")

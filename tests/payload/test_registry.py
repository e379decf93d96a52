"""The registry: adding, looking up, damage, and never writing unasked."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch

import onrw_core
from onrw_core.payload.registry import Registry, RegistryError, perceptual_hash


@pytest.fixture
def path(tmp_path):
    return tmp_path / "registry.sqlite"


def test_adds_and_looks_up(path):
    registry = Registry.create(path)
    registry.add("C0FFEE", file_hash="ab", note="first", time=1.0)
    registry.add("0xc0ffee", note="second", file_hash="cd", time=2.0)
    registry.add("beef", perceptual_hash="00", time=3.0)
    again = Registry(path)
    assert [(e.note, e.file_hash) for e in again.lookup("c0ffee")] == [("first", "ab"), ("second", "cd")]
    assert again.lookup("dead") == []
    assert [e.id for e in again.lookup("0000beef")] == ["beef"]
    assert [e.time for e in again.entries()] == [1.0, 2.0, 3.0]
    assert Registry.create(path).entries() == again.entries()


def test_files_with_further_columns_are_used(path):
    """As versions before this one wrote them."""
    Registry.create(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE entries ADD COLUMN prompt_hash TEXT NOT NULL DEFAULT ''")
    entry = Registry(path).add("c0ffee", note="kept", time=1.0)
    assert Registry(path).entries() == [entry]


def test_reading_never_writes(path):
    with pytest.raises(RegistryError, match="no such file"):
        Registry(path)
    assert not path.exists()
    registry = Registry.create(path)
    registry.add("1")
    before = path.read_bytes()
    registry.lookup("1"), registry.entries()
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("content", [b"", b"not a database at all, but long enough to look" * 20])
def test_files_that_are_none(path, content):
    path.write_bytes(content)
    with pytest.raises(RegistryError, match="registry"):
        Registry(path)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
@pytest.mark.parametrize("opened", [Registry, Registry.create])
def test_what_is_no_file_is_not_called_missing(path, opened, make):
    make(path)
    with pytest.raises(RegistryError, match="is a folder, a pipe or a device; name a file"):
        opened(path)


def test_damaged_file(path):
    registry = Registry.create(path)
    for i in range(8):
        registry.add(f"{i:x}", note="x" * 3000)
    data = bytearray(path.read_bytes())
    data[3000:9000] = bytes(6000)
    path.write_bytes(data)
    with pytest.raises(RegistryError, match="damaged"):
        Registry(path)
    path.write_bytes(data[:2500])
    with pytest.raises(RegistryError, match="registry"):
        Registry(path)


def test_other_databases_and_versions(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (x)")
    with pytest.raises(RegistryError, match="not a registry of ONRW"):
        Registry(path)
    with pytest.raises(RegistryError, match="not a registry of ONRW"):
        Registry.create(path)
    path.unlink()
    Registry.create(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=2")
    with pytest.raises(RegistryError, match="version 2"):
        Registry(path)


def test_ids_are_hexadecimal(path):
    registry = Registry.create(path)
    with pytest.raises(RegistryError, match="not hexadecimal"):
        registry.add("no; DROP TABLE entries")


def test_perceptual_hash():
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 6, generator=generator), size=(96, 128), mode="bicubic")
    image = image[0].clamp(0, 1)

    def distance(other):
        return bin(int(perceptual_hash(image), 16) ^ int(perceptual_hash(other), 16)).count("1")

    assert len(perceptual_hash(image)) == 16
    assert distance(image[:, ::2, ::2]) <= 4
    assert distance((image * 1.1).clamp(0, 1)) <= 8
    assert distance(image.flip(2)) > 16


def test_pictures_that_look_alike(path):
    generator = torch.Generator().manual_seed(0)
    image, other = torch.nn.functional.interpolate(torch.rand(2, 3, 9, 9, generator=generator), 128, mode="bicubic")
    registry = Registry.create(path)
    registry.add("1", perceptual_hash=perceptual_hash(image))
    registry.add("2", perceptual_hash=perceptual_hash(other))
    registry.add("3")
    registry.add("4", perceptual_hash="no hash")
    small = torch.nn.functional.interpolate(image[None], scale_factor=0.3, mode="bilinear", antialias=True)[0]
    assert [entry.id for _, entry in registry.similar(perceptual_hash(small * 0.8))] == ["1"]
    assert registry.similar(perceptual_hash(1 - image)) == []


def in_processes(code, count, *arguments):
    """Run Python code in several processes at once; their standard error outputs."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(Path(onrw_core.__file__).parents[1])}
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(count)
    ]
    for process in running:  # all have imported before the first goes on
        assert process.stderr.readline() == "ready\n"
    for process in running:
        process.stdin.close()
    return [process.stderr.read() for process in running]


def test_several_processes_make_one_registry(tmp_path):
    code = """if True:
        import sys
        from onrw_core.payload.registry import Registry
        print("ready", file=sys.stderr, flush=True)
        sys.stdin.read()
        for turn in range(20):
            Registry.create(f"{sys.argv[1]}/{turn}.db").add("c0ffee")
    """
    assert in_processes(code, 4, tmp_path) == [""] * 4
    assert all(len(Registry(tmp_path / f"{turn}.db").entries()) == 4 for turn in range(20))


KILLED_IN_A_COMMIT = """if True:
    import os, sqlite3, sys
    connection = sqlite3.connect(sys.argv[1], isolation_level=None)
    connection.execute("PRAGMA cache_size=1")
    connection.execute("BEGIN IMMEDIATE")
    for i in range(200):
        connection.execute("INSERT INTO entries (id, time, note) VALUES ('dead', 1, ?)", ("x" * 3000,))
    os.kill(os.getpid(), 9)
"""


def test_a_kill_inside_a_commit_is_taken_back(path):
    Registry.create(path).add("c0ffee")
    for use in (lambda r: r.lookup("c0ffee"), lambda r: r.entries(), lambda r: [r.add("c0ffee", note="again")]):
        subprocess.run([sys.executable, "-c", KILLED_IN_A_COMMIT, path])
        assert path.with_name(path.name + "-journal").stat().st_size  # hot: the file alone is not the registry
        registry = Registry(path)
        assert {entry.id for entry in use(registry)} == {"c0ffee"}
        assert {entry.id for entry in registry.entries()} == {"c0ffee"}
        assert not path.with_name(path.name + "-journal").exists()


def test_a_registry_whose_making_was_killed_is_made(path):
    begin = 'connection.execute("BEGIN IMMEDIATE")'
    making = KILLED_IN_A_COMMIT.replace(begin, f'{begin}; connection.execute("CREATE TABLE entries (id, time, note)")')
    subprocess.run([sys.executable, "-c", making, path])
    assert path.stat().st_size and path.with_name(path.name + "-journal").stat().st_size
    assert Registry.create(path).entries() == []


def test_a_kill_inside_a_commit_is_taken_back_through_a_link(path):
    Registry.create(path).add("c0ffee")
    link = path.with_name("link.db")
    link.symlink_to(path.name)
    for use in (Registry, Registry.create):
        subprocess.run([sys.executable, "-c", KILLED_IN_A_COMMIT, path])
        assert path.with_name(path.name + "-journal").stat().st_size
        assert {entry.id for entry in use(link).entries()} == {"c0ffee"}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_what_a_reader_cannot_take_back_is_said(path):
    Registry.create(path).add("c0ffee")
    subprocess.run([sys.executable, "-c", KILLED_IN_A_COMMIT, path])
    path.chmod(0o444), path.parent.chmod(0o555)
    try:
        with pytest.raises(RegistryError, match="permissions"):
            Registry(path)
    finally:
        path.parent.chmod(0o755)


def test_a_lock_is_no_damage(path, monkeypatch):
    registry = Registry.create(path)
    monkeypatch.setattr("onrw_core.payload.registry.WAIT_SECONDS", 0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for use in (lambda: registry.add("1"), registry.entries, lambda: Registry(path)):
        with pytest.raises(RegistryError, match="another process") as caught:
            use()
        assert "restore" not in str(caught.value)
    other.execute("ROLLBACK")
    registry.add("1")


def test_an_empty_file_of_a_killed_process_becomes_a_registry(path):
    path.touch()
    assert Registry.create(path).entries() == []


def test_a_file_is_registered_once(path):
    registry = Registry.create(path)
    first = registry.add("1", file_hash="ab", note="n", time=1.0)
    assert registry.add("1", file_hash="ab", note="n") == first
    registry.add("1", file_hash="ab", note="another")
    registry.add("1"), registry.add("1")
    assert len(registry.entries()) == 4


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO entries VALUES ('1', 'yesterday', '', '', '', '')",
        "INSERT INTO entries VALUES ('1', 1e300, '', '', '', '')",
        "INSERT INTO entries VALUES (x'00', 1, '', '', '', '')",
        "INSERT INTO entries VALUES ('1', 1, '', '', '', cast(x'ff' as text))",
        "ALTER TABLE entries RENAME TO t; CREATE VIEW entries AS SELECT * FROM t",
        "CREATE TRIGGER t AFTER INSERT ON entries BEGIN DELETE FROM entries; END",
        "DROP TABLE entries",
    ],
)
def test_content_of_another_kind_is_damage(path, statement):
    Registry.create(path)
    with sqlite3.connect(path) as connection:
        connection.executescript(statement)
    with pytest.raises(RegistryError, match="damaged"):
        Registry(path).entries()


def test_an_entry_is_taken_back_only_by_who_made_it(tmp_path):
    registry = Registry.create(tmp_path / "ids.db")
    registry.add("c0ffee", file_hash="0" * 64, note="earlier")
    first = registry.add_for_result("c0ffee", file_hash="1" * 64, note="for Ann", own=False)
    again = registry.add_for_result("c0ffee", file_hash="1" * 64, note="for Ann")
    assert len(registry.entries()) == 2
    again()
    assert len(registry.entries()) == 2
    first()
    assert [entry.note for entry in registry.entries()] == ["earlier"]


def test_a_registry_that_another_process_writes_is_busy_and_not_damaged(tmp_path, monkeypatch):
    registry = Registry.create(tmp_path / "ids.db")
    monkeypatch.setattr("onrw_core.payload.registry.WAIT_SECONDS", 0.05)
    with closing(sqlite3.connect(registry.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        other.execute("PRAGMA user_version=1")  # begins the journal
        other.execute("CREATE TABLE another (x)")
        assert (tmp_path / "ids.db-journal").stat().st_size
        with pytest.raises(RegistryError, match="another process is writing"):
            Registry.create(registry.path)


@pytest.mark.parametrize("name", ["absent/ids.db", "n" * 300, "n" * 250])
def test_a_registry_that_cannot_be_made_is_named_with_the_remedy(tmp_path, name):
    with pytest.raises(RegistryError, match=f"^registry {tmp_path / name}: cannot be made .*; name a file in a folder"):
        Registry.create(tmp_path / name)
    with pytest.raises(RegistryError, match=f"^registry {tmp_path / name}: no such file"):
        Registry(tmp_path / name)
    assert not list(tmp_path.iterdir())

"""The registry: adding, looking up, damage, and never writing unasked."""

import sqlite3

import pytest
import torch

from onrw_core.registry import Registry, RegistryError, perceptual_hash


@pytest.fixture
def path(tmp_path):
    return tmp_path / "registry.sqlite"


def test_adds_and_looks_up(path):
    registry = Registry.create(path)
    registry.add("C0FFEE", file_hash="ab", note="first", time=1.0)
    registry.add("0xc0ffee", note="second", prompt_hash="cd", time=2.0)
    registry.add("beef", perceptual_hash="00", time=3.0)
    again = Registry(path)
    assert [(e.note, e.file_hash, e.prompt_hash) for e in again.lookup("c0ffee")] == [
        ("first", "ab", ""),
        ("second", "", "cd"),
    ]
    assert again.lookup("dead") == []
    assert [e.id for e in again.lookup("0000beef")] == ["beef"]
    assert [e.time for e in again.entries()] == [1.0, 2.0, 3.0]
    assert Registry.create(path).entries() == again.entries()


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

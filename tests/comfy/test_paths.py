"""Names that come through a link, which `validate_inputs` does not see: no node leaves its folder."""

import importlib

import pytest
import torch


@pytest.fixture(scope="module")
def classes(pack):
    package = importlib.import_module(f"{pack.__name__}.nodes")
    return {node.define_schema().node_id: node for node in package.NODES}


NAMES = ["../evil", "../../../evil", "/tmp/evil", "a/b", "a\\b", "C:evil", ".hidden", "", " ", "a\nb", "a\0b"]


@pytest.mark.parametrize("name", NAMES)
def test_keys_stay_in_their_folder(classes, files, tmp_path, name):
    before = sorted(files.rglob("*.key")), sorted(files.parent.glob("*.key"))
    with pytest.raises(ValueError, match="name"):
        classes["ONRW_Key"].execute(source="file", name=name, create=True)
    assert "name" in str(classes["ONRW_Key"].validate_inputs(name=name))
    assert (sorted(files.rglob("*.key")), sorted(files.parent.glob("*.key"))) == before


def test_keys_are_not_read_from_elsewhere(classes, core, files):
    core_keys = importlib.import_module(f"{core.__name__}.payload.keys")
    core_keys.Key.new().save(files / "outside.key")
    with pytest.raises(ValueError, match="not a file name"):
        classes["ONRW_Key"].execute(source="file", name="../../outside", create=False)


def test_a_linked_name_makes_no_key_before_it_is_known(classes, files):
    assert classes["ONRW_Key"].fingerprint_inputs(source="file", name=None, create=True) == ""
    assert not list(files.rglob("None.key"))


def test_a_key_in_place_of_its_name_is_not_repeated(classes, files):
    text = "onrw-key-1:" + "0123456789ab" * 6
    for name in (text, text.removeprefix("onrw-key-1:")):
        with pytest.raises(ValueError, match="this is a key") as caught:
            classes["ONRW_Key"].execute(source="file", name=name, create=True)
        assert "0123456789ab" not in str(caught.value)
        assert "0123456789ab" not in str(classes["ONRW_Key"].validate_inputs(name=name))


def test_inversions_are_read_from_comfyuis_folders_only(classes, core, files):
    records = importlib.import_module(f"{core.__name__}.stages.inversion_record")
    model = importlib.import_module(f"{core.__name__}.diffusion.model")
    record = records.Inversion(
        torch.zeros(2, 1, 4, 8, 8), torch.tensor([1.0, 0.0]), None, model.Conditioning(torch.zeros(1, 4, 8)), None
    )
    for path in (files / "output" / "inside.safetensors", files / "outside.safetensors"):
        record.save(path)
    load = classes["ONRW_LoadInversion"]
    assert load.execute(file="inside.safetensors [output]").args[0][0].steps == 1
    (files / "output" / "other.txt").write_text("no inversion")
    for name in ("../outside.safetensors", str(files / "outside.safetensors"), "../outside.safetensors [output]",
                 "other.txt [output]", "a\0b.safetensors"):  # fmt: skip
        with pytest.raises(ValueError, match="no inversion in"):
            load.execute(file=name)
        assert "no inversion in" in load.validate_inputs(file=name)


def test_choices_through_a_link_are_checked(classes, core, files):
    key = classes["ONRW_Key"].execute(source="file", name="choices", create=True).args[0]
    with pytest.raises(ValueError, match="kind: 'raw'"):
        classes["ONRW_Message"].execute(key=key, kind="raw", value="0101", num_bits="auto", seed=0)
    with pytest.raises(ValueError, match="num_bits: '7'"):
        classes["ONRW_Message"].execute(key=key, kind="hex id", value="0101", num_bits="7", seed=0)
    with pytest.raises(ValueError, match="source"):
        classes["ONRW_Key"].execute(source="elsewhere", name="choices", create=True)

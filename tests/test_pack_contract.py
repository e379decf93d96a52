"""The node pack without ComfyUI: it imports, and its widgets offer what the core offers, no more and no less.

ComfyUI is stood in for by empty modules in a process of its own, which prints what the nodes declare.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]


def load_pack() -> ModuleType:
    """The pack under a name of its own, as ComfyUI loads it."""
    spec = importlib.util.spec_from_file_location(
        "a_pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["a_pack"] = module
    spec.loader.exec_module(module)
    return module


class Stand(ModuleType):
    """A module in which every name is an empty class."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {})
        setattr(self, name, made)
        return made


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds all of ComfyUI, empty."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("comfy", "comfy_api", "folder_paths"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return Stand(spec.name)

    def exec_module(self, module):
        if module.__name__ == "folder_paths":
            module.models_dir = "models"
            module.folder_names_and_paths = {}
            module.add_model_folder_path = lambda name, path: module.folder_names_and_paths.update(
                {name: ([path], set())}
            )
            module.get_filename_list = lambda name: ["decoder.safetensors"]
            module.get_input_directory = module.get_output_directory = lambda: "nowhere"
        if module.__name__ == "comfy_api.latest":
            module.io = sockets()


def sockets() -> SimpleNamespace:
    """`comfy_api.latest.io` as far as schemas need it: inputs and outputs keep what they were given."""

    def socket(kind: str) -> SimpleNamespace:
        def make(name: str, *args, **options):
            return {"kind": kind, "id": name, **options}

        return SimpleNamespace(Input=make, Output=make, io_type=kind)

    kinds = "Combo Boolean Int Float String Image Mask Latent Conditioning Model Clip Vae Guider Noise Sigmas MultiType"
    named = {kind: socket(kind) for kind in kinds.split()}
    return SimpleNamespace(
        **named,
        Custom=socket,
        Schema=lambda **options: options,
        NodeOutput=lambda *args, **options: args,
        ComfyNode=type("ComfyNode", (), {}),
        Input=object,
    )


def main() -> None:
    sys.meta_path.insert(0, Finder())
    package = importlib.import_module(f"{load_pack().__name__}.nodes")
    schemas = [node.define_schema() for node in package.NODES]
    print(json.dumps(schemas, default=lambda other: getattr(other, "io_type", str(other))))


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def schemas() -> dict[str, dict]:
    return {schema["node_id"]: schema for schema in json.loads(run(__file__).splitlines()[-1])}


def choices(schemas: dict, node: str, widget: str) -> list[str]:
    return next(entry["options"] for entry in schemas[node]["inputs"] if entry["id"] == widget)


def widget_names(schemas: dict, node: str) -> set[str]:
    kinds = {"Combo", "Boolean", "Int", "Float", "String"}
    return {entry["id"] for entry in schemas[node]["inputs"] if entry["kind"] in kinds}


def test_pack_imports_without_comfyui():
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import test_pack_contract as t; m = t.load_pack()"
    )
    script += "; assert not hasattr(m, 'comfy_entrypoint') and 'torch' not in sys.modules"
    run("-c", script)


def test_every_node_is_documented(schemas):
    assert len(schemas) == 16
    for name, schema in schemas.items():
        assert name.startswith("ONRW_") and schema["category"] == "ONRW" and schema["description"]
        for entry in schema["inputs"] + schema["outputs"]:
            assert entry["tooltip"].strip(), (name, entry["id"])
    manual = (ROOT / "docs" / "nodes.md").read_text(encoding="utf-8")
    assert [name for name in schemas if f"## {name}" not in manual] == []


def test_defaults_are_among_the_choices(schemas):
    for name, schema in schemas.items():
        for entry in schema["inputs"]:
            if entry["kind"] == "Combo" and "default" in entry:
                assert entry["default"] in entry["options"], (name, entry["id"])
            if entry["kind"] in ("Int", "Float"):
                assert entry["min"] <= entry["default"] <= entry["max"], (name, entry["id"])


def test_choices_are_those_of_the_core(schemas):
    from onrw_core.attacks import ATTACKS, MIXES, SUITES
    from onrw_core.compose import MODES
    from onrw_core.extractors.loading import NAMES
    from onrw_core.inversion import METHODS
    from onrw_core.message import SIZES
    from onrw_core.ode import CONVENTIONS
    from onrw_core.optimise import PRESETS

    for node in ("ONRW_NullTextInversion", "ONRW_OptimizeNoise", "ONRW_Watermark"):
        assert choices(schemas, node, "preset") == list(PRESETS)
    for node in ("ONRW_OptimizeNoise", "ONRW_Watermark"):
        assert choices(schemas, node, "mix") == list(MIXES)
    assert choices(schemas, "ONRW_NullTextInversion", "method")[1:] == list(METHODS)
    assert choices(schemas, "ONRW_NullTextInversion", "convention") == list(CONVENTIONS)
    assert choices(schemas, "ONRW_ConstrainedDenoise", "composition")[1:] == list(MODES)
    assert choices(schemas, "ONRW_Compose", "mode") == list(MODES)
    assert choices(schemas, "ONRW_Attack", "attack") == list(ATTACKS)
    assert choices(schemas, "ONRW_RobustnessReport", "suite") == [*SUITES, "onrw12-random"]
    assert choices(schemas, "ONRW_Message", "num_bits")[1:] == [str(size) for size in SIZES]
    assert choices(schemas, "ONRW_LoadExtractor", "extractor") == [*NAMES, "decoder.safetensors"]


def test_pseudo_masks_are_those_that_the_core_takes(schemas):
    from onrw_core.constrained import Constraint

    for name in choices(schemas, "ONRW_ConstrainedDenoise", "pseudo_mask")[1:]:
        Constraint(mask=name)


def test_no_widget_that_the_core_cannot_honour(schemas):
    from onrw_core.optimise import Settings

    settings = {field.name for field in dataclasses.fields(Settings)}
    others = {"preset", "seed"}
    assert widget_names(schemas, "ONRW_OptimizeNoise") - others <= settings
    assert widget_names(schemas, "ONRW_Watermark") - others - {"size", "prompt"} <= settings
    assert widget_names(schemas, "ONRW_ConstrainedDenoise") - {"pseudo_mask", "attention"} <= settings


@pytest.mark.parametrize("path", sorted((ROOT / "workflows" / "api").glob("*.json")), ids=lambda path: path.stem)
def test_workflows_have_the_widgets_of_the_nodes(schemas, path):
    for number, node in json.loads(path.read_text(encoding="utf-8")).items():
        if not node["class_type"].startswith("ONRW_"):
            continue
        declared = {entry["id"]: entry for entry in schemas[node["class_type"]]["inputs"]}
        required = {name for name, entry in declared.items() if not entry.get("optional")}
        assert required <= set(node["inputs"]) <= set(declared), (number, node["class_type"])
        for name, value in node["inputs"].items():
            if declared[name]["kind"] == "Combo":
                assert value in declared[name]["options"], (number, name, value)


if __name__ == "__main__":
    main()

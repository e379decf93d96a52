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
import re
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
        if name.split(".")[0] in ("comfy", "comfy_api", "folder_paths", "server"):
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
        def make(name: str, *args, advanced: bool = False, **options):
            return {"kind": kind, "id": name, "advanced": advanced, **options}

        return SimpleNamespace(Input=make, Output=make, io_type=kind)

    kinds = "Combo Boolean Int Float String Image Mask Latent Conditioning Model Clip Vae Guider Noise Sigmas MultiType"
    named = {kind: socket(kind) for kind in kinds.split()}
    return SimpleNamespace(
        **named,
        Custom=socket,
        Schema=lambda *, search_aliases, **options: {"search_aliases": search_aliases, **options},
        NodeOutput=lambda *args, **options: args,
        ComfyNode=type("ComfyNode", (), {}),
        Input=object,
        Hidden=SimpleNamespace(unique_id="UNIQUE_ID"),
        FolderType=SimpleNamespace(temp="temp"),
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


def test_nodes_do_not_import_diffusers():
    """It is a dependency of the library, not of the pack's requirements.txt."""
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import test_pack_contract as t; t.main(); "
        "assert 'torch' in sys.modules and not {'diffusers', 'transformers'} & sys.modules.keys()"
    )
    run("-c", script)
    sources = [path.read_text() for path in (ROOT / "nodes").rglob("*.py")]
    assert sources and not any(
        "diffusers" in line for text in sources for line in text.splitlines() if "import" in line
    )


def table() -> dict[str, tuple[str, ...]]:
    """The table of nodes in docs/nodes.md: id -> display name, category, description, search aliases, command."""
    manual = (ROOT / "docs" / "nodes.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in manual.splitlines() if line.startswith("| `ONRW_")]
    return {row[0].strip("`"): tuple(cell.strip() for cell in row[1:]) for row in rows}


def test_table_of_nodes_is_the_code(schemas):
    from onrw_core.commands.cli import COMMANDS

    documented = table()
    assert list(documented) == list(schemas)
    for name, schema in schemas.items():
        display_name, category, description, aliases, command = documented[name]
        assert display_name == schema["display_name"], name
        assert category == schema["category"], name
        assert description == schema["description"], name
        assert aliases.split(", ") == schema["search_aliases"], name
        if command != "-":
            words = command.strip("`").split()[1:]
            assert any(list(known.words) == words for known in COMMANDS), (name, command)


def test_every_input_and_output_is_explained(schemas):
    for name, schema in schemas.items():
        assert schema["description"].count(". ") == 0 and schema["description"].endswith("."), name
        for entry in schema["inputs"] + schema["outputs"]:
            assert entry["tooltip"].strip(), (name, entry["id"])


def test_no_input_has_the_id_of_an_output(schemas):
    """ComfyUI does not load a pack in which one has."""
    for name, schema in schemas.items():
        ids = [entry["id"] for entry in schema["inputs"] + schema["outputs"]]
        assert len(ids) == len(set(ids)), name


def test_nodes_for_creators_need_an_image_alone(schemas):
    for name in ("ONRW_SaveImage", "ONRW_Embed", "ONRW_Read", "ONRW_Detect", "ONRW_Audit", "ONRW_Attack"):
        kinds = {"Combo", "Boolean", "Int", "Float", "String"}
        needed = [e["id"] for e in schemas[name]["inputs"] if e["kind"] not in kinds and not e.get("optional")]
        assert needed in (["image"], ["images"]), name


def test_no_widget_changes_by_itself_or_stands_for_another_value(schemas):
    """Seeds keep their value from run to run, and no number means "as preset"."""
    for name, schema in schemas.items():
        for entry in schema["inputs"]:
            if entry["id"] == "seed":
                assert entry["control_after_generate"] is False, name
            if entry["kind"] in ("Int", "Float") and name != "ONRW_Attack":  # degrees and shifts have a sign
                assert entry["min"] >= 0, (name, entry["id"])


def test_defaults_are_among_the_choices(schemas):
    for name, schema in schemas.items():
        for entry in schema["inputs"]:
            if entry["kind"] == "Combo" and "default" in entry:
                assert entry["default"] in entry["options"], (name, entry["id"])
            if entry["kind"] in ("Int", "Float"):
                assert entry["min"] <= entry["default"] <= entry["max"], (name, entry["id"])


def test_choices_are_those_of_the_core(schemas):
    from onrw_core.attacks import ATTACKS, MIXES, SUITES
    from onrw_core.diffusion.ode import CONVENTIONS
    from onrw_core.extractors import LABELS
    from onrw_core.extractors.loading import NAMES
    from onrw_core.payload.message import SIZES
    from onrw_core.stages.composition import MODES
    from onrw_core.stages.inversion import METHODS
    from onrw_core.stages.noise_optimisation import PRESETS

    for node in ("ONRW_NullTextInversion", "ONRW_OptimizeNoise"):
        assert choices(schemas, node, "preset") == [name for name in PRESETS if name != "quick"]
    for node in ("ONRW_SaveImage", "ONRW_Embed"):
        assert choices(schemas, node, "preset") == ["fast", "quick", "endure"]
        assert choices(schemas, node, "public_label")[:-1] == list(LABELS)
    assert choices(schemas, "ONRW_OptimizeNoise", "mix") == list(MIXES)
    assert choices(schemas, "ONRW_NullTextInversion", "method")[1:] == list(METHODS)
    assert choices(schemas, "ONRW_NullTextInversion", "convention") == list(CONVENTIONS)
    assert choices(schemas, "ONRW_ConstrainedDenoise", "composition")[1:] == list(MODES)
    assert choices(schemas, "ONRW_Compose", "mode") == list(MODES)
    assert choices(schemas, "ONRW_Attack", "attack") == list(ATTACKS)
    assert choices(schemas, "ONRW_Audit", "suite") == [*SUITES, "onrw12-random"]
    assert choices(schemas, "ONRW_Message", "num_bits")[1:] == [str(size) for size in SIZES]
    assert choices(schemas, "ONRW_LoadExtractor", "extractor") == [*NAMES, "decoder.safetensors"]


def test_pseudo_masks_are_those_that_the_core_takes(schemas):
    from onrw_core.stages.constrained_denoising import Constraint

    for name in choices(schemas, "ONRW_ConstrainedDenoise", "pseudo_mask")[1:]:
        Constraint(mask=name)


def test_no_widget_that_the_core_cannot_honour(schemas):
    from onrw_core.stages.noise_optimisation import Settings

    settings = {field.name for field in dataclasses.fields(Settings)}
    others = {"preset", "seed", "strength", "tuning"}
    assert widget_names(schemas, "ONRW_OptimizeNoise") - others <= settings
    assert widget_names(schemas, "ONRW_ConstrainedDenoise") - {"pseudo_mask", "attention", "strength"} <= settings


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


STOCK_NODES = ["\u968f\u673a\u566a\u58f0"]  # RandomNoise in Chinese


@pytest.mark.parametrize("language", ["en", "zh", "ja"])
def test_locales_agree_with_the_code(schemas, language):
    """Every node, input and output is explained; English is the code's, and other languages name nodes as they do."""
    nodes = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    assert list(nodes) == list(schemas)
    for name, schema in schemas.items():
        words = nodes[name]
        assert words["display_name"] and words["description"]
        explained = {
            "inputs": {entry["id"]: entry["tooltip"] for entry in schema["inputs"]},
            "outputs": {str(number): entry["tooltip"] for number, entry in enumerate(schema["outputs"])},
        }
        for kind, tooltips in explained.items():
            given = {key: entry["tooltip"] for key, entry in words.get(kind, {}).items()}
            assert set(given) == set(tooltips) and all(given.values()), (name, set(tooltips) - set(given))
            quoted = {each for tooltip in given.values() for each in re.findall("\u300c(.+?)\u300d", tooltip)}
            names = [node["display_name"] for node in nodes.values()] + STOCK_NODES
            assert all(any(each.startswith(one) for each in names) for one in quoted), (name, quoted)
            if language == "en":
                assert (words["display_name"], words["description"]) == (schema["display_name"], schema["description"])
                assert given == tooltips, name


TITLE = 30  # pixels of a node's title above its position
SCREEN = (1380, 741)  # pixels of a 1920 x 1080 window that a graph fills at fit: three quarters of what there is
LEGIBLE = 0.6  # scale below which ComfyUI draws no texts


def box(node: dict) -> tuple[float, float, float, float]:
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


def path_of(link: list, nodes: dict, data: dict) -> list[tuple[float, float]]:
    """The bends of a link, from the edge of the node that it comes from to that of the node that it leads to."""
    number, source, _, target, _, _ = link
    bends = {bend["id"]: bend for bend in data["extra"].get("reroutes", [])}
    parents = {one["id"]: one["parentId"] for one in data["extra"].get("linkExtensions", [])}
    points, at = [], parents.get(number)
    while at is not None:
        points.insert(0, tuple(bends[at]["pos"]))
        at = bends[at].get("parentId")
    left, right = box(nodes[source]), box(nodes[target])
    first = points[0][1] if points else None
    start = (left[2], first if first is not None else (left[1] + left[3]) / 2)
    end = (right[0], points[-1][1] if points else (right[1] + right[3]) / 2)
    return [start, *points, end]


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.json")), ids=lambda path: path.stem)
def test_a_template_can_be_read(path):
    """Nodes apart and in their groups, no link behind a node, all of it legible in one window, with a picture."""
    data = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in data["nodes"]}
    boxes = {number: box(node) for number, node in nodes.items()}
    for one, (left, top, right, bottom) in boxes.items():
        for other, (x, y, to_x, to_y) in boxes.items():
            assert one == other or right <= x or to_x <= left or bottom <= y or to_y <= top, (one, other)
    for link in data["links"]:
        points = path_of(link, nodes, data)
        for (x, y), (to_x, to_y) in zip(points, points[1:], strict=False):
            for step in range(33):
                here = (x + (to_x - x) * step / 32, y + (to_y - y) * step / 32)
                behind = [
                    number
                    for number, (left, top, right, bottom) in boxes.items()
                    if left + 2 < here[0] < right - 2 and top < here[1] < bottom
                ]
                assert not behind, (link, behind)
    frames = [group["bounding"] for group in data["groups"]]
    extents = [*boxes.values(), *((x, y, x + width, y + height) for x, y, width, height in frames)]
    (left, top, *_), (_, _, right, bottom) = (map(f, zip(*extents, strict=True)) for f in (min, max))
    assert min(SCREEN[0] / (right - left), SCREEN[1] / (bottom - top)) > LEGIBLE
    assert any(node["type"] == "MarkdownNote" and "## " in node["widgets_values"][0] for node in nodes.values())
    assert path.with_suffix(".jpg").is_file()


if __name__ == "__main__":
    main()

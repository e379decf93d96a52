"""Fixtures that need a real ComfyUI: its modules in this process, and its server in another one.

ComfyUI is looked for in the directory that the environment variable COMFYUI_ROOT names; without it these tests are
skipped. What they need beside it is in requirements.txt next to this file.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent
PACK = HERE.parents[1]
PACK_NAME = "onrw_pack"


def load(name: str, path: Path) -> ModuleType:
    """Import a file or package by path under a name of its own, as ComfyUI does."""
    if name in sys.modules:
        return sys.modules[name]
    package = path.is_dir()
    spec = importlib.util.spec_from_file_location(
        name, path / "__init__.py" if package else path, submodule_search_locations=[str(path)] if package else None
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def comfy_root() -> Path:
    root = os.environ.get("COMFYUI_ROOT")
    if not root:
        pytest.skip("COMFYUI_ROOT is not set: no ComfyUI to test in")
    return Path(root)


@pytest.fixture(scope="session")
def comfy(comfy_root: Path) -> ModuleType:
    """ComfyUI's modules, on the CPU."""
    load("onrw_torchvision_shim", HERE / "shim" / "sitecustomize.py")
    sys.path.insert(0, str(comfy_root))
    import comfy.options  # noqa: F401  (before cli_args: leaves pytest's arguments alone)
    from comfy.cli_args import args

    args.cpu = True
    import comfy.controlnet
    import comfy.model_base
    import comfy.sd

    import nodes  # noqa: F401

    load("onrw_tiny_models", HERE / "tiny_models")
    return comfy


@pytest.fixture(scope="session")
def pack(comfy: ModuleType) -> ModuleType:
    """The node pack, loaded as ComfyUI loads it."""
    return load(PACK_NAME, PACK)


@pytest.fixture(scope="session")
def base(comfy: ModuleType, comfy_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base directory of ComfyUI with toy models, the shipped example picture and this pack."""
    folder = tmp_path_factory.mktemp("comfy")
    (folder / "custom_nodes").mkdir()
    (folder / "input").mkdir()
    (folder / "custom_nodes" / PACK_NAME).symlink_to(PACK)
    (folder / "custom_nodes" / "tiny_models").symlink_to(HERE / "tiny_models")
    shutil.copy(comfy_root / "input" / "example.png", folder / "input")
    tiny = load("onrw_tiny", HERE / "tiny.py")
    tiny.write_models(folder / "models", sys.modules["onrw_tiny_models"].TinyClip)
    return folder

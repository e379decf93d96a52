"""Fixtures that need a real ComfyUI: its modules in this process, and its server in another one.

ComfyUI is looked for where the environment variable COMFYUI_PATH says, then in the installation that this pack lies in
(ComfyUI/custom_nodes/...), then in ~/comfy/ComfyUI, where comfy-cli puts it. Without one, or without the packages of
requirements.txt next to this file, these tests are skipped and say what is missing.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

HERE = Path(__file__).parent
PACK = HERE.parents[1]
PACK_NAME = "onrw_pack"
NEEDED = ("aiohttp", "av", "comfyui_frontend_package", "torchsde", "torchvision", "transformers")


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
    named = os.environ.get("COMFYUI_PATH")
    places = [Path(named)] if named else [PACK.parents[1], Path.home() / "comfy" / "ComfyUI"]
    found = next((place for place in places if (place / "comfy" / "sd.py").is_file()), None)
    if found is None:
        pytest.skip(
            f"no ComfyUI in {' or '.join(map(str, places))}: clone github.com/Comfy-Org/ComfyUI there, "
            "or name its folder in COMFYUI_PATH"
        )
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(
            f"ComfyUI is in {found}, but this environment lacks {', '.join(missing)}: "
            "pip install --no-deps torchvision==0.28.0, then -r tests/comfy/requirements.txt"
        )
    return found


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


@pytest.fixture(scope="session")
def adapter(pack: ModuleType) -> ModuleType:
    return importlib.import_module(f"{PACK_NAME}.nodes.adapter")


@pytest.fixture(scope="session")
def core(pack: ModuleType) -> ModuleType:
    """The pack's own copy of the library, as the nodes see it."""
    return importlib.import_module(f"{PACK_NAME}.onrw_core")


@pytest.fixture(scope="session")
def stock(comfy: ModuleType) -> ModuleType:
    """ComfyUI's own nodes."""
    return sys.modules["nodes"]


@pytest.fixture(scope="session")
def files(comfy: ModuleType, base: Path) -> Path:
    """The base directory, with ComfyUI's folders in this process pointed at it."""
    import folder_paths

    for name in ("checkpoints", "loras", "controlnet"):
        folder_paths.add_model_folder_path(name, str(base / "models" / name))
    for name in ("input", "output", "temp", "user"):
        (base / name).mkdir(exist_ok=True)
        getattr(folder_paths, f"set_{name}_directory")(str(base / name))
    return base


@pytest.fixture(scope="session")
def checkpoint(files: Path, stock: ModuleType) -> tuple:
    """MODEL, CLIP and VAE of the toy checkpoint, loaded as the server does: in inference mode."""
    with torch.inference_mode():
        return stock.CheckpointLoaderSimple().load_checkpoint("tiny.safetensors")


@pytest.fixture(scope="session")
def server(base: Path, comfy_root: Path) -> Iterator[ModuleType]:
    running = load("onrw_server", HERE / "server.py").Server(comfy_root, base, HERE / "shim")
    yield running
    running.close()

"""Tests in every ComfyUI that is found, each under its own interpreter (see installation.py).

`pytest tests/comfy` collects as usual, once for each ComfyUI, and hands the tests of each to a pytest in its
interpreter, which reports them one by one (see remote.py). In there the fixtures below give ComfyUI's modules, toy
models, and a server in another process. Where there is no ComfyUI, or no interpreter for it, the tests are skipped and
say how to get one.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

HERE = Path(__file__).parent
PACK = HERE.parents[1]
PACK_NAME = "onrw_pack"
CURRENT = "ONRW_TEST_COMFYUI"
"""Environment variable of the inner pytest: name and folder of the ComfyUI that it runs in."""


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


installation = load("onrw_installation", HERE / "installation.py")
remote = load("onrw_remote", HERE / "remote.py")


def named_installations() -> dict[str, installation.Installation]:
    """Installations by the name that test ids give them: the version, numbered where there are several of one."""
    found: dict[str, installation.Installation] = {}
    for one in installation.installations():
        same = sum(other.version == one.version for other in found.values())
        found[one.version if not same else f"{one.version} ({same + 1})"] = one
    return found


INSIDE = CURRENT in os.environ
INSTALLATIONS = {} if INSIDE else named_installations()
if INSIDE:
    remote.stop_with_parent()
PARAMETERS = [os.environ[CURRENT].partition("=")[0]] if INSIDE else [*INSTALLATIONS] or ["no ComfyUI"]
RUNS = pytest.StashKey[dict]()
OUTCOMES = pytest.StashKey[dict]()


@pytest.fixture(scope="session", autouse=True, params=PARAMETERS)
def comfy_root(request: pytest.FixtureRequest) -> Path:
    """The folder of ComfyUI."""
    if INSIDE:
        return Path(os.environ[CURRENT].partition("=")[2])
    if request.param in INSTALLATIONS:
        pytest.skip(problem(INSTALLATIONS[request.param]))
    pytest.skip(installation.absence())


@functools.cache
def problem(one: installation.Installation) -> str | None:
    """Why tests cannot run on an installation; None if they can."""
    try:
        _ = one.environment
    except installation.Unusable as error:
        return str(error)
    return None


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Have a test run in its ComfyUI's interpreter."""
    if INSIDE or HERE not in item.path.parents:
        return None
    name = item.callspec.params["comfy_root"]
    if name not in INSTALLATIONS or problem(INSTALLATIONS[name]):
        return None  # runs here, up to the fixture that skips it
    runs = item.config.stash.setdefault(RUNS, {})
    if name not in runs:
        one = INSTALLATIONS[name]
        ids = [
            other.nodeid
            for other in item.session.items
            if HERE in other.path.parents and other.callspec.params["comfy_root"] == name
        ]
        environment = {**one.environment, CURRENT: f"{name}={one.path}"}
        runs[name] = remote.Remote(one.python, environment, item.config.rootpath, ids)
    counts = item.config.stash.setdefault(OUTCOMES, {}).setdefault(name, Counter())
    counts.update(remote.replay(item, runs[name]))
    return True


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if INSIDE:
        remote.write(item.config, report)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    for run in session.config.stash.get(RUNS, {}).values():
        run.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which installations the tests ran on."""
    if INSIDE:
        return
    terminalreporter.section("ComfyUI")
    if not INSTALLATIONS:
        terminalreporter.line(f"none: {installation.absence()}")
    for name, one in INSTALLATIONS.items():
        counts = config.stash.get(OUTCOMES, {}).get(name)
        if counts:
            text = ", ".join(f"{number} {outcome}" for outcome, number in counts.items()) + f" with {one.python}"
        else:
            text = f"not run: {problem(one) or 'none of its tests'}"
        terminalreporter.line(f"{name} in {one.path}: {text}")


@pytest.fixture(scope="session")
def comfy(comfy_root: Path) -> ModuleType:
    """ComfyUI's modules, on the CPU."""
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
def prompts(checkpoint, stock):
    with torch.inference_mode():
        encode = stock.CLIPTextEncode().encode
        return encode(checkpoint[1], "a cat")[0], encode(checkpoint[1], "")[0]


@pytest.fixture(scope="session")
def with_lora(checkpoint, stock):
    with torch.inference_mode():
        return stock.LoraLoaderModelOnly().load_lora_model_only(checkpoint[0], "tiny.safetensors", 1.0)[0]


@pytest.fixture(scope="session")
def with_control(prompts, stock):
    with torch.inference_mode():
        net = stock.ControlNetLoader().load_controlnet("tiny.safetensors")[0]
        image = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(1))
        return stock.ControlNetApplyAdvanced().apply_controlnet(*prompts, net, image, 1.0, 0.0, 1.0)


@pytest.fixture(scope="session")
def sampled(stock: ModuleType) -> Callable[..., torch.Tensor]:
    """A stock KSampler, as users run it: its latent for a MODEL and two prompts."""

    def sample(model, positive, negative):
        with torch.inference_mode():
            latent = {"samples": torch.zeros(1, 4, 16, 16)}
            return stock.common_ksampler(model, 3, 2, 4.5, "euler", "normal", positive, negative, latent)[0]["samples"]

    return sample


@pytest.fixture(scope="session")
def server(base: Path, comfy_root: Path, core: ModuleType) -> Iterator[ModuleType]:
    """A server whose key is always the same: a weak mark's wrong bits depend on the key."""
    keys = base / "user" / "__onrw_keys"
    keys.mkdir(parents=True, exist_ok=True)
    core.Key(bytes(range(32))).save(keys / "default.key")
    running = load("onrw_server", HERE / "server.py").Server(comfy_root, base)
    yield running
    running.close()

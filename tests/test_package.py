"""The package as a whole: what it depends on, what it ships, and what its code never does."""

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import onrw_core
from onrw_core.mini.weights import AUTOENCODER_FILE, CHECKSUM_FILE, TEXT_FILE, UNET_FILE

ROOT = Path(__file__).parents[1]
CORE = ROOT / "onrw_core"
MODULES = sorted(path for path in CORE.rglob("*.py"))
# What is run from the command line talks to a person; all else logs.
SPEAKING = ("commands", "bench", "training/evaluate.py")
ALLOWED = {"torch", "numpy", "PIL", "safetensors", "einops", "tqdm", "onrw_core", *sys.stdlib_module_names}


def project() -> dict:
    tomllib = pytest.importorskip("tomllib")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def name_of(requirement: str) -> str:
    return re.match(r"[\w-]+", requirement).group().lower().replace("_", "-")


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {name_of(line): line for line in lines if line and not line.startswith("#")}


def imports(path: Path) -> set[str]:
    """Top-level names of all absolute imports, also those within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_versions_agree():
    assert project()["project"]["version"] == onrw_core.__version__
    assert f"## {onrw_core.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_constraints_pin_all_that_is_asked_for():
    meta = project()["project"]
    wanted = meta["dependencies"] + [
        item for extra in ("sd", "rivagan", "bench", "c2pa", "test") for item in meta["optional-dependencies"][extra]
    ]
    assert {name_of(requirement) for requirement in wanted} <= pins().keys()
    assert all("==" in line for line in pins().values())
    assert pins()["torch"] == "torch==2.13.0"


def test_nodes_bring_no_torch_of_their_own():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    names = {name_of(line) for line in lines if line and not line.startswith("#")}
    assert names and not names & {"torch", "torchvision", "torchaudio", "diffusers"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(CORE)))
def test_module_imports_what_the_core_may(path):
    parts = path.relative_to(CORE).parts
    optional = {
        "diffusion": {"diffusers"},
        "bench": None,
        "imaging": {"av"},
        "extractors": {"onnx", "imwatermark"},
        "commands": {"c2pa", "ray"},
    }
    extra = optional.get(parts[0], set())
    if extra is not None:  # benchmarks import the packages that they compare with
        assert imports(path) <= ALLOWED | extra


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(CORE)))
def test_module_has_a_docstring_and_does_not_print(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    if not path.relative_to(CORE).as_posix().startswith(SPEAKING):
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]


def test_imports_run_one_way():
    """The contracts in pyproject.toml: layers, and no circle inside of a package."""
    pytest.importorskip("importlinter")
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    linted = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert linted.returncode == 0, linted.stdout


def test_core_is_importable_without_comfyui_and_torchvision():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('comfy', 'torchvision', 'diffusers', 'transformers')));"
        "import onrw_core.pipeline, onrw_core.payload.message, onrw_core.extractors.keyed.extractor;"
        "import onrw_core.commands.cli, onrw_core.mini"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_samples_are_small_and_attributed():
    photos = [path for path in (CORE / "samples").iterdir() if path.suffix != ".md"]
    sources = (CORE / "samples" / "SOURCES.md").read_text()
    assert photos and all(path.name in sources and path.stat().st_size < 400_000 for path in photos)


def test_wheel_holds_the_core_alone(tmp_path):
    pytest.importorskip("setuptools")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "onrw_core"):
        (source / name).symlink_to(ROOT / name)
    subprocess.run([*command, str(source)], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} <= {"onrw_core", "onrw"}
    shipped = {name for name in names if name.startswith("onrw_core/")}
    wanted = [
        path for pattern in ("samples/*", "commands/web/*", "mini/weights/*", "**/*.py") for path in CORE.glob(pattern)
    ]
    assert {str(path.relative_to(ROOT)) for path in wanted} <= shipped
    weights = {f"onrw_core/mini/weights/{name}" for name in (AUTOENCODER_FILE, UNET_FILE, TEXT_FILE, CHECKSUM_FILE)}
    assert weights <= shipped


def test_readme_gives_both_commands():
    readme = (ROOT / "README.md").read_text()
    assert "-c constraints.txt -e . && .venv/bin/onrw demo" in readme
    assert "-c constraints.txt -e '.[test]' && .venv/bin/python -m pytest" in readme

"""What is needed to publish: names of the owner, icon and banner, the archive, ASCII where consoles print."""

import ast
import importlib
import json
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
FILL_IN = runpy.run_path(str(ROOT / "publishing" / "fill_in.py"))
PLACEHOLDERS = ("your-publisher-id", "your-name/onrw")
MOST_BYTES = 40_000_000


def tracked() -> list[Path]:
    """The files of the repository, relative to its root."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git clone")
    return [Path(name) for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def text(path: Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8", errors="replace")


def archive() -> list[Path]:
    """The files of the registry's archive."""
    pathspec = pytest.importorskip("pathspec")
    spec = pathspec.PathSpec.from_lines("gitignore", text(Path(".comfyignore")).splitlines())
    return [path for path in tracked() if not spec.match_file(path.as_posix())]


# ---- the owner's names


def test_every_file_with_a_placeholder_is_filled_in():
    found = {path.as_posix() for path in tracked() if any(name in text(path) for name in PLACEHOLDERS)}
    assert found - {"tests/test_publishing.py", FILL_IN["OWNER"]} == set(FILL_IN["FILES"])


def test_fill_in_writes_everywhere_and_again(tmp_path):
    for name in (*FILL_IN["FILES"], FILL_IN["OWNER"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)

    def fill_in(publisher, repository):
        owner = {"publisher": publisher, "repository": repository}
        (tmp_path / FILL_IN["OWNER"]).write_text(json.dumps(owner))
        return FILL_IN["fill_in"](tmp_path)

    for publisher, name in (("ann", "ann-5/marks"), ("bob", "bob/onrw")):
        assert fill_in(publisher, f"https://github.com/{name}") == list(FILL_IN["FILES"])
        contents = {file: (tmp_path / file).read_text(encoding="utf-8") for file in FILL_IN["FILES"]}
        assert not any(old in content for old in PLACEHOLDERS for content in contents.values())
        assert all(name in content for content in contents.values())
        assert f'PublisherId = "{publisher}"' in contents["pyproject.toml"]
        assert f"raw.githubusercontent.com/{name}/main/publishing/icon.png" in contents["pyproject.toml"]
    assert fill_in("bob", "https://github.com/bob/onrw") == []
    for publisher, repository in (("Bob!", "https://github.com/a/b"), ("bob", "https://github.com/a/b.git")):
        with pytest.raises(ValueError, match="owner.json"):
            fill_in(publisher, repository)


@pytest.mark.parametrize(("name", "size"), [("icon", (400, 400)), ("banner", (1260, 540))])
def test_icon_and_banner(name, size):
    project = text(Path("pyproject.toml"))
    assert (
        f'{name.capitalize()} = "https://raw.githubusercontent.com/your-name/onrw/main/publishing/{name}.png"'
        in project
    )
    with Image.open(ROOT / "publishing" / f"{name}.png") as image:
        assert image.size == size
    drawn = runpy.run_path(str(ROOT / "publishing" / "draw.py"))[name]()
    assert text(Path(f"publishing/{name}.svg")) == drawn + "\n", "run python publishing/draw.py"


# ---- the archive


def test_archive_is_small_and_has_what_comfyui_needs(tmp_path):
    names = {path.as_posix() for path in archive()}
    for kept in ("__init__.py", "nodes/__init__.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        assert kept in names
    assert any(name.startswith("workflows/") for name in names) and "onrw_core/commands/key.py" in names
    assert "onrw_core/mini/weights/mini_unet.safetensors" in names and "docs/nodes.md" in names
    left = [name for name in names if name.startswith(("tests/", "onrw_core/bench/", "onrw_core/training/", "."))]
    assert left == [".comfyignore"] and not any("foreign" in name for name in names)
    with zipfile.ZipFile(tmp_path / "node.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        for name in names:
            packed.write(ROOT / name, name)
    assert (tmp_path / "node.zip").stat().st_size <= MOST_BYTES


def test_archive_marks_and_reads(tmp_path):
    """The files of the archive alone are enough for the nodes, and for the command but benchmarks and training."""
    for path in archive():
        (tmp_path / "pack" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, tmp_path / "pack" / path)
    source = text(Path("tests/test_pack_contract.py"))
    (tmp_path / "contract.py").write_text(
        source.replace("ROOT = Path(__file__).parents[1]", f"ROOT = Path({str(tmp_path / 'pack')!r})"), encoding="utf-8"
    )
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import contract
contract.main()
pack = sys.modules["a_pack.onrw_core"]
assert pack.__file__.startswith({str(tmp_path)!r})
import importlib, torch
core = importlib.import_module("a_pack.onrw_core.api")
assert len(core.PRESETS) > 1
importlib.import_module("a_pack.onrw_core.models").load_model("mini", "cpu")
cli = importlib.import_module("a_pack.onrw_core.commands.cli")
assert cli.main(["key", "new", "-o", {str(tmp_path / "a.key")!r}]) == 0
assert cli.main(["bench", "robustness"]) == 2
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "not part of this copy" in done.stderr and (tmp_path / "a.key").exists()


# ---- ASCII


def printed() -> list[Path]:
    """Python files whose texts may reach a console, and texts that pip and ComfyUI's Manager print."""
    code = [
        path for path in tracked() if path.suffix == ".py" and path.parts[0] in ("onrw_core", "nodes", "publishing")
    ]
    return [*code, Path("__init__.py"), Path("pyproject.toml"), Path("requirements.txt"), Path("constraints.txt")]


def test_consoles_get_ascii():
    """Strings in the source are ASCII; docstrings are not printed, and escapes are not characters."""
    found = []
    for path in printed():
        content = text(path)
        if content.isascii():
            continue
        if path.suffix != ".py":
            found.append(str(path))
            continue
        tree, lines = ast.parse(content), content.splitlines()
        bodies = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        docs = {node.body[0].value for node in ast.walk(tree) if isinstance(node, bodies) and ast.get_docstring(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docs:
                source = "\n".join(lines[node.lineno - 1 : node.end_lineno])
                found += [f"{path}:{node.lineno}"] * (not source.isascii() and not node.value.isascii())
    assert found == []


def test_sources_can_be_shown_by_windows_consoles():
    """Tracebacks print lines of the source; cp1252 is the code page of western Windows."""
    bad = []
    for path in tracked():
        if path.suffix == ".py":
            try:
                text(path).encode("cp1252")
            except UnicodeEncodeError as error:
                bad.append(f"{path}: {error.object[error.start : error.end]!r}")
    assert bad == []


# ---- workflows of GitHub


@pytest.mark.parametrize("name", ["publish", "tests"])
def test_workflow_is_valid(name):
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load(text(Path(f".github/workflows/{name}.yml")))
    assert workflow["permissions"] == {"contents": "read"} and workflow["jobs"]
    for job in workflow["jobs"].values():
        assert job["runs-on"] and all("uses" in step or "run" in step for step in job["steps"])
    requires = text(Path("pyproject.toml"))
    if name == "tests":
        python = re.search(r'requires-python = ">=(.*?)"', requires)[1]
        matrix = workflow["jobs"]["library"]["strategy"]["matrix"]
        assert python in [entry["python"] for entry in matrix["include"]]
        comfyui = re.search(r'requires-comfyui = ">=(.*?)"', requires)[1]
        assert f"v{comfyui}" in workflow["jobs"]["comfyui"]["strategy"]["matrix"]["version"]
        commands = " ".join(step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"])
        assert all(script in commands for script in (".ci/types", ".ci/audit"))


def test_versions_of_the_changelog():
    assert importlib.import_module("onrw_core").__version__ in text(Path("CHANGELOG.md"))


def test_web_extension_is_named_after_the_pack():
    """All packs share one page, so an extension's name begins with the DisplayName, as comfy-test wants it."""
    name = re.search(r'DisplayName = "(.+)"', text(Path("pyproject.toml")))[1]
    prefix = re.sub(r"[^a-z0-9]", "", name.lower())
    scripts = [path for path in archive() if path.parts[0] == "web" and path.suffix == ".js"]
    assert scripts
    for path in scripts:
        names = re.findall(r'registerExtension\(\{\s*name: "([^"]+)"', text(path))
        assert names and all(each.startswith(f"{prefix}.") for each in names), path
        assert not re.search(r"document\.(head|body)\b", text(path)), (path, "elements stay in the node's own")

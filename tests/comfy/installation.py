"""The ComfyUI installations that tests/comfy runs on, and the interpreter of each.

Installations are the folders in COMFYUI_PATH (several with the separator of PATH). Where it is not set, they are the
one that this pack lies in (ComfyUI/custom_nodes/...), ~/comfy/ComfyUI, where comfy-cli puts it, and
~/comfy-new/ComfyUI, for a second version.

Interpreters are those in COMFYUI_PYTHON, in the same order; where it has none, the first of `interpreters` that has
ComfyUI's packages. Nothing is installed into ComfyUI's environment: what the tests need besides goes into a folder of
its own, which is laid over it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

HERE = Path(__file__).parent
PACK = HERE.parents[1]
REQUIREMENTS = (HERE / "requirements.txt", PACK / "requirements.txt")
NEEDED = ("torch", "torchvision", "aiohttp", "av", "comfyui_frontend_package", "torchsde", "transformers")
ENVIRONMENTS = {"comfy": "comfy-venv", "comfy-new": "comfy-new-venv"}
"""Folder of ComfyUI in the home directory -> its environment in ~/.cache."""
PROBE = f"""
import importlib.metadata, importlib.util, json
missing = [name for name in {NEEDED!r} if importlib.util.find_spec(name) is None]
print(json.dumps([missing, {{d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}}]))
"""


class Unusable(Exception):
    """Why tests cannot run on an installation, and what to do about it."""


@dataclass(frozen=True)
class Installation:
    """A ComfyUI.

    Attributes:
        path: Its folder.
        version: As its `comfyui_version.py` says.
        named: The interpreter that COMFYUI_PYTHON names; None without one.
    """

    path: Path
    version: str
    named: Path | None = None

    @functools.cached_property
    def python(self) -> Path:
        """The interpreter, which has ComfyUI's packages.

        Raises:
            Unusable: No interpreter has them.
        """
        tried = []
        for candidate in [self.named] if self.named else interpreters(self.path):
            if not candidate.is_file():
                continue
            missing, _ = probe(candidate)
            if not missing:
                return candidate
            tried.append(f"{candidate} lacks {', '.join(missing)}")
        raise Unusable(
            f"ComfyUI {self.version} in {self.path} has no interpreter with its packages "
            f"({'; '.join(tried) or f'{self.named} does not exist'}): python -m venv {self.path / '.venv'}, then "
            f"{self.path / '.venv' / 'bin' / 'pip'} install -r {self.path / 'requirements.txt'} requests; or name its "
            "interpreter in COMFYUI_PYTHON"
        )

    @functools.cached_property
    def environment(self) -> dict[str, str]:
        """Environment variables under which `python` has pytest and the pack's requirements too.

        Raises:
            Unusable: A package is missing and cannot be installed.
        """
        path = [str(HERE / "shim"), str(overlay(self.python)), os.environ.get("PYTHONPATH", "")]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin make a shared machine fifty times slower
        }


def installations() -> list[Installation]:
    """All that there are."""
    named = os.environ.get("COMFYUI_PATH")
    places = [Path(place) for place in named.split(os.pathsep)] if named else default_places()
    found = [place.expanduser().resolve() for place in places if (place.expanduser() / "comfy" / "sd.py").is_file()]
    pythons = os.environ.get("COMFYUI_PYTHON", "").split(os.pathsep)
    pythons += [""] * (len(found) - len(pythons))
    return [
        Installation(place, version(place), Path(python).expanduser() if python else None)
        for place, python in zip(dict.fromkeys(found), pythons, strict=False)
    ]


def default_places() -> list[Path]:
    return [PACK.parents[1], *(Path.home() / name / "ComfyUI" for name in ENVIRONMENTS)]


def absence() -> str:
    """Why there is no installation, and how to get one."""
    named = os.environ.get("COMFYUI_PATH")
    places = named.split(os.pathsep) if named else map(str, default_places())
    return (
        f"no ComfyUI in {' or '.join(places)}: clone github.com/Comfy-Org/ComfyUI there, or name its folder in "
        "COMFYUI_PATH"
    )


def version(place: Path) -> str:
    source = (place / "comfyui_version.py").read_text() if (place / "comfyui_version.py").is_file() else ""
    found = re.search(r'__version__ = "(.+?)"', source)
    return found.group(1) if found else "unknown"


def interpreters(place: Path) -> list[Path]:
    """Where a ComfyUI's interpreter may be: its own environments first, then the running one."""
    environments = [place / "venv", place / ".venv", place.parent / "python_embeded"]
    if place.parent.parent == Path.home() and place.parent.name in ENVIRONMENTS:
        environments.insert(0, Path.home() / ".cache" / ENVIRONMENTS[place.parent.name])
    inside = ("bin/python", "Scripts/python.exe", "python.exe")
    return [folder / name for folder in environments for name in inside] + [Path(sys.executable)]


@functools.cache
def probe(python: Path) -> tuple[list[str], dict[str, str]]:
    """What an interpreter lacks of `NEEDED`, and the versions of all that it has."""
    done = subprocess.run([python, "-c", PROBE], capture_output=True, text=True)
    if done.returncode:
        raise Unusable(f"{python} does not run:\n{done.stderr}")
    missing, versions = json.loads(done.stdout.splitlines()[-1])
    return missing, {canonical(name): version for name, version in versions.items() if name}


def overlay(python: Path) -> Path:
    """A folder with the packages of `REQUIREMENTS` that an interpreter lacks; made once and kept in the cache.

    Raises:
        Unusable: pip fails.
    """
    _, present = probe(python)
    lacking = sorted(
        str(wanted)
        for wanted in requirements()
        if not wanted.specifier.contains(present.get(canonical(wanted.name), ""))
    )
    digest = hashlib.sha256("\n".join([str(python), *lacking]).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onrw"
    folder = cache / f"tests-{digest}"
    if folder.is_dir() or not lacking:
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    # Made aside and renamed, so that an interrupted installation is not taken for a whole one.
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        made = Path(temporary) / "packages"
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
        command += ["-c", str(PACK / "constraints.txt"), "--target", str(made), *lacking]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Unusable(f"pip cannot install {', '.join(lacking)} for {python}:\n{done.stderr[-500:]}")
        if not folder.is_dir():
            made.rename(folder)
    return folder


def requirements() -> list[Requirement]:
    lines = [line.split("#")[0].strip() for path in REQUIREMENTS for line in path.read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

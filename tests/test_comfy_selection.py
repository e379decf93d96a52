"""tests/comfy where there is no ComfyUI, or none that can run: skipped with a reason, never an error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run_tests(**environment):
    """What `pytest tests/comfy` prints, its exit status being 0."""
    kept = {k: v for k, v in os.environ.items() if k not in ("COMFYUI_PATH", "COMFYUI_PYTHON")}
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "tests/comfy"]
    done = subprocess.run(command, cwd=ROOT, env={**kept, **environment}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" not in done.stdout.splitlines()[-1] and "skipped" in done.stdout.splitlines()[-1]
    return done.stdout


@pytest.fixture
def checkout(tmp_path):
    """A ComfyUI as far as the search for it looks."""
    folder = tmp_path / "ComfyUI"
    (folder / "comfy").mkdir(parents=True)
    (folder / "comfy" / "sd.py").touch()
    (folder / "comfyui_version.py").write_text('__version__ = "0.0.1"\n')
    return folder


def test_without_a_comfyui(tmp_path):
    output = run_tests(COMFYUI_PATH=str(tmp_path))
    assert f"no ComfyUI in {tmp_path}: clone github.com/Comfy-Org/ComfyUI there" in output


def test_with_a_comfyui_that_has_no_packages(checkout, tmp_path):
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    output = run_tests(COMFYUI_PATH=str(checkout), COMFYUI_PYTHON=str(bare / "bin" / "python"))
    assert f"ComfyUI 0.0.1 in {checkout} has no interpreter with its packages" in output
    assert "lacks torch" in output and "name its interpreter in COMFYUI_PYTHON" in output

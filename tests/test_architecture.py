"""The figures of docs/architecture.md are those of the code."""

import runpy
from pathlib import Path

FIGURES = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "figures.py"))


def test_figures_are_up_to_date():
    page = FIGURES["PAGE"].read_text(encoding="utf-8")
    assert FIGURES["drawn"](page) == page, "run python docs/figures.py"


def test_figures_show_every_package_and_the_stages():
    core = FIGURES["ROOT"] / "onrw_core"
    packages = {path.parent.name for path in core.glob("*/__init__.py")}
    assert packages <= set(FIGURES["packages"]().replace("[", " ").split())
    marking = FIGURES["marking"]()
    for stage in ("inversion", "null_text", "noise_optimisation", "constrained_denoising", "composition"):
        assert f"[{stage}]" in marking
    assert "pipeline[pipeline] -->|1| stages_working_image[working_image]" in marking
    assert "[matched_filter]" in FIGURES["reading"]()

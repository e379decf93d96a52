"""The table of model families: every column of `family_cells.py` on every family that this ComfyUI has.

    python tests/comfy/family_table.py COMFYUI REPORT     with ComfyUI's interpreter; `onrw bench families` calls it so

The report, a JSON file, is written after each family; families that it holds already are not run again.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import time
from pathlib import Path
from types import ModuleType

import torch

HERE = Path(__file__).parent
PACK = HERE.parents[1]


def load(name: str, path: Path) -> ModuleType:
    """Import a file or package by path, as ComfyUI does."""
    inside = [str(path)] if path.is_dir() else None
    file = path / "__init__.py" if path.is_dir() else path
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=inside)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def main(comfy: Path, report: Path) -> int:
    sys.path.insert(0, str(comfy))
    import comfy.options  # noqa: F401
    from comfy.cli_args import args

    args.cpu = True
    import comfy.controlnet
    import comfy.sd  # noqa: F401

    import nodes  # noqa: F401

    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.WARNING)
    pack = load("onrw_pack", PACK)
    families = load("onrw_families", HERE / "families.py")
    cells = load("onrw_family_cells", HERE / "family_cells.py")
    rows = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    for name in families.available():
        if name in rows:
            continue
        start, row = time.monotonic(), {}
        case = cells.Case(name, families, pack.__name__)
        for column, cell in cells.COLUMNS.items():
            try:
                row[column] = cell(case)
            except Exception as error:  # the table shows what fails
                row[column] = f"FAILED: {type(error).__name__} {error}"
                logging.exception("%s, %s", name, column)
        rows[name] = row
        temporary = report.with_suffix(".part")
        temporary.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        temporary.replace(report)
        print(f"{name}: {time.monotonic() - start:.0f} s: {' | '.join(row.values())}", flush=True)
    return int(any(cell.startswith("FAILED") for row in rows.values() for cell in row.values()))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))

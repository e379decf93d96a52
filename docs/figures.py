"""Draws the figures of architecture.md from the code: ``python docs/figures.py`` writes them into it.

Packages and their imports, and the modules that an image passes when it is marked and when it is read: what the
functions that are called refer to, from `pipeline.embed` and from the keyed extractor's `read` on.
"""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "onrw_core"
PAGE = ROOT / "docs" / "architecture.md"
# Called from everywhere: left out.
SERVING = {"arguments", "diffusion", "extractors", "imaging", "payload", "stages.progress", "torch_modes"}
CHECKS = ("check_type", "check_types")  # what they are given are types, as in annotations

Place = tuple[str, str]  # a module and a name that it defines


@lru_cache
def sources() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name within it."""
    files = sorted((ROOT / PACKAGE).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT / PACKAGE).with_suffix("").parts) for path in files]
    return {
        name.removesuffix("__init__").rstrip("."): ast.parse(path.read_text(encoding="utf-8"))
        for name, path in zip(names, files, strict=True)
    }


@lru_cache
def imports(module: str) -> dict[str, Place]:
    """What a module imports from the package: the name that it uses -> where that is defined."""
    is_package = any(name.startswith(f"{module}.") for name in sources())
    found = {}
    for node in ast.walk(sources()[module]):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        parts = module.split(".") + ([""] if is_package else [])
        base = [*parts[: len(parts) - node.level], *(node.module or "").split(".")]
        origin = ".".join(part for part in base if part)
        for alias in node.names:
            inner = f"{origin}.{alias.name}".lstrip(".")
            place = (inner, "") if inner in sources() else (origin, alias.name)
            found[alias.asname or alias.name] = place
    return {name: place for name, place in found.items() if place[0] in sources()}


def definition(place: Place) -> ast.AST | None:
    """The function or class of that name."""
    for node in sources()[place[0]].body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == place[1]:
            return node
    return None


def uses(start: Place, inside: str) -> list[tuple[str, str]]:
    """Pairs of modules, in the order in which the code refers from one to the other, beginning at `start`.

    Args:
        start: A function.
        inside: The package whose modules are followed and shown; others are shown as packages.
    """
    edges: dict[tuple[str, str], None] = {}
    seen: set[Place] = set()

    def follow(place: Place) -> None:
        node = definition(place)
        if node is None or place in seen:
            return
        seen.add(place)
        names = [n for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
        for name in sorted(names, key=lambda n: (n.lineno, n.col_offset)):
            target = imports(place[0]).get(name.id, (place[0], name.id))
            if definition(target) is None or _annotation(node, name):
                continue
            shown = target[0] if _within(target[0], inside) else target[0].split(".")[0]
            if shown != place[0]:
                edges[place[0], shown] = None
            if _within(target[0], inside):
                follow(target)

    follow(start)
    return list(edges)


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@lru_cache
def _annotations(node: ast.AST) -> set[int]:
    """Ids of everything inside of annotations and checks of types."""
    found = [n.annotation for n in ast.walk(node) if isinstance(n, (ast.arg, ast.AnnAssign)) and n.annotation]
    found += [n.returns for n in ast.walk(node) if isinstance(n, ast.FunctionDef) and n.returns]
    found += [n for n in ast.walk(node) if isinstance(n, ast.Call) and getattr(n.func, "id", None) in CHECKS]
    return {id(inner) for outer in found for inner in ast.walk(outer)}


def _annotation(node: ast.AST, name: ast.Name) -> bool:
    return id(name) in _annotations(node)


def packages() -> str:
    """The packages; an arrow is an import. What follows from two other arrows is left out."""
    edges = set()
    for module in sources():
        for origin, _ in imports(module).values():
            pair = module.split(".")[0], origin.split(".")[0]
            if all(pair) and pair[0] != pair[1] and "__main__" not in pair:
                edges.add(pair)
    reached = set(edges)
    while more := {(a, d) for a, b in reached for c, d in reached if b == c} - reached:
        reached |= more
    direct = sorted((a, b) for a, b in edges if not any((a, c) in reached and (c, b) in reached for c in _names(edges)))
    return _mermaid("TD", direct)


def marking() -> str:
    """The modules of the stages that `pipeline.embed` passes an image through; its own calls are numbered."""
    edges = _shown(uses(("pipeline", "embed"), "stages"))
    called = [edge for edge in edges if edge[0] == "pipeline"]
    return _mermaid("LR", edges, {edge: i for i, edge in enumerate(called, 1)})


def reading() -> str:
    """The modules of the keyed extractor that its `read` passes an image through."""
    return _mermaid("LR", _shown(uses(("extractors.keyed.reader", "read"), "extractors.keyed")))


def _shown(edges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(a, b) for a, b in edges if not {a, b} & SERVING]


def _names(edges) -> list[str]:
    return sorted({name for edge in edges for name in edge})


def _mermaid(direction: str, edges: list[tuple[str, str]], numbers: dict[tuple[str, str], int] | None = None) -> str:
    def node(name: str) -> str:
        return f"{name.replace('.', '_')}[{name.split('.')[-1]}]"

    def arrow(edge: tuple[str, str]) -> str:
        number = (numbers or {}).get(edge)
        return "-->" if number is None else f"-->|{number}|"

    lines = [f"    {node(a)} {arrow((a, b))} {node(b)}" for a, b in edges]
    return "\n".join(["```mermaid", f"flowchart {direction}", *lines, "```"])


def drawn(page: str) -> str:
    """The page with its figures, each between ``<!-- name -->`` and ``<!-- end -->``, drawn anew."""
    for figure in (packages, marking, reading):
        block = rf"(<!-- {figure.__name__} -->\n).*?(<!-- end -->)"
        page = re.sub(block, lambda found: f"{found[1]}{figure()}\n{found[2]}", page, flags=re.DOTALL)  # noqa: B023
    return page


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

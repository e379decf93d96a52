"""Mutation testing: which small changes of the method do its tests notice?

    python tests/mutation/mutate.py --mutants 300 --seed 0 --out mutants.jsonl

draws mutants of the packages below with Cosmic Ray's operators (as many of each package; first a place in the code,
evenly, then one of the operators that apply there), makes each in a copy of the repository, and runs the tests of that
module until the first one fails. Results are appended to --out. The same command goes on where it stopped: it tries
mutants of modules that have changed and, where the tests have changed, those that survived; it ends with a table and
the survivors. Annotations, docstrings and messages are left alone: nothing that is computed depends on them.
"""

from __future__ import annotations

import argparse
import ast
import collections
import hashlib
import json
import os
import random
import resource
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

# Loaded once: each run of tests is a fork of this process.
import einops  # noqa: F401
import hypothesis.strategies  # noqa: F401
import PIL.Image  # noqa: F401
import pytest
import safetensors.torch  # noqa: F401
import scipy.stats  # noqa: F401
import torch._dynamo  # noqa: F401

ROOT = Path(__file__).parents[2]
# Packages whose modules are mutated, and the tests that defend them.
PACKAGES = {
    "onrw_core/attacks": "tests/attacks",
    "onrw_core/stages": "tests/stages",
    "onrw_core/extractors/keyed": "tests/extractors/keyed",
}
SKIPPED_OPERATORS = ("VariableReplacer", "VariableInserter", "RemoveDecorator", "ExceptionReplacer")
SLOWEST = 3  # times the processor time of the unmutated tests: a mutant that takes more counts as killed


@dataclass(frozen=True)
class Mutant:
    """A change of one place: the operator's occurrence in a module, and the line for people."""

    module: str
    operator: str
    occurrence: int
    line: int
    before: str


def ignored_lines(source: str) -> set[tuple[int, int]]:
    """(line, column) of everything inside annotations, strings and raised messages."""
    places: set[tuple[int, int]] = set()

    def cover(node: ast.AST | None) -> None:
        for child in ast.walk(node) if node is not None else ():
            if hasattr(child, "lineno"):
                places.add((child.lineno, child.col_offset))
                # An operator stands between its operands: cover the whole of their line range.
                if child.lineno == child.end_lineno:
                    places.update((child.lineno, column) for column in range(child.col_offset, child.end_col_offset))

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AnnAssign | ast.arg):
            cover(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            cover(node.returns)
        elif isinstance(node, ast.JoinedStr | ast.Raise) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        ):
            cover(node)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript | ast.BinOp):
            if any(isinstance(part, ast.Name) and part.id == "Callable" for part in ast.walk(node.value)):
                cover(node.value)  # a type alias
    return places


def mutants(module: Path) -> dict[tuple[int, int], list[Mutant]]:
    """All mutants of a module, by place."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    source = module.read_text()
    lines = source.splitlines()
    ignored = ignored_lines(source)
    nodes = list(ast_nodes(get_ast(source)))
    found: dict[tuple[int, int], list[Mutant]] = collections.defaultdict(list)
    for name in sorted(operator_names()):
        if name.endswith(SKIPPED_OPERATORS):
            continue
        operator, occurrence = get_operator(name)(), 0
        for node in nodes:
            for (line, column), _ in operator.mutation_positions(node):
                if (line, column) not in ignored:
                    text = lines[line - 1].strip()
                    found[line, column].append(Mutant(str(module.relative_to(ROOT)), name, occurrence, line, text))
                occurrence += 1
    return found


def draw(package: str, count: int, seed: int) -> list[Mutant]:
    """A seeded sample of a package: places evenly over its modules, then one operator each."""
    places = []
    for module in sorted((ROOT / package).glob("*.py")):
        places += [choices for _, choices in sorted(mutants(module).items())]
    rng = random.Random(seed)
    rng.shuffle(places)
    return [rng.choice(choices) for choices in places[:count]]


def mutated(mutant: Mutant) -> str:
    """The module's source with the mutation."""
    from cosmic_ray.ast import get_ast
    from cosmic_ray.mutating import MutationVisitor
    from cosmic_ray.plugins import get_operator

    tree = get_ast((ROOT / mutant.module).read_text())
    visitor = MutationVisitor(mutant.occurrence, get_operator(mutant.operator)())
    return visitor.walk(tree).get_code()


# Modules that are defended by the tests of another module.
DEFENDED_BY = {
    "onrw_core/attacks/__init__.py": ["test_base.py"],
    **{  # test_base.py is about all attacks of the registry
        f"onrw_core/attacks/{name}.py": [f"test_{name}.py", "test_base.py"]
        for name in ("codecs", "filters", "geometric", "noises", "overlays", "tones")
    },
    **{  # the golden values pin what is derived from keys
        f"onrw_core/extractors/keyed/{name}.py": ["test_wire_format.py", f"test_{name}.py"]
        for name in ("band", "public_layer", "secret_layer")
    },
    "onrw_core/extractors/keyed/extractor.py": ["test_extractor.py", "test_side_by_side.py"],
    "onrw_core/extractors/keyed/hypotheses.py": ["test_hypotheses.py", "test_reader.py"],
    "onrw_core/extractors/keyed/pilot_search.py": ["test_pilot_search.py", "test_side_by_side.py"],
    "onrw_core/extractors/keyed/reader.py": ["test_matched_filter.py", "test_side_by_side.py", "test_reader.py"],
    "onrw_core/stages/nested.py": ["test_inversion.py"],
    "onrw_core/stages/inversion_record.py": ["test_inversion.py"],
    "onrw_core/stages/null_text.py": ["test_inversion.py"],
    "onrw_core/stages/warm_start.py": ["test_noise_optimisation.py"],
    "onrw_core/stages/noise_optimisation.py": ["test_objective.py", "test_sparing.py", "test_noise_optimisation.py"],
    "onrw_core/stages/constrained_denoising.py": ["test_constrained_denoising.py", "test_noise_optimisation.py"],
}


def tests_of(module: str) -> list[str]:
    """The tests that defend a module: its own file, or those of `DEFENDED_BY`."""
    package, name = os.path.split(module)
    return [f"{PACKAGES[package]}/{test}" for test in DEFENDED_BY.get(module, [f"test_{name}"])]


def run_tests(copy: Path, tests: list[str], limit: int | None) -> tuple[str, float]:
    """ "passed", "failed" or "time-out", and seconds of processor time."""
    child = os.fork()
    if not child:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        os.chdir(copy)
        sys.path[0] = str(copy)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
    _, status, usage = os.wait4(child, 0)
    outcome = "time-out" if os.WIFSIGNALED(status) else "failed" if os.WEXITSTATUS(status) else "passed"
    return outcome, usage.ru_utime + usage.ru_stime


def digest(root: Path, *files: str) -> str:
    """Of files below a folder: tells whether they have changed."""
    return hashlib.sha256(b"".join((root / file).read_bytes() for file in files)).hexdigest()[:16]


def settled(entry: dict) -> bool:
    """Whether a result still holds: the module is the same, and so are the tests, or they noticed the mutant."""
    same_tests = entry["tests"] == digest(ROOT, *tests_of(entry["module"]))
    return entry["source"] == digest(ROOT, entry["module"]) and (entry["killed"] or same_tests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mutants", type=int, default=300, help="how many to draw, of all packages (default 300)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--package", choices=PACKAGES, help="only the mutants of this package")
    parser.add_argument("--out", type=Path, default=Path("mutants.jsonl"))
    arguments = parser.parse_args()

    packages = [arguments.package] if arguments.package else list(PACKAGES)
    wanted = [
        mutant for package in packages for mutant in draw(package, arguments.mutants // len(PACKAGES), arguments.seed)
    ]
    results: dict[Mutant, dict] = {}
    if arguments.out.exists():
        for line in arguments.out.read_text().splitlines():
            entry = json.loads(line)
            results[Mutant(**entry["mutant"])] = entry
    limits: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", "*.db"))
        for number, mutant in enumerate(wanted, 1):
            if mutant in results and settled(results[mutant]):
                continue
            tests = tests_of(mutant.module)
            if mutant.module not in limits:
                outcome, seconds = run_tests(copy, tests, None)
                if outcome != "passed":
                    sys.exit(f"{' '.join(tests)} fails without any mutation")
                limits[mutant.module] = int(SLOWEST * seconds) + 1
            target = copy / mutant.module
            target.write_text(mutated(mutant))
            outcome, seconds = run_tests(copy, tests, limits[mutant.module])
            shutil.copy(ROOT / mutant.module, target)
            results[mutant] = {
                "module": mutant.module,
                "mutant": asdict(mutant),
                "killed": outcome != "passed",
                "outcome": outcome,
                "seconds": round(seconds, 1),
                "source": digest(copy, mutant.module),
                "tests": digest(copy, *tests),
            }
            with arguments.out.open("a") as file:
                file.write(json.dumps(results[mutant]) + "\n")
            print(f"{number} of {len(wanted)} {mutant.module}:{mutant.line} {mutant.operator}: {outcome}", flush=True)
    report([results[mutant] for mutant in wanted])


def report(entries: list[dict]) -> None:
    """Share killed by package, and the survivors."""
    for package in PACKAGES:
        part = [entry for entry in entries if os.path.dirname(entry["module"]) == package]
        killed = sum(entry["killed"] for entry in part)
        print(f"{package}: {killed} of {len(part)} killed")
    killed = sum(entry["killed"] for entry in entries)
    print(f"all: {killed} of {len(entries)} killed ({100 * killed / max(1, len(entries)):.1f} %)")
    for entry in entries:
        if not entry["killed"]:
            mutant = Mutant(**entry["mutant"])
            after = mutated(mutant).splitlines()[mutant.line - 1].strip()
            print(f"survived: {mutant.module}:{mutant.line} {mutant.operator}\n  - {mutant.before}\n  + {after}")


if __name__ == "__main__":
    main()

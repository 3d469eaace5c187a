"""The arrows of the house: which room may import which. They point down only, and no two modules import each other.

`ROOMS` and `FLOORS` are the rules. The test reads the imports of .py files, the imports and cimports of .pyx and .pxd
files, and the includes of the headers. An import inside a function or for a type checker counts, too.
"""

from __future__ import annotations

import ast
import functools
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]


class Room(NamedTuple):
    """Some modules, and the rooms below that they may import. A module may always import its own room."""

    modules: str  # a regular expression over dotted names, without the leading "aiflow."
    may: tuple[str, ...] = ()
    compiled: bool = True  # whether it may import what is compiled


# From the ground floor upwards.
ROOMS = {
    "errors": Room("errors"),
    "config": Room("config", ("errors",)),
    "_html": Room(r"_html(\..*)?", ("errors",), compiled=False),
    "_system": Room(r"_system(\..*)?", ("errors",)),
    "librte": Room(r"librte(\..*)?"),
    "_core": Room(r"_core(_memory|_loans)?"),
    "_wire": Room("_wire", ("_core",)),
    "_faults": Room("_faults", ("errors", "config", "_wire")),
    "_eal": Room(r"_eal\w*", ("errors", "config", "_system", "librte", "_core")),
    "_build": Room("_build", ("errors", "_eal")),
    "_dp": Room(r"_dp\w*", ("errors", "_system", "librte", "_core", "_wire", "_faults", "_eal")),
    "_ports": Room(r"_ports(\..*)?", ("errors", "config", "_system", "_wire", "_eal", "_build")),
    "_policy": Room(r"_policy(\..*)?|scheduler|flow", ("errors", "config"), compiled=False),
    "monitor": Room("monitor", ("errors", "config", "_dp", "_policy")),
    "report": Room("report", ("_html", "monitor")),
    "_transfer": Room(r"_transfer(\..*)?", ("errors", "config", "_html", "_system", "_policy", "report")),
    "_encode": Room("_encode", ("errors", "_transfer")),
    "slices": Room("slices|shards", ("errors", "_html", "_policy", "_transfer")),
    "_observe": Room(r"_observe(\..*)?", ("errors", "config", "_system", "_ports")),
    "otel": Room("otel", ("errors", "_observe")),
    "options": Room("options", ("errors", "config", "_policy")),
    "sides": Room(
        "sender|receiver|shared_ports|_engine|_poster|_into|alloc|names",
        (
            *("errors", "config", "_html", "_system", "_eal", "_dp", "_ports", "_policy", "monitor", "report"),
            *("_transfer", "_encode", "slices", "_observe", "options"),
        ),
    ),
    "face": Room("in_process|__init__", ("errors", "_build", "report", "_transfer", "slices", "options", "sides")),
    "_checks": Room(r"_checks(\..*)?", ("errors", "_system", "_eal", "_ports", "face")),
    "notebook": Room("notebook", ("config", "report")),
    "_terminal": Room(r"_terminal(\..*)?", ("errors", "config", "face")),
    "_samples": Room(r"_samples(\..*)?", ("_terminal",)),
    "cli": Room(
        r"cli(\..*)?",
        ("errors", "config", "_system", "_ports", "_transfer", "_observe", "face", "_checks", "_terminal", "_samples"),
    ),
    "lab": Room(r"lab(\..*)?", ("errors", "config", "_faults", "_eal", "face", "_terminal", "_samples")),
    "__main__": Room("__main__", ("cli",)),
}

# Headers: a floor includes itself and what is named here.
FLOORS = {
    "wire": (),
    "rt": ("wire",),
    "path": ("wire", "rt"),
    "tx": ("wire", "rt", "path"),
    "rx": ("wire", "rt", "path"),
    "loan": ("rt", "rx"),
}

_IMPORT = re.compile(r"^\s*from\s+([\w.]+)\s+c?import\s+(\([^)]*\)|[^\n#]+)|^\s*c?import\s+([\w., ]+)$", re.MULTILINE)


def modules_of(root: Path) -> dict[str, list[Path]]:
    """Dotted name → its files (a .pyx has a .pxd and a .pyi beside it)."""
    found: dict[str, list[Path]] = {}
    for path in sorted((root / "aiflow").rglob("*")):
        if path.suffix in (".py", ".pyx", ".pxd", ".pyi"):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            found.setdefault(name, []).append(path)
    return found


def named_in(path: Path, package: str) -> set[str]:
    """Dotted names that a file imports: modules, and what it takes from them."""
    text, names = path.read_text(), set()
    if path.suffix in (".py", ".pyi"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                up = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
                base = f"{up}.{node.module}".rstrip(".").replace(".None", "") if node.level else str(node.module)
                names |= {f"{base}.{alias.name}" for alias in node.names}
        return names
    for base, taken, plain in _IMPORT.findall(text):
        base = package + base if base.startswith(".") else base
        names |= {f"{base}.{name.split(' as ')[0].strip()}" for name in taken.strip("()").split(",") if name.strip()}
        names |= {name.split(" as ")[0].strip() for name in plain.split(",") if name.strip()}
    return names


def arrows(root: Path) -> dict[str, set[str]]:
    """Module → modules of ours that it imports."""
    modules = modules_of(root)
    found: dict[str, set[str]] = {name: set() for name in modules}
    for name, paths in modules.items():
        package = name.removesuffix(".__init__") if name.endswith("__init__") else name.rpartition(".")[0]
        for path in paths:
            for imported in named_in(path, package):
                if imported.split(".")[0] != "aiflow":
                    continue
                for candidate in (imported, imported.rpartition(".")[0]):
                    if candidate in modules or f"{candidate}.__init__" in modules:
                        found[name].add(candidate if candidate in modules else f"{candidate}.__init__")
                        break
                else:
                    raise AssertionError(f"{path}: what is {imported}?")
        found[name].discard(name)
    return found


def room_of(module: str) -> str:
    """The room of a module; one that has none fails the test."""
    (room,) = (room for room, rule in ROOMS.items() if re.fullmatch(rule.modules, module.removeprefix("aiflow.")))
    return room


@functools.cache
def offences(root: Path) -> list[str]:
    """What breaks the rules."""
    found, graph = [], arrows(root)
    compiled = {name for name, paths in modules_of(root).items() if any(path.suffix == ".pyx" for path in paths)}
    for module, imported in sorted(graph.items()):
        rule = ROOMS[room_of(module)]
        for target in sorted(imported):
            if room_of(target) != room_of(module) and room_of(target) not in rule.may:
                found.append(f"{module} imports {target}: {room_of(module)} may not import {room_of(target)}")
            if not rule.compiled and target in compiled:
                found.append(f"{module} imports {target}, which is compiled")
    found += [f"a circle: {' → '.join(circle)}" for circle in circles(graph)]
    return found + header_offences(root)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, over others or directly. The face and its parts load lazily, and do not count."""
    state: dict[str, int] = {}
    found: list[list[str]] = []

    def visit(module: str, way: list[str]) -> None:
        state[module] = 1
        for target in sorted(graph.get(module, ())):
            if target == "aiflow.__init__":
                continue
            if state.get(target) == 1:
                found.append([*way[way.index(target) :], target])
            elif target not in state:
                visit(target, [*way, target])
        state[module] = 2

    for module in sorted(graph):
        if module not in state and module != "aiflow.__init__":
            visit(module, [module])
    return found


def header_offences(root: Path) -> list[str]:
    """Includes that go up, or in a circle."""
    include = root / "include"
    graph = {}
    for path in sorted(include.rglob("*.h")):
        name = str(path.relative_to(include))
        graph[name] = set(re.findall(r'#include ["<](aiflow/[\w/.]+)[">]', path.read_text()))
    found = [f"a circle of headers: {' → '.join(circle)}" for circle in circles(graph)]
    for name, included in graph.items():
        floor = name.split("/")[1]
        for target in sorted(included):
            if target not in graph:
                found.append(f"{name} includes {target}, which is missing")
            elif target.split("/")[1] not in (floor, *FLOORS[floor]):
                found.append(f"{name} includes {target}: {floor} may not include {target.split('/')[1]}")
    return found


def test_arrows_point_down() -> None:
    assert offences(ROOT) == []


def test_rooms_are_listed_from_the_ground_up() -> None:
    order = list(ROOMS)
    for room, rule in ROOMS.items():
        below = order[: order.index(room)]
        upwards = [name for name in rule.may if name not in below]
        assert not upwards, f"{room} names {upwards}, which stand above it"


def test_every_rule_is_needed() -> None:
    """A room without a module, or an arrow that no import takes, is a rule that has outlived its reason."""
    taken: dict[str, set[str]] = {}
    for module, imported in arrows(ROOT).items():
        taken.setdefault(room_of(module), set()).update(room_of(target) for target in imported)
    assert set(taken) == set(ROOMS)
    unused = {room: sorted(set(rule.may) - taken[room]) for room, rule in ROOMS.items()}
    assert not any(unused.values()), unused


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "aiflow", tmp_path / "aiflow", ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.c"))
    shutil.copytree(ROOT / "include", tmp_path / "include")
    return tmp_path


PLANTED = {
    "an upward import": (
        "_ports/registry.py",
        "from aiflow._transfer import manifest",
        "_ports may not import _transfer",
    ),
    "one inside a function": ("_system/limits.py", "def f():\n    from aiflow import config", "may not import config"),
    "an upward cimport": ("_eal.pyx", "from aiflow._dp cimport Loop", "_eal may not import _dp"),
    "a circle": ("_system/threads.py", "from aiflow._system import descriptors", "a circle"),
    "cli that meets lab": ("cli/recv.py", "import aiflow.lab.cluster", "cli may not import lab"),
    "compiled policy": ("_policy/partition.py", "from aiflow._wire import KINDS", "which is compiled"),
    "compiled scheduler": ("scheduler.py", "import aiflow._eal", "which is compiled"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_import_is_found(copy: Path, name: str) -> None:
    file, line, why = PLANTED[name]
    path = copy / "aiflow" / file
    path.write_text(f"{path.read_text()}\n{line}\n")
    assert any(why in offence for offence in set(offences(copy)) - set(offences(ROOT)))


@pytest.mark.parametrize(("header", "included"), [("wire/frame.h", "rt/agent.h"), ("rx/arena.h", "tx/tx_agent.h")])
def test_a_planted_include_is_found(copy: Path, header: str, included: str) -> None:
    path = copy / "include/aiflow" / header
    path.write_text(f'#include "aiflow/{included}"\n{path.read_text()}')
    assert any("may not include" in offence for offence in set(offences(copy)) - set(offences(ROOT)))

"""docs/api.md and the public face agree: names, methods, options and their defaults; type checkers take a program."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from subprocesses import environment

import aiflow
from aiflow.options import FlatKeywords, SenderKeywords

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/api.md").read_text()
CLASSES = ("Sender", "Receiver", "TimeSlice", "Shard", "Element", "Ticket", "PortTable", "Ports", "SliceReport")

# What `repr` of a default reads like on the page.
IN_WORDS = {"None": "", "True": "True", "False": "False"}


def section(title: str) -> str:
    return re.split(r"^## ", PAGE.partition(f"\n## {title}\n")[2], flags=re.MULTILINE)[0]


def options() -> dict[str, list[str]]:
    """Option → the cells of its row."""
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", section("Options"), flags=re.MULTILINE)
    return {name: [name, *cells.split(" | ")] for name, cells in rows}


def test_every_public_name_is_on_the_page() -> None:
    assert [name for name in aiflow.__all__ if not re.search(rf"`{name}\b", PAGE)] == []


@pytest.mark.parametrize("name", CLASSES)
def test_every_method_and_property_is_on_the_page(name: str) -> None:
    kind = getattr(aiflow, name)
    assert [each for each in dir(kind) if not each.startswith("_") and not re.search(rf"\b{each}\b", PAGE)] == []


def test_each_row_of_names_is_a_public_name() -> None:
    named = re.findall(r"^\| `(?!aiflow\.)(\w+)", section("Names"), flags=re.MULTILINE)
    assert len(named) > 18
    assert [name for name in named if name not in aiflow.__all__] == []


def test_each_row_of_a_module_is_in_it() -> None:
    rows = re.findall(r"^\| `aiflow\.(\w+)\.(\w+)", section("Names"), flags=re.MULTILINE)
    assert rows
    assert [row for row in rows if not hasattr(import_module(f"aiflow.{row[0]}"), row[1])] == []


@pytest.mark.parametrize("name", ["Sender", "Receiver"])
def test_every_option_is_on_the_page_with_its_default(name: str) -> None:
    rows = options()
    for parameter in inspect.signature(getattr(aiflow, name)).parameters.values():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or parameter.name in ("polling", "telemetry"):
            continue
        _, of, *_, default = rows[parameter.name]
        assert of in (name, "both"), f"{name} has {parameter.name}, and the page says: {of}"
        if parameter.default is not None:
            wanted = re.sub(r"['\".]0?$|['\"]", "", repr(parameter.default))
            assert wanted in default.replace('"', ""), f"{parameter.name}: {wanted!r}, and the page says {default!r}"


def test_each_row_of_options_is_one() -> None:
    known = {"Sender": set(inspect.signature(aiflow.Sender).parameters)}
    known["Receiver"] = set(inspect.signature(aiflow.Receiver).parameters)
    table = section("Options").partition("Options that few programs set")[0]
    rows = re.findall(r"^\| `(\w+)` \| (Sender|Receiver|both) \|", table, flags=re.MULTILINE)
    assert len(rows) > 12
    for option, of in rows:
        for side in ("Sender", "Receiver") if of == "both" else (of,):
            assert option in known[side], f"the page gives {side} the option {option}"


def test_flat_keywords_are_fields_on_the_page() -> None:
    flat = {*FlatKeywords.__annotations__, *SenderKeywords.__annotations__}
    assert [name for name in flat if not re.search(rf"`{name}[`=]", PAGE) and f"`{name}`" not in PAGE] == []


PROGRAM = """
import asyncio

import numpy as np

import aiflow


def send(ports: list[str]) -> float:
    with aiflow.Sender(ports, to=["a", "b"], slice_ms=40, policy=aiflow.Scheduling(place="elements")) as tx:
        report = tx.send({"cam-0": np.zeros((4, 4), np.uint8)}, timeout=3)
        ticket = tx.send([b"x"], wait=False)
        ticket.result(5)
        tx.put("cam-0", np.zeros(3))
        tx.flush()
        return report.seconds + sum(row.frames for row in report.ports)


def receive(ports: str) -> int:
    nbytes = 0
    with aiflow.Receiver(ports, memory="64MiB", until="bye", polling=aiflow.Polling(idle="spin")) as rx:
        for time_slice in rx:
            for element in time_slice:
                nbytes += element.nbytes + int(element.array.sum())
            time_slice.confirm()
        for row in rx.port_table:
            print(row.name)
    return nbytes


async def listen(rx: aiflow.Receiver) -> None:
    async for time_slice in rx:
        print(time_slice.streams)


try:
    send(["local:x"])
    asyncio.run(listen(aiflow.Receiver("local:x")))
except aiflow.PeerLost as error:
    print(error.delivered, error.delivered_by)
"""


def test_mypy_takes_a_program_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="needs mypy")
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary"),
            *("--config-file=", f"--cache-dir={tmp_path / 'cache'}", "program.py"),
        ],
        cwd=tmp_path,
        env=environment(MYPYPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def pyright(program: str, tmp_path: Path) -> list[str]:
    pytest.importorskip("pyright", reason="needs pyright[nodejs]")
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "pyrightconfig.json").write_text(
        json.dumps({"typeCheckingMode": "standard", "extraPaths": [str(ROOT)], "pythonVersion": "3.12"})
    )
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "program.py"],
        cwd=tmp_path,
        env={**environment(), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    try:
        document = json.loads(done.stdout)
    except ValueError:
        pytest.skip(f"pyright does not start here: {(done.stderr or done.stdout)[-300:]}")
    return [each["message"] for each in document["generalDiagnostics"] if each["severity"] == "error"]


def test_pyright_takes_a_program(tmp_path: Path) -> None:
    assert pyright(PROGRAM, tmp_path) == []


def test_pyright_sees_a_wrong_argument(tmp_path: Path) -> None:
    (message,) = pyright('import aiflow\n\naiflow.Sender("local:x", slice_ms="fast")\n', tmp_path)
    assert "slice_ms" in message

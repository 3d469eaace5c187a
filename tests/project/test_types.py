"""What a type checker and help() tell a user of the public face."""

from __future__ import annotations

import dataclasses
import inspect
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest
from subprocesses import environment

import aiflow
from aiflow.errors import ConfigError
from aiflow.options import FlatKeywords, SenderKeywords
from aiflow.report import PortRow

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import aiflow
import numpy as np

def main(wait: bool) -> None:
    image = np.zeros((480, 640, 3), np.uint8)
    with aiflow.Sender("local:demo", policy=aiflow.Scheduling(place="elements"), idle="spin") as tx:
        reveal_type(tx.send({"cam-0": image}))
        reveal_type(tx.send({"cam-0": image}, wait=True, timeout=3))
        reveal_type(tx.send({"cam-0": image}, wait=False))
        reveal_type(tx.send({"cam-0": image}, wait=wait))
        reveal_type(tx.send_batch("cam-0", image))
        reveal_type(tx.send_batch("cam-0", image, wait=False))
        reveal_type(tx.send_batch("cam-0", image, wait=wait))
        reveal_type(tx.put("cam-0", image, copy=False))
        reveal_type(tx.send([b"x"], wait=False).result())
    with aiflow.Receiver("local:demo", polling=aiflow.Polling(max_cores=0.5)) as rx:
        for time_slice in rx:
            reveal_type(time_slice["cam-0"].array)
"""
REVEALED = [
    "aiflow.report.SliceReport",
    "aiflow.report.SliceReport",
    "aiflow._transfer.ticket.Ticket",
    "aiflow.report.SliceReport | aiflow._transfer.ticket.Ticket",
    "aiflow.report.SliceReport",
    "aiflow._transfer.ticket.Ticket",
    "aiflow.report.SliceReport | aiflow._transfer.ticket.Ticket",
    "aiflow._transfer.ticket.Ticket",
    "aiflow.report.SliceReport",
]


def checked(program: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("mypy", reason="needs mypy")
    path = tmp_path / "program.py"
    path.write_text(program)
    return subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary"),
            *("--config-file=", "--python-version=3.12", f"--cache-dir={tmp_path / 'cache'}", str(path)),
        ],
        cwd=tmp_path,
        env=environment(MYPYPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=250,
    )


def test_a_program_is_told_what_send_returns(tmp_path: Path) -> None:
    done = checked(PROGRAM, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    revealed = [
        re.sub(r"Union\[(.+), (.+)\]", r"\1 | \2", found)
        for found in re.findall(r'Revealed type is "(.+)"', done.stdout)
    ]
    *others, array = revealed
    assert others == REVEALED
    assert array.startswith("numpy.ndarray")


def test_a_program_is_told_of_a_misspelt_keyword(tmp_path: Path) -> None:
    done = checked('import aiflow\n\naiflow.Sender("local:demo", polcy="pull")\n', tmp_path)
    assert done.returncode == 1
    assert 'Unexpected keyword argument "polcy"' in done.stdout


# ---- options ----

GROUPS = {aiflow.Scheduling: "policy", aiflow.Polling: "polling", aiflow.Telemetry: "telemetry"}


@pytest.mark.parametrize("group", [*GROUPS, aiflow.FlowControl])
def test_every_option_is_frozen_and_documented(group: type) -> None:
    doc = inspect.getdoc(group) or ""
    for field in dataclasses.fields(group):  # type: ignore[arg-type]
        text = re.search(rf"^{field.name} : .*\n((?:    .*\n?)+)", doc + "\n", re.M)
        assert text, f"{group.__name__}.{field.name} is not documented"
        assert re.search(r"default", text[0], re.I), f"{group.__name__}.{field.name}: what is the default?"
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(group(), dataclasses.fields(group)[0].name, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keyword", "wrong"),
    [("policy", {"place": "corner"}), ("policy", {"weights": (1, 1, 1)}), ("policy", {"switch_limits": {"a": "fast"}}),
     ("polling", {"idle": "furiously"}), ("polling", {"max_cores": 0})],
)  # fmt: skip
def test_a_group_checks_its_fields(keyword: str, wrong: dict[str, object]) -> None:
    (kind,) = (group for group, name in GROUPS.items() if name == keyword)
    with pytest.raises(ConfigError):
        kind(**wrong)


FLAT = [
    (aiflow.Scheduling(), {"place": "elements"}),
    (aiflow.Scheduling(), {"score_weights": (1, 0, 0)}),
    (aiflow.Scheduling(), {"switches": "probe"}),
    (aiflow.Scheduling(), {"switch_limits": {}}),
    (aiflow.Polling(), {"idle": "spin"}),
    (aiflow.Polling(), {"max_cores": 0.5}),
    (aiflow.Telemetry(), {"link_speed": "1gbit"}),
    (aiflow.Telemetry(), {"monitor_interval": 0}),
    (aiflow.Telemetry(), {"metrics_port": 9105}),
]


@pytest.mark.parametrize(("group", "flat"), FLAT, ids=[next(iter(flat)) for _, flat in FLAT])
def test_a_group_and_its_flat_keyword_exclude_each_other(group: object, flat: dict[str, object]) -> None:
    keyword = GROUPS[type(group)]
    with pytest.raises(ConfigError, match="both given"):
        aiflow.Sender("local:x", **{keyword: group}, **flat)  # type: ignore[arg-type]
    if keyword == "policy":
        with pytest.raises(TypeError, match=rf"Receiver\(\) has no keyword '{next(iter(flat))}'"):
            aiflow.Receiver("local:x", **flat)  # type: ignore[arg-type]
    else:
        with pytest.raises(ConfigError, match="both given"):
            aiflow.Receiver("local:x", **{keyword: group}, **flat)  # type: ignore[arg-type]


def test_every_flat_keyword_has_its_case() -> None:
    assert {keyword for _, flat in FLAT for keyword in flat} == SenderKeywords.__optional_keys__
    assert FlatKeywords.__optional_keys__ <= SenderKeywords.__optional_keys__


@pytest.mark.parametrize("keyword", ["polling", "telemetry"])
def test_a_group_of_another_type_is_refused(keyword: str) -> None:
    for kind in (aiflow.Sender, aiflow.Receiver):
        with pytest.raises(ConfigError, match=f"{keyword}='spin': give an aiflow"):
            kind("local:x", **{keyword: "spin"})  # type: ignore[arg-type]


def test_a_flat_keyword_and_a_group_mean_the_same() -> None:
    name = "ring:options"
    with (
        aiflow.Receiver(name, max_cores=0.5) as rx,
        aiflow.Sender(name, policy="weighted", place="elements", switches=["a"], idle="spin") as flat,
    ):
        assert (flat.policy, flat.place, flat._agent.loop.spins) == ("weighted", "elements", True)
        assert rx._agent.loop.max_cores == 0.5
    with (
        aiflow.Receiver(name, polling=aiflow.Polling(max_cores=0.5)) as rx,
        aiflow.Sender(
            name,
            policy=aiflow.Scheduling(policy="weighted", place="elements", switches=["a"]),
            polling=aiflow.Polling(idle="spin"),
        ) as grouped,
    ):
        assert (grouped.policy, grouped.place, grouped._agent.loop.spins) == ("weighted", "elements", True)
        assert rx._agent.loop.max_cores == 0.5


# ---- help ----


@pytest.mark.parametrize("kind", [aiflow.Sender, aiflow.Receiver])
def test_the_page_of_help_stays_short(kind: type) -> None:
    """The constructor with one method fits two screens; the whole page, with every method, is five."""
    lines = pydoc.render_doc(kind, renderer=pydoc.plaintext).splitlines()
    constructor = next(i for i, line in enumerate(lines) if "Methods defined here" in line)
    longest = max(len((inspect.getdoc(member) or "").splitlines()) for member in vars(kind).values())
    assert constructor <= 66
    assert constructor + longest <= 110
    assert len(lines) <= 262


def test_flow_control_has_its_old_home_too() -> None:
    assert aiflow.flow.FlowControl is aiflow.FlowControl
    assert "credit" in aiflow.flow.FLOW_CONTROLS


def test_a_row_of_the_port_table_is_flat() -> None:
    """Programs log rows by `dataclasses.asdict`."""
    names = [field.name for field in dataclasses.fields(PortRow)]
    assert names == [
        *("port_id", "dest_mac", "lcore_id", "tx_rate", "bandwidth_rate", "drop_rate", "buffer_occupancy"),
        *("port_score", "send_interval", "updated_time", "name", "driver", "frames", "nbytes", "frames_again"),
        *("frames_lost", "in_flight", "window", "rtt_ns", "rate_bps", "link_speed_bps", "switch", "rx_nombuf"),
        *("tx_nombuf", "by_reference"),
    ]

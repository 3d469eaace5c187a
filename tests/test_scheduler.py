"""The scheduler decides once a slice, in plain Python, and names what is not there yet."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import aiflow
from aiflow import scheduler

pytestmark = pytest.mark.unit


def test_pull_lets_every_port_take_part_and_says_so() -> None:
    plan = scheduler.plan("pull", 1000, [scheduler.PortState(0, True), scheduler.PortState(3, False)])
    assert plan.port_mask & 0b1001 == 0b1001
    assert plan.nbytes == 1000
    assert "port 0" in plan.explain()
    assert "no live path" in plan.explain().splitlines()[1]


@pytest.mark.parametrize("policy", ["score", "round_robin", "weighted", "least_queue"])
def test_policies_to_come_are_named_and_refused(policy: str) -> None:
    with pytest.raises(aiflow.ConfigError, match="not there yet: use policy='pull'"):
        aiflow.Sender("local:nobody", policy=policy)


@pytest.mark.parametrize("flow_control", ["reverse", "static", "token_bucket", "none"])
def test_flow_controls_to_come_are_named_and_refused(flow_control: str) -> None:
    with pytest.raises(aiflow.ConfigError, match="not there yet: use flow_control='credit'"):
        aiflow.Sender("local:nobody", flow_control=flow_control)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(aiflow.ConfigError, match="unknown: use one of 'pull'"):
        aiflow.Sender("local:nobody", policy="fastest")
    with pytest.raises(TypeError):
        aiflow.Sender("local:nobody", polcy="pull")  # type: ignore[call-arg]


def test_several_receivers_and_slice_windows_are_not_there_yet() -> None:
    with pytest.raises(aiflow.ConfigError, match="not there yet"):
        aiflow.Sender("local:nobody", to=["node2", "node3"])
    with pytest.raises(aiflow.ConfigError, match="not there yet"):
        aiflow.Sender("local:nobody", slice_ms=40)


def test_the_scheduler_imports_nothing_compiled() -> None:
    tree = ast.parse(Path(scheduler.__file__).read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert names <= {"__future__", "collections.abc", "typing", "errors"}

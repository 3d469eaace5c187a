"""The figures as OpenTelemetry instruments, read by its own SDK: they equal the SliceReports, and follow its rules."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from subprocesses import environment
from wait import PATIENCE_S

import aiflow
import aiflow.otel
from aiflow._observe.catalogue import FIGURES

sdk = pytest.importorskip("opentelemetry.sdk.metrics", reason="opentelemetry-sdk is not installed")


def collected(reader: Any) -> dict[str, Any]:
    """Instrument → its data, of one collection."""
    (resource,) = reader.get_metrics_data().resource_metrics
    (scope,) = resource.scope_metrics
    assert scope.scope.name == "aiflow"
    return {metric.name: metric for metric in scope.metrics}


def test_the_sdk_reads_what_the_reports_say(endpoint: str) -> None:
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    provider = sdk.MeterProvider([reader])
    with (
        aiflow.Receiver(f"{endpoint}*2", name="rx", link_speed="1gbit") as rx,
        aiflow.Receiver(f"{endpoint}-2", name="rx"),
        aiflow.Sender(f"{endpoint}*2", name="tx", link_speed="1gbit") as tx,
    ):
        aiflow.otel.observe(provider)
        reports = []
        for _ in range(4):
            ticket = tx.send([np.zeros(200_000, np.uint8)], wait=False)
            rx.recv(timeout=PATIENCE_S).release()
            reports.append(ticket.result(PATIENCE_S))
        found = collected(reader)
    provider.shutdown()
    names = {f"aiflow.{figure.name.replace('_', '.')}" for figure in FIGURES}
    assert set(found) == names
    (sent,) = [point for point in found["aiflow.bytes"].data.data_points if point.attributes["role"] == "sender"]
    assert sent.value == sum(report.nbytes for report in reports)
    assert dict(sent.attributes) == {"pid": str(os.getpid()), "role": "sender", "name": "tx"}
    assert found["aiflow.bytes"].unit == "By"
    assert found["aiflow.bytes"].data.is_monotonic
    frames = found["aiflow.port.transmit.frames"].data.data_points
    of_tx = [point for point in frames if point.attributes["name"] == "tx"]
    assert {point.attributes["port"] for point in of_tx} == {f"{endpoint}#0", f"{endpoint}#1"}
    assert sum(point.value for point in of_tx) >= sum(report.frames_sent for report in reports)
    held = found["aiflow.memory.limit.bytes"].data.data_points
    assert sorted(point.attributes.get("number", "1") for point in held) == ["1", "2"]
    states = {point.attributes["state"] for point in found["aiflow.wait.seconds"].data.data_points}
    assert states == {"application", "receiver", "path", "memory", "confirmation"}


def test_without_opentelemetry_it_says_what_to_install() -> None:
    code = (
        "import sys\nsys.modules['opentelemetry'] = None\nimport aiflow.otel\n"
        "try: aiflow.otel.observe()\nexcept aiflow.otel.ConfigError as exc: print(exc)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert "pip install 'aiflow-dpdk[otel]'" in done.stdout, done.stderr

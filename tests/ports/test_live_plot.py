"""The live plot: what it draws is what went over the ports, and it leaves no thread behind."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from subprocesses import environment
from wait import wait_for

import aiflow
import aiflow.notebook
from aiflow.errors import ConfigError

pytest.importorskip("IPython")
pytest.importorskip("matplotlib")


def test_the_rates_add_up_to_the_bytes_of_each_port(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[object] = []
    monkeypatch.setattr("IPython.display.DisplayHandle.display", lambda _, picture: drawn.append(picture))
    monkeypatch.setattr("IPython.display.DisplayHandle.update", lambda _, picture: drawn.append(picture))
    with aiflow.pair(nb_ports=2) as (tx, rx):
        tx.send({"x": np.zeros(10)}, wait=False)
        rx.recv(timeout=30).release()  # the ports are up
        wait_for(lambda: len(tx.port_table) == 2, "both ports")
        before = {row.name: row.nbytes for row in tx.port_table}
        with aiflow.notebook.live(tx, interval=0.05) as plot:
            for _ in range(5):
                ticket = tx.send({"x": np.zeros(100_000)}, wait=False)
                rx.recv(timeout=30).release()
                ticket.result(timeout=30)
                time.sleep(0.1)  # so that several drawings have a part of it
            wait_for(lambda: len(drawn) > 3, "drawings")
        after = {row.name: row.nbytes for row in tx.port_table}
        assert threading.active_count() == len([t for t in threading.enumerate() if t.name != "aiflow-live"])
        spans = np.diff(plot.times)
        for name, rates in plot.rates.items():
            sent = after[name] - before[name]
            drawn_bytes = float(np.sum(np.array(rates[1:]) * spans)) / 8
            assert drawn_bytes == pytest.approx(sent, rel=0.05)  # probes and feedback go on
        assert sum(after.values()) - sum(before.values()) > 5 * 800_000
    (axes,) = plot.figure().axes
    assert {line.get_label() for line in axes.lines} == set(after)
    assert axes.get_ylabel().endswith("bit/s")


@pytest.mark.unit
def test_times_are_checked() -> None:
    with pytest.raises(ConfigError, match="interval"):
        aiflow.notebook.live(interval=0)


@pytest.mark.unit
@pytest.mark.parametrize("missing", ["IPython", "matplotlib"])
def test_it_says_what_to_install(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import aiflow.notebook; aiflow.notebook.live()"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "ImportError: a live plot needs IPython and matplotlib: pip install 'aiflow-dpdk[notebook]'" in done.stderr

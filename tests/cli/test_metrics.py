"""Metrics for Prometheus: a real server scrapes a run, and its answers equal the SliceReports' sums.

The server is that of Debian's package `prometheus`: tools/setup.sh unpacks it, where there is none.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peer import Peer
from wait import PATIENCE_S, has_stopped, settle, wait_for

import aiflow
from aiflow._observe import catalogue, exposition
from aiflow._observe.readers import gather

parser = pytest.importorskip("prometheus_client.parser", reason="the extra metrics is not installed")

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "build/programs"
DASHBOARD = ROOT / "docs/grafana-dashboard.json"
NBYTES = 200_000


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        text: str = answer.read().decode()
        return text


def total(text: str, metric: str, **labels: str) -> float:
    """The sum over the samples with these labels."""
    return sum(
        sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == metric and labels.items() <= sample.labels.items()
    )


def deliver(tx: aiflow.Sender, rx: aiflow.Receiver, count: int) -> list[aiflow.SliceReport]:
    reports = []
    for _ in range(count):
        ticket = tx.send([np.zeros(NBYTES, np.uint8)] * 3, wait=False)
        rx.recv(timeout=PATIENCE_S).release()
        reports.append(ticket.result(PATIENCE_S))
    return reports


def test_a_process_serves_its_figures(endpoint: str) -> None:
    port = free_port()
    with (
        aiflow.Receiver(endpoint, metrics_port=port) as rx,
        aiflow.Sender(endpoint, metrics_port=f"127.0.0.1:{port}", name="tx") as tx,  # the same server
    ):
        reports = deliver(tx, rx, 5)
        text = fetch(f"http://127.0.0.1:{port}/metrics")
        for role in ("sender", "receiver"):
            assert total(text, "aiflow_slices_total", role=role) == 5
            assert total(text, "aiflow_bytes_total", role=role) == sum(report.nbytes for report in reports)
        assert total(text, "aiflow_slice_frames_total", name="tx") == sum(report.frames_sent for report in reports)
        assert "python_gc" not in text  # a registry of our own
    with pytest.raises(OSError):
        fetch(f"http://127.0.0.1:{port}/metrics")


def test_sides_of_one_name_and_all_processes_have_series_of_their_own(endpoint: str) -> None:
    """A server refuses a scrape in which a series comes twice."""
    with (
        aiflow.Receiver(f"{endpoint}-1", name="rx") as rx,
        aiflow.Receiver(f"{endpoint}-2", name="rx"),
        aiflow.Sender(f"{endpoint}-1", name="tx") as tx,
        Peer(stay, f"{endpoint}-3") as peer,
    ):
        other = peer.hear()
        deliver(tx, rx, 2)
        exporter = exposition.Exporter(0, gather)
        try:
            text = fetch(f"http://127.0.0.1:{exporter.port}/metrics")
        finally:
            exporter.close()
        lines = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
        assert len(set(lines)) == len(lines)
        own = str(os.getpid())
        assert total(text, "aiflow_slices_total", pid=own, name="rx", number="") == 2
        assert total(text, "aiflow_memory_limit_bytes", pid=own, name="rx", number="2") > 0
        assert total(text, "aiflow_memory_limit_bytes", pid=str(other), name="rx", number="") > 0
        peer.tell("end")
        peer.ends()


def test_a_process_that_hangs_holds_no_scrape_up(endpoint: str) -> None:
    """Prometheus gives a scrape ten seconds."""
    with (
        aiflow.Receiver(endpoint, name="works"),
        Peer(stay, f"{endpoint}-2") as one,
        Peer(stay, f"{endpoint}-3") as two,
    ):
        pids = [one.hear(), two.hear()]
        exporter = exposition.Exporter(0, gather)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            wait_for(lambda: all(map(has_stopped, pids)), "all threads to stop")
            begun = time.monotonic()
            text = fetch(f"http://127.0.0.1:{exporter.port}/metrics")
            assert time.monotonic() - begun < 5
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            exporter.close()
        assert total(text, "aiflow_memory_limit_bytes", name="works") > 0
        for pid, peer in zip(pids, (one, two), strict=True):
            assert total(text, "aiflow_memory_limit_bytes", pid=str(pid)) == 0
            peer.tell("end")
            peer.ends()


def stay(pipe: Connection, endpoint: str) -> None:
    with aiflow.Receiver(endpoint, name="rx"):
        pipe.send(os.getpid())
        pipe.recv()


@pytest.mark.unit
def test_names_follow_prometheus_s_conventions() -> None:
    for figure in catalogue.FIGURES:
        assert re.fullmatch(r"[a-z][a-z_]*", figure.name)
        assert not figure.name.endswith("_total")  # the client adds it
        if figure.unit not in ("", "ratio"):  # base units, and the unit at the end
            assert figure.unit in ("bytes", "seconds", "bits_per_second")
            assert figure.name.endswith(figure.unit), figure.name
        assert figure.help[0].isupper() or figure.help[0].isdigit()


@pytest.mark.parametrize("value", ["nowhere", "9100x", -1, True, 70000, "192.0.2.1:9100"])
def test_an_address_that_cannot_be_used_says_so(endpoint: str, value: Any) -> None:
    with pytest.raises(aiflow.ConfigError, match="metrics_port="):
        aiflow.Receiver(endpoint, metrics_port=value)
    aiflow.Receiver(endpoint).close()  # nothing was left open


def test_a_taken_port_says_so(endpoint: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(aiflow.ConfigError, match="choose a free port"):
            aiflow.Receiver(endpoint, metrics_port=taken.getsockname()[1])
    aiflow.Receiver(endpoint).close()


def test_a_forked_child_serves_nothing(endpoint: str) -> None:
    port = free_port()
    with aiflow.Receiver(endpoint, metrics_port=port):
        child = os.fork()
        if child == 0:
            exporters = list(exposition._exporters)
            listening = Path("/proc/self/net/tcp").read_text()
            inodes = {line.split()[9] for line in listening.splitlines()[1:] if f":{port:04X} 00000000" in line}
            own = {os.readlink(f"/proc/self/fd/{fd}") for fd in ("3",) if os.path.exists(f"/proc/self/fd/{fd}")}
            own |= {each.readlink().name for each in Path("/proc/self/fd").iterdir() if each.is_symlink()}
            os._exit(1 if exporters or any(f"socket:[{inode}]" in own for inode in inodes) else 0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert "aiflow_memory_bytes" in fetch(f"http://127.0.0.1:{port}/metrics")


def test_after_an_interrupt_the_next_close_frees_the_port(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()

    def interrupted(self: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    rx = aiflow.Receiver(endpoint, metrics_port=port)
    monkeypatch.setattr(exposition.Exporter, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rx.close()
    assert "aiflow" not in fetch(f"http://127.0.0.1:{port}/metrics").replace("python", "")  # it serves no Receiver
    rx.close()
    aiflow.Receiver(endpoint, metrics_port=port).close()
    with pytest.raises(OSError):
        fetch(f"http://127.0.0.1:{port}/metrics")


def test_a_receiver_that_is_collected_while_its_server_answers_does_not_hang(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    closing, close = threading.Event(), exposition.Exporter.close
    rx = aiflow.Receiver(endpoint, metrics_port=0)
    (exporter,) = exposition._exporters.values()
    serve = exporter._server.get_request

    def collect() -> Any:
        closing.wait(PATIENCE_S)
        exposition.forget(object())  # as a finalizer does that runs in the server's own thread
        return serve()

    def announced(self: exposition.Exporter) -> None:
        closing.set()
        close(self)

    monkeypatch.setattr(exporter._server, "get_request", collect)
    monkeypatch.setattr(exposition.Exporter, "close", announced)
    with socket.create_connection(("127.0.0.1", exporter.port)):
        closer = threading.Thread(target=rx.close, daemon=True)
        closer.start()
        closer.join(20)
        assert not closer.is_alive()


def test_a_port_that_the_server_s_own_thread_gives_back_can_be_used_at_once(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, closed = free_port(), threading.Event()
    rx = aiflow.Receiver(endpoint, metrics_port=port)
    (exporter,) = exposition._exporters.values()
    serve, shutdown = exporter._server.get_request, exporter._server.shutdown

    def collect() -> Any:
        rx.close()  # as a finalizer does
        closed.set()
        return serve()

    def slowly() -> None:
        time.sleep(0.5)
        shutdown()

    monkeypatch.setattr(exporter._server, "get_request", collect)
    monkeypatch.setattr(exporter._server, "shutdown", slowly)
    with socket.create_connection(("127.0.0.1", port)):
        assert closed.wait(PATIENCE_S)
        aiflow.Receiver(endpoint, metrics_port=port).close()
    assert exposition._closing == []


def test_a_free_port_is_told_in_the_log(endpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "aiflow.observe"), aiflow.Receiver(endpoint, metrics_port=0):
        (told,) = re.findall(r"metrics at (http://127.0.0.1:[1-9][0-9]*/metrics)", caplog.text)
        assert "aiflow_memory_limit_bytes" in fetch(told)


def test_the_command_s_errors_name_its_option(aiflow: Any) -> None:
    for address in ("nowhere", "192.0.2.1:9100"):
        _, stderr = aiflow("metrics", "--listen", address).text(2)
        assert "--listen " in stderr
        assert "metrics_port" not in stderr


# ---- a real Prometheus ----


def send_slices(pipe: Connection, endpoint: str, count: int) -> None:
    """A sender in a process of its own. It goes on slowly until it is told to end."""
    with aiflow.Sender(endpoint, name="far", link_speed="10gbit") as tx:
        reports = [tx.send([np.zeros(NBYTES, np.uint8)] * 3, timeout=PATIENCE_S) for _ in range(count)]
        pipe.send([(report.elements, report.nbytes, report.frames_sent) for report in reports])
        while not pipe.poll(0.2):
            tx.send([np.zeros(NBYTES, np.uint8)], timeout=PATIENCE_S)
        pipe.recv()


class Prometheus:
    """A server that scrapes some ports each second. Its files are in a directory of the test."""

    def __init__(self, program: str, directory: Path, targets: list[int]) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        hosts = [f"127.0.0.1:{target}" for target in targets]
        config = directory / "prometheus.yml"
        config.write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
                    "scrape_configs": [{"job_name": "aiflow", "static_configs": [{"targets": hosts}]}],
                }
            )
        )
        self.log = (directory / "log").open("w")
        self.process = subprocess.Popen(
            [
                program,
                f"--config.file={config}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=self.log,
            stderr=self.log,
        )

    def query(self, expression: str) -> list[Any]:
        """The series of an expression now; [] while the server starts."""
        try:
            answer = json.loads(fetch(f"{self.url}/api/v1/query?" + urllib.parse.urlencode({"query": expression})))
        except OSError:
            assert self.process.poll() is None, Path(self.log.name).read_text()
            return []
        assert answer["status"] == "success", answer
        series: list[Any] = answer["data"]["result"]
        return series

    def value(self, expression: str) -> float:
        """The value of an expression with one series; NaN for none."""
        series = self.query(expression)
        return float(series[0]["value"][1]) if series else float("nan")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE_S)
        self.log.close()


@contextmanager
def prometheus(directory: Path, *targets: int) -> Iterator[Prometheus]:
    program = shutil.which("prometheus", path=os.pathsep.join([os.environ.get("PATH", ""), str(PROGRAMS)]))
    if program is None:
        says = pytest.fail if os.environ.get("AIFLOW_PROMETHEUS") == "required" else pytest.skip
        says("needs prometheus: tools/setup.sh dev unpacks it on a Debian")
    server = Prometheus(program, directory, list(targets))
    try:
        yield server
    finally:
        server.close()


def expressions() -> list[str]:
    """Every expression of the dashboard, with its variables set."""
    document = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in document["panels"] for target in panel["targets"]]
    values = {"$__rate_interval": "10s", "$pid": ".*", "$name": ".*"}
    for variable, value in values.items():
        found = [expression.replace(variable, value) for expression in found]
    assert not [expression for expression in found if "$" in expression]
    return found


@pytest.mark.slow
def test_prometheus_sees_what_the_reports_say(endpoint: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    outside = free_port()
    program = request.getfixturevalue("aiflow")("metrics", "--listen", outside)
    with (
        aiflow.Receiver(endpoint, name="near") as rx,
        Peer(send_slices, endpoint, 8) as peer,
        prometheus(tmp_path, outside) as server,
    ):
        for _ in range(8):
            rx.recv(timeout=PATIENCE_S).release()
        reports = peer.hear()
        sums = [sum(column) for column in zip(*reports, strict=True)]

        def go_on() -> bool:
            for time_slice in iter(lambda: take(rx), None):
                time_slice.release()
            return not missing()

        def missing() -> list[str]:
            return [each for each in expressions() if not server.query(each)]

        assert settle(go_on, PATIENCE_S), missing()
        peer.tell("end")
        for time_slice in iter(lambda: take(rx, 1), None):
            time_slice.release()
        peer.ends()
        # The sender's last series are in the store: what it delivered after the first eight has one element each.
        more = server.value('max_over_time(aiflow_slices_total{name="far"}[5m])') - 8
        assert more > 0
        assert server.value('max_over_time(aiflow_elements_total{name="far"}[5m])') == sums[0] + more
        assert server.value('max_over_time(aiflow_bytes_total{name="far"}[5m])') == sums[1] + NBYTES * more
        wait_for(lambda: server.value('aiflow_bytes_total{name="near"}') == rx.counters["bytes"], "the newest scrape")
        assert server.value('aiflow_slices_total{name="near"}') == rx.counters["slices"]
    program.process.terminate()
    assert program.process.wait(PATIENCE_S) == 0


def take(rx: aiflow.Receiver, timeout: float = 0.1) -> Any:
    try:
        return rx.recv(timeout=timeout)
    except aiflow.SliceTimeout:
        return None

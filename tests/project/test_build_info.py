"""What a build says of itself: `aiflow.build_info` and ``aiflow doctor``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import aiflow


def test_this_build_says_what_it_is_made_of() -> None:
    build = aiflow.build_info()
    assert build["aiflow"] == aiflow.__version__
    assert build["dpdk_from"] == "system"
    asked = subprocess.run(["pkg-config", "--modversion", "libdpdk"], capture_output=True, text=True)
    assert build["dpdk"] == asked.stdout.strip()
    assert {"net_memif", "net_ring", "net_vhost", "net_af_packet"} <= set(build["drivers"])
    assert build["limited_api"] is None
    assert build["compiler"]


DOCTOR = [sys.executable, "-m", "aiflow", "doctor"]


def test_doctor_shows_the_build(tmp_path: Path) -> None:
    names = {**os.environ, "AIFLOW_RUNTIME_DIR": str(tmp_path / "names")}
    if len(names["AIFLOW_RUNTIME_DIR"]) > 40:
        del names["AIFLOW_RUNTIME_DIR"]
    shown = subprocess.run(DOCTOR, env=names, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    for said in (f"aiflow {aiflow.__version__}", f"DPDK {aiflow.build_info()['dpdk']}, of the system", "net_memif"):
        assert said in shown.stdout


def test_doctor_fails_where_local_endpoints_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    broken = {**os.environ, "AIFLOW_RUNTIME_DIR": "/proc/self/none"}
    shown = subprocess.run([*DOCTOR, "--json"], env=broken, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 1
    assert '"runtime_directory": null' in shown.stdout
    assert '"dpdk_from": "system"' in shown.stdout


def test_an_endpoint_without_its_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from aiflow import _build
    from aiflow._ports.xdp_probe import try_xdp_socket
    from aiflow.config import parse_endpoint

    monkeypatch.setattr(_build, "_drivers", lambda: ("net_memif",))
    with pytest.raises(aiflow.PortError, match="has no AF_XDP driver"):
        try_xdp_socket(parse_endpoint("af_xdp:eth0"))

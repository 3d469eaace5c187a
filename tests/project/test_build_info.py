"""What a build says of itself: `aiflow.build_info` and ``aiflow doctor``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import aiflow
from aiflow.errors import PortError


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


@pytest.mark.parametrize("command", [["doctor"], ["ports"], ["send", "aiflow", "--ports", "local:x"]])
def test_a_dpdk_that_is_gone_is_named_with_advice(tmp_path: Path, command: list[str]) -> None:
    """As after an upgrade of the system: the loader finds another name than the one that the module needs."""
    package = shutil.copytree(Path(aiflow.__file__).parent, tmp_path / "aiflow", symlinks=True)
    for module in package.glob("_*.so"):
        content = module.read_bytes()
        module.unlink()  # a copy may share its file with the original
        module.write_bytes(content.replace(b"librte_eal.so.", b"librte_eax.so."))
    names = {**os.environ, "PYTHONPATH": str(tmp_path)}
    words = [sys.executable, "-P", "-m", "aiflow", *command]
    shown = subprocess.run(words, env=names, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 1, shown.stderr
    assert "librte_eax.so" in shown.stderr
    assert "LD_LIBRARY_PATH" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_another_import_error_leaves_a_document_too(tmp_path: Path) -> None:
    package = shutil.copytree(Path(aiflow.__file__).parent, tmp_path / "aiflow", symlinks=True)
    (package / "_eal_args.py").unlink()
    words = [sys.executable, "-P", "-m", "aiflow", "doctor", "--json"]
    names = {**os.environ, "PYTHONPATH": str(tmp_path)}
    shown = subprocess.run(words, env=names, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 1, shown.stderr
    assert "_eal_args" in json.loads(shown.stdout)["error"]["message"]
    assert "Traceback" in shown.stderr


@pytest.mark.parametrize(("private", "library"), [(False, "librte_eal.so.23.0"), (True, "libaiflow_dpdk-22.11.so")])
def test_a_replaced_dpdk_asks_for_a_new_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, private: bool, library: str
) -> None:
    from aiflow import _build

    maps = tmp_path / "maps"
    maps.write_text(f"7f00-7f01 r-xp 0 08:01 1  /usr/lib/{library} (deleted)\n")
    monkeypatch.setattr(_build, "_MAPS", maps)
    monkeypatch.setattr(_build._eal, "compiled", lambda: {"private": private, "plugins": None})
    with pytest.raises(PortError, match="restart it"):
        _build._libraries()


def test_a_private_dpdk_counts_no_drivers_of_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from aiflow import _build

    for name in ("libaiflow_dpdk-22.11.so", "librte_eal.so.23", "librte_net_mlx5.so.23"):
        (tmp_path / name).touch()
    maps = tmp_path / "maps"
    maps.write_text("".join(f"7f00-7f01 r-xp 0 08:01 1  {path}\n" for path in tmp_path.glob("lib*")))
    monkeypatch.setattr(_build, "_MAPS", maps)
    monkeypatch.setattr(_build._eal, "compiled", lambda: {"private": True, "plugins": str(tmp_path)})
    assert _build._libraries() == {tmp_path / "libaiflow_dpdk-22.11.so"}


def test_doctor_fails_where_local_endpoints_cannot_be() -> None:
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

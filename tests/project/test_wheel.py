"""The wheel with DPDK inside, on a machine that has a DPDK of its own. ``make wheel-test`` makes it, and runs this.

Elsewhere all skip without a wheel of this tree: one that is older than a source file is not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import wheel_check  # noqa: E402

DRIVERS = {
    *("net_memif", "net_ring", "net_null", "net_tap", "net_af_packet", "net_vhost", "net_virtio", "net_virtio_user"),
    *("net_e1000_igb", "net_e1000_em", "net_ixgbe", "net_i40e", "net_ice", "net_iavf"),
    *("net_ena", "net_gve", "net_vmxnet3", "net_bnxt"),
}


@pytest.fixture(scope="module")
def wheel() -> Path:
    found = sorted((ROOT / "build/wheel/dist").glob("*-abi3-*.whl"))
    if os.environ.get("AIFLOW_WHEEL") != "required":
        if not found:
            pytest.skip("no wheel in build/wheel/dist: make wheel")
        sources = [path for name in ("aiflow", "include") for path in (ROOT / name).rglob("*.[hp]*")]
        made = found[0].stat().st_mtime
        if any(path.stat().st_mtime > made for path in sources if "__pycache__" not in path.parts):
            pytest.skip("the wheel in build/wheel/dist is older than this tree: make wheel")
    assert found, "no wheel in build/wheel/dist: make wheel"
    return found[0]


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)
    return directory


def run(code: str, site: Path, **variables: str) -> str:
    """Run a program with the wheel's aiflow, and numpy of this environment."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "PYTHONPATH": str(site), **variables},
        cwd=site,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, (done.returncode, done.stdout[-1000:], done.stderr[-3000:])
    return done.stdout


def test_it_is_one_small_wheel_with_all_licences(wheel: Path) -> None:
    assert wheel_check.faults(wheel) == []


@pytest.mark.parametrize("lost", ["libnuma/copyright", "dpdk/copyright", "libnuma/LGPL-2.1", "dpdk/net_gve.licence"])
def test_a_lost_licence_is_found(site: Path, tmp_path: Path, lost: str) -> None:
    shutil.copytree(site, tmp_path / "site")
    (path,) = (tmp_path / "site").glob(f"*.dist-info/licenses/{lost}")
    path.unlink()
    (fault,) = wheel_check.licence_faults(tmp_path / "site")
    assert "it lacks" in fault


def test_it_says_what_is_inside(site: Path) -> None:
    code = """
import aiflow
build = aiflow.build_info()
assert aiflow.__file__.startswith({site!r}), aiflow.__file__
assert (build["dpdk_from"], build["limited_api"]) == ("wheel", "3.11"), build
print(*build["drivers"])
"""
    drivers = set(run(code.format(site=str(site)), site).split())
    assert drivers >= DRIVERS
    assert not drivers & {"net_pcap", "net_mlx5", "net_af_xdp"}


def test_no_library_of_the_system_comes_with_it(site: Path) -> None:
    code = """
import importlib, pathlib, aiflow
for path in pathlib.Path(aiflow.__file__).parent.glob("_*.so"):
    importlib.import_module("aiflow." + path.name.partition(".")[0])
with aiflow.pair() as (tx, rx):
    tx.send([b"x" * 100000], wait=False)
    assert rx.recv(timeout=30)[0].nbytes == 100000
print(*{line.split()[-1] for line in open("/proc/self/maps") if "/" in line})
"""
    mapped = [path for path in run(code, site).split() if "numpy" not in path]
    of_dpdk = [path for path in mapped if any(name in path for name in ("librte", "libnuma", "libbpf", "libxdp"))]
    assert any("libnuma" in path for path in of_dpdk)
    assert all(path.startswith(str(site)) for path in of_dpdk), of_dpdk


# The system's DPDK starts, opens a port, and keeps it while ours carries a slice.
BOTH = """
import ctypes, glob, os, threading
import aiflow

directory = {directory!r}
def load(name):
    return ctypes.CDLL(sorted(glob.glob(directory + "/librte_" + name + ".so.*"))[0], mode=ctypes.RTLD_GLOBAL)
eal, ethdev = load("eal"), load("ethdev")
for name in ("bus_vdev", "mempool_ring", "net_null"):
    load(name)

def start():
    words = ["other", "--no-huge", "--no-shconf", "--no-pci", "--no-telemetry", "-m", "64", "--file-prefix",
             "other" + str(os.getpid())]
    argv = (ctypes.c_char_p * (len(words) + 1))(*(word.encode() for word in words), None)
    assert eal.rte_eal_init(len(words), argv) >= 0
    assert eal.rte_eal_hotplug_add(b"vdev", b"net_null0", b"") == 0
def exchange():
    with aiflow.pair() as (tx, rx):
        tx.send([bytes(range(256)) * 4000], wait=False)
        with rx.recv(timeout=30) as time_slice:
            assert bytes(time_slice[0]) == bytes(range(256)) * 4000
first, second = {order}
first()
second()
exchange()
from aiflow import _eal
assert ethdev.rte_eth_dev_count_avail() == 1
assert _eal.nb_ports() == 0
assert aiflow.build_info()["dpdk_from"] == "wheel"
print("both")
"""


def system_directory() -> Path:
    asked = subprocess.run(["pkg-config", "--variable=libdir", "libdpdk"], capture_output=True, text=True)
    if asked.returncode != 0 or not sorted(Path(asked.stdout.strip()).glob("librte_eal.so.*")):
        pytest.skip("the system has no DPDK of its own here")
    return Path(asked.stdout.strip())


@pytest.mark.parametrize("order", ["start, exchange", "exchange, start"])
def test_two_dpdks_live_in_one_process(site: Path, order: str) -> None:
    code = BOTH.format(directory=str(system_directory()), order=order)
    assert run(code, site).strip() == "both"


def test_a_preloaded_dpdk_does_not_take_our_calls(site: Path) -> None:
    directory = system_directory()
    names = ["eal", "ethdev", "mempool", "mempool_ring", "mbuf", "net_memif", "net_ring"]
    libraries = [sorted(directory.glob(f"librte_{name}.so.*"))[0] for name in names]
    code = BOTH.format(directory=str(directory), order="exchange, start")
    assert run(code, site, LD_PRELOAD=":".join(map(str, libraries))).strip() == "both"


def test_ours_loads_no_plug_ins_of_the_system(site: Path) -> None:
    code = """
import ctypes, glob
import aiflow
ctypes.CDLL(sorted(glob.glob({directory!r} + "/librte_eal.so.*"))[0], mode=ctypes.RTLD_GLOBAL)
with aiflow.pair():
    print(sum("librte_net_" in line for line in open("/proc/self/maps")))
"""
    assert run(code.format(directory=str(system_directory())), site).strip() == "0"


def test_the_page_of_drivers_says_what_is_in_the_wheel(site: Path) -> None:
    page = (ROOT / "docs/drivers.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if "| net_" in line]
    promised = {inside: set() for inside in ("yes", "no")}
    for names, *cells in rows:
        (inside,) = {"yes", "no"} & set(cells[:-1])
        promised[inside] |= set(names.split(", "))
    found = set(run("import aiflow; print(*aiflow.build_info()['drivers'])", site).split())
    assert len(promised["yes"]) > 10
    assert promised["yes"] <= found
    assert not promised["no"] & found

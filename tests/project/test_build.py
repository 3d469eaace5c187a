"""The build: pkg-config's flags, the one message without DPDK, what the source distribution and the wheel carry."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import dpdk_flags  # noqa: E402
import requirements  # noqa: E402

# What Debian 12's libdpdk 22.11 prints, shortened; the two-word -include is what trips simple parsers.
CFLAGS = "-I/usr/include/dpdk -I /usr/include/libnl3 -include rte_config.h -march=corei7 -DALLOW_X=1 -DPLAIN -UNDEBUG"
LIBS = "-L/opt/dpdk/lib -Wl,--as-needed -lrte_node -lrte_eal -Wl,-rpath,'/a b' -pthread -lbsd"


@pytest.mark.unit
def test_flags_are_sorted_and_the_rest_passes_untouched() -> None:
    flags = dpdk_flags.sort_flags(CFLAGS, LIBS)
    assert flags.include_dirs == ["/usr/include/dpdk", "/usr/include/libnl3"]
    assert flags.define_macros == [("ALLOW_X", "1"), ("PLAIN", None)]
    assert flags.undef_macros == ["NDEBUG"]
    assert flags.compile_args == ["-include", "rte_config.h", "-march=corei7"]
    assert flags.library_dirs == ["/opt/dpdk/lib"]
    assert flags.libraries == ["rte_node", "rte_eal", "bsd"]
    assert flags.link_args == ["-Wl,--as-needed", "-Wl,-rpath,/a b", "-pthread"]


@pytest.mark.unit
def test_unknown_flags_keep_their_order() -> None:
    flags = dpdk_flags.sort_flags("-isystem /x --param max=1 -Xfoo bar", "")
    assert flags.compile_args == ["-isystem", "/x", "--param", "max=1", "-Xfoo", "bar"]


def fake_pkg_config(directory: Path, version: str, libs: str) -> str:
    script = directory / "pkg-config"
    answers = f'--modversion) echo {version};; --libs) echo "{libs}";; *) echo -DX;;'
    script.write_text(f"#!/bin/sh\ncase $1 in {answers} esac\n")
    script.chmod(0o755)
    return str(script)


@pytest.mark.unit
@pytest.mark.parametrize("version", ["22.11.11", "23.11.0", "24.11.1", "25.11.0", "25.11.0-rc1"])
def test_net_ring_is_linked_once_with_every_supported_dpdk(tmp_path, monkeypatch, version) -> None:
    for libs in ("-lrte_eal", "-lrte_net_ring -lrte_eal"):
        monkeypatch.setenv("PKG_CONFIG", fake_pkg_config(tmp_path, version, libs))
        assert dpdk_flags.dpdk_flags().libraries == ["rte_net_ring", "rte_eal"]


@pytest.mark.unit
def test_a_dpdk_too_old_is_refused_by_name(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PKG_CONFIG", fake_pkg_config(tmp_path, "21.11.2", ""))
    with pytest.raises(SystemExit, match=r"21\.11\.2 is too old"):
        dpdk_flags.dpdk_flags()


@pytest.mark.unit
def test_extras_are_spelt_out() -> None:
    dev = requirements.requirements("dev")
    assert any(line.startswith("pytest-benchmark") for line in dev)  # through aiflow-dpdk[measure]
    assert not any(line.startswith("aiflow") for line in dev)
    assert set(requirements.requirements("demo")) <= set(dev)


@pytest.mark.unit
def test_version_is_said_once() -> None:
    import aiflow

    assert aiflow.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def copy_of_checkout(directory: Path) -> Path:
    skip = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.so", "*.egg-info", "__pycache__", ".*_cache")
    return Path(shutil.copytree(ROOT, directory / "checkout", ignore=skip))


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.slow
def test_without_libdpdk_one_message_names_the_packages(tmp_path) -> None:
    checkout = copy_of_checkout(tmp_path)
    built = run(sys.executable, "setup.py", "-q", "build_ext", cwd=checkout, PKG_CONFIG="false")
    assert built.returncode != 0
    assert "Traceback" not in built.stderr
    assert "apt install libdpdk-dev" in built.stderr
    assert "dnf install dpdk-devel" in built.stderr


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """The source distribution, made where neither DPDK nor a compiler can be found."""
    directory = tmp_path_factory.mktemp("sdist")
    checkout = copy_of_checkout(directory)
    built = run(
        sys.executable,
        "-m",
        "build",
        "--sdist",
        "--no-isolation",
        "--outdir",
        directory,
        cwd=checkout,
        PKG_CONFIG="false",
        CC="false",
    )
    assert built.returncode == 0, built.stderr
    (archive,) = directory.glob("*.tar.gz")
    return archive


@pytest.mark.slow
def test_sdist_carries_all_sources_and_nothing_built(sdist) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        str(path.relative_to(ROOT))
        for folder, pattern in (
            ("aiflow", "*.py"),
            ("aiflow", "*.pyx"),
            ("aiflow", "*.pxd"),
            ("aiflow", "*.pyi"),
            ("include", "*.h"),
            ("tests", "*.py"),
            ("tools", "*"),
        )
        for path in (ROOT / folder).rglob(pattern)
        if path.is_file() and "__pycache__" not in path.parts
    }
    wanted |= {"setup.py", "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile"}
    assert wanted <= names, sorted(wanted - names)
    assert not [name for name in names if re.search(r"\.so$|\.pyc$|^aiflow/.*\.c$|^build/", name)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_wheel_from_the_sdist_installs_and_imports(sdist, tmp_path) -> None:
    built = run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-build-isolation",
        "--no-deps",
        "-w",
        tmp_path,
        sdist,
        cwd=tmp_path,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("aiflow_dpdk-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(site)
    compiled = {name.partition(".")[0] for name in names if name.endswith(".so")}
    assert compiled == {str(path.relative_to(ROOT).with_suffix("")) for path in (ROOT / "aiflow").rglob("*.pyx")}
    for wanted in ("aiflow/py.typed", "aiflow/_eal.pyi", "aiflow/_eal.pxd", "aiflow/include/aiflow/wire/frame.h"):
        assert wanted in names
    code = "import aiflow, importlib, sys; list(map(importlib.import_module, sys.argv[1:])); print(aiflow.__file__)"
    modules = [name.replace("/", ".") for name in compiled]
    ran = run(sys.executable, "-P", "-c", code, *modules, cwd=tmp_path, PYTHONPATH=str(site))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == str(site / "aiflow" / "__init__.py")


@pytest.mark.slow
def test_no_module_loads_more_of_dpdk_than_it_uses() -> None:
    """--as-needed took effect: forty unused libraries would cost `import aiflow` its 50 ms."""
    import aiflow._eal_device

    import aiflow._eal

    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf (binutils) is not installed")
    needed = set()
    for module in aiflow._eal, aiflow._eal_device:
        dynamic = run(readelf, "-d", module.__file__, cwd=ROOT).stdout
        needed |= set(re.findall(r"NEEDED.*\[librte_(\w+)\.so", dynamic))
    assert {"eal", "ethdev", "net_ring"} <= needed
    assert "pipeline" not in needed


@pytest.mark.unit
def test_sources_without_a_build_say_so(tmp_path: Path) -> None:
    """A program that is saved in a clone imports the clone, not the installed aiflow."""
    shutil.copytree(ROOT / "aiflow", tmp_path / "aiflow", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    command = [sys.executable, "-c", "import aiflow\naiflow.Sender"]
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONSAFEPATH", "PYTHONPATH")}
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert str(tmp_path / "aiflow") in last
    assert "another directory" in last
    assert "make setup" in last

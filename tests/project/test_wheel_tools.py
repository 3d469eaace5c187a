"""The tools that make and check a wheel, without making one: tests/project/test_wheel.py looks at the whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import dpdk_flags  # noqa: E402
import private_dpdk  # noqa: E402
import wheel_check  # noqa: E402
import wheel_licences  # noqa: E402


@pytest.mark.unit
@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("aiflow_dpdk.libs/libnuma-6fe31254.so.1.0.0", "libnuma"),
        ("aiflow_dpdk.libs/libnl-route-3-6fe31254.so.200", "libnl-route-3"),
        ("aiflow/libaiflow_dpdk-22.11.11.so", "dpdk"),
        ("aiflow/_eal.abi3.so", None),
        ("aiflow/__init__.py", None),
    ],
)
def test_foreign_libraries_are_told_from_ours(path: str, name: str | None) -> None:
    assert wheel_licences.library_of(path) == name


@pytest.mark.unit
def test_an_unknown_library_stops_the_wheel() -> None:
    with pytest.raises(SystemExit, match="libsurprise"):
        wheel_licences.licences_of("libsurprise")


@pytest.mark.unit
def test_the_metadata_names_every_licence() -> None:
    before = "Name: x\nLicense-Expression: Apache-2.0\nLicense-File: LICENSE\nRequires-Dist: y\n\nLicense-File: text"
    after = wheel_licences.with_licences(before, ["libnuma", "dpdk"], ["libnuma/copyright"])
    assert "License-Expression: Apache-2.0 AND BSD-3-Clause AND LGPL-2.1-only AND MIT\n" in after
    assert "License-File: LICENSE\nLicense-File: libnuma/copyright\nRequires-Dist" in after
    assert after.endswith("\n\nLicense-File: text")


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """An unpacked wheel in names and licences only."""
    licences = tmp_path / "aiflow_dpdk-1.dist-info" / "licenses"
    for file, text in {
        "LICENSE": "ours",
        "dpdk/copyright": "BSD",
        "dpdk/net_gve.licence": "MIT",
        "libnuma/copyright": "see /usr/share/common-licenses/LGPL-2.1.",
        "libnuma/LGPL-2.1": "the text",
    }.items():
        (licences / file).parent.mkdir(parents=True, exist_ok=True)
        (licences / file).write_text(text)
    for library in ("aiflow_dpdk.libs/libnuma-6fe31254.so.1.0.0", "aiflow/libaiflow_dpdk-22.11.11.so"):
        (tmp_path / library).parent.mkdir()
        (tmp_path / library).touch()
    return tmp_path


@pytest.mark.unit
def test_a_wheel_with_all_its_licences_passes(unpacked: Path) -> None:
    assert list(wheel_check.licence_faults(unpacked)) == []


@pytest.mark.unit
@pytest.mark.parametrize(
    "lost", ["LICENSE", "dpdk/copyright", "dpdk/net_gve.licence", "libnuma/copyright", "libnuma/LGPL-2.1"]
)
def test_every_missing_licence_is_a_fault(unpacked: Path, lost: str) -> None:
    (unpacked / "aiflow_dpdk-1.dist-info" / "licenses" / lost).unlink()
    assert len(list(wheel_check.licence_faults(unpacked))) == 1


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("aiflow_dpdk-1-cp311-abi3-manylinux_2_34_x86_64.whl", None),
        ("aiflow_dpdk-1-cp311-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", None),
        ("aiflow_dpdk-1-cp313-cp313-manylinux_2_34_x86_64.whl", "not cp311-abi3"),
        ("aiflow_dpdk-1-cp312-abi3-manylinux_2_34_x86_64.whl", "not cp311-abi3"),
        ("aiflow_dpdk-1-cp313-cp313t-manylinux_2_34_x86_64.whl", "not cp311-abi3"),
        ("aiflow_dpdk-1-cp311-abi3-manylinux_2_41_x86_64.whl", "Debian 12"),
        ("aiflow_dpdk-1-cp311-abi3-linux_x86_64.whl", "Debian 12"),
    ],
)
def test_tags_are_checked(tmp_path: Path, name: str, fault: str | None) -> None:
    (tmp_path / name).touch()
    found = list(wheel_check.name_faults(tmp_path / name))
    assert (fault in found[0]) if fault else not found


@pytest.mark.unit
def test_modules_of_another_tree_are_faults(tmp_path: Path) -> None:
    for file in ("tree/aiflow/a.py", "tree/aiflow/_b.pyx", "site/aiflow/_b.abi3.so", "site/aiflow/old.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    found = list(wheel_check.module_faults(tmp_path / "site", tmp_path / "tree"))
    assert found == ["aiflow/a is missing", "aiflow/old is not of this tree"]


@pytest.mark.unit
def test_a_private_dpdk_is_linked_again_when_an_archive_is_another(tmp_path: Path) -> None:
    archive = tmp_path / "librte_x.a"
    archive.write_text("one")
    before = private_dpdk.stamp_of([archive], ["gcc"])
    assert private_dpdk.stamp_of([archive], ["gcc"]) == before
    times = archive.stat().st_mtime_ns
    archive.write_text("two")
    os.utime(archive, ns=(times, times))  # as a package's files have it
    assert private_dpdk.stamp_of([archive], ["gcc"]) != before
    assert private_dpdk.stamp_of([archive], ["clang"]) != before


@pytest.mark.unit
def test_what_the_system_would_have_to_give_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "lib.c").write_text("int rte_x(void) { return 1; }\n")
    target = tmp_path / "site" / "libaiflow_dpdk-1.so"
    target.parent.mkdir()
    command = ["gcc", "-shared", "-fPIC", "-o", target, tmp_path / "lib.c", "-Wl,--no-as-needed", "-lnuma"]
    subprocess.run(command, check=True)
    found = list(wheel_check.library_faults(target.parent))
    assert any("needs libnuma.so.1 of the system" in fault for fault in found)
    assert any("rte_x" in fault for fault in found)


@pytest.mark.unit
@pytest.mark.parametrize("choice", ["private:/no/such/file", "private", "static", "system:/x"])
def test_an_unknown_choice_of_dpdk_is_refused(monkeypatch: pytest.MonkeyPatch, choice: str) -> None:
    monkeypatch.setenv("AIFLOW_DPDK", choice)
    with pytest.raises(SystemExit, match="AIFLOW_DPDK"):
        dpdk_flags.private_library()

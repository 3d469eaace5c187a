"""Put the licence of every library in a wheel beside it.

    python tools/wheel_licences.py WHEEL DIRECTORY

writes the wheel with the licences to DIRECTORY. Those of DPDK and of each library that auditwheel added come from
Debian's packages (``/usr/share/doc/PACKAGE/copyright``), with the common licences that they refer to.
`tools/wheel_check.py` fails where one is missing.
"""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from dpdk_flags import pkg_config

EXPRESSIONS = {"dpdk": "BSD-3-Clause AND MIT", "libnuma": "LGPL-2.1-only"}
"""What this project has looked up, for the wheel's metadata. A library that is not here stops the build."""

MISSED = {"dpdk": ["net_gve.licence"]}
"""Licences of what we link that a copyright file does not mention: files of this directory."""

MEANT = {"libnuma": ["LGPL-2.1"]}
"""Common licences that a copyright file names without their version."""

COMMON = Path("/usr/share/common-licenses")
NOT_DEBIANS = """\
aiflow: {path} belongs to no package of Debian: a wheel needs Debian's own DPDK, whose licences and source it names."""
UNKNOWN = """\
aiflow: the wheel would bundle {name}, whose licence is not known here. Choose drivers that do without it, or add its
licence to EXPRESSIONS in tools/wheel_licences.py."""


def library_of(path: str) -> str | None:
    """Name of the foreign library in a file of a wheel, such as ``"libnuma"``; None for what is ours.

    auditwheel calls its copies ``libnuma-6fe31254.so.1.0.0``.
    """
    name = PurePosixPath(path).name
    if name.startswith("libaiflow_dpdk"):
        return "dpdk"
    found = re.fullmatch(r"(lib.+?)(-[0-9a-f]{8})?\.so[.\d]*", name)
    return found[1] if found and PurePosixPath(path).parent.name.endswith(".libs") else None


def common_licences(name: str, copyright_text: str) -> list[str]:
    """Common licences of Debian that must go with a copyright file."""
    mentioned = re.findall(rf"{COMMON}/([\w.+-]*\w)", copyright_text)
    return sorted({*mentioned, *MEANT.get(name, [])})


def _dpkg(*arguments: str) -> str:
    return subprocess.run(["dpkg-query", *arguments], check=True, capture_output=True, text=True).stdout


def package_of(name: str) -> str:
    """Debian's package of a library."""
    if name == "dpdk":
        path = f"{pkg_config('--variable=libdir', 'libdpdk')}/librte_eal.a"
        try:
            return _dpkg("-S", path).partition(":")[0]
        except subprocess.CalledProcessError:
            raise SystemExit(NOT_DEBIANS.format(path=path)) from None
    return min(line.partition(":")[0] for line in _dpkg("-S", f"*/{name}.so.*").splitlines())


def licences_of(name: str) -> dict[str, str]:
    """File name → text: the licence of a library, what it refers to, and where its source is."""
    if name not in EXPRESSIONS:
        raise SystemExit(UNKNOWN.format(name=name))
    package = package_of(name)
    copyright_text = Path("/usr/share/doc", package, "copyright").read_text()
    source, version = _dpkg("-W", "-f", "${source:Package} ${source:Version}\n", package).split()[:2]
    texts = {each: (COMMON / each).read_text() for each in common_licences(name, copyright_text)}
    texts |= {file: Path(__file__).with_name(file).read_text() for file in MISSED.get(name, [])}
    texts["SOURCE"] = f"Compiled by Debian from its source package {source} {version}: apt-get source {source}\n"
    return {"copyright": copyright_text, **texts}


def with_licences(metadata: str, names: Iterable[str], files: Iterable[str]) -> str:
    """The METADATA of a wheel that also contains these libraries."""
    wanted = " AND ".join(sorted({each for name in names for each in EXPRESSIONS[name].split(" AND ")}))
    metadata = re.sub(r"^License-Expression: .*$", rf"\g<0> AND {wanted}", metadata, count=1, flags=re.M)
    lines = "".join(f"License-File: {file}\n" for file in files)
    return re.sub(r"^License-File: LICENSE\n", rf"\g<0>{lines}", metadata, count=1, flags=re.M)


def write(target: Path, files: dict[str, bytes], attributes: dict[str, int]) -> None:
    """Write a wheel with a new RECORD."""
    (record,) = (name for name in files if name.endswith(".dist-info/RECORD"))
    lines = []
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in files.items():
            if name == record:
                continue
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = attributes.get(name, 0o100644 << 16)
            archive.writestr(info, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            lines.append(f"{name},sha256={digest},{len(content)}\n")
        archive.writestr(zipfile.ZipInfo(record, (1980, 1, 1, 0, 0, 0)), "".join([*lines, f"{record},,\n"]))


def main(wheel: Path, directory: Path) -> Path:
    """Copy the wheel, with licences."""
    with zipfile.ZipFile(wheel) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}
        attributes = {info.filename: info.external_attr for info in archive.infolist()}
    (metadata,) = (name for name in files if name.endswith(".dist-info/METADATA"))
    info = metadata.rpartition("/")[0]
    names = sorted({name for path in files if (name := library_of(path))})
    texts = {f"{name}/{file}": text for name in names for file, text in licences_of(name).items()}
    files |= {f"{info}/licenses/{file}": text.encode() for file, text in texts.items()}
    files[metadata] = with_licences(files[metadata].decode(), names, texts).encode()
    target = directory / wheel.name
    write(target, files, attributes)
    return target


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2])))

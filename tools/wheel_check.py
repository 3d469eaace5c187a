"""Check a wheel with DPDK inside: what it says of itself, what it needs of a system, whose licences it carries.

    python tools/wheel_check.py WHEEL [PRIVATE-DPDK]

- For Python 3.11 and later (cp311-abi3); for glibc 2.34 or older; under 10 MB.
- It has the modules of this tree, no others, and the given private DPDK by name.
- Its libraries need nothing but glibc and each other.
- The private DPDK shows only symbols that have its own version.
- Every foreign library has its licence beside it, and every common licence that this one refers to.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from wheel_licences import MISSED, common_licences, library_of

ROOT = Path(__file__).resolve().parents[1]

MAX_BYTES = 10_000_000
NEWEST_GLIBC = (2, 34)
GLIBC = {"libc.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0", "ld-linux-x86-64.so.2"}


def _output(*command: str | Path) -> str:
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout


def name_faults(wheel: Path) -> Iterator[str]:
    """Faults of the wheel's name and size."""
    _, _, python, abi, platforms = wheel.stem.split("-")
    if (python, abi) != ("cp311", "abi3"):
        yield f"its tag is {python}-{abi}, not cp311-abi3"
    versions = [tuple(map(int, found)) for found in re.findall(r"manylinux_(\d+)_(\d+)_", platforms)]
    if not versions or min(versions) > NEWEST_GLIBC:
        yield f"its platform is {platforms}, not manylinux_2_34 or older: build it on Debian 12"
    if wheel.stat().st_size >= MAX_BYTES:
        yield f"it has {wheel.stat().st_size} bytes: the limit is {MAX_BYTES}"


def module_faults(site: Path, tree: Path = ROOT) -> Iterator[str]:
    """Modules that an unpacked wheel has and this tree has not, and the reverse: a build directory keeps old ones."""
    wanted = {path.relative_to(tree).with_suffix("") for path in (tree / "aiflow").rglob("*.py*") if _is_source(path)}
    found = {_without_suffixes(path.relative_to(site)) for path in (site / "aiflow").rglob("*") if _is_module(path)}
    for name in sorted(found ^ wanted):
        yield f"{name} is {'not of this tree' if name in found else 'missing'}"
    for path in (site / "aiflow").rglob("*.cpython-*.so"):
        yield f"{path.name} is for one version of Python"


def _is_source(path: Path) -> bool:
    return path.suffix in (".py", ".pyx")


def _is_module(path: Path) -> bool:
    return path.suffix == ".py" or path.name.endswith(".abi3.so")


def _without_suffixes(path: Path) -> Path:
    return path.with_name(path.name.partition(".")[0])


def library_faults(site: Path) -> Iterator[str]:
    """Faults of the libraries of an unpacked wheel."""
    libraries = sorted(path for path in site.rglob("*.so*") if path.is_file())
    if not libraries:
        yield "nothing in it is compiled"
    inside = {path.name for path in libraries}
    for path in libraries:
        needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", _output("readelf", "-dW", path)))
        for name in sorted(needed - inside - GLIBC):
            yield f"{path.relative_to(site)} needs {name} of the system"
    private = [path for path in libraries if path.name.startswith("libaiflow_dpdk")]
    if len(private) != 1:
        yield f"it has {len(private)} private DPDKs, not one"
    for path in private:
        symbols = _output("nm", "-D", "--defined-only", "--with-symbol-versions", path).split("\n")
        shown = [line.split()[-1] for line in symbols if line and " A " not in line]
        foreign = [symbol for symbol in shown if "@@AIFLOW_DPDK_" not in symbol]
        if foreign or not shown:
            yield f"{path.name} shows symbols without a version of its own: {', '.join(foreign[:5]) or 'none at all'}"


def licence_faults(site: Path) -> Iterator[str]:
    """Licences that an unpacked wheel lacks."""
    directories = site.glob("*.dist-info/licenses")
    texts = {path.relative_to(directory) for directory in directories for path in directory.rglob("*")}
    if Path("LICENSE") not in texts:
        yield "it lacks our LICENSE"
    libraries = {library_of(str(path.relative_to(site))) for path in site.rglob("*.so*")} - {None}
    for name in sorted(filter(None, libraries)):
        (found,) = [*site.glob(f"*.dist-info/licenses/{name}/copyright")] or [None]
        if found is None or not found.read_text().strip():
            yield f"it lacks the licence of {name}"
            continue
        for common in common_licences(name, found.read_text()):
            if Path(name, common) not in texts:
                yield f"it lacks {common}, to which the licence of {name} refers"
        for missed in MISSED.get(name, []):
            if Path(name, missed) not in texts:
                yield f"it lacks {missed}, a licence of {name}"


def faults(wheel: Path, private: Path | None = None) -> list[str]:
    """Everything that is wrong with a wheel; `private` is the DPDK that it must have."""
    with tempfile.TemporaryDirectory() as directory, zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)
        site = Path(directory)
        found = [*name_faults(wheel), *module_faults(site), *library_faults(site), *licence_faults(site)]
        if private is not None and not (site / "aiflow" / private.name).exists():
            found.append(f"it lacks {private.name}")
        return found


if __name__ == "__main__":
    found = faults(*map(Path, sys.argv[1:]))
    for fault in found:
        print(f"aiflow: {Path(sys.argv[1]).name}: {fault}", file=sys.stderr)
    sys.exit(bool(found))

"""Link a private DPDK for the wheel: one shared library, from the static archives of the installed DPDK.

    python tools/private_dpdk.py DIRECTORY

prints the path of the library. A static DPDK in each compiled module would give each its own dead EAL. The library's
symbols have a version of their own, and it binds to itself first. So it lives beside another DPDK in one process.
Only ``rte_*``, ``__rte_*``, ``per_lcore_*`` and ``eal_timer_source`` are visible.

Left out, for those who build from source: pcap (its library needs dbus and systemd), mlx4 and mlx5 (they need the
system's rdma-core, whose providers are plug-ins), af_xdp (its BPF objects are under GPL-2, and need libxdp, libbpf and
libelf beside them).
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from dpdk_flags import NO_LIBDPDK, pkg_config

DRIVERS = [
    *("bus_pci", "bus_vdev", "mempool_ring"),
    *("net_memif", "net_ring", "net_null", "net_tap", "net_af_packet", "net_vhost", "net_virtio"),
    *("net_e1000", "net_ixgbe", "net_i40e", "net_ice", "net_iavf", "net_igc"),
    *("net_ena", "net_gve", "net_vmxnet3", "net_bnxt"),
]
LIBRARIES = ["eal", "ethdev", "mbuf", "mempool", "net", "ring", "telemetry"]
"""Linked as a whole, too: what our modules call, and what registers itself when it is loaded."""

NEWER = ["log"]
"""As `LIBRARIES`, where the DPDK has them."""

EXPORTED = "rte_*; per_lcore_*; __rte_*; eal_timer_source;"
NO_ARCHIVE = """\
aiflow: {missing} is missing in {directory}: a wheel needs DPDK's static archives (Debian: apt install libdpdk-dev)."""


def archives(directory: Path) -> tuple[list[Path], list[Path]]:
    """Archives to link as a whole, and those to take from what the first ones call."""
    whole = [directory / f"librte_{name}.a" for name in [*DRIVERS, *LIBRARIES]]
    whole += [path for name in NEWER if (path := directory / f"librte_{name}.a").exists()]
    for path in whole:
        if not path.exists():
            raise SystemExit(NO_ARCHIVE.format(missing=path.name, directory=directory))
    return whole, sorted(set(directory.glob("librte_*.a")) - set(whole))


def stamp_of(paths: list[Path], command: list[str]) -> str:
    """What a library is made from. Times alone do not do: a package's files have the time of the package's build."""
    lines = [shlex.join(command)]
    for path in paths:
        status = path.stat()
        lines.append(f"{path} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}")
    return "\n".join(lines) + "\n"


def link(directory: Path) -> Path:
    """Make the library in `directory`, unless it is there and made from the same files."""
    version, archived = pkg_config("--modversion", "libdpdk"), pkg_config("--variable=libdir", "libdpdk")
    if version is None or archived is None:
        raise SystemExit(NO_LIBDPDK)
    whole, called = archives(Path(archived))
    own = Path(__file__).with_suffix(".c")
    library = directory / f"libaiflow_dpdk-{version}.so"
    compiler = shlex.split(os.environ.get("CC", "gcc"))
    made_from = directory / "made-from"
    stamp = stamp_of([*whole, *called, own, Path(__file__)], compiler)
    if library.exists() and made_from.exists() and made_from.read_text() == stamp:
        return library
    directory.mkdir(parents=True, exist_ok=True)
    made_from.unlink(missing_ok=True)  # first: a link that is cut short leaves half a library
    symbols = directory / "symbols.map"
    symbols.write_text(f"AIFLOW_DPDK_{version} {{ global: {EXPORTED} local: *; }};\n")
    subprocess.run(
        [
            *compiler,
            *("-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-s", "-o", library, own),
            *(f"-Wl,{option}" for option in (f"-soname,{library.name}", f"--version-script={symbols}")),
            *(f"-Wl,{option}" for option in ("-Bsymbolic", "-z,defs", "-z,relro", "--wrap=dlopen")),
            *("-Wl,--whole-archive", *whole, "-Wl,--no-whole-archive"),
            *("-Wl,--start-group", *called, "-Wl,--end-group"),
            *("-Wl,--as-needed", "-lnuma", "-lm", "-lrt", "-ldl", "-lpthread"),
        ],
        check=True,
    )
    made_from.write_text(stamp)
    return library


if __name__ == "__main__":
    print(link(Path(sys.argv[1]).resolve()))

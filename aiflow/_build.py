"""What this aiflow is built from: its DPDK, the drivers inside, the compiler."""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path
from typing import Any

from aiflow import _eal
from aiflow.errors import PortError

__all__ = ["build_info", "has_driver"]

_MAPS = Path("/proc/self/maps")

_DRIVER = re.compile(rb'PMD_INFO_STRING= \{"name" ?: "(net_\w+|mlx5_eth)"')
"""What DPDK's build puts into the object of each driver; ``dpdk-pmdinfo.py`` reads the same."""

_OTHER_NAMES = {"mlx5_eth": "net_mlx5"}
"""Drivers whose object has another name than DPDK's pages."""


def build_info() -> dict[str, Any]:
    """What this aiflow is built from. Nothing is started.

    Returns
    -------
    dict
        - ``aiflow``, ``dpdk``: versions, such as ``"0.1.0"`` and ``"22.11.11"``
        - ``dpdk_from``: ``"wheel"`` if DPDK is inside the package, ``"system"`` if it is the system's
        - ``drivers``: network drivers of that DPDK, such as ``"net_memif"``, read from its libraries
        - ``compiler``: such as ``"GCC 12.2.0"``
        - ``limited_api``: the oldest Python that this build runs on; None if it is built for one version only

    Examples
    --------
    >>> import aiflow
    >>> "net_memif" in aiflow.build_info()["drivers"]
    True
    """
    compiled = _eal.compiled()
    return {
        "aiflow": sys.modules["aiflow"].__version__,
        "dpdk": _eal.dpdk_version().removeprefix("DPDK "),
        "dpdk_from": "wheel" if compiled["private"] else "system",
        "drivers": list(_drivers()),
        "compiler": compiled["compiler"],
        "limited_api": compiled["limited_api"],
    }


def has_driver(name: str) -> bool:
    """Whether our DPDK has a network driver of this name, such as ``"net_af_xdp"``."""
    return name in _drivers()


@functools.cache
def _drivers() -> tuple[str, ...]:
    found = set()
    for library in _libraries():
        found |= {match.decode() for match in _DRIVER.findall(library.read_bytes())}
    return tuple(sorted(_OTHER_NAMES.get(name, name) for name in found))


def _libraries() -> set[Path]:
    """The libraries of DPDK in this process, and the plug-ins that its start adds."""
    private, plugins = _eal.compiled()["private"], _eal.compiled()["plugins"]
    lines = _MAPS.read_text().splitlines()
    mapped = {Path(line.split(maxsplit=5)[-1]) for line in lines if "/" in line}
    ours = "libaiflow_dpdk" if private else "librte_"  # the system's DPDK may be in a wheel's process, too
    found = {path for path in mapped if path.name.startswith(ours)}
    if any(path.name.endswith(" (deleted)") for path in found):
        raise PortError("DPDK's libraries were replaced while this process ran: restart it")
    if plugins and not private:  # a private DPDK loads none
        found |= {path.resolve() for path in Path(plugins).glob("librte_net_*.so*")}
    return {path for path in found if path.is_file()}

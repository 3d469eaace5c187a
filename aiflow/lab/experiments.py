"""The experiments by name, and their common run."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from aiflow._samples.photos import photo_set
from aiflow.lab.cluster import check_rights, sweep
from aiflow.lab.elements import Elements
from aiflow.lab.laberror import LabError
from aiflow.lab.results import DELIVERY, Results
from aiflow.lab.runs import Bench, write

__all__ = ["EXPERIMENTS", "check_packages", "images", "run"]

EXPERIMENTS = {name: name for name in ("fig6", "fig7", "fig8", "policies", "loss", "cut")} | {"relay": "chain"}
"""Name → module of this package, with a function ``run(bench)``."""

_QUICK_PHOTOS, _QUICK_BYTES = 16, 16 * 267_000
_PACKAGES = {"pyroute2": "pyroute2", "zmq": "pyzmq", "matplotlib": "matplotlib", "PIL": "pillow"}


def check_packages() -> None:
    """Check the requirements before an experiment starts.

    Raises
    ------
    LabError
        If packages of the extra ``lab`` or privileges are missing.
    """
    if missing := [name for module, name in _PACKAGES.items() if importlib.util.find_spec(module) is None]:
        raise LabError(f"the experiments need {', '.join(missing)}: pip install 'aiflow-dpdk[lab]'")
    check_rights()


def images(*, quick: bool, progress: Callable[[int], None]) -> Elements:
    """Return the photographs; create them if missing."""
    asked: dict[str, Any] = {"nb_photos": _QUICK_PHOTOS, "total_bytes": _QUICK_BYTES} if quick else {}
    photos = photo_set(progress=progress, **asked)
    return Elements(
        photos.directory, tuple(photo.name for photo in photos.photos), tuple(photo.nbytes for photo in photos.photos)
    )


def run(names: Sequence[str], bench: Bench, directory: Path) -> Iterator[tuple[Results, list[Path]]]:
    """Run experiments one after the other. Write the files of each one when it has ended.

    Yields
    ------
    Results, list of Path
    """
    sweep()  # a killed run leaves namespaces
    for name in names:
        begun = time.monotonic()
        results: Results = importlib.import_module(f"aiflow.lab.{EXPERIMENTS[name]}").run(bench)
        if bench.quick:  # a short run does not measure speed
            results.checks = [check for check in results.checks if check.what == DELIVERY]
        results.seconds = time.monotonic() - begun
        yield results, write(results, directory, bench)

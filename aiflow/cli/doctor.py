"""``aiflow doctor``: what this aiflow is built from, and what to mend before it can run."""

from __future__ import annotations

import os
import platform

from aiflow._terminal.outcome import NOT_DELIVERED, Outcome


def show_build(outcome: Outcome) -> None:
    """Print what this aiflow is built from, and whether its directory of names can be used. Nothing is started.

    Parameters
    ----------
    outcome : Outcome
        Receives ``build``: see `aiflow.build_info`; ``package``: the directory of the package; ``python``: the version
        of the interpreter; ``runtime_directory``: the directory of names, or None. The exit code is 1 if there is none.
    """
    import aiflow
    from aiflow._ports.runtime_dir import runtime_directory
    from aiflow.errors import PortError

    build = aiflow.build_info()
    package = os.path.dirname(os.path.realpath(aiflow.__file__))
    outcome.document.update(build=build, package=package, python=platform.python_version(), runtime_directory=None)
    fault = None
    try:
        outcome.document["runtime_directory"] = str(runtime_directory())
    except PortError as error:
        fault = error
    if not outcome.terminal.as_json:
        for line in _lines(outcome, build):
            outcome.terminal.tell(line)
    if fault is not None:
        outcome.fail(fault, NOT_DELIVERED)


def _lines(outcome: Outcome, build: dict[str, object]) -> list[str]:
    where = "inside the package" if build["dpdk_from"] == "wheel" else "of the system"
    made_for = f"Python {build['limited_api']} and later" if build["limited_api"] else "this Python only"
    drivers = build["drivers"]
    assert isinstance(drivers, list)
    return [
        f"aiflow {build['aiflow']} in {outcome.document['package']}",
        f"DPDK {build['dpdk']}, {where}",
        f"drivers ({len(drivers)}): {' '.join(drivers)}",
        f"compiler: {build['compiler']}; for {made_for}; runs on Python {outcome.document['python']}",
        f"directory of local endpoint names: {outcome.document['runtime_directory'] or 'none'}",
        "`aiflow ports` lists the endpoints that can be used here",
    ]

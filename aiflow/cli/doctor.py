"""``aiflow doctor``: what this aiflow is built from, and what to mend before it can run, or run faster."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING, Any

from aiflow._terminal.outcome import NOT_DELIVERED, Outcome

if TYPE_CHECKING:
    from aiflow._checks.finding import Finding

_STYLES = {"ok": "green", "could be better": "yellow", "broken": "bold red"}


def examine(outcome: Outcome, fix: bool) -> None:
    """Print what this aiflow is built from, and a line for each check.

    Parameters
    ----------
    outcome : Outcome
        Receives ``build``: see `aiflow.build_info`; ``package``: the directory of the package; ``python``: the version
        of the interpreter; ``runtime_directory``: the directory of names, or None; ``checks``: a list of ``check``,
        ``state``, ``text``, ``command`` and ``as_root``; ``fixed``: what was done. The exit code is 1 if a check found
        something broken.
    fix : bool
        Do what is safe: only files of this user that nothing uses are changed.
    """
    import aiflow
    from aiflow._checks.checks import CHECKS
    from aiflow._checks.finding import BROKEN
    from aiflow._checks.host import Host

    build = aiflow.build_info()
    package = os.path.dirname(os.path.realpath(aiflow.__file__))
    outcome.document.update(build=build, package=package, python=platform.python_version(), runtime_directory=None)
    outcome.document.update(checks=[], fixed=[])
    _tell(outcome, *_lines(outcome, build))
    host = Host(build=build)
    worst = []
    for check in CHECKS:
        findings = list(check.findings(host))
        if fix and any(finding.fix for finding in findings):
            for finding in findings:
                _mend(outcome, finding)
            findings = list(check.findings(host))
        for finding in findings:
            _show(outcome, check.name, finding)
            if finding.state == BROKEN:
                worst.append(f"{check.name}: {finding.text}")
            if check.name == "runtime directory" and finding.state != BROKEN:
                outcome.document["runtime_directory"] = finding.text
    if worst:
        outcome.fail(f"broken: {'; '.join(worst)}", NOT_DELIVERED)


def _mend(outcome: Outcome, finding: Finding) -> None:
    if finding.fix is None:
        return
    try:
        done = finding.fix()
    except Exception as exc:  # the other lines are still worth their while
        done = f"not mended ({finding.text}): {exc}"
    outcome.document["fixed"].append(done)
    _tell(outcome, f"--fix: {done}")


def _show(outcome: Outcome, name: str, finding: Finding) -> None:
    """A line as soon as it is known: the last one takes a second."""
    row: dict[str, Any] = {"check": name, "state": finding.state, "text": finding.text}
    outcome.document["checks"].append({**row, "command": finding.command or None, "as_root": finding.as_root})
    if outcome.terminal.as_json:
        return
    from rich.table import Table
    from rich.text import Text

    from aiflow._terminal.text import printable

    grid = Table.grid(padding=(0, 2))
    for width in (15, 17):
        grid.add_column(width=width, no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(finding.state, style=_STYLES[finding.state]), Text(name), Text(printable(finding.text)))
    outcome.terminal.console().print(grid, soft_wrap=False)
    if finding.command:  # never wrapped: it is there to be copied
        who = "  # as root" if finding.as_root else ""
        outcome.terminal.tell(f"{'':17}→ {finding.command}{who}", style="bold")


def _tell(outcome: Outcome, *lines: str) -> None:
    if not outcome.terminal.as_json:
        for line in lines:
            outcome.terminal.tell(line)


def _lines(outcome: Outcome, build: dict[str, Any]) -> list[str]:
    where = "inside the package" if build["dpdk_from"] == "wheel" else "of the system"
    made_for = f"Python {build['limited_api']} and later" if build["limited_api"] else "this Python only"
    drivers = build["drivers"]
    return [
        f"aiflow {build['aiflow']} in {outcome.document['package']}",
        f"DPDK {build['dpdk']}, {where}",
        f"drivers ({len(drivers)}): {' '.join(drivers)}",
        f"compiler: {build['compiler']}; for {made_for}; runs on Python {outcome.document['python']}",
        "`aiflow ports` lists the endpoints that can be used here",
        "",
    ]

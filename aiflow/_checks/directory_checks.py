"""The directory of local endpoint names: whether it can be used, who looks elsewhere, what dead processes left."""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from aiflow import _eal_args
from aiflow._checks.finding import Finding, better, broken, ok
from aiflow._checks.host import Host
from aiflow._ports import registry
from aiflow._ports.runtime_dir import candidates, runtime_directory
from aiflow._system.filelock import is_own_directory
from aiflow.errors import PortError

__all__ = ["directory", "peers", "stale_files"]

_VARIABLE = b"AIFLOW_RUNTIME_DIR="
_NAMES = (*(f"{scheme}-" for scheme in registry.SCHEMES), "sock-", "observe-")
_FEW = 4  # names that a text lists
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def directory(host: Host) -> Iterator[Finding]:
    """The runtime directory of this process."""
    del host  # the rules are those of the user who runs this
    try:
        yield ok(str(runtime_directory()))
    except PortError as exc:
        path = Path(os.environ.get("AIFLOW_RUNTIME_DIR") or candidates()[0]).absolute()
        another = f"export AIFLOW_RUNTIME_DIR={_another()}"
        if not is_own_directory(path) or not path.stat().st_mode & _OTHERS:
            yield broken(str(exc), another)
        elif _is_for_names(path):
            command = f"chmod 700 {shlex.quote(str(path))}"
            yield broken(f"{path} can be entered by other users", command, fix=lambda: _close(path))
        else:  # /tmp, or a home: other programs need it as it is
            yield broken(f"{path} may serve other programs, too. Use a directory for aiflow alone", another)


def _another() -> str:
    """For a shell: a directory that this user can use, or makes."""
    usual = Path(f"/tmp/aiflow-{os.getuid()}")
    is_usable = is_own_directory(usual) and not usual.stat().st_mode & _OTHERS
    return str(usual) if is_usable or not os.path.lexists(usual) else "$(mktemp -d /tmp/aiflow-XXXXXX)"


def _is_for_names(path: Path) -> bool:
    """Whether a directory is there for aiflow alone, so that closing it harms no other program."""
    try:
        if path.stat().st_mode & stat.S_ISVTX or path.parent == Path("/"):
            return False
        names = os.listdir(path)  # an empty one may wait for the files of any program
        return path in candidates() or (bool(names) and all(name.startswith(_NAMES) for name in names))
    except OSError:
        return False


def _close(path: Path) -> str:
    """Let only the owner enter a directory of this user's."""
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not os.path.samestat(os.fstat(opened), path.lstat()) or not _is_for_names(path):
            return f"nothing: {path} has changed"
        os.fchmod(opened, stat.S_IRWXU)
    finally:
        os.close(opened)
    return f"chmod 700 {shlex.quote(str(path))}"


def peers(host: Host) -> Iterator[Finding]:
    """Whether the other processes of this user look into the same directory."""
    try:
        own = runtime_directory()
    except PortError:
        yield ok("not looked at: the runtime directory cannot be used")
        return
    others = {Path(f"/run/user/{os.getuid()}/aiflow"), Path(f"/tmp/aiflow-{os.getuid()}"), *candidates()}
    others |= set(_directories_of_processes(host))
    found = False
    for path in sorted(others):
        if not is_own_directory(path) or _same(path, own):
            continue
        if names := [each.endpoint for each in registry.live(path)]:
            found = True
            text = f"receivers wait in {path}, too ({', '.join(names)}): who looks into {own} does not see them"
            yield better(text, f"export AIFLOW_RUNTIME_DIR={shlex.quote(str(path))}")
    if not found:
        how = "AIFLOW_RUNTIME_DIR is set" if os.environ.get("AIFLOW_RUNTIME_DIR") else "the default"
        yield ok(f"no receiver of this user waits elsewhere; {how}: {own}")


def _directories_of_processes(host: Host) -> Iterator[Path]:
    """Directories that other processes of this user have in their environment."""
    for path in host.path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if path.stat().st_uid != host.uid:
                continue
            for variable in path.read_bytes().split(b"\0"):
                if variable.startswith(_VARIABLE):
                    yield Path(os.fsdecode(variable.removeprefix(_VARIABLE)))


def _same(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samefile(one, other)
    return False


def stale_files(host: Host) -> Iterator[Finding]:
    """Names and directories of processes that were killed."""
    del host
    found = False
    with contextlib.suppress(PortError):
        root = runtime_directory()
        if left := registry.stale(root):
            found = True
            text = f"killed processes left {_counted(left)} in {root}: {', '.join(path.name for path in left[:_FEW])}"
            text += ", …" if len(left) > _FEW else ""
            yield better(text, "aiflow doctor --fix", fix=lambda: _swept(root))
    if left := _eal_args.stale_directories():
        found = True
        text = f"killed processes left {_counted(left)} of DPDK in {left[0].parent}"
        yield better(text, "aiflow doctor --fix", fix=_remove_of_dpdk)
    if not found:
        yield ok("none")


def _swept(root: Path) -> str:
    return f"removed from {root}: {', '.join(path.name for path in registry.sweep(root)) or 'nothing'}"


def _remove_of_dpdk() -> str:
    return f"removed directories of DPDK: {', '.join(_eal_args.remove_stale_directories()) or 'none'}"


def _counted(left: list[Path]) -> str:
    return "1 name" if len(left) == 1 else f"{len(left)} names"

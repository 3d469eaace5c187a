"""Compiler and linker flags of DPDK, as ``pkg-config libdpdk`` gives them.

Used by ``setup.py`` only. Every flag except ``-I -D -U -L -l`` is passed on unchanged and in order. So a flag that this
file does not know (``-include rte_config.h``, ``-march=…``, ``-Wl,--as-needed``) cannot break the build.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

NO_LIBDPDK = """\
aiflow: the build needs DPDK's development files (pkg-config found no libdpdk).
  Debian, Ubuntu:   apt install libdpdk-dev pkg-config
  Fedora, RHEL:     dnf install dpdk-devel pkgconf-pkg-config
A DPDK of your own: PKG_CONFIG_PATH=PREFIX/lib/pkgconfig pip install ."""

BAD_CHOICE = """\
aiflow: AIFLOW_DPDK={choice!r} is unknown. Leave it unset to link with the system's DPDK. To link with a private one:
AIFLOW_DPDK=private:FILE, where tools/private_dpdk.py has made FILE."""

TOO_OLD = "aiflow: libdpdk {version} is too old: 22.11 is the oldest that is supported."

OLDEST = (22, 11)


@dataclass
class BuildFlags:
    """Flags sorted to the fields of ``setuptools.Extension``.

    Attributes
    ----------
    include_dirs, library_dirs, libraries : list of str
        The values of ``-I``, ``-L`` and ``-l``.
    define_macros : list of (str, str or None)
        The values of ``-D``.
    undef_macros : list of str
        The values of ``-U``.
    compile_args, link_args : list of str
        All other flags, in their order. Linker flags such as ``--as-needed`` govern the libraries after them, so
        ``link_args`` come before ``libraries`` on the command line.
    """

    include_dirs: list[str] = field(default_factory=list)
    define_macros: list[tuple[str, str | None]] = field(default_factory=list)
    undef_macros: list[str] = field(default_factory=list)
    library_dirs: list[str] = field(default_factory=list)
    libraries: list[str] = field(default_factory=list)
    compile_args: list[str] = field(default_factory=list)
    link_args: list[str] = field(default_factory=list)


def sort_flags(cflags: str, libs: str) -> BuildFlags:
    """Sort the two lines that pkg-config prints.

    Parameters
    ----------
    cflags, libs : str
        Output of ``pkg-config --cflags`` and ``--libs``, quoted as for a shell.

    Returns
    -------
    BuildFlags
    """
    flags = BuildFlags()
    for words, rest in ((shlex.split(cflags), flags.compile_args), (shlex.split(libs), flags.link_args)):
        position = 0
        while position < len(words):
            word = words[position]
            position += 1
            letter, value = word[:2], word[2:]
            if letter not in ("-I", "-D", "-U", "-L", "-l"):
                rest.append(word)
                continue
            if not value and position < len(words):  # "-I dir" in two words
                value = words[position]
                position += 1
            if letter == "-I":
                flags.include_dirs.append(value)
            elif letter == "-D":
                name, equals, text = value.partition("=")
                flags.define_macros.append((name, text if equals else None))
            elif letter == "-U":
                flags.undef_macros.append(value)
            elif letter == "-L":
                flags.library_dirs.append(value)
            else:
                flags.libraries.append(value)
    return flags


def pkg_config(*arguments: str) -> str | None:
    """Run ``pkg-config`` (or the command in ``PKG_CONFIG``); None where the command or the package is missing."""
    command = shlex.split(os.environ.get("PKG_CONFIG", "pkg-config"))
    try:
        run = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def private_library() -> Path | None:
    """The private DPDK that ``AIFLOW_DPDK=private:FILE`` names; None for the system's.

    Raises
    ------
    SystemExit
        The variable has another form, or the file is missing.
    """
    choice = os.environ.get("AIFLOW_DPDK", "")
    if not choice:
        return None
    kind, _, file = choice.partition(":")
    if kind != "private" or not Path(file).is_file():
        raise SystemExit(BAD_CHOICE.format(choice=choice))
    return Path(file).resolve()


def dpdk_flags() -> BuildFlags:
    """Flags of the installed DPDK, plus librte_net_ring, which ``libdpdk.pc`` leaves out.

    The headers are always those of the installed one; a private library is made from it.

    Raises
    ------
    SystemExit
        No libdpdk, or one older than 22.11; the message names the packages to install.
    """
    version = pkg_config("--modversion", "libdpdk")
    cflags = pkg_config("--cflags", "libdpdk")
    libs = pkg_config("--libs", "libdpdk")
    if version is None or cflags is None or libs is None:
        raise SystemExit(NO_LIBDPDK)
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST:
        raise SystemExit(TOO_OLD.format(version=version))
    private = private_library()
    if private is not None:
        flags = sort_flags(cflags, f"-L{private.parent} -l:{private.name}")
        flags.link_args.append("-Wl,-rpath,$ORIGIN")  # it lies beside the modules
        flags.define_macros.append(("AIFLOW_PRIVATE_DPDK", "1"))
        return flags
    flags = sort_flags(cflags, libs)
    if "rte_net_ring" not in flags.libraries:
        flags.libraries.insert(0, "rte_net_ring")
    return flags

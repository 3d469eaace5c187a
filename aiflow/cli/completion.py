"""``aiflow completion``: scripts that let bash, zsh and fish complete commands, options and endpoints.

click has all three. For bash there is a script of our own: bash ends a word at each colon and equals sign, unless
COMP_WORDBREAKS says otherwise, so that click's script cannot complete ``local:NAME``. Ours passes the whole line, and
returns what follows the last of these. For zsh, click escapes colons from version 8.2 on.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

PROGRAM = "aiflow"
VARIABLE = "_AIFLOW_COMPLETE"
SHELLS = ("bash", "zsh", "fish")

_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' completions completion type value
    completions=$(env COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
    for completion in $completions; do
        IFS=',' read -r type value <<< "$completion"
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain)
                COMPREPLY+=("$value")
                case $value in *:) compopt -o nospace ;; esac
                ;;
        esac
    done
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class BashWithColons(BashComplete):
    """Completion for bash whose values may contain colons."""

    source_template = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the cursor, and the part of a word that ends there."""
        line = os.environ.get("COMP_LINE", "")
        words = split_arg_string(line)
        incomplete = words.pop() if words[1:] and not line[-1:].isspace() else ""
        breaks = os.environ.get("COMP_WORDBREAKS", ":=")
        ended = 1 + max(incomplete.rfind(each) if each in breaks else -1 for each in ":=")
        self._before = incomplete[:ended]
        self._option = incomplete[: incomplete.find("=") + 1] if incomplete.startswith("--") else ""
        return words[1:], incomplete

    def format_completion(self, item: CompletionItem) -> str:
        """Return type and value, without the part of the word that bash keeps."""
        return f"{item.type},{(self._option + str(item.value)).removeprefix(self._before)}"


class ZshWithColons(ZshComplete):
    """Completion for zsh whose values may contain colons: it takes the first one as the end of a value with a help."""

    def format_completion(self, item: CompletionItem) -> str:
        """Return type, value and help."""
        value = str(item.value).replace(":", "\\:") if item.help else item.value
        return f"{item.type}\n{value}\n{item.help or '_'}"


add_completion_class(BashWithColons)
add_completion_class(ZshWithColons)


def script(shell: str, app: click.Command) -> str:
    """Return the script that `shell` runs to complete the arguments of ``aiflow``."""
    kind: type[ShellComplete] | None = get_completion_class(shell)
    assert kind is not None
    if shell == "bash":
        return kind.source_template % kind(app, {}, PROGRAM, VARIABLE).source_vars()  # source() wants a bash here
    return kind(app, {}, PROGRAM, VARIABLE).source()


def endpoints(incomplete: str) -> list[CompletionItem]:
    """Return endpoints that begin with `incomplete`: names that receivers use now, interfaces, and schemes.

    A user who types expects an answer, never an error: an endpoint that cannot be looked up is left out.
    """
    found: dict[str, str] = dict(_names())
    found.update((f"{scheme}:{name}", "interface") for name in _interfaces() for scheme in ("af_packet", "af_xdp"))
    found.update((f"pci:{address}", "card") for address in _cards())
    if not any(value.startswith(incomplete) for value in found) or ":" not in incomplete:
        found = {**{f"{scheme}:": "endpoint" for scheme in ("local", "memif", "vhost", "pci", "vdev")}, **found}
    return [CompletionItem(value, help=text) for value, text in found.items() if value.startswith(incomplete)]


def _names() -> dict[str, str]:
    from aiflow._ports.registry import live

    with contextlib.suppress(Exception):
        return {name.endpoint: "receiver" for name in live()}
    return {}


def _interfaces() -> list[str]:
    with contextlib.suppress(OSError):
        return sorted(path.name for path in Path("/sys/class/net").iterdir() if path.name != "lo")
    return []


def _cards() -> list[str]:
    """Cards that a driver for DPDK has."""
    found = []
    for driver in ("vfio-pci", "uio_pci_generic", "igb_uio"):
        with contextlib.suppress(OSError):
            found += [path.name for path in Path("/sys/bus/pci/drivers", driver).iterdir() if ":" in path.name]
    return sorted(found)

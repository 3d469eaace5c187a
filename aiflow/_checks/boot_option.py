"""Words for the kernel's command line: the command that adds them, and what to do after it or instead of it."""

from __future__ import annotations

from aiflow._checks.host import Host

__all__ = ["boot_option"]

_GRUB = "/etc/default/grub"


def boot_option(host: Host, words: str) -> tuple[str, str]:
    """The command as Debian does it, or "", and a sentence."""
    if host.path(_GRUB).exists():
        command = f"sed -i 's/^GRUB_CMDLINE_LINUX=\"/&{words} /' {_GRUB} && update-grub"
        return command, "Run the command, and restart"
    where = " of the container's host" if host.in_container else ""
    return "", f"Add {words} to the kernel's command line{where}, and restart it"

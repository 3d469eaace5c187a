"""``aiflow ports bind`` and ``aiflow ports unbind``: move network cards between the kernel and DPDK."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiflow._terminal.outcome import Outcome

if TYPE_CHECKING:
    from aiflow._ports.pci_binding import Change, PciBinding


def bind_cards(outcome: Outcome, addresses: tuple[str, ...], driver: str | None, dry_run: bool) -> None:
    """Bind cards for DPDK.

    Parameters
    ----------
    outcome : Outcome
        Receives ``dry_run`` and ``cards``: a list of ``address``, ``endpoint``, ``driver_before``, ``driver`` (the one
        that the card has at the end), ``changed``, ``notes`` and ``writes``, each with ``path`` and ``text``.
    addresses, driver, dry_run
        See ``aiflow ports bind --help``.
    """
    from aiflow._ports.pci_binding import PciBinding

    binding = PciBinding()
    outcome.document.update(dry_run=dry_run, cards=[])
    _carry_out(outcome, binding, binding.plan_bind(addresses, driver or ""), dry_run)


def unbind_cards(outcome: Outcome, addresses: tuple[str, ...], dry_run: bool) -> None:
    """Give cards back to the kernel; the parameters are those of `bind_cards`."""
    from aiflow._ports.pci_binding import PciBinding

    binding = PciBinding()
    outcome.document.update(dry_run=dry_run, cards=[])
    _carry_out(outcome, binding, binding.plan_unbind(addresses), dry_run)


def _carry_out(outcome: Outcome, binding: PciBinding, changes: list[Change], dry_run: bool) -> None:
    """Carry the plans out, one by one: if one fails, those before it are done, and reported."""
    for change in changes:
        driver = change.before if dry_run else binding.carry_out(change)
        notes = [*change.notes, *([] if dry_run else _next_steps(binding, change, driver))]
        outcome.document["cards"].append(_row(change, driver, notes, changed=bool(change.writes) and not dry_run))
        if outcome.terminal.as_json:
            continue
        will_be = change.after or ("none" if change.after == "" else "the kernel's choice")
        shown = f"{change.before or 'none'} → {will_be if dry_run else driver or 'none'}"
        mark = "# " if dry_run else ""  # the output of a dry run is a shell script
        outcome.terminal.tell(f"{mark}{change.address}: driver {shown if change.writes else change.before or 'none'}")
        for note in notes:
            outcome.terminal.tell(f"{mark}  {note}")
        if dry_run:
            for write in change.writes:
                outcome.terminal.tell(str(write))


def _next_steps(binding: PciBinding, change: Change, driver: str) -> list[str]:
    """The use of a card that is bound now."""
    if not change.binds:
        return []
    steps = [f"use it as pci:{change.address}"]
    device = binding.sysfs.device(change.address)
    if driver == "vfio-pci" and device.group:
        steps.append(f"for a user other than root: chown USER /dev/vfio/{device.group}, and ulimit -l unlimited")
    return steps


def _row(change: Change, driver: str, notes: list[str], *, changed: bool) -> dict[str, Any]:
    return {
        "address": change.address,
        "endpoint": f"pci:{change.address}",
        "driver_before": change.before or None,
        "driver": driver or None,
        "changed": changed,
        "notes": notes,
        "writes": [{"path": str(write.path), "text": write.text} for write in change.writes],
    }

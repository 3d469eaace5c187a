"""``aiflow diagnose``: what bounds the running transfers of this user."""

from __future__ import annotations

from aiflow._observe.watching import watch
from aiflow._terminal.outcome import NOT_DELIVERED, Outcome


def show_diagnosis(outcome: Outcome, *, seconds: float) -> None:
    """Watch for some seconds, then print a verdict for each flow.

    Parameters
    ----------
    outcome : Outcome
        Receives ``flows``: a list of ``sender``, ``receiver``, ``cause``, ``numbers``, ``advice``, ``strengths`` and
        ``measures``. And ``silent``: why other processes are missing. The exit code is 1 if there is no flow.
    seconds : float
        How long to watch.
    """
    flows, silent = watch(seconds)
    outcome.document["silent"] = silent
    outcome.document["flows"] = [
        {
            "sender": flow.sender or None,
            "receiver": flow.receiver or None,
            "cause": flow.verdict.cause,
            "numbers": flow.verdict.text,
            "advice": flow.verdict.advice,
            "strengths": flow.verdict.strengths,
            "measures": flow.verdict.measures._asdict(),
        }
        for flow in flows
    ]
    if not flows and silent:
        outcome.fail(f"no figures of any process: {'; '.join(silent)}", NOT_DELIVERED)
    elif not flows:
        outcome.fail("no Sender or Receiver of this user is open", NOT_DELIVERED)
    if outcome.terminal.as_json:
        return
    for line in silent if flows else ():
        outcome.terminal.tell(line)
    for flow in flows:
        found = flow.verdict
        rate = f"{found.measures.goodput_bps / 1e6:.1f} Mbit/s"
        outcome.terminal.tell(f"{flow.sender or '?'} → {flow.receiver or '?'}, {rate}: {found.cause}", style="bold")
        outcome.terminal.tell(f"  because {found.text}")
        outcome.terminal.tell(f"  {found.advice}")

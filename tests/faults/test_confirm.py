"""A slice is delivered when the receiver's user confirms it: `Receiver(confirm=…)`, `confirm`, `fail`."""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from types import FrameType

import numpy as np
import pytest
from wait import settle

import aiflow
from aiflow._transfer.verdicts import MOST_BYTES, heard, told


class Ends:
    """A Sender and a Receiver that confirms, over one endpoint."""

    def __init__(self, endpoint: str, **options) -> None:
        self.rx = aiflow.Receiver(endpoint, confirm="release", **options)
        self.tx = aiflow.Sender(endpoint)

    def send(self, elements) -> tuple[aiflow.Ticket, aiflow.TimeSlice]:
        """A slice that is whole at the receiver, and its ticket."""
        ticket = self.tx.send(elements, wait=False)
        return ticket, self.rx.recv(timeout=10)

    def close(self) -> None:
        self.tx.close(abort=True)
        self.rx.close()


@pytest.fixture(params=["ring:confirm", "local:confirm"])
def ends(request) -> Iterator[Ends]:
    both = Ends(request.param)
    yield both
    both.close()


def is_held(ticket: aiflow.Ticket) -> bool:
    with pytest.raises(aiflow.SliceTimeout, match="has not confirmed it"):
        ticket.result(timeout=0.2)
    return not ticket.done()


@pytest.mark.sanitize
def test_send_waits_for_the_word(ends) -> None:
    ticket, time_slice = ends.send({"a": bytes(100_000), "b": b"2"})
    assert is_held(ticket)
    time_slice.confirm()
    assert ticket.result(timeout=10).elements == 2
    time_slice.confirm()  # again, as after a retry of the user's
    time_slice.release()


@pytest.mark.parametrize("how", ["release", "with", "next"])
def test_a_release_is_the_word(ends, how) -> None:
    first = ends.tx.send([b"1"], wait=False)
    second = ends.tx.send([b"2"], wait=False)
    slices = iter(ends.rx)
    time_slice = next(slices)
    assert is_held(first)
    if how == "next":
        next(slices)
    elif how == "with":
        with time_slice:
            pass
    else:
        time_slice.release()
    assert first.result(timeout=10)
    assert is_held(second)


def test_a_failure_names_the_elements(ends) -> None:
    ticket, time_slice = ends.send([("a", b"1"), ("b", bytes(50_000)), ("b", b"3"), ("c", b"4")])
    time_slice.fail({"b": "disk full", 3: "no permission"})
    with pytest.raises(aiflow.DeliveryError, match="disk full") as caught:
        ticket.result(timeout=10)
    assert caught.value.failed == {"b": "disk full", "c": "no permission"}
    assert caught.value.failed_elements == {1: "disk full", 2: "disk full", 3: "no permission"}
    assert caught.value.delivered is False
    assert caught.value.delivered_by == {"confirm": False}


def test_a_failure_of_many_elements_comes_whole(ends) -> None:
    """Its text takes many reports."""
    failed = {number: f"reason {number % 40} " + "x" * 300 for number in range(0, 3000, 2)}
    ticket, time_slice = ends.send([b"1"] * 3000)
    time_slice.fail(failed)
    with pytest.raises(aiflow.DeliveryError) as caught:
        ticket.result(timeout=10)
    assert caught.value.failed_elements == failed


def test_slices_are_judged_in_any_order(ends) -> None:
    tickets = [ends.tx.send([bytes([n])], wait=False) for n in range(6)]
    slices = [ends.rx.recv(timeout=10) for _ in tickets]
    for n in (3, 1, 5, 0, 4, 2):
        slices[n].fail("odd") if n % 2 else slices[n].confirm()
    for n, ticket in enumerate(tickets):
        if n % 2:
            with pytest.raises(aiflow.DeliveryError, match="odd"):
                ticket.result(timeout=10)
        else:
            ticket.result(timeout=10)


def test_more_slices_than_may_wait_for_their_word(ends) -> None:
    """The ninth waits; none is lost, none is confirmed too early."""
    tickets = [ends.tx.send([bytes([n])], wait=False) for n in range(30)]
    held = [ends.rx.recv(timeout=10) for _ in range(8)]
    with pytest.raises(aiflow.SliceTimeout):
        ends.rx.recv(timeout=0.2)
    assert not any(ticket.done() for ticket in tickets)
    for n in range(30):
        held[n].confirm()
        held[n].release()
        tickets[n].result(timeout=10)
        if len(held) < 30:
            held.append(ends.rx.recv(timeout=10))


ENDS = {
    "the receiver closes": lambda ends, _: ends.rx.close(),
    "its block ends by an error": lambda ends, _: ends.rx.__exit__(ValueError, ValueError("cannot"), None),
    "the slice's block ends by an error": lambda _, time_slice: time_slice.__exit__(OSError, OSError("full"), None),
}


@pytest.mark.parametrize("how", ENDS)
def test_what_was_not_confirmed_has_failed_when(ends, how) -> None:
    ticket, time_slice = ends.send({"a": b"1"})
    ENDS[how](ends, time_slice)
    with pytest.raises(aiflow.DeliveryError) as caught:
        ticket.result(timeout=10)
    assert caught.value.delivered is False


def test_a_slice_that_is_dropped_without_a_word_has_failed(ends) -> None:
    ticket = ends.tx.send({"a": b"1"}, wait=False)
    ends.rx.recv(timeout=10)
    with pytest.raises(aiflow.DeliveryError, match="dropped it without"):
        ticket.result(timeout=10)


def test_a_slice_given_up_meanwhile_leaves_room(ends) -> None:
    """The sender cancels a slice that waits for confirmation; a later confirmation has no effect, and slices go on."""
    for _ in range(20):
        ticket, time_slice = ends.send({"a": bytes(20_000)})
        ticket.cancel()
        assert ticket.done()
        time_slice.confirm()
        time_slice.release()
    ticket, time_slice = ends.send({"a": b"1"})
    time_slice.confirm()
    assert ticket.result(timeout=10)


def test_several_receivers_confirm_each_its_part() -> None:
    rx = [aiflow.Receiver(f"ring:confirm{n}", name=f"r{n}", confirm="release") for n in range(2)]
    tx = aiflow.Sender(["ring:confirm0", "ring:confirm1"], to=["r0", "r1"])
    try:
        ticket = tx.send([bytes(5000), bytes(5000)], wait=False)
        parts = [receiver.recv(timeout=10) for receiver in rx]
        parts[0].confirm()
        assert is_held(ticket)
        parts[1].fail("full")
        with pytest.raises(aiflow.DeliveryError) as caught:
            ticket.result(timeout=10)
        assert caught.value.delivered_by == {"r0": True, "r1": False}
        ticket = tx.send({name: bytes(5000) for name in "abcd"}, wait=False)
        expected = {}
        for receiver in rx:
            time_slice = receiver.recv(timeout=10)
            last = time_slice.streams[-1]
            time_slice.fail({last: f"no {last}"})
            expected[last] = f"no {last}"
        with pytest.raises(aiflow.DeliveryError) as caught:
            ticket.result(timeout=10)
        assert caught.value.failed == expected
        assert caught.value.failed_elements == {"abcd".index(name): why for name, why in expected.items()}
    finally:
        tx.close(abort=True)
        for receiver in rx:
            receiver.close()


@pytest.mark.parametrize("what", ["word", "answers"])
def test_the_word_comes_over_a_lossy_way(what) -> None:
    """Half of the receiver's frames are lost: confirmations and texts are repeated like all feedback."""
    faults = {"drop": 0.5, "ways": "out"} if what == "word" else {"drop": 0.3}
    rx = aiflow.Receiver("ring:lossy", confirm="release", faults=faults)
    tx = aiflow.Sender("ring:lossy")
    try:
        for n in range(6):
            ticket = tx.send([bytes(3000)] * 50, wait=False)
            time_slice = rx.recv(timeout=20)
            if n % 2:
                time_slice.fail({k: "y" * 300 + str(k) for k in range(0, 50, 2)})
                with pytest.raises(aiflow.DeliveryError) as caught:
                    ticket.result(timeout=20)
                assert len(caught.value.failed_elements) == 25
            else:
                time_slice.confirm()
                ticket.result(timeout=20)
            time_slice.release()
    finally:
        tx.close(abort=True)
        rx.close()


def test_a_sender_that_was_silent_hears_of_what_it_had_sent_before() -> None:
    """The receiver has ended the session, but the slice that waits for confirmation is still confirmed."""
    with aiflow.Receiver("ring:silent", confirm="release", memory="1MiB") as rx:
        tx = aiflow.Sender("ring:silent")
        ticket = tx.send([bytes(500_000)], wait=False)
        time_slice = rx.recv(timeout=10)
        waiting = tx.send([bytes(900_000)], wait=False)  # finds no memory before the first is released
        assert is_held(ticket)
        time_slice.confirm()
        ticket.result(timeout=10)
        time_slice.release()
        rx.recv(timeout=10).confirm()
        waiting.result(timeout=10)
        tx.close()


def test_held_is_the_default_and_has_no_word_to_say() -> None:
    with aiflow.pair() as (tx, rx):
        ticket = tx.send([b"1"], wait=False)
        time_slice = rx.recv(timeout=10)
        ticket.result(timeout=10)
        time_slice.confirm()
        with pytest.raises(aiflow.ConfigError, match="confirm='release'"):
            time_slice.fail("too late")
    with pytest.raises(aiflow.ConfigError, match="confirm="):
        aiflow.Receiver("ring:word", confirm="maybe")


def test_words_that_contradict_each_other(ends) -> None:
    _, time_slice = ends.send({"a": b"1"})
    with pytest.raises(KeyError):
        time_slice.fail({"b": "no such stream"})
    with pytest.raises(KeyError):
        time_slice.fail({7: "no such element"})
    time_slice.confirm()
    with pytest.raises(aiflow.ConfigError, match="confirmed already"):
        time_slice.fail("after all")
    _, time_slice = ends.send({"a": b"1"})
    time_slice.fail("no")
    with pytest.raises(aiflow.ConfigError, match="failed already"):
        time_slice.confirm()
    time_slice.release()
    with pytest.raises(aiflow.ConfigError, match="released"):
        time_slice.confirm()


def test_words_from_many_threads(ends) -> None:
    """Each slice by another thread, while the loop runs."""

    def confirm() -> None:
        for _ in range(50):
            with ends.rx.recv(timeout=20) as time_slice:
                time_slice.confirm()

    threads = [threading.Thread(target=confirm) for _ in range(4)]
    for thread in threads:
        thread.start()
    for n in range(200):
        ends.tx.send([bytes([n % 256]) * 100], timeout=20)
    for thread in threads:
        thread.join()
    assert settle(lambda: ends.rx.memory_used == 0)


def test_nothing_that_failed_is_a_confirmation(ends) -> None:
    ticket, time_slice = ends.send({"a": b"1"})
    time_slice.fail({})
    assert ticket.result(timeout=10)


def test_a_slice_of_no_elements_fails_with_its_reason(ends) -> None:
    ticket, time_slice = ends.send({})
    time_slice.fail("disk full")
    with pytest.raises(aiflow.DeliveryError, match="disk full"):
        ticket.result(timeout=10)


def test_an_interrupted_fail_is_no_confirmation(ends, monkeypatch) -> None:
    def interrupted(failed: object) -> bytes:
        raise KeyboardInterrupt

    ticket, time_slice = ends.send({"a": b"1"})
    monkeypatch.setattr("aiflow.slices.told", interrupted)
    with pytest.raises(KeyboardInterrupt):
        time_slice.fail("full")
    monkeypatch.undo()
    assert is_held(ticket)
    time_slice.fail("full")
    with pytest.raises(aiflow.DeliveryError, match="full"):
        ticket.result(timeout=10)


def test_a_word_after_the_end_is_refused(ends) -> None:
    _, time_slice = ends.send({"a": b"1"})
    ends.rx.close()
    with pytest.raises(aiflow.ConfigError, match="Receiver is closed"):
        time_slice.confirm()


def test_what_waits_behind_unconfirmed_slices_says_so(ends) -> None:
    held = [ends.send([bytes(100_000)]) for _ in range(2)]
    third = ends.tx.send([bytes(100_000)], wait=False)
    with pytest.raises(aiflow.SliceTimeout, match="wait for the confirmation"):
        third.result(timeout=0.2)
    with pytest.raises(aiflow.SliceTimeout, match="2 slices wait for your confirm"):
        ends.rx.recv(timeout=0.2)
    for _, time_slice in held:
        time_slice.confirm()
    ends.rx.recv(timeout=10).confirm()
    third.result(timeout=10)


def test_a_handler_runs_while_forms_are_judged(ends, monkeypatch) -> None:
    """The loop checks a manifest without Python, so no signal handler runs there and no exception of one is lost."""
    raised: list[str] = []
    ignored: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: ignored.append(repr(told)))

    def handler(number: int, frame: FrameType | None) -> None:
        raised.append("".join(traceback.format_stack(frame)))
        raise ZeroDivisionError

    def exchange(delay: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, delay)
        ticket = ends.tx.send([stamps], wait=False)
        ends.rx.recv(timeout=10).confirm()
        ticket.result(timeout=10)
        signal.setitimer(signal.ITIMER_REAL, 0)  # a signal that is pending is served when this call returns

    stamps = np.array([1, 2, 3], "M8[ns]")
    draw = random.Random(5)
    before = signal.signal(signal.SIGALRM, handler)
    seen = 0
    try:
        for _ in range(100):
            try:
                exchange(draw.uniform(0.0001, 0.003))
            except ZeroDivisionError:
                seen += 1
                with contextlib.suppress(aiflow.SliceTimeout):  # take what the interrupted exchange left behind
                    while True:
                        ends.rx.recv(timeout=0.05).confirm()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert all("WeakKeyDictionary" in told for told in ignored)  # a callback of Python's own, where none can be raised
    assert seen + len(ignored) == len(raised) > 0, raised


@pytest.mark.unit
@pytest.mark.parametrize(
    "failed",
    [{0: "a"}, {0: "a", 2: "a", 3: "b"}, dict.fromkeys(range(100_000), "full"), {5: "ü\udcff\x1b"}],
    ids=["one", "some", "all", "odd characters"],
)
def test_what_is_told_is_heard(failed) -> None:
    assert heard(told(failed).decode(), 100_000) == failed


@pytest.mark.unit
def test_what_is_too_long_to_tell_says_rather_too_much() -> None:
    failed = dict.fromkeys(range(0, 100_000, 2), "full")
    text = told(failed)
    assert len(text) <= MOST_BYTES
    assert heard(text.decode(), 100_000).keys() >= failed.keys()
    assert len(told({n: f"reason {n}" for n in range(10_000)})) <= MOST_BYTES
    assert len(told({n: f"{n} " + "ж" * 500 for n in range(60)})) <= MOST_BYTES


@pytest.mark.unit
@pytest.mark.parametrize("text", ["[" * 60_000, "[[1]]", '[["a",[[0,1],[5]]]]', "no JSON at all"])
def test_a_text_of_a_stranger_is_the_reason_for_all(text) -> None:
    assert heard(text, 3) == dict.fromkeys(range(3), text)

"""Simulated worlds drawn from seeds: no slice is lost over lossy, dying and reordering paths (tests/core/simulate.c).

The seed decides everything in a world: paths, windows, slices, restarts of either end, and at least three kinds of
fault out of sixteen. With ``draw=1`` a world has one receiver. With ``draw=2`` it has two or three nodes, each with
several senders and receivers on its ports; the numbers of half these worlds' nodes are equal. With ``draw=3`` nodes
share memory over some of their segments, and a node may sleep in the middle of a write.
``simulate draw=2 seed=N trace=1`` shows what happens in the world of a seed that failed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from core import ROOT, compiled, network, run

pytestmark = pytest.mark.unit

SEEDS = 2000
DRAWS = pytest.mark.parametrize("draw", [1, 2, 3], ids=["one_receiver", "both_ways", "shared_memory"])
SOAK_SEEDS = int(os.environ.get("AIFLOW_SOAK_SEEDS", "1000000"))
FAULTS = (
    "dropped",
    "burst",
    "down",
    "damaged",
    "truncated",
    "doubled",
    "reordered",
    "delayed",
    "stalls",
    "outage",
    "pause",
    "unplug",
    "rx_restart",
    "tx_restart",
    "cancel",
    "starved",
)
FAST = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-march=native", "-w", "-pthread"]

# A bug planted in a copy of the headers: what it is, where, the code as it is, the code with the bug.
PLANTED = {
    "a_lost_chunk_is_not_sent_again": (
        "tx/tx_slice.h", "\t\taf_tx_retransmit(tx, sent->slice, sent->chunk);\n", "\t\t(void)tx;\n",
    ),
    "a_duplicate_is_placed_twice": (
        "rx/reassembly.h",
        "target->present = af_rx_has_chunk(s, s->nb_manifest + target->chunk)", "target->present = false",
    ),
    "a_lost_frame_stays_in_its_window": (
        "tx/tx_slice.h", "\tport->pn.in_flight--;\n\tport->count.lost++;", "\tport->count.lost++;",
    ),
    "memory_is_not_given_back": (
        "rx/arena.h",
        "\tarena->used -= block->charged;\n\tif (block->kept)",
        "\tif (block->kept)",
    ),
    "damage_is_not_noticed": (
        "wire/frame.h", "af_wire_crc(f) == f->crc ? AF_OK : AF_DROP_CRC", "(af_wire_crc(f), AF_OK)",
    ),
    "a_number_is_used_twice": (
        "path/pktnum.h", "\tpn->next = pn->judged = first_number;", "\tpn->next = pn->judged = 0;",
    ),
    "a_word_is_said_too_early": (
        "rx/rx_lifetime.h",
        "slot->state == AF_RX_WHOLE && rx->confirms ? AF_RX_PENDING : AF_RX_CONFIRMED", "AF_RX_CONFIRMED",
    ),
    "a_refusal_is_forgotten": (
        "rx/rx_outcome.h", "slice % AF_SLICES_IN_FLIGHT];\n\n\tsession->urgent", "slice % 2];\n\n\tsession->urgent",
    ),
    "an_end_is_said_too_early": (
        "rx/feedback.h", ".done = AF_BE32(session->done),", ".done = AF_BE32(session->granted),",
    ),
}  # fmt: skip

# The same for worlds in which several agents share ports; some are several changes.
PLANTED_ON_SHARED_PORTS = {
    "a_frame_is_given_to_an_agent_of_another_session": [(
        "rt/demux.h",
        "if (user->agent->owns(user->agent->state, number))",
        "if (number % 2 || user->agent->owns(user->agent->state, number))",
    )],
    "a_session_is_found_by_a_part_of_its_number": [(
        "rx/rx_state.h", "if (rx->sessions[i]->id == id)", "if ((rx->sessions[i]->id & 15) == (id & 15))",
    )],
    "a_sender_believes_feedback_for_another": [(
        "tx/tx_agent.h", "if (!af_tx_owns(tx, f->session))", "if (!tx->number)",
    )],
    "a_receivers_bye_goes_to_the_receiver_beside_the_sender": [
        ("rt/demux.h", "to_sender = AF_BE32(h.element) == AF_BYE_RECEIVER;", "to_sender = false;"),
        ("rx/rx_session.h", "in->frame->element == AF_BYE_SENDER ? ", "true ? "),
    ],
    "a_receivers_bye_ends_a_session_of_the_receiver_beside_the_sender": [
        (
            "rt/demux.h",
            "\tuser = af_demux_find(&d->lines[p], frame, len);\n",
            "\tuser = af_demux_find(&d->lines[p], frame, len);\n"
            "\tfor (uint32_t i = 0; (frame[14] & 15) == AF_BYE && i < d->lines[p].nb; i++) {\n"
            "\t\tconst struct af_user *beside = &d->lines[p].users[i];\n"
            "\t\tif (beside != user && beside->agent->role == AF_RECEIVES)\n"
            "\t\t\tbeside->agent->on_frame(beside->agent->state, beside->port, now, frame, len, NULL);\n"
            "\t}\n",
        ),
        ("rx/rx_session.h", "in->frame->element == AF_BYE_SENDER ? ", "true ? "),
        (
            "rx/rx_agent.h",
            "session = f.kind == AF_HELLO ? NULL : af_rx_session_of(rx, f.session);",
            "session = f.kind == AF_HELLO ? NULL : af_rx_session_of(rx, f.session);\n"
            "\t\tfor (uint32_t i = 0; f.kind == AF_BYE && !session && i < rx->nb_sessions; i++)\n"
            "\t\t\tif (rx->sessions[i]->peer == f.session) /* of the other side's numbers */\n"
            "\t\t\t\tsession = rx->sessions[i];",
        ),
    ],
    "a_hello_from_the_same_mac_ends_the_session_of_another_sender": [(
        "rx/rx_hello.h",
        "\tif (!af_rx_knows(session, f->src)) {",
        "\tfor (uint32_t i = 0; i < rx->nb_sessions; i++)\n"
        "\t\tif (rx->sessions[i] != session && af_rx_knows(rx->sessions[i], f->src))\n"
        "\t\t\taf_rx_forget(rx, i--);\n"
        "\tif (!af_rx_knows(session, f->src)) {",
    )],
    "a_process_gives_a_number_twice": [(
        "rt/numbers.h", "atomic_fetch_add_explicit(&numbers->next, 1,", "atomic_fetch_add_explicit(&numbers->next, 0,",
    )],
    "each_sender_uses_the_whole_window_of_a_port": [(
        "tx/segment.h", "(!budget || port->pn.in_flight < budget->frames) && ", "",
    )],
    "a_sender_finds_the_receiver_beside_it": [(
        "rt/demux.h", "\tif (af_demux_is_own(d, frame, len))\n\t\treturn;\n", "",
    )],
}  # fmt: skip


# The same for worlds whose nodes share memory.
PLANTED_IN_SHARED_MEMORY = {
    "nothing_is_fenced_at_silence": [(
        "rx/rx_lifetime.h",
        "{\n\taf_rx_fence(rx, session);\n\tfor (uint32_t i = 0; i < AF_RX_SLOTS; i++)",
        "{\n\tfor (uint32_t i = 0; i < AF_RX_SLOTS; i++)",
    )],
    "nothing_is_fenced_when_a_session_is_forgotten": [(
        "rx/rx_lifetime.h", "\taf_rx_fence(rx, session); /* nothing, where", "\t/* nothing, where",
    )],
    "a_fence_goes_when_the_connection_hangs_up": [(
        "rx/rx_agent.h", "\trx->ports[p].nb_paths = 0;\n}",
        "\trx->ports[p].nb_paths = 0;\n\taf_rx_writer_gone(rx, rx->ports[p].p.writer);\n}",
    )],
    "a_hello_of_the_life_that_writes_lifts_its_fence": [(
        "rx/arena.h", "(done.life - at->writer.life) > 0", "(done.life - at->writer.life) >= 0",
    )],
    "a_fenced_range_is_granted": [(
        "rx/arena.h", "if (at->offset - offset >= size)", "if (at->fenced || at->offset - offset >= size)",
    )],
    "a_fenced_block_is_still_charged": [(
        "rx/arena.h", "\tarena->used -= block->charged;\n\tblock->charged = 0;\n", "",
    )],
    "a_retransmission_writes_again": [(
        "tx/segment.h", "crc = af_tx_is_placed(s, data) ? s->places->crc[data]",
        "offset = f->kind == AF_DATA ? (uint64_t)f->seq * s->payload_bytes : 0;\n"
        "\tcrc = false ? s->places->crc[data]",
    )],
    "what_was_carried_is_placed_later": [(
        "tx/segment.h", "(at && af_tx_may_place(port, s))", "af_tx_may_place(port, s)",
    )],
    "places_outlast_their_session": [("tx/tx_slice.h", "\taf_tx_forget_places(s);\n", "")],
    "a_place_is_told_before_the_grant_that_it_is_for": [(
        "rx/feedback.h", ".slice = AF_BE32(id)};", ".slice = AF_BE32(id + 1)};",
    )],
    "a_placed_chunk_of_no_bytes_is_summed_as_its_frame": [(
        "tx/segment.h", "says_placed ? crc : af_payload_crc", "placed ? crc : af_payload_crc",
    )],
}  # fmt: skip


def simulated(program: Path, patience_s: float, *options: str) -> subprocess.CompletedProcess[str]:
    """In an empty environment: the sanitizers of this process may be others."""
    command = [str(program), *options]
    return subprocess.run(command, env={}, capture_output=True, text=True, timeout=patience_s, check=False)


def in_parallel(program: Path, seeds: int, patience_s: float, draw: int = 1, *options: str) -> list[dict]:
    half = seeds // 2

    def work(first: int) -> dict:
        ran = simulated(program, patience_s, f"draw={draw}", f"seed={first}", f"seeds={half}", *options)
        assert ran.returncode == 0, f"told by: simulate draw={draw} seed=N trace=1\n{ran.stdout}{ran.stderr}"
        return json.loads(ran.stdout)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, (1, 1 + half)))


@DRAWS
def test_nothing_is_lost_in_any_world(simulate: Path, draw: int) -> None:
    outcomes = in_parallel(simulate, SEEDS, 280, draw)
    # Mild: a world in which fewer than three kinds of fault took place.
    for fault in FAULTS:
        assert sum(network(outcome, fault) for outcome in outcomes) > 0, fault
    assert sum(outcome["mild"] for outcome in outcomes) <= SEEDS / 100
    assert min(outcome["fewest_frames"] for outcome in outcomes) >= 200
    for what in ("placed", "placed_late", "placed_too_late", "stuck", "writers_gone") if draw == 3 else ():
        assert sum(outcome[what] for outcome in outcomes) > 0, what


@DRAWS
def test_the_same_seed_is_the_same_world(simulate: Path, draw: int) -> None:
    once = run(simulate, f"draw={draw}", "seed=31", "seeds=20")
    assert once == run(simulate, f"draw={draw}", "seed=31", "seeds=20")
    assert once["trace"] != run(simulate, f"draw={draw}", "seed=32", "seeds=20")["trace"]


def test_a_seed_is_told(simulate: Path) -> None:
    told = simulated(simulate, 250, "draw=1", "seed=5", "trace=1")
    assert "is handed over" in told.stdout
    assert "MANIFEST" in told.stdout
    assert json.loads(told.stdout.splitlines()[-1])["trace"] == run(simulate, "draw=1", "seed=5")["trace"]


def altered(directory: Path, *changes: tuple[str, str, str]) -> Path:
    """The simulator, built with changed copies of headers: (header, code as it is, code instead)."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here")
    shutil.copytree(ROOT / "include", directory / "include")
    shutil.copytree(ROOT / "tests/core", directory / "core")
    for header, code, other in changes:
        path = directory / "include/aiflow" / header
        source = path.read_text()
        assert source.count(code) == 1, f"{header} has changed: look for {code!r} anew"
        path.write_text(source.replace(code, other))
    program = directory / "simulate"
    paths = ["-I", str(directory / "include"), str(directory / "core/simulate.c"), "-o", str(program)]
    subprocess.run(["gcc", *FAST, *paths], check=True, timeout=250)
    return program


def shows(program: Path, draw: int) -> None:
    ran = simulated(program, 250, f"draw={draw}", f"seeds={SEEDS}")
    assert ran.returncode != 0, f"{SEEDS} worlds and no sign of it"
    assert ran.returncode < 0 or '"failed": "' in ran.stdout


@pytest.mark.parametrize("name", sorted(PLANTED))
def test_a_planted_bug_is_found(tmp_path: Path, name: str) -> None:
    shows(altered(tmp_path, PLANTED[name]), draw=1)


@pytest.mark.parametrize("name", sorted(PLANTED_ON_SHARED_PORTS))
def test_a_planted_bug_of_shared_ports_is_found(tmp_path: Path, name: str) -> None:
    shows(altered(tmp_path, *PLANTED_ON_SHARED_PORTS[name]), draw=2)


@pytest.mark.parametrize("name", sorted(PLANTED_IN_SHARED_MEMORY))
def test_a_planted_bug_of_shared_memory_is_found(tmp_path: Path, name: str) -> None:
    shows(altered(tmp_path, *PLANTED_IN_SHARED_MEMORY[name]), draw=3)


SLEEP_SEEDS = 1000
NO_CAP = ("rt/agent.h", "AF_DUE_BUSY_NS 5000000ull", "AF_DUE_BUSY_NS 3600000000000ull")


@pytest.mark.parametrize("draw", [1, 2], ids=["one_receiver", "both_ways"])
def test_nodes_that_sleep_until_they_are_due_lose_no_time(tmp_path: Path, draw: int) -> None:
    """Without the cap on sleep, which hides a wrong due time. Worlds take as long as those of nodes that poll."""
    program = altered(tmp_path, NO_CAP)
    polled, slept = (in_parallel(program, SLEEP_SEEDS, 280, draw, f"sleep={sleep}") for sleep in (0, 1))
    assert sum(o["mean_ms"] for o in slept) <= 1.02 * sum(o["mean_ms"] for o in polled)


def beginning_at(number: int, slice_id: int = 1) -> list[tuple[str, str, str]]:
    """Changes by which every session counts from there: packet numbers, which begin at 0, and slices, from 1."""
    return [
        ("path/pktnum.h", "\tpn->next = pn->judged = first_number;",
         "\tmemset(pn->ring, 0, sizeof pn->ring);\n"
         f"\tpn->next = pn->judged = first_number ? first_number : {number}ull;"),
        ("tx/discovery.h", "\ttx->first_id = tx->next_id = 1;", f"\ttx->first_id = tx->next_id = {slice_id}u;"),
        ("rx/rx_hello.h", "\tsession->asked = session->granted = session->done = session->confirmed = 1;",
         f"\tsession->asked = session->granted = session->done = session->confirmed = {slice_id}u;\n"
         "\tfor (uint32_t k = 0; k < AF_MAX_PORTS; k++)\n"
         f"\t\tsession->paths[k].pn.next = session->paths[k].pn.floor = {number}ull;"),
    ]  # fmt: skip


WRAP_SEEDS = 300


def test_fault_33_packet_numbers_pass_32_bits(tmp_path: Path) -> None:
    """The low word of a packet number wraps: no slice is lost in any world."""
    program = altered(tmp_path, *beginning_at(2**32 - 50))
    in_parallel(program, WRAP_SEEDS, 280)
    told = simulated(program, 250, "trace=1", "ports=1", "loss=100")
    numbers = {int(number) for number in re.findall(r"-> .* number (\d+) ", told.stdout)}
    assert {2**32 - 1, 0, 1} <= numbers  # the low words, before and after
    assert json.loads(told.stdout.splitlines()[-1])["failed"] == 0


def test_fault_33_a_session_ends_before_its_numbers_do(tmp_path: Path) -> None:
    """At half of 48 bits of packet numbers, or of 32 bits of slices; slices in flight are finished first."""
    program = altered(tmp_path, *beginning_at(2**47 - 60, 2**31 - 5))
    outcomes = in_parallel(program, WRAP_SEEDS, 280)
    assert sum(outcome["lives"] for outcome in outcomes) > 4 * WRAP_SEEDS
    by_slices = run(program, "slices=50", "bytes=100", "small=1")
    by_numbers = run(program, "slices=8", "bytes=100000", "senders=2", "loss=100")
    assert by_slices["lives"] >= 10  # five slices each
    assert by_numbers["lives"] >= 8
    assert by_slices["delivered"] == 50
    assert by_numbers["delivered"] == 16
    assert by_slices["failed"] == by_numbers["failed"] == 0


def test_numbers_that_came_to_their_end_would_be_the_end(tmp_path: Path) -> None:
    """If sessions did not end in time, no receiver would take their frames: the test before this one sees that."""
    unbounded = ("tx/tx_state.h", "AF_WORN_NUMBERS (1ull << 47)", "AF_WORN_NUMBERS ~0ull")
    program = altered(tmp_path, *beginning_at(2**48 - 60), unbounded)
    ran = simulated(program, 250, "ports=1")
    assert '"failed": "' in ran.stdout


@pytest.mark.soak
@DRAWS
def test_a_million_worlds(tmp_path: Path, draw: int) -> None:
    """The same checks without the sanitizers: 1000 worlds of one receiver, 400 or 200 of nodes, a second and core."""
    program = compiled("simulate.c", tmp_path / "simulate", "-fno-sanitize=all", "-O2", "-march=native")
    for outcome in in_parallel(program, SOAK_SEEDS, SOAK_SEEDS, draw):
        print(json.dumps(outcome), file=sys.stderr)
        assert outcome["failed"] < outcome["delivered"]


# Faults that the simulator has found and that are mended: one world for each, by hand.
FOUND = {
    "a_port_that_comes_back_goes_on_counting": "unplug_ms=1 unplug_for_ms=20 bytes=200000 ports=2",
    "the_only_open_port_goes_and_another_is_asking": "die_ms=1 back_ms=30 unplug_ms=2 unplug_for_ms=40 ports=2",
    "a_lone_path_whose_receiver_sleeps": "ports=1 pause_ms=1 pause_for_ms=400 bytes=200000",
    "all_paths_while_the_receiver_sleeps": "pause_ms=1 pause_for_ms=400 bytes=200000",
    "all_paths_are_dead_for_a_second": "outage_ms=1 outage_for_ms=1000 bytes=200000",
    "a_sender_slept_while_others_wanted_its_memory": (
        "senders=2 memory_kb=600 bytes=30000 pause_ms=1 pause_for_ms=5000 pause_way=2"
    ),
    "a_sender_slept_for_long": "pause_ms=1 pause_for_ms=6000 pause_way=2 timeout_ms=4000 bytes=200000",
    "a_path_comes_back": "die_ms=1 back_ms=50 bytes=400000 slices=40",
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_holds(simulate: Path, name: str) -> None:
    outcomes = [run(simulate, *FOUND[name].split(), f"seed={seed}") for seed in range(1, 5)]
    if "slept" in name:  # its slices were freed, and retransmitted in another session
        assert any(outcome["lives"] > outcome["senders"] for outcome in outcomes)
    for outcome in outcomes:
        assert outcome["failed"] == 0
        if "sleeps" in name:
            assert network(outcome, "pause") > 0
            assert outcome["again"] <= 16, "windows of frames that had arrived were retransmitted"

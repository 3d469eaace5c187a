"""Cards read the arrays of `aiflow.empty` where they lie: slices by reference, and what becomes of their memory.

QEMU's igb drops a frame whose segment is not contiguous in the guest's physical memory. A real card does not. So the
pictures lie in one array, as large as a huge page.
"""

from __future__ import annotations

from typing import Any

from consoles import Console

Pair = tuple[Console, Console]

BY_REFERENCE = "answer = sum(row.by_reference for row in tx.port_table)"
LENT = """
block = aiflow.empty(2 << 20)
lent, place = {}, 0
for name, image in list(images.items())[:7]:
    lent[name] = block[place : place + image.nbytes].reshape(image.shape)
    lent[name][:] = image
    place += image.nbytes
"""
FREE = "block[:] = 0xEE\ndel lent, block"
COUNTS = "from aiflow import _eal_regions; import gc; gc.collect(); answer = _eal_regions.counts()"


def open_pair(pair: Pair, ports: list[str], frame_size: str = "9014") -> None:
    a, b = pair
    b.run(f"rx = aiflow.Receiver({ports[1]!r}, frame_size={frame_size})")
    a.run(f"tx = aiflow.Sender({ports[0]!r}, frame_size={frame_size})")


def send(pair: Pair, what: str, expected: str = "dict(list(images.items())[:7])") -> dict[str, Any]:
    """Send one slice; it must arrive identically."""
    a, b = pair
    b.start(f"with rx.recv(timeout=60) as got: answer = same(got, {expected})")
    facts: dict[str, Any] = a.run(f"answer = facts(tx.send({what}, timeout=60))")
    assert b.finish()
    return facts


def check_both_ways_of_memory(pair: Pair, ports: list[str]) -> None:
    a, _ = pair
    open_pair(pair, ports)
    send(pair, "dict(list(images.items())[:7])")
    assert a.run(BY_REFERENCE) == 0
    a.run(LENT)
    facts = send(pair, "lent")
    by_reference = a.run(BY_REFERENCE)
    assert facts["sent"] * 0.8 < by_reference <= facts["sent"]
    assert a.run(COUNTS)["mapped"] == 1
    send(pair, "dict(list(images.items())[:7])")
    assert a.run(BY_REFERENCE) == by_reference
    a.run(FREE)
    a.run("tx.close()")
    assert a.run(COUNTS) == {"arrays": 0, "mapped": 0, "held": 0}


def test_only_lent_memory_goes_by_reference(pair: Pair, ports: list[str]) -> None:
    check_both_ways_of_memory(pair, ports)


def test_frames_of_the_usual_mtu_are_copied_from_lent_memory(pair: Pair, ports: list[str]) -> None:
    open_pair(pair, ports, "None")
    pair[0].run(LENT)
    send(pair, "lent")
    assert pair[0].run(BY_REFERENCE) == 0
    pair[0].run(FREE)


def test_memory_that_is_freed_and_reused_while_the_card_holds_frames(pair: Pair, ports: list[str]) -> None:
    """The card's ring keeps the last frames. Their memory stays, however often arrays come and go."""
    a, _ = pair
    open_pair(pair, ports)
    for _ in range(6):
        a.run(LENT)
        send(pair, "lent")
        a.run(FREE)
        counts = a.run(COUNTS)
        assert counts["arrays"] == 0
        assert counts["held"] > 0
    assert a.run(COUNTS)["held"] <= 4
    a.run("tx.close()")
    assert a.run(COUNTS) == {"arrays": 0, "mapped": 0, "held": 0}


def test_memory_is_mapped_again_for_a_card_that_opens_again(pair: Pair, ports: list[str]) -> None:
    a, _ = pair
    open_pair(pair, ports)
    a.run(LENT)
    send(pair, "lent")
    a.run("tx.close()")
    assert a.run(COUNTS) == {"arrays": 1, "mapped": 0, "held": 0}
    a.run(f"tx = aiflow.Sender({ports[0]!r}, frame_size=9014)")
    assert a.run(COUNTS)["mapped"] == 1
    send(pair, "lent")
    assert a.run(BY_REFERENCE) > 0
    a.run(FREE)


def test_rows_of_a_lent_batch(pair: Pair, ports: list[str]) -> None:
    a, b = pair
    open_pair(pair, ports)
    fill = "rows = {}((64, 32768)); rows[:] = (np.arange(64 * 32768) % 251).reshape(64, 32768)"
    a.run(fill.format("aiflow.empty"))
    b.run(fill.format("np.empty"))
    b.start("with rx.recv(timeout=60) as got: answer = bool((got.as_arrays()['rows'] == rows).all())")
    a.run("tx.send_batch('rows', rows, timeout=60)")
    assert b.finish()
    assert a.run(BY_REFERENCE) > 0
    a.run("del rows")


def test_small_arrays_take_no_mapping(pair: Pair, ports: list[str]) -> None:
    a, b = pair
    open_pair(pair, ports)
    fill = "small = {{str(n): {}(32 << 10, np.uint8) for n in range(40)}}\nfor n in small: small[n][:] = int(n)"
    a.run(fill.format("aiflow.empty"))
    b.run(fill.format("np.empty"))
    send(pair, "small", "small")
    assert a.run(BY_REFERENCE) == 0
    assert a.run(COUNTS)["mapped"] == 0
    a.run("del small")


def test_more_arrays_than_dpdk_maps(pair: Pair, ports: list[str]) -> None:
    """Those beyond are copied, and mapped when others have gone. Only a part of each is sent, to save time."""
    a, b = pair
    open_pair(pair, ports)
    fill = "many = {{n: {}(64 << 10, np.uint8) for n in range(300)}}\nfor n in many: many[n][:] = n % 251"
    part = "{str(n): array[:4096] for n, array in many.items()}"
    a.run(fill.format("aiflow.empty"))
    b.run(fill.format("np.empty"))
    a.run("import warnings\nknown = warnings.catch_warnings(record=True)\ntold = known.__enter__()")
    a.run("warnings.simplefilter('always')")
    send(pair, part, part)
    send(pair, part, part)
    a.run("known.__exit__(None, None, None)")
    assert a.run("answer = sum('ulimit -l' in str(each.message) for each in told)") == 1
    assert a.run(COUNTS) == {"arrays": 300, "mapped": 256, "held": 0}
    for console in pair:
        console.run("for n in range(100): del many[n]")
    send(pair, part, part)
    assert a.run(COUNTS) == {"arrays": 200, "mapped": 200, "held": 0}
    a.run("del many")
    assert a.run(COUNTS) == {"arrays": 0, "mapped": 0, "held": 0}


def test_a_card_that_drops_referenced_frames_gets_copies(pair: Pair, ports: list[str]) -> None:
    """The array's pages lie apart, so QEMU's igb drops its frames, however often they are sent by reference."""
    a, b = pair
    open_pair(pair, ports)
    fill = "apart = np.arange(256 << 10).astype(np.uint8)"
    b.run(fill)
    a.run("""
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        both = [aiflow.empty(256 << 10) for _ in range(2)]
        for array in both:
            assert libc.madvise(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes), 15) == 0
        for page in range(0, 256 << 10, 4096):
            for array in both:
                array[page] = 1
    """)  # 15: MADV_NOHUGEPAGE
    a.run(fill + "; both[0][:] = apart")
    send(pair, "{'apart': both[0]}", "{'apart': apart}")
    assert a.run(BY_REFERENCE) > 0
    a.run("del both, array")


def test_two_cards_read_one_array(pair: Pair, ports: list[str]) -> None:
    """Each Sender has a worker of its own. The array stays mapped until both cards are closed."""
    a, b = pair
    open_pair(pair, ports)
    b.run(f"rx2 = aiflow.Receiver({ports[3]!r}, frame_size=9014)")
    a.run(f"tx2 = aiflow.Sender({ports[2]!r}, frame_size=9014)")
    a.run(LENT)
    b.run("wanted = dict(list(images.items())[:7])")
    for _ in range(3):
        b.start(
            "with rx.recv(timeout=60) as one, rx2.recv(timeout=60) as two:\n"
            "    answer = same(one, wanted) and same(two, wanted)"
        )
        a.run("tickets = [side.send(lent, wait=False) for side in (tx, tx2)]")
        a.run("for ticket in tickets: ticket.result(timeout=60)\ndel tickets, ticket")
        assert b.finish()
    for side in ("tx", "tx2"):
        assert a.run(f"answer = sum(row.by_reference for row in {side}.port_table)") > 0
    a.run("tx.close()")
    assert a.run(COUNTS) == {"arrays": 1, "mapped": 1, "held": 0}
    a.run(FREE)
    assert a.run(COUNTS)["held"] == 1
    a.run("tx2.close()\ndel tx2")
    b.run("rx2.close()\ndel rx2, one, two")
    assert a.run(COUNTS) == {"arrays": 0, "mapped": 0, "held": 0}

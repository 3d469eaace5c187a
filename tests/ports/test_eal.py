"""The control plane: DPDK's environment, mempools and ports. Faults 50 (fork), 51 (second start)."""

from __future__ import annotations

import gc
import mmap
import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from subprocesses import run
from wait import wait_for

import aiflow.errors
from aiflow import _eal
from aiflow._ports.local_drivers import DRIVERS, close_receiving, open_receiving
from aiflow.errors import AiflowError, ConfigError, EalError, PoolExhausted, PortError

root = pytest.mark.root


# ---------------------------------------------------------------------------------------------------------------- EAL


def test_importing_starts_nothing() -> None:
    out = run("""
        import threading, os
        import numpy  # has threads of its own
        before = len(os.listdir('/proc/self/task'))
        from aiflow import _eal
        print(_eal.started(), _eal.memory_mode(), threading.active_count(), len(os.listdir('/proc/self/task')) - before)
    """)
    assert out.split() == ["False", "None", "1", "0"]


def test_start_leaves_affinity_limits_and_stderr_alone() -> None:
    out = run("""
        import os, resource, threading
        from aiflow import _eal
        cpu = min(os.sched_getaffinity(0))
        before = os.sched_getaffinity(0), resource.getrlimit(resource.RLIMIT_NOFILE)
        _eal.start()
        seen = []
        thread = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
        thread.start(); thread.join()
        assert (os.sched_getaffinity(0), resource.getrlimit(resource.RLIMIT_NOFILE)) == before
        assert seen == [before[0]], 'a thread started later inherits a pin'
        print(_eal.started(), _eal.memory_mode())
    """)
    assert out.split()[0] == "True"
    assert out.split()[1] in ("hugepages", "no-huge")


def test_start_within_a_narrow_affinity_mask_keeps_it() -> None:
    cpu = str(max(os.sched_getaffinity(0)))
    out = run(
        "import os; from aiflow import _eal; _eal.start(); print(*os.sched_getaffinity(0))",
        prefix=("taskset", "-c", cpu),
    )
    assert out.split() == [cpu]


def test_start_leaves_nothing_in_the_runtime_directory() -> None:
    out = run("""
        import os
        from aiflow import _eal
        from aiflow import _eal_args
        _eal.start()
        print([path.name for path in _eal_args._runtime_root().glob(f'aiflow-{os.getpid()}-*')])
    """)
    assert out.strip() == "[]"


def test_memory_mode_can_be_forced_and_a_wrong_one_is_named() -> None:
    assert (
        run("from aiflow import _eal; _eal.start(); print(_eal.memory_mode())", AIFLOW_MEMORY="no-huge") == "no-huge\n"
    )
    out = run(
        """
        from aiflow import _eal
        try:
            _eal.start()
        except Exception as exc:
            print(type(exc).__name__, exc)
        """,
        AIFLOW_MEMORY="lots",
    )
    assert "AIFLOW_MEMORY='lots'" in out


def test_a_start_that_failed_for_its_settings_can_be_tried_again() -> None:
    out = run(
        """
        import os
        from aiflow import _eal
        from aiflow.errors import ConfigError
        try:
            _eal.start()
        except ConfigError as exc:
            print(exc)
        del os.environ['AIFLOW_EAL_MEMORY']
        _eal.start()
        print(_eal.started())
        """,
        AIFLOW_EAL_MEMORY="much",
        AIFLOW_MEMORY="no-huge",
    )
    assert "size 'much' is not understood" in out
    assert out.endswith("True\n")


def test_fault_50_forked_child_gets_an_error_and_the_parent_goes_on() -> None:
    out = run("""
        import os
        from aiflow import _eal
        from aiflow.errors import EalError
        pool = _eal.Mempool('p', 256, 2048)
        port, other = _eal.Port.open_ring_pair('r', pool)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _eal.Mempool('q', 256, 2048)
            except EalError as exc:
                code = 0 if 'spawn' in str(exc) else 2
            try:
                port.stats()
                code = 3
            except EalError:
                pass
            port.close()            # does nothing
            del pool, port, other   # nor does this
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert port.stats()['ipackets'] == 0 and port.is_open
        port.close()
        other.close()
        print('parent goes on')
    """)
    assert out == "parent goes on\n"


def test_fault_50_a_child_of_a_process_without_ports_can_have_its_own() -> None:
    out = run("""
        import os
        from aiflow import _eal
        pid = os.fork()
        if pid == 0:
            _eal.Mempool('q', 256, 2048)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """)
    assert out == "0\n"


def test_fault_51_second_start_does_nothing() -> None:
    out = run("""
        import os
        from aiflow import _eal
        _eal.start()
        threads = len(os.listdir('/proc/self/task'))
        _eal.start()
        assert len(os.listdir('/proc/self/task')) <= threads  # one may just have been on its way out
        print(_eal.memory_mode())
    """)
    assert out.strip()


FOREIGN = """
    import ctypes
    from aiflow import _eal
    from aiflow.errors import EalError
    path = next(line.split()[-1] for line in open('/proc/self/maps') if '/librte_eal.so' in line)
    eal = ctypes.CDLL(path)
    words = b'foreign --no-huge --no-shconf --no-pci --no-telemetry -m 32 --lcores 0@0'.split()
    argv = (ctypes.c_char_p * len(words))(*words)
"""


def test_fault_51_started_by_foreign_code() -> None:
    code = (
        FOREIGN
        + """
    assert eal.rte_eal_init(len(words), argv) >= 0
    for _ in range(2):
        try:
            _eal.start()
        except EalError as exc:
            print(exc)
    assert not _eal.started()
    """
    )
    out = run(code)
    assert out.count("already started in this process by other code") == 2


def test_fault_51_foreign_code_comes_second() -> None:
    code = (
        FOREIGN
        + """
    pool = _eal.Mempool('p', 256, 2048)
    assert eal.rte_eal_init(len(words), argv) < 0
    print(_eal.Mempool('q', 256, 2048).in_use)
    """
    )
    assert run(code) == "0\n"


def test_threads_that_poll_can_register_once() -> None:
    out = run("""
        import threading
        from aiflow import _eal
        seen = []
        def poll():
            seen.extend((_eal.register_thread(), _eal.register_thread()))
            _eal.unregister_thread()
        for _ in range(300):  # more than DPDK has lcores: each is given back
            thread = threading.Thread(target=poll)
            thread.start(); thread.join()
        print(seen == [True, False] * 300)
    """)
    assert out == "True\n"


# ------------------------------------------------------------------------------------------------------------ mempools


def test_mempool_holds_what_was_asked_and_gives_its_memory_back() -> None:
    gc.collect()
    before = {id(pool) for pool in _eal.mempools()}
    for own_memory in (False, True):
        pool = _eal.Mempool("sized", 1024, 9014, own_memory=own_memory)
        assert (pool.nb_mbufs, pool.data_room, pool.in_use) == (1024, 9014, 0)
        del pool
    gc.collect()
    assert {id(pool) for pool in _eal.mempools()} <= before


def test_mempools_on_own_memory_are_larger_than_the_eal_heap_and_unmapped_at_the_end() -> None:
    def mapped() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE

    _eal.Mempool("first", 64, 2048, own_memory=True)
    gc.collect()
    before = mapped()
    pool = _eal.Mempool("large", 20000, 65000 - 128, own_memory=True)
    assert mapped() - before > 1200 << 20
    del pool
    gc.collect()
    wait_for(lambda: mapped() - before < 16 << 20, "its memory to be unmapped")


@pytest.mark.parametrize(("nb_mbufs", "data_room"), [(0, 2048), (16, 63), (16, 65408)])
def test_mempools_of_impossible_sizes_are_refused(nb_mbufs: int, data_room: int) -> None:
    with pytest.raises(ConfigError, match="mempool odd"):
        _eal.Mempool("odd", nb_mbufs, data_room)


def test_a_mempool_on_its_own_mapping_tells_when_dpdks_heap_is_full() -> None:
    """Its ring and its header lie in the heap. More memory in the machine would not help."""
    out = run(
        """
        from aiflow import _eal
        from aiflow.errors import PoolExhausted
        full = []
        nb_mbufs = 8192
        while nb_mbufs:
            try:
                full.append(_eal.Mempool('heap', nb_mbufs, 2048))
            except PoolExhausted:
                nb_mbufs //= 2
        try:
            _eal.Mempool('ours', 65536, 64, own_memory=True)
        except PoolExhausted as exc:
            print(exc)
        """,
        AIFLOW_MEMORY="no-huge",
        AIFLOW_EAL_MEMORY="32MiB",
    )
    assert "mempool ours: 65536 mbufs of 64 bytes" in out
    assert "do not fit in DPDK's no-huge memory" in out
    assert "set AIFLOW_EAL_MEMORY (now 32MiB) higher" in out


def test_a_mempool_that_does_not_fit_says_so_and_leaves_nothing() -> None:
    out = run(
        """
        from aiflow import _eal
        from aiflow.errors import PoolExhausted
        for _ in range(3):
            try:
                _eal.Mempool('large', 60000, 60000)
            except PoolExhausted as exc:
                print(exc)
        _eal.Mempool('small', 4096, 9014)
    """,
        AIFLOW_MEMORY="no-huge",
    )
    assert out.count("AIFLOW_EAL_MEMORY") == 3


# --------------------------------------------------------------------------------------------------------------- ports


@pytest.fixture
def pool() -> Iterator[_eal.Mempool]:
    pool = _eal.Mempool("test", 1024, 2048, own_memory=True)
    yield pool
    assert pool.in_use == 0


def test_ring_pair_opens_and_closes(pool: _eal.Mempool) -> None:
    before = _eal.nb_ports()
    for port in _eal.Port.open_ring_pair("r", pool):
        assert port.driver == "net_ring"
        assert len(port.mac) == 6
        assert port.mac != bytes(6)
        assert port.link() == (True, None)
        assert port.frame_size == 2048
        assert port.stats()["opackets"] == 0
        assert port.xstats()
        port.close()
        port.close()
        with pytest.raises(PortError, match="closed"):
            port.stats()
    assert _eal.nb_ports() == before


def test_a_process_has_32_ports_at_most_and_gets_them_back(pool: _eal.Mempool) -> None:
    ports: list[_eal.Port] = []
    before = _eal.nb_ports()
    while _eal.nb_ports() + 2 <= 32:
        ports.extend(_eal.Port.open_ring_pair(f"r{len(ports)}", pool, nb_rxd=64))
    with pytest.raises(PortError, match="32 ports at most"):
        _eal.Port.open_ring_pair("one too many", pool)
    for port in ports:
        port.close()
    assert _eal.nb_ports() == before


def test_ports_leave_no_descriptor_or_thread_behind(pool: _eal.Mempool, tmp_path: Path) -> None:
    before = _eal.nb_ports()

    def cycle(number: int) -> None:
        port, path, identity = open_receiving(DRIVERS["memif"], f"m{number}", tmp_path, 2048, 1024, pool)
        assert (port.gated, port.frame_size, port.rx_ring, port.link()[0]) == (True, 2048, 1024, False)
        assert Path(path).is_socket()
        assert identity not in identities
        identities.add(identity)
        close_receiving(port)
        assert not port.is_open

    identities: set[int] = set()
    cycle(0)

    def in_use() -> tuple[int, int]:
        """Descriptors and threads. The interrupt thread closes its epoll set now and then, to make it anew."""
        looks = []
        for _ in range(20):
            looks.append((len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))))
            time.sleep(0.01)
        return max(looks)

    at_first = in_use()
    for number in range(1, 40):
        cycle(number)
    wait_for(lambda: all(now <= then for now, then in zip(in_use(), at_first, strict=True)), f"{at_first} again")
    assert _eal.nb_ports() == before


def test_a_port_that_does_not_open_says_why_and_leaves_nothing(pool: _eal.Mempool) -> None:
    before = _eal.nb_ports()
    with pytest.raises(PortError, match=r"DPDK says: .*nosuch"):
        _eal.Port.open("nosuch", "net_nosuch0", "", pool)
    with pytest.raises(PortError, match="does not open"):
        _eal.Port.open("p", "net_af_packet_test", "iface=nosuchif", pool)
    assert _eal.nb_ports() == before


# -------------------------------------------------------------------------------------------------------------- errors


def test_errors_are_the_contracts_and_survive_pickling() -> None:
    bases = {
        "ConfigError": ValueError,
        "EalError": AiflowError,
        "PortError": AiflowError,
        "PeerLost": ConnectionError,
        "SliceTimeout": TimeoutError,
        "PoolExhausted": MemoryError,
        "IntegrityError": AiflowError,
    }
    for name, base in bases.items():
        kind = getattr(aiflow.errors, name)
        assert issubclass(kind, AiflowError)
        assert issubclass(kind, base)
        error = pickle.loads(pickle.dumps(kind("why", delivered=None, delivered_by={"a": True})))
        assert (str(error), error.delivered, error.delivered_by) == ("why", None, {"a": True})
    assert issubclass(EalError, AiflowError)
    assert issubclass(PoolExhausted, MemoryError)


@pytest.mark.parametrize(
    ("scheme", "frame_size", "nb_ports", "frames"),
    [("memif", 512, 1, 1024), ("memif", 1514, 1, 1024), ("memif", 9014, 1, 256), ("memif", 16384, 1, 256),
     ("memif", 65000, 1, 64), ("memif", 16384, 2, 128), ("memif", 16384, 3, 64), ("memif", 16384, 32, 64),
     ("memif", 1514, 4, 512), ("vhost", 9216, 1, 1024), ("vhost", 9216, 32, 1024)],
)  # fmt: skip
def test_the_rings_of_a_connection_are_as_long_as_4_mib_allow(scheme, frame_size, nb_ports, frames) -> None:
    assert DRIVERS[scheme].ring_for(frame_size, nb_ports) == frames

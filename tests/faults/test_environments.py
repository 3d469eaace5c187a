"""Processes with limits on threads, memory, hugepages or processor time.

A transfer works within the limit, or an EalError or PoolExhausted names it soon. After the limit is raised the same
process may try again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from subprocesses import run

import aiflow
from aiflow import _eal_args
from aiflow._system import limits
from aiflow.errors import EalError

root = pytest.mark.root
unit = pytest.mark.unit

ATTEMPT = """
import os, resource, sys, threading, time
import aiflow
aiflow.Sender, aiflow.Receiver                     # loads numpy
def attempt(endpoint, memory="16MiB", timeout=15):
    try:
        with aiflow.Receiver(endpoint, memory=memory) as rx, aiflow.Sender(endpoint, peer_timeout=10) as tx:
            ticket = tx.send([bytes(100_000)], wait=False)
            rx.recv(timeout).release()
            ticket.result(timeout)
            return "works"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""


# ------------------------------------------------------------------------------------------------------ other's threads

STAND_IN = """
import _thread, threading
def patch():
    def refuse(*arguments, **keywords):
        raise AssertionError("a greenlet in place of a thread")
    for module, name in ((_thread, "start_new_thread"), (threading, "_start_new_thread"),
                         (_thread, "start_joinable_thread"), (threading, "_start_joinable_thread")):
        if hasattr(module, name):
            setattr(module, name, refuse)
"""
GEVENT = "def patch():\n    from gevent import monkey\n    monkey.patch_all()\n"
GEVENT_THREADS = "def patch():\n    from gevent import monkey\n    monkey.patch_thread()\n"
EVENTLET = "def patch():\n    import eventlet\n    eventlet.monkey_patch()\n"
PATCHED = """
if sys.argv[1] == "before": patch()
import aiflow
if sys.argv[1] == "between": patch()
aiflow.Sender, aiflow.Receiver
if sys.argv[1] == "after": patch()
print(attempt("local:patched"))
with aiflow.pair() as (tx, rx):
    ticket = tx.send([b"x"], wait=False)
    rx.recv(10).release()
    ticket.result(10)
print("pair")
"""


@pytest.mark.parametrize("when", ["before", "between", "after"])
@pytest.mark.parametrize(
    ("library", "patch"),
    [("", STAND_IN), ("gevent", GEVENT), ("gevent", GEVENT_THREADS), ("eventlet", EVENTLET)],
    ids=["stand-in", "gevent", "gevent-threads", "eventlet"],
)
def test_loops_run_in_threads_of_the_system_s_whatever_patches_python_s(library: str, patch: str, when: str) -> None:
    if library and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    attempt = ATTEMPT.replace("import aiflow\naiflow.Sender, aiflow.Receiver ", "import sys #")
    said = run(patch + attempt + PATCHED, when, timeout=60)
    assert said.splitlines() == ["works", "pair"]


def test_put_works_with_patched_threads() -> None:
    pytest.importorskip("gevent")
    said = run(
        """
        from gevent import monkey; monkey.patch_all()
        import aiflow
        with aiflow.Receiver("local:put", memory="16MiB") as rx, aiflow.Sender("local:put", slice_ms=20) as tx:
            for _ in range(50): tx.put("s", b"x" * 1000)
            tx.flush(20)
            got = 0
            while got < 50:
                with rx.recv(20) as time_slice: got += len(time_slice)
        print(got)
        """,
        timeout=60,
    )
    assert said == "50\n"


# ------------------------------------------------------------------------------------------------------ no more threads


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A directory with a short name: sockets are made in it."""
    with tempfile.TemporaryDirectory(prefix="af", dir="/tmp") as directory:
        yield Path(directory)


@root
@pytest.mark.parametrize("started", [False, True], ids=["", "DPDK-runs"])
@pytest.mark.parametrize("more", [0, 1, 2, 3, 4])
def test_a_process_that_gets_threads_again_works_again(runtime: Path, more: int, started: bool) -> None:
    """RLIMIT_NPROC counts the threads of a user: of one that has no others."""
    user = 64000 + os.getpid() % 1000
    os.chown(runtime, user, user)
    said = run(
        ATTEMPT
        + f"""
os.setgroups([])
os.setresgid({user}, {user}, {user})
os.setresuid({user}, {user}, {user})
if {started}: assert attempt("ring:first") == "works"
now = len(os.listdir("/proc/self/task"))
_, hard = resource.getrlimit(resource.RLIMIT_NPROC)
resource.setrlimit(resource.RLIMIT_NPROC, (now + {more}, hard))
first = attempt("local:few")
resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))
print(first)
print(attempt("local:few"))
""",
        timeout=60,
        AIFLOW_RUNTIME_DIR=str(runtime),
        XDG_RUNTIME_DIR=str(runtime),
    )
    first, second = said.splitlines()
    assert first == "works" or first.startswith("EalError: no thread can be started")
    assert first != "works" or more > 2
    assert second == "works"


# --------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("limit", ["AS", "DATA"])
@pytest.mark.parametrize("mib", [300, 700, 1000, 1500, 2000, 3000, 3800, 4100, 4300])
def test_a_limit_on_memory_leaves_a_receiver_or_advice_that_helps(limit: str, mib: int) -> None:
    said = run(
        ATTEMPT
        + f"""
resource.setrlimit(resource.RLIMIT_{limit}, ({mib} << 20, resource.RLIM_INFINITY))
first, second = [], []
def opened(memory):
    try: aiflow.Receiver("local:small", memory=memory).close(); return "works"
    except Exception as error: return f"{{type(error).__name__}}: {{error}}"
print(opened("1GiB"))
print(opened("64MiB"))
resource.setrlimit(resource.RLIMIT_{limit}, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(attempt("local:small", "1GiB"))
""",
        timeout=60,
    )
    first, second, third = said.splitlines()
    assert first == "works" or "memory=" in first
    assert second == "works" or (mib < 1000 and "memory=" in second)
    assert mib < 3000 or first == "works"
    assert third == "works"


def test_element_memory_that_is_not_used_counts_nowhere() -> None:
    said = run(
        """
        import aiflow
        def writable():
            (line,) = (line for line in open("/proc/self/status") if line.startswith("VmData"))
            return int(line.split()[1]) >> 10
        with aiflow.pair(memory="64MiB"): before = writable()
        with aiflow.Receiver("ring:large", memory="4TiB"): print(writable() - before)
        """,
    )
    assert int(said) < 1024  # MiB


@unit
def test_limits_of_cgroups_are_found_in_either_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "one" / "jobs" / "7", tmp_path / "two" / "jobs"
    one.mkdir(parents=True)
    two.mkdir(parents=True)
    (one / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (one.parent / "memory.limit_in_bytes").write_text(f"{3 << 30}\n")
    (two / "memory.max").write_text("max\n")
    (two / "hugetlb.2MB.max").write_text(f"{80 << 20}\n")
    (two / "hugetlb.1GB.max").write_text(f"{80 << 20}\n")
    (tmp_path / "mountinfo").write_text(
        f"30 1 0:20 / {tmp_path}/one rw - cgroup cgroup rw,memory\n31 1 0:21 / {tmp_path}/two rw - cgroup2 cgroup2 rw\n"
    )
    (tmp_path / "cgroup").write_text("4:memory:/jobs/7\n0::/jobs\n")
    monkeypatch.setattr(limits, "PROC", tmp_path)
    assert limits.memory_limit() == 3 << 30
    assert limits.hugepage_limit() == 80 << 20
    (two / "memory.max").write_text(f"{1 << 30}\n")
    assert limits.memory_limit() == 1 << 30
    monkeypatch.setattr(limits, "PROC", tmp_path / "none")
    assert limits.memory_limit() is None
    assert limits.hugepage_limit() is None


@pytest.mark.parametrize("version", [1, 2])
def test_memory_beyond_the_container_s_limit_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    (tmp_path / ("memory.limit_in_bytes" if version == 1 else "memory.max")).write_text(f"{512 << 20}\n")
    kind = "cgroup cgroup rw,memory" if version == 1 else "cgroup2 cgroup2 rw"
    (tmp_path / "mountinfo").write_text(f"30 1 0:20 / {tmp_path} rw - {kind}\n")
    (tmp_path / "cgroup").write_text("4:memory:/\n" if version == 1 else "0::/\n")
    monkeypatch.setattr(limits, "PROC", tmp_path)
    with pytest.warns(RuntimeWarning, match="the container's limit is 512 MiB") as told:
        aiflow.Receiver("ring:warned", memory="1GiB").close()
    assert [warning.filename for warning in told] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        aiflow.Receiver("ring:warned", memory="256MiB").close()


@root
@pytest.mark.parametrize("mib", [0, 64, 80])
def test_hugepages_that_the_cgroup_forbids_are_done_without(tmp_path: Path, mib: int) -> None:
    with hugetlb_group(tmp_path, mib << 20) as group:
        said = run(
            f"open('{group}/cgroup.procs', 'w').write('0')\n"
            + ATTEMPT
            + """
from aiflow import _eal
print(attempt("local:huge*2"))
print(attempt("vhost:huge*4"))
print(_eal.memory_mode())
""",
            timeout=60,
        )
        assert said.splitlines() == ["works", "works", "no-huge"]
        said = run(
            f"open('{group}/cgroup.procs', 'w').write('0')\n"
            + ATTEMPT
            + """
print(attempt("local:huge"))
os.environ["AIFLOW_MEMORY"] = "no-huge"
print(attempt("local:huge"))
""",
            timeout=60,
            AIFLOW_MEMORY="hugepages",
        )
        if mib < 64:
            first, second = said.splitlines()
            assert first.startswith("EalError")
            assert f"the cgroup's limit is {mib} MiB" in first
            assert second == "works"


@pytest.mark.parametrize("mib", [2, 100])
def test_hugepages_that_a_limit_on_files_forbids_are_done_without(mib: int) -> None:
    limited = f"{ATTEMPT}\nresource.setrlimit(resource.RLIMIT_FSIZE, ({mib} << 20, {mib} << 20))\n"
    said = run(f"{limited}from aiflow import _eal\nprint(attempt('ring:huge'), _eal.memory_mode())", timeout=60)
    assert said.split() == ["works", "no-huge"]
    if mib < 64:
        said = run(
            f"{limited}print(attempt('ring:huge'))\ndel os.environ['AIFLOW_MEMORY']\nprint(attempt('ring:huge'))",
            timeout=60,
            AIFLOW_MEMORY="hugepages",
        )
        first, second = said.splitlines()
        assert "ulimit -f is 2048 KiB: raise it, or unset AIFLOW_MEMORY" in first
        assert second == "works"


@contextlib.contextmanager
def hugetlb_group(tmp_path: Path, nbytes: int) -> Iterator[Path]:
    """A cgroup that is limited to `nbytes` of hugepages, on a machine that has more."""
    pages = Path("/proc/sys/vm/nr_hugepages")
    mount, before = tmp_path / "hugetlb", pages.read_text()
    mount.mkdir()
    command = ["mount", "-t", "cgroup", "-o", "hugetlb", "aiflow-test", str(mount)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no cgroup of version 1 for hugepages to be had")
    group = mount / f"aiflow-t-{os.getpid()}"
    try:
        group.mkdir()
        (group / "hugetlb.2MB.limit_in_bytes").write_text(str(nbytes))
        pages.write_text(str(int(before) + 300))
        if not _eal_args.hugepages_usable(256 << 20):
            pytest.skip("there are no 256 MiB of hugepages to be had")
        yield group
    finally:
        pages.write_text(before)
        with contextlib.suppress(OSError):
            group.rmdir()
        subprocess.run(["umount", str(mount)], check=True)


# ------------------------------------------------------------------------------------------------------------ real time


@root
@pytest.mark.parametrize("endpoint", ["ring:rt", "local:rt", "vhost:rt"])
@pytest.mark.parametrize("policy", ["SCHED_FIFO", "SCHED_RR"])
def test_a_real_time_process_on_one_core_comes_up(policy: str, endpoint: str) -> None:
    said = run(
        ATTEMPT
        + f"""
os.sched_setaffinity(0, set(list(os.sched_getaffinity(0))[-1:]))
os.sched_setscheduler(0, os.{policy}, os.sched_param(20))
print(attempt("{endpoint}"))
for task in os.listdir("/proc/self/task"):
    if open(f"/proc/self/task/{{task}}/comm").read().startswith(("eal-", "dpdk-", "vhost")):
        assert os.sched_getscheduler(int(task)) == os.{policy}
""",
        timeout=30,
    )
    assert said == "works\n"


# --------------------------------------------------------------------------------------------------------- DPDK's words


def test_what_dpdk_prints_at_its_start_is_in_the_error_and_not_on_stderr() -> None:
    said = run(
        """
        import os, sys
        read, write = os.pipe()
        os.dup2(write, 2)
        from aiflow import _eal
        from aiflow import _eal_args
        choose = _eal_args.choose
        _eal_args.choose = lambda prefix: (choose(prefix)[0], [*choose(prefix)[1], "-m", "999999999"])
        try: _eal.start()
        except Exception as error: print(type(error).__name__, "EAL" in str(error).partition("DPDK says")[2])
        sys.stderr.flush()
        os.set_blocking(read, False)
        try: print(len(os.read(read, 65536)))
        except BlockingIOError: print(0)
        """,
    )
    assert said.splitlines() == [f"{EalError.__name__} True", "0"]


@root
def test_what_another_user_put_among_the_runtime_directories_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in /tmp/dpdk, where any user may make directories with our names and links to our files."""
    monkeypatch.setattr(_eal_args, "_runtime_root", lambda: tmp_path)
    runs = {name: tmp_path / f"aiflow-{name}" for name in ("left", "link", "theirs", "all-link")}
    for run_directory in list(runs.values())[:3]:
        run_directory.mkdir()
    (tmp_path / "mine").mkdir()
    runs["link"].joinpath("aiflow-lock").symlink_to(tmp_path / "mine/made")
    runs["all-link"].symlink_to(tmp_path / "mine")
    os.chown(runs["theirs"], 65534, 65534)
    for path in (*runs.values(), tmp_path / "mine"):
        os.utime(path, (0, 0))
    assert _eal_args.remove_stale_directories() == ["aiflow-left"]
    with _eal_args.directory_held("aiflow-link"):
        pass
    assert list((tmp_path / "mine").iterdir()) == []
    assert list(runs["theirs"].iterdir()) == []

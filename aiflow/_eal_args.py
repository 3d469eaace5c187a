"""Arguments and conditions for the start of DPDK's EAL: memory mode, CPUs, runtime directory. Does not use DPDK."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import math
import mmap
import os
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from aiflow._system import limits, threads
from aiflow._system.descriptors import Descriptor, keep
from aiflow._system.filelock import holder, is_own_directory, lock
from aiflow.config import parse_size
from aiflow.errors import ConfigError, EalError

__all__ = [
    "advice",
    "choose",
    "directory_held",
    "heap_bytes",
    "hugepages_usable",
    "is_narrow",
    "memory_mib",
    "narrow_iommu",
    "one_at_a_time",
    "open_files_limit_kept",
    "remove_stale_directories",
    "stale_directories",
    "start_possible",
    "uses_physical_addresses",
    "without_realtime",
]

_HEAP_MIB = 248  # the kernel's vfio maps each 4 KiB page for a card, and 65535 pages at most (dma_entry_limit)
_HUGEPAGES_MIB = 64  # reserved at the start; the EAL takes more for pools
_BESIDE_MIB = 192  # address space that DPDK maps at its start in addition to its heap, and stacks
_DPDK_THREAD_NAMES = ("eal-", "dpdk-", "rte_", "vhost")
_DPDK_THREADS = 2  # largest number that DPDK starts with
_RTE_MAX_LCORE = 128
_MAP_HUGETLB = 0x40000
_MADV_POPULATE_WRITE = 23
_IOMMUS = Path("/sys/class/iommu")
_PCI_DRIVERS = Path("/sys/bus/pci/drivers")
_IOMMU_GROUPS = Path("/sys/kernel/iommu_groups")
_UNSAFE_VFIO = Path("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode")
_ADDRESS_BITS = 47  # of this process's addresses; DPDK asks as much of an IOMMU (pci_device_iommu_support_va)
_HUGEPAGES = "/sys/kernel/mm/hugepages"  # one for the machine; processes of any user can lock it
_LOCK_TIMEOUT = 5.0  # seconds
_STARTED = 10.0  # a starting process holds its lock before its directory is this old (seconds)
_LOCK = "aiflow-lock"


def memory_mib() -> int:
    """MiB of the EAL's own heap: AIFLOW_EAL_MEMORY, 248 by default.

    Without hugepages its size is fixed for the life of the process. Untouched pages cost no memory.
    """
    text = os.environ.get("AIFLOW_EAL_MEMORY")
    return max(32, parse_size(text) >> 20) if text else _HEAP_MIB


def heap_bytes(mode: str) -> int:
    """Size of the EAL's heap in a memory mode: what it reserves at its start."""
    return (_HUGEPAGES_MIB if mode == "hugepages" else memory_mib()) << 20


def hugepages_usable(nbytes: int, *, touch: bool = False) -> bool:
    """Whether the kernel grants `nbytes` of hugepages to this process now; they are returned at once.

    A mapping only reserves pages. A cgroup's limit counts touched pages, and the kernel kills a process beyond it with
    SIGBUS. With `touch` the kernel populates the pages itself, and reports an error instead.
    """
    try:
        with mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_HUGETLB) as pages:
            if touch:
                _touch(pages)
    except (OSError, ValueError):
        return False
    return True


def _touch(pages: mmap.mmap) -> None:
    """Populate every page of a mapping. Raises OSError if that is not possible."""
    try:
        pages.madvise(_MADV_POPULATE_WRITE)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        with open("/dev/zero", "rb", buffering=0) as zeros:  # Linux before 5.14
            for offset in range(0, len(pages), 1 << 20):
                with memoryview(pages) as view, view[offset : offset + (1 << 20)] as part:
                    os.readv(zeros.fileno(), [part])


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Keep other aiflow processes from taking the hugepages that this one finds free, until it has started.

    DPDK's start fails, and cannot be repeated, if another process takes them in between. If the lock is not acquired
    within 5 s, or cannot be taken, the start proceeds without it.
    """
    with contextlib.ExitStack() as until_started:
        if os.environ.get("AIFLOW_MEMORY") != "no-huge" and _has_hugepages():
            with contextlib.suppress(OSError):
                _lock_hugepages(until_started)
        yield


def _has_hugepages() -> bool:
    """Whether the machine has any, free or not. A trial would take them from a process that starts now."""
    for name in ("nr_hugepages", "nr_overcommit_hugepages"):
        for path in Path(_HUGEPAGES).glob(f"hugepages-*/{name}"):
            with contextlib.suppress(OSError, ValueError):
                if int(path.read_text()):
                    return True
    return False


def _lock_hugepages(until_started: contextlib.ExitStack) -> None:
    """Hold the machine's lock until the stack is closed. Raises OSError if that is not possible."""
    directory = keep(lambda: Descriptor(os.open(_HUGEPAGES, os.O_RDONLY | os.O_CLOEXEC)))
    until_started.callback(directory.close)
    deadline = time.monotonic() + _LOCK_TIMEOUT
    while time.monotonic() < deadline:
        try:
            fcntl.flock(directory.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            threads.unpatched("time").sleep(0.01)


def advice(mode: str | None) -> str:
    """How to get more memory for mempools in this memory mode."""
    if mode == "hugepages":
        limit = limits.hugepage_limit()
        more = (
            "reserve more hugepages (as root, `sysctl vm.nr_hugepages=512`)"
            if limit is None
            else f"raise the cgroup's limit on hugepages ({limit >> 20} MiB: hugetlb.*.max or hugetlb.*.limit_in_bytes)"
        )
        return f"{more}, or set AIFLOW_MEMORY=no-huge"
    return f"set AIFLOW_EAL_MEMORY (now {memory_mib()}MiB) higher"


def _affinity() -> str:
    cpus = sorted(os.sched_getaffinity(0))
    known = [cpu for cpu in cpus if cpu < _RTE_MAX_LCORE] or cpus
    return ",".join(map(str, known))


def choose(prefix: str) -> tuple[str, list[str]]:
    """The memory mode and the arguments for rte_eal_init.

    Parameters
    ----------
    prefix : str
        File prefix, unique for the process.

    Returns
    -------
    mode : {"hugepages", "no-huge"}
    arguments : list of str

    Raises
    ------
    ConfigError
        If AIFLOW_MEMORY has an unknown value.
    EalError
        If AIFLOW_MEMORY=hugepages and there are none.
    """
    asked = os.environ.get("AIFLOW_MEMORY", "")
    if asked not in ("", "hugepages", "no-huge"):
        raise ConfigError(f"AIFLOW_MEMORY={asked!r}: set it to hugepages or no-huge, or leave it unset")
    limit, largest = limits.hugepage_limit(), limits.file_limit()
    usable = asked != "no-huge" and hugepages_usable(_HUGEPAGES_MIB << 20, touch=True)
    if largest is not None and largest < _HUGEPAGES_MIB << 20:  # the trial mapping above cannot detect this
        if asked == "hugepages":
            raise EalError(
                f"AIFLOW_MEMORY=hugepages needs files of at least {_HUGEPAGES_MIB} MiB, and ulimit -f is "
                f"{largest >> 10} KiB: raise it, or unset AIFLOW_MEMORY"
            )
        usable = False
    if asked == "hugepages" and not usable:
        which = "" if limit is None else f" (the cgroup's limit is {limit >> 20} MiB)"
        raise EalError(
            f"AIFLOW_MEMORY=hugepages, but {_HUGEPAGES_MIB} MiB of hugepages are not free{which}: "
            "as root, `sysctl vm.nr_hugepages=256` (or stop what holds them), or unset AIFLOW_MEMORY"
        )
    if asked != "hugepages":  # avoid them if they give less room than ordinary memory, or if address space is limited
        least = min(each for each in (limit, largest, math.inf) if each is not None)
        usable = usable and least >= memory_mib() << 20 and limits.address_space_left() is None
    arguments = [
        "aiflow",
        "--lcores",
        f"0@({_affinity()})",  # a floating lcore: no thread is pinned
        "--file-prefix",
        prefix,
        "--no-telemetry",
    ]
    if usable:
        # in-memory: no file in hugetlbfs that a killed process would leave behind
        arguments += ["--in-memory", "--single-file-segments", "-m", str(_HUGEPAGES_MIB)]
        if (narrow_iommu() or _cards_without_iommu()) and _sees_physical_addresses():
            arguments += ["--iova-mode", "pa"]
    else:
        # 22.11 refuses --in-memory with --no-huge, 25.11 --single-file-segments, which --no-huge implies
        arguments += ["--no-huge", "--no-shconf", "-m", str(memory_mib())]
    if Path("/sys/bus/pci/devices").is_dir():
        # scan the bus but probe no device: the allow list names none that exists. pci: endpoints are plugged later.
        arguments += ["-a", "ffff:ff:1f.7"]
    else:
        arguments += ["--no-pci"]
    return ("hugepages" if usable else "no-huge"), arguments


def narrow_iommu() -> bool:
    """Whether an Intel IOMMU of this machine is too narrow for addresses of a process; many have 39 bits.

    DPDK then drives a card behind it with physical addresses only. It decides at its start, when it knows of no card.
    """
    return any(is_narrow(iommu) for iommu in _IOMMUS.glob("*"))


def is_narrow(iommu: Path) -> bool:
    """Whether an IOMMU is too narrow, by its directory in sysfs: see `narrow_iommu`."""
    with contextlib.suppress(OSError, ValueError):
        return (int((iommu / "intel-iommu/cap").read_text(), 16) >> 16 & 0x3F) + 1 < _ADDRESS_BITS
    return False


def uses_physical_addresses(mode: str) -> bool:
    """Whether DPDK will start with physical addresses, which cards without an IOMMU need; as rte_eal_init decides."""
    asked_for = narrow_iommu() or _cards_without_iommu()
    return mode == "hugepages" and _sees_physical_addresses() and (asked_for or not any(_IOMMU_GROUPS.glob("*")))


def _cards_without_iommu() -> bool:
    """Whether a card is bound for DPDK that needs physical addresses, mostly as no IOMMU isolates it.

    DPDK would not see that at its start, when it knows of no card. It takes the groups of vfio's no-IOMMU mode for an
    IOMMU. While that mode is on, it needs them for every card of vfio, also behind an IOMMU (pci_device_iova_mode).
    """
    with contextlib.suppress(OSError):
        if _UNSAFE_VFIO.read_text().strip() == "Y" and any(_PCI_DRIVERS.glob("vfio-pci/*:*")):
            return True
    if any(any(_PCI_DRIVERS.glob(f"{driver}/*:*")) for driver in ("uio_pci_generic", "igb_uio")):
        return True
    for name in _IOMMU_GROUPS.glob("*/name"):
        with contextlib.suppress(OSError):
            if name.read_text().strip() == "vfio-noiommu":
                return True
    return False


def _sees_physical_addresses() -> bool:
    """Whether the kernel tells this process where its pages lie; otherwise DPDK does not start in that mode."""
    touched = ctypes.create_string_buffer(b"x")
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pages:
            pages.seek(ctypes.addressof(touched) // mmap.PAGESIZE * 8)
            entry = int.from_bytes(pages.read(8), "little")
    except OSError:
        return False
    return entry & (1 << 55) - 1 != 0


def start_possible(mode: str) -> None:
    """Try the requests of rte_eal_init that the system may deny: it can run only once in a process.

    Raises
    ------
    EalError
        If it would fail. The caller may try again.
    """
    mib = _BESIDE_MIB + (memory_mib() if mode == "no-huge" else 0)
    try:
        room = mmap.mmap(-1, mib << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as exc:
        raise EalError(
            f"DPDK's environment (EAL) needs {mib} MiB of address space, and the system denies them "
            f"({exc.strerror}{limits.address_space_words()}): pass a smaller memory=, set AIFLOW_EAL_MEMORY (now "
            f"{memory_mib()}MiB) lower, or raise the limit; then try again"
        ) from exc
    with room:
        trial = []
        enough = threads.unpatched("threading").Event()
        try:
            for number in range(_DPDK_THREADS):
                trial.append(threads.start(enough.wait, f"aiflow-trial-{number}"))
        finally:
            enough.set()
            for thread in trial:
                thread.join()


@contextlib.contextmanager
def without_realtime(*, for_good: bool = False) -> Iterator[None]:
    """Suspend the calling thread's real-time priority; DPDK's threads that start in this context get it at the end.

    DPDK polls for a new thread with sleeps of 1 µs. On one core, at equal priority under SCHED_FIFO, that thread never
    runs.

    Parameters
    ----------
    for_good : bool
        The calling thread ends soon. Otherwise nothing is done if its priority could not be restored.
    """
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    realtime = policy & ~os.SCHED_RESET_ON_FORK in (os.SCHED_FIFO, os.SCHED_RR)
    if not realtime or not (for_good or limits.may_have_priority(parameter.sched_priority)):
        yield
        return
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    before = set(os.listdir("/proc/self/task"))
    try:
        yield
    finally:
        for task in set(os.listdir("/proc/self/task")) - before:
            with contextlib.suppress(OSError):
                if Path(f"/proc/self/task/{task}/comm").read_text().startswith(_DPDK_THREAD_NAMES):
                    os.sched_setscheduler(int(task), policy, parameter)
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, policy, parameter)


def _runtime_root() -> Path:
    """The directory of DPDK's runtime directories (eal_create_runtime_dir)."""
    if os.getuid() == 0:
        return Path("/var/run/dpdk")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp") / "dpdk"


@contextlib.contextmanager
def directory_held(prefix: str) -> Iterator[None]:
    """Hold a lock in DPDK's runtime directory while it starts, so that `remove_stale_directories` keeps it.

    At the end remove the directory, and the one above it, if they are empty. Without shared configuration DPDK does not
    need them after its start, and a process that is killed later leaves nothing behind.
    """
    root = _runtime_root()
    path = root / prefix / _LOCK
    held = None
    with contextlib.suppress(OSError):  # DPDK will report the fault
        root.mkdir(mode=0o700, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if is_own_directory(path.parent):
            held = lock(path)
    try:
        yield
    finally:
        if held is not None:
            path.unlink(missing_ok=True)
            held.close()
        for directory in (path.parent, root):
            with contextlib.suppress(OSError):
                directory.rmdir()


def remove_stale_directories() -> list[str]:
    """Remove runtime directories of aiflow processes that died while DPDK started; returns their names.

    A live process holds a lock there. Process ids prove nothing if containers share the directory.
    """
    removed = []
    for path in stale_directories():
        with contextlib.suppress(OSError):
            held = lock(path / _LOCK)
            if held is not None:
                shutil.rmtree(path, ignore_errors=True)
                held.close()
                removed.append(path.name)
    return removed


def stale_directories() -> list[Path]:
    """What `remove_stale_directories` would remove."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(_runtime_root().glob("aiflow-*")):
            with contextlib.suppress(OSError):
                old = time.time() - path.stat().st_mtime >= _STARTED
                if old and is_own_directory(path) and holder(path / _LOCK) is None:
                    found.append(path)
    return found


@contextlib.contextmanager
def open_files_limit_kept() -> Iterator[None]:
    """Restore the soft limit of open files, which rte_eal_init raises to the hard limit."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, before)

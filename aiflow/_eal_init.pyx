# cython: language_level=3
"""DPDK's environment abstraction layer (EAL): its start, log, errors and interrupt thread.

A process starts it once and never stops it. It belongs to that process: a forked child gets `EalError`.
"""
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport ENOMEM
from libc.stdint cimport uint64_t
from libc.stdio cimport FILE
from libc.stdlib cimport malloc
from libc.string cimport strdup
from posix.unistd cimport getpid
from aiflow.librte.rte_eal cimport (
    LCORE_ID_ANY, RTE_IOVA_VA, rte_eal_init, rte_eal_iova_mode, rte_errno, rte_lcore_id, rte_log_set_global_level,
    rte_openlog_stream, rte_strerror, rte_thread_register, rte_thread_unregister, rte_version, rte_vfio_is_enabled,
)
from aiflow.librte.rte_interrupts cimport (
    RTE_INTR_HANDLE_EXT, RTE_INTR_INSTANCE_F_PRIVATE, rte_intr_callback_register, rte_intr_fd_set, rte_intr_handle,
    rte_intr_instance_alloc, rte_intr_type_set,
)

import atexit
import errno
import os
import time
from functools import partial
from aiflow import _eal_args
from aiflow._system import threads
from aiflow._system.log import logger
from aiflow.errors import AiflowError, EalError, PoolExhausted, PortError


cdef extern from "aiflow/rt/intr_gate.h" nogil:
    int af_intr_gate_init(af_intr_gate *gate, int wake_fd)
    void af_intr_gate_callback(void *gate) noexcept
    void af_intr_gate_connecting(af_intr_gate *gate, int step) noexcept


cdef extern from "aiflow/rt/log_tail.h" nogil:
    size_t AF_LOG_BYTES

    struct af_log:
        uint64_t written

    FILE *af_log_open(af_log *log, int echo)
    FILE *af_log_stderr(FILE *stream)
    size_t af_log_since(af_log *log, uint64_t mark, char *out)
    size_t af_log_take(af_log *log, uint64_t *mark, char *out)


cdef extern from *:
    """
    #ifndef AIFLOW_PRIVATE_DPDK
    #define AIFLOW_PRIVATE_DPDK 0
    #endif
    #ifdef Py_LIMITED_API
    #define AIFLOW_PYTHON_API Py_LIMITED_API
    #else
    #define AIFLOW_PYTHON_API 0
    #endif
    #ifdef __clang__
    #define AIFLOW_COMPILER __VERSION__
    #else
    #define AIFLOW_COMPILER "GCC " __VERSION__
    #endif
    #ifndef RTE_EAL_PMD_PATH
    #define RTE_EAL_PMD_PATH ""
    #endif
    """
    bint AIFLOW_PRIVATE_DPDK
    unsigned int AIFLOW_PYTHON_API
    const char *AIFLOW_COMPILER
    const char *RTE_EAL_PMD_PATH


cdef af_intr_gate the_gate
cdef af_log dpdk_log
cdef FILE *stream = NULL  # of DPDK's log
cdef bint log_is_open = False
cdef uint64_t forwarded = 0  # how much of the log `forward_log` has handed on
cdef bint init_was_called = False
cdef bint process_ends = False
cdef int owner_pid = 0  # the process that started the EAL; 0: not started

_log, _dpdk_log = logger("eal"), logger("dpdk")
_lock = threads.unpatched("threading").Lock()  # held while a thread starts the EAL
_memory_mode = None
_failed = None            # why an earlier start failed: rte_eal_init runs once, even if it fails
_starting = None          # the current start: whether it began, and how it ended
_START_SECONDS = 60.0

# errno -> advice; the caller chooses the exception class
_ADVICE = {
    errno.EACCES: "no permission: run as root, or give the interpreter CAP_NET_RAW and CAP_NET_ADMIN",
    errno.EPERM: "no permission: run as root, or give the interpreter CAP_NET_RAW and CAP_NET_ADMIN",
    errno.EALREADY: "DPDK was already started in this process by other code: use aiflow in a process of its own",
    errno.EBUSY: "another program uses it: close that one first",
    errno.EEXIST: "a port of that name is open already: close it first, or choose another name",
    errno.EINVAL: "the driver refused its arguments; AIFLOW_LOG=debug shows all it logs",
    errno.ENODEV: "no such device here; `aiflow ports` lists what can be used",
    errno.ENOENT: "no such device, file or driver here; `aiflow ports` lists what can be used",
    errno.ENOMEM: "out of memory: ask for fewer or smaller frames, or a smaller memory=, or start with more "
                  "(AIFLOW_EAL_MEMORY=512MiB)",
    errno.ENOSPC: "no room for another port or pool: close some first",
    errno.ENOTSUP: "the driver cannot do this; choose another endpoint",
}


cdef af_intr_gate *gate() noexcept nogil:
    """The gate of this process; always valid, and open while the process has no gated port."""
    return &the_gate


# ---------------------------------------------------------------------------------------------------------------- log

cdef uint64_t log_mark() noexcept:
    """The current end of the log, for `log_tail` and `error`."""
    return dpdk_log.written


def log_tail(since=0):
    """The end of DPDK's log, at most 16 KiB of text; `since` is an earlier value of ``log_mark``."""
    cdef char out[16384]
    cdef size_t size
    if not log_is_open:
        return ""
    size = af_log_since(&dpdk_log, since, out)
    return PyBytes_FromStringAndSize(out, size).decode("utf-8", "replace")


def forward_log():
    """Hand what DPDK has logged since the last call to `logging`, as ``aiflow.dpdk``; a line is at level INFO.

    The control plane calls it when DPDK has started or failed, and when ports open and close. DPDK's own threads write
    into the ring only: they must not wait for Python.
    """
    cdef char out[16384]
    cdef size_t size
    if not log_is_open:
        return
    size = af_log_take(&dpdk_log, &forwarded, out)
    text = PyBytes_FromStringAndSize(out, size).decode("utf-8", "replace")
    for line in filter(None, map(str.strip, text.splitlines())):
        _dpdk_log.info("%s", line)


def logged(mark):
    """The last lines since `mark`, without repeats, for an error message."""
    forward_log()
    lines = list(dict.fromkeys(line.strip() for line in log_tail(mark).splitlines() if line.strip()))
    return "; DPDK says: " + " | ".join(lines[-4:]) if lines else ""


def error(kind, int rc, str what, mark=None):
    """The exception for return code `rc` (negative errno, or -1 with rte_errno set): fault, reason, advice, log."""
    cdef int number = -rc if rc < -1 else rte_errno
    reason = rte_strerror(number).decode("utf-8", "replace") if number > 0 else f"rc {rc}"
    advice = _ADVICE.get(number, "AIFLOW_LOG=debug shows all that DPDK logs")
    if number == ENOMEM and kind is PortError:
        kind = PoolExhausted
    return kind(f"{what}: {reason} ({advice}){logged(mark) if mark is not None else ''}")


# ---------------------------------------------------------------------------------------------------------------- EAL

def _forked():
    """Runs in every forked child."""
    global _lock
    _lock = threads.unpatched("threading").Lock()


os.register_at_fork(after_in_child=_forked)


@atexit.register
def _at_exit():
    """Call DPDK no more: the process ends, and this module is being torn down. The kernel releases the rest."""
    global process_ends
    process_ends = True


cdef bint ours() noexcept nogil:
    """Whether this process may call DPDK: it has started the EAL itself (no forked child), and it is not ending."""
    return owner_pid != 0 and owner_pid == getpid() and not process_ends


def started():
    """True once the EAL runs in this process."""
    return ours()


def vfio_is_ready():
    """Whether DPDK found vfio when it started, the only time that it looks; it logs nothing if not."""
    return ours() and rte_vfio_is_enabled(b"vfio") != 0


def uses_physical_addresses():
    """Whether DPDK has started with physical addresses for cards."""
    return ours() and rte_eal_iova_mode() != RTE_IOVA_VA


def memory_mode():
    """How DPDK holds memory: ``"hugepages"``, ``"no-huge"``, or None before the EAL has started."""
    return _memory_mode


def dpdk_version():
    """DPDK's version, such as ``"DPDK 22.11.11"``; does not start the EAL."""
    return rte_version().decode()


def compiled():
    """What the compiler knew: whether DPDK is private, its directory of plug-ins, the compiler, and the version of
    Python whose limited API is used, such as ``"3.11"``, or None."""
    return {
        "private": AIFLOW_PRIVATE_DPDK != 0,
        "plugins": RTE_EAL_PMD_PATH.decode(),
        "compiler": AIFLOW_COMPILER.decode(),
        "limited_api": f"{AIFLOW_PYTHON_API >> 24}.{AIFLOW_PYTHON_API >> 16 & 0xFF}" if AIFLOW_PYTHON_API else None,
    }


def start():
    """Start the EAL unless it runs already; `Mempool` and `Port` call this.

    The start runs in its own thread, because it changes the CPU affinity of the thread that it runs in.

    Raises
    ------
    EalError
        If DPDK cannot start, if other code started it in this process, or in a forked child of a process with DPDK.
    """
    global _memory_mode, _failed, _starting
    if ours():
        return
    if owner_pid != 0:
        raise EalError(
            "a forked child cannot use the parent's DPDK ports; use multiprocessing's 'spawn' start method "
            "(or open nothing before the fork)"
        )
    with _lock:
        if owner_pid != 0:
            return
        if _failed is not None:
            raise EalError(_failed)
        if _starting is None:  # else an interrupt ended an earlier wait for it
            _starting = {}
        outcome = _starting
        if "began" not in outcome:
            threads.start(partial(_start, outcome), "aiflow-eal-init")
        sleep = threads.unpatched("time").sleep  # a greenlet's sleep would let other greenlets run into the lock
        deadline = time.monotonic() + _START_SECONDS
        while "end" not in outcome and time.monotonic() < deadline:  # no join: an interrupt may end it for good
            sleep(0.001)
        if "end" not in outcome:
            raise EalError(f"DPDK's environment (EAL) has not started within {_START_SECONDS:.0f} s: give the process "
                           "more processor time, or stop real-time threads that keep it from its cores; then try again")
        _starting = None
        mode, failure = outcome["end"]
        forward_log()
        if failure is not None:
            if init_was_called:
                _failed = str(failure)
            raise failure
        _memory_mode = mode
        _log.info("%s started, memory: %s", dpdk_version(), mode)


def _start(outcome):
    """Runs in the start thread. An interrupt may leave two of these threads: the first one does the work."""
    this_one = object()
    if outcome.setdefault("began", this_one) is not this_one:
        return
    try:
        with _eal_args.one_at_a_time(), _eal_args.without_realtime(for_good=True):
            end = _initialise(), None
    except AiflowError as exc:
        end = None, exc
    except BaseException as exc:
        end = None, EalError(f"DPDK could not be started: {type(exc).__name__}: {exc}")
    outcome["end"] = end


def _initialise():
    """Runs once, in the start thread; returns the memory mode."""
    global init_was_called, log_is_open, owner_pid, stream
    cdef FILE *errors = NULL
    cdef char **argv
    cdef int rc = -1, argc
    cdef bint debug = os.environ.get("AIFLOW_LOG", "") == "debug"

    prefix = f"aiflow-{os.getpid()}-{os.urandom(3).hex()}"
    if removed := _eal_args.remove_stale_directories():
        _log.info("removed what killed processes left: %s", ", ".join(removed))
    mode, arguments = _eal_args.choose(prefix)
    _eal_args.start_possible(mode)
    if not log_is_open:
        stream = af_log_open(&dpdk_log, debug)
        if stream == NULL:
            raise EalError("no memory for DPDK's log: end other programs, or raise the container's limit")
        rte_openlog_stream(stream)
        log_is_open = True
        if debug:
            rte_log_set_global_level(8)
    # DPDK may keep and edit its arguments: give it copies that are never freed
    argc = len(arguments)
    argv = <char **>malloc((argc + 1) * sizeof(char *))
    if argv == NULL:
        raise MemoryError
    for i, argument in enumerate(arguments):
        argv[i] = strdup(<bytes>argument.encode())
    argv[argc] = NULL
    mark = log_mark()
    init_was_called = True
    with _eal_args.open_files_limit_kept(), _eal_args.directory_held(prefix):
        with nogil:
            errors = af_log_stderr(stream)  # it also writes to stderr
            rc = rte_eal_init(argc, argv)
            af_log_stderr(errors)
    if rc < 0:
        what = f"DPDK's environment (EAL) did not start in {mode} mode (AIFLOW_MEMORY=no-huge does without hugepages)"
        raise error(EalError, -1, what if mode == "hugepages" else "DPDK's environment (EAL) did not start", mark)
    rte_openlog_stream(stream)  # newer versions set their own stream
    _install_gate()
    owner_pid = os.getpid()
    return mode


def _install_gate():
    """Register the gate's callback with the interrupt thread, on an eventfd that is not readable yet."""
    cdef rte_intr_handle *handle
    cdef int rc
    wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    rc = af_intr_gate_init(&the_gate, wake_fd)
    if rc != 0:
        raise EalError(f"the interrupt gate cannot be initialised: {os.strerror(rc)}")
    handle = rte_intr_instance_alloc(RTE_INTR_INSTANCE_F_PRIVATE)
    if handle == NULL:
        raise EalError("no memory for an interrupt handle")
    rte_intr_fd_set(handle, wake_fd)
    rte_intr_type_set(handle, RTE_INTR_HANDLE_EXT)
    rc = rte_intr_callback_register(handle, af_intr_gate_callback, &the_gate)
    if rc < 0:
        raise error(EalError, rc, "the interrupt thread refuses a callback")


cpdef bint register_thread() except -1:
    """Register the calling polling thread with DPDK, so that it gets mempool caches.

    Returns
    -------
    bool
        False if it was registered already, or DPDK has no free lcore (polling then works, but slower).
    """
    cdef int rc
    start()
    if rte_lcore_id() != LCORE_ID_ANY:
        return False
    with nogil:
        rc = rte_thread_register()
    return rc == 0


cpdef void unregister_thread() noexcept:
    """Undo `register_thread` before the thread ends."""
    if ours() and rte_lcore_id() != LCORE_ID_ANY:
        with nogil:
            rte_thread_unregister()


class connecting:
    """Context manager: let the interrupt thread run often, for a memif handshake."""

    def __enter__(self):
        start()
        with nogil:
            af_intr_gate_connecting(&the_gate, 1)
        return self

    def __exit__(self, *exc):
        with nogil:
            af_intr_gate_connecting(&the_gate, -1)

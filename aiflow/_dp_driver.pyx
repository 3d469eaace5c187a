"""The driver of a loop: its worker thread, or a caller that waits for an event of the loop.

One thread at a time owns the loop; include/aiflow/rt/handoff.h has the rules. The worker leaves nogil only for requests
of the control plane between two iterations: to attach or remove a port, or to end.
"""

import atexit
import os
import weakref

from libc.stdint cimport uint64_t
from aiflow._core cimport (
    AF_PARK_FIRST_NS, AF_PARK_MOST_NS, af_cpu_budget_begin, af_cpu_budget_end, af_handoff_doze, af_handoff_drain,
    af_handoff_free, af_handoff_init, af_handoff_notify, af_handoff_park, af_handoff_release, af_handoff_sleep,
    af_handoff_try_acquire, af_handoff_wait, af_handoff_wake, af_handoff_worker_has_work, af_idle_begin,
    af_idle_exact_timers, af_idle_spin, af_idle_step, af_idle_timers_as, af_now_ns,
)
from aiflow._eal cimport register_thread, unregister_thread
from aiflow._eal import start as start_eal
from aiflow._system import threads
from aiflow.errors import EalError, PortError

cdef extern from *:
    """
    #include <rte_lcore.h>
    #include <sched.h>
    static inline unsigned int aiflow_as_lcore(unsigned int lcore)
    {
        unsigned int was = RTE_PER_LCORE(_lcore_id);

        RTE_PER_LCORE(_lcore_id) = lcore;
        return was;
    }
    """
    unsigned int aiflow_as_lcore(unsigned int lcore) noexcept nogil
    unsigned int rte_lcore_id() noexcept nogil
    int sched_getcpu() noexcept nogil

_running = weakref.WeakSet()


cdef class LoopDriver:
    """A loop that a worker thread and waiting callers drive in turn. Subclasses define an iteration."""

    def __cinit__(self):
        cdef int rc = af_handoff_init(&self.handoff)
        if rc:
            raise PortError(f"no event descriptor left ({os.strerror(rc)}): close some files, or raise ulimit -n")
        self.has_handoff = True
        self.last_cpu = -1
        self.lcore = -1
        self.requests = []
        self.guard = threads.unpatched("threading").Lock()
        self.pid = os.getpid()
        self.stopped = True

    def __dealloc__(self):
        if self.has_handoff:
            af_handoff_free(&self.handoff)

    # ---- control plane ----

    def start(self, name):
        """Begin to poll, in a daemon thread called `name`."""
        start_eal()  # in a forked child this raises, here rather than in the thread
        self.allowed_cpus = os.sched_getaffinity(0)
        self.stopped = False
        try:
            self.thread = threads.start(self._main, name)
        except BaseException:
            self.stopped = True
            raise
        _running.add(self)

    def _main(self):
        try:
            register_thread()
            self.lcore = rte_lcore_id()
            af_idle_exact_timers()
            while not self.stopped:
                with nogil:
                    self.run()
                self._serve()
                af_handoff_release(&self.handoff)
        finally:
            self.stopped = True
            self._serve()
            unregister_thread()

    def _serve(self):
        """Run the requests of the control plane. Between two iterations."""
        with self.guard:
            aiflow_set(self.handoff.attention, 0)
            requests, self.requests = self.requests, []
        for call, result, done in requests:
            try:
                result.append((call(), None))
            except BaseException as error:
                result.append((None, error))
            done.release()

    def between(self, call):
        """Run `call` between two iterations of the loop, and return its result."""
        cdef list result = []
        if self.stopped or self.thread is None or os.getpid() != self.pid or threads.is_current(self.thread):
            return call()
        done = threads.unpatched("threading").Lock()  # no Event: an interrupt may leave its lock taken
        done.acquire()
        with self.guard:
            self.requests.append((call, result, done))
            aiflow_set(self.handoff.attention, 1)
        af_handoff_wake(&self.handoff)
        while not done.acquire(timeout=0.05):
            if not self.thread.is_alive():
                self._serve()
        value, error = result[0]
        if error is not None:
            raise error
        return value

    def stop(self):
        """End the thread; frames that were not sent yet are freed. Idempotent, also after an interrupt."""
        if os.getpid() != self.pid:
            return
        if self.thread is not None:
            if not self.stopped:
                self.between(self._end)
            if not threads.is_current(self.thread) and self.thread.ident is not None:
                self.thread.join()
                self.requests = []  # those of interrupted calls refer to this object
        _running.discard(self)

    def _end(self):
        self.stopped = True

    def pid_is_ours(self):
        """False in a forked child."""
        return os.getpid() == self.pid

    def tell(self):
        """Wake all waiting callers, as after an event."""
        self.ring()

    cdef void ring(self) noexcept nogil:
        aiflow_lock(&self.handoff)
        af_handoff_notify(&self.handoff)
        aiflow_unlock(&self.handoff)

    def check_process(self):
        """Raise when this is a forked child: the thread and the ports are the parent's."""
        if os.getpid() != self.pid:
            raise EalError("a forked child cannot use its parent's ports: start the child with multiprocessing's "
                           "'spawn' method and open a Sender or Receiver there")

    def cpu(self):
        """The CPU that the loop was driven on last, or None."""
        return self.last_cpu if self.last_cpu >= 0 else None

    @property
    def max_cores(self):
        """The most processor time that the loop takes, in cores; None: no limit. To be set before `start`."""
        return self.cpu_budget.cores or None

    @max_cores.setter
    def max_cores(self, cores):
        self.cpu_budget.cores = 0.0 if cores is None else cores

    # ---- waiting threads ----

    @property
    def generation(self):
        """Number of events so far; a caller waits for it to change."""
        return self.handoff.generation

    @property
    def event_fd(self):
        """Readable after an event, once `arm` was called: for event loops."""
        return self.handoff.event_fd

    def arm(self):
        """Make events readable on `event_fd` from now on."""
        aiflow_set(self.handoff.armed, 1)

    def drain(self):
        """Empty `event_fd`."""
        af_handoff_drain(&self.handoff)

    def wait(self, uint64_t seen, double seconds):
        """Wait until the generation differs from `seen`, or for `seconds`. Releases the GIL; no signal ends it.

        The calling thread drives the loop itself where it can: that saves a thread wake-up at either end.
        """
        cdef uint64_t ns = <uint64_t>(max(seconds, 0.0) * 1e9)
        cdef uint64_t begin
        with nogil:
            if self.acquire():
                begin = af_now_ns()
                if self.drive(seen, begin + ns):
                    aiflow_set(self.handoff.work_left, 1)
                ns = self.now - begin
                af_handoff_release(&self.handoff)
                if af_handoff_worker_has_work(&self.handoff) or ns > <uint64_t>AF_PARK_MOST_NS:
                    af_handoff_wake(&self.handoff)
            else:
                aiflow_set(self.handoff.driver_requested, 1)
                if aiflow_posted(&self.handoff):
                    af_handoff_wake(&self.handoff)
                af_handoff_wait(&self.handoff, seen, ns)

    # ---- the drivers ----

    cdef int iterate(self) noexcept nogil:
        """Do the work at hand; returns how much it was. For the owner of the loop."""
        return 0

    cdef bint unfinished(self) noexcept nogil:
        """Is there work that cannot wait? For the owner of the loop."""
        return False

    cdef bint acquire(self) noexcept nogil:
        """Let a caller own the loop, but not when the worker has ended, or the control plane waits for the worker."""
        if self.stopped or aiflow_attention(&self.handoff) or not af_handoff_try_acquire(&self.handoff):
            return False
        if self.stopped:  # meanwhile: the ports may be closed
            af_handoff_release(&self.handoff)
            return False
        return True

    cdef void run(self) noexcept nogil:
        """Drive the loop until the control plane wants attention; returns as its owner. For the worker."""
        cdef uint64_t driven = self.handoff.driven, park_ns = AF_PARK_FIRST_NS, sleep_ns
        while True:
            if driven != self.handoff.driven and not af_handoff_worker_has_work(&self.handoff):
                driven = self.handoff.driven
                if park_ns > 2 * <uint64_t>AF_PARK_MOST_NS:
                    park_ns = AF_PARK_FIRST_NS  # a caller drove for long and is gone
                park_ns = min(park_ns, <uint64_t>AF_PARK_MOST_NS)
                af_handoff_park(&self.handoff, &park_ns)
                continue
            if not af_handoff_try_acquire(&self.handoff):
                if aiflow_attention(&self.handoff):
                    park_ns = AF_PARK_FIRST_NS
                af_handoff_park(&self.handoff, &park_ns)
                continue
            if aiflow_attention(&self.handoff):
                return
            self.now = af_now_ns()
            if driven != self.handoff.driven:
                af_idle_begin(&self.idle, self.now)
                driven = self.handoff.driven
            aiflow_set(self.handoff.work_left, 0)
            park_ns = AF_PARK_FIRST_NS
            self.last_cpu = sched_getcpu()
            af_cpu_budget_begin(&self.cpu_budget)
            sleep_ns = 0
            while sleep_ns == 0 and not aiflow_attention(&self.handoff):
                if self.iterate():
                    continue
                if aiflow_driver_requested(&self.handoff):
                    break
                sleep_ns = af_idle_step(&self.idle, self.now)
                self.now = af_now_ns()
            af_cpu_budget_end(&self.cpu_budget)
            if aiflow_attention(&self.handoff):
                return
            af_handoff_release(&self.handoff)
            if sleep_ns:
                af_handoff_doze(&self.handoff, sleep_ns)
            else:
                aiflow_set(self.handoff.driver_requested, 0)
                self.ring()
                af_handoff_park(&self.handoff, &park_ns)

    cdef bint drive(self, uint64_t seen, uint64_t until) noexcept nogil:
        """Drive the loop until the generation differs from `seen`; is there more to do? For a caller that owns it."""
        cdef unsigned int lcore = aiflow_as_lcore(self.lcore)
        cdef unsigned long slack_ns = 0
        cdef uint64_t sleep_ns
        cdef int work
        self.last_cpu = sched_getcpu()
        af_cpu_budget_begin(&self.cpu_budget)
        self.now = af_now_ns()
        if aiflow_posted(&self.handoff) or not self.saw_nothing:
            af_idle_begin(&self.idle, self.now)  # else it goes on with the last wait
        while aiflow_generation(&self.handoff) == seen and not self.stopped and not aiflow_attention(&self.handoff):
            work = self.iterate()
            if self.now >= until:
                break
            if work:
                continue
            if self.spins:
                af_idle_spin()
            else:
                sleep_ns = af_idle_step(&self.idle, self.now)
                if sleep_ns:
                    if slack_ns == 0:
                        slack_ns = af_idle_exact_timers()
                    af_handoff_sleep(&self.handoff, min(sleep_ns, until - self.now))
            self.now = af_now_ns()
        if slack_ns:
            af_idle_timers_as(slack_ns)
        af_cpu_budget_end(&self.cpu_budget)
        self.saw_nothing = aiflow_generation(&self.handoff) == seen
        self.handoff.driven += 1
        aiflow_as_lcore(lcore)
        return self.unfinished()

    cdef void push(self) noexcept nogil:
        """Send the first frames of a posted slice now; wake the worker only if work is left for it."""
        cdef unsigned int lcore
        if self.cpu_budget.cores > 0 or not self.acquire():  # a push never waits, and the budget may ask for a rest
            af_handoff_wake(&self.handoff)
            return
        lcore = aiflow_as_lcore(self.lcore)
        self.now = af_now_ns()
        self.iterate()  # takes in the slice …
        self.iterate()  # … and sends its first frames
        self.handoff.driven += 1
        aiflow_as_lcore(lcore)
        if self.unfinished() or self.handoff.armed:
            aiflow_set(self.handoff.work_left, 1)
        af_handoff_release(&self.handoff)
        if af_handoff_worker_has_work(&self.handoff):
            af_handoff_wake(&self.handoff)
        if aiflow_driver_requested(&self.handoff):  # a caller found the loop owned meanwhile
            aiflow_set(self.handoff.driver_requested, 0)
            self.ring()


@atexit.register
def _stop_all():
    """Stop every loop before the interpreter is finalized."""
    for loop in list(_running):
        loop.stop()

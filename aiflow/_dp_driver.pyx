"""The driver of a loop: its worker thread, or a caller that waits for an event of the loop.

One thread at a time drives the loop; include/aiflow/rt/handoff.h has the rules. The worker leaves nogil only for
requests of the control plane between two iterations: to attach or remove a port, or to end. A loop with nothing to do
sleeps on descriptors (rt/wake_set.h, rt/idle.h).
"""

import atexit
import os
import weakref

from libc.stdint cimport uint64_t
from aiflow._core cimport (
    AF_ARMED, AF_CALLER_WAITS, AF_CONTROL_WANTED, AF_DOZES, AF_DUE_UNKNOWN, AF_NAP_FIRST_NS, AF_POSTED, AF_SIGNALS_NS,
    AF_SLEEPER_CALLER, AF_SLEEPER_WORKER, AF_WORKER, af_cpu_budget_begin, af_cpu_budget_end, af_handoff_acquire,
    af_handoff_dozes, af_handoff_drain_fd, af_handoff_enter, af_handoff_flag, af_handoff_free, af_handoff_has,
    af_handoff_init, af_handoff_leave, af_handoff_release, af_handoff_request, af_handoff_served, af_handoff_sleeps,
    af_handoff_tell, af_handoff_turns_to_control, af_handoff_wait, af_handoff_wake, af_handoff_woke, af_idle_begin,
    af_idle_exact_timers, af_idle_sleep, af_idle_spin, af_idle_step, af_idle_timers_as, af_nap, af_now_ns, af_wake_add,
    af_wake_drain, af_wake_init, af_wake_is_complete, af_wake_remove, af_wake_wait,
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
        af_wake_init(&self.wakes, self.handoff.wake_fd)
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
                af_handoff_served(&self.handoff)
        finally:
            self.stopped = True
            self._serve()
            unregister_thread()

    def _serve(self):
        """Run the requests of the control plane. Between two iterations."""
        with self.guard:
            af_handoff_flag(&self.handoff, 0, AF_CONTROL_WANTED)
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
            af_handoff_flag(&self.handoff, AF_CONTROL_WANTED, 0)
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
        af_handoff_tell(&self.handoff)

    def check_process(self):
        """Raise when this is a forked child: the thread and the ports are the parent's."""
        if os.getpid() != self.pid:
            raise EalError("a forked child cannot use its parent's ports: start the child with multiprocessing's "
                           "'spawn' method and open a Sender or Receiver there")

    def cpu(self):
        """The CPU that the loop was driven on last, or None."""
        return self.last_cpu if self.last_cpu >= 0 else None

    @property
    def thread_id(self):
        """The kernel's number of the worker thread; None before `start`."""
        return None if self.thread is None else self.thread.native_id

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
        af_handoff_flag(&self.handoff, AF_ARMED, 0)

    def drain(self):
        """Empty `event_fd`."""
        af_handoff_drain_fd(self.handoff.event_fd)

    def wait(self, uint64_t seen, double seconds):
        """Wait until the generation differs from `seen`, or for `seconds`, or less. Releases the GIL.

        The calling thread drives the loop itself where it can: that saves a thread wake-up at either end. So that its
        signal handlers can run, it returns early: when a signal ends its sleep, and every 50 ms while awake.
        """
        cdef uint64_t ns = <uint64_t>(max(seconds, 0.0) * 1e9)
        with nogil:
            while not self.acquire():
                if self.stopped or af_handoff_request(&self.handoff):
                    if af_handoff_has(&self.handoff, AF_POSTED):
                        af_handoff_wake(&self.handoff)
                    af_handoff_wait(&self.handoff, seen, min(ns, <uint64_t>AF_SIGNALS_NS))
                    break
            else:
                self.release(self.drive(seen, af_now_ns() + ns))

    # ---- descriptors that wake the loop ----

    cdef bint add_wake_fd(self, int fd):
        """Let a descriptor end the loop's sleeps when it is readable; False: there are too many.

        The loop reads it then, unless it is a socket. Between two iterations.
        """
        return af_wake_add(&self.wakes, fd)

    cdef void remove_wake_fd(self, int fd):
        """Between two iterations, and before the descriptor is closed."""
        af_wake_remove(&self.wakes, fd)

    cdef bint before_sleep(self) noexcept nogil:
        """Tell peers that this loop sleeps. False: something arrived meanwhile, and it does not. For the driver."""
        return True

    cdef void after_sleep(self) noexcept nogil:
        """Tell peers that this loop is awake: before its next iteration. For the driver."""

    cdef uint64_t due(self, uint64_t now) noexcept nogil:
        """When the loop has something to do without an arrival. Unknown where a port cannot wake it. For the driver."""
        return AF_DUE_UNKNOWN

    # ---- the drivers ----

    cdef int iterate(self) noexcept nogil:
        """Do the work at hand; returns how much it was. For the owner of the loop."""
        return 0

    cdef bint unfinished(self) noexcept nogil:
        """Is there work that cannot wait? For the owner of the loop."""
        return False

    cdef bint acquire(self) noexcept nogil:
        """Let a caller drive the loop, but not when the worker has ended, or the control plane waits for the worker."""
        if self.stopped or not af_handoff_acquire(&self.handoff):
            return False
        if self.stopped:  # meanwhile: the ports may be closed
            af_handoff_release(&self.handoff, False)
            return False
        self.awake()
        return True

    cdef void release(self, bint work_left) noexcept nogil:
        """End a caller's drive. The worker must look now if it cannot go on with its sleep."""
        if not work_left and af_handoff_has(&self.handoff, AF_DOZES):
            work_left = not self.leaves_asleep()
        af_handoff_release(&self.handoff, work_left)

    cdef bint leaves_asleep(self) noexcept nogil:
        """Can the worker go on with its sleep? Peers are told again that this loop sleeps. For a driving caller."""
        cdef uint64_t due = self.due(self.now)
        cdef unsigned int lcore
        if due != AF_DUE_UNKNOWN and due < self.dozes_until:
            return False
        if self.dozes_alone:
            return True
        if self.cpu_budget.cores > 0:  # a last look might rest, and the caller has what it waited for
            return False
        lcore = aiflow_as_lcore(self.lcore)
        self.slept = self.before_sleep()
        aiflow_as_lcore(lcore)
        return self.slept

    cdef void awake(self) noexcept nogil:
        """Tell peers that this loop is awake, if they were told that it sleeps. For the driver."""
        if self.slept:
            self.slept = False
            self.after_sleep()

    cdef uint64_t pause(self) noexcept nogil:
        """Nothing to do: spin or yield and return 0, or return how long to sleep. For the driver."""
        cdef uint64_t ns = af_idle_step(&self.idle, self.now)
        cdef uint64_t due = AF_DUE_UNKNOWN
        if ns:
            if af_wake_is_complete(&self.wakes):
                due = self.due(self.now)
            ns = af_idle_sleep(&self.idle, self.now, ns, due)
        return ns

    cdef void run(self) noexcept nogil:
        """Drive the loop until the control plane wants attention; returns in its state. For the worker."""
        cdef uint64_t driven = self.handoff.driven, ns
        cdef af_nap nap
        nap.driven = driven
        nap.ns = AF_NAP_FIRST_NS
        nap.same = False
        while af_handoff_enter(&self.handoff, &nap) == AF_WORKER:
            self.now = af_now_ns()
            if driven != nap.driven:
                af_idle_begin(&self.idle, self.now)
                driven = nap.driven
            self.awake()
            self.idle.vain += af_wake_drain(&self.wakes, AF_SLEEPER_WORKER)
            ns = self.drive_until_asleep()
            if ns:
                af_wake_wait(&self.wakes, AF_SLEEPER_WORKER, self.dozes_alone, ns)
            elif af_handoff_turns_to_control(&self.handoff):
                return
            else:
                af_handoff_leave(&self.handoff, &nap)
        self.awake()  # before the control plane brings or takes a doorbell

    cdef uint64_t drive_until_asleep(self) noexcept nogil:
        """Drive, release the loop, and return how long to sleep; 0, unreleased: a caller or the control plane waits."""
        cdef uint64_t ns
        self.last_cpu = sched_getcpu()
        af_cpu_budget_begin(&self.cpu_budget)
        while not af_handoff_has(&self.handoff, AF_CONTROL_WANTED):
            if self.iterate():
                continue
            if af_handoff_has(&self.handoff, AF_CALLER_WAITS):
                break
            ns = self.pause()
            self.dozes_until = self.now + ns
            if ns and (self.idle.alone or self.before_sleep()):
                self.slept = not self.idle.alone
                self.dozes_alone = self.idle.alone
                af_cpu_budget_end(&self.cpu_budget)
                if af_handoff_dozes(&self.handoff):
                    return ns
                af_cpu_budget_begin(&self.cpu_budget)
                self.awake()
            self.now = af_now_ns()
        af_cpu_budget_end(&self.cpu_budget)
        return 0

    cdef bint drive(self, uint64_t seen, uint64_t until) noexcept nogil:
        """Drive the loop until the generation differs from `seen`; is there more to do? For a caller that acquired."""
        cdef unsigned int lcore = aiflow_as_lcore(self.lcore)
        cdef unsigned long slack_ns = 0
        cdef uint64_t sleep_ns, signals
        cdef int work
        self.last_cpu = sched_getcpu()
        af_cpu_budget_begin(&self.cpu_budget)
        self.now = af_now_ns()
        signals = self.now + AF_SIGNALS_NS
        if af_handoff_has(&self.handoff, AF_POSTED) or not self.saw_nothing:
            af_idle_begin(&self.idle, self.now)  # else it goes on with the last wait
        while (aiflow_generation(&self.handoff) == seen and not self.stopped
                and not af_handoff_has(&self.handoff, AF_CONTROL_WANTED)):
            work = self.iterate()
            if self.now >= until or ((work or self.spins) and self.now >= signals):
                break
            if work:
                continue
            if self.spins:
                af_idle_spin()
            else:
                sleep_ns = self.pause()
                if sleep_ns:
                    if slack_ns == 0:
                        slack_ns = af_idle_exact_timers()
                    if not self.sleep(seen, min(sleep_ns, until - self.now)):
                        break
            self.now = af_now_ns()
        if slack_ns:
            af_idle_timers_as(slack_ns)
        af_cpu_budget_end(&self.cpu_budget)
        self.saw_nothing = aiflow_generation(&self.handoff) == seen
        aiflow_as_lcore(lcore)
        return self.unfinished()

    cdef bint sleep(self, uint64_t seen, uint64_t ns) noexcept nogil:
        """Sleep until something wakes the loop, or the generation differs from `seen`; False: a signal has come.

        For a caller that drives.
        """
        cdef bint alone = self.idle.alone, undisturbed = True
        if not alone and not self.before_sleep():
            return True
        if af_handoff_sleeps(&self.handoff):
            if aiflow_generation(&self.handoff) == seen:
                undisturbed = af_wake_wait(&self.wakes, AF_SLEEPER_CALLER, alone, ns)
                self.idle.vain += af_wake_drain(&self.wakes, AF_SLEEPER_CALLER)
            af_handoff_woke(&self.handoff)
        if not alone:
            self.after_sleep()
        return undisturbed

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
        aiflow_as_lcore(lcore)
        self.release(self.unfinished() or af_handoff_has(&self.handoff, AF_ARMED))


@atexit.register
def _stop_all():
    """Stop every loop before the interpreter is finalized."""
    for loop in list(_running):
        loop.stop()

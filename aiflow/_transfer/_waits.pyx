"""Waits of threads for a data-plane loop, and how long they took. Compiled: each slice waits once at either end."""

import time
from threading import get_ident

from libc.stdint cimport int64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from aiflow._system import threads

SIGNALS_S = 0.25
"""A waiting thread looks for signals this often, so that Ctrl-C works. A signal that ends its sleep is seen at once.

While it is awake, or another thread drives, `wait` returns after 50 ms."""


cdef int64_t now_ns() noexcept:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000000 + <int64_t>now.tv_nsec


cdef class Waits:
    """Sleeps until a condition holds.

    Parameters
    ----------
    agent : aiflow._dp_agent.Agent
        It is on a loop before anything waits. With every event the loop's generation grows and its eventfd becomes
        readable.
    """

    cdef readonly object _agent
    cdef public dict _since  # calls that wait, by a number of their own, and since when
    cdef dict _waited_ns     # by thread: each adds to its own, so that no update is lost
    cdef int64_t _told_ns
    cdef object _telling

    def __init__(self, agent):
        self._agent = agent
        self._since = {}
        self._waited_ns = {}
        self._telling = threads.unpatched("threading").Lock()

    def waited(self):
        """How many calls wait now, and for how many ns all calls have waited, those included. The ns never fall.

        A wait that ends while they are added up may be missing from both sums.
        """
        cdef int64_t now, waited = 0
        with self._telling:
            now, waiting = now_ns(), list(self._since.values())
            for ns in list(self._waited_ns.values()):
                waited += <int64_t>ns
            for since in waiting:
                waited += now - <int64_t>since  # it may have begun after that look at the clock
            self._told_ns = max(self._told_ns, waited)
            return len(waiting), self._told_ns

    def callers(self):
        """Identifiers of the threads that have waited here or do now; others may have one of an ended thread."""
        return {*list(self._waited_ns), *list(self._since)}

    def _begins(self, call):
        self._since[call] = now_ns()

    def _ended(self, call):
        since = self._since.pop(call, None)
        if since is not None:
            took, me = time.monotonic_ns() - since, get_ident()
            self._waited_ns[me] = self._waited_ns.get(me, 0) + took

    def until(self, condition, timeout):
        """Block until `condition()`, at most `timeout` seconds (None: without end). Returns its last value.

        Parameters
        ----------
        condition : callable
        timeout : float or None
        """
        cdef double left = SIGNALS_S
        cdef int64_t begun = 0, now
        loop = self._agent.loop
        while True:
            generation = loop.generation
            if condition():
                return True
            now = now_ns()
            if timeout is not None:
                begun = begun or now
                left = min(<double>SIGNALS_S, <double>timeout - (now - begun) / 1e9)
                if left <= 0:
                    return False
            me = get_ident()  # after an interrupt at a bad moment, this thread's next wait mends the account
            self._since[me] = now
            try:
                loop.wait(generation, left)
            finally:
                self._ended(me)

# cython: language_level=3
"""Doorbells of local peers: a page and a socket that the two sides of a connection share (rt/doorbell.h)."""
from libc.string cimport strerror
from libc.errno cimport errno
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

from aiflow.errors import PortError

DOORBELL_BYTES = AF_DOORBELL_BYTES


cdef class Doorbell:
    """One side of a doorbell.

    Parameters
    ----------
    page : object with fileno()
        The shared memory, of at least `DOORBELL_BYTES` bytes, that cannot shrink. It is mapped here.
    sock : object with fileno() and close()
        Our socket. It is closed by `close`, or with this object.
    side : {0, 1}
        Which of the two words is ours.

    Raises
    ------
    PortError
        If the page cannot be mapped.
    """

    def __cinit__(self, page, sock, int side):
        cdef void *mapped = mmap(NULL, AF_DOORBELL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, page.fileno(), 0)
        if mapped == MAP_FAILED:
            raise PortError(f"the page of a doorbell cannot be mapped: {strerror(errno).decode()}")
        self.page = mapped
        self.sock = sock
        af_doorbell_init(&self.bell, mapped, side, sock.fileno())

    def __dealloc__(self):
        if self.page != NULL:
            munmap(self.page, AF_DOORBELL_BYTES)

    @property
    def rung(self):
        """How often this side has woken the other."""
        return self.bell.rung

    def fileno(self):
        """Our socket's descriptor, which is readable when the peer has rung; -1 once it is closed."""
        return self.sock.fileno()

    def sleep(self):
        """Say that this side is about to sleep. For tests, as are `awake` and `ring`: loops use the C functions."""
        af_doorbell_sleep(&self.bell)

    def awake(self):
        """Say that this side is awake."""
        af_doorbell_awake(&self.bell)

    def ring(self):
        """Wake the other side if it sleeps."""
        af_doorbell_ring(&self.bell)

    def close(self):
        """Close the socket, when no loop uses the doorbell any more. Idempotent. The page goes with this object."""
        self.bell.fd = -1
        self.sock.close()

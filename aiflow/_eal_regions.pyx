# cython: language_level=3
"""Memory of `aiflow.empty`, which network cards may read where it lies.

A region is mapped for DMA when a slice in it is first sent over a card that sends by reference. All cards behind an
IOMMU share DPDK's default container, so one mapping serves them all. A region counts the frames that a driver still
holds. While there are any, its memory stays, even if its array is gone. All functions run with the GIL. Only
`map_region` gives it up for a while.
"""
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.pyport cimport PY_SSIZE_T_MAX
from libc.stdint cimport uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memmove
from posix.unistd cimport _SC_PAGESIZE, sysconf
from aiflow._eal_init cimport ours
from aiflow.librte.rte_eal cimport (
    RTE_IOVA_VA, RTE_VFIO_DEFAULT_CONTAINER_FD, rte_eal_iova_mode, rte_vfio_container_dma_map,
    rte_vfio_container_dma_unmap,
)
from aiflow.librte.rte_mbuf cimport (
    rte_mbuf_ext_refcnt_read, rte_mbuf_ext_refcnt_set, rte_mbuf_ext_refcnt_update, rte_mbuf_ext_shared_info,
)

import resource
import warnings


cdef extern from "<sys/mman.h>" nogil:
    enum:
        PROT_READ
        PROT_WRITE
        MAP_PRIVATE
        MAP_ANONYMOUS
        MADV_HUGEPAGE
    void *MAP_FAILED
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void *addr, size_t length)
    int madvise(void *addr, size_t length, int advice)


cdef extern from "aiflow/rt/agent.h" nogil:
    enum:
        AF_LENT_AT_REST


cdef enum:
    HUGE = 2 << 20
    LEAST = 64 << 10   # bytes of a region that is lent: the few mappings are for those that gain most
    MOST_MAPPED = 256  # EAL_VFIO_MAX_USER_MEM_MAPS of DPDK

cdef enum region_state:
    PLAIN     # no card knows of it
    MAPPING   # a thread is about to: see `map_region`
    MAPPED    # cards may read it
    AWAY      # it was mapped; the last card has been closed since
    REFUSED   # it could not be mapped: its bytes are copied, until another is unmapped or a card comes

cdef struct region:
    uintptr_t start
    size_t nbytes     # whole pages
    region_state state
    rte_mbuf_ext_shared_info lent  # AF_LENT_AT_REST, and the frames that refer to it
    region *next      # of those whose array is gone

cdef size_t PAGE = sysconf(_SC_PAGESIZE)
cdef region **regions = NULL  # the highest address first: the kernel places new ones below
cdef size_t nb_regions = 0
cdef size_t room = 0
cdef region *left = NULL      # their arrays are gone, and a driver held frames of them
cdef int cards = 0
cdef size_t nb_refused = 0    # regions in that state, at least
cdef bint told = False        # of a refusal
cdef size_t nb_lost = 0       # regions that could not be unmapped


cdef void given_back(void *addr, void *opaque) noexcept nogil:
    """Never called: the region's own count is one of them."""


cdef void *mapping(size_t nbytes) noexcept:
    """New memory: large arrays begin on a huge page. NULL: there is none."""
    cdef size_t align = HUGE if nbytes >= HUGE else PAGE
    cdef size_t length = nbytes + align  # one page more, at least: no frame lies in two regions
    cdef void *base = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    cdef uintptr_t start, end
    if base == MAP_FAILED:
        return NULL
    start = (<uintptr_t>base + align - 1) // align * align
    end = start + nbytes + PAGE
    if start > <uintptr_t>base:
        munmap(base, start - <uintptr_t>base)
    if <uintptr_t>base + length > end:
        munmap(<void *>end, <uintptr_t>base + length - end)
    madvise(<void *>start, end - start, MADV_HUGEPAGE)  # all of it, or the kernel would keep two mappings an array
    return <void *>start


cdef size_t place_of(uintptr_t address) noexcept:
    """Index of the first region that does not begin after `address`."""
    cdef size_t low = 0, high = nb_regions, middle
    while low < high:
        middle = low + (high - low) // 2
        if regions[middle].start > address:
            low = middle + 1
        else:
            high = middle
    return low


cdef bint map_region(region *r) noexcept:
    """Map a region for all cards. False: too many regions, or the process may not lock as much memory.

    It takes a while, as the kernel locks page after page. Other threads run, and copy what they send of the region. It
    counts us as a frame, so that it stays.
    """
    cdef region_state before = r.state
    cdef int rc
    r.state = MAPPING
    rte_mbuf_ext_refcnt_update(&r.lent, 1)
    with nogil:
        rc = rte_vfio_container_dma_map(RTE_VFIO_DEFAULT_CONTAINER_FD, r.start, r.start, r.nbytes)
    rte_mbuf_ext_refcnt_update(&r.lent, -1)
    r.state = before if rc < 0 else MAPPED
    if not cards:
        unmap_region(r, before)  # the last one has gone meanwhile
    return r.state == MAPPED


cdef bint unmap_region(region *r, region_state state) noexcept:
    """False: cards may still read the region, and DPDK would map it for later ones. Its memory must stay."""
    if r.state == MAPPED:
        if rte_vfio_container_dma_unmap(RTE_VFIO_DEFAULT_CONTAINER_FD, r.start, r.start, r.nbytes) < 0:
            return False
        r.state = state
    return True


cdef void refuse(region *r) noexcept:
    """Do not try again for each slice: the kernel locks page after page up to its limit."""
    global nb_refused, told
    r.state = REFUSED
    nb_refused += 1
    if not told:
        told = True
        limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        warnings.warn(
            f"a card cannot read an array of {r.nbytes >> 10} KiB where it lies, so aiflow copies what it sends of it. "
            f"The kernel locks such arrays in memory ({locked(limit)}), and DPDK maps {MOST_MAPPED} at most: "
            "raise the limit, or send slices of fewer and larger arrays of aiflow.empty", RuntimeWarning, stacklevel=1)


def locked(limit):
    return "ulimit -l is unlimited" if limit == resource.RLIM_INFINITY else f"ulimit -l is {limit >> 10} KiB"


cdef void retry() noexcept:
    """There may be room for regions that were refused."""
    global nb_refused
    cdef size_t i
    for i in range(nb_regions if nb_refused else 0):
        if regions[i].state == REFUSED:
            regions[i].state = PLAIN
    nb_refused = 0


cdef rte_mbuf_ext_shared_info *lend(const void *ptr, size_t nbytes) noexcept:
    """What counts the frames that refer to these bytes; NULL if they are to be copied. For a slice that is posted."""
    cdef uintptr_t start = <uintptr_t>ptr
    cdef size_t at
    cdef region *r
    sweep()
    at = place_of(start)
    if at == nb_regions or not cards or not ours():
        return NULL
    r = regions[at]
    if start + nbytes > r.start + r.nbytes or r.nbytes < LEAST:
        return NULL
    if r.state == PLAIN and not map_region(r) and cards:
        refuse(r)
    return &r.lent if r.state == MAPPED else NULL


cdef bint card_opened() noexcept:
    """A card was plugged. False: it must not send by reference.

    A slice that is in flight while the last card goes, and another comes, has been told that it is lent.
    """
    global cards
    cdef size_t i = 0
    cards += 1
    retry()
    if rte_eal_iova_mode() != RTE_IOVA_VA:
        return False
    while i < nb_regions:
        if regions[i].state != AWAY:
            i += 1
        elif map_region(regions[i]):
            i = 0  # arrays may have come and gone meanwhile
        else:
            return False
    return True


cdef void card_closed() noexcept:
    """A card was closed, and will be unplugged. DPDK would map the regions of now for a card that comes later."""
    global cards
    cdef size_t i
    cdef region *r
    cards -= 1
    if cards == 0:
        for i in range(nb_regions):
            unmap_region(regions[i], AWAY)
        r = left
        while r != NULL:
            unmap_region(r, AWAY)
            r = r.next


cdef void end_region(region *r) noexcept:
    global nb_lost
    cdef bint mapped = r.state == MAPPED
    if not unmap_region(r, PLAIN):
        nb_lost += 1
        if nb_lost == 1:
            warnings.warn(
                f"DPDK cannot unmap an array of {r.nbytes} bytes, so a card might still read it: its memory stays with "
                "the process. Restart the process if that is too much", RuntimeWarning, stacklevel=1)
        return  # neither the memory nor the count in `r` may have another use
    munmap(<void *>r.start, r.nbytes + PAGE)
    free(r)
    if mapped:
        retry()


cdef void sweep() noexcept:
    """Give back the memory that no driver holds any more."""
    cdef region **place = &left
    cdef region *r
    if left == NULL or not ours():
        return
    while place[0] != NULL:
        r = place[0]
        if rte_mbuf_ext_refcnt_read(&r.lent) == AF_LENT_AT_REST:
            place[0] = r.next
            end_region(r)
            place = &left  # it may have warned: other threads ran
        else:
            place = &r.next


cdef class Memory:
    """Zeroed, page-aligned memory that is on huge pages where the kernel gives them. It exports a buffer.

    Parameters
    ----------
    nbytes : int
        At least 1.
    """

    cdef region *region
    cdef size_t nbytes

    def __cinit__(self, size_t nbytes):
        global regions, nb_regions, room
        cdef region **more
        cdef region *r
        cdef void *base
        cdef size_t at
        if nbytes == 0:
            raise ValueError("Memory is of at least one byte")
        if nbytes > <size_t>PY_SSIZE_T_MAX - 2 * HUGE:
            raise MemoryError(f"no memory for an array of {nbytes} bytes")
        sweep()
        if nb_regions == room:
            more = <region **>realloc(regions, (2 * room + 64) * sizeof(region *))
            if more == NULL:
                raise MemoryError(f"no memory for an array of {nbytes} bytes")
            regions = more
            room = 2 * room + 64
        r = <region *>calloc(1, sizeof(region))
        if r == NULL:
            raise MemoryError(f"no memory for an array of {nbytes} bytes")
        r.nbytes = (nbytes + PAGE - 1) // PAGE * PAGE
        base = mapping(r.nbytes)
        if base == NULL:
            free(r)
            raise MemoryError(f"no memory for an array of {nbytes} bytes")
        r.start = <uintptr_t>base
        r.lent.free_cb = given_back
        rte_mbuf_ext_refcnt_set(&r.lent, AF_LENT_AT_REST)
        at = place_of(r.start)
        memmove(&regions[at + 1], &regions[at], (nb_regions - at) * sizeof(region *))
        regions[at] = r
        nb_regions += 1
        self.region = r
        self.nbytes = nbytes

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, <void *>self.region.start, self.nbytes, 0, flags)

    def __dealloc__(self):
        global nb_regions, left
        cdef region *r = self.region
        cdef size_t at
        if r == NULL:
            return
        at = place_of(r.start)
        nb_regions -= 1
        memmove(&regions[at], &regions[at + 1], (nb_regions - at) * sizeof(region *))
        self.region = NULL
        if r.state == MAPPED and not ours():
            return  # a forked child, or the end of the process: DPDK is out of reach
        if rte_mbuf_ext_refcnt_read(&r.lent) == AF_LENT_AT_REST:
            end_region(r)
        else:
            r.next = left
            left = r


def counts():
    """Regions that have an array, those mapped for cards, and those without an array.

    A driver still holds frames of the last, or DPDK could not unmap them.
    """
    cdef size_t i
    cdef uint64_t mapped = 0, held = 0
    cdef region *r = left
    for i in range(nb_regions):
        mapped += regions[i].state == MAPPED
    while r != NULL:
        held += 1
        r = r.next
    return {"arrays": nb_regions, "mapped": mapped, "held": held + nb_lost}

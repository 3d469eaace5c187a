"""Fault lines: frames pass them between a loop and a port, where ``faults=`` asks for faults."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from aiflow._core cimport (
    AF_NB_FAULTS, af_fault_line, af_fault_line_due, af_fault_line_enter, af_fault_line_hold, af_fault_line_init,
    af_fault_line_leave, af_fault_rule,
)
from aiflow._dp_port cimport BURST, IN, loop_port
from aiflow._dp_frame cimport plain, unusual
from aiflow.librte.rte_mbuf cimport rte_mbuf, rte_pktmbuf_copy, rte_pktmbuf_free, rte_pktmbuf_mtod


cdef open_lines(loop_port *port, list faults, uint32_t index):
    """Open the fault lines of the port at `index`: for each way, by the first rule that names the port."""
    cdef af_fault_rule rule
    cdef uint32_t way
    for way in range(2):
        for asked in faults:
            if way in asked["ways"] and (asked["ports"] is None or index in asked["ports"]):
                rule = asked["rule"]
                port.lines[way] = <af_fault_line *>malloc(sizeof(af_fault_line))
                if port.lines[way] == NULL:
                    raise MemoryError
                af_fault_line_init(port.lines[way], &rule, asked["seed"], index, way)
                break


cdef close_lines(loop_port *port, uint64_t *sums):
    """Free a port's lines with the frames that they hold, and add their counts to `sums`."""
    cdef af_fault_line *line
    cdef rte_mbuf *m
    for way in range(2):
        line = port.lines[way]
        if line == NULL:
            continue
        while line.nb_held:
            m = <rte_mbuf *>af_fault_line_leave(line, <uint64_t>-1)
            rte_pktmbuf_free(m)
        for kind in range(AF_NB_FAULTS):
            sums[kind] += line.counts[kind]
        free(line)
        port.lines[way] = NULL


cdef void impair(af_fault_line *line, rte_mbuf *m, uint64_t now) noexcept nogil:
    """Pass a frame to a line: it drops the frame, or holds it and its copies until they are due."""
    cdef uint32_t size = m.data_len
    cdef uint8_t kind = rte_pktmbuf_mtod(m)[14] & 15 if size > 14 else 0
    cdef uint32_t copies = af_fault_line_enter(line, rte_pktmbuf_mtod(m), &size, now)
    cdef rte_mbuf *copy
    m.data_len = <uint16_t>size
    m.pkt_len = size
    while copies > 1:
        copies -= 1
        copy = rte_pktmbuf_copy(m, m.pool, 0, <uint32_t>-1)
        if copy != NULL and not af_fault_line_hold(line, af_fault_line_due(line, kind, now), copy):
            rte_pktmbuf_free(copy)
    if copies == 0 or not af_fault_line_hold(line, af_fault_line_due(line, kind, now), m):
        rte_pktmbuf_free(m)


cdef int impaired(loop_port *port, rte_mbuf **pkts, uint16_t nb_rx, uint64_t now, uint64_t *unseen) noexcept nogil:
    """Pass received frames to the line IN; `pkts` then has those that leave it now. Returns how many."""
    cdef rte_mbuf *m
    cdef uint16_t i
    for i in range(nb_rx):
        m = pkts[i]
        if unusual(m):
            m = plain(port, m, unseen)
        if m != NULL:
            impair(port.lines[IN], m, now)
    for i in range(BURST):
        pkts[i] = <rte_mbuf *>af_fault_line_leave(port.lines[IN], now)
        if pkts[i] == NULL:
            return i
    return BURST

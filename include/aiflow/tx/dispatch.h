/* Dispatch: which port may take the next chunk of a slice, and of which element.
 *
 * Without shares every port takes what it has room for. With shares a port takes its own, and then waits for the
 * others. When at most one port still holds a share, all ports may take its rest. A port holds its share while it is
 * alive and has sent at least a sixteenth of it by the time that another port is done. So no dead or very slow port
 * keeps one.
 *
 * Single chunks are dispatched in order. Of whole elements each port works on one. Another port takes over the element
 * of a dead port. When no element is left to begin, ports help with the others' elements, chunk by chunk.
 */
#ifndef AIFLOW_DISPATCH_H
#define AIFLOW_DISPATCH_H

#include "aiflow/tx/tx_state.h"

#define AF_SHORTEST_SLACK 8u /* frames by which queues may differ with `shortest` */
#define AF_CRAWLING 16u /* a share of which less than one part in this was sent is not held */

static inline bool
af_tx_port_lives(const struct af_tx *tx, uint32_t p)
{
	const struct af_tx_port *port = &tx->ports[p];

	return port->p.attached && port->open && !port->suspended;
}

/* Is port q expected to send a part of its share? */
static inline bool
af_dispatch_holds(const struct af_tx *tx, const struct af_tx_slice *s, uint32_t q)
{
	uint64_t share = s->dispatch.share_bytes[q];

	return s->taken[q] < share && af_tx_port_lives(tx, q) && s->taken[q] * AF_CRAWLING >= share;
}

static inline bool
af_dispatch_allows(const struct af_tx *tx, const struct af_tx_slice *s, uint32_t p, uint64_t now)
{
	uint32_t holders = 0;

	if (s->dispatch.shortest)
		for (uint32_t q = 0; q < tx->nb_ports; q++)
			if (q != p && s->dispatch.ports >> q & 1 && af_tx_port_lives(tx, q) &&
			    af_tx_pktnum_has_room(&tx->ports[q].pn) && af_pace_due(&tx->ports[q].pace, now) &&
			    tx->ports[q].pn.in_flight + AF_SHORTEST_SLACK < tx->ports[p].pn.in_flight)
				return false;
	if (!s->dispatch.by_share || s->taken[p] < s->dispatch.share_bytes[p])
		return true;
	for (uint32_t q = 0; q < tx->nb_ports; q++)
		holders += q != p && af_dispatch_holds(tx, s, q);
	return holders <= 1;
}

static inline bool
af_dispatch_is_element(const struct af_tx_slice *s, uint32_t e)
{
	return s->elements[e].nbytes > s->payload_bytes; /* it has chunks of its own; else one chunk carries a pack */
}

/* The cursor of port p's next chunk, or NULL when it may not take any. */
static inline struct af_cursor *
af_dispatch_cursor(const struct af_tx *tx, struct af_tx_slice *s, uint32_t p, uint64_t now)
{
	struct af_cursor *mine = &s->hands[p], *help = NULL;
	uint64_t most = 0;

	if (!s->dispatch.elements)
		return af_dispatch_allows(tx, s, p, now) ? &s->cursor : NULL;
	if (mine->open)
		return mine;
	for (uint32_t q = 0; q < tx->nb_ports; q++)
		if (s->hands[q].open && !af_tx_port_lives(tx, q)) {
			*mine = s->hands[q];
			s->hands[q].open = false;
			return mine;
		}
	if (s->cursor.element < s->nb_elements) {
		if (!af_dispatch_allows(tx, s, p, now))
			return NULL;
		*mine = (struct af_cursor){.open = true, .element = s->cursor.element};
		if (af_dispatch_is_element(s, mine->element)) {
			s->begun += s->elements[mine->element].nbytes;
			mine->after = s->nbytes - s->begun;
			s->cursor.element++;
		}
		return mine;
	}
	for (uint32_t q = 0; q < tx->nb_ports; q++) {
		struct af_cursor *theirs = &s->hands[q];
		uint64_t rest = theirs->open ? s->elements[theirs->element].nbytes - theirs->offset : 0;

		if (rest > most) {
			most = rest;
			help = theirs;
		}
	}
	return help;
}

/* A chunk was segmented at this cursor, and `next` is the element that follows. Joins its CRC to the slice's digest. */
static inline void
af_dispatch_advance(const struct af_tx *tx, struct af_tx_slice *s, struct af_cursor *at, uint32_t next, uint32_t nbytes,
		    uint32_t crc)
{
	uint32_t *digest = s->dispatch.elements ? &at->crc : &s->digest;
	bool pack = !af_dispatch_is_element(s, at->element), whole = next != at->element;

	*digest =
		(nbytes == tx->full.nbytes ? af_crc_apply(&tx->full, *digest) : af_crc32c_shift(*digest, nbytes)) ^ crc;
	at->offset = whole ? 0 : at->offset + nbytes;
	if (!s->dispatch.elements) {
		at->element = next;
		return;
	}
	if (pack) {
		s->begun += nbytes;
		s->cursor.element = next;
		at->after = s->nbytes - s->begun;
	}
	if (whole) {
		/* CRCs are linear: each element's is moved to its place by itself, in any order. */
		s->digest ^= af_crc32c_shift(at->crc, at->after);
		at->open = false;
	}
}

#endif

/* Borrowing: a slice on loan lies in memory of its sender, and stays there while this process reads it (rt/ledger.h).
 *
 * It is whole with its manifest. The lease is taken when that has been read, before any feedback, and given back with
 * the slice. Nothing of the bytes is copied, summed or charged here.
 */
#ifndef AIFLOW_BORROWING_H
#define AIFLOW_BORROWING_H

#include "aiflow/rx/rx_state.h"
#include "aiflow/wire/loan.h"

/* The end of a slice. Any thread. */
static inline void
af_rx_give_back(struct af_rx_slice *s)
{
	if (s->borrowed)
		af_borrowed_give(s->borrowed, s->lease, s->generation);
	s->borrowed = NULL;
}

/* Take what a sound manifest lends, if it lends something. AF_VOID_NONE, or why the slice is refused. */
static inline enum af_void_reason
af_rx_borrow(struct af_rx *rx, const struct af_rx_session *session, struct af_rx_slice *s, const uint8_t *extensions)
{
	struct af_loan_told told;
	struct af_borrowed *from;

	if (!af_loan_read(extensions, s->manifest + s->manifest_bytes, &told))
		return AF_VOID_MANIFEST;
	if (!told.pieces)
		return AF_VOID_NONE;
	from = rx->borrows ? af_shared_borrowed(rx->ports[session->last_port].p.shared, told.head.pool) : NULL;
	if (!from || !af_loan_is_sound(&told, s->manifest, s->manifest_bytes, from->nbytes))
		return AF_VOID_MANIFEST;
	if (!af_borrowed_take(from, told.head.lease, told.head.generation))
		return AF_VOID_MANIFEST; /* its sender gave it up a moment ago, and reads no answer; or it lies */
	s->borrowed = from;
	s->lease = told.head.lease;
	s->generation = told.head.generation;
	return AF_VOID_NONE;
}

/* The elements of a borrowed slice lie in the sender's pool: `offset` of each becomes its place there. */
static inline void
af_rx_lay_out_loan(struct af_rx_slice *s)
{
	struct af_manifest m;
	struct af_extent extent;
	struct af_loan_told told;
	uint64_t offset = 0;
	uint32_t next = 0;

	s->origin = (uintptr_t)s->borrowed->base;
	af_manifest_measure(s->manifest, s->manifest_bytes, &m, &extent);
	af_loan_read(extent.end, s->manifest + s->manifest_bytes, &told);
	for (uint32_t e = 0; e < s->nb_elements; e++) {
		if (next < told.nb_pieces && af_loan_piece_at(&told, next).first == e)
			offset = af_loan_piece_at(&told, next++).offset;
		s->elements[e].offset = offset;
		offset += s->elements[e].nbytes;
	}
}

/* The first byte from which the offsets of a slice's elements count. */
static inline const uint8_t *
af_rx_base(const struct af_rx_slice *s)
{
	return s->borrowed ? s->borrowed->base : s->arena->base + s->block->offset;
}

/* Do these elements follow each other without a gap? Those of a run do, but for loans out of several blocks. */
static inline bool
af_rx_is_one_piece(const struct af_rx_slice *s, uint32_t first, uint32_t count)
{
	for (uint32_t e = first; s->borrowed && e + 1 < first + count; e++)
		if (s->elements[e].offset + s->elements[e].nbytes != s->elements[e + 1].offset)
			return false;
	return true;
}

#endif

/* Placing: a sender writes chunks straight into the memory of a receiver on the same host.
 *
 * The receiver shares its memory over the connection of their ports, and says where the block of a granted slice lies
 * (AF_EXTENSION_PLACES). Both ends derive the places of the elements from the manifest. The sender copies a chunk to
 * its place, and sums it in the same pass. Then it sends a frame that has the chunk's CRC32C in place of its bytes.
 *
 * A chunk is written once in a session, before its first frame. A retransmission repeats the frame alone, over any
 * path. So a receiver that has the frame of every chunk knows that its sender writes no more: the user may change the
 * bytes. A chunk that was carried once is always carried, for the same reason.
 */
#ifndef AIFLOW_PLACING_H
#define AIFLOW_PLACING_H

#include "aiflow/tx/tx_state.h"

static inline void
af_tx_forget_places(struct af_tx_slice *s)
{
	if (!s->places)
		return;
	free(s->places->runs);
	free(s->places->done);
	free(s->places->crc);
	free(s->places);
	s->places = NULL;
}

/* The elements' places in a block, as af_rx_lay_out has them. False without memory, or for a manifest that lies. */
static inline bool
af_tx_place_runs(struct af_tx_slice *s, struct af_tx_places *places)
{
	struct af_manifest m;
	struct af_run_cursor runs;
	uint64_t offset = 0;
	uint32_t first = 0;

	af_manifest_read(s->manifest, s->manifest_bytes, &m, &runs);
	places->runs = malloc((m.nb_runs ? m.nb_runs : 1) * sizeof *places->runs);
	if (!places->runs)
		return false;
	for (; places->nb_runs < m.nb_runs && af_run_next(&runs); places->nb_runs++) {
		offset = af_align(offset);
		places->runs[places->nb_runs] =
			(struct af_tx_run){.first = first, .nbytes = runs.run.nbytes, .offset = offset};
		first += runs.run.count;
		offset += runs.run.count * runs.run.nbytes;
	}
	return places->nb_runs && places->nb_runs == m.nb_runs && first == s->nb_elements;
}

/* The receiver says where a slice lies. What is not inside the memory that it shares is ignored: chunks are carried. */
static inline void
af_tx_take_place(struct af_tx *tx, struct af_tx_slice *s, uint64_t offset)
{
	const struct af_shared *shared = NULL;
	const struct af_shared_memory *memory = NULL;
	struct af_tx_places *places;
	struct af_manifest m;
	struct af_extent extent;

	if (s->places || af_tx_is_told(s))
		return;
	for (uint32_t p = 0; p < tx->nb_ports && !memory; p++) {
		shared = tx->ports[p].p.attached ? tx->ports[p].p.shared : NULL;
		memory = af_shared_of(shared, tx->epoch);
	}
	if (!memory || !af_manifest_measure(s->manifest, s->manifest_bytes, &m, &extent) || offset > memory->nbytes ||
	    extent.block_bytes > memory->nbytes - offset)
		return;
	places = calloc(1, sizeof *places);
	if (!places)
		return;
	s->places = places;
	places->shared = shared;
	places->block = memory->base + offset;
	places->done = calloc(s->nb_data / 64 + 1, 8);
	places->crc = malloc((s->nb_data + 1ul) * sizeof *places->crc);
	if (!places->done || !places->crc || !af_tx_place_runs(s, places))
		af_tx_forget_places(s);
}

/* The connection has ended, and its memory is no longer mapped: what was not written yet is carried. */
static inline void
af_tx_unmap(struct af_tx *tx, const struct af_shared *shared)
{
	for (uint32_t id = tx->first_id; id != tx->next_id && shared; id++) {
		struct af_tx_slice *s = tx->slots[id % AF_TX_SLICES].slice;

		if (s && s->places && s->places->shared == shared)
			s->places->shared = NULL;
	}
}

static inline bool
af_tx_is_placed(const struct af_tx_slice *s, uint32_t data)
{
	return s->places && s->places->done[data / 64] >> (data % 64) & 1;
}

/* Where an element lies. */
static inline uint8_t *
af_tx_place_of(struct af_tx_places *places, uint32_t e)
{
	const struct af_tx_run *runs = places->runs;
	uint32_t low = places->at, high = places->nb_runs;

	if (e < runs[low].first) {
		high = low;
		low = 0;
	} else if (low + 1 == high || e < runs[low + 1].first) {
		high = low + 1;
	}
	while (high - low > 1) {
		uint32_t middle = low + (high - low) / 2;

		if (runs[middle].first <= e)
			low = middle;
		else
			high = middle;
	}
	places->at = low;
	return places->block + runs[low].offset + (e - runs[low].first) * runs[low].nbytes;
}

/* Write a chunk to its place: `nbytes` bytes from `offset` of element e on, or the `count` whole elements of a pack.
 * Other processes see the bytes when this returns. */
static inline uint32_t
af_tx_place(struct af_tx_slice *s, uint32_t data, uint32_t e, uint32_t count, uint64_t offset, uint32_t nbytes)
{
	struct af_tx_places *places = s->places;
	enum af_copy how = s->nbytes >= AF_STREAM_SLICE && nbytes >= AF_STREAM_FRAME ? AF_COPY_STREAM : AF_COPY_STORE;
	const uint8_t *from = s->elements[e].ptr + offset;
	uint8_t *to = af_tx_place_of(places, e) + offset;
	uint64_t piece = nbytes;
	uint32_t crc = 0;

	if (count > 1) { /* pieces are as long as they are contiguous at both ends */
		piece = s->elements[e].nbytes;
		for (uint32_t i = e + 1; i < e + count; i++) {
			const uint8_t *next = s->elements[i].ptr;
			uint8_t *place = af_tx_place_of(places, i);

			if (next != from + piece || place != to + piece) {
				if (piece)
					crc = af_copy_crc32c(crc, to, from, piece, how);
				from = next;
				to = place;
				piece = 0;
			}
			piece += s->elements[i].nbytes;
		}
	}
	if (piece)
		crc = af_copy_crc32c(crc, to, from, piece, how);
	af_copy_settle();
	places->done[data / 64] |= 1ull << (data % 64);
	places->crc[data] = crc;
	s->placed_bytes += nbytes;
	return crc;
}

#endif

/* How a manifest says that its elements are on loan: where they lie in memory that their sender shares (rt/ledger.h).
 *
 *     entry of kind AF_EXTENSION_LOAN    u64 pool | u64 generation | u32 lease | pieces
 *     piece                              u64 offset in the pool | u32 first element
 *
 * The elements of a piece follow each other without a gap, up to the next piece's first. Piece 0 begins with element 0.
 */
#ifndef AIFLOW_LOAN_H
#define AIFLOW_LOAN_H

#include "aiflow/wire/extension.h"
#include "aiflow/wire/manifest.h"

struct __attribute__((packed)) af_loan_head {
	uint64_t pool;       /* number of the memory and its ledger, random */
	uint64_t generation; /* of the lease */
	uint32_t lease;      /* its index in the ledger */
};

struct __attribute__((packed)) af_loan_piece {
	uint64_t offset;
	uint32_t first;
};

_Static_assert(sizeof(struct af_loan_head) == 20, "wire size");
_Static_assert(sizeof(struct af_loan_piece) == 12, "wire size");

#define AF_LOAN_PIECES ((0xffffu - (uint32_t)sizeof(struct af_loan_head)) / (uint32_t)sizeof(struct af_loan_piece))

/* Bytes that a loan of `nb_pieces` pieces, at most AF_LOAN_PIECES, takes behind a manifest. */
static inline uint32_t
af_loan_bytes(uint32_t nb_pieces)
{
	return AF_EXTENSION_HEADER + (uint32_t)sizeof(struct af_loan_head) +
	       nb_pieces * (uint32_t)sizeof(struct af_loan_piece);
}

/* Write the entry. `pieces` are in wire order already. */
static inline void
af_loan_write(uint8_t *at, uint64_t pool, uint32_t lease, uint64_t generation, const struct af_loan_piece *pieces,
	      uint32_t nb_pieces)
{
	uint16_t head[2] = {AF_BE16((uint16_t)AF_EXTENSION_LOAN),
			    AF_BE16((uint16_t)(af_loan_bytes(nb_pieces) - AF_EXTENSION_HEADER))};
	struct af_loan_head loan = {.pool = AF_BE64(pool), .generation = AF_BE64(generation), .lease = AF_BE32(lease)};

	memcpy(at, head, sizeof head);
	memcpy(at + sizeof head, &loan, sizeof loan);
	memcpy(at + sizeof head + sizeof loan, pieces, nb_pieces * sizeof *pieces);
}

/* A loan as a manifest tells it. Nothing but its length is checked. */
struct af_loan_told {
	struct af_loan_head head; /* host order */
	const uint8_t *pieces;    /* on the wire; NULL: the manifest tells of no loan */
	uint32_t nb_pieces;
};

/* Read what is behind a manifest's last run: its entries are sound (af_extensions_check). False for a loan that
 * contradicts itself. */
static inline bool
af_loan_read(const uint8_t *at, const uint8_t *end, struct af_loan_told *told)
{
	struct af_extension_cursor c = {.at = at, .end = end};

	memset(told, 0, sizeof *told);
	while (af_extension_next(&c)) {
		if (c.kind != AF_EXTENSION_LOAN)
			continue;
		if (told->pieces || c.nbytes < sizeof told->head + sizeof(struct af_loan_piece) ||
		    (c.nbytes - sizeof told->head) % sizeof(struct af_loan_piece))
			return false;
		memcpy(&told->head, c.bytes, sizeof told->head);
		told->head.pool = AF_BE64(told->head.pool);
		told->head.generation = AF_BE64(told->head.generation);
		told->head.lease = AF_BE32(told->head.lease);
		told->pieces = c.bytes + sizeof told->head;
		told->nb_pieces = (uint32_t)((c.nbytes - sizeof told->head) / sizeof(struct af_loan_piece));
	}
	return true;
}

/* Piece i, in host order. */
static inline struct af_loan_piece
af_loan_piece_at(const struct af_loan_told *told, uint32_t i)
{
	struct af_loan_piece piece;

	memcpy(&piece, told->pieces + i * sizeof piece, sizeof piece);
	piece.offset = AF_BE64(piece.offset);
	piece.first = AF_BE32(piece.first);
	return piece;
}

/* Do all pieces lie inside a pool of `pool_bytes` bytes, and cover the elements of a manifest that is sound? */
static inline bool
af_loan_is_sound(const struct af_loan_told *told, const uint8_t *manifest, uint64_t manifest_bytes, uint64_t pool_bytes)
{
	struct af_manifest m;
	struct af_run_cursor runs;
	struct af_loan_piece piece = af_loan_piece_at(told, 0);
	uint32_t next = 0, first, at = 0; /* the next piece; the next one's first element; this element */
	uint64_t left = 0;                /* bytes of the pool behind what was laid out */

	if (piece.first != 0)
		return false;
	first = 0;
	af_manifest_read(manifest, manifest_bytes, &m, &runs);
	for (uint32_t r = 0; r < m.nb_runs && af_run_next(&runs); r++) {
		uint32_t end = at + runs.run.count;

		while (at < end) {
			uint32_t until;

			if (next < told->nb_pieces && at == first) {
				piece = af_loan_piece_at(told, next++);
				if (piece.offset > pool_bytes)
					return false;
				left = pool_bytes - piece.offset;
				if (next < told->nb_pieces) {
					uint32_t follows = af_loan_piece_at(told, next).first;

					if (follows <= first)
						return false;
					first = follows;
				}
			}
			until = next < told->nb_pieces && first < end ? first : end;
			if (runs.run.nbytes && until - at > left / runs.run.nbytes)
				return false;
			left -= (until - at) * runs.run.nbytes;
			at = until;
		}
	}
	return next == told->nb_pieces;
}

#endif

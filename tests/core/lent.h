/* A pool on loan between the two ends of a rig: one mapping serves both, as in one process. */
#ifndef TESTS_LENT_H
#define TESTS_LENT_H

#include "rig.h"

#define LENT_POOL 0x1234567890abcdefull
#define LENT_BYTES (1u << 20)

static uint64_t lent_pool; /* number that slices name */
static uint32_t lent_ended; /* blocks that nothing holds any more */

struct lent {
	struct af_shared tx, rx; /* what each end has of the connection */
	struct af_lender *lender;
	struct af_borrowed *borrowed;
	struct af_loan loan; /* all of the pool */
};

static inline void
lent_end(struct af_loan *loan)
{
	(void)loan;
	lent_ended++;
}

static inline void *
lent_map(size_t nbytes)
{
	void *at = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(at != MAP_FAILED);
	return at;
}

/* The receiver wants loans, and both ends have mapped the pool. */
static inline void
lent_begin(struct lent *lent, struct rig *rig)
{
	memset(lent, 0, sizeof *lent);
	lent_ended = 0;
	lent_pool = LENT_POOL;
	lent->lender = malloc(sizeof *lent->lender);
	lent->borrowed = calloc(1, sizeof *lent->borrowed);
	*lent->borrowed = (struct af_borrowed){.holds = 1, .pool = LENT_POOL, .nbytes = LENT_BYTES};
	lent->borrowed->base = lent_map(LENT_BYTES);
	lent->borrowed->words = lent_map(AF_LEDGER_BYTES);
	lent->loan = (struct af_loan){
		.holds = 1, .base = (uint8_t *)(uintptr_t)lent->borrowed->base, .nbytes = LENT_BYTES, .end = lent_end};
	for (uint32_t i = 0; i < LENT_BYTES; i++)
		lent->loan.base[i] = (uint8_t)(i * 7 + i / 251);
	af_lender_init(lent->lender, LENT_POOL, lent->borrowed->words);
	lent->lender->mapped = true;
	lent->tx.lenders[0] = lent->lender;
	lent->rx.borrowed[0] = lent->borrowed;
	af_shared_add(&lent->tx, lent->loan.base, LENT_BYTES, rig->rx.epoch, true);
	rig->rx.borrows = true;
	for (uint32_t p = 0; p < rig->nb_ports; p++) {
		rig->tx.ports[p].p.shared = &lent->tx;
		rig->rx.ports[p].p.shared = &lent->rx;
	}
}

/* Every lease is over, and so is the mapping. */
static inline void
lent_finish(struct lent *lent)
{
	CHECK_EQUAL(af_lender_sweep(lent->lender), 0);
	CHECK_EQUAL(lent->loan.holds, 1);
	CHECK_EQUAL(lent->borrowed->holds, 1);
	pthread_mutex_destroy(&lent->lender->lock);
	free(lent->lender);
	af_borrowed_drop(lent->borrowed);
}

/* A slice whose elements of these sizes lie one after the other in the pool, from `offset` on. */
static inline struct af_tx_slice *
lent_slice(struct lent *lent, uint32_t n, const uint64_t *sizes, uint64_t offset)
{
	struct af_tx_slice *s = rig_slice(n, sizes);
	struct af_span *elements = (struct af_span *)(uintptr_t)s->elements;
	struct af_tx_loans *loans = calloc(1, sizeof *loans);

	loans->pool = lent_pool;
	loans->held = malloc(sizeof *loans->held);
	loans->held[0] = &lent->loan;
	loans->nb_held = loans->nb_pieces = 1;
	loans->pieces = malloc(sizeof *loans->pieces);
	*loans->pieces = (struct af_loan_piece){.offset = AF_BE64(offset)};
	loans->manifest_bytes = s->manifest_bytes;
	s->manifest = realloc(s->manifest, s->manifest_bytes + af_loan_bytes(1));
	for (uint32_t e = 0; e < n; e++) {
		free((void *)(uintptr_t)elements[e].ptr);
		elements[e].ptr = lent->loan.base + offset;
		offset += sizes[e];
	}
	s->loans = loans;
	return s;
}

static inline void
lent_slice_free(struct af_tx_slice *s)
{
	for (uint32_t e = 0; e < s->nb_elements; e++)
		((struct af_span *)(uintptr_t)s->elements)[e].ptr = NULL;
	free(s->loans->held);
	free(s->loans->pieces);
	free(s->loans);
	rig_slice_free(s);
}

#endif

/* The memory of which a sender makes loans: an arena that it shares, and whose blocks its users and its receivers hold.
 *
 * It lives until its Sender, and everything that holds a block of it here, are gone. Receivers have mapped it
 * themselves: it goes on for them.
 */
#ifndef AIFLOW_LOAN_POOL_H
#define AIFLOW_LOAN_POOL_H

#include "aiflow/rt/ledger.h"
#include "aiflow/rx/arena.h"

struct af_loan_pool {
	struct af_arena arena;
	struct af_memory_groups groups; /* that `arena` asks for room; control: w before the first loan */
	_Atomic uint32_t holds; /* its Sender's, and each block's */
};

struct af_loan_block {
	struct af_loan loan; /* first */
	struct af_loan_pool *pool;
	struct af_block *block;
};

/* NULL where no memory can be shared. `room` is the arena's. */
static inline struct af_loan_pool *
af_loan_pool_new(uint64_t limit, uint64_t (*room)(const struct af_memory_groups *groups))
{
	struct af_loan_pool *pool = calloc(1, sizeof *pool);

	if (!pool)
		return NULL;
	if (af_arena_init(&pool->arena, limit, AF_ARENA_SHARED)) {
		pthread_mutex_destroy(&pool->arena.lock);
		free(pool);
		return NULL;
	}
	if (pool->arena.fd < 0) { /* it became private */
		af_arena_free(&pool->arena, true);
		free(pool);
		return NULL;
	}
	pool->arena.room = room;
	pool->arena.groups = &pool->groups;
	pool->holds = 1;
	return pool;
}

static inline void
af_loan_pool_drop(struct af_loan_pool *pool)
{
	if (atomic_fetch_sub_explicit(&pool->holds, 1, memory_order_acq_rel) != 1)
		return;
	af_arena_free(&pool->arena, false); /* a receiver may read its pages: they go with the last mapping */
	free(pool);
}

static inline void
af_loan_block_end(struct af_loan *loan)
{
	struct af_loan_block *block = (struct af_loan_block *)loan;
	struct af_loan_pool *pool = block->pool;

	if (!atomic_load_explicit(&loan->stays, memory_order_relaxed))
		af_arena_give(&pool->arena, block->block);
	free(block);
	af_loan_pool_drop(pool);
}

enum af_loan_found { AF_LOAN_MADE, AF_LOAN_FULL, AF_LOAN_NO_PAGES };

/* A block of `nbytes` bytes with all its pages, held once. AF_LOAN_FULL: its memory is in use. AF_LOAN_NO_PAGES: the
 * system has too little. */
static inline enum af_loan_found
af_loan_pool_take(struct af_loan_pool *pool, uint64_t nbytes, struct af_loan **made)
{
	struct af_loan_block *loan = calloc(1, sizeof *loan);
	enum af_fill fill = AF_FILL_MORE;

	if (!loan)
		return AF_LOAN_NO_PAGES;
	loan->block = af_arena_take(&pool->arena, nbytes, nbytes);
	if (!loan->block) {
		free(loan);
		return AF_LOAN_FULL;
	}
	while (fill == AF_FILL_MORE)
		fill = af_arena_fill(&pool->arena, loan->block, AF_ARENA_STEP);
	if (fill == AF_FILL_FAILED) {
		af_arena_give(&pool->arena, loan->block);
		free(loan);
		return AF_LOAN_NO_PAGES;
	}
	loan->pool = pool;
	loan->loan.holds = 1;
	loan->loan.base = pool->arena.base + loan->block->offset;
	loan->loan.nbytes = nbytes;
	loan->loan.end = af_loan_block_end;
	atomic_fetch_add_explicit(&pool->holds, 1, memory_order_relaxed);
	*made = &loan->loan;
	return AF_LOAN_MADE;
}

#endif

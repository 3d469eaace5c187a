/* loan_pool.h: blocks of a pool are used again, and the pool ends with what is made of it. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memfd_create */
#endif
#include "aiflow/loan/loan_pool.h"

#include "check.h"

#define MB (1ull << 20)

static void
blocks_are_used_again(void)
{
	struct af_loan_pool *pool = af_loan_pool_new(4 * MB, NULL);
	struct af_loan *loans[4], *more;
	uint8_t *second;

	CHECK(pool);
	for (int i = 0; i < 4; i++) {
		CHECK_EQUAL(af_loan_pool_take(pool, MB, &loans[i]), AF_LOAN_MADE);
		CHECK_EQUAL(loans[i]->nbytes, MB);
		CHECK_EQUAL((uintptr_t)loans[i]->base % 4096, 0);
		memset(loans[i]->base, i, MB);
	}
	CHECK_EQUAL(af_loan_pool_take(pool, 1, &more), AF_LOAN_FULL);
	second = loans[1]->base;
	af_loan_hold(loans[1]);
	af_loan_drop(loans[1]);
	CHECK_EQUAL(af_loan_pool_take(pool, 1, &more), AF_LOAN_FULL);
	af_loan_drop(loans[1]);
	CHECK_EQUAL(af_loan_pool_take(pool, MB, &loans[1]), AF_LOAN_MADE);
	CHECK(loans[1]->base == second);
	for (int i = 0; i < 4; i++)
		af_loan_drop(loans[i]);
	CHECK_EQUAL(pool->arena.used, 0);
	af_loan_pool_drop(pool);
}

static void
a_block_outlives_the_holder_of_its_pool(void)
{
	struct af_loan_pool *pool = af_loan_pool_new(MB, NULL);
	struct af_loan *loan;

	CHECK_EQUAL(af_loan_pool_take(pool, 5000, &loan), AF_LOAN_MADE);
	af_loan_pool_drop(pool);
	memset(loan->base, 1, loan->nbytes);
	af_loan_drop(loan);
}

static void
what_stays_is_not_used_again(void)
{
	struct af_loan_pool *pool = af_loan_pool_new(MB, NULL);
	struct af_loan *loan, *more;
	uint8_t *at;

	CHECK_EQUAL(af_loan_pool_take(pool, MB / 2, &loan), AF_LOAN_MADE);
	at = loan->base;
	loan->stays = true;
	af_loan_drop(loan);
	CHECK_EQUAL(pool->arena.used, MB / 2);
	CHECK_EQUAL(af_loan_pool_take(pool, MB, &more), AF_LOAN_FULL);
	CHECK_EQUAL(af_loan_pool_take(pool, 4096, &more), AF_LOAN_MADE);
	CHECK(more->base >= at + MB / 2);
	af_loan_drop(more);
	af_loan_pool_drop(pool);
}

static uint64_t
nothing(const struct af_memory_groups *groups)
{
	(void)groups;
	return 0;
}

static void
a_system_without_memory_gives_none(void)
{
	struct af_loan_pool *pool = af_loan_pool_new(MB, nothing);
	struct af_loan *loan;

	CHECK_EQUAL(af_loan_pool_take(pool, MB, &loan), AF_LOAN_NO_PAGES);
	CHECK_EQUAL(pool->arena.used, 0);
	af_loan_pool_drop(pool);
}

CASES(CASE(blocks_are_used_again), CASE(a_block_outlives_the_holder_of_its_pool), CASE(what_stays_is_not_used_again),
      CASE(a_system_without_memory_gives_none))

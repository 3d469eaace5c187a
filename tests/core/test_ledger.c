/* ledger.h: of two processes one wins each lease, and no block is used again while one of them may read it. */
#include "aiflow/rt/ledger.h"

#include <sched.h>

#include "check.h"

static _Atomic uint64_t *words;
static struct af_lender lender;
static struct af_borrowed *borrowed;
static struct af_loan loan;
static uint32_t ended;

static void
end(struct af_loan *of)
{
	CHECK(of == &loan);
	ended++;
}

static void *
map(size_t nbytes)
{
	void *at = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(at != MAP_FAILED);
	return at;
}

static void
begin(void)
{
	ended = 0;
	words = map(AF_LEDGER_BYTES);
	borrowed = calloc(1, sizeof *borrowed);
	*borrowed = (struct af_borrowed){.holds = 1, .pool = 7, .base = map(4096), .nbytes = 4096, .words = words};
	loan = (struct af_loan){.holds = 1, .end = end};
	af_lender_init(&lender, 7, words);
}

static void
finish(void)
{
	CHECK_EQUAL(af_lender_sweep(&lender), 0);
	CHECK_EQUAL(loan.holds, 1);
	af_loan_drop(&loan);
	CHECK_EQUAL(ended, 1);
	CHECK_EQUAL(borrowed->holds, 1);
	af_borrowed_drop(borrowed);
	pthread_mutex_destroy(&lender.lock);
}

static void
offer(uint32_t *index, uint64_t *generation)
{
	struct af_loan *loans[] = {&loan};

	CHECK(af_lender_offer(&lender, loans, 1, index, generation));
}

static void
a_lease_is_taken_once_and_given_back(void)
{
	uint64_t generation;
	uint32_t index;

	begin();
	offer(&index, &generation);
	CHECK_EQUAL(loan.holds, 2);
	CHECK(!af_borrowed_take(borrowed, index, generation + 1));
	CHECK(!af_borrowed_take(borrowed, index, generation - 1));
	CHECK(af_borrowed_take(borrowed, index, generation));
	CHECK(!af_borrowed_take(borrowed, index, generation));
	CHECK_EQUAL(borrowed->holds, 2);
	af_lender_withdraw(&lender, index, generation); /* too late */
	CHECK_EQUAL(af_lender_sweep(&lender), 1);
	CHECK_EQUAL(loan.holds, 2);
	af_borrowed_give(borrowed, index, generation);
	CHECK_EQUAL(af_lender_sweep(&lender), 0);
	CHECK_EQUAL(loan.holds, 1);
	finish();
}

static void
a_lease_that_was_withdrawn_is_never_taken(void)
{
	uint64_t generation, next;
	uint32_t index, other;

	begin();
	offer(&index, &generation);
	af_lender_withdraw(&lender, index, generation);
	CHECK_EQUAL(loan.holds, 1);
	CHECK(!af_borrowed_take(borrowed, index, generation));
	offer(&other, &next);
	CHECK_EQUAL(other, index); /* the same word */
	CHECK(!af_borrowed_take(borrowed, index, generation));
	af_lender_withdraw(&lender, index, generation); /* of the one before: nothing */
	CHECK(af_borrowed_take(borrowed, index, next));
	af_borrowed_give(borrowed, index, next);
	finish();
}

static void
a_block_ends_with_its_last_hold(void)
{
	uint64_t generations[2];
	uint32_t indexes[2];

	begin();
	for (int i = 0; i < 2; i++)
		offer(&indexes[i], &generations[i]);
	for (int i = 0; i < 2; i++)
		CHECK(af_borrowed_take(borrowed, indexes[i], generations[i]));
	af_loan_drop(&loan); /* its array is gone */
	af_borrowed_give(borrowed, indexes[0], generations[0]);
	CHECK_EQUAL(af_lender_sweep(&lender), 1);
	CHECK_EQUAL(ended, 0);
	af_borrowed_give(borrowed, indexes[1], generations[1]);
	CHECK_EQUAL(af_lender_sweep(&lender), 0);
	CHECK_EQUAL(ended, 1);
	af_borrowed_drop(borrowed);
}

static void
a_ledger_has_an_end(void)
{
	static uint64_t generations[AF_LEASES];
	struct af_loan *loans[] = {&loan};
	uint64_t generation;
	uint32_t index;

	begin();
	for (uint32_t i = 0; i < AF_LEASES; i++)
		offer(&index, &generations[i]);
	CHECK(!af_lender_offer(&lender, loans, 1, &index, &generation));
	CHECK(!af_borrowed_take(borrowed, AF_LEASES, 1));
	CHECK(!af_borrowed_take(borrowed, UINT32_MAX, 1));
	CHECK(!af_borrowed_take(borrowed, 0, UINT64_MAX));
	CHECK(af_borrowed_take(borrowed, 100, generations[100]));
	af_borrowed_give(borrowed, 100, generations[100]);
	offer(&index, &generation); /* a full one is swept */
	CHECK_EQUAL(index, 100);
	af_lender_forget(&lender, false);
	CHECK_EQUAL(loan.holds, 1);
	CHECK(!af_borrowed_take(borrowed, 5, generations[5]));
	finish();
}

static void
nonsense_ends_a_lease(void)
{
	static const uint64_t told[] = {0, 3, UINT64_MAX, 1ull << 63};

	for (size_t i = 0; i < sizeof told / sizeof *told; i++) {
		uint64_t generation;
		uint32_t index;

		begin();
		offer(&index, &generation);
		atomic_store(&words[index], told[i]); /* the peer harms itself */
		finish();
	}
}

static void
what_a_living_process_reads_for_ever_gets_no_other_use(void)
{
	uint64_t generation;
	uint32_t index;

	begin();
	offer(&index, &generation);
	CHECK(af_borrowed_take(borrowed, index, generation));
	af_lender_forget(&lender, true);
	CHECK(loan.stays);
	af_borrowed_give(borrowed, index, generation);
	finish();
	begin();
	offer(&index, &generation);
	CHECK(af_borrowed_take(borrowed, index, generation));
	af_borrowed_give(borrowed, index, generation);
	af_lender_forget(&lender, true);
	CHECK(!loan.stays); /* it was given back */
	finish();
}

enum { TURNS = 20000 };

static struct {
	_Atomic uint32_t turn, answered;
	uint32_t index;
	uint64_t generation;
	_Atomic bool taken;
} contest;

static void *
take(void *argument)
{
	(void)argument;
	for (uint32_t turn = 1; turn <= TURNS; turn++) {
		while (atomic_load(&contest.turn) < turn)
			sched_yield();
		atomic_store(&contest.taken, af_borrowed_take(borrowed, contest.index, contest.generation));
		atomic_store(&contest.answered, turn);
	}
	return NULL;
}

static void
one_side_wins_each_lease(void)
{
	pthread_t thread;

	begin();
	pthread_create(&thread, NULL, take, NULL);
	for (uint32_t turn = 1; turn <= TURNS; turn++) {
		offer(&contest.index, &contest.generation);
		atomic_store(&contest.turn, turn);
		if (turn % 2)
			sched_yield();
		af_lender_withdraw(&lender, contest.index, contest.generation);
		while (atomic_load(&contest.answered) < turn)
			sched_yield();
		CHECK_EQUAL(af_lender_sweep(&lender), contest.taken);
		CHECK_EQUAL(loan.holds, 1u + contest.taken);
		if (contest.taken)
			af_borrowed_give(borrowed, contest.index, contest.generation);
	}
	pthread_join(thread, NULL);
	finish();
}

CASES(CASE(a_lease_is_taken_once_and_given_back), CASE(a_lease_that_was_withdrawn_is_never_taken),
      CASE(a_block_ends_with_its_last_hold), CASE(a_ledger_has_an_end), CASE(nonsense_ends_a_lease),
      CASE(what_a_living_process_reads_for_ever_gets_no_other_use), CASE(one_side_wins_each_lease))

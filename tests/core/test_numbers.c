/* numbers.h: numbers of sessions are random, never 0, and unique in the process. */
#include <pthread.h>

#include "aiflow/rt/numbers.h"

#include "check.h"

#define THREADS 4
#define EACH 50000

static struct af_numbers numbers;
static uint32_t minted[THREADS * EACH];

static int
compared(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static void
begin(uint64_t seed, uint32_t next)
{
	af_numbers_init(&numbers, (uint64_t[]){seed, seed * 3});
	atomic_store(&numbers.next, next);
}

static void *
mint_some(void *at)
{
	for (int i = 0; i < EACH; i++)
		((uint32_t *)at)[i] = af_numbers_mint(&numbers);
	return NULL;
}

static void
threads_never_mint_the_same_number(void)
{
	pthread_t threads[THREADS];

	begin(7, UINT32_MAX - 1000); /* the counter wraps */
	for (int t = 0; t < THREADS; t++)
		CHECK(!pthread_create(&threads[t], NULL, mint_some, &minted[t * EACH]));
	for (int t = 0; t < THREADS; t++)
		pthread_join(threads[t], NULL);
	qsort(minted, THREADS * EACH, sizeof *minted, compared);
	for (int i = 1; i < THREADS * EACH; i++)
		CHECK(minted[i] != minted[i - 1]);
	CHECK(minted[0]);
}

static void
zero_is_passed_over(void)
{
	uint32_t at = 0, found = 0;

	/* The count that would give 0: run the rounds backwards. */
	begin(11, 0);
	for (int round = AF_NUMBERS_ROUNDS - 1; round >= 0; round--) {
		uint32_t left = at >> 16, right = at & 0xffff;

		at = (right ^ af_numbers_round(&numbers, left, (uint64_t)round)) << 16 | left;
	}
	atomic_store(&numbers.next, at + 1);
	found = af_numbers_mint(&numbers);
	atomic_store(&numbers.next, at);
	CHECK(found);
	CHECK_EQUAL(af_numbers_mint(&numbers), found);
	CHECK_EQUAL(atomic_load(&numbers.next), at + 2);
}

static void
another_seed_gives_other_numbers(void)
{
	uint32_t first[100];
	int same = 0;

	begin(1, 0);
	for (int i = 0; i < 100; i++)
		first[i] = af_numbers_mint(&numbers);
	begin(1, 0);
	for (int i = 0; i < 100; i++)
		CHECK_EQUAL(af_numbers_mint(&numbers), first[i]);
	begin(2, 0);
	for (int i = 0; i < 100; i++)
		same += af_numbers_mint(&numbers) == first[i];
	CHECK_EQUAL(same, 0);
}

static void
each_bit_is_set_in_half_of_them(void)
{
	int set[32] = {0};

	begin(3, 0);
	for (int i = 0; i < 10000; i++) {
		uint32_t number = af_numbers_mint(&numbers);

		for (int bit = 0; bit < 32; bit++)
			set[bit] += number >> bit & 1;
	}
	for (int bit = 0; bit < 32; bit++)
		CHECK_NEAR(set[bit], 5000, 0.06);
}

CASES(CASE(threads_never_mint_the_same_number), CASE(zero_is_passed_over), CASE(another_seed_gives_other_numbers),
      CASE(each_bit_is_set_in_half_of_them))

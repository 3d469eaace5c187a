/* arena.h: a receiver's element memory. */
#include <pthread.h>

#include "aiflow/rx/arena.h"

#include "check.h"

#define MB (1ull << 20)

static struct af_arena arena;

static void
it_ends_at_its_limit_and_begins_again(void)
{
	struct af_block *blocks[8];

	CHECK(!af_arena_init(&arena, 8 * MB, AF_ARENA_PRIVATE));
	for (int i = 0; i < 8; i++) {
		CHECK((blocks[i] = af_arena_take(&arena, MB, MB)) != NULL);
		CHECK_EQUAL(arena.used, (i + 1) * MB);
	}
	CHECK(!af_arena_take(&arena, 1, 1));
	CHECK_EQUAL(arena.used, 8 * MB); /* a refusal takes nothing */
	CHECK_EQUAL(atomic_load(&arena.releases), 0);
	af_arena_give(&arena, blocks[3]);
	CHECK_EQUAL(arena.used, 7 * MB);
	CHECK_EQUAL(atomic_load(&arena.releases), 1);
	CHECK(!af_arena_take(&arena, MB, MB + 1));
	CHECK((blocks[3] = af_arena_take(&arena, MB, MB)) != NULL);
	for (int i = 0; i < 8; i++)
		af_arena_give(&arena, blocks[i]);
	CHECK_EQUAL(arena.used, 0);
	CHECK(arena.first.next == &arena.first);
	af_arena_free(&arena, true);
}

static void
the_lowest_place_that_fits_is_used_again(void)
{
	struct af_block *a, *b, *c, *d;

	CHECK(!af_arena_init(&arena, 64 * MB, AF_ARENA_PRIVATE));
	a = af_arena_take(&arena, MB, MB);
	b = af_arena_take(&arena, 2 * MB, 2 * MB);
	c = af_arena_take(&arena, MB, MB);
	CHECK(a && b && c && !a->offset && b->offset == MB && c->offset == 3 * MB);
	af_arena_give(&arena, b);
	d = af_arena_take(&arena, 3 * MB, 3 * MB); /* too large for the gap */
	CHECK(d && d->offset == 4 * MB);
	b = af_arena_take(&arena, MB, MB);
	CHECK(b && b->offset == MB);
	af_arena_give(&arena, a);
	a = af_arena_take(&arena, 2000 * 1024, MB);
	CHECK(a && a->offset > MB); /* two gaps of one MB each are not one of two */
	af_arena_give(&arena, a);
	af_arena_give(&arena, b);
	af_arena_give(&arena, c);
	af_arena_give(&arena, d);
	af_arena_free(&arena, true);
}

/* Blocks in use: within the arena, apart from each other, and keeping what is written to them. */
static void
blocks_never_overlap_whatever_the_order(void)
{
	struct af_block *blocks[40] = {0};
	uint8_t marks[40];
	uint64_t sizes[40], charged = 0, refused = 0;

	CHECK(!af_arena_init(&arena, 16 * MB, AF_ARENA_PRIVATE));
	for (int step = 0; step < 3000; step++) {
		uint32_t i = check_random(40);

		if (blocks[i]) {
			uint8_t *at = arena.base + blocks[i]->offset;

			CHECK_EQUAL(at[0], marks[i]);
			CHECK_EQUAL(at[sizes[i] - 1], marks[i]);
			charged -= blocks[i]->charged;
			af_arena_give(&arena, blocks[i]);
			blocks[i] = NULL;
		} else {
			sizes[i] = 1 + check_random(2 * MB);
			blocks[i] = af_arena_take(&arena, sizes[i], sizes[i]);
			if (!blocks[i]) {
				refused++;
				continue;
			}
			charged += blocks[i]->charged;
			CHECK(blocks[i]->size >= sizes[i]);
			CHECK(blocks[i]->offset + blocks[i]->size <= arena.address_space);
			marks[i] = (uint8_t)step;
			memset(arena.base + blocks[i]->offset, marks[i], sizes[i]);
		}
		CHECK_EQUAL(arena.used, charged);
		CHECK(arena.used <= arena.limit);
		for (struct af_block *b = arena.first.next; b != &arena.first && b->next != &arena.first; b = b->next)
			CHECK(b->offset + b->size <= b->next->offset);
	}
	CHECK(refused > 10);
	for (int i = 0; i < 40; i++)
		if (blocks[i])
			af_arena_give(&arena, blocks[i]);
	CHECK_EQUAL(arena.used, 0);
	af_arena_free(&arena, true);
}

static void
a_gap_is_used_to_its_last_page(void)
{
	struct af_block *a, *b, *c;

	CHECK(!af_arena_init(&arena, 16 * MB, AF_ARENA_PRIVATE));
	a = af_arena_take(&arena, MB, MB);
	b = af_arena_take(&arena, MB, MB);
	c = af_arena_take(&arena, MB, MB);
	af_arena_give(&arena, b);
	b = af_arena_take(&arena, MB, MB);
	CHECK(b && b->offset == MB);
	af_arena_give(&arena, a);
	af_arena_give(&arena, b);
	af_arena_give(&arena, c);
	af_arena_free(&arena, true);
}

static void
memory_becomes_writable_as_it_is_taken(void)
{
	struct af_block *blocks[40];

	CHECK(!af_arena_init(&arena, 200 * MB, AF_ARENA_PRIVATE));
	for (int i = 0; i < 40; i++) { /* past several steps of growth */
		blocks[i] = af_arena_take(&arena, 5 * MB, 5 * MB);
		CHECK(blocks[i]);
		arena.base[blocks[i]->offset] = 1;
		arena.base[blocks[i]->offset + 5 * MB - 1] = 1;
		CHECK(arena.writable >= blocks[i]->offset + blocks[i]->size);
	}
	CHECK_EQUAL(arena.used, 200 * MB);
	for (int i = 0; i < 40; i++)
		af_arena_give(&arena, blocks[i]);
	af_arena_free(&arena, true);
}

static void
sizes_round_up_by_an_eighth_at_most(void)
{
	CHECK_EQUAL(af_arena_round(0), 4096);
	CHECK_EQUAL(af_arena_round(1), 4096);
	CHECK_EQUAL(af_arena_round(4097), 8192);
	for (uint64_t n = 40000; n < 1ull << 40; n += n / 7) {
		CHECK(af_arena_round(n) >= n);
		CHECK(af_arena_round(n) <= n + n / 4);
		CHECK_EQUAL(af_arena_round(n) % 4096, 0);
		CHECK_EQUAL(af_arena_round(af_arena_round(n)), af_arena_round(n));
	}
}

static void
a_small_slice_is_charged_its_page(void)
{
	struct af_block *block;

	CHECK(!af_arena_init(&arena, MB, AF_ARENA_PRIVATE));
	block = af_arena_take(&arena, 10, 10);
	CHECK_EQUAL(arena.used, 4096);
	af_arena_give(&arena, block);
	af_arena_free(&arena, true);
	CHECK(!af_arena_init(&arena, 100, AF_ARENA_PRIVATE)); /* but never more than there is */
	block = af_arena_take(&arena, 10, 10);
	CHECK(block);
	CHECK_EQUAL(arena.used, 100);
	af_arena_give(&arena, block);
	af_arena_free(&arena, true);
}

static void
without_memory_only_the_count_matters(void)
{
	struct af_block *a, *b;

	CHECK(!af_arena_init(&arena, 1000, AF_ARENA_NONE));
	CHECK(!arena.base);
	CHECK((a = af_arena_take(&arena, 0, 600)) != NULL);
	CHECK(!af_arena_take(&arena, 0, 401));
	CHECK((b = af_arena_take(&arena, 0, 400)) != NULL);
	CHECK_EQUAL(arena.used, 1000);
	af_arena_trim(&arena); /* nothing to give back */
	af_arena_give(&arena, a);
	af_arena_give(&arena, b);
	CHECK_EQUAL(arena.used, 0);
	af_arena_free(&arena, true);
}

static void
trimming_keeps_what_is_held_and_clears_the_rest(void)
{
	struct af_block *gone, *held;

	CHECK(!af_arena_init(&arena, 16 * MB, AF_ARENA_PRIVATE));
	gone = af_arena_take(&arena, MB, MB);
	held = af_arena_take(&arena, MB, MB);
	memset(arena.base, 0xee, 2 * MB);
	af_arena_give(&arena, gone);
	CHECK_EQUAL(arena.base[0], 0xee); /* kept warm for the next slice */
	af_arena_trim(&arena);
	CHECK_EQUAL(arena.base[0], 0);
	CHECK_EQUAL(arena.base[MB - 1], 0);
	CHECK_EQUAL(arena.base[MB], 0xee);
	CHECK_EQUAL(arena.base[2 * MB - 1], 0xee);
	af_arena_give(&arena, held);
	CHECK_EQUAL(arena.base[MB], 0); /* and goes back when it comes back */
	af_arena_free(&arena, true);
}

static void *
take_and_give(void *unused)
{
	for (int i = 0; i < 2000; i++) {
		struct af_block *block = af_arena_take(&arena, 100000, 100000);

		if (!block)
			continue;
		arena.base[block->offset] = (uint8_t)i;
		CHECK_EQUAL(arena.base[block->offset], (uint8_t)i);
		af_arena_give(&arena, block);
	}
	return unused;
}

static void
any_thread_gives_back(void)
{
	pthread_t threads[3];

	CHECK(!af_arena_init(&arena, MB, AF_ARENA_PRIVATE));
	for (int i = 0; i < 3; i++)
		CHECK(!pthread_create(&threads[i], NULL, take_and_give, NULL));
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	CHECK_EQUAL(arena.used, 0);
	CHECK_EQUAL(atomic_load(&arena.releases), 6000); /* three of 100 kB fit at once */
	af_arena_free(&arena, true);
}

CASES(CASE(it_ends_at_its_limit_and_begins_again), CASE(the_lowest_place_that_fits_is_used_again),
      CASE(blocks_never_overlap_whatever_the_order), CASE(a_gap_is_used_to_its_last_page),
      CASE(memory_becomes_writable_as_it_is_taken), CASE(sizes_round_up_by_an_eighth_at_most),
      CASE(a_small_slice_is_charged_its_page), CASE(without_memory_only_the_count_matters),
      CASE(trimming_keeps_what_is_held_and_clears_the_rest), CASE(any_thread_gives_back))

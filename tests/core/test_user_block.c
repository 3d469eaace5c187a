/* user_block.h: blocks of element memory that a user has. */
#include "aiflow/rx/user_block.h"

#include "check.h"

#define MB (1ull << 20)

static struct af_arena arena;

static void
a_block_shrinks_to_its_first_page(void)
{
	struct af_block *large, *small, *after;

	CHECK(!af_arena_init(&arena, 8 * MB, AF_ARENA_PRIVATE));
	large = af_arena_take(&arena, 4 * MB, 4 * MB + 500);
	af_arena_shrink(&arena, large, 5 * MB); /* it would grow */
	CHECK_EQUAL(arena.used, 4 * MB + 500);
	af_arena_shrink(&arena, large, 500);
	CHECK_EQUAL(arena.used, 500);
	CHECK_EQUAL(large->size, 4096);
	CHECK_EQUAL(atomic_load(&arena.releases), 1); /* a slice that waits may fit now */
	after = af_arena_take(&arena, MB, MB);
	CHECK_EQUAL(after->offset, 4096);
	small = af_arena_take(&arena, 5000, 5000);
	af_arena_shrink(&arena, small, 500); /* not worth it */
	CHECK_EQUAL(small->charged, 8192);
	af_arena_give(&arena, small);
	af_arena_give(&arena, after);
	af_arena_give(&arena, large);
	CHECK_EQUAL(arena.used, 0);
	af_arena_free(&arena, true);
}

static void
a_block_is_found_by_its_addresses(void)
{
	struct af_block *a, *b;

	CHECK(!af_arena_init(&arena, 8 * MB, AF_ARENA_PRIVATE));
	CHECK(!af_arena_block_at(&arena, arena.base));
	a = af_arena_take(&arena, MB, MB);
	b = af_arena_take(&arena, MB, MB);
	CHECK(af_arena_block_at(&arena, arena.base) == a && af_arena_block_at(&arena, arena.base + MB - 1) == a);
	CHECK(af_arena_block_at(&arena, arena.base + MB) == b);
	CHECK(!af_arena_block_at(&arena, arena.base + 2 * MB));
	CHECK(!af_arena_block_at(&arena, &arena));
	af_arena_give(&arena, a);
	CHECK(!af_arena_block_at(&arena, arena.base));
	af_arena_give(&arena, b);
	af_arena_free(&arena, true);
}

/* A user keeps its array, with what is in it. No other block gets the addresses until the writer is gone. */
static void
a_kept_block_is_fenced_with_its_pages(void)
{
	struct af_writer writer = {.connection = 3, .instance = AF_NO_INSTANCE};
	struct af_writer other = {.connection = 4, .instance = AF_NO_INSTANCE};
	struct af_block *kept, *next;

	CHECK(!af_arena_init(&arena, 8 * MB, AF_ARENA_SHARED));
	kept = af_arena_take(&arena, MB, MB);
	CHECK_EQUAL(af_arena_fill(&arena, kept, 8 * MB), AF_FILL_DONE);
	arena.base[0] = 7;
	af_arena_fence_kept(&arena, kept, writer);
	CHECK(arena.base[0] == 7 && arena.used == MB && arena.fenced == 1);
	af_arena_lift(&arena, writer);
	CHECK(!kept->fenced && !arena.fenced && arena.base[0] == 7 && arena.used == MB);

	af_arena_fence_kept(&arena, kept, writer);
	af_arena_give(&arena, kept); /* the user drops it while the writer may still write */
	CHECK(!arena.used && arena.fenced == 1);
	next = af_arena_take(&arena, MB, MB);
	CHECK_EQUAL(next->offset, MB);
	af_arena_lift(&arena, writer);
	CHECK(!arena.fenced && arena.first.next == next);

	af_arena_fence_kept(&arena, next, writer);
	af_arena_fence_kept(&arena, next, other); /* of two writers, none can lift it alone */
	af_arena_lift(&arena, writer);
	af_arena_lift(&arena, other);
	CHECK(next->fenced && arena.fenced == 1);
	af_arena_give(&arena, next);
	CHECK_EQUAL(arena.used, 0);
	af_arena_free(&arena, true);
}

CASES(CASE(a_block_shrinks_to_its_first_page), CASE(a_block_is_found_by_its_addresses),
      CASE(a_kept_block_is_fenced_with_its_pages))

/* arena.h: a receiver's element memory. */
#include <pthread.h>
#include <sys/stat.h>

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
	CHECK(arena.used == 8 * MB && !atomic_load(&arena.releases)); /* a refusal takes nothing */
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

/* Bytes of shared memory that have pages. */
static uint64_t
allocated(void)
{
	struct stat status;

	CHECK(!fstat(arena.fd, &status));
	return (uint64_t)status.st_blocks * 512;
}

/* Has any of these bytes a page that was written to? */
static bool
has_pages(uint64_t offset, uint64_t nbytes)
{
	off_t at = lseek(arena.fd, (off_t)offset, SEEK_DATA);

	return at >= 0 && (uint64_t)at < offset + nbytes;
}

/* A sender's own mapping. */
static uint8_t *
mapped(void)
{
	uint8_t *base = mmap(NULL, arena.address_space, PROT_READ | PROT_WRITE, MAP_SHARED, arena.fd, 0);

	CHECK(base != MAP_FAILED);
	return base;
}

static struct af_block *
filled(uint64_t nbytes)
{
	struct af_block *block = af_arena_take(&arena, nbytes, nbytes);

	CHECK(block);
	while (af_arena_fill(&arena, block, MB) == AF_FILL_MORE)
		;
	CHECK_EQUAL(block->filled, block->size);
	return block;
}

static const struct af_writer here = {.connection = 3, .life = 7, .instance = 70};

static void
lift(uint32_t connection, uint64_t instance, uint16_t life)
{
	af_arena_lift(&arena, (struct af_writer){.connection = connection, .life = life, .instance = instance});
}

static void
what_is_shared_is_seen_by_both_and_cannot_shrink(void)
{
	struct af_block *block;
	uint8_t *theirs;

	CHECK(!af_arena_init(&arena, 8 * MB, AF_ARENA_SHARED));
	CHECK(arena.fd >= 0);
	CHECK_EQUAL(fcntl(arena.fd, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
	CHECK(ftruncate(arena.fd, 4096) && ftruncate(arena.fd, (off_t)arena.address_space + 4096));
	CHECK(fcntl(arena.fd, F_GETFD) & FD_CLOEXEC);
	theirs = mapped();
	block = filled(MB);
	memset(theirs + block->offset, 0xab, MB);
	CHECK_EQUAL(arena.base[block->offset], 0xab);
	CHECK_EQUAL(arena.base[block->offset + MB - 1], 0xab);
	af_arena_give(&arena, block);
	CHECK_EQUAL(theirs[0], 0xab); /* warm, for the next slice */
	af_arena_free(&arena, true);
	CHECK_EQUAL(theirs[0], 0); /* a sender that is stopped holds none of it */
	munmap(theirs, 8 * MB);
}

static void
a_forked_child_leaves_its_parents_memory_alone(void)
{
	uint8_t *theirs;

	CHECK(!af_arena_init(&arena, MB, AF_ARENA_SHARED));
	theirs = mapped();
	theirs[5] = 9;
	af_arena_free(&arena, false);
	CHECK_EQUAL(theirs[5], 9);
	munmap(theirs, MB);
}

static void
without_a_file_memory_is_private(void)
{
	struct rlimit before, none;
	struct af_block *block;

	CHECK(!getrlimit(RLIMIT_FSIZE, &before));
	none = before;
	none.rlim_cur = MB;
	CHECK(!setrlimit(RLIMIT_FSIZE, &none));
	CHECK(!af_arena_init(&arena, 8 * MB, AF_ARENA_SHARED));
	CHECK(!setrlimit(RLIMIT_FSIZE, &before));
	CHECK_EQUAL(arena.fd, -1);
	CHECK(!arena.grains);
	block = af_arena_take(&arena, MB, MB);
	CHECK_EQUAL(af_arena_fill(&arena, block, 0),
		    AF_FILL_DONE); /* the kernel allocates its pages at their first use */
	af_arena_give(&arena, block);
	af_arena_free(&arena, true);
}

static void
pages_are_allocated_in_steps(void)
{
	struct af_block *block, *next;
	int steps = 0;

	CHECK(!af_arena_init(&arena, 16 * MB, AF_ARENA_SHARED));
	block = af_arena_take(&arena, 6 * MB, 6 * MB);
	CHECK(block);
	CHECK_EQUAL(allocated(), 0); /* addresses alone */
	for (enum af_fill fill = AF_FILL_MORE; fill == AF_FILL_MORE; steps++) {
		fill = af_arena_fill(&arena, block, 2 * MB);
		CHECK(fill != AF_FILL_FAILED);
		CHECK(block->filled <= 2 * MB * (uint64_t)(steps + 1));
		CHECK_EQUAL(allocated(), block->filled);
	}
	CHECK_EQUAL(steps, 3);
	CHECK_EQUAL(block->filled, 6 * MB);
	af_arena_give(&arena, block);
	block = af_arena_take(&arena, 6 * MB, 6 * MB); /* the same pages: none is fresh */
	CHECK_EQUAL(af_arena_fill(&arena, block, 0), AF_FILL_DONE);
	next = af_arena_take(&arena, 4096, 4096);
	CHECK_EQUAL(af_arena_fill(&arena, next, 0), AF_FILL_MORE); /* fresh ones, and none is allowed */
	CHECK_EQUAL(af_arena_fill(&arena, next, 1), AF_FILL_DONE);
	CHECK_EQUAL(next->filled, 4096);
	af_arena_give(&arena, next);
	af_arena_give(&arena, block);
	af_arena_free(&arena, true);
}

static uint64_t room_bytes;

static uint64_t
room(const struct af_memory_groups *groups)
{
	(void)groups;
	return room_bytes;
}

static void
no_page_is_taken_beyond_the_room_that_is_left(void)
{
	struct af_block *block;

	CHECK(!af_arena_init(&arena, 16 * MB, AF_ARENA_SHARED));
	arena.room = room;
	block = af_arena_take(&arena, 4 * MB, 4 * MB);
	room_bytes = 4 * MB + AF_ARENA_SPARE - 1;
	CHECK_EQUAL(af_arena_fill(&arena, block, 2 * MB), AF_FILL_FAILED); /* for all of it, not for the next step */
	CHECK_EQUAL(allocated(), 0);
	CHECK(!af_arena_warm(&arena));
	room_bytes = 4 * MB + AF_ARENA_SPARE;
	CHECK_EQUAL(af_arena_fill(&arena, block, 2 * MB), AF_FILL_MORE);
	CHECK_EQUAL(block->filled, 2 * MB);
	room_bytes = 0;
	CHECK_EQUAL(af_arena_fill(&arena, block, 2 * MB), AF_FILL_FAILED);
	CHECK_EQUAL(block->filled, 2 * MB); /* what it has stays, until it is given back */
	af_arena_give(&arena, block);
	block = af_arena_take(&arena, 2 * MB, 2 * MB);
	CHECK_EQUAL(af_arena_fill(&arena, block, 2 * MB), AF_FILL_DONE); /* warm pages need no room */
	af_arena_give(&arena, block);
	room_bytes = 64 * MB;
	CHECK(af_arena_warm(&arena));
	block = af_arena_take(&arena, 16 * MB, 16 * MB);
	CHECK_EQUAL(af_arena_fill(&arena, block, 0), AF_FILL_DONE);
	af_arena_give(&arena, block);
	af_arena_free(&arena, true);
}

static void
a_fenced_block_gives_its_pages_back_and_its_addresses_to_no_slice(void)
{
	struct af_block *fenced, *other, *before;
	uint32_t releases;
	uint8_t *theirs;

	CHECK(!af_arena_init(&arena, 8 * MB, AF_ARENA_SHARED));
	theirs = mapped();
	before = filled(MB);
	fenced = filled(4 * MB);
	memset(arena.base, 0xee, 5 * MB);
	releases = atomic_load(&arena.releases);
	af_arena_fence(&arena, fenced, here);
	CHECK_EQUAL(arena.used, MB);
	CHECK_EQUAL(arena.fenced, 1);
	CHECK_EQUAL(atomic_load(&arena.releases), releases + 1); /* slices that wait look again */
	CHECK(!has_pages(MB, 4 * MB));
	CHECK_EQUAL(arena.base[MB - 1], 0xee); /* its neighbour keeps its bytes */
	memset(theirs + MB, 0x55, 4 * MB); /* the writer wakes */
	CHECK(has_pages(MB, 4 * MB));
	other = filled(4 * MB); /* what is not charged any more is granted, elsewhere */
	CHECK(other->offset >= 5 * MB);
	lift(3, AF_NO_INSTANCE, 0);
	CHECK_EQUAL(arena.fenced, 0);
	CHECK(!has_pages(MB, 4 * MB)); /* what it wrote is no page of ours */
	af_arena_give(&arena, other);
	other = filled(4 * MB);
	CHECK_EQUAL(other->offset, MB); /* and the addresses are free */
	CHECK_EQUAL(arena.base[MB], 0);
	af_arena_give(&arena, other);
	af_arena_give(&arena, before);
	munmap(theirs, arena.address_space);
	af_arena_free(&arena, true);
}

static void
a_fence_is_lifted_by_its_writer_alone(void)
{
	struct af_writer second = here;

	second.life = 8;
	CHECK(!af_arena_init(&arena, 8 * MB, AF_ARENA_SHARED));
	af_arena_fence(&arena, filled(MB), here);
	af_arena_fence(&arena, filled(MB), second);
	lift(4, 71, 9);           /* of another connection, another sender */
	lift(0, AF_NO_INSTANCE, 9);
	lift(0, 70, 7);           /* a late HELLO of the life that may write */
	lift(0, 70, 3);           /* … or of an earlier one */
	CHECK_EQUAL(arena.fenced, 2);
	lift(0, 70, 8);
	CHECK_EQUAL(arena.fenced, 1); /* that of life 8 stays */
	lift(0, 70, 9);
	CHECK_EQUAL(arena.fenced, 0);
	second.life = 0xffff; /* lives wrap around */
	af_arena_fence(&arena, filled(MB), second);
	lift(0, 70, 0xfffe);
	CHECK_EQUAL(arena.fenced, 1);
	lift(0, 70, 0);
	CHECK_EQUAL(arena.fenced, 0);
	second.instance = 99; /* all senders of a process */
	af_arena_fence(&arena, filled(MB), here);
	af_arena_fence(&arena, filled(MB), second);
	lift(3, AF_NO_INSTANCE, 0);
	CHECK_EQUAL(arena.fenced, 0);
	CHECK(arena.first.next == &arena.first);
	af_arena_fence(&arena, filled(MB), here); /* one that is never lifted goes with the arena */
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
      CASE(trimming_keeps_what_is_held_and_clears_the_rest), CASE(any_thread_gives_back),
      CASE(what_is_shared_is_seen_by_both_and_cannot_shrink), CASE(a_forked_child_leaves_its_parents_memory_alone),
      CASE(without_a_file_memory_is_private), CASE(pages_are_allocated_in_steps),
      CASE(no_page_is_taken_beyond_the_room_that_is_left),
      CASE(a_fenced_block_gives_its_pages_back_and_its_addresses_to_no_slice),
      CASE(a_fence_is_lifted_by_its_writer_alone))

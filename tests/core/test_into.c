/* into.h: arrays of the user that the elements of a slice lie in. */
#include "aiflow/rx/into.h"

#include <sched.h>

#include "rig.h"

static struct rig rig;
static uint8_t bytes[4096];
static uint32_t len;

static void
add(uint32_t count, uint64_t nbytes, const char *stream, const char *form, bool numbered)
{
	struct af_run run = {.count = AF_BE32(count),
			     .nbytes = AF_BE64(nbytes),
			     .numbered = numbered,
			     .stream_len = AF_BE16((uint16_t)strlen(stream)),
			     .form_len = AF_BE16((uint16_t)strlen(form))};
	struct af_manifest m = {.format = AF_MANIFEST_FORMAT};

	if (!len)
		len = sizeof m;
	else
		memcpy(&m, bytes, sizeof m);
	m.nb_runs = AF_BE32(AF_BE32(m.nb_runs) + 1);
	m.nb_elements = AF_BE32(AF_BE32(m.nb_elements) + count);
	m.nbytes = AF_BE64(AF_BE64(m.nbytes) + count * nbytes);
	memcpy(bytes, &m, sizeof m);
	memcpy(bytes + len, &run, sizeof run);
	len += sizeof run;
	memcpy(bytes + len, stream, strlen(stream));
	len += (uint32_t)strlen(stream);
	memcpy(bytes + len, form, strlen(form));
	len += (uint32_t)strlen(form);
}

static struct af_into_stream
array(const char *stream, const char *rows, const char *alone, uint32_t nb_rows, uint64_t nbytes, uint8_t *to)
{
	return (struct af_into_stream){.stream = (const uint8_t *)stream,
				       .rows = (const uint8_t *)rows,
				       .alone = (const uint8_t *)alone,
				       .stream_len = (uint32_t)strlen(stream),
				       .rows_len = (uint32_t)strlen(rows),
				       .alone_len = (uint32_t)strlen(alone),
				       .nb_rows = nb_rows,
				       .nbytes = nbytes,
				       .to = to};
}

/* Is an array of 4 rows for stream "a" taken, when the slice is this run, and one of stream "b"? */
static bool
taken(uint32_t count, uint64_t nbytes, const char *stream, const char *form, bool numbered)
{
	struct af_into into = {.nb_streams = 1};
	uint64_t rest;

	into.streams[0] = array("a", "C[5]u1", "C[4, 5]u1", 4, 20, NULL);
	len = 0;
	add(count, nbytes, stream, form, numbered);
	add(3, 100, "b", "", false);
	if (!af_into_takes(&into, bytes, len, &rest))
		return false;
	CHECK_EQUAL(rest, 300);
	return true;
}

static void
an_array_takes_its_stream_as_rows_or_as_one(void)
{
	CHECK(taken(4, 5, "a", "C[5]u1", false));
	CHECK(taken(1, 20, "a", "C[4, 5]u1", false));
	CHECK(!taken(3, 5, "a", "C[5]u1", false));
	CHECK(!taken(5, 5, "a", "C[5]u1", false));
	CHECK(!taken(1, 5, "a", "C[5]u1", false)); /* one row of four */
	CHECK(!taken(4, 5, "a", "C[5]i1", false));
	CHECK(!taken(4, 20, "a", "C[4, 5]u1", false));
	CHECK(!taken(4, 5, "aa", "C[5]u1", false));
	CHECK(!taken(4, 5, "b", "C[5]u1", false));
	CHECK(!taken(4, 5, "a", "C[5]u1", true)); /* the streams are a0, a1 … */
	CHECK(!taken(4, 6, "a", "C[5]u1", false)); /* a form that lies */
	CHECK(!taken(1, 5, "a", "C[4, 5]u1", false));
}

static void
each_array_has_one_run_of_its_own(void)
{
	struct af_into into = {.nb_streams = 2};
	uint64_t rest;

	into.streams[0] = array("a", "r", "w", 2, 20, NULL);
	into.streams[1] = array("b", "r", "w", 1, 10, NULL);
	len = 0;
	add(2, 10, "a", "r", false);
	CHECK(!af_into_takes(&into, bytes, len, &rest));
	add(2, 10, "a", "r", false); /* as many runs as arrays, both of one stream */
	CHECK(!af_into_takes(&into, bytes, len, &rest));
	len = 0;
	add(2, 10, "a", "r", false);
	add(1, 10, "b", "r", false); /* a batch of one */
	CHECK(af_into_takes(&into, bytes, len, &rest));
	CHECK_EQUAL(rest, 0);
	add(1, 10, "c", "", false);
	CHECK(af_into_takes(&into, bytes, len, &rest));
	CHECK_EQUAL(rest, 10);
	add(1, 10, "b", "r", false);
	CHECK(!af_into_takes(&into, bytes, len, &rest));
}

static void
one_call_at_a_time_offers_and_takes_back_what_no_slice_has(void)
{
	struct af_into first = {.nb_streams = 1}, second = {0};
	struct af_offer offer;

	first.streams[0] = array("a", "r", "w", 2, 20, NULL);
	af_offer_init(&offer);
	CHECK(af_offer_make(&offer, &first));
	CHECK(!af_offer_make(&offer, &second));
	CHECK(af_offer_withdraw(&offer, &second)); /* nothing of it is known */
	CHECK(atomic_load(&offer.into) == &first);
	len = 0;
	add(3, 10, "a", "r", false);
	CHECK(!af_offer_take(&offer, bytes, len)); /* what does not fit leaves the offer */
	len = 0;
	add(2, 10, "a", "r", false);
	CHECK(af_offer_take(&offer, bytes, len) == &first);
	CHECK(!af_offer_take(&offer, bytes, len));
	CHECK(!af_offer_withdraw(&offer, &first)); /* a slice has it */
	CHECK(af_offer_make(&offer, &second));
	af_into_free(&first);
	CHECK(af_offer_withdraw(&offer, &first));
	CHECK(atomic_load(&offer.into) == &second);
	CHECK(af_offer_withdraw(&offer, &second));
	CHECK(af_offer_make(&offer, &first));
	CHECK(!atomic_load(&first.freed) && !atomic_load(&first.bound));
}

static void
a_fenced_array_is_not_taken(void)
{
	struct af_block block = {.fenced = true};
	struct af_into into = {.nb_streams = 1, .block = &block};
	struct af_offer offer;

	into.streams[0] = array("a", "r", "w", 2, 20, NULL);
	len = 0;
	add(2, 10, "a", "r", false);
	af_offer_init(&offer);
	CHECK(af_offer_make(&offer, &into));
	CHECK(!af_offer_take(&offer, bytes, len));
	block.fenced = false;
	CHECK(af_offer_take(&offer, bytes, len) == &into);
}

/* A slice of these elements, each of a stream "0", "1" …, without forms. */
static struct af_tx_slice *
named(uint32_t n, const uint64_t *sizes)
{
	struct af_tx_slice *s = rig_slice(n, sizes);

	len = 0;
	for (uint32_t e = 0; e < n; e++) {
		char name[2] = {(char)('0' + e), 0};

		add(1, sizes[e], name, "", false);
	}
	free(s->manifest);
	s->manifest = malloc(len);
	memcpy(s->manifest, bytes, len);
	s->manifest_bytes = len;
	return s;
}

static void
post(struct af_tx_slice *s)
{
	s->posted_ns = rig.now;
	af_tx_enqueue(&rig.tx, s);
}

static void
chunks_are_written_straight_into_the_array(void)
{
	static const uint64_t sizes[] = {3000, 100000, 64, 77};
	struct af_tx_slice *s = named(4, sizes);
	struct af_rx_slice *got;
	struct af_into into = {.nb_streams = 2};
	uint8_t *large = malloc(100000), *small = malloc(77); /* of these sizes: the sanitizer sees a byte beyond */

	into.streams[0] = array("3", "-", "", 0, 77, small);
	into.streams[1] = array("1", "-", "", 0, 100000, large);
	rig_begin(&rig, 2, 1 << 20);
	rig_open(&rig);
	af_rx_offer(&rig.rx, &into);
	post(s);
	CHECK_EQUAL(rig_finish(&rig, s), AF_TX_DONE);
	got = rig_take(&rig);
	CHECK(got && got->into == &into && atomic_load(&into.bound) && !got->has_place);
	for (uint32_t e = 0; e < 4; e++)
		CHECK(!memcmp(af_rx_element_at(got, &got->elements[e]), s->elements[e].ptr, sizes[e]));
	CHECK(af_rx_element_at(got, &got->elements[1]) == large && af_rx_element_at(got, &got->elements[3]) == small);
	CHECK(got->block->charged < 100000 && got->block->size < 100000);
	CHECK(!atomic_load(&into.freed));
	af_rx_slice_free(got, rig_release);
	CHECK(atomic_load(&into.freed));
	free(large);
	free(small);
	rig_slice_free(s);
	rig_end(&rig);
}

static void
an_inlined_slice_lies_in_the_array(void)
{
	static const uint64_t sizes[] = {100};
	struct af_tx_slice *s = named(1, sizes);
	struct af_rx_slice *got;
	struct af_into into = {.nb_streams = 1};
	uint8_t *to = malloc(100);

	into.streams[0] = array("0", "-", "", 0, 100, to);
	rig_begin(&rig, 1, 1 << 20);
	rig_open(&rig);
	af_rx_offer(&rig.rx, &into);
	post(s);
	CHECK_EQUAL(rig_finish(&rig, s), AF_TX_DONE);
	got = rig_take(&rig);
	CHECK(got && got->inlined && got->into == &into);
	CHECK(!memcmp(to, s->elements[0].ptr, 100));
	af_rx_slice_free(got, rig_release);
	free(to);
	rig_slice_free(s);
	rig_end(&rig);
}

/* An offer is for the next slice that is handed over, and that one is granted already, or whole. */
static void
an_older_slice_keeps_the_offer_from_the_next(void)
{
	static const uint64_t sizes[] = {5000};
	struct af_tx_slice *s[2] = {named(1, sizes), named(1, sizes)};
	struct af_rx_slice *got;
	struct af_into into = {.nb_streams = 1};
	uint8_t to[5000];

	into.streams[0] = array("0", "-", "", 0, 5000, to);
	rig_begin(&rig, 1, 1 << 20);
	rig_open(&rig);
	post(s[0]);
	CHECK_EQUAL(rig_finish(&rig, s[0]), AF_TX_DONE);
	af_rx_offer(&rig.rx, &into);
	post(s[1]);
	CHECK_EQUAL(rig_finish(&rig, s[1]), AF_TX_DONE);
	CHECK(!atomic_load(&into.bound) && atomic_load(&rig.rx.offer.into) == &into);
	for (int i = 0; i < 2; i++) {
		got = rig_take(&rig);
		CHECK(got && !got->into);
		atomic_fetch_add(&rig.rx.taken, 1);
		af_rx_slice_free(got, rig_release);
		rig_slice_free(s[i]);
	}
	rig.rx.flowing = 1;
	s[0] = named(1, sizes);
	post(s[0]);
	rig_steps(&rig, 3);
	CHECK(!atomic_load(&into.bound));
	CHECK_EQUAL(rig_finish(&rig, s[0]), AF_TX_DONE);
	rig_slice_free(s[0]);
	rig_end(&rig);
}

/* A slice waits for memory that others hold. In arrays it needs little, so it is granted when a call offers them. */
static void
a_slice_that_waits_for_memory_takes_an_offer(void)
{
	static const uint64_t sizes[] = {600000};
	struct af_tx_slice *s[2] = {named(1, sizes), named(1, sizes)};
	struct af_rx_slice *held, *got;
	struct af_into into = {.nb_streams = 1};
	uint8_t *to = malloc(600000);

	into.streams[0] = array("0", "-", "", 0, 600000, to);
	rig_begin(&rig, 1, 1 << 20);
	rig_open(&rig);
	post(s[0]);
	CHECK_EQUAL(rig_finish(&rig, s[0]), AF_TX_DONE);
	held = rig_take(&rig);
	atomic_fetch_add(&rig.rx.taken, 1);
	post(s[1]);
	rig_steps(&rig, 50);
	CHECK(rig.rx.waiting);
	af_rx_offer(&rig.rx, &into);
	CHECK_EQUAL(rig_finish(&rig, s[1]), AF_TX_DONE);
	got = rig_take(&rig);
	CHECK(got && got->into == &into && !memcmp(to, s[1]->elements[0].ptr, 600000));
	af_rx_slice_free(held, rig_release);
	af_rx_slice_free(got, rig_release);
	free(to);
	rig_slice_free(s[0]);
	rig_slice_free(s[1]);
	rig_end(&rig);
}

/* The sender falls silent in the middle: the call learns that the slice is gone, and nothing is written any more. */
static void
a_slice_that_is_dropped_frees_the_arrays(void)
{
	static const uint64_t sizes[] = {200000};
	struct af_tx_slice *s = named(1, sizes);
	struct af_into into = {.nb_streams = 1};
	uint8_t *to = malloc(200000);

	into.streams[0] = array("0", "-", "", 0, 200000, to);
	rig_begin(&rig, 1, 1 << 20);
	rig_open(&rig);
	af_rx_offer(&rig.rx, &into);
	post(s);
	for (int i = 0; i < 100 && !rig.rx.flowing; i++)
		rig_step(&rig);
	CHECK(atomic_load(&into.bound) && !af_offer_withdraw(&rig.rx.offer, &into));
	af_rx_silence(&rig.rx, rig.rx.sessions[0]);
	CHECK(atomic_load(&into.freed) && af_offer_withdraw(&rig.rx.offer, &into));
	free(to);
	rig_finish(&rig, s);
	rig_slice_free(s);
	rig_end(&rig);
}

/* An array in the receiver's shared memory: its sender writes there, and it is fenced when the sender falls silent. */
static void
the_place_of_an_array_in_shared_memory_is_told(void)
{
	static const uint64_t sizes[] = {200000};
	struct af_tx_slice *s = named(1, sizes);
	struct af_into into = {.nb_streams = 1};
	struct af_arena shared;
	struct af_block *block;
	struct af_rx_slice *got;

	rig_begin(&rig, 1, 1 << 20);
	CHECK(!af_arena_init(&shared, 4 << 20, AF_ARENA_SHARED) && shared.fd >= 0);
	rig.rx.arena = &shared;
	block = af_arena_take(&shared, 250000, 250000);
	CHECK(af_arena_fill(&shared, block, ~0ull) == AF_FILL_DONE);
	into.streams[0] = array("0", "-", "", 0, 200000, shared.base + block->offset + 50000);
	into.block = af_arena_block_at(&shared, into.streams[0].to);
	CHECK(into.block == block);
	rig_open(&rig);
	rig.rx.sessions[0]->writer = 5;
	af_rx_offer(&rig.rx, &into);
	post(s);
	for (int i = 0; i < 100 && !rig.rx.flowing; i++)
		rig_step(&rig);
	got = rig.rx.sessions[0]->slots[1].slice;
	CHECK(got->has_place && got->into == &into);
	CHECK_EQUAL(got->place, block->offset + 50000);
	af_rx_silence(&rig.rx, rig.rx.sessions[0]);
	CHECK(block->fenced && shared.fenced == 1);
	CHECK_EQUAL(shared.used, block->charged); /* the array is its user's still */
	af_rx_writer_gone(&rig.rx, 5);
	CHECK(!block->fenced && !shared.fenced);
	af_arena_give(&shared, block);
	CHECK_EQUAL(shared.used, 0);
	rig_finish(&rig, s);
	rig_slice_free(s);
	rig_end(&rig);
	af_arena_free(&shared, true);
}

static struct af_offer contended;
static _Atomic bool over;

static void *
call(void *unused)
{
	struct af_into *into = malloc(sizeof *into);

	while (!atomic_load(&over)) {
		memset(into, 0, sizeof *into);
		into->nb_streams = 1;
		into->streams[0] = array("a", "r", "w", 2, 20, NULL);
		if (!af_offer_make(&contended, into))
			continue;
		sched_yield();
		while (!af_offer_withdraw(&contended, into)) /* the loop has it: until its slice is gone */
			;
		memset(into, 0xff, sizeof *into); /* the loop would compare nonsense if it read on */
	}
	free(into);
	return unused;
}

static void
calls_and_the_loop_never_share_what_is_withdrawn(void)
{
	pthread_t callers[2];
	uint64_t nb_taken = 0;

	len = 0;
	add(2, 10, "a", "r", false);
	af_offer_init(&contended);
	for (int i = 0; i < 2; i++)
		CHECK(!pthread_create(&callers[i], NULL, call, NULL));
	while (nb_taken < 2000) {
		struct af_into *into = af_offer_take(&contended, bytes, len);

		if (into) {
			CHECK_EQUAL(into->nb_streams, 1);
			nb_taken++;
			af_into_free(into);
		}
	}
	atomic_store(&over, true);
	for (int i = 0; i < 2; i++)
		pthread_join(callers[i], NULL);
	CHECK(!atomic_load(&contended.into));
}

CASES(CASE(an_array_takes_its_stream_as_rows_or_as_one), CASE(each_array_has_one_run_of_its_own),
      CASE(one_call_at_a_time_offers_and_takes_back_what_no_slice_has), CASE(a_fenced_array_is_not_taken),
      CASE(chunks_are_written_straight_into_the_array), CASE(an_inlined_slice_lies_in_the_array),
      CASE(an_older_slice_keeps_the_offer_from_the_next), CASE(a_slice_that_waits_for_memory_takes_an_offer),
      CASE(a_slice_that_is_dropped_frees_the_arrays), CASE(the_place_of_an_array_in_shared_memory_is_told),
      CASE(calls_and_the_loop_never_share_what_is_withdrawn))

/* loan.h: what a manifest says of a loan is bounded by the pool before anything of it is read. */
#include "aiflow/wire/loan.h"

#include "check.h"

#define POOL_BYTES 100000u

struct run {
	uint32_t count;
	uint64_t nbytes;
};

struct piece {
	uint64_t offset;
	uint32_t first;
};

/* A manifest of these runs and pieces, in a buffer of just its length. */
static uint8_t *
described(const struct run *runs, uint32_t nb_runs, const struct piece *pieces, uint32_t nb_pieces, uint64_t *nbytes)
{
	struct af_manifest m = {
		.format = AF_MANIFEST_FORMAT, .payload_bytes = AF_BE16(1000), .nb_runs = AF_BE32(nb_runs)};
	struct af_loan_piece wire[16];
	uint64_t total = 0, at = AF_MANIFEST_HEADER;
	uint32_t nb_elements = 0;
	uint8_t *bytes;

	*nbytes = AF_MANIFEST_HEADER + nb_runs * AF_RUN_HEADER + af_loan_bytes(nb_pieces);
	bytes = malloc(*nbytes);
	for (uint32_t r = 0; r < nb_runs; r++) {
		struct af_run run = {.count = AF_BE32(runs[r].count), .nbytes = AF_BE64(runs[r].nbytes)};

		memcpy(bytes + at, &run, sizeof run);
		at += sizeof run;
		nb_elements += runs[r].count;
		total += runs[r].count * runs[r].nbytes;
	}
	m.nb_elements = AF_BE32(nb_elements);
	m.nbytes = AF_BE64(total);
	memcpy(bytes, &m, sizeof m);
	for (uint32_t i = 0; i < nb_pieces; i++)
		wire[i] =
			(struct af_loan_piece){.offset = AF_BE64(pieces[i].offset), .first = AF_BE32(pieces[i].first)};
	af_loan_write(bytes + at, 77, 5, 9, wire, nb_pieces);
	return bytes;
}

/* Is that sound? */
static bool
sound(const struct run *runs, uint32_t nb_runs, const struct piece *pieces, uint32_t nb_pieces)
{
	struct af_loan_told told;
	struct af_manifest m;
	struct af_extent extent;
	uint64_t nbytes;
	uint8_t *bytes = described(runs, nb_runs, pieces, nb_pieces, &nbytes);
	bool is_sound;

	CHECK(af_manifest_measure(bytes, nbytes, &m, &extent));
	CHECK(af_loan_read(extent.end, bytes + nbytes, &told));
	CHECK_EQUAL(told.nb_pieces, nb_pieces);
	CHECK_EQUAL(told.head.pool, 77);
	CHECK_EQUAL(told.head.lease, 5);
	CHECK_EQUAL(told.head.generation, 9);
	is_sound = af_loan_is_sound(&told, bytes, nbytes, POOL_BYTES);
	free(bytes);
	return is_sound;
}

#define SOUND(runs, pieces) sound(runs, sizeof runs / sizeof *runs, pieces, sizeof pieces / sizeof *pieces)

static void
pieces_lie_inside_the_pool(void)
{
	static const struct run runs[] = {{1, 1000}, {10, 500}};
	static const struct piece whole[] = {{0, 0}}, last[] = {{POOL_BYTES - 6000, 0}},
				  beyond[] = {{POOL_BYTES - 5999, 0}}, far[] = {{UINT64_MAX, 0}},
				  outside[] = {{POOL_BYTES + 1, 0}},
				  two[] = {{POOL_BYTES - 1000, 0}, {POOL_BYTES - 5000, 1}},
				  second[] = {{0, 0}, {POOL_BYTES - 4999, 1}};

	CHECK(SOUND(runs, whole));
	CHECK(SOUND(runs, last));
	CHECK(!SOUND(runs, beyond));
	CHECK(!SOUND(runs, far));
	CHECK(!SOUND(runs, outside));
	CHECK(SOUND(runs, two));
	CHECK(!SOUND(runs, second));
}

static void
pieces_cover_the_elements_in_order(void)
{
	static const struct run runs[] = {{3, 100}, {2, 0}, {3, 7}};
	static const struct piece each[] = {{0, 0}, {100, 1}, {200, 2}, {300, 3}, {0, 4}, {5, 5}, {6, 6}, {7, 7}},
				  late[] = {{0, 1}}, twice[] = {{0, 0}, {0, 2}, {0, 2}},
				  back[] = {{0, 0}, {0, 3}, {0, 1}}, none[] = {{0, 0}, {0, 8}},
				  zero[] = {{0, 0}, {9, 0}};

	CHECK(SOUND(runs, each));
	CHECK(!SOUND(runs, late));
	CHECK(!SOUND(runs, twice));
	CHECK(!SOUND(runs, back));
	CHECK(!SOUND(runs, none)); /* of an element that there is not */
	CHECK(!SOUND(runs, zero));
}

static void
sums_that_overflow_are_refused(void)
{
	static const struct run runs[] = {{65536, 1ull << 32}}, large[] = {{1, 1ull << 48}};
	static const struct piece whole[] = {{0, 0}};

	CHECK(!SOUND(runs, whole));
	CHECK(!SOUND(large, whole));
}

static void
broken_entries_are_refused(void)
{
	static const uint8_t shorter[] = {0x80, 2, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
	uint8_t twice[2 * 36] = {0x80, 2, 0, 32}, uneven[37] = {0x80, 2, 0, 33};
	struct af_loan_told told;

	memcpy(twice + 36, twice, 36);
	CHECK(!af_loan_read(shorter, shorter + sizeof shorter, &told)); /* of no piece */
	CHECK(!af_loan_read(twice, twice + sizeof twice, &told));
	CHECK(!af_loan_read(uneven, uneven + sizeof uneven, &told));
	CHECK(af_loan_read(twice, twice + 36, &told));
	CHECK_EQUAL(told.nb_pieces, 1);
	CHECK(af_loan_read(twice, twice, &told) && !told.pieces);
	CHECK(af_loan_bytes(AF_LOAN_PIECES) <= 4 + 0xffff);
}

CASES(CASE(pieces_lie_inside_the_pool), CASE(pieces_cover_the_elements_in_order), CASE(sums_that_overflow_are_refused),
      CASE(broken_entries_are_refused))

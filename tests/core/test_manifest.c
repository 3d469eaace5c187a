/* manifest.h: chunk numbers, and manifests from strangers. */
#include "aiflow/wire/manifest.h"

#include "check.h"

static uint8_t bytes[4096];
static uint32_t len;

static void
begin(uint32_t nb_runs, uint32_t nb_elements, uint64_t nbytes)
{
	struct af_manifest m = {.format = AF_MANIFEST_FORMAT,
				.payload_bytes = AF_BE16(1460),
				.nb_runs = AF_BE32(nb_runs),
				.nb_elements = AF_BE32(nb_elements),
				.nbytes = AF_BE64(nbytes)};

	memcpy(bytes, &m, sizeof m);
	len = sizeof m;
}

static void
add(uint32_t count, uint64_t nbytes, const char *stream, const char *form)
{
	struct af_run run = {.count = AF_BE32(count),
			     .nbytes = AF_BE64(nbytes),
			     .first = AF_BE32(7),
			     .stream_len = AF_BE16((uint16_t)strlen(stream)),
			     .form_len = AF_BE16((uint16_t)strlen(form))};

	memcpy(bytes + len, &run, sizeof run);
	len += sizeof run;
	memcpy(bytes + len, stream, strlen(stream));
	len += (uint32_t)strlen(stream);
	memcpy(bytes + len, form, strlen(form));
	len += (uint32_t)strlen(form);
}

/* Measure the first `n` bytes, in a buffer of just this length. */
static bool
measured(uint32_t n, struct af_manifest *m, struct af_extent *extent)
{
	uint8_t *copy = malloc(n ? n : 1);
	bool sound;

	memcpy(copy, bytes, n);
	sound = af_manifest_measure(copy, n, m, extent);
	if (sound)
		CHECK(extent->end - copy <= n);
	free(copy);
	return sound;
}

static void
headers_have_the_sizes_of_the_wire(void)
{
	CHECK_EQUAL(offsetof(struct af_manifest, nb_runs), 4);
	CHECK_EQUAL(offsetof(struct af_manifest, nbytes), 12);
	CHECK_EQUAL(offsetof(struct af_run, first), 12);
	CHECK_EQUAL(offsetof(struct af_run, numbered), 16);
	CHECK_EQUAL(offsetof(struct af_run, stream_len), 18);
	CHECK_EQUAL(offsetof(struct af_run, marks_len), 22);
}

static void
a_sound_manifest_is_measured(void)
{
	struct af_manifest m;
	struct af_extent extent;

	begin(2, 5, 3 * 100 + 2 * 7);
	add(3, 100, "cam-0", "C[100]'|u1'");
	add(2, 7, "x", "");
	CHECK(measured(len, &m, &extent));
	CHECK_EQUAL(extent.nb_elements, 5);
	CHECK_EQUAL(extent.nbytes, 314);
	CHECK_EQUAL(extent.block_bytes, 320 + 14); /* each run begins on a cache line */
	CHECK_EQUAL(m.payload_bytes, 1460);
	CHECK_EQUAL(m.nb_runs, 2);
}

static void
runs_are_walked_in_host_order(void)
{
	struct af_manifest m;
	struct af_run_cursor runs;

	begin(2, 5, 314);
	add(3, 100, "cam-0", "C[100]'|u1'");
	add(2, 7, "x", "");
	CHECK(af_manifest_read(bytes, len, &m, &runs));
	CHECK(af_run_next(&runs));
	CHECK_EQUAL(runs.run.count, 3);
	CHECK_EQUAL(runs.run.nbytes, 100);
	CHECK_EQUAL(runs.run.first, 7);
	CHECK(runs.run.stream_len == 5 && !memcmp(runs.stream, "cam-0", 5));
	CHECK(runs.run.form_len == 11 && !memcmp(runs.form, "C[100]", 6));
	CHECK(af_run_next(&runs));
	CHECK_EQUAL(runs.run.count, 2);
	CHECK(runs.at == runs.end);
	CHECK(!af_run_next(&runs));
}

static void
no_beginning_of_a_manifest_is_sound(void)
{
	struct af_manifest m;
	struct af_extent extent;

	begin(2, 5, 314);
	add(3, 100, "cam-0", "C[100]'|u1'");
	add(2, 7, "x", "");
	for (uint32_t n = 0; n < len; n++)
		CHECK(!measured(n, &m, &extent));
}

static void
contradictions_are_refused(void)
{
	static const struct {
		uint32_t nb_runs, nb_elements;
		uint64_t nbytes;
	} claims[] = {{2, 3, 300}, {1, 4, 300}, {1, 3, 301}, {0, 3, 300}, {0xffffffff, 3, 300}};
	struct af_manifest m;
	struct af_extent extent;

	for (size_t i = 0; i < sizeof claims / sizeof *claims; i++) {
		begin(claims[i].nb_runs, claims[i].nb_elements, claims[i].nbytes);
		add(3, 100, "", "");
		CHECK(!measured(len, &m, &extent));
	}
	begin(1, 0, 0);
	add(0, 100, "", ""); /* a run of nothing */
	CHECK(!measured(len, &m, &extent));
	begin(1, 3, 300);
	add(3, 100, "", "");
	CHECK(measured(len, &m, &extent));
	bytes[2] = bytes[3] = 0; /* no payload at all */
	CHECK(!measured(len, &m, &extent));
}

static void
sums_that_overflow_are_refused(void)
{
	struct af_manifest m;
	struct af_extent extent;

	begin(1, 0xffffffff, 0);
	add(0xffffffff, 1ull << 32, "", ""); /* 2^64 - 2^32 bytes */
	CHECK(!measured(len, &m, &extent));
	begin(1, 1, UINT64_MAX);
	add(1, UINT64_MAX, "", "");
	CHECK(!measured(len, &m, &extent));
	begin(2, 2, 1ull << 49);
	add(1, 1ull << 48, "", "");
	add(1, 1ull << 48, "", "");
	CHECK(!measured(len, &m, &extent));
	begin(1, 1, 1ull << 48);
	add(1, 1ull << 48, "", "");
	CHECK(measured(len, &m, &extent));
}

static void
noise_is_never_read_beyond_its_end(void)
{
	struct af_manifest m;
	struct af_extent extent;

	for (int i = 0; i < 20000; i++) {
		uint32_t n = check_random(120);

		for (uint32_t k = 0; k < n; k++)
			bytes[k] = (uint8_t)(check_random(3) ? 0 : check_random(256));
		if (measured(n, &m, &extent)) /* which checks where the runs end */
			CHECK(extent.nbytes <= 1ull << 48 && extent.nb_elements >= m.nb_runs);
	}
}

static void
large_elements_are_cut_and_small_ones_are_packed(void)
{
	struct af_chunker c = {.payload_bytes = 100};

	CHECK_EQUAL(af_chunk_of(&c, 250), 0); /* chunks 0, 1, 2 */
	CHECK_EQUAL(af_chunk_of(&c, 60), 3);
	CHECK_EQUAL(af_chunk_of(&c, 40), 3); /* just full */
	CHECK_EQUAL(af_chunk_of(&c, 1), 4);
	CHECK_EQUAL(af_chunk_of(&c, 0), 4);
	CHECK_EQUAL(af_chunk_of(&c, 100), 5);
	CHECK_EQUAL(af_chunk_of(&c, 0), 5);
	CHECK_EQUAL(af_chunk_of(&c, 101), 6); /* ends the pack */
	CHECK_EQUAL(af_chunk_of(&c, 0), 8);
	CHECK_EQUAL(c.next, 9);
}

static void
a_pack_holds_a_bounded_number_of_elements(void)
{
	struct af_chunker c = {.payload_bytes = 1460};

	for (uint32_t i = 0; i < 2 * AF_PACK_MOST; i++)
		CHECK_EQUAL(af_chunk_of(&c, 0), i / AF_PACK_MOST);
	CHECK_EQUAL(c.next, 2);
}

static void
alignment_and_pieces_round_up(void)
{
	for (uint64_t n = 0; n < 300; n++) {
		CHECK_EQUAL(af_align(n) % AF_ALIGN, 0);
		CHECK(af_align(n) >= n && af_align(n) < n + AF_ALIGN);
	}
	CHECK_EQUAL(af_manifest_chunks(1460, 1460), 1);
	CHECK_EQUAL(af_manifest_chunks(1461, 1460), 2);
}

/* A run of this kind with these marks. */
static enum af_unknown
unknown(uint8_t kind, uint8_t numbered, const uint8_t *marks, uint16_t marks_len, uint32_t *value)
{
	uint8_t *copy = malloc(marks_len ? marks_len : 1);
	struct af_run_cursor c = {.run = {.kind = kind, .numbered = numbered, .marks_len = marks_len}, .marks = copy};
	enum af_unknown answer;

	if (marks_len)
		memcpy(copy, marks, marks_len);
	answer = af_run_unknown(&c, value);
	free(copy);
	return answer;
}

static void
unknown_kinds_marks_and_forms_are_named(void)
{
	static const uint8_t good[] = {AF_MARK_MODE,
				       4,
				       0,
				       0,
				       1,
				       0xa4,
				       AF_MARK_MTIME,
				       8,
				       0,
				       0,
				       0,
				       0,
				       0,
				       0,
				       0,
				       1,
				       AF_MARK_OFFSET,
				       8,
				       0,
				       0,
				       0,
				       0,
				       0,
				       0,
				       0,
				       2};
	static const uint8_t unknown_mark[] = {AF_NB_MARKS, 1, 0},
			     wrong_size[] = {AF_MARK_MODE, 8, 0, 0, 0, 0, 0, 0, 0, 0}, none[] = {AF_MARK_NONE, 0},
			     cut[] = {AF_MARK_SIZE, 8, 1, 2, 3};
	struct af_run_cursor c = {.run = {.form_len = 4}, .form = (const uint8_t *)"C[]?"};
	uint32_t value;

	CHECK_EQUAL(unknown(AF_RUN_FILE, 0, good, sizeof good, &value), AF_KNOWN);
	CHECK_EQUAL(unknown(AF_RUN_ELEMENT, 1, NULL, 0, &value), AF_KNOWN);
	CHECK_EQUAL(unknown(AF_RUN_ELEMENT, 2, NULL, 0, &value), AF_UNKNOWN_KIND);
	CHECK_EQUAL(unknown(AF_NB_RUN_KINDS, 0, NULL, 0, &value), AF_UNKNOWN_KIND);
	CHECK_EQUAL(value, AF_NB_RUN_KINDS);
	CHECK_EQUAL(unknown(AF_RUN_FILE, 0, unknown_mark, sizeof unknown_mark, &value), AF_UNKNOWN_MARK);
	CHECK_EQUAL(value, AF_NB_MARKS);
	CHECK_EQUAL(unknown(AF_RUN_FILE, 0, wrong_size, sizeof wrong_size, &value), AF_UNKNOWN_MARK);
	CHECK_EQUAL(unknown(AF_RUN_FILE, 0, none, sizeof none, &value), AF_UNKNOWN_MARK);
	CHECK_EQUAL(unknown(AF_RUN_FILE, 0, cut, sizeof cut, &value), AF_UNKNOWN_MARK);
	CHECK_EQUAL(value, AF_MARK_SIZE);
	CHECK_EQUAL(af_run_unknown(&c, &value), AF_UNKNOWN_FORM);
	c.run.form_len = 8;
	c.form = (const uint8_t *)"C[]'<f8'";
	CHECK_EQUAL(af_run_unknown(&c, &value), AF_KNOWN);
}

CASES(CASE(headers_have_the_sizes_of_the_wire), CASE(a_sound_manifest_is_measured), CASE(runs_are_walked_in_host_order),
      CASE(no_beginning_of_a_manifest_is_sound), CASE(contradictions_are_refused), CASE(sums_that_overflow_are_refused),
      CASE(noise_is_never_read_beyond_its_end), CASE(large_elements_are_cut_and_small_ones_are_packed),
      CASE(a_pack_holds_a_bounded_number_of_elements), CASE(alignment_and_pieces_round_up),
      CASE(unknown_kinds_marks_and_forms_are_named))

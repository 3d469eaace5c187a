/* extension.h: what a later build appends is ignored or refused, and never read beyond its end. */
#include "aiflow/wire/extension.h"

#include "check.h"

/* Check these bytes in a buffer of just this length. */
static enum af_extensions
checked(const char *bytes, size_t nbytes, uint32_t *kind)
{
	uint8_t *copy = malloc(nbytes ? nbytes : 1);
	enum af_extensions found;

	memcpy(copy, bytes, nbytes);
	found = af_extensions_check(copy, copy + nbytes, 0x8002, kind);
	free(copy);
	return found;
}

#define CHECKED(bytes) checked(bytes, sizeof bytes - 1, &kind)

static void
unknown_entries_are_ignored_unless_they_must_be_understood(void)
{
	uint32_t kind = 0;

	CHECK_EQUAL(CHECKED(""), AF_EXTENSIONS_FINE);
	CHECK_EQUAL(CHECKED("\0\1\0\0"), AF_EXTENSIONS_FINE);
	CHECK_EQUAL(CHECKED("\0\1\0\3abc\x7f\xff\0\1d"), AF_EXTENSIONS_FINE);
	CHECK_EQUAL(CHECKED("\x80\2\0\1a"), AF_EXTENSIONS_FINE); /* known here */
	CHECK_EQUAL(CHECKED("\0\1\0\3abc\x80\2\0\0\x80\1\0\0\x80\3\0\0"), AF_EXTENSIONS_UNKNOWN);
	CHECK_EQUAL(kind, 0x8001);
}

static void
padding_ends_the_entries(void)
{
	uint32_t kind = 0;

	for (size_t n = 1; n < 9; n++)
		CHECK_EQUAL(checked("\0\0\0\0\0\0\0\0", n, &kind), AF_EXTENSIONS_FINE);
	CHECK_EQUAL(CHECKED("\0\1\0\1a\0\0\x80\1\0\0"), AF_EXTENSIONS_FINE); /* behind it nothing is read */
}

static void
claims_beyond_the_end_are_broken(void)
{
	uint32_t kind = 0;

	CHECK_EQUAL(CHECKED("\1"), AF_EXTENSIONS_BROKEN);
	CHECK_EQUAL(CHECKED("\0\1\0"), AF_EXTENSIONS_BROKEN);
	CHECK_EQUAL(CHECKED("\0\1\0\1"), AF_EXTENSIONS_BROKEN);
	CHECK_EQUAL(CHECKED("\0\1\xff\xffzzz"), AF_EXTENSIONS_BROKEN);
	CHECK_EQUAL(CHECKED("\x80\1\0\0\0\1\0\1"), AF_EXTENSIONS_BROKEN); /* more than unknown: nonsense */
}

static void
entries_are_read_one_by_one(void)
{
	static const uint8_t bytes[] = {0, 7, 0, 2, 'a', 'b', 0x80, 8, 0, 0};
	struct af_extension_cursor c = {.at = bytes, .end = bytes + sizeof bytes};

	CHECK(af_extension_next(&c));
	CHECK_EQUAL(c.kind, 7);
	CHECK(c.nbytes == 2 && !memcmp(c.bytes, "ab", 2));
	CHECK(af_extension_next(&c));
	CHECK_EQUAL(c.kind, 0x8008);
	CHECK_EQUAL(c.nbytes, 0);
	CHECK(!af_extension_next(&c) && !c.broken);
}

static void
noise_is_never_read_beyond_its_end(void)
{
	uint32_t kind;
	char noise[40];

	for (int i = 0; i < 20000; i++) {
		size_t nbytes = check_random(sizeof noise);

		for (size_t k = 0; k < nbytes; k++)
			noise[k] = (char)(check_random(3) ? check_random(3) : check_random(256));
		checked(noise, nbytes, &kind);
	}
}

static void
a_frame_is_dropped_for_its_own_reason_or_as_another_version(void)
{
	static const uint8_t must[] = {0x80, 1, 0, 0}, broken[] = {0, 1, 0, 9};

	CHECK_EQUAL(af_extensions_drop(must, must, AF_DROP_HELLO), AF_OK);
	CHECK_EQUAL(af_extensions_drop(must, must + 4, AF_DROP_HELLO), AF_DROP_VERSION);
	CHECK_EQUAL(af_extensions_drop(broken, broken + 4, AF_DROP_HELLO), AF_DROP_HELLO);
}

CASES(CASE(unknown_entries_are_ignored_unless_they_must_be_understood), CASE(padding_ends_the_entries),
      CASE(claims_beyond_the_end_are_broken), CASE(entries_are_read_one_by_one),
      CASE(noise_is_never_read_beyond_its_end), CASE(a_frame_is_dropped_for_its_own_reason_or_as_another_version))

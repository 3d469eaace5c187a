/* crc32c.h: the arithmetic of CRC32C. crc.c compares every way of computing it for all lengths. */
#include "aiflow/wire/crc32c.h"

#include "check.h"

static uint8_t text[3 * 3 * AF_CRC_LONG + 100];

static void
prepare(void)
{
	for (size_t i = 0; i < sizeof text; i++)
		text[i] = (uint8_t)check_random(256);
}

static void
the_values_of_rfc_3720_come_out(void)
{
	uint8_t bytes[32] = {0};

	CHECK_EQUAL(af_crc32c(0, "123456789", 9), 0xe3069283u);
	CHECK_EQUAL(af_crc32c(0, bytes, 32), 0x8a9136aau);
	memset(bytes, 0xff, 32);
	CHECK_EQUAL(af_crc32c(0, bytes, 32), 0x62a8ab43u);
	for (uint8_t i = 0; i < 32; i++)
		bytes[i] = i;
	CHECK_EQUAL(af_crc32c(0, bytes, 32), 0x46dd794eu);
	for (uint8_t i = 0; i < 32; i++)
		bytes[i] = 31 - i;
	CHECK_EQUAL(af_crc32c(0, bytes, 32), 0x113fdb5cu);
	CHECK_EQUAL(af_crc32c(77, bytes, 0), 77);
}

static void
crcs_of_pieces_join(void)
{
	prepare();
	for (int i = 0; i < 300; i++) {
		uint32_t n = 1 + check_random(sizeof text - 1), split = check_random(n);
		uint32_t whole = af_crc32c(0, text, n), a = af_crc32c(0, text, split);
		uint32_t b = af_crc32c(0, text + split, n - split);

		CHECK_EQUAL(af_crc32c_shift(a, n - split) ^ b, whole);
		CHECK_EQUAL(af_crc32c(a, text + split, n - split), whole);
	}
}

static void
multiplication_is_that_of_a_field(void)
{
	const uint32_t one = 0x80000000u;

	for (int i = 0; i < 1000; i++) {
		uint32_t a = check_random(UINT32_MAX), b = check_random(UINT32_MAX), c = check_random(UINT32_MAX);

		CHECK_EQUAL(af_crc_multiply(a, one), a);
		CHECK_EQUAL(af_crc_multiply(a, 0), 0);
		CHECK_EQUAL(af_crc_multiply(a, b), af_crc_multiply(b, a));
		CHECK_EQUAL(af_crc_multiply(af_crc_multiply(a, b), c), af_crc_multiply(a, af_crc_multiply(b, c)));
		CHECK_EQUAL(af_crc_multiply(a, b ^ c), af_crc_multiply(a, b) ^ af_crc_multiply(a, c));
	}
}

static void
powers_add_up_for_any_length(void)
{
	static const uint64_t lengths[] = {0, 1, 255, 256, 65535, 65536, 65537, 1ull << 32, (1ull << 48) + 12345};

	CHECK_EQUAL(af_crc_power(0), 0x80000000u);
	for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
		for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++)
			CHECK_EQUAL(af_crc_multiply(af_crc_power(lengths[i]), af_crc_power(lengths[k])),
				    af_crc_power(lengths[i] + lengths[k]));
}

static void
a_table_shifts_as_the_multiplication_does(void)
{
	static const uint32_t lengths[] = {0, 1, 20, 1460, 65000};
	static struct af_crc_shift shift;

	for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
		af_crc_shift_of(&shift, lengths[i], af_crc_power(lengths[i]));
		CHECK_EQUAL(shift.nbytes, lengths[i]);
		for (int k = 0; k < 1000; k++) {
			uint32_t crc = check_random(UINT32_MAX);

			CHECK_EQUAL(af_crc_apply(&shift, crc), af_crc32c_shift(crc, lengths[i]));
		}
	}
}

static void
a_copy_has_the_bytes_and_the_crc_and_touches_nothing_else(void)
{
	prepare();
	for (int i = 0; i < 400; i++) {
		uint32_t n = check_random(i < 200 ? 400 : 5000), at = check_random(64);
		uint8_t *from = malloc(n + 1), *to = malloc(n + 128);

		memcpy(from, text + i, n);
		memset(to, 0xa5, n + 128);
		CHECK_EQUAL(af_copy_crc32c(5, to + at, from, n, i % 2 ? AF_COPY_STORE : AF_COPY_STREAM),
			    af_crc32c(5, from, n));
		af_copy_settle();
		CHECK(!memcmp(to + at, from, n));
		for (uint32_t k = 0; k < n + 128; k++)
			if (k < at || k >= at + n)
				CHECK_EQUAL(to[k], 0xa5);
		free(from);
		free(to);
	}
}

CASES(CASE(the_values_of_rfc_3720_come_out), CASE(crcs_of_pieces_join), CASE(multiplication_is_that_of_a_field),
      CASE(powers_add_up_for_any_length), CASE(a_table_shifts_as_the_multiplication_does),
      CASE(a_copy_has_the_bytes_and_the_crc_and_touches_nothing_else))

/* crc32c_clmul.h: CRC32C by carry-less multiplication, where this CPU has it. */
#include "aiflow/wire/crc32c.h"

#include "check.h"

#ifndef AF_CRC_FOLDS

static void
this_build_has_no_carry_less_multiplication(void)
{
	CHECK_EQUAL(af_crc.way, AF_CRC_STRANDS);
}

CASES(CASE(this_build_has_no_carry_less_multiplication))

#else

static uint8_t text[8192];

/* One function over lengths that are a multiple of 16 and at least 64, against the CRC without folding. */
static void
check_fold(af_crc_fold *fold, enum af_copy how)
{
	for (uint32_t n = 64; n <= 4096; n += n < 1200 ? 16 : 496) {
		uint32_t crc = check_random(UINT32_MAX);
		uint8_t *from = malloc(n);
		void *aligned;
		uint8_t *to;

		CHECK(!posix_memalign(&aligned, 64, n + 64));
		to = aligned;
		for (uint32_t i = 0; i < n; i++)
			from[i] = (uint8_t)check_random(256);
		memset(to, 0xa5, n + 64);
		CHECK_EQUAL(fold(crc, from, n, to, &af_crc.multipliers), af_crc_unfolded(crc, from, n));
		af_copy_settle();
		for (uint32_t i = 0; i < n + 64; i++)
			CHECK_EQUAL(to[i], how != AF_COPY_NONE && i < n ? from[i] : 0xa5);
		free(from);
		free(to);
	}
}

static void
folding_by_16_bytes_gives_the_crc_and_the_copy(void)
{
	if (__builtin_cpu_supports("pclmul"))
		for (int how = AF_COPY_NONE; how <= AF_COPY_STREAM; how++)
			check_fold(af_crc_by_16s[how], (enum af_copy)how);
	else
		CHECK_EQUAL(af_crc.way, AF_CRC_STRANDS);
}

static void
folding_by_32_bytes_gives_the_crc_and_the_copy(void)
{
	if (__builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("avx2"))
		for (int how = AF_COPY_NONE; how <= AF_COPY_STREAM; how++)
			check_fold(af_crc_by_32s[how], (enum af_copy)how);
	else
		CHECK(af_crc.way < AF_CRC_AVX2);
}

static void
folding_by_64_bytes_gives_the_crc_and_the_copy(void)
{
	if (__builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("avx512bw") &&
	    __builtin_cpu_supports("avx512vl"))
		for (int how = AF_COPY_NONE; how <= AF_COPY_STREAM; how++)
			check_fold(af_crc_by_64s[how], (enum af_copy)how);
	else
		CHECK(af_crc.way != AF_CRC_AVX512);
}

static void
the_product_is_that_of_the_definition(void)
{
	enum af_crc_way way = af_crc.way;

	if (!__builtin_cpu_supports("pclmul")) {
		CHECK_EQUAL(way, AF_CRC_STRANDS);
		return;
	}
	af_crc.way = AF_CRC_STRANDS; /* af_crc_multiply goes bit by bit */
	for (int i = 0; i < 2000; i++) {
		uint32_t a = check_random(UINT32_MAX), b = check_random(UINT32_MAX);

		CHECK_EQUAL(af_crc_multiply_by_clmul(a, b), af_crc_multiply(a, b));
	}
	af_crc.way = way;
}

static void
lesser_ways_can_be_asked_for(void)
{
	enum af_crc_way best;

	unsetenv("AIFLOW_CRC32C");
	best = af_crc_best_way();
	setenv("AIFLOW_CRC32C", "strands", 1);
	CHECK_EQUAL(af_crc_best_way(), AF_CRC_STRANDS);
	setenv("AIFLOW_CRC32C", "pclmul", 1);
	CHECK_EQUAL(af_crc_best_way(), best < AF_CRC_PCLMUL ? best : AF_CRC_PCLMUL);
	setenv("AIFLOW_CRC32C", "avx2", 1);
	CHECK_EQUAL(af_crc_best_way(), best < AF_CRC_AVX2 ? best : AF_CRC_AVX2);
	setenv("AIFLOW_CRC32C", "nonsense", 1);
	CHECK_EQUAL(af_crc_best_way(), best);
	unsetenv("AIFLOW_CRC32C");
}

static void
every_way_gives_one_crc(void)
{
	enum af_crc_way best = af_crc.way;
	uint32_t crcs[AF_NB_CRC_WAYS], nb_lengths = 0;

	for (uint32_t i = 0; i < sizeof text; i++)
		text[i] = (uint8_t)check_random(256);
	for (uint32_t n = 0; n < sizeof text; n += 1 + n / 16, nb_lengths++) {
		for (int way = AF_CRC_STRANDS; way <= (int)best; way++) {
			af_crc.way = (enum af_crc_way)way;
			crcs[way] = af_crc32c(3, text, n);
		}
		for (int way = AF_CRC_STRANDS; way <= (int)best; way++)
			CHECK_EQUAL(crcs[way], crcs[AF_CRC_STRANDS]);
	}
	af_crc.way = best;
	CHECK(nb_lengths > 100);
}

CASES(CASE(folding_by_16_bytes_gives_the_crc_and_the_copy), CASE(folding_by_32_bytes_gives_the_crc_and_the_copy),
      CASE(folding_by_64_bytes_gives_the_crc_and_the_copy), CASE(the_product_is_that_of_the_definition),
      CASE(lesser_ways_can_be_asked_for), CASE(every_way_gives_one_crc))
#endif

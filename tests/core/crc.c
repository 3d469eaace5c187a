/* CRC32C against its definition, a bit at a time: lengths, alignments and beginnings, each way of computing that this
 * CPU has, with and without a copy, and joining. Prints the ways that were tried. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "aiflow/wire/crc32c.h"

#define MOST 5000u
#define GUARD 64u

static const char *const ways[] = {"strands", "pclmul", "avx2", "avx512"};
static uint8_t text[MOST + 65000];

static uint32_t
by_definition(uint32_t crc, const uint8_t *p, size_t nbytes)
{
	crc = ~crc;
	for (; nbytes; nbytes--, p++) {
		crc ^= *p;
		for (int i = 0; i < 8; i++)
			crc = crc & 1 ? crc >> 1 ^ 0x82f63b78u : crc >> 1;
	}
	return ~crc;
}

static void
expect(uint32_t got, uint32_t wanted, const char *what, size_t nbytes)
{
	if (got != wanted) {
		fprintf(stderr, "%s: %s of %zu bytes: %08x, not %08x\n", ways[af_crc.way], what, nbytes, got, wanted);
		exit(1);
	}
}

/* Source and destination are of just this size on the heap, so that a sanitizer sees a byte too far; and the bytes
 * around what was written are as they were. */
static void
check_copy(uint32_t seed, size_t n, size_t align, size_t from_align, uint32_t wanted)
{
	for (int how = AF_COPY_STORE; how <= AF_COPY_STREAM; how++) {
		uint8_t *from = malloc(from_align + n), *to = malloc(GUARD + align + n + GUARD);

		memcpy(from + from_align, text, n);
		memset(to, 0xa5, GUARD + align + n + GUARD);
		expect(af_copy_crc32c(seed, to + GUARD + align, from + from_align, n, how), wanted,
		       "the CRC with a copy", n);
		af_copy_settle();
		expect(memcmp(to + GUARD + align, text, n) != 0, 0, "a difference in the copy", n);
		for (size_t i = 0; i < GUARD; i++) {
			expect(to[align + i], 0xa5, "a byte before the copy", n);
			expect(to[GUARD + align + n + i], 0xa5, "a byte behind the copy", n);
		}
		free(from);
		free(to);
	}
}

static void
check_length(size_t n, uint32_t seed, uint32_t wanted)
{
	size_t align = n * 7 % 64, split = n ? n * 13 % n : 0;
	uint8_t *bytes = calloc(1, align + n);
	struct af_crc_shift shift;

	memcpy(bytes + align, text, n);
	expect(af_crc32c(seed, bytes + align, n), wanted, "the CRC", n);
	expect(af_crc32c(af_crc32c(seed, bytes + align, split), bytes + align + split, n - split), wanted,
	       "the CRC in two parts", n);
	expect(af_crc32c_shift(af_crc32c(seed, bytes + align, split), n - split) ^
		       af_crc32c(0, bytes + align + split, n - split),
	       wanted, "the joined CRC", n);
	af_crc_shift_of(&shift, (uint32_t)n, af_crc_power(n));
	expect(af_crc_apply(&shift, seed), af_crc32c_shift(seed, n), "the shift by table", n);
	check_copy(seed, n, n * 11 % 64, align, wanted);
	free(bytes);
}

static uint8_t restless[MOST];
static _Atomic int resting;

static void *
never_rests(void *unused)
{
	for (uint8_t value = 0; !atomic_load(&resting); value++)
		memset(restless, value, sizeof restless);
	return unused;
}

/* The CRC is that of the copy even when another thread changes the original: until that has happened in the midst of
 * some copies, which takes a second core. */
static void
check_changes(size_t n)
{
	uint8_t *to = malloc(n);
	pthread_t thread;

	atomic_store(&resting, 0);
	pthread_create(&thread, NULL, never_rests, NULL);
	for (int i = 0, torn = 0; torn < 3 && i < 1000000; i++) {
		uint32_t crc = af_copy_crc32c(1, to, restless, n, AF_COPY_STORE);

		expect(crc, af_crc32c(1, to, n), "the CRC of what changed", n);
		torn += to[0] != to[n - 1];
	}
	atomic_store(&resting, 1);
	pthread_join(thread, NULL);
	free(to);
}

static void
check_way(void)
{
	uint32_t crc = 0, seed = 0x9e3779b9u, seeded = seed;

	expect(af_crc32c(0, "123456789", 9), 0xe3069283u, "the RFC's check", 9);
	for (size_t n = 0; n <= MOST; n++) {
		check_length(n, 0, crc);
		check_length(n, seed, seeded);
		crc = by_definition(crc, text + n, 1);
		seeded = by_definition(seeded, text + n, 1);
	}
	for (size_t n = 60000; n < 65000; n += 1237)
		check_length(n, 77, by_definition(77, text, n));
	for (size_t n = 120; n < 700; n += 29)
		for (size_t to = 0; to < 64; to++)
			check_copy(n, n, to, to * 5 % 64, by_definition((uint32_t)n, text, n));
	check_changes(AF_CRC_LEAST - 1);
	check_changes(MOST);
}

int
main(void)
{
	uint32_t product;

	for (size_t i = 0; i < sizeof text; i++)
		text[i] = (uint8_t)(i * 2654435761u >> 13);
	for (int way = (int)af_crc.way; way >= 0; way--) {
		af_crc.way = way;
		check_way();
		puts(ways[way]);
	}
	for (uint32_t a = 1, b = 0x80000000u, i = 0; i < 10000;
	     i++, a = a * 1664525u + 1013904223u, b = b * 22695477u + 1) {
		product = af_crc_multiply(a, b);
#ifdef AF_CRC_FOLDS
		if (__builtin_cpu_supports("pclmul"))
			expect(af_crc_multiply_by_clmul(a, b), product, "a product", 4);
#endif
	}
	(void)product;
	return 0;
}

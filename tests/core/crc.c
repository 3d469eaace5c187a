/* CRC32C against its definition, a bit at a time: every length and alignment, each way of computing that this CPU has, and joining. */
#include <stdio.h>
#include <stdlib.h>

#include "aiflow/crc32c.h"

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
		fprintf(stderr, "%s of %zu bytes: %08x, not %08x\n", what, nbytes, got, wanted);
		exit(1);
	}
}

static void
check(void)
{
	static const size_t lengths[] = {0, 1, 7, 8, 9, 63, 64, 479, 480, 481, 511, 512, 513, 767, 768, 1024, 1460, 4607, 4608, 4609, 9000, 65000};
	struct af_crc_shift shift;

	expect(af_crc32c(0, "123456789", 9), 0xe3069283u, "the RFC's check", 9);
	for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
		for (size_t align = 0; align < 8; align++) {
			size_t n = lengths[i];
			uint8_t *bytes = malloc(align + n);

			for (size_t k = 0; k < align + n; k++)
				bytes[k] = (uint8_t)(k * 2654435761u >> 13);
			expect(af_crc32c(0, bytes + align, n), by_definition(0, bytes + align, n), "the CRC", n);
			expect(af_crc32c(77, bytes + align, n), by_definition(77, bytes + align, n), "the CRC from 77", n);
			expect(af_crc32c_shift(af_crc32c(0, bytes, align), n) ^ af_crc32c(0, bytes + align, n),
			       by_definition(0, bytes, align + n), "the joined CRC", align + n);
			af_crc_shift_of(&shift, (uint32_t)n, af_crc_power(n));
			expect(af_crc_apply(&shift, 0x12345678u), af_crc32c_shift(0x12345678u, n), "the shift by table", n);
			free(bytes);
		}
}

int
main(void)
{
	check();
	if (af_crc.wide) { /* what a CPU without it does */
		af_crc.wide = 0;
		check();
	}
	return 0;
}

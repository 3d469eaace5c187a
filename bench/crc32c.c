/* GB/s of each way of computing CRC32C that this CPU has: the sum alone, with a copy into the caches, and with a copy
 * streamed around them. The ways take turns, so that other load hits all of them; medians, by the thread's CPU time.
 *
 *     cc -O3 -march=corei7 -Iinclude bench/crc32c.c -o build/crc32c && build/crc32c
 *
 * "warm": source and destination are in the caches. "cold": a sum and a store read memory that is in no cache; a
 * stream reads what is in the caches, as a frame is, and writes to memory.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "aiflow/wire/crc32c.h"

#define AREA (256u << 20) /* beyond the caches */
#define PER_TURN (32u << 20)
#define TURNS 31

static const char *const ways[] = {"strands", "pclmul", "avx2", "avx512"};
static const char *const hows[] = {"sum", "store", "stream"};
static uint8_t *from_area, *to_area;
static volatile uint32_t sink;

static double
turn(size_t nbytes, enum af_copy how, bool cold)
{
	static size_t at;
	struct timespec begin, end;
	uint32_t crc = 0;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
	for (size_t done = 0; done < PER_TURN; done += nbytes) {
		at = cold ? (at + nbytes + 4096) % (AREA - nbytes) & ~(size_t)63 : 0;
		const uint8_t *from = from_area + (how == AF_COPY_STREAM ? 0 : at);

		crc ^= how == AF_COPY_NONE ? af_crc32c(0, from, nbytes)
					   : af_copy_crc32c(0, to_area + at, from, nbytes, how);
	}
	af_copy_settle();
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
	sink = crc;
	return PER_TURN / ((double)(end.tv_sec - begin.tv_sec) * 1e9 + (double)(end.tv_nsec - begin.tv_nsec));
}

static int
by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

int
main(void)
{
	static const size_t sizes[] = {200, 1460, 16 << 10, 64 << 10};
	int nb_ways = (int)af_crc.way + 1;

	from_area = aligned_alloc(4096, AREA);
	to_area = aligned_alloc(4096, AREA);
	if (from_area == NULL || to_area == NULL)
		return 1;
	for (size_t i = 0; i < AREA; i++)
		from_area[i] = to_area[i] = (uint8_t)(i * 2654435761u >> 13);
	printf("%7s %-6s %-4s", "bytes", "how", "");
	for (int way = 0; way < nb_ways; way++)
		printf(" %8s", ways[way]);
	puts("   GB/s");
	for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
		for (int how = AF_COPY_NONE; how <= AF_COPY_STREAM; how++)
			for (int cold = 0; cold < 2; cold++) {
				double rates[AF_NB_CRC_WAYS][TURNS];

				for (int i = 0; i < TURNS; i++)
					for (int way = 0; way < nb_ways; way++) {
						af_crc.way = (enum af_crc_way)way;
						rates[way][i] = turn(sizes[s], (enum af_copy)how, cold);
					}
				printf("%7zu %-6s %-4s", sizes[s], hows[how], cold ? "cold" : "warm");
				for (int way = 0; way < nb_ways; way++) {
					qsort(rates[way], TURNS, sizeof **rates, by_size);
					printf(" %8.1f", rates[way][TURNS / 2]);
				}
				puts("");
				fflush(stdout);
			}
	return 0;
}

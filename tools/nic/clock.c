/* Prints the frequency of the processor's clock in kHz. An emulated processor has the same one. */
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

static double
read_clocks(unsigned long long *ticks)
{
	/* the reading that was disturbed least */
	unsigned long long before, after, least = ~0ull;
	struct timespec now, seen = {0, 0};
	for (int i = 0; i < 100; i++) {
		before = __rdtsc();
		clock_gettime(CLOCK_MONOTONIC_RAW, &now);
		after = __rdtsc();
		if (after - before < least) {
			least = after - before;
			*ticks = before + least / 2;
			seen = now;
		}
	}
	return seen.tv_sec + seen.tv_nsec / 1e9;
}

int
main(void)
{
	unsigned long long first, last;
	double begun = read_clocks(&first), ended;
	nanosleep(&(struct timespec){0, 300000000}, NULL);
	ended = read_clocks(&last);
	printf("%.0f\n", (last - first) / (ended - begun) / 1000);
}

/* What every unit test of a header shares: checks, and a main that runs named cases.
 *
 * A case is a function without parameters. The first failed check prints where it is, and ends the program with 1.
 *
 * Usage of a test program: test_NAME [CASE …]     default: all its cases; each prints its name when it has passed
 */
#ifndef TESTS_CHECK_H
#define TESTS_CHECK_H

#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct check_case {
	const char *name;
	void (*run)(void);
};

static const char *check_running = "";

static inline void
check_failed(const char *file, int line, const char *what)
{
	fflush(stdout);
	fprintf(stderr, "%s:%d: %s: failed: %s\n", file, line, check_running, what);
	exit(1);
}

#define CHECK(condition)                                              \
	do {                                                          \
		if (!(condition))                                     \
			check_failed(__FILE__, __LINE__, #condition); \
	} while (0)

/* Two integers are equal; both are printed when they are not. */
#define CHECK_EQUAL(got, wanted)                                                                     \
	do {                                                                                         \
		int64_t check_got = (int64_t)(got), check_wanted = (int64_t)(wanted);                \
                                                                                                     \
		if (check_got != check_wanted) {                                                     \
			fprintf(stderr, "%" PRId64 " (0x%" PRIx64 "), not %" PRId64 "\n", check_got, \
				(uint64_t)check_got, check_wanted);                                  \
			check_failed(__FILE__, __LINE__, #got " == " #wanted);                       \
		}                                                                                    \
	} while (0)

/* Two real numbers are equal, up to a share of the second. */
#define CHECK_NEAR(got, wanted, share)                                                                 \
	do {                                                                                           \
		double check_got = (got), check_wanted = (wanted), check_far = (share) * check_wanted; \
                                                                                                       \
		if (check_got < check_wanted - check_far || check_got > check_wanted + check_far) {    \
			fprintf(stderr, "%g, not %g\n", check_got, check_wanted);                      \
			check_failed(__FILE__, __LINE__, #got " is near " #wanted);                    \
		}                                                                                      \
	} while (0)

/* Reproducible numbers (xorshift64*). */
static uint64_t check_random_state = 88172645463325252ull;

static inline uint32_t
check_random(uint32_t below)
{
	uint64_t x = check_random_state;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	check_random_state = x;
	return (uint32_t)((x * 0x2545f4914f6cdd1dull) >> 32) % below;
}

static inline int
check_main(const struct check_case *cases, size_t nb_cases, int argc, char **argv)
{
	int nb_run = 0;

	for (size_t i = 0; i < nb_cases; i++) {
		bool wanted = argc < 2;

		for (int k = 1; k < argc; k++)
			wanted |= !strcmp(argv[k], cases[i].name);
		if (!wanted)
			continue;
		check_running = cases[i].name;
		cases[i].run();
		puts(cases[i].name);
		nb_run++;
	}
	return nb_run ? 0 : 2;
}

#define CASE(name) {#name, name}
#define CASES(...)                                                                                    \
	static const struct check_case check_cases[] = {__VA_ARGS__};                                 \
                                                                                                      \
	int main(int argc, char **argv)                                                               \
	{                                                                                             \
		return check_main(check_cases, sizeof check_cases / sizeof *check_cases, argc, argv); \
	}

#endif

/* chrono.h: times of states, as another thread reads them. */
#include <pthread.h>

#include "aiflow/rt/chrono.h"

#include "check.h"

static struct af_chrono chrono;
static _Atomic int done;

static uint64_t
read_sum(uint64_t now, uint64_t ns[AF_CHRONO_STATES])
{
	uint64_t sum = 0;

	af_chrono_read(&chrono, now, ns);
	for (uint32_t i = 0; i < AF_CHRONO_STATES; i++)
		sum += ns[i];
	return sum;
}

static void
nothing_counts_before_the_first_note(void)
{
	uint64_t ns[AF_CHRONO_STATES];

	chrono = (struct af_chrono){0};
	CHECK_EQUAL(read_sum(1000, ns), 0);
	af_chrono_note(&chrono, 2, 1000);
	CHECK_EQUAL(read_sum(1000, ns), 0);
}

static void
each_state_has_its_time(void)
{
	uint64_t ns[AF_CHRONO_STATES];

	chrono = (struct af_chrono){0};
	af_chrono_note(&chrono, 0, 1000);
	af_chrono_note(&chrono, 0, 1400); /* the same: no change */
	af_chrono_note(&chrono, 3, 1500);
	af_chrono_note(&chrono, 0, 1800);
	CHECK_EQUAL(read_sum(2000, ns), 1000); /* the present state counts until now */
	CHECK_EQUAL(ns[0], 700);
	CHECK_EQUAL(ns[3], 300);
	CHECK_EQUAL(chrono.turns, 6);
}

static void
a_clock_reading_from_before_adds_nothing(void)
{
	uint64_t ns[AF_CHRONO_STATES];

	chrono = (struct af_chrono){0};
	af_chrono_note(&chrono, 1, 1000);
	CHECK_EQUAL(read_sum(900, ns), 0);
	af_chrono_note(&chrono, 2, 900);
	CHECK_EQUAL(read_sum(1000, ns), 100);
	CHECK_EQUAL(ns[2], 100);
}

static void *
change(void *unused)
{
	(void)unused;
	for (uint64_t now = 1001; now < 200000; now++)
		af_chrono_note(&chrono, now % AF_CHRONO_STATES, now);
	atomic_store(&done, 1);
	return NULL;
}

/* With a reading of the clock that is later than all others, the times add up to the same sum at any moment. */
static void
a_reader_never_sees_half_a_change(void)
{
	uint64_t ns[AF_CHRONO_STATES];
	pthread_t writer;
	int reads = 0;

	chrono = (struct af_chrono){0};
	af_chrono_note(&chrono, 0, 1000);
	atomic_store(&done, 0);
	pthread_create(&writer, NULL, change, NULL);
	while (!atomic_load(&done) || reads < 10) {
		uint64_t sum = 0;

		if (!af_chrono_try(&chrono, 1000000, ns))
			continue;
		for (uint32_t i = 0; i < AF_CHRONO_STATES; i++)
			sum += ns[i];
		CHECK_EQUAL(sum, 999000);
		reads++;
	}
	pthread_join(writer, NULL);
}

/* The loop reads the clock once every few bursts, so that a reader may be ahead of its notes. */
static void
no_time_ever_falls(void)
{
	uint64_t ns[AF_CHRONO_STATES];

	chrono = (struct af_chrono){0};
	af_chrono_note(&chrono, 1, 1000);
	af_chrono_read(&chrono, 1700, ns);
	CHECK_EQUAL(ns[1], 700);
	af_chrono_note(&chrono, 2, 1600);
	af_chrono_read(&chrono, 1800, ns);
	CHECK_EQUAL(ns[1], 700); /* and not 600 */
	CHECK_EQUAL(ns[2], 200);
	af_chrono_note(&chrono, 1, 2000);
	af_chrono_read(&chrono, 2300, ns);
	CHECK_EQUAL(ns[1], 900); /* nothing is counted twice */
}

/* As in the child of a process that forked at this moment, where no thread ends the change. */
static void
a_change_that_never_ends_holds_no_reader_up(void)
{
	uint64_t ns[AF_CHRONO_STATES];

	chrono = (struct af_chrono){0};
	af_chrono_note(&chrono, 1, 1000);
	CHECK_EQUAL(read_sum(1500, ns), 500);
	atomic_fetch_add(&chrono.turns, 1);
	atomic_store(&chrono.ns[1], 900);
	CHECK_EQUAL(read_sum(2000, ns), 500);
	CHECK_EQUAL(ns[1], 500);
}

CASES(CASE(nothing_counts_before_the_first_note), CASE(each_state_has_its_time),
      CASE(a_clock_reading_from_before_adds_nothing), CASE(a_reader_never_sees_half_a_change), CASE(no_time_ever_falls),
      CASE(a_change_that_never_ends_holds_no_reader_up))

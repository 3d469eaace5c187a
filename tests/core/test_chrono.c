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
		CHECK_EQUAL(read_sum(1000000, ns), 999000);
		reads++;
	}
	pthread_join(writer, NULL);
}

CASES(CASE(nothing_counts_before_the_first_note), CASE(each_state_has_its_time),
      CASE(a_clock_reading_from_before_adds_nothing), CASE(a_reader_never_sees_half_a_change))

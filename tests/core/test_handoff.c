/* handoff.h: flags, sleep and the turn between a loop and the threads that talk to it. */
#include <poll.h>
#include <sched.h>

#include "aiflow/rt/handoff.h"

#include "check.h"

#define MS 1000000ull
#define LONG_NS (60000 * MS) /* no test waits so long: it is woken before */

static struct af_handoff handoff;

static void
begin(void)
{
	memset(&handoff, 0, sizeof handoff);
	CHECK(!af_handoff_init(&handoff));
}

static bool
readable(void)
{
	struct pollfd fd = {.fd = handoff.event_fd, .events = POLLIN};

	return poll(&fd, 1, 0) == 1;
}

/* Wait until a thread sleeps on `wake`. */
static void
until_asleep(void)
{
	while (!atomic_load(&handoff.asleep))
		sched_yield();
}

static void
the_turn_is_one_threads_at_a_time(void)
{
	begin();
	CHECK(af_handoff_try_acquire(&handoff));
	CHECK(!af_handoff_try_acquire(&handoff));
	af_handoff_release(&handoff);
	CHECK(af_handoff_try_acquire(&handoff));
	af_handoff_free(&handoff);
}

static uint64_t driven;       /* plain: the turn protects it */
static _Atomic int inside_now;

static void *
drive(void *unused)
{
	for (int i = 0; i < 20000;) {
		if (!af_handoff_try_acquire(&handoff))
			continue;
		CHECK_EQUAL(atomic_fetch_add(&inside_now, 1), 0);
		driven++;
		i++;
		atomic_fetch_sub(&inside_now, 1);
		af_handoff_release(&handoff);
	}
	return unused;
}

static void
threads_exclude_each_other_by_it(void)
{
	pthread_t threads[3];

	begin();
	for (int i = 0; i < 3; i++)
		CHECK(!pthread_create(&threads[i], NULL, drive, NULL));
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	CHECK_EQUAL(driven, 60000);
	af_handoff_free(&handoff);
}

static void
a_worker_has_work_by_any_of_three_flags(void)
{
	begin();
	CHECK(!af_handoff_worker_has_work(&handoff));
	atomic_store(&handoff.attention, 1);
	CHECK(af_handoff_worker_has_work(&handoff));
	atomic_store(&handoff.attention, 0);
	atomic_store(&handoff.posted, 1);
	CHECK(af_handoff_worker_has_work(&handoff));
	atomic_store(&handoff.posted, 0);
	atomic_store(&handoff.work_left, 1);
	CHECK(af_handoff_worker_has_work(&handoff));
	atomic_store(&handoff.work_left, 0);
	CHECK(!af_handoff_worker_has_work(&handoff));
	af_handoff_free(&handoff);
}

static void *
sleep_long(void *unused)
{
	af_handoff_sleep(&handoff, LONG_NS);
	return unused;
}

static void *
doze_long(void *unused)
{
	af_handoff_doze(&handoff, LONG_NS);
	return unused;
}

static void *
rest_long(void *unused)
{
	af_handoff_rest(&handoff, LONG_NS);
	return unused;
}

static void
a_sleeping_loop_is_woken(void)
{
	void *(*const ways[])(void *) = {sleep_long, doze_long};

	for (int way = 0; way < 2; way++) {
		pthread_t thread;

		begin();
		CHECK(!pthread_create(&thread, NULL, ways[way], NULL));
		until_asleep();
		af_handoff_wake(&handoff);
		pthread_join(thread, NULL);
		CHECK_EQUAL(handoff.asleep, 0);
		af_handoff_free(&handoff);
	}
}

static void
a_loop_with_something_to_do_does_not_sleep(void)
{
	begin();
	atomic_store(&handoff.posted, 1);
	af_handoff_sleep(&handoff, LONG_NS);
	af_handoff_doze(&handoff, LONG_NS);
	atomic_store(&handoff.posted, 0);
	atomic_store(&handoff.attention, 1);
	af_handoff_sleep(&handoff, LONG_NS);
	af_handoff_rest(&handoff, LONG_NS);
	atomic_store(&handoff.attention, 0);
	atomic_store(&handoff.work_left, 1);
	af_handoff_doze(&handoff, LONG_NS);
	atomic_store(&handoff.work_left, 0);
	atomic_store(&handoff.driver_requested, 1);
	af_handoff_doze(&handoff, LONG_NS);
	CHECK_EQUAL(handoff.asleep, 0); /* and this was no minute */
	af_handoff_free(&handoff);
}

static void
a_rest_ends_by_the_control_plane_alone(void)
{
	pthread_t thread;
	uint64_t before;

	begin();
	before = af_now_ns();
	atomic_store(&handoff.posted, 1);
	af_handoff_rest(&handoff, 5 * MS);
	CHECK(af_now_ns() - before >= 5 * MS);
	CHECK(!pthread_create(&thread, NULL, rest_long, NULL));
	until_asleep();
	af_handoff_wake(&handoff); /* woken, it looks, and goes on */
	atomic_store(&handoff.attention, 1);
	af_handoff_wake(&handoff);
	pthread_join(thread, NULL);
	CHECK_EQUAL(handoff.asleep, 0);
	af_handoff_free(&handoff);
}

static void
a_parked_worker_sleeps_longer_each_time_unless_wanted(void)
{
	uint64_t ns = AF_PARK_FIRST_NS, before;

	begin();
	for (int i = 0; i < 4; i++) {
		before = af_now_ns();
		af_handoff_park(&handoff, &ns);
		CHECK(af_now_ns() - before >= AF_PARK_FIRST_NS << i);
		CHECK_EQUAL(ns, AF_PARK_FIRST_NS << (i + 1));
	}
	ns = LONG_NS;
	atomic_store(&handoff.posted, 1);
	af_handoff_park(&handoff, &ns); /* returns at once */
	CHECK_EQUAL(ns, AF_PARK_LONG_NS);
	atomic_store(&handoff.owned, 1);
	before = af_now_ns();
	ns = 2 * MS;
	af_handoff_park(&handoff, &ns); /* another one drives: it would see what was posted */
	CHECK(af_now_ns() - before >= 2 * MS);
	af_handoff_free(&handoff);
}

static void *
wait_long(void *arg)
{
	af_handoff_wait(&handoff, *(uint64_t *)arg, LONG_NS);
	return NULL;
}

static void
waiting_threads_see_every_event(void)
{
	uint64_t seen = 0;
	pthread_t thread;

	begin();
	CHECK(!pthread_create(&thread, NULL, wait_long, &seen));
	pthread_mutex_lock(&handoff.lock);
	af_handoff_notify(&handoff);
	pthread_mutex_unlock(&handoff.lock);
	pthread_join(thread, NULL); /* woken, or it came late and saw the generation */
	CHECK_EQUAL(handoff.generation, 1);
	af_handoff_wait(&handoff, 0, LONG_NS);
	seen = af_now_ns();
	af_handoff_wait(&handoff, 1, 2 * MS); /* nothing has happened since */
	CHECK(af_now_ns() - seen >= 2 * MS);
	af_handoff_free(&handoff);
}

static void
an_event_loop_hears_it_by_a_descriptor(void)
{
	begin();
	af_handoff_notify(&handoff);
	CHECK(!readable()); /* no event loop listens */
	atomic_store(&handoff.armed, 1);
	af_handoff_notify(&handoff);
	af_handoff_notify(&handoff);
	CHECK(readable());
	af_handoff_drain(&handoff);
	CHECK(!readable());
	af_handoff_drain(&handoff); /* does not block */
	CHECK_EQUAL(handoff.generation, 3);
	af_handoff_free(&handoff);
}

static void
the_clock_goes_forward(void)
{
	uint64_t before = af_now_ns(), wall = af_clock_ns(CLOCK_REALTIME);

	for (int i = 0; i < 1000; i++) {
		uint64_t now = af_now_ns();

		CHECK(now >= before);
		before = now;
	}
	CHECK(wall > 1600000000ull * 1000000000ull); /* nanoseconds */
}

CASES(CASE(the_turn_is_one_threads_at_a_time), CASE(threads_exclude_each_other_by_it),
      CASE(a_worker_has_work_by_any_of_three_flags), CASE(a_sleeping_loop_is_woken),
      CASE(a_loop_with_something_to_do_does_not_sleep), CASE(a_rest_ends_by_the_control_plane_alone),
      CASE(a_parked_worker_sleeps_longer_each_time_unless_wanted), CASE(waiting_threads_see_every_event),
      CASE(an_event_loop_hears_it_by_a_descriptor), CASE(the_clock_goes_forward))

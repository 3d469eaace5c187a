/* handoff.h: who drives a loop, and how threads that want something are heard. contend.c runs them against each other.
 */
#include <sched.h>

#include "aiflow/rt/handoff.h"

#include "check.h"

#define MS 1000000ull
#define LONG_NS (60000 * MS) /* no test waits so long: it is woken before */

static struct af_handoff handoff;
static struct af_nap nap;

static void
begin(uint32_t word)
{
	memset(&handoff, 0, sizeof handoff);
	nap = (struct af_nap){.ns = AF_NAP_FIRST_NS};
	CHECK(!af_handoff_init(&handoff));
	atomic_store(&handoff.word, word);
}

static void
end(uint32_t word)
{
	CHECK_EQUAL(atomic_load(&handoff.word), word);
	af_handoff_free(&handoff);
}

static bool
readable(int fd)
{
	struct pollfd poll_fd = {.fd = fd, .events = POLLIN};

	return poll(&poll_fd, 1, 0) == 1;
}

static void
until(uint32_t flags)
{
	while (!(atomic_load(&handoff.word) & flags))
		sched_yield();
}

static void
a_move_is_all_or_nothing(void)
{
	const struct af_handoff_move move = {.from = AF_FROM(AF_WORKER),
					     .unless = AF_POSTED,
					     .clear = AF_WORK_LEFT,
					     .set = AF_DOZES,
					     .to = AF_PARKED};
	uint32_t was;

	begin(AF_CALLER | AF_WORK_LEFT);
	CHECK(!af_handoff_move(&handoff, move, &was)); /* another drives */
	CHECK_EQUAL(was, AF_CALLER | AF_WORK_LEFT);
	end(AF_CALLER | AF_WORK_LEFT);
	begin(AF_WORKER | AF_WORK_LEFT | AF_POSTED);
	CHECK(!af_handoff_move(&handoff, move, &was)); /* a flag prevents it */
	end(AF_WORKER | AF_WORK_LEFT | AF_POSTED);
	begin(AF_WORKER | AF_WORK_LEFT | AF_ARMED);
	CHECK(af_handoff_move(&handoff, move, &was));
	end(AF_PARKED | AF_DOZES | AF_ARMED);
	begin(AF_CONTROL);
	CHECK_EQUAL(af_handoff_flag(&handoff, AF_POSTED, 0), AF_CONTROL);
	end(AF_CONTROL | AF_POSTED); /* flags keep the driver */
}

static void
each_move_is_allowed_from_its_drivers_only(void)
{
	const struct {
		struct af_handoff_move move;
		const char *from; /* P, W, C or X for control */
	} moves[] = {{af_move_acquire, "P"}, {af_move_request, "WCX"}, {af_move_release, "C"},   {af_move_sleep, "C"},
		     {af_move_enter, "P"},   {af_move_control, "PW"},  {af_move_served, "X"},    {af_move_leave, "W"},
		     {af_move_doze, "W"},    {af_move_nap, "P"},       {af_move_keep_away, "C"}, {af_move_rest, "WC"}};

	for (size_t i = 0; i < sizeof moves / sizeof *moves; i++) {
		for (uint32_t driver = AF_PARKED; driver <= AF_CONTROL; driver++) {
			bool allowed = strchr(moves[i].from, "PWCX"[driver]) != NULL;
			uint32_t was, to = moves[i].move.to == AF_SAME ? driver : moves[i].move.to;

			begin(driver);
			CHECK_EQUAL(af_handoff_move(&handoff, moves[i].move, &was), allowed);
			CHECK_EQUAL(handoff.word & AF_DRIVER, allowed ? to : driver);
			af_handoff_free(&handoff);
		}
	}
}

static void
one_thread_drives_at_a_time(void)
{
	begin(AF_PARKED);
	CHECK(af_handoff_acquire(&handoff));
	CHECK(!af_handoff_acquire(&handoff));
	af_handoff_release(&handoff, false);
	CHECK_EQUAL(af_handoff_enter(&handoff, &(struct af_nap){.driven = 1}), AF_WORKER);
	CHECK(!af_handoff_acquire(&handoff));
	CHECK(af_handoff_dozes(&handoff));
	CHECK(af_handoff_acquire(&handoff)); /* while the worker dozes */
	end(AF_CALLER | AF_DOZES);
}

static void
the_control_plane_comes_first(void)
{
	begin(AF_PARKED | AF_CONTROL_WANTED);
	CHECK(!af_handoff_acquire(&handoff));
	CHECK_EQUAL(af_handoff_enter(&handoff, &nap), AF_CONTROL);
	CHECK(!af_handoff_acquire(&handoff));
	af_handoff_flag(&handoff, 0, AF_CONTROL_WANTED);
	af_handoff_served(&handoff);
	CHECK_EQUAL(af_handoff_enter(&handoff, &nap), AF_WORKER);
	CHECK(!af_handoff_turns_to_control(&handoff));
	af_handoff_flag(&handoff, AF_CONTROL_WANTED, 0);
	CHECK(af_handoff_turns_to_control(&handoff));
	end(AF_CONTROL | AF_CONTROL_WANTED);
}

static void
a_thread_with_something_to_do_does_not_sleep(void)
{
	const uint32_t for_caller[] = {AF_POSTED, AF_CONTROL_WANTED},
		       for_worker[] = {AF_POSTED, AF_CONTROL_WANTED, AF_WORK_LEFT, AF_CALLER_WAITS};

	for (size_t i = 0; i < sizeof for_caller / sizeof *for_caller; i++) {
		begin(AF_CALLER | for_caller[i]);
		CHECK(!af_handoff_sleeps(&handoff));
		end(AF_CALLER | for_caller[i]);
	}
	for (size_t i = 0; i < sizeof for_worker / sizeof *for_worker; i++) {
		begin(AF_WORKER | for_worker[i]);
		CHECK(!af_handoff_dozes(&handoff));
		end(AF_WORKER | for_worker[i]);
	}
	nap.ns = LONG_NS;
	for (size_t i = 0; i < 3; i++) {
		begin(AF_PARKED | for_worker[i]);
		af_handoff_nap(&handoff, &(struct af_nap){.ns = LONG_NS}, 0); /* returns at once */
		end(AF_PARKED | for_worker[i]);
	}
}

static void
a_wake_up_reaches_whom_it_concerns_once(void)
{
	const struct {
		uint32_t word, left; /* before and after */
		bool rings, calls;
	} cases[] = {
		{AF_CALLER | AF_POSTED | AF_SLEEPS, AF_CALLER | AF_POSTED, true, false},
		{AF_CALLER | AF_POSTED | AF_AWAY, AF_CALLER | AF_POSTED | AF_AWAY, false, false}, /* it is awake */
		{AF_CALLER | AF_POSTED | AF_DOZES, AF_CALLER | AF_POSTED | AF_DOZES, false, false},
		{AF_PARKED | AF_POSTED | AF_DOZES, AF_PARKED | AF_POSTED | AF_DOZES, true, false},
		{AF_PARKED | AF_POSTED | AF_AWAY | AF_CALL_WORKER, AF_PARKED | AF_POSTED, false, true},
		{AF_WORKER | AF_POSTED, AF_WORKER | AF_POSTED, false, false},
		{AF_WORKER | AF_POSTED | AF_RESTS, AF_WORKER | AF_POSTED | AF_RESTS, false, false},
		{AF_WORKER | AF_CONTROL_WANTED | AF_RESTS, AF_WORKER | AF_CONTROL_WANTED, true, false},
		{AF_CALLER | AF_CONTROL_WANTED | AF_SLEEPS | AF_AWAY, AF_CALLER | AF_CONTROL_WANTED | AF_AWAY, true,
		 false},
	};

	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		begin(cases[i].word);
		for (int twice = 0; twice < 2; twice++) {
			af_handoff_wake(&handoff);
			CHECK_EQUAL(handoff.calls, cases[i].calls);
			CHECK_EQUAL(readable(handoff.wake_fd), cases[i].rings && (!twice || cases[i].left & AF_DOZES));
			af_handoff_drain_fd(handoff.wake_fd);
		}
		end(cases[i].left);
	}
}

static void
a_release_calls_the_worker_for_what_is_left(void)
{
	begin(AF_CALLER | AF_AWAY);
	af_handoff_release(&handoff, false);
	CHECK(!handoff.calls && handoff.driven == 1 && handoff.generation == 0); /* no system call */
	end(AF_PARKED | AF_AWAY);
	begin(AF_CALLER | AF_AWAY);
	af_handoff_release(&handoff, true);
	CHECK_EQUAL(handoff.calls, 1);
	end(AF_PARKED | AF_WORK_LEFT);
	begin(AF_CALLER | AF_AWAY | AF_CONTROL_WANTED);
	af_handoff_release(&handoff, false);
	CHECK_EQUAL(handoff.calls, 1);
	end(AF_PARKED | AF_CONTROL_WANTED);
	begin(AF_CALLER | AF_AWAY | AF_CALL_WORKER);
	af_handoff_release(&handoff, false);
	CHECK_EQUAL(handoff.calls, 1);
	end(AF_PARKED);
	begin(AF_CALLER | AF_CALLER_WAITS);
	af_handoff_release(&handoff, false);
	CHECK_EQUAL(handoff.generation, 1); /* the other caller is told */
	end(AF_PARKED);
}

static void
a_caller_asks_the_driver_for_the_loop(void)
{
	begin(AF_PARKED);
	CHECK(!af_handoff_request(&handoff)); /* it is free */
	end(AF_PARKED);
	begin(AF_WORKER);
	CHECK(af_handoff_request(&handoff));
	af_handoff_leave(&handoff, &nap);
	CHECK_EQUAL(handoff.generation, 1);
	end(AF_PARKED);
	begin(AF_PARKED | AF_CONTROL_WANTED);
	CHECK(af_handoff_request(&handoff)); /* the worker comes */
	end(AF_PARKED | AF_CONTROL_WANTED | AF_CALLER_WAITS);
}

static void
naps_grow_while_callers_come_and_go(void)
{
	uint64_t ns[] = {AF_NAP_FIRST_NS, 4 * AF_NAP_FIRST_NS, 16 * AF_NAP_FIRST_NS, AF_NAP_MOST_NS, AF_NAP_MOST_NS};

	begin(AF_PARKED);
	for (uint64_t i = 0; i < sizeof ns / sizeof *ns; i++) {
		uint64_t before = af_now_ns();

		CHECK_EQUAL(nap.ns, ns[i]);
		af_handoff_nap(&handoff, &nap, i + 1);
		CHECK(af_now_ns() - before >= ns[i]);
		CHECK(nap.driven == i + 1 && !nap.same);
	}
	CHECK_EQUAL(af_handoff_enter(&handoff, &(struct af_nap){.ns = 1}), AF_WORKER);
	end(AF_WORKER);
}

static void *
enter(void *unused)
{
	CHECK_EQUAL(af_handoff_enter(&handoff, &nap), AF_WORKER);
	return unused;
}

/* During one long drive it sleeps until the release, which the caller then tells. */
static void
a_long_drive_calls_the_worker_at_its_end(void)
{
	pthread_t thread;

	begin(AF_CALLER);
	CHECK(!pthread_create(&thread, NULL, enter, NULL));
	until(AF_CALL_WORKER);
	CHECK(atomic_load(&handoff.word) & AF_AWAY);
	af_handoff_release(&handoff, false);
	pthread_join(thread, NULL);
	CHECK_EQUAL(handoff.calls, 1);
	CHECK_EQUAL(nap.ns, AF_NAP_FIRST_NS);
	end(AF_WORKER);
}

static void *
rest_long(void *unused)
{
	af_handoff_rest(&handoff, LONG_NS);
	return unused;
}

static void
a_rest_ends_by_the_control_plane_alone(void)
{
	pthread_t thread;
	uint64_t before;

	begin(AF_WORKER | AF_POSTED);
	before = af_now_ns();
	af_handoff_ring(&handoff); /* of an earlier sleep */
	af_handoff_rest(&handoff, 5 * MS);
	CHECK(af_now_ns() - before >= 5 * MS);
	CHECK(!pthread_create(&thread, NULL, rest_long, NULL));
	until(AF_RESTS);
	af_handoff_wake(&handoff);
	CHECK(!readable(handoff.wake_fd));
	af_handoff_flag(&handoff, AF_CONTROL_WANTED, 0);
	af_handoff_wake(&handoff);
	pthread_join(thread, NULL);
	end(AF_WORKER | AF_POSTED | AF_CONTROL_WANTED);
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

	begin(AF_PARKED);
	CHECK(!pthread_create(&thread, NULL, wait_long, &seen));
	af_handoff_tell(&handoff);
	pthread_join(thread, NULL); /* woken, or it came late and saw the generation */
	CHECK_EQUAL(handoff.generation, 1);
	af_handoff_wait(&handoff, 0, LONG_NS);
	seen = af_now_ns();
	af_handoff_wait(&handoff, 1, 2 * MS); /* nothing has happened since */
	CHECK(af_now_ns() - seen >= 2 * MS);
	end(AF_PARKED);
}

static void
a_driver_that_sleeps_hears_of_events_of_others(void)
{
	begin(AF_CALLER);
	af_handoff_tell(&handoff);
	CHECK(!readable(handoff.wake_fd));
	CHECK(af_handoff_sleeps(&handoff));
	af_handoff_tell(&handoff);
	CHECK(readable(handoff.wake_fd));
	af_handoff_woke(&handoff);
	end(AF_CALLER);
}

static void
an_event_loop_hears_it_by_a_descriptor(void)
{
	begin(AF_PARKED);
	af_handoff_notify(&handoff);
	CHECK(!readable(handoff.event_fd)); /* no event loop listens */
	af_handoff_flag(&handoff, AF_ARMED, 0);
	af_handoff_notify(&handoff);
	af_handoff_notify(&handoff);
	CHECK(readable(handoff.event_fd));
	af_handoff_drain_fd(handoff.event_fd);
	CHECK(!readable(handoff.event_fd));
	af_handoff_drain_fd(handoff.event_fd); /* does not block */
	CHECK_EQUAL(handoff.generation, 3);
	end(AF_PARKED | AF_ARMED);
}

static void
what_was_posted_is_taken_once(void)
{
	begin(AF_CALLER);
	CHECK(!af_handoff_take_posted(&handoff));
	af_handoff_post(&handoff);
	af_handoff_post(&handoff);
	CHECK(af_handoff_take_posted(&handoff));
	CHECK(!af_handoff_take_posted(&handoff));
	end(AF_CALLER);
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

CASES(CASE(a_move_is_all_or_nothing), CASE(each_move_is_allowed_from_its_drivers_only),
      CASE(one_thread_drives_at_a_time), CASE(the_control_plane_comes_first),
      CASE(a_thread_with_something_to_do_does_not_sleep), CASE(a_wake_up_reaches_whom_it_concerns_once),
      CASE(a_release_calls_the_worker_for_what_is_left), CASE(a_caller_asks_the_driver_for_the_loop),
      CASE(naps_grow_while_callers_come_and_go), CASE(a_long_drive_calls_the_worker_at_its_end),
      CASE(a_rest_ends_by_the_control_plane_alone), CASE(waiting_threads_see_every_event),
      CASE(a_driver_that_sleeps_hears_of_events_of_others), CASE(an_event_loop_hears_it_by_a_descriptor),
      CASE(what_was_posted_is_taken_once), CASE(the_clock_goes_forward))

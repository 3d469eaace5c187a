/* idle.h: spin, then yield, then sleep, a little longer each time. */
#include "aiflow/rt/idle.h"

#include "check.h"

#define MS 1000000ull

static void
it_spins_then_yields_then_sleeps(void)
{
	struct af_idle idle = {0};
	uint64_t base = 1000 * MS;

	af_idle_begin(&idle, base);
	for (uint64_t at = 0; at < AF_YIELD_NS; at += 1000) {
		idle.shared_ns = 0; /* a busy machine's yields take long */
		CHECK_EQUAL(af_idle_step(&idle, base + at), 0);
	}
	idle.shared_ns = 0;
	CHECK_EQUAL(af_idle_step(&idle, base + AF_YIELD_NS), AF_SLEEP_FIRST_NS);
	CHECK_EQUAL(af_idle_step(&idle, base + AF_YIELD_NS + 1000), AF_SLEEP_FIRST_NS / 8 * 9); /* an eighth longer */
}

static void
a_sleep_grows_to_its_bounds(void)
{
	struct af_idle idle = {0};
	uint64_t now = 1000 * MS, before = 0;

	af_idle_begin(&idle, now);
	now += AF_YIELD_NS;
	for (int i = 0; i < 200; i++) {
		uint64_t ns = af_idle_step(&idle, now);

		CHECK(ns >= before);
		CHECK(ns <= AF_SLEEP_LONG_NS);
		if (now - 1000 * MS < 64 * AF_SLEEP_MOST_NS)
			CHECK(ns <= AF_SLEEP_MOST_NS);
		before = ns;
		now += ns;
	}
	CHECK_EQUAL(before, AF_SLEEP_LONG_NS); /* after a third of a second */
}

static void
work_shortens_the_next_sleep_by_its_amount(void)
{
	struct af_idle idle = {.sleep_ns = 800000};

	af_idle_worked(&idle, 5 * MS, 1); /* a heartbeat */
	CHECK_EQUAL(idle.sleep_ns, 200000);
	CHECK_EQUAL(idle.worked_ns, 5 * MS);
	af_idle_worked(&idle, 6 * MS, 4); /* a stream */
	CHECK_EQUAL(idle.sleep_ns, 0);
	idle.sleep_ns = 800000;
	af_idle_begin(&idle, 7 * MS);
	CHECK(!idle.sleep_ns && idle.worked_ns == 7 * MS);
}

static void
on_a_shared_core_it_sleeps_at_once(void)
{
	struct af_idle idle = {0};

	af_idle_begin(&idle, 1000 * MS);
	idle.shared_ns = 1000 * MS + AF_SHARED_NS;
	CHECK_EQUAL(af_idle_step(&idle, 1000 * MS), AF_SLEEP_SHARED_NS);
	idle.sleep_ns = 0;
	idle.worked_ns = idle.shared_ns;
	CHECK_EQUAL(af_idle_step(&idle, idle.shared_ns), 0); /* no longer */
}

static void
timers_become_exact_and_go_back(void)
{
	unsigned long was;

	CHECK(!prctl(PR_SET_TIMERSLACK, 70000, 0, 0, 0));
	was = af_idle_exact_timers();
	CHECK_EQUAL(was, 70000);
	CHECK_EQUAL(prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0), AF_TIMER_SLACK_NS);
	af_idle_timers_as(was);
	CHECK_EQUAL(prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0), 70000);
}

CASES(CASE(it_spins_then_yields_then_sleeps), CASE(a_sleep_grows_to_its_bounds),
      CASE(work_shortens_the_next_sleep_by_its_amount), CASE(on_a_shared_core_it_sleeps_at_once),
      CASE(timers_become_exact_and_go_back))

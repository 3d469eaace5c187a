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
	af_idle_worked(&idle, 6 * MS, AF_STREAM);
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

/* One long yield may be an interrupt, or the worker that looked around. */
static void
two_long_yields_in_a_row_make_a_shared_core(void)
{
	struct af_idle idle = {0};
	uint64_t now = 1000 * MS, took = AF_LONG_YIELD_NS + 1;

	af_idle_yielded(&idle, now, now + took);
	CHECK_EQUAL(idle.shared_ns, 0);
	now += took + AF_IN_A_ROW_NS;
	af_idle_yielded(&idle, now, now + took); /* too long after the first */
	CHECK_EQUAL(idle.shared_ns, 0);
	now += took + AF_IN_A_ROW_NS - 1;
	af_idle_yielded(&idle, now, now + AF_LONG_YIELD_NS); /* not long */
	CHECK_EQUAL(idle.shared_ns, 0);
	af_idle_yielded(&idle, now, now + 3 * MS);
	CHECK_EQUAL(idle.shared_ns, now + 3 * MS + AF_SHARED_NS);
}

/* A heartbeat and its answer end a long sleep, and no spinning follows. A conversation has more frames, with pauses
 * that plan long sleeps and end soon. */
static void
a_heartbeat_in_the_quiet_is_no_reason_to_spin(void)
{
	struct af_idle idle = {0};
	uint64_t now = 1000 * MS;

	CHECK_EQUAL(af_idle_sleep(&idle, now, 30000, now + AF_QUIET_NS), AF_QUIET_NS);
	now += AF_QUIET_NS;
	for (int frames = 0; frames < 2; frames++, now += 50000) {
		af_idle_worked(&idle, now, 1);
		CHECK(af_idle_step(&idle, now + 1000) > 0);
		CHECK(af_idle_sleep(&idle, now + 1000, 30000, now + AF_HEARTBEAT_NS) > AF_QUIET_NS);
	}
	af_idle_worked(&idle, now, 1);
	CHECK_EQUAL(af_idle_step(&idle, now + 1000), 0);
}

static void
a_loop_that_ports_can_wake_sleeps_until_something_is_due(void)
{
	struct af_idle idle = {0};
	uint64_t now = 1000 * MS, backoff = 30000;

	CHECK_EQUAL(af_idle_sleep(&idle, now, backoff, AF_DUE_UNKNOWN), backoff);
	CHECK_EQUAL(af_idle_sleep(&idle, now, backoff, now + 7 * MS), 7 * MS);
	CHECK_EQUAL(af_idle_sleep(&idle, now, backoff, UINT64_MAX), AF_SLEEP_QUIET_NS);
	CHECK_EQUAL(af_idle_sleep(&idle, now, backoff, now + 1), AF_SLEEP_FIRST_NS); /* too near */
	CHECK(!idle.alone);
}

/* What is overdue gets one more iteration. A due time that is wrong costs no more than the back-off. */
static void
what_is_overdue_is_tried_once(void)
{
	struct af_idle idle = {0};
	uint64_t now = 1000 * MS, backoff = 30000;

	CHECK_EQUAL(af_idle_sleep(&idle, now, backoff, now), 0);
	CHECK_EQUAL(af_idle_sleep(&idle, now, backoff, now), backoff);
	CHECK_EQUAL(af_idle_sleep(&idle, now, backoff, now - MS), backoff);
	af_idle_worked(&idle, now, 1);
	CHECK_EQUAL(af_idle_sleep(&idle, now, backoff, now), 0);
}

/* A packet socket stays readable while the pool has no mbuf for its frames. */
static void
ports_that_wake_it_for_nothing_are_not_heard(void)
{
	struct af_idle idle = {.vain = AF_VAIN_MOST};

	CHECK_EQUAL(af_idle_sleep(&idle, MS, 30000, 50 * MS), 30000);
	CHECK(idle.alone);
	af_idle_worked(&idle, MS, 1);
	CHECK_EQUAL(af_idle_sleep(&idle, MS, 30000, 50 * MS), 49 * MS);
	CHECK(!idle.alone);
}

static void
a_stream_on_a_shared_core_is_collected(void)
{
	struct af_idle idle = {0};

	af_idle_worked(&idle, MS, AF_STREAM);
	CHECK_EQUAL(af_idle_sleep(&idle, MS, 30000, 50 * MS), 49 * MS); /* the core is its own */
	idle.shared_ns = 5 * MS;
	CHECK_EQUAL(af_idle_sleep(&idle, MS, AF_SLEEP_SHARED_NS, 50 * MS), AF_SLEEP_SHARED_NS);
	CHECK(idle.alone);
	af_idle_worked(&idle, MS, 1); /* a single frame may be an answer */
	CHECK_EQUAL(af_idle_sleep(&idle, MS, AF_SLEEP_SHARED_NS, 50 * MS), 49 * MS);
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
      CASE(two_long_yields_in_a_row_make_a_shared_core), CASE(a_heartbeat_in_the_quiet_is_no_reason_to_spin),
      CASE(a_loop_that_ports_can_wake_sleeps_until_something_is_due), CASE(what_is_overdue_is_tried_once),
      CASE(ports_that_wake_it_for_nothing_are_not_heard), CASE(a_stream_on_a_shared_core_is_collected),
      CASE(timers_become_exact_and_go_back))

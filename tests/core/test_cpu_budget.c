/* cpu_budget.h: a loop that may use only a part of the processor. */
#include "aiflow/rt/cpu_budget.h"

#include "check.h"

#define MS 1000000ull

/* Use processor time of this thread. */
static void
burn(uint64_t ns)
{
	uint64_t until = af_clock_ns(CLOCK_THREAD_CPUTIME_ID) + ns;

	while (af_clock_ns(CLOCK_THREAD_CPUTIME_ID) < until)
		;
}

static void
it_looks_at_the_clock_now_and_then(void)
{
	struct af_cpu_budget q = {.cores = 0.5, .wall_ns = 1000 * MS, .saved_ns = -1e9};

	CHECK_EQUAL(af_cpu_budget_rest(&q, 1000 * MS + AF_CPU_BUDGET_LOOK_NS - 1), 0);
	CHECK_EQUAL(q.wall_ns, 1000 * MS);
	CHECK_EQUAL(af_cpu_budget_rest(&q, 1000 * MS + AF_CPU_BUDGET_LOOK_NS), AF_CPU_BUDGET_REST_MOST_NS);
	CHECK_EQUAL(q.rests, 1);
}

static void
it_rests_for_what_it_owes(void)
{
	struct af_cpu_budget q = {.cores = 0.25};
	uint64_t now = 1000 * MS;

	q.wall_ns = now;
	af_cpu_budget_begin(&q);
	burn(2 * MS);
	now += 2 * MS; /* of time passed: it used all of it, and may use a quarter */
	CHECK_NEAR((double)af_cpu_budget_rest(&q, now), 1.5 * MS / 0.25, 0.2);
	CHECK_EQUAL(q.rests, 1);
}

static void
time_that_passes_is_earned_but_not_saved_up(void)
{
	struct af_cpu_budget q = {.cores = 1, .wall_ns = 1000 * MS};

	af_cpu_budget_begin(&q);
	CHECK_EQUAL(af_cpu_budget_rest(&q, 100000 * MS), 0);
	CHECK(q.saved_ns == AF_CPU_BUDGET_SAVED_NS);
	CHECK_EQUAL(q.rests, 0);
}

static void
a_driver_that_stops_pays_for_what_it_used(void)
{
	struct af_cpu_budget q = {.cores = 0.5};

	af_cpu_budget_begin(&q);
	burn(3 * MS);
	af_cpu_budget_end(&q);
	CHECK(q.saved_ns <= -3.0 * MS && q.saved_ns > -100.0 * MS);
}

static void
without_a_limit_nothing_is_counted(void)
{
	struct af_cpu_budget q = {0};

	af_cpu_budget_begin(&q);
	burn(MS);
	af_cpu_budget_end(&q);
	CHECK(q.saved_ns == 0 && q.cpu_ns == 0);
}

static void
over_time_a_share_is_kept(void)
{
	struct af_cpu_budget q = {.cores = 0.3};
	uint64_t used = 0, now = 1000 * MS, cpu;

	q.wall_ns = now;
	af_cpu_budget_begin(&q);
	for (int i = 0; i < 100; i++) { /* wall time as if nothing else ran */
		cpu = af_clock_ns(CLOCK_THREAD_CPUTIME_ID);
		burn(AF_CPU_BUDGET_LOOK_NS);
		cpu = af_clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
		used += cpu;
		now += cpu;
		now += af_cpu_budget_rest(&q, now);
	}
	CHECK_NEAR((double)used / (double)(now - 1000 * MS), 0.3, 0.25);
	CHECK(q.rests > 10);
}

CASES(CASE(it_looks_at_the_clock_now_and_then), CASE(it_rests_for_what_it_owes),
      CASE(time_that_passes_is_earned_but_not_saved_up), CASE(a_driver_that_stops_pays_for_what_it_used),
      CASE(without_a_limit_nothing_is_counted), CASE(over_time_a_share_is_kept))

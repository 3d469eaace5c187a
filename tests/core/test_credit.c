/* credit.h: how much a port and the link behind it can take. */
#include "aiflow/rx/credit.h"

#include "check.h"

#define MS 1000000ull

/* Intervals in which a link of `rate` bytes/ns was used, with this standing delay. */
static void
intervals(struct af_credit *c, int count, double rate, double delay_ns, double most)
{
	for (int i = 0; i < count; i++) {
		c->bytes = (uint64_t)(rate * AF_CREDIT_NS);
		c->frames = c->bytes / 1514;
		af_credit_step(c, delay_ns, AF_CREDIT_NS, 1, most);
	}
}

static void
the_window_settles_where_the_queue_is_what_it_may_be(void)
{
	struct af_credit c = {.window = AF_FIRST_WINDOW};
	double rate = 0.125, base_ns = 100000, before; /* 1 Gbit/s */

	for (int i = 0; i < 500; i++) { /* what does not fit on the way waits, and shows as delay */
		double waiting = c.window * 1514 - rate * base_ns;

		intervals(&c, 1, rate, waiting > 0 ? waiting / rate : 0, 10000);
	}
	before = c.window;
	CHECK_NEAR(c.window * 1514 - rate * base_ns, AF_CREDIT_QUEUE, 0.05);
	intervals(&c, 1, rate, (before * 1514 - rate * base_ns) / rate, 10000);
	CHECK_NEAR(c.window, before, 0.01);
	CHECK_NEAR(c.rate, rate, 0.01);
}

static void
without_delay_it_grows_to_its_bounds_and_with_delay_it_shrinks(void)
{
	struct af_credit c = {.window = AF_FIRST_WINDOW};
	double before = c.window;

	intervals(&c, 1, 0.01, 0, 10000);
	CHECK(c.window - before == 2); /* at most, while it is small */
	intervals(&c, 5000, 0.01, 0, 10000);
	CHECK_NEAR(c.window, (AF_CREDIT_QUEUE + 0.01 * AF_CREDIT_PIPE_NS) / 1514, 0.01);
	intervals(&c, 1000, 0.01, 1e9, 10000); /* all of it waits, and that may be so much */
	CHECK_NEAR(c.window, AF_CREDIT_QUEUE / 1514, 0.01);
	c = (struct af_credit){.window = 90};
	intervals(&c, 1, 0.001, 1e9, 10000);
	CHECK_NEAR(c.window, 75, 0.001); /* by a sixth, at most */
	intervals(&c, 1000, 0.001, 1e9, 10000);
	CHECK_NEAR(c.window, AF_CREDIT_LEAST, 0.01);
	intervals(&c, 1000, 1, 1e9, 10000); /* a fast link needs more to stay busy */
	CHECK_NEAR(c.window, AF_CREDIT_PIPE_NS / 1514, 0.02);
}

static void
the_ring_is_never_exceeded(void)
{
	struct af_credit c = {.window = 8};

	for (int i = 0; i < 2000; i++) {
		intervals(&c, 1, 0.001 + check_random(1000) / 1000.0, check_random(100000000), 10);
		CHECK(c.window <= 10 && c.window > 0);
	}
}

static void
a_pause_says_nothing(void)
{
	struct af_credit c = {.window = 50, .frames = 1000, .bytes = 1514000}, before = c;

	af_credit_step(&c, 1e9, 11 * AF_CREDIT_NS, 1, 1000);
	CHECK(!memcmp(&c, &before, sizeof c));
	c.frames = c.bytes = 0;
	af_credit_step(&c, 1e9, AF_CREDIT_NS, 1, 1000);
	CHECK(c.window == 50);
}

static void
a_loss_takes_a_quarter_off_at_once_and_once(void)
{
	struct af_credit c = {.window = 100, .frame = 1514};
	struct af_trial t = {0};

	CHECK(af_trial_hole(&t, &c, 1000, 999, 1000 * MS));
	CHECK(c.window == 75);
	CHECK(t.ceiling == 75 && t.before == 100);
	CHECK(!af_trial_hole(&t, &c, 1001, 999, 1001 * MS)); /* the trial is on */
	CHECK(c.window == 75);
}

static void
losses_that_the_trial_ends_leave_a_ceiling_that_rises(void)
{
	struct af_credit c = {.window = 100, .frame = 1514};
	struct af_trial t = {.sent = 999, .arrived = 999};
	uint64_t now = 1000 * MS, sent = 1000, arrived = 999;

	CHECK(af_trial_hole(&t, &c, sent, arrived, now));
	t.sent = sent;
	t.arrived = arrived;
	t.first_arrived = arrived + 1; /* one number was lost for good since */
	while (now < 1000 * MS + AF_TRIAL_NS + 2 * AF_CREDIT_NS) {
		now += AF_CREDIT_NS;
		sent += 100;
		arrived += 100;
		c.window += 5; /* the credit law would like more */
		af_trial_step(&t, &c, sent, arrived, now);
		CHECK(c.window <= 75);
	}
	CHECK(!t.until_ns && t.ceiling == 75);
	now += AF_HOLD_NS;
	af_trial_step(&t, &c, sent, arrived, now);
	CHECK_NEAR(t.ceiling, 75 * 1.1, 1e-9);
}

static void
losses_that_go_on_are_not_the_queues(void)
{
	struct af_credit c = {.window = 100, .frame = 1514};
	struct af_trial t = {0};
	uint64_t now = 1000 * MS, sent = 1000, arrived = 999;

	t.sent = sent;
	t.arrived = arrived;
	CHECK(af_trial_hole(&t, &c, sent, arrived, now));
	for (int i = 0; i < 5 && t.until_ns; i++) { /* a hundredth is lost, whatever is in flight */
		now += 2 * AF_CREDIT_NS;
		sent += 1000;
		arrived += 990;
		af_trial_step(&t, &c, sent, arrived, now);
	}
	CHECK(!t.until_ns && !t.ceiling);
	CHECK(c.window == 100);
	CHECK(!af_trial_hole(&t, &c, sent, arrived, now + AF_IMMUNE_NS - 1));
	CHECK(af_trial_hole(&t, &c, sent, arrived, now + AF_IMMUNE_NS));
}

static void
a_delay_is_measured_from_the_least_ever(void)
{
	struct af_delay d = {0};

	CHECK(af_delay_standing(&d) == 0);
	af_delay_note(&d, -5000000, 1); /* clocks may disagree */
	CHECK(af_delay_standing(&d) == 0);
	d.any = false; /* the next interval */
	af_delay_note(&d, -3000000, 2);
	af_delay_note(&d, -3500000, 3);
	af_delay_note(&d, -2000000, 4);
	CHECK(af_delay_standing(&d) == 1500000);
	CHECK_EQUAL(d.met_ns, 1);
	af_delay_note(&d, -5000000 + AF_BASE_NEAR - 1, 5);
	CHECK_EQUAL(d.met_ns, 5);
}

static void
a_strangers_clock_overflows_nothing(void)
{
	struct af_delay d = {0};

	af_delay_note(&d, INT64_MIN, 1);
	d.any = false;
	af_delay_note(&d, INT64_MAX, 2);
	CHECK_NEAR(af_delay_standing(&d), 2.0 * AF_DELAY_MOST, 1e-9);
}

CASES(CASE(the_window_settles_where_the_queue_is_what_it_may_be),
      CASE(without_delay_it_grows_to_its_bounds_and_with_delay_it_shrinks), CASE(the_ring_is_never_exceeded),
      CASE(a_pause_says_nothing), CASE(a_loss_takes_a_quarter_off_at_once_and_once),
      CASE(losses_that_the_trial_ends_leave_a_ceiling_that_rises), CASE(losses_that_go_on_are_not_the_queues),
      CASE(a_delay_is_measured_from_the_least_ever), CASE(a_strangers_clock_overflows_nothing))

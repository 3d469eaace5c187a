/* pacer.h: the gaps between a port's frames. */
#include "aiflow/path/pacer.h"

#include "check.h"

#define MS 1000000ull

/* Send frames of `nbytes` whenever they are due, looked at every `step` ns, for `ns`; how many went. */
static uint64_t
frames_in(struct af_pace *pace, uint32_t nbytes, uint64_t from, uint64_t ns, uint64_t step)
{
	uint64_t count = 0;

	for (uint64_t now = from; now < from + ns; now += step)
		while (af_pace_due(pace, now)) {
			af_pace_take(pace, nbytes, now);
			count++;
		}
	return count;
}

static void
the_rate_is_kept_whatever_the_step_of_the_loop(void)
{
	static const uint64_t steps[] = {100, 1000, 7777, 100000, 900000};

	for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
		struct af_pace pace = {.byte_ns = 8, .slack_ns = 1000000}; /* 1 Gbit/s */

		af_pace_reset(&pace);
		frames_in(&pace, 1500, 1000 * MS, 100 * MS, steps[i]);
		CHECK_NEAR((double)frames_in(&pace, 1500, 1100 * MS, 1000 * MS, steps[i]), 1e9 / 12000, 0.005);
	}
}

static void
a_frame_gap_is_the_least_gap(void)
{
	struct af_pace pace = {.frame_ns = 10000, .byte_ns = 8};

	af_pace_reset(&pace);
	CHECK_NEAR((double)frames_in(&pace, 60, 1000 * MS, 1000 * MS, 500), 100000, 0.01); /* by frames */
	CHECK_EQUAL(pace.gap_ns, 10000);
	af_pace_take(&pace, 2000, 2000 * MS);
	CHECK_EQUAL(pace.gap_ns, 16000); /* by bytes */
}

static void
without_a_gap_everything_is_due(void)
{
	struct af_pace pace = {0};

	for (uint64_t now = 1; now < 1000; now++) {
		CHECK(af_pace_due(&pace, now));
		af_pace_take(&pace, 65000, now);
	}
	CHECK_EQUAL(pace.due_ns, 0);
}

static void
an_idle_port_saves_nothing_up(void)
{
	struct af_pace pace = {.frame_ns = 100000, .slack_ns = 0};
	uint64_t now = 1000 * MS;

	af_pace_reset(&pace);
	frames_in(&pace, 60, now, 10 * MS, 1000);
	now += 10 * MS + 100 * AF_PACE_IDLE_NS;
	CHECK_EQUAL(frames_in(&pace, 60, now, 1000, 1000), 1); /* no burst for the pause */
	CHECK_EQUAL(pace.due_ns, now + 100000);
}

static void
a_bucket_fills_up_to_the_slack(void)
{
	struct af_pace pace = {.byte_ns = 8, .slack_ns = 120000}; /* ten frames of 1500 bytes */
	uint64_t now = 10000 * MS;

	af_pace_reset(&pace);
	CHECK_EQUAL(frames_in(&pace, 1500, now, 1, 1), 11); /* a full bucket, and the one that is due */
	CHECK_EQUAL(frames_in(&pace, 1500, now + 12000, 1, 1), 1);
}

/* `count` frames were sent since the last call, of which `lost` did not arrive. */
static void
report(struct af_pace *pace, uint64_t *sent, uint64_t *arrived, uint64_t count, uint64_t lost, uint64_t *now)
{
	*sent += count;
	*arrived += count - lost;
	*now += MS;
	af_pace_on_feedback(pace, *sent, *arrived, *sent, *now);
}

static void
loss_widens_the_gap_by_its_gain(void)
{
	struct af_pace pace = {.frame_ns = 1000, .gain = 4, .threshold = 0.01};
	uint64_t sent = 0, arrived = 0, now = 1000 * MS;

	af_pace_reset(&pace);
	report(&pace, &sent, &arrived, 10, 0, &now); /* the measurement begins */
	report(&pace, &sent, &arrived, AF_PACE_WINDOW, AF_PACE_WINDOW / 4, &now);
	CHECK_NEAR(pace.widened, 1 + 4 * 0.25, 1e-9);
	CHECK_EQUAL(pace.signals, 1);
	af_pace_take(&pace, 60, now);
	CHECK_NEAR(pace.gap_ns, 2000, 1e-9);
}

static void
a_smaller_loss_never_shortens_the_gap(void)
{
	struct af_pace pace = {.frame_ns = 1000, .gain = 4, .threshold = 0.01};
	uint64_t sent = 0, arrived = 0, now = 1000 * MS;
	double before;

	af_pace_reset(&pace);
	report(&pace, &sent, &arrived, 10, 0, &now);
	report(&pace, &sent, &arrived, AF_PACE_WINDOW, AF_PACE_WINDOW / 2, &now);
	before = pace.widened;
	report(&pace, &sent, &arrived, 10, 0, &now); /* frames that left at the new gap */
	report(&pace, &sent, &arrived, AF_PACE_WINDOW, AF_PACE_WINDOW / 16, &now);
	CHECK_EQUAL(pace.signals, 2);
	CHECK_NEAR(pace.widened, before, 1e-9);
}

static void
frames_that_were_in_flight_at_the_widening_do_not_count(void)
{
	struct af_pace pace = {.frame_ns = 1000, .gain = 4, .threshold = 0.01};
	uint64_t now = 1000 * MS;
	double before;

	af_pace_reset(&pace);
	af_pace_on_feedback(&pace, 10, 10, 1000, now);
	af_pace_on_feedback(&pace, 10 + AF_PACE_WINDOW, 10 + AF_PACE_WINDOW / 2, 1000, now += MS);
	before = pace.widened;
	CHECK(before > 2.9);
	for (uint64_t next = 200; next < 1000; next += 150) /* all of them lost, all sent at the old gap */
		af_pace_on_feedback(&pace, next, 74, 2000, now += MS / 10);
	CHECK_NEAR(pace.widened, before, 1e-9);
	CHECK_EQUAL(pace.signals, 1);
}

static void
without_loss_the_gap_recovers_by_eighths(void)
{
	struct af_pace pace = {.frame_ns = 1000, .gain = 4, .threshold = 0.01};
	uint64_t sent = 0, arrived = 0, now = 1000 * MS;

	af_pace_reset(&pace);
	pace.widened = 3;
	pace.step_ns = now;
	report(&pace, &sent, &arrived, 1, 0, &now);
	CHECK_NEAR(pace.widened, 3, 1e-9); /* the first step is due after AF_PACE_STEP_NS */
	now += AF_PACE_STEP_NS;
	report(&pace, &sent, &arrived, 1, 0, &now);
	CHECK_NEAR(pace.widened, 3 - 2.0 / 8, 1e-9);
	for (int i = 0; i < 100; i++) {
		now += AF_PACE_STEP_NS;
		report(&pace, &sent, &arrived, 1, 0, &now);
	}
	CHECK(pace.widened == 1);
}

static void
without_a_gain_losses_are_ignored(void)
{
	struct af_pace pace = {.frame_ns = 1000};
	uint64_t sent = 0, arrived = 0, now = 1000 * MS;

	af_pace_reset(&pace);
	for (int i = 0; i < 10; i++)
		report(&pace, &sent, &arrived, 1000, 900, &now);
	CHECK(pace.widened == 1 && pace.signals == 0);
}

CASES(CASE(the_rate_is_kept_whatever_the_step_of_the_loop), CASE(a_frame_gap_is_the_least_gap),
      CASE(without_a_gap_everything_is_due), CASE(an_idle_port_saves_nothing_up), CASE(a_bucket_fills_up_to_the_slack),
      CASE(loss_widens_the_gap_by_its_gain), CASE(a_smaller_loss_never_shortens_the_gap),
      CASE(frames_that_were_in_flight_at_the_widening_do_not_count), CASE(without_loss_the_gap_recovers_by_eighths),
      CASE(without_a_gain_losses_are_ignored))

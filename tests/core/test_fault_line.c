/* fault_line.h: faults made on purpose, the same ones for the same seed. */
#include "aiflow/rt/fault_line.h"

#include "check.h"

#define MS 1000000ull
#define ALL 0xffffu
#define FRAMES 20000

static struct af_fault_line line;
static uint8_t frame[100];

static void
begin(const struct af_fault_rule *rule, uint64_t seed)
{
	af_fault_line_init(&line, rule, seed, 0, 0);
	memset(frame, 0, sizeof frame);
	frame[14] = 0x21; /* DATA */
}

/* How many frames of 100, a microsecond apart, the rule lets through. */
static uint32_t
passed(const struct af_fault_rule *rule, uint64_t seed, uint32_t count)
{
	uint32_t sum = 0;

	begin(rule, seed);
	for (uint32_t i = 0; i < count; i++) {
		uint32_t len = sizeof frame;

		sum += af_fault_line_enter(&line, frame, &len, 1000 * MS + i * 1000ull);
	}
	return sum;
}

static void
without_a_rule_every_frame_passes_as_it_is(void)
{
	struct af_fault_rule rule = {.kinds = ALL};
	uint8_t before[sizeof frame];

	begin(&rule, 1);
	memcpy(before, frame, sizeof frame);
	for (int i = 0; i < 1000; i++) {
		uint32_t len = sizeof frame;

		CHECK_EQUAL(af_fault_line_enter(&line, frame, &len, (uint64_t)i), 1);
		CHECK_EQUAL(len, sizeof frame);
		CHECK_EQUAL(af_fault_line_due(&line, 1, 1000), 1000);
	}
	CHECK(!memcmp(frame, before, sizeof frame));
	for (int k = 0; k < AF_NB_FAULTS; k++)
		CHECK_EQUAL(line.counts[k], 0);
}

static void
losses_have_their_rate_and_are_counted(void)
{
	struct af_fault_rule rule = {.kinds = ALL, .drop_ppm = 100000};
	uint32_t through = passed(&rule, 5, FRAMES);

	CHECK_NEAR(through, FRAMES * 0.9, 0.01);
	CHECK_EQUAL(line.counts[AF_FAULT_DROP], FRAMES - through);
}

static void
one_seed_is_one_run_and_lines_are_independent(void)
{
	static struct af_fault_line other;
	struct af_fault_rule rule = {
		.kinds = ALL, .drop_ppm = 300000, .corrupt_ppm = 300000, .repeat_ppm = 300000, .copies = 2};
	uint32_t same = 0;

	begin(&rule, 9);
	af_fault_line_init(&other, &rule, 9, 0, 0);
	for (int i = 0; i < 2000; i++) {
		uint8_t mine[100] = {0}, theirs[100] = {0};
		uint32_t len = 100, their_len = 100;

		mine[14] = theirs[14] = 0x21;
		CHECK_EQUAL(af_fault_line_enter(&line, mine, &len, (uint64_t)i),
			    af_fault_line_enter(&other, theirs, &their_len, (uint64_t)i));
		CHECK(!memcmp(mine, theirs, 100));
	}
	for (uint32_t port = 0; port < 2; port++)
		for (uint32_t way = 0; way < 2; way++) { /* another direction, port or seed draws other numbers */
			af_fault_line_init(&line, &rule, 9, 0, 0);
			af_fault_line_init(&other, &rule, 9 + (port + way == 0), port, way);
			for (int i = 0; i < 1000; i++)
				same += af_fault_line_draw(&line) % 2 == af_fault_line_draw(&other) % 2;
		}
	CHECK_NEAR(same, 2000, 0.1);
}

static void
other_kinds_pass_at_once(void)
{
	struct af_fault_rule rule = {.kinds = 1u << AF_FEEDBACK, .drop_ppm = 1000000, .delay_ns = 77};

	CHECK_EQUAL(passed(&rule, 1, 100), 100);
	CHECK_EQUAL(af_fault_line_due(&line, AF_DATA, 5), 5);
	CHECK_EQUAL(af_fault_line_due(&line, AF_FEEDBACK, 5), 82);
	rule.kinds = 1u << AF_DATA;
	CHECK_EQUAL(passed(&rule, 1, 100), 0);
}

static void
the_first_ones_and_times_of_silence_are_exact(void)
{
	struct af_fault_rule first = {.kinds = ALL, .drop_first = 3};
	struct af_fault_rule down = {.kinds = ALL, .down_after_ns = 10000, .down_for_ns = 5000, .down_every_ns = 20000};

	CHECK_EQUAL(passed(&first, 1, 10), 7);
	CHECK_EQUAL(passed(&down, 1, 10), 10); /* [0, 10) us */
	CHECK_EQUAL(passed(&down, 1, 15), 10); /* [10, 15) us: down */
	CHECK_EQUAL(passed(&down, 1, 30), 25);
	CHECK_EQUAL(passed(&down, 1, 50), 40); /* [30, 35) again */
	CHECK_EQUAL(line.counts[AF_FAULT_DOWN], 10);
}

static void
bursts_lose_runs_and_end(void)
{
	struct af_fault_rule rule = {.kinds = ALL, .burst_ppm = 2000, .burst_frames = 50};
	uint32_t lost = FRAMES - passed(&rule, 3, FRAMES), len = sizeof frame;

	CHECK_EQUAL(line.counts[AF_FAULT_BURST], lost);
	CHECK(lost > 500 && lost < FRAMES / 3); /* 2000 ppm of single losses were 40 */
	rule.burst_ppm = 1000000;
	rule.burst_frames = 1000000000; /* by frames it would not end */
	begin(&rule, 1);
	line.rule.burst_ppm = 1000000;
	CHECK_EQUAL(af_fault_line_enter(&line, frame, &len, 0), 0);
	line.rule.burst_ppm = 0;
	CHECK_EQUAL(af_fault_line_enter(&line, frame, &len, AF_FAULT_BURST_NS - 1), 0);
	CHECK_EQUAL(af_fault_line_enter(&line, frame, &len, AF_FAULT_BURST_NS), 1);
}

static void
damage_is_one_bit_and_cuts_leave_a_header(void)
{
	struct af_fault_rule corrupt = {.kinds = ALL, .corrupt_ppm = 1000000},
			     cut = {.kinds = ALL, .truncate_ppm = 1000000};

	for (uint64_t seed = 1; seed < 300; seed++) {
		uint32_t len = sizeof frame, bits = 0;

		begin(&corrupt, seed);
		CHECK_EQUAL(af_fault_line_enter(&line, frame, &len, 1), 1);
		frame[14] ^= 0x21;
		for (size_t i = 0; i < sizeof frame; i++)
			bits += (uint32_t)__builtin_popcount(frame[i]);
		CHECK_EQUAL(bits, 1);
		begin(&cut, seed);
		CHECK_EQUAL(af_fault_line_enter(&line, frame, &len, 1), 1);
		CHECK(len >= AF_FAULT_LINE_LEAST && len < sizeof frame);
	}
	for (uint32_t size = 0; size <= AF_FAULT_LINE_LEAST; size++) { /* too short to be one of ours */
		uint8_t small[AF_FAULT_LINE_LEAST] = {0};
		uint32_t len = size;

		begin(&corrupt, 1);
		CHECK_EQUAL(af_fault_line_enter(&line, small, &len, 1), 1);
		CHECK_EQUAL(len, size);
	}
}

static void
frames_leave_by_time_and_then_in_order(void)
{
	static uint64_t dues[AF_FAULT_LINE_FRAMES];
	struct af_fault_rule rule = {.kinds = ALL};
	uint64_t now = 0, left = 0;

	begin(&rule, 1);
	for (uint32_t i = 0; i < AF_FAULT_LINE_FRAMES; i++) {
		dues[i] = check_random(500);
		CHECK(af_fault_line_hold(&line, dues[i], &dues[i]));
	}
	CHECK(!af_fault_line_hold(&line, 0, &dues[0])); /* full */
	CHECK_EQUAL(line.counts[AF_FAULT_OVERFLOW], 1);
	for (uint64_t *frame_left, *before = NULL; now < 600; now++)
		while ((frame_left = af_fault_line_leave(&line, now))) {
			CHECK(*frame_left <= now);
			CHECK(!before || *before < *frame_left || (*before == *frame_left && before < frame_left));
			before = frame_left;
			left++;
		}
	CHECK_EQUAL(left, AF_FAULT_LINE_FRAMES);
	CHECK(!af_fault_line_leave(&line, UINT64_MAX));
}

static void
delays_reordering_and_stalls_move_the_time(void)
{
	struct af_fault_rule late = {.kinds = ALL, .delay_ns = 100, .reorder_ppm = 1000000, .reorder_ns = 1000};
	struct af_fault_rule stall = {.kinds = ALL, .stall_ppm = 1000000, .stall_ns = 5000};
	uint64_t least = UINT64_MAX, most = 0;
	uint32_t len = sizeof frame;

	begin(&late, 1);
	for (int i = 0; i < 2000; i++) {
		uint64_t due = af_fault_line_due(&line, AF_DATA, 1000);

		least = due < least ? due : least;
		most = due > most ? due : most;
	}
	CHECK(least >= 1100 && least < 1150 && most < 2100 && most > 2050);
	begin(&stall, 1);
	CHECK_EQUAL(af_fault_line_enter(&line, frame, &len, 1000), 1);
	CHECK_EQUAL(af_fault_line_due(&line, AF_DATA, 1000), 6000);
	CHECK_EQUAL(af_fault_line_enter(&line, frame, &len, 2000), 1); /* no longer for coming in it */
	CHECK_EQUAL(af_fault_line_due(&line, AF_DATA, 2000), 6000);
}

static void
doubled_frames_pass_as_often_as_asked(void)
{
	struct af_fault_rule rule = {.kinds = ALL, .repeat_ppm = 500000, .copies = 3};

	CHECK_NEAR(passed(&rule, 1, FRAMES), FRAMES * 2, 0.02);
	CHECK_EQUAL(passed(&rule, 1, FRAMES), FRAMES + 2 * line.counts[AF_FAULT_REPEAT]);
}

CASES(CASE(without_a_rule_every_frame_passes_as_it_is), CASE(losses_have_their_rate_and_are_counted),
      CASE(one_seed_is_one_run_and_lines_are_independent), CASE(other_kinds_pass_at_once),
      CASE(the_first_ones_and_times_of_silence_are_exact), CASE(bursts_lose_runs_and_end),
      CASE(damage_is_one_bit_and_cuts_leave_a_header), CASE(frames_leave_by_time_and_then_in_order),
      CASE(delays_reordering_and_stalls_move_the_time), CASE(doubled_frames_pass_as_often_as_asked))

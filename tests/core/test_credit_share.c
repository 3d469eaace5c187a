/* credit_share.h: a port's credit, divided among the paths that are heard on it. */
#include "aiflow/rx/credit_share.h"

#include "rig.h"

static struct rig rig;
static struct af_rx_session *sessions[8];

/* `count` senders with a path each on port 0, of which each can use `windows[i]` frames. */
static void
begin(uint32_t count, double port_window, const double *windows)
{
	rig_begin(&rig, 1, 1 << 20);
	rig.rx.ports[0].p.point_to_point = false;
	rig.rx.ports[0].credit.window = port_window;
	for (uint32_t i = 0; i < count; i++) {
		char name[AF_NAME_BYTES] = "source";
		struct af_rx_path *path;

		sessions[i] = af_rx_open_session(&rig.rx, (uint64_t)(i + 1) << AF_LIFE_BITS, i + 1, name, rig.now);
		path = &sessions[i]->paths[0];
		sessions[i]->nb_paths = 1;
		*path = (struct af_rx_path){.known = true, .heard_ns = rig.now, .credit = {.window = windows[i]}};
	}
	rig.rx.ports[0].nb_paths = count;
}

static double
granted(uint32_t i)
{
	return sessions[i]->paths[0].granted;
}

static void
each_path_gets_the_same(void)
{
	static const double windows[] = {100, 100, 100, 100};

	begin(4, 100, windows);
	af_credit_share_divide(&rig.rx, 0, rig.now);
	for (uint32_t i = 0; i < 4; i++)
		CHECK(granted(i) == 25);
	CHECK_EQUAL(rig.rx.ports[0].sharing, 4);
	rig_end(&rig);
}

static void
what_one_cannot_use_goes_to_the_others(void)
{
	static const double windows[] = {10, 100, 20, 100};

	begin(4, 100, windows);
	af_credit_share_divide(&rig.rx, 0, rig.now);
	CHECK(granted(0) == 10);
	CHECK(granted(2) == 20);
	CHECK(granted(1) == 35 && granted(3) == 35);
	rig_end(&rig);
}

static void
the_sum_never_exceeds_the_credit(void)
{
	for (int round = 0; round < 300; round++) {
		uint32_t count = 1 + check_random(8);
		double windows[8], sum = 0, total = 1 + check_random(1000), most = 0;

		for (uint32_t i = 0; i < count; i++)
			windows[i] = 0.5 + check_random(400);
		begin(count, total, windows);
		af_credit_share_divide(&rig.rx, 0, rig.now);
		for (uint32_t i = 0; i < count; i++) {
			CHECK(granted(i) > 0 && granted(i) <= windows[i] + 1e-9);
			sum += granted(i);
			most = granted(i) > most ? granted(i) : most;
		}
		CHECK(sum <= total + 1e-6);
		for (uint32_t i = 0; i < count; i++) /* a path with less than the most can use no more */
			CHECK(granted(i) > most - 1e-6 || granted(i) > windows[i] - 1e-9);
		rig_end(&rig);
	}
}

static void
a_path_that_was_silent_takes_no_share(void)
{
	static const double windows[] = {100, 100};

	begin(2, 100, windows);
	sessions[0]->paths[0].heard_ns = rig.now - AF_PATH_IDLE_NS;
	af_credit_share_divide(&rig.rx, 0, rig.now);
	CHECK(granted(1) == 100);
	CHECK_EQUAL(rig.rx.ports[0].sharing, 1);
	sessions[0]->paths[0].heard_ns++;
	af_credit_share_divide(&rig.rx, 0, rig.now);
	CHECK(granted(1) == 50);
	rig_end(&rig);
}

static void
without_a_switch_the_ring_is_what_there_is(void)
{
	static const double windows[] = {1, 1};

	begin(2, 1, windows);
	rig.rx.ports[0].p.point_to_point = true;
	CHECK_EQUAL(af_credit_share_window(&rig.rx, &sessions[0]->paths[0], rig.now), 128);
	rig.rx.ports[0].nb_paths = 0;
	CHECK_EQUAL(af_credit_share_window(&rig.rx, &sessions[0]->paths[0], rig.now), 256);
	rig_end(&rig);
}

static void
a_window_is_never_nothing_and_small_while_the_port_drains(void)
{
	static const double windows[] = {100};

	begin(1, 100, windows);
	CHECK_EQUAL(af_credit_share_window(&rig.rx, &sessions[0]->paths[0], rig.now), 1);
	af_credit_share_divide(&rig.rx, 0, rig.now);
	CHECK_EQUAL(af_credit_share_window(&rig.rx, &sessions[0]->paths[0], rig.now), 100);
	sessions[0]->paths[0].delay.known = true;
	af_credit_share_drain(&rig.rx, 0, rig.now);
	CHECK(!sessions[0]->paths[0].delay.known);
	CHECK_EQUAL(af_credit_share_window(&rig.rx, &sessions[0]->paths[0], rig.now), AF_DRAIN_FRAMES);
	CHECK_EQUAL(af_credit_share_window(&rig.rx, &sessions[0]->paths[0], rig.now + AF_DRAIN_NS), 100);
	rig_end(&rig);
}

/* A frame of this session arrives on its path. */
static void
heard(uint32_t session, const struct af_frame *f, bool was_idle, uint64_t missing)
{
	struct af_rx_in in = {.port = 0, .now = rig.now, .frame = f};

	af_credit_share_heard(&rig.rx, &sessions[session]->paths[0], &in, was_idle, missing);
}

static void
a_newcomer_is_given_its_share_at_once(void)
{
	static const double windows[] = {100, 0};
	struct af_frame f = {.frame_bytes = 1514};

	begin(2, 100, windows);
	sessions[1]->paths[0].known = false;
	af_credit_share_divide(&rig.rx, 0, rig.now);
	CHECK(granted(0) == 100);
	sessions[1]->paths[0].known = true;
	f.timestamp_ns = rig.now;
	rig.rx.ports[0].step_ns = rig.now;
	heard(1, &f, true, 0);
	CHECK(granted(0) == 50 && granted(1) == 50);
	CHECK_EQUAL(sessions[1]->paths[0].credit.frames, 1);
	CHECK_EQUAL(rig.rx.ports[0].credit.bytes, 1514);
	rig_end(&rig);
}

static void
a_loss_takes_a_quarter_off_for_all(void)
{
	static const double windows[] = {100, 100};
	struct af_frame f = {.frame_bytes = 1514};

	begin(2, 100, windows);
	af_credit_share_divide(&rig.rx, 0, rig.now);
	f.timestamp_ns = rig.now;
	rig.rx.ports[0].step_ns = rig.now;
	rig.rx.ports[0].sent = 100;
	rig.rx.ports[0].arrived = 99;
	heard(0, &f, false, 1);
	CHECK(granted(0) == 37.5 && granted(1) == 37.5);
	rig_end(&rig);
}

static void
point_to_point_ports_count_nothing(void)
{
	static const double windows[] = {0};
	struct af_frame f = {.frame_bytes = 1514};

	begin(1, 0, windows);
	rig.rx.ports[0].p.point_to_point = true;
	heard(0, &f, true, 5);
	CHECK(!rig.rx.ports[0].credit.frames && rig.rx.ports[0].credit.window == 0);
	rig_end(&rig);
}

CASES(CASE(each_path_gets_the_same), CASE(what_one_cannot_use_goes_to_the_others),
      CASE(the_sum_never_exceeds_the_credit), CASE(a_path_that_was_silent_takes_no_share),
      CASE(without_a_switch_the_ring_is_what_there_is), CASE(a_window_is_never_nothing_and_small_while_the_port_drains),
      CASE(a_newcomer_is_given_its_share_at_once), CASE(a_loss_takes_a_quarter_off_for_all),
      CASE(point_to_point_ports_count_nothing))

/* rx_due.h: how long a receiver's loop may sleep. */
#include "aiflow/rx/rx_due.h"

#include "due_world.h"

static struct af_rx before;

static uint64_t
due_at(struct rig *rig)
{
	return af_rx_event_due_at(&rig->rx, rig->now);
}

/* A look before the due time: no frame, no event, and no change but of clocks. */
static void
look(struct rig *rig)
{
	uint8_t frame[RIG_FRAME + 100];
	struct af_rx *rx = &rig->rx;

	before = *rx;
	CHECK(!af_rx_tick(rx, rig->now));
	for (uint32_t p = 0; p < rig->nb_ports; p++)
		CHECK(!af_rx_next_frame(rx, p, rig->now, NULL, frame));
	CHECK(rx->sampler.still || !memcmp(&before.sampler, &rx->sampler, sizeof rx->sampler));
	before.sampler = rx->sampler; /* one more that equals the last */
	before.ticked_ns = rx->ticked_ns;
	CHECK(!memcmp(&before, rx, sizeof before));
}

static void
nothing_is_done_before_it_is_due(void)
{
	uint64_t looks = 0, sleeps = 0;

	for (uint32_t seed = 1; seed <= WORLDS; seed++) {
		world_begin(seed);
		world_run(due_at, look);
		looks += world.nb_looks;
		sleeps += world.nb_sleeps;
		world_end();
	}
	CHECK(looks > WORLDS * 500 && sleeps > WORLDS * 500);
}

static struct rig rig;

static void
an_arrival_is_reported_half_a_millisecond_later(void)
{
	uint64_t sizes[] = {100};
	struct af_tx_slice *s;
	struct af_rx_path *path;

	rig_begin(&rig, 1, 1 << 20);
	CHECK_EQUAL(af_rx_due(&rig.rx, rig.now), AF_DUE_NEVER);
	rig_open(&rig);
	s = rig_post(&rig, 1, sizes);
	CHECK_EQUAL(rig_finish(&rig, s), AF_TX_DONE);
	rig_steps(&rig, 100);
	CHECK(af_rx_due(&rig.rx, rig.now) > rig.now + AF_SLEEP_QUIET_NS); /* the sender's silence */
	path = &rig.rx.sessions[0]->paths[0];
	path->news = 1;
	path->feedback_ns = rig.now;
	CHECK_EQUAL(af_rx_due(&rig.rx, rig.now), rig.now + AF_FEEDBACK_NS);
	path->urgent = true;
	CHECK_EQUAL(af_rx_due(&rig.rx, rig.now), rig.now);
	rig.rx.ports[0].p.attached = false; /* there is no way to say it */
	CHECK(af_rx_due(&rig.rx, rig.now) > rig.now + AF_SLEEP_QUIET_NS);
	rig_slice_free(s);
	rig_end(&rig);
}

static void
it_looks_often_at_what_users_give_back(void)
{
	uint64_t sizes[] = {700000};
	struct af_tx_slice *one, *two;

	rig_begin(&rig, 1, 1 << 20);
	rig_open(&rig);
	one = rig_post(&rig, 1, sizes);
	two = rig_post(&rig, 1, sizes); /* waits for memory */
	CHECK_EQUAL(rig_finish(&rig, one), AF_TX_DONE);
	rig_steps(&rig, 100);
	CHECK(rig.rx.waiting);
	CHECK(af_rx_due(&rig.rx, rig.now) <= rig.now + AF_RX_MEMORY_NS);
	af_rx_slice_free(rig_take(&rig), rig_release);
	CHECK_EQUAL(rig_finish(&rig, two), AF_TX_DONE);
	rig_slice_free(one);
	rig_slice_free(two);
	rig_end(&rig);
}

static void
a_slice_that_flows_is_looked_at_every_5_ms(void)
{
	rig_begin(&rig, 1, 1 << 20);
	rig.rx.flowing = 1;
	CHECK_EQUAL(af_rx_due(&rig.rx, rig.now), rig.now + AF_DUE_BUSY_NS);
	rig.rx.flowing = 0;
	rig_end(&rig);
}

CASES(CASE(nothing_is_done_before_it_is_due), CASE(an_arrival_is_reported_half_a_millisecond_later),
      CASE(it_looks_often_at_what_users_give_back), CASE(a_slice_that_flows_is_looked_at_every_5_ms))

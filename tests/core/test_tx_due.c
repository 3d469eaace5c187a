/* tx_due.h: how long a sender's loop may sleep. */
#include "aiflow/tx/tx_due.h"

#include "due_world.h"

static struct af_tx before;

/* The ports in use, and all that follows the ports. */
static int
differ(const struct af_tx *one, const struct af_tx *other, uint32_t nb_ports)
{
	return memcmp(one->ports, other->ports, nb_ports * sizeof *one->ports) ||
	       memcmp(one->next_number, other->next_number, sizeof *one - offsetof(struct af_tx, next_number));
}

static uint64_t
due_at(struct rig *rig)
{
	return af_tx_event_due_at(&rig->tx, rig->now);
}

/* A look before the due time: no frame, no event, and no change but of clocks. */
static void
look(struct rig *rig)
{
	uint8_t frame[RIG_FRAME + 100];
	struct af_tx *tx = &rig->tx;

	memcpy(before.ports, tx->ports, rig->nb_ports * sizeof *tx->ports);
	memcpy(before.next_number, tx->next_number, sizeof *tx - offsetof(struct af_tx, next_number));
	CHECK(!af_tx_tick(tx, rig->now));
	for (uint32_t p = 0; p < rig->nb_ports; p++)
		CHECK(!af_tx_next_frame(tx, p, rig->now, NULL, frame));
	CHECK(tx->sampler.still || !memcmp(&before.sampler, &tx->sampler, sizeof tx->sampler));
	before.sampler = tx->sampler; /* one more that equals the last */
	before.ticked_ns = tx->ticked_ns;
	before.moved_ns = tx->moved_ns;
	CHECK(!differ(&before, tx, rig->nb_ports));
}

static void
nothing_is_done_before_it_is_due(void)
{
	uint64_t looks = 0, sleeps = 0, slept_ns = 0;

	for (uint32_t seed = 1; seed <= WORLDS; seed++) {
		world_begin(seed);
		world_run(due_at, look);
		looks += world.nb_looks;
		sleeps += world.nb_sleeps;
		slept_ns += world.slept_ns;
		world_end();
	}
	CHECK(looks > WORLDS * 500 && sleeps > WORLDS * 900);
	CHECK(slept_ns > sleeps * 200000);
}

static struct rig rig;

static void
a_busy_sender_looks_every_5_ms_a_quiet_one_does_not(void)
{
	uint64_t sizes[] = {100};
	struct af_tx_slice *s;

	rig_begin(&rig, 1, 1 << 20);
	CHECK_EQUAL(af_tx_due(&rig.tx, rig.now), rig.now); /* its first HELLO */
	rig_open(&rig);
	rig_steps(&rig, 100);
	CHECK(af_tx_is_quiet(&rig.tx));
	CHECK(af_tx_due(&rig.tx, rig.now) > rig.now + AF_SLEEP_QUIET_NS); /* a heartbeat */
	s = rig_post(&rig, 1, sizes);
	CHECK(!af_tx_is_quiet(&rig.tx));
	CHECK(af_tx_due(&rig.tx, rig.now) <= rig.now + AF_DUE_BUSY_NS);
	CHECK_EQUAL(rig_finish(&rig, s), AF_TX_DONE);
	rig_slice_free(s);
	rig_end(&rig);
}

static void
a_frame_without_an_answer_is_due_at_the_pto_or_kick(void)
{
	for (int kick = 0; kick < 2; kick++) {
		uint64_t sizes[] = {100}, due;
		uint8_t frame[RIG_FRAME + 100];
		struct af_tx_slice *s;

		rig_begin(&rig, 1, 1 << 20);
		rig.tx.ports[0].p.kick = kick;
		rig_open(&rig);
		rig_steps(&rig, 100);
		s = rig_post(&rig, 1, sizes);
		af_tx_tick(&rig.tx, rig.now);
		CHECK(af_tx_next_frame(&rig.tx, 0, rig.now, NULL, frame) > 0); /* and it is lost */
		due = af_tx_due(&rig.tx, rig.now);
		CHECK_EQUAL(due, rig.now + (kick ? AF_KICK_NS : af_path_pto(&rig.tx.ports[0])));
		CHECK(!af_tx_next_frame(&rig.tx, 0, due - 1, NULL, frame));
		CHECK(af_tx_next_frame(&rig.tx, 0, due, NULL, frame) > 0);
		af_tx_fail_all(&rig.tx, AF_TX_CANCELLED, rig.now);
		rig_slice_free(s);
		rig_end(&rig);
	}
}

static void
a_paced_chunk_is_due_with_its_gap(void)
{
	uint64_t sizes[] = {100};
	struct af_tx_slice *s;

	rig_begin(&rig, 1, 1 << 20);
	rig_open(&rig);
	rig_steps(&rig, 100);
	s = rig_post(&rig, 1, sizes);
	rig.tx.heard_ns = rig.tx.ports[0].pn.acked_ns = rig.now; /* no probe is due */
	rig.tx.ports[0].pace.due_ns = rig.now + 700000;
	af_tx_tick(&rig.tx, rig.now);
	CHECK_EQUAL(af_tx_due(&rig.tx, rig.now), rig.now + 700000);
	rig.tx.ports[0].pn.limit = 0; /* no room: only an answer helps */
	CHECK(af_tx_due(&rig.tx, rig.now) > rig.now + 700000);
	af_tx_fail_all(&rig.tx, AF_TX_CANCELLED, rig.now);
	rig_slice_free(s);
	rig_end(&rig);
}

CASES(CASE(nothing_is_done_before_it_is_due), CASE(a_busy_sender_looks_every_5_ms_a_quiet_one_does_not),
      CASE(a_frame_without_an_answer_is_due_at_the_pto_or_kick), CASE(a_paced_chunk_is_due_with_its_gap))

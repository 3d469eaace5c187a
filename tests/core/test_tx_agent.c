/* tx_agent.h: the sender as a whole: slices in, frames out. */
#include "aiflow/tx/tx_agent.h"

#include "rig_tx.h"

static const uint64_t large[] = {100000}, small[] = {10};

static void
cancelled_slices_end_at_the_next_tick(void)
{
	struct af_tx_slice *s = flowing(large), *queued = rig_post(&rig, 1, small), *last = rig_post(&rig, 1, small);

	atomic_store(&s->cancel, 1);
	atomic_store(&queued->cancel, 1);
	CHECK(af_tx_tick(&rig.tx, rig.now)); /* a waiting thread should look */
	CHECK_EQUAL(s->error, AF_TX_CANCELLED);
	CHECK_EQUAL(queued->error, AF_TX_CANCELLED);
	CHECK(af_tx_slot(&rig.tx, 1) && !af_tx_slot(&rig.tx, 1)->slice); /* the receiver has still to hear of it */
	CHECK_EQUAL(rig_finish(&rig, last), AF_TX_DONE);
	CHECK_EQUAL(rig.rx.slices, 1);
	rig_slice_free(queued);
	rig_slice_free(s);
	end(last);
}

static void
without_a_peer_a_slice_waits_for_its_timeout(void)
{
	struct af_tx_slice *s;

	rig_begin(&rig, 1, 1 << 20);
	rig.tx.peer_timeout_ns = 500 * MS;
	rig.tx.heard_ns = rig.now;
	s = rig_post(&rig, 1, small);
	for (int i = 0; i < 10; i++) {
		af_tx_tick(&rig.tx, rig.now);
		CHECK_EQUAL(s->state, AF_TX_QUEUED);
		rig.now += 50 * MS;
	}
	af_tx_tick(&rig.tx, rig.now + 1);
	CHECK_EQUAL(s->state, AF_TX_FAILED);
	CHECK_EQUAL(s->error, AF_TX_NO_PEER);
	end(s);
}

static void
a_silent_peer_fails_what_flows(void)
{
	struct af_tx_slice *s = flowing(large);
	uint64_t instance = rig.tx.instance;

	rig.tx.peer_timeout_ns = 500 * MS;
	for (int i = 0; i < 12 && s->state != AF_TX_FAILED; i++)
		af_tx_tick(&rig.tx, rig.now += 50 * MS);
	CHECK_EQUAL(s->error, AF_TX_SILENT);
	CHECK(!rig.tx.open && rig.tx.instance != instance);
	end(s);
}

static void
the_time_a_sender_was_stopped_is_no_silence(void)
{
	struct af_tx_slice *s = flowing(large);

	af_tx_tick(&rig.tx, rig.now += 60000 * MS);
	CHECK_EQUAL(s->state, AF_TX_FLOWING);
	CHECK(rig.tx.open);
	end(s);
}

static void
a_port_that_goes_leaves_its_frames_to_the_others(void)
{
	struct af_tx_slice *s = flowing(large);
	uint8_t frame[RIG_FRAME];
	uint64_t next;

	for (int i = 0; i < 5; i++)
		CHECK(af_tx_next_chunk(&rig.tx, 0, rig.now, frame));
	next = rig.tx.ports[0].pn.next;
	af_tx_detach(&rig.tx, 0, rig.now);
	CHECK_EQUAL(rig.tx.retransmit_tail - rig.tx.retransmit_head, 5);
	CHECK_EQUAL(rig.tx.next_number[0], next); /* numbers are never used twice */
	CHECK(rig.tx.open);
	af_tx_detach(&rig.tx, 1, rig.now); /* the last one */
	CHECK(!rig.tx.open);
	CHECK_EQUAL(s->error, AF_TX_RESTARTED);
	end(s);
}

static void
a_peer_that_answers_and_takes_nothing_is_a_stall(void)
{
	struct af_tx_slice *s = flowing(large);

	rig.tx.peer_timeout_ns = 500 * MS;
	s->retransmits = 1;
	for (int i = 0; i < 9; i++) {
		rig.tx.heard_ns = rig.now += 50 * MS;
		CHECK(!af_tx_is_stalled(&rig.tx, rig.now));
	}
	rig.tx.heard_ns = rig.now += 50 * MS;
	CHECK(af_tx_is_stalled(&rig.tx, rig.now));
	s->held = true; /* its user takes time */
	CHECK(!af_tx_is_stalled(&rig.tx, rig.now));
	end(s);
}

static void
frames_of_other_sessions_and_kinds_are_dropped(void)
{
	struct af_tx_slice *s = flowing(large);
	static const struct {
		uint32_t session;
		uint8_t kind;
		enum af_drop drop;
		uint32_t element;
	} table[] = {{0, AF_FEEDBACK, AF_DROP_SESSION, 0},
		     {1, AF_DATA, AF_DROP_KIND, 0},
		     {1, AF_FEEDBACK, AF_DROP_FEEDBACK, 0},
		     {1, AF_BYE, AF_DROP_KIND, AF_BYE_SENDER}};

	for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
		uint8_t frame[100];
		struct af_frame f = {.kind = table[i].kind,
				     .element = table[i].element,
				     .session = table[i].session ? rig.tx.number : rig.tx.session};
		uint32_t len = af_wire_seal(frame, rig.tx.ports[0].p.mac, rig.rx.ports[0].p.mac, &f);
		uint64_t before = rig.tx.drops[table[i].drop], heard = rig.tx.heard_ns;

		CHECK(!af_tx_on_frame(&rig.tx, 0, rig.now += 1000, frame, len, NULL));
		CHECK_EQUAL(rig.tx.drops[table[i].drop], before + 1);
		CHECK_EQUAL(rig.tx.heard_ns, heard); /* no sign of life */
		CHECK(!rig.tx.bye_heard);
	}
	end(s);
}

static void
a_receiver_that_says_goodbye_ends_the_session_at_once(void)
{
	struct af_tx_slice *s = flowing(large);

	af_rx_part(&rig.rx);
	rig_steps(&rig, 3);
	CHECK(!rig.tx.open && !rig.tx.bye_heard);
	CHECK_EQUAL(s->state, AF_TX_FAILED);
	CHECK_EQUAL(s->error, AF_TX_RESTARTED);
	rig_slice_free(s);
	rig_end(&rig);
	rig_begin(&rig, 1, 1 << 20);
	rig_open(&rig);
	rig.tx.closing = true;
	af_rx_part(&rig.rx); /* both say goodbye */
	rig_steps(&rig, 300);
	CHECK(rig.tx.bye_heard);
	rig_end(&rig);
}

/* A receiver's goodbye to our number, from the one that minted `session`. */
static void
goodbye(uint32_t session)
{
	uint8_t frame[100];
	struct af_frame f = {.kind = AF_BYE, .element = AF_BYE_RECEIVER, .session = rig.tx.number, .slice = session};

	af_tx_on_frame(&rig.tx, 0, rig.now, frame,
		       af_wire_seal(frame, rig.tx.ports[0].p.mac, rig.rx.ports[0].p.mac, &f), NULL);
}

/* Each receiver that answered our HELLO has our number. */
static void
the_goodbye_of_another_receiver_ends_no_session(void)
{
	rig_begin(&rig, 1, 1 << 20);
	rig_open(&rig);
	goodbye(rig.tx.session + 1);
	CHECK(rig.tx.open);
	CHECK_EQUAL(rig.tx.drops[AF_DROP_SESSION], 1);
	goodbye(rig.tx.session);
	CHECK(!rig.tx.open);
	rig_end(&rig);
}

static void
a_receiver_that_goes_during_discovery_is_forgotten(void)
{
	rig_begin(&rig, 1, 1 << 20);
	rig.tx.ports[0].p.point_to_point = false; /* there may be others: it waits for them */
	for (int i = 0; i < 1000 && !rig.tx.ports[0].nb_candidates; i++)
		rig_steps(&rig, 1);
	CHECK_EQUAL(rig.tx.ports[0].nb_candidates, 1);
	goodbye(rig.tx.ports[0].candidates[0].session + 1);
	CHECK_EQUAL(rig.tx.ports[0].nb_candidates, 1);
	af_rx_part(&rig.rx);
	rig_steps(&rig, 3);
	CHECK_EQUAL(rig.tx.ports[0].nb_candidates, 0);
	CHECK_EQUAL(rig.tx.first_answer_ns, 0);
	rig_steps(&rig, AF_DISCOVERY_NS / RIG_STEP + 10);
	CHECK(!rig.tx.open);
	rig_end(&rig);
}

CASES(CASE(cancelled_slices_end_at_the_next_tick), CASE(without_a_peer_a_slice_waits_for_its_timeout),
      CASE(a_silent_peer_fails_what_flows), CASE(the_time_a_sender_was_stopped_is_no_silence),
      CASE(a_port_that_goes_leaves_its_frames_to_the_others), CASE(a_peer_that_answers_and_takes_nothing_is_a_stall),
      CASE(frames_of_other_sessions_and_kinds_are_dropped), CASE(a_receiver_that_says_goodbye_ends_the_session_at_once),
      CASE(the_goodbye_of_another_receiver_ends_no_session), CASE(a_receiver_that_goes_during_discovery_is_forgotten))

/* recovery.h: a path as its sender judges it. */
#include "aiflow/tx/recovery.h"

#include "rig.h"

static struct rig rig;
static struct af_tx_port *port;
static struct af_tx_pktnum *pn;

/* Two open paths; what is said is said of the first. */
static void
begin(void)
{
	rig_begin(&rig, 2, 1 << 20);
	rig.tx.open = true;
	rig.tx.heard_ns = rig.now;
	for (uint32_t p = 0; p < 2; p++) {
		rig.tx.ports[p].open = true;
		af_tx_pktnum_reset(&rig.tx.ports[p].pn, 90, 0);
	}
	port = &rig.tx.ports[0];
	pn = &port->pn;
}

static void
send(uint32_t count)
{
	for (; count; count--)
		af_tx_pktnum_take(pn, rig.now, 1, (uint32_t)pn->next, false);
}

/* The receiver says that of the newest 64 numbers below `next` those in `bitmap` arrived. */
static void
report(uint64_t next, uint64_t bitmap)
{
	struct af_path_feedback r = {.words = 1,
				     .window = AF_BE32(90),
				     .next = AF_BE64(next),
				     .frames = AF_BE64(next),
				     .echo_ns = AF_BE64(rig.now - 300000),
				     .hold_ns = AF_BE32(100000)};
	uint64_t word = AF_BE64(bitmap);

	af_tx_on_path(&rig.tx, port, &r, (const uint8_t *)&word, rig.now);
}

/* All below `next` arrived, but for these. */
static uint64_t
all_but(uint64_t next, uint64_t number)
{
	return number < next ? ~(1ull << (64 + number - next)) : ~0ull;
}

static void
what_arrived_is_acknowledged(void)
{
	begin();
	send(10);
	report(6, ~0ull);
	for (uint64_t n = 0; n < 10; n++)
		CHECK_EQUAL(af_tx_sent(pn, n)->state, n < 6 ? AF_SENT_ACKED : AF_SENT_IN_FLIGHT);
	CHECK_EQUAL(pn->in_flight, 4);
	CHECK_EQUAL(pn->judged, 6);
	CHECK_EQUAL(pn->seen, 6);
	CHECK_EQUAL(pn->rtt_ns, 200000); /* echo, less what the receiver held it */
	CHECK_EQUAL(port->count.lost, 0);
	rig_end(&rig);
}

static void
a_frame_overtaken_by_more_than_the_allowance_is_lost(void)
{
	begin();
	send(10);
	report(2 + AF_REORDER_FIRST, all_but(2 + AF_REORDER_FIRST, 2));
	CHECK_EQUAL(af_tx_sent(pn, 2)->state, AF_SENT_IN_FLIGHT);
	report(3 + AF_REORDER_FIRST, all_but(3 + AF_REORDER_FIRST, 2));
	CHECK_EQUAL(af_tx_sent(pn, 2)->state, AF_SENT_LOST);
	CHECK_EQUAL(port->count.lost, 1);
	CHECK_EQUAL(rig.tx.retransmit[0].chunk, 2);
	rig_end(&rig);
}

static void
a_spurious_loss_widens_the_allowance_and_calm_narrows_it(void)
{
	begin();
	send(40);
	report(30, all_but(30, 2));
	CHECK_EQUAL(af_tx_sent(pn, 2)->state, AF_SENT_LOST);
	rig.now += 3 * MS;
	report(31, ~0ull); /* it had only been overtaken */
	CHECK_EQUAL(pn->spurious, 1);
	CHECK_EQUAL(pn->reorder, 29);
	CHECK(pn->late_ns > 2 * MS && pn->late_ns <= 3 * MS);
	for (uint32_t i = 0; i < AF_CALM_ACKS; i++)
		af_path_went_well(pn);
	CHECK_EQUAL(pn->reorder, 29 - (29 - AF_REORDER_FIRST + 3) / 4);
	for (uint32_t i = 0; i < 100 * AF_CALM_ACKS; i++)
		af_path_went_well(pn);
	CHECK_EQUAL(pn->reorder, AF_REORDER_FIRST);
	rig_end(&rig);
}

static void
the_allowance_has_a_bound(void)
{
	struct af_sent sent = {.sent_ns = 1};

	begin();
	pn->seen = 1000;
	af_path_was_late(pn, 3, &sent, 1000 * MS);
	CHECK_EQUAL(pn->reorder, AF_REORDER_MOST);
	CHECK_EQUAL(pn->late_ns, AF_LATE_MOST_NS);
	rig_end(&rig);
}

static void
reports_from_the_past_or_the_future_are_ignored(void)
{
	begin();
	send(10);
	report(11, ~0ull); /* of a number that was never sent */
	CHECK_EQUAL(pn->in_flight, 10);
	report(8, ~0ull);
	CHECK_EQUAL(pn->in_flight, 2);
	pn->limit = 5;
	report(7, 0);
	CHECK_EQUAL(pn->seen, 8);
	CHECK_EQUAL(pn->limit, 5);
	rig_end(&rig);
}

static void
the_window_granted_is_kept_within_the_ports(void)
{
	struct af_path_feedback r = {.window = AF_BE32(7)};

	begin();
	af_tx_on_path(&rig.tx, port, &r, NULL, rig.now);
	CHECK_EQUAL(pn->limit, 7);
	r.window = AF_BE32(0xffffffff);
	af_tx_on_path(&rig.tx, port, &r, NULL, rig.now);
	CHECK_EQUAL(pn->limit, 90);
	r.window = 0;
	af_tx_on_path(&rig.tx, port, &r, NULL, rig.now);
	CHECK_EQUAL(pn->limit, 1); /* never none: nothing could be asked */
	port->pace.rate_based = true;
	af_tx_on_path(&rig.tx, port, &r, NULL, rig.now);
	CHECK_EQUAL(pn->limit, AF_MAX_WINDOW);
	rig_end(&rig);
}

static void
a_probe_that_was_answered_shows_what_was_sent_before_it_as_lost(void)
{
	begin();
	send(1);
	rig.now += MS;
	af_tx_pktnum_take(pn, rig.now, 0, 0, true);
	rig.now += MS;
	report(2, ~(1ull << 62)); /* the probe, not the chunk before it */
	CHECK_EQUAL(af_tx_sent(pn, 0)->state, AF_SENT_LOST); /* though but one overtook it */
	rig_end(&rig);
}

static void
the_pto_doubles_up_to_its_bound(void)
{
	uint64_t before = 0;

	begin();
	for (port->backoff = 0; port->backoff <= AF_PTO_BACKOFF_MOST; port->backoff++) {
		uint64_t wait = af_path_pto(port), most = AF_PTO_MIN_NS << port->backoff;

		most = most < AF_PTO_MAX_NS ? most : AF_PTO_MAX_NS;
		CHECK(wait > most * 3 / 4 && wait <= most);
		CHECK(wait > before);
		before = wait;
	}
	port->backoff = 0;
	pn->rtt_ns = 20 * MS;
	CHECK(af_path_pto(port) > 30 * MS && af_path_pto(port) <= 40 * MS);
	pn->rtt_ns = 5000 * MS;
	port->backoff = AF_PTO_BACKOFF_MOST;
	CHECK(af_path_pto(port) <= AF_PTO_MAX_NS);
	rig_end(&rig);
}

static void
a_probe_is_due_when_something_stays_unanswered(void)
{
	begin();
	pn->sent_ns = pn->acked_ns = rig.now;
	CHECK(!af_path_probe_is_due(&rig.tx, port, rig.now + AF_HEARTBEAT_NS - 1));
	CHECK(af_path_probe_is_due(&rig.tx, port, rig.now + AF_HEARTBEAT_NS)); /* an idle sender shows that it lives */
	send(1);
	CHECK(!af_path_probe_is_due(&rig.tx, port, rig.now + AF_PTO_MIN_NS / 2));
	CHECK(af_path_probe_is_due(&rig.tx, port, rig.now + AF_PTO_MIN_NS));
	port->p.kick = true; /* a driver that strands frames */
	CHECK(!af_path_probe_is_due(&rig.tx, port, rig.now + AF_KICK_NS - 1));
	CHECK(af_path_probe_is_due(&rig.tx, port, rig.now + AF_KICK_NS));
	rig_end(&rig);
}

static void
after_five_doublings_a_probe_takes_the_oldest_chunk_along(void)
{
	begin();
	af_tx_pktnum_take(pn, rig.now, 0, 0, true);
	send(3);
	port->backoff = AF_PTO_WITH_DATA - 1;
	af_path_repeat_oldest(&rig.tx, port);
	CHECK_EQUAL(rig.tx.retransmit_tail, 0);
	port->backoff = AF_PTO_WITH_DATA;
	af_path_repeat_oldest(&rig.tx, port);
	CHECK_EQUAL(rig.tx.retransmit_tail, 1);
	CHECK_EQUAL(rig.tx.retransmit[0].chunk, 1);
	CHECK_EQUAL(pn->in_flight, 2);
	rig_end(&rig);
}

/* The other path has heard the peer just now. */
static void
others_hear(void)
{
	rig.tx.ports[1].pn.acked_ns = rig.now;
}

static void
a_path_is_suspended_while_others_hear_the_peer(void)
{
	begin();
	pn->rtt_ns = MS;
	send(5);
	rig.now += AF_SUSPEND_NS + 4 * MS - 1;
	others_hear();
	af_tx_watch_path(&rig.tx, port, rig.now);
	CHECK(!port->suspended);
	rig.now += 1;
	af_tx_watch_path(&rig.tx, port, rig.now);
	CHECK(port->suspended);
	CHECK_EQUAL(rig.tx.suspensions, 1);
	CHECK_EQUAL(pn->in_flight, 0);
	CHECK_EQUAL(rig.tx.retransmit_tail, 5); /* what was in flight goes elsewhere */
	rig_end(&rig);
}

/* An end was stopped while the first frame was in flight, and the path died then. */
static void
a_round_trip_of_seconds_does_not_delay_a_suspension(void)
{
	begin();
	pn->rtt_ns = 2000 * MS;
	send(5);
	rig.now += AF_SUSPEND_NS + 4 * AF_PTO_MAX_NS;
	others_hear();
	af_tx_watch_path(&rig.tx, port, rig.now);
	CHECK(port->suspended);
	rig_end(&rig);
}

static void
a_lone_path_gives_up_nothing(void)
{
	begin();
	pn->rtt_ns = MS;
	send(5);
	rig.now += 60000 * MS;
	af_tx_watch_path(&rig.tx, port, rig.now); /* the other one hears nothing, too: the peer is away */
	CHECK(!port->suspended);
	CHECK_EQUAL(pn->in_flight, 5);
	others_hear();
	rig.tx.ports[1].suspended = true;
	af_tx_watch_path(&rig.tx, port, rig.now);
	CHECK(!port->suspended);
	rig_end(&rig);
}

static void
a_path_resumes_with_an_eighth_of_its_window(void)
{
	begin();
	port->suspended = true;
	port->backoff = 4;
	for (uint32_t i = 1; i < AF_RESUME_PROBES; i++) {
		af_path_answered(port);
		CHECK(port->suspended && !port->backoff);
	}
	af_path_answered(port);
	CHECK(!port->suspended);
	CHECK_EQUAL(pn->ramp, 90 / 8);
	for (uint32_t i = 0; i < 90 - 90 / 8 - 1; i++)
		af_path_went_well(pn);
	CHECK_EQUAL(pn->ramp, 89); /* one more an acknowledgement */
	af_path_went_well(pn);
	CHECK_EQUAL(pn->ramp, 0);
	rig_end(&rig);
}

static void
an_idle_path_gives_back_what_it_was_granted(void)
{
	begin();
	port->p.point_to_point = false;
	pn->sent_ns = rig.now;
	rig.now += AF_PATH_IDLE_NS;
	af_tx_watch_path(&rig.tx, port, rig.now);
	CHECK_EQUAL(pn->limit, 90);
	rig.now += 1;
	af_tx_watch_path(&rig.tx, port, rig.now);
	CHECK_EQUAL(pn->limit, AF_FIRST_WINDOW);
	rig_end(&rig);
}

CASES(CASE(what_arrived_is_acknowledged), CASE(a_frame_overtaken_by_more_than_the_allowance_is_lost),
      CASE(a_spurious_loss_widens_the_allowance_and_calm_narrows_it), CASE(the_allowance_has_a_bound),
      CASE(reports_from_the_past_or_the_future_are_ignored), CASE(the_window_granted_is_kept_within_the_ports),
      CASE(a_probe_that_was_answered_shows_what_was_sent_before_it_as_lost), CASE(the_pto_doubles_up_to_its_bound),
      CASE(a_probe_is_due_when_something_stays_unanswered),
      CASE(after_five_doublings_a_probe_takes_the_oldest_chunk_along),
      CASE(a_path_is_suspended_while_others_hear_the_peer), CASE(a_round_trip_of_seconds_does_not_delay_a_suspension),
      CASE(a_lone_path_gives_up_nothing), CASE(a_path_resumes_with_an_eighth_of_its_window),
      CASE(an_idle_path_gives_back_what_it_was_granted))

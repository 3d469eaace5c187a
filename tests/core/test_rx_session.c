/* rx_session.h: the steps that every frame of a session passes, and what its path learns. */
#include "aiflow/rx/rx_agent.h"
#include "aiflow/rx/rx_session.h"

#include "rig.h"

static struct rig rig;
static struct af_rx_session *session;
static struct af_rx_path *path;

static void
begin(void)
{
	rig_begin(&rig, 2, 1 << 20);
	rig_open(&rig);
	rig_steps(&rig, 20);
	session = rig.rx.sessions[0];
	path = &session->paths[0];
}

/* A frame of path 0 comes to port p of the receiver. */
static enum af_drop
comes(uint32_t p, uint8_t kind, uint64_t number)
{
	return rig_to_receiver(&rig, p,
			       (struct af_frame){.kind = kind,
						 .element = kind == AF_BYE ? AF_BYE_SENDER : 0,
						 .end = 1,
						 .session = session->id,
						 .slice = 1,
						 .number = number,
						 .timestamp_ns = rig.now - 500});
}

static void
numbers_are_used_once_and_never_leap(void)
{
	uint64_t number;

	begin();
	number = path->pn.next + 5;
	CHECK_EQUAL(comes(0, AF_PROBE, number), AF_OK);
	CHECK_EQUAL(path->pn.next, number + 1);
	path->news = 0;
	CHECK_EQUAL(comes(0, AF_PROBE, number), AF_DROP_REPLAY);
	CHECK_EQUAL(path->news, 1); /* its feedback is due once more */
	CHECK_EQUAL(comes(0, AF_PROBE, number + AF_PKTNUM_JUMP + 2), AF_DROP_NUMBER);
	CHECK_EQUAL(comes(0, AF_PROBE, number - 2), AF_OK); /* late, and new */
	rig_end(&rig);
}

static void
a_frame_that_is_refused_is_not_acknowledged(void)
{
	uint64_t number, frames, heard;

	begin();
	number = path->pn.next;
	frames = path->frames;
	heard = session->heard_ns;
	rig.now += MS;
	CHECK_EQUAL(comes(0, AF_GRANT, number), AF_DROP_KIND); /* a sender says no such thing */
	CHECK_EQUAL(comes(0, AF_DATA, number), AF_DROP_NOT_GRANTED);
	CHECK_EQUAL(path->pn.next, number);
	CHECK_EQUAL(path->frames, frames);
	CHECK_EQUAL(session->heard_ns, heard);
	rig_end(&rig);
}

static void
a_path_goes_back_the_way_its_newest_frame_came(void)
{
	begin();
	CHECK_EQUAL(comes(0, AF_PROBE, path->pn.next), AF_OK);
	CHECK(path->known && path->port == 0);
	CHECK_EQUAL(comes(1, AF_PROBE, path->pn.next), AF_OK); /* the same path over the other cable */
	CHECK_EQUAL(path->port, 1);
	CHECK(!memcmp(path->mac, rig.tx.ports[1].p.mac, 6));
	CHECK_EQUAL(rig.rx.ports[0].nb_paths, 0);
	CHECK_EQUAL(session->last_port, 1);
	CHECK_EQUAL(path->echo_ns, rig.now - 500);
	rig_end(&rig);
}

static void
missing_numbers_are_counted_at_the_port(void)
{
	struct af_rx_port *port = &rig.rx.ports[0];
	uint64_t sent, arrived;

	begin();
	sent = port->sent;
	arrived = port->arrived;
	CHECK_EQUAL(comes(0, AF_PROBE, path->pn.next + 3), AF_OK);
	CHECK_EQUAL(port->sent - sent, 4);
	CHECK_EQUAL(port->arrived - arrived, 1);
	CHECK(session->spoke);
	CHECK_EQUAL(rig.rx.nb_seen, 1);
	rig.now += MS;
	path->urgent = false;
	CHECK_EQUAL(comes(0, AF_DATA, path->pn.next), AF_DROP_NOT_GRANTED); /* counts nothing */
	CHECK_EQUAL(comes(0, AF_VOID, path->pn.next + 1), AF_OK);
	CHECK(path->urgent); /* a new hole is told at once */
	CHECK_EQUAL(port->sent - sent, 6);
	CHECK_EQUAL(comes(0, AF_PROBE, path->pn.next - 2), AF_OK); /* it was only late */
	CHECK_EQUAL(port->sent - sent, 6);
	CHECK_EQUAL(port->arrived - arrived, 3);
	rig_end(&rig);
}

static void
a_bye_is_answered_and_ends_the_session(void)
{
	uint8_t frame[RIG_FRAME];
	struct af_frame f;
	uint64_t last, number, size;

	begin();
	number = path->pn.next;
	last = session->number;
	CHECK_EQUAL(comes(0, AF_BYE, number), AF_OK);
	CHECK(session->closed && path->bye_due);
	CHECK_EQUAL(comes(0, AF_PROBE, path->pn.next), AF_DROP_SESSION); /* its BYE was faster */
	for (uint64_t i = 1; i < 3; i++) {
		CHECK((size = af_rx_next_frame(&rig.rx, 0, rig.now, NULL, frame)) > 0);
		CHECK_EQUAL(af_wire_parse(frame, (uint32_t)size, frame, RIG_FRAME, &f), AF_OK);
		CHECK_EQUAL(f.kind, AF_BYE);
		CHECK_EQUAL(f.element, AF_BYE_RECEIVER);
		CHECK_EQUAL(f.session, session->peer);
		CHECK_EQUAL(f.number, last + i);
		CHECK_EQUAL(comes(0, AF_BYE, number), AF_DROP_REPLAY);
		CHECK(!path->bye_due);
		path->news = 0; /* no feedback beside it */
		CHECK_EQUAL(comes(0, AF_BYE, number + i), AF_OK); /* the answer was lost */
		CHECK(path->bye_due);
	}
	rig_end(&rig);
}

static void
a_bye_of_the_receivers_direction_changes_nothing(void)
{
	static const uint32_t elements[] = {0, AF_BYE_RECEIVER, 3};

	begin();
	for (size_t i = 0; i < sizeof elements / sizeof *elements; i++)
		CHECK_EQUAL(rig_to_receiver(&rig, 0,
					    (struct af_frame){.kind = AF_BYE,
							      .element = elements[i],
							      .session = session->id,
							      .number = path->pn.next}),
			    AF_DROP_KIND);
	CHECK(!session->closed && !path->bye_due);
	rig_end(&rig);
}

static void
a_silenced_session_tells_its_sender_so(void)
{
	uint64_t heard;

	begin();
	heard = session->heard_ns;
	af_rx_silence(&rig.rx, session);
	rig.now += MS;
	CHECK_EQUAL(comes(0, AF_PROBE, path->pn.next), AF_DROP_SESSION);
	CHECK(path->urgent);
	CHECK_EQUAL(session->heard_ns, heard); /* so it ends at last */
	session->done++;                       /* a slice that was handed over waits for its verdict */
	CHECK_EQUAL(comes(0, AF_PROBE, path->pn.next), AF_DROP_SESSION);
	CHECK_EQUAL(session->heard_ns, rig.now);
	session->done--;
	rig_end(&rig);
}

static void
strangers_and_paths_beyond_the_table_are_refused(void)
{
	begin();
	session->macs[0][5] ^= 0x80;
	CHECK_EQUAL(comes(0, AF_PROBE, path->pn.next), AF_DROP_SRC_MAC);
	session->macs[0][5] ^= 0x80;
	CHECK_EQUAL(rig_to_receiver(&rig, 0,
				    (struct af_frame){.kind = AF_PROBE, .session = session->id, .path = AF_MAX_PORTS}),
		    AF_DROP_PATH);
	rig_end(&rig);
}

CASES(CASE(numbers_are_used_once_and_never_leap), CASE(a_frame_that_is_refused_is_not_acknowledged),
      CASE(a_path_goes_back_the_way_its_newest_frame_came), CASE(missing_numbers_are_counted_at_the_port),
      CASE(a_bye_is_answered_and_ends_the_session), CASE(a_bye_of_the_receivers_direction_changes_nothing),
      CASE(a_silenced_session_tells_its_sender_so), CASE(strangers_and_paths_beyond_the_table_are_refused))

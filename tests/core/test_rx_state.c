/* rx_state.h: what a receiver knows of its senders. */
#include "aiflow/rx/rx_state.h"

#include "rig_rx.h"

static void
sessions_and_their_macs_are_found(void)
{
	static const uint8_t other[6] = {2, 0, 0, 0, 1, 1};

	begin();
	CHECK(af_rx_session_of(&rig.rx, session->id) == session);
	CHECK(!af_rx_session_of(&rig.rx, session->id + 1));
	CHECK(!af_rx_session_of(&rig.rx, 0));
	CHECK(af_rx_knows(session, session->macs[0]));
	CHECK(!af_rx_knows(session, other));
	rig_end(&rig);
}

static void
latencies_of_clocks_that_disagree_say_nothing(void)
{
	struct af_frame f = {.timestamp_ns = 5000};

	begin();
	CHECK_EQUAL(af_rx_latency(&rig.rx, &f, 7000), 2000);
	CHECK_EQUAL(af_rx_latency(&rig.rx, &f, 4000), 0);
	CHECK_EQUAL(af_rx_latency(&rig.rx, &f, 5000 + 3600000000000ull), 0);
	rig.rx.clock_offset_ns = 100;
	CHECK_EQUAL(af_rx_latency(&rig.rx, &f, 7000), 2100);
	rig_end(&rig);
}

CASES(CASE(sessions_and_their_macs_are_found), CASE(latencies_of_clocks_that_disagree_say_nothing))

/* tx_state.h: what a sender knows, and simple questions to it. */
#include "aiflow/tx/tx_state.h"

#include "check.h"

static void
intervals_are_uneven_and_never_longer(void)
{
	uint32_t different = 0;

	for (uint32_t turn = 0; turn < 1000; turn++) {
		uint64_t ns = af_unevenly(1000000, turn);

		CHECK(ns <= 1000000 && ns > 750000);
		different += ns != af_unevenly(1000000, turn + 1);
	}
	CHECK(different > 950);
}

static void
where_gaps_are_the_law_the_driver_bounds_what_is_in_flight(void)
{
	struct af_agent_port port = {.rx_ring = 256, .tx_window = 90};

	CHECK_EQUAL(af_tx_backstop(&port), AF_MAX_WINDOW);
	port.kick = true; /* a ring that must never be full */
	CHECK_EQUAL(af_tx_backstop(&port), 224);
	port.tx_window = 500;
	CHECK_EQUAL(af_tx_backstop(&port), 500);
}

CASES(CASE(intervals_are_uneven_and_never_longer), CASE(where_gaps_are_the_law_the_driver_bounds_what_is_in_flight))

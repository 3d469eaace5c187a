/* agent.h: what the burst loop knows of a sender or a receiver. */
#include "aiflow/rt/agent.h"

#include "check.h"

static uint32_t nb_ticks;

static bool
tick(void *state, uint64_t now)
{
	nb_ticks++;
	return state && now;
}

static void
the_time_we_were_away_is_nobodys_silence(void)
{
	uint64_t then = 1000000000, now = then + AF_AWAY_NS * 5;

	CHECK_EQUAL(af_heard_while_away(then - 30, then, now), now - 30); /* the silence before it counts */
	CHECK_EQUAL(af_heard_while_away(then, then, now), now);
	CHECK_EQUAL(af_heard_while_away(then + 7, then, now), now); /* never in the future */
	CHECK_EQUAL(af_heard_while_away(0, then, then), 0);
	for (int i = 0; i < 1000; i++) {
		uint64_t heard = check_random(2000), begin = 1000 + check_random(1000),
			 end = begin + check_random(1000);
		uint64_t later = af_heard_while_away(heard, begin, end);

		CHECK(later <= end);
		CHECK(later >= (heard < end ? heard : end));
		if (heard <= begin)
			CHECK_EQUAL(end - later, begin - heard);
	}
}

static void
names_and_ports_have_their_bounds(void)
{
	struct af_agent_port port = {.rx_ring = 256, .tx_window = 90};

	CHECK_EQUAL(AF_NAME_BYTES, 64); /* 63 bytes and a NUL: the contract's bound */
	CHECK_EQUAL(AF_MAX_PORTS, 32);
	CHECK(!port.attached && !port.point_to_point && !port.kick && !port.by_reference);
}

static void
memory_is_found_by_its_receiver_and_added_once_it_is_there(void)
{
	static struct af_shared shared;
	static uint8_t bytes[AF_MOST_SHARED + 1];

	CHECK(!af_shared_of(NULL, 5));
	CHECK(!af_shared_of(&shared, 0)); /* of no receiver: nor is an empty entry found */
	for (uint64_t i = 0; i <= AF_MOST_SHARED; i++)
		af_shared_add(&shared, bytes + i, 10 + i, 100 + i, false);
	for (uint64_t i = 0; i < AF_MOST_SHARED; i++) {
		const struct af_shared_memory *memory = af_shared_of(&shared, 100 + i);

		CHECK(memory && memory->base == bytes + i && memory->nbytes == 10 + i);
	}
	CHECK(!af_shared_of(&shared, 100 + AF_MOST_SHARED)); /* no room: its chunks are carried */
}

static void
an_agent_is_driven_through_its_three_calls(void)
{
	struct af_agent agent = {.state = &nb_ticks, .tick = tick};

	CHECK(agent.tick(agent.state, 1));
	CHECK(!agent.tick(agent.state, 0));
	CHECK_EQUAL(nb_ticks, 2);
	CHECK(!agent.on_frame && !agent.next_frame && !agent.tail);
}

CASES(CASE(the_time_we_were_away_is_nobodys_silence), CASE(names_and_ports_have_their_bounds),
      CASE(memory_is_found_by_its_receiver_and_added_once_it_is_there),
      CASE(an_agent_is_driven_through_its_three_calls))

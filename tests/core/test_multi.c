/* multi.h: one sender, several receivers, over the same ports. */
#include "aiflow/tx/multi.h"

#include "rig.h"

#define RECEIVERS 3u
#define WINDOW 20u

static struct af_multi multi;
static struct af_tx senders[RECEIVERS];
static struct af_rx receivers[RECEIVERS];
static struct af_arena arenas[RECEIVERS];
static uint64_t now;
static uint32_t most_in_flight, most_sharing;
static bool silent[RECEIVERS];

static void
begin(bool point_to_point)
{
	memset(&multi, 0, sizeof multi);
	memset(silent, 0, sizeof silent);
	now = RIG_START;
	most_in_flight = most_sharing = 0;
	multi.nb = RECEIVERS;
	for (uint32_t i = 0; i < RECEIVERS; i++) {
		multi.tx[i] = &senders[i];
		rig_make_tx(&senders[i], 1, i + 1, now);
		CHECK(!af_arena_init(&arenas[i], 8 << 20, true));
		rig_make_rx(&receivers[i], &arenas[i], 1, (uint8_t)(10 + i));
		receivers[i].next_session = 7; /* all alike */
		snprintf(receivers[i].name, AF_NAME_BYTES, "sink-%u", i);
		strcpy(senders[i].to, receivers[i].name);
		senders[i].peer_timeout_ns = 300 * MS;
		senders[i].ports[0].p.point_to_point = receivers[i].ports[0].p.point_to_point = point_to_point;
		senders[i].ports[0].p.tx_window = WINDOW;
	}
}

static void
end(void)
{
	for (uint32_t i = 0; i < RECEIVERS; i++) {
		af_rx_free(&receivers[i]);
		CHECK_EQUAL(arenas[i].used, 0);
		af_arena_free(&arenas[i]);
		free(senders[i].retransmit);
	}
}

static void
check_in_flight(void)
{
	uint32_t in_flight = 0, sharing = 0;

	for (uint32_t i = 0; i < RECEIVERS; i++) {
		in_flight += senders[i].ports[0].pn.in_flight;
		sharing += senders[i].ports[0].pn.in_flight > 0;
	}
	CHECK(in_flight <= WINDOW);
	most_in_flight = in_flight > most_in_flight ? in_flight : most_in_flight;
	most_sharing = sharing > most_sharing ? sharing : most_sharing;
}

static void
step(void)
{
	uint8_t frame[RIG_FRAME];
	uint32_t len;

	now += RIG_STEP;
	for (int k = 0; k < 64 && (len = af_multi_next_frame(&multi, 0, now, frame)); k++) {
		check_in_flight();
		for (uint32_t i = 0; i < RECEIVERS; i++)
			if (!silent[i] && ((frame[0] & 1) || !memcmp(frame, receivers[i].ports[0].p.mac, 6)))
				af_rx_on_frame(&receivers[i], 0, now, frame, len, NULL);
	}
	for (uint32_t i = 0; i < RECEIVERS; i++) {
		for (int k = 0; k < 64 && !silent[i] && (len = af_rx_next_frame(&receivers[i], 0, now, frame)); k++)
			af_multi_on_frame(&multi, 0, now, frame, len, NULL);
		af_rx_tick(&receivers[i], now);
	}
	af_multi_tick(&multi, now);
}

static void
open_all(void)
{
	for (int i = 0; i < 5000; i++)
		step();
	for (uint32_t i = 0; i < RECEIVERS; i++) {
		CHECK(senders[i].open);
		CHECK_EQUAL(senders[i].session, 7);
	}
}

static void
each_receiver_gets_its_own_and_the_window_is_shared(void)
{
	static const uint64_t sizes[] = {150000};
	struct af_tx_slice *slices[RECEIVERS];

	begin(false);
	open_all();
	for (uint32_t i = 0; i < RECEIVERS; i++) {
		slices[i] = rig_slice(1, sizes);
		slices[i]->posted_ns = now;
		af_tx_enqueue(&senders[i], slices[i]);
	}
	for (int k = 0; k < 5000; k++)
		step();
	for (uint32_t i = 0; i < RECEIVERS; i++) {
		CHECK_EQUAL(slices[i]->state, AF_TX_DONE);
		rig_check_same(receivers[i].ready, slices[i]);
		CHECK(!receivers[i].ready->next);
		rig_slice_free(slices[i]);
	}
	CHECK(most_in_flight > WINDOW / 2);
	CHECK_EQUAL(most_sharing, RECEIVERS);
	end();
}

static void
a_silent_receiver_holds_up_no_other(void)
{
	static const uint64_t sizes[] = {150000};
	struct af_tx_slice *slices[RECEIVERS];

	begin(false);
	open_all();
	silent[1] = true;
	for (uint32_t i = 0; i < RECEIVERS; i++) {
		slices[i] = rig_slice(1, sizes);
		slices[i]->posted_ns = now;
		af_tx_enqueue(&senders[i], slices[i]);
	}
	for (int k = 0; k < 1000; k++)
		step();
	CHECK_EQUAL(slices[0]->state, AF_TX_DONE);
	CHECK_EQUAL(slices[2]->state, AF_TX_DONE);
	CHECK(slices[1]->state < AF_TX_DONE);
	for (int k = 0; k < 20000 && slices[1]->state < AF_TX_DONE; k++)
		step();
	CHECK_EQUAL(slices[1]->state, AF_TX_FAILED);
	for (uint32_t i = 0; i < RECEIVERS; i++)
		rig_slice_free(slices[i]);
	end();
}

static void
a_frame_is_told_by_its_instance_or_its_session_and_mac(void)
{
	struct af_header head = {.session = AF_BE32(7)};
	uint8_t frame[AF_HEADER + sizeof(struct af_hello)] = {0};
	struct af_hello h = {0};

	begin(false);
	open_all();
	for (uint32_t i = 0; i < RECEIVERS; i++) {
		h.sender = AF_BE64(senders[i].instance);
		memcpy(frame + AF_HEADER, &h, sizeof h);
		CHECK(af_multi_of_hello(&multi, frame, sizeof frame) == &senders[i]);
		CHECK(!af_multi_of_hello(&multi, frame, sizeof frame - 1)); /* too short to say */
		memcpy(head.src, receivers[i].ports[0].p.mac, 6);
		memcpy(frame, &head, sizeof head);
		CHECK(af_multi_of_session(&multi, 0, frame) == &senders[i]); /* sessions are numbered alike */
		CHECK(af_multi_leads_to(&senders[i], 0, head.src));
		CHECK(!af_multi_leads_to(&senders[(i + 1) % RECEIVERS], 0, head.src));
	}
	head.src[5] ^= 1;
	memcpy(frame, &head, sizeof head);
	CHECK(!af_multi_of_session(&multi, 0, frame));
	h.sender = AF_BE64(999);
	memcpy(frame + AF_HEADER, &h, sizeof h);
	CHECK(!af_multi_of_hello(&multi, frame, sizeof frame));
	end();
}

static void
a_port_that_reaches_one_receiver_is_its_own(void)
{
	begin(true);
	senders[1].ports[0].open = true;
	af_multi_claim(&multi, 0, now);
	CHECK(!senders[0].ports[0].p.attached && senders[1].ports[0].p.attached && !senders[2].ports[0].p.attached);
	senders[1].ports[0].open = false; /* it answers no more: all may ask again */
	now += MS;
	af_multi_claim(&multi, 0, now);
	for (uint32_t i = 0; i < RECEIVERS; i++) {
		CHECK(senders[i].ports[0].p.attached);
		CHECK_EQUAL(senders[i].ports[0].attached_ns, i == 1 ? RIG_START : now);
	}
	end();
}

static void
the_window_of_a_port_follows_its_flow_control(void)
{
	struct af_tx_port port = {.p = {.tx_window = 20, .rx_ring = 256, .kick = true}};

	CHECK_EQUAL(af_multi_window(&port), 20);
	port.pace.rate_based = true; /* gaps are the law: what the driver holds */
	CHECK_EQUAL(af_multi_window(&port), 224);
}

CASES(CASE(each_receiver_gets_its_own_and_the_window_is_shared), CASE(a_silent_receiver_holds_up_no_other),
      CASE(a_frame_is_told_by_its_instance_or_its_session_and_mac), CASE(a_port_that_reaches_one_receiver_is_its_own),
      CASE(the_window_of_a_port_follows_its_flow_control))

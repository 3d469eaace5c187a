/* rx_agent.h: the receiver as a whole: frames in, slices out. */
#include "aiflow/rx/rx_agent.h"

#include "rig.h"

static struct rig rig;

static void
slices_of_every_shape_arrive_once_in_order_and_byte_for_byte(void)
{
	struct af_tx_slice *sent[40];
	int next = 0;

	rig_begin(&rig, 3, 8 << 20);
	for (int i = 0; i < 40; i++) {
		uint64_t sizes[20];
		uint32_t n = 1 + check_random(20);

		for (uint32_t e = 0; e < n; e++)
			sizes[e] = check_random(3) ? check_random(300) : check_random(40000);
		sent[i] = rig_post(&rig, n, sizes);
	}
	for (int step = 0; step < 20000 && next < 40; step++) {
		struct af_rx_slice *got;

		rig_step(&rig);
		while ((got = rig_take(&rig))) {
			rig_check_same(got, sent[next++]);
			af_rx_slice_free(got, rig_release);
		}
	}
	CHECK_EQUAL(next, 40);
	rig_steps(&rig, 10);
	CHECK_EQUAL(rig.rx.slices, 40);
	for (int i = 0; i < 40; i++) {
		CHECK_EQUAL(sent[i]->state, AF_TX_DONE);
		rig_slice_free(sent[i]);
	}
	rig_end(&rig);
}

static uint32_t seen;

static bool
lose_every_fifth(enum rig_way way, uint32_t p, uint8_t *frame, uint32_t len)
{
	(void)way, (void)p, (void)frame, (void)len;
	return ++seen % 5 != 0;
}

static bool
damage_every_fifth(enum rig_way way, uint32_t p, uint8_t *frame, uint32_t len)
{
	(void)way, (void)p;
	if (++seen % 5 == 0)
		frame[12 + check_random(len - 12)] ^= (uint8_t)(1u << check_random(8));
	return true;
}

static void
loss_and_damage_change_nothing(void)
{
	static const uint64_t sizes[] = {60000, 20, 0, 5000};

	for (int what = 0; what < 2; what++) {
		rig_begin(&rig, 2, 8 << 20);
		rig_open(&rig);
		rig.passes = what ? damage_every_fifth : lose_every_fifth;
		for (int i = 0; i < 10; i++) {
			struct af_tx_slice *s = rig_post(&rig, 4, sizes);
			struct af_rx_slice *got;

			CHECK_EQUAL(rig_finish(&rig, s), AF_TX_DONE);
			got = rig_take(&rig);
			rig_check_same(got, s);
			CHECK(!rig_take(&rig));
			af_rx_slice_free(got, rig_release);
			rig_slice_free(s);
		}
		CHECK(!what || rig.rx.drops[AF_DROP_CRC] > 10);
		rig_end(&rig);
	}
}

static void
mbufs_are_kept_and_given_back(void)
{
	static const uint64_t sizes[] = {20000, 30};
	struct af_tx_slice *s;
	struct af_rx_slice *got;

	rig_begin(&rig, 1, 8 << 20);
	rig.rx.keeps_mbufs = true;
	rig_released = 0;
	s = rig_post(&rig, 2, sizes);
	CHECK_EQUAL(rig_finish(&rig, s), AF_TX_DONE);
	got = rig_take(&rig);
	CHECK(got && got->kept && got->nb_data == 15);
	for (uint32_t c = 0; c < 14; c++)
		CHECK(!memcmp(got->kept[c].payload, s->elements[0].ptr + c * RIG_PAYLOAD, got->kept[c].nbytes));
	CHECK_EQUAL(rig_released, 0);
	af_rx_slice_free(got, rig_release);
	CHECK_EQUAL(rig_released, 15);
	rig_slice_free(s);
	rig_end(&rig);
}

static void
a_silent_sender_is_counted_out_and_later_forgotten(void)
{
	rig_begin(&rig, 1, 8 << 20);
	rig.rx.peer_timeout_ns = 100 * MS;
	rig_open(&rig);
	rig.rx.sessions[0]->spoke = true;
	rig.rx.ticked_ns = rig.now;
	rig.rx.sessions[0]->heard_ns = rig.now;
	for (int i = 0; i < 2; i++)
		af_rx_tick(&rig.rx, rig.now += 60 * MS);
	CHECK(rig.rx.sessions[0]->silenced && rig.rx.sessions[0]->closed);
	CHECK_EQUAL(rig.rx.nb_gone, 1);
	CHECK_EQUAL(rig.rx.nb_sessions, 1); /* retained, to tell it so */
	for (int i = 0; i < 8; i++)
		af_rx_tick(&rig.rx, rig.now += 60 * MS);
	CHECK_EQUAL(rig.rx.nb_sessions, 0);
	rig_end(&rig);
}

static void
the_time_a_receiver_was_stopped_is_no_silence(void)
{
	rig_begin(&rig, 1, 8 << 20);
	rig.rx.peer_timeout_ns = 100 * MS;
	rig_open(&rig);
	rig.rx.sessions[0]->spoke = true;
	af_rx_tick(&rig.rx, rig.now);
	af_rx_tick(&rig.rx, rig.now += 5000 * MS); /* stopped for five seconds */
	CHECK(!rig.rx.sessions[0]->silenced);
	CHECK_EQUAL(rig.rx.nb_sessions, 1);
	rig_end(&rig);
}

static void
a_port_that_goes_takes_what_only_it_heard(void)
{
	static const uint64_t sizes[] = {400000};
	struct af_tx_slice *s;

	rig_begin(&rig, 2, 8 << 20);
	rig_open(&rig);
	s = rig_post(&rig, 1, sizes);
	CHECK_EQUAL(rig_finish(&rig, s), AF_TX_DONE);
	rig_slice_free(s);
	af_rx_slice_free(rig_take(&rig), rig_release);
	CHECK_EQUAL(rig.rx.nb_sessions, 1);
	for (uint32_t p = 0; p < 2; p++) {
		CHECK(rig.rx.ports[p].count.rx_frames > 10);
		CHECK(rig.rx.ports[p].count.rx_bytes > rig.rx.ports[p].count.rx_frames * AF_MIN_FRAME);
		CHECK(rig.rx.sessions[0]->paths[p].known);
	}
	af_rx_detach(&rig.rx, 0);
	CHECK_EQUAL(rig.rx.nb_sessions, 1); /* heard over port 1 too */
	CHECK_EQUAL(rig.rx.ports[0].nb_paths, 0);
	for (uint32_t k = 0; k < 2; k++)
		CHECK_EQUAL(rig.rx.sessions[0]->paths[k].known, rig.rx.sessions[0]->paths[k].port == 1);
	af_rx_detach(&rig.rx, 1);
	CHECK_EQUAL(rig.rx.nb_sessions, 0);
	rig_end(&rig);
}

static void
what_a_sender_was_not_told_is_owed(void)
{
	static const uint64_t sizes[] = {100};
	struct af_tx_slice *s;
	uint8_t frame[RIG_FRAME];
	uint32_t len;

	rig_begin(&rig, 1, 8 << 20);
	rig_open(&rig);
	rig_steps(&rig, 30);
	CHECK(!af_rx_owes(&rig.rx));
	s = rig_post(&rig, 1, sizes);
	af_tx_tick(&rig.tx, rig.now);
	len = af_tx_next_frame(&rig.tx, 0, rig.now, NULL, frame);
	rig_deliver(&rig, TO_RECEIVER, 0, frame, len);
	CHECK(af_rx_owes(&rig.rx));
	CHECK(af_rx_next_frame(&rig.rx, 0, rig.now, NULL, frame) > 0);
	CHECK(!af_rx_owes(&rig.rx));
	af_tx_fail_all(&rig.tx, AF_TX_CANCELLED, rig.now);
	rig_slice_free(s);
	rig_end(&rig);
}

static void
every_frame_of_noise_is_counted_under_a_reason(void)
{
	uint64_t sum = 0;

	rig_begin(&rig, 1, 8 << 20);
	rig_open(&rig);
	memset(rig.rx.drops, 0, sizeof rig.rx.drops);
	for (int i = 0; i < 20000; i++) {
		uint8_t frame[200];
		struct af_frame f = {.kind = (uint8_t)(1 + check_random(AF_NB_KINDS)),
				     .end = (uint8_t)check_random(3),
				     .path = (uint16_t)check_random(40),
				     .element = check_random(5) ? check_random(50) : check_random(UINT32_MAX),
				     .seq = check_random(5),
				     .session = check_random(2) ? rig.rx.sessions[0]->id : check_random(3),
				     .slice = check_random(20),
				     .number = check_random(100000),
				     .nbytes = check_random(146)};
		uint32_t len;
		uint8_t *copy;

		if (f.kind == AF_BYE)
			f.kind = AF_MANIFEST; /* it would end all */
		for (uint32_t k = 0; k < f.nbytes; k++)
			frame[AF_HEADER + k] = (uint8_t)(check_random(2) ? 0 : check_random(256));
		len = af_wire_seal(frame, rig.rx.ports[0].p.mac, rig.tx.ports[0].p.mac, &f);
		copy = malloc(len);
		memcpy(copy, frame, len);
		if (!af_rx_on_frame(&rig.rx, 0, rig.now += 1000, copy, len, copy))
			free(copy);
		if (i % 100 == 0)
			af_rx_tick(&rig.rx, rig.now);
	}
	for (int d = 0; d < AF_NB_DROPS; d++)
		sum += rig.rx.drops[d];
	CHECK_EQUAL(sum, 20000);
	CHECK(rig.rx.drops[AF_DROP_KIND] && rig.rx.drops[AF_DROP_SESSION] && rig.rx.drops[AF_DROP_MANIFEST]);
	CHECK(rig.arena.used <= rig.arena.limit);
	rig_end(&rig);
}

CASES(CASE(slices_of_every_shape_arrive_once_in_order_and_byte_for_byte), CASE(loss_and_damage_change_nothing),
      CASE(mbufs_are_kept_and_given_back), CASE(a_silent_sender_is_counted_out_and_later_forgotten),
      CASE(the_time_a_receiver_was_stopped_is_no_silence), CASE(a_port_that_goes_takes_what_only_it_heard),
      CASE(what_a_sender_was_not_told_is_owed), CASE(every_frame_of_noise_is_counted_under_a_reason))

/* rx_hello.h: HELLOs open sessions, and are answered. */
#include "aiflow/rx/rx_hello.h"

#include "rig_rx.h"

static enum af_drop
asked(uint64_t sender, uint32_t number, const char *to)
{
	struct af_hello h = {.sender = AF_BE64(sender), .session = AF_BE32(number), .frame_size = AF_BE16(RIG_FRAME)};
	static const uint8_t src[6] = {2, 0, 0, 0, 1, 0}; /* several senders may share a port */
	struct af_frame f = {0};
	uint32_t size = af_hello_write(rig_frame, src, af_broadcast, f, &h, "source", to, 0);

	CHECK_EQUAL(af_wire_parse(rig_frame, size, rig.rx.ports[0].p.mac, RIG_FRAME, &f), AF_OK);
	return af_rx_on_hello(&rig.rx, 0, &f, rig.now);
}

static void
the_connection_of_a_port_says_who_may_write(void)
{
	rig_begin(&rig, 1, 1 << 20);
	CHECK_EQUAL(asked(5ull << 16, 55, ""), AF_OK);
	CHECK_EQUAL(rig.rx.sessions[0]->writer, 0); /* the port is on a wire */
	rig.rx.ports[0].p.writer = RIG_WRITER;
	CHECK_EQUAL(asked(5ull << 16, 55, ""), AF_OK);
	CHECK_EQUAL(rig.rx.sessions[0]->writer, RIG_WRITER);
	rig.rx.ports[0].p.writer = 0;
	CHECK_EQUAL(asked(5ull << 16, 55, ""), AF_OK);
	CHECK_EQUAL(rig.rx.sessions[0]->writer, RIG_WRITER);
	rig.rx.ports[0].p.writer = RIG_WRITER + 1; /* it may write by either: the end of one does not suffice */
	CHECK_EQUAL(asked(5ull << 16, 55, ""), AF_OK);
	CHECK_EQUAL(rig.rx.sessions[0]->writer, AF_WRITER_SEVERAL);
	af_rx_writer_gone(&rig.rx, RIG_WRITER + 1);
	CHECK_EQUAL(rig.rx.sessions[0]->writer, AF_WRITER_SEVERAL);
	rig_end(&rig);
}

static void
the_next_life_of_a_sender_lifts_its_fences_and_no_other_does(void)
{
	begin();
	rig_share(&rig);
	put_placed(1);
	af_rx_forget(&rig.rx, 0);
	CHECK_EQUAL(rig.arena.fenced, 1);
	CHECK(opened(8, 1));
	CHECK(opened(7, 0)); /* the life that may write: it asks whether we live */
	CHECK_EQUAL(rig.arena.fenced, 1);
	CHECK(opened(7, 1));
	CHECK_EQUAL(rig.arena.fenced, 0);
	CHECK(rig.arena.first.next == &rig.arena.first);
	rig_end(&rig);
}

static void
a_session_that_follows_another_fences_nothing(void)
{
	begin();
	rig_share(&rig);
	put_placed(1);
	CHECK(opened(7, 1)); /* its sender has begun it: what flowed was given up */
	CHECK_EQUAL(rig.rx.nb_sessions, 1);
	CHECK_EQUAL(rig.arena.fenced, 0);
	CHECK_EQUAL(rig.arena.used, 0);
	CHECK(rig.arena.first.next == &rig.arena.first);
	rig_end(&rig);
}

static void
a_hello_is_answered_with_a_session(void)
{
	char name[AF_NAME_BYTES], to[AF_NAME_BYTES];
	struct af_hello h;
	struct af_frame f;

	rig_begin(&rig, 1, 1 << 20);
	CHECK_EQUAL(asked(5ull << 16, 55, ""), AF_OK);
	CHECK(said(&f));
	CHECK_EQUAL(f.kind, AF_HELLO);
	CHECK_EQUAL(f.session, 55);
	CHECK_EQUAL(rig.rx.sessions[0]->peer, 55);
	CHECK_EQUAL(af_hello_read(&f, &h, name, to), AF_OK);
	CHECK_EQUAL(h.answer, 1);
	CHECK_EQUAL(AF_BE64(h.sender), 5ull << 16);
	CHECK_EQUAL(AF_BE64(h.epoch), rig.rx.epoch);
	CHECK_EQUAL(AF_BE32(h.session), rig.rx.sessions[0]->id);
	CHECK_EQUAL(AF_BE32(h.window), 256);
	CHECK(!strcmp(name, "sink"));
	CHECK_EQUAL(f.number, 1);
	CHECK(!said(&f));
	CHECK_EQUAL(asked(5ull << 16, 55, ""), AF_OK);
	CHECK(said(&f));
	CHECK_EQUAL(f.number, 2); /* no two answers have the same */
	rig_end(&rig);
}

static void
a_sender_that_asks_for_another_learns_our_name_now_and_then(void)
{
	char name[AF_NAME_BYTES], to[AF_NAME_BYTES];
	struct af_hello h;
	struct af_frame f;

	rig_begin(&rig, 1, 1 << 20);
	for (int i = 0; i < 5; i++)
		CHECK_EQUAL(asked(5ull << 16, 55, "other"), AF_OK);
	CHECK(said(&f));
	CHECK_EQUAL(af_hello_read(&f, &h, name, to), AF_OK);
	CHECK_EQUAL(h.session, 0);
	CHECK_EQUAL(f.session, 55);
	CHECK(!said(&f)); /* once in AF_COURTESY_NS */
	CHECK_EQUAL(rig.rx.nb_sessions, 0);
	rig.now += AF_COURTESY_NS;
	asked(5ull << 16, 55, "other");
	CHECK(said(&f));
	rig_end(&rig);
}

static void
answers_wait_in_a_line_of_bounded_length(void)
{
	rig_begin(&rig, 1, 1 << 20);
	for (uint32_t i = 0; i < AF_ANSWERS; i++)
		CHECK_EQUAL(asked(5ull << 16, 55, ""), AF_OK);
	CHECK_EQUAL(asked(5ull << 16, 55, ""), AF_DROP_BUSY);
	rig_end(&rig);
}

static void
one_sender_has_one_session_and_a_later_life_another(void)
{
	struct af_rx_session *first, *second;
	uint32_t id;

	rig_begin(&rig, 1, 1 << 20);
	first = opened(5, 3);
	CHECK(first && opened(5, 3) == first);
	id = first->id;
	CHECK(!opened(5, 2)); /* an earlier life: late, or forged */
	second = opened(5, 4);
	CHECK(second && second->id != id);
	CHECK_EQUAL(rig.rx.nb_sessions, 1);
	CHECK(opened(5, 0x8003)); /* lives wrap around */
	CHECK(opened(6, 0));
	CHECK_EQUAL(rig.rx.nb_sessions, 2);
	rig_end(&rig);
}

static void
a_hello_evicts_no_other_sender_of_its_mac(void)
{
	struct af_rx_session *first;

	rig_begin(&rig, 1, 1 << 20);
	CHECK_EQUAL(asked(5ull << 16, 55, ""), AF_OK);
	first = rig.rx.sessions[0];
	rig.now += 3 * AF_HEARTBEAT_NS; /* silent, and not yet gone */
	CHECK_EQUAL(asked(6ull << 16, 66, ""), AF_OK);
	CHECK_EQUAL(rig.rx.nb_sessions, 2);
	CHECK(rig.rx.sessions[0] == first && rig.rx.sessions[1]->id != first->id);
	rig_end(&rig);
}

static void
a_life_has_one_number(void)
{
	rig_begin(&rig, 1, 1 << 20);
	CHECK_EQUAL(asked(5ull << 16, 0, ""), AF_DROP_HELLO);
	CHECK_EQUAL(rig.rx.nb_sessions, 0);
	CHECK_EQUAL(asked(5ull << 16, 55, ""), AF_OK);
	CHECK_EQUAL(asked(5ull << 16, 56, ""), AF_DROP_HELLO);
	CHECK_EQUAL(rig.rx.sessions[0]->peer, 55);
	CHECK_EQUAL(asked(5ull << 16 | 1, 56, ""), AF_OK);
	CHECK_EQUAL(rig.rx.nb_sessions, 1);
	CHECK_EQUAL(rig.rx.sessions[0]->peer, 56);
	rig_end(&rig);
}

static void
sessions_are_bounded_and_living_ones_stay(void)
{
	rig_begin(&rig, 1, 1 << 20);
	for (uint32_t i = 0; i < AF_SESSIONS; i++)
		CHECK((opened(100 + i, 0)->spoke = true));
	CHECK(!opened(7, 0));
	rig.rx.sessions[9]->closed = true; /* that one makes room */
	CHECK(opened(7, 0));
	CHECK_EQUAL(rig.rx.nb_sessions, AF_SESSIONS);
	CHECK(opened(8, 0)); /* instead of that one, which has sent nothing yet */
	CHECK_EQUAL(rig.rx.nb_sessions, AF_SESSIONS);
	rig.rx.sessions[AF_SESSIONS - 1]->spoke = true;
	CHECK(!opened(9, 0));
	/* What has ended goes before what is silent, that before what is new; of equals the oldest. */
	for (uint32_t i = 0; i < AF_SESSIONS; i++)
		rig.rx.sessions[i]->heard_ns = 1000 + i;
	rig.rx.sessions[1]->spoke = false;
	rig.rx.sessions[2]->silenced = true;
	rig.rx.sessions[7]->closed = rig.rx.sessions[5]->closed = true;
	for (uint32_t i = 0; i < 4; i++) {
		static const uint64_t heard[] = {1005, 1007, 1002, 1001};

		CHECK((opened(20 + i, 0)->spoke = true));
		for (uint32_t k = 0; k < AF_SESSIONS; k++)
			CHECK(rig.rx.sessions[k]->heard_ns != heard[i]);
	}
	CHECK(!opened(30, 0));
	rig_end(&rig);
}

static void
hellos_of_another_version_are_answered_now_and_then(void)
{
	struct af_hello h = {0};
	uint8_t src[6] = {2, 0, 0, 0, 1, 0};
	struct af_frame f = {0};

	rig_begin(&rig, 1, 1 << 20);
	for (int i = 0; i < 3; i++) {
		uint32_t size = af_hello_write(rig_frame, src, af_broadcast, (struct af_frame){0}, &h, "old", "", 0);

		rig_frame[14] = (AF_VERSION + 1) << 4 | AF_HELLO;
		CHECK(!af_rx_on_frame(&rig.rx, 0, rig.now, rig_frame, size, NULL));
	}
	CHECK_EQUAL(rig.rx.drops[AF_DROP_VERSION], 3);
	CHECK(said(&f) && f.kind == AF_HELLO);
	CHECK(!said(&f));
	CHECK_EQUAL(rig.rx.nb_sessions, 0);
	rig_end(&rig);
}

static void
a_hello_of_another_format_is_answered_to_its_number(void)
{
	struct af_hello h = {.session = AF_BE32(55)};
	static const uint8_t src[6] = {2, 0, 0, 0, 1, 0};
	char name[AF_NAME_BYTES], to[AF_NAME_BYTES];
	struct af_frame f = {0};

	rig_begin(&rig, 1, 1 << 20);
	for (int i = 0; i < 3; i++) {
		uint32_t size = af_hello_write(rig_frame, src, af_broadcast, (struct af_frame){0}, &h, "new", "", 0);

		CHECK_EQUAL(af_wire_parse(rig_frame, size, rig.rx.ports[0].p.mac, RIG_FRAME, &f), AF_OK);
		rig_frame[AF_HEADER] = AF_HELLO_FORMAT + 1;
		if (i == 2)
			f.nbytes = 5; /* too short to say */
		CHECK_EQUAL(af_rx_on_hello(&rig.rx, 0, &f, rig.now), AF_DROP_VERSION);
		rig.now += i ? AF_COURTESY_NS : 0; /* the second one is not answered */
	}
	CHECK(said(&f));
	CHECK_EQUAL(f.session, 55);
	CHECK_EQUAL(af_hello_read(&f, &h, name, to), AF_OK);
	CHECK_EQUAL(h.session, 0);
	CHECK(!said(&f));
	CHECK_EQUAL(rig.rx.nb_sessions, 0);
	rig_end(&rig);
}

CASES(CASE(a_hello_is_answered_with_a_session), CASE(a_sender_that_asks_for_another_learns_our_name_now_and_then),
      CASE(answers_wait_in_a_line_of_bounded_length), CASE(one_sender_has_one_session_and_a_later_life_another),
      CASE(a_hello_evicts_no_other_sender_of_its_mac), CASE(a_life_has_one_number),
      CASE(sessions_are_bounded_and_living_ones_stay), CASE(hellos_of_another_version_are_answered_now_and_then),
      CASE(a_hello_of_another_format_is_answered_to_its_number), CASE(the_connection_of_a_port_says_who_may_write),
      CASE(the_next_life_of_a_sender_lifts_its_fences_and_no_other_does),
      CASE(a_session_that_follows_another_fences_nothing))

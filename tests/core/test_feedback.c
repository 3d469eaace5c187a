/* feedback.h: what a receiver says: answers to HELLOs, and its state. */
#include "aiflow/rx/feedback.h"

#include "rig.h"

static struct rig rig;
static uint8_t frame[RIG_FRAME];

static enum af_drop
asked(uint64_t sender, uint8_t mac, const char *to)
{
	struct af_hello h = {.sender = AF_BE64(sender), .frame_size = AF_BE16(RIG_FRAME)};
	uint8_t src[6] = {2, 0, 0, 0, 1, mac};
	struct af_frame f;
	uint32_t size = af_hello_write(frame, src, af_broadcast, &h, "source", to, 0, 1);

	CHECK_EQUAL(af_wire_parse(frame, size, rig.rx.ports[0].p.mac, RIG_FRAME, &f), AF_OK);
	return af_rx_on_hello(&rig.rx, 0, &f, rig.now);
}

/* The next frame of the receiver's first port; false when it has none. */
static bool
said(struct af_frame *f)
{
	uint32_t size = af_rx_next_frame(&rig.rx, 0, rig.now, frame);

	if (!size)
		return false;
	CHECK(size <= RIG_FRAME);
	CHECK_EQUAL(af_wire_parse(frame, size, frame, RIG_FRAME, f), AF_OK);
	return true;
}

static struct af_rx_session *
opened(uint64_t instance, uint32_t life, uint8_t mac)
{
	uint8_t src[6] = {2, 0, 0, 0, 1, mac};
	char name[AF_NAME_BYTES] = "source";

	return af_rx_open_session(&rig.rx, instance << AF_LIFE_BITS | life, src, name, rig.now);
}

static void
a_hello_is_answered_with_a_session(void)
{
	char name[AF_NAME_BYTES], to[AF_NAME_BYTES];
	struct af_hello h;
	struct af_frame f;

	rig_begin(&rig, 1, 1 << 20);
	CHECK_EQUAL(asked(5ull << 16, 0, ""), AF_OK);
	CHECK(said(&f));
	CHECK_EQUAL(f.kind, AF_HELLO);
	CHECK(af_hello_read(&f, &h, name, to));
	CHECK_EQUAL(h.answer, 1);
	CHECK_EQUAL(AF_BE64(h.sender), 5ull << 16);
	CHECK_EQUAL(AF_BE64(h.epoch), rig.rx.epoch);
	CHECK_EQUAL(AF_BE32(h.session), rig.rx.sessions[0]->id);
	CHECK_EQUAL(AF_BE32(h.window), 256);
	CHECK(!strcmp(name, "sink"));
	CHECK(!said(&f));
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
		CHECK_EQUAL(asked(5ull << 16, 0, "other"), AF_OK);
	CHECK(said(&f));
	CHECK(af_hello_read(&f, &h, name, to));
	CHECK_EQUAL(h.session, 0);
	CHECK(!said(&f)); /* once in AF_COURTESY_NS */
	CHECK_EQUAL(rig.rx.nb_sessions, 0);
	rig.now += AF_COURTESY_NS;
	asked(5ull << 16, 0, "other");
	CHECK(said(&f));
	rig_end(&rig);
}

static void
answers_wait_in_a_line_of_bounded_length(void)
{
	rig_begin(&rig, 1, 1 << 20);
	for (uint32_t i = 0; i < AF_ANSWERS; i++)
		CHECK_EQUAL(asked(5ull << 16, 0, ""), AF_OK);
	CHECK_EQUAL(asked(5ull << 16, 0, ""), AF_DROP_BUSY);
	rig_end(&rig);
}

static void
one_sender_has_one_session_and_a_later_life_another(void)
{
	struct af_rx_session *first, *second;
	uint32_t id;

	rig_begin(&rig, 1, 1 << 20);
	first = opened(5, 3, 0);
	CHECK(first && opened(5, 3, 0) == first);
	id = first->id;
	CHECK(!opened(5, 2, 0)); /* an earlier life: late, or forged */
	second = opened(5, 4, 0);
	CHECK(second && second->id != id);
	CHECK_EQUAL(rig.rx.nb_sessions, 1);
	CHECK(opened(5, 0x8003, 0)); /* lives wrap around */
	CHECK(opened(6, 0, 1));
	CHECK_EQUAL(rig.rx.nb_sessions, 2);
	rig_end(&rig);
}

static void
session_numbers_wrap_past_zero(void)
{
	rig_begin(&rig, 1, 1 << 20);
	rig.rx.next_session = UINT32_MAX;
	CHECK_EQUAL(opened(1, 0, 1)->id, UINT32_MAX);
	CHECK_EQUAL(opened(2, 0, 2)->id, 1); /* 0 is nobody's */
	rig.rx.next_session = UINT32_MAX;
	CHECK_EQUAL(opened(3, 0, 3)->id, 2); /* and none is given twice */
	rig_end(&rig);
}

static void
sessions_are_bounded_and_living_ones_stay(void)
{
	rig_begin(&rig, 1, 1 << 20);
	for (uint32_t i = 0; i < AF_SESSIONS; i++)
		CHECK((opened(100 + i, 0, (uint8_t)i)->spoke = true));
	CHECK(!opened(7, 0, 200));
	rig.rx.sessions[9]->closed = true; /* that one makes room */
	CHECK(opened(7, 0, 200));
	CHECK_EQUAL(rig.rx.nb_sessions, AF_SESSIONS);
	CHECK(opened(8, 0, 201)); /* instead of that one, which has sent nothing yet */
	CHECK_EQUAL(rig.rx.nb_sessions, AF_SESSIONS);
	rig.rx.sessions[AF_SESSIONS - 1]->spoke = true;
	CHECK(!opened(9, 0, 202));
	rig_end(&rig);
}

/* A session with a path on which numbers 0, 1 and 3 came. */
static struct af_rx_session *
reporting(void)
{
	struct af_rx_session *session;

	rig_begin(&rig, 1, 1 << 20);
	session = opened(5, 0, 0);
	session->nb_paths = 1;
	session->paths[0].known = true;
	for (uint64_t n = 0; n < 4; n++)
		if (n != 2)
			af_rx_pktnum_take(&session->paths[0].pn, n);
	session->paths[0].frames = 3;
	session->paths[0].echo_ns = 12345;
	session->paths[0].heard_ns = rig.now - 700;
	rig.rx.ports[0].nb_paths = 1;
	return session;
}

static void
a_report_has_exactly_the_receivers_state(void)
{
	struct af_rx_session *session = reporting();
	struct af_path_feedback path;
	struct af_feedback r;
	struct af_frame f;
	uint64_t word;

	session->granted = 9;
	session->done = 8;
	session->confirmed = 7;
	session->urgent = true;
	CHECK(said(&f));
	CHECK_EQUAL(f.kind, AF_FEEDBACK);
	CHECK_EQUAL(f.session, session->id);
	CHECK_EQUAL(f.nbytes, sizeof r + sizeof path + 8);
	memcpy(&r, f.payload, sizeof r);
	CHECK_EQUAL(AF_BE32(r.granted), 9);
	CHECK_EQUAL(AF_BE32(r.done), 8);
	CHECK_EQUAL(AF_BE32(r.confirmed), 7);
	CHECK_EQUAL(r.ask_slice, 0);
	CHECK_EQUAL(AF_BE64(r.free_bytes), 1 << 20);
	CHECK_EQUAL(r.nb_paths, 1);
	memcpy(&path, f.payload + sizeof r, sizeof path);
	CHECK_EQUAL(path.words, 1);
	CHECK_EQUAL(AF_BE64(path.next), 4);
	CHECK_EQUAL(AF_BE64(path.frames), 3);
	CHECK_EQUAL(AF_BE64(path.echo_ns), 12345);
	CHECK_EQUAL(AF_BE32(path.hold_ns), 700);
	CHECK_EQUAL(AF_BE32(path.window), 256);
	memcpy(&word, f.payload + sizeof r + sizeof path, 8);
	CHECK_EQUAL(AF_BE64(word), ~(1ull << 62)); /* number 2 is missing */
	CHECK(!said(&f)); /* told once */
	CHECK(!session->urgent);
	rig_end(&rig);
}

static void
a_grant_says_so_by_its_kind(void)
{
	struct af_rx_session *session = reporting();
	struct af_frame f;

	session->urgent = session->granted_now = true;
	CHECK(said(&f));
	CHECK_EQUAL(f.kind, AF_GRANT);
	session->urgent = true;
	CHECK(said(&f));
	CHECK_EQUAL(f.kind, AF_FEEDBACK);
	CHECK_EQUAL(f.number, 2); /* newer than the one before */
	rig_end(&rig);
}

static void
news_are_told_after_some_frames_or_some_time(void)
{
	struct af_rx_session *session = reporting();
	struct af_frame f;

	session->paths[0].feedback_ns = rig.now;
	session->paths[0].news = AF_FEEDBACK_FRAMES;
	CHECK(!said(&f));
	session->paths[0].news++;
	CHECK(said(&f));
	session->paths[0].news = 1;
	rig.now += AF_FEEDBACK_NS - 1;
	CHECK(!said(&f));
	rig.now++;
	CHECK(said(&f));
	rig.now += 1000 * AF_FEEDBACK_NS; /* nothing new */
	CHECK(!said(&f));
	rig_end(&rig);
}

static void
a_probe_is_answered_with_what_the_oldest_slice_lacks(void)
{
	static const uint64_t sizes[] = {5 * RIG_PAYLOAD};
	struct af_tx_slice *s;
	struct af_rx_session *session;
	struct af_feedback r;
	struct af_frame f;

	rig_begin(&rig, 1, 8 << 20);
	rig_open(&rig);
	s = rig_post(&rig, 1, sizes);
	af_tx_tick(&rig.tx, rig.now);
	CHECK(af_tx_next_chunk(&rig.tx, 0, rig.now, frame));
	rig_deliver(&rig, TO_RECEIVER, 0, frame, AF_HEADER + s->manifest_bytes);
	session = rig.rx.sessions[0];
	CHECK_EQUAL(session->slots[1].state, AF_RX_FLOWING);
	session->slots[1].slice->bitmap[0] |= 7; /* the manifest, and two chunks */
	session->paths[0].urgent = true;
	CHECK(said(&f));
	memcpy(&r, f.payload, sizeof r);
	CHECK_EQUAL(AF_BE32(r.ask_slice), 1);
	CHECK_EQUAL(AF_BE32(r.ask_chunk), 3);
	af_tx_fail_all(&rig.tx, AF_TX_CANCELLED, rig.now);
	rig_slice_free(s);
	rig_end(&rig);
}

static void
a_long_text_is_told_in_pieces_that_join(void)
{
	static char text[5000], joined[5000];
	struct af_rx_session *session = reporting();
	struct af_frame f;
	uint32_t got = 0, nb_pieces = 0;

	for (size_t i = 0; i < sizeof text; i++)
		text[i] = (char)('a' + check_random(26));
	session->newest = 1;
	af_rx_keep_text(session, 1, text, sizeof text);
	session->urgent = true;
	while (said(&f)) {
		struct af_feedback r;

		memcpy(&r, f.payload, sizeof r);
		CHECK(f.nbytes + AF_HEADER <= AF_FEEDBACK_BYTES);
		if (!r.text_bytes)
			continue;
		CHECK_EQUAL(AF_BE32(r.text_slice), 1);
		CHECK_EQUAL(AF_BE16(r.text_total), sizeof text);
		CHECK_EQUAL(AF_BE16(r.text_at), got);
		memcpy(joined + got, f.payload + f.nbytes - AF_BE16(r.text_bytes), AF_BE16(r.text_bytes));
		got += AF_BE16(r.text_bytes);
		nb_pieces++;
	}
	CHECK_EQUAL(got, sizeof text);
	CHECK(nb_pieces > 3 && !memcmp(text, joined, sizeof text));
	rig_end(&rig);
}

static void
the_drop_that_is_told_is_the_most_frequent_one_that_matters(void)
{
	rig_begin(&rig, 1, 1 << 20);
	CHECK_EQUAL(af_rx_main_drop(&rig.rx), AF_OK);
	rig.rx.drops[AF_DROP_FOREIGN] = 1000000; /* other people's frames */
	CHECK_EQUAL(af_rx_main_drop(&rig.rx), AF_OK);
	rig.rx.drops[AF_DROP_CRC] = 3;
	CHECK_EQUAL(af_rx_main_drop(&rig.rx), AF_DROP_CRC);
	rig.rx.drops[AF_DROP_MTU] = 4;
	CHECK_EQUAL(af_rx_main_drop(&rig.rx), AF_DROP_MTU);
	rig_end(&rig);
}

static void
hellos_of_another_version_are_answered_now_and_then(void)
{
	struct af_hello h = {0};
	uint8_t src[6] = {2, 0, 0, 0, 1, 0};
	struct af_frame f;

	rig_begin(&rig, 1, 1 << 20);
	for (int i = 0; i < 3; i++) {
		uint32_t size = af_hello_write(frame, src, af_broadcast, &h, "old", "", 0, 1);

		frame[14] = (AF_VERSION + 1) << 4 | AF_HELLO;
		CHECK(!af_rx_on_frame(&rig.rx, 0, rig.now, frame, size, NULL));
	}
	CHECK_EQUAL(rig.rx.drops[AF_DROP_VERSION], 3);
	CHECK(said(&f) && f.kind == AF_HELLO);
	CHECK(!said(&f));
	CHECK_EQUAL(rig.rx.nb_sessions, 0);
	rig_end(&rig);
}

CASES(CASE(a_hello_is_answered_with_a_session), CASE(a_sender_that_asks_for_another_learns_our_name_now_and_then),
      CASE(answers_wait_in_a_line_of_bounded_length), CASE(one_sender_has_one_session_and_a_later_life_another),
      CASE(session_numbers_wrap_past_zero), CASE(sessions_are_bounded_and_living_ones_stay),
      CASE(a_report_has_exactly_the_receivers_state), CASE(a_grant_says_so_by_its_kind),
      CASE(news_are_told_after_some_frames_or_some_time), CASE(a_probe_is_answered_with_what_the_oldest_slice_lacks),
      CASE(a_long_text_is_told_in_pieces_that_join), CASE(the_drop_that_is_told_is_the_most_frequent_one_that_matters),
      CASE(hellos_of_another_version_are_answered_now_and_then))

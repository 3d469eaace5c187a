/* feedback.h: what a receiver tells its senders of its state. */
#include "aiflow/rx/feedback.h"

#include "rig_rx.h"

/* A session with a path on which numbers 0, 1 and 3 came. */
static struct af_rx_session *
reporting(void)
{
	struct af_rx_session *session;

	rig_begin(&rig, 1, 1 << 20);
	session = opened(5, 0);
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
	CHECK_EQUAL(f.session, session->peer);
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
other_paths_are_told_of_when_they_have_news_or_all_are_asked_for(void)
{
	struct af_rx_session *session = reporting();

	session->nb_paths = 4;
	for (uint32_t k = 1; k < 3; k++) /* the fourth is not known */
		session->paths[k] = (struct af_rx_path){.known = true, .port = 1, .heard_ns = rig.now};
	session->paths[1].news = 1;
	for (int what = 0; what < 3; what++) {
		static const uint8_t wanted[] = {2, 1, 3}; /* news of one; no news; probed */
		struct af_feedback r;
		struct af_frame f;

		session->urgent = true;
		session->paths[0].urgent = what == 2;
		CHECK(said(&f));
		memcpy(&r, f.payload, sizeof r);
		CHECK_EQUAL(r.nb_paths, wanted[what]);
		CHECK_EQUAL(session->paths[1].news, 0);
	}
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

/* A frame every 0.1 ms, as on a link of 100 Mbit/s. */
static void
a_slow_stream_is_reported_less_often(void)
{
	struct af_rx_session *session = reporting();
	struct af_rx_path *path = &session->paths[0];
	uint64_t begin = rig.now;
	struct af_frame f;

	rig.rx.ports[0].p.point_to_point = false;
	path->pn.floor = path->pn.next;
	path->granted = 90;
	path->feedback_ns = begin;
	path->news = 0;
	for (uint32_t n = 1; n < AF_FEEDBACK_MANY; n++) {
		path->news++;
		path->heard_ns = rig.now;
		CHECK(!said(&f));
		rig.now += 100000;
	}
	path->news++;
	CHECK(said(&f)); /* many, and 0.5 ms later */

	path->feedback_ns = rig.now;
	for (path->news = 1; rig.now < path->feedback_ns + AF_FEEDBACK_MOST_NS; rig.now += 190000) {
		path->heard_ns = rig.now;
		CHECK(!said(&f));
	}
	CHECK(said(&f)); /* few, and 2 ms later */

	path->feedback_ns = rig.now;
	path->news = 1;
	path->heard_ns = rig.now + 400000;
	rig.now = path->heard_ns + AF_FEEDBACK_STILL_NS - 1;
	CHECK(!said(&f));
	rig.now++;
	CHECK(said(&f)); /* few, and no more come */

	path->granted = 12;
	path->feedback_ns = rig.now;
	path->news = 3;
	path->heard_ns = rig.now += AF_FEEDBACK_NS;
	CHECK(said(&f)); /* a quarter of the window */

	path->granted = 90;
	path->feedback_ns = rig.now;
	path->news = 3;
	path->heard_ns = rig.now += AF_FEEDBACK_NS;
	path->pn.next++;
	CHECK(said(&f)); /* there is a hole */
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
	CHECK(af_tx_next_chunk(&rig.tx, 0, rig.now, rig_frame));
	rig_deliver(&rig, TO_RECEIVER, 0, rig_frame, AF_HEADER + s->manifest_bytes);
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

/* Feedback on one path may always be lost, when only its way back is dead. */
static void
each_path_that_is_asked_tells_a_text_whole(void)
{
	static const char text[3000] = {'x'};
	struct af_rx_session *session = reporting();
	struct af_frame f;

	rig.now += AF_TEXTS_NS;
	session->nb_paths = 2;
	session->paths[1] = session->paths[0];
	session->newest = 1;
	af_rx_keep_text(session, 1, text, sizeof text);
	for (int k = 0; k < 2; k++) { /* a probe of each path, at the same time */
		uint32_t got = 0;

		session->paths[k].urgent = true;
		while (said(&f)) {
			struct af_feedback r;

			memcpy(&r, f.payload, sizeof r);
			CHECK_EQUAL(AF_BE16(r.text_at), r.text_bytes ? got : 0);
			got += AF_BE16(r.text_bytes);
		}
		CHECK_EQUAL(got, sizeof text);
	}
	rig_end(&rig);
}

/* The slices whose places the next feedback tells; returns how many. */
static uint32_t
places_told(struct af_place *places, uint32_t most)
{
	struct af_extension_cursor c = {0};
	struct af_path_feedback path;
	struct af_feedback r;
	uint32_t count = 0;
	struct af_frame f;

	session->urgent = true;
	CHECK(said(&f));
	memcpy(&r, f.payload, sizeof r);
	c.at = f.payload + sizeof r;
	c.end = f.payload + f.nbytes;
	for (uint32_t i = 0; i < r.nb_paths; i++) {
		memcpy(&path, c.at, sizeof path);
		c.at += sizeof path + path.words * 8u;
	}
	c.at += AF_BE16(r.text_bytes);
	CHECK(c.at <= c.end);
	while (af_extension_next(&c)) {
		CHECK_EQUAL(c.kind, AF_EXTENSION_PLACES);
		CHECK_EQUAL(c.nbytes % sizeof *places, 0);
		count = c.nbytes / (uint32_t)sizeof *places;
		CHECK(count && count <= most);
		memcpy(places, c.bytes, c.nbytes);
	}
	return count;
}

static void
places_are_told_until_their_slices_are_whole(void)
{
	struct af_place places[8];

	session = reporting();
	rig_share(&rig);
	for (uint32_t id = 1; id <= 4; id++)
		put_placed(id);
	session->granted = 4; /* the fourth is not */
	session->slots[2].slice->has_place = false;
	for (int i = 0; i < 3; i++) { /* each feedback may be lost */
		session->granted_now = i == 0;
		CHECK_EQUAL(places_told(places, 8), 2);
		for (uint32_t k = 0; k < 2; k++) {
			CHECK_EQUAL(AF_BE32(places[k].slice), 1 + 2 * k);
			CHECK_EQUAL(AF_BE64(places[k].offset), session->slots[1 + 2 * k].slice->block->offset);
		}
	}
	session->slots[1].state = AF_RX_WHOLE;
	rig.rx.flowing--;
	CHECK_EQUAL(places_told(places, 8), 1);
	CHECK_EQUAL(AF_BE32(places[0].slice), 3);
	session->writer = 0; /* its process is dead */
	CHECK_EQUAL(places_told(places, 8), 0);
	rig_end(&rig);
}

static void
a_sender_on_a_wire_is_told_no_place(void)
{
	struct af_place places[8];

	session = reporting();
	put_placed(1)->slice->has_place = false;
	session->granted = 2;
	CHECK_EQUAL(places_told(places, 8), 0);
	rig_end(&rig);
}

static void
places_wait_for_room_behind_a_long_text(void)
{
	static const char text[3000] = {'x'};
	struct af_place places[8];
	uint32_t told = 0;

	session = reporting();
	put_placed(1);
	session->granted = 2;
	session->newest = 1;
	af_rx_keep_text(session, 1, text, sizeof text);
	while (session->text_due)
		told += places_told(places, 8);
	CHECK_EQUAL(told, 1); /* in the last piece's frame */
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

CASES(CASE(a_report_has_exactly_the_receivers_state),
      CASE(other_paths_are_told_of_when_they_have_news_or_all_are_asked_for), CASE(a_grant_says_so_by_its_kind),
      CASE(news_are_told_after_some_frames_or_some_time), CASE(a_slow_stream_is_reported_less_often),
      CASE(a_probe_is_answered_with_what_the_oldest_slice_lacks), CASE(a_long_text_is_told_in_pieces_that_join),
      CASE(each_path_that_is_asked_tells_a_text_whole),
      CASE(the_drop_that_is_told_is_the_most_frequent_one_that_matters),
      CASE(places_are_told_until_their_slices_are_whole), CASE(a_sender_on_a_wire_is_told_no_place),
      CASE(places_wait_for_room_behind_a_long_text))

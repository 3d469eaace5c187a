/* rx_state.h: what a receiver knows of sessions and slices, and how a slice ends. */
#include "aiflow/rx/rx_state.h"

#include "rig.h"

static struct rig rig;
static struct af_rx_session *session;

static void
begin(void)
{
	static const uint8_t mac[6] = {2, 0, 0, 0, 1, 0};
	char name[AF_NAME_BYTES] = "source";

	rig_begin(&rig, 1, 1 << 20);
	session = af_rx_open_session(&rig.rx, 7ull << AF_LIFE_BITS, mac, name, rig.now);
	CHECK(session);
	memcpy(session->macs[session->nb_macs++], mac, 6);
}

/* A slice of one inlined element stands in its slot, in this state. */
static struct af_rx_slot *
put(uint32_t id, enum af_rx_state state)
{
	struct af_rx_slot *slot = &session->slots[id % AF_RX_SLOTS];
	struct af_rx_slice *s = calloc(1, sizeof *s);

	s->id = id;
	s->inlined = true;
	s->session = session;
	s->arena = rig.rx.arena;
	s->nbytes = 10;
	s->nb_elements = 1;
	*slot = (struct af_rx_slot){.id = id, .state = (uint8_t)state, .slice = s};
	return slot;
}

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
whole_slices_are_handed_over_in_order_alone(void)
{
	begin();
	put(2, AF_RX_WHOLE);
	af_rx_advance(&rig.rx, session);
	CHECK(!rig.rx.ready);
	put(1, AF_RX_WHOLE);
	put(3, AF_RX_FLOWING);
	rig.rx.flowing = 1;
	af_rx_advance(&rig.rx, session);
	CHECK(rig.rx.ready && rig.rx.ready->id == 1 && rig.rx.ready->next->id == 2 && !rig.rx.ready->next->next);
	CHECK_EQUAL(session->done, 3);
	CHECK_EQUAL(session->confirmed, 3);
	CHECK_EQUAL(rig.rx.slices, 2);
	CHECK_EQUAL(rig.rx.bytes, 20);
	CHECK(rig.rx.changed && session->urgent);
	rig_end(&rig);
}

static void
a_void_slice_lets_the_next_ones_pass(void)
{
	begin();
	put(2, AF_RX_WHOLE);
	af_rx_refuse(&rig.rx, session, put(1, AF_RX_READ), AF_VOID_TOO_LARGE, 77);
	af_rx_advance(&rig.rx, session);
	CHECK(rig.rx.ready && rig.rx.ready->id == 2);
	CHECK_EQUAL(AF_BE32(session->voids[1].slice), 1);
	CHECK_EQUAL(AF_BE32(session->voids[1].reason), AF_VOID_TOO_LARGE);
	CHECK_EQUAL(AF_BE64(session->voids[1].detail), 77);
	rig_end(&rig);
}

static void
a_newer_void_is_not_overwritten_by_an_older_one(void)
{
	begin();
	af_rx_void(session, 9, AF_VOID_INTEGRITY, 0);
	af_rx_void(session, 1, AF_VOID_MANIFEST, 0); /* the same place */
	CHECK_EQUAL(AF_BE32(session->voids[1].slice), 9);
	af_rx_void(session, 17, AF_VOID_MANIFEST, 0);
	CHECK_EQUAL(AF_BE32(session->voids[1].slice), 17);
	af_rx_void(session, 17, AF_VOID_SILENCE, 0); /* has a place of its own */
	CHECK_EQUAL(AF_BE32(session->voids[1].reason), AF_VOID_MANIFEST);
	CHECK_EQUAL(AF_BE32(session->voids[AF_SLICES_IN_FLIGHT].reason), AF_VOID_SILENCE);
	rig_end(&rig);
}

static void
delivery_waits_for_the_users_word(void)
{
	begin();
	rig.rx.confirms = true;
	for (uint32_t id = 1; id <= 3; id++)
		put(id, AF_RX_WHOLE);
	af_rx_advance(&rig.rx, session);
	CHECK_EQUAL(session->done, 4);
	CHECK_EQUAL(session->confirmed, 1);
	af_rx_judge(session, 2, false, NULL, 0);
	CHECK_EQUAL(session->confirmed, 1); /* in order */
	af_rx_judge(session, 1, true, "disk full", 9);
	CHECK_EQUAL(session->confirmed, 3);
	CHECK_EQUAL(AF_BE32(session->voids[1].reason), AF_VOID_FAILED);
	CHECK_EQUAL(AF_BE64(session->voids[1].detail), 9);
	af_rx_judge(session, 1, false, NULL, 0); /* a second word on it */
	CHECK_EQUAL(AF_BE32(session->voids[1].reason), AF_VOID_FAILED);
	af_rx_judge(session, 4, true, "x", 1); /* not handed over yet */
	CHECK_EQUAL(session->confirmed, 3);
	af_rx_fail_pending(&rig.rx, "closed", 6);
	CHECK_EQUAL(session->confirmed, 4);
	CHECK_EQUAL(AF_BE32(session->voids[3].reason), AF_VOID_FAILED);
	rig_end(&rig);
}

static void
verdicts_reach_their_session_alone(void)
{
	static struct af_verdicts verdicts;

	begin();
	rig.rx.confirms = true;
	rig.rx.verdicts = &verdicts;
	put(1, AF_RX_WHOLE);
	af_rx_advance(&rig.rx, session);
	af_verdicts_push(&verdicts, session->id + 1, 1, false, NULL, 0);
	af_rx_hear_verdicts(&rig.rx);
	CHECK_EQUAL(session->confirmed, 1);
	af_verdicts_push(&verdicts, session->id, 1, false, NULL, 0);
	af_rx_hear_verdicts(&rig.rx);
	CHECK_EQUAL(session->confirmed, 2);
	rig_end(&rig);
}

static void
texts_are_copied_bounded_and_replaced(void)
{
	static char longest[AF_TEXT_MOST + 100];
	char text[] = "first";

	begin();
	af_rx_keep_text(session, 1, text, 5);
	memset(text, 0, sizeof text);
	CHECK(session->texts[1].nbytes == 5 && !memcmp(session->texts[1].bytes, "first", 5));
	CHECK_EQUAL(session->text_due, 5);
	af_rx_keep_text(session, 1 + AF_RX_SLOTS, longest, sizeof longest);
	CHECK_EQUAL(session->texts[1].nbytes, AF_TEXT_MOST);
	CHECK_EQUAL(session->texts[1].slice, 1 + AF_RX_SLOTS);
	af_rx_forget_texts(session);
	CHECK(!session->texts[1].bytes && !session->text_due);
	rig_end(&rig);
}

static void
a_slice_that_leaves_the_line_unlinks_itself(void)
{
	struct af_rx_slot *slots[3];

	begin();
	for (uint32_t i = 0; i < 3; i++) {
		slots[i] = put(i + 1, AF_RX_WAITING);
		*rig.rx.waiting_tail = slots[i]->slice;
		rig.rx.waiting_tail = &slots[i]->slice->next_waiting;
	}
	af_rx_drop_slot(&rig.rx, slots[2], AF_RX_VOID); /* the last one */
	CHECK(rig.rx.waiting_tail == &slots[1]->slice->next_waiting);
	af_rx_drop_slot(&rig.rx, slots[0], AF_RX_VOID);
	CHECK(rig.rx.waiting == slots[1]->slice && rig.rx.waiter_removed);
	af_rx_drop_slot(&rig.rx, slots[1], AF_RX_EMPTY);
	CHECK(!rig.rx.waiting && rig.rx.waiting_tail == &rig.rx.waiting);
	CHECK(slots[1]->state == AF_RX_EMPTY && !slots[1]->slice);
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

static void
silence_frees_what_was_begun_and_says_so(void)
{
	begin();
	put(1, AF_RX_FLOWING);
	rig.rx.flowing = 1;
	put(2, AF_RX_READING);
	af_rx_silence(&rig.rx, session);
	CHECK_EQUAL(rig.rx.flowing, 0);
	CHECK(session->silenced && !session->slots[1].slice && !session->slots[2].slice);
	CHECK_EQUAL(AF_BE32(session->voids[AF_SLICES_IN_FLIGHT].reason), AF_VOID_SILENCE);
	CHECK_EQUAL(AF_BE32(session->voids[AF_SLICES_IN_FLIGHT].slice), session->done);
	rig_end(&rig);
}

static void
a_sender_is_counted_as_closed_once(void)
{
	begin();
	put(1, AF_RX_FLOWING);
	rig.rx.flowing = 1;
	af_rx_end_session(&rig.rx, session);
	af_rx_end_session(&rig.rx, session);
	CHECK_EQUAL(rig.rx.nb_seen, 1);
	CHECK_EQUAL(rig.rx.nb_closed, 1);
	CHECK_EQUAL(rig.rx.nb_gone, 0); /* it said goodbye */
	CHECK(!session->slots[1].slice);
	af_rx_count_out(&rig.rx, session);
	CHECK_EQUAL(rig.rx.nb_closed, 1);
	rig_end(&rig);
	begin();
	session->spoke = true;
	af_rx_forget(&rig.rx, 0);
	CHECK_EQUAL(rig.rx.nb_gone, 1);
	CHECK_EQUAL(rig.rx.nb_sessions, 0);
	rig_end(&rig);
}

CASES(CASE(sessions_and_their_macs_are_found), CASE(whole_slices_are_handed_over_in_order_alone),
      CASE(a_void_slice_lets_the_next_ones_pass), CASE(a_newer_void_is_not_overwritten_by_an_older_one),
      CASE(delivery_waits_for_the_users_word), CASE(verdicts_reach_their_session_alone),
      CASE(texts_are_copied_bounded_and_replaced), CASE(a_slice_that_leaves_the_line_unlinks_itself),
      CASE(latencies_of_clocks_that_disagree_say_nothing), CASE(silence_frees_what_was_begun_and_says_so),
      CASE(a_sender_is_counted_as_closed_once))

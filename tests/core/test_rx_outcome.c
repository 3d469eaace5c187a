/* rx_outcome.h: what a receiver tells of its slices: voids, verdicts and texts. */
#include "aiflow/rx/rx_outcome.h"

#include "rig_rx.h"

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
	session->urgent = false;
	af_rx_judge(session, 2, false, NULL, 0);
	CHECK(session->urgent); /* its sender should hear of it */
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

CASES(CASE(a_newer_void_is_not_overwritten_by_an_older_one), CASE(delivery_waits_for_the_users_word),
      CASE(verdicts_reach_their_session_alone), CASE(texts_are_copied_bounded_and_replaced))

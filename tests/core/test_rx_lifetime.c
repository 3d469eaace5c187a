/* rx_lifetime.h: how slices and sessions end at a receiver. */
#include "aiflow/rx/rx_agent.h"

#include "aiflow/rx/rx_lifetime.h"

#include "rig_rx.h"

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

/* One slice whose sender may write to it, and one that none of them can write to. */
static void
begin_placed(void)
{
	begin();
	rig_share(&rig);
	put_placed(1);
	put_placed(2)->slice->has_place = false;
	CHECK_EQUAL(rig.rx.flowing, 2);
}

static void
what_a_silent_sender_may_write_to_is_fenced(void)
{
	begin_placed();
	af_rx_silence(&rig.rx, session);
	CHECK_EQUAL(rig.arena.fenced, 1);
	CHECK_EQUAL(rig.arena.used, 0);
	CHECK(rig.arena.first.next->fenced && rig.arena.first.next->next == &rig.arena.first);
	CHECK_EQUAL(rig.arena.first.next->writer.connection, RIG_WRITER);
	CHECK_EQUAL(rig.arena.first.next->writer.instance, 7);
	af_rx_forget(&rig.rx, 0); /* its next life, or its end, lifts it; forgetting it does not */
	CHECK_EQUAL(rig.arena.fenced, 1);
	af_rx_writer_gone(&rig.rx, RIG_WRITER + 1);
	CHECK_EQUAL(rig.arena.fenced, 1);
	af_rx_writer_gone(&rig.rx, RIG_WRITER);
	CHECK_EQUAL(rig.arena.fenced, 0);
	rig_end(&rig);
}

static void
a_session_that_is_forgotten_is_fenced(void)
{
	begin_placed();
	af_rx_forget(&rig.rx, 0);
	CHECK_EQUAL(rig.arena.fenced, 1);
	rig_end(&rig);
	begin_placed();
	session->ports = 1;
	rig.rx.ports[0].p.attached = true;
	af_rx_detach(&rig.rx, 0); /* its connection hung up: its process may live on */
	CHECK_EQUAL(rig.rx.nb_sessions, 0);
	CHECK_EQUAL(rig.arena.fenced, 1);
	rig_end(&rig);
}

static void
a_sender_that_says_goodbye_writes_no_more(void)
{
	begin_placed();
	af_rx_end_session(&rig.rx, session);
	CHECK_EQUAL(rig.arena.fenced, 0);
	CHECK_EQUAL(rig.arena.used, 0);
	rig_end(&rig);
	begin_placed();
	af_rx_silence(&rig.rx, session);
	session->spoke = true;
	af_rx_count_out(&rig.rx, session); /* it was given up, and says goodbye after all */
	af_rx_end_session(&rig.rx, session);
	CHECK_EQUAL(rig.arena.fenced, 0);
	rig_end(&rig);
}

static void
a_slice_that_its_sender_gave_up_or_sent_whole_is_not_fenced(void)
{
	begin_placed();
	af_rx_refuse(&rig.rx, session, &session->slots[1], AF_VOID_CANCELLED, 0);
	CHECK_EQUAL(rig.arena.fenced, 0);
	session->slots[2].slice->has_place = true;
	session->slots[2].state = AF_RX_WHOLE; /* it waits for an earlier one */
	rig.rx.flowing--;
	af_rx_silence(&rig.rx, session);
	CHECK_EQUAL(rig.arena.fenced, 0);
	CHECK_EQUAL(rig.arena.used, 0);
	rig_end(&rig);
}

static void
nothing_is_fenced_for_a_process_that_is_dead(void)
{
	begin_placed();
	af_rx_writer_gone(&rig.rx, RIG_WRITER);
	CHECK_EQUAL(session->writer, 0);
	af_rx_silence(&rig.rx, session);
	CHECK_EQUAL(rig.arena.fenced, 0);
	CHECK_EQUAL(rig.arena.used, 0);
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
	af_rx_count_out(&rig.rx, session); /* it fell silent */
	af_rx_count_out(&rig.rx, session);
	CHECK_EQUAL(rig.rx.nb_closed, 1);
	CHECK_EQUAL(rig.rx.nb_gone, 1);
	rig_end(&rig);
	begin();
	session->spoke = true;
	af_rx_forget(&rig.rx, 0);
	CHECK_EQUAL(rig.rx.nb_gone, 1);
	CHECK_EQUAL(rig.rx.nb_sessions, 0);
	rig_end(&rig);
}

static void
a_receiver_that_goes_says_so_on_every_path_and_takes_no_sender(void)
{
	uint8_t frame[RIG_FRAME];

	begin();
	for (uint32_t k = 0; k < 2; k++) {
		session->paths[k].known = true;
		session->paths[k].port = 0;
	}
	session->nb_paths = 3;
	CHECK(!af_rx_owes_bye(&rig.rx));
	af_rx_part(&rig.rx);
	for (int i = 0; i < 2; i++) {
		CHECK(af_rx_owes_bye(&rig.rx));
		CHECK(af_rx_next_frame(&rig.rx, 0, rig.now, NULL, frame));
		CHECK_EQUAL(frame[14] & 15, AF_BYE);
		CHECK_EQUAL(frame[18], AF_BYE_RECEIVER);
	}
	CHECK(!af_rx_owes_bye(&rig.rx));
	for (uint32_t nb = rig.rx.nb_sessions; nb == rig.rx.nb_sessions && rig.now < 2 * RIG_START; rig_step(&rig))
		CHECK(!rig.tx.open); /* it asks, and has no answer */
	session->paths[0].bye_due = true;
	rig.rx.ports[0].p.attached = false;
	CHECK(!af_rx_owes_bye(&rig.rx)); /* what cannot leave is not waited for */
	rig_end(&rig);
}

CASES(CASE(whole_slices_are_handed_over_in_order_alone), CASE(a_void_slice_lets_the_next_ones_pass),
      CASE(a_slice_that_leaves_the_line_unlinks_itself), CASE(silence_frees_what_was_begun_and_says_so),
      CASE(what_a_silent_sender_may_write_to_is_fenced), CASE(a_session_that_is_forgotten_is_fenced),
      CASE(a_sender_that_says_goodbye_writes_no_more),
      CASE(a_slice_that_its_sender_gave_up_or_sent_whole_is_not_fenced),
      CASE(nothing_is_fenced_for_a_process_that_is_dead), CASE(a_sender_is_counted_as_closed_once),
      CASE(a_receiver_that_goes_says_so_on_every_path_and_takes_no_sender))

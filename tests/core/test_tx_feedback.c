/* tx_feedback.h: what a sender does with the receiver's feedback. */
#include "aiflow/tx/tx_feedback.h"

#include "rig_tx.h"

static const uint64_t large[] = {100000};

static void
a_slice_is_done_when_it_is_confirmed(void)
{
	struct af_tx_slice *s = flowing(large);

	told((struct af_feedback){.granted = AF_BE32(2), .done = AF_BE32(2), .confirmed = AF_BE32(1)}, NULL, 0);
	CHECK(s->held);
	CHECK_EQUAL(s->state, AF_TX_FLOWING); /* its user has not said so yet */
	told((struct af_feedback){.granted = AF_BE32(2), .done = AF_BE32(2), .confirmed = AF_BE32(2)}, NULL, 0);
	CHECK_EQUAL(s->state, AF_TX_DONE);
	CHECK_EQUAL(s->error, AF_TX_OK);
	CHECK(!af_tx_busy(&rig.tx));
	end(s);
}

static void
a_void_is_the_slices_error(void)
{
	static const struct {
		uint32_t reason;
		int error;
	} table[] = {{AF_VOID_TOO_LARGE, AF_TX_TOO_LARGE},   {AF_VOID_INTEGRITY, AF_TX_INTEGRITY},
		     {AF_VOID_MANIFEST, AF_TX_REFUSED},      {AF_VOID_UNKNOWN, AF_TX_UNKNOWN},
		     {AF_VOID_FAILED, AF_TX_FAILED_BY_USER}, {99, AF_TX_REFUSED}};

	for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
		struct af_tx_slice *s = flowing(large);
		struct af_feedback r = {.granted = AF_BE32(2), .done = AF_BE32(2), .confirmed = AF_BE32(2)};

		r.voids[1] = (struct af_void){.slice = AF_BE32(1), .reason = AF_BE32(table[i].reason)};
		told(r, NULL, 0);
		CHECK_EQUAL(s->state, AF_TX_FAILED);
		CHECK_EQUAL(s->error, table[i].error);
		CHECK_EQUAL(af_tx_error_of(table[i].reason), table[i].error);
		end(s);
	}
}

static void
the_users_words_are_joined_from_pieces_in_any_order(void)
{
	struct af_tx_slice *s = flowing(large);
	struct af_feedback r = {.granted = AF_BE32(2),
				.done = AF_BE32(2),
				.confirmed = AF_BE32(2),
				.text_slice = AF_BE32(1),
				.text_total = AF_BE16(10)};

	r.voids[1] = (struct af_void){.slice = AF_BE32(1), .reason = AF_BE32(AF_VOID_FAILED), .detail = AF_BE64(10)};
	r.text_at = AF_BE16(6); /* the first piece was lost: it comes again */
	r.text_bytes = AF_BE16(4);
	told(r, "full", 4);
	CHECK_EQUAL(s->state, AF_TX_FLOWING);
	CHECK_EQUAL(s->text_got, 0);
	r.text_at = 0;
	r.text_bytes = AF_BE16(7);
	told(r, "disk is", 7);
	CHECK_EQUAL(s->text_got, 7);
	told(r, "disk is", 7); /* repeated */
	CHECK_EQUAL(s->text_got, 7);
	r.text_at = AF_BE16(4); /* overlaps what is known */
	r.text_bytes = AF_BE16(6);
	told(r, " is ok", 6);
	CHECK_EQUAL(s->state, AF_TX_FAILED);
	CHECK(s->text_bytes == 10 && !memcmp(s->text, "disk is ok", 10));
	end(s);
}

static void
pieces_beyond_their_text_are_ignored(void)
{
	struct af_tx_slice *s = flowing(large);
	struct af_feedback r = {.granted = AF_BE32(2),
				.done = AF_BE32(1),
				.confirmed = AF_BE32(1),
				.text_slice = AF_BE32(1),
				.text_total = AF_BE16(10),
				.text_at = AF_BE16(8),
				.text_bytes = AF_BE16(4)};

	told(r, "full", 4);
	CHECK(!s->text);
	r.text_at = 0;
	told(r, "ful", 3); /* fewer bytes than it says */
	CHECK(!s->text);
	told(r, "full", 4);
	CHECK_EQUAL(s->text_got, 4);
	r.text_total = AF_BE16(60000); /* another length */
	r.text_at = AF_BE16(4);
	told(r, "full", 4);
	CHECK_EQUAL(s->text_got, 4);
	end(s);
}

static void
feedback_about_what_was_never_sent_is_refused(void)
{
	struct af_tx_slice *s = flowing(large);
	struct af_frame empty = {.kind = AF_FEEDBACK, .payload = (const uint8_t *)"", .nbytes = 0};
	struct af_path_feedback path = {.path = AF_BE16(0), .words = AF_RX_BITS / 64 + 1};
	struct af_feedback good = {.granted = AF_BE32(2), .done = AF_BE32(1), .confirmed = AF_BE32(1)}, r;
	uint8_t bytes[sizeof path + 200] = {0};

	CHECK_EQUAL(af_tx_on_feedback(&rig.tx, &empty, rig.now), AF_DROP_FEEDBACK);
	r = good;
	r.done = r.granted = AF_BE32(3); /* slice 2 */
	CHECK_EQUAL(told(r, NULL, 0), AF_DROP_FEEDBACK);
	r = good;
	r.confirmed = AF_BE32(2); /* before it is done */
	CHECK_EQUAL(told(r, NULL, 0), AF_DROP_FEEDBACK);
	r = good;
	r.nb_paths = 1;
	CHECK_EQUAL(told(r, NULL, 0), AF_DROP_FEEDBACK); /* no such bytes */
	memcpy(bytes, &path, sizeof path);
	CHECK_EQUAL(told(r, bytes, sizeof bytes), AF_DROP_FEEDBACK); /* a bitmap beyond the format */
	path.words = 16;
	memcpy(bytes, &path, sizeof path);
	CHECK_EQUAL(told(r, bytes, sizeof path + 16 * 8 - 1), AF_DROP_FEEDBACK);
	CHECK_EQUAL(told(r, bytes, sizeof path + 16 * 8), AF_OK);
	path.path = AF_BE16(31); /* no such path: skipped */
	memcpy(bytes, &path, sizeof path);
	CHECK_EQUAL(told(r, bytes, sizeof path + 16 * 8), AF_OK);
	CHECK_EQUAL(s->state, AF_TX_FLOWING);
	end(s);
}

static void
another_format_and_unknown_extensions_change_nothing(void)
{
	struct af_tx_slice *s = flowing(large);
	struct af_feedback done = {.granted = AF_BE32(2), .done = AF_BE32(2), .confirmed = AF_BE32(2)};

	CHECK_EQUAL(told(done, "\x80\1\0\0", 4), AF_DROP_VERSION);
	CHECK_EQUAL(told(done, "\0\1\0\5", 4), AF_DROP_FEEDBACK); /* beyond the frame */
	done.text_bytes = AF_BE16(3);
	CHECK_EQUAL(told(done, "ab", 2), AF_DROP_FEEDBACK); /* the same of its text */
	done.text_bytes = 0;
	done.format = AF_FEEDBACK_FORMAT + 1;
	CHECK_EQUAL(told(done, NULL, 0), AF_DROP_VERSION);
	CHECK_EQUAL(s->state, AF_TX_FLOWING);
	done.format = AF_FEEDBACK_FORMAT;
	CHECK_EQUAL(told(done, "\0\1\0\1x", 5), AF_OK); /* ignored */
	CHECK_EQUAL(s->state, AF_TX_DONE);
	end(s);
}

/* As `flowing`; the receiver's memory is mapped. */
static struct af_tx_slice *
flowing_shared(void)
{
	struct af_tx_slice *s;

	rig_begin(&rig, 2, 1 << 20);
	rig_share(&rig);
	rig_open(&rig);
	s = rig_post(&rig, 1, large);
	af_tx_tick(&rig.tx, rig.now);
	told((struct af_feedback){.granted = AF_BE32(2), .done = AF_BE32(1), .confirmed = AF_BE32(1)}, NULL, 0);
	CHECK_EQUAL(s->state, AF_TX_FLOWING);
	return s;
}

/* Feedback that grants slices below `granted`, with places behind it. */
static enum af_drop
told_places(uint32_t granted, const struct af_place *places, uint32_t count, uint32_t spare)
{
	uint8_t bytes[200] = {0};
	uint32_t nbytes = count * sizeof *places + spare;
	uint16_t head[2] = {AF_BE16(AF_EXTENSION_PLACES), AF_BE16((uint16_t)nbytes)};

	memcpy(bytes, head, sizeof head);
	memcpy(bytes + sizeof head, places, count * sizeof *places);
	return told((struct af_feedback){.granted = AF_BE32(granted), .done = AF_BE32(1), .confirmed = AF_BE32(1)},
		    bytes, sizeof head + nbytes);
}

static void
a_told_place_is_taken_by_the_slice_it_is_for(void)
{
	struct af_tx_slice *s = flowing_shared();
	struct af_place places[] = {{AF_BE32(7), AF_BE64(0)}, {AF_BE32(1), AF_BE64(8192)}, {AF_BE32(1), AF_BE64(0)}};

	CHECK_EQUAL(told_places(2, places, 1, 0), AF_OK); /* of no slice of ours */
	CHECK(!s->places);
	CHECK_EQUAL(told_places(2, places, 1, 11), AF_OK); /* half an entry */
	CHECK(!s->places);
	CHECK_EQUAL(told_places(2, places, 3, 5), AF_OK);
	CHECK(s->places && s->places->block == rig.shared.memories[0].base + 8192); /* the first word holds */
	CHECK_EQUAL(told_places(2, places + 2, 1, 0), AF_OK);
	CHECK(s->places->block == rig.shared.memories[0].base + 8192);
	end(s);
}

static void
a_place_that_no_memory_has_is_ignored(void)
{
	struct af_tx_slice *s = flowing_shared();
	struct af_place place = {AF_BE32(1), AF_BE64(rig.arena.address_space - 99999)};

	CHECK_EQUAL(told_places(2, &place, 1, 0), AF_OK);
	place.offset = AF_BE64(UINT64_MAX - 5);
	CHECK_EQUAL(told_places(2, &place, 1, 0), AF_OK);
	CHECK(!s->places);
	place.offset = 0;
	rig.tx.epoch++; /* another receiver's */
	CHECK_EQUAL(told_places(2, &place, 1, 0), AF_OK);
	CHECK(!s->places);
	rig.tx.epoch--;
	atomic_store(&s->state, AF_TX_ASKING); /* not granted */
	CHECK_EQUAL(told_places(1, &place, 1, 0), AF_OK);
	CHECK(!s->places);
	CHECK_EQUAL(told_places(2, &place, 1, 0), AF_OK); /* granted by the same feedback */
	CHECK(s->places);
	end(s);
}

static void
an_older_report_takes_nothing_back(void)
{
	struct af_tx_slice *s = flowing(large);

	rig.tx.feedback_number = 100;
	CHECK_EQUAL(
		told((struct af_feedback){.granted = AF_BE32(2), .done = AF_BE32(2), .confirmed = AF_BE32(2)}, NULL, 0),
		AF_OK);
	CHECK_EQUAL(s->state, AF_TX_DONE);
	rig.tx.feedback_number = 200;
	for (int i = 0; i < 2; i++) {
		struct af_feedback r = {.format = AF_FEEDBACK_FORMAT,
					.granted = AF_BE32(2),
					.done = AF_BE32(1),
					.confirmed = AF_BE32(1),
					.drop = AF_DROP_CRC,
					.free_bytes = AF_BE64(1 << 20)};
		struct af_frame f = {
			.number = 150 + 100 * (uint64_t)i, .payload = (const uint8_t *)&r, .nbytes = sizeof r};

		CHECK_EQUAL(af_tx_on_feedback(&rig.tx, &f, rig.now), AF_OK);
		CHECK_EQUAL(rig.tx.drop, i ? AF_DROP_CRC : AF_OK);
		CHECK_EQUAL(rig.tx.peer_free_bytes, i ? 1 << 20 : 0);
	}
	end(s);
}

static void
a_chunk_that_the_receiver_asks_for_is_retransmitted(void)
{
	struct af_tx_slice *s = flowing(large);
	struct af_feedback r = {.granted = AF_BE32(2),
				.done = AF_BE32(1),
				.confirmed = AF_BE32(1),
				.ask_slice = AF_BE32(1),
				.ask_chunk = AF_BE32(3)};

	told(r, NULL, 0);
	CHECK_EQUAL(rig.tx.retransmit_tail, rig.tx.retransmit_head); /* it is not all acknowledged yet */
	s->next_chunk = s->nb_acked = s->nb_chunks;
	memset(s->acked, 0xff, (s->nb_chunks / 64 + 1) * 8);
	told(r, NULL, 0);
	CHECK_EQUAL(rig.tx.retransmit_tail - rig.tx.retransmit_head, 1);
	CHECK_EQUAL(rig.tx.retransmit[rig.tx.retransmit_head].chunk, 3);
	CHECK(!af_tx_is_acked(s, 3));
	r.ask_chunk = AF_BE32(0xffffffff);
	told(r, NULL, 0);
	CHECK_EQUAL(rig.tx.retransmit_tail - rig.tx.retransmit_head, 1);
	end(s);
}

CASES(CASE(a_slice_is_done_when_it_is_confirmed), CASE(a_void_is_the_slices_error),
      CASE(the_users_words_are_joined_from_pieces_in_any_order), CASE(pieces_beyond_their_text_are_ignored),
      CASE(feedback_about_what_was_never_sent_is_refused), CASE(an_older_report_takes_nothing_back),
      CASE(another_format_and_unknown_extensions_change_nothing),
      CASE(a_chunk_that_the_receiver_asks_for_is_retransmitted), CASE(a_told_place_is_taken_by_the_slice_it_is_for),
      CASE(a_place_that_no_memory_has_is_ignored))

/* admission.h: manifests from senders, and grants for them. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memmem */
#endif
#include "aiflow/rx/admission.h"

#include "rig.h"

static struct rig rig;
static struct af_rx_session *session;
static uint64_t number; /* of the frames that are made up */

static void
begin(uint64_t limit)
{
	rig_begin(&rig, 1, limit);
	rig_open(&rig);
	session = rig.rx.sessions[0];
	number = session->paths[0].pn.next;
}

/* Piece `seq` of this slice's manifest, of `piece` bytes each. */
static enum af_drop
tell(const struct af_tx_slice *s, uint32_t id, uint32_t seq, uint32_t piece)
{
	uint32_t rest = s->manifest_bytes - seq * piece;
	struct af_frame f = {.kind = AF_MANIFEST,
			     .session = session->id,
			     .slice = id,
			     .number = number++,
			     .element = s->manifest_bytes,
			     .seq = seq,
			     .end = rest <= piece,
			     .payload = s->manifest + seq * piece,
			     .nbytes = rest < piece ? rest : piece};

	return rig_to_receiver(&rig, 0, f);
}

static struct af_tx_slice *
asking(uint32_t n, const uint64_t *sizes)
{
	struct af_tx_slice *s = rig_slice(n, sizes);
	struct af_manifest m;

	memcpy(&m, s->manifest, sizeof m);
	m.payload_bytes = AF_BE16(RIG_PAYLOAD);
	memcpy(s->manifest, &m, sizeof m);
	return s;
}

static uint32_t
void_of(uint32_t id)
{
	const struct af_void *v = &session->voids[id % AF_SLICES_IN_FLIGHT];

	return AF_BE32(v->slice) == id ? AF_BE32(v->reason) : AF_VOID_NONE;
}

static void
a_manifest_is_read_from_pieces_in_any_order(void)
{
	static const uint64_t sizes[40] = {100};
	struct af_tx_slice *s = asking(40, sizes); /* 980 bytes */
	static const uint32_t order[] = {3, 0, 9, 1, 2, 8, 4, 7, 5, 6};

	begin(8 << 20);
	for (int i = 0; i < 10; i++) {
		CHECK_EQUAL(session->granted, 1);
		CHECK_EQUAL(tell(s, 1, order[i], 98), AF_OK);
		if (i < 9)
			CHECK_EQUAL(tell(s, 1, order[i], 98), AF_DROP_DUPLICATE);
	}
	CHECK_EQUAL(session->granted, 2);
	CHECK_EQUAL(session->slots[1].state, AF_RX_FLOWING);
	CHECK(session->granted_now && session->urgent);
	CHECK_EQUAL(tell(s, 1, 0, 98), AF_DROP_DUPLICATE);
	rig_slice_free(s);
	rig_end(&rig);
}

static void
elements_are_laid_out_as_the_sender_cut_them(void)
{
	static const uint64_t sizes[] = {5000, 700, 700, 700, 0, 1460};
	struct af_tx_slice *s = asking(6, sizes);
	const struct af_rx_slice *got;

	begin(8 << 20);
	CHECK_EQUAL(tell(s, 1, 0, RIG_PAYLOAD), AF_OK);
	got = session->slots[1].slice;
	rig.tx.payload_bytes = RIG_PAYLOAD;
	CHECK(af_tx_lay_out(&rig.tx, s));
	CHECK_EQUAL(got->nb_chunks, s->nb_chunks);
	CHECK_EQUAL(got->nb_missing, s->nb_data + 1); /* and the closing record */
	for (uint32_t e = 0; e < 6; e++) {
		const struct af_rx_element *el = &got->elements[e];

		CHECK_EQUAL(el->first_chunk, s->first_chunk[e]);
		CHECK_EQUAL(el->offset % AF_ALIGN, 0);
		CHECK(el->offset + el->nbytes <= got->block->size);
		if (e)
			CHECK(el->offset >= el[-1].offset + el[-1].nbytes);
	}
	CHECK_EQUAL(got->elements[0].packed, 0);
	CHECK_EQUAL(got->elements[1].packed, 2);
	CHECK_EQUAL(got->elements[2].packed, AF_PACKED_INSIDE);
	CHECK_EQUAL(got->elements[3].packed, 2);
	CHECK_EQUAL(got->elements[4].packed, AF_PACKED_INSIDE);
	CHECK_EQUAL(got->elements[5].packed, 1);
	rig_slice_free(s);
	rig_end(&rig);
}

static void
slices_are_granted_first_come_first_served_as_memory_comes_back(void)
{
	static const uint64_t sizes[] = {600000};
	struct af_tx_slice *s = asking(1, sizes);

	begin(1 << 20);
	for (uint32_t id = 1; id <= 3; id++)
		CHECK_EQUAL(tell(s, id, 0, RIG_PAYLOAD), AF_OK);
	CHECK_EQUAL(session->granted, 2); /* one fits at a time */
	CHECK_EQUAL(session->slots[2].state, AF_RX_WAITING);
	CHECK(rig.arena.used <= rig.arena.limit);
	af_rx_grant(&rig.rx, rig.now);
	CHECK_EQUAL(session->granted, 2);
	af_rx_drop_slot(&rig.rx, &session->slots[1], AF_RX_VOID); /* its memory is free again */
	af_rx_grant(&rig.rx, rig.now);
	CHECK_EQUAL(session->granted, 3);
	CHECK_EQUAL(session->slots[2].state, AF_RX_FLOWING);
	CHECK_EQUAL(session->slots[3].state, AF_RX_WAITING);
	rig_slice_free(s);
	rig_end(&rig);
}

static uint64_t room_bytes;
static uint32_t nb_looks;

static uint64_t
room(const struct af_memory_groups *groups)
{
	(void)groups;
	nb_looks++;
	return room_bytes;
}

static void
begin_shared(uint64_t limit)
{
	rig_begin(&rig, 1, limit);
	rig_share(&rig);
	rig.arena.room = room;
	rig_open(&rig);
	session = rig.rx.sessions[0];
	number = session->paths[0].pn.next;
}

static void
pages_come_over_several_ticks_and_then_the_grant(void)
{
	static const uint64_t sizes[] = {3 * AF_RX_FILL_BYTES - 5};
	struct af_tx_slice *s = asking(1, sizes);

	room_bytes = UINT64_MAX;
	begin_shared(32 << 20);
	CHECK_EQUAL(tell(s, 1, 0, RIG_PAYLOAD), AF_OK);
	for (uint32_t steps = 1; steps < 3; steps++) {
		CHECK_EQUAL(session->granted, 1);
		CHECK_EQUAL(session->slots[1].state, AF_RX_WAITING);
		CHECK(rig.rx.filling);
		CHECK_EQUAL(session->slots[1].slice->block->filled, steps * AF_RX_FILL_BYTES);
		CHECK_EQUAL(af_rx_due(&rig.rx, rig.now), rig.now); /* the loop does not sleep meanwhile */
		af_rx_tick(&rig.rx, rig.now);
	}
	CHECK(!rig.rx.filling);
	CHECK_EQUAL(session->granted, 2);
	CHECK_EQUAL(session->slots[1].state, AF_RX_FLOWING);
	CHECK(session->slots[1].slice->has_place);
	rig_slice_free(s);
	rig_end(&rig);
}

static void
a_slice_that_leaves_while_its_pages_come_gives_them_back(void)
{
	static const uint64_t sizes[] = {3 * AF_RX_FILL_BYTES};
	struct af_tx_slice *s = asking(1, sizes);

	room_bytes = UINT64_MAX;
	begin_shared(32 << 20);
	CHECK_EQUAL(tell(s, 1, 0, RIG_PAYLOAD), AF_OK);
	CHECK_EQUAL(tell(s, 2, 0, RIG_PAYLOAD), AF_OK);
	CHECK(rig.rx.filling && rig.arena.used);
	af_rx_refuse(&rig.rx, session, &session->slots[1], AF_VOID_CANCELLED, 0);
	CHECK(!rig.rx.filling);
	CHECK_EQUAL(rig.arena.used, 0);
	CHECK_EQUAL(rig.arena.fenced, 0); /* its place was not told yet */
	for (int i = 0; i < 5; i++)
		af_rx_tick(&rig.rx, rig.now);
	CHECK_EQUAL(session->slots[2].state, AF_RX_FLOWING);
	rig_slice_free(s);
	rig_end(&rig);
}

static void
without_pages_a_slice_waits_for_those_that_are_held(void)
{
	static const uint64_t sizes[] = {2 << 20};
	struct af_tx_slice *s = asking(1, sizes);
	uint32_t looks;

	room_bytes = UINT64_MAX;
	begin_shared(32 << 20);
	CHECK_EQUAL(tell(s, 1, 0, RIG_PAYLOAD), AF_OK);
	CHECK_EQUAL(session->granted, 2);
	room_bytes = 1000;
	CHECK_EQUAL(tell(s, 2, 0, RIG_PAYLOAD), AF_OK);
	CHECK_EQUAL(session->slots[2].state, AF_RX_WAITING);
	CHECK(!session->slots[2].slice->block);
	af_rx_tick(&rig.rx, rig.now);
	looks = nb_looks;
	for (int i = 0; i < 10; i++)
		af_rx_tick(&rig.rx, rig.now);
	CHECK_EQUAL(nb_looks, looks); /* the kernel's files are read when something has changed, not by each tick */
	af_rx_drop_slot(&rig.rx, &session->slots[1], AF_RX_VOID);
	CHECK_EQUAL(rig.arena.used, 0);
	for (int i = 0; i < 5; i++)
		af_rx_tick(&rig.rx, rig.now);
	CHECK_EQUAL(session->slots[2].state, AF_RX_FLOWING); /* in pages that came back */
	rig_slice_free(s);
	rig_end(&rig);
}

static void
without_pages_and_with_nothing_held_a_slice_is_refused(void)
{
	static const uint64_t large[] = {2 << 20}, small[] = {5000};
	struct af_tx_slice *s = asking(1, large), *t = asking(1, small);

	begin_shared(32 << 20);
	room_bytes = 17 << 20;
	CHECK_EQUAL(tell(s, 1, 0, RIG_PAYLOAD), AF_OK);
	CHECK_EQUAL(void_of(1), AF_VOID_NO_PAGES);
	CHECK_EQUAL(AF_BE64(session->voids[1].detail), 1 << 20); /* what is left is told, without the spare */
	CHECK_EQUAL(rig.arena.used, 0);
	CHECK_EQUAL(tell(t, 2, 0, RIG_PAYLOAD), AF_OK); /* a smaller one passes */
	CHECK_EQUAL(session->slots[2].state, AF_RX_FLOWING);
	rig_slice_free(s);
	rig_slice_free(t);
	rig_end(&rig);
}

static void
a_small_slice_behind_a_waiting_one_waits_too(void)
{
	static const uint64_t large[] = {600000}, small[] = {5000};
	struct af_tx_slice *s = asking(1, large), *t = asking(1, small);

	begin(1 << 20);
	CHECK_EQUAL(tell(s, 1, 0, RIG_PAYLOAD), AF_OK);
	CHECK_EQUAL(tell(s, 2, 0, RIG_PAYLOAD), AF_OK);
	CHECK_EQUAL(tell(t, 3, 0, RIG_PAYLOAD), AF_OK);
	CHECK_EQUAL(session->granted, 2);
	CHECK_EQUAL(session->slots[3].state, AF_RX_WAITING); /* there is room for it, but not before its turn */
	rig_slice_free(s);
	rig_slice_free(t);
	rig_end(&rig);
}

static void
slices_that_can_never_fit_are_refused_at_once(void)
{
	static const uint64_t sizes[] = {2 << 20};
	struct af_tx_slice *s = asking(1, sizes);
	struct af_frame f = {
		.kind = AF_MANIFEST, .slice = 2, .element = 0xf0000000, .payload = s->manifest, .nbytes = 40};

	begin(1 << 20);
	CHECK_EQUAL(tell(s, 1, 0, RIG_PAYLOAD), AF_OK);
	CHECK_EQUAL(void_of(1), AF_VOID_TOO_LARGE);
	CHECK_EQUAL(AF_BE64(session->voids[1].detail), 1 << 20); /* the limit is told */
	f.session = session->id;
	f.number = number++;
	CHECK_EQUAL(rig_to_receiver(&rig, 0, f), AF_OK); /* a manifest of 4 GB: not even its pieces are kept */
	CHECK_EQUAL(void_of(2), AF_VOID_TOO_LARGE);
	CHECK(!session->slots[2].slice);
	CHECK_EQUAL(rig.arena.used, 0);
	rig_slice_free(s);
	rig_end(&rig);
}

static void
contradictions_and_unknown_things_are_refused_with_words(void)
{
	static const uint64_t sizes[] = {100000};
	struct af_tx_slice *s = asking(1, sizes);
	struct af_rx_text *text;

	begin(8 << 20);
	s->manifest[19]++; /* one byte more in all than in its element */
	CHECK_EQUAL(tell(s, 1, 0, RIG_PAYLOAD), AF_OK);
	CHECK_EQUAL(void_of(1), AF_VOID_MANIFEST);
	s->manifest[19]--;
	s->manifest[AF_MANIFEST_HEADER + offsetof(struct af_run, kind)] = 99;
	CHECK_EQUAL(tell(s, 2, 0, RIG_PAYLOAD), AF_OK);
	CHECK_EQUAL(void_of(2), AF_VOID_UNKNOWN);
	text = &session->texts[2];
	CHECK_EQUAL(AF_BE64(session->voids[2].detail), text->nbytes);
	CHECK(text->nbytes > 20 && memmem(text->bytes, text->nbytes, "run kind 99", 11));
	rig_slice_free(s);
	rig_end(&rig);
}

static void
another_format_and_unknown_extensions_are_refused_by_name(void)
{
	static const uint64_t sizes[] = {100000};
	static const struct {
		uint8_t format;
		uint8_t entry[6];
		uint32_t nbytes; /* of the entry */
		enum af_void_reason reason;
		const char *said;
	} table[] = {{1, {0, 9, 0, 2, 1, 2}, 6, AF_VOID_NONE, ""}, /* ignored */
		     {1, {0x80, 9, 0, 2, 1, 2}, 6, AF_VOID_UNKNOWN, "manifest extension 32777"},
		     {1, {0, 9, 0, 9, 1, 2}, 6, AF_VOID_MANIFEST, ""},
		     {1, {7}, 1, AF_VOID_MANIFEST, ""},
		     {2, {0}, 0, AF_VOID_UNKNOWN, "manifest format 2"}};

	begin(8 << 20);
	for (uint32_t i = 0; i < sizeof table / sizeof *table; i++) {
		struct af_tx_slice *s = asking(1, sizes);
		const struct af_rx_text *text = &session->texts[i + 1];

		s->manifest = realloc(s->manifest, s->manifest_bytes + table[i].nbytes);
		memcpy(s->manifest + s->manifest_bytes, table[i].entry, table[i].nbytes);
		s->manifest_bytes += table[i].nbytes;
		s->manifest[0] = table[i].format;
		CHECK_EQUAL(tell(s, i + 1, 0, RIG_PAYLOAD), AF_OK);
		CHECK_EQUAL(table[i].reason ? void_of(i + 1) : AF_VOID_NONE, table[i].reason);
		CHECK(table[i].reason || session->granted == i + 2);
		if (*table[i].said)
			CHECK(memmem(text->bytes, text->nbytes, table[i].said, strlen(table[i].said)));
		rig_slice_free(s);
	}
	rig_end(&rig);
}

static void
pieces_that_do_not_fit_their_manifest_are_dropped(void)
{
	static const uint64_t sizes[40] = {100};
	struct af_tx_slice *s = asking(40, sizes);
	static const struct af_frame bad[] = {
		{.element = AF_MANIFEST_HEADER - 1, .nbytes = 98},      /* no header in it */
		{.element = 980, .nbytes = 0},                          /* an empty piece */
		{.element = 980, .seq = 10, .nbytes = 98},              /* behind the end */
		{.element = 980, .seq = 0xffffffff, .nbytes = 98},
		{.element = 980, .seq = 9, .nbytes = 99},               /* reaches beyond it */
		{.element = 980, .seq = 5, .end = 1, .nbytes = 1000},   /* an end larger than all */
		{.element = 980, .seq = 980, .end = 1, .nbytes = 98},   /* more pieces than bytes */
		{.element = 980, .seq = 0, .end = 1, .nbytes = 979},    /* alone, and too short */
		{.element = 980, .seq = 4, .end = 1, .nbytes = 98},     /* another number of pieces */
		{.element = 979, .seq = 1, .nbytes = 98},               /* another size */
	};

	begin(8 << 20);
	CHECK_EQUAL(tell(s, 1, 0, 98), AF_OK);
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct af_frame f = bad[i];
		uint8_t payload[1000] = {0};

		f.kind = AF_MANIFEST;
		f.session = session->id;
		f.slice = 1;
		f.number = number; /* not acknowledged: it may come again */
		f.payload = payload;
		CHECK_EQUAL(rig_to_receiver(&rig, 0, f), AF_DROP_MANIFEST);
	}
	for (uint32_t seq = 1; seq < 10; seq++) /* and what was begun goes on */
		CHECK_EQUAL(tell(s, 1, seq, 98), AF_OK);
	CHECK_EQUAL(session->granted, 2);
	rig_slice_free(s);
	rig_end(&rig);
}

static void
slices_beyond_what_a_sender_may_have_in_flight_find_no_slot(void)
{
	static const uint64_t sizes[] = {100000};
	struct af_tx_slice *s = asking(1, sizes);

	begin(8 << 20);
	CHECK(af_rx_open_slot(session, 1));
	CHECK(af_rx_open_slot(session, AF_RX_SLOTS));
	CHECK(!af_rx_open_slot(session, AF_RX_SLOTS + 1));
	CHECK(!af_rx_open_slot(session, 0)); /* was done before all */
	CHECK_EQUAL(tell(s, AF_RX_SLOTS + 1, 0, RIG_PAYLOAD), AF_DROP_NOT_GRANTED);
	CHECK_EQUAL(tell(s, 0, 0, RIG_PAYLOAD), AF_DROP_DUPLICATE);
	rig_slice_free(s);
	rig_end(&rig);
}

static void
data_inside_a_manifest_is_taken_at_once(void)
{
	static const uint64_t sizes[] = {100, 0, 30};
	struct af_tx_slice *s;
	struct af_rx_slice *got;

	rig_begin(&rig, 1, 8 << 20);
	rig_open(&rig);
	s = rig_post(&rig, 3, sizes);
	CHECK_EQUAL(rig_finish(&rig, s), AF_TX_DONE);
	CHECK_EQUAL(s->frames, 1);
	got = rig_take(&rig);
	CHECK(got->inlined);
	rig_check_same(got, s);
	af_rx_slice_free(got, rig_release);
	rig_slice_free(s);
	rig_end(&rig);
}

static void
memory_is_counted_with_its_tables(void)
{
	struct af_extent extent = {.nb_elements = 10, .nbytes = 1000, .block_bytes = 1024};
	uint64_t tables = 500 + 10 * sizeof(struct af_rx_element) + 8 * 4 + 1;

	CHECK_EQUAL(af_rx_need(&extent, 500, 8, 6, 0), tables + 1024);
	CHECK_EQUAL(af_rx_need(&extent, 500, 8, 6, 2048), tables + 6 * (2048 + sizeof(struct af_kept)));
}

CASES(CASE(a_manifest_is_read_from_pieces_in_any_order), CASE(elements_are_laid_out_as_the_sender_cut_them),
      CASE(slices_are_granted_first_come_first_served_as_memory_comes_back),
      CASE(a_small_slice_behind_a_waiting_one_waits_too), CASE(slices_that_can_never_fit_are_refused_at_once),
      CASE(contradictions_and_unknown_things_are_refused_with_words),
      CASE(another_format_and_unknown_extensions_are_refused_by_name),
      CASE(pieces_that_do_not_fit_their_manifest_are_dropped),
      CASE(slices_beyond_what_a_sender_may_have_in_flight_find_no_slot), CASE(data_inside_a_manifest_is_taken_at_once),
      CASE(memory_is_counted_with_its_tables), CASE(pages_come_over_several_ticks_and_then_the_grant),
      CASE(a_slice_that_leaves_while_its_pages_come_gives_them_back),
      CASE(without_pages_a_slice_waits_for_those_that_are_held),
      CASE(without_pages_and_with_nothing_held_a_slice_is_refused))

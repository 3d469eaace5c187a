/* segment.h: how a slice is cut into frames. */
#include "aiflow/tx/segment.h"

#include "rig.h"

static struct rig rig;
static const uint64_t mixed[] = {5000, 100, 200, 0, 9000, 1460, 1, 1461, 0, 700};

static struct af_tx_slice *
begin(uint32_t n, const uint64_t *sizes)
{
	struct af_tx_slice *s;

	rig_begin(&rig, 1, 1 << 20);
	rig.tx.payload_bytes = RIG_PAYLOAD;
	rig.tx.open = rig.tx.ports[0].open = true;
	rig.tx.first_id = rig.tx.next_id = 1;
	rig.tx.heard_ns = rig.tx.ports[0].pn.acked_ns = rig.now;
	af_tx_pktnum_reset(&rig.tx.ports[0].pn, 90, 0);
	s = rig_post(&rig, n, sizes);
	af_tx_activate(&rig.tx, rig.now);
	CHECK_EQUAL(s->state, AF_TX_ASKING);
	return s;
}

static void
end(struct af_tx_slice *s)
{
	af_tx_fail_all(&rig.tx, AF_TX_CANCELLED, rig.now);
	rig_slice_free(s);
	rig_end(&rig);
}

static void
the_element_of_a_chunk_is_found(void)
{
	struct af_tx_slice *s = begin(10, mixed);

	for (uint32_t chunk = 0; chunk < s->nb_data + 2; chunk++) {
		uint32_t e = 0;

		while (e < s->nb_elements && s->first_chunk[e] < chunk)
			e++;
		CHECK_EQUAL(af_tx_element_at(s, chunk), e);
	}
	end(s);
}

static void
pieces_of_an_element_cover_it(void)
{
	static const uint64_t sizes[] = {5000};
	struct af_tx_slice *s = begin(1, sizes);
	uint8_t payload[RIG_PAYLOAD];
	uint64_t offset = 0;

	for (uint32_t seq = 0; seq < 4; seq++) {
		struct af_frame f = {0};

		CHECK_EQUAL(af_tx_segment(s, 0, offset, &f), seq == 3);
		af_tx_carry(s, AF_REFER_NONE, payload, &f);
		CHECK_EQUAL(f.kind, AF_DATA);
		CHECK_EQUAL(f.seq, seq);
		CHECK_EQUAL(f.end, seq == 3);
		CHECK_EQUAL(f.nbytes, seq < 3 ? RIG_PAYLOAD : 5000 - 3 * RIG_PAYLOAD);
		CHECK(f.payload == s->elements[0].ptr + offset && f.to == payload);
		offset += f.nbytes;
	}
	CHECK_EQUAL(offset, 5000);
	end(s);
}

static void
small_elements_share_a_frame(void)
{
	static const uint64_t sizes[] = {1000, 0, 460, 1};
	struct af_tx_slice *s = begin(4, sizes);
	uint8_t payload[RIG_PAYLOAD];
	struct af_frame f = {0};

	CHECK_EQUAL(af_tx_segment(s, 0, 0, &f), 3);
	af_tx_carry(s, AF_REFER_NONE, payload, &f);
	CHECK_EQUAL(f.kind, AF_PACKED);
	CHECK_EQUAL(f.seq, 3);
	CHECK_EQUAL(f.end, 1);
	CHECK_EQUAL(f.nbytes, RIG_PAYLOAD);
	CHECK(!f.payload); /* they lie apart: copied at once */
	CHECK(!memcmp(payload, s->elements[0].ptr, 1000) && !memcmp(payload + 1000, s->elements[2].ptr, 460));
	CHECK_EQUAL(af_tx_segment(s, 3, 0, &f), 4);
	CHECK_EQUAL(f.kind, AF_DATA); /* alone */
	CHECK_EQUAL(f.seq, 0);
	CHECK_EQUAL(f.nbytes, 1);
	end(s);
}

static void
carried(const struct af_tx_slice *s, uint8_t by_reference, uint8_t *payload, struct af_frame *f)
{
	af_tx_segment(s, 0, 16000, f);
	af_tx_carry(s, by_reference, payload, f);
}

static void
long_payloads_stay_where_they_are_by_reference(void)
{
	struct af_span element = {.ptr = (const uint8_t *)"x", .nbytes = 100000};
	uint32_t first_chunk[] = {0};
	struct af_tx_slice s = {
		.elements = &element, .nb_elements = 1, .payload_bytes = 16000, .first_chunk = first_chunk};
	uint8_t payload[1];
	struct af_frame f = {0};

	carried(&s, AF_REFER_ALL, payload, &f);
	CHECK(!f.to && f.payload == element.ptr + 16000);
	carried(&s, AF_REFER_NONE, payload, &f);
	CHECK(f.to == payload);
	element.nbytes = 16000 + AF_TAIL_LEAST - 1; /* a short rest is copied */
	carried(&s, AF_REFER_ALL, payload, &f);
	CHECK(f.to == payload);
	element.nbytes = 100000;
	carried(&s, AF_REFER_OWNED, payload, &f); /* a card reads only memory that has an owner */
	CHECK(f.to == payload);
	element.owner = &s;
	carried(&s, AF_REFER_OWNED, payload, &f);
	CHECK(!f.to && f.payload == element.ptr + 16000);
	carried(&s, AF_REFER_NONE, payload, &f);
	CHECK(f.to == payload);
}

static void
a_chunk_is_retransmitted_as_it_was(void)
{
	struct af_tx_slice *s = begin(10, mixed);
	uint8_t frame[RIG_FRAME], again[RIG_FRAME];

	atomic_store(&s->state, AF_TX_FLOWING);
	for (uint32_t chunk = 0; chunk < s->nb_chunks; chunk++) {
		uint32_t size = af_tx_next_frame(&rig.tx, 0, rig.now, NULL, frame);
		struct af_header head, second;

		CHECK(size);
		CHECK_EQUAL(af_tx_sent(&rig.tx.ports[0].pn, rig.tx.ports[0].pn.next - 1)->chunk, chunk);
		CHECK_EQUAL(af_tx_send_chunk(&rig.tx, 0, s, chunk, NULL, true, rig.now, again), size);
		memcpy(&head, frame, sizeof head);
		memcpy(&second, again, sizeof second);
		CHECK_EQUAL(AF_BE32(second.number_low), AF_BE32(head.number_low) + 1); /* under a new number */
		CHECK(!memcmp(frame, again, offsetof(struct af_header, number_high)));
		CHECK(!memcmp(frame + AF_HEADER, again + AF_HEADER, size - AF_HEADER));
	}
	CHECK(s->all_sent);
	CHECK_EQUAL(s->retransmits, s->nb_chunks);
	CHECK_EQUAL(rig.tx.ports[0].count.retransmits, s->nb_chunks);
	end(s);
}

static void
a_card_retransmits_copies(void)
{
	static uint8_t bytes[8000], frame[4200];
	static const uint64_t sizes[] = {100};
	struct af_tx_slice *posted = begin(1, sizes);
	uint32_t first_chunk[] = {0};
	struct af_span element = {.ptr = bytes, .nbytes = sizeof bytes, .owner = bytes}, none = {0};
	struct af_tx_slice s = {.elements = &element,
				.nb_elements = 1,
				.payload_bytes = 4000,
				.first_chunk = first_chunk,
				.nb_chunks = 3};

	memset(bytes, 7, sizeof bytes);
	rig.tx.ports[0].p.by_reference = AF_REFER_OWNED;
	CHECK_EQUAL(af_tx_send_chunk(&rig.tx, 0, &s, 1, NULL, false, rig.now, frame), AF_HEADER + 4000);
	CHECK(rig.tx.tail.ptr == bytes + 4000 && rig.tx.tail.owner == bytes);
	rig.tx.tail = none;
	CHECK_EQUAL(af_tx_send_chunk(&rig.tx, 0, &s, 1, NULL, true, rig.now, frame), AF_HEADER + 4000);
	CHECK(!rig.tx.tail.nbytes && !memcmp(frame + AF_HEADER, bytes + 4000, 4000));
	rig.tx.ports[0].p.by_reference = AF_REFER_ALL; /* the driver copies it now, as it did */
	CHECK_EQUAL(af_tx_send_chunk(&rig.tx, 0, &s, 1, NULL, true, rig.now, frame), AF_HEADER + 4000);
	CHECK(rig.tx.tail.ptr == bytes + 4000);
	end(posted);
}

static void
nothing_but_the_manifest_goes_before_the_grant(void)
{
	struct af_tx_slice *s = begin(10, mixed);
	uint8_t frame[RIG_FRAME];
	struct af_frame f;

	CHECK(af_tx_next_frame(&rig.tx, 0, rig.now, NULL, frame));
	memcpy(frame, rig.tx.ports[0].p.mac, 6);
	CHECK_EQUAL(af_wire_parse(frame, RIG_FRAME, frame, RIG_FRAME, &f), AF_OK);
	CHECK_EQUAL(f.kind, AF_MANIFEST);
	CHECK_EQUAL(f.element, s->manifest_bytes);
	CHECK_EQUAL(af_tx_next_chunk(&rig.tx, 0, rig.now, frame), 0);
	atomic_store(&s->state, AF_TX_FLOWING);
	CHECK(af_tx_next_chunk(&rig.tx, 0, rig.now, frame));
	end(s);
}

static void
the_last_frame_carries_the_digest_of_all_bytes(void)
{
	struct af_tx_slice *s = begin(10, mixed);
	uint8_t frame[RIG_FRAME];
	uint32_t wanted = 0, digest;
	struct af_frame f;

	for (uint32_t e = 0; e < 10; e++)
		wanted = af_crc32c(wanted, s->elements[e].ptr, s->elements[e].nbytes);
	atomic_store(&s->state, AF_TX_FLOWING);
	while (!s->all_sent)
		CHECK(af_tx_next_frame(&rig.tx, 0, rig.now, NULL, frame));
	memcpy(frame, rig.tx.ports[0].p.mac, 6);
	CHECK_EQUAL(af_wire_parse(frame, 64, frame, RIG_FRAME, &f), AF_OK);
	CHECK_EQUAL(f.kind, AF_CLOSE);
	memcpy(&digest, f.payload, 4);
	CHECK_EQUAL(AF_BE32(digest), wanted);
	end(s);
}

static void
lost_chunks_go_before_new_ones_and_acknowledged_ones_never(void)
{
	struct af_tx_slice *s = begin(10, mixed);
	struct af_tx_pktnum *pn = &rig.tx.ports[0].pn;
	uint8_t frame[RIG_FRAME];

	atomic_store(&s->state, AF_TX_FLOWING);
	for (int i = 0; i < 4; i++)
		CHECK(af_tx_next_frame(&rig.tx, 0, rig.now, NULL, frame));
	af_tx_lost(&rig.tx, &rig.tx.ports[0], af_tx_sent(pn, 1));
	af_tx_lost(&rig.tx, &rig.tx.ports[0], af_tx_sent(pn, 2));
	s->acked[0] |= 1u << 1; /* chunk 1 arrived after all */
	CHECK(af_tx_next_frame(&rig.tx, 0, rig.now, NULL, frame));
	CHECK_EQUAL(af_tx_sent(pn, 4)->chunk, 2);
	CHECK(af_tx_next_frame(&rig.tx, 0, rig.now, NULL, frame));
	CHECK_EQUAL(af_tx_sent(pn, 5)->chunk, 4);
	end(s);
}

static void
pieces_of_a_manifest_join_to_it(void)
{
	static const uint64_t sizes[150] = {100};
	struct af_tx_slice *s = begin(150, sizes); /* 3620 bytes */
	uint8_t payload[RIG_PAYLOAD], joined[4000];
	uint32_t got = 0;

	CHECK_EQUAL(s->nb_manifest, 3);
	for (uint32_t chunk = 0; chunk < 3; chunk++) {
		struct af_frame f = {0};

		af_tx_fill(s, chunk, payload, &f);
		CHECK_EQUAL(f.kind, AF_MANIFEST);
		CHECK_EQUAL(f.seq, chunk);
		CHECK_EQUAL(f.element, s->manifest_bytes);
		CHECK_EQUAL(f.end, chunk == 2);
		memcpy(joined + got, payload, f.nbytes);
		got += f.nbytes;
	}
	CHECK_EQUAL(got, s->manifest_bytes);
	CHECK(!memcmp(joined, s->manifest, got));
	end(s);
}

static void
a_goodbye_is_repeated_until_it_is_answered(void)
{
	struct af_tx_slice *s = begin(10, mixed);
	struct af_tx_port *port = &rig.tx.ports[0];
	uint8_t frame[RIG_FRAME];
	uint64_t first;

	rig.tx.closing = true;
	CHECK(af_tx_next_frame(&rig.tx, 0, rig.now, NULL, frame));
	CHECK_EQUAL(frame[14] & 15, AF_MANIFEST); /* what was posted comes first */
	af_tx_end(&rig.tx, s, AF_TX_OK, 0, rig.now);
	af_tx_slot(&rig.tx, 1)->used = false;
	rig.tx.first_id = rig.tx.next_id;
	first = port->pn.next;
	for (uint64_t n = port->pn.judged; n < first; n++)
		af_tx_ack(&rig.tx, port, af_tx_sent(&port->pn, n));
	af_tx_pktnum_settle(&port->pn);
	for (int i = 0; i < 3; i++) {
		rig.now += AF_HELLO_NS;
		CHECK(af_tx_next_frame(&rig.tx, 0, rig.now, NULL, frame));
		CHECK_EQUAL(frame[14] & 15, AF_BYE);
		CHECK_EQUAL(frame[18], AF_BYE_SENDER);
		CHECK_EQUAL(frame[49], (uint8_t)first + i); /* a number of its own */
		CHECK_EQUAL(port->pn.in_flight, 0);
		CHECK_EQUAL(port->pn.judged, port->pn.next);
		port->pn.sent_ns = rig.now;
		CHECK_EQUAL(af_tx_next_frame(&rig.tx, 0, rig.now + 1, NULL, frame), 0);
	}
	rig.tx.bye_heard = true;
	CHECK_EQUAL(af_tx_next_frame(&rig.tx, 0, rig.now + AF_PTO_MIN_NS / 2, NULL, frame), 0);
	rig_slice_free(s);
	rig_end(&rig);
}

static void
goodbyes_without_end_find_room_behind_a_probe(void)
{
	struct af_tx_slice *s = begin(10, mixed);
	struct af_tx_port *port = &rig.tx.ports[0];
	uint8_t frame[RIG_FRAME];

	af_tx_pktnum_take(&port->pn, rig.now, 0, 0, true); /* it is never answered */
	for (uint32_t i = 0; i < 2 * AF_TX_RING; i++) {
		CHECK(af_tx_bye(&rig.tx, 0, rig.now, frame));
		CHECK(port->pn.next - port->pn.judged < AF_TX_RING); /* none is overwritten unjudged */
	}
	CHECK_EQUAL(port->pn.judged, port->pn.next);
	end(s);
}

static void
windows_and_gaps_are_kept(void)
{
	struct af_tx_slice *s = begin(10, mixed);
	struct af_tx_port *port = &rig.tx.ports[0];
	uint8_t frame[RIG_FRAME];

	atomic_store(&s->state, AF_TX_FLOWING);
	port->hello_ns = rig.now;
	port->pn.limit = 3;
	for (int i = 0; i < 3; i++)
		CHECK(af_tx_next_frame(&rig.tx, 0, rig.now, NULL, frame));
	CHECK_EQUAL(af_tx_next_frame(&rig.tx, 0, rig.now, NULL, frame), 0);
	port->pn.limit = 90;
	port->pace.due_ns = rig.now + 1;
	CHECK_EQUAL(af_tx_next_frame(&rig.tx, 0, rig.now, NULL, frame), 0);
	CHECK(af_tx_next_frame(&rig.tx, 0, rig.now + 1, NULL, frame));
	port->suspended = true;
	CHECK_EQUAL(af_tx_next_frame(&rig.tx, 0, rig.now + 2, NULL, frame), 0);
	port->suspended = false;
	port->p.attached = false;
	CHECK_EQUAL(af_tx_next_frame(&rig.tx, 0, rig.now + 3, NULL, frame), 0);
	end(s);
}

CASES(CASE(the_element_of_a_chunk_is_found), CASE(pieces_of_an_element_cover_it), CASE(small_elements_share_a_frame),
      CASE(long_payloads_stay_where_they_are_by_reference), CASE(a_chunk_is_retransmitted_as_it_was),
      CASE(a_card_retransmits_copies), CASE(nothing_but_the_manifest_goes_before_the_grant),
      CASE(the_last_frame_carries_the_digest_of_all_bytes),
      CASE(lost_chunks_go_before_new_ones_and_acknowledged_ones_never), CASE(pieces_of_a_manifest_join_to_it),
      CASE(a_goodbye_is_repeated_until_it_is_answered), CASE(goodbyes_without_end_find_room_behind_a_probe),
      CASE(windows_and_gaps_are_kept))

/* reassembly.h: payloads go to their places, whatever comes, in any order, over any path. */
#include "aiflow/rx/rx_agent.h"

#include "aiflow/rx/reassembly.h"

#include "rig.h"

static struct rig rig;
static struct af_rx_session *session;
static struct af_tx_slice *sent;
static uint64_t number;

/* A slice flows: granted, and none of its data has come. With `placed` it was told to its sender where it lies. */
static void
begin_as(bool placed, uint32_t n, const uint64_t *sizes)
{
	struct af_manifest m;

	rig_begin(&rig, 2, 8 << 20);
	if (placed)
		rig_share(&rig);
	rig_open(&rig);
	session = rig.rx.sessions[0];
	sent = rig_slice(n, sizes);
	memcpy(&m, sent->manifest, sizeof m);
	m.payload_bytes = AF_BE16(RIG_PAYLOAD);
	memcpy(sent->manifest, &m, sizeof m);
	number = session->paths[0].pn.next;
	CHECK_EQUAL(rig_to_receiver(&rig, 0,
				    (struct af_frame){.kind = AF_MANIFEST,
						      .session = session->id,
						      .slice = 1,
						      .number = number++,
						      .element = sent->manifest_bytes,
						      .end = 1,
						      .payload = sent->manifest,
						      .nbytes = sent->manifest_bytes}),
		    AF_OK);
	CHECK_EQUAL(session->slots[1].state, AF_RX_FLOWING);
}

static void
begin(uint32_t n, const uint64_t *sizes)
{
	begin_as(false, n, sizes);
}

static void
end(void)
{
	rig_slice_free(sent);
	rig_end(&rig);
}

/* The frame of piece `seq` of element e. */
static struct af_frame
piece(uint32_t e, uint32_t seq)
{
	uint64_t offset = (uint64_t)seq * RIG_PAYLOAD, rest = sent->elements[e].nbytes - offset;

	return (struct af_frame){.kind = AF_DATA,
				 .session = session->id,
				 .slice = 1,
				 .number = number++,
				 .element = e,
				 .seq = seq,
				 .end = rest <= RIG_PAYLOAD,
				 .payload = sent->elements[e].ptr + offset,
				 .nbytes = rest < RIG_PAYLOAD ? (uint32_t)rest : RIG_PAYLOAD,
				 .timestamp_ns = rig.now - 5000};
}

/* `count` elements from e on, end to end. */
static struct af_frame
pack(uint32_t e, uint32_t count, uint8_t *payload)
{
	struct af_frame f = {.kind = AF_PACKED,
			     .session = session->id,
			     .slice = 1,
			     .number = number++,
			     .element = e,
			     .seq = count,
			     .end = 1,
			     .payload = payload,
			     .timestamp_ns = rig.now - 5000};

	for (uint32_t i = 0; i < count; i++) {
		memcpy(payload + f.nbytes, sent->elements[e + i].ptr, sent->elements[e + i].nbytes);
		f.nbytes += (uint32_t)sent->elements[e + i].nbytes;
	}
	return f;
}

static struct af_frame
closing(uint32_t *digest)
{
	*digest = 0;
	for (uint32_t e = 0; e < sent->nb_elements; e++)
		*digest = af_crc32c(*digest, sent->elements[e].ptr, sent->elements[e].nbytes);
	*digest = AF_BE32(*digest);
	return (struct af_frame){.kind = AF_CLOSE,
				 .session = session->id,
				 .slice = 1,
				 .number = number++,
				 .element = sent->nb_elements,
				 .end = 1,
				 .payload = (const uint8_t *)digest,
				 .nbytes = 4};
}

static void
check_whole(void)
{
	struct af_rx_slice *got = rig_take(&rig);

	rig_check_same(got, sent);
	af_rx_slice_free(got, rig_release);
}

static void
any_order_makes_the_same_slice(void)
{
	static const uint64_t sizes[] = {10 * RIG_PAYLOAD + 7};

	for (int round = 0; round < 20; round++) {
		uint32_t order[12], digest;

		begin(1, sizes);
		for (uint32_t i = 0; i < 12; i++) { /* the last one stands for the closing record */
			uint32_t k = check_random(i + 1);

			order[i] = order[k];
			order[k] = i;
		}
		for (uint32_t i = 0; i < 12; i++) {
			struct af_frame f = order[i] < 11 ? piece(0, order[i]) : closing(&digest);

			CHECK(!rig.rx.ready);
			CHECK_EQUAL(rig_to_receiver(&rig, check_random(2), f), AF_OK);
		}
		check_whole();
		end();
	}
}

static void
packs_are_spread_to_their_places(void)
{
	static const uint64_t sizes[] = {100, 0, 37, 1460, 5};
	uint8_t payload[RIG_PAYLOAD];
	uint32_t digest;

	begin(5, sizes); /* a run each: not end to end in memory */
	CHECK_EQUAL(rig_to_receiver(&rig, 0, pack(0, 3, payload)), AF_OK);
	CHECK_EQUAL(rig_to_receiver(&rig, 0, piece(3, 0)), AF_OK);
	CHECK_EQUAL(rig_to_receiver(&rig, 0, piece(4, 0)), AF_OK);
	CHECK_EQUAL(session->slots[1].slice->elements[2].latency_ns, 5000);
	CHECK_EQUAL(rig_to_receiver(&rig, 0, closing(&digest)), AF_OK);
	check_whole();
	end();
}

static void
what_came_before_is_told_from_what_contradicts_it(void)
{
	static const uint64_t sizes[] = {5000};
	uint8_t other[RIG_PAYLOAD];
	struct af_frame f;
	uint32_t digest;

	begin(1, sizes);
	CHECK_EQUAL(rig_to_receiver(&rig, 0, piece(0, 1)), AF_OK);
	CHECK_EQUAL(rig_to_receiver(&rig, 0, piece(0, 1)), AF_DROP_DUPLICATE);
	f = piece(0, 1);
	memcpy(other, f.payload, RIG_PAYLOAD);
	other[77] ^= 1;
	f.payload = other;
	CHECK_EQUAL(rig_to_receiver(&rig, 0, f), AF_DROP_CONFLICT);
	for (uint32_t seq = 0; seq < 4; seq++)
		rig_to_receiver(&rig, 0, piece(0, seq));
	CHECK_EQUAL(rig_to_receiver(&rig, 0, closing(&digest)), AF_OK);
	check_whole(); /* the first one's bytes stayed */
	CHECK_EQUAL(rig_to_receiver(&rig, 0, piece(0, 2)), AF_DROP_DUPLICATE); /* after the end */
	CHECK_EQUAL(rig_to_receiver(&rig, 0, closing(&digest)), AF_DROP_DUPLICATE);
	end();
}

static void
a_damaged_payload_is_written_again(void)
{
	static const uint64_t sizes[] = {5000};
	struct af_frame f;
	uint8_t frame[RIG_FRAME];
	uint32_t digest, len;

	begin(1, sizes);
	f = piece(0, 0);
	memcpy(frame + AF_HEADER, f.payload, f.nbytes);
	f.payload = NULL;
	len = af_wire_seal(frame, rig.rx.ports[0].p.mac, rig.tx.ports[0].p.mac, &f);
	frame[AF_HEADER + 100] ^= 4;
	CHECK(!af_rx_on_frame(&rig.rx, 0, rig.now, frame, len, NULL));
	CHECK_EQUAL(rig.rx.drops[AF_DROP_CRC], 1);
	for (uint32_t seq = 0; seq < 4; seq++)
		CHECK_EQUAL(rig_to_receiver(&rig, 0, piece(0, seq)), AF_OK);
	CHECK_EQUAL(rig_to_receiver(&rig, 0, closing(&digest)), AF_OK);
	check_whole();
	end();
}

static void
frames_that_the_manifest_did_not_announce_are_refused(void)
{
	static const uint64_t sizes[] = {5000, 100, 50, 1460};
	uint8_t payload[RIG_PAYLOAD];

	begin(4, sizes);
	for (int what = 0; what < 14; what++) {
		static const enum af_drop wanted[] = {AF_DROP_ELEMENT, AF_DROP_ELEMENT,    AF_DROP_SEQ,  AF_DROP_SEQ,
						      AF_DROP_END,     AF_DROP_END,        AF_DROP_SIZE, AF_DROP_SIZE,
						      AF_DROP_SEQ,     AF_DROP_SEQ,        AF_DROP_END,  AF_DROP_SIZE,
						      AF_DROP_SEQ,     AF_DROP_NOT_GRANTED};
		uint64_t before = number;
		struct af_frame f = what < 8 ? piece(0, what == 5 ? 3 : 0) : pack(1, 2, payload);

		if (what == 0)
			f.element = 4;
		if (what == 1)
			f.element = 0xffffffff;
		if (what == 2)
			f.seq = 4;
		if (what == 3)
			f.seq = 0xffffffff;
		if (what == 4)
			f.end = 1;
		if (what == 5)
			f.end = 0;
		if (what == 6)
			f.nbytes--;
		if (what == 7)
			f.nbytes = 0;
		if (what == 8)
			f.seq = 3;
		if (what == 9)
			f.kind = AF_DATA; /* one of a pack */
		if (what == 10)
			f.end = 0;
		if (what == 11)
			f.nbytes--;
		if (what == 12)
			f.element = 2; /* inside a pack */
		if (what == 13)
			f.slice = 2;
		f.number = number = before; /* not acknowledged: it may come again */
		CHECK_EQUAL(rig_to_receiver(&rig, 0, f), wanted[what]);
	}
	CHECK_EQUAL(rig_to_receiver(&rig, 0, pack(1, 2, payload)), AF_OK);
	end();
}

/* Where element e lies, as its sender has it. */
static uint8_t *
place_of(uint32_t e)
{
	const struct af_rx_slice *s = session->slots[1].slice;

	return rig.shared.memories[0].base + s->block->offset + s->elements[e].offset;
}

/* The frame says that its bytes are in their place. */
static struct af_frame
saying(struct af_frame f, uint32_t *crc)
{
	*crc = AF_BE32(af_crc32c(0, f.payload, f.nbytes));
	f.kind = f.kind == AF_PACKED ? AF_PLACED_PACK : AF_PLACED;
	f.payload = (const uint8_t *)crc;
	f.nbytes = sizeof *crc;
	return f;
}

static void
what_is_in_its_place_already_needs_its_crc_alone(void)
{
	static const uint64_t sizes[] = {5000, 100, 0, 37, 1460, 20, 30};
	uint8_t payload[RIG_PAYLOAD];
	uint32_t crc, digest;

	begin_as(true, 7, sizes); /* a run each: packs are spread in memory */
	CHECK(session->slots[1].slice->has_place);
	for (uint32_t e = 0; e < 5; e++)
		if (sizes[e])
			memcpy(place_of(e), sent->elements[e].ptr, sizes[e]);
	for (uint32_t seq = 0; seq < 3; seq++)
		CHECK_EQUAL(rig_to_receiver(&rig, seq % 2, saying(piece(0, seq), &crc)), AF_OK);
	CHECK_EQUAL(rig_to_receiver(&rig, 0, piece(0, 3)), AF_OK); /* carried, over another port */
	CHECK_EQUAL(rig_to_receiver(&rig, 0, saying(pack(1, 3, payload), &crc)), AF_OK);
	CHECK_EQUAL(rig_to_receiver(&rig, 0, saying(piece(4, 0), &crc)), AF_OK);
	CHECK_EQUAL(rig_to_receiver(&rig, 0, pack(5, 2, payload)), AF_OK); /* carried, and spread */
	CHECK_EQUAL(rig.rx.placed_bytes, 3 * RIG_PAYLOAD + 137 + 1460);
	CHECK_EQUAL(session->slots[1].slice->elements[3].latency_ns, 5000);
	CHECK_EQUAL(rig_to_receiver(&rig, 0, closing(&digest)), AF_OK);
	check_whole();
	end();
}

static void
a_placed_chunk_of_a_slice_without_a_place_is_refused(void)
{
	static const uint64_t sizes[] = {5000, 100, 50};
	uint8_t payload[RIG_PAYLOAD];
	uint32_t crc;

	begin(3, sizes);
	CHECK_EQUAL(rig_to_receiver(&rig, 0, saying(piece(0, 0), &crc)), AF_DROP_PLACE);
	CHECK_EQUAL(rig_to_receiver(&rig, 0, saying(pack(1, 2, payload), &crc)), AF_DROP_PLACE);
	CHECK_EQUAL(rig_to_receiver(&rig, 0, piece(0, 0)), AF_OK);
	end();
}

static void
placed_frames_that_contradict_the_manifest_are_refused(void)
{
	static const uint64_t sizes[] = {5000, 100, 50};
	static const enum af_drop wanted[] = {AF_DROP_SIZE, AF_DROP_SIZE, AF_DROP_SIZE, AF_DROP_SEQ,
					      AF_DROP_END,  AF_DROP_SEQ,  AF_DROP_SEQ,  AF_DROP_ELEMENT};
	uint8_t payload[RIG_PAYLOAD] = {0};

	begin_as(true, 3, sizes);
	for (int what = 0; what < 8; what++) {
		uint64_t before = number;
		uint32_t crc;
		struct af_frame f = saying(what < 5 || what == 7 ? piece(0, 0) : pack(1, 2, payload), &crc);

		if (what == 0) { /* the bytes, and not their CRC */
			f.payload = payload;
			f.nbytes = RIG_PAYLOAD;
		}
		if (what == 1 || what == 2)
			f.nbytes = what + 1;
		if (what == 3)
			f.seq = 4;
		if (what == 4)
			f.end = 1;
		if (what == 5)
			f.seq = 3;
		if (what == 6)
			f.kind = AF_PLACED; /* one of a pack */
		if (what == 7)
			f.element = 3;
		f.number = number = before; /* not acknowledged */
		CHECK_EQUAL(rig_to_receiver(&rig, 0, f), wanted[what]);
	}
	end();
}

static void
placed_chunks_are_taken_once(void)
{
	static const uint64_t sizes[] = {5000};
	uint32_t crc;
	struct af_frame f;

	begin_as(true, 1, sizes);
	memcpy(place_of(0), sent->elements[0].ptr, 5000);
	CHECK_EQUAL(rig_to_receiver(&rig, 0, saying(piece(0, 1), &crc)), AF_OK);
	CHECK_EQUAL(rig_to_receiver(&rig, 1, saying(piece(0, 1), &crc)), AF_DROP_DUPLICATE);
	f = saying(piece(0, 1), &crc);
	crc ^= 1;
	CHECK_EQUAL(rig_to_receiver(&rig, 0, f), AF_DROP_CONFLICT);
	memset(place_of(0) + RIG_PAYLOAD, 0x77, 10);
	CHECK_EQUAL(rig_to_receiver(&rig, 0, piece(0, 1)), AF_DROP_DUPLICATE); /* carried: its bytes go nowhere */
	CHECK_EQUAL(place_of(0)[RIG_PAYLOAD], 0x77);
	end();
}

static void
what_is_in_place_may_be_summed(void)
{
	static const uint64_t sizes[] = {5000, 100, 50};
	uint8_t payload[RIG_PAYLOAD];
	uint32_t crc;

	begin_as(true, 3, sizes);
	CHECK_EQUAL(rig_to_receiver(&rig, 0, saying(piece(0, 0), &crc)), AF_DROP_CRC); /* nothing is there */
	memcpy(place_of(1), sent->elements[1].ptr, 100);
	memcpy(place_of(2), sent->elements[2].ptr, 50);
	CHECK_EQUAL(rig_to_receiver(&rig, 0, saying(pack(1, 2, payload), &crc)), AF_OK);
	end();
}

static void
a_damaged_frame_writes_nothing_to_a_told_place(void)
{
	static const uint64_t sizes[] = {5000};
	struct af_frame f;
	uint8_t frame[RIG_FRAME];
	uint32_t len;

	begin_as(true, 1, sizes);
	memcpy(place_of(0), sent->elements[0].ptr, RIG_PAYLOAD); /* its sender has written, and its frame comes late */
	f = piece(0, 0);
	memcpy(frame + AF_HEADER, f.payload, f.nbytes);
	f.payload = NULL;
	len = af_wire_seal(frame, rig.rx.ports[0].p.mac, rig.tx.ports[0].p.mac, &f);
	frame[AF_HEADER + 100] ^= 4; /* of a kind, or for a place, that the damage made of it */
	CHECK(!af_rx_on_frame(&rig.rx, 0, rig.now, frame, len, NULL));
	CHECK_EQUAL(rig.rx.drops[AF_DROP_CRC], 1);
	CHECK(!memcmp(place_of(0), sent->elements[0].ptr, RIG_PAYLOAD));
	end();
}

static void
a_wrong_digest_is_never_shown(void)
{
	static const uint64_t sizes[] = {2000};
	uint32_t digest;
	struct af_frame f;

	begin(1, sizes);
	CHECK_EQUAL(rig_to_receiver(&rig, 0, piece(0, 0)), AF_OK);
	f = closing(&digest);
	digest ^= 1;
	CHECK_EQUAL(rig_to_receiver(&rig, 0, f), AF_OK);
	CHECK_EQUAL(rig_to_receiver(&rig, 0, piece(0, 1)), AF_OK);
	CHECK(!rig.rx.ready);
	CHECK_EQUAL(AF_BE32(session->voids[1].reason), AF_VOID_INTEGRITY);
	CHECK_EQUAL(rig.arena.used, 0);
	end();
}

static void
closing_records_are_checked(void)
{
	static const uint64_t sizes[] = {2000};
	uint32_t digest;
	struct af_frame f;

	begin(1, sizes);
	f = closing(&digest);
	f.nbytes = 3;
	CHECK_EQUAL(rig_to_receiver(&rig, 0, f), AF_DROP_SIZE);
	f.nbytes = 4;
	f.slice = 2;
	CHECK_EQUAL(rig_to_receiver(&rig, 0, f), AF_DROP_NOT_GRANTED);
	f.slice = 1;
	CHECK_EQUAL(rig_to_receiver(&rig, 0, f), AF_OK);
	f.number = number++;
	CHECK_EQUAL(rig_to_receiver(&rig, 0, f), AF_DROP_DUPLICATE);
	end();
}

static void
a_slice_given_up_is_freed_and_the_next_one_passes(void)
{
	static const uint64_t sizes[] = {2000};
	struct af_frame f = {.kind = AF_VOID, .end = 1, .slice = 1};

	begin(1, sizes);
	CHECK_EQUAL(rig_to_receiver(&rig, 0, piece(0, 0)), AF_OK);
	f.session = session->id;
	f.number = number++;
	CHECK_EQUAL(rig_to_receiver(&rig, 0, f), AF_OK);
	CHECK_EQUAL(rig.arena.used, 0);
	CHECK_EQUAL(session->done, 2);
	CHECK(!rig.rx.ready);
	f.number = number++;
	CHECK_EQUAL(rig_to_receiver(&rig, 0, f), AF_DROP_DUPLICATE);
	end();
}

static void
payloads_stay_in_their_frames_when_asked_to(void)
{
	static const uint64_t sizes[] = {2000};
	struct af_rx_slice *got;

	rig_released = 0;
	rig_begin(&rig, 1, 8 << 20);
	rig.rx.keeps_mbufs = true;
	rig_open(&rig);
	sent = rig_post(&rig, 1, sizes);
	for (int i = 0; i < 100 && !rig.rx.ready; i++)
		rig_step(&rig);
	got = rig_take(&rig);
	CHECK(got && got->kept && got->kept[1].nbytes == 2000 - RIG_PAYLOAD);
	CHECK(!memcmp(got->kept[1].payload, sent->elements[0].ptr + RIG_PAYLOAD, 2000 - RIG_PAYLOAD));
	af_rx_slice_free(got, rig_release);
	CHECK_EQUAL(rig_released, 2);
	af_tx_fail_all(&rig.tx, AF_TX_CANCELLED, rig.now);
	end();
}

CASES(CASE(any_order_makes_the_same_slice), CASE(packs_are_spread_to_their_places),
      CASE(what_came_before_is_told_from_what_contradicts_it), CASE(a_damaged_payload_is_written_again),
      CASE(frames_that_the_manifest_did_not_announce_are_refused), CASE(a_wrong_digest_is_never_shown),
      CASE(closing_records_are_checked), CASE(a_slice_given_up_is_freed_and_the_next_one_passes),
      CASE(payloads_stay_in_their_frames_when_asked_to), CASE(what_is_in_its_place_already_needs_its_crc_alone),
      CASE(a_placed_chunk_of_a_slice_without_a_place_is_refused),
      CASE(placed_frames_that_contradict_the_manifest_are_refused), CASE(placed_chunks_are_taken_once),
      CASE(what_is_in_place_may_be_summed), CASE(a_damaged_frame_writes_nothing_to_a_told_place))

/* placing.h: a sender writes chunks to where its receiver will look for them. */
#include "aiflow/tx/placing.h"
#include "aiflow/tx/segment.h"

#include "rig.h"

static struct rig rig;

/* A slice of runs of like elements. The elements of a run lie end to end, as rows of a batch do. */
static struct af_tx_slice *
batches(uint32_t nb_runs, const uint32_t *counts, const uint64_t *sizes)
{
	struct af_tx_slice *s = calloc(1, sizeof *s);
	struct af_span *elements;
	struct af_manifest m = {.format = AF_MANIFEST_FORMAT, .nb_runs = AF_BE32(nb_runs)};
	uint32_t e = 0;

	s->manifest_bytes = AF_MANIFEST_HEADER + nb_runs * AF_RUN_HEADER;
	s->manifest = malloc(s->manifest_bytes);
	for (uint32_t r = 0; r < nb_runs; r++)
		s->nb_elements += counts[r];
	elements = calloc(s->nb_elements, sizeof *elements);
	for (uint32_t r = 0; r < nb_runs; r++) {
		struct af_run run = {.count = AF_BE32(counts[r]), .nbytes = AF_BE64(sizes[r])};
		uint8_t *bytes = malloc(counts[r] * sizes[r] + 1);

		for (uint64_t i = 0; i < counts[r] * sizes[r]; i++)
			bytes[i] = (uint8_t)check_random(256);
		memcpy(s->manifest + AF_MANIFEST_HEADER + r * AF_RUN_HEADER, &run, sizeof run);
		s->nbytes += counts[r] * sizes[r];
		for (uint32_t i = 0; i < counts[r]; i++)
			elements[e++] = (struct af_span){bytes + i * sizes[r], sizes[r], NULL};
	}
	m.nb_elements = AF_BE32(s->nb_elements);
	m.nbytes = AF_BE64(s->nbytes);
	memcpy(s->manifest, &m, sizeof m);
	s->elements = elements;
	s->dispatch.ports = ~0u;
	s->posted_ns = rig.now;
	return s;
}

static void
batches_free(struct af_tx_slice *s, uint32_t nb_runs, const uint32_t *counts)
{
	struct af_span *elements = (struct af_span *)(uintptr_t)s->elements;
	uint32_t e = 0;

	for (uint32_t r = 0; r < nb_runs; e += counts[r++])
		free((void *)(uintptr_t)elements[e].ptr);
	s->nb_elements = 0;
	rig_slice_free(s);
}

static void
begin(void)
{
	rig_begin(&rig, 2, 32 << 20);
	rig_share(&rig);
	rig_open(&rig);
}

/* Both ends, until the slice has been told its place. */
static void
step_to_places(const struct af_tx_slice *s)
{
	for (int i = 0; i < 1000 && !s->places; i++)
		rig_step(&rig);
	CHECK(s->places);
}

static void
elements_lie_where_the_receiver_looks_for_them(void)
{
	static const uint32_t counts[] = {3, 1, 40, 1, 2, 500};
	static const uint64_t sizes[] = {5000, 1, 70, 0, 100000, 13};
	const struct af_rx_slice *got;
	struct af_tx_slice *s;

	begin();
	s = batches(6, counts, sizes);
	af_tx_enqueue(&rig.tx, s);
	step_to_places(s);
	got = rig.rx.sessions[0]->slots[1].slice;
	CHECK_EQUAL(s->places->nb_runs, 6);
	CHECK_EQUAL(s->places->block - rig.shared.memories[0].base, got->block->offset);
	for (uint32_t e = 0; e < s->nb_elements; e++)
		CHECK_EQUAL(af_tx_place_of(s->places, e) - s->places->block, got->elements[e].offset);
	for (int i = 0; i < 5000; i++) { /* ports take chunks from several elements by turns */
		uint32_t e = check_random(s->nb_elements);

		CHECK_EQUAL(af_tx_place_of(s->places, e) - s->places->block, got->elements[e].offset);
	}
	CHECK_EQUAL(rig_finish(&rig, s), AF_TX_DONE);
	batches_free(s, 6, counts);
	af_rx_slice_free(rig_take(&rig), rig_release);
	rig_end(&rig);
}

static void
what_is_placed_is_what_was_sent(void)
{
	for (int round = 0; round < 60; round++) {
		uint32_t counts[8], nb_runs = 1 + check_random(8);
		uint64_t sizes[8];
		struct af_rx_slice *got;
		struct af_tx_slice *s;

		begin();
		for (uint32_t r = 0; r < nb_runs; r++) {
			counts[r] = 1 + check_random(round % 2 ? 4 : 60);
			sizes[r] = check_random(5) == 0 ? 0 : check_random(3) ? check_random(300) : check_random(20000);
		}
		sizes[0] = 5000; /* it does not fit the manifest's frame */
		s = batches(nb_runs, counts, sizes);
		af_tx_enqueue(&rig.tx, s);
		CHECK_EQUAL(rig_finish(&rig, s), AF_TX_DONE);
		CHECK_EQUAL(s->placed_bytes, s->nbytes);
		CHECK_EQUAL(rig.rx.placed_bytes, s->nbytes);
		got = rig_take(&rig);
		rig_check_same(got, s);
		af_rx_slice_free(got, rig_release);
		batches_free(s, nb_runs, counts);
		rig_end(&rig);
	}
}

static void
large_slices_are_streamed_around_the_caches(void)
{
	static const uint64_t sizes[] = {AF_STREAM_SLICE + 77, 3000};
	struct af_rx_slice *got;
	struct af_tx_slice *s;

	begin();
	s = rig_post(&rig, 2, sizes);
	CHECK_EQUAL(rig_finish(&rig, s), AF_TX_DONE);
	CHECK_EQUAL(s->placed_bytes, s->nbytes);
	got = rig_take(&rig);
	rig_check_same(got, s);
	af_rx_slice_free(got, rig_release);
	rig_slice_free(s);
	rig_end(&rig);
}

/* A slice that flows, of which its sender knows no place yet. */
static struct af_tx_slice *
untold(void)
{
	static const uint64_t sizes[] = {100000};
	struct af_tx_slice *s;

	begin();
	s = rig_post(&rig, 1, sizes);
	step_to_places(s);
	af_tx_forget_places(s);
	return s;
}

static void
end(struct af_tx_slice *s)
{
	af_tx_fail_all(&rig.tx, AF_TX_CANCELLED, rig.now);
	CHECK(!s->places); /* they are of the session that ended */
	rig_slice_free(s);
	rig_end(&rig);
}

static void
a_place_beyond_the_memory_is_ignored(void)
{
	struct af_tx_slice *s = untold();
	struct af_shared_memory *memory = &rig.shared.memories[0];
	uint64_t nbytes = memory->nbytes, block = 100000;
	const uint64_t beyond[] = {nbytes,    nbytes + 1, nbytes - block + 1, UINT64_MAX, UINT64_MAX - block + 1,
				   1ull << 63};

	for (size_t i = 0; i < sizeof beyond / sizeof *beyond; i++) {
		af_tx_take_place(&rig.tx, s, beyond[i]);
		CHECK(!s->places);
	}
	memory->nbytes = block - 1; /* it has less than the slice */
	af_tx_take_place(&rig.tx, s, 0);
	CHECK(!s->places);
	memory->nbytes = nbytes;
	af_tx_take_place(&rig.tx, s, nbytes - block); /* the last one that fits */
	CHECK(s->places && s->places->block == memory->base + nbytes - block);
	end(s);
}

static void
a_place_in_memory_that_is_not_mapped_is_ignored(void)
{
	struct af_tx_slice *s = untold();

	rig.tx.epoch++; /* the memory is another receiver's, on the same connection */
	af_tx_take_place(&rig.tx, s, 0);
	CHECK(!s->places);
	rig.tx.epoch--;
	rig.tx.ports[0].p.shared = rig.tx.ports[1].p.shared = NULL;
	af_tx_take_place(&rig.tx, s, 0);
	CHECK(!s->places);
	rig.tx.ports[1].p.shared = &rig.shared;
	rig.tx.ports[1].p.attached = false;
	af_tx_take_place(&rig.tx, s, 0);
	CHECK(!s->places);
	rig.tx.ports[1].p.attached = true; /* one port of two is on this host */
	af_tx_take_place(&rig.tx, s, 0);
	CHECK(s->places && s->places->shared == &rig.shared);
	end(s);
}

static void
the_first_place_that_is_told_holds(void)
{
	struct af_tx_slice *s = untold();
	const uint8_t *block;

	af_tx_take_place(&rig.tx, s, 4096);
	block = s->places->block;
	af_tx_place(s, 0, 0, 1, 0, RIG_PAYLOAD);
	af_tx_take_place(&rig.tx, s, 0);
	CHECK(s->places->block == block && af_tx_is_placed(s, 0) && !af_tx_is_placed(s, 1));
	af_tx_forget_places(s);
	s->inlined = true; /* all of it is in the manifest's frame */
	af_tx_take_place(&rig.tx, s, 0);
	CHECK(!s->places);
	s->inlined = false;
	end(s);
}

static void
memory_that_is_unmapped_is_left_alone(void)
{
	struct af_tx_slice *s = untold();
	struct af_shared other = {0};

	af_tx_take_place(&rig.tx, s, 0);
	af_tx_place(s, 3, 0, 1, 3 * RIG_PAYLOAD, RIG_PAYLOAD);
	af_tx_unmap(&rig.tx, NULL);
	af_tx_unmap(&rig.tx, &other); /* another connection */
	CHECK(s->places->shared == &rig.shared);
	af_tx_unmap(&rig.tx, &rig.shared);
	CHECK(!s->places->shared);
	CHECK(af_tx_is_placed(s, 3)); /* what was written is there */
	CHECK_EQUAL(s->places->crc[3], af_crc32c(0, s->elements[0].ptr + 3 * RIG_PAYLOAD, RIG_PAYLOAD));
	end(s);
}

/* A slice that has a place, and nothing there yet. Two ports may write to it. */
static struct af_tx_slice *
begin_placed(uint32_t n, const uint64_t *sizes)
{
	struct af_tx_slice *s;

	begin();
	s = rig_post(&rig, n, sizes);
	s->dispatch.ports = 1; /* it sends the manifest, and no data in the same step */
	step_to_places(s);
	s->dispatch.ports = ~0u;
	CHECK_EQUAL(s->next_chunk, s->nb_manifest);
	return s;
}

/* The next frame of port p, as the receiver reads it. */
static struct af_frame
sent_by(uint32_t p)
{
	static uint8_t frame[RIG_FRAME];
	struct af_frame f;

	CHECK(af_tx_next_frame(&rig.tx, p, rig.now, NULL, frame));
	CHECK_EQUAL(af_wire_parse(frame, RIG_FRAME, rig.rx.ports[p].p.mac, RIG_FRAME, &f), AF_OK);
	return f;
}

static uint32_t
crc_in(const struct af_frame *f)
{
	uint32_t crc;

	CHECK_EQUAL(f->nbytes, sizeof crc);
	memcpy(&crc, f->payload, sizeof crc);
	return AF_BE32(crc);
}

static void
placed_chunks_send_their_crc_alone(void)
{
	static const uint64_t sizes[] = {5000, 100, 200, 1460};
	struct af_tx_slice *s = begin_placed(4, sizes);
	uint64_t bytes = rig.tx.ports[0].count.tx_bytes, head = s->port_bytes[0];

	for (uint32_t seq = 0; seq < 4; seq++) {
		struct af_frame f = sent_by(0);
		uint32_t nbytes = seq < 3 ? RIG_PAYLOAD : 5000 - 3 * RIG_PAYLOAD;
		const uint8_t *from = s->elements[0].ptr + seq * RIG_PAYLOAD;

		CHECK_EQUAL(f.kind, AF_PLACED);
		CHECK_EQUAL(f.seq, seq);
		CHECK_EQUAL(f.end, seq == 3);
		CHECK_EQUAL(crc_in(&f), af_crc32c(0, from, nbytes));
		CHECK(!memcmp(s->places->block + seq * RIG_PAYLOAD, from, nbytes));
	}
	for (int i = 0; i < 2; i++) { /* elements that share a frame, and one alone */
		struct af_frame f = sent_by(0);
		uint32_t crc = af_crc32c(0, s->elements[i ? 3 : 1].ptr, i ? 1460 : 100);

		CHECK_EQUAL(f.kind, i ? AF_PLACED : AF_PLACED_PACK);
		CHECK_EQUAL(f.seq, i ? 0 : 2);
		CHECK_EQUAL(crc_in(&f), i ? crc : af_crc32c(crc, s->elements[2].ptr, 200));
	}
	CHECK_EQUAL(s->placed_bytes, s->nbytes);
	CHECK_EQUAL(rig.tx.ports[0].count.tx_bytes - bytes, s->nbytes + 6 * AF_MIN_FRAME);
	CHECK_EQUAL(s->port_bytes[0] - head, s->nbytes + 6 * AF_MIN_FRAME); /* as if frames had carried them */
	CHECK_EQUAL(sent_by(0).kind, AF_CLOSE);
	end(s);
}

static void
a_retransmission_over_any_port_repeats_the_frame_and_writes_nothing(void)
{
	static const uint64_t sizes[] = {5000};
	struct af_tx_slice *s = begin_placed(1, sizes);
	struct af_tx_port *port = &rig.tx.ports[0];
	struct af_frame f = sent_by(0);
	uint32_t crc = crc_in(&f);

	memset(s->places->block, 0x77, RIG_PAYLOAD); /* its receiver has it, and the user has changed it */
	port[1].p.shared = NULL; /* a port on a wire */
	af_tx_lost(&rig.tx, port, af_tx_sent(&port->pn, port->pn.next - 1));
	f = sent_by(1);
	CHECK_EQUAL(f.kind, AF_PLACED);
	CHECK_EQUAL(f.seq, 0);
	CHECK_EQUAL(crc_in(&f), crc);
	for (uint32_t i = 0; i < RIG_PAYLOAD; i++)
		CHECK_EQUAL(s->places->block[i], 0x77);
	CHECK_EQUAL(s->placed_bytes, RIG_PAYLOAD);
	end(s);
}

static void
what_was_carried_once_is_always_carried(void)
{
	static const uint64_t sizes[] = {50000};
	struct af_tx_slice *s = begin_placed(1, sizes);
	struct af_tx_port *port = &rig.tx.ports[1];
	struct af_frame f;
	uint32_t chunk;

	port->p.shared = NULL;
	memset(s->places->block, 0x77, 50000);
	f = sent_by(1);
	CHECK_EQUAL(f.kind, AF_DATA);
	chunk = f.seq;
	af_tx_lost(&rig.tx, port, af_tx_sent(&port->pn, port->pn.next - 1));
	f = sent_by(0); /* a port that places new chunks */
	CHECK_EQUAL(f.kind, AF_DATA);
	CHECK_EQUAL(f.seq, chunk);
	for (uint32_t i = 0; i < RIG_PAYLOAD; i++)
		CHECK_EQUAL(s->places->block[i + chunk * RIG_PAYLOAD], 0x77);
	CHECK_EQUAL(sent_by(0).kind, AF_PLACED);
	end(s);
}

static void
after_the_mapping_goes_what_was_written_is_said_and_the_rest_carried(void)
{
	static const uint64_t sizes[] = {5000};
	struct af_tx_slice *s = begin_placed(1, sizes);
	struct af_tx_port *port = &rig.tx.ports[0];
	uint8_t *block = s->places->block;
	struct af_frame f = sent_by(0);
	uint32_t crc = crc_in(&f);

	af_tx_unmap(&rig.tx, &rig.shared);
	memset(block, 0x77, 5000);
	af_tx_lost(&rig.tx, port, af_tx_sent(&port->pn, port->pn.next - 1));
	f = sent_by(0);
	CHECK_EQUAL(f.kind, AF_PLACED);
	CHECK_EQUAL(crc_in(&f), crc);
	for (uint32_t seq = 1; seq < 4; seq++)
		CHECK_EQUAL(sent_by(0).kind, AF_DATA);
	for (uint32_t i = 0; i < 5000; i++)
		CHECK_EQUAL(block[i], 0x77);
	end(s);
}

static void
the_digest_covers_what_was_placed_and_what_was_carried(void)
{
	static const uint64_t sizes[] = {20000, 300, 20, 9000};
	struct af_tx_slice *s = begin_placed(4, sizes);
	uint32_t wanted = 0;
	struct af_frame f;

	for (uint32_t e = 0; e < 4; e++)
		wanted = af_crc32c(wanted, s->elements[e].ptr, s->elements[e].nbytes);
	rig.tx.ports[1].p.shared = NULL;
	for (uint32_t p = 0; !s->all_sent; p ^= 1)
		f = sent_by(p);
	CHECK(s->placed_bytes && s->placed_bytes < s->nbytes);
	CHECK_EQUAL(f.kind, AF_CLOSE);
	CHECK_EQUAL(crc_in(&f), wanted);
	end(s);
}

CASES(CASE(elements_lie_where_the_receiver_looks_for_them), CASE(what_is_placed_is_what_was_sent),
      CASE(large_slices_are_streamed_around_the_caches), CASE(a_place_beyond_the_memory_is_ignored),
      CASE(a_place_in_memory_that_is_not_mapped_is_ignored), CASE(the_first_place_that_is_told_holds),
      CASE(memory_that_is_unmapped_is_left_alone), CASE(placed_chunks_send_their_crc_alone),
      CASE(a_retransmission_over_any_port_repeats_the_frame_and_writes_nothing),
      CASE(what_was_carried_once_is_always_carried),
      CASE(after_the_mapping_goes_what_was_written_is_said_and_the_rest_carried),
      CASE(the_digest_covers_what_was_placed_and_what_was_carried))

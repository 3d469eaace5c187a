/* tx_slice.h: the life of a slice at its sender. */
#include "aiflow/tx/tx_slice.h"

#include "rig.h"

static struct rig rig;

/* A slice in flight whose first three chunks were sent. */
static struct af_tx_slice *
in_flight(void)
{
	static const uint64_t sizes[] = {100000};
	struct af_tx_slice *s;

	rig_begin(&rig, 1, 1 << 20);
	rig.tx.payload_bytes = RIG_PAYLOAD;
	rig.tx.open = rig.tx.ports[0].open = true;
	rig.tx.first_id = rig.tx.next_id = 1;
	af_tx_pktnum_reset(&rig.tx.ports[0].pn, 10, 0);
	s = rig_post(&rig, 1, sizes);
	af_tx_activate(&rig.tx, rig.now);
	for (uint32_t c = 0; c < 3; c++)
		af_tx_pktnum_take(&rig.tx.ports[0].pn, rig.now, 1, c, false);
	return s;
}

static void
the_queue_is_first_in_first_out(void)
{
	struct af_tx_slice slices[3];

	rig_begin(&rig, 1, 1 << 20);
	for (int round = 0; round < 2; round++) {
		CHECK(!af_tx_busy(&rig.tx));
		for (int i = 0; i < 3; i++)
			af_tx_enqueue(&rig.tx, &slices[i]);
		CHECK(af_tx_busy(&rig.tx));
		for (int i = 0; i < 3; i++)
			CHECK(af_tx_dequeue(&rig.tx) == &slices[i]);
	}
	rig_end(&rig);
}

static void
chunks_are_numbered_manifest_data_close(void)
{
	static const uint64_t sizes[] = {5000, 700, 700, 700, 0};
	struct af_tx_slice *s = rig_slice(5, sizes);
	struct af_manifest m;

	rig_begin(&rig, 1, 1 << 20);
	rig.tx.payload_bytes = RIG_PAYLOAD;
	CHECK(af_tx_lay_out(&rig.tx, s));
	CHECK(!s->inlined);
	CHECK_EQUAL(s->nb_manifest, 1);
	CHECK_EQUAL(s->first_chunk[0], 0); /* four chunks */
	CHECK_EQUAL(s->first_chunk[1], 4); /* two fit one frame */
	CHECK_EQUAL(s->first_chunk[2], 4);
	CHECK_EQUAL(s->first_chunk[3], 5);
	CHECK_EQUAL(s->first_chunk[4], 5);
	CHECK_EQUAL(s->nb_data, 6);
	CHECK_EQUAL(s->nb_chunks, 8);
	memcpy(&m, s->manifest, sizeof m);
	CHECK_EQUAL(AF_BE16(m.payload_bytes), RIG_PAYLOAD);
	CHECK_EQUAL(m.flags, 0);
	rig_slice_free(s);
	rig_end(&rig);
}

static void
a_slice_that_fits_goes_inside_its_manifest(void)
{
	uint64_t size = RIG_PAYLOAD - AF_MANIFEST_HEADER - AF_RUN_HEADER;

	rig_begin(&rig, 1, 1 << 20);
	rig.tx.payload_bytes = RIG_PAYLOAD;
	for (int what = 0; what < 3; what++) { /* fits; one byte too many; the receiver keeps mbufs */
		uint64_t sizes[] = {size + (what == 1)};
		struct af_tx_slice *s = rig_slice(1, sizes);

		rig.tx.keeps_mbufs = what == 2;
		CHECK(af_tx_lay_out(&rig.tx, s));
		CHECK_EQUAL(s->inlined, what == 0);
		CHECK_EQUAL(s->nb_chunks, what == 0 ? 1 : 3);
		rig_slice_free(s);
	}
	rig_end(&rig);
}

static void
two_large_slices_or_eight_small_ones_are_in_flight(void)
{
	static const uint64_t large[] = {100000}, small[] = {10};

	for (int what = 0; what < 2; what++) {
		struct af_tx_slice *slices[12];
		uint32_t in_flight = what ? AF_TX_SLICES : 2;

		rig_begin(&rig, 1, 1 << 20);
		rig.tx.payload_bytes = RIG_PAYLOAD;
		rig.tx.open = true;
		rig.tx.first_id = rig.tx.next_id = 1;
		for (int i = 0; i < 12; i++)
			slices[i] = rig_post(&rig, 1, what ? small : large);
		af_tx_activate(&rig.tx, rig.now);
		CHECK_EQUAL(rig.tx.next_id - rig.tx.first_id, in_flight);
		for (uint32_t i = 0; i < 12; i++) {
			CHECK_EQUAL(slices[i]->state, i < in_flight ? AF_TX_ASKING : AF_TX_QUEUED);
			if (i < in_flight)
				CHECK(af_tx_slot(&rig.tx, i + 1)->slice == slices[i]);
		}
		CHECK(!af_tx_slot(&rig.tx, 1 + in_flight));
		af_tx_fail_all(&rig.tx, AF_TX_CANCELLED, rig.now);
		for (int i = 0; i < 12; i++) {
			CHECK_EQUAL(slices[i]->state, AF_TX_FAILED);
			CHECK_EQUAL(slices[i]->error, AF_TX_CANCELLED);
			rig_slice_free(slices[i]);
		}
		CHECK(!af_tx_busy(&rig.tx));
		rig_end(&rig);
	}
}

static void
a_lost_session_keeps_what_only_asked_and_fails_what_flowed(void)
{
	static const uint64_t sizes[] = {100000};
	struct af_tx_slice *flowing, *asking, *queued;
	uint64_t instance;

	rig_begin(&rig, 1, 1 << 20);
	rig.tx.payload_bytes = RIG_PAYLOAD;
	rig.tx.open = true;
	rig.tx.first_id = rig.tx.next_id = 1;
	rig.tx.next_number[0] = 55;
	flowing = rig_post(&rig, 1, sizes);
	asking = rig_post(&rig, 1, sizes);
	queued = rig_post(&rig, 1, sizes);
	af_tx_activate(&rig.tx, rig.now);
	atomic_store(&flowing->state, AF_TX_FLOWING);
	instance = rig.tx.instance;
	af_tx_lose_session(&rig.tx, AF_TX_SILENT, rig.now);
	CHECK_EQUAL(flowing->state, AF_TX_FAILED);
	CHECK_EQUAL(flowing->error, AF_TX_SILENT);
	CHECK_EQUAL(asking->state, AF_TX_QUEUED);
	CHECK(!rig.tx.open && !rig.tx.next_number[0]);
	CHECK_EQUAL(rig.tx.instance, instance + 1); /* another life: numbers begin again */
	CHECK(af_tx_dequeue(&rig.tx) == asking && af_tx_dequeue(&rig.tx) == queued);
	rig_slice_free(flowing);
	rig_slice_free(asking);
	rig_slice_free(queued);
	rig_end(&rig);
}

static void
the_life_of_an_instance_wraps_within_its_sixteen_bits(void)
{
	rig_begin(&rig, 1, 1 << 20);
	rig.tx.instance = 7ull << AF_LIFE_BITS | 0xffff;
	af_tx_lose_session(&rig.tx, AF_TX_OK, rig.now);
	CHECK_EQUAL(rig.tx.instance, 7ull << AF_LIFE_BITS);
	rig_end(&rig);
}

static void
numbers_that_run_out_end_a_session_between_slices(void)
{
	rig_begin(&rig, 2, 1 << 20);
	CHECK(!af_tx_is_worn(&rig.tx));
	rig.tx.next_number[1] = AF_WORN_NUMBERS;
	CHECK(af_tx_is_worn(&rig.tx));
	rig.tx.next_number[1] = AF_WORN_NUMBERS - 1;
	CHECK(!af_tx_is_worn(&rig.tx));
	rig.tx.ports[1].pn.next = AF_WORN_NUMBERS;
	CHECK(!af_tx_is_worn(&rig.tx)); /* of a closed path */
	rig.tx.ports[1].open = true;
	CHECK(af_tx_is_worn(&rig.tx));
	rig.tx.ports[1].open = false;
	rig.tx.next_id = AF_WORN_SLICES;
	CHECK(af_tx_is_worn(&rig.tx));
	rig_end(&rig);
}

static void
an_acknowledged_chunk_counts_once(void)
{
	struct af_tx_slice *s = in_flight();
	struct af_tx_port *port = &rig.tx.ports[0];

	af_tx_ack(&rig.tx, port, af_tx_sent(&port->pn, 1));
	CHECK(af_tx_is_acked(s, 1) && !af_tx_is_acked(s, 0));
	CHECK_EQUAL(s->nb_acked, 1);
	CHECK_EQUAL(port->pn.in_flight, 2);
	CHECK_EQUAL(atomic_load(&s->acked_bytes), s->nbytes / s->nb_chunks);
	af_tx_sent(&port->pn, 2)->chunk = 1; /* the same chunk under another number */
	af_tx_ack(&rig.tx, port, af_tx_sent(&port->pn, 2));
	CHECK_EQUAL(s->nb_acked, 1);
	CHECK_EQUAL(port->pn.in_flight, 1);
	af_tx_fail_all(&rig.tx, AF_TX_CANCELLED, rig.now);
	af_tx_ack(&rig.tx, port, af_tx_sent(&port->pn, 0)); /* of a slice that is no more */
	CHECK_EQUAL(port->pn.in_flight, 0);
	rig_slice_free(s);
	rig_end(&rig);
}

static void
a_lost_chunk_is_queued_for_retransmission(void)
{
	struct af_tx_slice *s = in_flight();
	struct af_tx_port *port = &rig.tx.ports[0];
	uint64_t probe = af_tx_pktnum_take(&port->pn, rig.now, 0, 0, true);

	af_tx_lost(&rig.tx, port, af_tx_sent(&port->pn, 2));
	CHECK_EQUAL(af_tx_sent(&port->pn, 2)->state, AF_SENT_LOST);
	CHECK_EQUAL(rig.tx.retransmit_tail - rig.tx.retransmit_head, 1);
	CHECK_EQUAL(rig.tx.retransmit[rig.tx.retransmit_head].chunk, 2);
	CHECK_EQUAL(rig.tx.retransmit[rig.tx.retransmit_head].slice, 1);
	CHECK_EQUAL(port->count.lost, 1);
	CHECK_EQUAL(port->pn.in_flight, 2);
	af_tx_lost(&rig.tx, port, af_tx_sent(&port->pn, probe)); /* carries nothing */
	CHECK_EQUAL(rig.tx.retransmit_tail - rig.tx.retransmit_head, 1);
	CHECK_EQUAL(port->pn.in_flight, 2);
	af_tx_fail_all(&rig.tx, AF_TX_CANCELLED, rig.now);
	rig_slice_free(s);
	rig_end(&rig);
}

CASES(CASE(the_queue_is_first_in_first_out), CASE(chunks_are_numbered_manifest_data_close),
      CASE(a_slice_that_fits_goes_inside_its_manifest), CASE(two_large_slices_or_eight_small_ones_are_in_flight),
      CASE(a_lost_session_keeps_what_only_asked_and_fails_what_flowed),
      CASE(the_life_of_an_instance_wraps_within_its_sixteen_bits),
      CASE(numbers_that_run_out_end_a_session_between_slices), CASE(an_acknowledged_chunk_counts_once),
      CASE(a_lost_chunk_is_queued_for_retransmission))

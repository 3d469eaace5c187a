/* offering.h: a slice is lent where the receiver can read it, and its lease never outlives its session untaken. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memfd_create */
#endif
#include "aiflow/tx/offering.h"

#include "lent.h"

static struct rig rig;
static struct lent lent;
static const uint64_t sizes[] = {5000, 0, 70000};

static void
begin(void)
{
	rig_begin(&rig, 2, 1 << 20);
	lent_begin(&lent, &rig);
	rig_open(&rig);
}

static void
finish(void)
{
	rig_end(&rig);
	lent_finish(&lent);
}

static struct af_tx_slice *
post(void)
{
	struct af_tx_slice *s = lent_slice(&lent, 3, sizes, 4096);

	s->posted_ns = rig.now;
	af_tx_enqueue(&rig.tx, s);
	return s;
}

static void
end(struct af_tx_slice *s)
{
	struct af_rx_slice *got;

	while ((got = rig_take(&rig)))
		af_rx_slice_free(got, rig_release);
	lent_slice_free(s);
}

static void
a_loan_takes_one_frame_and_no_memory_there(void)
{
	struct af_tx_slice *s;
	struct af_rx_slice *got;

	begin();
	s = post();
	CHECK_EQUAL(rig_finish(&rig, s), AF_TX_DONE);
	CHECK(s->lent && !s->inlined);
	CHECK_EQUAL(s->frames, 1);
	CHECK_EQUAL(s->granted_ns, 0);
	got = rig_take(&rig);
	CHECK(got->borrowed == lent.borrowed);
	for (uint32_t e = 0; e < 3; e++) {
		CHECK_EQUAL(got->elements[e].nbytes, sizes[e]);
		CHECK(!sizes[e] || af_rx_base(got) + got->elements[e].offset == s->elements[e].ptr);
	}
	CHECK(got->block->charged < 5000);
	CHECK_EQUAL(af_lender_sweep(lent.lender), 1);
	CHECK_EQUAL(lent.loan.holds, 2);
	af_rx_slice_free(got, rig_release);
	CHECK_EQUAL(af_lender_sweep(lent.lender), 0);
	end(s);
	finish();
}

static void
copied(void (*change)(struct af_tx *tx))
{
	struct af_tx_slice *s;
	struct af_rx_slice *got;

	begin();
	change(&rig.tx);
	s = post();
	CHECK_EQUAL(rig_finish(&rig, s), AF_TX_DONE);
	CHECK(!s->lent);
	CHECK_EQUAL(s->manifest_bytes, s->loans->manifest_bytes);
	got = rig_take(&rig);
	CHECK(!got->borrowed);
	rig_check_same(got, s);
	af_rx_slice_free(got, rig_release);
	end(s);
	finish();
}

static void
not_mapped(struct af_tx *tx)
{
	(void)tx;
	lent.lender->mapped = false;
}

static void
not_wanted(struct af_tx *tx)
{
	(void)tx;
	lent.tx.memories[0].borrows = false;
}

static void
another_connection(struct af_tx *tx)
{
	static struct af_shared other;

	tx->ports[1].p.shared = &other;
}

static void
no_connection(struct af_tx *tx)
{
	tx->ports[0].p.shared = NULL;
}

static void
another_pool(struct af_tx *tx)
{
	(void)tx;
	lent_pool = LENT_POOL + 1;
}

static void
what_cannot_be_lent_is_carried(void)
{
	copied(not_mapped);
	copied(not_wanted);
	copied(another_connection);
	copied(no_connection);
	copied(another_pool);
}

static bool
first_is_lost(enum rig_way way, uint32_t port, uint8_t *frame, uint32_t len)
{
	static uint32_t lost;

	(void)port;
	(void)len;
	return way != TO_RECEIVER || (frame[14] & 15) != AF_MANIFEST || ++lost % 3 == 0;
}

static void
a_lost_frame_is_repeated_and_a_repeated_one_counts_once(void)
{
	begin();
	rig.passes = first_is_lost;
	for (int i = 0; i < 20; i++) {
		struct af_tx_slice *s = post();

		CHECK_EQUAL(rig_finish(&rig, s), AF_TX_DONE);
		CHECK(s->lent && s->retransmits);
		CHECK_EQUAL(af_lender_sweep(lent.lender), 1);
		end(s);
		CHECK_EQUAL(af_lender_sweep(lent.lender), 0);
	}
	rig.passes = NULL;
	finish();
}

static bool
no_manifest(enum rig_way way, uint32_t port, uint8_t *frame, uint32_t len)
{
	(void)port;
	(void)len;
	return way != TO_RECEIVER || (frame[14] & 15) != AF_MANIFEST;
}

static void
a_slice_that_is_given_up_leaves_no_lease(void)
{
	struct af_tx_slice *s;

	begin();
	rig.passes = no_manifest;
	s = post();
	rig_steps(&rig, 20);
	CHECK_EQUAL(af_lender_sweep(lent.lender), 1);
	s->cancel = 1;
	CHECK_EQUAL(rig_finish(&rig, s), AF_TX_FAILED);
	CHECK_EQUAL(af_lender_sweep(lent.lender), 0);
	CHECK_EQUAL(lent.loan.holds, 1);
	rig.passes = NULL;
	rig_steps(&rig, 100);
	CHECK(!rig_take(&rig));
	end(s);
	finish();
}

static void
a_lost_session_withdraws_what_it_offered(void)
{
	struct af_tx_slice *s;

	begin();
	rig.passes = no_manifest;
	s = post();
	rig_steps(&rig, 20);
	CHECK(s->all_sent);
	af_tx_lose_session(&rig.tx, AF_TX_SILENT, rig.now);
	CHECK_EQUAL(s->state, AF_TX_FAILED); /* the receiver might have it, for all that its sender can say */
	CHECK_EQUAL(af_lender_sweep(lent.lender), 0);
	end(s);
	s = post();
	rig.passes = NULL;
	CHECK_EQUAL(rig_finish(&rig, s), AF_TX_DONE);
	CHECK(s->lent);
	end(s);
	finish();
}

static void
a_connection_that_goes_withdraws_what_it_offered(void)
{
	struct af_tx_slice *s;

	begin();
	rig.passes = no_manifest;
	s = post();
	rig_steps(&rig, 20);
	af_tx_withdraw_all(&rig.tx, &lent.tx);
	CHECK(!s->loans->lender);
	CHECK_EQUAL(af_lender_sweep(lent.lender), 0);
	rig.passes = NULL;
	CHECK_EQUAL(rig_finish(&rig, s), AF_TX_FAILED); /* and the receiver refuses the frame */
	CHECK_EQUAL(s->error, AF_TX_REFUSED);
	end(s);
	finish();
}

CASES(CASE(a_loan_takes_one_frame_and_no_memory_there), CASE(what_cannot_be_lent_is_carried),
      CASE(a_lost_frame_is_repeated_and_a_repeated_one_counts_once), CASE(a_slice_that_is_given_up_leaves_no_lease),
      CASE(a_lost_session_withdraws_what_it_offered), CASE(a_connection_that_goes_withdraws_what_it_offered))

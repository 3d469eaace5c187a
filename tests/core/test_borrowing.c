/* borrowing.h: a receiver takes the loans that it can read, refuses all others, and gives each back once. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memfd_create */
#endif
#include "aiflow/rx/borrowing.h"

#include "lent.h"

static struct rig rig;
static struct lent lent;
static struct af_rx_session *session;
static uint64_t number;

static void
begin(void)
{
	rig_begin(&rig, 1, 1 << 20);
	lent_begin(&lent, &rig);
	rig_open(&rig);
	session = rig.rx.sessions[0];
	number = session->paths[0].pn.next;
}

static void
finish(void)
{
	rig_end(&rig);
	CHECK_EQUAL(lent.borrowed->holds, 1);
	af_lender_forget(lent.lender, false);
	lent_finish(&lent);
}

static const uint64_t sizes[] = {300, 5000};

/* A manifest of two elements that is offered, as slice `id`. */
static enum af_drop
tell(uint32_t id, uint64_t offset, uint64_t pool, uint32_t lease, uint64_t generation)
{
	struct af_tx_slice *s = lent_slice(&lent, 2, sizes, 0);
	struct af_loan_piece piece = {.offset = AF_BE64(offset)};
	struct af_manifest m;
	struct af_frame f = {.kind = AF_MANIFEST, .session = session->id, .slice = id, .number = number++, .end = 1};
	enum af_drop drop;

	memcpy(&m, s->manifest, sizeof m);
	m.payload_bytes = AF_BE16(RIG_PAYLOAD);
	memcpy(s->manifest, &m, sizeof m);
	af_loan_write(s->manifest + s->manifest_bytes, pool, lease, generation, &piece, 1);
	f.payload = s->manifest;
	f.element = f.nbytes = s->manifest_bytes + af_loan_bytes(1);
	drop = rig_to_receiver(&rig, 0, f);
	lent_slice_free(s);
	return drop;
}

static uint32_t
void_of(uint32_t id)
{
	const struct af_void *v = &session->voids[id % AF_SLICES_IN_FLIGHT];

	return AF_BE32(v->slice) == id ? AF_BE32(v->reason) : AF_VOID_NONE;
}

static void
offer(uint32_t *lease, uint64_t *generation)
{
	struct af_loan *loans[] = {&lent.loan};

	CHECK(af_lender_offer(lent.lender, loans, 1, lease, generation));
}

static void
a_loan_is_read_where_it_lies_and_given_back_once(void)
{
	struct af_rx_slice *got;
	uint64_t generation;
	uint32_t lease;

	begin();
	offer(&lease, &generation);
	CHECK_EQUAL(tell(1, 777, LENT_POOL, lease, generation), AF_OK);
	CHECK_EQUAL(tell(1, 777, LENT_POOL, lease, generation), AF_DROP_DUPLICATE);
	got = rig_take(&rig);
	CHECK(got && af_rx_base(got) == lent.borrowed->base);
	CHECK_EQUAL(got->elements[0].offset, 777);
	CHECK_EQUAL(got->elements[1].offset, 1077);
	CHECK(af_rx_is_one_piece(got, 0, 2));
	CHECK_EQUAL(lent.borrowed->holds, 2);
	CHECK(!rig_take(&rig));
	af_rx_slice_free(got, rig_release);
	CHECK_EQUAL(lent.borrowed->holds, 1);
	CHECK_EQUAL(af_lender_sweep(lent.lender), 0);
	finish();
}

static void
lies_are_refused(void)
{
	uint64_t generation;
	uint32_t lease;

	begin();
	offer(&lease, &generation);
	CHECK_EQUAL(tell(1, LENT_BYTES - 5299, LENT_POOL, lease, generation), AF_OK);
	CHECK_EQUAL(void_of(1), AF_VOID_MANIFEST); /* beyond the pool */
	CHECK_EQUAL(tell(2, 0, LENT_POOL + 1, lease, generation), AF_OK);
	CHECK_EQUAL(void_of(2), AF_VOID_MANIFEST); /* of no pool that we know */
	CHECK_EQUAL(tell(3, 0, LENT_POOL, AF_LEASES, generation), AF_OK);
	CHECK_EQUAL(void_of(3), AF_VOID_MANIFEST);
	CHECK_EQUAL(tell(4, 0, LENT_POOL, lease, generation + 1), AF_OK);
	CHECK_EQUAL(void_of(4), AF_VOID_MANIFEST);
	CHECK(!rig_take(&rig));
	CHECK_EQUAL(tell(5, LENT_BYTES - 5300, LENT_POOL, lease, generation), AF_OK);
	CHECK_EQUAL(void_of(5), AF_VOID_NONE);
	af_rx_slice_free(rig_take(&rig), rig_release);
	CHECK_EQUAL(tell(6, 0, LENT_POOL, lease, generation), AF_OK);
	CHECK_EQUAL(void_of(6), AF_VOID_MANIFEST); /* a second time */
	finish();
}

static void
a_receiver_that_wants_no_loans_says_that_it_knows_none(void)
{
	uint64_t generation;
	uint32_t lease;

	begin();
	rig.rx.borrows = false;
	offer(&lease, &generation);
	CHECK_EQUAL(tell(1, 0, LENT_POOL, lease, generation), AF_OK);
	CHECK_EQUAL(void_of(1), AF_VOID_UNKNOWN);
	CHECK_EQUAL(lent.borrowed->holds, 1);
	finish();
}

static void
what_is_not_handed_over_is_given_back(void)
{
	uint64_t generation;
	uint32_t lease;

	begin();
	offer(&lease, &generation);
	CHECK_EQUAL(tell(2, 0, LENT_POOL, lease, generation), AF_OK); /* the slice before it is missing */
	CHECK_EQUAL(lent.borrowed->holds, 2);
	CHECK(!rig_take(&rig));
	af_rx_silence(&rig.rx, session);
	CHECK_EQUAL(lent.borrowed->holds, 1);
	CHECK_EQUAL(af_lender_sweep(lent.lender), 0);
	finish();
}

static void
a_receiver_that_parts_takes_none(void)
{
	uint64_t generation;
	uint32_t lease;

	begin();
	offer(&lease, &generation);
	rig.rx.parting = true;
	CHECK_EQUAL(tell(1, 0, LENT_POOL, lease, generation), AF_DROP_BUSY);
	CHECK_EQUAL(tell(1, 0, LENT_POOL, lease, generation), AF_DROP_BUSY); /* its sender repeats it */
	CHECK(!rig_take(&rig));
	CHECK_EQUAL(session->done, 1); /* not even void: its sender must not count it as delivered */
	af_lender_withdraw(lent.lender, lease, generation);
	CHECK_EQUAL(af_lender_sweep(lent.lender), 0);
	finish();
}

static void
a_mapping_outlives_its_connection(void)
{
	struct af_rx_slice *got;
	uint64_t generation;
	uint32_t lease;

	begin();
	offer(&lease, &generation);
	CHECK_EQUAL(tell(1, 0, LENT_POOL, lease, generation), AF_OK);
	got = rig_take(&rig);
	lent.rx.borrowed[0] = NULL;
	af_borrowed_drop(lent.borrowed);
	CHECK_EQUAL(af_rx_base(got)[10], lent.loan.base[10]);
	atomic_fetch_add(&lent.borrowed->holds, 1);
	af_rx_slice_free(got, rig_release);
	finish();
}

CASES(CASE(a_loan_is_read_where_it_lies_and_given_back_once), CASE(lies_are_refused),
      CASE(a_receiver_that_wants_no_loans_says_that_it_knows_none), CASE(what_is_not_handed_over_is_given_back),
      CASE(a_receiver_that_parts_takes_none), CASE(a_mapping_outlives_its_connection))

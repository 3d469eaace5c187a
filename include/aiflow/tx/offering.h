/* Offering: a sender tells its receiver where the elements of a slice lie in a pool that both have mapped
 * (rt/ledger.h).
 *
 * A slice on loan is a manifest and no data. It is offered anew in each session, by a lease of its own: of the one
 * before it is known by then whether the receiver has taken it. Where the slice cannot be lent, its bytes are placed or
 * carried like any other's.
 */
#ifndef AIFLOW_OFFERING_H
#define AIFLOW_OFFERING_H

#include "aiflow/tx/tx_state.h"
#include "aiflow/wire/loan.h"

/* The slice ends, or its session does. A lease that the receiver has taken stays out. */
static inline void
af_tx_withdraw(struct af_tx_slice *s)
{
	struct af_tx_loans *loans = s->loans;

	if (loans && loans->lender)
		af_lender_withdraw(loans->lender, loans->lease, loans->generation);
	if (loans)
		loans->lender = NULL;
}

/* The connection goes, and its lender may. */
static inline void
af_tx_withdraw_all(struct af_tx *tx, const struct af_shared *shared)
{
	for (uint32_t id = tx->first_id; id != tx->next_id && shared; id++) {
		struct af_tx_slice *s = tx->slots[id % AF_TX_SLICES].slice;

		for (uint32_t i = 0; s && s->loans && s->loans->lender && i < AF_MOST_SHARED; i++) {
			if (atomic_load_explicit(&shared->lenders[i], memory_order_acquire) == s->loans->lender)
				af_tx_withdraw(s);
		}
	}
}

/* Over what this sender lends out of a pool: the receiver wants loans, and its process has mapped the pool over the
 * connection that has all paths of the session. NULL: it does not lend. */
static inline struct af_lender *
af_tx_lender(const struct af_tx *tx, uint64_t pool)
{
	const struct af_shared *shared = NULL;
	const struct af_shared_memory *memory;

	for (uint32_t p = 0; p < tx->nb_ports; p++) {
		if (!tx->ports[p].open)
			continue;
		if (!tx->ports[p].p.shared || (shared && shared != tx->ports[p].p.shared))
			return NULL;
		shared = tx->ports[p].p.shared;
	}
	memory = af_shared_of(shared, tx->epoch);
	return memory && memory->borrows ? af_shared_lender(shared, pool) : NULL;
}

/* Offer a slice, and say so in its manifest, which becomes longer by that. False where it cannot be lent: the manifest
 * is as the user's process has made it. */
static inline bool
af_tx_offer(const struct af_tx *tx, struct af_tx_slice *s)
{
	struct af_tx_loans *loans = s->loans;
	struct af_lender *lender = loans ? af_tx_lender(tx, loans->pool) : NULL;

	if (!loans)
		return false;
	s->manifest_bytes = loans->manifest_bytes;
	loans->lender = NULL;
	if (!lender || !af_lender_offer(lender, loans->held, loans->nb_held, &loans->lease, &loans->generation))
		return false;
	loans->lender = lender;
	af_loan_write(s->manifest + loans->manifest_bytes, lender->pool, loans->lease, loans->generation, loans->pieces,
		      loans->nb_pieces);
	s->manifest_bytes += af_loan_bytes(loans->nb_pieces);
	return true;
}

#endif

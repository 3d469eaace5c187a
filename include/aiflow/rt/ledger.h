/* The ledger of loans: which memory of a sender its receiver's process reads.
 *
 * A sender shares a pool of memory with the process of a receiver on its host, and a ledger beside it: a word for each
 * lease, which both write. A slice on loan has one lease. Each change is one compare-and-swap, so that one side wins:
 *
 *     free ──sender──► offered ──receiver──► taken ──receiver──► free
 *                         └─────sender──────────────────────────► free      the slice ended, or its session
 *
 * So whatever becomes of a slice, its sender knows at once whether the receiver can still read the loan: a lease that
 * was withdrawn is never taken, not even by a process that wakes up much later. Memory whose lease was taken returns to
 * the pool when the receiver gives the lease back, or when its process has ended. A process that writes nonsense into a
 * ledger harms itself: it reads memory that has another use, or keeps it from its sender.
 *
 * A generation is in each word. A lease that ended is never mistaken for the next one of its index.
 */
#ifndef AIFLOW_LEDGER_H
#define AIFLOW_LEDGER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define AF_LEASES 4096u /* of a ledger: slices on loan to the receivers of one process */
#define AF_LEDGER_BYTES (AF_LEASES * 8u)

enum af_lease_state { AF_LEASE_FREE, AF_LEASE_OFFERED, AF_LEASE_TAKEN };

static inline uint64_t
af_lease_word(uint64_t generation, enum af_lease_state state)
{
	return generation << 2 | (uint64_t)state;
}

static inline bool
af_lease_move(_Atomic uint64_t *word, uint64_t generation, enum af_lease_state from, enum af_lease_state to)
{
	uint64_t expected = af_lease_word(generation, from);

	return atomic_compare_exchange_strong_explicit(word, &expected, af_lease_word(generation, to),
						       memory_order_acq_rel, memory_order_acquire);
}

/* ---- the sender's side ---- */

/* A block of a pool. Its user, and each lease that it is in, hold it. */
struct af_loan {
	_Atomic uint32_t holds;
	_Atomic bool stays; /* a process may read it for ever, and nothing will tell: no other use follows */
	uint8_t *base;
	uint64_t nbytes;
	void (*end)(struct af_loan *loan); /* nothing holds it any more */
};

static inline void
af_loan_hold(struct af_loan *loan)
{
	atomic_fetch_add_explicit(&loan->holds, 1, memory_order_relaxed);
}

static inline void
af_loan_drop(struct af_loan *loan)
{
	if (atomic_fetch_sub_explicit(&loan->holds, 1, memory_order_acq_rel) == 1)
		loan->end(loan);
}

struct af_lease {
	uint64_t generation;
	struct af_loan **loans; /* that it holds */
	uint32_t nb_loans;
	uint32_t at; /* its place in `order` */
};

/* A pool and a connection. */
struct af_lender {
	/* control: w before it is in use */
	uint64_t pool;           /* its number */
	_Atomic uint64_t *words; /* AF_LEASES of them, mapped by both sides */
	/* any thread */
	_Atomic bool mapped;  /* the peer says that it has mapped both */
	pthread_mutex_t lock; /* of the rest; per slice, never per frame */
	uint32_t nb_open;     /* leases that are not over: the first ones in `order` */
	uint32_t order[AF_LEASES];
	struct af_lease leases[AF_LEASES];
};

static inline void
af_lender_init(struct af_lender *lender, uint64_t pool, void *words)
{
	memset(lender, 0, sizeof *lender);
	pthread_mutex_init(&lender->lock, NULL);
	lender->pool = pool;
	lender->words = words;
	for (uint32_t i = 0; i < AF_LEASES; i++)
		lender->order[i] = lender->leases[i].at = i;
}

static inline void
af_lender_swap(struct af_lender *lender, uint32_t i, uint32_t k)
{
	uint32_t one = lender->order[i], other = lender->order[k];

	lender->order[i] = other;
	lender->order[k] = one;
	lender->leases[other].at = i;
	lender->leases[one].at = k;
}

/* A lease is over; under the lock. */
static inline void
af_lender_end(struct af_lender *lender, uint32_t index)
{
	struct af_lease *lease = &lender->leases[index];

	af_lender_swap(lender, lease->at, --lender->nb_open);
	for (uint32_t i = 0; i < lease->nb_loans; i++)
		af_loan_drop(lease->loans[i]);
	free(lease->loans);
	lease->loans = NULL;
	lease->nb_loans = 0;
}

/* End the leases that are over; under the lock. */
static inline void
af_lender_sweep_locked(struct af_lender *lender)
{
	for (uint32_t i = lender->nb_open; i-- > 0;) {
		uint32_t index = lender->order[i];
		uint64_t generation = lender->leases[index].generation;
		uint64_t word = atomic_load_explicit(&lender->words[index], memory_order_acquire);

		if (word != af_lease_word(generation, AF_LEASE_OFFERED) &&
		    word != af_lease_word(generation, AF_LEASE_TAKEN))
			af_lender_end(lender, index);
	}
}

/* Offer a lease on `nb_loans` blocks. False without memory, or when all leases are out. */
static inline bool
af_lender_offer(struct af_lender *lender, struct af_loan **loans, uint32_t nb_loans, uint32_t *index,
		uint64_t *generation)
{
	struct af_loan **held = malloc((nb_loans ? nb_loans : 1) * sizeof(struct af_loan *));
	struct af_lease *lease;

	if (!held)
		return false;
	pthread_mutex_lock(&lender->lock);
	if (lender->nb_open == AF_LEASES)
		af_lender_sweep_locked(lender);
	if (lender->nb_open == AF_LEASES) {
		pthread_mutex_unlock(&lender->lock);
		free(held);
		return false;
	}
	*index = lender->order[lender->nb_open++];
	lease = &lender->leases[*index];
	*generation = ++lease->generation;
	lease->loans = held;
	lease->nb_loans = nb_loans;
	for (uint32_t i = 0; i < nb_loans; i++) {
		held[i] = loans[i];
		af_loan_hold(loans[i]);
	}
	atomic_store_explicit(&lender->words[*index], af_lease_word(*generation, AF_LEASE_OFFERED),
			      memory_order_release);
	pthread_mutex_unlock(&lender->lock);
	return true;
}

/* The slice ends at its sender, or changes its session. Nothing, where the receiver has taken the lease. */
static inline void
af_lender_withdraw(struct af_lender *lender, uint32_t index, uint64_t generation)
{
	pthread_mutex_lock(&lender->lock);
	if (lender->leases[index].generation == generation && lender->leases[index].at < lender->nb_open &&
	    af_lease_move(&lender->words[index], generation, AF_LEASE_OFFERED, AF_LEASE_FREE))
		af_lender_end(lender, index);
	pthread_mutex_unlock(&lender->lock);
}

/* End the leases that are over. Returns how many are left. */
static inline uint32_t
af_lender_sweep(struct af_lender *lender)
{
	uint32_t left;

	pthread_mutex_lock(&lender->lock);
	af_lender_sweep_locked(lender);
	left = lender->nb_open;
	pthread_mutex_unlock(&lender->lock);
	return left;
}

/* End all leases: the peer's process has ended. `stay`: it lives, and nothing will tell when it is done; their memory
 * gets no other use. */
static inline void
af_lender_forget(struct af_lender *lender, bool stay)
{
	pthread_mutex_lock(&lender->lock);
	af_lender_sweep_locked(lender);
	while (lender->nb_open) {
		struct af_lease *lease = &lender->leases[lender->order[0]];

		for (uint32_t i = 0; i < lease->nb_loans && stay; i++)
			atomic_store_explicit(&lease->loans[i]->stays, true, memory_order_relaxed);
		atomic_store_explicit(&lender->words[lender->order[0]], 0, memory_order_relaxed);
		af_lender_end(lender, lender->order[0]);
	}
	pthread_mutex_unlock(&lender->lock);
}

/* ---- the receiver's side ---- */

/* A pool of a sender, and its ledger, as they are mapped here. The connection and each slice hold it. */
struct af_borrowed {
	_Atomic uint32_t holds;
	uint64_t pool; /* its number */
	const uint8_t *base;
	uint64_t nbytes;
	_Atomic uint64_t *words; /* AF_LEASES of them */
};

static inline void
af_borrowed_drop(struct af_borrowed *from)
{
	if (atomic_fetch_sub_explicit(&from->holds, 1, memory_order_acq_rel) != 1)
		return;
	munmap((void *)(uintptr_t)from->base, from->nbytes);
	munmap((void *)from->words, AF_LEDGER_BYTES);
	free(from);
}

/* Take a lease that was offered. False when its sender has withdrawn it, or never offered it. */
static inline bool
af_borrowed_take(struct af_borrowed *from, uint32_t index, uint64_t generation)
{
	if (index >= AF_LEASES || generation >= 1ull << 62 ||
	    !af_lease_move(&from->words[index], generation, AF_LEASE_OFFERED, AF_LEASE_TAKEN))
		return false;
	atomic_fetch_add_explicit(&from->holds, 1, memory_order_relaxed);
	return true;
}

/* Give a lease back that was taken. Any thread. */
static inline void
af_borrowed_give(struct af_borrowed *from, uint32_t index, uint64_t generation)
{
	af_lease_move(&from->words[index], generation, AF_LEASE_TAKEN, AF_LEASE_FREE);
	af_borrowed_drop(from);
}

#endif

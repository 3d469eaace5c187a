/* A chronograph: how long something was in each of a few states. The loop notes the state, and any thread reads the
 * times. They say what bounds a transfer, as those of TCP do (tcp_chrono_start in Linux's net/ipv4/tcp_output.c).
 *
 * A time costs a comparison while the state stays the same. The time of the present state is added when it is read.
 */
#ifndef AIFLOW_CHRONO_H
#define AIFLOW_CHRONO_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define AF_CHRONO_STATES 5u

#define AF_CHRONO_TRIES 1000 /* readings that a change may disturb before a reader makes do with the ones before */

struct af_chrono {
	/* dataplane: w, control: ro */
	_Atomic uint32_t turns; /* changes of the state, twice: odd while one is written */
	_Atomic uint32_t state; /* the present one, below AF_CHRONO_STATES */
	_Atomic uint64_t since_ns; /* it began then; 0: nothing was noted yet */
	_Atomic uint64_t ns[AF_CHRONO_STATES]; /* in each state, the present stay excluded */
	/* control: rw */
	_Atomic uint64_t told_ns[AF_CHRONO_STATES]; /* the most that a reader was told */
};

/* The state is this one from now on. One thread at a time. */
static inline void
af_chrono_note(struct af_chrono *chrono, uint32_t state, uint64_t now)
{
	uint64_t since = atomic_load_explicit(&chrono->since_ns, memory_order_relaxed);
	uint32_t was = atomic_load_explicit(&chrono->state, memory_order_relaxed);
	uint32_t turns = atomic_load_explicit(&chrono->turns, memory_order_relaxed);

	if (since && was == state)
		return;
	atomic_store_explicit(&chrono->turns, turns + 1, memory_order_relaxed);
	/* Each reader sees the odd number before the new values; acquire of a read-modify-write lets them pass it. */
	atomic_thread_fence(memory_order_release);
	if (since && now > since)
		atomic_store_explicit(&chrono->ns[was],
				      atomic_load_explicit(&chrono->ns[was], memory_order_relaxed) + now - since,
				      memory_order_relaxed);
	atomic_store_explicit(&chrono->since_ns, now, memory_order_relaxed);
	atomic_store_explicit(&chrono->state, state, memory_order_relaxed);
	atomic_store_explicit(&chrono->turns, turns + 2, memory_order_release);
}

/* One attempt to read the nanoseconds in each state so far. False: the state changed meanwhile. Any thread. */
static inline bool
af_chrono_try(const struct af_chrono *chrono, uint64_t now, uint64_t ns[AF_CHRONO_STATES])
{
	uint32_t turns = atomic_load_explicit(&chrono->turns, memory_order_acquire);
	uint64_t since = atomic_load_explicit(&chrono->since_ns, memory_order_relaxed);
	uint32_t state = atomic_load_explicit(&chrono->state, memory_order_relaxed);

	for (uint32_t i = 0; i < AF_CHRONO_STATES; i++)
		ns[i] = atomic_load_explicit(&chrono->ns[i], memory_order_relaxed);
	if (since && now > since)
		ns[state] += now - since;
	atomic_thread_fence(memory_order_acquire);
	return !(turns & 1) && atomic_load_explicit(&chrono->turns, memory_order_relaxed) == turns;
}

/* Nanoseconds in each state so far. Any thread.
 *
 * They never fall, though the loop notes a change with a reading of the clock from before: a counter that falls looks
 * like a new one. The loop may have stopped in mid-change, because it has no CPU, or for ever in a forked child. Then
 * the times are those that were told last.
 */
static inline void
af_chrono_read(struct af_chrono *chrono, uint64_t now, uint64_t ns[AF_CHRONO_STATES])
{
	bool good = false;

	for (int i = 0; i < AF_CHRONO_TRIES && !good; i++)
		good = af_chrono_try(chrono, now, ns);
	for (uint32_t i = 0; i < AF_CHRONO_STATES; i++) {
		uint64_t told = atomic_load_explicit(&chrono->told_ns[i], memory_order_relaxed);

		while (good && told < ns[i] &&
		       !atomic_compare_exchange_weak_explicit(&chrono->told_ns[i], &told, ns[i], memory_order_relaxed,
							      memory_order_relaxed))
			;
		if (!good || told > ns[i])
			ns[i] = told;
	}
}

#endif

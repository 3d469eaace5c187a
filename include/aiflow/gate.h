/* The gate: DPDK's interrupt thread and the polling threads take turns.
 *
 * memif's control messages are handled by the EAL interrupt thread, which unmaps a dead peer's rings while a worker may
 * be reading them. So that thread is kept inside a callback of ours. It leaves it for one short turn at a time, and
 * only after every worker has left the gate; a worker that finds the gate closed sleeps on a futex (never spins: the
 * owner may be descheduled on an oversubscribed core).
 *
 *   worker            enter: one atomic add, and a test of the value it returned        leave: one atomic subtract
 *   interrupt thread  close, wait for the last worker, take its turn, open
 *
 * `word` holds the number of workers inside, and GATE_CLOSED. One cache line, written by all.
 */
#ifndef AIFLOW_GATE_H
#define AIFLOW_GATE_H

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define AF_GATE_CLOSED 0x80000000u

struct af_gate {
    _Atomic uint32_t word;   /* workers: rw, interrupt thread: rw */
    _Atomic uint64_t turns;  /* turns the interrupt thread took; interrupt thread: rw, others: ro */
} __attribute__((aligned(64)));

static inline void af_futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static inline void af_futex_wake(_Atomic uint32_t *word)
{
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Slow path of af_gate_enter: step back out, sleep until the gate opens, try again. */
static void __attribute__((noinline, unused)) af_gate_wait(struct af_gate *gate)
{
    for (;;) {
        uint32_t seen = atomic_fetch_sub_explicit(&gate->word, 1, memory_order_release) - 1;

        if (seen == AF_GATE_CLOSED)
            af_futex_wake(&gate->word);
        while (seen & AF_GATE_CLOSED) {
            af_futex_wait(&gate->word, seen);
            seen = atomic_load_explicit(&gate->word, memory_order_relaxed);
        }
        if (!(atomic_fetch_add_explicit(&gate->word, 1, memory_order_acquire) & AF_GATE_CLOSED))
            return;
    }
}

/* Before an iteration's bursts on gated ports. Never while holding the GIL; nothing that blocks before the leave. */
static inline void af_gate_enter(struct af_gate *gate)
{
    if (__builtin_expect(atomic_fetch_add_explicit(&gate->word, 1, memory_order_acquire) & AF_GATE_CLOSED, 0))
        af_gate_wait(gate);
}

/* After them. Mbufs received may be kept, a memif port copies into them. */
static inline void af_gate_leave(struct af_gate *gate)
{
    if (__builtin_expect(atomic_fetch_sub_explicit(&gate->word, 1, memory_order_release) - 1 == AF_GATE_CLOSED, 0))
        af_futex_wake(&gate->word);
}

/* Interrupt thread: returns once no worker is inside; those that come meanwhile sleep. */
static inline void af_gate_close(struct af_gate *gate)
{
    uint32_t seen = atomic_fetch_or_explicit(&gate->word, AF_GATE_CLOSED, memory_order_acq_rel) | AF_GATE_CLOSED;

    while (seen != AF_GATE_CLOSED) {
        af_futex_wait(&gate->word, seen);
        seen = atomic_load_explicit(&gate->word, memory_order_acquire);
    }
}

static inline void af_gate_open(struct af_gate *gate)
{
    atomic_fetch_and_explicit(&gate->word, ~AF_GATE_CLOSED, memory_order_release);
    atomic_fetch_add_explicit(&gate->turns, 1, memory_order_relaxed);
    af_futex_wake(&gate->word);
}

#endif

/* Handoff of a loop between the threads that use it: which thread drives it, and what the others want.
 *
 * One atomic word has the driver and the flags. One thread at a time drives the loop: its worker, or a caller that
 * waits for a result. Such a caller polls by itself, which saves two wake-ups of threads. In the state CONTROL the
 * worker runs requests of the control plane, between two iterations.
 *
 *            acquires (unless CONTROL_WANTED)        acquires (unless CONTROL_WANTED)
 *   CALLER <---------------------------------- PARKED ----------------------------------> WORKER
 *      |                                       ^ ^ ^ |                                     | |
 *      +-------- releases ---------------------+ | | +-- CONTROL_WANTED --> CONTROL <------|-+ CONTROL_WANTED
 *                                                | +--------- served ----------+           |
 *                                                +-- no work (it dozes), or CALLER_WAITS --+
 *
 * A thread sets a flag and asks what it was to do in the same step: af_handoff_move is the only writer of the word. So
 * no flag falls between a last look and a sleep.
 *
 *   the driving caller   sleeps on descriptors (SLEEPS), and stays the driver
 *   the worker           dozes: it sleeps on descriptors (DOZES), and a caller may take the loop meanwhile
 *                        stays away while callers drive (AWAY), from AF_NAP_FIRST_NS to AF_NAP_MOST_NS. When one drive
 *                        outlasts a long nap, it sleeps until that caller releases the loop (CALL_WORKER)
 *
 * The thread that wakes another clears the flag of that sleep, so that one wake-up costs one system call. It leaves
 * AF_DOZES: a caller that drives meanwhile may drain the eventfd before the worker has seen it. A caller that never
 * sleeps and leaves no work costs no system call.
 */
#ifndef AIFLOW_HANDOFF_H
#define AIFLOW_HANDOFF_H

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef AF_HANDOFF_STEP
#define AF_HANDOFF_STEP() ((void)0) /* tests let other threads run here */
#endif

/* Drivers of a loop: the lowest bits of the word. AF_SAME: a move keeps the driver. */
enum af_driver { AF_PARKED, AF_WORKER, AF_CALLER, AF_CONTROL, AF_DRIVER = 3, AF_SAME };

enum af_handoff_flag {
	AF_POSTED = 1 << 2,         /* an inbox is not empty; the driver clears it */
	AF_CONTROL_WANTED = 1 << 3, /* requests of the control plane; the worker clears it */
	AF_CALLER_WAITS = 1 << 4,   /* a caller waits to drive; cleared with a release, which tells it */
	AF_WORK_LEFT = 1 << 5,      /* a caller left work behind; the worker clears it */
	AF_SLEEPS = 1 << 6,         /* the driving caller sleeps on descriptors */
	AF_DOZES = 1 << 7,          /* the worker sleeps on descriptors, and drives no more */
	AF_AWAY = 1 << 8,           /* the worker sleeps on `calls` */
	AF_CALL_WORKER = 1 << 9,    /* AF_AWAY, and each release calls it */
	AF_RESTS = 1 << 10,         /* the driver rests: only AF_CONTROL_WANTED wakes it */
	AF_ARMED = 1 << 11,         /* an event loop listens on event_fd */
	AF_FOR_WORKER = AF_POSTED | AF_CONTROL_WANTED | AF_WORK_LEFT,
};

#define AF_NAP_FIRST_NS 50000ull /* a worker stays away this long at first, */
#define AF_NAP_MOST_NS 1000000ull /* … at most this long while callers come and go, */
#ifndef AF_NAP_LONG_NS
#define AF_NAP_LONG_NS 500000000ull /* … and this long during one drive, whose end it hears of */
#endif
#define AF_DRIVE_LONG_NS 800000ull /* a drive that outlasts such a nap is long */

struct af_handoff {
	_Atomic uint32_t word;       /* driver and flags; any thread */
	_Atomic uint32_t calls;      /* to the worker: a futex */
	_Atomic uint64_t driven;     /* driving caller: rw, others: ro; how often a caller drove */
	_Atomic uint64_t generation; /* driver: rw; incremented with every event that a waiter should see */
	int wake_fd; /* eventfd: wakes a driver that sleeps, or a worker that dozes. The driver drains it */
	int event_fd; /* eventfd: readable after an event, when AF_ARMED */
	pthread_mutex_t lock; /* guards the condition */
	pthread_cond_t changed; /* for threads that wait for an event */
};

/* What a worker remembers of the callers. */
struct af_nap {
	uint64_t driven; /* drives that it knows of */
	uint64_t ns; /* length of the next nap */
	bool same; /* a drive was going on at the last look */
};

static inline uint64_t
af_clock_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/* The clock of every timer. Steps of the wall clock do not move it. */
static inline uint64_t
af_now_ns(void)
{
	return af_clock_ns(CLOCK_MONOTONIC);
}

static inline struct timespec
af_timespec(uint64_t ns)
{
	return (struct timespec){.tv_sec = (time_t)(ns / 1000000000ull), .tv_nsec = (long)(ns % 1000000000ull)};
}

/* ppoll without a signal mask. */
static inline int
af_poll(struct pollfd *fds, uint32_t nb, uint64_t ns)
{
	struct timespec t = af_timespec(ns);

	return (int)syscall(SYS_ppoll, fds, nb, &t, NULL, 8);
}

static inline void
af_handoff_free(struct af_handoff *handoff)
{
	close(handoff->event_fd);
	close(handoff->wake_fd);
	pthread_cond_destroy(&handoff->changed);
	pthread_mutex_destroy(&handoff->lock);
}

/* Of a struct that is all zero. Returns 0 or an errno. */
static inline int
af_handoff_init(struct af_handoff *handoff)
{
	pthread_condattr_t attr;
	int failed = 0;

	handoff->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (handoff->event_fd < 0)
		return errno;
	handoff->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (handoff->wake_fd < 0) {
		failed = errno;
		close(handoff->event_fd);
		return failed;
	}
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_mutex_init(&handoff->lock, NULL);
	pthread_cond_init(&handoff->changed, &attr);
	return 0;
}

/* ---- the word ---- */

/* One transition. */
struct af_handoff_move {
	uint32_t from; /* bit 1 << d: allowed when d drives; 0: always */
	uint32_t unless; /* flags, any of which prevents it */
	uint32_t clear; /* flags */
	uint32_t set; /* flags */
	uint32_t to; /* the next driver, or AF_SAME */
};

/* The only writer of the word. A full barrier: streamed stores are in memory before another thread drives (crc32c.h).
 * `was` is the word before. False, and nothing changes, when the move is not allowed. */
static inline bool
af_handoff_move(struct af_handoff *handoff, struct af_handoff_move move, uint32_t *was)
{
	uint32_t word = atomic_load(&handoff->word), next;

	AF_HANDOFF_STEP();
	do {
		*was = word;
		if ((move.from && !(move.from >> (word & AF_DRIVER) & 1)) || word & move.unless)
			return false;
		next = (word & ~move.clear) | move.set;
		if (move.to != AF_SAME)
			next = (next & ~(uint32_t)AF_DRIVER) | move.to;
	} while (!atomic_compare_exchange_weak(&handoff->word, &word, next));
	AF_HANDOFF_STEP();
	return true;
}

#define AF_FROM(driver) (1u << (driver))

/* clang-format off */
static const struct af_handoff_move
	/*                  from                 unless                           clear            set       to */
	af_move_acquire  = {AF_FROM(AF_PARKED),  AF_CONTROL_WANTED,               0,               0, AF_CALLER},
	af_move_request  = {~AF_FROM(AF_PARKED), 0,                               0,        AF_CALLER_WAITS, AF_SAME},
	af_move_release  = {AF_FROM(AF_CALLER),  0,                               AF_CALLER_WAITS, 0,        AF_PARKED},
	af_move_sleep    = {AF_FROM(AF_CALLER),  AF_POSTED | AF_CONTROL_WANTED,   0,               AF_SLEEPS, AF_SAME},
	af_move_enter    = {AF_FROM(AF_PARKED),  AF_CONTROL_WANTED,               AF_WORK_LEFT,    0,        AF_WORKER},
	af_move_control  = {AF_FROM(AF_PARKED) | AF_FROM(AF_WORKER), 0,           0,               0,       AF_CONTROL},
	af_move_served   = {AF_FROM(AF_CONTROL), 0,                               0,               0,        AF_PARKED},
	af_move_leave    = {AF_FROM(AF_WORKER),  0,                               AF_CALLER_WAITS, 0,        AF_PARKED},
	af_move_doze     = {AF_FROM(AF_WORKER),  AF_FOR_WORKER | AF_CALLER_WAITS, 0,               AF_DOZES, AF_PARKED},
	af_move_nap      = {AF_FROM(AF_PARKED),  AF_FOR_WORKER,                   0,               AF_AWAY,  AF_SAME},
	af_move_keep_away = {AF_FROM(AF_CALLER),  0,                               0,               AF_AWAY,  AF_SAME},
	af_move_rest = {AF_FROM(AF_WORKER) | AF_FROM(AF_CALLER), AF_CONTROL_WANTED, 0,             AF_RESTS, AF_SAME};
/* clang-format on */

/* Set and clear flags, in any state. Returns the word before. */
static inline uint32_t
af_handoff_flag(struct af_handoff *handoff, uint32_t set, uint32_t clear)
{
	uint32_t was;

	af_handoff_move(handoff, (struct af_handoff_move){.set = set, .clear = clear, .to = AF_SAME}, &was);
	return was;
}

/* Is any of these flags set? A look without an order: the moves decide. */
static inline bool
af_handoff_has(const struct af_handoff *handoff, uint32_t flags)
{
	return atomic_load_explicit(&handoff->word, memory_order_relaxed) & flags;
}

/* Any thread: an inbox is not empty. Wakes no thread: a caller that waits next drives the loop itself. */
static inline void
af_handoff_post(struct af_handoff *handoff)
{
	af_handoff_flag(handoff, AF_POSTED, 0);
}

/* Driver: was something posted? */
static inline bool
af_handoff_take_posted(struct af_handoff *handoff)
{
	return af_handoff_has(handoff, AF_POSTED) && af_handoff_flag(handoff, 0, AF_POSTED) & AF_POSTED;
}

/* ---- waking ---- */

static inline void
af_handoff_ring(const struct af_handoff *handoff)
{
	uint64_t one = 1;

	if (write(handoff->wake_fd, &one, sizeof one) < 0)
		return; /* its counter is full, so it is readable */
}

static inline void
af_handoff_drain_fd(int fd)
{
	uint64_t count;

	if (read(fd, &count, sizeof count) < 0)
		return; /* it was empty */
}

static inline void
af_handoff_call_worker(struct af_handoff *handoff)
{
	atomic_fetch_add(&handoff->calls, 1);
	syscall(SYS_futex, (uint32_t *)&handoff->calls, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Wake the thread that the flags concern: the driver that sleeps, or the worker if none drives. Any thread that has set
 * a flag. A caller that drives and is awake sees the flag, or calls the worker when it releases the loop. */
static inline void
af_handoff_wake(struct af_handoff *handoff)
{
	uint32_t word = atomic_load(&handoff->word), asleep = 0;

	if ((word & AF_DRIVER) == AF_CALLER)
		asleep = AF_SLEEPS;
	else if ((word & AF_DRIVER) == AF_PARKED)
		asleep = AF_DOZES | AF_AWAY | AF_CALL_WORKER;
	if (word & AF_CONTROL_WANTED)
		asleep |= AF_RESTS;
	if (!(word & asleep))
		return;
	word = af_handoff_flag(handoff, 0, asleep & ~(uint32_t)AF_DOZES) & asleep;
	if (word & (AF_SLEEPS | AF_DOZES | AF_RESTS))
		af_handoff_ring(handoff);
	if (word & AF_AWAY)
		af_handoff_call_worker(handoff);
}

/* ---- events ---- */

/* Driver: tell every waiting thread. The caller holds the lock. */
static inline void
af_handoff_notify(struct af_handoff *handoff)
{
	uint64_t one = 1;

	atomic_fetch_add(&handoff->generation, 1);
	pthread_cond_broadcast(&handoff->changed);
	if (af_handoff_has(handoff, AF_ARMED) && write(handoff->event_fd, &one, sizeof one) < 0)
		return; /* its counter is full, so it is readable */
}

/* The same for a thread that does not hold the lock, and perhaps does not drive. */
static inline void
af_handoff_tell(struct af_handoff *handoff)
{
	pthread_mutex_lock(&handoff->lock);
	af_handoff_notify(handoff);
	pthread_mutex_unlock(&handoff->lock);
	if (atomic_load(&handoff->word) & AF_SLEEPS)
		af_handoff_wake(handoff);
}

/* A waiting thread: sleep until the generation differs from `seen`, or for `ns`. */
static inline void
af_handoff_wait(struct af_handoff *handoff, uint64_t seen, uint64_t ns)
{
	struct timespec until = af_timespec(af_now_ns() + ns);

	pthread_mutex_lock(&handoff->lock);
	if (atomic_load(&handoff->generation) == seen)
		pthread_cond_timedwait(&handoff->changed, &handoff->lock, &until);
	pthread_mutex_unlock(&handoff->lock);
}

/* ---- callers ---- */

/* Caller: drive the loop, if no thread does and the control plane does not want it. */
static inline bool
af_handoff_acquire(struct af_handoff *handoff)
{
	uint32_t was;

	return af_handoff_move(handoff, af_move_acquire, &was);
}

/* Caller that could not acquire: have the driver tell when the loop is free. False: it may be free now. */
static inline bool
af_handoff_request(struct af_handoff *handoff)
{
	uint32_t was;

	if (af_handoff_move(handoff, af_move_request, &was))
		return true;
	if (was & AF_CONTROL_WANTED)
		af_handoff_flag(handoff, AF_CALLER_WAITS, 0); /* the worker comes, and drives next */
	return was & AF_CONTROL_WANTED;
}

/* Driving caller: release the loop. `work_left`: there is work that cannot wait for the worker's next look. */
static inline void
af_handoff_release(struct af_handoff *handoff, bool work_left)
{
	struct af_handoff_move move = af_move_release;
	uint64_t driven = atomic_load_explicit(&handoff->driven, memory_order_relaxed);
	uint32_t was;

	atomic_store_explicit(&handoff->driven, driven + 1, memory_order_relaxed);
	move.set = work_left ? AF_WORK_LEFT : 0;
	af_handoff_move(handoff, move, &was);
	if (was & AF_CALLER_WAITS)
		af_handoff_tell(handoff);
	if (work_left || was & (AF_FOR_WORKER | AF_CALL_WORKER))
		af_handoff_wake(handoff);
}

/* Driving caller: fall asleep, unless there is something to do. The sleep itself is af_wake_wait (wake_set.h). */
static inline bool
af_handoff_sleeps(struct af_handoff *handoff)
{
	uint32_t was;

	return af_handoff_move(handoff, af_move_sleep, &was);
}

static inline void
af_handoff_woke(struct af_handoff *handoff)
{
	if (af_handoff_has(handoff, AF_SLEEPS))
		af_handoff_flag(handoff, 0, AF_SLEEPS);
}

/* ---- the worker ---- */

/* Worker: a caller drives, or did so just now. Stay away, each time longer. */
static inline void
af_handoff_nap(struct af_handoff *handoff, struct af_nap *nap, uint64_t driven)
{
	struct af_handoff_move while_one_drives = af_move_keep_away;
	uint32_t calls = atomic_load(&handoff->calls), was;
	bool is_long = nap->same && driven == nap->driven && nap->ns > AF_DRIVE_LONG_NS;
	struct timespec t;

	if (is_long)
		while_one_drives.set |= AF_CALL_WORKER;
	nap->same = af_handoff_move(handoff, while_one_drives, &was);
	is_long &= nap->same;
	if (!nap->same && !af_handoff_move(handoff, af_move_nap, &was))
		return;
	nap->driven = driven;
	t = af_timespec(is_long ? AF_NAP_LONG_NS : nap->ns);
	nap->ns = is_long ? AF_NAP_FIRST_NS : nap->ns * 4 < AF_NAP_MOST_NS ? nap->ns * 4 : AF_NAP_MOST_NS;
	syscall(SYS_futex, (uint32_t *)&handoff->calls, FUTEX_WAIT_PRIVATE, calls, &t, NULL, 0);
	af_handoff_flag(handoff, 0, AF_AWAY | AF_CALL_WORKER);
}

/* Worker: take the loop, as soon as callers leave it. Returns AF_WORKER or, when the control plane wants it,
 * AF_CONTROL. */
static inline uint32_t
af_handoff_enter(struct af_handoff *handoff, struct af_nap *nap)
{
	if (af_handoff_has(handoff, AF_DOZES))
		af_handoff_flag(handoff, 0, AF_DOZES);
	for (;;) {
		uint32_t word = atomic_load(&handoff->word), was;
		uint64_t driven = atomic_load_explicit(&handoff->driven, memory_order_relaxed);
		const struct af_handoff_move *move = word & AF_CONTROL_WANTED ? &af_move_control : &af_move_enter;

		if (driven != nap->driven && !(word & AF_FOR_WORKER)) {
			af_handoff_nap(handoff, nap, driven);
		} else if (af_handoff_move(handoff, *move, &was)) {
			*nap = (struct af_nap){.driven = driven, .ns = AF_NAP_FIRST_NS};
			return move->to;
		} else if ((was & AF_DRIVER) == AF_CALLER) {
			af_handoff_nap(handoff, nap, driven);
		}
	}
}

/* Worker that drives: serve the control plane if it wants that. False: go on driving. */
static inline bool
af_handoff_turns_to_control(struct af_handoff *handoff)
{
	uint32_t was;

	return af_handoff_has(handoff, AF_CONTROL_WANTED) && af_handoff_move(handoff, af_move_control, &was);
}

/* Worker: the control plane is served. */
static inline void
af_handoff_served(struct af_handoff *handoff)
{
	uint32_t was;

	af_handoff_move(handoff, af_move_served, &was);
}

/* Worker: leave the loop to a caller that waits for it, and stay away for a first nap. */
static inline void
af_handoff_leave(struct af_handoff *handoff, struct af_nap *nap)
{
	uint32_t was;

	af_handoff_move(handoff, af_move_leave, &was);
	if (was & AF_CALLER_WAITS)
		af_handoff_tell(handoff);
	af_handoff_nap(handoff, nap, nap->driven);
}

/* Worker: release the loop and fall asleep, unless there is something to do. The sleep itself is af_wake_wait. */
static inline bool
af_handoff_dozes(struct af_handoff *handoff)
{
	uint32_t was;

	return af_handoff_move(handoff, af_move_doze, &was);
}

/* ---- either driver ---- */

/* Rest for `ns`, even if work was posted. Only the control plane ends it. */
static inline void
af_handoff_rest(struct af_handoff *handoff, uint64_t ns)
{
	uint64_t until = af_now_ns() + ns, now;
	struct pollfd wake = {.fd = handoff->wake_fd, .events = POLLIN};
	uint32_t was;

	while ((now = af_now_ns()) < until && af_handoff_move(handoff, af_move_rest, &was)) {
		if (af_poll(&wake, 1, until - now) > 0)
			af_handoff_drain_fd(handoff->wake_fd);
	}
	af_handoff_flag(handoff, 0, AF_RESTS);
}

#endif

/* The handoff under contention: a worker, callers, posters, a control plane and a peer on one loop.
 *
 * The threads yield and sleep at drawn moments between the steps of handoff.h. Every post, request, and frame of the
 * peer must be seen within a bound. No sleep of the loop ends by time within that bound, so a lost wake-up shows. The
 * iterations change plain variables: two drivers at a time show as a wrong sum, and to ThreadSanitizer.
 *
 * Usage: contend [rounds=N] [seed=N]        rounds of each thread; prints counts as JSON
 */
#include <sched.h>
#include <signal.h>
#include <stdint.h>

static void step(void);
#define AF_HANDOFF_STEP() step()
#define AF_NAP_LONG_NS (600 * 1000000000ull)

#include "aiflow/rt/wake_set.h"

#include "check.h"

#define S 1000000000ull
#define SLEEP_NS (600 * S)
#define BOUND_NS (20 * S)

enum { CALLERS = 2, POSTERS = 2, RECEIVERS = 2, THREADS = CALLERS + POSTERS + RECEIVERS + 2 };

static struct af_handoff handoff;
static struct af_wake_set wakes;
static _Atomic uint64_t moves, dozes, sleeps, refusals;
static uint64_t rounds = 2000, seed = 1;
static _Thread_local uint64_t draw_state;
static _Atomic bool stopping;

/* guarded by handoff.lock */
static uint64_t inbox;

/* the driver: rw, plain */
static uint64_t iterations, drives_now, frames_seen;
static bool slept;

static _Atomic uint64_t posted, collected; /* the second by drivers */
static _Atomic uint64_t served, frames, frames_done;
static _Atomic uint32_t asleep; /* this loop's word "I sleep" */
static int bell;

static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static uint64_t requests; /* guarded by `guard` */

static uint32_t
draw(uint32_t below)
{
	draw_state ^= draw_state >> 12;
	draw_state ^= draw_state << 25;
	draw_state ^= draw_state >> 27;
	return (uint32_t)((draw_state * 0x2545f4914f6cdd1dull) >> 32) % below;
}

static void
step(void)
{
	struct timespec t = {.tv_nsec = 1000};

	if (!draw_state)
		return;
	atomic_fetch_add_explicit(&moves, 1, memory_order_relaxed);
	if (!draw(8))
		sched_yield();
	if (!draw(512))
		t.tv_nsec = draw(200000), nanosleep(&t, NULL);
}

/* A thread that sleeps for good cannot check its own bound. */
static void
give_up(int signal)
{
	char text[200];
	int n = snprintf(text, sizeof text,
			 "a wake-up was lost: word 0x%x, %" PRIu64 " of %" PRIu64 " posts, %" PRIu64 " of %" PRIu64
			 " frames, asleep %u\n",
			 atomic_load(&handoff.word), atomic_load(&collected), atomic_load(&posted),
			 atomic_load(&frames_done), atomic_load(&frames), atomic_load(&asleep));

	(void)signal;
	if (write(2, text, (size_t)n) < 0)
		_exit(3);
	abort();
}

/* Each round of any thread moves the alarm. */
static uint64_t
begin_round(void)
{
	alarm(BOUND_NS / S);
	return af_now_ns();
}

static void
must_be(_Atomic uint64_t *count, uint64_t wanted, uint64_t since, const char *what)
{
	if (atomic_load(count) < wanted && af_now_ns() - since > BOUND_NS) {
		fprintf(stderr, "%s: %" PRIu64 " of %" PRIu64 ", word 0x%x\n", what, atomic_load(count), wanted,
			atomic_load(&handoff.word));
		abort();
	}
}

/* ---- the loop, as _dp_driver.pyx has it ---- */

static int
iterate(void)
{
	int work = 0;

	CHECK_EQUAL(drives_now++, 0);
	iterations++;
	step();
	if (af_handoff_take_posted(&handoff)) {
		uint64_t taken;

		pthread_mutex_lock(&handoff.lock);
		taken = inbox;
		inbox = 0;
		atomic_fetch_add(&collected, taken);
		af_handoff_notify(&handoff);
		pthread_mutex_unlock(&handoff.lock);
		work++;
	}
	if (atomic_load(&frames) != frames_seen) {
		frames_seen = atomic_load(&frames);
		atomic_store(&frames_done, frames_seen);
		af_handoff_tell(&handoff);
		work++;
	}
	CHECK_EQUAL(--drives_now, 0);
	return work;
}

static bool
before_sleep(void)
{
	atomic_store(&asleep, 1);
	step();
	if (atomic_load(&frames) == frames_seen)
		return true;
	atomic_store(&asleep, 0);
	atomic_fetch_add(&refusals, 1);
	return false;
}

static void
after_sleep(void)
{
	atomic_store(&asleep, 0);
}

static bool
acquire(void)
{
	if (!af_handoff_acquire(&handoff))
		return false;
	if (slept)
		after_sleep();
	slept = false;
	return true;
}

static bool
drive_until_asleep(void)
{
	while (!af_handoff_has(&handoff, AF_CONTROL_WANTED)) {
		if (iterate())
			continue;
		if (af_handoff_has(&handoff, AF_CALLER_WAITS))
			break;
		if (!draw(2) && before_sleep()) {
			slept = true;
			atomic_fetch_add(&dozes, 1);
			if (af_handoff_dozes(&handoff))
				return true;
			slept = false;
			after_sleep();
		}
	}
	return false;
}

static void
serve(void)
{
	pthread_mutex_lock(&guard);
	af_handoff_flag(&handoff, 0, AF_CONTROL_WANTED);
	CHECK_EQUAL(drives_now++, 0);
	step();
	CHECK_EQUAL(--drives_now, 0);
	atomic_fetch_add(&served, requests);
	requests = 0;
	pthread_mutex_unlock(&guard);
}

static void *
work(void *arg)
{
	struct af_nap nap = {.ns = AF_NAP_FIRST_NS};

	draw_state = (uintptr_t)arg;
	while (!atomic_load(&stopping)) {
		if (af_handoff_enter(&handoff, &nap) == AF_WORKER) {
			if (slept)
				after_sleep();
			slept = false;
			af_wake_drain(&wakes, AF_SLEEPER_WORKER);
			if (drive_until_asleep()) {
				af_wake_wait(&wakes, AF_SLEEPER_WORKER, false, SLEEP_NS);
				continue;
			}
			if (!af_handoff_turns_to_control(&handoff)) {
				af_handoff_leave(&handoff, &nap);
				continue;
			}
		}
		serve();
		af_handoff_served(&handoff);
	}
	return NULL;
}

static void
drive(uint64_t seen)
{
	while (atomic_load(&handoff.generation) == seen && !af_handoff_has(&handoff, AF_CONTROL_WANTED)) {
		if (iterate() || !draw(3) || !before_sleep())
			continue;
		if (af_handoff_sleeps(&handoff)) {
			atomic_fetch_add(&sleeps, 1);
			if (atomic_load(&handoff.generation) == seen) {
				af_wake_wait(&wakes, AF_SLEEPER_CALLER, false, SLEEP_NS);
				af_wake_drain(&wakes, AF_SLEEPER_CALLER);
			}
			af_handoff_woke(&handoff);
		}
		after_sleep();
	}
}

static void
wait_for_event(uint64_t seen)
{
	while (!acquire()) {
		if (!af_handoff_request(&handoff))
			continue;
		if (af_handoff_has(&handoff, AF_POSTED))
			af_handoff_wake(&handoff);
		af_handoff_wait(&handoff, seen, SLEEP_NS);
		return;
	}
	drive(seen);
	af_handoff_release(&handoff, !draw(4));
}

/* ---- its users ---- */

static uint64_t
post(void)
{
	uint64_t mine;

	pthread_mutex_lock(&handoff.lock);
	inbox++;
	mine = atomic_fetch_add(&posted, 1) + 1;
	pthread_mutex_unlock(&handoff.lock);
	step();
	af_handoff_post(&handoff);
	return mine;
}

static void
wait_until(_Atomic uint64_t *count, uint64_t wanted, const char *what)
{
	uint64_t since = begin_round();

	for (;;) {
		uint64_t seen = atomic_load(&handoff.generation);

		if (atomic_load(count) >= wanted)
			return;
		wait_for_event(seen);
		must_be(count, wanted, since, what);
	}
}

static void *
call(void *arg)
{
	draw_state = (uintptr_t)arg;
	for (uint64_t i = 0; i < rounds; i++)
		wait_until(&collected, post(), "a caller's post");
	return NULL;
}

static void *
receive(void *arg)
{
	draw_state = (uintptr_t)arg;
	for (uint64_t i = 1; i <= rounds; i++)
		wait_until(&frames_done, i, "a frame");
	return NULL;
}

/* These never drive for long: others must. */
static void *
push(void *arg)
{
	draw_state = (uintptr_t)arg;
	for (uint64_t i = 0; i < rounds; i++) {
		uint64_t mine = post(), since = begin_round();

		if (draw(2) && acquire()) {
			iterate();
			af_handoff_release(&handoff, !draw(2));
		} else {
			af_handoff_wake(&handoff);
		}
		while (atomic_load(&collected) < mine) {
			sched_yield();
			must_be(&collected, mine, since, "a post");
		}
		if (!draw(64))
			af_handoff_tell(&handoff);
	}
	return NULL;
}

static void *
control(void *arg)
{
	uint64_t asked = 0;

	draw_state = (uintptr_t)arg;
	for (uint64_t i = 0; i < rounds / 4; i++) {
		uint64_t since = begin_round();

		pthread_mutex_lock(&guard);
		requests++;
		asked++;
		af_handoff_flag(&handoff, AF_CONTROL_WANTED, 0);
		pthread_mutex_unlock(&guard);
		step();
		af_handoff_wake(&handoff);
		while (atomic_load(&served) < asked) {
			sched_yield();
			must_be(&served, asked, since, "a request");
		}
	}
	return NULL;
}

/* A peer sends a frame, and rings when this loop sleeps. */
static void *
be_peer(void *arg)
{
	uint64_t one = 1;
	struct timespec t = {0};

	draw_state = (uintptr_t)arg;
	for (uint64_t i = 1; i <= rounds; i++) {
		uint64_t since = begin_round();

		if (!draw(8))
			t.tv_nsec = draw(400000), nanosleep(&t, NULL); /* the loop may fall asleep */
		atomic_store(&frames, i);
		step();
		if (atomic_exchange(&asleep, 0))
			CHECK(write(bell, &one, sizeof one) == sizeof one);
		while (atomic_load(&frames_done) < i) {
			sched_yield();
			must_be(&frames_done, i, since, "a frame");
		}
	}
	return NULL;
}

static void
parse(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		CHECK(sscanf(argv[i], "rounds=%" SCNu64, &rounds) == 1 || sscanf(argv[i], "seed=%" SCNu64, &seed) == 1);
}

int
main(int argc, char **argv)
{
	void *(*const roles[THREADS])(void *) = {call, call, push, push, receive, receive, control, be_peer};
	pthread_t worker, threads[THREADS];

	parse(argc, argv);
	signal(SIGALRM, give_up);
	CHECK(!af_handoff_init(&handoff));
	bell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	af_wake_init(&wakes, handoff.wake_fd);
	CHECK(bell >= 0 && af_wake_add(&wakes, bell));
	CHECK(!pthread_create(&worker, NULL, work, (void *)(uintptr_t)(seed * 1000003 + 99)));
	for (uintptr_t i = 0; i < THREADS; i++)
		CHECK(!pthread_create(&threads[i], NULL, roles[i], (void *)(uintptr_t)(seed * 1000003 + i + 1)));
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	atomic_store(&stopping, true);
	af_handoff_flag(&handoff, AF_CONTROL_WANTED, 0);
	af_handoff_wake(&handoff);
	pthread_join(worker, NULL);
	CHECK_EQUAL(atomic_load(&handoff.word) & AF_DRIVER, AF_PARKED);
	CHECK_EQUAL(collected, posted);
	CHECK_EQUAL(collected, rounds * (CALLERS + POSTERS));
	printf("{\"moves\": %" PRIu64 ", \"drives\": %" PRIu64 ", \"dozes\": %" PRIu64 ", \"sleeps\": %" PRIu64
	       ", \"refusals\": %" PRIu64 ", \"calls\": %u, \"iterations\": %" PRIu64 "}\n",
	       moves, handoff.driven, dozes, sleeps, refusals, handoff.calls, iterations);
	af_handoff_free(&handoff);
	close(bell);
	return 0;
}

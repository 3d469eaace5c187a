/* doorbell.h: a loop that sleeps is woken by its peer's burst; a bad peer costs time only. */
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include "aiflow/rt/doorbell.h"

#include "check.h"

static struct af_doorbell ends[2];
static void *page;
static int sockets[2];

static void
begin(void)
{
	page = mmap(NULL, AF_DOORBELL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(page != MAP_FAILED);
	CHECK(!socketpair(AF_UNIX, SOCK_DGRAM, 0, sockets)); /* they block: no call of ours relies on O_NONBLOCK */
	for (int side = 0; side < 2; side++)
		af_doorbell_init(&ends[side], page, side, sockets[side]);
}

static void
end(void)
{
	munmap(page, AF_DOORBELL_BYTES);
	close(sockets[0]);
	close(sockets[1]);
}

static bool
readable(int side, int ms)
{
	struct pollfd fd = {.fd = sockets[side], .events = POLLIN};

	return poll(&fd, 1, ms) == 1;
}

static void
only_a_sleeper_is_rung_and_only_once(void)
{
	begin();
	af_doorbell_ring(&ends[0]); /* the peer is awake */
	CHECK(!readable(1, 0));
	CHECK_EQUAL(ends[0].rung, 0);
	af_doorbell_sleep(&ends[1]);
	CHECK(!af_doorbell_rang(&ends[1]));
	af_doorbell_ring(&ends[0]);
	af_doorbell_ring(&ends[0]);
	CHECK(readable(1, 0) && !readable(0, 0));
	CHECK(af_doorbell_rang(&ends[1]));
	CHECK_EQUAL(ends[0].rung, 1);
	af_doorbell_awake(&ends[1]);
	CHECK(!readable(1, 0));
	af_doorbell_ring(&ends[0]);
	CHECK(!readable(1, 0));
	end();
}

static void
both_sides_may_sleep(void)
{
	begin();
	af_doorbell_sleep(&ends[0]);
	af_doorbell_sleep(&ends[1]);
	af_doorbell_ring(&ends[1]);
	CHECK(readable(0, 0) && !readable(1, 0));
	af_doorbell_awake(&ends[0]);
	af_doorbell_ring(&ends[0]);
	CHECK(readable(1, 0) && !readable(0, 0));
	af_doorbell_awake(&ends[1]);
	end();
}

static void
a_byte_that_comes_late_ends_one_sleep(void)
{
	begin();
	af_doorbell_sleep(&ends[1]);
	atomic_store(&ends[1].mine->asleep, 0); /* the peer is between its exchange and its send */
	af_doorbell_awake(&ends[1]);
	CHECK_EQUAL(ends[1].owed, 1);
	CHECK(send(sockets[0], "", 1, 0) == 1);
	af_doorbell_sleep(&ends[1]);
	CHECK(readable(1, 0)); /* at once, for nothing */
	af_doorbell_awake(&ends[1]);
	CHECK_EQUAL(ends[1].owed, 0);
	CHECK(!readable(1, 0));
	end();
}

static void
a_bad_peer_costs_time_only(void)
{
	int null[2];

	begin();
	for (int i = 0; i < 100000; i++) { /* it says that it sleeps, and never reads */
		atomic_store(&ends[1].mine->asleep, 0xffffffffu);
		af_doorbell_ring(&ends[0]); /* never blocks */
	}
	CHECK_EQUAL(ends[0].rung, 100000);
	for (int i = 0; i < 1000; i++) { /* it writes our word, and sends no byte */
		af_doorbell_sleep(&ends[0]);
		atomic_store(&ends[0].mine->asleep, i % 2 ? 0 : 77);
		af_doorbell_awake(&ends[0]);
	}
	shutdown(sockets[1], SHUT_RDWR);
	close(sockets[1]); /* it has died */
	CHECK(!readable(0, 0));
	atomic_store(&ends[1].mine->asleep, 1);
	af_doorbell_ring(&ends[0]); /* no signal */
	af_doorbell_sleep(&ends[0]);
	af_doorbell_awake(&ends[0]);
	CHECK(!pipe(null)); /* what it passed is no socket, and would block */
	ends[0].fd = null[0];
	atomic_store(&ends[1].mine->asleep, 1);
	af_doorbell_ring(&ends[0]);
	af_doorbell_awake(&ends[0]);
	close(null[0]);
	close(null[1]);
	sockets[1] = dup(0);
	end();
}

/* ---- no frame is forgotten ---- */

#define FRAMES 50000

static _Atomic unsigned sent, received; /* the first as the ring of a driver tells it */
static _Atomic int lost;

static void *
sleeper(void *unused)
{
	while (received < FRAMES) {
		if (atomic_load_explicit(&sent, memory_order_acquire) != received) {
			atomic_store(&received, received + 1);
			continue;
		}
		af_doorbell_sleep(&ends[1]);
		if (atomic_load_explicit(&sent, memory_order_acquire) == received && !readable(1, 2000))
			lost |= atomic_load(&sent) != received; /* a frame has come, and nothing woke us */
		af_doorbell_awake(&ends[1]);
	}
	return unused;
}

static void
no_frame_is_forgotten(void)
{
	pthread_t thread;

	begin();
	CHECK(!pthread_create(&thread, NULL, sleeper, NULL));
	for (unsigned i = 0; i < FRAMES; i++) {
		atomic_store_explicit(&sent, i + 1, memory_order_release);
		af_doorbell_ring(&ends[0]);
		for (unsigned looks = 0; atomic_load(&received) <= i;
		     looks++) /* the next one would ring for this, too */
			if (looks > 1000)
				sched_yield();
		for (volatile unsigned k = 0; k < i % 128; k++) {
		}
	}
	pthread_join(thread, NULL);
	CHECK(!lost);
	CHECK(ends[0].rung > 0);
	end();
}

CASES(CASE(only_a_sleeper_is_rung_and_only_once), CASE(both_sides_may_sleep),
      CASE(a_byte_that_comes_late_ends_one_sleep), CASE(a_bad_peer_costs_time_only), CASE(no_frame_is_forgotten))

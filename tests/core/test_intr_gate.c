/* intr_gate.h: DPDK's interrupt thread and the polling threads take turns. */
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "aiflow/rt/intr_gate.h"

#include "check.h"

static struct af_intr_gate gate;

static void
begin(void)
{
	memset(&gate, 0, sizeof gate);
	CHECK(!af_intr_gate_init(&gate, eventfd(0, EFD_NONBLOCK)));
}

static void
end(void)
{
	close(gate.wake_fd);
}

static void
an_open_gate_counts_its_workers(void)
{
	begin();
	af_intr_gate_enter(&gate);
	af_intr_gate_enter(&gate);
	CHECK_EQUAL(gate.word, 2);
	af_intr_gate_leave(&gate);
	af_intr_gate_leave(&gate);
	CHECK_EQUAL(gate.word, 0);
	af_intr_gate_close(&gate); /* no worker is inside: at once */
	CHECK_EQUAL(gate.word, AF_INTR_GATE_CLOSED);
	af_intr_gate_open(&gate);
	CHECK_EQUAL(gate.word, 0);
	CHECK_EQUAL(gate.turns, 1);
	end();
}

static _Atomic int entered;

static void *
enter_once(void *unused)
{
	af_intr_gate_enter(&gate);
	atomic_store(&entered, 1);
	af_intr_gate_leave(&gate);
	return unused;
}

static void
a_closed_gate_holds_workers_until_it_opens(void)
{
	pthread_t thread;

	begin();
	af_intr_gate_close(&gate);
	CHECK(!pthread_create(&thread, NULL, enter_once, NULL));
	for (int i = 0; i < 1000 && !atomic_load(&entered); i++)
		sched_yield();
	usleep(2000);
	CHECK(!atomic_load(&entered));
	af_intr_gate_open(&gate);
	pthread_join(thread, NULL);
	CHECK(atomic_load(&entered));
	CHECK_EQUAL(gate.word, 0);
	end();
}

static _Atomic int closed;

static void *
close_once(void *unused)
{
	af_intr_gate_close(&gate);
	atomic_store(&closed, 1);
	return unused;
}

static void
closing_waits_for_the_last_worker(void)
{
	pthread_t thread;

	begin();
	af_intr_gate_enter(&gate);
	af_intr_gate_enter(&gate);
	CHECK(!pthread_create(&thread, NULL, close_once, NULL));
	while (!(gate.word & AF_INTR_GATE_CLOSED))
		sched_yield();
	af_intr_gate_leave(&gate);
	usleep(2000);
	CHECK(!atomic_load(&closed));
	af_intr_gate_leave(&gate);
	pthread_join(thread, NULL);
	CHECK_EQUAL(gate.word, AF_INTR_GATE_CLOSED);
	end();
}

static void
without_gated_ports_the_interrupt_thread_runs_free(void)
{
	struct pollfd wake;
	static const uint64_t one = 1;

	begin();
	wake = (struct pollfd){.fd = gate.wake_fd, .events = POLLIN};
	CHECK(write(gate.wake_fd, &one, sizeof one) == sizeof one);
	gate.armed = 1;
	af_intr_gate_callback(&gate); /* returns at once, drained, with the gate open */
	CHECK_EQUAL(poll(&wake, 1, 0), 0);
	CHECK(!gate.armed && !gate.inside && !gate.word);
	end();
}

static uint64_t
ns_of_one_turn(void)
{
	struct timespec before, after;

	clock_gettime(CLOCK_MONOTONIC, &before);
	af_intr_gate_callback(&gate); /* stays until its turn is due, and closes the gate */
	clock_gettime(CLOCK_MONOTONIC, &after);
	CHECK_EQUAL(gate.word, AF_INTR_GATE_CLOSED);
	return (uint64_t)(after.tv_sec - before.tv_sec) * 1000000000u + (uint64_t)after.tv_nsec -
	       (uint64_t)before.tv_nsec;
}

static void
turns_keep_their_distance(void)
{
	uint64_t least = UINT64_MAX;

	begin();
	gate.gated = 1;
	for (int i = 0; i < 3; i++) {
		CHECK(ns_of_one_turn() >= AF_INTR_GATE_IDLE_NS);
		CHECK(!gate.inside);
	}
	af_intr_gate_connecting(&gate, 1);
	for (int i = 0; i < 200 && least >= AF_INTR_GATE_IDLE_NS; i++) { /* a busy machine may take longer */
		uint64_t ns = ns_of_one_turn();

		CHECK(ns >= AF_INTR_GATE_CONNECTING_NS);
		least = ns < least ? ns : least;
	}
	CHECK(least < AF_INTR_GATE_IDLE_NS);
	af_intr_gate_open(&gate);
	end();
}

/* As the EAL: an epoll set of the gate's eventfd and another source. */
static int source, other_set;

static void
begin_with_epoll(void)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLHUP};

	begin();
	source = eventfd(0, EFD_NONBLOCK);
	gate.epoll_fd = -1;
	for (int i = 0; i < 2; i++) { /* a set of other code comes first */
		int set = epoll_create1(0);

		CHECK(!epoll_ctl(set, EPOLL_CTL_ADD, source, &event));
		if (i == 0)
			other_set = set;
		else
			CHECK(!epoll_ctl(set, EPOLL_CTL_ADD, gate.wake_fd, &event));
	}
}

static void
end_with_epoll(void)
{
	close(source);
	close(other_set);
	close(gate.epoll_fd);
	end();
}

static void *
call_back(void *unused)
{
	af_intr_gate_callback(&gate);
	return unused;
}

static void
the_epoll_set_is_found_and_followed(void)
{
	struct epoll_event event = {.events = EPOLLIN};
	int before;

	begin_with_epoll();
	af_intr_gate_find(&gate);
	before = gate.epoll_fd;
	CHECK(before >= 0 && before != other_set);
	CHECK(!af_intr_gate_is_in(&gate, other_set) && af_intr_gate_is_in(&gate, before));
	CHECK(!af_intr_gate_is_in(&gate, source) && !af_intr_gate_is_in(&gate, -1));
	af_intr_gate_find(&gate);
	CHECK_EQUAL(gate.epoll_fd, before);
	close(before); /* DPDK's sources have changed */
	gate.epoll_fd = dup(source);
	before = epoll_create1(0);
	CHECK(!epoll_ctl(before, EPOLL_CTL_ADD, gate.wake_fd, &event));
	close(gate.epoll_fd);
	af_intr_gate_find(&gate);
	CHECK_EQUAL(gate.epoll_fd, before);
	end_with_epoll();
}

static void
a_turn_needs_a_reason(void)
{
	static const uint64_t one = 1;
	struct pollfd wake;
	pthread_t thread;

	begin_with_epoll();
	wake = (struct pollfd){.fd = gate.wake_fd, .events = POLLIN};
	gate.gated = 1;
	CHECK(!pthread_create(&thread, NULL, call_back, NULL));
	usleep(3 * AF_INTR_GATE_IDLE_NS / 1000);
	CHECK_EQUAL(gate.turns, 1); /* the thread has entered, and has not left */
	CHECK(!gate.word);
	af_intr_gate_hold(&gate); /* ends the poll, and is no reason */
	CHECK(gate.inside);
	af_intr_gate_release(&gate, 0);
	usleep(3 * AF_INTR_GATE_IDLE_NS / 1000);
	CHECK(gate.inside && !gate.word);
	CHECK(write(source, &one, sizeof one) == sizeof one);
	pthread_join(thread, NULL);
	CHECK_EQUAL(gate.word, AF_INTR_GATE_CLOSED);
	CHECK(gate.armed && poll(&wake, 1, 0) == 1); /* the next round enters the callback, and opens the gate */
	CHECK(!pthread_create(&thread, NULL, call_back, NULL));
	af_intr_gate_hold(&gate);
	af_intr_gate_release(&gate, -1); /* the last port goes */
	pthread_join(thread, NULL);
	CHECK(!gate.armed && !gate.word && poll(&wake, 1, 0) == 0);
	end_with_epoll();
}

/* ---- under load: more threads than cores ---- */

static _Atomic int in_turn, workers_inside, stop, finished, wrong, in_hold, interrupts;
static _Atomic unsigned long turns, entries, holds;

static void
burn(unsigned n)
{
	for (volatile unsigned i = 0; i < n; i++) {
	}
}

/* As DPDK's interrupt thread: wait for an event, call the callback, serve others. */
static void *
interrupt_thread(void *set)
{
	uint64_t ignored;

	while (!finished) {
		struct pollfd wake = {.fd = gate.wake_fd, .events = POLLIN};
		struct epoll_event event;

		if (epoll_wait(*(int *)set, &event, 1, 10) == 1 && poll(&wake, 1, 0) == 1)
			af_intr_gate_callback(&gate);
		if (!gate.gated)
			continue;
		if (read(source, &ignored, sizeof ignored) == sizeof ignored)
			interrupts++;
		in_turn = 1;
		if (workers_inside || in_hold)
			wrong = 1;
		burn(500);
		if (workers_inside || in_hold)
			wrong = 2;
		turns++;
		in_turn = 0;
	}
	return set;
}

static void *
worker(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;

	while (!stop) {
		af_intr_gate_enter(&gate);
		workers_inside++;
		if (in_turn)
			wrong = 3;
		burn((unsigned)rand_r(&seed) % 2000);
		if (rand_r(&seed) % 512 == 0)
			sched_yield(); /* a descheduled owner */
		if (in_turn)
			wrong = 4;
		workers_inside--;
		af_intr_gate_leave(&gate);
		entries++;
	}
	return NULL;
}

static void *
control(void *unused)
{
	static const uint64_t one = 1;
	unsigned seed = 7;

	while (!stop) {
		af_intr_gate_connecting(&gate, 1);
		af_intr_gate_hold(&gate);
		in_hold++;
		burn((unsigned)rand_r(&seed) % 200000);
		if (in_turn)
			wrong = 5;
		in_hold--;
		af_intr_gate_release(&gate, 0);
		af_intr_gate_connecting(&gate, -1);
		holds++;
		CHECK(write(source, &one, sizeof one) == sizeof one);
		usleep(500);
	}
	return unused;
}

static void
turns_and_bursts_exclude_each_other(void)
{
	pthread_t threads[8];
	struct timespec second = {1, 500000000};

	begin_with_epoll();
	af_intr_gate_find(&gate);
	pthread_create(&threads[0], NULL, interrupt_thread, &gate.epoll_fd);
	af_intr_gate_hold(&gate); /* before any port: the thread is fetched */
	af_intr_gate_release(&gate, 1);
	for (uintptr_t i = 1; i <= 5; i++)
		pthread_create(&threads[i], NULL, worker, (void *)i);
	pthread_create(&threads[6], NULL, control, NULL);
	pthread_create(&threads[7], NULL, control, NULL);
	for (int i = 0; i < 60 && (i < 1 || turns <= 10 || entries <= 1000 || holds <= 10); i++)
		nanosleep(&second, NULL);
	stop = 1;
	for (int i = 1; i < 8; i++)
		pthread_join(threads[i], NULL);
	af_intr_gate_hold(&gate);
	af_intr_gate_release(&gate, -1); /* the last port goes: the thread runs free again, the gate is open */
	finished = 1;
	pthread_join(threads[0], NULL);
	af_intr_gate_enter(&gate);
	af_intr_gate_leave(&gate);
	CHECK_EQUAL(wrong, 0);
	CHECK(turns > 10);
	CHECK(entries > 1000);
	CHECK(holds > 10);
	CHECK(interrupts > 5);
	CHECK_EQUAL(gate.word, 0);
	end_with_epoll();
}

CASES(CASE(an_open_gate_counts_its_workers), CASE(a_closed_gate_holds_workers_until_it_opens),
      CASE(closing_waits_for_the_last_worker), CASE(without_gated_ports_the_interrupt_thread_runs_free),
      CASE(turns_keep_their_distance), CASE(the_epoll_set_is_found_and_followed), CASE(a_turn_needs_a_reason),
      CASE(turns_and_bursts_exclude_each_other))

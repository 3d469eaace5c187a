/* wake_set.h: descriptors that end a loop's sleep. */
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "aiflow/rt/wake_set.h"

#include "check.h"

#define MS 1000000ull
#define LONG_NS (60000 * MS)

static struct af_wake_set set;
static int own, bell, sockets[2];

static void
put(int fd)
{
	uint64_t one = 1;

	CHECK(write(fd, &one, sizeof one) == sizeof one);
}

/* Sleep; was it ended by a descriptor? */
static bool
woken(enum af_sleeper who, bool alone, uint64_t ns)
{
	CHECK(af_wake_wait(&set, who, alone, ns));
	for (uint32_t i = 0; i < set.nb; i++)
		if (set.fds[who][i].revents)
			return true;
	return false;
}

static void
begin(void)
{
	own = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	bell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	CHECK(own >= 0 && bell >= 0 && !socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, sockets));
	af_wake_init(&set, own);
	CHECK(af_wake_add(&set, bell) && af_wake_add(&set, sockets[0]));
}

static void
end(void)
{
	close(own);
	close(bell);
	close(sockets[0]);
	close(sockets[1]);
}

static void
each_descriptor_ends_a_sleep(void)
{
	begin();
	for (int who = 0; who < AF_NB_SLEEPERS; who++) {
		put(own);
		CHECK(woken(who, false, LONG_NS));
		CHECK(!af_wake_drain(&set, who)); /* by no port */
		put(bell);
		CHECK(woken(who, false, LONG_NS));
		CHECK(af_wake_drain(&set, who));
		CHECK(!woken(who, false, MS)); /* both are drained */
		CHECK(!af_wake_drain(&set, who));
	}
	end();
}

static void
a_socket_is_readable_until_its_user_reads_it(void)
{
	char byte;

	begin();
	CHECK(send(sockets[1], "x", 1, 0) == 1);
	for (int i = 0; i < 3; i++) {
		CHECK(woken(AF_SLEEPER_CALLER, false, LONG_NS));
		CHECK(af_wake_drain(&set, AF_SLEEPER_CALLER));
	}
	CHECK(recv(sockets[0], &byte, 1, 0) == 1);
	CHECK(!woken(AF_SLEEPER_CALLER, false, MS));
	end();
}

static void
alone_it_hears_its_own_descriptor_only(void)
{
	uint64_t before = af_now_ns();

	begin();
	put(bell);
	CHECK(!woken(AF_SLEEPER_WORKER, true, 3 * MS));
	CHECK(af_now_ns() - before >= 3 * MS);
	put(own);
	CHECK(woken(AF_SLEEPER_WORKER, true, LONG_NS));
	CHECK(!af_wake_drain(&set, AF_SLEEPER_WORKER));
	CHECK(woken(AF_SLEEPER_WORKER, false, LONG_NS)); /* the bell is still there */
	end();
}

/* A worker that has not noticed yet that a caller drives must not take the caller's wake-up. */
static void
two_sleepers_keep_apart(void)
{
	begin();
	put(bell);
	CHECK(woken(AF_SLEEPER_WORKER, false, LONG_NS));
	CHECK(woken(AF_SLEEPER_CALLER, false, LONG_NS));
	CHECK(af_wake_drain(&set, AF_SLEEPER_CALLER));
	CHECK(!woken(AF_SLEEPER_CALLER, false, MS));
	CHECK(af_wake_drain(&set, AF_SLEEPER_WORKER)); /* what it saw then; it finds nothing to read */
	end();
}

static void
a_removed_descriptor_wakes_no_thread(void)
{
	begin();
	put(bell);
	CHECK(send(sockets[1], "x", 1, 0) == 1);
	CHECK(af_wake_remove(&set, bell));
	CHECK(!af_wake_remove(&set, bell));
	CHECK(woken(AF_SLEEPER_CALLER, false, LONG_NS)); /* by the socket */
	CHECK(af_wake_remove(&set, sockets[0]));
	CHECK(!woken(AF_SLEEPER_CALLER, false, MS));
	CHECK_EQUAL(set.nb, 1);
	end();
}

static void
a_set_has_an_end(void)
{
	begin();
	while (set.nb < AF_WAKE_MOST)
		CHECK(af_wake_add(&set, bell));
	CHECK(!af_wake_add(&set, bell));
	end();
}

/* A closed descriptor would end every sleep at once: it is muted, and the loop knows that it must look by itself. */
static void
a_descriptor_with_an_error_is_muted(void)
{
	int pipes[2];

	begin();
	CHECK(!pipe(pipes) && af_wake_add(&set, pipes[0]));
	CHECK(af_wake_is_complete(&set));
	close(pipes[1]);
	CHECK(woken(AF_SLEEPER_WORKER, false, LONG_NS));
	af_wake_drain(&set, AF_SLEEPER_WORKER);
	CHECK(!af_wake_is_complete(&set));
	CHECK(!woken(AF_SLEEPER_WORKER, false, MS));
	CHECK(woken(AF_SLEEPER_CALLER, false, LONG_NS)); /* the other sleeper meets it by itself */
	af_wake_drain(&set, AF_SLEEPER_CALLER);
	CHECK(!woken(AF_SLEEPER_CALLER, false, MS));
	CHECK(af_wake_remove(&set, pipes[0]));
	CHECK(af_wake_is_complete(&set));
	close(pipes[0]);
	end();
}

/* As of a packet socket whose interface goes down: the error is read once, and the socket wakes the loop again. */
static void
a_socket_s_error_is_read(void)
{
	struct sockaddr_in nowhere = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof nowhere;
	int udp = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), closed = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	begin();
	CHECK(!af_wake_clear_error(bell));
	CHECK(!af_wake_clear_error(sockets[0])); /* there is none */
	CHECK(!bind(closed, (struct sockaddr *)&nowhere, size) &&
	      !getsockname(closed, (struct sockaddr *)&nowhere, &size));
	close(closed);
	CHECK(!connect(udp, (struct sockaddr *)&nowhere, size) && send(udp, "x", 1, 0) == 1); /* refused by ICMP */
	CHECK(af_wake_add(&set, udp));
	CHECK(woken(AF_SLEEPER_CALLER, false, LONG_NS));
	CHECK(af_wake_drain(&set, AF_SLEEPER_CALLER));
	CHECK(af_wake_is_complete(&set));
	CHECK(!woken(AF_SLEEPER_CALLER, false, MS));
	close(udp);
	end();
}

static void
ignore(int signal)
{
	(void)signal;
}

/* A caller must run its handlers: Python's for Ctrl-C, say. */
static void
a_signal_ends_a_sleep(void)
{
	struct sigaction action = {.sa_handler = ignore, .sa_flags = SA_RESTART};
	struct itimerval soon = {.it_value.tv_usec = 2000};

	begin();
	CHECK(!sigaction(SIGALRM, &action, NULL) && !setitimer(ITIMER_REAL, &soon, NULL));
	CHECK(!af_wake_wait(&set, AF_SLEEPER_CALLER, false, LONG_NS));
	CHECK(!af_wake_drain(&set, AF_SLEEPER_CALLER));
	end();
}

CASES(CASE(each_descriptor_ends_a_sleep), CASE(a_socket_is_readable_until_its_user_reads_it),
      CASE(alone_it_hears_its_own_descriptor_only), CASE(two_sleepers_keep_apart),
      CASE(a_removed_descriptor_wakes_no_thread), CASE(a_set_has_an_end), CASE(a_descriptor_with_an_error_is_muted),
      CASE(a_socket_s_error_is_read), CASE(a_signal_ends_a_sleep))

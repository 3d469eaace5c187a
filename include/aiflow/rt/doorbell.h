/* Doorbell between two local processes: a loop that sleeps is woken when its peer has sent.
 *
 * DPDK's memif has no receive interrupts. So the two sides share a page with a word each, and a pair of datagram
 * sockets. A side sets its word before it sleeps. The other side looks at it after each burst, and rings only then.
 *
 *   sleeper   word = 1 · poll its ports once more · sleep on the socket · word = 0, and read the socket
 *   sender    burst · barrier · word is 1? set it to 0, and send a byte
 *
 * The stores and loads of the two words and of the ring are in one order for both: either the sleeper finds the frames
 * when it polls once more, or the sender finds the word.
 *
 * The page and the socket are shared with another process, which may be dead or malicious. Whatever the word says, a
 * ring costs at most a system call, and a sleep ends early. Sockets, not eventfds: MSG_DONTWAIT belongs to the call,
 * and the peer cannot take it away as it can O_NONBLOCK. A ring that is lost costs the sleeper its time-out.
 */
#ifndef AIFLOW_DOORBELL_H
#define AIFLOW_DOORBELL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#define AF_DOORBELL_BYTES 4096 /* of the page */

struct af_doorbell_word {
	_Atomic uint32_t asleep; /* its side: sets and clears; the other side: clears */
} __attribute__((aligned(64)));

struct af_doorbell_page {
	struct af_doorbell_word sides[2];
};

struct af_doorbell {
	struct af_doorbell_word *mine;
	struct af_doorbell_word *peers;
	int fd;        /* our socket: readable when the peer has rung */
	uint32_t owed; /* rings whose byte we did not read yet; driver: rw */
	uint64_t rung; /* how often we rang; driver: rw, others: ro */
};

/* `side` is 0 for one end and 1 for the other. */
static inline void
af_doorbell_init(struct af_doorbell *bell, void *page, int side, int fd)
{
	struct af_doorbell_page *shared = page;

	*bell = (struct af_doorbell){.mine = &shared->sides[side], .peers = &shared->sides[1 - side], .fd = fd};
}

/* Driver: say that we are about to sleep. Poll the ports once more after it. */
static inline void
af_doorbell_sleep(struct af_doorbell *bell)
{
	atomic_store_explicit(&bell->mine->asleep, 1, memory_order_seq_cst);
	atomic_thread_fence(memory_order_seq_cst);
}

/* Driver: say that we are awake, and take the peer's ring from the socket. */
static inline void
af_doorbell_awake(struct af_doorbell *bell)
{
	char byte;

	bell->owed += !atomic_exchange_explicit(&bell->mine->asleep, 0, memory_order_seq_cst);
	while (bell->owed && recv(bell->fd, &byte, 1, MSG_DONTWAIT) >= 0)
		bell->owed--; /* else its byte is about to come, and ends the next sleep */
}

/* Sleeper's last look: has the peer rung since af_doorbell_sleep? */
static inline bool
af_doorbell_rang(const struct af_doorbell *bell)
{
	return !atomic_load_explicit(&bell->mine->asleep, memory_order_relaxed);
}

/* Driver, after a burst that the driver of the port took: wake the peer if it sleeps. */
static inline void
af_doorbell_ring(struct af_doorbell *bell)
{
	atomic_thread_fence(memory_order_seq_cst); /* the burst is visible before we look at the word */
	if (__builtin_expect(!atomic_load_explicit(&bell->peers->asleep, memory_order_relaxed), 1))
		return;
	if (!atomic_exchange_explicit(&bell->peers->asleep, 0, memory_order_seq_cst))
		return;
	bell->rung++;
	send(bell->fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL); /* a full queue is readable already */
}

#endif

/* The interface between a loop and a state machine: frames in, frames out, time. The burst loop, the simulator and the
 * fuzzer drive the same sender and receiver by the same calls. An agent numbers its own ports from 0. */
#ifndef AIFLOW_AGENT_H
#define AIFLOW_AGENT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "aiflow/rt/ledger.h"
#include "aiflow/wire/frame.h"

#define AF_HEARTBEAT_NS 1000000000ull /* an idle sender sends a probe this often */
/* Between two ticks: this process was stopped, so that no peer counts as silent. */
#define AF_AWAY_NS 250000000ull
#define AF_AWAY_QUIET_NS 600000000ull /* … when nothing is on its way: a quiet loop sleeps for longer */

#define AF_DUE_NEVER UINT64_MAX
#define AF_DUE_UNKNOWN 0ull /* the loop must look by itself, at growing intervals */
#define AF_DUE_BUSY_NS 5000000ull /* an agent with a slice on its way is looked at this often, whatever it says */

/* Bytes in memory of their owner. */
struct af_span {
	const uint8_t *ptr;
	uint64_t nbytes;
	void *owner; /* counts the frames that may still be read from it after their burst; NULL: there may be none */
};

/* May payloads stay where they are? */
enum af_reference {
	AF_REFER_NONE, /* the port sends copies */
	AF_REFER_ALL,  /* the driver has read them when its burst returns */
	AF_REFER_OWNED /* a card reads them later: only those of memory with an owner */
};

#define AF_MBUF_OVERHEAD 320u /* bytes of an mbuf beside its frame: header, headroom and alignment */
/* Count of lent memory that no frame refers to. DPDK's update is not atomic while the count is 1: two loops that begin
 * to send from the same memory would both write 2. With 2 for its owner, the count is never 1. */
#define AF_LENT_AT_REST 2u
#define AF_TAIL_LEAST 2048u /* bytes: smaller payloads are copied, because a reference costs more */

/* What a sender may put in flight on a port that other senders use, too. */
struct af_budget {
	uint32_t frames; /* in flight at most, its own */
	uint64_t due_ns; /* of the port's next frame, where pacing rules; the sender moves it */
};

/* What a sender has on a port. */
struct af_load {
	uint32_t window;    /* the most frames in flight that the port takes */
	uint32_t in_flight; /* frames of this sender */
	bool busy;          /* it has data to send, or in flight */
};

enum af_role { AF_SENDS, AF_RECEIVES };

struct af_agent {
	void *state;
	enum af_role role;
	uint64_t instance; /* AF_SENDS: of its HELLOs, without the bits that count lives */
	/* A frame arrived. `handle` stands for its memory; true means that the agent keeps it. */
	bool (*on_frame)(void *state, uint32_t port, uint64_t now_ns, const uint8_t *frame, uint32_t len, void *handle);
	/* Write the next frame for `port` and return its size; 0: there is none. A port that sends by reference does
	 * not get the last `tail->nbytes` bytes written: they are at tail->ptr until the next call. `budget`: NULL
	 * where no other sender uses the port. */
	const struct af_span *tail; /* NULL: it never sends by reference */
	uint32_t (*next_frame)(void *state, uint32_t port, uint64_t now_ns, struct af_budget *budget, uint8_t *frame);
	/* Do what is due by time. True when a waiting thread should look. */
	bool (*tick)(void *state, uint64_t now_ns);
	/* The earliest time at which `tick` or `next_frame` may have something to do although no frame arrives and no
	 * user asks. At most AF_DUE_BUSY_NS away while a slice is on its way. NULL: unknown */
	uint64_t (*due)(void *state, uint64_t now_ns);
	/* Is this number, of a frame's `session`, one that this agent gave its peer? */
	bool (*owns)(const void *state, uint32_t number);
	struct af_load (*load)(const void *state, uint32_t port); /* AF_SENDS */
};

#define AF_MOST_SHARED 16u /* receivers whose memory one connection shares */

/* Memory of a receiver at the other end of a connection. */
struct af_shared_memory {
	uint8_t *base;
	uint64_t nbytes;
	bool borrows;           /* the receiver takes loans */
	_Atomic uint64_t epoch; /* of the receiver; 0: none. Stored last */
};

/* What a process has mapped of its peer's, and lends it. Any thread adds, and nothing is removed while a port refers to
 * it. */
struct af_shared {
	struct af_shared_memory memories[AF_MOST_SHARED];
	struct af_lender *_Atomic lenders[AF_MOST_SHARED];     /* of our senders' pools; NULL: none */
	struct af_borrowed *_Atomic borrowed[AF_MOST_SHARED];  /* pools of the peer's senders; NULL: none */
};

/* Where loans of this pool go to the peer; NULL: they do not, or it has not mapped the pool. */
static inline struct af_lender *
af_shared_lender(const struct af_shared *shared, uint64_t pool)
{
	for (uint32_t i = 0; shared && pool && i < AF_MOST_SHARED; i++) {
		struct af_lender *lender = atomic_load_explicit(&shared->lenders[i], memory_order_acquire);

		if (lender && lender->pool == pool)
			return atomic_load_explicit(&lender->mapped, memory_order_acquire) ? lender : NULL;
	}
	return NULL;
}

/* The peer's pool of this number; NULL: we have not mapped it. */
static inline struct af_borrowed *
af_shared_borrowed(const struct af_shared *shared, uint64_t pool)
{
	for (uint32_t i = 0; shared && i < AF_MOST_SHARED; i++) {
		struct af_borrowed *from = atomic_load_explicit(&shared->borrowed[i], memory_order_acquire);

		if (from && from->pool == pool)
			return from;
	}
	return NULL;
}

static inline const struct af_shared_memory *
af_shared_of(const struct af_shared *shared, uint64_t epoch)
{
	for (uint32_t i = 0; shared && epoch && i < AF_MOST_SHARED; i++)
		if (atomic_load_explicit(&shared->memories[i].epoch, memory_order_acquire) == epoch)
			return &shared->memories[i];
	return NULL;
}

/* One thread at a time. Nothing happens when there are AF_MOST_SHARED of them. */
static inline void
af_shared_add(struct af_shared *shared, uint8_t *base, uint64_t nbytes, uint64_t epoch, bool borrows)
{
	for (uint32_t i = 0; i < AF_MOST_SHARED; i++) {
		struct af_shared_memory *memory = &shared->memories[i];

		if (memory->base)
			continue;
		memory->base = base;
		memory->nbytes = nbytes;
		memory->borrows = borrows;
		atomic_store_explicit(&memory->epoch, epoch, memory_order_release);
		return;
	}
}

/* One port as an agent sees it. control: w while the loop is parked, dataplane: ro */
struct af_agent_port {
	bool attached;
	bool point_to_point; /* a single peer is possible: there is no switch */
	bool kick; /* the driver delivers frames only with the next burst (af_packet) */
	uint8_t by_reference; /* enum af_reference, of large payloads */
	uint8_t mac[6]; /* of the port */
	uint16_t frame_size; /* largest frame that it takes */
	uint32_t rx_ring; /* frames that it can queue on arrival */
	uint32_t tx_window; /* frames that it can have in flight */
	/* Of the connection that it belongs to, unique in the process. The peer has mapped our memory, and may write to
	 * what we grant. 0: it has not */
	uint32_t writer;
	const struct af_shared *shared; /* what our process has mapped of the peer's; NULL: nothing */
};

static inline uint64_t
af_earlier(uint64_t one, uint64_t other)
{
	return one < other ? one : other;
}

static inline uint64_t
af_later(uint64_t one, uint64_t other)
{
	return one > other ? one : other;
}

/* The time to assume for a peer's newest frame, after this process was stopped from `then` to `now`. */
static inline uint64_t
af_heard_while_away(uint64_t heard_ns, uint64_t then, uint64_t now)
{
	uint64_t later = heard_ns + (now - then);

	return later < now ? later : now;
}

/* dataplane: rw, control: ro */
struct af_port_counters {
	uint64_t tx_frames, tx_bytes;
	uint64_t rx_frames, rx_bytes;
	uint64_t retransmits; /* chunks that were retransmitted over this port */
	uint64_t lost; /* chunks that were declared lost on it */
};

#endif

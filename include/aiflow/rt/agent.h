/* What the burst loop knows of a sender or a receiver: frames in, frames out, time. Live, in the simulator and under
 * the fuzzer the same three calls drive the same state machines. */
#ifndef AIFLOW_AGENT_H
#define AIFLOW_AGENT_H

#include <stdbool.h>
#include <stdint.h>

#include "aiflow/wire/frame.h"

#define AF_HEARTBEAT_NS 1000000000ull /* an idle sender shows that it lives */
#define AF_AWAY_NS 100000000ull       /* between two ticks: we were stopped, and nobody's silence counts meanwhile */

/* Bytes where they lie. */
struct af_span {
	const uint8_t *ptr;
	uint64_t nbytes;
};

#define AF_MBUF_OVERHEAD 320u /* what an mbuf takes beside its frame: its header, headroom and alignment */
#define AF_TAIL_LEAST 2048u /* fewer bytes are copied: a reference costs more */

struct af_agent {
	void *state;
	/* A frame that arrived. `handle` stands for the memory it lies in; true means that the agent keeps it. */
	bool (*on_frame)(void *state, uint32_t port, uint64_t now_ns, const uint8_t *frame, uint32_t len, void *handle);
	/* Write the next frame that `port` should send and return its size, or 0 for none. Where the port sends by
	 * reference the last `tail->nbytes` bytes of it are not written: they are at tail->ptr, until the next call. */
	const struct af_span *tail;
	uint32_t (*next_frame)(void *state, uint32_t port, uint64_t now_ns, uint8_t *frame);
	/* Everything that is due by time. True when something changed that a waiting thread should know. */
	bool (*tick)(void *state, uint64_t now_ns);
};

/* One port as an agent sees it. The control plane writes it while the loop is parked. */
struct af_agent_port {
	bool attached, point_to_point, kick, by_reference;
	uint8_t mac[6];
	uint16_t frame_size;
	uint32_t rx_ring, tx_window;
	uint32_t peer; /* which connection it belongs to */
};

/* When a peer was heard, for an agent that was stopped from `then` to `now`: it may have spoken meanwhile. */
static inline uint64_t
af_heard_while_away(uint64_t heard_ns, uint64_t then, uint64_t now)
{
	uint64_t later = heard_ns + (now - then);

	return later < now ? later : now;
}

/* dataplane: rw, control: ro */
struct af_port_counters {
	uint64_t tx_frames, tx_bytes, rx_frames, rx_bytes, retransmits, lost;
};

#endif

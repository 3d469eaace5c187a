/* One sender, several receivers: a state machine for each of them over the same ports.
 *
 * Each receiver has sessions, windows and slices of its own, so that one that is slow, or dies, holds up nobody. What
 * they share is a port: it asks them in turn for its next frame, and the frames of all of them that are under way on it
 * are no more than its driver holds, at the gaps that its flow control asks for. Receivers number their sessions alike,
 * so a frame is told by its sender's MAC too.
 */
#ifndef AIFLOW_FAN_H
#define AIFLOW_FAN_H

#include "aiflow/tx/tx_agent.h"

#define AF_FAN_MOST 16u

struct af_fan {
	struct af_tx *tx[AF_FAN_MOST];
	uint32_t nb;
	uint32_t turn[AF_MAX_PORTS];   /* whose turn it is on a port, */
	uint64_t due_ns[AF_MAX_PORTS]; /* and when, where gaps are the law */
	struct af_span tail;           /* see struct af_agent */
};

/* Whom an answer to a HELLO is for: every state machine asks as an instance of its own. */
static inline struct af_tx *
af_fan_of_hello(struct af_fan *fan, const uint8_t *frame, uint32_t len)
{
	struct af_hello h;

	if (len >= AF_HEADER + sizeof h) {
		memcpy(&h, frame + AF_HEADER, sizeof h);
		for (uint32_t i = 0; i < fan->nb; i++)
			if (AF_BE64(h.sender) == fan->tx[i]->instance)
				return fan->tx[i];
	}
	return NULL;
}

/* Does one of this receiver's ports, at the other end of a path of ours, have this MAC? */
static inline bool
af_fan_leads_to(const struct af_tx *tx, uint32_t p, const uint8_t *mac)
{
	if (tx->ports[p].open && !memcmp(tx->ports[p].dst, mac, 6))
		return true;
	for (uint32_t i = 0; i < tx->nb_ports; i++)
		if (tx->ports[i].open && !memcmp(tx->ports[i].dst, mac, 6))
			return true;
	return false;
}

static inline struct af_tx *
af_fan_of_session(struct af_fan *fan, uint32_t p, const uint8_t *frame)
{
	struct af_header header;

	memcpy(&header, frame, sizeof header);
	for (uint32_t i = 0; i < fan->nb; i++) {
		struct af_tx *tx = fan->tx[i];

		if (tx->open && tx->session == AF_BE32(header.session) && af_fan_leads_to(tx, p, header.src))
			return tx;
	}
	return NULL;
}

static inline bool
af_fan_on_frame(void *state, uint32_t p, uint64_t now, const uint8_t *frame, uint32_t len, void *handle)
{
	struct af_fan *fan = state;
	struct af_tx *tx = NULL;

	if (len >= AF_HEADER)
		tx = (frame[offsetof(struct af_header, frame_id)] & 15) == AF_HELLO ? af_fan_of_hello(fan, frame, len)
										    : af_fan_of_session(fan, p, frame);
	/* Nobody's: the first one counts why. */
	return af_tx_on_frame(tx ? tx : fan->tx[0], p, now, frame, len, handle);
}

/* The most that may be under way on a port, of all receivers. */
static inline uint32_t
af_fan_window(const struct af_tx_port *port)
{
	return port->pace.rate_based ? af_tx_backstop(&port->p) : port->p.tx_window;
}

/* Who has something to send has an equal part of the port's window, and nobody more than is left of it. */
static inline uint32_t
af_fan_next_frame(void *state, uint32_t p, uint64_t now, uint8_t *frame)
{
	struct af_fan *fan = state;
	uint32_t most = af_fan_window(&fan->tx[0]->ports[p]), flying = 0, sharers = 0, size = 0, part, left;

	for (uint32_t i = 0; i < fan->nb; i++) {
		const struct af_tx_port *port = &fan->tx[i]->ports[p];

		if (port->open) {
			flying += port->w.flying;
			sharers += af_tx_busy(fan->tx[i]);
		}
	}
	part = sharers > 1 ? most / sharers : most;
	part = part ? part : 1;
	left = flying < most ? most - flying : 0;
	fan->tail.nbytes = 0;
	for (uint32_t i = 0; i < fan->nb && !size; i++) {
		uint32_t whose = (fan->turn[p] + i) % fan->nb;
		struct af_tx *tx = fan->tx[whose];
		struct af_tx_port *port = &tx->ports[p];
		uint32_t limit = port->w.limit;

		if (port->w.limit > part)
			port->w.limit = part;
		if (port->w.limit > port->w.flying + left)
			port->w.limit = port->w.flying + left;
		port->pace.due_ns = fan->due_ns[p];
		size = af_tx_next_frame(tx, p, now, frame);
		port->w.limit = limit;
		if (size) {
			fan->turn[p] = (whose + 1) % fan->nb;
			fan->due_ns[p] = port->pace.due_ns;
			fan->tail = tx->tail;
		}
	}
	return size;
}

/* A port that can reach but one receiver is no business of the others while that one answers. */
static inline void
af_fan_claim(struct af_fan *fan, uint32_t p, uint64_t now)
{
	const struct af_tx *owner = NULL;

	for (uint32_t i = 0; i < fan->nb; i++)
		if (fan->tx[i]->ports[p].open)
			owner = fan->tx[i];
	for (uint32_t i = 0; i < fan->nb; i++) {
		struct af_tx_port *port = &fan->tx[i]->ports[p];
		bool attached = !owner || owner == fan->tx[i];

		if (attached && !port->p.attached)
			port->attached_ns = now;
		port->p.attached = attached;
	}
}

static inline bool
af_fan_tick(void *state, uint64_t now)
{
	struct af_fan *fan = state;
	bool changed = false;

	for (uint32_t i = 0; i < fan->nb; i++)
		changed |= af_tx_tick(fan->tx[i], now);
	for (uint32_t p = 0; p < fan->tx[0]->nb_ports; p++) {
		bool attached = false;

		for (uint32_t i = 0; i < fan->nb; i++)
			attached |= fan->tx[i]->ports[p].p.attached;
		if (attached && fan->tx[0]->ports[p].p.point_to_point)
			af_fan_claim(fan, p, now);
	}
	return changed;
}

#endif

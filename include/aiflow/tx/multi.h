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

#define AF_MULTI_MOST 16u

struct af_multi {
	struct af_tx *tx[AF_MULTI_MOST];
	uint32_t nb;
	uint32_t turn[AF_MAX_PORTS];   /* whose turn it is on a port, */
	uint64_t due_ns[AF_MAX_PORTS]; /* and when, where gaps are the law */
	struct af_span tail;           /* see struct af_agent */
};

/* Whom an answer to a HELLO is for: every state machine asks as an instance of its own. */
static inline struct af_tx *
af_multi_of_hello(struct af_multi *multi, const uint8_t *frame, uint32_t len)
{
	struct af_hello h;

	if (len >= AF_HEADER + sizeof h) {
		memcpy(&h, frame + AF_HEADER, sizeof h);
		for (uint32_t i = 0; i < multi->nb; i++)
			if (AF_BE64(h.sender) == multi->tx[i]->instance)
				return multi->tx[i];
	}
	return NULL;
}

/* Does one of this receiver's ports, at the other end of a path of ours, have this MAC? */
static inline bool
af_multi_leads_to(const struct af_tx *tx, uint32_t p, const uint8_t *mac)
{
	if (tx->ports[p].open && !memcmp(tx->ports[p].dst, mac, 6))
		return true;
	for (uint32_t i = 0; i < tx->nb_ports; i++)
		if (tx->ports[i].open && !memcmp(tx->ports[i].dst, mac, 6))
			return true;
	return false;
}

static inline struct af_tx *
af_multi_of_session(struct af_multi *multi, uint32_t p, const uint8_t *frame)
{
	struct af_header header;

	memcpy(&header, frame, sizeof header);
	for (uint32_t i = 0; i < multi->nb; i++) {
		struct af_tx *tx = multi->tx[i];

		if (tx->open && tx->session == AF_BE32(header.session) && af_multi_leads_to(tx, p, header.src))
			return tx;
	}
	return NULL;
}

static inline bool
af_multi_on_frame(void *state, uint32_t p, uint64_t now, const uint8_t *frame, uint32_t len, void *handle)
{
	struct af_multi *multi = state;
	struct af_tx *tx = NULL;

	if (len >= AF_HEADER)
		tx = (frame[offsetof(struct af_header, frame_id)] & 15) == AF_HELLO
			     ? af_multi_of_hello(multi, frame, len)
			     : af_multi_of_session(multi, p, frame);
	/* Nobody's: the first one counts why. */
	return af_tx_on_frame(tx ? tx : multi->tx[0], p, now, frame, len, handle);
}

/* The most that may be under way on a port, of all receivers. */
static inline uint32_t
af_multi_window(const struct af_tx_port *port)
{
	return port->pace.rate_based ? af_tx_backstop(&port->p) : port->p.tx_window;
}

/* Who has something to send has an equal part of the port's window, and nobody more than is left of it. */
static inline uint32_t
af_multi_next_frame(void *state, uint32_t p, uint64_t now, uint8_t *frame)
{
	struct af_multi *multi = state;
	uint32_t most = af_multi_window(&multi->tx[0]->ports[p]), in_flight = 0, sharers = 0, size = 0, part, left;

	for (uint32_t i = 0; i < multi->nb; i++) {
		const struct af_tx_port *port = &multi->tx[i]->ports[p];

		if (port->open) {
			in_flight += port->pn.in_flight;
			sharers += af_tx_busy(multi->tx[i]);
		}
	}
	part = sharers > 1 ? most / sharers : most;
	part = part ? part : 1;
	left = in_flight < most ? most - in_flight : 0;
	multi->tail.nbytes = 0;
	for (uint32_t i = 0; i < multi->nb && !size; i++) {
		uint32_t whose = (multi->turn[p] + i) % multi->nb;
		struct af_tx *tx = multi->tx[whose];
		struct af_tx_port *port = &tx->ports[p];
		uint32_t limit = port->pn.limit;

		if (port->pn.limit > part)
			port->pn.limit = part;
		if (port->pn.limit > port->pn.in_flight + left)
			port->pn.limit = port->pn.in_flight + left;
		port->pace.due_ns = multi->due_ns[p];
		size = af_tx_next_frame(tx, p, now, frame);
		port->pn.limit = limit;
		if (size) {
			multi->turn[p] = (whose + 1) % multi->nb;
			multi->due_ns[p] = port->pace.due_ns;
			multi->tail = tx->tail;
		}
	}
	return size;
}

/* A port that can reach but one receiver is no business of the others while that one answers. */
static inline void
af_multi_claim(struct af_multi *multi, uint32_t p, uint64_t now)
{
	const struct af_tx *owner = NULL;

	for (uint32_t i = 0; i < multi->nb; i++)
		if (multi->tx[i]->ports[p].open)
			owner = multi->tx[i];
	for (uint32_t i = 0; i < multi->nb; i++) {
		struct af_tx_port *port = &multi->tx[i]->ports[p];
		bool attached = !owner || owner == multi->tx[i];

		if (attached && !port->p.attached)
			port->attached_ns = now;
		port->p.attached = attached;
	}
}

static inline bool
af_multi_tick(void *state, uint64_t now)
{
	struct af_multi *multi = state;
	bool changed = false;

	for (uint32_t i = 0; i < multi->nb; i++)
		changed |= af_tx_tick(multi->tx[i], now);
	for (uint32_t p = 0; p < multi->tx[0]->nb_ports; p++) {
		bool attached = false;

		for (uint32_t i = 0; i < multi->nb; i++)
			attached |= multi->tx[i]->ports[p].p.attached;
		if (attached && multi->tx[0]->ports[p].p.point_to_point)
			af_multi_claim(multi, p, now);
	}
	return changed;
}

#endif

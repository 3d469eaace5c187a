/* One sender, several receivers: a state machine for each receiver, over the same ports.
 *
 * Each receiver has its own session, windows and slices, so a slow or dead receiver does not delay the others. They
 * share the ports. A port asks them in turn for its next frame. All their frames in flight on a port are at most what
 * its driver holds, and its pacing applies to their sum. Receivers may give their sessions equal numbers, so the source
 * MAC of a frame selects the receiver, too.
 */
#ifndef AIFLOW_MULTI_H
#define AIFLOW_MULTI_H

#include "aiflow/tx/tx_agent.h"

#define AF_MULTI_MOST 16u

struct af_multi {
	struct af_tx *tx[AF_MULTI_MOST]; /* one for each receiver */
	uint32_t nb;
	uint32_t turn[AF_MAX_PORTS];   /* the receiver that a port asks first */
	uint64_t due_ns[AF_MAX_PORTS]; /* of a port's next frame, where pacing rules */
	struct af_span tail;           /* see struct af_agent */
};

/* The state machine that an answer to a HELLO is for: each asks as an instance of its own. */
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

/* Is this the MAC of a receiver's port at the end of one of our paths? */
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
	/* For none of them: the first one counts the drop. */
	return af_tx_on_frame(tx ? tx : multi->tx[0], p, now, frame, len, handle);
}

/* The limit of frames in flight on a port, of all receivers. */
static inline uint32_t
af_multi_window(const struct af_tx_port *port)
{
	return port->pace.rate_based ? af_tx_backstop(&port->p) : port->p.tx_window;
}

/* Split the port's window evenly among receivers with data to send; never exceed what is free. */
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

/* A point-to-point port reaches one receiver. While that one answers, the port is detached from the others. */
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

/* When a receiver has something to do although no frame arrives: how long its loop may sleep. */
#ifndef AIFLOW_RX_DUE_H
#define AIFLOW_RX_DUE_H

#include "aiflow/rx/credit_share.h"
#include "aiflow/rx/rx_state.h"

#define AF_RX_MEMORY_NS 1000000ull /* between two looks at memory that users give back, while a slice waits for it */

/* Can feedback on a path wait while frames keep coming? On a slow link it would take a share of the way back, on which
 * the same node may send. A window that is small, or a hole, cannot wait. */
static inline bool
af_rx_feedback_can_wait(const struct af_rx *rx, const struct af_rx_path *path, uint64_t now)
{
	return path->news < AF_FEEDBACK_MANY && path->news < af_credit_share_window(rx, path, now) / 4 &&
	       path->pn.floor == path->pn.next;
}

/* When a path owes a BYE or feedback. */
static inline uint64_t
af_rx_path_due_at(const struct af_rx *rx, const struct af_rx_session *session, const struct af_rx_path *path,
		  uint64_t now)
{
	const struct af_rx_port *port = &rx->ports[path->port];
	uint32_t every = port->p.rx_ring / 4 < AF_FEEDBACK_FRAMES ? port->p.rx_ring / 4 : AF_FEEDBACK_FRAMES;
	uint64_t due = path->feedback_ns + AF_FEEDBACK_NS, still = path->heard_ns + AF_FEEDBACK_STILL_NS,
		 most = path->feedback_ns + AF_FEEDBACK_MOST_NS;

	if (!(path->known || path->bye_due) || !port->p.attached)
		return AF_DUE_NEVER;
	if (path->bye_due || path->urgent || path->news > every ||
	    (session->urgent && session->last_port == path->port))
		return now;
	if (!path->news)
		return AF_DUE_NEVER;
	if (af_rx_feedback_can_wait(rx, path, now))
		due = still > most ? most : still > due ? still : due;
	return due;
}

/* Of a session in af_rx_tick: the sender's silence. */
static inline uint64_t
af_rx_silence_due_at(const struct af_rx *rx, const struct af_rx_session *session)
{
	uint64_t due = session->heard_ns + AF_CLOSED_RETAINED_TIMEOUTS * rx->peer_timeout_ns + 1;

	if (!session->spoke || !session->silenced || !session->closed)
		due = af_earlier(due, session->heard_ns + rx->peer_timeout_ns + 1);
	if (!session->silenced && rx->waiting)
		due = af_earlier(due, session->heard_ns + AF_SILENCE_NS + 1);
	return due;
}

static inline uint64_t
af_rx_event_due_at(const struct af_rx *rx, uint64_t now)
{
	uint64_t due = af_sampler_due_at(&rx->sampler, af_rx_moved(rx));

	if (rx->changed || rx->waiter_removed || rx->filling || rx->answers_head != rx->answers_tail)
		return now;
	if (rx->waiting)
		due = af_earlier(due, now + AF_RX_MEMORY_NS);
	for (uint32_t i = 0; i < rx->nb_sessions; i++) {
		const struct af_rx_session *session = rx->sessions[i];

		due = af_earlier(due, af_rx_silence_due_at(rx, session));
		for (uint32_t k = 0; k < session->nb_paths; k++)
			due = af_earlier(due, af_rx_path_due_at(rx, session, &session->paths[k], now));
	}
	return due;
}

/* See struct af_agent. */
static inline uint64_t
af_rx_due(void *state, uint64_t now)
{
	const struct af_rx *rx = state;
	uint64_t due = af_rx_event_due_at(rx, now);

	return rx->flowing ? af_earlier(due, now + AF_DUE_BUSY_NS) : due;
}

#endif

/* The receiver's state machine: frames in, feedback out, whole slices handed over.
 *
 * A slice asks with its MANIFEST. It is granted in order of arrival, when there is memory for all of it. Its chunks are
 * written to their places as they arrive, over any path and in any order. The slice is handed over when no chunk is
 * missing and the closing record's CRC32C matches the bytes in memory.
 *
 *   READING --manifest whole--> WAITING --memory--> FLOWING --nothing missing--> WHOLE --in order--> handed over
 *      \___________________________\___________________\___ refused, VOID, peer gone ___> freed
 *
 * With `confirms` a slice is delivered when the user says so (verdict.h), not when it is handed over.
 *
 * Per frame: no allocation, no lock. Per slice: malloc for its tables, a lock for its block.
 */
#ifndef AIFLOW_RX_AGENT_H
#define AIFLOW_RX_AGENT_H

#include "aiflow/rx/admission.h"
#include "aiflow/rx/feedback.h"
#include "aiflow/rx/reassembly.h"
#include "aiflow/rx/rx_due.h"
#include "aiflow/rx/rx_hello.h"
#include "aiflow/rx/rx_lifetime.h"
#include "aiflow/rx/rx_session.h"
#include "aiflow/rx/rx_state.h"

/* Remove a port, and the sessions that were heard over no other port. Control plane, while the loop is parked. */
static inline void
af_rx_detach(struct af_rx *rx, uint32_t p)
{
	rx->ports[p].p.attached = false;
	for (uint32_t i = 0; i < rx->nb_sessions; i++) {
		struct af_rx_session *session = rx->sessions[i];

		for (uint32_t k = 0; k < AF_MAX_PORTS; k++)
			if (session->paths[k].port == p)
				session->paths[k].known = session->paths[k].asked = session->paths[k].bye_due = false;
		if (session->ports == 1u << p)
			af_rx_forget(rx, i--);
		else
			session->ports &= ~(1u << p);
	}
	rx->ports[p].nb_paths = 0;
}

/* Is there a grant or an end that a sender does not know yet? */
static inline bool
af_rx_owes(const struct af_rx *rx)
{
	for (uint32_t i = 0; i < rx->nb_sessions; i++)
		if (rx->sessions[i]->urgent)
			return true;
	return false;
}

static inline void
af_rx_sample(struct af_rx *rx, uint64_t now)
{
	struct af_sample *sample = af_sampler_begin(&rx->sampler, now);

	if (!sample)
		return;
	for (uint32_t p = 0; p < rx->nb_ports; p++) {
		const struct af_rx_port *port = &rx->ports[p];

		sample->ports[p] = (struct af_port_sample){.frames = port->count.rx_frames,
							   .bytes = port->count.rx_bytes,
							   .sent = port->sent,
							   .arrived = port->arrived,
							   .capacity = port->p.rx_ring};
	}
	af_sampler_end(&rx->sampler, af_rx_moved(rx));
}

/* ---- the agent ---- */

static inline bool
af_rx_on_frame(void *state, uint32_t p, uint64_t now, const uint8_t *frame, uint32_t len, void *handle)
{
	struct af_rx *rx = state;
	struct af_rx_port *port = &rx->ports[p];
	struct af_rx_session *session = NULL;
	struct af_frame f;
	struct af_rx_target target = {.drop = AF_OK};
	enum af_drop drop = af_wire_read(frame, len, port->p.mac, port->p.frame_size, &f);
	struct af_rx_in in = {.port = p, .now = now, .frame = &f, .handle = handle};

	port->count.rx_frames++;
	port->count.rx_bytes += len;
	if (drop == AF_OK) {
		session = f.kind == AF_HELLO ? NULL : af_rx_session_of(rx, f.session);
		if (session && af_rx_is_data(f.kind))
			target.drop = af_rx_find(rx, session, &f, &target);
		/* A damaged frame may write to the place of a missing chunk: the retransmission overwrites it. */
		drop = af_wire_check(&f);
	}
	if (drop == AF_DROP_VERSION) {
		af_rx_on_other_version(rx, p, frame, now);
	} else if (drop == AF_OK && f.kind == AF_HELLO) {
		drop = af_rx_on_hello(rx, p, &f, now);
	} else if (drop == AF_OK) {
		drop = session ? af_rx_on_session(rx, session, &in, &target) : AF_DROP_SESSION;
	}
	rx->drops[drop]++;
	return in.kept;
}

/* The answer to a BYE, or this receiver's own. `slice` says which of the receivers that answered a sender goes. */
static inline uint32_t
af_rx_bye(struct af_rx *rx, struct af_rx_session *session, uint32_t k, uint64_t now, uint8_t *frame)
{
	struct af_rx_path *path = &session->paths[k];
	struct af_frame f = {.kind = AF_BYE,
			     .end = 1,
			     .path = (uint16_t)k,
			     .element = AF_BYE_RECEIVER,
			     .session = session->peer,
			     .slice = session->id,
			     .number = ++session->number,
			     .timestamp_ns = now + rx->clock_offset_ns};

	path->bye_due = false;
	return af_wire_seal(frame, path->mac, rx->ports[path->port].p.mac, &f);
}

static inline uint32_t
af_rx_next_frame(void *state, uint32_t p, uint64_t now, struct af_budget *budget, uint8_t *frame)
{
	struct af_rx *rx = state;
	struct af_rx_port *port = &rx->ports[p];
	uint32_t size = 0;

	(void)budget;
	if (!port->p.attached)
		return 0;
	if (rx->answers_head != rx->answers_tail)
		size = af_rx_answer(rx, p, now, frame);
	for (uint32_t i = 0; i < rx->nb_sessions && !size; i++) {
		struct af_rx_session *session = rx->sessions[i];

		for (uint32_t k = 0; k < session->nb_paths && !size; k++) {
			struct af_rx_path *path = &session->paths[k];

			if (path->port != p || af_rx_path_due_at(rx, session, path, now) > now)
				continue;
			size = path->bye_due ? af_rx_bye(rx, session, k, now, frame)
					     : af_rx_feedback(rx, session, k, path->urgent, now, frame);
		}
	}
	if (size) {
		port->count.tx_frames++;
		port->count.tx_bytes += size;
	}
	return size;
}

static inline bool
af_rx_owns(const void *state, uint32_t number)
{
	return af_rx_session_of(state, number) != NULL;
}

static inline bool
af_rx_tick(void *state, uint64_t now)
{
	struct af_rx *rx = state;
	uint32_t releases = atomic_load_explicit(&rx->arena->releases, memory_order_acquire);
	uint64_t away = rx->flowing || rx->waiting ? AF_AWAY_NS : AF_AWAY_QUIET_NS;
	bool changed, again = rx->has_no_pages && rx->waiting && now - rx->looked_ns > AF_RX_LOOK_NS;

	af_rx_sample(rx, now);
	af_rx_hear_verdicts(rx);
	if (releases != rx->releases || rx->waiter_removed || rx->filling || again) {
		rx->releases = releases;
		rx->waiter_removed = false;
		rx->starving_ns = 0;
		af_rx_grant(rx, now);
	} else if (rx->waiting && !rx->starving_ns && !rx->flowing) {
		rx->starving_ns = now;
		rx->starving_bytes = rx->waiting->nbytes;
	}
	if (!rx->waiting)
		rx->starving_ns = 0;
	for (uint32_t i = 0; i < rx->nb_sessions; i++) {
		struct af_rx_session *session = rx->sessions[i];
		uint64_t silent;

		if (rx->ticked_ns && now - rx->ticked_ns > away)
			session->heard_ns = af_heard_while_away(session->heard_ns, rx->ticked_ns, now);
		silent = now > session->heard_ns ? now - session->heard_ns : 0;
		if (silent > AF_CLOSED_RETAINED_TIMEOUTS * rx->peer_timeout_ns ||
		    (silent > rx->peer_timeout_ns && !session->spoke)) {
			af_rx_forget(rx, i--);
			continue;
		}
		if (!session->silenced && (silent > rx->peer_timeout_ns || (silent > AF_SILENCE_NS && rx->waiting)))
			af_rx_silence(rx, session);
		if (silent > rx->peer_timeout_ns)
			af_rx_count_out(rx, session);
	}
	af_chrono_note(&rx->waits, rx->flowing ? AF_RX_ARRIVING : rx->waiting ? AF_RX_NO_MEMORY : AF_RX_IDLE, now);
	rx->ticked_ns = now;
	changed = rx->changed;
	rx->changed = false;
	return changed;
}

#endif

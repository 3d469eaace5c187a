/* Loss recovery of a path (RFC 9002): acknowledgements, losses, probe timeouts (PTO), and suspended paths.
 *
 *         silent while other paths hear the peer               AF_RESUME_PROBES probes answered
 *   USED ----------------------------------------> SUSPENDED -----------------------------------> USED
 *         its chunks are retransmitted elsewhere     probed, less often each time       with an eighth of its window,
 *                                                                                       one more per acknowledgement
 *
 * A path is silent only in comparison with others. When no path hears the peer, the peer or its machine is away, and
 * chunks in flight may have arrived. Then every path sends probes, and none is suspended.
 */
#ifndef AIFLOW_RECOVERY_H
#define AIFLOW_RECOVERY_H

#include "aiflow/tx/tx_slice.h"
#include "aiflow/tx/tx_state.h"

#define AF_KICK_NS 1000000ull         /* af_packet delivers frames only with the next burst */
#define AF_PTO_MIN_NS 2000000ull    /* a PTO is at least this long: feedback may rightly be 0.5 ms late; */
#define AF_PTO_MAX_NS 250000000ull  /* … and at most this long, for any round trip and backoff */
#define AF_PTO_BACKOFF_MOST 6u              /* doublings of the PTO while no answer comes */
#define AF_PTO_WITH_DATA 5u           /* doublings after which each probe comes with the oldest chunk */
#define AF_RESUME_PROBES 2u             /* answers in a row that end a suspension */
#define AF_SUSPEND_NS 5000000ull /* silence, beside four round trips, after which a path is suspended */
#define AF_SUSPEND_FIRST_NS 100000000ull /* the same before the first round trip was measured */
#define AF_LATE_MOST_NS 50000000ull /* at most this lateness is allowed for */
#define AF_CALM_ACKS 1024u /* without a spurious loss: then the allowances shrink by a quarter */

/* The probe timeout (RFC 9002, section 6.2): twice the round trip, doubled with each probe that has no answer. */
static inline uint64_t
af_path_pto(const struct af_tx_port *port)
{
	uint64_t wait = 2 * port->pn.rtt_ns > AF_PTO_MIN_NS ? 2 * port->pn.rtt_ns : AF_PTO_MIN_NS;

	if (wait < AF_PTO_MAX_NS)
		wait <<= port->backoff;
	return af_unevenly(wait < AF_PTO_MAX_NS ? wait : AF_PTO_MAX_NS, (uint32_t)port->pn.next);
}

/* Is a probe due? */
static inline bool
af_path_probe_is_due(const struct af_tx *tx, const struct af_tx_port *port, uint64_t now)
{
	const struct af_tx_pktnum *pn = &port->pn;
	uint64_t last = pn->sent_ns > pn->acked_ns ? pn->sent_ns : pn->acked_ns;

	/* At most twice per round trip: the kicks of many senders would fill a switch port. */
	if (pn->in_flight && port->p.kick &&
	    now - pn->sent_ns >= (pn->rtt_ns / 2 > AF_KICK_NS ? pn->rtt_ns / 2 : AF_KICK_NS))
		return true;
	/* Even with no chunk in flight feedback may be due: a grant, an end, the answer to a heartbeat. */
	if (pn->judged != pn->next || port->suspended ||
	    ((af_tx_busy(tx) || tx->suspect_ns) && now - tx->heard_ns >= af_path_pto(port)))
		return now - last >= af_path_pto(port);
	return now - last >= AF_HEARTBEAT_NS;
}

/* After several PTOs retransmit the oldest chunk beside the probe, without waiting for an answer. On a path that goes
 * up and down in step with the round trip, the answer's time may always be the wrong one. */
static inline void
af_path_repeat_oldest(struct af_tx *tx, struct af_tx_port *port)
{
	struct af_tx_pktnum *pn = &port->pn;

	for (uint64_t n = pn->judged; port->backoff >= AF_PTO_WITH_DATA && n < pn->next; n++) {
		struct af_sent *sent = af_tx_sent(pn, n);

		if (sent->state != AF_SENT_IN_FLIGHT || sent->probe || sent->chunk == AF_CHUNK_VOID)
			continue;
		af_tx_retransmit(tx, sent->slice, sent->chunk);
		sent->state = AF_SENT_LOST;
		sent->superseded = true;
		pn->in_flight--;
		af_tx_pktnum_settle(pn);
		return;
	}
}

/* A full ring has room for one number more: the oldest one counts as lost. */
static inline void
af_path_make_room(struct af_tx *tx, struct af_tx_port *port)
{
	struct af_sent *oldest = af_tx_sent(&port->pn, port->pn.judged);

	if (!af_tx_pktnum_is_full(&port->pn))
		return;
	if (oldest->state == AF_SENT_IN_FLIGHT)
		af_tx_lost(tx, port, oldest);
	af_tx_pktnum_settle(&port->pn);
}

/* A spurious loss: `sent` was only overtaken. Allow for as much reordering and lateness from now on. */
static inline void
af_path_was_late(struct af_tx_pktnum *pn, uint64_t number, const struct af_sent *sent, uint64_t now)
{
	uint64_t distance = pn->seen > number ? pn->seen - number : 0, late = now - sent->sent_ns;

	pn->spurious++;
	pn->calm = 0;
	if (distance >= pn->reorder)
		pn->reorder = distance < AF_REORDER_MOST ? (uint32_t)distance + 1 : AF_REORDER_MOST;
	late = late > pn->rtt_ns ? late - pn->rtt_ns : 0;
	if (late > pn->late_ns)
		pn->late_ns = late < AF_LATE_MOST_NS ? late : AF_LATE_MOST_NS;
}

/* A chunk was acknowledged in time. */
static inline void
af_path_went_well(struct af_tx_pktnum *pn)
{
	if (pn->ramp && ++pn->ramp >= pn->limit)
		pn->ramp = 0;
	if (++pn->calm < AF_CALM_ACKS)
		return;
	pn->calm = 0;
	pn->late_ns -= pn->late_ns / 4;
	if (pn->reorder > AF_REORDER_FIRST)
		pn->reorder -= (pn->reorder - AF_REORDER_FIRST + 3) / 4;
}

/* A probe was answered. */
static inline void
af_path_answered(struct af_tx_port *port)
{
	if (!port->suspended)
		return;
	port->backoff = 0; /* the next probe follows soon */
	if (++port->answered < AF_RESUME_PROBES)
		return;
	port->suspended = false;
	port->pn.ramp = port->pn.limit / 8 ? port->pn.limit / 8 : 1;
}

/* Did number n arrive? The bitmap begins at number `base`; lower numbers arrived, or were judged long ago. */
static inline bool
af_path_arrived(const struct af_path_feedback *r, const uint8_t *bitmap, uint64_t n, uint64_t base, uint64_t next)
{
	uint64_t bit = n + 64u * r->words - next, word;

	if (n < base)
		return next - n <= AF_RX_BITS; /* the receiver has forgotten older ones */
	memcpy(&word, bitmap + bit / 64 * 8, 8);
	return AF_BE64(word) >> (bit % 64) & 1;
}

/* The newest probe that was answered. */
struct af_answered {
	uint64_t number, sent_ns; /* both 0: none */
};

/* A frame in flight arrived. */
static inline void
af_path_on_arrival(struct af_tx *tx, struct af_tx_port *port, uint64_t n, struct af_answered *probe, uint64_t now)
{
	struct af_tx_pktnum *pn = &port->pn;
	struct af_sent *sent = af_tx_sent(pn, n);

	pn->acked_ns = now;
	af_tx_ack(tx, port, sent);
	if (sent->probe) {
		*probe = (struct af_answered){.number = n, .sent_ns = sent->sent_ns};
		af_path_answered(port);
	} else {
		port->backoff = 0;
		af_path_went_well(pn);
	}
}

static inline struct af_answered
af_path_on_acks(struct af_tx *tx, struct af_tx_port *port, const struct af_path_feedback *r, const uint8_t *bitmap,
		uint64_t now)
{
	struct af_tx_pktnum *pn = &port->pn;
	struct af_answered probe = {0};
	uint64_t next = AF_BE64(r->next), base = next > 64u * r->words ? next - 64u * r->words : 0;

	for (uint64_t n = base < pn->judged ? base : pn->judged; n < next; n++) {
		struct af_sent *sent = af_tx_sent(pn, n);

		if (pn->next - n >= AF_TX_RING || !af_path_arrived(r, bitmap, n, base, next))
			continue;
		if (sent->state == AF_SENT_LOST && n >= base) {
			if (!sent->probe && !sent->superseded && !sent->requeued)
				af_path_was_late(pn, n, sent, now);
			af_tx_ack(tx, port, sent);
		} else if (sent->state == AF_SENT_IN_FLIGHT) {
			af_path_on_arrival(tx, port, n, &probe, now);
		}
	}
	return probe;
}

/* Declare frames lost (RFC 9002, section 6.1): those that more frames than the reordering allowance have overtaken, or
 * a probe that was sent later by more than the allowed lateness. */
static inline void
af_path_on_losses(struct af_tx *tx, struct af_tx_port *port, const struct af_answered *probe, uint64_t next)
{
	struct af_tx_pktnum *pn = &port->pn;

	for (uint64_t n = pn->judged; n < next; n++) {
		struct af_sent *sent = af_tx_sent(pn, n);

		if (sent->state == AF_SENT_IN_FLIGHT &&
		    (n + pn->reorder < next || (n < probe->number && sent->sent_ns + pn->late_ns <= probe->sent_ns)))
			af_tx_lost(tx, port, sent);
	}
	af_tx_pktnum_settle(pn);
}

/* A path's record in feedback. */
static inline void
af_tx_on_path(struct af_tx *tx, struct af_tx_port *port, const struct af_path_feedback *r, const uint8_t *bitmap,
	      uint64_t now)
{
	struct af_tx_pktnum *pn = &port->pn;
	uint64_t next = AF_BE64(r->next), sample;
	uint32_t window = AF_BE32(r->window), limit = port->p.tx_window;
	struct af_answered probe;

	if (next > pn->next || next < pn->seen)
		return; /* it claims what was not sent, or is older than what is known */
	probe = af_path_on_acks(tx, port, r, bitmap, now);
	pn->seen = next;
	port->arrived = AF_BE64(r->frames);
	af_pace_on_feedback(&port->pace, next, port->arrived, pn->next, now);
	af_path_on_losses(tx, port, &probe, next);
	if (port->pace.rate_based)
		limit = af_tx_backstop(&port->p);
	else if (window < limit)
		limit = window;
	pn->limit = limit < AF_MAX_WINDOW ? limit : AF_MAX_WINDOW;
	if (pn->limit == 0)
		pn->limit = 1;
	if (pn->acked_ns == now) {
		sample = now + tx->clock_offset_ns - AF_BE64(r->echo_ns) - AF_BE32(r->hold_ns);
		if (sample < 10000000000ull)
			pn->rtt_ns = pn->rtt_ns ? (7 * pn->rtt_ns + sample) / 8 : sample;
	}
}

/* Did another path hear the peer since `ns`? */
static inline bool
af_path_others_hear(const struct af_tx *tx, const struct af_tx_port *port, uint64_t ns)
{
	for (uint32_t p = 0; p < tx->nb_ports; p++)
		if (&tx->ports[p] != port && tx->ports[p].open && !tx->ports[p].suspended &&
		    tx->ports[p].pn.acked_ns > ns)
			return true;
	return false;
}

/* A path that is silent for longer, while others hear the peer, is suspended. */
static inline uint64_t
af_path_patience(const struct af_tx_pktnum *pn)
{
	uint64_t rtt_ns = pn->rtt_ns < AF_PTO_MAX_NS ? pn->rtt_ns : AF_PTO_MAX_NS; /* more was a stop of an end */

	return rtt_ns ? AF_SUSPEND_NS + 4 * rtt_ns : AF_SUSPEND_FIRST_NS;
}

/* Suspend a path that is silent while others are not, and retransmit its chunks elsewhere. */
static inline void
af_tx_watch_path(struct af_tx *tx, struct af_tx_port *port, uint64_t now)
{
	struct af_tx_pktnum *pn = &port->pn;
	uint64_t since, patience = af_path_patience(pn);

	if (port->open && !pn->in_flight && now - pn->sent_ns > AF_PATH_IDLE_NS && pn->limit > AF_FIRST_WINDOW &&
	    !port->p.point_to_point && !port->pace.rate_based)
		pn->limit = AF_FIRST_WINDOW; /* other paths may have that share of the port by now */
	if (!port->open || port->suspended || pn->judged == pn->next)
		return;
	since = af_tx_sent(pn, pn->judged)->sent_ns;
	since = since > pn->acked_ns ? since : pn->acked_ns;
	if (now < since + patience || !af_path_others_hear(tx, port, since + patience / 2))
		return;
	for (uint64_t n = pn->judged; n < pn->next; n++) {
		struct af_sent *sent = af_tx_sent(pn, n);

		if (sent->state == AF_SENT_IN_FLIGHT && !sent->probe) {
			af_tx_lost(tx, port, sent);
			sent->requeued = true;
		}
	}
	port->suspended = true;
	port->answered = 0;
	tx->suspensions++;
}

#endif

/* How a sender finds its receiver.
 *
 * Each port asks by broadcast, with small and full-sized HELLOs. So a path's MTU is proved before data depends on it.
 * Receivers answer with their name, epoch, port and load. Where each port has one possible peer, discovery ends when
 * every port has an answer; else it ends 200 ms after the first answer. Then paths are matched: port i takes the
 * reachable receiver port with the fewest paths, and of equals the one with its own number.
 */
#ifndef AIFLOW_DISCOVERY_H
#define AIFLOW_DISCOVERY_H

#include "aiflow/wire/hello.h"
#include "aiflow/tx/tx_slice.h"
#include "aiflow/tx/tx_state.h"

#define AF_RIVAL_NS 20000000ull /* ours was heard this recently: both receivers exist, and answer one HELLO */
#define AF_MTU_TRIALS 20u /* full-sized HELLOs without an answer, each after a small one with an answer */

/* Does this port end at another receiver's process, and reach no other? */
static inline bool
af_tx_leads_elsewhere(const struct af_tx_port *port)
{
	return port->other_answered && !port->nb_candidates;
}

/* The same, while nothing suggests otherwise. Receivers that share ports are behind the same port: when slices wait for
 * a receiver that is silent, every port looks for it. */
static inline bool
af_tx_is_elsewhere(const struct af_tx *tx, const struct af_tx_port *port, uint64_t now)
{
	return tx->open && af_tx_leads_elsewhere(port) && (!af_tx_busy(tx) || now - tx->heard_ns < AF_DISCOVERY_NS);
}

static inline bool
af_tx_hello_due(const struct af_tx *tx, const struct af_tx_port *port, uint64_t now)
{
	uint64_t interval = now - port->attached_ns < 1000000000ull ? AF_HELLO_NS : AF_HELLO_SLOW_NS;

	if (port->open) {
		/* A peer that restarted answers HELLOs; one that lives answers probes. */
		interval = AF_DISCOVERY_NS;
		if (!af_tx_busy(tx) || now - tx->heard_ns < interval)
			return false;
	} else if (af_tx_is_elsewhere(tx, port, now)) {
		interval = AF_HEARTBEAT_NS;
	}
	return !tx->closing && (port->hello_ns == 0 || now - port->hello_ns >= af_unevenly(interval, port->hellos));
}

static inline uint32_t
af_tx_hello(struct af_tx *tx, uint32_t p, uint64_t now, uint8_t *frame)
{
	struct af_tx_port *port = &tx->ports[p];
	struct af_hello h = {
		.port = AF_BE16((uint16_t)p),
		.nb_ports = AF_BE16((uint16_t)tx->nb_expected),
		.frame_size = AF_BE16(port->p.frame_size),
		.sender = AF_BE64(tx->instance),
	};
	struct af_frame f = {.number = ++tx->hello_number, .timestamp_ns = now + tx->clock_offset_ns};
	bool full = __builtin_parity(port->hellos++); /* 0110 1001 …: a sequence without a period */

	port->mtu_trials += full && port->small_answered;
	port->small_answered &= !full;
	port->hello_ns = now;
	if (!tx->number)
		tx->number = af_numbers_mint(tx->numbers);
	h.session = AF_BE32(tx->number);
	return af_hello_write(frame, port->p.mac, af_broadcast, f, &h, tx->name, tx->to, full ? port->path_size : 0);
}

/* Paths that a receiver's port has already. */
static inline uint32_t
af_tx_paths_at(const struct af_tx *tx, const struct af_candidate *c)
{
	uint32_t load = c->nb_paths;

	for (uint32_t p = 0; p < tx->nb_ports; p++)
		load += tx->ports[p].open && tx->ports[p].remote_port == c->port;
	return load;
}

/* Fewer paths are better. Of equals the port with our own index is better: hosts with ports of unequal speed are paired
 * straight. */
static inline bool
af_tx_better(const struct af_tx *tx, const struct af_tx_port *port, const struct af_candidate *c,
	     const struct af_candidate *best)
{
	uint32_t load = af_tx_paths_at(tx, c), least = af_tx_paths_at(tx, best);

	return load < least || (load == least && c->port == port - tx->ports);
}

static inline void
af_tx_open_path(struct af_tx *tx, struct af_tx_port *port)
{
	struct af_candidate *best = NULL;
	uint32_t window;

	for (uint32_t i = 0; i < port->nb_candidates; i++) {
		struct af_candidate *c = &port->candidates[i];

		if (c->epoch == tx->epoch && (!best || af_tx_better(tx, port, c, best)))
			best = c;
	}
	if (!best || (tx->payload_bytes && port->path_size - AF_HEADER < tx->payload_bytes))
		return;
	window = best->window < port->p.tx_window ? best->window : port->p.tx_window;
	if (!port->p.point_to_point && window > AF_FIRST_WINDOW)
		window = AF_FIRST_WINDOW; /* there may be many senders: the first feedback grants more */
	if (port->pace.rate_based)
		window = af_tx_backstop(&port->p);
	memcpy(port->dst, best->mac, 6);
	port->remote_port = best->port;
	port->backoff = 0;
	port->suspended = false;
	af_tx_pktnum_reset(&port->pn, window, tx->next_number[port - tx->ports]);
	af_pace_reset(&port->pace);
	port->arrived = port->began[0] = port->began[1] = 0;
	port->open = true;
}

/* Forget the answers of an instance that is gone. */
static inline void
af_tx_forget_epoch(struct af_tx *tx, uint64_t epoch)
{
	for (uint32_t p = 0; p < tx->nb_ports; p++) {
		struct af_tx_port *port = &tx->ports[p];

		for (uint32_t i = 0; i < port->nb_candidates;)
			if (port->candidates[i].epoch == epoch)
				port->candidates[i] = port->candidates[--port->nb_candidates];
			else
				i++;
	}
}

/* Forget the answers of a receiver that goes before the session that it minted has begun. */
static inline void
af_tx_forget_session(struct af_tx *tx, uint32_t session)
{
	bool others = false;

	for (uint32_t p = 0; p < tx->nb_ports; p++) {
		struct af_tx_port *port = &tx->ports[p];

		for (uint32_t i = 0; i < port->nb_candidates;)
			if (port->candidates[i].session == session)
				port->candidates[i] = port->candidates[--port->nb_candidates];
			else
				i++;
		others |= port->nb_candidates > 0;
	}
	if (!others)
		tx->first_answer_ns = 0;
}

static inline struct af_rival
af_tx_rival(const struct af_candidate *c)
{
	struct af_rival rival = {.epoch = c->epoch};

	memcpy(rival.name, c->name, sizeof rival.name);
	memcpy(rival.mac, c->mac, 6);
	return rival;
}

/* Another instance with our receiver's name answered. If ours stays silent, it restarted as that one. If ours is heard,
 * both exist, and the session goes on. */
static inline void
af_tx_watch_suspect(struct af_tx *tx, uint64_t now)
{
	if (!tx->suspect_ns)
		return;
	if (tx->open && tx->heard_ns >= tx->suspect_ns)
		tx->rivals[0] = tx->suspect;
	if (!tx->open || tx->heard_ns >= tx->suspect_ns)
		tx->suspect_ns = 0;
	else if (now - tx->suspect_ns > AF_DISCOVERY_NS)
		af_tx_lose_session(tx, AF_TX_RESTARTED, now);
}

/* Remember a receiver of another name, for the error text. */
static inline void
af_tx_note_other(struct af_tx *tx, const char *name)
{
	for (uint32_t i = 0; i < AF_OTHERS; i++) {
		if (!strcmp(tx->others[i], name))
			return;
		if (!tx->others[i][0]) {
			memcpy(tx->others[i], name, AF_NAME_BYTES);
			return;
		}
	}
}

/* What the answers of all ports say together. */
struct af_tx_survey {
	const struct af_candidate *first; /* NULL: no answer yet */
	uint32_t attached, answered;      /* ports that may lead to it, and those with an answer */
	uint32_t elsewhere;               /* ports that lead to other receivers */
	uint32_t size;                    /* the largest frame that all of these take */
	bool point_to_point;              /* each port has a single possible peer */
	bool contradiction;               /* two receivers, or one in the other's place */
};

/* When a receiver was heard last, over any port. */
static inline uint64_t
af_tx_epoch_heard(const struct af_tx *tx, uint64_t epoch)
{
	uint64_t heard_ns = 0;

	for (uint32_t p = 0; p < tx->nb_ports; p++)
		for (uint32_t i = 0; i < tx->ports[p].nb_candidates; i++)
			if (tx->ports[p].candidates[i].epoch == epoch)
				heard_ns = af_later(heard_ns, tx->ports[p].candidates[i].heard_ns);
	return heard_ns;
}

/* Compare one answer with the first. False when one of them is out of date: its answers are forgotten. */
static inline bool
af_tx_compare(struct af_tx *tx, struct af_tx_survey *survey, const struct af_candidate *c)
{
	const struct af_candidate *first = survey->first;
	uint64_t first_heard, c_heard; /* this port may have died since */

	if (first->epoch == c->epoch)
		return true;
	first_heard = af_tx_epoch_heard(tx, first->epoch);
	c_heard = af_tx_epoch_heard(tx, c->epoch);
	if (first_heard + AF_DISCOVERY_NS < c_heard || c_heard + AF_DISCOVERY_NS < first_heard) {
		af_tx_forget_epoch(tx, first_heard < c_heard ? first->epoch : c->epoch);
		return false;
	}
	survey->contradiction = true;
	if (first_heard > c->first_ns &&
	    c_heard > first->first_ns) { /* each was heard after the other: there are two */
		tx->trouble = AF_TX_AMBIGUOUS;
		tx->rivals[0] = af_tx_rival(first);
		tx->rivals[1] = af_tx_rival(c);
	}
	return true;
}

/* Gather the answers. False when some were forgotten. */
static inline bool
af_tx_take_survey(struct af_tx *tx, struct af_tx_survey *survey)
{
	*survey = (struct af_tx_survey){.size = AF_MAX_FRAME, .point_to_point = true};
	for (uint32_t p = 0; p < tx->nb_ports; p++) {
		struct af_tx_port *port = &tx->ports[p];

		if (!port->p.attached)
			continue;
		if (af_tx_leads_elsewhere(port)) {
			survey->elsewhere++;
			continue;
		}
		survey->attached++;
		survey->point_to_point &= port->p.point_to_point;
		if (port->nb_candidates && port->path_size < survey->size)
			survey->size = port->path_size;
		survey->answered += port->nb_candidates > 0;
		for (uint32_t i = 0; i < port->nb_candidates; i++) {
			if (!survey->first)
				survey->first = &port->candidates[i];
			else if (!af_tx_compare(tx, survey, &port->candidates[i]))
				return false;
		}
		if (!port->nb_candidates && port->mtu_trials > AF_MTU_TRIALS)
			tx->trouble = AF_TX_MTU;
	}
	return true;
}

/* Begin the session that the receiver minted, with a path for each port that has an answer. */
static inline void
af_tx_open_session(struct af_tx *tx, const struct af_tx_survey *survey, uint64_t now)
{
	tx->trouble = AF_TX_OK;
	tx->epoch = survey->first->epoch;
	tx->session = survey->first->session;
	tx->keeps_mbufs = survey->first->keeps_mbufs;
	memcpy(tx->receiver, survey->first->name, sizeof tx->receiver);
	tx->payload_bytes = 0;
	for (uint32_t p = 0; p < tx->nb_ports; p++)
		if (tx->ports[p].p.attached)
			af_tx_open_path(tx, &tx->ports[p]);
	tx->payload_bytes = survey->size - AF_HEADER;
	af_crc_shift_of(&tx->full, tx->payload_bytes, af_crc_power(tx->payload_bytes));
	tx->first_id = tx->next_id = 1;
	tx->opened_ns = tx->heard_ns = now;
	tx->suspect_ns = 0;
	memset(tx->rivals, 0, sizeof tx->rivals);
	memset(tx->others, 0, sizeof tx->others);
	tx->open = true;
	tx->changed = true;
}

static inline void
af_tx_discover(struct af_tx *tx, uint64_t now)
{
	struct af_tx_survey survey;
	bool complete;

	if (!af_tx_take_survey(tx, &survey) || !survey.first || survey.contradiction)
		return;
	complete = survey.point_to_point && survey.answered == survey.attached &&
		   survey.attached + survey.elsewhere >= tx->nb_expected;
	if (complete || now - tx->first_answer_ns >= AF_DISCOVERY_NS)
		af_tx_open_session(tx, &survey, now);
}

/* Another instance answers with our receiver's name: ours restarted, or there are two (af_tx_watch_suspect). */
static inline void
af_tx_note_suspect(struct af_tx *tx, const struct af_candidate *c, uint64_t now)
{
	if (strcmp(c->name, tx->receiver))
		return;
	tx->suspect = af_tx_rival(c);
	if (now - tx->heard_ns <= AF_RIVAL_NS)
		tx->rivals[0] = tx->suspect;
	else if (!tx->suspect_ns)
		tx->suspect_ns = now;
}

/* Does the answer prove that a full frame passes the path? Settles the size of frames on the way. */
static inline bool
af_tx_proves_size(struct af_tx *tx, struct af_tx_port *port, const struct af_hello *h)
{
	if (AF_BE16(h->frame_size) < port->path_size) {
		if (tx->fixed_frame_size) {
			tx->trouble = AF_TX_MTU;
			return false;
		}
		port->path_size = AF_BE16(h->frame_size);
	}
	if (AF_BE16(h->heard_bytes) < port->path_size) {
		port->small_answered = true;
		return false;
	}
	return true;
}

/* Keep an answer, in place of the same port's older one. False when there is no room. */
static inline bool
af_tx_keep_candidate(struct af_tx *tx, struct af_tx_port *port, struct af_candidate *c, uint64_t now)
{
	uint32_t i;

	for (i = 0; i < port->nb_candidates; i++)
		if (!memcmp(port->candidates[i].mac, c->mac, 6) && port->candidates[i].port == c->port &&
		    port->candidates[i].epoch == c->epoch)
			break; /* another epoch is another receiver of that port, or it came back: see af_tx_compare */
	if (i == AF_MAX_PORTS)
		return false;
	if (i == port->nb_candidates) {
		port->nb_candidates++;
		port->answered_ns = port->answered_ns ? port->answered_ns : now;
		port->candidates[i].first_ns = now;
	}
	c->first_ns = port->candidates[i].first_ns;
	port->candidates[i] = *c;
	if (!tx->first_answer_ns)
		tx->first_answer_ns = now;
	return true;
}

static inline enum af_drop
af_tx_on_hello(struct af_tx *tx, struct af_tx_port *port, const struct af_frame *f, uint64_t now)
{
	struct af_candidate c = {0};
	struct af_hello h;
	char to[AF_NAME_BYTES];
	enum af_drop drop = af_hello_read(f, &h, c.name, to);

	if (drop != AF_OK)
		return drop;
	if (!h.answer || AF_BE64(h.sender) != tx->instance || f->session != tx->number)
		return AF_OK; /* it concerns another sender */
	if (!h.session || (tx->to[0] && strcmp(tx->to, c.name))) {
		af_tx_note_other(tx, c.name);
		port->other_answered = port->p.point_to_point;
		return AF_OK;
	}
	if (AF_BE16(h.frame_size) < AF_MIN_PATH_FRAME)
		return AF_DROP_HELLO;
	c.epoch = AF_BE64(h.epoch);
	c.session = AF_BE32(h.session);
	memcpy(c.mac, f->src, 6);
	if (tx->open && c.epoch != tx->epoch) {
		af_tx_note_suspect(tx, &c, now);
		return AF_OK;
	}
	if (tx->open && c.session != tx->session) {
		af_tx_lose_session(tx, AF_TX_RESTARTED, now); /* it took us for dead, and counts us as new */
		return AF_OK;
	}
	if (!af_tx_proves_size(tx, port, &h))
		return AF_OK;
	c.port = AF_BE16(h.port);
	c.nb_paths = AF_BE16(h.nb_paths);
	c.window = AF_BE32(h.window);
	c.keeps_mbufs = h.keeps_mbufs;
	c.heard_ns = now;
	if (!af_tx_keep_candidate(tx, port, &c, now))
		return AF_DROP_BUSY;
	if (tx->open && !port->open && (port->p.point_to_point || now - port->answered_ns >= AF_DISCOVERY_NS))
		af_tx_open_path(tx, port);
	if (tx->open) {
		tx->heard_ns = now;
		if (port->open && c.port == port->remote_port)
			memcpy(port->dst, c.mac, 6); /* no CRC covers the MAC that we had: it may have been damaged */
	}
	return AF_OK;
}

#endif

/* The receiver's side of discovery: HELLOs open sessions, and are answered. */
#ifndef AIFLOW_RX_HELLO_H
#define AIFLOW_RX_HELLO_H

#include "aiflow/wire/hello.h"
#include "aiflow/rx/rx_lifetime.h"
#include "aiflow/rx/rx_state.h"

#define AF_COURTESY_NS 50000000ull /* between two answers to senders that ask for another receiver */

/* Forget the session that is missed least: one that ended, else one of a silent sender, else one that has sent nothing
 * yet. Of equals the one that was heard longest ago. Sessions of other senders stay. */
static inline void
af_rx_make_room(struct af_rx *rx)
{
	uint32_t found = 0, least = 3;

	for (uint32_t i = 0; i < rx->nb_sessions; i++) {
		const struct af_rx_session *session = rx->sessions[i];
		uint32_t rank = session->closed ? 0 : session->silenced ? 1 : !session->spoke ? 2 : 3;

		if (rank < least || (rank == least && rank < 3 && session->heard_ns < rx->sessions[found]->heard_ns)) {
			least = rank;
			found = i;
		}
	}
	if (least < 3)
		af_rx_forget(rx, found);
}

/* The session of a sender's instance, which has minted the number `peer`. A restarted sender is another instance. */
static inline struct af_rx_session *
af_rx_open_session(struct af_rx *rx, uint64_t sender, uint32_t peer, const char *name, uint64_t now)
{
	struct af_rx_session *session;
	bool spoke = false;

	for (uint32_t i = 0; i < rx->nb_sessions; i++)
		if (rx->sessions[i]->sender == sender)
			return rx->sessions[i];
	/* A sender's next session replaces the earlier one, also among the senders that were counted. */
	for (uint32_t i = 0; i < rx->nb_sessions; i++) {
		if (rx->sessions[i]->sender >> AF_LIFE_BITS != sender >> AF_LIFE_BITS)
			continue;
		if ((int16_t)(uint16_t)(sender - rx->sessions[i]->sender) < 0)
			return NULL;
		spoke |= rx->sessions[i]->spoke && !rx->sessions[i]->closed;
		rx->sessions[i]->spoke = false;
		rx->sessions[i]->writer = 0; /* it began another session: it writes nothing for this one */
		af_rx_forget(rx, i--);
	}
	if (rx->arena->fenced)
		af_arena_lift(rx->arena, af_rx_writer_of(sender, 0));
	if (rx->nb_sessions == AF_SESSIONS)
		af_rx_make_room(rx);
	if (rx->nb_sessions == AF_SESSIONS || !(session = calloc(1, sizeof *session)))
		return NULL;
	session->id = af_numbers_mint(rx->numbers);
	session->peer = peer;
	session->sender = sender;
	session->spoke = spoke;
	session->heard_ns = now;
	session->asked = session->granted = session->done = session->confirmed = 1;
	memcpy(session->name, name, AF_NAME_BYTES);
	rx->sessions[rx->nb_sessions++] = session;
	return session;
}

/* May a sender of another receiver be answered now? Such answers are rate-limited. */
static inline bool
af_rx_is_courteous(struct af_rx *rx, uint64_t now)
{
	if (now - rx->courtesy_ns < AF_COURTESY_NS)
		return false;
	rx->courtesy_ns = now;
	return true;
}

/* A HELLO of another wire version is answered with one of ours, so that its user learns of the difference. */
static inline void
af_rx_on_other_version(struct af_rx *rx, uint32_t p, const uint8_t *frame, uint64_t now)
{
	struct af_answer *answer = &rx->answers[rx->answers_tail % AF_ANSWERS];

	if ((frame[14] & 15) != AF_HELLO || memcmp(frame, af_broadcast, 6) || (frame[6] & 1) ||
	    rx->answers_tail - rx->answers_head == AF_ANSWERS || !af_rx_is_courteous(rx, now))
		return;
	*answer = (struct af_answer){.port = p};
	memcpy(answer->mac, frame + 6, 6);
	rx->answers_tail++;
}

/* Where to reach a sender of which no frame has come yet. */
static inline void
af_rx_note_asked(struct af_rx_session *session, uint32_t p, uint32_t index, const uint8_t *mac)
{
	struct af_rx_path *path = &session->paths[index];

	if (path->known)
		return;
	path->asked = true;
	path->port = (uint8_t)p;
	memcpy(path->mac, mac, 6);
	if (session->nb_paths <= index)
		session->nb_paths = index + 1;
}

/* The same for a HELLO of another format: what every format begins with says who asks. */
static inline void
af_rx_on_other_format(struct af_rx *rx, uint32_t p, const struct af_frame *f, uint64_t now)
{
	struct af_answer *answer = &rx->answers[rx->answers_tail % AF_ANSWERS];
	struct af_hello h;

	if (f->nbytes < offsetof(struct af_hello, keeps_mbufs))
		return;
	memcpy(&h, f->payload, offsetof(struct af_hello, keeps_mbufs));
	if (h.format == AF_HELLO_FORMAT || h.answer || rx->answers_tail - rx->answers_head == AF_ANSWERS ||
	    !af_rx_is_courteous(rx, now))
		return;
	*answer = (struct af_answer){.port = p, .peer = AF_BE32(h.session)};
	memcpy(answer->mac, f->src, 6);
	rx->answers_tail++;
}

static inline enum af_drop
af_rx_on_hello(struct af_rx *rx, uint32_t p, const struct af_frame *f, uint64_t now)
{
	struct af_rx_session *session;
	struct af_answer *answer;
	struct af_hello h;
	char name[AF_NAME_BYTES] = {0}, to[AF_NAME_BYTES];

	enum af_drop drop = f->src[0] & 1 ? AF_DROP_HELLO : af_hello_read(f, &h, name, to);

	if (drop == AF_DROP_VERSION)
		af_rx_on_other_format(rx, p, f, now);
	if (drop != AF_OK || h.answer)
		return drop;
	if (!h.session)
		return AF_DROP_HELLO;
	if (rx->parting)
		return AF_OK; /* it is not there for another session */
	if (rx->answers_tail - rx->answers_head == AF_ANSWERS)
		return AF_DROP_BUSY;
	answer = &rx->answers[rx->answers_tail % AF_ANSWERS];
	*answer = (struct af_answer){.sender = AF_BE64(h.sender),
				     .peer = AF_BE32(h.session),
				     .port = p,
				     .heard_bytes = (uint16_t)f->frame_bytes};
	memcpy(answer->mac, f->src, 6);
	if (to[0] && strcmp(to, rx->name)) { /* it asks for another: the answer only tells its user our name */
		rx->answers_tail += af_rx_is_courteous(rx, now);
		return AF_OK;
	}
	session = af_rx_open_session(rx, AF_BE64(h.sender), answer->peer, name, now);
	if (!session)
		return AF_DROP_BUSY;
	if (session->peer != answer->peer) /* a life has one number */
		return AF_DROP_HELLO;
	if (!af_rx_knows(session, f->src)) {
		if (session->nb_macs == AF_MAX_PORTS)
			return AF_DROP_BUSY;
		memcpy(session->macs[session->nb_macs++], f->src, 6);
	}
	af_rx_note_asked(session, p, AF_BE16(h.port), f->src);
	session->ports |= 1u << p;
	if (rx->ports[p].p.writer)
		session->writer = session->writer && session->writer != rx->ports[p].p.writer ? AF_WRITER_SEVERAL
											      : rx->ports[p].p.writer;
	session->heard_ns = now;
	answer->session = session->id;
	rx->answers_tail++;
	return AF_OK;
}

static inline uint32_t
af_rx_answer(struct af_rx *rx, uint32_t p, uint64_t now, uint8_t *frame)
{
	struct af_rx_port *port = &rx->ports[p];
	const struct af_answer *answer = &rx->answers[rx->answers_head % AF_ANSWERS];
	struct af_rx_session *session = answer->session ? af_rx_session_of(rx, answer->session) : NULL;
	struct af_frame f = {.session = answer->peer, .timestamp_ns = now + rx->clock_offset_ns};
	uint32_t others = port->nb_paths;
	struct af_hello h;

	if (answer->port != p && rx->ports[answer->port].p.attached)
		return 0; /* another port sends it */
	rx->answers_head++;
	if (answer->port != p || (answer->session && !session))
		return 0;
	for (uint32_t i = 0; session && i < session->nb_paths; i++)
		others -= session->paths[i].known && session->paths[i].port == p && others;
	h = (struct af_hello){
		.answer = 1,
		.keeps_mbufs = rx->keeps_mbufs,
		.port = AF_BE16((uint16_t)p),
		.nb_ports = AF_BE16((uint16_t)rx->nb_ports),
		.frame_size = AF_BE16(port->p.frame_size),
		.heard_bytes = AF_BE16(answer->heard_bytes),
		.nb_paths = AF_BE16((uint16_t)others),
		.window = AF_BE32(port->p.rx_ring),
		.session = AF_BE32(answer->session),
		.sender = AF_BE64(answer->sender),
		.epoch = AF_BE64(rx->epoch),
	};
	f.number = ++rx->hello_number;
	return af_hello_write(frame, port->p.mac, answer->mac, f, &h, rx->name, "", 0);
}

#endif

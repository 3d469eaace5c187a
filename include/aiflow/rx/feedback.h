/* What a receiver says: answers to HELLOs and reports. */
#ifndef AIFLOW_REPORT_H
#define AIFLOW_REPORT_H

#include "aiflow/wire/hello.h"
#include "aiflow/rx/rx_state.h"
#include "aiflow/rx/credit_share.h"

#define AF_TEXTS_NS 20000000ull    /* between two times that all texts are told */
#define AF_COURTESY_NS 50000000ull /* between two answers to senders that ask for another receiver */

/* A session is told from its sender's instance; a restarted sender is another one. */
static inline struct af_rx_session *
af_rx_open_session(struct af_rx *rx, uint64_t sender, const uint8_t *mac, const char *name, uint64_t now)
{
	struct af_rx_session *session;
	bool spoke = false;

	for (uint32_t i = 0; i < rx->nb_sessions; i++)
		if (rx->sessions[i]->sender == sender)
			return rx->sessions[i];
	/* A sender's later life ends the earlier one, and takes its place among those that were seen. */
	for (uint32_t i = 0; i < rx->nb_sessions; i++) {
		if (rx->sessions[i]->sender >> AF_LIFE_BITS != sender >> AF_LIFE_BITS)
			continue;
		if ((int16_t)(uint16_t)(sender - rx->sessions[i]->sender) < 0)
			return NULL;
		spoke |= rx->sessions[i]->spoke && !rx->sessions[i]->closed;
		rx->sessions[i]->spoke = false;
		af_rx_forget(rx, i--);
	}
	/* Silent for longer than a heartbeat and the same MAC: its sender has died and come back. */
	for (uint32_t i = 0; i < rx->nb_sessions; i++)
		if (af_rx_knows(rx->sessions[i], mac) && now - rx->sessions[i]->heard_ns > 2 * AF_HEARTBEAT_NS)
			af_rx_forget(rx, i--);
	if (rx->nb_sessions == AF_SESSIONS)
		for (uint32_t i = 0; i < rx->nb_sessions; i++)
			if (!rx->sessions[i]->spoke || rx->sessions[i]->closed || rx->sessions[i]->silenced) {
				af_rx_forget(rx, i);
				break;
			}
	if (rx->nb_sessions == AF_SESSIONS || !(session = calloc(1, sizeof *session)))
		return NULL;
	do
		session->id = rx->next_session++;
	while (session->id == 0 || af_rx_session_of(rx, session->id)); /* 0 is nobody's */
	session->sender = sender;
	session->spoke = spoke;
	session->heard_ns = now;
	session->asked = session->granted = session->done = session->confirmed = 1;
	memcpy(session->name, name, AF_NAME_BYTES);
	rx->sessions[rx->nb_sessions++] = session;
	return session;
}

/* May a sender be answered now that is none of ours? */
static inline bool
af_rx_is_courteous(struct af_rx *rx, uint64_t now)
{
	if (now - rx->courtesy_ns < AF_COURTESY_NS)
		return false;
	rx->courtesy_ns = now;
	return true;
}

/* A HELLO of another version of the wire asks: ours is the answer, so that its sender's user learns that we are of
 * another. */
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

static inline enum af_drop
af_rx_on_hello(struct af_rx *rx, uint32_t p, const struct af_frame *f, uint64_t now)
{
	struct af_rx_session *session;
	struct af_answer *answer;
	struct af_hello h;
	char name[AF_NAME_BYTES] = {0}, to[AF_NAME_BYTES];

	if (!af_hello_read(f, &h, name, to) || (f->src[0] & 1))
		return AF_DROP_HELLO;
	if (h.answer)
		return AF_OK;
	if (rx->answers_tail - rx->answers_head == AF_ANSWERS)
		return AF_DROP_BUSY;
	answer = &rx->answers[rx->answers_tail % AF_ANSWERS];
	*answer = (struct af_answer){.sender = AF_BE64(h.sender), .port = p, .heard_bytes = (uint16_t)f->frame_bytes};
	memcpy(answer->mac, f->src, 6);
	if (to[0] && strcmp(to, rx->name)) { /* it asks for another: only so that its user learns who is there */
		rx->answers_tail += af_rx_is_courteous(rx, now);
		return AF_OK;
	}
	session = af_rx_open_session(rx, AF_BE64(h.sender), f->src, name, now);
	if (!session)
		return AF_DROP_BUSY;
	if (!af_rx_knows(session, f->src)) {
		if (session->nb_macs == AF_MAX_PORTS)
			return AF_DROP_BUSY;
		memcpy(session->macs[session->nb_macs++], f->src, 6);
	}
	session->ports |= 1u << p;
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
	uint32_t others = port->nb_paths;
	struct af_hello h;

	if (answer->port != p && rx->ports[answer->port].p.attached)
		return 0; /* its port's turn comes */
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
	return af_hello_write(frame, port->p.mac, answer->mac, &h, rx->name, "", 0, now + rx->clock_offset_ns);
}

static inline uint8_t *
af_rx_feedback_path(const struct af_rx *rx, struct af_rx_path *path, uint32_t index, uint64_t now, uint8_t *at)
{
	uint32_t words = af_rx_pktnum_words(&path->pn);
	uint64_t hold = now - path->heard_ns;
	struct af_path_feedback r = {
		.path = AF_BE16((uint16_t)index),
		.words = (uint8_t)words,
		.window = AF_BE32(af_credit_share_window(rx, path, now)),
		.next = AF_BE64(path->pn.next),
		.frames = AF_BE64(path->frames),
		.echo_ns = AF_BE64(path->echo_ns),
		.hold_ns = AF_BE32(hold < 0xffffffffu ? (uint32_t)hold : 0xffffffffu),
	};

	memcpy(at, &r, sizeof r);
	at += sizeof r;
	for (uint32_t k = 0; k < words; k++, at += 8) {
		uint64_t word = AF_BE64(af_rx_pktnum_word(&path->pn, words, k));

		memcpy(at, &word, 8);
	}
	path->news = 0;
	path->urgent = false;
	path->feedback_ns = now;
	return at;
}

/* The oldest slice that flows, and the first chunk that it lacks. */
static inline void
af_rx_ask_for(const struct af_rx_session *session, struct af_feedback *r)
{
	const struct af_rx_slot *slot = &session->slots[session->done % AF_RX_SLOTS];
	uint32_t chunk = 0;

	if (slot->id != session->done || slot->state != AF_RX_FLOWING)
		return;
	for (uint32_t i = 0; i <= slot->slice->nb_chunks / 64; i++) {
		if (~slot->slice->bitmap[i]) {
			chunk = i * 64 + (uint32_t)__builtin_ctzll(~slot->slice->bitmap[i]);
			break;
		}
	}
	r->ask_slice = AF_BE32(slot->id);
	r->ask_chunk = AF_BE32(chunk);
}

/* Why most frames were dropped, of reasons that hint at what is wrong. */
static inline uint8_t
af_rx_main_drop(const struct af_rx *rx)
{
	static const uint8_t telling[] = {AF_DROP_LENGTH,  AF_DROP_MTU,      AF_DROP_HEADER, AF_DROP_VLAN, AF_DROP_KIND,
					  AF_DROP_VERSION, AF_DROP_SEGMENTS, AF_DROP_CRC,    AF_DROP_SIZE};
	uint8_t most = AF_OK;

	for (size_t i = 0; i < sizeof telling; i++)
		if (rx->drops[telling[i]] > (most ? rx->drops[most] : 0))
			most = telling[i];
	return most;
}

/* The next piece of a text that its sender may not have heard, at the report's end. */
static inline uint8_t *
af_rx_feedback_text(struct af_rx_session *session, struct af_feedback *r, uint8_t *at, size_t room)
{
	if (!room || !session->text_due)
		return at;
	for (uint32_t i = 0; i <= AF_RX_SLOTS; i++) {
		struct af_rx_text *text = &session->texts[session->text_slot];
		uint32_t left = text->nbytes > session->text_at ? text->nbytes - session->text_at : 0;

		if (!left || !af_before(session->newest, text->slice + AF_SLICES_IN_FLIGHT)) {
			session->text_slot = (session->text_slot + 1) % AF_RX_SLOTS;
			session->text_at = 0;
			continue;
		}
		left = left < room ? left : (uint32_t)room;
		r->text_slice = AF_BE32(text->slice);
		r->text_total = AF_BE16((uint16_t)text->nbytes);
		r->text_at = AF_BE16((uint16_t)session->text_at);
		r->text_bytes = AF_BE16((uint16_t)left);
		memcpy(at, text->bytes + session->text_at, left);
		session->text_at += left;
		session->text_due -= left < session->text_due ? left : session->text_due;
		return at + left;
	}
	session->text_due = 0; /* all is told */
	return at;
}

/* State of one session: of the path that triggered it, of every path that has news, and after a probe of all: a path's
 * own reports may be lost for good, where only its way back is dead. */
static inline uint32_t
af_rx_feedback(struct af_rx *rx, struct af_rx_session *session, uint32_t first, bool probed, uint64_t now,
	       uint8_t *frame)
{
	struct af_rx_path *path = &session->paths[first];
	struct af_frame f = {.kind = session->granted_now ? AF_GRANT : AF_FEEDBACK,
			     .end = 1,
			     .path = (uint16_t)first,
			     .session = session->id,
			     .number = ++session->number,
			     .timestamp_ns = now + rx->clock_offset_ns};
	uint32_t frame_size = rx->ports[path->port].p.frame_size;
	size_t limit = frame_size < AF_FEEDBACK_BYTES ? frame_size : AF_FEEDBACK_BYTES;
	struct af_feedback r = {.granted = AF_BE32(session->granted),
				.done = AF_BE32(session->done),
				.confirmed = AF_BE32(session->confirmed)};
	uint8_t *at = frame + AF_HEADER + sizeof r;

	r.free_bytes = AF_BE64(rx->arena->limit > rx->arena->used ? rx->arena->limit - rx->arena->used : 0);
	memcpy(r.voids, session->voids, sizeof r.voids);
	r.drop = af_rx_main_drop(rx);
	r.drops = AF_BE32(rx->drops[r.drop] < 0xffffffffu && r.drop ? (uint32_t)rx->drops[r.drop] : 0);
	if (probed) {
		af_rx_ask_for(session, &r);
		if (!session->text_due &&
		    now - session->text_ns >= AF_TEXTS_NS) { /* what was told may have been lost */
			session->text_ns = now;
			for (uint32_t i = 0; i < AF_RX_SLOTS; i++)
				session->text_due += session->texts[i].nbytes;
		}
	}
	at = af_rx_feedback_path(rx, path, first, now, at);
	r.nb_paths = 1;
	for (uint32_t i = 0; i < session->nb_paths; i++) {
		struct af_rx_path *other = &session->paths[i];

		if (i == first || !other->known || !(other->news || probed) ||
		    (size_t)(at - frame) + sizeof(struct af_path_feedback) + af_rx_pktnum_words(&other->pn) * 8 > limit)
			continue;
		at = af_rx_feedback_path(rx, other, i, now, at);
		r.nb_paths++;
	}
	at = af_rx_feedback_text(session, &r, at, limit - (size_t)(at - frame));
	memcpy(frame + AF_HEADER, &r, sizeof r);
	f.nbytes = (uint32_t)(at - frame - AF_HEADER);
	session->urgent = session->text_due > 0;
	session->granted_now = false;
	return af_wire_seal(frame, path->mac, rx->ports[path->port].p.mac, &f);
}

static inline uint32_t
af_rx_next_frame(void *state, uint32_t p, uint64_t now, uint8_t *frame)
{
	struct af_rx *rx = state;
	struct af_rx_port *port = &rx->ports[p];
	uint32_t size = 0;

	if (!port->p.attached)
		return 0;
	if (rx->answers_head != rx->answers_tail)
		size = af_rx_answer(rx, p, now, frame);
	for (uint32_t i = 0; i < rx->nb_sessions && !size; i++) {
		struct af_rx_session *session = rx->sessions[i];

		for (uint32_t k = 0; k < session->nb_paths && !size; k++) {
			struct af_rx_path *path = &session->paths[k];
			uint32_t every =
				port->p.rx_ring / 4 < AF_FEEDBACK_FRAMES ? port->p.rx_ring / 4 : AF_FEEDBACK_FRAMES;
			bool probed = path->urgent;

			if (!path->known || path->port != p)
				continue;
			if (path->bye_due) {
				struct af_frame f = {.kind = AF_BYE,
						     .end = 1,
						     .path = (uint16_t)k,
						     .session = session->id,
						     .timestamp_ns = now + rx->clock_offset_ns};

				path->bye_due = false;
				size = af_wire_seal(frame, path->mac, port->p.mac, &f);
			} else if (probed || path->news > every || (session->urgent && session->last_port == p) ||
				   (path->news && now - path->feedback_ns >= AF_FEEDBACK_NS)) {
				size = af_rx_feedback(rx, session, k, probed, now, frame);
			}
		}
	}
	if (size) {
		port->count.tx_frames++;
		port->count.tx_bytes += size;
	}
	return size;
}

#endif

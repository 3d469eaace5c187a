/* What a receiver says: answers to HELLOs and reports. */
#ifndef AIFLOW_REPORT_H
#define AIFLOW_REPORT_H

#include "hello.h"
#include "rx_state.h"
#include "share.h"

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
	session->asked = session->granted = session->done = 1;
	memcpy(session->name, name, AF_NAME_BYTES);
	rx->sessions[rx->nb_sessions++] = session;
	return session;
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
	if (h.answer || (to[0] && strcmp(to, rx->name)))
		return AF_OK; /* somebody else's business */
	if (rx->answers_tail - rx->answers_head == AF_ANSWERS)
		return AF_DROP_BUSY;
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
	answer = &rx->answers[rx->answers_tail++ % AF_ANSWERS];
	*answer = (struct af_answer){.session = session->id, .port = p, .heard_bytes = (uint16_t)f->frame_bytes};
	memcpy(answer->mac, f->src, 6);
	return AF_OK;
}

static inline uint32_t
af_rx_answer(struct af_rx *rx, uint32_t p, uint64_t now, uint8_t *frame)
{
	struct af_rx_port *port = &rx->ports[p];
	const struct af_answer *answer = &rx->answers[rx->answers_head % AF_ANSWERS];
	struct af_rx_session *session = af_rx_session_of(rx, answer->session);
	uint32_t others = port->nb_paths;
	struct af_hello h;

	if (answer->port != p && rx->ports[answer->port].p.attached)
		return 0; /* its port's turn comes */
	rx->answers_head++;
	if (answer->port != p || !session)
		return 0;
	for (uint32_t i = 0; i < session->nb_paths; i++)
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
		.session = AF_BE32(session->id),
		.sender = AF_BE64(session->sender),
		.epoch = AF_BE64(rx->epoch),
	};
	return af_hello_write(frame, port->p.mac, answer->mac, &h, rx->name, "", 0, now + rx->clock_offset_ns);
}

static inline uint8_t *
af_rx_report_path(const struct af_rx *rx, struct af_rx_path *path, uint32_t index, uint64_t now, uint8_t *at)
{
	uint32_t words = af_rx_words(&path->w);
	uint64_t hold = now - path->heard_ns;
	struct af_path_report r = {
		.path = AF_BE16((uint16_t)index),
		.words = (uint8_t)words,
		.window = AF_BE32(af_share_window(rx, path, now)),
		.next = AF_BE64(path->w.next),
		.frames = AF_BE64(path->frames),
		.echo_ns = AF_BE64(path->echo_ns),
		.hold_ns = AF_BE32(hold < 0xffffffffu ? (uint32_t)hold : 0xffffffffu),
	};

	memcpy(at, &r, sizeof r);
	at += sizeof r;
	for (uint32_t k = 0; k < words; k++, at += 8) {
		uint64_t word = AF_BE64(af_rx_word(&path->w, words, k));

		memcpy(at, &word, 8);
	}
	path->news = 0;
	path->urgent = false;
	path->reported_ns = now;
	return at;
}

/* The oldest slice that flows, and the first chunk that it lacks. */
static inline void
af_rx_ask_for(const struct af_rx_session *session, struct af_report *r)
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

/* State of one session: of the path that triggered it, of every path that has news, and after a probe of all: a path's
 * own reports may be lost for good, where only its way back is dead. */
static inline uint32_t
af_rx_report(struct af_rx *rx, struct af_rx_session *session, uint32_t first, bool probed, uint64_t now, uint8_t *frame)
{
	struct af_rx_path *path = &session->paths[first];
	struct af_frame f = {.kind = session->granted_now ? AF_GRANT : AF_FEEDBACK, .end = 1, .path = (uint16_t)first,
			     .session = session->id, .number = ++session->number,
			     .timestamp_ns = now + rx->clock_offset_ns};
	uint32_t frame_size = rx->ports[path->port].p.frame_size;
	size_t limit = frame_size < AF_REPORT_BYTES ? frame_size : AF_REPORT_BYTES;
	struct af_report r = {.granted = AF_BE32(session->granted), .done = AF_BE32(session->done)};
	uint8_t *at = frame + AF_HEADER + sizeof r;

	r.free_bytes = AF_BE64(rx->store->limit > rx->store->used ? rx->store->limit - rx->store->used : 0);
	memcpy(r.voids, session->voids, sizeof r.voids);
	if (probed)
		af_rx_ask_for(session, &r);
	at = af_rx_report_path(rx, path, first, now, at);
	r.nb_paths = 1;
	for (uint32_t i = 0; i < session->nb_paths; i++) {
		struct af_rx_path *other = &session->paths[i];

		if (i == first || !other->known || !(other->news || probed) ||
		    (size_t)(at - frame) + sizeof(struct af_path_report) + af_rx_words(&other->w) * 8 > limit)
			continue;
		at = af_rx_report_path(rx, other, i, now, at);
		r.nb_paths++;
	}
	memcpy(frame + AF_HEADER, &r, sizeof r);
	f.nbytes = (uint32_t)(at - frame - AF_HEADER);
	session->urgent = session->granted_now = false;
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
			uint32_t every = port->p.rx_ring / 4 < AF_REPORT_EVERY ? port->p.rx_ring / 4 : AF_REPORT_EVERY;
			bool probed = path->urgent;

			if (!path->known || path->port != p)
				continue;
			if (path->bye_due) {
				struct af_frame f = {.kind = AF_BYE, .end = 1, .path = (uint16_t)k, .session = session->id,
						     .timestamp_ns = now + rx->clock_offset_ns};

				path->bye_due = false;
				size = af_wire_seal(frame, path->mac, port->p.mac, &f);
			} else if (probed || path->news > every || (session->urgent && session->last_port == p) ||
				   (path->news && now - path->reported_ns >= AF_REPORT_NS)) {
				size = af_rx_report(rx, session, k, probed, now, frame);
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

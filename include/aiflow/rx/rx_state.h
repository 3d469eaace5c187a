/* What a receiver knows: sessions, slices, paths, and how a slice ends. rx.h drives it. */
#ifndef AIFLOW_RX_STATE_H
#define AIFLOW_RX_STATE_H

#include <stdio.h>

#include "aiflow/rt/agent.h"
#include "aiflow/rx/credit.h"
#include "aiflow/wire/manifest.h"
#include "aiflow/rt/sampler.h"
#include "aiflow/rx/arena.h"
#include "aiflow/wire/verdict.h"
#include "aiflow/path/pktnum.h"

#define AF_RX_SLOTS 16u /* twice a sender's slices */
#define AF_SESSIONS 64u
#define AF_ANSWERS 64u
#define AF_FEEDBACK_NS 500000ull      /* the longest that an arrival stays unreported */
#define AF_FEEDBACK_HOLE_NS 100000ull /* between reports that show nothing but new holes */
#define AF_FEEDBACK_FRAMES 32u         /* frames, at the most */
#define AF_FEEDBACK_BYTES 1400u
#define AF_SILENCE_NS 3000000000ull /* a sender silent for so long holds no memory that another waits for */
/* bytes: slices from here on find no room in a core's cache, and are streamed to memory */
#define AF_STREAM_SLICE (1u << 20)
#define AF_STREAM_FRAME 512u        /* … in pieces of at least so many */
#define AF_CLOSED_RETAINED_TIMEOUTS 4u         /* a silent session is remembered for so many peer timeouts */

enum af_rx_state { AF_RX_EMPTY, AF_RX_READING, AF_RX_READ, AF_RX_WAITING, AF_RX_FLOWING, AF_RX_WHOLE, AF_RX_VOID };

struct af_rx_element {
	uint64_t offset; /* in the block */
	uint64_t nbytes;
	uint64_t latency_ns; /* of its slowest frame so far */
	uint32_t first_chunk;
	uint32_t packed; /* elements in its pack, counted from this one; 0: cut into chunks of its own */
};

struct af_kept { /* a payload that stays where the driver put it */
	void *handle;
	const uint8_t *payload;
	uint32_t nbytes;
};

/* Filled by the loop, then owned by whoever took it from the ready list. */
struct af_rx_slice {
	struct af_rx_slice *next, *next_waiting;
	struct af_rx_session *session;
	char sender[AF_NAME_BYTES];
	uint64_t instance;   /* of its sender, the same through all its sessions */
	uint32_t session_id; /* which the user's word is for */
	uint32_t id, manifest_bytes, payload_bytes, nb_manifest, nb_data, nb_chunks, nb_missing, nb_elements;
	uint32_t nb_read; /* manifest pieces */
	bool inlined, closed;
	uint32_t digest;
	uint64_t nbytes, first_ns, whole_ns;
	uint64_t received_bytes;    /* of data, since the grant */
	uint64_t first_latency_ns;  /* of the newest manifest frame: the latency of elements that travel inside it */
	uint64_t inline_bytes_len;  /* bytes that follow the manifest in its only frame */
	uint64_t charge_bytes;      /* what the slice counts in the arena: tables and elements, or mbufs */
	uint8_t *manifest;
	const uint8_t *inline_bytes;
	uint64_t *bitmap;
	struct af_rx_element *elements;
	uint32_t *chunk_crc;
	struct af_kept *kept;
	struct af_arena *arena;
	struct af_block *block;
	uint64_t frames;
};

struct af_rx_slot {
	uint32_t id;
	uint8_t state;
	struct af_rx_slice *slice;
};

enum af_rx_judged { AF_RX_CONFIRMED, AF_RX_PENDING };

struct af_rx_text { /* why a slice is void, in words */
	uint32_t slice;
	uint32_t nbytes; /* 0: none */
	char *bytes;
};

struct af_rx_path {
	bool known;
	uint8_t mac[6];
	uint8_t port;
	bool urgent, bye_due;
	uint32_t news; /* frames since the last report */
	uint64_t echo_ns, heard_ns, feedback_ns, frames, bytes;
	double granted; /* frames; 0: no window was granted yet */
	struct af_credit credit;
	struct af_delay delay;
	struct af_rx_pktnum pn;
};

struct af_rx_session {
	bool closed, spoke, silenced, urgent, granted_now;
	uint32_t id, nb_macs, last_port;
	uint32_t ports; /* bit i: heard over port i */
	uint64_t sender, heard_ns, number;
	char name[AF_NAME_BYTES];
	uint8_t macs[AF_MAX_PORTS][6];
	uint32_t asked, granted, done; /* every slice below has asked, may flow, is finished */
	struct af_rx_slot slots[AF_RX_SLOTS];
	uint32_t confirmed; /* every slice below is where the user wants it, or void */
	uint8_t verdicts[AF_RX_SLOTS]; /* of slices in [confirmed, done) */
	struct af_rx_text texts[AF_RX_SLOTS];
	uint32_t newest; /* the last slice that was begun: its sender has heard of all that is eight older */
	uint32_t text_slot, text_at; /* the next piece to be told */
	uint64_t text_due; /* bytes of texts that were not told yet, or are asked for */
	uint64_t text_ns; /* when what was told was begun again */
	struct af_void voids[AF_NB_VOIDS]; /* wire order */
	uint32_t nb_paths; /* highest known index, plus one */
	struct af_rx_path paths[AF_MAX_PORTS];
};

struct af_answer {
	uint32_t session, port; /* session 0: the sender asked for another receiver */
	uint64_t sender;
	uint8_t mac[6];
	uint16_t heard_bytes;
};

struct af_rx_port {
	struct af_agent_port p;
	struct af_port_counters count;
	uint32_t nb_paths; /* of all sessions */
	struct af_credit credit;
	struct af_trial trial;
	uint64_t step_ns, drain_ns;
	uint32_t sharing; /* paths that the credit is divided among */
	uint64_t sent, arrived; /* numbers that we can have seen, and those that we have */
};

struct af_rx {
	/* control plane, before the loop runs */
	char name[AF_NAME_BYTES];
	uint64_t epoch, peer_timeout_ns, clock_offset_ns;
	bool keeps_mbufs;
	bool confirms; /* a slice is delivered when the user says so, not when it is whole */
	struct af_verdicts *verdicts; /* of the user; NULL: there are none */
	uint64_t mbuf_bytes; /* keeps_mbufs: what one chunk occupies */
	void (*release)(void *handle); /* gives a kept mbuf back */
	struct af_arena *arena;
	/* dataplane: rw */
	struct af_rx_port ports[AF_MAX_PORTS];
	uint32_t nb_ports;
	struct af_rx_session *sessions[AF_SESSIONS];
	uint32_t nb_sessions, next_session, nb_seen, nb_closed, nb_gone, flowing;
	struct af_rx_slice *waiting, **waiting_tail;
	struct af_rx_slice *ready, **ready_tail; /* whole, in order: the engine takes this list */
	struct af_answer answers[AF_ANSWERS];
	uint32_t answers_head, answers_tail;
	uint32_t releases; /* of the store, as of the last look */
	bool waiter_removed; /* a request has gone, and may have stood before one that can be granted */
	uint64_t ticked_ns;
	bool changed;
	uint64_t starving_ns; /* since when a request has been waiting for memory that nobody gives back; 0: none */
	uint64_t starving_bytes;
	_Atomic uint64_t progress_bytes, progress_total;
	struct af_crc_shift full;
	uint64_t drops[AF_NB_DROPS];
	uint64_t courtesy_ns; /* when a sender was last told our name that asks for another */
	uint64_t slices, elements, bytes;
	struct af_sampler sampler;
};

static inline void
af_rx_init(struct af_rx *rx)
{
	memset(rx, 0, sizeof *rx);
	rx->waiting_tail = &rx->waiting;
	rx->ready_tail = &rx->ready;
	rx->next_session = 1;
	af_crc_shift_of(&rx->full, 0, af_crc_power(0));
}

static inline struct af_rx_session *
af_rx_session_of(struct af_rx *rx, uint32_t id)
{
	for (uint32_t i = 0; i < rx->nb_sessions; i++)
		if (rx->sessions[i]->id == id)
			return rx->sessions[i];
	return NULL;
}

/* Did this MAC introduce itself with a HELLO of this session? */
static inline bool
af_rx_knows(const struct af_rx_session *session, const uint8_t *mac)
{
	for (uint32_t i = 0; i < session->nb_macs; i++)
		if (!memcmp(session->macs[i], mac, 6))
			return true;
	return false;
}

/* Give back all that a slice holds. Any thread; the store outlives its slices. */
static inline void
af_rx_slice_free(struct af_rx_slice *s, void (*release)(void *handle))
{
	if (s->kept) {
		for (uint32_t i = 0; i < s->nb_data; i++)
			if (s->kept[i].handle)
				release(s->kept[i].handle);
		free(s->kept);
	}
	if (s->block)
		af_arena_give(s->arena, s->block);
	free(s->manifest);
	free(s->bitmap);
	free(s->elements);
	free(s->chunk_crc);
	free(s);
}

static inline void
af_rx_drop_slot(struct af_rx *rx, struct af_rx_slot *slot, uint8_t state)
{
	struct af_rx_slice *s = slot->slice;

	if (slot->state == AF_RX_FLOWING)
		rx->flowing--;
	if (slot->state == AF_RX_WAITING) {
		struct af_rx_slice **link = &rx->waiting;

		while (*link && *link != s)
			link = &(*link)->next_waiting;
		if (*link) {
			*link = s->next_waiting;
			if (!*link)
				rx->waiting_tail = link;
			rx->waiter_removed = true;
		}
	}
	if (s)
		af_rx_slice_free(s, rx->release);
	slot->slice = NULL;
	slot->state = state;
}

/* ---- what became of it: voids, verdicts, texts ---- */

static inline void
af_rx_void(struct af_rx_session *session, uint32_t slice, uint32_t reason, uint64_t detail)
{
	struct af_void *kept =
		&session->voids[reason == AF_VOID_SILENCE ? AF_SLICES_IN_FLIGHT : slice % AF_SLICES_IN_FLIGHT];

	session->urgent = true;
	if (kept->reason && af_before(slice, AF_BE32(kept->slice)))
		return; /* its sender has given that one up, or it could not have begun the newer one */
	*kept = (struct af_void){.slice = AF_BE32(slice), .reason = AF_BE32(reason), .detail = AF_BE64(detail)};
}

/* Keep a text until its sender has heard of it. Without memory the reason alone is told. */
static inline void
af_rx_keep_text(struct af_rx_session *session, uint32_t slice, const char *text, uint32_t nbytes)
{
	struct af_rx_text *kept = &session->texts[slice % AF_RX_SLOTS];

	free(kept->bytes);
	*kept = (struct af_rx_text){.slice = slice};
	if (session->text_slot == slice % AF_RX_SLOTS)
		session->text_at = 0; /* it stood in the text that was there */
	nbytes = nbytes < AF_TEXT_MOST ? nbytes : AF_TEXT_MOST;
	if (!nbytes || !(kept->bytes = malloc(nbytes)))
		return;
	memcpy(kept->bytes, text, nbytes);
	kept->nbytes = nbytes;
	session->text_due += nbytes;
}

static inline void
af_rx_forget_texts(struct af_rx_session *session)
{
	for (uint32_t i = 0; i < AF_RX_SLOTS; i++) {
		free(session->texts[i].bytes);
		session->texts[i] = (struct af_rx_text){0};
	}
	session->text_due = 0;
}

/* Move `confirmed` past all that has its verdict. */
static inline void
af_rx_settle(struct af_rx_session *session)
{
	while (session->confirmed != session->done &&
	       session->verdicts[session->confirmed % AF_RX_SLOTS] != AF_RX_PENDING)
		session->confirmed++;
}

/* The user's word on a slice that was handed over. */
static inline void
af_rx_judge(struct af_rx_session *session, uint32_t slice, bool failed, const char *text, uint32_t nbytes)
{
	uint8_t *verdict = &session->verdicts[slice % AF_RX_SLOTS];

	if (af_before(slice, session->confirmed) || !af_before(slice, session->done) || *verdict != AF_RX_PENDING)
		return;
	*verdict = AF_RX_CONFIRMED;
	if (failed) {
		af_rx_keep_text(session, slice, text, nbytes);
		af_rx_void(session, slice, AF_VOID_FAILED, session->texts[slice % AF_RX_SLOTS].nbytes);
	}
	af_rx_settle(session);
	session->urgent = true;
}

/* Every slice that still waits for its user's word will have none. */
static inline void
af_rx_fail_pending(struct af_rx *rx, const char *text, uint32_t nbytes)
{
	for (uint32_t i = 0; i < rx->nb_sessions; i++)
		for (uint32_t id = rx->sessions[i]->confirmed; id != rx->sessions[i]->done; id++)
			af_rx_judge(rx->sessions[i], id, true, text, nbytes);
}

static inline void
af_rx_hear_verdicts(struct af_rx *rx)
{
	struct af_verdict *v = rx->verdicts ? af_verdicts_take(rx->verdicts) : NULL;

	while (v) {
		struct af_rx_session *session = af_rx_session_of(rx, v->session);
		struct af_verdict *next = v->next;

		if (session)
			af_rx_judge(session, v->slice, v->failed, v->text, v->nbytes);
		free(v);
		v = next;
	}
}

static inline void
af_rx_refuse(struct af_rx *rx, struct af_rx_session *session, struct af_rx_slot *slot, uint32_t reason, uint64_t detail)
{
	if (reason != AF_VOID_CANCELLED) /* that one is its sender's own word */
		af_rx_void(session, slot->id, reason, detail);
	session->urgent = true;
	af_rx_drop_slot(rx, slot, AF_RX_VOID);
}

/* A sender that goes without a goodbye is counted as one that has closed. */
static inline void
af_rx_count_out(struct af_rx *rx, struct af_rx_session *session)
{
	rx->nb_closed += session->spoke && !session->closed;
	rx->nb_gone += session->spoke && !session->closed;
	session->closed = true;
}

static inline void
af_rx_forget(struct af_rx *rx, uint32_t index)
{
	struct af_rx_session *session = rx->sessions[index];

	for (uint32_t i = 0; i < AF_RX_SLOTS; i++)
		af_rx_drop_slot(rx, &session->slots[i], AF_RX_EMPTY);
	for (uint32_t i = 0; i < session->nb_paths; i++)
		if (session->paths[i].known && rx->ports[session->paths[i].port].nb_paths)
			rx->ports[session->paths[i].port].nb_paths--;
	af_rx_count_out(rx, session);
	af_rx_forget_texts(session);
	free(session);
	rx->sessions[index] = rx->sessions[--rx->nb_sessions];
	rx->changed = true;
}

/* Nothing was heard of this sender for too long: what it had begun is freed. The session stays, to tell it so if it
 * lives. */
static inline void
af_rx_silence(struct af_rx *rx, struct af_rx_session *session)
{
	for (uint32_t i = 0; i < AF_RX_SLOTS; i++)
		af_rx_drop_slot(rx, &session->slots[i], AF_RX_EMPTY);
	af_rx_void(session, session->done, AF_VOID_SILENCE, 0);
	session->silenced = true;
	rx->changed = true;
}

static inline void
af_rx_free(struct af_rx *rx)
{
	while (rx->nb_sessions)
		af_rx_forget(rx, 0);
	while (rx->ready) {
		struct af_rx_slice *s = rx->ready;

		rx->ready = s->next;
		af_rx_slice_free(s, rx->release);
	}
	rx->ready_tail = &rx->ready;
}

/* Does the digest that the sender joined from its chunks agree with ours? */
static inline bool
af_rx_digest_agrees(struct af_rx *rx, const struct af_rx_slice *s)
{
	uint32_t digest = 0, chunk = 0;

	if (s->inlined)
		return true; /* one frame, under that frame's CRC */
	if (rx->full.nbytes != s->payload_bytes)
		af_crc_shift_of(&rx->full, s->payload_bytes, af_crc_power(s->payload_bytes));
	for (uint32_t e = 0; e < s->nb_elements;) {
		const struct af_rx_element *el = &s->elements[e];
		uint64_t rest = el->nbytes;

		if (el->packed) {
			uint32_t last = e + el->packed - 1;

			rest = 0;
			for (; e <= last; e++)
				rest += s->elements[e].nbytes;
			digest = af_crc32c_shift(digest, rest) ^ s->chunk_crc[chunk++];
			continue;
		}
		for (; rest >= s->payload_bytes; rest -= s->payload_bytes)
			digest = af_crc_apply(&rx->full, digest) ^ s->chunk_crc[chunk++];
		if (rest)
			digest = af_crc32c_shift(digest, rest) ^ s->chunk_crc[chunk++];
		e++;
	}
	return digest == s->digest;
}

/* Hand over what is whole and next in its sender's order. */
static inline void
af_rx_advance(struct af_rx *rx, struct af_rx_session *session)
{
	for (;;) {
		struct af_rx_slot *slot = &session->slots[session->done % AF_RX_SLOTS];

		if (slot->id != session->done || (slot->state != AF_RX_WHOLE && slot->state != AF_RX_VOID))
			return;
		if (slot->state == AF_RX_WHOLE) {
			struct af_rx_slice *s = slot->slice;

			s->next = NULL;
			s->session = NULL;
			free(s->bitmap);
			free(s->chunk_crc);
			s->bitmap = NULL;
			s->chunk_crc = NULL;
			*rx->ready_tail = s;
			rx->ready_tail = &s->next;
			rx->slices++;
			rx->elements += s->nb_elements;
			rx->bytes += s->nbytes;
			rx->changed = true;
		}
		session->verdicts[slot->id % AF_RX_SLOTS] =
			slot->state == AF_RX_WHOLE && rx->confirms ? AF_RX_PENDING : AF_RX_CONFIRMED;
		slot->slice = NULL;
		slot->state = AF_RX_EMPTY;
		session->done++;
		af_rx_settle(session);
		if (af_before(session->asked, session->done))
			session->asked = session->done;
		if (af_before(session->granted, session->done))
			session->granted = session->done;
		session->urgent = true;
	}
}

static inline void
af_rx_whole(struct af_rx *rx, struct af_rx_session *session, struct af_rx_slot *slot, uint64_t now)
{
	struct af_rx_slice *s = slot->slice;

	af_copy_settle();
	if (!af_rx_digest_agrees(rx, s)) {
		af_rx_refuse(rx, session, slot, AF_VOID_INTEGRITY, 0);
	} else {
		s->whole_ns = now;
		rx->flowing -= slot->state == AF_RX_FLOWING;
		slot->state = AF_RX_WHOLE;
	}
	af_rx_advance(rx, session);
}

static inline uint64_t
af_rx_latency(const struct af_rx *rx, const struct af_frame *f, uint64_t now)
{
	int64_t latency = (int64_t)(now + rx->clock_offset_ns - f->timestamp_ns);

	return latency > 0 && latency < 3600000000000ll ? (uint64_t)latency : 0; /* clocks that disagree say nothing */
}

/* A sender that has said goodbye sends nothing more: what it had begun is freed. */
static inline void
af_rx_end_session(struct af_rx *rx, struct af_rx_session *session)
{
	if (session->closed)
		return;
	rx->nb_seen += !session->spoke;
	session->spoke = session->closed = true;
	rx->nb_closed++;
	rx->changed = true;
	for (uint32_t i = 0; i < AF_RX_SLOTS; i++)
		af_rx_drop_slot(rx, &session->slots[i], AF_RX_EMPTY);
}

#endif

/* What a sender knows: slices, paths, sessions, and how a slice begins and ends. tx.h drives it. */
#ifndef AIFLOW_TX_STATE_H
#define AIFLOW_TX_STATE_H

#include <stdatomic.h>
#include <stdlib.h>

#include "aiflow/rt/agent.h"
#include "aiflow/wire/manifest.h"
#include "aiflow/rt/sampler.h"
#include "aiflow/path/pacer.h"
#include "aiflow/path/pktnum.h"

#define AF_TX_SLICES 8u       /* slices that may be under way; large ones two at a time */
_Static_assert(AF_TX_SLICES <= AF_SLICES_IN_FLIGHT,
	       "a refusal must not be overwritten before its sender has heard of it");

#define AF_WORN_NUMBERS (1ull << 47) /* of 48 bits: a session that has come so far ends between two slices, */
#define AF_WORN_SLICES (1u << 31)    /* or so far, and the next one counts anew */

#define AF_CHUNK_VOID 0xffffffffu
#define AF_HELLO_NS 10000000ull       /* between two HELLOs while searching, */
#define AF_HELLO_SLOW_NS 100000000ull /* after the first second of it */
#define AF_STALE_NS 1000000000ull     /* contradicting answers are forgotten, and asked for again */
#define AF_DISCOVERY_NS 200000000ull  /* how long to listen after the first answer */

enum af_tx_state { AF_TX_QUEUED, AF_TX_ASKING, AF_TX_FLOWING, AF_TX_DONE, AF_TX_FAILED };

/* Why a slice failed. */
/* clang-format off */
#define AF_TX_ERROR_LIST(X) \
	X(AF_TX_OK, "ok")                 /* it was delivered */ \
	X(AF_TX_NO_PEER, "no_peer")       /* no receiver answered within the peer timeout */ \
	X(AF_TX_SILENT, "silent")         /* the receiver fell silent */ \
	X(AF_TX_RESTARTED, "restarted")   /* the receiver went away, or came back as another */ \
	X(AF_TX_TOO_LARGE, "too_large")   /* the receiver's memory is smaller than the slice */ \
	X(AF_TX_INTEGRITY, "integrity")   /* the digests of both ends differ */ \
	X(AF_TX_REFUSED, "refused")       /* the receiver refused it for another reason */ \
	X(AF_TX_CANCELLED, "cancelled")   /* its own side gave it up */ \
	X(AF_TX_AMBIGUOUS, "ambiguous")   /* two receivers answer, and the sender named neither */ \
	X(AF_TX_MTU, "mtu")               /* small frames pass the path, full ones do not */ \
	X(AF_TX_NO_MEMORY, "no_memory")   /* no memory for its tables */ \
	X(AF_TX_UNKNOWN, "unknown")       /* the receiver does not know what its manifest says */ \
	X(AF_TX_FAILED_BY_USER, "failed") /* the receiver's user could not use it */ \
	X(AF_TX_STALLED, "stalled")       /* the receiver answers, and takes none of its frames */
/* clang-format on */

enum af_tx_error { AF_TX_ERROR_LIST(AF_TABLE_SYMBOL) AF_NB_TX_ERRORS };

_Static_assert(AF_NB_TX_ERRORS == 14,
	       "give users a text for the new error (aiflow/_transfer/result.py), and count it here");

static inline const char *
af_tx_error_name(unsigned error)
{
	static const char *const names[] = {AF_TX_ERROR_LIST(AF_TABLE_NAME)};

	return error < AF_NB_TX_ERRORS ? names[error] : "";
}

/* What the scheduler decided for one slice: the law that the loop applies. control: rw before posting, dataplane: ro */
struct af_dispatch {
	uint32_t ports; /* bit i: port i may carry this slice */
	bool elements;  /* whole elements are dealt out, not single chunks */
	bool by_share;    /* by shares: bytes of each port */
	bool shortest;  /* a port with a longer queue than another waits */
	uint64_t share_bytes[AF_MAX_PORTS];
};

/* Where the next chunk is cut from. */
struct af_cursor {
	uint64_t offset, after; /* into the element; bytes of the slice behind it */
	uint32_t element, crc;
	bool open;
};

struct af_tx_slice {
	/* control plane, before posting */
	const struct af_span *elements;
	uint8_t *manifest;
	uint64_t nbytes, posted_ns;
	uint32_t nb_elements, manifest_bytes;
	uint32_t receiver; /* which of a fan's (fan.h) */
	struct af_dispatch dispatch;
	/* dataplane: rw; control: ro once `state` says so */
	struct af_tx_slice *next;
	_Atomic int state;
	_Atomic int cancel; /* control: w, dataplane: ro */
	_Atomic uint64_t acked_bytes;
	int error;
	bool all_sent, inlined,
		held; /* held: the receiver has all of it, and its user has not said yet that it is delivered */
	uint64_t detail;
	char *text; /* of AF_TX_UNKNOWN and AF_TX_FAILED_BY_USER: the receiver's words; freed by its owner */
	uint32_t text_bytes, text_got;
	uint32_t id, payload_bytes, nb_manifest, nb_data, nb_chunks, next_chunk, nb_acked;
	uint32_t *first_chunk; /* of each element, relative to the first data chunk */
	uint64_t *acked;
	struct af_cursor cursor; /* the next chunk to be cut, or the next element to be begun */
	struct af_cursor hands[AF_MAX_PORTS]; /* elements that ports have begun */
	uint64_t begun, taken[AF_MAX_PORTS]; /* bytes of elements begun; of chunks that each port has taken */
	uint32_t digest;
	uint64_t joined_ns; /* from when on a receiver was there for it; 0: not yet */
	uint64_t granted_ns; /* 0: it went inside its manifest, or never */
	uint64_t done_ns, frames, retransmits;
	uint64_t port_frames[AF_MAX_PORTS], port_bytes[AF_MAX_PORTS];
};

struct af_candidate {
	uint8_t mac[6];
	uint16_t port, nb_paths;
	uint32_t window, session;
	uint64_t epoch, first_ns, heard_ns;
	bool keeps_mbufs;
	char name[AF_NAME_BYTES];
};

struct af_tx_port {
	struct af_agent_port p;
	struct af_port_counters count;
	/* discovery */
	uint64_t hello_ns, attached_ns, answered_ns;
	uint32_t hellos, mtu_trials, nb_candidates, path_size; /* path_size: frames that both ends take */
	bool small_answered;
	struct af_candidate candidates[AF_MAX_PORTS];
	/* its path: one for each port of a sender */
	bool open, suspended; /* suspended: silent, probed but not used until it answers */
	uint8_t dst[6];
	uint16_t remote_port;
	uint32_t backoff, answered; /* answered: probes in a row while suspended */
	struct af_pace pace;
	uint64_t arrived; /* frames that the receiver has counted, of the numbers below w.seen */
	uint64_t began[2]; /* control: rw: w.seen and arrived when the newest slice began, 0 when the path is newer */
	struct af_tx_pktnum pn;
};

struct af_tx_slot {
	uint32_t id;
	bool used, void_in_flight;
	struct af_tx_slice *slice; /* NULL: given up, the receiver has still to hear of it */
};

struct af_retransmit {
	uint32_t slice, chunk;
};

/* A receiver that answers beside the one that was meant. */
struct af_rival {
	char name[AF_NAME_BYTES];
	uint8_t mac[6];
	uint64_t epoch; /* 0: none */
};

#define AF_OTHERS 4u

#define AF_RETRANSMIT_RING (1u << 16) /* more than all windows together */

struct af_tx {
	/* control plane, before the loop runs */
	char name[AF_NAME_BYTES], to[AF_NAME_BYTES];
	uint64_t instance, peer_timeout_ns, clock_offset_ns;
	uint32_t nb_expected; /* ports that were asked for */
	bool fixed_frame_size; /* the user named it: a smaller one on the way is an error */
	atomic_bool joining; /* control: rw at any time. A receiver makes our ports: no silence */
	/* dataplane: rw */
	struct af_tx_port ports[AF_MAX_PORTS];
	uint64_t next_number[AF_MAX_PORTS]; /* of paths whose port has gone: one that comes back goes on from there */
	uint32_t nb_ports; /* highest attached index, plus one */
	bool open, changed, closing, keeps_mbufs;
	bool death_unreported; /* control: w, between two iterations. The receiver has died, and no slice was there to
				  say so */
	int trouble; /* AF_TX_AMBIGUOUS, AF_TX_MTU: found by discovery */
	char receiver[AF_NAME_BYTES];
	char others[AF_OTHERS][AF_NAME_BYTES]; /* receivers of other names than `to`, which have answered */
	struct af_rival
		rivals[2]; /* AF_TX_AMBIGUOUS: who answered. Else the first one: of our receiver's name, but not it */
	struct af_rival suspect; /* a receiver of that name that answers and is another, */
	uint64_t suspect_ns; /* since then; 0: none. A rival, if ours is heard after all */
	uint8_t drop; /* what the receiver says it drops most, and how many */
	uint32_t nb_dropped;
	uint64_t moved_ns; /* when a chunk was granted or acknowledged last */
	uint64_t epoch, opened_ns, heard_ns, ticked_ns, first_answer_ns, feedback_number;
	uint32_t session, payload_bytes, next_id;
	struct af_crc_shift full;
	struct af_tx_slice *queue, **queue_tail;
	struct af_tx_slot slots[AF_TX_SLICES];
	uint32_t first_id; /* the oldest slot in use; ids [first_id, next_id) */
	struct af_retransmit *retransmit;
	uint32_t retransmit_head, retransmit_tail;
	bool bye_heard;
	struct af_span tail; /* of the newest frame: see struct af_agent */
	uint64_t drops[AF_NB_DROPS];
	uint64_t feedbacks, probes, suspensions;
	struct af_sampler sampler;
};

static inline int
af_tx_init(struct af_tx *tx)
{
	memset(tx, 0, sizeof *tx);
	tx->queue_tail = &tx->queue;
	af_crc_shift_of(&tx->full, 0, af_crc_power(0));
	tx->retransmit = malloc(AF_RETRANSMIT_RING * sizeof *tx->retransmit);
	return tx->retransmit ? 0 : -1;
}

/* An interval up to a quarter shorter, another for each `turn`: never in step with what comes and goes periodically. */
static inline uint64_t
af_unevenly(uint64_t interval_ns, uint32_t turn)
{
	return interval_ns - (interval_ns / 4 * (turn * 0x9e3779b1u >> 24) >> 8);
}

static inline struct af_tx_slot *
af_tx_slot(struct af_tx *tx, uint32_t id)
{
	struct af_tx_slot *slot = &tx->slots[id % AF_TX_SLICES];

	return slot->used && slot->id == id ? slot : NULL;
}

static inline bool
af_tx_is_acked(const struct af_tx_slice *s, uint32_t chunk)
{
	return s->acked[chunk / 64] >> (chunk % 64) & 1;
}

/* The most that may be in flight where gaps, not credit, are the law: what the driver can queue without blocking. */
static inline uint32_t
af_tx_backstop(const struct af_agent_port *port)
{
	uint32_t ring = port->kick ? port->rx_ring - port->rx_ring / 8 : AF_MAX_WINDOW;

	return ring > port->tx_window ? ring : port->tx_window;
}

static inline bool
af_tx_busy(const struct af_tx *tx)
{
	return tx->queue || tx->first_id != tx->next_id;
}

/* Is there more to do than to hear that slices of one frame have arrived? */
static inline bool
af_tx_is_pressed(const struct af_tx *tx)
{
	bool pressed = tx->queue || tx->closing || tx->retransmit_head != tx->retransmit_tail;

	for (uint32_t id = tx->first_id; id != tx->next_id && !pressed; id++) {
		const struct af_tx_slice *s = tx->slots[id % AF_TX_SLICES].slice;

		pressed = !s || !s->inlined || !s->all_sent;
	}
	return pressed;
}

#endif

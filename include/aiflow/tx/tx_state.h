/* The state of a sender: slices, ports with their paths, and the session. The other headers of this directory change
 * it.
 *
 * One thread at a time runs a sender. Unless a comment says otherwise, that thread alone reads and writes a field. */
#ifndef AIFLOW_TX_STATE_H
#define AIFLOW_TX_STATE_H

#include <stdatomic.h>
#include <stdlib.h>

#include "aiflow/rt/agent.h"
#include "aiflow/rt/chrono.h"
#include "aiflow/rt/numbers.h"
#include "aiflow/wire/manifest.h"
#include "aiflow/rt/sampler.h"
#include "aiflow/path/pacer.h"
#include "aiflow/path/pktnum.h"

#define AF_TX_SLICES 8u       /* slices in flight; at most two of them may be large */
_Static_assert(AF_TX_SLICES <= AF_SLICES_IN_FLIGHT,
	       "a refusal must not be overwritten before its sender has heard of it");

/* A session ends between two slices once its packet numbers, of 48 bits, or its slices are this high. */
#define AF_WORN_NUMBERS (1ull << 47)
#define AF_WORN_SLICES (1u << 31)

#define AF_CHUNK_VOID 0xffffffffu /* in place of a chunk: a VOID */
#define AF_HELLO_NS 10000000ull       /* between two HELLOs while searching, */
#define AF_HELLO_SLOW_NS 100000000ull /* after the first second of it */
#define AF_STALE_NS 1000000000ull     /* after this time contradicting answers are forgotten */
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
	X(AF_TX_STALLED, "stalled")       /* the receiver answers, and takes none of its frames */ \
	X(AF_TX_NO_PAGES, "no_pages")     /* the receiver's system has no memory for it */
/* clang-format on */

enum af_tx_error { AF_TX_ERROR_LIST(AF_TABLE_SYMBOL) AF_NB_TX_ERRORS };

_Static_assert(AF_NB_TX_ERRORS == 15,
	       "give users a text for the new error (aiflow/_transfer/result.py), and count it here");

static inline const char *
af_tx_error_name(unsigned error)
{
	static const char *const names[] = {AF_TX_ERROR_LIST(AF_TABLE_NAME)};

	return error < AF_NB_TX_ERRORS ? names[error] : "";
}

/* What a sender's slices wait for. */
/* clang-format off */
#define AF_TX_WAIT_LIST(X) \
	X(AF_TX_BY_USER, "application")      /* there is no slice */ \
	X(AF_TX_BY_PEER, "receiver")         /* no session exists */ \
	X(AF_TX_BY_PATH, "path")             /* frames that may be sent, or are in flight */ \
	X(AF_TX_BY_MEMORY, "memory")         /* the receiver has all of a manifest, and has granted nothing yet */ \
	X(AF_TX_BY_VERDICT, "confirmation")  /* the receiver has all of it, and its user has not confirmed it */
/* clang-format on */

enum af_tx_wait { AF_TX_WAIT_LIST(AF_TABLE_SYMBOL) AF_NB_TX_WAITS };

_Static_assert(AF_NB_TX_WAITS <= AF_CHRONO_STATES, "a chronograph has a time for each");

static inline const char *
af_tx_wait_name(unsigned wait)
{
	static const char *const names[] = {AF_TX_WAIT_LIST(AF_TABLE_NAME)};

	return wait < AF_NB_TX_WAITS ? names[wait] : "";
}

/* The slices that have ended. Sums over those that were delivered, except `failed`. */
struct af_tx_ended {
	uint64_t slices, elements, bytes;
	uint64_t frames, retransmits; /* that carried them */
	uint64_t ns; /* from when a receiver was there for one until its end */
	_Atomic uint64_t failed; /* slices that were not delivered; of `sends`, control: w, too */
};

/* A slice to several receivers. Its parts end one by one; the last one counts the slice, and frees this.
   Where not every part is posted, `af_tx_give_up_rest` does both. */
struct af_tx_whole {
	/* control: w before posting; dataplane: rw */
	uint32_t left; /* parts that have not ended */
	bool failed;   /* one was not delivered */
	uint64_t posted_ns, joined_ns; /* of the first part for which it came; 0: no receiver was there yet */
	uint64_t elements, bytes, frames, retransmits; /* of the parts that have ended */
};

/* The scheduler's decision for one slice, which the loop follows. control: rw before posting, dataplane: ro */
struct af_dispatch {
	uint32_t ports; /* bit i: port i may carry this slice */
	bool elements;  /* ports take whole elements, not single chunks */
	bool by_share;  /* each port has a share of the bytes */
	bool shortest;  /* a port with a longer queue than another waits */
	uint64_t share_bytes[AF_MAX_PORTS];
};

/* Where the next chunk is segmented. */
struct af_cursor {
	uint64_t offset;  /* in the element */
	uint64_t after;   /* bytes of the slice behind the element */
	uint32_t element; /* its index */
	uint32_t crc;     /* of its bytes before `offset` */
	bool open;        /* a port is at work on it */
};

/* Elements of one run, in the receiver's block. */
struct af_tx_run {
	uint32_t first; /* element */
	uint64_t nbytes; /* of each */
	uint64_t offset; /* of the first */
};

/* Where a slice lies in memory that its receiver shares. */
struct af_tx_places {
	const struct af_shared *shared; /* of the connection: its ports place, others carry. NULL: it has ended */
	uint8_t *block;
	struct af_tx_run *runs; /* by element */
	uint32_t nb_runs;
	uint32_t at;    /* index in `runs` of the newest look */
	uint64_t *done; /* bitmap of data chunks that were written. Each is written once, before its first frame */
	uint32_t *crc;  /* of these */
};

/* A slice whose elements all lie in loans of its Sender. */
struct af_tx_loans {
	/* control: w before posting; dataplane: ro */
	uint64_t pool;         /* its number */
	struct af_loan **held; /* the blocks that it lies in. The slice's owner keeps them while it is in flight */
	uint32_t nb_held;
	uint32_t nb_pieces;
	struct af_loan_piece *pieces; /* in wire order */
	uint32_t manifest_bytes;      /* of the manifest alone: there is room behind it for what a loan adds */
	/* dataplane: rw */
	struct af_lender *lender; /* that has offered it in this session; NULL: it is not lent */
	uint32_t lease;
	uint64_t generation;
};

struct af_tx_slice {
	/* control: w before posting; dataplane: ro */
	const struct af_span *elements;
	uint8_t *manifest; /* dataplane: w, flags and payload_bytes */
	uint64_t nbytes;   /* of all elements */
	uint64_t posted_ns;
	uint32_t nb_elements;
	uint32_t manifest_bytes; /* dataplane: rw, where there are loans */
	struct af_tx_loans *loans; /* NULL: not all of it is on loan */
	uint32_t receiver; /* index of its receiver in the Sender */
	struct af_dispatch dispatch;
	struct af_tx_whole *whole; /* dataplane: rw. The slice that this is a part of; NULL: it is all of it */
	/* dataplane: rw; control: ro once `state` says so */
	struct af_tx_slice *next;     /* in the queue */
	_Atomic int state;            /* enum af_tx_state; control: ro at any time */
	_Atomic int cancel;           /* control: w, dataplane: ro */
	_Atomic uint64_t acked_bytes; /* control: ro at any time */
	int error;                    /* enum af_tx_error */
	bool all_sent;                /* every chunk was sent once */
	bool inlined;                 /* its data travels inside the manifest's only frame */
	bool lent;                    /* its manifest says where the receiver reads it: there is no data */
	bool held;                    /* the receiver has all of it; the verdict of its user is missing */
	uint64_t detail;              /* of the void: memory of the receiver, or bytes of the text */
	char *text; /* AF_TX_UNKNOWN, AF_TX_FAILED_BY_USER: the receiver's words. The slice's owner frees it */
	uint32_t text_bytes;    /* of the whole text */
	uint32_t text_got;      /* bytes of it that arrived, from its beginning */
	uint32_t id;            /* within the session */
	uint32_t payload_bytes; /* of a full data chunk */
	uint32_t nb_manifest;   /* chunks of the manifest */
	uint32_t nb_data;       /* chunks of data */
	uint32_t nb_chunks;     /* both, and the closing record */
	uint32_t next_chunk;    /* chunks that were sent once */
	uint32_t nb_acked;      /* chunks that are acknowledged */
	uint32_t *first_chunk;  /* of each element, relative to the first data chunk */
	uint64_t *acked;        /* bitmap of chunks */
	struct af_cursor cursor; /* of the next chunk; with `elements`, of the next element that no port has begun */
	struct af_cursor hands[AF_MAX_PORTS]; /* elements that ports have begun */
	uint64_t begun;                       /* bytes of these elements, and of older ones */
	uint64_t taken[AF_MAX_PORTS];         /* bytes of new chunks that each port has sent */
	uint32_t digest;                      /* CRC32C over the bytes that were sent */
	struct af_tx_places *places; /* where its chunks may be written; NULL: the receiver has told no place */
	uint64_t joined_ns;                   /* when a receiver was there for it; 0: not yet */
	uint64_t granted_ns;                  /* 0: it was inlined, lent, or never granted */
	uint64_t done_ns;                     /* when it ended */
	uint64_t placed_bytes;                /* that were written to their places, */
	uint64_t frames;                      /* frames that carried the rest, or said so, */
	uint64_t retransmits;                 /* … and those that were retransmissions */
	uint64_t port_frames[AF_MAX_PORTS], port_bytes[AF_MAX_PORTS];
};

/* A receiver's port that answered, as its HELLO describes it. */
struct af_candidate {
	uint8_t mac[6];
	uint16_t port;     /* its index at the receiver */
	uint16_t nb_paths; /* of other senders on it */
	uint32_t window;   /* frames that it can hold */
	uint32_t session;  /* number that the receiver minted */
	uint64_t epoch;    /* of the receiver's instance */
	uint64_t first_ns; /* when it answered first, */
	uint64_t heard_ns; /* … and last */
	bool keeps_mbufs;
	char name[AF_NAME_BYTES];
};

/* One port, and the path that begins there. */
struct af_tx_port {
	struct af_agent_port p;
	struct af_port_counters count;
	/* discovery */
	uint64_t hello_ns;      /* when its newest HELLO was sent */
	uint64_t attached_ns;   /* when the port, or the search, began */
	uint64_t answered_ns;   /* when the first answer came; 0: none yet */
	uint32_t hellos;        /* that were sent */
	uint32_t mtu_trials;    /* full-sized ones without an answer, while small ones were answered */
	uint32_t nb_candidates; /* in `candidates` */
	uint32_t path_size;     /* largest frame that both ends take */
	bool small_answered;    /* since the newest full-sized HELLO */
	bool other_answered; /* a receiver that was not asked for is at the other end of this point-to-point port */
	struct af_candidate candidates[AF_MAX_PORTS];
	/* its path */
	bool open;
	bool suspended; /* silent: it is probed, and carries no chunk until it answers */
	uint8_t dst[6]; /* MAC of the receiver's port */
	uint16_t remote_port; /* index of that port */
	uint32_t backoff; /* doublings of the PTO */
	uint32_t answered; /* probes in a row, while suspended */
	struct af_pace pace;
	struct af_chrono flight; /* in state 1, frames are in flight */
	uint64_t arrived; /* frames below pn.seen that the receiver has counted */
	uint64_t began[2]; /* control: rw. pn.seen and `arrived` when the newest slice began; 0: the path is newer */
	struct af_tx_pktnum pn;
};

struct af_tx_slot {
	uint32_t id; /* of the slice */
	bool used; /* the receiver has not finished this slice */
	bool void_in_flight; /* a VOID for it is in flight */
	struct af_tx_slice *slice; /* NULL: it was given up, and the receiver does not know yet */
};

/* A lost chunk. */
struct af_retransmit {
	uint32_t slice, chunk;
};

/* A receiver that answers beside ours. */
struct af_rival {
	char name[AF_NAME_BYTES];
	uint8_t mac[6];
	uint64_t epoch; /* 0: none */
};

#define AF_OTHERS 4u

#define AF_RETRANSMIT_RING (1u << 16) /* more than all windows together */

struct af_tx {
	/* control: w before the loop runs; dataplane: ro */
	char name[AF_NAME_BYTES];
	char to[AF_NAME_BYTES]; /* the receiver that was asked for; "": any */
	uint64_t instance; /* dataplane: rw, its low 16 bits count sessions */
	uint64_t peer_timeout_ns; /* a receiver that is silent for longer is gone */
	uint64_t clock_offset_ns; /* what the clock of timestamps is ahead of the loop's */
	struct af_numbers *numbers; /* of this process; any thread mints */
	uint32_t nb_expected; /* ports that were asked for */
	bool fixed_frame_size; /* the user chose it: a smaller frame size of the path is an error */
	atomic_bool joining; /* control: rw at any time. A receiver makes our ports, so it does not count as silent */
	/* dataplane: rw */
	struct af_tx_port ports[AF_MAX_PORTS];
	uint64_t next_number[AF_MAX_PORTS]; /* of paths whose port was removed; a new port continues there */
	uint32_t nb_ports; /* highest attached index, plus one */
	bool open; /* a session exists */
	bool changed; /* since the last tick: a waiting thread should look */
	bool closing; /* control: w between two iterations. No slice follows: say goodbye */
	bool keeps_mbufs; /* the receiver does: no data inside manifests */
	bool death_unreported; /* control: w between two iterations. The receiver died when no slice was in flight */
	int trouble; /* found by discovery: AF_TX_AMBIGUOUS or AF_TX_MTU */
	char receiver[AF_NAME_BYTES]; /* its name */
	char others[AF_OTHERS][AF_NAME_BYTES]; /* receivers of other names than `to` that answered */
	struct af_rival rivals[2]; /* AF_TX_AMBIGUOUS: both; else another instance with our receiver's name */
	struct af_rival suspect; /* an instance with that name, which may have replaced our receiver, */
	uint64_t suspect_ns; /* … since then; 0: none */
	uint8_t drop; /* enum af_drop: what the receiver drops most, */
	uint32_t nb_dropped; /* … and how often */
	uint64_t peer_free_bytes; /* of the receiver's memory, by its newest feedback */
	uint64_t moved_ns; /* when a slice was granted, or a chunk acknowledged, last */
	uint64_t epoch; /* of the receiver's instance */
	uint64_t opened_ns; /* when the session began */
	uint64_t heard_ns; /* when the receiver was heard last */
	uint64_t ticked_ns; /* when af_tx_tick ran last */
	uint64_t first_answer_ns; /* when discovery had its first answer; 0: not yet */
	uint64_t feedback_number; /* of the newest feedback */
	uint64_t hello_number; /* of the newest HELLO, through all lives */
	uint32_t number; /* of this life, as the receiver writes it into its frames; 0: not minted yet */
	uint32_t session; /* number that the receiver minted, as this sender writes it into its frames */
	uint32_t payload_bytes; /* of a full frame on every path of the session */
	uint32_t next_id; /* of the next slice */
	struct af_crc_shift full; /* joins the CRC of a full chunk */
	struct af_tx_slice *queue, **queue_tail; /* slices that are not in flight yet */
	struct af_tx_slot slots[AF_TX_SLICES]; /* slice i is in slot i % AF_TX_SLICES */
	uint32_t first_id; /* the oldest slice in flight; slots hold [first_id, next_id) */
	struct af_retransmit *retransmit; /* a ring of lost chunks */
	uint32_t retransmit_head, retransmit_tail;
	bool bye_heard;
	struct af_span tail; /* of the newest frame: see struct af_agent */
	uint64_t drops[AF_NB_DROPS]; /* frames, by enum af_drop */
	uint64_t feedbacks, probes; /* received, sent */
	uint64_t suspensions; /* of paths */
	struct af_tx_ended ended;
	struct af_tx_ended *sends; /* the same of the Sender, where the parts of a slice are one; may be NULL */
	struct af_chrono waits; /* by enum af_tx_wait */
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

/* Shorten an interval by up to a quarter, differently for each `turn`, so that no periodic event stays in step. */
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

/* The limit of chunks in flight where pacing rules, not credit: what the driver can queue without blocking. */
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

/* For the sampler: grows with every frame out, and with every frame that arrived over there. */
static inline uint64_t
af_tx_moved(const struct af_tx *tx)
{
	uint64_t moved = 0;

	for (uint32_t p = 0; p < tx->nb_ports; p++)
		moved += tx->ports[p].count.tx_frames + tx->ports[p].arrived;
	return moved;
}

/* Is the receiver's feedback the only answer to a slice, since it asks for nothing? */
static inline bool
af_tx_is_told(const struct af_tx_slice *s)
{
	return s->inlined || s->lent;
}

/* Is there more to do than to wait for the acknowledgement of slices that ask for nothing? */
static inline bool
af_tx_is_pressed(const struct af_tx *tx)
{
	bool pressed = tx->queue || tx->closing || tx->retransmit_head != tx->retransmit_tail;

	for (uint32_t id = tx->first_id; id != tx->next_id && !pressed; id++) {
		const struct af_tx_slice *s = tx->slots[id % AF_TX_SLICES].slice;

		pressed = !s || !af_tx_is_told(s) || !s->all_sent;
	}
	return pressed;
}

#endif

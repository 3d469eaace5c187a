/* The state of a receiver: sessions, slices, paths and ports. The other headers of this directory change it.
 *
 * One thread at a time runs a receiver. Unless a comment says otherwise, that thread alone reads and writes a field. */
#ifndef AIFLOW_RX_STATE_H
#define AIFLOW_RX_STATE_H

#include "aiflow/path/pktnum.h"
#include "aiflow/rt/agent.h"
#include "aiflow/rt/chrono.h"
#include "aiflow/rt/numbers.h"
#include "aiflow/rt/sampler.h"
#include "aiflow/rx/arena.h"
#include "aiflow/rx/credit.h"
#include "aiflow/rx/into.h"
#include "aiflow/wire/manifest.h"
#include "aiflow/wire/verdict.h"

#define AF_RX_SLOTS 16u /* slices of a session that are known at a time: twice those that a sender has in flight */
#define AF_SESSIONS 64u
#define AF_ANSWERS 64u              /* HELLOs that wait for their answer */
#define AF_SILENCE_NS 3000000000ull /* a sender that is silent for longer holds no memory that another waits for */
#define AF_CLOSED_RETAINED_TIMEOUTS 4u /* a silent session is remembered for this many peer timeouts */

#define AF_FEEDBACK_NS 500000ull /* between two feedback frames of a path with many frames, or after its last one */
#define AF_FEEDBACK_MANY 16u /* frames. Feedback on fewer waits until … */
#define AF_FEEDBACK_STILL_NS 200000ull /* … no frame has come for this long, */
#define AF_FEEDBACK_MOST_NS 2000000ull /* … or for this long */
#define AF_FEEDBACK_HOLE_NS 100000ull /* between feedback frames that show nothing but new holes */
#define AF_FEEDBACK_FRAMES 32u /* at most this many frames arrive on a path between two feedback frames */
#define AF_FEEDBACK_BYTES 1400u /* of a feedback frame */

enum af_rx_state {
	AF_RX_EMPTY,
	AF_RX_READING, /* pieces of the manifest are missing */
	AF_RX_READ,    /* the manifest is sound; an older slice of the session has not asked yet */
	AF_RX_WAITING, /* for memory */
	AF_RX_FLOWING, /* granted; chunks are missing */
	AF_RX_WHOLE,   /* nothing is missing; an older slice is not done yet */
	AF_RX_VOID
};

/* What arrives at a receiver. */
/* clang-format off */
#define AF_RX_WAIT_LIST(X) \
	X(AF_RX_IDLE, "idle")          /* no slice that was granted */ \
	X(AF_RX_ARRIVING, "arriving")  /* chunks of a granted slice */ \
	X(AF_RX_NO_MEMORY, "memory")   /* nothing, and a slice waits for memory */
/* clang-format on */

enum af_rx_wait { AF_RX_WAIT_LIST(AF_TABLE_SYMBOL) AF_NB_RX_WAITS };

_Static_assert(AF_NB_RX_WAITS <= AF_CHRONO_STATES, "a chronograph has a time for each");

static inline const char *
af_rx_wait_name(unsigned wait)
{
	static const char *const names[] = {AF_RX_WAIT_LIST(AF_TABLE_NAME)};

	return wait < AF_NB_RX_WAITS ? names[wait] : "";
}

struct af_rx_element {
	uint64_t offset;      /* from the slice's origin, or from the pool that it borrows from */
	uint64_t nbytes;      /* of the element */
	uint64_t latency_ns;  /* of its slowest frame so far */
	uint32_t first_chunk; /* relative to the first data chunk */
	uint32_t packed;      /* elements in its pack, counted from this one; 0: it has chunks of its own */
};

/* A payload that stays where the driver put it. */
struct af_kept {
	void *handle;           /* of the mbuf; NULL: nothing is kept here */
	const uint8_t *payload; /* in that mbuf */
	uint32_t nbytes;        /* of the payload */
};

/* Filled by the loop. A thread that takes it from the ready list owns it. */
struct af_rx_slice {
	struct af_rx_slice *next;         /* in the ready list */
	struct af_rx_slice *next_waiting; /* in the queue for memory */
	struct af_rx_session *session;    /* NULL once it is ready */
	char sender[AF_NAME_BYTES];       /* its sender's name */
	uint64_t instance;                /* of its sender, the same through all its sessions */
	uint32_t session_id;              /* the user's verdict names it */
	uint32_t id;                      /* within the session, from 1 */
	uint32_t manifest_bytes;          /* of the manifest, */
	uint32_t runs_bytes;              /* … and of that before its extensions */
	uint32_t payload_bytes;           /* of a full data chunk */
	uint32_t nb_manifest;             /* chunks of the manifest */
	uint32_t nb_data;                 /* chunks of data */
	uint32_t nb_chunks;               /* both, and the closing record */
	uint32_t nb_missing;              /* chunks that did not arrive yet */
	uint32_t nb_runs, nb_elements;    /* that the manifest announces */
	uint32_t nb_read;                 /* manifest chunks that arrived */
	bool inlined;                     /* the data came inside the manifest's only frame */
	struct af_borrowed *borrowed;     /* memory of its sender that it lies in; NULL: it lies in `block` */
	uint32_t lease;                   /* of `borrowed`, */
	uint64_t generation;              /* … and its generation */
	bool closed;                      /* the closing record arrived */
	uint32_t digest;                  /* CRC32C over all bytes, as the closing record says */
	uint64_t nbytes;                  /* of all elements */
	uint64_t first_ns;                /* when its first frame arrived */
	uint64_t whole_ns;                /* when its last chunk arrived */
	uint64_t received_bytes;          /* of data, since the grant */
	uint64_t first_latency_ns; /* of the newest manifest frame; elements that travel inside it have this latency */
	uint64_t inline_bytes_len; /* bytes that follow the manifest in its only frame */
	uint64_t charge_bytes; /* what the slice counts in the arena: tables, and elements or mbufs */
	uint8_t *manifest; /* its bytes, and the inline data behind them */
	const uint8_t *inline_bytes; /* in `manifest`; NULL: the manifest came in several frames */
	uint64_t *bitmap; /* chunks that arrived; NULL once it is ready */
	struct af_rx_element *elements; /* from the grant on */
	uint32_t *chunk_crc; /* of each data chunk that arrived; NULL once it is ready */
	struct af_kept *kept; /* of each data chunk, where payloads stay in mbufs; else NULL */
	struct af_arena *arena; /* that `block` belongs to */
	struct af_block *block; /* its memory, from when it waits for its pages on */
	uintptr_t origin; /* address from which the elements' offsets count; from the grant on */
	struct af_into *into; /* arrays of the user that elements lie in; NULL: none */
	bool has_place; /* its sender may write to the elements, from the grant on, … */
	uint64_t place; /* … from here on in the arena */
	uint64_t frames; /* of data that were taken */
};

struct af_rx_slot {
	uint32_t id; /* of the slice */
	uint8_t state; /* enum af_rx_state */
	struct af_rx_slice *slice; /* NULL: empty or void */
};

enum af_rx_judged { AF_RX_CONFIRMED, AF_RX_PENDING };

/* Why a slice is void, in words. */
struct af_rx_text {
	uint32_t slice; /* id */
	uint32_t nbytes; /* 0: none */
	char *bytes; /* not terminated */
};

struct af_rx_path {
	bool known; /* a frame of it was accepted */
	bool asked; /* its sender's port said HELLO: `port` and `mac` hold until a frame of it is accepted */
	bool urgent; /* feedback is due now, with all that a probe asks for */
	bool bye_due; /* its BYE has no answer yet */
	uint8_t port; /* over which it was heard last */
	uint8_t mac[6]; /* of its sender's port: feedback goes there */
	uint32_t news; /* frames since the last feedback */
	uint64_t echo_ns; /* timestamp of the newest frame, on the sender's clock */
	uint64_t heard_ns; /* when that frame arrived */
	uint64_t feedback_ns; /* when its last feedback went */
	uint64_t text_ns; /* when it began to tell all texts last */
	uint64_t frames; /* that were accepted */
	uint64_t bytes; /* of these frames */
	double granted; /* window in frames; 0: none was granted yet */
	struct af_credit credit; /* what this path alone can use */
	struct af_delay delay; /* of its frames */
	struct af_rx_pktnum pn; /* packet numbers that arrived */
};

struct af_rx_session {
	bool closed; /* its sender said goodbye, or counts as gone */
	bool spoke; /* a frame was accepted in it, or in a session that it replaces */
	bool silenced; /* its slices were freed, because its sender was silent */
	bool urgent; /* feedback is due on the port that was heard last */
	bool granted_now; /* that feedback is a GRANT */
	uint32_t id; /* number that was minted here: its sender writes it into its frames */
	uint32_t peer; /* number that its sender minted: feedback carries it */
	uint32_t nb_macs; /* in `macs` */
	uint32_t last_port; /* over which it was heard last */
	uint32_t ports; /* bit i: heard over port i */
	uint64_t sender; /* instance and life, as in its HELLO */
	uint32_t writer; /* over which connection it may write to our memory, or AF_WRITER_SEVERAL; 0: none */
	uint64_t heard_ns; /* when a frame was accepted last */
	uint64_t number; /* of the newest frame of feedback, or BYE */
	char name[AF_NAME_BYTES];
	uint8_t macs[AF_MAX_PORTS][6]; /* that sent a HELLO of this session */
	uint32_t asked; /* every slice below has asked for memory, */
	uint32_t granted; /* … was granted, */
	uint32_t done; /* … is handed over or void, */
	uint32_t confirmed; /* … is where the user wants it, or void */
	struct af_rx_slot slots[AF_RX_SLOTS]; /* slice i is in slot i % AF_RX_SLOTS */
	uint8_t verdicts[AF_RX_SLOTS]; /* enum af_rx_judged, of slices in [confirmed, done) */
	struct af_rx_text texts[AF_RX_SLOTS];
	uint32_t newest; /* the last slice that was begun: its sender has heard of all that are eight older */
	uint32_t text_slot; /* the next piece to be told is of this text, */
	uint32_t text_at; /* … from this byte on */
	uint64_t text_due; /* bytes of texts that were not told yet, or were asked for */
	struct af_void voids[AF_NB_VOIDS]; /* in wire order */
	uint32_t nb_paths; /* highest known index, plus one */
	struct af_rx_path paths[AF_MAX_PORTS];
};

/* A frame that arrived. */
struct af_rx_in {
	uint32_t port; /* over which it arrived */
	bool kept; /* out: the receiver keeps `handle` */
	uint64_t now;
	const struct af_frame *frame;
	void *handle; /* of the mbuf that it lies in */
};

/* An answer to a HELLO, before it goes. */
struct af_answer {
	uint32_t session; /* 0: the sender asked for another receiver */
	uint32_t peer; /* number of the sender */
	uint32_t port; /* over which it goes */
	uint64_t sender; /* as in the HELLO */
	uint8_t mac[6]; /* of the asking port */
	uint16_t heard_bytes; /* size of the HELLO */
};

struct af_rx_port {
	struct af_agent_port p;
	struct af_port_counters count;
	uint32_t nb_paths; /* of all sessions */
	struct af_credit credit; /* the sum of the windows of its paths */
	struct af_trial trial; /* what its losses say about the queue before it */
	uint64_t step_ns; /* when the credit moved last */
	uint64_t drain_ns; /* until then windows are small, so that the queue before it runs empty */
	uint32_t sharing; /* paths that the credit is divided among */
	uint64_t sent; /* packet numbers that can have arrived, */
	uint64_t arrived; /* … and those that did */
};

struct af_rx {
	/* control plane: w before the loop runs; dataplane: ro */
	char name[AF_NAME_BYTES];
	uint64_t epoch; /* of this instance; another after each start */
	uint64_t peer_timeout_ns; /* a sender that is silent for longer is gone */
	uint64_t clock_offset_ns; /* what the clock of timestamps is ahead of the loop's */
	bool keeps_mbufs; /* payloads stay in their mbufs */
	bool parting; /* control: w between two iterations. It says goodbye, and takes no sender any more */
	bool borrows; /* it takes loans */
	bool confirms; /* a slice is delivered when the user says so, not when it is whole */
	struct af_numbers *numbers; /* of this process; any thread mints */
	struct af_verdicts *verdicts; /* of the user; NULL: there are none. Any thread pushes */
	uint64_t mbuf_bytes; /* keeps_mbufs: what one chunk occupies */
	void (*release)(void *handle); /* gives a kept mbuf back */
	struct af_arena *arena;
	/* dataplane: rw */
	struct af_rx_port ports[AF_MAX_PORTS];
	uint32_t nb_ports; /* highest attached index, plus one */
	struct af_rx_session *sessions[AF_SESSIONS];
	uint32_t nb_sessions;
	uint32_t nb_seen; /* senders that spoke, */
	uint32_t nb_closed; /* … those that closed, or are gone, */
	uint32_t nb_gone; /* … and those that are gone without a goodbye */
	uint32_t flowing; /* slices in AF_RX_FLOWING */
	struct af_rx_slice *waiting, **waiting_tail; /* slices in AF_RX_WAITING, in order */
	struct af_rx_slice *ready, **ready_tail; /* whole, in order: the engine takes this list */
	struct af_answer answers[AF_ANSWERS]; /* a ring */
	uint64_t hello_number; /* of the newest answer */
	uint32_t answers_head, answers_tail;
	uint32_t releases; /* of the arena, as of the last look */
	bool waiter_removed; /* from `waiting`: the next one may fit where that one did not */
	uint64_t ticked_ns; /* when af_rx_tick ran last */
	bool changed; /* since then: a waiting thread should know */
	uint64_t starving_ns; /* since then a request has waited for memory that nothing will free; 0: none */
	uint64_t starving_bytes; /* of that request */
	_Atomic uint64_t progress_bytes, progress_total; /* of the newest slice; other threads: ro */
	struct af_crc_shift full; /* joins the CRC of a full chunk */
	struct af_offer offer; /* arrays of a call that waits; any thread */
	_Atomic uint64_t taken; /* slices that callers have taken; any thread */
	bool checks_places; /* control: w at start. For tests: the bytes of placed chunks are summed here, too */
	bool filling; /* the first slice in `waiting` has its block, and not all of its pages */
	bool has_no_pages; /* for that slice, */
	uint64_t no_pages_ns, looked_ns; /* … since then (0: not yet), and by the newest look */
	uint64_t placed_bytes; /* of chunks that their senders wrote to their places */
	uint64_t drops[AF_NB_DROPS]; /* frames, by enum af_drop */
	uint64_t courtesy_ns; /* when a sender of another receiver was answered last */
	uint64_t slices, elements, bytes; /* handed over */
	struct af_chrono waits; /* by enum af_rx_wait */
	struct af_sampler sampler;
};

static inline void
af_rx_init(struct af_rx *rx)
{
	memset(rx, 0, sizeof *rx);
	rx->waiting_tail = &rx->waiting;
	rx->ready_tail = &rx->ready;
	af_offer_init(&rx->offer);
	af_crc_shift_of(&rx->full, 0, af_crc_power(0));
}

static inline struct af_rx_session *
af_rx_session_of(const struct af_rx *rx, uint32_t id)
{
	for (uint32_t i = 0; i < rx->nb_sessions; i++)
		if (rx->sessions[i]->id == id)
			return rx->sessions[i];
	return NULL;
}

/* Where an element lies: in the slice's block, or in an array of the user. */
static inline uint8_t *
af_rx_element_at(const struct af_rx_slice *s, const struct af_rx_element *el)
{
	return (uint8_t *)(s->origin + el->offset);
}

/* A call offers arrays for the next slice that is granted. Any thread. */
static inline void
af_rx_offer(struct af_rx *rx, struct af_into *into)
{
	if (af_offer_make(&rx->offer, into)) /* a slice that waits for memory may need none of it now: look again */
		atomic_fetch_add_explicit(&rx->arena->releases, 1, memory_order_release);
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

/* For the sampler: grows with every frame that arrives. */
static inline uint64_t
af_rx_moved(const struct af_rx *rx)
{
	uint64_t moved = 0;

	for (uint32_t p = 0; p < rx->nb_ports; p++)
		moved += rx->ports[p].count.rx_frames;
	return moved;
}

static inline uint64_t
af_rx_latency(const struct af_rx *rx, const struct af_frame *f, uint64_t now)
{
	int64_t latency = (int64_t)(now + rx->clock_offset_ns - f->timestamp_ns);

	return latency > 0 && latency < 3600000000000ll ? (uint64_t)latency : 0; /* clocks that disagree say nothing */
}

#endif

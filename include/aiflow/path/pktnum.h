/* Packet numbers of one path, at both ends.
 *
 * Every sequenced frame takes the next number of its path, and no number is used twice: a retransmitted chunk has a new
 * one. So an acknowledgement is never ambiguous (RFC 9002, section 3). Loss is judged within one path, because paths
 * reorder against each other.
 */
#ifndef AIFLOW_PKTNUM_H
#define AIFLOW_PKTNUM_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define AF_RX_BITS 1024u /* numbers that feedback can describe: more than a window and the reordering allowance */
#define AF_MAX_WINDOW 896u /* frames in flight */
#define AF_FIRST_WINDOW 16u            /* frames in flight before the receiver has granted a window */
#define AF_PATH_IDLE_NS 100000000ull   /* a path that was silent for this long takes no share of a port's credit */
#define AF_TX_RING 2048u /* numbers that are in flight, or wait for an older one to be judged */
#define AF_PKTNUM_JUMP (1u << 20) /* a number further ahead than this is an error, not a gap */

#define AF_REORDER_FIRST 3u /* RFC 9002's packet threshold; grows with observed reordering, and shrinks later */
#define AF_REORDER_MOST 64u

/* ---- receiver ---- */

struct af_rx_pktnum {
	uint64_t next; /* highest number seen, plus one */
	uint64_t floor; /* every number below arrived, or is beyond the bitmap */
	uint64_t bits[AF_RX_BITS / 64]; /* numbers that arrived: a ring */
};

static inline bool
af_rx_pktnum_has(const struct af_rx_pktnum *pn, uint64_t number)
{
	return pn->bits[number % AF_RX_BITS / 64] >> (number % 64) & 1;
}

/* Did this number arrive, or is it too old to know? */
static inline bool
af_rx_pktnum_seen(const struct af_rx_pktnum *pn, uint64_t number)
{
	return number < pn->next && (number + AF_RX_BITS < pn->next || af_rx_pktnum_has(pn, number));
}

/* Record a number that af_rx_pktnum_seen() denies. True when numbers before it are newly missing. */
static inline bool
af_rx_pktnum_take(struct af_rx_pktnum *pn, uint64_t number)
{
	bool hole = number > pn->next;

	if (number >= pn->next) {
		if (number - pn->next >= AF_RX_BITS)
			memset(pn->bits, 0, sizeof pn->bits);
		else
			for (uint64_t n = pn->next; n < number; n++)
				pn->bits[n % AF_RX_BITS / 64] &= ~(1ull << (n % 64));
		pn->next = number + 1;
	}
	pn->bits[number % AF_RX_BITS / 64] |= 1ull << (number % 64);
	if (pn->next > AF_RX_BITS && pn->floor < pn->next - AF_RX_BITS)
		pn->floor = pn->next - AF_RX_BITS;
	while (pn->floor < pn->next && af_rx_pktnum_has(pn, pn->floor))
		pn->floor++;
	return hole;
}

/* Words of bitmap that feedback needs to show every missing number. */
static inline uint32_t
af_rx_pktnum_words(const struct af_rx_pktnum *pn)
{
	return (uint32_t)((pn->next - pn->floor + 63) / 64);
}

/* Word k of `words`: 64 numbers from next - 64 * (words - k) on. Numbers below 0 read as arrived. */
static inline uint64_t
af_rx_pktnum_word(const struct af_rx_pktnum *pn, uint32_t words, uint32_t k)
{
	uint64_t word = 0;
	int64_t first = (int64_t)pn->next - 64 * (int64_t)(words - k);

	for (int i = 0; i < 64; i++)
		if (first + i < 0 || (uint64_t)(first + i) < pn->floor || af_rx_pktnum_has(pn, (uint64_t)(first + i)))
			word |= 1ull << i;
	return word;
}

/* ---- sender ---- */

enum af_sent_state { AF_SENT_FREE, AF_SENT_IN_FLIGHT, AF_SENT_ACKED, AF_SENT_LOST };

struct af_sent {
	uint64_t sent_ns;      /* when it was sent */
	uint32_t slice, chunk; /* that it carries */
	uint8_t state;         /* enum af_sent_state */
	uint8_t probe;         /* carries no chunk */
	uint8_t requeued;   /* lost with its path: a late arrival is no sign of reordering */
	uint8_t superseded; /* its chunk was retransmitted beside a probe: a late arrival is ignored */
};

struct af_tx_pktnum {
	uint64_t next; /* the number of the next frame */
	uint64_t judged; /* every number below is acknowledged or lost */
	uint64_t seen; /* highest number that arrived, plus one */
	uint32_t in_flight; /* chunks in flight */
	uint32_t limit; /* the most chunks that may be in flight: the receiver's window, or what the driver takes */
	uint32_t reorder; /* a number this far behind `seen` is lost */
	uint32_t spurious; /* spurious losses: declared lost, and acknowledged later */
	uint32_t calm; /* acknowledgements since the last spurious loss */
	uint32_t ramp; /* the limit of a path that was resumed, growing by one per acknowledgement; 0: use `limit` */
	uint64_t late_ns; /* lateness that is allowed beyond the round trip */
	uint64_t rtt_ns; /* smoothed, 0 before the first sample */
	uint64_t sent_ns; /* when the newest frame was sent */
	uint64_t acked_ns; /* when a frame was acknowledged last */
	struct af_sent ring[AF_TX_RING]; /* number n is entry n % AF_TX_RING */
};

static inline struct af_sent *
af_tx_sent(struct af_tx_pktnum *pn, uint64_t number)
{
	return &pn->ring[number % AF_TX_RING];
}

/* Begin a path at this number, which no earlier frame of the session had. */
static inline void
af_tx_pktnum_reset(struct af_tx_pktnum *pn, uint32_t limit, uint64_t first_number)
{
	pn->next = pn->judged = first_number;
	pn->seen = 0;
	pn->in_flight = pn->spurious = pn->calm = pn->ramp = 0;
	pn->late_ns = 0;
	pn->limit = limit < AF_MAX_WINDOW ? limit : AF_MAX_WINDOW;
	pn->reorder = AF_REORDER_FIRST;
	pn->rtt_ns = pn->sent_ns = pn->acked_ns = 0;
}

static inline bool
af_tx_pktnum_is_full(const struct af_tx_pktnum *pn)
{
	return pn->next - pn->judged >= AF_TX_RING - 1;
}

static inline bool
af_tx_pktnum_has_room(const struct af_tx_pktnum *pn)
{
	return pn->in_flight < pn->limit && (!pn->ramp || pn->in_flight < pn->ramp) && !af_tx_pktnum_is_full(pn);
}

/* Record a frame that is about to be sent, and return its number. */
static inline uint64_t
af_tx_pktnum_take(struct af_tx_pktnum *pn, uint64_t now_ns, uint32_t slice, uint32_t chunk, bool probe)
{
	struct af_sent *sent = af_tx_sent(pn, pn->next);

	sent->sent_ns = now_ns;
	sent->slice = slice;
	sent->chunk = chunk;
	sent->state = AF_SENT_IN_FLIGHT;
	sent->probe = probe;
	sent->requeued = sent->superseded = false;
	pn->in_flight += !probe;
	pn->sent_ns = now_ns;
	return pn->next++;
}

/* Take a number for a frame that needs no acknowledgement, and that no probe follows. */
static inline uint64_t
af_tx_pktnum_take_unacked(struct af_tx_pktnum *pn, uint64_t now_ns)
{
	struct af_sent *sent = af_tx_sent(pn, pn->next);

	*sent = (struct af_sent){.sent_ns = now_ns, .state = AF_SENT_ACKED, .probe = true};
	return pn->next++;
}

/* Move `judged` past every number that is acknowledged or lost. */
static inline void
af_tx_pktnum_settle(struct af_tx_pktnum *pn)
{
	while (pn->judged < pn->next && af_tx_sent(pn, pn->judged)->state > AF_SENT_IN_FLIGHT)
		pn->judged++;
}

#endif

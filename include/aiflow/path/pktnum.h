/* Packet numbers of one path, seen from both ends.
 *
 * Every sequenced frame takes the next number of its path and never gives it up: a chunk that is sent again goes out
 * under a new one. So an acknowledgement is never ambiguous, and loss is judged within one path alone; paths reorder
 * against each other by nature. (The idea is QUIC's, RFC 9002 section 3.)
 */
#ifndef AIFLOW_WINDOW_H
#define AIFLOW_WINDOW_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define AF_RX_BITS 1024u /* numbers that a report can describe: more than any window plus the reordering allowance */
#define AF_MAX_WINDOW 896u
#define AF_TX_RING 2048u /* numbers in flight or not yet judged */
#define AF_NUMBER_JUMP (1u << 20) /* a number further ahead than this is no gap but nonsense */

#define AF_REORDER_FIRST 3u /* RFC 9002's packet threshold; grows with what the path shows, and shrinks again */
#define AF_REORDER_MOST 64u

/* ---- receiver ---- */

struct af_rx_window {
	uint64_t next; /* highest number seen, plus one */
	uint64_t floor; /* nothing below is worth reporting: it arrived, or lies beyond the bitmap */
	uint64_t bits[AF_RX_BITS / 64];
};

static inline bool
af_rx_has(const struct af_rx_window *w, uint64_t number)
{
	return w->bits[number % AF_RX_BITS / 64] >> (number % 64) & 1;
}

/* Was this number seen, or is it too old to know? */
static inline bool
af_rx_seen(const struct af_rx_window *w, uint64_t number)
{
	return number < w->next && (number + AF_RX_BITS < w->next || af_rx_has(w, number));
}

/* Take a number that af_rx_seen() denies. Returns true when it leaves a new hole behind. */
static inline bool
af_rx_take(struct af_rx_window *w, uint64_t number)
{
	bool hole = number > w->next;

	if (number >= w->next) {
		if (number - w->next >= AF_RX_BITS)
			memset(w->bits, 0, sizeof w->bits);
		else
			for (uint64_t n = w->next; n < number; n++)
				w->bits[n % AF_RX_BITS / 64] &= ~(1ull << (n % 64));
		w->next = number + 1;
	}
	w->bits[number % AF_RX_BITS / 64] |= 1ull << (number % 64);
	if (w->next > AF_RX_BITS && w->floor < w->next - AF_RX_BITS)
		w->floor = w->next - AF_RX_BITS;
	while (w->floor < w->next && af_rx_has(w, w->floor))
		w->floor++;
	return hole;
}

/* Words of bitmap that a report needs to show every hole. */
static inline uint32_t
af_rx_words(const struct af_rx_window *w)
{
	return (uint32_t)((w->next - w->floor + 63) / 64);
}

/* Word k of `words`: numbers [next - 64 * (words - k), +64). Numbers below 0 read as seen. */
static inline uint64_t
af_rx_word(const struct af_rx_window *w, uint32_t words, uint32_t k)
{
	uint64_t word = 0;
	int64_t first = (int64_t)w->next - 64 * (int64_t)(words - k);

	for (int i = 0; i < 64; i++)
		if (first + i < 0 || (uint64_t)(first + i) < w->floor || af_rx_has(w, (uint64_t)(first + i)))
			word |= 1ull << i;
	return word;
}

/* ---- sender ---- */

enum af_sent_state { AF_SENT_FREE, AF_SENT_FLYING, AF_SENT_ACKED, AF_SENT_LOST };

struct af_sent {
	uint64_t sent_ns;
	uint32_t slice, chunk;
	uint8_t state;
	uint8_t probe; /* carries no chunk; everything before it on this path was meant to arrive earlier */
	uint8_t requeued; /* given up with its path: that it arrived after all says nothing about reordering */
};

struct af_tx_window {
	uint64_t next; /* the next frame's number */
	uint64_t judged; /* every number below is acknowledged or lost */
	uint64_t seen; /* highest number that the receiver has seen, plus one */
	uint32_t flying; /* chunks in flight */
	uint32_t limit; /* the most that may be */
	uint32_t reorder; /* a number this far behind the newest one seen is lost */
	uint32_t spurious; /* lost by our judgement, yet acknowledged later */
	uint32_t calm; /* acknowledgements since the last of those */
	uint32_t ramp; /* of a path that has come back: as many may fly as yet; 0: `limit` */
	uint64_t late_ns; /* how much later than usual a frame may come */
	uint64_t rtt_ns; /* smoothed, 0 before the first sample */
	uint64_t sent_ns; /* when anything was last sent, and acknowledged, here */
	uint64_t acked_ns;
	struct af_sent ring[AF_TX_RING];
};

static inline struct af_sent *
af_tx_sent(struct af_tx_window *w, uint64_t number)
{
	return &w->ring[number % AF_TX_RING];
}

static inline void
af_tx_window_reset(struct af_tx_window *w, uint32_t limit, uint64_t first_number)
{
	w->next = w->judged = first_number;
	w->seen = 0;
	w->flying = w->spurious = w->calm = w->ramp = 0;
	w->late_ns = 0;
	w->limit = limit < AF_MAX_WINDOW ? limit : AF_MAX_WINDOW;
	w->reorder = AF_REORDER_FIRST;
	w->rtt_ns = w->sent_ns = w->acked_ns = 0;
}

static inline bool
af_tx_ring_full(const struct af_tx_window *w)
{
	return w->next - w->judged >= AF_TX_RING - 1;
}

static inline bool
af_tx_has_room(const struct af_tx_window *w)
{
	return w->flying < w->limit && (!w->ramp || w->flying < w->ramp) && !af_tx_ring_full(w);
}

/* Record the frame that is about to go and return its number. */
static inline uint64_t
af_tx_take(struct af_tx_window *w, uint64_t now_ns, uint32_t slice, uint32_t chunk, bool probe)
{
	struct af_sent *sent = af_tx_sent(w, w->next);

	sent->sent_ns = now_ns;
	sent->slice = slice;
	sent->chunk = chunk;
	sent->state = AF_SENT_FLYING;
	sent->probe = probe;
	sent->requeued = false;
	w->flying += !probe;
	w->sent_ns = now_ns;
	return w->next++;
}

static inline void
af_tx_judge_done(struct af_tx_window *w)
{
	while (w->judged < w->next && af_tx_sent(w, w->judged)->state > AF_SENT_FLYING)
		w->judged++;
}

#endif

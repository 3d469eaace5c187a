/* Arrays of the user in which elements of a slice are to lie, by stream.
 *
 * A call offers its arrays before it waits. The loop binds them to a slice when it grants it, if the slice is the next
 * to be handed over, and each array fits its stream. Then the chunks are written straight into the arrays.
 *
 *   offered --grant--> bound --handed over, or the slice is freed--> given back
 *      \--withdrawn--> given back
 *
 * Only a stream whose elements are one run of one form is bound. Whatever does not fit here goes to element memory,
 * and the caller compares and copies.
 */
#ifndef AIFLOW_INTO_H
#define AIFLOW_INTO_H

#include "aiflow/rx/user_block.h"
#include "aiflow/wire/manifest.h"

#define AF_INTO_STREAMS 64u  /* that one offer may name; of more, all are copied */
#define AF_INTO_LOOKS 65536u /* streams × runs: that a grant compares at most */

struct af_into_stream {
	const uint8_t *stream, *rows,
		*alone; /* name; form of an element, if they are rows of the array, or all of it */
	uint32_t stream_len, rows_len, alone_len;
	uint32_t nb_rows; /* of the array */
	uint64_t nbytes;  /* of the array */
	uint8_t *to;      /* its first byte */
};

struct af_into {
	/* control plane: w before it is offered; dataplane: ro */
	uint32_t nb_streams;
	struct af_into_stream streams[AF_INTO_STREAMS];
	struct af_block
		*block; /* of the receiver's shared memory, that its only array lies in; NULL: it lies elsewhere */
	_Atomic bool wanted;    /* control plane: rw. A call waits for it: no other call takes its slice */
	/* dataplane: w; control: ro */
	_Atomic bool bound; /* to a slice */
	_Atomic bool freed; /* that slice is gone: nothing points here any more */
};

/* The one offer that a grant may take. */
struct af_offer {
	pthread_mutex_t lock; /* per call and grant, never per frame */
	_Atomic(struct af_into *) into; /* NULL: none */
};

/* The array for a run; NULL: none is offered. */
static inline const struct af_into_stream *
af_into_find(const struct af_into *into, const struct af_run_cursor *c)
{
	for (uint32_t i = 0; i < into->nb_streams && !c->run.numbered; i++) {
		const struct af_into_stream *one = &into->streams[i];

		if (one->stream_len == c->run.stream_len && !memcmp(one->stream, c->stream, one->stream_len))
			return one;
	}
	return NULL;
}

static inline bool
af_into_fits(const struct af_into_stream *one, const struct af_run_cursor *c)
{
	const uint8_t *form = c->run.count == 1 ? one->alone : one->rows;
	uint32_t len = c->run.count == 1 ? one->alone_len : one->rows_len;
	bool same = c->run.form_len == len && !memcmp(c->form, form, len);

	if (!same && c->run.count == 1 && one->nb_rows == 1) /* a batch of one */
		same = c->run.form_len == one->rows_len && !memcmp(c->form, one->rows, one->rows_len);
	return same && c->run.kind == AF_RUN_ELEMENT && (c->run.count == 1 || c->run.count == one->nb_rows) &&
	       c->run.count * c->run.nbytes == one->nbytes;
}

/* Has the manifest each stream of the offer once, and as its array is? rest: block bytes of all other runs. The
 * manifest has been measured. */
static inline bool
af_into_takes(const struct af_into *into, const uint8_t *manifest, uint64_t len, uint64_t *rest)
{
	struct af_manifest m;
	struct af_run_cursor runs;
	uint64_t found = 0;

	*rest = 0;
	af_manifest_read(manifest, len, &m, &runs);
	if ((uint64_t)m.nb_runs * into->nb_streams > AF_INTO_LOOKS)
		return false;
	for (uint32_t r = 0; r < m.nb_runs && af_run_next(&runs); r++) {
		const struct af_into_stream *one = af_into_find(into, &runs);
		uint64_t bit = one ? 1ull << (one - into->streams) : 0;

		if (!one)
			*rest = af_align(*rest) + runs.run.count * runs.run.nbytes;
		else if ((found & bit) || !af_into_fits(one, &runs))
			return false;
		found |= bit;
	}
	return (uint32_t)__builtin_popcountll(found) == into->nb_streams;
}

static inline void
af_offer_init(struct af_offer *offer)
{
	pthread_mutex_init(&offer->lock, NULL);
	atomic_store(&offer->into, NULL);
}

/* Any thread. False while another call's arrays are offered. */
static inline bool
af_offer_make(struct af_offer *offer, struct af_into *into)
{
	bool made;

	pthread_mutex_lock(&offer->lock);
	made = !atomic_load(&offer->into);
	if (made) {
		atomic_store(&into->bound, false);
		atomic_store(&into->freed, false);
		atomic_store(&offer->into, into);
	}
	pthread_mutex_unlock(&offer->lock);
	return made;
}

/* Any thread. False when a slice has the arrays already: they are its own until it is taken or freed. */
static inline bool
af_offer_withdraw(struct af_offer *offer, struct af_into *into)
{
	bool bound;

	pthread_mutex_lock(&offer->lock);
	bound = atomic_load(&into->bound) && !atomic_load(&into->freed);
	if (atomic_load(&offer->into) == into)
		atomic_store(&offer->into, NULL);
	pthread_mutex_unlock(&offer->lock);
	return !bound;
}

/* The loop. Take the offer for the slice of this manifest; NULL: there is none, or it does not fit. */
static inline struct af_into *
af_offer_take(struct af_offer *offer, const uint8_t *manifest, uint64_t len)
{
	struct af_into *into;
	uint64_t rest;

	pthread_mutex_lock(&offer->lock);
	into = atomic_load(&offer->into);
	if (into && ((into->block && into->block->fenced) || !af_into_takes(into, manifest, len, &rest)))
		into = NULL;
	if (into) {
		atomic_store(&into->bound, true);
		atomic_store(&offer->into, NULL);
	}
	pthread_mutex_unlock(&offer->lock);
	return into;
}

/* The slice is gone; `into` may be, too, when this returns. Any thread. */
static inline void
af_into_free(struct af_into *into)
{
	atomic_store_explicit(&into->freed, true, memory_order_release);
}

#endif

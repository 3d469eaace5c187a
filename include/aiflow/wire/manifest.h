/* The manifest of a slice, and the chunk numbers that both ends derive from it.
 *
 * The manifest is a header, runs of like elements, and extensions (extension.h):
 *
 *     header   u8 format | u8 flags | u16 payload_bytes | u32 nb_runs | u32 nb_elements | u64 nbytes
 *     run      u32 count | u64 nbytes of each | u32 first | u8 numbered | u8 kind | u16 stream_len | u16 form_len
 *              | u16 marks_len | stream | form | marks
 *     mark     u8 key | u8 length | value, big-endian
 *
 * `form` (dtype, shape, order) is for Python. The streams of a numbered run are stream + str(first), stream +
 * str(first + 1) and so on. `kind` and marks describe elements that are no arrays, such as files with their modes;
 * only `aiflow send` sets them. A receiver refuses a kind, mark or form that it does not know (af_run_unknown).
 *
 * Chunks are numbered through the slice: first the pieces of the manifest, then the data, then the closing record. An
 * element larger than one payload is segmented into pieces of `payload_bytes`. Consecutive smaller elements are packed
 * greedily. Both ends derive the same numbers from the manifest, so one bitmap covers a slice.
 */
#ifndef AIFLOW_MANIFEST_H
#define AIFLOW_MANIFEST_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "aiflow/wire/extension.h"
#include "aiflow/wire/form.h"
#include "aiflow/wire/frame.h"

#define AF_MANIFEST_HEADER 20u
#define AF_RUN_HEADER 24u
#define AF_FLAG_INLINE 1u      /* the data follows the manifest in the same frame */
#define AF_ALIGN 64u           /* a run begins on a cache line */
#define AF_PACK_MOST 60000u    /* elements in one PACKED frame */

enum af_run_kind {
	AF_RUN_ELEMENT,
	AF_RUN_FILE,
	AF_RUN_PART,      /* of a file: AF_MARK_OFFSET and AF_MARK_SIZE say which; AF_MARK_HOLE what follows it */
	AF_RUN_DIRECTORY, /* no bytes: a directory, which may be empty */
	AF_RUN_QUESTION,  /* no bytes: does the receiver have this file? */
	AF_NB_RUN_KINDS
};

enum af_mark {
	AF_MARK_NONE,
	AF_MARK_MODE,   /* u32: permission bits */
	AF_MARK_MTIME,  /* i64: nanoseconds since 1970 */
	AF_MARK_OFFSET, /* u64: offset of a part in its file */
	AF_MARK_SIZE,   /* u64: bytes of the whole file */
	AF_MARK_HOLE,   /* u64: zeros that follow a part, and are not sent */
	AF_NB_MARKS
};

struct __attribute__((packed)) af_manifest {
	uint8_t format; /* AF_MANIFEST_FORMAT, first in every format */
	uint8_t flags;
	uint16_t payload_bytes;
	uint32_t nb_runs, nb_elements;
	uint64_t nbytes;
};

struct __attribute__((packed)) af_run {
	uint32_t count;
	uint64_t nbytes;
	uint32_t first;
	uint8_t numbered, kind;
	uint16_t stream_len, form_len, marks_len;
};

_Static_assert(sizeof(struct af_manifest) == AF_MANIFEST_HEADER, "wire size");
_Static_assert(sizeof(struct af_run) == AF_RUN_HEADER, "wire size");

/* Assigns chunk numbers, element by element. */
struct af_chunker {
	uint32_t payload_bytes;
	uint64_t next;  /* the next unused number */
	uint32_t packed; /* elements in the open pack, 0 when none is open */
	uint32_t pack_bytes;
};

/* The first chunk of an element of `nbytes` bytes, relative to the slice's first data chunk. */
static inline uint64_t
af_chunk_of(struct af_chunker *c, uint64_t nbytes)
{
	uint64_t first = c->next;

	if (nbytes > c->payload_bytes) {
		c->packed = 0;
		c->next += (nbytes + c->payload_bytes - 1) / c->payload_bytes;
		return first;
	}
	if (c->packed && c->pack_bytes + nbytes <= c->payload_bytes && c->packed < AF_PACK_MOST) {
		c->packed++;
		c->pack_bytes += (uint32_t)nbytes;
		return first - 1;
	}
	c->packed = 1;
	c->pack_bytes = (uint32_t)nbytes;
	c->next++;
	return first;
}

static inline uint32_t
af_manifest_chunks(uint32_t manifest_bytes, uint32_t payload_bytes)
{
	return (manifest_bytes + payload_bytes - 1) / payload_bytes;
}

static inline uint64_t
af_align(uint64_t offset)
{
	return (offset + AF_ALIGN - 1) & ~(uint64_t)(AF_ALIGN - 1);
}

/* Iterates over the runs of an untrusted manifest: every length is checked before it is used. */
struct af_run_cursor {
	const uint8_t *at, *end;
	struct af_run run; /* host order */
	const uint8_t *stream, *form, *marks;
};

static inline bool
af_manifest_read(const uint8_t *bytes, uint64_t len, struct af_manifest *out, struct af_run_cursor *runs)
{
	memset(out, 0, sizeof *out);
	memset(runs, 0, sizeof *runs);
	if (len < AF_MANIFEST_HEADER)
		return false;
	memcpy(out, bytes, sizeof *out);
	out->payload_bytes = AF_BE16(out->payload_bytes);
	out->nb_runs = AF_BE32(out->nb_runs);
	out->nb_elements = AF_BE32(out->nb_elements);
	out->nbytes = AF_BE64(out->nbytes);
	runs->at = bytes + AF_MANIFEST_HEADER;
	runs->end = bytes + len;
	return true;
}

static inline bool
af_run_next(struct af_run_cursor *c)
{
	struct af_run *r = &c->run;

	if (c->end - c->at < (ptrdiff_t)AF_RUN_HEADER)
		return false;
	memcpy(r, c->at, sizeof *r);
	r->count = AF_BE32(r->count);
	r->nbytes = AF_BE64(r->nbytes);
	r->first = AF_BE32(r->first);
	r->stream_len = AF_BE16(r->stream_len);
	r->form_len = AF_BE16(r->form_len);
	r->marks_len = AF_BE16(r->marks_len);
	c->stream = c->at + AF_RUN_HEADER;
	if (c->end - c->stream < (ptrdiff_t)r->stream_len + r->form_len + r->marks_len)
		return false;
	c->form = c->stream + r->stream_len;
	c->marks = c->form + r->form_len;
	c->at = c->marks + r->marks_len;
	return true;
}

/* The totals of a manifest. */
struct af_extent {
	uint64_t nb_elements, nbytes, block_bytes;
	const uint8_t *end; /* of the last run: where extensions begin */
};

/* False when the manifest contradicts itself or overflows. */
static inline bool
af_manifest_measure(const uint8_t *bytes, uint64_t len, struct af_manifest *m, struct af_extent *out)
{
	struct af_run_cursor runs;
	uint64_t bound = 1ull << 48; /* far beyond any memory, far below an overflow */

	memset(out, 0, sizeof *out);
	if (!af_manifest_read(bytes, len, m, &runs) || m->payload_bytes == 0)
		return false;
	for (uint32_t i = 0; i < m->nb_runs; i++) {
		if (!af_run_next(&runs) || !runs.run.count || runs.run.nbytes > bound)
			return false;
		out->nb_elements += runs.run.count;
		if (runs.run.nbytes && runs.run.count > bound / runs.run.nbytes)
			return false;
		out->nbytes += runs.run.count * runs.run.nbytes;
		out->block_bytes = af_align(out->block_bytes) + runs.run.count * runs.run.nbytes;
		if (out->nbytes > bound)
			return false;
	}
	out->end = runs.at;
	if (out->nb_elements != m->nb_elements || out->nbytes != m->nbytes)
		return false;
	return true;
}

/* ---- what this build knows ---- */

/* What this build does not know. */
enum af_unknown {
	AF_KNOWN,
	AF_UNKNOWN_KIND,
	AF_UNKNOWN_MARK,
	AF_UNKNOWN_FORM,
	AF_UNKNOWN_FORMAT,   /* of the manifest */
	AF_UNKNOWN_EXTENSION /* of the manifest */
};

/* The first unknown thing in a run. */
static inline enum af_unknown
af_run_unknown(const struct af_run_cursor *c, uint32_t *value)
{
	static const uint8_t sizes[AF_NB_MARKS] = {0, 4, 8, 8, 8, 8};
	const uint8_t *at = c->marks, *end = c->marks + c->run.marks_len;

	*value = c->run.kind;
	if (c->run.kind >= AF_NB_RUN_KINDS || c->run.numbered > 1)
		return AF_UNKNOWN_KIND;
	for (; at < end; at += 2 + at[1]) {
		*value = at[0];
		if (end - at < 2 || at[0] == AF_MARK_NONE || at[0] >= AF_NB_MARKS || at[1] != sizes[at[0]] ||
		    end - at < 2 + at[1])
			return AF_UNKNOWN_MARK;
	}
	return c->run.form_len && !af_form_is_known(c->form, c->run.form_len) ? AF_UNKNOWN_FORM : AF_KNOWN;
}

#endif

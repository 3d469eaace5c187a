/* HELLO frames, by which sender and receiver find each other. */
#ifndef AIFLOW_HELLO_H
#define AIFLOW_HELLO_H

#include "aiflow/wire/extension.h"
#include "aiflow/wire/frame.h"

/* Write a HELLO and return its size. It is padded to `size` bytes. `f` has session, number and timestamp. */
static inline uint32_t
af_hello_write(uint8_t *frame, const uint8_t *src, const uint8_t *dst, struct af_frame f, struct af_hello *h,
	       const char *name, const char *to, uint32_t size)
{
	uint8_t *at = frame + AF_HEADER;

	h->format = AF_HELLO_FORMAT;
	h->name_len = (uint8_t)strnlen(name, AF_NAME_BYTES - 1);
	h->to_len = (uint8_t)strnlen(to, AF_NAME_BYTES - 1);
	memcpy(at, h, sizeof *h);
	memcpy(at + sizeof *h, name, h->name_len);
	memcpy(at + sizeof *h + h->name_len, to, h->to_len);
	f.kind = AF_HELLO;
	f.end = 1;
	f.path = AF_PATH_NONE;
	f.payload = NULL;
	f.nbytes = (uint32_t)sizeof *h + h->name_len + h->to_len;
	if (size > AF_HEADER + f.nbytes) {
		memset(at + f.nbytes, 0, size - AF_HEADER - f.nbytes);
		f.nbytes = size - AF_HEADER;
	}
	return af_wire_seal(frame, dst, src, &f);
}

/* Read a HELLO; `name` and `to` have AF_NAME_BYTES each. AF_OK, or the reason to drop it. */
static inline enum af_drop
af_hello_read(const struct af_frame *f, struct af_hello *h, char *name, char *to)
{
	const uint8_t *at = f->payload + sizeof *h, *end = f->payload + f->nbytes;

	if (f->nbytes && f->payload[0] != AF_HELLO_FORMAT)
		return AF_DROP_VERSION;
	if (f->nbytes < sizeof *h)
		return AF_DROP_HELLO;
	memcpy(h, f->payload, sizeof *h);
	if (h->answer > 1 || h->name_len >= AF_NAME_BYTES || h->to_len >= AF_NAME_BYTES ||
	    f->nbytes < sizeof *h + h->name_len + h->to_len || AF_BE16(h->port) >= AF_MAX_PORTS)
		return AF_DROP_HELLO;
	memcpy(name, at, h->name_len);
	name[h->name_len] = 0;
	memcpy(to, at + h->name_len, h->to_len);
	to[h->to_len] = 0;
	return af_extensions_drop(at + h->name_len + h->to_len, end, AF_DROP_HELLO);
}

#endif

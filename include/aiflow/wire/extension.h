/* Extensions: what a later build may append to HELLO, feedback and manifest.
 *
 *     entry   u16 kind | u16 nbytes | nbytes bytes
 *
 * Entries go on to the end of the payload, or to an entry of kind 0: what follows that is padding. A kind with the top
 * bit set must be understood, else the whole is refused. Any other unknown kind is ignored. This build writes and knows
 * AF_EXTENSION_PLACES in feedback, and AF_EXTENSION_LOAN in manifests.
 */
#ifndef AIFLOW_EXTENSION_H
#define AIFLOW_EXTENSION_H

#include "aiflow/wire/frame.h"

#define AF_EXTENSION_HEADER 4u
#define AF_EXTENSION_END 0u       /* no entry: padding follows */
#define AF_EXTENSION_MUST 0x8000u /* set in a kind that must be understood */

/* Iterates over untrusted entries: every length is checked before it is used. */
struct af_extension_cursor {
	const uint8_t *at, *end;
	uint16_t kind, nbytes; /* of the entry */
	const uint8_t *bytes;  /* of the entry */
	bool broken;           /* an entry claims more bytes than there are */
};

/* The next entry; false at the end, and at a broken one. */
static inline bool
af_extension_next(struct af_extension_cursor *c)
{
	uint16_t head[2] = {0};
	ptrdiff_t left = c->end - c->at;

	memcpy(head, c->at, left < (ptrdiff_t)sizeof head ? (size_t)left : sizeof head);
	c->kind = AF_BE16(head[0]);
	c->nbytes = AF_BE16(head[1]);
	if (c->kind == AF_EXTENSION_END)
		return false;
	c->broken = left < (ptrdiff_t)AF_EXTENSION_HEADER + c->nbytes;
	c->bytes = c->at + AF_EXTENSION_HEADER;
	c->at = c->broken ? c->end : c->bytes + c->nbytes;
	return !c->broken;
}

enum af_extensions { AF_EXTENSIONS_FINE, AF_EXTENSIONS_BROKEN, AF_EXTENSIONS_UNKNOWN };

/* Can this build read what has these entries? It knows the kind `known` there, 0 for none. `kind` becomes the first
 * that it must understand, and does not. */
static inline enum af_extensions
af_extensions_check(const uint8_t *at, const uint8_t *end, uint32_t known, uint32_t *kind)
{
	struct af_extension_cursor c = {.at = at, .end = end};
	enum af_extensions found = AF_EXTENSIONS_FINE;

	while (af_extension_next(&c)) {
		if (c.kind & AF_EXTENSION_MUST && c.kind != known && found == AF_EXTENSIONS_FINE) {
			found = AF_EXTENSIONS_UNKNOWN;
			*kind = c.kind;
		}
	}
	return c.broken ? AF_EXTENSIONS_BROKEN : found;
}

/* The same for a frame: the reason to drop it; `broken` is the reason for one that contradicts itself. */
static inline enum af_drop
af_extensions_drop(const uint8_t *at, const uint8_t *end, enum af_drop broken)
{
	uint32_t kind;
	enum af_extensions found = af_extensions_check(at, end, 0, &kind);

	return found == AF_EXTENSIONS_FINE ? AF_OK : found == AF_EXTENSIONS_BROKEN ? broken : AF_DROP_VERSION;
}

#endif

/* Inputs of the state machines' fuzzers: records of one octet of flags, two of length, and a frame.
 *
 * A raw record without a frame says that a connection ends: that of its port.
 *
 * What no mutation finds is put right unless the flags say otherwise: MACs, EtherType, version, length, session, CRC.
 */
#ifndef TESTS_RECORDS_H
#define TESTS_RECORDS_H

#include <stdlib.h>

#include "aiflow/wire/frame.h"

#define RECORD_RAW 1u    /* the frame as it is */
#define RECORD_REPLY 2u  /* the agent under test may speak now */
#define RECORD_WAIT 4u   /* 2^(flags >> 4) ms go by */
#define RECORD_BYTES 3u
#define NB_PORTS 2u

#define CHECK(what) ((what) ? (void)0 : abort())

struct record {
	uint8_t flags, *frame; /* owned by the caller */
	uint32_t len, port;
};

/* The next record, false at the end. */
static bool
next_record(const uint8_t **at, const uint8_t *end, struct record *r)
{
	if (end - *at < (ptrdiff_t)RECORD_BYTES)
		return false;
	r->flags = (*at)[0];
	r->len = (uint32_t)((*at)[1] << 8 | (*at)[2]) % 2048;
	r->port = r->flags >> 3 & 1;
	*at += RECORD_BYTES;
	if (r->len > (uint64_t)(end - *at))
		r->len = (uint32_t)(end - *at);
	r->frame = malloc(r->len ? r->len : 1); /* of just this length */
	memcpy(r->frame, *at, r->len);
	*at += r->len;
	return true;
}

static bool
ends_connection(const struct record *r)
{
	return r->flags & RECORD_RAW && !r->len;
}

static void
put_right(struct record *r, const uint8_t *dst, const uint8_t *src, uint32_t session)
{
	uint8_t *frame = r->frame;
	uint32_t length, crc, wire_session = AF_BE32(session);

	if (r->flags & RECORD_RAW || r->len < AF_MIN_FRAME)
		return;
	memcpy(frame, dst, 6);
	memcpy(frame + 6, src, 6);
	frame[12] = AF_ETHERTYPE >> 8;
	frame[13] = AF_ETHERTYPE & 255;
	frame[14] = (uint8_t)(AF_VERSION << 4 | (frame[14] & 15));
	length = (uint32_t)(frame[31] << 8 | frame[32]);
	if (34 + length > r->len || length < AF_HEADER - 34) {
		length = r->len - 34;
		frame[31] = (uint8_t)(length >> 8);
		frame[32] = (uint8_t)length;
	}
	memcpy(frame + 34, &wire_session, 4); /* an answer to a HELLO has it, too */
	crc = AF_BE32(af_crc32c(af_crc32c(0, frame + 12, 50 - 12), frame + AF_HEADER, length - (AF_HEADER - 34)));
	memcpy(frame + 50, &crc, 4);
}

#endif

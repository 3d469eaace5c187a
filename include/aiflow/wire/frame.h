/* The wire format: the layout of a frame, how to write one, and how to check one from an unknown sender.
 *
 *  offset bytes field            offset bytes field (transport header)
 *       0     6 dst MAC              34     4 session
 *       6     6 src MAC              38     4 slice
 *      12     2 EtherType            42     2 path
 *      14     1 frame_id             44     6 number   (per path, never used twice)
 *      15     4 element              50     4 CRC32C   (bytes 12..49 and 54..33 + length)
 *      19     4 seq                  54       payload, length - 20 bytes
 *      23     8 timestamp_ns
 *      31     2 length (of all that follows byte 33)
 *      33     1 end
 *
 * `session` is the number that the receiver of the frame has minted (rt/numbers.h), so it finds the agent that the
 * frame is for.
 *
 * Big-endian, zero-padded to 60 bytes; bytes after 33 + length are ignored. The high nibble of frame_id is the version,
 * the low one the kind. This is Table 1 of the paper plus an EtherType. The CRC takes the place of Table 1's FCS, which
 * software ports do not have; it does not cover the MACs.
 */
#ifndef AIFLOW_FRAME_H
#define AIFLOW_FRAME_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "aiflow/wire/crc32c.h"

#define AF_ETHERTYPE 0x88B5u /* IEEE 802 local experimental 1 */
#define AF_VERSION 3u
#define AF_MIN_FRAME 60u /* Ethernet's minimum without its FCS */
#define AF_MIN_PATH_FRAME 512u /* least frame size of a path: the largest HELLO and feedback of one path fit */
#define AF_MAX_FRAME 65000u
#define AF_HEADER 54u /* both headers */
#define AF_MAX_PORTS 32u  /* of one side, hence paths of a session; RTE_MAX_ETHPORTS of the usual builds */
#define AF_NAME_BYTES 64u /* of a name in a HELLO, with its NUL */

/* Tables: one list each, from which the enumeration, the names and their number come. */
#define AF_TABLE_SYMBOL(symbol, name) symbol,
#define AF_TABLE_NAME(symbol, name) name,

/* Kinds of frames. Their numbers, from 1, are the wire's: a new kind goes to the end. */
/* clang-format off */
#define AF_KIND_LIST(X) \
	X(AF_DATA, "DATA")         /* element, seq: the chunk's place; end: the element's last chunk */ \
	X(AF_PACKED, "PACKED")     /* element: the first of `seq` whole elements, end to end */ \
	X(AF_MANIFEST, "MANIFEST") /* element: bytes of the manifest; seq: this piece of it; end: the last piece */ \
	X(AF_GRANT, "GRANT")       /* a FEEDBACK that is sent because a slice was granted */ \
	X(AF_FEEDBACK, "FEEDBACK") /* the receiver's state: `struct af_feedback` and path records */ \
	X(AF_HELLO, "HELLO")       /* `struct af_hello` and two names */ \
	X(AF_PROBE, "PROBE")       /* asks for feedback now */ \
	X(AF_BYE, "BYE")           /* element: AF_BYE_SENDER, which has closed, or AF_BYE_RECEIVER, which answers */ \
	X(AF_VOID, "VOID")         /* the sender has given this slice up */ \
	X(AF_CLOSE, "CLOSE")       /* closing record of a slice: the CRC32C over all its bytes */ \
	X(AF_PLACED, "PLACED")     /* as DATA; the payload is the chunk's CRC32C, its bytes are in their place */ \
	X(AF_PLACED_PACK, "PLACED_PACK") /* as PACKED, likewise */
/* clang-format on */

enum af_kind { AF_NO_KIND, AF_KIND_LIST(AF_TABLE_SYMBOL) AF_NB_KINDS };

_Static_assert(AF_PLACED_PACK == 12 && AF_NB_KINDS == 13, "wire numbers: add a kind at the end, and count it here");

static inline const char *
af_kind_name(unsigned kind)
{
	static const char *const names[] = {"", AF_KIND_LIST(AF_TABLE_NAME)};

	return kind < AF_NB_KINDS ? names[kind] : "";
}

struct __attribute__((packed)) af_header {
	uint8_t dst[6], src[6];
	uint16_t ethertype;
	uint8_t frame_id;
	uint32_t element, seq;
	uint64_t timestamp_ns;
	uint16_t length;
	uint8_t end;
	/* transport header */
	uint32_t session, slice;
	uint16_t path;
	uint16_t number_high;
	uint32_t number_low;
	uint32_t crc;
};

_Static_assert(sizeof(struct af_header) == AF_HEADER, "headers are 34 + 20 bytes");
_Static_assert(offsetof(struct af_header, ethertype) == 12, "wire offset");
_Static_assert(offsetof(struct af_header, frame_id) == 14, "wire offset");
_Static_assert(offsetof(struct af_header, element) == 15, "wire offset");
_Static_assert(offsetof(struct af_header, seq) == 19, "wire offset");
_Static_assert(offsetof(struct af_header, timestamp_ns) == 23, "wire offset");
_Static_assert(offsetof(struct af_header, length) == 31, "wire offset");
_Static_assert(offsetof(struct af_header, end) == 33, "wire offset");
_Static_assert(offsetof(struct af_header, session) == 34, "wire offset");
_Static_assert(offsetof(struct af_header, path) == 42, "wire offset");
_Static_assert(offsetof(struct af_header, crc) == 50, "wire offset");

/* `element` of a BYE: whose it is. `slice` of a receiver's BYE: the number that it minted. */
enum af_bye { AF_BYE_SENDER = 1, AF_BYE_RECEIVER = 2 };

/* Formats of what frames carry. Another one is refused as another version is. */
#define AF_HELLO_FORMAT 1u
#define AF_FEEDBACK_FORMAT 1u
#define AF_MANIFEST_FORMAT 1u

/* `path` of a HELLO, which belongs to none. Its numbers count for each direction of an instance. */
#define AF_PATH_NONE 0xffffu

/* Discovery. A sender asks by broadcast; a receiver answers that sender alone. A question has session 0 in its header,
 * an answer has the number of the sender that asked. */
struct __attribute__((packed)) af_hello {
	uint8_t format; /* AF_HELLO_FORMAT. Every format begins with these three fields, so that it can be answered */
	uint8_t answer; /* 0: a sender asks; 1: a receiver answers */
	uint32_t session; /* the number that its writer minted; answer: 0 when the sender asked for another receiver */
	uint8_t keeps_mbufs; /* answer: nothing may travel inside a manifest */
	uint16_t port; /* index of the port within its side */
	uint16_t nb_ports;
	uint16_t frame_size; /* largest frame of this port */
	uint16_t heard_bytes; /* answer: size of the HELLO that arrived, which proves the path's MTU */
	uint16_t nb_paths; /* answer: paths of other senders on this port */
	uint32_t window; /* answer: frames that the port can hold */
	uint64_t sender; /* its instance: 48 random bits, and 16 that count its sessions */
	uint64_t epoch; /* answer: the receiver's instance */
	uint8_t name_len, to_len; /* followed by the two names, and extensions (extension.h) */
};

/* A slice that the receiver does not have, and why. */
struct __attribute__((packed)) af_void {
	uint32_t slice;
	uint32_t reason;
	uint64_t detail;
};

/* Slices that a sender may have in flight. The void of slice i is entry i % 8, so none is overwritten before its sender
 * knows it. The last entry is AF_VOID_SILENCE's. */
#define AF_SLICES_IN_FLIGHT 8
#define AF_NB_VOIDS (AF_SLICES_IN_FLIGHT + 1)

/* The receiver's state for one session. State, not events: the newest feedback replaces all older feedback. Path
 * records follow, then `text_bytes` bytes of a text: why slice `text_slice` is void, in the user's words. Extensions
 * (extension.h) come last. */
struct __attribute__((packed)) af_feedback {
	uint8_t format; /* AF_FEEDBACK_FORMAT, first in every format */
	uint32_t granted; /* every slice below may send its data */
	uint32_t done; /* every slice below is complete at the receiver, or void */
	uint32_t confirmed; /* every slice below is confirmed by the receiver's user, or void; at most `done` */
	uint32_t ask_slice; /* oldest slice with a missing chunk, or 0 */
	uint32_t ask_chunk; /* its first missing chunk */
	uint32_t text_slice; /* the slice that the piece of text below is about, or 0 */
	uint16_t text_total; /* bytes of the whole text, */
	uint16_t text_at; /* offset of the piece in it, */
	uint16_t text_bytes; /* and bytes of the piece */
	uint8_t drop; /* enum af_drop: the most frequent reason that hints at a misconfiguration */
	uint32_t drops; /* frames that were dropped for it */
	uint64_t free_bytes; /* of the receiver's memory: for the sender's messages only */
	struct af_void voids[AF_NB_VOIDS];
	uint8_t nb_paths;
};

/* Extension of feedback: where granted slices lie in the memory that the receiver shares. An entry for each. */
#define AF_EXTENSION_PLACES 1u

/* Extension of a manifest, which must be understood: its elements are on loan (loan.h). */
#define AF_EXTENSION_LOAN 0x8002u

struct __attribute__((packed)) af_place {
	uint32_t slice;
	uint64_t offset; /* of its block, in the shared memory */
};

/* One path within feedback. The bitmap has the packet numbers in [next - 64 * words, next); older ones need no answer.
 */
struct __attribute__((packed)) af_path_feedback {
	uint16_t path;
	uint8_t words;
	uint8_t reserved;
	uint32_t window;
	uint64_t next;
	uint64_t frames;
	uint64_t echo_ns; /* timestamp of the newest frame, and how long ago it arrived */
	uint32_t hold_ns;
	/* uint64_t bitmap[words], oldest numbers first, lowest bit first */
};

_Static_assert(sizeof(struct af_hello) == 39, "wire size");
_Static_assert(sizeof(struct af_void) == 16, "wire size");
_Static_assert(sizeof(struct af_feedback) == 45 + 16 * AF_NB_VOIDS, "wire size");
_Static_assert(sizeof(struct af_path_feedback) == 36, "wire size");
_Static_assert(sizeof(struct af_place) == 12, "wire size");

/* AF_VOID_SILENCE: this slice and all later ones were freed, because their sender was silent. It may retransmit them.
 */
enum af_void_reason {
	AF_VOID_NONE,
	AF_VOID_TOO_LARGE,
	AF_VOID_INTEGRITY,
	AF_VOID_MANIFEST,
	AF_VOID_CANCELLED,
	AF_VOID_SILENCE,
	AF_VOID_UNKNOWN, /* its manifest has something that this receiver does not know; the text says what */
	AF_VOID_FAILED, /* the receiver's user could not use it; the text says which elements, and why */
	AF_VOID_NO_PAGES /* its memory= has room, its system has none; the detail says how many bytes there are */
};

/* Why a frame was not taken. Every drop is counted under one of these. The numbers are the wire's (`drop` of
 * struct af_feedback): a new reason goes to the end. */
/* clang-format off */
#define AF_DROP_LIST(X) \
	X(AF_OK, "ok")                        /* it was taken */ \
	X(AF_DROP_RUNT, "runt")               /* shorter than Ethernet's minimum */ \
	X(AF_DROP_LENGTH, "length")           /* its length field claims more bytes than arrived */ \
	X(AF_DROP_MTU, "mtu")                 /* longer than this port takes */ \
	X(AF_DROP_HEADER, "header")           /* its length field leaves no room for the headers */ \
	X(AF_DROP_FOREIGN, "foreign")         /* another EtherType */ \
	X(AF_DROP_VLAN, "vlan")               /* one of ours behind a VLAN tag */ \
	X(AF_DROP_KIND, "kind")               /* a kind that this end does not take, or its own direction's BYE */ \
	X(AF_DROP_DST_MAC, "dst_mac")         /* for another unicast address */ \
	X(AF_DROP_BROADCAST, "broadcast")     /* a group address, and no HELLO */ \
	X(AF_DROP_SEGMENTS, "segments")       /* a chain of mbufs that the loop does not join */ \
	X(AF_DROP_CRC, "crc")                 /* damaged */ \
	X(AF_DROP_SESSION, "session")         /* of no session that is known and alive */ \
	X(AF_DROP_SRC_MAC, "src_mac")         /* of an address that sent no HELLO in this session */ \
	X(AF_DROP_PATH, "path")               /* a path index beyond AF_MAX_PORTS */ \
	X(AF_DROP_NUMBER, "number")           /* a packet number too far ahead */ \
	X(AF_DROP_REPLAY, "replay")           /* a packet number that was seen before */ \
	X(AF_DROP_DUPLICATE, "duplicate")     /* a chunk that was received before */ \
	X(AF_DROP_NOT_GRANTED, "not_granted") /* data of a slice that was not granted */ \
	X(AF_DROP_ELEMENT, "element")         /* an element that the manifest does not have */ \
	X(AF_DROP_SEQ, "seq")                 /* a chunk that the element does not have */ \
	X(AF_DROP_END, "end")                 /* its end flag contradicts the manifest */ \
	X(AF_DROP_SIZE, "size")               /* its size contradicts the manifest */ \
	X(AF_DROP_CONFLICT, "conflict")       /* a chunk that was received before, with other bytes */ \
	X(AF_DROP_MANIFEST, "manifest")       /* a manifest piece that contradicts itself or the others */ \
	X(AF_DROP_HELLO, "hello")             /* a HELLO that contradicts itself */ \
	X(AF_DROP_FEEDBACK, "report")         /* feedback that contradicts itself; `report` is what users see */ \
	X(AF_DROP_BUSY, "busy")               /* no memory or no table entry for its sender */ \
	X(AF_DROP_VERSION, "version")         /* another version, format, or extension that must be understood */ \
	X(AF_DROP_PLACE, "place")             /* a placed chunk of a slice whose place its sender was not told */
/* clang-format on */

enum af_drop { AF_DROP_LIST(AF_TABLE_SYMBOL) AF_NB_DROPS };

_Static_assert(AF_DROP_PLACE == 29 && AF_NB_DROPS == 30, "wire numbers: add a reason at the end, and count it here");

/* The counter's name as users see it. */
static inline const char *
af_drop_name(unsigned drop)
{
	static const char *const names[] = {AF_DROP_LIST(AF_TABLE_NAME)};

	return drop < AF_NB_DROPS ? names[drop] : "";
}

/* A frame in host byte order. */
struct af_frame {
	uint8_t kind, end;
	uint16_t path;
	uint32_t element, seq, session, slice;
	uint64_t number, timestamp_ns;
	uint8_t src[6]; /* a copy: the mbuf may be freed earlier */
	const uint8_t *payload; /* in the frame; or, before it is sealed, anywhere */
	uint32_t nbytes; /* of the payload */
	uint32_t frame_bytes; /* as it arrived, with its padding */
	uint32_t header_crc, crc; /* over the headers alone; over headers and payload */
	uint8_t *to; /* where the payload is copied to while its CRC is computed; NULL: nowhere */
	enum af_copy how;
};

#define AF_BE16(v) __builtin_bswap16(v)
#define AF_BE32(v) __builtin_bswap32(v)
#define AF_BE64(v) __builtin_bswap64(v)
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "aiflow is built for little-endian machines");

#define AF_LIFE_BITS 16

static const uint8_t af_broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

/* Bytes 12 to 49 of a frame as five words, the last of six bytes. Memory is accessed in these words, too: a load that
 * spans two stores waits until the CPU's store buffer, full of payload, has drained. */
struct af_words {
	uint64_t w[5];
};

static inline struct af_words
af_wire_words(const uint8_t *frame)
{
	struct af_words words;

	memcpy(words.w, frame + 12, sizeof words.w);
	words.w[4] &= 0xffffffffffffull;
	return words;
}

static inline uint32_t
af_wire_header_crc(const struct af_words *words)
{
#ifdef AF_CRC_U64
	uint32_t crc = 0xffffffffu;

	for (int i = 0; i < 4; i++)
		crc = AF_CRC_U64(crc, words->w[i]);
	crc = AF_CRC_U32(crc, (uint32_t)words->w[4]);
	return ~AF_CRC_U16(crc, (uint16_t)(words->w[4] >> 32));
#else
	return af_crc32c(0, words->w, 50 - 12);
#endif
}

/* The CRC of a frame whose header_crc is known. The payload is copied to f->to on the way, unless that is NULL. */
static inline uint32_t
af_wire_crc(const struct af_frame *f)
{
	if (f->to)
		return af_copy_crc32c(f->header_crc, f->to, f->payload, f->nbytes, f->how);
	return af_crc32c(f->header_crc, f->payload, f->nbytes);
}

/* Parse a frame of `len` bytes that arrived on a port with address `mac`, which takes frames of up to `max_frame`
 * bytes. Returns AF_OK and fills `out`, or the reason to drop the frame. Trust nothing in `out` before af_wire_check.
 * Reads no byte beyond `len`. */
static inline enum af_drop
af_wire_read(const uint8_t *frame, uint32_t len, const uint8_t *mac, uint32_t max_frame, struct af_frame *out)
{
	struct af_words words;
	const uint64_t *w = words.w;
	uint32_t length;
	uint8_t id;

	if (len < AF_MIN_FRAME)
		return AF_DROP_RUNT;
	words = af_wire_words(frame);
	if ((uint16_t)w[0] != AF_BE16(AF_ETHERTYPE)) /* behind a VLAN tag it may still be ours */
		return ((uint16_t)w[0] == AF_BE16(0x8100) || (uint16_t)w[0] == AF_BE16(0x88A8)) &&
				       (uint16_t)(w[0] >> 32) == AF_BE16(AF_ETHERTYPE)
			       ? AF_DROP_VLAN
			       : AF_DROP_FOREIGN;
	id = (uint8_t)(w[0] >> 16);
	if (id >> 4 != AF_VERSION)
		return AF_DROP_VERSION;
	if ((id & 15) == 0 || (id & 15) >= AF_NB_KINDS)
		return AF_DROP_KIND;
	out->kind = id & 15;
	if (memcmp(frame, mac, 6)) {
		if (!(frame[0] & 1))
			return AF_DROP_DST_MAC;
		if (out->kind != AF_HELLO || memcmp(frame, af_broadcast, 6))
			return AF_DROP_BROADCAST;
	}
	length = AF_BE16((uint16_t)(w[2] >> 24));
	if (length < AF_HEADER - 34)
		return AF_DROP_HEADER;
	if (34 + length > max_frame)
		return AF_DROP_MTU;
	if (34 + length > len)
		return AF_DROP_LENGTH;
	out->nbytes = length - (AF_HEADER - 34);
	out->element = AF_BE32((uint32_t)(w[0] >> 24));
	out->seq = AF_BE32((uint32_t)(w[0] >> 56 | w[1] << 8));
	out->timestamp_ns = AF_BE64(w[1] >> 24 | w[2] << 40);
	out->end = (uint8_t)(w[2] >> 40);
	out->session = AF_BE32((uint32_t)(w[2] >> 48 | w[3] << 16));
	out->slice = AF_BE32((uint32_t)(w[3] >> 16));
	out->path = AF_BE16((uint16_t)(w[3] >> 48));
	out->number = (uint64_t)AF_BE16((uint16_t)w[4]) << 32 | AF_BE32((uint32_t)(w[4] >> 16));
	memcpy(out->src, frame + 6, 6);
	memcpy(&out->crc, frame + 50, 4);
	out->crc = AF_BE32(out->crc);
	out->header_crc = af_wire_header_crc(&words);
	out->payload = frame + AF_HEADER;
	out->frame_bytes = len;
	out->to = NULL;
	return AF_OK;
}

/* Check a parsed frame. Copies its payload to f->to on the way, unless that is NULL. */
static inline enum af_drop
af_wire_check(const struct af_frame *f)
{
	return af_wire_crc(f) == f->crc ? AF_OK : AF_DROP_CRC;
}

/* Parse and check. */
static inline enum af_drop
af_wire_parse(const uint8_t *frame, uint32_t len, const uint8_t *mac, uint32_t max_frame, struct af_frame *out)
{
	enum af_drop drop = af_wire_read(frame, len, mac, max_frame, out);

	return drop == AF_OK ? af_wire_check(out) : drop;
}

/* Write both headers, pad, and seal with the CRC. Returns the frame's size, and sets f->crc and f->header_crc. The
 * payload of f->nbytes bytes is at frame + AF_HEADER already when f->payload is NULL. Otherwise it is copied from
 * f->payload to f->to. With f->to NULL it is not copied, and nbytes must exceed a minimum frame. `frame` has room for
 * max(60, 54 + nbytes) bytes. */
static inline uint32_t
af_wire_seal(uint8_t *frame, const uint8_t *dst, const uint8_t *src, struct af_frame *f)
{
	uint32_t size = AF_HEADER + f->nbytes, crc;
	uint64_t element = AF_BE32(f->element), seq = AF_BE32(f->seq), timestamp = AF_BE64(f->timestamp_ns);
	uint64_t length = AF_BE16((uint16_t)(AF_HEADER - 34 + f->nbytes)), session = AF_BE32(f->session);
	uint64_t high = AF_BE16((uint16_t)(f->number >> 32)), low = AF_BE32((uint32_t)f->number);
	struct af_words words = {
		{AF_BE16(AF_ETHERTYPE) | (uint64_t)(AF_VERSION << 4 | f->kind) << 16 | element << 24 | seq << 56,
		 seq >> 8 | timestamp << 24, timestamp >> 40 | length << 24 | (uint64_t)f->end << 40 | session << 48,
		 session >> 16 | (uint64_t)AF_BE32(f->slice) << 16 | (uint64_t)AF_BE16(f->path) << 48,
		 high | low << 16}};

	memcpy(frame, dst, 6);
	memcpy(frame + 6, src, 6);
	memcpy(frame + 12, words.w, 50 - 12);
	if (!f->payload)
		f->payload = frame + AF_HEADER;
	f->header_crc = af_wire_header_crc(&words);
	f->crc = af_wire_crc(f);
	crc = AF_BE32(f->crc);
	memcpy(frame + 50, &crc, 4);
	if (size < AF_MIN_FRAME) {
		memset(frame + size, 0, AF_MIN_FRAME - size);
		size = AF_MIN_FRAME;
	}
	return size;
}

/* The CRC of the payload alone, derived from the frame's without a second pass. */
static inline uint32_t
af_payload_crc(const struct af_frame *f, const struct af_crc_shift *full)
{
	if (f->nbytes == full->nbytes)
		return f->crc ^ af_crc_apply(full, f->header_crc);
	return f->crc ^ af_crc32c_shift(f->header_crc, f->nbytes);
}

/* Is a before b? Both may wrap. */
static inline bool
af_before(uint32_t a, uint32_t b)
{
	return (int32_t)(a - b) < 0;
}

#endif

/* frame.h: the bytes of a frame, and the refusal of every damaged one. */
#include "aiflow/wire/frame.h"

#include "check.h"

static const uint8_t mac[6] = {2, 0, 0, 0, 0, 1}, other[6] = {2, 0, 0, 0, 0, 2};
static uint8_t frame[2000];

/* A DATA frame with `nbytes` of payload, from `other` to `mac`. */
static uint32_t
sealed(uint32_t nbytes)
{
	struct af_frame f = {.kind = AF_DATA,
			     .end = 1,
			     .path = 0x1112,
			     .element = 0x21222324,
			     .seq = 0x31323334,
			     .session = 0x41424344,
			     .slice = 0x51525354,
			     .number = 0x616263646566,
			     .timestamp_ns = 0x7172737475767778,
			     .nbytes = nbytes};

	for (uint32_t i = 0; i < nbytes; i++)
		frame[AF_HEADER + i] = (uint8_t)(i * 7);
	return af_wire_seal(frame, mac, other, &f);
}

static enum af_drop
parsed(const uint8_t *bytes, uint32_t len, struct af_frame *f)
{
	uint8_t *copy = malloc(len ? len : 1); /* of this length: the sanitizer sees a read beyond it */
	enum af_drop drop;

	memcpy(copy, bytes, len);
	drop = af_wire_parse(copy, len, mac, 1514, f);
	if (drop == AF_OK)
		f->payload = bytes + (f->payload - copy);
	free(copy);
	return drop;
}

static void
every_field_stands_at_its_offset(void)
{
	static const uint8_t head[] = {2,    0,    0,    0,    0,    1,    2,    0,    0,    0,    0,    2,    0x88,
				       0xb5, 0x31, 0x21, 0x22, 0x23, 0x24, 0x31, 0x32, 0x33, 0x34, 0x71, 0x72, 0x73,
				       0x74, 0x75, 0x76, 0x77, 0x78, 0,    29,   1,    0x41, 0x42, 0x43, 0x44, 0x51,
				       0x52, 0x53, 0x54, 0x11, 0x12, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66};
	uint32_t crc;

	CHECK_EQUAL(sizeof head, 50);
	memset(frame, 0xaa, sizeof frame);
	CHECK_EQUAL(sealed(9), 63);
	CHECK(!memcmp(frame, head, sizeof head));
	memcpy(&crc, frame + 50, 4);
	CHECK_EQUAL(AF_BE32(crc), af_crc32c(af_crc32c(0, frame + 12, 38), frame + 54, 9));
	CHECK_EQUAL(frame[63], 0xaa); /* nothing behind the frame is written */
}

static void
short_frames_are_padded_with_zeros(void)
{
	struct af_frame f;

	memset(frame, 0xaa, sizeof frame);
	CHECK_EQUAL(sealed(3), AF_MIN_FRAME);
	for (uint32_t i = AF_HEADER + 3; i < AF_MIN_FRAME; i++)
		CHECK_EQUAL(frame[i], 0);
	CHECK_EQUAL(frame[AF_MIN_FRAME], 0xaa);
	CHECK_EQUAL(parsed(frame, AF_MIN_FRAME, &f), AF_OK);
	CHECK_EQUAL(f.nbytes, 3);
}

static void
what_was_sealed_is_what_is_read(void)
{
	for (uint32_t nbytes = 0; nbytes <= 1460; nbytes += nbytes < 20 ? 1 : 360) {
		struct af_frame f;
		uint32_t size = sealed(nbytes);

		CHECK_EQUAL(parsed(frame, size, &f), AF_OK);
		CHECK_EQUAL(f.kind, AF_DATA);
		CHECK_EQUAL(f.end, 1);
		CHECK_EQUAL(f.path, 0x1112);
		CHECK_EQUAL(f.element, 0x21222324);
		CHECK_EQUAL(f.seq, 0x31323334);
		CHECK_EQUAL(f.session, 0x41424344);
		CHECK_EQUAL(f.slice, 0x51525354);
		CHECK_EQUAL(f.number, 0x616263646566);
		CHECK_EQUAL(f.timestamp_ns, 0x7172737475767778);
		CHECK_EQUAL(f.nbytes, nbytes);
		CHECK_EQUAL(f.frame_bytes, size);
		CHECK(!memcmp(f.src, other, 6));
		CHECK(f.payload == frame + AF_HEADER);
	}
}

static void
every_flipped_bit_is_noticed(void)
{
	uint32_t size = sealed(100);

	for (uint32_t bit = 0; bit < size * 8; bit++) {
		struct af_frame f;
		uint32_t byte = bit / 8;

		frame[byte] ^= (uint8_t)(1u << bit % 8);
		if (byte >= 6 && byte < 12) { /* the CRC leaves the MACs out */
			CHECK_EQUAL(parsed(frame, size, &f), AF_OK);
		} else {
			CHECK(parsed(frame, size, &f) != AF_OK);
		}
		frame[byte] ^= (uint8_t)(1u << bit % 8);
	}
}

static void
a_payload_behind_the_length_is_ignored(void)
{
	struct af_frame f;
	uint32_t size = sealed(100);

	memset(frame + size, 0x5a, 60);
	CHECK_EQUAL(parsed(frame, size + 60, &f), AF_OK);
	CHECK_EQUAL(f.nbytes, 100);
	CHECK_EQUAL(f.frame_bytes, size + 60);
}

/* The reason for a frame in which the byte at `at` is `value`. */
static enum af_drop
reason_with(uint32_t at, uint8_t value)
{
	struct af_frame f;
	uint32_t size = sealed(100);

	frame[at] = value;
	return parsed(frame, size, &f);
}

static void
every_refusal_has_its_reason(void)
{
	struct af_frame f;
	uint32_t size = sealed(100);

	for (uint32_t len = 0; len < AF_MIN_FRAME; len++)
		CHECK_EQUAL(parsed(frame, len, &f), AF_DROP_RUNT);
	CHECK_EQUAL(parsed(frame, size - 1, &f), AF_DROP_LENGTH);
	CHECK_EQUAL(reason_with(13, 0xb6), AF_DROP_FOREIGN);
	CHECK_EQUAL(reason_with(14, 0x11), AF_DROP_VERSION);
	CHECK_EQUAL(reason_with(14, 0x21), AF_DROP_VERSION);
	CHECK_EQUAL(reason_with(14, 0x41), AF_DROP_VERSION);
	CHECK_EQUAL(reason_with(14, 0x30), AF_DROP_KIND);
	CHECK_EQUAL(reason_with(14, 0x30 | AF_NB_KINDS), AF_DROP_KIND);
	CHECK_EQUAL(reason_with(5, 9), AF_DROP_DST_MAC);
	CHECK_EQUAL(reason_with(0, 3), AF_DROP_BROADCAST); /* multicast, and no HELLO */
	CHECK_EQUAL(reason_with(32, 19), AF_DROP_HEADER);
	CHECK_EQUAL(reason_with(31, 0xff), AF_DROP_MTU);
	CHECK_EQUAL(reason_with(50, frame[50] ^ 1), AF_DROP_CRC);
	sealed(100);
	memcpy(frame + 16, frame + 12, 2);
	frame[12] = 0x81;
	frame[13] = 0;
	CHECK_EQUAL(parsed(frame, size, &f), AF_DROP_VLAN);
	frame[12] = 0x88;
	frame[13] = 0xa8;
	CHECK_EQUAL(parsed(frame, size, &f), AF_DROP_VLAN);
	frame[16] = 0;
	CHECK_EQUAL(parsed(frame, size, &f), AF_DROP_FOREIGN);
}

static void
only_a_hello_may_be_broadcast(void)
{
	struct af_frame hello = {.kind = AF_HELLO, .nbytes = 10}, data = {.kind = AF_DATA, .nbytes = 10}, f;

	af_wire_seal(frame, af_broadcast, other, &hello);
	CHECK_EQUAL(parsed(frame, 64, &f), AF_OK);
	af_wire_seal(frame, af_broadcast, other, &data);
	CHECK_EQUAL(parsed(frame, 64, &f), AF_DROP_BROADCAST);
}

static void
random_bytes_are_never_read_beyond_their_length(void)
{
	for (int i = 0; i < 20000; i++) {
		uint8_t noise[160];
		struct af_frame f;
		uint32_t len = check_random(sizeof noise);

		for (uint32_t k = 0; k < sizeof noise; k++)
			noise[k] = (uint8_t)check_random(256);
		memcpy(noise, mac, 6); /* past the cheap refusals */
		noise[12] = 0x88;
		noise[13] = 0xb5;
		noise[14] = (uint8_t)(AF_VERSION << 4 | (1 + check_random(10)));
		noise[31] = 0;
		noise[32] &= 127;
		CHECK(parsed(noise, len, &f) != AF_OK);
	}
}

static void
a_payload_can_lie_elsewhere_and_be_copied(void)
{
	uint8_t source[300], wanted[400], copy[300];
	struct af_frame f = {.kind = AF_DATA, .payload = source, .nbytes = 300}, by_reference = f, read;
	uint32_t crc, size;

	for (uint32_t i = 0; i < sizeof source; i++)
		source[i] = (uint8_t)(i * 11);
	f.to = frame + AF_HEADER;
	f.how = AF_COPY_STORE;
	size = af_wire_seal(frame, mac, other, &f);
	CHECK(!memcmp(frame + AF_HEADER, source, 300));
	memcpy(wanted, frame, size);
	memset(frame + AF_HEADER, 0, 300);
	CHECK_EQUAL(af_wire_seal(frame, mac, other, &by_reference), size);
	CHECK_EQUAL(frame[AF_HEADER + 5], 0); /* it stays where it is */
	memcpy(&crc, frame + 50, 4);
	CHECK(!memcmp(frame, wanted, AF_HEADER));
	CHECK_EQUAL(af_wire_read(wanted, size, mac, 1514, &read), AF_OK);
	read.to = copy;
	read.how = AF_COPY_STORE;
	CHECK_EQUAL(af_wire_check(&read), AF_OK);
	CHECK(!memcmp(copy, source, 300));
}

static void
the_crc_of_a_payload_comes_out_of_the_frames(void)
{
	struct af_crc_shift full;

	af_crc_shift_of(&full, 100, af_crc_power(100));
	for (uint32_t nbytes = 99; nbytes <= 101; nbytes++) { /* one of them by the table */
		struct af_frame f;
		uint32_t size = sealed(nbytes);

		CHECK_EQUAL(parsed(frame, size, &f), AF_OK);
		CHECK_EQUAL(af_payload_crc(&f, &full), af_crc32c(0, frame + AF_HEADER, nbytes));
	}
}

static void
order_survives_the_wrap_around(void)
{
	CHECK(af_before(1, 2) && !af_before(2, 1) && !af_before(7, 7));
	CHECK(af_before(0xffffffffu, 0) && af_before(0xfffffff0u, 5));
	CHECK(!af_before(5, 0xfffffff0u));
	CHECK(af_before(0, 0x7fffffffu) && !af_before(0x7fffffffu, 0));
}

CASES(CASE(every_field_stands_at_its_offset), CASE(short_frames_are_padded_with_zeros),
      CASE(what_was_sealed_is_what_is_read), CASE(every_flipped_bit_is_noticed),
      CASE(a_payload_behind_the_length_is_ignored), CASE(every_refusal_has_its_reason),
      CASE(only_a_hello_may_be_broadcast), CASE(random_bytes_are_never_read_beyond_their_length),
      CASE(a_payload_can_lie_elsewhere_and_be_copied), CASE(the_crc_of_a_payload_comes_out_of_the_frames),
      CASE(order_survives_the_wrap_around))

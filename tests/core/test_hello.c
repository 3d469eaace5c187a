/* hello.h: how the two ends introduce themselves. */
#include "aiflow/wire/hello.h"

#include "check.h"

static const uint8_t mac[6] = {2, 0, 0, 0, 0, 1};
static uint8_t frame[2000];

static struct af_hello
asking(void)
{
	return (struct af_hello){.port = AF_BE16(3),
				 .nb_ports = AF_BE16(4),
				 .frame_size = AF_BE16(1514),
				 .session = AF_BE32(77),
				 .sender = AF_BE64(0x123456789abcdefull)};
}

/* Read `nbytes` of the payload from a buffer of just this length. */
static bool
read_back(uint32_t nbytes, struct af_hello *h, char *name, char *to)
{
	uint8_t *payload = malloc(nbytes ? nbytes : 1);
	struct af_frame f = {.payload = payload, .nbytes = nbytes};
	bool known;

	memcpy(payload, frame + AF_HEADER, nbytes);
	known = af_hello_read(&f, h, name, to);
	free(payload);
	return known;
}

static void
what_was_written_is_what_is_read(void)
{
	char name[AF_NAME_BYTES], to[AF_NAME_BYTES];
	struct af_hello h = asking(), read;
	struct af_frame f = {.session = 77, .number = 1ull << 40, .timestamp_ns = 99};
	uint32_t size = af_hello_write(frame, mac, af_broadcast, f, &h, "node-1", "sink", 0);

	CHECK_EQUAL(size, AF_HEADER + 38 + 6 + 4);
	CHECK_EQUAL(af_wire_parse(frame, size, mac, 1514, &f), AF_OK);
	CHECK_EQUAL(f.kind, AF_HELLO);
	CHECK_EQUAL(f.timestamp_ns, 99);
	CHECK_EQUAL(f.session, 77);
	CHECK_EQUAL(f.number, 1ull << 40);
	CHECK_EQUAL(f.path, AF_PATH_NONE);
	CHECK(af_hello_read(&f, &read, name, to));
	CHECK(!strcmp(name, "node-1") && !strcmp(to, "sink"));
	CHECK(!memcmp(&read, &h, sizeof h));
}

static void
a_full_sized_one_fills_the_path(void)
{
	char name[AF_NAME_BYTES], to[AF_NAME_BYTES];
	struct af_hello h = asking(), read;
	struct af_frame f = {0};

	memset(frame, 0xaa, sizeof frame);
	CHECK_EQUAL(af_hello_write(frame, mac, af_broadcast, f, &h, "n", "", 1514), 1514);
	CHECK_EQUAL(frame[1513], 0);
	CHECK_EQUAL(frame[1514], 0xaa);
	CHECK_EQUAL(af_wire_parse(frame, 1514, mac, 1514, &f), AF_OK);
	CHECK(af_hello_read(&f, &read, name, to));
	CHECK(!strcmp(name, "n") && !to[0]);
}

static void
names_are_cut_to_what_the_format_holds(void)
{
	char longest[200], name[AF_NAME_BYTES], to[AF_NAME_BYTES];
	struct af_hello h = asking(), read;
	uint32_t size;

	memset(longest, 'x', sizeof longest);
	longest[sizeof longest - 1] = 0;
	size = af_hello_write(frame, mac, af_broadcast, (struct af_frame){0}, &h, longest, longest, 0);
	CHECK_EQUAL(size, AF_HEADER + 38 + 63 + 63);
	CHECK(read_back(size - AF_HEADER, &read, name, to));
	CHECK_EQUAL(strlen(name), 63);
	CHECK_EQUAL(strlen(to), 63);
	CHECK(size <= AF_MIN_PATH_FRAME); /* the least path carries it */
}

static void
one_that_is_too_short_for_its_names_is_refused(void)
{
	char name[AF_NAME_BYTES], to[AF_NAME_BYTES];
	struct af_hello h = asking(), read;
	struct af_frame f = {0};
	uint32_t nbytes = af_hello_write(frame, mac, af_broadcast, f, &h, "node-1", "sink-12", 0) - AF_HEADER;

	for (uint32_t n = 0; n < nbytes; n++)
		CHECK(!read_back(n, &read, name, to));
	CHECK(read_back(nbytes, &read, name, to));
}

static void
claims_beyond_the_format_are_refused(void)
{
	char name[AF_NAME_BYTES], to[AF_NAME_BYTES];
	struct af_hello h, read;

	for (int what = 0; what < 5; what++) {
		h = asking();
		af_hello_write(frame, mac, af_broadcast, (struct af_frame){0}, &h, "a", "b", 1514);
		memcpy(&h, frame + AF_HEADER, sizeof h);
		if (what == 0)
			h.answer = 2;
		if (what == 1)
			h.name_len = AF_NAME_BYTES;
		if (what == 2)
			h.to_len = 255;
		if (what == 3)
			h.port = AF_BE16(AF_MAX_PORTS);
		memcpy(frame + AF_HEADER, &h, sizeof h);
		CHECK_EQUAL(read_back(1460, &read, name, to), what == 4);
	}
}

CASES(CASE(what_was_written_is_what_is_read), CASE(a_full_sized_one_fills_the_path),
      CASE(names_are_cut_to_what_the_format_holds), CASE(one_that_is_too_short_for_its_names_is_refused),
      CASE(claims_beyond_the_format_are_refused))

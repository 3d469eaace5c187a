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
static enum af_drop
read_back(uint32_t nbytes, struct af_hello *h, char *name, char *to)
{
	uint8_t *payload = malloc(nbytes ? nbytes : 1);
	struct af_frame f = {.payload = payload, .nbytes = nbytes};
	enum af_drop drop;

	memcpy(payload, frame + AF_HEADER, nbytes);
	drop = af_hello_read(&f, h, name, to);
	free(payload);
	return drop;
}

static void
what_was_written_is_what_is_read(void)
{
	char name[AF_NAME_BYTES], to[AF_NAME_BYTES];
	struct af_hello h = asking(), read;
	struct af_frame f = {.session = 77, .number = 1ull << 40, .timestamp_ns = 99};
	uint32_t size = af_hello_write(frame, mac, af_broadcast, f, &h, "node-1", "sink", 0);

	CHECK_EQUAL(size, AF_HEADER + 39 + 6 + 4);
	CHECK_EQUAL(af_wire_parse(frame, size, mac, 1514, &f), AF_OK);
	CHECK_EQUAL(f.kind, AF_HELLO);
	CHECK_EQUAL(f.timestamp_ns, 99);
	CHECK_EQUAL(f.session, 77);
	CHECK_EQUAL(f.number, 1ull << 40);
	CHECK_EQUAL(f.path, AF_PATH_NONE);
	CHECK_EQUAL(af_hello_read(&f, &read, name, to), AF_OK);
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
	CHECK_EQUAL(af_hello_read(&f, &read, name, to), AF_OK);
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
	CHECK_EQUAL(size, AF_HEADER + 39 + 63 + 63);
	CHECK_EQUAL(read_back(size - AF_HEADER, &read, name, to), AF_OK);
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
		CHECK_EQUAL(read_back(n, &read, name, to), AF_DROP_HELLO);
	CHECK_EQUAL(read_back(nbytes, &read, name, to), AF_OK);
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
		CHECK_EQUAL(read_back(1460, &read, name, to), what == 4 ? AF_OK : AF_DROP_HELLO);
	}
}

static void
another_format_and_extensions_that_must_be_understood_are_another_version(void)
{
	static const struct {
		uint8_t format;
		uint8_t entry[8]; /* behind the names */
		enum af_drop drop;
	} table[] = {{1, {0}, AF_OK},
		     {1, {0, 9, 0, 2, 1, 2}, AF_OK}, /* ignored */
		     {1, {0x80, 9, 0, 0}, AF_DROP_VERSION},
		     {1, {0, 9, 0, 200}, AF_DROP_HELLO}, /* beyond the frame */
		     {2, {0}, AF_DROP_VERSION},
		     {0, {0}, AF_DROP_VERSION}};
	char name[AF_NAME_BYTES], to[AF_NAME_BYTES];
	struct af_hello h, read;

	for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
		h = asking();
		af_hello_write(frame, mac, af_broadcast, (struct af_frame){0}, &h, "a", "b", 200);
		frame[AF_HEADER] = table[i].format;
		memcpy(frame + AF_HEADER + sizeof h + 2, table[i].entry, sizeof table[i].entry);
		CHECK_EQUAL(read_back(200 - AF_HEADER, &read, name, to), table[i].drop);
	}
	CHECK_EQUAL(read_back(1, &read, name, to), AF_DROP_VERSION);
}

CASES(CASE(what_was_written_is_what_is_read), CASE(a_full_sized_one_fills_the_path),
      CASE(names_are_cut_to_what_the_format_holds), CASE(one_that_is_too_short_for_its_names_is_refused),
      CASE(claims_beyond_the_format_are_refused),
      CASE(another_format_and_extensions_that_must_be_understood_are_another_version))

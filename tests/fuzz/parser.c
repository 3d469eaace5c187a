/* libFuzzer: one frame from a stranger, through everything that reads a frame without state: af_wire_parse, HELLOs and
 * manifests. Once as it is, once with the headers that let it pass, for no mutation finds a CRC. */
#include <stdlib.h>

#include "aiflow/wire/hello.h"
#include "aiflow/wire/manifest.h"

#define CHECK(what) ((what) ? (void)0 : abort())

static const uint8_t mac[6] = {2, 0, 0, 0, 200, 0};

static void
read_manifest(const uint8_t *bytes, uint64_t len)
{
	struct af_manifest m;
	struct af_extent extent;
	struct af_run_cursor runs;
	struct af_chunker chunker;
	uint64_t chunks = 0, nb_elements = 0;
	uint32_t kind;

	if (!af_manifest_measure(bytes, len, &m, &extent))
		return;
	af_extensions_check(extent.end, bytes + len, AF_EXTENSION_LOAN, &kind);
	CHECK(extent.end >= bytes + AF_MANIFEST_HEADER && extent.end <= bytes + len);
	CHECK(extent.nbytes <= extent.block_bytes && extent.nb_elements == m.nb_elements);
	chunker = (struct af_chunker){.payload_bytes = m.payload_bytes};
	CHECK(af_manifest_read(bytes, len, &m, &runs));
	for (uint32_t r = 0; r < m.nb_runs && nb_elements < 5000; r++) {
		CHECK(af_run_next(&runs));
		for (uint32_t i = 0; i < runs.run.count && nb_elements < 5000; i++, nb_elements++) {
			uint64_t first = af_chunk_of(&chunker, runs.run.nbytes);

			CHECK(first + 1 >= chunks &&
			      first < chunker.next); /* numbers go up, and only a pack shares one */
			chunks = chunker.next;
		}
	}
}

static void
read_frame(const uint8_t *frame, uint32_t len)
{
	struct af_frame f;
	struct af_hello h;
	char name[AF_NAME_BYTES], to[AF_NAME_BYTES];

	if (af_wire_parse(frame, len, mac, AF_MAX_FRAME, &f) != AF_OK)
		return;
	CHECK(f.payload + f.nbytes <= frame + len);
	if (af_hello_read(&f, &h, name, to) == AF_OK)
		CHECK(strlen(name) < AF_NAME_BYTES && strlen(to) < AF_NAME_BYTES);
	read_manifest(f.payload, f.nbytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t *frame;
	uint32_t length, crc;

	read_frame(data, (uint32_t)size);
	read_manifest(data, size);
	if (size < AF_MIN_FRAME || size > AF_MAX_FRAME)
		return 0;
	frame = malloc(size); /* of just this size */
	memcpy(frame, data, size);
	memcpy(frame, mac, sizeof mac);
	frame[12] = AF_ETHERTYPE >> 8;
	frame[13] = AF_ETHERTYPE & 255;
	frame[14] = (uint8_t)(AF_VERSION << 4 | (frame[14] & 15));
	length = (uint32_t)(frame[31] << 8 | frame[32]);
	if (34 + length > size || length < AF_HEADER - 34) {
		length = (uint32_t)size - 34;
		frame[31] = (uint8_t)(length >> 8);
		frame[32] = (uint8_t)length;
	}
	crc = AF_BE32(af_crc32c(af_crc32c(0, frame + 12, 50 - 12), frame + AF_HEADER, length - (AF_HEADER - 34)));
	memcpy(frame + 50, &crc, 4);
	read_frame(frame, (uint32_t)size);
	free(frame);
	return 0;
}

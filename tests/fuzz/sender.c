/* libFuzzer: a sequence of frames into the sender's state machine while it has slices to send: answers, reports,
 * goodbyes, places, all of them perhaps lies. Its windows count the frames in flight; what it sends fits a frame. It
 * writes nothing outside of the memory that its receiver shares. */
#include "records.h"

#include "aiflow/tx/tx_agent.h"

#define NB_SLICES 4

static const uint8_t ours[NB_PORTS][6] = {{2, 0, 0, 0, 0, 0}, {2, 0, 0, 0, 0, 1}};
static const uint8_t theirs[NB_PORTS][6] = {{2, 0, 0, 0, 200, 0}, {2, 0, 0, 0, 200, 1}};

static struct af_tx tx;
static struct af_numbers numbers;
static struct af_tx_slice slices[NB_SLICES];
static uint8_t manifests[NB_SLICES][AF_MANIFEST_HEADER + AF_RUN_HEADER], bytes[500 * NB_SLICES * NB_SLICES];
static struct af_span elements[NB_SLICES][8];

#define SHARED_BYTES 492000u /* of what the simulator's receivers tell, some is beyond it */

static struct af_shared shared; /* over port 0; its sanitizer sees a write beyond it */

static void
answer(uint64_t now)
{
	for (uint32_t p = 0; p < NB_PORTS; p++) {
		struct af_hello h = {.answer = 1,
				     .nb_ports = AF_BE16(NB_PORTS),
				     .frame_size = AF_BE16(1514),
				     .heard_bytes = AF_BE16(1514),
				     .window = AF_BE32(256),
				     .session = AF_BE32(1),
				     .sender = AF_BE64(tx.instance),
				     .epoch = AF_BE64(1)};
		struct af_frame f = {.session = tx.number, .timestamp_ns = now};
		uint8_t frame[AF_MIN_PATH_FRAME];

		h.port = AF_BE16((uint16_t)p);
		af_tx_on_frame(&tx, p, now, frame, af_hello_write(frame, theirs[p], ours[p], f, &h, "sink", "", 0),
			       NULL);
	}
}

static void
speak(uint64_t now)
{
	uint8_t frame[1514];

	for (uint32_t p = 0; p < NB_PORTS; p++)
		for (int k = 0; k < 8; k++) {
			uint32_t len = af_tx_next_frame(&tx, p, now, NULL, frame);

			CHECK(len <= sizeof frame);
			if (!len)
				break;
		}
}

static void
check(void)
{
	for (uint32_t p = 0; p < NB_PORTS; p++) {
		struct af_tx_pktnum *pn = &tx.ports[p].pn;
		uint32_t in_flight = 0;

		for (uint64_t n = pn->judged; tx.ports[p].open && n < pn->next; n++)
			in_flight += af_tx_sent(pn, n)->state == AF_SENT_IN_FLIGHT && !af_tx_sent(pn, n)->probe;
		CHECK(!tx.ports[p].open || (in_flight == pn->in_flight && pn->in_flight <= AF_MAX_WINDOW));
	}
}

static void
post(uint64_t now)
{
	for (uint32_t i = 0; i < NB_SLICES; i++) {
		uint32_t nbytes = i ? 500 * i * i : 20, count = 8;
		struct af_run run = {.count = AF_BE32(count), .nbytes = AF_BE64(nbytes)};
		struct af_manifest m = {.format = AF_MANIFEST_FORMAT,
					.nb_runs = AF_BE32(1),
					.nb_elements = AF_BE32(count),
					.nbytes = AF_BE64(count * nbytes)};

		memcpy(manifests[i], &m, sizeof m);
		memcpy(manifests[i] + sizeof m, &run, sizeof run);
		for (uint32_t e = 0; e < count; e++)
			elements[i][e] = (struct af_span){bytes, nbytes};
		memset(&slices[i], 0, sizeof slices[i]);
		slices[i].elements = elements[i];
		slices[i].manifest = manifests[i];
		slices[i].manifest_bytes = sizeof manifests[i];
		slices[i].nb_elements = count;
		slices[i].nbytes = (uint64_t)count * nbytes;
		slices[i].dispatch.ports = ~0u;
		slices[i].posted_ns = now;
		af_tx_enqueue(&tx, &slices[i]);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const uint8_t *end = data + size;
	uint64_t now = 1000000000;
	struct record r;

	/* As af_tx_init, but of the two ports in use: clearing all 32 windows would take most of the time. */
	struct af_retransmit *again = tx.retransmit ? tx.retransmit : malloc(AF_RETRANSMIT_RING * sizeof *again);

	if (!shared.memories[0].base)
		af_shared_add(&shared, malloc(SHARED_BYTES), SHARED_BYTES, 1, false);
	memset(&tx, 0, offsetof(struct af_tx, ports) + NB_PORTS * sizeof tx.ports[0]);
	memset(&tx.next_number, 0, sizeof tx - offsetof(struct af_tx, next_number));
	tx.queue_tail = &tx.queue;
	tx.retransmit = again;
	tx.nb_expected = tx.nb_ports = NB_PORTS;
	tx.instance = 7ull << AF_LIFE_BITS;
	tx.numbers = &numbers;
	af_numbers_init(&numbers, (uint64_t[]){1, 2});
	tx.peer_timeout_ns = 10000000000ull;
	memcpy(tx.name, "source", 7);
	for (uint32_t p = 0; p < NB_PORTS; p++) {
		tx.ports[p].p = (struct af_agent_port){
			.attached = true, .frame_size = 1514, .rx_ring = 256, .tx_window = 90, .point_to_point = true};
		memcpy(tx.ports[p].p.mac, ours[p], 6);
		tx.ports[p].p.shared = p ? NULL : &shared;
		tx.ports[p].path_size = 1514;
		tx.ports[p].attached_ns = now;
	}
	post(now);
	speak(now);
	answer(now);
	af_tx_tick(&tx, now);
	speak(now);
	while (next_record(&data, end, &r)) {
		put_right(&r, ours[r.port], theirs[r.port], tx.number);
		if (ends_connection(&r))
			af_tx_unmap(&tx, tx.ports[r.port].p.shared);
		now += r.flags & RECORD_WAIT ? 1000000ull << (r.flags >> 4) : 10000;
		af_tx_on_frame(&tx, r.port, now, r.frame, r.len, NULL);
		free(r.frame);
		af_tx_tick(&tx, now);
		if (r.flags & RECORD_REPLY)
			speak(now);
		check();
	}
	af_tx_fail_all(&tx, AF_TX_CANCELLED, now);
	for (uint32_t i = 0; i < NB_SLICES; i++) {
		CHECK(atomic_load(&slices[i].state) >= AF_TX_DONE);
		CHECK(!slices[i].places && slices[i].placed_bytes <= slices[i].nbytes);
		CHECK(slices[i].text_got <= slices[i].text_bytes);
		free(slices[i].text);
	}
	return 0;
}

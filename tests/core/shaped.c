/* Senders and a receiver, state machine against state machine, through switch ports of a finite rate and queue, on a
 * simulated clock: flow control and port choice without a machine's noise.
 *
 * Each sender's port has an access link of a rate of its own; at the switch all frames for one port of the receiver
 * wait in one queue of `limit_kb`, and what does not fit is lost. The way back is never the bottleneck.
 *
 * Usage: shaped NAME=VALUE …   Prints one JSON object.
 */
#include <inttypes.h>
#include <stdio.h>

#include "aiflow/tx/tx_agent.h"

#include "aiflow/rx/rx_agent.h"

#define MOST 8
#define PORTS 8
#define FRAME 1514u
#define STEP_NS 10000ull
#define WAY_NS 50000ull /* from the switch to a host, and back */

static struct {
	int senders, ports, bytes, elements, limit_kb, access, loss, loss_back, stall_us, stall_every_ms, frame_gap_ns,
		gain, late_ms;
	int rate0, rate1, rate2,
		rate3;     /* Mbit/s of each switch port; the access links have `access`, or this if it is 0 */
	int quota0, quota1, quota2, quota3; /* per mille; all 0: none */
	int shortest, whole, rate_based, die_ms, slices, seed;
	int trunk, trunk_kb; /* Mbit/s that all ports share before their switch port; 0: as much as there is */
} o = {.senders = 1,
       .ports = 1,
       .bytes = 4000000,
       .elements = 24,
       .limit_kb = 256,
       .rate0 = 100,
       .rate1 = 100,
       .rate2 = 100,
       .rate3 = 100,
       .slices = 1,
       .seed = 1,
       .trunk_kb = 256};

#define OPTION(name) {#name, &o.name}
static const struct {
	const char *name;
	int *value;
} options[] = {
	OPTION(senders),      OPTION(ports),    OPTION(bytes),     OPTION(elements),   OPTION(limit_kb),
	OPTION(access),       OPTION(loss),     OPTION(loss_back), OPTION(stall_us),   OPTION(stall_every_ms),
	OPTION(frame_gap_ns), OPTION(gain),     OPTION(late_ms),   OPTION(rate0),      OPTION(rate1),
	OPTION(rate2),        OPTION(rate3),    OPTION(quota0),    OPTION(quota1),     OPTION(quota2),
	OPTION(quota3),       OPTION(shortest), OPTION(whole),     OPTION(rate_based), OPTION(die_ms),
	OPTION(slices),       OPTION(seed),     OPTION(trunk),     OPTION(trunk_kb),
};

struct packet {
	uint64_t due;
	uint32_t len;
	uint8_t bytes[FRAME];
};

struct fifo { /* frames leave in order, each when its last bit is through */
	struct packet *ring;
	uint32_t head, tail, size;
	uint64_t free_ns, bytes, lost, frames;
};

static struct af_tx senders[MOST];
static struct af_tx_slice slices[MOST][16];
static struct fifo up[MOST][PORTS], trunk, out[PORTS], back[PORTS];
static struct af_rx *rx;
static struct af_arena arena;
static uint64_t random_state, drop_random, marked_frames, marked_lost, marked_bytes, mark_ns;

static uint32_t
draw(uint32_t below)
{
	random_state ^= random_state >> 12;
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return (uint32_t)((random_state * 0x2545f4914f6cdd1dull) >> 33) % below;
}

static uint64_t
line_ns(uint32_t len, int mbit)
{
	return mbit ? (uint64_t)len * 8000 / (uint64_t)mbit : 0;
}

static bool
fifo_push(struct fifo *f, const uint8_t *bytes, uint32_t len, int mbit, uint64_t limit, uint64_t extra, uint64_t now)
{
	struct packet *p = &f->ring[f->tail % f->size];

	f->frames++;
	if (f->tail - f->head == f->size || (limit && f->bytes + len > limit)) {
		f->lost++;
		return false;
	}
	f->free_ns = (f->free_ns > now ? f->free_ns : now) + line_ns(len, mbit);
	p->due = f->free_ns + extra;
	p->len = len;
	memcpy(p->bytes, bytes, len);
	f->bytes += len;
	f->tail++;
	return true;
}

static struct packet *
fifo_pop(struct fifo *f, uint64_t now)
{
	struct packet *p = &f->ring[f->head % f->size];

	if (f->head == f->tail || p->due > now)
		return NULL;
	f->head++;
	f->bytes -= p->len;
	return p;
}

static int
rate_of(int p)
{
	return (int[]){o.rate0, o.rate1, o.rate2, o.rate3}[p % 4];
}

static void
make_slice(struct af_tx_slice *s, int sender)
{
	struct af_span *elements = calloc((size_t)o.elements, sizeof *elements);
	struct af_manifest m = {
		.format = AF_MANIFEST_FORMAT, .nb_runs = AF_BE32(1), .nb_elements = AF_BE32((uint32_t)o.elements)};
	uint64_t each = (uint64_t)o.bytes / (uint64_t)o.elements;
	struct af_run run = {.count = AF_BE32((uint32_t)o.elements), .nbytes = AF_BE64(each)};
	int quota[4] = {o.quota0, o.quota1, o.quota2, o.quota3};

	s->manifest = malloc(AF_MANIFEST_HEADER + AF_RUN_HEADER);
	m.nbytes = AF_BE64(each * (uint64_t)o.elements);
	memcpy(s->manifest, &m, sizeof m);
	memcpy(s->manifest + AF_MANIFEST_HEADER, &run, sizeof run);
	s->manifest_bytes = AF_MANIFEST_HEADER + AF_RUN_HEADER;
	for (int e = 0; e < o.elements; e++) {
		uint8_t *bytes = malloc(each);

		for (uint64_t i = 0; i < each; i++)
			bytes[i] = (uint8_t)(i * 31 + (uint64_t)(e * 7 + sender));
		elements[e] = (struct af_span){.ptr = bytes, .nbytes = each};
	}
	s->elements = elements;
	s->nb_elements = (uint32_t)o.elements;
	s->nbytes = each * (uint64_t)o.elements;
	s->dispatch = (struct af_dispatch){.ports = ~0u, .elements = o.whole, .shortest = o.shortest};
	for (int p = 0; p < o.ports && p < 4; p++) {
		s->dispatch.by_share |= quota[p] > 0;
		s->dispatch.share_bytes[p] = s->nbytes * (uint64_t)quota[p] / 1000 + 1;
	}
}

static struct af_agent_port
port_of(uint8_t owner, int p)
{
	return (struct af_agent_port){.attached = true,
				      .frame_size = FRAME,
				      .rx_ring = 1024,
				      .tx_window = 512,
				      .mac = {2, 0, 0, 0, owner, (uint8_t)p}};
}

static void
release(void *handle)
{
	(void)handle;
}

static struct af_numbers numbers; /* of all ends: as in one process */

static void
make_peers(uint64_t now)
{
	af_numbers_init(&numbers, (uint64_t[]){(uint64_t)o.seed, 1});
	rx = calloc(1, sizeof *rx);
	trunk = (struct fifo){.ring = calloc(4096, sizeof(struct packet)), .size = 4096};
	af_arena_init(&arena, 1u << 30, AF_ARENA_PRIVATE);
	af_rx_init(rx);
	rx->numbers = &numbers;
	rx->arena = &arena;
	rx->release = release;
	rx->epoch = 7;
	rx->peer_timeout_ns = 10000000000ull;
	strcpy(rx->name, "sink");
	rx->nb_ports = (uint32_t)o.ports;
	for (int p = 0; p < o.ports; p++) {
		rx->ports[p].p = port_of(200, p);
		out[p] = (struct fifo){.ring = calloc(4096, sizeof(struct packet)), .size = 4096};
		back[p] = (struct fifo){.ring = calloc(4096, sizeof(struct packet)), .size = 4096};
	}
	for (int s = 0; s < o.senders; s++) {
		struct af_tx *tx = &senders[s];

		if (af_tx_init(tx))
			exit(2);
		tx->numbers = &numbers;
		snprintf(tx->name, sizeof tx->name, "source-%d", s);
		tx->instance = (uint64_t)s << AF_LIFE_BITS;
		tx->nb_expected = tx->nb_ports = (uint32_t)o.ports;
		tx->peer_timeout_ns = 10000000000ull;
		for (int p = 0; p < o.ports; p++) {
			tx->ports[p].p = port_of((uint8_t)s, p);
			tx->ports[p].path_size = FRAME;
			tx->ports[p].attached_ns = now;
			tx->ports[p].pace = (struct af_pace){.rate_based = o.rate_based,
							     .frame_ns = o.frame_gap_ns,
							     .gain = o.gain,
							     .threshold = 0.002,
							     .slack_ns = 1000000};
			up[s][p] = (struct fifo){.ring = calloc(4096, sizeof(struct packet)), .size = 4096};
		}
		for (int i = 0; i < o.slices; i++)
			make_slice(&slices[s][i], s);
	}
}

static void
poll_all(uint64_t now, const uint64_t *awake_ns)
{
	uint8_t frame[AF_MAX_FRAME];
	struct packet *in;

	for (int s = 0; s < o.senders; s++)
		for (int p = 0; p < o.ports; p++) {
			bool dead = o.die_ms && mark_ns && p == 0 && now > mark_ns + (uint64_t)o.die_ms * 1000000;

			for (int k = 0; now >= awake_ns[s] && k < 32; k++) {
				uint32_t len = af_tx_next_frame(&senders[s], (uint32_t)p, now, NULL, frame);

				if (!len)
					break;
				if (!dead)
					fifo_push(&up[s][p], frame, len, o.access ? o.access : rate_of(p), 0, 0, now);
			}
			while ((in = fifo_pop(&up[s][p], now))) {
				if (o.loss && draw(10000) < (uint32_t)o.loss)
					drop_random++;
				else if (o.trunk)
					fifo_push(&trunk, in->bytes, in->len, o.trunk, (uint64_t)o.trunk_kb << 10, 0,
						  now);
				else
					fifo_push(&out[p], in->bytes, in->len, rate_of(p), (uint64_t)o.limit_kb << 10,
						  WAY_NS, now);
			}
		}
	while ((in = fifo_pop(&trunk, now)))
		for (int p = 0; p < o.ports; p++)
			if (in->bytes[5] == p || in->bytes[0] == 0xff)
				fifo_push(&out[p], in->bytes, in->len, rate_of(p), (uint64_t)o.limit_kb << 10, WAY_NS,
					  now);
	for (int p = 0; p < o.ports; p++) {
		while (now >= awake_ns[MOST] && (in = fifo_pop(&out[p], now))) {
			marked_bytes += in->len;
			af_rx_on_frame(rx, (uint32_t)p, now, in->bytes, in->len, NULL);
		}
		for (int k = 0; now >= awake_ns[MOST] && k < 32; k++) {
			uint32_t len = af_rx_next_frame(rx, (uint32_t)p, now, NULL, frame);

			if (!len)
				break;
			fifo_push(&back[p], frame, len, 0, 0, WAY_NS, now);
		}
		while ((in = fifo_pop(&back[p], now))) {
			if (o.loss_back && draw(10000) < (uint32_t)o.loss_back)
				continue;
			for (int s = 0; s < o.senders; s++)
				if (!memcmp(in->bytes, senders[s].ports[p].p.mac, 6))
					af_tx_on_frame(&senders[s], (uint32_t)p, now, in->bytes, in->len, NULL);
		}
	}
}

static bool
all_done(void)
{
	for (int s = 0; s < o.senders; s++)
		for (int i = 0; i < o.slices; i++)
			if (atomic_load(&slices[s][i].state) < AF_TX_DONE)
				return false;
	return true;
}

static void
read_options(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		char *value = strchr(argv[i], '=');
		bool known = false;

		for (size_t k = 0; value && k < sizeof options / sizeof *options; k++)
			if (strlen(options[k].name) == (size_t)(value - argv[i]) &&
			    !strncmp(options[k].name, argv[i], (size_t)(value - argv[i]))) {
				*options[k].value = atoi(value + 1);
				known = true;
			}
		if (!known) {
			fprintf(stderr, "shaped: unknown option %s\n", argv[i]);
			exit(2);
		}
	}
}

static void
print_outcome(uint64_t now)
{
	uint64_t lost = 0, frames = 0, spurious = 0, again = 0;

	frames += trunk.frames;
	lost += trunk.lost;
	for (int p = 0; p < o.ports; p++) {
		frames += trunk.frames ? 0 : out[p].frames;
		lost += out[p].lost;
	}
	printf("{\"ms\": %.3f, \"frames\": %" PRIu64 ", \"lost\": %" PRIu64 ", \"unlucky\": %" PRIu64
	       ", \"wire_bytes\": %" PRIu64 ", \"finished_ms\": [",
	       (double)(now - mark_ns) / 1e6, frames - marked_frames, lost - marked_lost, drop_random, marked_bytes);
	for (int s = 0; s < o.senders; s++)
		printf("%s%.3f", s ? ", " : "", (double)(slices[s][o.slices - 1].done_ns - mark_ns) / 1e6);
	printf("], \"port_bytes\": [");
	for (int p = 0; p < o.ports; p++) {
		uint64_t sum = 0;

		for (int s = 0; s < o.senders; s++)
			for (int i = 0; i < o.slices; i++)
				sum += slices[s][i].port_bytes[p];
		printf("%s%" PRIu64, p ? ", " : "", sum);
	}
	for (int s = 0; s < o.senders; s++)
		for (int p = 0; p < o.ports; p++) {
			spurious += senders[s].ports[p].pn.spurious;
			again += senders[s].ports[p].count.retransmits;
		}
	printf("], \"again\": %" PRIu64 ", \"spurious\": %" PRIu64 ", \"errors\": %d, \"delivered\": %" PRIu64 "}\n",
	       again, spurious, slices[0][0].error, rx->slices);
}

int
main(int argc, char **argv)
{
	uint64_t now = 1000000000ull, end = now + 60000000000ull, awake_ns[MOST + 1] = {0};
	bool posted[MOST] = {false};

	read_options(argc, argv);
	if (o.senders > MOST || o.ports > PORTS || o.slices > 16)
		return 2;
	random_state = (uint64_t)o.seed * 0x9e3779b97f4a7c15ull + 88172645463325252ull;
	make_peers(now);
	while (!all_done() && now < end) {
		bool open = true;

		now += STEP_NS;
		for (int i = 0; i <= MOST && o.stall_us; i++) /* an end is not run for a while */
			if (draw((uint32_t)o.stall_every_ms * 100) == 0)
				awake_ns[i] = now + draw((uint32_t)o.stall_us) * 1000ull;
		poll_all(now, awake_ns);
		for (int s = 0; s < o.senders; s++) {
			if (now >= awake_ns[s])
				af_tx_tick(&senders[s], now);
			for (int p = 0; p < o.ports; p++)
				open &= senders[s].ports[p].open;
		}
		af_rx_tick(rx, now);
		if (open && !mark_ns) {
			mark_ns = now;
			marked_bytes = 0;
			marked_frames = trunk.frames;
			marked_lost = trunk.lost;
			for (int p = 0; p < o.ports; p++) {
				marked_frames += o.trunk ? 0 : out[p].frames;
				marked_lost += out[p].lost;
			}
		}
		for (int s = 0; s < o.senders; s++)
			if (mark_ns && !posted[s] && now >= mark_ns + (uint64_t)(s * o.late_ms) * 1000000) {
				posted[s] = true;
				for (int i = 0; i < o.slices; i++) {
					slices[s][i].posted_ns = now;
					af_tx_enqueue(&senders[s], &slices[s][i]);
				}
			}
		while (rx->ready) {
			struct af_rx_slice *got = rx->ready;
			int sender = atoi(got->sender + strlen("source-"));

			for (uint32_t e = 0; e < got->nb_elements; e++)
				if (memcmp(arena.base + got->block->offset + got->elements[e].offset,
					   slices[sender][0].elements[e].ptr, got->elements[e].nbytes))
					return 1;
			rx->ready = got->next;
			if (!rx->ready)
				rx->ready_tail = &rx->ready;
			af_rx_slice_free(got, release);
		}
	}
	print_outcome(now);
	return all_done() ? 0 : 1;
}

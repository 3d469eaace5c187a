/* Senders and a receiver, state machine against state machine, over simulated Ethernet segments on a simulated clock.
 *
 * Each segment joins one port of the receiver with one port of every sender, as a switch does. A frame can be lost,
 * doubled, damaged or delayed there, each by the scenario's odds (network.h); the same seed gives the same run. What is checked:
 *
 *   - a slice that its sender was told is delivered was handed over once, in order, with the same bytes;
 *   - none was handed over that its sender did not send, and none twice;
 *   - no window is ever exceeded; all memory comes back; everything ends within the scenario's time.
 *
 * Usage: exchange NAME=VALUE …   (see `options` in network.h). Prints one JSON object; the exit code is 0 when all held.
 */
#include <inttypes.h>
#include <stdio.h>

#include "aiflow/tx.h"

#include "aiflow/rx.h"

#include "network.h"

/* ---- the peers ---- */

struct sender {
	struct af_tx tx;
	struct af_tx_slice slices[MAX_SLICES];
	int handed_over[MAX_SLICES];
	int next_in_order;
	uint64_t again; /* frames sent a second time */
};

struct held {
	struct af_rx_slice *slice;
	uint64_t until;
};

static struct sender *senders[MAX_SENDERS];
static struct af_rx *rx;
static struct af_store store;
static struct held held[MAX_SENDERS * MAX_SLICES];
static uint32_t nb_held, receivers_made;
static uint64_t rx_drops[AF_NB_DROPS], bytes_in, kept_out, waited, spurious, probes;

static void
fail(const char *what, int sender, int slice)
{
	int error = sender >= 0 && slice >= 0 && slice < MAX_SLICES ? senders[sender]->slices[slice].error : 0;

	printf("{\"failed\": \"%s\", \"sender\": %d, \"slice\": %d, \"error\": %d, \"seed\": %d}\n", what, sender, slice, error,
	       o.seed);
	exit(1);
}

static void
release_packet(void *handle)
{
	kept_out--;
	free(handle);
}

static struct af_agent_port
port_of(uint8_t owner, uint32_t p)
{
	struct af_agent_port port = {.attached = true, .frame_size = FRAME, .rx_ring = (uint32_t)o.ring,
				     .tx_window = (uint32_t)o.window, .point_to_point = o.senders == 1,
				     .mac = {2, 0, 0, 0, owner, (uint8_t)p}};

	return port;
}

static void
make_receiver(void)
{
	rx = malloc(sizeof *rx);
	af_rx_init(rx);
	rx->store = &store;
	rx->release = release_packet;
	rx->keeps_mbufs = o.keep;
	rx->mbuf_bytes = 2048;
	rx->epoch = 1000 + receivers_made++;
	rx->peer_timeout_ns = 10000000000ull;
	strcpy(rx->name, "sink");
	rx->nb_ports = (uint32_t)o.ports;
	for (int p = 0; p < o.ports; p++)
		rx->ports[p].p = port_of(200, (uint32_t)p);
}

static void
drop_receiver(void)
{
	for (uint32_t i = 0; i < nb_held; i++)
		af_rx_slice_free(held[i].slice, release_packet);
	nb_held = 0;
	for (int i = 0; i < AF_NB_DROPS; i++)
		rx_drops[i] += rx->drops[i];
	af_rx_free(rx);
	free(rx);
	if (store.used || kept_out)
		fail("memory did not come back", -1, -1);
}

static void
make_tx(struct sender *s, int index, uint64_t now)
{
	static uint64_t instances = 0;

	if (af_tx_init(&s->tx))
		exit(2);
	snprintf(s->tx.name, sizeof s->tx.name, "source-%d", index);
	s->tx.instance = instances++ << AF_LIFE_BITS;
	s->tx.nb_expected = s->tx.nb_ports = (uint32_t)o.ports;
	s->tx.peer_timeout_ns = 10000000000ull;
	for (int p = 0; p < o.ports; p++) {
		s->tx.ports[p].p = port_of((uint8_t)index, (uint32_t)p);
		s->tx.ports[p].path_size = FRAME;
		s->tx.ports[p].attached_ns = now;
	}
}

/* A slice of random elements: some in runs of like ones, some empty, some slices so small that they travel inline. */
static void
make_slice(struct af_tx_slice *s, int index)
{
	uint32_t most = o.small ? 3000 : 24, n = draw(most), at = AF_MANIFEST_HEADER, nb_runs = 0;
	struct af_span *elements;
	struct af_manifest m = {0};

	if (index % 5 == 4)
		n = draw(4);
	elements = calloc(n + 1, sizeof *elements);
	s->manifest = malloc(AF_MANIFEST_HEADER + AF_RUN_HEADER * (size_t)(n + 1));
	for (uint32_t e = 0; e < n;) {
		struct af_run run = {0};
		uint32_t count = 1 + draw(4) * draw(4);
		uint64_t nbytes = draw(o.small ? 200 : (uint32_t)o.bytes);

		count = count < n - e ? count : n - e;
		nbytes = index % 5 == 4 ? draw(20) : o.zero && draw((uint32_t)o.zero) == 0 ? 0 : nbytes;
		run.count = AF_BE32(count);
		run.nbytes = AF_BE64(nbytes);
		memcpy(s->manifest + at, &run, sizeof run);
		at += AF_RUN_HEADER;
		nb_runs++;
		for (; count; count--, e++) {
			uint8_t *bytes = malloc(nbytes ? nbytes : 1);

			for (uint64_t i = 0; i < nbytes; i++)
				bytes[i] = (uint8_t)draw(256);
			elements[e] = (struct af_span){bytes, nbytes};
			s->nbytes += nbytes;
		}
	}
	m.nb_runs = AF_BE32(nb_runs);
	m.nb_elements = AF_BE32(n);
	m.nbytes = AF_BE64(s->nbytes);
	memcpy(s->manifest, &m, sizeof m);
	s->manifest_bytes = at;
	s->elements = elements;
	s->nb_elements = n;
	s->plan.ports = ~0u;
	s->posted_ns = START_NS;
}

static void
free_slice(struct af_tx_slice *s)
{
	for (uint32_t e = 0; e < s->nb_elements; e++)
		free((void *)s->elements[e].ptr);
	free((void *)s->elements);
	free(s->manifest);
}

/* ---- what is handed over ---- */

static bool
same_bytes(const struct af_rx_slice *got, const struct af_tx_slice *sent)
{
	if (got->nb_elements != sent->nb_elements || got->nbytes != sent->nbytes)
		return false;
	for (uint32_t e = 0; e < got->nb_elements; e++) {
		const struct af_rx_element *el = &got->elements[e];
		const uint8_t *ptr = sent->elements[e].ptr;
		uint64_t rest = el->nbytes;

		if (el->nbytes != sent->elements[e].nbytes)
			return false;
		if (!got->kept) {
			if (rest && memcmp(store.base + got->block->offset + el->offset, ptr, rest))
				return false;
			continue;
		}
		if (el->packed == 1 || !el->packed)
			for (uint32_t c = el->first_chunk; rest; c++) {
				if (got->kept[c].nbytes > rest || memcmp(got->kept[c].payload, ptr, got->kept[c].nbytes))
					return false;
				ptr += got->kept[c].nbytes;
				rest -= got->kept[c].nbytes;
			}
	}
	return true;
}

/* Find out whose slice it is and whether it may come now. */
static void
take_slice(struct af_rx_slice *got, uint64_t now)
{
	int index = atoi(got->sender + strlen("source-"));
	struct sender *s = senders[index];

	/* In order: between this one and the one before, only slices that were given up may be missing. */
	for (int i = s->next_in_order;; i++) {
		if (i == o.slices)
			fail("handed over what was not sent, or out of order", index, (int)got->id);
		if (!same_bytes(got, &s->slices[i])) {
			int state = atomic_load(&s->slices[i].state);

			if (state != AF_TX_FAILED && !atomic_load(&s->slices[i].cancel) && !o.tx_restart_ms)
				fail("a slice was skipped", index, i);
			continue;
		}
		s->handed_over[i]++;
		s->next_in_order = i + 1;
		break;
	}
	bytes_in += got->nbytes;
	held[nb_held++] = (struct held){got, now + (uint64_t)o.hold_ms * 1000000};
}

static void
use_slices(uint64_t now)
{
	while (rx->ready) {
		struct af_rx_slice *got = rx->ready;

		rx->ready = got->next;
		if (!rx->ready)
			rx->ready_tail = &rx->ready;
		take_slice(got, now);
	}
	for (uint32_t i = 0; i < nb_held;) {
		if (held[i].until > now) {
			i++;
			continue;
		}
		af_rx_slice_free(held[i].slice, release_packet);
		held[i] = held[--nb_held];
	}
}

/* ---- time goes by ---- */

static void
poll_sender(struct sender *s, uint32_t p, uint64_t now)
{
	uint8_t frame[AF_MAX_FRAME];

	for (int k = 0; k < 4; k++) {
		uint32_t len = af_tx_next_frame(&s->tx, p, now, frame);

		if (!len)
			break;
		if (len > FRAME || s->tx.ports[p].w.flying > s->tx.ports[p].w.limit + 1)
			fail("a frame or window too large", -1, -1);
		transmit(0, p, now, frame, len);
	}
}

static void
poll_receiver(uint32_t p, uint64_t now)
{
	uint8_t frame[AF_MAX_FRAME];
	struct packet in;

	while (line_pop(&lines[0][p], now, &in)) {
		if (af_rx_on_frame(rx, p, now, in.bytes, in.len, in.bytes))
			kept_out++;
		else
			free(in.bytes);
	}
	for (int k = 0; k < 4; k++) {
		uint32_t len = af_rx_next_frame(rx, p, now, frame);

		if (!len)
			break;
		if (len > FRAME)
			fail("a report too large", -1, -1);
		transmit(1, p, now, frame, len);
	}
	while (line_pop(&lines[1][p], now, &in)) {
		for (int s = 0; s < o.senders; s++)
			if (!memcmp(in.bytes, senders[s]->tx.ports[p].p.mac, 6))
				af_tx_on_frame(&senders[s]->tx, p, now, in.bytes, in.len, NULL);
		free(in.bytes);
	}
}

/* Cancel what the scenario cancels, once half of it has been sent. */
static void
cancel_some(struct sender *s)
{
	for (int i = 0; o.cancel && i < o.slices; i++) {
		struct af_tx_slice *slice = &s->slices[i];

		if (i % o.cancel == o.cancel - 1 && atomic_load(&slice->state) == AF_TX_FLOWING && slice->next_chunk > slice->nb_chunks / 2)
			atomic_store(&slice->cancel, 1);
	}
}

/* The sender's process dies and comes back as another; what was not delivered is posted again. */
static void
restart_sender(struct sender *s, int index, uint64_t now)
{
	for (int p = 0; p < o.ports; p++)
		forget_frames(0, (uint32_t)p, s->tx.ports[p].p.mac);
	af_tx_fail_all(&s->tx, AF_TX_CANCELLED, now);
	free(s->tx.again);
	make_tx(s, index, now);
	for (int i = 0; i < o.slices; i++) {
		struct af_tx_slice *slice = &s->slices[i];

		/* One whose report was lost may have been handed over: the new sender cannot know, nor does it send it again. */
		if (atomic_load(&slice->state) == AF_TX_DONE || s->handed_over[i] || i < s->next_in_order)
			continue;
		slice->posted_ns = now;
		slice->error = 0;
		slice->frames = slice->again = 0;
		slice->acked_bytes = 0;
		atomic_store(&slice->state, AF_TX_QUEUED);
		af_tx_enqueue(&s->tx, slice);
	}
}

static bool
all_done(void)
{
	for (int s = 0; s < o.senders; s++)
		for (int i = 0; i < o.slices; i++)
			if (atomic_load(&senders[s]->slices[i].state) < AF_TX_DONE)
				return false;
	return true;
}

static void
check_outcome(void)
{
	for (int s = 0; s < o.senders; s++)
		for (int i = 0; i < o.slices; i++) {
			struct af_tx_slice *slice = &senders[s]->slices[i];
			int times = senders[s]->handed_over[i];

			if (times > 1)
				fail("handed over twice", s, i);
			if (atomic_load(&slice->state) == AF_TX_DONE && !times)
				fail("reported as delivered, but it was not", s, i);
			if (slice->error && slice->error != AF_TX_CANCELLED && !(o.rx_restart_ms && slice->error == AF_TX_RESTARTED))
				fail("failed without a reason", s, i);
			if (slice->error == AF_TX_CANCELLED && !o.cancel && !o.tx_restart_ms)
				fail("cancelled by nobody", s, i);
		}
}

static void
print_outcome(uint64_t now)
{
	uint64_t again = 0, frames = 0, delivered = 0, failed = 0, nbytes = 0, aside = 0;

	for (int s = 0; s < o.senders; s++) {
		for (int i = 0; i < o.slices; i++) {
			struct af_tx_slice *slice = &senders[s]->slices[i];

			frames += slice->frames;
			again += slice->again;
			delivered += atomic_load(&slice->state) == AF_TX_DONE;
			failed += slice->error != 0;
			nbytes += slice->nbytes;
		}
		for (int p = 0; p < o.ports; p++) {
			spurious += senders[s]->tx.ports[p].w.spurious;
			aside += senders[s]->tx.ports[p].aside;
		}
		probes += senders[s]->tx.probes;
	}
	printf("{\"delivered\": %" PRIu64 ", \"failed\": %" PRIu64 ", \"nbytes\": %" PRIu64 ", \"ms\": %.3f, \"frames\": %" PRIu64
	       ", \"again\": %" PRIu64 ", \"spurious\": %" PRIu64 ", \"probes\": %" PRIu64 ", \"aside\": %" PRIu64
	       ", \"waited\": %" PRIu64 ", \"receivers\": %u, \"network\": {\"sent\": %" PRIu64 ", \"lost\": %" PRIu64
	       ", \"doubled\": %" PRIu64 ", \"damaged\": %" PRIu64 ", \"cut\": %" PRIu64 ", \"muted\": %" PRIu64 ", \"first\": %" PRIu64
	       ", \"last\": %" PRIu64 ", \"overflowed\": %" PRIu64 "}, \"drops\": {",
	       delivered, failed, nbytes, (double)(now - START_NS) / 1e6, frames, again, spurious, probes, aside, waited,
	       receivers_made, net.sent, net.lost, net.doubled, net.damaged, net.cut, net.muted, net.first, net.last, net.overflowed);
	for (int i = 1, some = 0; i < AF_NB_DROPS; i++)
		if (rx_drops[i])
			printf("%s\"%d\": %" PRIu64, some++ ? ", " : "", i, rx_drops[i]);
	printf("}}\n");
}

int
main(int argc, char **argv)
{
	uint64_t now = START_NS, end;
	int rx_restart, tx_restart;

	read_options(argc, argv);
	random_state = (uint64_t)o.seed * 0x9e3779b97f4a7c15ull + 88172645463325252ull;
	for (int i = 0; i < 10; i++)
		draw(1);
	if (o.slices > MAX_SLICES || o.senders > MAX_SENDERS || o.ports > (int)AF_MAX_PORTS)
		return 2;
	if (af_store_init(&store, (uint64_t)o.memory_kb << 10, !o.keep))
		return 2;
	make_receiver();
	for (int s = 0; s < o.senders; s++) {
		senders[s] = calloc(1, sizeof **senders);
		make_tx(senders[s], s, now);
		for (int i = 0; i < o.slices; i++) {
			make_slice(&senders[s]->slices[i], i);
			af_tx_enqueue(&senders[s]->tx, &senders[s]->slices[i]);
		}
	}
	end = now + (uint64_t)o.limit_ms * 1000000;
	rx_restart = o.rx_restart_ms;
	tx_restart = o.tx_restart_ms;
	while (!all_done()) {
		now += STEP_NS;
		if (now > end)
			fail("did not end in time", -1, -1);
		if (rx_restart && flow_ns && now - flow_ns >= (uint64_t)rx_restart * 1000000) {
			rx_restart = 0;
			drop_receiver();
			make_receiver();
		}
		if (tx_restart && flow_ns && now - flow_ns >= (uint64_t)tx_restart * 1000000) {
			tx_restart = 0;
			restart_sender(senders[0], 0, now);
		}
		for (int p = 0; p < o.ports; p++) {
			for (int s = 0; s < o.senders; s++)
				poll_sender(senders[s], (uint32_t)p, now);
			poll_receiver((uint32_t)p, now);
		}
		for (int s = 0; s < o.senders; s++) {
			cancel_some(senders[s]);
			af_tx_tick(&senders[s]->tx, now);
		}
		af_rx_tick(rx, now);
		waited += rx->waiting != NULL;
		use_slices(now);
	}
	check_outcome();
	drop_receiver();
	print_outcome(now);
	for (int s = 0; s < o.senders; s++) {
		for (int i = 0; i < o.slices; i++)
			free_slice(&senders[s]->slices[i]);
		free(senders[s]->tx.again);
		free(senders[s]);
	}
	for (int way = 0; way < 2; way++)
		for (int p = 0; p < o.ports; p++)
			while (lines[way][p].count)
				free(lines[way][p].heap[--lines[way][p].count].bytes);
	af_store_free(&store);
	return 0;
}

/* The two ends of a run: senders with their slices, and the receiver with what its user holds. */
#ifndef TESTS_PEERS_H
#define TESTS_PEERS_H

#include "aiflow/tx/tx_agent.h"

#include "aiflow/rx/rx_agent.h"

#include "network.h"

struct sender {
	struct af_tx tx;
	struct af_tx_slice slices[MAX_SLICES];
	int handed_over[MAX_SLICES];
	char judged[MAX_SLICES]; /* by the receiver's user: 'c'onfirmed, 'f'ailed, 0: not */
	bool posted_again[MAX_SLICES]; /* by the process that followed: what its forerunner had sent may come, too */
	int nb_posted, next_in_order;
};

struct held {
	struct af_rx_slice *slice;
	uint64_t until;
	int sender, index; /* whose, and which of its slices */
};

static struct sender *senders[MAX_SENDERS];
static struct af_rx *rx;
static struct af_arena assembled, in_place, *arena; /* element memory, or mbufs that are only counted */
static struct held held[MAX_SENDERS * MAX_SLICES];
static uint32_t nb_held, receivers_made;
static struct af_numbers numbers; /* of all ends: as in one process */
static struct af_verdicts verdicts; /* of the receiver's user */
static uint64_t rx_drops[AF_NB_DROPS], bytes_in, kept_out, waited, senders_made;
static uint64_t now; /* the simulated clock */

static void
fail(const char *what, int sender, int slice)
{
	int error = sender >= 0 && slice >= 0 && slice < MAX_SLICES ? senders[sender]->slices[slice].error : 0;

	printf("{\"failed\": \"%s\", \"sender\": %d, \"slice\": %d, \"error\": %d, \"seed\": %d, \"ms\": %.3f}\n", what,
	       sender, slice, error, o.seed, (double)(now - START_NS) / 1e6);
	exit(1);
}

static struct af_agent_port
port_of(uint8_t owner, uint32_t p)
{
	struct af_agent_port port = {.attached = true,
				     .frame_size = (uint16_t)o.frame,
				     .rx_ring = (uint32_t)o.ring,
				     .tx_window = (uint32_t)o.window,
				     .point_to_point = o.senders == 1,
				     .mac = {2, 0, 0, 0, owner, (uint8_t)p}};

	return port;
}

/* ---- receiver ---- */

static void
release_packet(void *handle)
{
	kept_out--;
	free(handle);
}

static void
make_receiver(void)
{
	rx = malloc(sizeof *rx);
	af_rx_init(rx);
	rx->arena = arena;
	rx->release = release_packet;
	rx->keeps_mbufs = o.keep;
	rx->mbuf_bytes = 2048;
	rx->numbers = &numbers;
	rx->epoch = 1000 + receivers_made++;
	rx->peer_timeout_ns = (uint64_t)o.timeout_ms * MS;
	rx->confirms = o.confirm > 0;
	rx->verdicts = &verdicts;
	strcpy(rx->name, "sink");
	rx->nb_ports = (uint32_t)o.ports;
	for (int p = 0; p < o.ports; p++)
		rx->ports[p].p = port_of(200, (uint32_t)p);
}

/* What the user says of the n-th slice that it may fail: more than one report can carry, and of many pieces. */
static uint32_t
text_of(int index, char *text)
{
	uint32_t nbytes = index / 16 % 2 ? 1 + (uint32_t)index % 7
					 : 1 + (uint32_t)(index * 797) % 3000; /* short ones after long ones */

	for (uint32_t i = 0; i < nbytes; i++)
		text[i] = (char)('a' + (i * 7 + (uint32_t)index) % 26);
	return nbytes;
}

static void
judge(const struct held *h)
{
	bool failed = o.confirm == 5 ? h->index % 12 >= 4 : o.confirm > 1 && h->index % o.confirm == o.confirm - 1;
	char text[3000];

	if (!o.confirm)
		return;
	note(now, "slice %d of sender %d is %s", h->index, h->sender, failed ? "failed" : "confirmed");
	af_verdicts_push(&verdicts, h->slice->session_id, h->slice->id, failed, text,
			 failed ? text_of(h->index, text) : 0);
	senders[h->sender]->judged[h->index] = failed ? 'f' : 'c';
}

static void
drop_receiver(void)
{
	af_verdicts_free(&verdicts); /* killed between its user's word and the report */
	for (uint32_t i = 0; i < nb_held; i++)
		af_rx_slice_free(held[i].slice, release_packet);
	nb_held = 0;
	for (int i = 0; i < AF_NB_DROPS; i++)
		rx_drops[i] += rx->drops[i];
	af_rx_free(rx);
	free(rx);
	if (arena->used || kept_out)
		fail("memory did not come back", -1, -1);
}

/* ---- senders ---- */

static void
make_port(struct sender *s, int index, int p)
{
	struct af_tx_port *port = &s->tx.ports[p];

	memset(port, 0, sizeof *port);
	port->p = port_of((uint8_t)index, (uint32_t)p);
	port->path_size = (uint32_t)o.frame;
	port->attached_ns = now;
}

static void
make_tx(struct sender *s, int index)
{
	if (af_tx_init(&s->tx))
		exit(2);
	snprintf(s->tx.name, sizeof s->tx.name, "source-%d", index);
	s->tx.instance = senders_made++ << AF_LIFE_BITS;
	s->tx.numbers = &numbers;
	s->tx.nb_expected = s->tx.nb_ports = (uint32_t)o.ports;
	s->tx.ticked_ns = now; /* it may be stopped before its first turn */
	s->tx.peer_timeout_ns = (uint64_t)o.timeout_ms * MS;
	for (int p = 0; p < o.ports; p++)
		make_port(s, index, p);
}

static struct sender *
make_sender(int index)
{
	struct sender *s = malloc(sizeof *s);

	memset(s->slices, 0, sizeof *s - offsetof(struct sender, slices));
	make_tx(s, index);
	return s;
}

/* A slice of random elements: some in runs of like ones, some empty, some slices so small that they travel inline. */
static void
make_slice(struct af_tx_slice *s, int index)
{
	uint32_t most = o.small ? o.draw ? 400 : 3000 : 24, n = 1 + draw(most - 1), at = AF_MANIFEST_HEADER,
		 nb_runs = 0;
	uint64_t sizes[3000], *bytes;
	struct af_span *elements;
	struct af_manifest m = {.format = AF_MANIFEST_FORMAT};

	if (index % 5 == 4)
		n = 1 + draw(3);
	s->manifest = malloc(AF_MANIFEST_HEADER + AF_RUN_HEADER * (size_t)(n + 1));
	for (uint32_t e = 0; e < n;) { /* one run at least: its `first` tells slices apart */
		struct af_run run = {0};
		uint32_t count = 1 + draw(4) * draw(4);
		uint64_t nbytes = draw(o.small ? 200 : (uint32_t)o.bytes);

		count = count < n - e ? count : n - e;
		nbytes = index % 5 == 4 ? draw(20) : o.zero && draw((uint32_t)o.zero) == 0 ? 0 : nbytes;
		run.count = AF_BE32(count);
		run.nbytes = AF_BE64(nbytes);
		run.first = AF_BE32((uint32_t)index);
		memcpy(s->manifest + at, &run, sizeof run);
		at += AF_RUN_HEADER;
		nb_runs++;
		for (; count; count--, s->nbytes += nbytes)
			sizes[e++] = nbytes;
	}
	/* The elements lie end to end, in one allocation: a read beyond the last is seen by the sanitizer. */
	elements = calloc(n + 1, sizeof *elements);
	elements[n].ptr = malloc(s->nbytes ? s->nbytes : 1);
	bytes = (uint64_t *)(void *)(uintptr_t)elements[n].ptr;
	for (uint64_t i = 0; i < s->nbytes / 8; i++)
		bytes[i] = draw64();
	for (uint64_t i = s->nbytes & ~7ull; i < s->nbytes; i++)
		((uint8_t *)bytes)[i] = (uint8_t)draw(256);
	for (uint64_t e = 0, offset = 0; e < n; offset += sizes[e++])
		elements[e] = (struct af_span){elements[n].ptr + offset, sizes[e]};
	m.nb_runs = AF_BE32(nb_runs);
	m.nb_elements = AF_BE32(n);
	m.nbytes = AF_BE64(s->nbytes);
	memcpy(s->manifest, &m, sizeof m);
	s->manifest_bytes = at;
	s->elements = elements;
	s->nb_elements = n;
	s->dispatch.ports = ~0u;
	s->posted_ns = now;
}

static void
free_slice(struct af_tx_slice *s)
{
	free((void *)(uintptr_t)s->elements[s->nb_elements].ptr);
	free((void *)(uintptr_t)s->elements);
	free(s->manifest);
	free(s->text);
}

static void
free_sender(struct sender *s)
{
	for (int i = 0; i < s->nb_posted; i++)
		free_slice(&s->slices[i]);
	free(s->tx.retransmit);
	free(s);
}

static void
post_slice(struct sender *s)
{
	struct af_tx_slice *slice = &s->slices[s->nb_posted];

	make_slice(slice, s->nb_posted++);
	af_tx_enqueue(&s->tx, slice);
}

static int
nb_unfinished(const struct sender *s)
{
	int count = 0;

	for (int i = s->nb_posted - 1; i >= 0 && i >= s->nb_posted - MAX_SLICES; i--)
		count += atomic_load(&s->slices[i].state) < AF_TX_DONE;
	return count;
}

/* The sender's process dies and comes back as another; what was not delivered is posted again. */
static void
restart_sender(struct sender *s, int index)
{
	for (int p = 0; p < o.ports; p++)
		forget_frames(FORTH, (uint32_t)p, s->tx.ports[p].p.mac);
	af_tx_fail_all(&s->tx, AF_TX_CANCELLED, now);
	free(s->tx.retransmit);
	make_tx(s, index);
	for (int i = 0; i < s->nb_posted; i++) {
		struct af_tx_slice *slice = &s->slices[i];

		/* One whose report was lost may have been handed over: the new sender cannot know, nor does it send it
		 * again. */
		if (atomic_load(&slice->state) == AF_TX_DONE || s->handed_over[i] || i < s->next_in_order)
			continue;
		s->posted_again[i] = true;
		slice->posted_ns = now;
		slice->error = 0;
		slice->frames = slice->retransmits = 0;
		slice->acked_bytes = 0;
		atomic_store(&slice->state, AF_TX_QUEUED);
		af_tx_enqueue(&s->tx, slice);
	}
}

/* ---- what is handed over ---- */

static bool
same_bytes(const struct af_rx_slice *got, const struct af_tx_slice *sent)
{
	/* All but flags and payload_bytes, which the sender's loop fills in. */
	if (got->manifest_bytes != sent->manifest_bytes ||
	    memcmp(got->manifest + 4, sent->manifest + 4, sent->manifest_bytes - 4))
		return false;
	for (uint32_t e = 0; e < got->nb_elements; e++) {
		const struct af_rx_element *el = &got->elements[e];
		const uint8_t *ptr = sent->elements[e].ptr;
		uint64_t rest = el->nbytes;

		if (el->nbytes != sent->elements[e].nbytes)
			return false;
		if (!got->kept) {
			if (rest && memcmp(arena->base + got->block->offset + el->offset, ptr, rest))
				return false;
			continue;
		}
		if (el->packed > 1) { /* elements of a pack lie end to end at the sender, too */
			if (el->packed != AF_PACKED_INSIDE &&
			    memcmp(got->kept[el->first_chunk].payload, ptr, got->kept[el->first_chunk].nbytes))
				return false;
			continue;
		}
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
take_slice(struct af_rx_slice *got)
{
	int index = atoi(got->sender + strlen("source-"));
	struct sender *s = senders[index];

	/* Exactly once holds within a session: the forerunner's slice has come, and this is the same one of another
	 * session. */
	for (int i = 0; i < s->nb_posted; i++)
		if (s->posted_again[i] && s->handed_over[i] && same_bytes(got, &s->slices[i])) {
			s->posted_again[i] = false;
			s->handed_over[i]--;
			s->next_in_order = i;
		}
	/* In order: between this one and the one before, only slices that were given up may be missing. */
	for (int i = s->next_in_order;; i++) {
		if (i == s->nb_posted)
			fail("handed over what was not sent, or out of order", index, (int)got->id);
		if (!same_bytes(got, &s->slices[i])) {
			if (atomic_load(&s->slices[i].state) != AF_TX_FAILED && !atomic_load(&s->slices[i].cancel) &&
			    !o.tx_restart_ms)
				fail("a slice was skipped", index, i);
			continue;
		}
		s->handed_over[i]++;
		s->next_in_order = i + 1;
		note(now, "slice %d of sender %d is handed over", i, index);
		break;
	}
	bytes_in += got->nbytes;
	held[nb_held++] = (struct held){
		got, now + (uint64_t)o.hold_ms * MS + (o.confirm ? draw64() % ((o.confirm == 5 ? 30 : 2) * MS) : 0),
		index, s->next_in_order - 1};
}

static void
use_slices(void)
{
	while (rx->ready) {
		struct af_rx_slice *got = rx->ready;

		rx->ready = got->next;
		if (!rx->ready)
			rx->ready_tail = &rx->ready;
		take_slice(got);
	}
	for (uint32_t i = 0; i < nb_held;) {
		if (held[i].until > now) {
			i++;
			continue;
		}
		judge(&held[i]);
		af_rx_slice_free(held[i].slice, release_packet);
		held[i] = held[--nb_held];
	}
}

#endif

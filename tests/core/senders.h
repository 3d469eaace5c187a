/* Senders, and their slices. */
#ifndef TESTS_SENDERS_H
#define TESTS_SENDERS_H

#include "aiflow/tx/tx_agent.h"
#include "aiflow/tx/tx_due.h"

#include "receivers.h"

struct sender {
	struct place at;
	int to;                /* index of its receiver */
	bool named;            /* it names it */
	struct af_tx tx;
	bool restarted, unplugged; /* in this world; unplugged: it lost its only port */
	int nb_posted, next_in_order;
	int first;             /* slice of this life */
	uint64_t ended_ns;     /* when its last slice had ended */
	int handed_over[MAX_SLICES];
	char judged[MAX_SLICES]; /* by the receiver's user: 'c'onfirmed, 'f'ailed, 0: not */
	struct {
		uint32_t session;
		uint64_t bytes; /* that were written to their places in it */
	} placed[MAX_SLICES];
	bool posted_again[MAX_SLICES]; /* by the process that followed: what its forerunner had sent may come, too */
	struct af_tx_slice slices[MAX_SLICES];
};

static struct sender *senders[MAX_SENDERS];
static int nb_senders;
static uint64_t senders_made;

static void
fail(const char *what, int sender, int slice)
{
	int error = sender >= 0 && slice >= 0 && slice < MAX_SLICES ? senders[sender]->slices[slice].error : 0;

	printf("{\"failed\": \"%s\", \"sender\": %d, \"slice\": %d, \"error\": %d, \"seed\": %d, \"ms\": %.3f}\n", what,
	       sender, slice, error, o.seed, (double)(now - START_NS) / 1e6);
	exit(1);
}

static void
attach_sender(struct sender *s, uint32_t port)
{
	struct af_tx_port *p = &s->tx.ports[port];

	memset(p, 0, sizeof *p);
	p->p = port_of(&s->at, port);
	p->path_size = (uint32_t)o.frame;
	p->attached_ns = now;
}

static void
make_tx(struct sender *s, int index)
{
	struct af_tx *tx = &s->tx;

	if (af_tx_init(tx))
		exit(2);
	snprintf(tx->name, sizeof tx->name, "source-%d", index);
	if (s->named)
		strcpy(tx->to, receivers[s->to].name);
	tx->numbers = &nodes[s->at.node].numbers;
	tx->instance = senders_made++ << AF_LIFE_BITS;
	tx->nb_expected = tx->nb_ports = s->at.nb_ports;
	tx->ticked_ns = now; /* it may be stopped before its first turn */
	tx->peer_timeout_ns = (uint64_t)o.timeout_ms * MS;
	for (uint32_t i = 0; i < s->at.nb_ports; i++)
		attach_sender(s, i);
	s->first = s->nb_posted;
	s->at.agent = (struct af_agent){.state = tx,
					.role = AF_SENDS,
					.instance = tx->instance,
					.on_frame = af_tx_on_frame,
					.tail = &tx->tail,
					.next_frame = af_tx_next_frame,
					.tick = af_tx_tick,
					.due = af_tx_due,
					.owns = af_tx_owns,
					.load = af_tx_load};
	enter_node(&s->at);
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
		elements[e] = (struct af_span){.ptr = elements[n].ptr + offset, .nbytes = sizes[e]};
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
drop_tx(struct sender *s)
{
	leave_node(&s->at);
	free(s->tx.retransmit);
}

static void
free_sender(struct sender *s)
{
	for (int i = 0; i < s->nb_posted; i++)
		free_slice(&s->slices[i]);
	drop_tx(s);
	free(s);
}

static void
post_slice(struct sender *s)
{
	struct af_tx_slice *slice = &s->slices[s->nb_posted];

	memset(slice, 0, sizeof *slice);
	make_slice(slice, s->nb_posted++);
	af_tx_enqueue(&s->tx, slice);
	nodes[s->at.node].poked = true;
}

static int
nb_unfinished(const struct sender *s)
{
	int count = 0;

	for (int i = s->nb_posted - 1; i >= 0 && i >= s->nb_posted - MAX_SLICES; i--)
		count += atomic_load(&s->slices[i].state) < AF_TX_DONE;
	return count;
}

static void
kill_sender(struct sender *s)
{
	af_tx_fail_all(&s->tx, AF_TX_CANCELLED, now);
	drop_tx(s);
	s->restarted = true;
}

/* It comes back as another; what was not delivered is posted again. */
static void
revive_sender(struct sender *s, int index)
{
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

#endif

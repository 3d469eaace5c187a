/* What senders write to memory that receivers share: where each write lands, and nodes that sleep in the middle of one.
 *
 * A write may land in its own slice, which flows and has not got that chunk yet, or in a block that is fenced. With
 * stuck=…, a node now and then sleeps while it writes: the write is done once more when it wakes, before its frame is
 * sent, as if it had lasted all the time.
 */
#ifndef TESTS_PLACED_H
#define TESTS_PLACED_H

#include "senders.h"

/* A chunk that was just written. */
struct written {
	struct sender *sender;
	struct af_tx_slice *slice;
	uint32_t session, id, element, count, chunk, nbytes;
	uint64_t offset; /* in the element, where it is one of several */
};

/* A node that sleeps before the frame of what it wrote. */
struct stuck {
	uint64_t until; /* 0: it does not */
	uint64_t hangs_up; /* when the other end of the connection does, meanwhile; 0: it does not */
	uint64_t all_ns; /* for so long it has slept in this world */
	struct written written;
	uint32_t port, len;
	uint8_t frame[AF_MAX_FRAME];
};

static struct stuck stuck[MAX_NODES];
static struct {
	uint64_t writes, fenced, orphaned, stuck, gone; /* of all worlds */
} placing;

static bool
is_stuck(int node)
{
	return stuck[node].until != 0;
}

static const struct receiver *
receiver_of(const struct memory *memory)
{
	for (int i = 0; i < nb_receivers; i++)
		if (receivers[i].arena == &memory->arena)
			return &receivers[i];
	return NULL;
}

static void
check_block(const struct written *w, const struct memory *memory, uint64_t offset, uint64_t nbytes)
{
	const struct af_block *block = block_at(memory, offset);
	int index = atoi(w->sender->tx.name + strlen("source-")), i = (int)(w->slice - w->sender->slices);
	const struct af_rx_session *session;
	const struct af_rx_slot *slot;

	if (!block || offset + nbytes > block->offset + block->size)
		fail("a write to memory that no slice has", index, i);
	if (block->fenced) {
		placing.fenced++;
		return;
	}
	session = af_rx_session_of(receiver_of(memory)->rx, w->session);
	slot = session ? &session->slots[w->id % AF_RX_SLOTS] : NULL;
	if (!slot || slot->id != w->id || slot->state != AF_RX_FLOWING || slot->slice->block != block)
		fail("a write to memory of another slice", index, i);
	if (!slot->slice->has_place)
		fail("a write to a place that was not told", index, i);
	if (af_rx_has_chunk(slot->slice, slot->slice->nb_manifest + w->chunk))
		fail("a chunk is written after it has arrived", index, i);
}

/* A sender with new chunks for a place may write there at any time: its slice flows, or its block is fenced. */
static void
check_rights(const struct sender *s, const struct af_tx_slice *slice)
{
	const struct af_tx_places *places = slice->places;
	const struct memory *memory = places && places->shared ? memory_at(places->block) : NULL;
	const struct af_block *block;
	const struct af_rx_session *session;
	const struct af_rx_slot *slot;

	if (!memory || memory->gone || slice->next_chunk + 1 >= slice->nb_chunks)
		return;
	block = block_at(memory, (uint64_t)(places->block - memory->mapped));
	session = af_rx_session_of(receiver_of(memory)->rx, s->tx.session);
	slot = session ? &session->slots[slice->id % AF_RX_SLOTS] : NULL;
	if (!block || (!block->fenced && (!slot || !slot->slice || slot->slice->block != block)))
		fail("a sender may write to memory that is not its slice's", atoi(s->tx.name + strlen("source-")),
		     (int)(slice - s->slices));
}

static void
check_places(void)
{
	for (int i = 0; i < nb_senders && may_share(); i++)
		for (uint32_t id = senders[i]->tx.first_id; id != senders[i]->tx.next_id; id++) {
			const struct af_tx_slot *slot = af_tx_slot(&senders[i]->tx, id);

			if (slot && slot->slice)
				check_rights(senders[i], slot->slice);
		}
}

/* Each element of the chunk: where it was written to. `again`: it is written now. */
static void
check_write(const struct written *w, bool again)
{
	for (uint32_t e = w->element; e < w->element + w->count; e++) {
		uint64_t nbytes = w->count > 1 ? w->slice->elements[e].nbytes : w->nbytes;
		uint8_t *to = af_tx_place_of(w->slice->places, e) + w->offset;
		const struct memory *memory = memory_at(to);

		if (!nbytes)
			continue;
		if (!memory)
			fail("a write to no memory", -1, -1);
		if (memory->gone)
			placing.orphaned++;
		else
			check_block(w, memory, (uint64_t)(to - memory->mapped), nbytes);
		if (again)
			memcpy(to, w->slice->elements[e].ptr + w->offset, nbytes);
	}
}

/* Did the sender of this frame write its chunk now? */
static bool
find_written(int node, const uint8_t *frame, struct written *w)
{
	struct af_header h;
	uint8_t kind = frame[14] & 15;
	struct af_tx_slot *slot;

	if (kind != AF_PLACED && kind != AF_PLACED_PACK)
		return false;
	memcpy(&h, frame, sizeof h);
	memset(w, 0, sizeof *w);
	for (int i = 0; i < nb_senders; i++)
		if (senders[i]->at.node == node && senders[i]->tx.open &&
		    senders[i]->tx.session == AF_BE32(h.session) && af_tx_slot(&senders[i]->tx, AF_BE32(h.slice)) &&
		    !memcmp(frame + 6, senders[i]->tx.ports[AF_BE16(h.path)].p.mac, 6))
			w->sender = senders[i];
	if (!w->sender)
		fail("a placed frame of no sender", -1, -1);
	slot = af_tx_slot(&w->sender->tx, AF_BE32(h.slice));
	w->slice = slot->slice;
	w->session = w->sender->tx.session;
	w->id = slot->id;
	w->element = AF_BE32(h.element);
	w->count = kind == AF_PLACED_PACK ? AF_BE32(h.seq) : 1;
	w->chunk = w->slice->first_chunk[w->element];
	w->nbytes = (uint32_t)w->slice->elements[w->element].nbytes;
	if (kind == AF_PLACED && w->nbytes > w->slice->payload_bytes) {
		w->chunk += AF_BE32(h.seq);
		w->offset = (uint64_t)AF_BE32(h.seq) * w->slice->payload_bytes;
		w->nbytes -= (uint32_t)w->offset;
		w->nbytes = w->nbytes < w->slice->payload_bytes ? w->nbytes : w->slice->payload_bytes;
	}
	return true;
}

/* A frame is about to leave a node. True when the node falls asleep before it does. */
static bool
note_write(int node, uint32_t port, const uint8_t *frame, uint32_t len)
{
	struct stuck *s = &stuck[node];
	struct written w;
	struct sender *sender;
	int i;

	if (!may_share() || !find_written(node, frame, &w))
		return false;
	sender = w.sender;
	i = (int)(w.slice - sender->slices);
	if (sender->placed[i].session != w.session)
		sender->placed[i].bytes = 0;
	if (sender->placed[i].bytes == w.slice->placed_bytes)
		return false; /* a retransmission */
	sender->placed[i].session = w.session;
	sender->placed[i].bytes = w.slice->placed_bytes;
	placing.writes++;
	check_write(&w, false);
	if (!o.stuck || (int)draw(1000) >= o.stuck || s->all_ns > 2 * (uint64_t)o.stuck_ms * MS)
		return false;
	placing.stuck++;
	s->written = w;
	s->port = port;
	s->len = len;
	memcpy(s->frame, frame, len);
	s->until = now + (uint64_t)between(1, o.stuck_ms) * MS;
	s->all_ns += s->until - now;
	s->hangs_up = o.hang && draw((uint32_t)o.hang) == 0 ? now + draw64() % (s->until - now) : 0;
	note(now, "node %d sleeps in the middle of a write, until %.3f ms", node, (double)(s->until - START_NS) / 1e6);
	return true;
}

/* A node that slept goes on where it was. */
static void
wake_up(int node)
{
	struct stuck *s = &stuck[node];

	if (!s->until || now < s->until)
		return;
	s->until = 0;
	note(now, "node %d wakes", node);
	check_write(&s->written, true);
	transmit(node, s->port, now, s->frame, s->len);
}

#endif

/* What receivers hand over, and what their users do with it. */
#ifndef TESTS_HANDED_OVER_H
#define TESTS_HANDED_OVER_H

#include "placed.h"

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
			if (rest && memcmp(got->arena->base + got->block->offset + el->offset, ptr, rest))
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
take_slice(struct receiver *r, struct af_rx_slice *got)
{
	int index = atoi(got->sender + strlen("source-"));
	struct sender *s = senders[index];
	uint64_t hold_ns = (uint64_t)o.hold_ms * MS;

	if (&receivers[s->to] != r)
		fail("handed over to another receiver", index, (int)got->id);
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
			    !s->restarted)
				fail("a slice was skipped", index, i);
			continue;
		}
		s->handed_over[i]++;
		s->next_in_order = i + 1;
		note(now, "slice %d of sender %d is handed over", i, index);
		break;
	}
	if (o.confirm)
		hold_ns += draw64() % ((o.confirm == 5 ? 30 : 2) * MS);
	r->held[r->nb_held++] = (struct held){got, now + hold_ns, index, s->next_in_order - 1};
}

static void
judge(struct receiver *r, const struct held *h)
{
	bool failed = o.confirm == 5 ? h->index % 12 >= 4 : o.confirm > 1 && h->index % o.confirm == o.confirm - 1;
	char text[3000];

	if (!o.confirm)
		return;
	note(now, "slice %d of sender %d is %s", h->index, h->sender, failed ? "failed" : "confirmed");
	af_verdicts_push(&r->verdicts, h->slice->session_id, h->slice->id, failed, text,
			 failed ? text_of(h->index, text) : 0);
	senders[h->sender]->judged[h->index] = failed ? 'f' : 'c';
}

static void
use_slices(struct receiver *r)
{
	struct af_rx *rx = r->rx;

	while (rx->ready) {
		struct af_rx_slice *got = rx->ready;

		rx->ready = got->next;
		if (!rx->ready)
			rx->ready_tail = &rx->ready;
		take_slice(r, got);
	}
	for (uint32_t i = 0; i < r->nb_held;) {
		if (r->held[i].until > now) {
			i++;
			continue;
		}
		judge(r, &r->held[i]);
		af_rx_slice_free(r->held[i].slice, release_packet);
		r->held[i] = r->held[--r->nb_held];
		nodes[r->at.node].poked = true;
	}
}

#endif

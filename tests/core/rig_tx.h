/* A sender under test whose receiver is played by the test: feedback as it likes. */
#ifndef TESTS_RIG_TX_H
#define TESTS_RIG_TX_H

#include "rig.h"

static struct rig rig;

/* Feedback of the session that is open, with these bytes behind it. */
static inline enum af_drop
told(struct af_feedback r, const void *more, uint32_t nbytes)
{
	uint8_t *payload = malloc(sizeof r + nbytes);
	struct af_frame f = {.kind = AF_FEEDBACK,
			     .number = rig.tx.feedback_number + 1,
			     .payload = payload,
			     .nbytes = sizeof r + nbytes};
	enum af_drop drop;

	r.format = r.format ? r.format : AF_FEEDBACK_FORMAT;
	memcpy(payload, &r, sizeof r);
	if (nbytes)
		memcpy(payload + sizeof r, more, nbytes);
	drop = af_tx_on_feedback(&rig.tx, &f, rig.now);
	free(payload);
	return drop;
}

/* A slice in flight, granted; the receiver has said nothing else. */
static inline struct af_tx_slice *
flowing(const uint64_t *sizes)
{
	struct af_tx_slice *s;

	rig_begin(&rig, 2, 1 << 20);
	rig_open(&rig);
	s = rig_post(&rig, 1, sizes);
	af_tx_tick(&rig.tx, rig.now);
	CHECK_EQUAL(s->state, AF_TX_ASKING);
	CHECK_EQUAL(
		told((struct af_feedback){.granted = AF_BE32(2), .done = AF_BE32(1), .confirmed = AF_BE32(1)}, NULL, 0),
		AF_OK);
	CHECK_EQUAL(s->state, AF_TX_FLOWING);
	return s;
}

static inline void
end(struct af_tx_slice *s)
{
	af_tx_fail_all(&rig.tx, AF_TX_CANCELLED, rig.now);
	rig_slice_free(s);
	rig_end(&rig);
}

#endif

/* The outcome of slices, as a receiver tells their sender: voids, verdicts of the user, and texts. */
#ifndef AIFLOW_RX_OUTCOME_H
#define AIFLOW_RX_OUTCOME_H

#include "aiflow/wire/verdict.h"
#include "aiflow/rx/rx_state.h"

static inline void
af_rx_void(struct af_rx_session *session, uint32_t slice, uint32_t reason, uint64_t detail)
{
	struct af_void *kept =
		&session->voids[reason == AF_VOID_SILENCE ? AF_SLICES_IN_FLIGHT : slice % AF_SLICES_IN_FLIGHT];

	session->urgent = true;
	if (kept->reason && af_before(slice, AF_BE32(kept->slice)))
		return; /* its sender is done with it, because it has begun the newer slice */
	*kept = (struct af_void){.slice = AF_BE32(slice), .reason = AF_BE32(reason), .detail = AF_BE64(detail)};
}

/* Keep a text until its sender knows it. Without memory only the reason is told. */
static inline void
af_rx_keep_text(struct af_rx_session *session, uint32_t slice, const char *text, uint32_t nbytes)
{
	struct af_rx_text *kept = &session->texts[slice % AF_RX_SLOTS];

	free(kept->bytes);
	*kept = (struct af_rx_text){.slice = slice};
	if (session->text_slot == slice % AF_RX_SLOTS)
		session->text_at = 0; /* it was an offset in the older text */
	nbytes = nbytes < AF_TEXT_MOST ? nbytes : AF_TEXT_MOST;
	if (!nbytes || !(kept->bytes = malloc(nbytes)))
		return;
	memcpy(kept->bytes, text, nbytes);
	kept->nbytes = nbytes;
	session->text_due += nbytes;
}

static inline void
af_rx_forget_texts(struct af_rx_session *session)
{
	for (uint32_t i = 0; i < AF_RX_SLOTS; i++) {
		free(session->texts[i].bytes);
		session->texts[i] = (struct af_rx_text){0};
	}
	session->text_due = 0;
}

/* Move `confirmed` past every slice with a verdict. */
static inline void
af_rx_settle(struct af_rx_session *session)
{
	while (session->confirmed != session->done &&
	       session->verdicts[session->confirmed % AF_RX_SLOTS] != AF_RX_PENDING)
		session->confirmed++;
}

/* The user's verdict on a slice that was handed over. */
static inline void
af_rx_judge(struct af_rx_session *session, uint32_t slice, bool failed, const char *text, uint32_t nbytes)
{
	uint8_t *verdict = &session->verdicts[slice % AF_RX_SLOTS];

	if (af_before(slice, session->confirmed) || !af_before(slice, session->done) || *verdict != AF_RX_PENDING)
		return;
	*verdict = AF_RX_CONFIRMED;
	if (failed) {
		af_rx_keep_text(session, slice, text, nbytes);
		af_rx_void(session, slice, AF_VOID_FAILED, session->texts[slice % AF_RX_SLOTS].nbytes);
	}
	af_rx_settle(session);
	session->urgent = true;
}

/* Fail every slice that waits for its verdict: there will be none. */
static inline void
af_rx_fail_pending(struct af_rx *rx, const char *text, uint32_t nbytes)
{
	for (uint32_t i = 0; i < rx->nb_sessions; i++)
		for (uint32_t id = rx->sessions[i]->confirmed; id != rx->sessions[i]->done; id++)
			af_rx_judge(rx->sessions[i], id, true, text, nbytes);
}

static inline void
af_rx_hear_verdicts(struct af_rx *rx)
{
	struct af_verdict *v = rx->verdicts ? af_verdicts_take(rx->verdicts) : NULL;

	while (v) {
		struct af_rx_session *session = af_rx_session_of(rx, v->session);
		struct af_verdict *next = v->next;

		if (session)
			af_rx_judge(session, v->slice, v->failed, v->text, v->nbytes);
		free(v);
		v = next;
	}
}

#endif

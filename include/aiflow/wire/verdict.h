/* A user's verdicts on slices that were handed over: confirmed, or failed with a text.
 *
 *   handed over --confirm()--> CONFIRMED ----> `confirmed` of the feedback passes it, and its sender's `send` returns
 *        \------fail(text)---> FAILED -------> the same, with AF_VOID_FAILED and the text: `send` raises
 *
 * Any thread pushes a verdict; the loop takes all of them at once. A verdict on an ended session is ignored.
 */
#ifndef AIFLOW_VERDICT_H
#define AIFLOW_VERDICT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define AF_TEXT_MOST 60000u /* bytes of a text: feedback has 16 bits for its size */

struct af_verdict {
	struct af_verdict *next;
	uint32_t session, slice;
	bool failed;
	uint32_t nbytes;
	char text[];
};

struct af_verdicts {
	_Atomic(struct af_verdict *) newest;
};

/* Push a verdict. False without memory for it. */
static inline bool
af_verdicts_push(struct af_verdicts *verdicts, uint32_t session, uint32_t slice, bool failed, const char *text,
		 uint32_t nbytes)
{
	struct af_verdict *verdict = malloc(sizeof *verdict + nbytes);

	if (!verdict)
		return false;
	*verdict = (struct af_verdict){.session = session, .slice = slice, .failed = failed, .nbytes = nbytes};
	if (nbytes)
		memcpy(verdict->text, text, nbytes);
	verdict->next = atomic_load_explicit(&verdicts->newest, memory_order_relaxed);
	while (!atomic_compare_exchange_weak_explicit(&verdicts->newest, &verdict->next, verdict, memory_order_release,
						      memory_order_relaxed))
		;
	return true;
}

/* Take all verdicts, the newest first. */
static inline struct af_verdict *
af_verdicts_take(struct af_verdicts *verdicts)
{
	if (!atomic_load_explicit(&verdicts->newest, memory_order_relaxed))
		return NULL;
	return atomic_exchange_explicit(&verdicts->newest, NULL, memory_order_acquire);
}

static inline void
af_verdicts_free(struct af_verdicts *verdicts)
{
	for (struct af_verdict *verdict = af_verdicts_take(verdicts), *next; verdict; verdict = next) {
		next = verdict->next;
		free(verdict);
	}
}

#endif

/* verdict.h: any thread says what became of slices, one takes it all. */
#include <pthread.h>

#include "aiflow/wire/verdict.h"

#include "check.h"

#define THREADS 4u
#define EACH 5000u

static struct af_verdicts verdicts;

static void
the_newest_comes_first_with_its_text(void)
{
	struct af_verdict *v;
	char text[] = "disk full";

	CHECK(!af_verdicts_take(&verdicts));
	CHECK(af_verdicts_push(&verdicts, 7, 1, false, NULL, 0));
	CHECK(af_verdicts_push(&verdicts, 8, 2, true, text, sizeof text));
	memset(text, 0, sizeof text); /* a copy was taken */
	v = af_verdicts_take(&verdicts);
	CHECK(v && v->session == 8 && v->slice == 2 && v->failed);
	CHECK_EQUAL(v->nbytes, 10);
	CHECK(!strcmp(v->text, "disk full"));
	CHECK(v->next && v->next->session == 7 && v->next->slice == 1 && !v->next->failed && !v->next->nbytes);
	CHECK(!v->next->next);
	CHECK(!af_verdicts_take(&verdicts)); /* once */
	free(v->next);
	free(v);
}

static void *
say(void *arg)
{
	uint32_t session = (uint32_t)(uintptr_t)arg;

	for (uint32_t slice = 0; slice < EACH; slice++)
		CHECK(af_verdicts_push(&verdicts, session, slice, slice % 2, "x", slice % 2));
	return NULL;
}

static void
every_word_of_every_thread_is_taken_once_and_in_its_order(void)
{
	static bool seen[THREADS][EACH];
	pthread_t threads[THREADS];
	uint32_t count = 0;

	for (uintptr_t i = 0; i < THREADS; i++)
		CHECK(!pthread_create(&threads[i], NULL, say, (void *)i));
	while (count < THREADS * EACH) {
		uint32_t oldest[THREADS] = {0}; /* slice + 1, of those taken now */
		struct af_verdict *next;

		for (struct af_verdict *v = af_verdicts_take(&verdicts); v; v = next, count++) {
			next = v->next;
			CHECK(v->session < THREADS && v->slice < EACH && !seen[v->session][v->slice]);
			CHECK(!oldest[v->session] || v->slice + 1 < oldest[v->session]); /* newest first */
			oldest[v->session] = v->slice + 1;
			seen[v->session][v->slice] = true;
			free(v);
		}
	}
	for (uint32_t i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	CHECK(!af_verdicts_take(&verdicts));
}

static void
verdicts_that_are_not_taken_are_freed(void)
{
	for (uint32_t i = 0; i < 100; i++)
		af_verdicts_push(&verdicts, 1, i, true, "text", 4);
	af_verdicts_free(&verdicts); /* the leak checker counts */
	CHECK(!af_verdicts_take(&verdicts));
}

CASES(CASE(the_newest_comes_first_with_its_text), CASE(every_word_of_every_thread_is_taken_once_and_in_its_order),
      CASE(verdicts_that_are_not_taken_are_freed))

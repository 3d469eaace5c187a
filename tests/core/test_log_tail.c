/* log_tail.h: the end of DPDK's log, for error messages. */
#include "aiflow/rt/log_tail.h"

#include "check.h"

static struct af_log tail;
static char text[AF_LOG_BYTES + 1];

static void
what_was_written_since_a_mark_is_read(void)
{
	FILE *stream = af_log_open(&tail, 0);
	uint64_t mark;

	CHECK(stream);
	fputs("EAL: one\n", stream);
	mark = tail.written;
	CHECK_EQUAL(mark, 9);
	fputs("EAL: two\n", stream);
	CHECK_EQUAL(af_log_since(&tail, mark, text), 9);
	CHECK(!memcmp(text, "EAL: two\n", 9));
	CHECK_EQUAL(af_log_since(&tail, 0, text), 18);
	CHECK(!memcmp(text, "EAL: one\nEAL: two\n", 18));
	CHECK_EQUAL(af_log_since(&tail, tail.written, text), 0);
	CHECK_EQUAL(af_log_take(&tail, &mark, text), 9);
	CHECK_EQUAL(mark, 18);
	CHECK_EQUAL(af_log_take(&tail, &mark, text), 0);
	fclose(stream);
}

static void
the_ring_keeps_the_last_bytes_in_order(void)
{
	char line[32];
	uint64_t number = 0, first, size;

	tail.written = 0;
	while (tail.written < 3 * AF_LOG_BYTES) {
		int n = snprintf(line, sizeof line, "%07u\n", (unsigned)number++);

		CHECK_EQUAL(af_log_write(&tail, line, (size_t)n), n);
	}
	size = af_log_since(&tail, 0, text);
	CHECK_EQUAL(size, AF_LOG_BYTES);
	first = number - AF_LOG_BYTES / 8;
	for (uint64_t i = 0; i < AF_LOG_BYTES / 8; i++) {
		snprintf(line, sizeof line, "%07u\n", (unsigned)(first + i));
		CHECK(!memcmp(text + 8 * i, line, 8));
	}
}

static void
one_text_larger_than_the_ring_leaves_its_end(void)
{
	static char large[2 * AF_LOG_BYTES + 5];

	for (size_t i = 0; i < sizeof large; i++)
		large[i] = (char)check_random(256);
	tail.written = 3;
	af_log_write(&tail, large, sizeof large);
	CHECK_EQUAL(af_log_since(&tail, 3, text), AF_LOG_BYTES);
	CHECK(!memcmp(text, large + sizeof large - AF_LOG_BYTES, AF_LOG_BYTES));
}

static void
it_is_echoed_while_it_is_read(void)
{
	int ends[2], before = dup(STDERR_FILENO);
	char got[8];

	CHECK(before >= 0 && !pipe(ends));
	dup2(ends[1], STDERR_FILENO);
	tail.echo = 1;
	af_log_write(&tail, "EAL: x\n", 7);
	close(STDERR_FILENO);
	af_log_write(&tail, "EAL: y\n", 7); /* it has no reader any more */
	dup2(before, STDERR_FILENO);
	close(before);
	CHECK_EQUAL(read(ends[0], got, sizeof got), 7);
	CHECK(!memcmp(got, "EAL: x\n", 7));
	CHECK_EQUAL(tail.echo, 0);
	close(ends[0]);
	close(ends[1]);
}

static void
stderr_can_go_elsewhere_and_come_back(void)
{
	FILE *stream = af_log_open(&tail, 0), *before = af_log_stderr(stream);
	uint64_t mark = tail.written;

	CHECK(before && before != stream);
	fputs("told to stderr\n", stderr);
	CHECK(af_log_stderr(before) == stream);
	CHECK_EQUAL(af_log_since(&tail, mark, text), 15);
	CHECK(!memcmp(text, "told to stderr\n", 15));
	CHECK(af_log_stderr(NULL) == before); /* changes nothing */
	CHECK(stderr == before);
	fclose(stream);
}

CASES(CASE(what_was_written_since_a_mark_is_read), CASE(the_ring_keeps_the_last_bytes_in_order),
      CASE(one_text_larger_than_the_ring_leaves_its_end), CASE(it_is_echoed_while_it_is_read),
      CASE(stderr_can_go_elsewhere_and_come_back))

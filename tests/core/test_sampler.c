/* sampler.h: the loop's counters, as another thread reads them. */
#include <pthread.h>

#include "aiflow/rt/sampler.h"

#include "check.h"

static struct af_sampler sampler;

static void
write_sample(uint64_t ns, uint64_t value)
{
	struct af_sample *sample = af_sampler_begin(&sampler, ns);

	CHECK(sample);
	for (uint32_t p = 0; p < AF_MAX_PORTS; p++)
		sample->ports[p] =
			(struct af_port_sample){value, value, value, value, (uint32_t)value, (uint32_t)value};
	af_sampler_end(&sampler, value);
}

static void
a_sample_is_due_once_an_interval(void)
{
	struct af_sample *sample;

	sampler = (struct af_sampler){.interval_ns = 100};
	CHECK((sample = af_sampler_begin(&sampler, 1000)) != NULL);
	CHECK_EQUAL(sample->ns, 1000);
	af_sampler_end(&sampler, 0);
	CHECK(!af_sampler_begin(&sampler, 1099));
	CHECK(af_sampler_begin(&sampler, 1100));
	af_sampler_end(&sampler, 0);
	CHECK_EQUAL(sampler.serial, 2);
	sampler.interval_ns = 0; /* off */
	CHECK(!af_sampler_begin(&sampler, 1000000));
}

static void
an_idle_loop_is_not_woken_for_samples(void)
{
	sampler = (struct af_sampler){0};
	CHECK_EQUAL(af_sampler_due_at(&sampler, 0), AF_DUE_NEVER); /* off */
	sampler.interval_ns = 100;
	write_sample(1000, 0);
	CHECK_EQUAL(af_sampler_due_at(&sampler, 0), 1100); /* rates need two */
	write_sample(1100, 7);
	CHECK_EQUAL(af_sampler_due_at(&sampler, 7), 1200);
	write_sample(1200, 7);
	CHECK_EQUAL(af_sampler_due_at(&sampler, 7), AF_DUE_NEVER);
	CHECK_EQUAL(af_sampler_due_at(&sampler, 8), 1300); /* a frame has moved */
	write_sample(9000, 8);
	CHECK_EQUAL(af_sampler_due_at(&sampler, 8), 9100);
}

static void
the_two_newest_are_read(void)
{
	static struct af_sample older, newer;

	sampler = (struct af_sampler){.interval_ns = 10};
	CHECK(!af_sampler_read(&sampler, &older, &newer));
	write_sample(10, 1);
	CHECK(!af_sampler_read(&sampler, &older, &newer)); /* rates need two */
	for (uint64_t n = 2; n < 20; n++) {
		write_sample(10 * n, n);
		CHECK(af_sampler_read(&sampler, &older, &newer));
		CHECK_EQUAL(older.ns, 10 * (n - 1));
		CHECK_EQUAL(newer.ns, 10 * n);
		CHECK_EQUAL(older.ports[3].frames, n - 1);
		CHECK_EQUAL(newer.ports[AF_MAX_PORTS - 1].bytes, n);
	}
}

static _Atomic int stop;

static void *
write_on_and_on(void *unused)
{
	for (uint64_t n = 2; !atomic_load(&stop); n++)
		write_sample(10 * n, n);
	return unused;
}

static void
what_is_read_was_never_half_written(void)
{
	static struct af_sample older, newer;
	pthread_t thread;
	uint64_t last = 0, moves = 0;

	sampler = (struct af_sampler){.interval_ns = 10};
	write_sample(10, 1);
	CHECK(!pthread_create(&thread, NULL, write_on_and_on, NULL));
	while (moves < 200) {
		if (!af_sampler_read(&sampler, &older, &newer))
			continue;
		CHECK_EQUAL(newer.ns, older.ns + 10);
		for (uint32_t p = 0; p < AF_MAX_PORTS; p++) {
			CHECK_EQUAL(older.ports[p].frames * 10, older.ns);
			CHECK_EQUAL(newer.ports[p].frames * 10, newer.ns);
			CHECK_EQUAL(newer.ports[p].capacity, (uint32_t)newer.ports[p].frames);
		}
		CHECK(newer.ns >= last);
		moves += newer.ns > last;
		last = newer.ns;
	}
	atomic_store(&stop, 1);
	pthread_join(thread, NULL);
}

CASES(CASE(a_sample_is_due_once_an_interval), CASE(an_idle_loop_is_not_woken_for_samples),
      CASE(the_two_newest_are_read), CASE(what_is_read_was_never_half_written))

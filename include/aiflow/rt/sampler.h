/* Samples of a loop's counters, for the monitor. The loop copies them once per interval; another thread computes rates
 * from the two newest copies. There is no lock: a copy is stable until two more were made, as the serial number shows.
 *
 * While no frame moves, samples alone wake no loop: the newest two are equal, and the rates are 0.
 */
#ifndef AIFLOW_SAMPLER_H
#define AIFLOW_SAMPLER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "aiflow/rt/agent.h"

#define AF_SAMPLES 4u /* a ring */

struct af_port_sample {
	uint64_t frames, bytes;  /* sent by a sender, received by a receiver */
	uint64_t sent, arrived;  /* packet numbers that can have arrived, and those that did */
	uint32_t queued, capacity; /* a sender: chunks in flight, and the window; a receiver: 0, and its ring */
};

struct af_sample {
	uint64_t ns; /* when it was taken */
	struct af_port_sample ports[AF_MAX_PORTS];
};

struct af_sampler {
	uint64_t interval_ns; /* control: w before the loop runs; 0: off */
	/* dataplane: w, control: ro */
	_Atomic uint64_t serial; /* samples so far; the next one is entry serial % AF_SAMPLES */
	uint64_t due_ns;         /* of the next sample */
	uint64_t moved;          /* frames, at the newest sample */
	bool still;              /* … and at the one before */
	struct af_sample samples[AF_SAMPLES];
};

/* The sample to fill now, or NULL when none is due. */
static inline struct af_sample *
af_sampler_begin(struct af_sampler *sampler, uint64_t now)
{
	struct af_sample *sample;

	if (!sampler->interval_ns || now < sampler->due_ns)
		return NULL;
	sampler->due_ns = now + sampler->interval_ns;
	sample = &sampler->samples[atomic_load_explicit(&sampler->serial, memory_order_relaxed) % AF_SAMPLES];
	sample->ns = now;
	return sample;
}

/* `moved`: the sum of the counters that grow. */
static inline void
af_sampler_end(struct af_sampler *sampler, uint64_t moved)
{
	uint64_t serial = atomic_fetch_add_explicit(&sampler->serial, 1, memory_order_release);

	sampler->still = serial && moved == sampler->moved;
	sampler->moved = moved;
}

/* When the loop must wake for a sample. */
static inline uint64_t
af_sampler_due_at(const struct af_sampler *sampler, uint64_t moved)
{
	return sampler->interval_ns && !(sampler->still && moved == sampler->moved) ? sampler->due_ns : AF_DUE_NEVER;
}

/* Copy the two newest samples. False while there are fewer. Any thread. */
static inline bool
af_sampler_read(struct af_sampler *sampler, struct af_sample *older, struct af_sample *newer)
{
	for (;;) {
		uint64_t serial = atomic_load_explicit(&sampler->serial, memory_order_acquire);

		if (serial < 2)
			return false;
		memcpy(older, &sampler->samples[(serial - 2) % AF_SAMPLES], sizeof *older);
		memcpy(newer, &sampler->samples[(serial - 1) % AF_SAMPLES], sizeof *newer);
		atomic_thread_fence(memory_order_acquire);
		if (atomic_load_explicit(&sampler->serial, memory_order_relaxed) - serial < AF_SAMPLES - 2)
			return true;
	}
}

#endif

/* Faults made on purpose, at the burst boundary: off unless asked for, and then the same ones for the same seed. */
#ifndef AIFLOW_LOOP_FAULTS_H
#define AIFLOW_LOOP_FAULTS_H

#include <stdbool.h>
#include <stdint.h>

#include "wire.h"

enum af_verdict { AF_PASS, AF_LOSE, AF_CORRUPT, AF_REPEAT };

struct af_faults {
	/* control plane, before the loop runs */
	bool on;
	uint32_t kinds;       /* bit k: frames of kind k are subject */
	uint32_t drop_ppm, corrupt_ppm;
	uint32_t drop_first;  /* the first so many of them */
	uint64_t drop_for_ns; /* all of them, for so long from the first one on */
	uint32_t copies;      /* of every frame */
	uint64_t state;       /* of the generator; the seed, not 0 */
	/* dataplane: rw */
	uint64_t since_ns, seen;
	uint64_t dropped, corrupted, repeated;
};

static inline uint32_t
af_fault_random(struct af_faults *faults)
{
	uint64_t x = faults->state; /* xorshift64* (Vigna) */

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	faults->state = x;
	return (uint32_t)((x * 0x2545f4914f6cdd1dull) >> 32);
}

/* What happens to this frame on its way out. AF_CORRUPT has flipped one bit of it. */
static inline enum af_verdict
af_fault(struct af_faults *faults, uint8_t *frame, uint32_t len, uint64_t now)
{
	if (!(faults->kinds >> (frame[14] & 15) & 1))
		return AF_PASS;
	if (!faults->seen++)
		faults->since_ns = now;
	if (faults->seen <= faults->drop_first || (faults->drop_for_ns && now - faults->since_ns < faults->drop_for_ns) ||
	    (faults->drop_ppm && af_fault_random(faults) % 1000000 < faults->drop_ppm)) {
		faults->dropped++;
		return AF_LOSE;
	}
	if (faults->corrupt_ppm && af_fault_random(faults) % 1000000 < faults->corrupt_ppm) {
		uint32_t bit = af_fault_random(faults) % (len * 8);

		frame[bit / 8] ^= (uint8_t)(1u << (bit % 8));
		faults->corrupted++;
		return AF_CORRUPT;
	}
	if (faults->copies > 1) {
		faults->repeated++;
		return AF_REPEAT;
	}
	return AF_PASS;
}

#endif

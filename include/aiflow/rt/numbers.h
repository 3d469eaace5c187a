/* The numbers of sessions: random, unique in the process, never 0.
 *
 * Each end of a session mints a number, and its peer writes that number into every frame. So the number alone finds
 * the agent that a frame is for. It is a keyed permutation of a counter: no number repeats within 2^32, and a stranger
 * cannot guess the next one from those before. It is no secret, because every frame shows it.
 */
#ifndef AIFLOW_NUMBERS_H
#define AIFLOW_NUMBERS_H

#include <stdatomic.h>
#include <stdint.h>

#define AF_NUMBERS_ROUNDS 4 /* of a Feistel network: a pseudorandom permutation (Luby and Rackoff, 1988) */

/* Any thread mints. */
struct af_numbers {
	uint64_t key[2];
	atomic_uint next; /* the counter */
};

/* Before the first number is minted. The seed is 128 random bits; equal seeds give equal numbers. */
static inline void
af_numbers_init(struct af_numbers *numbers, const uint64_t seed[2])
{
	numbers->key[0] = seed[0];
	numbers->key[1] = seed[1];
	atomic_init(&numbers->next, 0);
}

/* The round function: 16 bits of a keyed mix of 16 bits (the finalizer of SplitMix64, Steele et al. 2014). */
static inline uint32_t
af_numbers_round(const struct af_numbers *numbers, uint32_t half, uint64_t round)
{
	uint64_t mix = (numbers->key[round & 1] ^ half) + (round + 1) * 0x9e3779b97f4a7c15ull;

	mix = (mix ^ mix >> 30) * 0xbf58476d1ce4e5b9ull;
	mix = (mix ^ mix >> 27) * 0x94d049bb133111ebull;
	mix ^= numbers->key[~round & 1];
	mix = (mix ^ mix >> 31) * 0x9e3779b97f4a7c15ull;
	return (uint32_t)(mix >> 48);
}

/* A number that was not minted before, unless 2^32 others were. Never 0, which stands for no session. */
static inline uint32_t
af_numbers_mint(struct af_numbers *numbers)
{
	uint32_t number;

	do {
		uint32_t count = atomic_fetch_add_explicit(&numbers->next, 1, memory_order_relaxed);
		uint32_t left = count >> 16, right = count & 0xffff;

		for (uint64_t round = 0; round < AF_NUMBERS_ROUNDS; round++) {
			uint32_t swapped = left ^ af_numbers_round(numbers, right, round);

			left = right;
			right = swapped;
		}
		number = left << 16 | right;
	} while (!number);
	return number;
}

#endif

/* CRC32C (Castagnoli, RFC 3720 appendix B.4), and the arithmetic that joins the CRCs of pieces.
 *
 * One CRC over header and payload checks a frame. The CRCs of chunks join to those of elements and slices, so no byte
 * is read a second time:
 *
 *     crc(A || B) = af_crc32c_shift(crc(A), len(B)) ^ crc(B)
 *
 * With SSE4.2 or the ARMv8 CRC extension three strands run interleaved, because the instruction has a latency of three
 * cycles and a throughput of one (Gopal et al., "Fast CRC Computation for iSCSI Polynomial Using CRC32 Instruction").
 * A CPU with carry-less multiplication folds (crc32c_clmul.h): a little faster with vectors of 128 bits, two to four
 * times with those of 256 and 512. This is chosen at run time, because DPDK's compiler flags are for an older CPU.
 */
#ifndef AIFLOW_CRC32C_H
#define AIFLOW_CRC32C_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define AF_STREAM_SLICE (1u << 20)  /* bytes: larger slices do not fit in a core's cache, and bypass it */
#define AF_STREAM_FRAME 512u        /* bytes of a payload that is worth bypassing the cache */

enum af_copy {
	AF_COPY_NONE,
	AF_COPY_STORE, /* into the caches */
	AF_COPY_STREAM /* around them: memory that is not read before it is written, nor used soon (Intel SDM
			  1, 10.4.6.2) */
};

#if defined(__x86_64__) && defined(__SSE4_2__)
#define AF_CRC_FOLDS
#include "aiflow/wire/crc32c_clmul.h"
#endif
#if defined(__SSE4_2__)
#include <nmmintrin.h>
#define AF_CRC_U64(c, v) ((uint32_t)_mm_crc32_u64((c), (v)))
#define AF_CRC_U32(c, v) _mm_crc32_u32((c), (v))
#define AF_CRC_U16(c, v) _mm_crc32_u16((c), (v))
#define AF_CRC_U8(c, v) _mm_crc32_u8((c), (v))
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#define AF_CRC_U64(c, v) __crc32cd((c), (v))
#define AF_CRC_U32(c, v) __crc32cw((c), (v))
#define AF_CRC_U16(c, v) __crc32ch((c), (v))
#define AF_CRC_U8(c, v) __crc32cb((c), (v))
#endif

#define AF_CRC_POLY 0x82f63b78u /* reflected */
#define AF_CRC_LONG 1536u       /* bytes of one strand: first of long payloads, then of the rest */
#define AF_CRC_SHORT 160u
#define AF_CRC_LEAST 128u       /* fewer bytes are not folded */

/* Ways of computing, each faster than the one before. */
enum af_crc_way { AF_CRC_STRANDS, AF_CRC_PCLMUL, AF_CRC_AVX2, AF_CRC_AVX512, AF_NB_CRC_WAYS };

/* A multiplication by x^(8 * nbytes) as four table look-ups. */
struct af_crc_shift {
	uint32_t nbytes;
	uint32_t table[4][256];
};

struct af_crc_tables {
	uint32_t byte[256];         /* one byte at a time, where the CPU has no instruction */
	uint32_t power[2][256];     /* x^(8 n) for n = low byte, x^(8 * 256 n) for n = high byte */
	struct af_crc_shift long_strand, short_strand;
	enum af_crc_way way; /* of this CPU; tests set lesser ones */
#ifdef AF_CRC_FOLDS
	struct af_crc_multipliers multipliers;
#endif
};

static struct af_crc_tables af_crc;

/* a * b modulo the polynomial, both reflected: bit 31 is x^0. */
static inline uint32_t
af_crc_multiply(uint32_t a, uint32_t b)
{
	uint32_t product = 0;

#ifdef AF_CRC_FOLDS
	if (af_crc.way)
		return af_crc_multiply_by_clmul(a, b);
#endif
	for (int i = 0; i < 32; i++) {
		product ^= b & (0u - (a >> 31));
		a <<= 1;
		b = (b >> 1) ^ (AF_CRC_POLY & (0u - (b & 1)));
	}
	return product;
}

static inline void
af_crc_shift_of(struct af_crc_shift *shift, uint32_t nbytes, uint32_t operand)
{
	shift->nbytes = nbytes;
	for (int k = 0; k < 4; k++) {
		shift->table[k][0] = 0;
		for (uint32_t v = 1; v < 256; v++) /* linear: one product per bit, and sums of these */
			shift->table[k][v] = v & (v - 1) ? shift->table[k][v & (v - 1)] ^ shift->table[k][v & -v]
							 : af_crc_multiply(v << (8 * k), operand);
	}
}

/* x^(8 * nbytes) for any length, with one multiplication per 16-bit digit. */
static inline uint32_t
af_crc_power(uint64_t nbytes)
{
	uint32_t result = af_crc.power[0][nbytes & 255];

	result = af_crc_multiply(result, af_crc.power[1][(nbytes >> 8) & 255]);
	nbytes >>= 16;
	if (nbytes) {
		uint32_t base = af_crc_multiply(af_crc.power[1][255], af_crc.power[1][1]); /* x^(8 * 65536) */

		for (; nbytes; nbytes >>= 1) {
			if (nbytes & 1)
				result = af_crc_multiply(result, base);
			base = af_crc_multiply(base, base);
		}
	}
	return result;
}

#ifdef AF_CRC_FOLDS
static inline void
af_crc_carry_over(uint64_t multipliers[2], uint32_t nbytes)
{
	multipliers[0] = (uint64_t)af_crc_power(nbytes + 4) << 1;
	multipliers[1] = (uint64_t)af_crc_power(nbytes - 4) << 1;
}

/* AIFLOW_CRC32C=strands, pclmul or avx2 selects a slower one, for tests. */
static inline enum af_crc_way
af_crc_best_way(void)
{
	const char *most = getenv("AIFLOW_CRC32C");

	__builtin_cpu_init();
	if ((most && !strcmp(most, "strands")) || !__builtin_cpu_supports("pclmul"))
		return AF_CRC_STRANDS;
	if ((most && !strcmp(most, "pclmul")) || !__builtin_cpu_supports("vpclmulqdq") ||
	    !__builtin_cpu_supports("avx2"))
		return AF_CRC_PCLMUL;
	if ((most && !strcmp(most, "avx2")) || !__builtin_cpu_supports("avx512bw") ||
	    !__builtin_cpu_supports("avx512vl"))
		return AF_CRC_AVX2;
	return AF_CRC_AVX512;
}
#endif

__attribute__((constructor)) static void
af_crc_prepare(void)
{
	const uint32_t one = 0x80000000u;
	uint32_t x8 = one;

	for (uint32_t v = 0; v < 256; v++) {
		uint32_t crc = v;

		for (int i = 0; i < 8; i++)
			crc = (crc >> 1) ^ (AF_CRC_POLY & (0u - (crc & 1)));
		af_crc.byte[v] = crc;
	}
	for (int i = 0; i < 8; i++)
		x8 = (x8 >> 1) ^ (AF_CRC_POLY & (0u - (x8 & 1)));
	af_crc.power[0][0] = af_crc.power[1][0] = one;
	for (int n = 1; n < 256; n++)
		af_crc.power[0][n] = af_crc_multiply(af_crc.power[0][n - 1], x8);
	af_crc.power[1][1] = af_crc_multiply(af_crc.power[0][255], x8);
	for (int n = 2; n < 256; n++)
		af_crc.power[1][n] = af_crc_multiply(af_crc.power[1][n - 1], af_crc.power[1][1]);
	af_crc_shift_of(&af_crc.long_strand, AF_CRC_LONG, af_crc_power(AF_CRC_LONG));
	af_crc_shift_of(&af_crc.short_strand, AF_CRC_SHORT, af_crc_power(AF_CRC_SHORT));
#ifdef AF_CRC_FOLDS
	af_crc_carry_over(af_crc.multipliers.over_16, 16);
	af_crc_carry_over(af_crc.multipliers.over_64, 64);
	af_crc_carry_over(af_crc.multipliers.over_256, 256);
	af_crc.way = af_crc_best_way();
#endif
}

static inline uint32_t
af_crc_apply(const struct af_crc_shift *shift, uint32_t crc)
{
	return shift->table[0][crc & 255] ^ shift->table[1][(crc >> 8) & 255] ^ shift->table[2][(crc >> 16) & 255] ^
	       shift->table[3][crc >> 24];
}

/* Move `crc` over `nbytes` bytes that follow: the equation at the top of this file. */
static inline uint32_t
af_crc32c_shift(uint32_t crc, uint64_t nbytes)
{
	return af_crc_multiply(crc, af_crc_power(nbytes));
}

#ifdef AF_CRC_U64
static inline uint64_t
af_crc_word(const uint8_t *p)
{
	uint64_t word;

	memcpy(&word, p, 8);
	return word;
}

static inline uint32_t
af_crc_strands(uint32_t c0, const uint8_t *p, const struct af_crc_shift *shift, size_t strand)
{
	uint32_t c1 = 0, c2 = 0;

	for (size_t i = 0; i < strand; i += 8) {
		c0 = AF_CRC_U64(c0, af_crc_word(p + i));
		c1 = AF_CRC_U64(c1, af_crc_word(p + strand + i));
		c2 = AF_CRC_U64(c2, af_crc_word(p + 2 * strand + i));
	}
	return af_crc_apply(shift, af_crc_apply(shift, c0) ^ c1) ^ c2;
}
#endif

/* Extend an inverted CRC without folding. */
static inline uint32_t
af_crc_unfolded(uint32_t crc, const uint8_t *p, size_t nbytes)
{
#ifdef AF_CRC_U64
	uint32_t four;
	uint16_t two;

	for (; nbytes >= 3 * AF_CRC_LONG; p += 3 * AF_CRC_LONG, nbytes -= 3 * AF_CRC_LONG)
		crc = af_crc_strands(crc, p, &af_crc.long_strand, AF_CRC_LONG);
	for (; nbytes >= 3 * AF_CRC_SHORT; p += 3 * AF_CRC_SHORT, nbytes -= 3 * AF_CRC_SHORT)
		crc = af_crc_strands(crc, p, &af_crc.short_strand, AF_CRC_SHORT);
	for (; nbytes >= 8; p += 8, nbytes -= 8)
		crc = AF_CRC_U64(crc, af_crc_word(p));
	if (nbytes & 4) {
		memcpy(&four, p, 4);
		crc = AF_CRC_U32(crc, four);
		p += 4;
	}
	if (nbytes & 2) {
		memcpy(&two, p, 2);
		crc = AF_CRC_U16(crc, two);
		p += 2;
	}
	if (nbytes & 1)
		crc = AF_CRC_U8(crc, *p);
#else
	for (; nbytes; p++, nbytes--)
		crc = (crc >> 8) ^ af_crc.byte[(crc ^ *p) & 255];
#endif
	return crc;
}

/* Extend `crc` (0 to begin with) by `nbytes` bytes. */
static inline uint32_t
af_crc32c(uint32_t crc, const void *bytes, size_t nbytes)
{
	const uint8_t *p = (const uint8_t *)bytes;

	crc = ~crc;
#ifdef AF_CRC_FOLDS
	if (nbytes >= AF_CRC_LEAST && af_crc.way) {
		size_t folded = nbytes & ~(size_t)15;

		crc = af_crc_folds[af_crc.way][AF_COPY_NONE](crc, p, folded, NULL, &af_crc.multipliers);
		p += folded;
		nbytes -= folded;
	}
#endif
	return ~af_crc_unfolded(crc, p, nbytes);
}

#ifdef AF_CRC_FOLDS
/* Copy less than a cache line, and extend the CRC on the way. */
static inline uint32_t
af_crc_copied(uint32_t crc, uint8_t *to, const uint8_t *from, size_t nbytes)
{
	for (; nbytes >= 8; to += 8, from += 8, nbytes -= 8) {
		uint64_t word = af_crc_word(from);

		memcpy(to, &word, 8);
		crc = AF_CRC_U64(crc, word);
	}
#define AF_CRC_PART(type, nbytes_of, sum)       \
	if (nbytes & nbytes_of) {               \
		type part;                      \
                                                \
		memcpy(&part, from, nbytes_of); \
		memcpy(to, &part, nbytes_of);   \
		crc = sum(crc, part);           \
		to += nbytes_of;                \
		from += nbytes_of;              \
	}
	AF_CRC_PART(uint32_t, 4, AF_CRC_U32)
	AF_CRC_PART(uint16_t, 2, AF_CRC_U16)
	AF_CRC_PART(uint8_t, 1, AF_CRC_U8)
	return crc;
}
#endif

/* Copy bytes and extend `crc` by the copy, even if another thread changes the original meanwhile. One pass where the
 * CPU folds. Other threads see streamed bytes after af_copy_settle. */
static inline uint32_t
af_copy_crc32c(uint32_t crc, void *dst, const void *src, size_t nbytes, enum af_copy how)
{
	const uint8_t *from = (const uint8_t *)src;
	uint8_t *to = (uint8_t *)dst;

#ifdef AF_CRC_FOLDS
	if (nbytes >= AF_CRC_LEAST && af_crc.way) {
		size_t head = -(uintptr_t)to & 63, folded = (nbytes - head) & ~(size_t)15;

		crc = af_crc_copied(~crc, to, from, head); /* whole cache lines from here on */
		crc = af_crc_folds[af_crc.way][how](crc, from + head, folded, to + head, &af_crc.multipliers);
		head += folded;
		return ~af_crc_copied(crc, to + head, from + head, nbytes - head);
	}
#endif
	if (nbytes)
		memcpy(to, from, nbytes);
	return af_crc32c(crc, to, nbytes);
}

/* Order the streamed stores of this thread before its later ones. */
static inline void
af_copy_settle(void)
{
#ifdef AF_CRC_FOLDS
	_mm_sfence();
#endif
}

#endif

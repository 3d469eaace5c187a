/* CRC32C by carry-less multiplication, with a copy on the way. crc32c.h chooses one of these at run time.
 *
 * Two multiplications modulo the polynomial carry a lane of 16 bytes over the next one (Gopal et al., "Fast CRC
 * Computation for Generic Polynomials Using PCLMULQDQ Instruction"). The CRC instruction finishes the last lane. A copy
 * stores each vector that was loaded for the CRC.
 */
#ifndef AIFLOW_CRC32C_CLMUL_H
#define AIFLOW_CRC32C_CLMUL_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

/* Multipliers that carry a lane over `bytes` bytes: x^(8 * (bytes + 4)), x^(8 * (bytes - 4)), in 33 bits. */
struct af_crc_multipliers {
	uint64_t over_16[2], over_64[2], over_256[2];
};

#define AF_PCLMUL __attribute__((target("pclmul,sse4.2")))
#define AF_AVX2 __attribute__((target("avx2,vpclmulqdq,pclmul,sse4.2")))
#define AF_AVX512 __attribute__((target("avx512f,avx512vl,avx512bw,vpclmulqdq,pclmul,sse4.2")))
#define AF_READ_AHEAD 2048 /* bytes: the source is mostly in memory, not in a cache */
#define AF_OWN_AHEAD 1024  /* and the destination may be, too */

/* ---- 16 bytes in a vector: any x86-64 since 2010 ---- */

AF_PCLMUL static inline __m128i
af_crc_lane(const void *p)
{
	return _mm_loadu_si128((const __m128i *)p);
}

AF_PCLMUL static inline __m128i
af_crc_carry(__m128i lane, __m128i over, __m128i next)
{
	return _mm_xor_si128(
		_mm_xor_si128(_mm_clmulepi64_si128(lane, over, 0x00), _mm_clmulepi64_si128(lane, over, 0x11)), next);
}

AF_PCLMUL static inline void
af_crc_put(uint8_t *to, __m128i lane, enum af_copy how)
{
	if (how == AF_COPY_STREAM)
		_mm_stream_si128((__m128i *)to, lane);
	else if (how == AF_COPY_STORE)
		_mm_storeu_si128((__m128i *)to, lane);
}

/* The rest, lane by lane, and the CRC. It is stored, not streamed: a partial line would cost a memory access. */
AF_PCLMUL static inline __attribute__((always_inline)) uint32_t
af_crc_rest(__m128i lane, __m128i over_16, const uint8_t *from, size_t nbytes, uint8_t *to, enum af_copy how)
{
	for (; nbytes; from += 16, to += 16, nbytes -= 16) {
		__m128i next = af_crc_lane(from);

		af_crc_put(to, next, how == AF_COPY_NONE ? AF_COPY_NONE : AF_COPY_STORE);
		lane = af_crc_carry(lane, over_16, next);
	}
	return (uint32_t)_mm_crc32_u64(_mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(lane)),
				       (uint64_t)_mm_extract_epi64(lane, 1));
}

/* Extend an inverted CRC by nbytes, a multiple of 16 and at least 64. For streaming `to` is aligned to 64. */
AF_PCLMUL static inline __attribute__((always_inline)) uint32_t
af_crc_by_16(uint32_t crc, const uint8_t *from, size_t nbytes, uint8_t *to, enum af_copy how,
	     const struct af_crc_multipliers *k)
{
	__m128i over_64 = af_crc_lane(k->over_64), over_16 = af_crc_lane(k->over_16), lanes[4], rest;

	for (int i = 0; i < 4; i++) {
		lanes[i] = af_crc_lane(from + 16 * i);
		af_crc_put(to + 16 * i, lanes[i], how);
	}
	lanes[0] = _mm_xor_si128(lanes[0], _mm_cvtsi32_si128((int)crc));
	for (from += 64, to += 64, nbytes -= 64; nbytes >= 64; from += 64, to += 64, nbytes -= 64) {
		__m128i next[4];

		if (how != AF_COPY_STREAM)
			__builtin_prefetch(from + AF_READ_AHEAD);
		if (how == AF_COPY_STORE)
			__builtin_prefetch(to + AF_OWN_AHEAD, 1);
		for (int i = 0; i < 4; i++)
			next[i] = af_crc_lane(from + 16 * i);
		for (int i = 0; i < 4; i++)
			af_crc_put(to + 16 * i, next[i], how);
		for (int i = 0; i < 4; i++)
			lanes[i] = af_crc_carry(lanes[i], over_64, next[i]);
	}
	rest = lanes[0];
	for (int i = 1; i < 4; i++)
		rest = af_crc_carry(rest, over_16, lanes[i]);
	return af_crc_rest(rest, over_16, from, nbytes, to, how);
}

/* ---- 32 bytes in a vector: Zen 3, Alder Lake and later ---- */

AF_AVX2 static inline __m256i
af_crc_carry_2(__m256i lanes, __m256i over, __m256i next)
{
	return _mm256_xor_si256(_mm256_xor_si256(_mm256_clmulepi64_epi128(lanes, over, 0x00),
						 _mm256_clmulepi64_epi128(lanes, over, 0x11)),
				next);
}

/* Load the next lanes, and copy them. */
AF_AVX2 static inline __m256i
af_crc_next_2(const uint8_t *from, uint8_t *to, enum af_copy how)
{
	__m256i lanes = _mm256_loadu_si256((const __m256i *)from);

	if (how == AF_COPY_STREAM)
		_mm256_stream_si256((__m256i *)to, lanes);
	else if (how == AF_COPY_STORE)
		_mm256_storeu_si256((__m256i *)to, lanes);
	return lanes;
}

/* As af_crc_by_16. */
AF_AVX2 static inline __attribute__((always_inline)) uint32_t
af_crc_by_32(uint32_t crc, const uint8_t *from, size_t nbytes, uint8_t *to, enum af_copy how,
	     const struct af_crc_multipliers *k)
{
	__m256i over_64 = _mm256_broadcastsi128_si256(af_crc_lane(k->over_64)), sums[8];
	__m256i over_256 = _mm256_broadcastsi128_si256(af_crc_lane(k->over_256));
	__m128i over_16 = af_crc_lane(k->over_16), rest;

	for (int i = 0; i < 2; i++)
		sums[i] = af_crc_next_2(from + 32 * i, to + 32 * i, how);
	sums[0] = _mm256_xor_si256(sums[0], _mm256_zextsi128_si256(_mm_cvtsi32_si128((int)crc)));
	if (nbytes >= 512) {
		for (int i = 2; i < 8; i++)
			sums[i] = af_crc_next_2(from + 32 * i, to + 32 * i, how);
		for (from += 256, to += 256, nbytes -= 256; nbytes >= 256; from += 256, to += 256, nbytes -= 256) {
			for (int i = 0; i < 4 && how != AF_COPY_STREAM; i++)
				__builtin_prefetch(from + AF_READ_AHEAD + 64 * i);
			for (int i = 0; i < 4 && how == AF_COPY_STORE; i++)
				__builtin_prefetch(to + AF_OWN_AHEAD + 64 * i, 1);
			for (int i = 0; i < 8; i++)
				sums[i] = af_crc_carry_2(sums[i], over_256,
							 af_crc_next_2(from + 32 * i, to + 32 * i, how));
		}
		for (int i = 2; i < 8; i++)
			sums[i & 1] = af_crc_carry_2(sums[i & 1], over_64, sums[i]);
	} else {
		from += 64, to += 64, nbytes -= 64;
	}
	for (; nbytes >= 64; from += 64, to += 64, nbytes -= 64)
		for (int i = 0; i < 2; i++)
			sums[i] = af_crc_carry_2(sums[i], over_64, af_crc_next_2(from + 32 * i, to + 32 * i, how));
	rest = _mm256_castsi256_si128(sums[0]);
	rest = af_crc_carry(rest, over_16, _mm256_extracti128_si256(sums[0], 1));
	rest = af_crc_carry(rest, over_16, _mm256_castsi256_si128(sums[1]));
	rest = af_crc_carry(rest, over_16, _mm256_extracti128_si256(sums[1], 1));
	return af_crc_rest(rest, over_16, from, nbytes, to, how);
}

/* ---- 64 bytes in a vector: Ice Lake, Zen 4 and later ---- */

AF_AVX512 static inline __m512i
af_crc_over(const uint64_t *multipliers)
{
	return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)multipliers));
}

AF_AVX512 static inline __m512i
af_crc_carry_4(__m512i lanes, __m512i over, __m512i next)
{
	return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(lanes, over, 0x00),
					 _mm512_clmulepi64_epi128(lanes, over, 0x11), next, 0x96);
}

AF_AVX512 static inline void
af_crc_put_4(uint8_t *to, __m512i lanes, enum af_copy how)
{
	if (how == AF_COPY_STREAM)
		_mm512_stream_si512((void *)to, lanes);
	else if (how == AF_COPY_STORE)
		_mm512_storeu_si512(to, lanes);
}

/* As af_crc_by_16. */
AF_AVX512 static inline __attribute__((always_inline)) uint32_t
af_crc_by_64(uint32_t crc, const uint8_t *from, size_t nbytes, uint8_t *to, enum af_copy how,
	     const struct af_crc_multipliers *k)
{
	__m512i over_64 = af_crc_over(k->over_64), first = _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)), lanes;
	__m128i over_16 = _mm_loadu_si128((const __m128i *)k->over_16), rest;

	if (nbytes >= 512) {
		__m512i over_256 = af_crc_over(k->over_256), sums[4];

		for (int i = 0; i < 4; i++) {
			sums[i] = _mm512_loadu_si512(from + 64 * i);
			af_crc_put_4(to + 64 * i, sums[i], how);
		}
		sums[0] = _mm512_xor_si512(sums[0], first);
		for (from += 256, to += 256, nbytes -= 256; nbytes >= 256; from += 256, to += 256, nbytes -= 256) {
			__m512i next[4];

			for (int i = 0; i < 4 && how != AF_COPY_STREAM; i++)
				__builtin_prefetch(from + AF_READ_AHEAD + 64 * i);
			for (int i = 0; i < 4 && how == AF_COPY_STORE; i++)
				__builtin_prefetch(to + AF_OWN_AHEAD + 64 * i, 1);
			for (int i = 0; i < 4; i++)
				next[i] = _mm512_loadu_si512(from + 64 * i);
			for (int i = 0; i < 4; i++)
				af_crc_put_4(to + 64 * i, next[i], how);
			for (int i = 0; i < 4; i++)
				sums[i] = af_crc_carry_4(sums[i], over_256, next[i]);
		}
		lanes = sums[0];
		for (int i = 1; i < 4; i++)
			lanes = af_crc_carry_4(lanes, over_64, sums[i]);
	} else {
		lanes = _mm512_loadu_si512(from);
		af_crc_put_4(to, lanes, how);
		lanes = _mm512_xor_si512(lanes, first);
		from += 64, to += 64, nbytes -= 64;
	}
	for (; nbytes >= 64; from += 64, to += 64, nbytes -= 64) {
		__m512i next = _mm512_loadu_si512(from);

		af_crc_put_4(to, next, how);
		lanes = af_crc_carry_4(lanes, over_64, next);
	}
	rest = _mm512_castsi512_si128(lanes);
	rest = af_crc_carry(rest, over_16, _mm512_extracti32x4_epi32(lanes, 1));
	rest = af_crc_carry(rest, over_16, _mm512_extracti32x4_epi32(lanes, 2));
	rest = af_crc_carry(rest, over_16, _mm512_extracti32x4_epi32(lanes, 3));
	return af_crc_rest(rest, over_16, from, nbytes, to, how);
}

/* ---- a function for each way and each copy ---- */

typedef uint32_t af_crc_fold(uint32_t crc, const uint8_t *from, size_t nbytes, uint8_t *to,
			     const struct af_crc_multipliers *k);

#define AF_FOLD(name, target, fold, how)                                                            \
	target static uint32_t name(uint32_t crc, const uint8_t *from, size_t nbytes, uint8_t *to,  \
				    const struct af_crc_multipliers *k)                             \
	{                                                                                           \
		return fold(crc, from, nbytes, how == AF_COPY_NONE ? (uint8_t *)from : to, how, k); \
	}

AF_FOLD(af_crc_sum_by_16, AF_PCLMUL, af_crc_by_16, AF_COPY_NONE)
AF_FOLD(af_crc_store_by_16, AF_PCLMUL, af_crc_by_16, AF_COPY_STORE)
AF_FOLD(af_crc_stream_by_16, AF_PCLMUL, af_crc_by_16, AF_COPY_STREAM)
AF_FOLD(af_crc_sum_by_32, AF_AVX2, af_crc_by_32, AF_COPY_NONE)
AF_FOLD(af_crc_store_by_32, AF_AVX2, af_crc_by_32, AF_COPY_STORE)
AF_FOLD(af_crc_stream_by_32, AF_AVX2, af_crc_by_32, AF_COPY_STREAM)
AF_FOLD(af_crc_sum_by_64, AF_AVX512, af_crc_by_64, AF_COPY_NONE)
AF_FOLD(af_crc_store_by_64, AF_AVX512, af_crc_by_64, AF_COPY_STORE)
AF_FOLD(af_crc_stream_by_64, AF_AVX512, af_crc_by_64, AF_COPY_STREAM)

static af_crc_fold *const af_crc_by_16s[] = {af_crc_sum_by_16, af_crc_store_by_16, af_crc_stream_by_16};
static af_crc_fold *const af_crc_by_32s[] = {af_crc_sum_by_32, af_crc_store_by_32, af_crc_stream_by_32};
static af_crc_fold *const af_crc_by_64s[] = {af_crc_sum_by_64, af_crc_store_by_64, af_crc_stream_by_64};

/* By enum af_crc_way; the first folds nothing. */
static af_crc_fold *const *const af_crc_folds[] = {NULL, af_crc_by_16s, af_crc_by_32s, af_crc_by_64s};

/* a * b modulo the polynomial, as af_crc_multiply. */
AF_PCLMUL static uint32_t
af_crc_multiply_by_clmul(uint32_t a, uint32_t b)
{
	uint64_t product = (uint64_t)_mm_cvtsi128_si64(
				   _mm_clmulepi64_si128(_mm_cvtsi32_si128((int)a), _mm_cvtsi32_si128((int)b), 0))
			   << 1;

	return (uint32_t)(product >> 32) ^ _mm_crc32_u32(0, (uint32_t)product);
}

#endif

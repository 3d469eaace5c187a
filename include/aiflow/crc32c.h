/* CRC32C (Castagnoli, RFC 3720 appendix B.4), and the arithmetic that joins the CRCs of pieces.
 *
 * A frame is checked by one CRC over its header and payload; an element and a slice are checked by joining the CRCs
 * of their chunks, so that no byte is read a second time for it:
 *
 *     crc(A || B) = af_crc32c_shift(crc(A), len(B)) ^ crc(B)
 *
 * With SSE4.2 or the ARMv8 CRC extension three strands run interleaved, because the instruction has a latency of three
 * cycles and a throughput of one (Gopal et al., "Fast CRC Computation for iSCSI Polynomial Using CRC32 Instruction").
 * A CPU with carry-less multiplication of 512-bit vectors folds 256 bytes at a time, four times as fast; that is asked
 * for at run time, because DPDK's compiler flags are those of an older CPU.
 */
#ifndef AIFLOW_CRC32C_H
#define AIFLOW_CRC32C_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__SSE4_2__)
#include <immintrin.h>
#define AF_CRC_WIDE __attribute__((target("avx512f,avx512vl,avx512bw,vpclmulqdq,pclmul,sse4.2")))
#elif defined(__SSE4_2__)
#include <nmmintrin.h>
#endif
#if defined(__SSE4_2__)
#define AF_CRC_U64(c, v) ((uint32_t)_mm_crc32_u64((c), (v)))
#define AF_CRC_U8(c, v) _mm_crc32_u8((c), (v))
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#define AF_CRC_U64(c, v) __crc32cd((c), (v))
#define AF_CRC_U8(c, v) __crc32cb((c), (v))
#endif

#define AF_CRC_POLY 0x82f63b78u /* reflected */
#define AF_CRC_LONG 1536u       /* bytes of one strand: long payloads, then what is left of them */
#define AF_CRC_SHORT 160u
#define AF_CRC_FOLDED 256u      /* bytes that one step of folding takes */

/* A multiplication by x^(8 * nbytes) as four table look-ups. */
struct af_crc_shift {
	uint32_t nbytes;
	uint32_t table[4][256];
};

struct af_crc_tables {
	uint32_t byte[256];         /* one byte at a time, where the CPU has no instruction */
	uint32_t power[2][256];     /* x^(8 n) for n = low byte, x^(8 * 256 n) for n = high byte */
	struct af_crc_shift long_strand, short_strand;
	uint64_t fold[2][2]; /* multipliers that carry a lane on by 256 and by 64 bytes */
	int wide;            /* this CPU folds */
};

/* a * b modulo the polynomial, both reflected: bit 31 is x^0. */
static inline uint32_t
af_crc_multiply(uint32_t a, uint32_t b)
{
	uint32_t product = 0;

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
		for (uint32_t v = 1; v < 256; v++) /* linear: a product for each bit, the rest are sums */
			shift->table[k][v] = v & (v - 1) ? shift->table[k][v & (v - 1)] ^ shift->table[k][v & -v]
							 : af_crc_multiply(v << (8 * k), operand);
	}
}

static struct af_crc_tables af_crc;

/* x^(8 * nbytes): any length, in as many multiplications as it has 16-bit digits. */
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
	for (int i = 0; i < 2; i++) {
		uint32_t distance = i ? 64 : AF_CRC_FOLDED;

		af_crc.fold[i][0] = (uint64_t)af_crc_power(distance + 4) << 1;
		af_crc.fold[i][1] = (uint64_t)af_crc_power(distance - 4) << 1;
	}
#ifdef AF_CRC_WIDE
	__builtin_cpu_init();
	af_crc.wide = __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("avx512bw") &&
		      __builtin_cpu_supports("avx512vl");
#endif
}

static inline uint32_t
af_crc_apply(const struct af_crc_shift *shift, uint32_t crc)
{
	return shift->table[0][crc & 255] ^ shift->table[1][(crc >> 8) & 255] ^
	       shift->table[2][(crc >> 16) & 255] ^ shift->table[3][crc >> 24];
}

/* The CRC of what `crc` covers followed by `nbytes` zeros, less the zeros' own part: see the top of this file. */
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

#ifdef AF_CRC_WIDE
/* next + lane * x^(8 * distance), in each of the four lanes: the two halves of a lane have a multiplier each
 * (Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction"). */
AF_CRC_WIDE static inline __m512i
af_crc_fold(__m512i lanes, __m512i multipliers, __m512i next)
{
	return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(lanes, multipliers, 0x00),
					 _mm512_clmulepi64_epi128(lanes, multipliers, 0x11), next, 0x96);
}

/* The (inverted) CRC of nbytes bytes, a multiple of AF_CRC_FOLDED and not 0. */
AF_CRC_WIDE static uint32_t
af_crc_folded(uint32_t crc, const uint8_t *p, size_t nbytes)
{
	const uint8_t *end = p + nbytes;
	__m512i far = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)af_crc.fold[0]));
	__m512i near = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)af_crc.fold[1]));
	__m512i a = _mm512_loadu_si512(p), b = _mm512_loadu_si512(p + 64);
	__m512i c = _mm512_loadu_si512(p + 128), d = _mm512_loadu_si512(p + 192);
	uint8_t last[64];
	uint64_t sum = 0;

	a = _mm512_xor_si512(a, _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
	for (p += AF_CRC_FOLDED; p != end; p += AF_CRC_FOLDED) {
		a = af_crc_fold(a, far, _mm512_loadu_si512(p));
		b = af_crc_fold(b, far, _mm512_loadu_si512(p + 64));
		c = af_crc_fold(c, far, _mm512_loadu_si512(p + 128));
		d = af_crc_fold(d, far, _mm512_loadu_si512(p + 192));
	}
	b = af_crc_fold(a, near, b);
	c = af_crc_fold(b, near, c);
	d = af_crc_fold(c, near, d);
	_mm512_storeu_si512(last, d);
	for (int i = 0; i < 64; i += 8)
		sum = AF_CRC_U64(sum, af_crc_word(last + i));
	return (uint32_t)sum;
}
#endif

/* Extend `crc` (0 to begin with) by `nbytes` bytes. */
static inline uint32_t
af_crc32c(uint32_t crc, const void *bytes, size_t nbytes)
{
	const uint8_t *p = (const uint8_t *)bytes;

	crc = ~crc;
#ifdef AF_CRC_WIDE
	if (nbytes >= 2 * AF_CRC_FOLDED && af_crc.wide) {
		size_t folded = nbytes - nbytes % AF_CRC_FOLDED;

		crc = af_crc_folded(crc, p, folded);
		p += folded;
		nbytes -= folded;
	}
#endif
#ifdef AF_CRC_U64
	for (; nbytes >= 3 * AF_CRC_LONG; p += 3 * AF_CRC_LONG, nbytes -= 3 * AF_CRC_LONG)
		crc = af_crc_strands(crc, p, &af_crc.long_strand, AF_CRC_LONG);
	for (; nbytes >= 3 * AF_CRC_SHORT; p += 3 * AF_CRC_SHORT, nbytes -= 3 * AF_CRC_SHORT)
		crc = af_crc_strands(crc, p, &af_crc.short_strand, AF_CRC_SHORT);
	for (; nbytes >= 8; p += 8, nbytes -= 8)
		crc = AF_CRC_U64(crc, af_crc_word(p));
	for (; nbytes; p++, nbytes--)
		crc = AF_CRC_U8(crc, *p);
#else
	for (; nbytes; p++, nbytes--)
		crc = (crc >> 8) ^ af_crc.byte[(crc ^ *p) & 255];
#endif
	return ~crc;
}

#endif

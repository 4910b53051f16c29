/* Vectors of one instruction set, and what it takes intrinsics to say. */
#pragma once
#include <stdint.h>

#include "engine.h"
#include "quantile.h"

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "The words of a 64-bit lane are in the order of little-endian machines. Without the engine, torch draws."
#endif

/* OCTAVES: how many of them a vector is looked up in. Without, each lane is looked up in memory, in all. */
#if defined(__AVX512F__)
#define WIDTH 16
#define OCTAVES 16
#elif defined(__AVX2__)
#define WIDTH 8
#define OCTAVES 8
#elif defined(__aarch64__)
#define WIDTH 4
#define OCTAVES 8
#else
#define WIDTH 4
#endif

typedef uint32_t u32 __attribute__((vector_size(4 * WIDTH)));
typedef int32_t i32 __attribute__((vector_size(4 * WIDTH)));
typedef uint64_t u64 __attribute__((vector_size(4 * WIDTH)));
typedef float f32 __attribute__((vector_size(4 * WIDTH)));

#define INLINE static inline __attribute__((always_inline))

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* By the low bits of the exponent of u as a float, 127 + k: the coefficients of an octave, and one of all octaves. */
#define EXPONENT_OF(k) ((k) + 127)
#define ROW(k, ...) [EXPONENT_OF(k) % 32] = {__VA_ARGS__},
#define COLUMN(k, a, b, c, d, e, f)                                                                        \
    [0][EXPONENT_OF(k) % OCTAVES] = a, [1][EXPONENT_OF(k) % OCTAVES] = b, [2][EXPONENT_OF(k) % OCTAVES] = c, \
    [3][EXPONENT_OF(k) % OCTAVES] = d, [4][EXPONENT_OF(k) % OCTAVES] = e, [5][EXPONENT_OF(k) % OCTAVES] = f,

static const float ROWS[32][8] __attribute__((aligned(64))) = {
    NEAR_OCTAVES(ROW) NEXT_OCTAVES(ROW) FAR_OCTAVES(ROW)};
#ifdef OCTAVES
static const float COLUMNS[TERMS][OCTAVES] __attribute__((aligned(64))) = {
    NEAR_OCTAVES(COLUMN)
#if OCTAVES == 16
    NEXT_OCTAVES(COLUMN)
#endif
};
#endif

/* The 64-bit products of the words at even places. */
INLINE u64 multiply(u64 x, uint32_t factor) {
#if defined(__AVX512F__)
    return (u64)_mm512_mul_epu32((__m512i)x, _mm512_set1_epi64(factor));
#elif defined(__AVX2__)
    return (u64)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi64x(factor));
#elif defined(__SSE2__)
    return (u64)_mm_mul_epu32((__m128i)x, _mm_set1_epi64x(factor));
#elif defined(__aarch64__)
    return (u64)vmull_n_u32(vmovn_u64((uint64x2_t)x), factor);
#else
    return (x & 0xFFFFFFFFu) * (uint64_t)factor;
#endif
}

INLINE u64 xor3(u64 x, u64 y, uint64_t z) {
#if defined(__AVX512F__)
    return (u64)_mm512_ternarylogic_epi64((__m512i)x, (__m512i)y, _mm512_set1_epi64((long long)z), 0x96);
#else
    return x ^ y ^ z;
#endif
}

#ifdef OCTAVES
/* Coefficient `term` of the octave that each lane is in, by its bits as a float. */
INLINE f32 coefficient(int term, u32 bits) {
    const float *column = COLUMNS[term];
#if defined(__AVX512F__)
    return (f32)_mm512_permutexvar_ps((__m512i)(bits >> 23), _mm512_load_ps(column));
#elif defined(__AVX2__)
    return (f32)_mm256_permutevar8x32_ps(_mm256_load_ps(column), (__m256i)(bits >> 23));
#else
    u32 bytes = ((bits >> 23) & 7u) * 0x04040404u + 0x03020100u;
    uint8x16x2_t table = {{(uint8x16_t)vld1q_f32(column), (uint8x16_t)vld1q_f32(column + 4)}};
    return (f32)vqtbl2q_u8(table, (uint8x16_t)bytes);
#endif
}

/* The smaller ones of two vectors of numbers below 2^31. */
INLINE u32 smaller(u32 x, u32 y) {
#if defined(__AVX512F__)
    return (u32)_mm512_min_epu32((__m512i)x, (__m512i)y);
#elif defined(__AVX2__)
    return (u32)_mm256_min_epu32((__m256i)x, (__m256i)y);
#else
    return (u32)vminq_u32((uint32x4_t)x, (uint32x4_t)y);
#endif
}

/* Whether a lane is below a limit; all are below 2^31. */
INLINE int some_below(u32 x, int32_t limit) {
#if defined(__AVX512F__)
    return _mm512_cmplt_epi32_mask((__m512i)x, _mm512_set1_epi32(limit)) != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_epi8(_mm256_cmpgt_epi32(_mm256_set1_epi32(limit), (__m256i)x)) != 0;
#else
    return vminvq_u32((uint32x4_t)x) < (uint32_t)limit;
#endif
}
#endif

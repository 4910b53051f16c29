/* The exponential and what is made of it, in vectors: the same bits on every machine.
 *
 * Polynomials of the least largest relative error (Remez, with coefficients rounded as in quantile.h): 5e-9 for the
 * exponential on [-ln(2) / 2, ln(2) / 2], 2e-8 for the logarithm on [1, 2]. With the rounding of the operations an
 * exponential is within 1e-7 of the exact one, and softplus within 3e-7.
 */
#pragma once
#include "vectors.h"

#define SHIFT 12582912.0f /* 1.5 * 2^23: a sum with it is rounded to a whole number, which its lowest bits hold. */
#define SHIFT_BITS 0x4B400000

/* x where the mask is set, and y elsewhere. */
INLINE f32 choose(i32 mask, f32 x, f32 y) { return (f32)(((u32)mask & (u32)x) | (~(u32)mask & (u32)y)); }

/* x, or the end that it is beyond; NaN stays. */
INLINE f32 within(f32 x, float low, float high) {
#if defined(__AVX512F__)
    return (f32)_mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), (__m512)x));
#elif defined(__AVX2__)
    return (f32)_mm256_min_ps(_mm256_set1_ps(high), _mm256_max_ps(_mm256_set1_ps(low), (__m256)x));
#elif defined(__SSE2__)
    return (f32)_mm_min_ps(_mm_set1_ps(high), _mm_max_ps(_mm_set1_ps(low), (__m128)x));
#else
    x = choose(x > high, (f32){0} + high, x);
    return choose(x < low, (f32){0} + low, x);
#endif
}

INLINE f32 power_of_two(i32 k) { return (f32)((k + 127) << 23); }

/* e^x; infinite above 88.73, and below -87.34 with the fewer bits of small numbers, down to 0. */
INLINE f32 exponential(f32 x) {
    x = within(x, -105.0f, 89.0f);
    f32 shifted = x * 1.44269502f + SHIFT, k = shifted - SHIFT;
    f32 r = x - k * 0.693359375f; /* ln(2) in two parts, of which the first times k is exact. */
    r = r + k * 2.12194440e-4f;
    f32 p = r * 1.3813144e-3f + 8.369419e-3f;
    p = p * r + 4.1668456e-2f;
    p = p * r + 1.6666515e-1f;
    p = p * r + 4.9999994e-1f;
    p = (p * r * r + r) + 1.0f;
    i32 power = (i32)shifted - SHIFT_BITS, half = power >> 1; /* In two steps: 2^power may be no number. */
    return p * power_of_two(half) * power_of_two(power - half);
}

/* ln(1 + t) for t from 0 to 1. */
INLINE f32 log_of_one_and(f32 t) {
    f32 p = t * -3.2440005e-3f + 1.985135e-2f;
    p = p * t - 5.695932e-2f;
    p = p * t + 1.06036335e-1f;
    p = p * t - 1.5305582e-1f;
    p = p * t + 1.9675937e-1f;
    p = p * t - 2.4954134e-1f;
    p = p * t + 3.3329964e-1f;
    p = p * t - 4.9999905e-1f;
    return (p * t) * t + t;
}

/* ln(1 + e^x). */
INLINE f32 softplus(f32 x) {
    f32 size = (f32)((u32)x & 0x7FFFFFFFu);
    return log_of_one_and(exponential(-size)) + choose(x > 0.0f, x, (f32){0});
}

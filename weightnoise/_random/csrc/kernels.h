/* Random numbers as a function of a key and a place, for one instruction set: each file that includes this
 * names it and sets the target of the compiler.
 *
 * Philox 4x32-10 (Salmon, Moraes, Dror and Shaw, 2011) makes 4 words of 32 bits from a key and a block number.
 * Place i of an array belongs to group i / 64: 16 blocks, of which word w of block b is place 16 w + b. So a
 * vector of blocks makes runs of neighbouring numbers, whatever its width. Each operation on floating-point
 * numbers is one of IEEE 754, in a fixed order and without contraction (-ffp-contract=off): the bits are
 * the same for any vector width, thread count and start.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "engine.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define WIDTH 16
#elif defined(__AVX2__)
#define WIDTH 8
#else
#define WIDTH 4
#endif
#define PARTS (BLOCKS / WIDTH)

typedef uint32_t u32 __attribute__((vector_size(4 * WIDTH)));
typedef int32_t i32 __attribute__((vector_size(4 * WIDTH)));
typedef uint64_t u64 __attribute__((vector_size(4 * WIDTH)));
typedef float f32 __attribute__((vector_size(4 * WIDTH)));

#define INLINE static inline __attribute__((always_inline))

/* The 64-bit products of the words at even places. */
INLINE u64 multiply(u64 x, uint32_t factor) {
#if defined(__AVX512F__)
    return (u64)_mm512_mul_epu32((__m512i)x, _mm512_set1_epi64(factor));
#elif defined(__AVX2__)
    return (u64)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi64x(factor));
#elif defined(__SSE2__)
    return (u64)_mm_mul_epu32((__m128i)x, _mm_set1_epi64x(factor));
#else
    return (x & 0xFFFFFFFFu) * (uint64_t)factor;
#endif
}

INLINE f32 square_root(f32 x) {
#if defined(__AVX512F__)
    return (f32)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
    return (f32)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
    return (f32)_mm_sqrt_ps((__m128)x);
#else
    for (int lane = 0; lane < WIDTH; lane++) x[lane] = sqrtf(x[lane]);
    return x;
#endif
}

INLINE void ten_rounds(u64 x[4], uint64_t key) {
    /* A word sits in the lower half of its lane; the upper half may hold anything, as nothing reads it. */
    uint32_t low = (uint32_t)key, high = (uint32_t)(key >> 32);
#if defined(__clang__)
#pragma unroll
#else
#pragma GCC unroll 10
#endif
    for (int round = 0; round < 10; round++) {
        u64 first = multiply(x[0], 0xD2511F53u), second = multiply(x[2], 0xCD9E8D57u);
        x[0] = (second >> 32) ^ x[1] ^ (uint64_t)low;
        x[1] = second;
        x[2] = (first >> 32) ^ x[3] ^ (uint64_t)high;
        x[3] = first;
        low += 0x9E3779B9u;
        high += 0xBB67AE85u;
    }
}

/* The words of WIDTH blocks; the first one's number is even and does not carry. */
INLINE void philox(uint64_t block, uint64_t stream, uint64_t key, u32 words[4]) {
    u64 even[4], odd[4], lane;
    for (int i = 0; i < WIDTH / 2; i++) lane[i] = (uint64_t)(2 * i);
    even[0] = lane + (block & 0xFFFFFFFFu);
    odd[0] = even[0] + 1;
    even[1] = odd[1] = (u64){0} + (block >> 32);
    even[2] = odd[2] = (u64){0} + (stream & 0xFFFFFFFFu);
    even[3] = odd[3] = (u64){0} + (stream >> 32);
    ten_rounds(even, key);
    ten_rounds(odd, key);
    for (int word = 0; word < 4; word++) words[word] = (u32)((even[word] & 0xFFFFFFFFu) | (odd[word] << 32));
}

/* Two standard normals from two words (Box and Muller, 1958); polynomials as in Moshier's Cephes. */
INLINE void box_muller(u32 radius, u32 angle, f32 *first, f32 *second) {
    /* ln x = e ln 2 + ln(1 + m), 1 + m in [sqrt(1/2), sqrt(2)), for x in (0, 1]. */
    f32 x = (__builtin_convertvector((i32)(radius >> 1), f32) + 0.5f) * 0x1p-31f;
    u32 bits = (u32)x + (0x3F800000u - 0x3F3504F3u);
    f32 e = __builtin_convertvector((i32)(bits >> 23) - 127, f32);
    f32 m = (f32)((bits & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f;
    f32 square = m * m;
    f32 p = m * 7.0376836292e-2f - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    f32 log = p * m * square - 2.12194440e-4f * e - 0.5f * square + m + 0.693359375f * e;
    f32 r = square_root((f32)((u32)(log * -2.0f) & (u32)(log < 0.0f)));
    /* The angle is a quarter turn q and a rest of at most an eighth to either side. */
    f32 t = __builtin_convertvector((i32)(angle << 2), f32) * (0x1p-32f * 1.57079632679489662f);
    u32 q = (angle + 0x20000000u) >> 30;
    f32 s = t * t;
    f32 sine = ((s * -1.9515295891e-4f + 8.3321608736e-3f) * s - 1.6666654611e-1f) * s * t + t;
    f32 cosine = ((s * 2.443315711809948e-5f - 1.388731625493765e-3f) * s + 4.166664568298827e-2f) * s * s;
    cosine = cosine - 0.5f * s + 1.0f;
    u32 swap = -(q & 1u);
    u32 a = ((u32)cosine & ~swap) | ((u32)sine & swap);
    u32 b = ((u32)sine & ~swap) | ((u32)cosine & swap);
    *first = r * (f32)(a ^ (((q + 1u) & 2u) << 30));
    *second = r * (f32)(b ^ ((q & 2u) << 30));
}

INLINE void normal_group(uint64_t group, uint64_t key, float out[GROUP]) {
    f32 z[4][PARTS];
    for (int part = 0; part < PARTS; part++) {
        u32 words[4];
        philox(group * BLOCKS + (uint64_t)(part * WIDTH), 0, key, words);
        box_muller(words[0], words[1], &z[0][part], &z[1][part]);
        box_muller(words[2], words[3], &z[2][part], &z[3][part]);
    }
    memcpy(out, z, sizeof z);
}

INLINE void uniform_group(uint64_t group, uint64_t key, float out[GROUP]) {
    f32 u[4][PARTS];
    for (int part = 0; part < PARTS; part++) {
        u32 words[4];
        philox(group * BLOCKS + (uint64_t)(part * WIDTH), 0, key, words);
        for (int word = 0; word < 4; word++)
            u[word][part] = __builtin_convertvector((i32)(words[word] >> 8), f32) * 0x1p-24f;
    }
    memcpy(out, u, sizeof u);
}

/* Calls `use(numbers, count)` for the pieces of places start to end, a group at most. */
#define FOR_GROUPS(make, use)                                                                   \
    for (int64_t place = start; place < end;) {                                                 \
        int64_t skip = place % GROUP, count = GROUP - skip < end - place ? GROUP - skip : end - place; \
        float numbers[GROUP];                                                                   \
        make((uint64_t)(place / GROUP), key, numbers);                                          \
        const float *piece = numbers + skip;                                                    \
        use                                                                                     \
        place += count;                                                                         \
    }

static void fill_normal(number_t *out, int64_t start, int64_t end, uint64_t key) {
    FOR_GROUPS(normal_group, memcpy(out + (place - start), piece, (size_t)count * sizeof(float));)
}

static void fill_uniform(number_t *out, int64_t start, int64_t end, uint64_t key) {
    FOR_GROUPS(uniform_group, memcpy(out + (place - start), piece, (size_t)count * sizeof(float));)
}

/* out = weight + strength * scale * normals, with one scale for each row; NULL is 1. */
static void add_normal(const sum_t *sum, int64_t start, int64_t end, uint64_t key) {
    if (start >= end) return; /* There may be no rows, and then no row has a size. */
    number_t *out = sum->out + (start - sum->first);
    const number_t *weight = sum->weight + (start - sum->first);
    int64_t row = (start - sum->first) / sum->row_size, left = sum->row_size - start % sum->row_size;
    FOR_GROUPS(normal_group, {
        for (int64_t done = 0; done < count;) {
            float scale = sum->scale == NULL ? sum->strength : sum->strength * sum->scale[row];
            int64_t run = left < count - done ? left : count - done;
            const number_t *from = weight + (place - start) + done;
            number_t *to = out + (place - start) + done;
            if (run == GROUP)
                for (int i = 0; i < GROUP; i++) to[i] = from[i] + scale * piece[i];
            else
                for (int64_t i = 0; i < run; i++) to[i] = from[i] + scale * piece[done + i];
            done += run;
            left -= run;
            if (left == 0) {
                row++;
                left = sum->row_size;
            }
        }
    })
}

static void one_block(uint64_t block, uint64_t stream, uint64_t key, uint32_t out[4]) {
    u32 words[4];
    philox(block, stream, key, words);
    for (int word = 0; word < 4; word++) out[word] = words[word][0];
}

const kernels_t KERNELS = {fill_normal, fill_uniform, add_normal, one_block};

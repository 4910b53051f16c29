/* Random numbers as a function of a key and a place, for one instruction set: each file that includes this
 * names it and sets the target of the compiler.
 *
 * Philox 4x32-7 (Salmon, Moraes, Dror and Shaw, 2011) makes 4 words of 32 bits from a key and a block number. Place i
 * of an array belongs to group i / 64, which has 16 blocks; of block b the words 1 and 0 are at places 2 b and 2 b + 1
 * of the group, the words 3 and 2 at 2 b + 32 and 2 b + 33: as the last round leaves them in vectors of any width.
 *
 * A normal number is the quantile of its word (quantile.h): the word, taken as a signed number whose lowest bit is set,
 * has the sign of the number and a size u, and a standard normal number lies beyond with probability u / 2^32.
 *
 * Each operation on floating-point numbers is one of IEEE 754, in a fixed order and without contraction
 * (-ffp-contract=off): the bits are the same for any vector width, thread count and start.
 */
#include <string.h>

#include "passes.h"
#include "statistics.h"
#include "vectors.h"

#if defined(__GNUC__) && !defined(__clang__)
/* Puts the steps of one chain between those of another: without, it takes a tenth longer. */
#pragma GCC optimize("schedule-insns", "sched-pressure", "fp-contract=off")
#endif

/* Four vectors are made together, and the words of the next four beside them: one chain alone would wait. */
#define VECTORS 4
#define EACH(i, count) UNROLL for (int i = 0; i < (count); i++)
#define STEPS (GROUP / (VECTORS * WIDTH)) /* in a group */

typedef enum { NORMAL, UNIFORM, WORDS, SUM, ACROSS } kind_t;

/* One round for WIDTH blocks. A word sits in the lower half of its lane; nothing reads the upper half. */
INLINE void philox_round(u64 x[4][2], uint64_t low, uint64_t high) {
    EACH(i, 2) {
        u64 first = multiply(x[0][i], 0xD2511F53u), second = multiply(x[2][i], 0xCD9E8D57u);
        x[0][i] = xor3(second >> 32, x[1][i], low);
        x[1][i] = second;
        x[2][i] = xor3(first >> 32, x[3][i], high);
        x[3][i] = first;
    }
}

/* The words of WIDTH blocks; the first one's number is a multiple of WIDTH. */
INLINE void philox(uint64_t block, uint64_t key, u32 words[VECTORS]) {
    u64 x[4][2], lane;
    uint32_t low = (uint32_t)key, high = (uint32_t)(key >> 32);
    EACH(i, WIDTH / 2) lane[i] = (uint64_t)i;
    /* The first two rounds, of which half is the same for all blocks: words 1 to 3 of their counters are. */
    uint32_t same = (uint32_t)(block >> 32) ^ low;
    uint64_t product = (uint64_t)same * 0xD2511F53u;
    low += 0x9E3779B9u;
    EACH(i, 2) {
        u64 first = multiply(lane + ((block & 0xFFFFFFFFu) + (uint64_t)(i * WIDTH / 2)), 0xD2511F53u);
        u64 second = multiply((first >> 32) ^ (uint64_t)high, 0xCD9E8D57u);
        x[0][i] = (second >> 32) ^ (uint64_t)low;
        x[1][i] = second;
        x[2][i] = first ^ ((product >> 32) ^ (uint64_t)(high + 0xBB67AE85u));
        x[3][i] = (u64){0} + (uint64_t)(uint32_t)product;
    }
    high += 0xBB67AE85u;
    EACH(round, 4) {
        low += 0x9E3779B9u;
        high += 0xBB67AE85u;
        philox_round(x, low, high);
    }
    low += 0x9E3779B9u;
    high += 0xBB67AE85u;
    /* The last round leaves two words in each lane. */
    EACH(i, 2) {
        u64 first = multiply(x[0][i], 0xD2511F53u), second = multiply(x[2][i], 0xCD9E8D57u);
        words[i] = (u32)xor3(second, x[1][i] << 32, (uint64_t)low << 32);
        words[2 + i] = (u32)xor3(first, x[3][i] << 32, (uint64_t)high << 32);
    }
}

INLINE float polynomial_of(uint32_t bits) {
    const float *row = ROWS[(bits >> 23) % 32];
    uint32_t mantissa = (bits & 0x007FFFFFu) | 0x3F800000u;
    float m, sum = row[TERMS - 1];
    memcpy(&m, &mantissa, sizeof m);
    EACH(term, TERMS - 1) sum = sum * m + row[TERMS - 2 - term];
    return sum;
}

#ifdef OCTAVES
#define FIRST_BITS ((int32_t)EXPONENT_OF(32 - OCTAVES) << 23) /* of the octaves that vectors are looked up in */

/* Puts right the lanes that are in the other octaves. */
static __attribute__((noinline)) f32 put_right(u32 bits, f32 sums) {
    float found[WIDTH];
    uint32_t each[WIDTH];
    memcpy(each, &bits, sizeof each);
    memcpy(found, &sums, sizeof found);
    for (int lane = 0; lane < WIDTH; lane++)
        if ((each[lane] & 0x7FFFFFFFu) < (uint32_t)FIRST_BITS) found[lane] = polynomial_of(each[lane]);
    memcpy(&sums, found, sizeof sums);
    return sums;
}

INLINE void polynomials(const u32 bits[VECTORS], f32 sums[VECTORS]) {
    f32 m[VECTORS];
    EACH(i, VECTORS) m[i] = (f32)((bits[i] & 0x007FFFFFu) | 0x3F800000u);
    EACH(i, VECTORS) sums[i] = coefficient(TERMS - 1, bits[i]);
    EACH(term, TERMS - 1) EACH(i, VECTORS) sums[i] = sums[i] * m[i] + coefficient(TERMS - 2 - term, bits[i]);
    u32 least = bits[0] & 0x7FFFFFFFu;
    EACH(i, VECTORS) least = smaller(least, bits[i] & 0x7FFFFFFFu);
    if (__builtin_expect(some_below(least, FIRST_BITS), 0))
        EACH(i, VECTORS)
            if (some_below(bits[i] & 0x7FFFFFFFu, FIRST_BITS)) sums[i] = put_right(bits[i], sums[i]);
}
#elif defined(__SSE2__)
INLINE void polynomials(const u32 bits[VECTORS], f32 sums[VECTORS]) {
    EACH(i, VECTORS) {
        __m128 term[8], m = (__m128)((bits[i] & 0x007FFFFFu) | 0x3F800000u);
        u32 row = (bits[i] >> 23) % 32;
        EACH(lane, 4) {
            term[lane] = _mm_load_ps(ROWS[row[lane]]);
            term[4 + lane] = _mm_load_ps(ROWS[row[lane]] + 4);
        }
        _MM_TRANSPOSE4_PS(term[0], term[1], term[2], term[3]);
        _MM_TRANSPOSE4_PS(term[4], term[5], term[6], term[7]);
        sums[i] = (f32)term[TERMS - 1];
        EACH(j, TERMS - 1) sums[i] = sums[i] * (f32)m + (f32)term[TERMS - 2 - j];
    }
}
#else
INLINE void polynomials(const u32 bits[VECTORS], f32 sums[VECTORS]) {
    EACH(i, VECTORS) EACH(lane, WIDTH) sums[i][lane] = polynomial_of(bits[i][lane]);
}
#endif

INLINE void numbers_of(kind_t kind, const u32 words[VECTORS], f32 numbers[VECTORS]) {
    if (kind == WORDS) {
        EACH(i, VECTORS) numbers[i] = (f32)words[i];
    } else if (kind == UNIFORM) {
        EACH(i, VECTORS) numbers[i] = __builtin_convertvector((i32)(words[i] >> 8), f32) * 0x1p-24f;
    } else {
        u32 bits[VECTORS];
        EACH(i, VECTORS) bits[i] = (u32)__builtin_convertvector((i32)(words[i] | 1u), f32);
        polynomials(bits, numbers);
        EACH(i, VECTORS) numbers[i] = (f32)((u32)numbers[i] ^ (words[i] & 0x80000000u));
    }
}

/* What a step adds its numbers to, and times what. */
typedef struct {
    const number_t *weight;
    float strength;
    const number_t *scales; /* for each place of a row, and for at least a group more: the first ones again */
    int64_t row_size, column; /* that of the first place of a group */
} term_t;

/* Writes the numbers of a step; out[0] is the first place of step 0. */
INLINE void write(kind_t kind, const u32 words[VECTORS], int64_t step, number_t *out, const term_t *term) {
    f32 numbers[VECTORS];
    numbers_of(kind, words, numbers);
    EACH(i, VECTORS) {
        int64_t inside = step % STEPS * (2 * WIDTH) + i / 2 * (GROUP / 2) + i % 2 * WIDTH;
        int64_t at = step / STEPS * GROUP + inside;
        if (kind == SUM || kind == ACROSS) {
            f32 clean, scale = (f32){0} + term->strength;
            memcpy(&clean, term->weight + at, sizeof clean);
            if (kind == ACROSS) {
                memcpy(&scale, term->scales + term->column + inside, sizeof scale);
                scale = term->strength * scale;
            }
            numbers[i] = clean + scale * numbers[i];
        }
        memcpy(out + at, &numbers[i], sizeof numbers[i]);
    }
}

/* Groups `first` and on. */
INLINE void groups(kind_t kind, number_t *out, term_t term, int64_t first, int64_t count, uint64_t key) {
    u32 words[VECTORS], next[VECTORS];
    uint64_t block = (uint64_t)first * BLOCKS;
    int64_t last = count * STEPS - 1;
    philox(block, key, words);
    for (int64_t step = 0; step < last; step++) {
        philox(block += WIDTH, key, next);
        write(kind, words, step, out, &term);
        if (kind == ACROSS && step % STEPS == STEPS - 1 && (term.column += GROUP) >= term.row_size)
            term.column %= term.row_size;
        EACH(i, VECTORS) words[i] = next[i];
    }
    write(kind, words, last, out, &term);
}

static void normals(number_t *out, int64_t first, int64_t count, uint64_t key) {
    groups(NORMAL, out, (term_t){0}, first, count, key);
}

static void uniforms(number_t *out, int64_t first, int64_t count, uint64_t key) {
    groups(UNIFORM, out, (term_t){0}, first, count, key);
}

static void words(number_t *out, int64_t first, int64_t count, uint64_t key) {
    groups(WORDS, out, (term_t){0}, first, count, key);
}

static void sums(number_t *out, const number_t *weight, float scale, int64_t first, int64_t count, uint64_t key) {
    groups(SUM, out, (term_t){weight, scale, NULL, 0, 0}, first, count, key);
}

/* The numbers at places start to end: whole groups at once, and parts of the first and the last. */
INLINE void fill(void (*make)(number_t *, int64_t, int64_t, uint64_t), number_t *out, int64_t start, int64_t end,
                 uint64_t key) {
    for (int64_t place = start; place < end;) {
        int64_t skip = place % GROUP, whole = (end - place) / GROUP, count = whole * GROUP;
        if (skip == 0 && whole > 0) {
            make(out + (place - start), place / GROUP, whole, key);
        } else {
            float numbers[GROUP];
            make(numbers, place / GROUP, 1, key);
            count = least_of(GROUP - skip, end - place);
            memcpy(out + (place - start), numbers + skip, (size_t)count * sizeof(float));
        }
        place += count;
    }
}

static void fill_normal(number_t *out, int64_t start, int64_t end, uint64_t key) {
    fill(normals, out, start, end, key);
}

static void fill_uniform(number_t *out, int64_t start, int64_t end, uint64_t key) {
    fill(uniforms, out, start, end, key);
}

static void fill_words(number_t *out, int64_t start, int64_t end, uint64_t key) {
    fill(words, out, start, end, key);
}

/* As add_normal, with one scale for each place of a row. */
static void add_across(const sum_t *sum, int64_t start, int64_t end, uint64_t key) {
    float numbers[GROUP];
    for (int64_t place = start, count; place < end; place += count) {
        int64_t at = place - sum->first, skip = place % GROUP, whole = (end - place) / GROUP * GROUP;
        term_t term = {sum->weight + at, sum->strength, sum->scale, sum->row_size, at % sum->row_size};
        if (skip == 0 && whole > 0) {
            groups(ACROSS, sum->out + at, term, place / GROUP, whole / GROUP, key);
            count = whole;
            continue;
        }
        count = least_of(GROUP - skip, end - place);
        normals(numbers, place / GROUP, 1, key);
        for (int64_t i = 0; i < count; i++) {
            float scale = term.strength * term.scales[term.column + i];
            sum->out[at + i] = term.weight[i] + scale * numbers[skip + i];
        }
    }
}

/* out = weight + strength * scale * normals, with one scale for each row; NULL is 1. */
static void add_normal(const sum_t *sum, int64_t start, int64_t end, uint64_t key) {
    if (start >= end) return; /* There may be no rows, and then no row has a size. */
    if (sum->across) {
        add_across(sum, start, end, key);
        return;
    }
    number_t *out = sum->out + (start - sum->first), numbers[GROUP];
    const number_t *weight = sum->weight + (start - sum->first);
    int64_t row = (start - sum->first) / sum->row_size, left = sum->row_size - start % sum->row_size, made = -1;
    for (int64_t place = start; place < end;) {
        float scale = sum->scale == NULL ? sum->strength : sum->strength * sum->scale[row];
        int64_t skip = place % GROUP, group = place / GROUP, run = least_of(left, end - place), at = place - start;
        if (skip == 0 && run >= GROUP) {
            sums(out + at, weight + at, scale, group, run / GROUP, key);
            run -= run % GROUP;
        } else {
            if (made != group) normals(numbers, made = group, 1, key);
            run = least_of(run, GROUP - skip);
            for (int64_t i = 0; i < run; i++) out[at + i] = weight[at + i] + scale * numbers[skip + i];
        }
        place += run;
        left -= run;
        if (left == 0) {
            row++;
            left = sum->row_size;
        }
    }
}

const kernels_t KERNELS = {fill_normal, fill_uniform, fill_words, add_normal, apply, piece, columns};

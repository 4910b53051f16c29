/* What the kernels of all instruction sets have in common. */
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define BLOCKS 16
#define GROUP (4 * BLOCKS)
#define STRIP 512 /* Columns whose statistics are taken together. */

/* A number in an array of somebody else's, who may have cut it out of a buffer of bytes at any place. */
typedef float number_t __attribute__((aligned(1), may_alias));

typedef struct {
    number_t *out;          /* of place `first` and on */
    const number_t *weight; /* likewise */
    const number_t *scale;  /* one for each row, from that of place `first` on; NULL: 1 */
    int64_t row_size;
    float strength;
    int64_t first; /* the start of a row */
    int across;    /* whether there is one scale for each place of a row instead, and the first ones again for at
                      least a group more */
} sum_t;

/* Laws of numbers that are drawn already, known to Python by their number: w is the clean weight, e drawn. */
typedef enum {
    LOG_NORMAL, /* w exp(c0 e + c1) */
    SOFTPLUS,   /* w + c0 ln(1 + exp(s)) e, s learned */
    ROOT,       /* w + c0 sqrt(exp(s)) w e, s learned and at most c1 */
    REPLACED,   /* c2 for e in [c0, c1), c5 for e in [c3, c4), else w */
} law_t;

typedef struct {
    law_t law;
    number_t *out;
    const number_t *weight, *drawn, *learned; /* The last is NULL where nothing is. */
    float constants[6];
} pass_t;

/* Known to Python by their number. */
typedef enum { LARGEST, EXTREMES, MOMENTS } statistic_t;

/* Places start to end of an array. */
typedef struct {
    void (*fill_normal)(number_t *out, int64_t start, int64_t end, uint64_t key); /* out[0] is place start */
    void (*fill_uniform)(number_t *out, int64_t start, int64_t end, uint64_t key);
    void (*fill_words)(number_t *out, int64_t start, int64_t end, uint64_t key); /* the 32 bits behind a number */
    void (*add_normal)(const sum_t *sum, int64_t start, int64_t end, uint64_t key);
    void (*apply)(const pass_t *pass, int64_t start, int64_t end);
    /* Of some numbers: the largest size; the smallest and the largest; or the mean and the squares about it. */
    void (*piece)(statistic_t what, const number_t *numbers, int64_t count, double found[2]);
    void (*columns)(statistic_t what, const number_t *numbers, int64_t rows, int64_t stride, int64_t lanes,
                    double (*found)[2]);
} kernels_t;

static inline int64_t least_of(int64_t x, int64_t y) { return x < y ? x : y; }

/* Adds what was found of `more` numbers to what was found of `count`. */
static inline void merge(statistic_t what, double found[2], double count, const double other[2], double more) {
    if (what == MOMENTS) { /* Chan, Golub and LeVeque, 1979. */
        double share = more / (count + more), off = other[0] - found[0];
        found[0] += share * off;
        found[1] += other[1] + share * count * off * off;
    } else if (isnan(other[0]) || isnan(found[0])) {
        found[0] = NAN;
    } else {
        if (what == LARGEST ? other[0] > found[0] : other[0] < found[0]) found[0] = other[0];
        if (other[1] > found[1]) found[1] = other[1];
    }
}

/* The squares about the mean of `count` numbers, from those about a number near it. */
static inline double squares_about(double mean, double squares, double center, double count) {
    squares -= count * (mean - center) * (mean - center);
    return squares < 0.0 ? 0.0 : squares;
}

/* Not on Windows: GCC does not align its stack for vectors this wide there (its bug 54412). */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(_WIN32)
#define X86 1
extern const kernels_t kernels_avx512, kernels_avx2;
#endif
extern const kernels_t kernels_baseline;

/* The function of an OpenMP runtime that runs another one in all of its threads: GOMP_parallel. */
typedef void (*parallel_t)(void (*)(void *), void *, unsigned, unsigned);

void run_in_threads(void (*function)(void *), void *job, int threads);

/* What Python calls: see engine.c and marks.c. */
void weightnoise_use_threads(parallel_t function);
int weightnoise_level(void);
void weightnoise_fill(number_t *out, int64_t count, uint64_t key, int kind, int level, int threads);
void weightnoise_add(number_t *out, const number_t *weight, const number_t *scale, int across, int64_t row_size,
                     float strength, int64_t count, uint64_t key, int level, int threads);
void weightnoise_add_rows(number_t *out, const number_t *weight, const number_t *scale, int across,
                          const int64_t *index, int64_t rows, int64_t row_size, float strength, uint64_t key,
                          int level);
void weightnoise_apply(int law, number_t *out, const number_t *weight, const number_t *drawn,
                       const number_t *learned, const float constants[6], int64_t count, int level, int threads);
void weightnoise_of_rows(int what, number_t *out, double (*found)[2], const number_t *weight, int64_t rows,
                         int64_t size, int level, int threads);
void weightnoise_of_columns(int what, number_t *out, double (*found)[2], const number_t *weight, int64_t rows,
                            int64_t size, int64_t each, int level, int threads);
void weightnoise_part(number_t *out, int64_t start, int64_t end, uint64_t key, int level);
void weightnoise_quantile(number_t *out);
void weightnoise_mark(uint32_t *out, const void *words, int64_t count, int threads);

/* What the kernels of all instruction sets have in common. */
#pragma once
#include <stdint.h>

#define BLOCKS 16
#define GROUP (4 * BLOCKS)

/* A number in an array of somebody else's, who may have cut it out of a buffer of bytes at any place. */
typedef float number_t __attribute__((aligned(1), may_alias));

typedef struct {
    number_t *out;          /* of place `first` and on */
    const number_t *weight; /* likewise */
    const number_t *scale;  /* one for each row, from that of place `first` on; NULL: 1 */
    int64_t row_size;
    float strength;
    int64_t first; /* the start of a row */
} sum_t;

/* Places start to end of an array. */
typedef struct {
    void (*fill_normal)(number_t *out, int64_t start, int64_t end, uint64_t key); /* out[0] is place start */
    void (*fill_uniform)(number_t *out, int64_t start, int64_t end, uint64_t key);
    void (*fill_words)(number_t *out, int64_t start, int64_t end, uint64_t key); /* the 32 bits behind a number */
    void (*add_normal)(const sum_t *sum, int64_t start, int64_t end, uint64_t key);
} kernels_t;

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
void weightnoise_add(number_t *out, const number_t *weight, const number_t *scale, int64_t row_size, float strength,
                     int64_t count, uint64_t key, int level, int threads);
void weightnoise_add_rows(number_t *out, const number_t *weight, const number_t *scale, const int64_t *index,
                          int64_t rows, int64_t row_size, float strength, uint64_t key, int level);
void weightnoise_part(number_t *out, int64_t start, int64_t end, uint64_t key, int level);
void weightnoise_quantile(number_t *out);
void weightnoise_mark(uint32_t *out, const void *words, int64_t count, int threads);

/* What the kernels of all instruction sets have in common. */
#pragma once
#include <stdint.h>

#define BLOCKS 16
#define GROUP (4 * BLOCKS)

typedef struct {
    float *out;
    const float *weight;
    const float *scale; /* one for each row; NULL: 1 */
    int64_t row_size;
    float strength;
} sum_t;

typedef struct {
    void (*fill_normal)(float *out, int64_t start, int64_t end, uint64_t key);
    void (*fill_uniform)(float *out, int64_t start, int64_t end, uint64_t key);
    void (*add_normal)(const sum_t *sum, int64_t start, int64_t end, uint64_t key);
    void (*one_block)(uint64_t block, uint64_t stream, uint64_t key, uint32_t out[4]);
} kernels_t;

/* Not on Windows: GCC does not align its stack for vectors this wide there (its bug 54412). */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(_WIN32)
#define X86 1
extern const kernels_t kernels_avx512, kernels_avx2;
#endif
extern const kernels_t kernels_baseline;

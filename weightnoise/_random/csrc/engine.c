/* The functions that Python calls: choice of the instruction set, and threads. */
#include <stddef.h>
#include <string.h>

#include "engine.h"
#include "quantile.h"

#define PIECE (1 << 14) /* Numbers that are worth handing to another thread. */

typedef enum { NORMAL, UNIFORM, WORDS, SUM } what_t; /* The first three are known to Python by their number. */

typedef struct {
    what_t what;
    const kernels_t *kernels;
    sum_t sum;
    int64_t count, size; /* of all, and of a piece */
    int64_t next;
    uint64_t key;
} job_t;

static parallel_t parallel = NULL;

/* Use the threads of this runtime. It should be the one of torch: its threads spin for a while after their work, and
 * others would have to share the cores with them. */
void weightnoise_use_threads(parallel_t function) { parallel = function; }

/* 2: AVX-512, 1: AVX2, 0: what the compiler takes for the processor's baseline. */
int weightnoise_level(void) {
#ifdef X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
        return 2;
    if (__builtin_cpu_supports("avx2")) return 1;
#endif
    return 0;
}

static const kernels_t *kernels_of(int level) {
#ifdef X86
    if (level == 2) return &kernels_avx512;
    if (level == 1) return &kernels_avx2;
#endif
    (void)level;
    return &kernels_baseline;
}

/* Calls a function in some threads, or once where there are none. It has to do what there is, however often. */
void run_in_threads(void (*function)(void *), void *job, int threads) {
    if (threads > 1 && parallel != NULL)
        parallel(function, job, (unsigned)threads, 0);
    else
        function(job);
}

/* Does piece after piece until none is left: whatever number of threads come, and whichever. */
static void work(void *argument) {
    job_t *job = argument;
    const kernels_t *kernels = job->kernels;
    for (;;) {
        int64_t start = __atomic_fetch_add(&job->next, job->size, __ATOMIC_RELAXED);
        if (start >= job->count) return;
        int64_t end = start + job->size < job->count ? start + job->size : job->count;
        number_t *out = job->sum.out + start;
        if (job->what == NORMAL) kernels->fill_normal(out, start, end, job->key);
        if (job->what == UNIFORM) kernels->fill_uniform(out, start, end, job->key);
        if (job->what == WORDS) kernels->fill_words(out, start, end, job->key);
        if (job->what == SUM) kernels->add_normal(&job->sum, start, end, job->key);
    }
}

static void run(job_t job, int threads) {
    int64_t most = job.count / PIECE;
    if (threads > most) threads = (int)most;
    if (threads < 1) threads = 1;
    job.size = (job.count / threads + GROUP) / GROUP * GROUP;
    run_in_threads(work, &job, threads);
}

void weightnoise_fill(number_t *out, int64_t count, uint64_t key, int kind, int level, int threads) {
    job_t job = {(what_t)kind, kernels_of(level), {out, NULL, NULL, 1, 0.0f, 0}, count, 0, 0, key};
    run(job, threads);
}

/* out = weight + strength * scale * normals, over rows that have a scale each. */
void weightnoise_add(number_t *out, const number_t *weight, const number_t *scale, int64_t row_size, float strength,
                     int64_t count, uint64_t key, int level, int threads) {
    job_t job = {SUM, kernels_of(level), {out, weight, scale, row_size, strength, 0}, count, 0, 0, key};
    run(job, threads);
}

/* As weightnoise_add, for the rows `index` of a larger weight, which `out` and `weight` hold side by side with a
 * scale for each. */
void weightnoise_add_rows(number_t *out, const number_t *weight, const number_t *scale, const int64_t *index,
                          int64_t rows, int64_t row_size, float strength, uint64_t key, int level) {
    for (int64_t i = 0; i < rows; i++) {
        int64_t first = index[i] * row_size;
        sum_t sum = {out + i * row_size, weight + i * row_size, scale + i, row_size, strength, first};
        kernels_of(level)->add_normal(&sum, first, first + row_size, key);
    }
}

/* The normals at places start to end, written from out[0] on. */
void weightnoise_part(number_t *out, int64_t start, int64_t end, uint64_t key, int level) {
    kernels_of(level)->fill_normal(out, start, end, key);
}

/* The coefficients of the quantile, by octave and term. */
void weightnoise_quantile(number_t *out) {
#define OCTAVE(k, ...) [k] = {__VA_ARGS__},
    static const float coefficients[32][TERMS] = {NEAR_OCTAVES(OCTAVE) NEXT_OCTAVES(OCTAVE) FAR_OCTAVES(OCTAVE)};
    memcpy(out, coefficients, sizeof coefficients);
}

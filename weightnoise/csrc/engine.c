/* The functions that Python calls: choice of the instruction set, and threads. */
#include <pthread.h>
#include <stddef.h>
#include <string.h>

#include "engine.h"

#define MOST_THREADS 64
#define LEAST_PER_THREAD (1 << 17) /* Numbers for which starting a thread pays. */

typedef struct {
    int what; /* 0: normal, 1: uniform, 2: sum */
    const kernels_t *kernels;
    sum_t sum;
    int64_t start, end;
    uint64_t key;
} job_t;

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

static void *work(void *argument) {
    const job_t *job = argument;
    if (job->what == 2)
        job->kernels->add_normal(&job->sum, job->start, job->end, job->key);
    else
        (job->what ? job->kernels->fill_uniform : job->kernels->fill_normal)(job->sum.out, job->start, job->end,
                                                                            job->key);
    return NULL;
}

/* Does `count` numbers from `start` on in pieces, one for each thread; the caller's is one of them. */
static void run(job_t job, int64_t count, int threads) {
    int64_t most = count / LEAST_PER_THREAD;
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    if (threads > most) threads = most < 1 ? 1 : (int)most;
    int64_t size = (count / threads + GROUP) / GROUP * GROUP;
    job_t jobs[MOST_THREADS];
    pthread_t others[MOST_THREADS];
    int started[MOST_THREADS];
    for (int i = 0; i < threads; i++) {
        jobs[i] = job;
        jobs[i].start = i * size < count ? i * size : count;
        jobs[i].end = (i + 1) * size < count ? (i + 1) * size : count;
    }
    for (int i = 1; i < threads; i++) started[i] = pthread_create(&others[i], NULL, work, &jobs[i]) == 0;
    work(&jobs[0]);
    for (int i = 1; i < threads; i++) {
        if (started[i])
            pthread_join(others[i], NULL);
        else
            work(&jobs[i]);
    }
}

void weightnoise_fill(float *out, int64_t count, uint64_t key, int uniform, int level, int threads) {
    job_t job = {uniform ? 1 : 0, kernels_of(level), {out, NULL, NULL, 1, 0.0f}, 0, 0, key};
    run(job, count, threads);
}

/* out = weight + strength * scale * normals, over rows that have a scale each. */
void weightnoise_add(float *out, const float *weight, const float *scale, int64_t row_size, float strength,
                     int64_t count, uint64_t key, int level, int threads) {
    job_t job = {2, kernels_of(level), {out, weight, scale, row_size, strength}, 0, 0, key};
    run(job, count, threads);
}

/* As weightnoise_add, for the rows `index` of a larger weight, which `out` and `weight` hold side by side with a
 * scale for each; the row `clean` gets no noise. */
void weightnoise_add_rows(float *out, const float *weight, const float *scale, const int64_t *index, int64_t rows,
                          int64_t row_size, float strength, int64_t clean, uint64_t key, int level) {
    for (int64_t i = 0; i < rows; i++) {
        int64_t first = index[i] * row_size, shift = first - i * row_size;
        sum_t sum = {out - shift, weight - shift, scale + i - index[i], row_size, strength};
        if (index[i] == clean)
            memcpy(out + i * row_size, weight + i * row_size, (size_t)row_size * sizeof(float));
        else
            kernels_of(level)->add_normal(&sum, first, first + row_size, key);
    }
}

/* The normals at places start to end, written from out[0] on. */
void weightnoise_part(float *out, int64_t start, int64_t end, uint64_t key, int level) {
    kernels_of(level)->fill_normal(out - start, start, end, key);
}

void weightnoise_block(uint64_t block, uint64_t stream, uint64_t key, uint32_t *out, int level) {
    kernels_of(level)->one_block(block, stream, key, out);
}

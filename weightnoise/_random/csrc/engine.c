/* The functions that Python calls: choice of the instruction set, and threads. */
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "engine.h"
#include "quantile.h"

#define PIECE (1 << 14) /* Numbers that are worth handing to another thread. */
#define MAPPED (1 << 23) /* Numbers whose memory glibc gets from the system each time: 32 MiB. */
#define SHORT (1 << 12) /* Numbers whose statistics are taken at once: they stay in the nearest cache. */

typedef enum { NORMAL, UNIFORM, WORDS, SUM, PASS, ROWS, COLUMNS } what_t; /* Python knows the first three. */

/* A weight whose statistics are taken. */
typedef struct {
    statistic_t what;
    const number_t *weight;
    int64_t rows, size;
    double (*found)[2]; /* of each piece, or of each column */
} table_t;

typedef struct {
    what_t what;
    const kernels_t *kernels;
    union {
        sum_t sum; /* of which the first three have `out` alone */
        pass_t pass;
        table_t table;
    };
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

/* Ask for large pages, of 2 MiB, for memory that comes from the system with this call: where that gives a page only
 * when it is first written to, one fault takes the place of 512, which take as long as the numbers do. */
static void take_large_pages(number_t *out, int64_t count) {
#ifdef MADV_HUGEPAGE
    const uintptr_t page = (uintptr_t)1 << 21;
    uintptr_t start = ((uintptr_t)out + page - 1) & ~(page - 1), end = (uintptr_t)(out + count) & ~(page - 1);
    if (count >= MAPPED && end > start) (void)madvise((void *)start, end - start, MADV_HUGEPAGE); /* It may say no. */
#else
    (void)out, (void)count;
#endif
}

static int64_t pieces_of(int64_t size) { return (size + SHORT - 1) / SHORT; }

/* The statistics of pieces of rows, counted over all rows. */
static void look_at(const table_t *table, const kernels_t *kernels, int64_t start, int64_t end) {
    int64_t each = pieces_of(table->size);
    for (int64_t i = start; i < end; i++) {
        int64_t first = i % each * SHORT, count = least_of(SHORT, table->size - first);
        kernels->piece(table->what, table->weight + i / each * table->size + first, count, table->found[i]);
    }
}

/* Does piece after piece until none is left: whatever number of threads come, and whichever. */
static void work(void *argument) {
    job_t *job = argument;
    const kernels_t *kernels = job->kernels;
    const table_t *table = &job->table;
    for (;;) {
        int64_t start = __atomic_fetch_add(&job->next, job->size, __ATOMIC_RELAXED);
        if (start >= job->count) return;
        int64_t end = least_of(start + job->size, job->count);
        if (job->what == NORMAL) kernels->fill_normal(job->sum.out + start, start, end, job->key);
        if (job->what == UNIFORM) kernels->fill_uniform(job->sum.out + start, start, end, job->key);
        if (job->what == WORDS) kernels->fill_words(job->sum.out + start, start, end, job->key);
        if (job->what == SUM) kernels->add_normal(&job->sum, start, end, job->key);
        if (job->what == PASS) kernels->apply(&job->pass, start, end);
        if (job->what == ROWS) look_at(table, kernels, start, end);
        if (job->what == COLUMNS)
            for (; start < end; start += STRIP)
                kernels->columns(table->what, table->weight + start, table->rows, table->size,
                                 least_of(STRIP, end - start), table->found + start);
    }
}

/* In as many threads as the job is worth, each of which takes a multiple of some places. */
static void run_in(job_t *job, int64_t threads, int64_t most, int64_t multiple) {
    threads = threads < most ? threads : most;
    if (threads < 1) threads = 1;
    job->size = (job->count / threads + multiple) / multiple * multiple;
    run_in_threads(work, job, (int)threads);
}

static void run(job_t job, int threads) { run_in(&job, threads, job.count / PIECE, GROUP); }

void weightnoise_fill(number_t *out, int64_t count, uint64_t key, int kind, int level, int threads) {
    job_t job = {.what = (what_t)kind, .kernels = kernels_of(level), .count = count, .key = key};
    job.sum.out = out;
    take_large_pages(out, count);
    run(job, threads);
}

/* out = weight + strength * scale * normals, over rows that have a scale each; or, `across`, whose places have. */
void weightnoise_add(number_t *out, const number_t *weight, const number_t *scale, int across, int64_t row_size,
                     float strength, int64_t count, uint64_t key, int level, int threads) {
    job_t job = {.what = SUM, .kernels = kernels_of(level), .count = count, .key = key};
    job.sum = (sum_t){out, weight, scale, row_size, strength, 0, across};
    if (out != weight) take_large_pages(out, count);
    run(job, threads);
}

/* As weightnoise_add, for the rows `index` of a larger weight, which `out` and `weight` hold side by side with a
 * scale for each. */
void weightnoise_add_rows(number_t *out, const number_t *weight, const number_t *scale, int across,
                          const int64_t *index, int64_t rows, int64_t row_size, float strength, uint64_t key,
                          int level) {
    for (int64_t i = 0; i < rows; i++) {
        int64_t first = index[i] * row_size, at = i * row_size;
        sum_t sum = {out + at, weight + at, across ? scale : scale + i, row_size, strength, first, across};
        kernels_of(level)->add_normal(&sum, first, first + row_size, key);
    }
}

/* A law of numbers that are drawn already: see law_t. */
void weightnoise_apply(int law, number_t *out, const number_t *weight, const number_t *drawn,
                       const number_t *learned, const float constants[6], int64_t count, int level, int threads) {
    job_t job = {.what = PASS, .kernels = kernels_of(level), .count = count};
    job.pass = (pass_t){(law_t)law, out, weight, drawn, learned, {0}};
    memcpy(job.pass.constants, constants, sizeof job.pass.constants);
    if (out != weight && out != drawn) take_large_pages(out, count);
    run(job, threads);
}

/* Writes a statistic of each channel, from what was found of `each` parts of it; counts is that of a part. */
static void put_together(statistic_t what, number_t *out, double (*found)[2], int64_t channels, int64_t each,
                         int64_t count, int64_t last) {
    for (int64_t channel = 0; channel < channels; channel++, found += each) {
        double all[2] = {found[0][0], found[0][1]}, seen = (double)(each == 1 ? last : count);
        for (int64_t i = 1; i < each; i++) {
            double more = (double)(i == each - 1 ? last : count);
            merge(what, all, seen, found[i], more);
            seen += more;
        }
        out[channel] = (float)(what == MOMENTS ? sqrt(all[1] / seen) : all[0]);
        if (what == EXTREMES) out[channels + channel] = isnan(all[0]) ? NAN : (float)all[1];
    }
}

/* The largest size, both ends, or the standard deviation of each row; `found` has room for each piece. */
void weightnoise_of_rows(int what, number_t *out, double (*found)[2], const number_t *weight, int64_t rows,
                         int64_t size, int level, int threads) {
    int64_t each = pieces_of(size);
    job_t job = {.what = ROWS, .kernels = kernels_of(level), .count = rows * each};
    job.table = (table_t){(statistic_t)what, weight, rows, size, found};
    run_in(&job, threads, rows * size / PIECE, 1);
    put_together((statistic_t)what, out, found, rows, each, SHORT, size - (each - 1) * SHORT);
}

/* As of rows, over all rows, of each run of `each` columns; `found` has room for each column. */
void weightnoise_of_columns(int what, number_t *out, double (*found)[2], const number_t *weight, int64_t rows,
                            int64_t size, int64_t each, int level, int threads) {
    job_t job = {.what = COLUMNS, .kernels = kernels_of(level), .count = size};
    job.table = (table_t){(statistic_t)what, weight, rows, size, found};
    run_in(&job, threads, rows * size / PIECE, STRIP);
    put_together((statistic_t)what, out, found, size / each, each, rows, rows);
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

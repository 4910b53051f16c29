/* Runs the functions of csrc/ on memory that ends where their numbers end, at any start, size and thread count.
 *
 * Built with the address and the undefined-behaviour sanitizer, which stop it at the first step beside the memory;
 * what it compares itself are the bits, which no start, width or thread count may change.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

#define COUNT(array) (int)(sizeof(array) / sizeof((array)[0]))
#define BYTES 9    /* Starts that are tried: a number begins at any byte. */
#define GUARD 0xA5 /* What lies before the start; behind the end is the sanitizer's own zone. */

static const int64_t SIZES[] = {0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 1000, 2049, 3 * 16384 + 5, 9 * 16384 + 77};
static const uint64_t KEYS[] = {0, 1, 0x7FFFFFFFFFFFFFFEu, 0xFFFFFFFFFFFFFFFFu};
static int checks = 0;

static void expect(int holds, const char *what) {
    checks++;
    if (holds) return;
    fprintf(stderr, "%s\n", what);
    exit(1);
}

/* Memory for some numbers, that starts `shift` bytes into its block and ends with it. */
typedef struct {
    unsigned char *block;
    number_t *numbers;
    int shift;
    size_t size;
} memory_t;

static memory_t memory(int64_t count, int shift) {
    memory_t made = {NULL, NULL, shift, (size_t)count * sizeof(float)};
    made.block = malloc(made.size + (size_t)shift);
    if (made.block == NULL && made.size + (size_t)shift > 0) exit(2);
    if (made.block != NULL) memset(made.block, GUARD, made.size + (size_t)shift);
    made.numbers = (number_t *)(made.block + shift);
    return made;
}

static memory_t filled(int64_t count, int shift, uint64_t key) {
    memory_t made = memory(count, shift);
    weightnoise_part(made.numbers, 0, count, key, 0);
    return made;
}

/* Scales for the places of a row, and the first ones again. */
static memory_t going_round(int64_t row_size, int shift, uint64_t key) {
    memory_t made = filled(row_size + GROUP - 1, shift, key);
    for (int64_t i = row_size; i < row_size + GROUP - 1; i++) made.numbers[i] = made.numbers[i - row_size];
    return made;
}

static void discard(memory_t *made) {
    for (int i = 0; i < made->shift; i++) expect(made->block[i] == GUARD, "written before the start");
    free(made->block);
}

static void same(const memory_t *found, const number_t *expected, const char *what) {
    expect(found->size == 0 || memcmp(found->numbers, expected, found->size) == 0, what);
}

/* In place of GOMP_parallel: threads of this program. */
typedef struct {
    void (*work)(void *);
    void *job;
} call_t;

static void *call(void *argument) {
    call_t *one = argument;
    one->work(one->job);
    return NULL;
}

static void in_threads(void (*work)(void *), void *job, unsigned count, unsigned flags) {
    (void)flags;
    pthread_t threads[16];
    call_t one = {work, job};
    unsigned others = count - 1 < 16 ? count - 1 : 16;
    for (unsigned i = 0; i < others; i++)
        if (pthread_create(&threads[i], NULL, call, &one) != 0) exit(2);
    work(job);
    for (unsigned i = 0; i < others; i++) pthread_join(threads[i], NULL);
}

static void check_fill(int64_t count, int level, int kind) {
    for (int k = 0; k < COUNT(KEYS); k++) {
        memory_t expected = memory(count, 0);
        weightnoise_fill(expected.numbers, count, KEYS[k], kind, 0, 1);
        for (int threads = 0; threads <= 8; threads++) {
            memory_t found = memory(count, (threads + k) % BYTES);
            weightnoise_fill(found.numbers, count, KEYS[k], kind, level, threads);
            same(&found, expected.numbers, "fill");
            discard(&found);
        }
        discard(&expected);
    }
}

static void check_part(int64_t count, int level) {
    memory_t whole = filled(count, 0, 7);
    for (int64_t start = 0; start <= count; start += 1 + count / 7)
        for (int shift = 0; shift < BYTES; shift++) {
            memory_t found = memory(count - start, shift);
            weightnoise_part(found.numbers, start, count, 7, level);
            same(&found, whole.numbers + start, "part");
            discard(&found);
        }
    discard(&whole);
}

/* A scale for each of `rows`, or for each place of a row; none for 0. */
static void check_add(int64_t rows, int64_t row_size, int level) {
    int64_t count = rows * row_size;
    for (int scaled = 0; scaled < 4; scaled++) {
        int64_t scales = scaled == 2 ? rows : scaled;
        int64_t size = scaled >= 2 ? row_size : count;
        int across = scaled == 3;
        if (across && row_size == 0) continue;
        memory_t expected = memory(count, 0);
        for (int threads = 1; threads <= 8; threads++) {
            int shift = threads % BYTES;
            memory_t weight = filled(count, shift, 1);
            memory_t scale = across ? going_round(size, BYTES - shift, 2) : filled(scales, BYTES - shift, 2);
            memory_t found = memory(count, (2 * shift) % BYTES);
            const number_t *given = scaled == 0 ? NULL : scale.numbers;
            if (threads == 1)
                weightnoise_add(expected.numbers, weight.numbers, given, across, size, 0.3f, count, 5, 0, 1);
            weightnoise_add(found.numbers, weight.numbers, given, across, size, 0.3f, count, 5, level, threads);
            same(&found, expected.numbers, "add");
            weightnoise_add(weight.numbers, weight.numbers, given, across, size, 0.3f, count, 5, level, threads);
            same(&weight, expected.numbers, "add in place");
            discard(&weight);
            discard(&scale);
            discard(&found);
        }
        discard(&expected);
    }
}

/* Rows of a weight with a scale for each row, or for each place of a row. */
static void check_rows(int64_t rows, int64_t row_size, int across, int level) {
    if (across && row_size == 0) return;
    memory_t weight = filled(rows * row_size, 0, 1);
    memory_t scale = across ? going_round(row_size, 0, 2) : filled(rows, 0, 2);
    memory_t whole = memory(rows * row_size, 0);
    weightnoise_add(whole.numbers, weight.numbers, scale.numbers, across, row_size, 0.3f, rows * row_size, 5, 0, 1);
    const int64_t index[] = {rows - 1, 0, rows / 2, rows / 2, rows / 3, rows - 1};
    for (int shift = 0; shift < BYTES; shift++) {
        int64_t some = COUNT(index) - shift % 3;
        int64_t *places = malloc((size_t)some * sizeof(int64_t));
        if (places == NULL) exit(2);
        memcpy(places, index, (size_t)some * sizeof(int64_t));
        memory_t from = memory(some * row_size, shift), scales = memory(across ? row_size + GROUP - 1 : some, BYTES - shift);
        memory_t found = memory(some * row_size, (3 * shift) % BYTES), expected = memory(some * row_size, 0);
        size_t bytes = (size_t)row_size * sizeof(float);
        for (int64_t i = 0; i < some; i++) {
            memcpy(from.numbers + i * row_size, weight.numbers + index[i] * row_size, bytes);
            memcpy(expected.numbers + i * row_size, whole.numbers + index[i] * row_size, bytes);
            if (!across) scales.numbers[i] = scale.numbers[index[i]];
        }
        if (across) memcpy(scales.numbers, scale.numbers, scale.size);
        weightnoise_add_rows(found.numbers, from.numbers, scales.numbers, across, places, some, row_size, 0.3f, 5,
                             level);
        same(&found, expected.numbers, "add_rows");
        free(places);
        discard(&from);
        discard(&scales);
        discard(&found);
        discard(&expected);
    }
    discard(&weight);
    discard(&scale);
    discard(&whole);
}

/* Of each law, with what goes past the ends of an exponential. */
static const float CONSTANTS[4][6] = {
    {40.0f, -3.0f}, {0.7f}, {0.7f, 1.0f}, {-0.5f, 0.0f, -2.0f, 0.5f, 1.0f, 2.0f}};

static void check_apply(int64_t count, int level, int law) {
    memory_t expected = memory(count, 0);
    for (int threads = 0; threads <= 8; threads++) {
        int shift = threads % BYTES;
        memory_t weight = filled(count, shift, 1), drawn = filled(count, BYTES - shift, 2);
        memory_t learned = filled(count, shift, 3), found = memory(count, (2 * shift) % BYTES);
        const number_t *given = law == 1 || law == 2 ? learned.numbers : NULL;
        number_t *out = threads == 0 ? expected.numbers : found.numbers;
        weightnoise_apply(law, out, weight.numbers, drawn.numbers, given, CONSTANTS[law], count,
                          threads == 0 ? 0 : level, threads);
        if (threads > 0) same(&found, expected.numbers, "apply");
        discard(&weight);
        discard(&drawn);
        discard(&learned);
        discard(&found);
    }
    discard(&expected);
}

/* By rows for each = 0, else by runs of `each` columns. */
static void statistic(int what, number_t *out, const number_t *weight, int64_t rows, int64_t size, int64_t each,
                      int level, int threads) {
    int64_t found = each > 0 ? size : rows * ((size + 4095) / 4096);
    double (*room)[2] = malloc((size_t)found * sizeof *room);
    if (room == NULL) exit(2);
    if (each > 0)
        weightnoise_of_columns(what, out, room, weight, rows, size, each, level, threads);
    else
        weightnoise_of_rows(what, out, room, weight, rows, size, level, threads);
    free(room);
}

static void check_statistic(int64_t rows, int64_t size, int64_t each, int level) {
    int64_t channels = each > 0 ? size / each : rows;
    for (int what = 0; what < 3; what++) {
        memory_t expected = memory(channels * (1 + (what == 1)), 0);
        for (int threads = 0; threads <= 8; threads++) {
            memory_t weight = filled(rows * size, threads % BYTES, 1);
            memory_t found = memory(channels * (1 + (what == 1)), (3 * threads) % BYTES);
            number_t *out = threads == 0 ? expected.numbers : found.numbers;
            statistic(what, out, weight.numbers, rows, size, each, threads == 0 ? 0 : level, threads);
            if (threads > 0) same(&found, expected.numbers, "statistic");
            discard(&weight);
            discard(&found);
        }
        discard(&expected);
    }
}

static void check_coefficients(void) {
    memory_t found = memory(32 * 6, 1);
    weightnoise_quantile(found.numbers);
    expect(found.numbers[31 * 6] == 0.0f && found.numbers[0] > 6.0f, "coefficients");
    discard(&found);
}

static void check_marks(int64_t count) {
    uint32_t expected[32] = {0};
    memory_t words = filled(count, 0, 3);
    weightnoise_mark(expected, words.numbers, count, 1);
    for (int shift = 0; shift < BYTES; shift++) {
        memory_t same = filled(count, shift, 3);
        uint32_t found[32] = {0};
        weightnoise_mark(found, same.numbers, count, 1 + shift % 4);
        expect(memcmp(found, expected, sizeof found) == 0, "marks");
        discard(&same);
    }
    discard(&words);
}

/* A sum of all bits (Fowler, Noll and Vo), for other machines to agree with. */
static uint64_t bits_of(uint64_t sum, const memory_t *made) {
    for (size_t i = 0; i < made->size; i++) sum = (sum ^ ((unsigned char *)made->numbers)[i]) * 0x100000001B3u;
    return sum;
}

static uint64_t all_bits(int level) {
    uint64_t sum = 0xCBF29CE484222325u;
    int64_t count = 100000;
    for (int k = 0; k < COUNT(KEYS); k++) {
        memory_t made = memory(count, 0);
        for (int kind = 0; kind < 3; kind++) {
            weightnoise_fill(made.numbers, count, KEYS[k], kind, level, 1);
            sum = bits_of(sum, &made);
        }
        weightnoise_part(made.numbers, ((int64_t)1 << 34) - 1000, ((int64_t)1 << 34) - 1000 + count, KEYS[k], level);
        sum = bits_of(sum, &made);
        memory_t weight = filled(count, 0, 1), scale = filled(count / 50, 0, 2);
        weightnoise_add(made.numbers, weight.numbers, scale.numbers, 0, 50, 0.3f, count, KEYS[k], level, 1);
        sum = bits_of(sum, &made);
        discard(&made);
        discard(&weight);
        discard(&scale);
    }
    return sum;
}

/* Of the laws and of the statistics. */
static uint64_t all_laws(int level) {
    uint64_t sum = 0xCBF29CE484222325u;
    int64_t rows = 1000, size = 100, count = rows * size;
    memory_t weight = filled(count, 0, 1), drawn = filled(count, 0, 2), learned = filled(count, 0, 3);
    memory_t made = memory(count, 0);
    for (int64_t i = 0; i < count; i++) learned.numbers[i] *= 30.0f;
    for (int law = 0; law < 4; law++) {
        weightnoise_apply(law, made.numbers, weight.numbers, drawn.numbers, learned.numbers, CONSTANTS[law], count,
                          level, 1);
        sum = bits_of(sum, &made);
    }
    for (int what = 0; what < 3; what++) {
        memset(made.numbers, 0, made.size);
        statistic(what, made.numbers, weight.numbers, 1, count, 0, level, 1);
        statistic(what, made.numbers + 10, weight.numbers, rows, size, 0, level, 1);
        statistic(what, made.numbers + 5000, weight.numbers, rows, size, 1, level, 1);
        statistic(what, made.numbers + 6000, weight.numbers, rows, size, 5, level, 1);
        sum = bits_of(sum, &made);
    }
    discard(&made);
    discard(&weight);
    discard(&drawn);
    discard(&learned);
    return sum;
}

static void check_level(int level) {
    for (int i = 0; i < COUNT(SIZES); i++) {
        check_fill(SIZES[i], level, 0);
        check_fill(SIZES[i], level, 1);
        check_fill(SIZES[i], level, 2);
        check_part(SIZES[i], level);
        check_add(1, SIZES[i], level);
        check_add(SIZES[i], 1, level);
        check_add(3, SIZES[i], level);
        if (SIZES[i] < 20000) check_rows(37, SIZES[i], 0, level);
        if (SIZES[i] < 20000) check_rows(37, SIZES[i], 1, level);
        for (int law = 0; law < 4; law++) check_apply(SIZES[i], level, law);
        if (SIZES[i] == 0) continue;
        check_statistic(1, SIZES[i], 0, level);
        check_statistic(3, SIZES[i], 0, level);
        check_statistic(3, SIZES[i], 1, level);
    }
    check_statistic(130, 67, 0, level);
    check_statistic(130, 67, 1, level);
    check_statistic(64, 1026, 9, level);
    check_statistic(1000, 130, 10, level);
    check_add(300, 67, level);
    check_add(67, 300, level);
    check_add(1000, 128, level);
    expect(all_bits(level) == all_bits(0), "all bits");
    expect(all_laws(level) == all_laws(0), "all laws");
}

int main(int count, char **arguments) {
    (void)arguments;
    printf("bits %016llx\n", (unsigned long long)all_bits(weightnoise_level()));
    printf("laws %016llx\n", (unsigned long long)all_laws(weightnoise_level()));
    if (count > 1) return 0; /* That was all. */
    weightnoise_use_threads(in_threads);
    for (int level = 0; level <= weightnoise_level(); level++) check_level(level);
    for (int i = 0; i < COUNT(SIZES); i++) check_marks(SIZES[i]);
    weightnoise_use_threads(NULL);
    check_fill(9 * 16384, weightnoise_level(), 0);
    check_coefficients();
    printf("%d checks up to level %d\n", checks, weightnoise_level());
    return 0;
}

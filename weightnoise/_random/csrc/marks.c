/* The bits of an array in a few numbers, by which a change of it is seen. */
#include "engine.h"

#define LANES 32 /* The numbers: word i of a part goes into number i modulo LANES. */
#define PART (1 << 16)

/* A word in an array of somebody else's, at any place. */
typedef uint32_t word_t __attribute__((aligned(1), may_alias));

typedef struct {
    uint32_t *out;
    const word_t *words;
    int64_t count, next;
} marking_t;

/* Undone, and so another number for another word, whatever the others are. It is the step of MurmurHash3 without its
 * two products, which old processors have no instruction for. */
static inline uint32_t step(uint32_t mark, uint32_t word) {
    mark ^= word;
    mark = mark << 11 | mark >> 21;
    return mark * 5 + 0xE6546B64u;
}

/* Part after part until none is left. Each starts from its own number, and sums have no order. */
static void work(void *argument) {
    marking_t *job = argument;
    for (;;) {
        int64_t start = __atomic_fetch_add(&job->next, PART, __ATOMIC_RELAXED);
        if (start >= job->count) return;
        int64_t size = job->count - start < PART ? job->count - start : PART, done = 0;
        const word_t *words = job->words + start;
        uint32_t marks[LANES];
        for (int lane = 0; lane < LANES; lane++) marks[lane] = (uint32_t)(start / PART);
        for (; done + LANES <= size; done += LANES)
            for (int lane = 0; lane < LANES; lane++) marks[lane] = step(marks[lane], words[done + lane]);
        for (int lane = 0; done + lane < size; lane++) marks[lane] = step(marks[lane], words[done + lane]);
        for (int lane = 0; lane < LANES; lane++) __atomic_fetch_add(&job->out[lane], marks[lane], __ATOMIC_RELAXED);
    }
}

/* Adds the marks of `count` words to 32 numbers: the same for any number of threads. */
void weightnoise_mark(uint32_t *out, const void *words, int64_t count, int threads) {
    marking_t job = {out, words, count, 0};
    int64_t most = (count + PART - 1) / PART;
    run_in_threads(work, &job, threads < most ? threads : (int)most);
}

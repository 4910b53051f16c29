/* Laws that are applied to numbers in one pass over the weight: what kernels.h has for one instruction set. */
#pragma once
#include "elementary.h"

/* The noisy weights of a vector: w is clean, e drawn, s the strength that has been learned, c the constants. */
INLINE f32 noisy(law_t law, f32 w, f32 e, f32 s, const float *c) {
    switch (law) {
    case LOG_NORMAL: return w * exponential(e * c[0] + c[1]);
    case SOFTPLUS: return w + e * softplus(s) * c[0];
    case ROOT:
        s = choose(s > c[1], (f32){0} + c[1], s);
        return w + e * (exponential(s * 0.5f) * w) * c[0];
    default: /* REPLACED: in [c0, c1) by c2, in [c3, c4) by c5 */
        w = choose((e >= c[0]) & (e < c[1]), (f32){0} + c[2], w);
        return choose((e >= c[3]) & (e < c[4]), (f32){0} + c[5], w);
    }
}

/* The noisy weights of `size` bytes of a vector. */
INLINE void pass_vector(law_t law, const pass_t *p, int64_t at, size_t size) {
    f32 w = {0}, e = {0}, s = {0};
    memcpy(&w, p->weight + at, size);
    memcpy(&e, p->drawn + at, size);
    if (law == SOFTPLUS || law == ROOT) memcpy(&s, p->learned + at, size);
    w = noisy(law, w, e, s, p->constants);
    memcpy(p->out + at, &w, size);
}

INLINE void pass(law_t law, const pass_t *given, int64_t start, int64_t end) {
    pass_t p = *given; /* A copy, which no write to the weight can change. */
    int64_t at = start;
    for (; at + WIDTH <= end; at += WIDTH) pass_vector(law, &p, at, sizeof(f32));
    if (at < end) pass_vector(law, &p, at, (size_t)(end - at) * sizeof(float));
}

static void apply(const pass_t *p, int64_t start, int64_t end) {
    if (p->law == LOG_NORMAL) pass(LOG_NORMAL, p, start, end);
    if (p->law == SOFTPLUS) pass(SOFTPLUS, p, start, end);
    if (p->law == ROOT) pass(ROOT, p, start, end);
    if (p->law == REPLACED) pass(REPLACED, p, start, end);
}

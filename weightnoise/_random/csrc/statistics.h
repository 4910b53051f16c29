/* Statistics of a weight in one pass over memory, for one instruction set.
 *
 * A lane takes every 64th number of a piece, or the numbers of one column: each sum has one order, whatever the width of
 * the vectors that the compiler makes of these loops.
 */
#pragma once
#include <math.h>

#include "vectors.h"

#define BLOCK 64 /* Rows that single precision adds up. */

typedef int32_t bits_t __attribute__((aligned(1), may_alias));

typedef struct {
    float low[STRIP], high[STRIP]; /* or the sum and what it is about */
    int32_t bits[STRIP];           /* of the largest without its sign, where NaN is beyond all; whether one is NaN */
} lanes_t;

typedef enum { LARGE, ENDS, SUMS, SQUARES } step_t;

/* Takes in rows of numbers, one for each lane. */
INLINE void take(step_t step, lanes_t *in, const number_t *x, int64_t rows, int64_t stride, int64_t lanes) {
    for (int64_t row = 0; row < rows; row++, x += stride)
        for (int64_t i = 0; i < lanes; i++) {
            if (step == LARGE) {
                int32_t size = ((const bits_t *)x)[i] & 0x7FFFFFFF;
                in->bits[i] = size > in->bits[i] ? size : in->bits[i];
            } else if (step == ENDS) {
                in->low[i] = x[i] < in->low[i] ? x[i] : in->low[i];
                in->high[i] = x[i] > in->high[i] ? x[i] : in->high[i];
                in->bits[i] |= x[i] != x[i];
            } else if (step == SUMS) {
                in->low[i] += x[i] - in->high[i];
            } else {
                float off = x[i] - in->high[i];
                in->low[i] += off * off;
            }
        }
}

/* Where the numbers are: rows of `lanes` at a stride, and `rest` in the first lanes of another row. */
typedef struct {
    const number_t *x;
    int64_t rows, stride, lanes, rest;
} place_t;

INLINE void take_all(step_t step, lanes_t *in, place_t from) {
    take(step, in, from.x, from.rows, from.stride, from.lanes);
    if (from.rest > 0) take(step, in, from.x + from.rows * from.stride, 1, 0, from.rest);
}

/* Puts the lanes of a piece together, half by half. */
INLINE void fold(step_t step, lanes_t *in) {
    for (int64_t half = GROUP / 2; half > 0; half /= 2)
        for (int64_t i = 0, j = half; i < half; i++, j++) {
            if (step == LARGE) {
                in->bits[i] = in->bits[j] > in->bits[i] ? in->bits[j] : in->bits[i];
            } else if (step == ENDS) {
                in->low[i] = in->low[j] < in->low[i] ? in->low[j] : in->low[i];
                in->high[i] = in->high[j] > in->high[i] ? in->high[j] : in->high[i];
                in->bits[i] |= in->bits[j];
            } else {
                in->low[i] += in->low[j];
            }
        }
}

INLINE void begin(lanes_t *in, int64_t lanes, float low, float high) {
    for (int64_t i = 0; i < lanes; i++) {
        in->low[i] = low;
        in->high[i] = high;
        in->bits[i] = 0;
    }
}

/* The largest size, or both ends, that a lane has seen. */
INLINE void found_by(statistic_t what, const lanes_t *in, int64_t i, double found[2]) {
    float largest;
    memcpy(&largest, &in->bits[i], sizeof largest);
    found[0] = what == LARGEST ? largest : in->bits[i] ? NAN : in->low[i];
    found[1] = in->high[i];
}

INLINE void in_piece(step_t step, lanes_t *in, place_t all) {
    take_all(step, in, all);
    fold(step, in);
}

static void piece(statistic_t what, const number_t *x, int64_t count, double found[2]) {
    lanes_t in;
    place_t all = {x, count / GROUP, GROUP, GROUP, count % GROUP};
    begin(&in, GROUP, what == MOMENTS ? 0.0f : x[0], x[0]);
    if (what == MOMENTS) {
        in_piece(SUMS, &in, all);
        double mean = x[0] + in.low[0] / (double)count;
        begin(&in, GROUP, 0.0f, (float)mean);
        in_piece(SQUARES, &in, all);
        found[0] = mean;
        found[1] = squares_about(mean, in.low[0], in.high[0], (double)count);
        return;
    }
    if (what == LARGEST) in_piece(LARGE, &in, all);
    if (what == EXTREMES) in_piece(ENDS, &in, all);
    found_by(what, &in, 0, found);
}

/* Mean and squares of some rows, added to those of `before` rows. */
INLINE void block(place_t all, int64_t before, double (*found)[2]) {
    lanes_t in;
    double n = (double)all.rows;
    for (int64_t i = 0; i < all.lanes; i++) {
        in.low[i] = 0.0f;
        in.high[i] = all.x[i];
    }
    take_all(SUMS, &in, all);
    double own[STRIP][2];
    for (int64_t i = 0; i < all.lanes; i++) {
        own[i][0] = all.x[i] + in.low[i] / n;
        in.low[i] = 0.0f;
        in.high[i] = (float)own[i][0];
    }
    take_all(SQUARES, &in, all);
    for (int64_t i = 0; i < all.lanes; i++) {
        own[i][1] = squares_about(own[i][0], in.low[i], in.high[i], n);
        merge(MOMENTS, found[i], (double)before, own[i], n);
    }
}

/* Of `lanes` neighbouring columns of a weight. */
static void columns(statistic_t what, const number_t *x, int64_t rows, int64_t stride, int64_t lanes,
                    double (*found)[2]) {
    place_t all = {x, rows, stride, lanes, 0};
    if (what == MOMENTS) {
        for (int64_t i = 0; i < lanes; i++) found[i][0] = found[i][1] = 0.0;
        for (int64_t row = 0; row < rows; row += BLOCK) {
            all.x = x + row * stride;
            all.rows = least_of(BLOCK, rows - row);
            block(all, row, found);
        }
        return;
    }
    lanes_t in;
    for (int64_t i = 0; i < lanes; i++) {
        in.low[i] = in.high[i] = x[i];
        in.bits[i] = 0;
    }
    if (what == LARGEST) take_all(LARGE, &in, all);
    if (what == EXTREMES) take_all(ENDS, &in, all);
    for (int64_t i = 0; i < lanes; i++) found_by(what, &in, i, found[i]);
}

// One step of a few rows of a column of vectors, wherever the field lies: the loop body of every forward and adjoint.
//
// Order in a step m: update -> inject -> store (forward), update with correlation -> inject (adjoint). Summing the
// recursion by parts gives the gradient from one stored field, A being the stencil with its centre's -5:
//
//   alpha dJ/dalpha = sum_m p_m (A mu_(m+1)) + sum_m p_m r_m at the receivers
//   dJ/dkappa       = sum_m p_m (lambda_(m+2) - lambda_(m+1))
//
// The source's own terms cancel, since the source scales with v^2 as alpha does.
#pragma once
#include "common.cuh"

// What one step does besides the update.
template <class T> struct StepOf {
    int level;       // of the history, -1 where it has none
    T weight;        // of the step in the gradient's sums
    T sample;        // of the source (forward)
    int m, s;        // the step, the shot in the launch
};

// A shot's constant data.
template <class T, class H> struct Shot {
    const T *alpha, *inverse, *kappa;
    int source_row, source_column;
    H *history;           // of this shot
    T *sums;              // of row 0, wherever that would lie
};

// No one else holds copies of the rows.
struct Alone {
    template <class T> __device__ __forceinline__ void operator()(int, int, const Vec<T> &) const {}
};

// Steps rows zb..ze (at most R) of columns x..x + W. The adjoint's return value is its share of `damped`.
template <class T, class H, int R, bool ADJOINT, class Rows, class Share>
DEVICE T march(const Params &P, const Shot<T, H> &shot, const StepOf<T> &step, const Rows &field, const Rows &out,
               const Share &share, int zb, int ze, int x) {
    const int W = Vec<T>::W;
    Column<T> column;
    Coefficients<T> c = Coefficients<T>::none();
    const bool end = at_end<T>(x, P.cols);
    T damped = T(0);
    H *history = shot.history;
    if (step.level >= 0) history += ((i64)step.level * P.rows + zb) * P.hstride + x;
    column.begin(field, zb, x);
#pragma unroll(R > 16 ? R / 2 : R)
    for (int i = 0; i < R; ++i) {
        const int z = zb + i;
        if (z >= ze) break;
        Vec<T> down2;
        const Vec<T> lap = column.sum(field, z, x, down2);
        T *to = out.row(z);
        const Vec<T> before = load(to + x);
        c.of(P, shot.alpha, shot.kappa, z, x);
        Vec<T> p;
#pragma unroll
        for (int j = 0; j < W; ++j)
            p.v[j] = advance(c.alpha.v[j], c.centre.v[j], c.rest.v[j], lap.v[j], column.now.v[j], before.v[j]);
        if (ADJOINT) {
            if (step.level >= 0) {
                const Vec<T> h = recall(history, T(P.history_unit));
                T *sum = shot.sums + z * P.hstride + x;
                Vec<T> s = load(sum);
#pragma unroll
                for (int j = 0; j < W; ++j) {
                    s.v[j] = fma_(h.v[j], fma_(T(-5), column.now.v[j], lap.v[j]), s.v[j]);
                    const T kappa = kappa_at(P, shot.kappa, z, x + j);
                    if (kappa != T(0)) { // so not beyond the grid's last column either, where anything may lie
                        const int row = clamp_(z - P.pad, P.nz), edge = clamp_(x + j - P.pad, P.nx);
                        const T rate = kappa * shot.inverse[row * P.nx + edge];
                        damped = fma_(h.v[j] * (before.v[j] - column.now.v[j]), rate, damped);
                    }
                }
                store(sum, s);
            }
            const int k = z - P.pad - P.inject_row;
            if (k >= 0 && k < P.inject_rows)
                inject_row(p, x, P.pad, P.nx, (const T *)P.inject + (((i64)step.s * P.nt + step.m) * P.inject_rows + k) * P.nx);
        } else {
            if (z == shot.source_row) inject_source(p, x, shot.source_column, step.sample);
            if (step.level >= 0) {
                Vec<T> h;
#pragma unroll
                for (int j = 0; j < W; ++j) h.v[j] = p.v[j] * step.weight;
                keep(history, h);
            }
        }
        put(to, x, P.cols, end, p);
        share(z, x, p);
        column.next(down2);
        history += P.hstride;
    }
    return damped;
}

// The next run of rows in z..end whose bands have the block of columns in their windows, from the first such row on:
// zb..ze, or false if there is none. `window` holds the bands' windows from band `first` on.
DEVICE bool next_run(const Window *window, int first, int block, int z, int end, int &zb, int &ze) {
    while (z < end && !inside(window[z / BLOCK - first], block)) z = (z / BLOCK + 1) * BLOCK;
    zb = ze = z;
    while (ze < end && inside(window[ze / BLOCK - first], block)) ze = (ze / BLOCK + 1) * BLOCK;
    ze = ze < end ? ze : end;
    return zb < ze;
}

// Samples of the receivers are read off in the step after, when the field lies still.
template <class T> DEVICE void record(const Params &P, int s, int m, int r, T value) {
    ((T *)P.data)[((i64)s * P.nt + m) * P.receivers + r] = value;
}

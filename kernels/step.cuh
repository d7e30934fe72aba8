// One launch a step, fields in global memory: the ladder's first rung, and what runs where clusters do not.
//
// A thread marches down R rows of a column 16 bytes wide; blocks of threads are dealt out over the columns of all
// shots of the launch. Receivers of step m - 1 are read off in the launch of step m, when that field lies still.
#pragma once
#include "march.cuh"

#define STEP_ROWS 4

// The part of a shot that a thread of a launch works on: rows begin..end of columns x..x + W.
template <class T> struct Item {
    int s, begin, end, x, index, per_shot;
    DEVICE Item of(const Params &P) {
        const int W = Vec<T>::W, nq = (P.cols + W - 1) / W;
        Item it;
        it.per_shot = nq * ((P.rows + STEP_ROWS - 1) / STEP_ROWS);
        const int blocks = (it.per_shot + blockDim.x - 1) / blockDim.x;
        it.s = blockIdx.x / blocks;
        it.index = (blockIdx.x % blocks) * blockDim.x + threadIdx.x;
        it.begin = it.index < it.per_shot ? it.index / nq * STEP_ROWS : P.rows;
        it.end = it.begin + STEP_ROWS < P.rows ? it.begin + STEP_ROWS : P.rows;
        it.x = it.index % nq * W;
        return it;
    }

    // The rows from z on that are in the step's window.
    __device__ __forceinline__ bool run(const Params &P, int z, int &zb, int &ze) const {
        const int bins = (P.nt + BIN - 1) / BIN, bands = (P.rows + BLOCK - 1) / BLOCK;
        if (P.causal) return next_run(P.window + ((i64)s * bins + P.step / BIN) * bands, 0, x / BLOCK, z, end, zb, ze);
        zb = z;
        ze = end;
        return zb < ze;
    }
};

// Both fields of a shot: [0] of odd steps' `now`, as in the other kernels.
template <class T> struct Fields {
    Torus<T> now, next;
    DEVICE Fields of(const Params &P, void *fields, int s, int m) {
        const i64 len = (i64)P.rows * P.stride;
        T *base = (T *)fields + 2 * len * s;
        Fields f = {{base + (m % 2 == 0 ? len : 0), P.stride, P.rows}, {base + (m % 2 == 0 ? 0 : len), P.stride, P.rows}};
        return f;
    }
};

template <class T> DEVICE void record_last(const Params &P, const Item<T> &it, const Torus<T> &field, int m) {
    const int threads = (it.per_shot + blockDim.x - 1) / blockDim.x * blockDim.x;
    for (int r = it.index; r < P.receivers; r += threads)
        record(P, it.s, m, r, field.row(P.receiver[2 * r])[P.receiver[2 * r + 1]]);
}

template <class T, class H, bool ADJOINT> DEVICE void step_shot(const Params &P) {
    const Item<T> it = Item<T>::of(P);
    const int m = P.step, s = it.s, model = s / P.shots;
    const Fields<T> f = Fields<T>::of(P, P.fields, s, m);
    if (!ADJOINT && m > 0) record_last(P, it, f.now, m - 1);
    if (m >= P.nt) return; // step nt only records
    Shot<T, H> shot;
    shot.alpha = (const T *)P.alpha + model * P.nz * P.nx;
    shot.inverse = (const T *)P.inverse + model * P.nz * P.nx;
    shot.kappa = (const T *)P.kappa + model * P.pad;
    shot.source_row = P.source[2 * s];
    shot.source_column = P.source[2 * s + 1];
    shot.history = (H *)P.history + (i64)s * P.levels * P.rows * P.hstride;
    shot.sums = (T *)P.sums + (i64)s * P.rows * P.hstride;
    StepOf<T> step;
    step.level = P.history == 0 ? -1 : P.level[m];
    step.weight = P.history == 0 ? T(0) : T(P.weight[m]);
    step.sample = m < P.wavelet ? ((const T *)P.injection)[s * P.wavelet + m] : T(0);
    step.m = m;
    step.s = s;
    T damped = T(0);
    int zb, ze;
    for (int z = it.begin; it.run(P, z, zb, ze); z = ze)
        damped += march<T, H, STEP_ROWS, ADJOINT>(P, shot, step, f.now, f.next, Alone(), zb, ze, it.x);
    if (ADJOINT) P.damped[(i64)s * P.parts + it.index] += (double)damped; // each thread has a place of its own
}

// Born: a step of the perturbation with the scattering of the background, and one of the background.
//   dp+ = step(dp) + d_alpha A p + d_kappa (p- - p)
template <class T> DEVICE void born_shot(const Params &P) {
    const int W = Vec<T>::W;
    const Item<T> it = Item<T>::of(P);
    const int m = P.step, s = it.s, model = s / P.shots;
    const Fields<T> d = Fields<T>::of(P, P.fields, s, m), f = Fields<T>::of(P, P.background, s, m);
    if (m > 0) record_last(P, it, d.now, m - 1);
    if (m >= P.nt) return;
    const T *alpha = (const T *)P.alpha + model * P.nz * P.nx, *kappa = (const T *)P.kappa + model * P.pad;
    const T *d_alpha = (const T *)P.d_alpha + model * P.nz * P.nx, *d_kappa = (const T *)P.d_kappa + model * P.pad;
    const T sample = m < P.wavelet ? ((const T *)P.injection)[s * P.wavelet + m] : T(0);
    const T d_sample = m < P.wavelet ? ((const T *)P.d_injection)[s * P.wavelet + m] : T(0);
    Coefficients<T> c = Coefficients<T>::none(), dc = Coefficients<T>::none();
    const bool end = at_end<T>(it.x, P.cols);
    int zb, ze;
    if (!it.run(P, it.begin, zb, ze)) return; // STEP_ROWS divides BLOCK: there is one run at most
    for (int z = zb; z < ze; ++z) {
        Column<T> over, under;
        over.begin(d.now, z, it.x);
        under.begin(f.now, z, it.x);
        Vec<T> unused;
        const Vec<T> d_lap = over.sum(d.now, z, it.x, unused), lap = under.sum(f.now, z, it.x, unused);
        const Vec<T> d_before = load(d.next.row(z) + it.x), before = load(f.next.row(z) + it.x);
        c.of(P, alpha, kappa, z, it.x);
        dc.of(P, d_alpha, d_kappa, z, it.x);
        Vec<T> dp, p;
#pragma unroll
        for (int j = 0; j < W; ++j) {
            const T a = c.alpha.v[j], centre = c.centre.v[j], rest = c.rest.v[j], now = under.now.v[j];
            p.v[j] = advance(a, centre, rest, lap.v[j], now, before.v[j]);
            const T scattered = fma_(dc.alpha.v[j], fma_(T(-5), now, lap.v[j]), kappa_at(P, d_kappa, z, it.x + j) * (before.v[j] - now));
            dp.v[j] = advance(a, centre, rest, d_lap.v[j], over.now.v[j], d_before.v[j]) + scattered;
        }
        if (z == P.source[2 * s]) {
            inject_source(p, it.x, P.source[2 * s + 1], sample);
            inject_source(dp, it.x, P.source[2 * s + 1], d_sample);
        }
        put(f.next.row(z), it.x, P.cols, end, p);
        put(d.next.row(z), it.x, P.cols, end, dp);
    }
}

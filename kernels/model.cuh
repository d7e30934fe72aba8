// What is made of a model before any wave runs: coefficients, source functions, causal windows.
#pragma once
#include "common.cuh"

// alpha = (v dt / dx)^2, rounded step by step in T as the data's makers did; kappa = dt vmin damping. Threads are dealt
// out over the cells, sponge depths and source samples of all models.
template <class T> DEVICE void prepare_models(const Params &P, bool born) {
    const int cells = P.nz * P.nx, per_model = cells + P.pad + P.shots * P.wavelet;
    const int i = blockIdx.x * blockDim.x + threadIdx.x, model = i / per_model;
    if (model >= P.models) return;
    int k = i - model * per_model;
    const double *v = P.vp + model * cells, *dv = P.dvp + model * cells;
    if (k < cells) {
        const T courant = T(v[k]) * T(P.dt) / T(P.dx);
        ((T *)P.alpha)[model * cells + k] = courant * courant;
        ((T *)P.inverse)[model * cells + k] = T(1) / (courant * courant);
        if (born) ((T *)P.d_alpha)[model * cells + k] = T(2.0 * (P.dt / P.dx) * (P.dt / P.dx) * v[k] * dv[k]);
        return;
    }
    k -= cells;
    if (k < P.pad) {
        ((T *)P.kappa)[model * P.pad + k] = T(P.dt * P.vmin[model] * P.damping[k]);
        if (born) ((T *)P.d_kappa)[model * P.pad + k] = T(P.dt * P.dvmin[model] * P.damping[k]);
        return;
    }
    k -= P.pad;
    const int s = model * P.shots + k / P.wavelet, sample = k % P.wavelet;
    const int cell = (P.source[2 * s] - P.pad) * P.nx + P.source[2 * s + 1] - P.pad;
    const double w = P.ricker[sample], scale = v[cell] * P.dt;
    ((T *)P.injection)[s * P.wavelet + sample] = T(P.unit_source ? w : scale * scale * w);
    if (born) ((T *)P.d_injection)[s * P.wavelet + sample] = T(2.0 * v[cell] * dv[cell] * P.dt * P.dt * w);
}

// Blocks of BLOCK x BLOCK cells of the padded grid.
DEVICE int block_rows(const Params &P) { return (P.rows + BLOCK - 1) / BLOCK; }
DEVICE int block_columns(const Params &P) { return (P.cols + BLOCK - 1) / BLOCK; }

// Steps that the wave takes to cross each block at the block's fastest velocity; one thread a block.
DEVICE void crossing_times(const Params &P) {
    const int nz = block_rows(P), nx = block_columns(P), i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= P.models * nz * nx) return;
    const int model = i / (nz * nx), bz = i / nx % nz, bx = i % nx;
    double fastest = 0.0;
    const int z0 = clamp_(bz * BLOCK - P.pad, P.nz), x0 = clamp_(bx * BLOCK - P.pad, P.nx);
    const int last_z = (bz + 1) * BLOCK < P.rows ? (bz + 1) * BLOCK : P.rows;
    const int last_x = (bx + 1) * BLOCK < P.cols ? (bx + 1) * BLOCK : P.cols;
    const int z1 = clamp_(last_z - 1 - P.pad, P.nz), x1 = clamp_(last_x - 1 - P.pad, P.nx);
    for (int z = z0; z <= z1; ++z)
        for (int x = x0; x <= x1; ++x) fastest = fmax(fastest, P.vp[(model * P.nz + z) * P.nx + x]);
    P.crossing[i] = BLOCK * P.dx / (fastest * P.dt);
}

// First arrivals over the blocks of the torus: the upwind solution of |grad t| = h, relaxed in place of the CPU's fast
// sweeping (both reach the one fixed point). One block of threads a model and target: a source, or all receivers.
DEVICE void travel_times(const Params &P) {
    const int nz = block_rows(P), nx = block_columns(P), n = nz * nx, targets = P.shots + 1;
    const int model = blockIdx.x / targets, target = blockIdx.x % targets;
    const double *h = P.crossing + model * n, infinity = 1e300;
    double *now = P.travel + (i64)blockIdx.x * n, *next = P.scratch + (i64)blockIdx.x * n;
    for (int i = threadIdx.x; i < n; i += blockDim.x) now[i] = infinity;
    __syncthreads();
    if (target < P.shots) {
        const int *p = P.source + 2 * (model * P.shots + target);
        if (threadIdx.x == 0) now[p[0] / BLOCK * nx + p[1] / BLOCK] = 0.0;
    } else {
        for (int r = threadIdx.x; r < P.receivers; r += blockDim.x)
            now[P.receiver[2 * r] / BLOCK * nx + P.receiver[2 * r + 1] / BLOCK] = 0.0;
    }
    __syncthreads();
    for (;;) {
        int changed = 0;
        for (int i = threadIdx.x; i < n; i += blockDim.x) {
            const int z = i / nx, x = i % nx;
            const double a = fmin(now[(z == 0 ? nz - 1 : z - 1) * nx + x], now[(z + 1 == nz ? 0 : z + 1) * nx + x]);
            const double b = fmin(now[z * nx + (x == 0 ? nx - 1 : x - 1)], now[z * nx + (x + 1 == nx ? 0 : x + 1)]);
            const double low = fmin(a, b), gap = fmax(a, b) - low;
            const double t = gap >= h[i] ? low + h[i] : 0.5 * (2.0 * low + gap + sqrt(2.0 * h[i] * h[i] - gap * gap));
            const bool sooner = t < now[i] - 1e-9;
            next[i] = sooner ? t : now[i];
            changed |= sooner;
        }
        changed = __syncthreads_or(changed);
        double *swap = now;
        now = next;
        next = swap;
        if (!changed) break;
    }
    double *out = P.travel + (i64)blockIdx.x * n;
    for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = now[i];
}

// The blocks that matter in a bin of steps, a thread a shot, bin and band: the wave can have reached them and can still
// reach a receiver, with a slack of three block crossings (the CPU's windows have the same). The shortest interval on
// the circle that holds them.
DEVICE void causal_windows(const Params &P) {
    const int nz = block_rows(P), nx = block_columns(P), n = nz * nx, bins = (P.nt + BIN - 1) / BIN;
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= P.models * P.shots * bins * nz) return;
    const int s = i / (bins * nz), bin = i / nz % bins, band = i % nz, model = s / P.shots;
    const double *from = P.travel + ((i64)model * (P.shots + 1) + s % P.shots) * n + band * nx;
    const double *to = P.travel + ((i64)model * (P.shots + 1) + P.shots) * n + band * nx;
    const double *h = P.crossing + model * n + band * nx;
    const double latest = (double)(bin * BIN) + BIN, longest = (double)P.nt - bin * BIN;
    int first = -1, best = 0, gap_begin = 0, run = 0;
    for (int k = 0; k < 2 * nx && (first < 0 ? k < nx : k <= first + nx); ++k) {
        const int x = k < nx ? k : k - nx;
        const bool alive = from[x] <= latest + 3.0 * h[x] && to[x] <= longest + 3.0 * h[x];
        if (first < 0) {
            if (alive) first = k;
        } else if (alive) {
            if (run > best) {
                best = run;
                gap_begin = k - run;
            }
            run = 0;
        } else {
            ++run;
        }
    }
    Window w = {0, 0, 0, 0};
    if (first >= 0) {
        const int begin = best == 0 ? 0 : (gap_begin + best) % nx, end = begin + nx - best;
        w.begin0 = (u16)begin;
        w.end0 = (u16)(end < nx ? end : nx);
        if (end > nx) w.end1 = (u16)(end - nx);
    }
    P.window[i] = w;
}

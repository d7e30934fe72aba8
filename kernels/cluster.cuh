// All time steps of a shot in one launch: a cluster of eight blocks holds both fields in its distributed shared memory.
//
// Block r of a cluster has rows [r rows / 8, (r + 1) rows / 8) and two rows of halo above and below. A thread marches
// down up to R rows of a column 16 bytes wide. Whoever computes one of a block's two outer rows also writes it to the
// neighbour's halo, into the field that nobody reads in that step, so that one cluster barrier a step is enough.
//
// Shared memory: fields (2, local rows + 4, stride), kappa (pad), sums (local rows, hstride) if they fit, and what a
// bin of 16 steps needs: windows, weights, levels, source samples.
#pragma once
#include "march.cuh"

// Clusters came with compute capability 9.0; from 12.0 on (GeForce) a block has 99 KB of shared memory, too little.
#if defined(__CUDA_HOST_SHIM__) || (__CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200)
#define HAS_CLUSTERS

// Most rows of a block of a cluster.
DEVICE int local_rows(int rows) { return (rows + CLUSTER - 1) / CLUSTER; }

// Copies rows at a block's edges to the neighbours' halos.
template <class T> struct Neighbours {
    T *written; // the field that is written, here and there
    int rank, first, end, grid_rows, stride;
    __device__ __forceinline__ void operator()(int z, int x, const Vec<T> &p) const {
        const int W = Vec<T>::W;
        if (z - first >= 2 && end - z > 2) return;
        if (z - first < 2) {
            const int up = (rank + CLUSTER - 1) % CLUSTER;
            const int rows = (up + 1) * grid_rows / CLUSTER - up * grid_rows / CLUSTER;
            store((T *)__cluster_map_shared_rank(written + (rows + 2 + z - first) * stride + W + x, up), p);
        }
        if (end - z <= 2)
            store((T *)__cluster_map_shared_rank(written + (z - end + 2) * stride + W + x, (rank + 1) % CLUSTER), p);
    }
};

// What every step of a bin needs, in shared memory.
template <class T> struct Bin {
    T weight[BIN], sample[BIN];
    int level[BIN];
};

DEVICE void cluster_sync() {
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
}

// Reads the block's receivers off the field of step m. `own` is the cell of the thread's first receiver or -1: the only one
// on all usual acquisitions.
template <class T> DEVICE void record_block(const Params &P, int s, int m, const Local<T> &field, int end, int own) {
    if (own >= 0) record(P, s, m, threadIdx.x, field.base[own]);
    for (int r = threadIdx.x + blockDim.x; r < P.receivers; r += blockDim.x) {
        const int z = P.receiver[2 * r];
        if (z >= field.first && z < end) record(P, s, m, r, field.row(z)[P.receiver[2 * r + 1]]);
    }
}

template <class T, class H, int R, bool ADJOINT> DEVICE void cluster_shot(const Params &P, char *memory) {
    const int rank = __clusterRelativeBlockRank(), s = blockIdx.x / CLUSTER, model = s / P.shots;
    const int tid = threadIdx.x, threads = blockDim.x, W = Vec<T>::W;
    const int first = rank * P.rows / CLUSTER, end = (rank + 1) * P.rows / CLUSTER, rows = end - first;

    // two spare vectors end a field: the last row's last column looks beyond it
    const int field_len = (local_rows(P.rows) + 4) * P.stride + 2 * W;
    T *fields = (T *)memory;
    T *kappa = fields + 2 * field_len;
    T *sums = kappa + (P.pad + W - 1) / W * W;
    char *rest = (char *)(sums + (ADJOINT && P.sums_shared ? local_rows(P.rows) * P.hstride : 0));
    Bin<T> &bin = *(Bin<T> *)rest;
    Window *window = (Window *)(rest + sizeof(Bin<T>));

    T *kept_sums = (T *)P.sums + ((i64)s * P.rows + first) * P.hstride;
    for (int i = tid; i < 2 * field_len; i += threads) fields[i] = T(0);
    for (int i = tid; i < P.pad; i += threads) kappa[i] = ((const T *)P.kappa)[model * P.pad + i];
    if (ADJOINT) {
        if (!P.sums_shared) sums = kept_sums;
        for (int i = tid; i < rows * P.hstride; i += threads) sums[i] = T(0);
    }

    Shot<T, H> shot;
    shot.alpha = (const T *)P.alpha + model * P.nz * P.nx;
    shot.inverse = (const T *)P.inverse + model * P.nz * P.nx;
    shot.kappa = kappa;
    shot.source_row = P.source[2 * s];
    shot.source_column = P.source[2 * s + 1];
    shot.history = (H *)P.history + (i64)s * P.levels * P.rows * P.hstride;
    shot.sums = sums - first * P.hstride;

    const int my_row = tid < P.receivers ? P.receiver[2 * tid] : -1;
    const int my_cell = my_row >= first && my_row < end ? (my_row - first + 2) * P.stride + W + P.receiver[2 * tid + 1] : -1;
    const int nq = (P.cols + W - 1) / W, bands = (P.rows + BLOCK - 1) / BLOCK;
    const int first_band = first / BLOCK;
    const int groups = (rows + R - 1) / R, my_group = tid / nq, my_q = tid % nq;
    double damped = 0.0;
    cluster_sync();

    for (int n = 0; n < P.nt; ++n) {
        const int m = ADJOINT ? P.nt - 1 - n : n, b = m / BIN;
        if (n == 0 || (ADJOINT ? m + 1 : m) % BIN == 0) {
            for (int i = tid; i < BIN && b * BIN + i < P.nt; i += threads) {
                const int k = b * BIN + i;
                bin.level[i] = P.history == 0 ? -1 : P.level[k];
                bin.weight[i] = P.history == 0 ? T(0) : T(P.weight[k]);
                bin.sample[i] = k < P.wavelet ? ((const T *)P.injection)[s * P.wavelet + k] : T(0);
            }
            const int bins = (P.nt + BIN - 1) / BIN;
            for (int i = tid; i <= (end - 1) / BLOCK - first_band; i += threads) {
                Window all = {0, 65535, 0, 0};
                window[i] = P.causal ? P.window[((i64)s * bins + b) * bands + first_band + i] : all;
            }
            __syncthreads();
        }
        T *now = fields + (m % 2 == 0 ? field_len : 0), *next = fields + (m % 2 == 0 ? 0 : field_len);
        const Local<T> field = {now, P.stride, first}, out = {next, P.stride, first};
        if (!ADJOINT && m > 0) record_block(P, s, m - 1, field, end, my_cell);
        const Neighbours<T> share = {next, rank, first, end, P.rows, P.stride};
        StepOf<T> step;
        step.level = bin.level[m % BIN];
        step.weight = bin.weight[m % BIN];
        step.sample = bin.sample[m % BIN];
        step.m = m;
        step.s = s;
        T sum = T(0);
        for (int g = my_group, q = my_q; g < groups;) {
            const int bottom = first + (g + 1) * R < end ? first + (g + 1) * R : end;
            int zb, ze;
            for (int z = first + g * R; next_run(window, first_band, q * W / BLOCK, z, bottom, zb, ze); z = ze)
                sum += march<T, H, R, ADJOINT>(P, shot, step, field, out, share, zb, ze, q * W);
            q += threads;
            while (q >= nq) q -= nq, ++g;
        }
        damped += (double)sum;
        cluster_sync();
    }

    if (!ADJOINT) {
        const Local<T> last = {fields + ((P.nt - 1) % 2 == 0 ? 0 : field_len), P.stride, first};
        record_block(P, s, P.nt - 1, last, end, my_cell);
        return;
    }
    if (P.sums_shared)
        for (int i = tid; i < rows * P.hstride; i += threads) kept_sums[i] = sums[i];
    __syncthreads();
    // a fixed order of additions: results must not depend on who came first
    double *parts = (double *)memory;
    parts[tid] = damped;
    __syncthreads();
    if (tid == 0) {
        double total = 0.0;
        for (int i = 0; i < threads; ++i) total += parts[i];
        P.damped[s * P.parts + rank] = total;
    }
}
#endif

// From data to the adjoint's source, and from the adjoint's sums to the gradient. All in double, whatever the field.
#pragma once
#include "common.cuh"

// A section of the low-pass over one trace, y[t] = g (x[t] + 2 x[t-1] + x[t-2]) - a1 y[t-1] - a2 y[t-2] from rest, both
// sections at once, forwards or backwards in time.
DEVICE void filter_trace(const Params &P, double *e, int samples, int stride, bool backwards) {
    double z1 = 0.0, z2 = 0.0, w1 = 0.0, w2 = 0.0;
    for (int i = 0; i < samples; ++i) {
        double *at = e + (i64)(backwards ? samples - 1 - i : i) * stride;
        const double x = P.filter[0] * *at, y = x + z1;
        z1 = 2.0 * x - P.filter[1] * y + z2;
        z2 = x - P.filter[2] * y;
        const double u = P.filter[3] * y, v = u + w1;
        w1 = 2.0 * u - P.filter[4] * v + w2;
        w2 = u - P.filter[5] * v;
        *at = v;
    }
}

// Value and derivative of a misfit that is a sum of one function of every residual.
DEVICE double pointwise(const Params &P, double e, double &derivative) {
    switch (P.misfit) {
    case L1: {
        const double root = sqrt(e * e + P.misfit_a * P.misfit_a);
        derivative = e / root;
        return root - P.misfit_a;
    }
    case HUBER:
        if (fabs(e) <= P.misfit_a) {
            derivative = e;
            return 0.5 * e * e;
        }
        derivative = e < 0.0 ? -P.misfit_a : P.misfit_a;
        return P.misfit_a * (fabs(e) - 0.5 * P.misfit_a);
    case STUDENT: {
        const double scale2 = P.misfit_b * P.misfit_a * P.misfit_a;
        derivative = e / (1.0 + e * e / scale2);
        return 0.5 * scale2 * log1p(e * e / scale2);
    }
    default:
        derivative = e;
        return 0.5 * e * e;
    }
}

// A trace a thread: residual, misfit, derivative. Traces that do not count have derivative zero.
template <class T> DEVICE void misfit_trace(const Params &P) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= P.models * P.shots * P.receivers) return;
    const int s = i / P.receivers, r = i % P.receivers, nr = P.receivers;
    const T *data = (const T *)P.data + (i64)s * P.nt * nr + r;
    const double *gather = (const double *)P.observed[s / P.shots];
    const double *observed = gather + (i64)(P.first_shot + s % P.shots) * P.nt * nr + r;
    double *derivative = P.residual + (i64)s * P.nt * nr + r;
    const int samples = P.misfit == LINEAR ? P.nt : P.live[i] ? P.samples[s / P.shots] : 0;
    double value = 0.0, squares = 0.0, product = 0.0;
    for (int t = 0; t < P.nt; ++t) {
        const i64 k = (i64)t * nr;
        double d = 0.0;
        if (t < samples && P.misfit == LINEAR) {
            d = observed[k];
            value += (double)data[k] * d;
        } else if (t < samples) {
            const double e = (double)data[k] - observed[k];
            squares += e * e;
            d = e;
            if (P.misfit != LOWPASS) value += pointwise(P, e, d);
        }
        derivative[k] = d;
    }
    if (P.misfit == LOWPASS) {
        filter_trace(P, derivative, samples, nr, false);
        filter_trace(P, derivative, samples, nr, true);
        for (int t = 0; t < samples; ++t) value += 0.5 * derivative[(i64)t * nr] * derivative[(i64)t * nr];
        filter_trace(P, derivative, samples, nr, false);
        filter_trace(P, derivative, samples, nr, true);
    }
    for (int t = 0; t < samples; ++t) product += (double)data[(i64)t * nr] * derivative[(i64)t * nr];
    P.trace[3 * i] = value;
    P.trace[3 * i + 1] = squares;
    P.trace[3 * i + 2] = product;
}

// The adjoint's source, times alpha, on the rows of the map that hold receivers: a thread a shot and sample, which adds
// the receivers in their order.
template <class T> DEVICE void scatter_residual(const Params &P) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= P.models * P.shots * P.nt) return;
    const int s = i / P.nt, model = s / P.shots;
    T *inject = (T *)P.inject + (i64)i * P.inject_rows * P.nx;
    for (int k = 0; k < P.inject_rows * P.nx; ++k) inject[k] = T(0);
    for (int r = 0; r < P.receivers; ++r) {
        const int z = P.receiver[2 * r] - P.pad, x = P.receiver[2 * r + 1] - P.pad;
        const double alpha = (double)((const T *)P.alpha)[(model * P.nz + z) * P.nx + x];
        inject[(z - P.inject_row) * P.nx + x] += T(P.residual[(i64)i * P.receivers + r] * alpha);
    }
}

// Sums of the padded grid's cells over the map's cells that they repeat: a block of threads a shot and row of the map,
// a thread (in turns) a column. The columns' sums pass through shared memory: cols doubles.
template <class T> DEVICE void fold_row(const Params &P, double *column) {
    const int s = blockIdx.x / P.nz, row = blockIdx.x % P.nz;
    const int begin = row == 0 ? 0 : row + P.pad, end = row == P.nz - 1 ? P.rows : row + P.pad + 1;
    const T *sums = (const T *)P.sums + (i64)s * P.rows * P.hstride;
    for (int x = threadIdx.x; x < P.cols; x += blockDim.x) {
        double total = 0.0;
        for (int z = begin; z < end; ++z) total += (double)sums[(i64)z * P.hstride + x];
        column[x] = total;
    }
    __syncthreads();
    double *folded = P.folded + ((i64)s * P.nz + row) * P.nx;
    for (int x = threadIdx.x; x < P.nx; x += blockDim.x) {
        double total = column[x + P.pad];
        if (x == 0)
            for (int k = 0; k < P.pad; ++k) total += column[k];
        if (x == P.nx - 1)
            for (int k = P.pad + P.nx; k < P.cols; ++k) total += column[k];
        folded[x] = total;
    }
}

// dJ/dv = 2/v alpha dJ/dalpha and dJ/dvmin of every shot, its misfit and squared residuals: a thread a number.
DEVICE void shot_gradient(const Params &P) {
    const int cells = P.nz * P.nx, n = cells + 3, i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= P.models * P.shots * n) return;
    const int s = i / n, model = s / P.shots, k = i % n;
    const double *trace = P.trace + (i64)3 * s * P.receivers;
    double total = 0.0;
    if (k < cells) {
        total = P.folded[(i64)s * cells + k];
        for (int r = 0; r < P.receivers; ++r)
            if ((P.receiver[2 * r] - P.pad) * P.nx + P.receiver[2 * r + 1] - P.pad == k) total += trace[3 * r + 2];
        total *= 2.0 / P.vp[model * cells + k];
    } else if (k == cells) {
        for (int part = 0; part < P.parts; ++part) total += P.damped[(i64)s * P.parts + part];
        total /= P.vmin[model];
    } else {
        for (int r = 0; r < P.receivers; ++r) total += trace[3 * r + k - cells - 1];
    }
    P.gradient[i] = total;
}

// What all kernels share: parameters, vectors of 16 bytes, and the cell update.
//
// One step, all shifts periodic over the padded grid of rows x cols cells:
//
//   p+ = (2 - 5 alpha - kappa) p - (1 - kappa) p- + alpha (4/3 sum of +-1 neighbours - 1/12 sum of +-2 neighbours)
//
// `field` holds p; `out` holds p- before and p+ after. With mu = alpha lambda the adjoint obeys the same recursion
// backwards in time, so the update is written once, here, and shared by forward, Born and adjoint.
//
// Sources are header-free (nvcc, NVRTC and, through tests/shim, a C++ compiler take them). Products and sums are
// contracted only where fma_ says so (compile with -fmad=false), which makes f32 results those of the CPU's kernels.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned long long u64;
typedef long long i64; // long has 32 bits on some systems

#ifndef SHARED
#define SHARED(name) extern __shared__ __align__(16) char name[]
#endif
#define DEVICE static __device__ __forceinline__
// rows and columns of a block of cells in the causal windows, and steps that share a window
#define BLOCK 8
#define BIN 16
// blocks a cluster
#define CLUSTER 8

enum Misfit { L2, L1, HUBER, STUDENT, LOWPASS, LINEAR };

// Two intervals [begin, end) of blocks of columns: an interval on the circle.
struct __align__(8) Window {
    u16 begin0, end0, begin1, end1;
};

// The only parameter of every kernel. A launch works on `models` models of `shots` shots each; s counts all shots
// of the launch. Pointers to T are to the kernel's floating-point type, to H to that of the stored history.
struct Params {
    // acquisition; the rows and columns are those of the padded grid
    int nz, nx, pad, rows, cols, nt;
    int models, shots, receivers, wavelet;
    int unit_source; // the wavelet is added as it is, not times (v dt)^2
    int causal;      // windows are used
    int stride;      // T from a row of a field to the next
    int hstride;     // H from a row of the history, and T from a row of the sums, to the next
    int levels;      // of the history
    int misfit;
    int inject_row, inject_rows; // rows of the map that hold receivers
    int sums_shared;             // the sums are kept in shared memory till the end
    int parts;                   // of `damped`
    int step;                    // one-launch-a-step kernels
    int first_shot;              // of the launch, within a gather
    double dt, dx;
    double history_unit;       // of the stored numbers: a power of two, 1 but for half precision
    double misfit_a, misfit_b; // the misfit's parameters
    double filter[6];          // two sections of gain, a1, a2
    const int *source;     // (s, 2): row and column
    const int *receiver;   // (receivers, 2): the same
    const double *ricker;  // (wavelet)
    const double *damping; // (pad): damping rate per m/s by depth into the sponge
    // models
    const double *vp;   // (models, nz, nx), m/s
    const double *vmin; // (models)
    const double *dvp;  // Born: the direction
    const double *dvmin;
    void *alpha;     // T (models, nz, nx)
    void *inverse;   // T: 1 / alpha
    void *kappa;     // T (models, pad), by depth into the sponge
    void *d_alpha;   // Born: their perturbations
    void *d_kappa;
    void *injection; // T (s, wavelet): what the source adds to the field
    void *d_injection;
    // causal windows
    double *crossing; // (models, blocks): steps to cross a block
    double *travel;   // (models, shots + 1, blocks): arrivals in steps from every source, and to the receivers
    double *scratch;  // as travel
    Window *window;   // (s, bins, bands)
    // fields
    void *fields;     // one-launch-a-step kernels: T (s, 2, rows, stride); for Born the perturbation's
    void *background; // Born: T (s, 2, rows, stride)
    void *data;       // T (s, nt, receivers)
    // history: p_m times its weight in the gradient's sums, in units of `history_unit`
    const double *weight; // (nt): in these units, 0 where nothing is stored
    const int *level;     // (nt), -1 there
    void *history;        // H (s, levels, rows, hstride); none is kept where this is null
    // misfit and adjoint
    const u64 *observed;    // (models): where the gather (shots of the survey, nt, receivers) lies
    const u8 *live;         // (s, receivers)
    const int *samples;     // (models): samples that count
    double *residual;       // (s, nt, receivers): derivative of the misfit by the data
    double *trace;          // (s, receivers, 3): misfit, sum of squared residuals, <synthetic, derivative>
    void *inject;           // T (s, nt, inject_rows, nx): residual times alpha
    void *sums;             // T (s, rows, hstride)
    double *damped;         // (s, parts): sum p_m (lambda_(m+2) - lambda_(m+1)) kappa
    double *folded;         // (s, nz, nx)
    double *gradient;       // (s, nz nx + 3): by every cell, by vmin; misfit; sum of squared residuals
};

DEVICE float fma_(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE double fma_(double a, double b, double c) { return fma(a, b, c); }

// 16 bytes of T: what a thread loads and stores at once.
template <class T> struct __align__(16) Vec {
    static const int W = 16 / sizeof(T);
    T v[16 / sizeof(T)];
};
// Two cells beside a vector.
template <class T> struct __align__(2 * sizeof(T)) Pair {
    T a, b;
};

template <class T> DEVICE Vec<T> load(const T *p) { return *(const Vec<T> *)p; }
template <class T> DEVICE void store(T *p, const Vec<T> &x) { *(Vec<T> *)p = x; }

// Half-precision history (IEEE binary16 in a 16-bit integer).
struct half_t {
    u16 bits;
};
#ifdef __CUDA_HOST_SHIM__
DEVICE half_t to_half(float x) {
    _Float16 h = (_Float16)x;
    half_t r;
    __builtin_memcpy(&r, &h, 2);
    return r;
}
DEVICE float from_half(half_t x) {
    _Float16 h;
    __builtin_memcpy(&h, &x, 2);
    return (float)h;
}
#else
DEVICE half_t to_half(float x) {
    half_t r;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r.bits) : "f"(x));
    return r;
}
DEVICE float from_half(half_t x) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x.bits));
    return r;
}
#endif

// A vector's worth of the history, in and out; full precision is stored as it is.
template <class T> DEVICE void keep(T *to, const Vec<T> &x) { store(to, x); }
template <class T> DEVICE Vec<T> recall(const T *from, T) { return load(from); }
struct __align__(8) Half4 {
    half_t v[4];
};
DEVICE void keep(half_t *to, const Vec<float> &x) {
    Half4 h;
#pragma unroll
    for (int j = 0; j < 4; ++j) h.v[j] = to_half(x.v[j]);
    *(Half4 *)to = h;
}
DEVICE Vec<float> recall(const half_t *from, float unit) {
    Half4 h = *(const Half4 *)from;
    Vec<float> x;
#pragma unroll
    for (int j = 0; j < 4; ++j) x.v[j] = from_half(h.v[j]) * unit;
    return x;
}

DEVICE int clamp_(int i, int n) { return i < 0 ? 0 : i < n ? i : n - 1; }

// Depth into the sponge by row or column, -1 in the map's range.
DEVICE int sponge_depth(int i, int pad, int n) { return i < pad ? pad - 1 - i : i >= pad + n ? i - pad - n : -1; }

// 4/3 sum of +-1 neighbours - 1/12 sum of +-2 neighbours.
template <class T> DEVICE T neighbours(T l2, T l1, T r1, T r2, T u2, T u1, T d1, T d2) {
    T near = (l1 + r1) + (u1 + d1), far = (l2 + r2) + (u2 + d2);
    return fma_(T(4.0 / 3.0), near, T(-1.0 / 12.0) * far);
}

// The update of a cell: lap from `neighbours`, centre = 2 - 5 alpha - kappa, rest = 1 - kappa.
template <class T> DEVICE T advance(T alpha, T centre, T rest, T lap, T now, T before) {
    return fma_(alpha, lap, fma_(centre, now, -(rest * before)));
}

// Coefficients of a vector of cells in one row. Outside the map alpha repeats its edge; the side strips' damping takes
// the whole height, that of the top and bottom strips only the columns between them.
template <class T> struct Coefficients {
    Vec<T> alpha, centre, rest;
    int alpha_until, until; // last rows that alpha, and the others, hold for

    DEVICE Coefficients none() {
        Coefficients c;
        c.alpha_until = c.until = -1;
        return c;
    }

    // For row z and columns x..x + W, after the row before or none.
    __device__ __forceinline__ void of(const Params &P, const T *alpha_map, const T *kappa_table, int z, int x) {
        if (z <= until) return;
        const int W = Vec<T>::W, left = x - P.pad;
        const bool inner = left >= 0 && left + W <= P.nx; // all columns are the map's
        if (z > alpha_until) {
            alpha_until = z < P.pad ? P.pad : z < P.pad + P.nz - 1 ? z : P.rows;
            const T *a = alpha_map + clamp_(z - P.pad, P.nz) * P.nx;
            const int first = clamp_(left, P.nx), last = clamp_(left + W - 1, P.nx);
            if (first == last) {
                const T same = a[first];
#pragma unroll
                for (int j = 0; j < W; ++j) alpha.v[j] = same;
            } else if (inner) {
#pragma unroll
                for (int j = 0; j < W; ++j) alpha.v[j] = a[left + j];
            } else {
#pragma unroll
                for (int j = 0; j < W; ++j) alpha.v[j] = a[clamp_(left + j, P.nx)];
            }
        }
        const int deep = sponge_depth(z, P.pad, P.nz);
        const T down = deep < 0 ? T(0) : kappa_table[deep];
        if (inner) {
#pragma unroll
            for (int j = 0; j < W; ++j) {
                centre.v[j] = (T(2) + T(-5) * alpha.v[j]) - down;
                rest.v[j] = T(1) - down;
            }
            until = z; // between the side strips the damping changes from row to row
            return;
        }
#pragma unroll
        for (int j = 0; j < W; ++j) {
            const int across = sponge_depth(x + j, P.pad, P.nx);
            const T k = across < 0 ? down : kappa_table[across < P.pad ? across : P.pad - 1];
            centre.v[j] = (T(2) + T(-5) * alpha.v[j]) - k;
            rest.v[j] = T(1) - k;
        }
        until = left + W <= 0 || left >= P.nx ? alpha_until : z;
    }
};

// Damping of a cell of the padded grid.
template <class T> DEVICE T kappa_at(const Params &P, const T *kappa_table, int z, int x) {
    const int down = sponge_depth(z, P.pad, P.nz), across = sponge_depth(x, P.pad, P.nx);
    const int depth = across >= 0 ? across : down;
    return depth < 0 || depth >= P.pad ? T(0) : kappa_table[depth];
}

DEVICE bool inside(const Window &w, int block) {
    return (block >= w.begin0 && block < w.end0) || (block >= w.begin1 && block < w.end1);
}

// Rows of a field on one piece of memory with two rows of halo above and below (shared memory).
template <class T> struct Local {
    T *base;
    int stride, first; // row `first` of the grid is the first after the halo
    __device__ __forceinline__ T *row(int z) const { return base + (z - first + 2) * stride + Vec<T>::W; }
};

// Rows of a whole field, wrapping around (global memory).
template <class T> struct Torus {
    T *base;
    int stride, rows;
    __device__ __forceinline__ T *row(int z) const {
        z += z < 0 ? rows : 0;
        z -= z >= rows ? rows : 0;
        return base + z * stride + Vec<T>::W;
    }
};

// A column of vectors, W cells wide, that moves down a field and gives the neighbours' sum of every row.
template <class T> struct Column {
    Vec<T> up2, up1, now, down1;

    template <class Rows> __device__ __forceinline__ void begin(const Rows &field, int z, int x) {
        up2 = load(field.row(z - 2) + x);
        up1 = load(field.row(z - 1) + x);
        now = load(field.row(z) + x);
        down1 = load(field.row(z + 1) + x);
    }

    // The sums at row z; then `next` moves on.
    template <class Rows> __device__ __forceinline__ Vec<T> sum(const Rows &field, int z, int x, Vec<T> &down2) {
        const int W = Vec<T>::W;
        down2 = load(field.row(z + 2) + x);
        const T *here = field.row(z) + x;
        const Pair<T> left = *(const Pair<T> *)(here - 2), right = *(const Pair<T> *)(here + W);
        T line[Vec<T>::W + 4];
        line[0] = left.a;
        line[1] = left.b;
        line[W + 2] = right.a;
        line[W + 3] = right.b;
#pragma unroll
        for (int j = 0; j < W; ++j) line[j + 2] = now.v[j];
        Vec<T> lap;
#pragma unroll
        for (int j = 0; j < W; ++j)
            lap.v[j] = neighbours(line[j], line[j + 1], line[j + 3], line[j + 4], up2.v[j], up1.v[j], down1.v[j], down2.v[j]);
        return lap;
    }

    __device__ __forceinline__ void next(const Vec<T> &down2) {
        up2 = up1;
        up1 = now;
        now = down1;
        down1 = down2;
    }
};

// Whether a vector holds cells that have copies beyond an end of the row, or none at all beyond the grid's last.
template <class T> DEVICE bool at_end(int x, int cols) { return x < 2 || x + Vec<T>::W > cols - 2; }

// Writes the cells of a vector that exist and, at the ends of the row, the copies that wrap around.
template <class T> DEVICE void put(T *row, int x, int cols, bool end, const Vec<T> &p) {
    const int W = Vec<T>::W;
    if (!end) {
        store(row + x, p);
        return;
    }
#pragma unroll
    for (int j = 0; j < W; ++j) {
        if (x + j < cols) row[x + j] = p.v[j];
        if (x + j < 2) row[cols + x + j] = p.v[j];
        if (x + j >= cols - 2 && x + j < cols) row[x + j - cols] = p.v[j];
    }
}

// Adds what is injected into row z: the source's sample in a forward run.
template <class T> DEVICE void inject_source(Vec<T> &p, int x, int column, T sample) {
#pragma unroll
    for (int j = 0; j < Vec<T>::W; ++j)
        if (x + j == column) p.v[j] += sample;
}

// The adjoint's source: `row` is a row of the map's width.
template <class T> DEVICE void inject_row(Vec<T> &p, int x, int pad, int nx, const T *row) {
#pragma unroll
    for (int j = 0; j < Vec<T>::W; ++j) {
        const int column = x + j - pad;
        if (column >= 0 && column < nx) p.v[j] += row[column];
    }
}

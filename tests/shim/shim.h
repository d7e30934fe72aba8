// Runs CUDA kernels on the CPU as C++17, so that the sources that ship are tested where there is no GPU.
//
// Every CUDA thread is a fiber with a stack of its own. The fibers of a cluster (or of a single block) run on one
// operating system thread and switch at barriers only, in an order that can be chosen; dynamic shared memory is
// filled with NaN before each block. So a missing barrier or a read of what was never written shows as a result that
// is NaN or changes with the order. Not modelled: warps, the memory model, races within an instruction.
#pragma once
#include <cmath>

struct Dim {
    unsigned x;
};

namespace shim {
struct Fiber;
// The fiber that runs now.
extern thread_local Fiber *current;
Dim thread_index();
Dim block_index();
Dim block_size();
char *shared_memory();
void block_barrier();
int block_barrier_or(int condition);
void cluster_barrier();
unsigned rank();
// The address in another block of the cluster of what lies at `p` in this one's shared memory.
void *map_rank(const void *p, unsigned rank);
}

// first, forwards through the index; then backwards; then shuffled by `seed`
enum Order { FORWARDS, BACKWARDS, SHUFFLED };

#define __CUDA_HOST_SHIM__ 1
#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
#define SHARED(name) char *name = shim::shared_memory()
#define threadIdx (shim::thread_index())
#define blockIdx (shim::block_index())
#define blockDim (shim::block_size())
#define __syncthreads() shim::block_barrier()
#define __syncthreads_or(condition) shim::block_barrier_or(condition)
#define __cluster_barrier_arrive()
#define __cluster_barrier_wait() shim::cluster_barrier()
#define __clusterRelativeBlockRank() shim::rank()
#define __cluster_map_shared_rank(p, r) shim::map_rank(p, r)
using std::fabs;
using std::fma;
using std::fmax;
using std::fmin;
using std::log1p;
using std::sqrt;
inline float fmaf(float a, float b, float c) { return std::fma(a, b, c); }

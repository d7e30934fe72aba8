// The kernels by name. Every one takes a Params by value.
#include "cluster.cuh"
#include "misfit.cuh"
#include "model.cuh"
#include "step.cuh"

#define KERNEL extern "C" __global__ void
#define THREADS(n, blocks) __launch_bounds__(n, blocks)
#define PARAMS const __grid_constant__ Params P

KERNEL THREADS(256, 1) prepare_f32(PARAMS) { prepare_models<float>(P, false); }
KERNEL THREADS(256, 1) prepare_f64(PARAMS) { prepare_models<double>(P, false); }
KERNEL THREADS(256, 1) prepare_born_f32(PARAMS) { prepare_models<float>(P, true); }
KERNEL THREADS(256, 1) prepare_born_f64(PARAMS) { prepare_models<double>(P, true); }
KERNEL THREADS(256, 1) crossing(PARAMS) { crossing_times(P); }
KERNEL THREADS(256, 1) travel(PARAMS) { travel_times(P); }
KERNEL THREADS(256, 1) windows(PARAMS) { causal_windows(P); }

KERNEL THREADS(128, 1) misfit_f32(PARAMS) { misfit_trace<float>(P); }
KERNEL THREADS(128, 1) misfit_f64(PARAMS) { misfit_trace<double>(P); }
KERNEL THREADS(128, 1) scatter_f32(PARAMS) { scatter_residual<float>(P); }
KERNEL THREADS(128, 1) scatter_f64(PARAMS) { scatter_residual<double>(P); }
KERNEL THREADS(128, 1) fold_f32(PARAMS) {
    SHARED(sm);
    fold_row<float>(P, (double *)sm);
}
KERNEL THREADS(128, 1) fold_f64(PARAMS) {
    SHARED(sm);
    fold_row<double>(P, (double *)sm);
}
KERNEL THREADS(256, 1) gradient(PARAMS) { shot_gradient(P); }

KERNEL THREADS(128, 3) step_forward_f32(PARAMS) { step_shot<float, float, false>(P); }
KERNEL THREADS(128, 3) step_forward_f32_half(PARAMS) { step_shot<float, half_t, false>(P); }
KERNEL THREADS(128, 3) step_forward_f64(PARAMS) { step_shot<double, double, false>(P); }
KERNEL THREADS(128, 3) step_adjoint_f32(PARAMS) { step_shot<float, float, true>(P); }
KERNEL THREADS(128, 3) step_adjoint_f32_half(PARAMS) { step_shot<float, half_t, true>(P); }
KERNEL THREADS(128, 3) step_adjoint_f64(PARAMS) { step_shot<double, double, true>(P); }
KERNEL THREADS(128, 3) step_born_f32(PARAMS) { born_shot<float>(P); }
KERNEL THREADS(128, 3) step_born_f64(PARAMS) { born_shot<double>(P); }

#ifdef HAS_CLUSTERS
// Rows that a thread marches down, threads a block and blocks a multiprocessor: on OpenFWI's grid (blocks of 39 rows, 78 or
// 155 vectors a row) every thread has one column, and registers suffice without spilling (a multiprocessor's quarter
// has 512 for each lane of its warps). Plan::cluster_threads knows the numbers too.
#define CLUSTERED(name, T, H, rows, adjoint, threads, blocks)                                             \
    KERNEL __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(threads, blocks) name(PARAMS) {              \
        SHARED(sm);                                                                                       \
        cluster_shot<T, H, rows, adjoint>(P, sm);                                                         \
    }
CLUSTERED(cluster_forward_f32, float, float, 10, false, 320, 2)
CLUSTERED(cluster_forward_f32_half, float, half_t, 13, false, 256, 2)
CLUSTERED(cluster_forward_f64, double, double, 20, false, 320, 1)
CLUSTERED(cluster_adjoint_f32, float, float, 7, true, 480, 1)
CLUSTERED(cluster_adjoint_f32_half, float, half_t, 10, true, 320, 1)
CLUSTERED(cluster_adjoint_f64, double, double, 20, true, 320, 1)
#endif

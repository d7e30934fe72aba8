//! The parameter of every kernel: the same struct as `Params` in `kernels/common.cuh`, where each field is explained.

use bytemuck::{Pod, Zeroable};

/// An address on the device; 0 is none.
pub type Address = u64;

/// See the module's documentation. Fields are ordered so that no byte is padding.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
#[allow(missing_docs, reason = "kernels/common.cuh explains every field")]
pub struct Params {
    pub nz: i32,
    pub nx: i32,
    pub pad: i32,
    pub rows: i32,
    pub cols: i32,
    pub nt: i32,
    pub models: i32,
    pub shots: i32,
    pub receivers: i32,
    pub wavelet: i32,
    pub unit_source: i32,
    pub causal: i32,
    pub stride: i32,
    pub hstride: i32,
    pub levels: i32,
    pub misfit: i32,
    pub inject_row: i32,
    pub inject_rows: i32,
    pub sums_shared: i32,
    pub parts: i32,
    pub step: i32,
    pub first_shot: i32,
    pub dt: f64,
    pub dx: f64,
    pub history_unit: f64,
    pub misfit_a: f64,
    pub misfit_b: f64,
    pub filter: [f64; 6],
    pub source: Address,
    pub receiver: Address,
    pub ricker: Address,
    pub damping: Address,
    pub vp: Address,
    pub vmin: Address,
    pub dvp: Address,
    pub dvmin: Address,
    pub alpha: Address,
    pub inverse: Address,
    pub kappa: Address,
    pub d_alpha: Address,
    pub d_kappa: Address,
    pub injection: Address,
    pub d_injection: Address,
    pub crossing: Address,
    pub travel: Address,
    pub scratch: Address,
    pub window: Address,
    pub fields: Address,
    pub background: Address,
    pub data: Address,
    pub weight: Address,
    pub level: Address,
    pub history: Address,
    pub observed: Address,
    pub live: Address,
    pub samples: Address,
    pub residual: Address,
    pub trace: Address,
    pub inject: Address,
    pub sums: Address,
    pub damped: Address,
    pub folded: Address,
    pub gradient: Address,
}

/// Cells on a side of a block of the causal windows (`BLOCK`).
pub const BLOCK: usize = 8;
/// Steps that share a window (`BIN`).
pub const BIN: usize = 16;
/// Blocks of threads a cluster (`CLUSTER`).
pub const CLUSTER: u32 = 8;
/// Rows that a thread of the one-launch-a-step kernels marches down (`STEP_ROWS`).
pub const STEP_ROWS: usize = 4;
/// Threads of a block of theirs.
pub const STEP_THREADS: u32 = 128;
/// Bytes of a causal window (`Window`).
pub const WINDOW: usize = 8;

/// Numbers of the misfits (`enum Misfit`).
pub mod misfit {
    #![allow(missing_docs, reason = "named like the misfits")]
    pub const L2: i32 = 0;
    pub const L1: i32 = 1;
    pub const HUBER: i32 = 2;
    pub const STUDENT: i32 = 3;
    pub const LOWPASS: i32 = 4;
    pub const LINEAR: i32 = 5;
}

//! The propagator on NVIDIA GPUs.

pub mod runtime;

pub use runtime::{Launch, Limits, Runtime};

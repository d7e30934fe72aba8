//! The propagator on NVIDIA GPUs.

mod api;
pub mod compile;
pub mod driver;
pub mod runtime;

pub use runtime::{Launch, Limits, Runtime};

//! The propagator on NVIDIA GPUs.

mod api;
pub mod compile;
mod device;
pub mod driver;
pub mod runtime;

pub use runtime::{Launch, Limits, Runtime};

//! What the CUDA propagator asks of a device: memory and kernel launches, in order.
//!
//! [`Driver`](super::driver::Driver) is the real one. The tests have another that runs the same `.cu` sources on the
//! CPU, so that everything above this trait is checked on machines without a GPU.

use crate::Result;

/// How a kernel is launched. All grids and blocks are one-dimensional.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks; a multiple of `cluster`.
    pub blocks: u32,
    /// Threads a block.
    pub threads: u32,
    /// Blocks a cluster, which the kernel's own `__cluster_dims__` repeats; 1 for kernels without clusters.
    pub cluster: u32,
    /// Bytes of dynamic shared memory a block.
    pub shared: usize,
}

/// What a device offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Name and number for messages: "NVIDIA H100 80GB HBM3 (cuda:0)".
    pub name: String,
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// Most bytes of dynamic shared memory that a block may ask for.
    pub shared_bytes: usize,
    /// Whether the kernels with clusters are there (compute capability 9.x to 11.x; later ones of 12.x have too little
    /// shared memory a block).
    pub clusters: bool,
}

/// One device, used by one thread at a time; work is done in the order in which it is asked for.
///
/// Every method errors with [`Error::Memory`](crate::Error::Memory) when the device's memory is exhausted, and with
/// [`Error::Device`](crate::Error::Device) when the device cannot be used any more.
pub trait Runtime: Send + Sync {
    /// What the device offers.
    fn limits(&self) -> &Limits;

    /// Bytes of device memory that are free now.
    fn free_bytes(&self) -> Result<u64>;

    /// Takes `bytes` bytes of device memory, aligned to 256 bytes, contents unspecified; the address.
    fn alloc(&self, bytes: usize) -> Result<u64>;

    /// Gives memory back that [`Runtime::alloc`] took, after all work asked for so far.
    fn free(&self, address: u64);

    /// Copies to the device; returns when `from` may be reused.
    fn upload(&self, to: u64, from: &[u8]) -> Result<()>;

    /// Copies from the device after all work asked for so far; returns when `to` is filled.
    fn download(&self, from: u64, to: &mut [u8]) -> Result<()>;

    /// Sets bytes on the device to zero.
    fn clear(&self, at: u64, bytes: usize) -> Result<()>;

    /// Starts a kernel of `kernels/` whose only parameter is a struct of these bytes, passed by value.
    fn launch(&self, kernel: &str, launch: Launch, params: &[u8]) -> Result<()>;

    /// Does what `record` launches (launches and clears only). A device may record it once as a graph and replay that
    /// whenever the key is the same: callers must then launch the same kernels with the same parameters.
    fn replay(&self, key: u64, record: &mut dyn FnMut() -> Result<()>) -> Result<()>;
}

//! Networks in a child process, which a hostile or broken file may bring down without harm.
//!
//! The child is a program that calls [`serve`], such as `fwi` itself. It limits its own memory before it opens anything;
//! the parent limits its time. Both talk over a socket, the child's standard input: frames of a length (u32, little
//! endian) and so many bytes in postcard's encoding.

mod child;
mod messages;
mod parent;

pub use child::serve;
pub use parent::Isolated;

use std::time::Duration;

/// What a child may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerLimits {
    /// Most bytes of memory.
    pub memory: u64,
    /// Longest time for loading, and for one prediction.
    pub time: Duration,
}

impl Default for WorkerLimits {
    /// 4 GiB and two minutes.
    fn default() -> Self {
        Self { memory: 4 << 30, time: Duration::from_secs(120) }
    }
}

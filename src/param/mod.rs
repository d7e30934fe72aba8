//! Parametrisations: maps as a reference plus few unknowns, with exact pullbacks.

mod patches;

pub(crate) use patches::reduce;
pub use patches::{Patches, interiors, patches};

#[cfg(test)]
mod tests;

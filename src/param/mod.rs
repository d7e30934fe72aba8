//! Parametrisations: maps as a reference plus few unknowns, with exact pullbacks.

mod patches;

pub use patches::{Patches, interiors, patches};
pub(crate) use patches::{add_reduced, reduce};

#[cfg(test)]
mod tests;

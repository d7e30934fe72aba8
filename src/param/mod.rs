//! Parametrisations: maps as a reference plus few unknowns, with exact pullbacks.

mod patches;

pub use patches::{Patches, patches, round_values};

#[cfg(test)]
mod tests;

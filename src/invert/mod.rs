//! The inversion of one gather: stages of misfits, each minimised over all cells and `vmin` by projected L-BFGS.
//!
//! The variables are the velocities themselves, in m/s, within inclusive bounds; the misfit is scaled to one at the
//! first model of each stage. [`lbfgs`] tells how bounds enter.
//!
//! [`Inversion::run`] begins at a [`Start`], [`Inversion::resume`] at a [`State`] that an [`Observer`] was handed; the
//! resumed run gives the same bits as one that never stopped.

mod encoding;
pub mod lbfgs;
mod objective;
mod outcome;
mod run;
mod stage;
mod start;
mod state;

pub use outcome::{Observer, Outcome, Progress, StageSummary, StopReason};
pub use run::{Inversion, Settings};
pub use stage::{Stage, Stall, Vmin, default_schedule};
pub use start::{Start, source_velocities};
pub use state::State;

//! The inversion of one gather: stages, each minimised by L-BFGS or by Gauss-Newton steps ([`Newton`]), over all cells or
//! over rows, flat patches or principal directions of them ([`Unknowns`]), and `vmin`.
//!
//! Bounds on the velocity (inclusive) enter by a change of variables, `vp = middle + half sin((u - middle) / half)`:
//! it converged about as well as a clipped logistic without leaving cells stuck on a bound, and better than projected
//! L-BFGS or a clip with a penalty, far better where many cells lie on a bound; the numbers stand in `encoding.rs`. The misfit is scaled to one at the first model of
//! each stage, and L-BFGS begins with a metric that grows with depth, see [`Settings::depth_exponent`].
//!
//! [`Inversion::run`] begins at a [`Start`], [`Inversion::resume`] at a [`State`] that an [`Observer`] was handed; the
//! resumed run gives the same bits as one that never stopped.

mod areas;
mod batch;
mod conjugate_gradients;
mod cost;
mod drive;
mod encoding;
mod factor;
mod fallback;
pub mod lbfgs;
mod lbfgs_stage;
mod linear;
mod newton;
mod newton_solve;
mod newton_space;
mod newton_step;
mod objective;
mod outcome;
mod polish;
mod rounding;
mod run;
mod settings;
mod stage;
mod start;
mod state;
mod terms;
mod uncertainty;
mod variables;

pub use areas::Areas;
pub use batch::{Task, bytes_per_inversion, invert_many};
pub use cost::{StageCost, matrix_bytes};
pub use fallback::{Attempt, FirstStart, invert_with_fallbacks, resume_with_fallbacks};
pub use linear::Linear;
pub use newton::Newton;
pub(crate) use newton::{is_one, one};
pub use newton_space::Unknowns;
pub use outcome::{AttemptSummary, Observer, Outcome, Progress, StageSummary, StopReason};
pub use rounding::Round;
pub use run::Inversion;
pub use settings::Settings;
pub use stage::{Kind, Stage, Stall, Vmin, default_schedule, prior_schedule};
pub use start::{Start, source_velocities};
pub use state::State;
pub use uncertainty::{LEAST_NOISE, Uncertainty};
pub use variables::QuasiNewton;

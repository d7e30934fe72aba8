//! Figures as PNG bytes: maps, gathers, convergence, statistics.
//!
//! Each function returns a finished PNG file for the caller to write. Nothing but this crate is needed: no fonts or
//! libraries of the system. Text is DejaVu Sans; velocities take the viridis colour map, differences a blue-white-red one
//! with white at zero, pressure grey. Cells are blocks of whole pixels, unsmoothed; arrays with more cells than a panel has
//! pixels are averaged.

mod axis;
mod canvas;
mod colour;
mod convergence;
mod curves;
mod gather;
mod map;
mod panel;

pub use convergence::{Progress, StageStart, convergence_figure};
pub use curves::{CurvePanel, Scale, curves_figure};
pub use gather::gather_figure;
pub use map::{contact_sheet, contact_sheet_in_rows, map_figure, uncertainty_figure};

//! Full-waveform inversion of OpenFWI gathers: find the velocity map whose modelled data match the recorded ones.
//!
//! The way of the data: read a gather ([`io`]), choose a start and a misfit ([`misfit`]), model and differentiate
//! exactly ([`wave`]), optimise in stages ([`invert`]) as the family's recipe has them ([`family`]), with regularisers
//! ([`reg`]) and the data's curvature ([`curvature`]), write the map with its figures ([`plot`]).
//!
//! Units throughout: cell size in m, time in s, velocity in m/s.
#![warn(missing_docs)]

pub mod curvature;
pub mod error;
pub mod family;
pub mod gather;
pub mod invert;
pub mod io;
pub mod misfit;
pub mod model;
pub mod param;
pub mod plot;
pub mod prior;
pub mod reg;
pub mod survey;
pub mod synth;
pub mod verify;
pub mod wave;

pub use error::{Error, Result};
pub use family::Family;
pub use gather::{Gather, Mask, Observed};
pub use misfit::Misfit;
pub use model::Model;
pub use prior::Prior;
pub use survey::{Position, Survey};
pub use wave::Propagator;

/// The README's program, compiled and run as a documentation test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

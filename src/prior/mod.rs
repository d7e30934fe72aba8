//! The prior: a learned starting map. A network in an ONNX file predicts the velocity map from the gather.
//!
//! A [`Prior`] takes observed gathers and gives a [`Prediction`] each. [`Network`] runs an ONNX file in this process,
//! [`Isolated`] in a child process with a memory and a time limit, which is where files of strangers belong; [`Flipped`]
//! averages a prior with its own view of the mirrored gather, [`Replayed`] shows it what its maps miss, [`Combined`] takes the
//! mean or median of several, [`Completed`] has another one tell what a prior does not, and [`InTurns`] bounds how many predict at
//! a time.
//! [`registry`] finds priors by name: those in the binary and those in the user's folders.
//!
//! A [`Manifest`] beside the file tells how to feed a network and how to read it; without one the common layouts are
//! recognised (see [`layout`]). Files are read and checked by [`graph`] before a runtime sees them; the runtime is
//! ONNX Runtime where its library is found, and tract, which is part of this crate, otherwise (see [`runtime`]).

mod augment;
mod combine;
mod complete;
mod engine;
pub mod graph;
pub mod layout;
pub mod manifest;
mod network;
pub mod registry;
mod replay;
pub mod runtime;
mod turns;
#[cfg(unix)]
pub mod worker;

pub use augment::Flipped;
pub use combine::{Combine, Combined};
pub use complete::Completed;
pub use manifest::{Augment, Mae, MaeMaps, Manifest};
pub use network::{Info, Network, Source};
pub use replay::Replayed;
pub use runtime::{Runtime, RuntimeChoice};
pub use turns::InTurns;
#[cfg(unix)]
pub use worker::{Isolated, WorkerLimits};

use crate::{Error, Family, Observed, Result};
use ndarray::Array2;
use std::sync::Arc;

/// What a prior says about one gather.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// The map (nz, nx), m/s.
    pub velocity: Array2<f32>,
    /// The error that the prior expects in every cell (nz, nx), m/s.
    pub error: Option<Array2<f32>>,
    /// Probabilities of the families, which sum to 1.
    pub families: Option<Vec<(Family, f64)>>,
}

impl Prediction {
    /// What to make of a map (nz, nx), m/s, that someone gives as a start, by what a prior predicts of the same gather: its families,
    /// and in every cell the error that it expects and the distance between both maps, as the hypotenuse. A map that is better
    /// than the prior's lies about that error away from it, a worse one further. Errors on another shape.
    pub fn of_map(self, map: &Array2<f64>) -> Result<Self> {
        if map.dim() != self.velocity.dim() {
            let ((a, b), (nz, nx)) = (map.dim(), self.velocity.dim());
            return Err(Error::Usage(format!("the starting map is {a} x {b} but the prior's is {nz} x {nx}")));
        }
        let velocity = map.mapv(|v| v as f32);
        let apart = &velocity - &self.velocity;
        let error = self.error.map(|error| ndarray::Zip::from(&error).and(&apart).map_collect(|e, d| e.hypot(*d)));
        Ok(Self { velocity, error, families: self.families })
    }
}

/// Something that predicts maps from gathers.
pub trait Prior: Send + Sync {
    /// One line for logs and results: name, version, checksum, runtime.
    fn describe(&self) -> String;

    /// A prediction for every gather, in order. Each depends on its own gather alone, not on the others, their number
    /// or the number of threads. Traces that are masked out go in as zeros.
    ///
    /// Errors: [`Error::Usage`] for a gather of another shape than OpenFWI's,
    /// [`Error::Input`] when the network cannot be run or gives something other than finite
    /// velocities, [`Error::Memory`] when there is too little memory to run it.
    fn predict(&self, gathers: &[Observed]) -> Result<Vec<Prediction>>;

    /// Bytes that it holds in this process, about.
    fn bytes(&self) -> u64;

    /// Bytes that every call of [`predict`](Self::predict) takes besides while it lasts, about.
    fn bytes_each(&self) -> u64 {
        0
    }
}

impl<P: Prior + ?Sized> Prior for Arc<P> {
    fn describe(&self) -> String {
        (**self).describe()
    }

    fn predict(&self, gathers: &[Observed]) -> Result<Vec<Prediction>> {
        (**self).predict(gathers)
    }

    fn bytes(&self) -> u64 {
        (**self).bytes()
    }

    fn bytes_each(&self) -> u64 {
        (**self).bytes_each()
    }
}

/// Cells of the map and samples of the gather that priors know: OpenFWI's.
pub(crate) const MAP: (usize, usize) = (70, 70);
pub(crate) const SHOTS: usize = 5;
pub(crate) const SAMPLES: usize = 1000;
pub(crate) const RECEIVERS: usize = 70;

/// The samples of a gather as a network takes them: (shot, time, receiver) in C order, masked traces zero.
pub(crate) fn samples(observed: &Observed) -> Result<Vec<f32>> {
    let data = &observed.gather.data;
    if data.dim() != (SHOTS, SAMPLES, RECEIVERS) || !observed.mask.fits(data.dim()) {
        let found = data.dim();
        let problem = format!("a prior takes gathers of shape ({SHOTS}, {SAMPLES}, {RECEIVERS}), not {found:?}");
        return Err(Error::Usage(problem));
    }
    let live = |(shot, _, r): (usize, usize, usize)| observed.mask.live[[shot, r]];
    Ok(data.indexed_iter().map(|(at, &x)| if live(at) { x as f32 } else { 0.0 }).collect())
}

/// The prediction of one gather.
pub fn predict_one(prior: &dyn Prior, gather: &Observed) -> Result<Prediction> {
    Ok(prior.predict(std::slice::from_ref(gather))?.remove(0))
}

/// The prediction of a gather that one can do without: none where the network fails at it.
fn predict_or_none(prior: &dyn Prior, gather: &Observed) -> Result<Option<Prediction>> {
    match predict_one(prior, gather) {
        Err(Error::Input { .. }) => Ok(None),
        predicted => predicted.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Predicts a velocity, an error and families, whatever the gather.
    pub(super) struct Constant(pub f32, pub Option<f32>, pub Option<Vec<(Family, f64)>>);

    impl Prior for Constant {
        fn describe(&self) -> String {
            self.0.to_string()
        }
        fn predict(&self, gathers: &[Observed]) -> Result<Vec<Prediction>> {
            let map = |v| Array2::from_elem((2, 3), v);
            let one = Prediction { velocity: map(self.0), error: self.1.map(map), families: self.2.clone() };
            Ok(vec![one; gathers.len()])
        }
        fn bytes(&self) -> u64 {
            1
        }
    }

    #[test]
    fn a_given_map_is_trusted_the_less_the_further_it_lies_from_the_predicted_one() {
        let families = Some(vec![(Family::StyleA, 1.0)]);
        let predicted = Prediction {
            velocity: Array2::from_elem((2, 3), 2000.0),
            error: Some(Array2::from_elem((2, 3), 30.0)),
            families,
        };
        let mut map = Array2::from_elem((2, 3), 2000.0);
        map[[1, 2]] = 2040.0;
        let made = predicted.clone().of_map(&map).unwrap();
        assert_eq!((made.velocity[[1, 2]], &made.families), (2040.0, &predicted.families));
        let error = made.error.unwrap();
        assert_eq!((error[[0, 0]], error[[1, 2]]), (30.0, 50.0));
        let silent = Prediction { error: None, ..predicted.clone() };
        assert_eq!(silent.of_map(&map).unwrap().error, None);
        assert!(predicted.of_map(&Array2::zeros((3, 2))).unwrap_err().to_string().contains("3 x 2"));
    }
}

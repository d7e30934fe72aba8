//! Test-time augmentation: a prior looks at the mirrored gather, too.
//!
//! The gather of a map mirrored left to right is the gather itself with its shots in reverse order and its receivers
//! reversed, as far as the mirror image of a source is a source. In OpenFWI's acquisition the middle one (column 34, its
//! image 35) is not: its shot is modelled from the mirrored prediction.

use super::combine::Combine;
use super::{Prediction, Prior, predict_or_none};
use crate::wave::{CpuOptions, Propagator, build};
use crate::{Error, Gather, Model, Observed, Position, Result, Survey};
use ndarray::{Array2, Array3, ArrayView2, s};

/// The mean of a prior's map and of what it says about the mirrored gather, mirrored back; likewise of the expected
/// errors and the families.
///
/// Where the first prediction is no map that can be modelled, or the network fails at the mirrored gather, it stands alone.
pub struct Flipped {
    prior: Box<dyn Prior>,
    survey: Survey,
    /// For every shot, the one that becomes it.
    partner: Vec<Option<usize>>,
    /// The receiver that becomes each receiver.
    receiver: Vec<usize>,
    /// Models the shots without a partner.
    propagator: Option<Box<dyn Propagator>>,
}

impl Flipped {
    /// For gathers of `survey`, whose receivers must be their own mirror image, else [`Error::Usage`](crate::Error::Usage).
    /// `threads` model, 0 for one a core.
    pub fn new(prior: Box<dyn Prior>, survey: &Survey, threads: usize) -> Result<Self> {
        let image = |p: &Position| Position { x: survey.nx - 1 - p.x, ..*p };
        let find = |list: &[Position], p: &Position| list.iter().position(|q| *q == image(p));
        let partner: Vec<Option<usize>> = survey.sources.iter().map(|p| find(&survey.sources, p)).collect();
        let receiver: Option<Vec<usize>> = survey.receivers.iter().map(|p| find(&survey.receivers, p)).collect();
        let receiver = receiver.ok_or_else(|| {
            Error::Usage("gathers can be mirrored only where the receivers are their own mirror image".into())
        })?;
        let alone = survey.sources.iter().zip(&partner).filter(|(_, p)| p.is_none()).map(|(s, _)| *s);
        let sources: Vec<Position> = alone.collect();
        let propagator = if sources.is_empty() {
            None
        } else {
            let survey = Survey { sources, ..survey.clone() };
            Some(build(survey, &CpuOptions { threads, ..CpuOptions::default() })?)
        };
        Ok(Self { prior, survey: survey.clone(), partner, receiver, propagator })
    }

    /// The gather of the mirrored map; `modelled` holds the shots without a partner, in order.
    fn mirror(&self, observed: &Observed, modelled: Option<Gather>) -> Observed {
        let data = &observed.gather.data;
        let (_, nt, nr) = data.dim();
        let mut mirrored = Observed {
            gather: Gather::new(Array3::zeros(data.dim())).into(),
            mask: observed.mask.clone(),
            bad: vec![],
            dead: vec![],
        };
        let mut samples = Array3::zeros(data.dim());
        let mut extra = modelled.iter().flat_map(|g| g.data.outer_iter());
        for (shot, partner) in self.partner.iter().enumerate() {
            let mut to = samples.slice_mut(s![shot, .., ..]);
            match partner {
                Some(from) => {
                    for r in 0..nr {
                        to.column_mut(r).assign(&data.slice(s![*from, .., self.receiver[r]]));
                        mirrored.mask.live[[shot, r]] = observed.mask.live[[*from, self.receiver[r]]];
                    }
                }
                None => {
                    to.assign(&extra.next().expect("one shot each was modelled"));
                    // a last sample that the record lacks is lacking here, too
                    to.slice_mut(s![observed.mask.nt..nt, ..]).fill(0.0);
                    mirrored.mask.live.row_mut(shot).fill(true);
                }
            }
        }
        mirrored.gather = Gather::new(samples).into();
        mirrored
    }

    fn flip(&self, observed: &Observed, first: Prediction) -> Result<Prediction> {
        let map = mirrored(first.velocity.view()).mapv(f64::from);
        let model = Model::from_map(map);
        if self.survey.check_velocities(model.vmin, model.vmax(), model.vmin).is_err() {
            return Ok(first);
        }
        let modelled = match &self.propagator {
            Some(p) => Some(p.forward(std::slice::from_ref(&model))?.remove(0)),
            None => None,
        };
        let Some(second) = predict_or_none(&*self.prior, &self.mirror(observed, modelled))? else { return Ok(first) };
        let back = Prediction {
            velocity: mirrored(second.velocity.view()),
            error: second.error.map(|e| mirrored(e.view())),
            families: second.families,
        };
        Ok(Combine::Mean.predictions(&[first, back]))
    }
}

fn mirrored(map: ArrayView2<f32>) -> Array2<f32> {
    map.slice(s![.., ..;-1]).to_owned()
}

impl Prior for Flipped {
    fn describe(&self) -> String {
        format!("{}, averaged with the mirrored gather's", self.prior.describe())
    }

    fn predict(&self, gathers: &[Observed]) -> Result<Vec<Prediction>> {
        let first = self.prior.predict(gathers)?;
        gathers.iter().zip(first).map(|(g, p)| self.flip(g, p)).collect()
    }

    fn bytes(&self) -> u64 {
        self.prior.bytes()
    }

    fn bytes_each(&self) -> u64 {
        // the fields of a shot, and gathers
        self.prior.bytes_each() + (16 << 20)
    }
}

//! The state of a running inversion: all that a resumed run needs to continue with the same bits.
//!
//! As bytes: a magic line, the CRC-32 and the length of what follows (little endian), then the state in postcard's
//! encoding, which keeps every bit of a float.

use super::lbfgs::Lbfgs;
use super::outcome::{AttemptSummary, Outcome, StageSummary};
use crate::wave::Evaluation;
use crate::{Error, Model, Result};
use ndarray::Array2;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A running inversion between two iterations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Checksum of the data and of what decides the path taken.
    pub(super) fingerprint: u32,
    /// Where the inversion began.
    pub(super) start: Model,
    /// Standard deviations of the start, m/s, where a prior tells them.
    pub(super) confidence: Option<Array2<f64>>,
    pub(super) stage: usize,
    /// What a Gauss-Newton or regularised stage began with.
    pub(super) begin: Option<Best>,
    /// Gauss-Newton steps taken in this stage.
    pub(super) step: usize,
    /// How many of them, the last ones, led nowhere.
    pub(super) failed: usize,
    /// How many of them, the last ones, found no better map of areas.
    pub(super) stale: usize,
    /// Steps taken so far between the noise before and that of the next step.
    pub(super) between: usize,
    /// The model that the stage began with, and what is known of it.
    pub(super) entry: Best,
    /// What is known of the model that the last Gauss-Newton step led to: the next step may begin there.
    pub(super) reached: Option<Reached>,
    pub(super) at: Option<At>,
    pub(super) ledger: Ledger,
    pub(super) seconds: f64,
    pub(super) stages: Vec<StageSummary>,
    /// The attempts before this one.
    pub(super) earlier: Vec<Finished>,
}

/// An attempt that has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Finished {
    pub summary: AttemptSummary,
    pub outcome: Outcome,
    /// Standard deviations of the first attempt's start.
    pub confidence: Option<Array2<f64>>,
}

/// The optimiser within a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct At {
    pub solver: Lbfgs,
    pub x: Vec<f64>,
    /// Scaled misfit and its derivative at `x`.
    pub cost: f64,
    pub gradient: Vec<f64>,
    /// What the misfit is multiplied by: one over its first value.
    pub scale: f64,
    pub data_rms: f64,
    /// Scaled misfits of the accepted iterates of this stage.
    pub history: Vec<f64>,
}

/// A model that has been evaluated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Reached {
    /// The misfit and what else tells stages' evaluations apart.
    pub by: String,
    pub model: Model,
    pub evaluation: Evaluation,
}

impl Reached {
    /// Whether it may be gone on from, for what models may be.
    fn is_sound(&self, model: impl Fn(&Model) -> bool) -> bool {
        let Evaluation { value, gradient, data_rms } = &self.evaluation;
        model(&self.model) && model(gradient) && [value, data_rms].iter().all(|x| x.is_finite() && **x >= 0.0)
    }
}

/// Counts and the best model so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Ledger {
    pub evaluations: u64,
    pub stage_evaluations: u64,
    pub iterations: u64,
    pub normal_matrices: u64,
    pub stage_normal_matrices: u64,
    pub curvature_seconds: f64,
    pub best: Option<Best>,
}

/// A model with what decides whether it is the best.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Best {
    pub model: Model,
    pub score: f64,
    pub misfit: f64,
    pub data_rms: f64,
}

const MAGIC: &[u8] = b"fwi state 6\n";
const HEADER: usize = MAGIC.len() + 4 + 8;

impl State {
    /// The state as bytes, about `2 * memory` times the unknowns times 8.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = MAGIC.to_vec();
        bytes.resize(HEADER, 0);
        let mut bytes = postcard::to_extend(self, bytes)
            .map_err(|e| Error::Numerical(format!("the state of the inversion cannot be encoded: {e}")))?;
        let (crc, length) = (crc32fast::hash(&bytes[HEADER..]), (bytes.len() - HEADER) as u64);
        bytes[MAGIC.len()..MAGIC.len() + 4].copy_from_slice(&crc.to_le_bytes());
        bytes[MAGIC.len() + 4..HEADER].copy_from_slice(&length.to_le_bytes());
        Ok(bytes)
    }

    /// The inverse of [`State::to_bytes`]; `path` is where the bytes come from, for the message.
    ///
    /// Errors when they are no checkpoint, of another version, cut short or damaged.
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self> {
        let fail = |what: &str| {
            Err(Error::input(path, format!("{what}; start the inversion anew or resume from an older checkpoint")))
        };
        if bytes.len() < HEADER || !bytes.starts_with(MAGIC) {
            return fail("not a checkpoint of this version of fwi");
        }
        let (header, body) = bytes.split_at(HEADER);
        let crc = u32::from_le_bytes(header[MAGIC.len()..MAGIC.len() + 4].try_into().expect("four bytes"));
        let length = u64::from_le_bytes(header[MAGIC.len() + 4..].try_into().expect("eight bytes"));
        if body.len() as u64 != length {
            return fail(&format!("the checkpoint holds {} bytes where {length} were written", body.len()));
        }
        if crc32fast::hash(body) != crc {
            return fail("the checkpoint is damaged: its checksum is wrong");
        }
        match postcard::from_bytes(body) {
            Ok(state) => Ok(state),
            Err(e) => fail(&format!("the checkpoint cannot be decoded ({e})")),
        }
    }

    /// Evaluations so far.
    pub fn evaluations(&self) -> u64 {
        self.ledger.evaluations
    }

    /// Iterations so far.
    pub fn iterations(&self) -> u64 {
        self.ledger.iterations
    }

    /// Wall time so far, s.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// The best model so far, to show while the inversion runs.
    pub fn best(&self) -> &Model {
        &self.ledger.best.as_ref().unwrap_or(&self.entry).model
    }

    /// Whether every vector has the length that the inversion indexes it by, and the numbers it divides by are numbers.
    pub(super) fn is_sound(&self, shape: (usize, usize), stages: usize) -> bool {
        let model = |m: &Model| m.vp.dim() == shape && m.to_vec().iter().all(|v| v.is_finite());
        self.stage < stages
            && self.stages.len() == self.stage
            && model(&self.start)
            && model(&self.entry.model)
            && self.ledger.best.as_ref().is_none_or(|b| model(&b.model))
            && self.begin.as_ref().is_none_or(|b| model(&b.model))
            && self.reached.as_ref().is_none_or(|r| r.is_sound(model))
            && self.confidence.as_ref().is_none_or(|c| c.dim() == shape && c.iter().all(|v| v.is_finite()))
            && self.seconds >= 0.0
            && self.earlier.iter().all(|f| f.outcome.model.vp.dim() == shape && f.outcome.start.vp.dim() == shape)
    }

    /// Whether the stage has taken no Gauss-Newton step.
    pub(super) fn is_before_steps(&self) -> bool {
        self.step == 0 && self.between == 0
    }

    /// Where nothing but the map's own preparation has happened in a stage, takes that back: nothing has compared the two.
    pub(super) fn back_before_steps(&mut self) {
        if let (true, Some(begin)) = (self.is_before_steps(), &self.begin)
            && begin.data_rms.is_finite()
        {
            self.entry = begin.clone();
        }
    }

    /// Whether the optimiser's vectors are as long as those of a new `solver` of the stage.
    pub(super) fn fits(&self, solver: &Lbfgs) -> bool {
        self.at.as_ref().is_none_or(|at| {
            at.solver.fits(solver)
                && at.x.len() == solver.dim()
                && at.gradient.len() == solver.dim()
                && at.x.iter().all(|x| x.is_finite())
                && at.scale.is_finite()
                && !at.history.is_empty()
        })
    }
}

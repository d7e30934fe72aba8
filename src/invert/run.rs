//! An inversion: what it is given, and its beginning.

use super::outcome::{Observer, Outcome};
use super::settings::Settings;
use super::stage::Stage;
use super::start::{Start, source_velocities};
use super::state::{Best, Finished, Ledger, State};
use crate::curvature::{Curvature, CurvatureOptions};
use crate::misfit::{Misfit, MisfitSpec};
use crate::{Error, Model, Observed, Propagator, Result, Survey};
use ndarray::Array2;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

/// The inversion of one gather.
pub struct Inversion<'a> {
    propagator: &'a dyn Propagator,
    fine: Option<&'a dyn Propagator>,
    own: Option<&'a dyn Misfit>,
    observed: &'a Observed,
    settings: Settings,
    truth: Option<&'a Array2<f64>>,
    cancel: Option<&'a AtomicBool>,
    /// Cells (row by row) that are held, and their velocities.
    held: Vec<(usize, f64)>,
    /// Standard deviations of the start, m/s.
    confidence: Option<Array2<f64>>,
    threads: usize,
    /// The attempts before.
    earlier: Vec<Finished>,
    curvature: OnceLock<Curvature>,
}

impl<'a> Inversion<'a> {
    /// An inversion of `observed`; errors when the gather does not fit the survey, nothing in it counts, or a setting
    /// makes no sense.
    pub fn new(propagator: &'a dyn Propagator, observed: &'a Observed, settings: Settings) -> Result<Self> {
        let survey = propagator.survey();
        let fail = |m: String| Err(Error::Usage(m));
        if observed.gather.data.dim() != survey.gather_shape() {
            let ((a, b, c), (ns, nt, nr)) = (observed.gather.data.dim(), survey.gather_shape());
            return fail(format!(
                "the gather is {a} x {b} x {c} but the survey gives {ns} x {nt} x {nr} (shots, samples, receivers)"
            ));
        }
        if observed.mask.samples() == 0 {
            return fail("every trace of the gather is dead or not finite: there is nothing to fit".into());
        }
        settings.validate(survey.dt)?;
        let known = if settings.pin_sources { source_velocities(survey, observed, settings.bounds) } else { vec![] };
        let held = known.iter().map(|(p, v)| (p.z * survey.nx + p.x, *v)).collect();
        Ok(Self {
            propagator,
            fine: None,
            own: None,
            observed,
            settings,
            truth: None,
            cancel: None,
            held,
            confidence: None,
            threads: 0,
            earlier: vec![],
            curvature: OnceLock::new(),
        })
    }

    /// Gives the true map (nz, nx), so that progress and outcome tell the mean absolute error. Errors on another shape.
    pub fn truth(mut self, truth: &'a Array2<f64>) -> Result<Self> {
        if truth.dim() != self.propagator.survey().map_shape() {
            let ((a, b), (nz, nx)) = (truth.dim(), self.propagator.survey().map_shape());
            return Err(Error::Usage(format!("the true map is {a} x {b} but the survey's grid is {nz} x {nx}")));
        }
        self.truth = Some(truth);
        Ok(self)
    }

    /// Gives the propagator for [refined](Stage::refined) stages: one in f64 where the other is in f32. Errors when its
    /// survey is another.
    pub fn refine(mut self, fine: &'a dyn Propagator) -> Result<Self> {
        if fine.survey() != self.propagator.survey() {
            return Err(Error::Usage("both propagators of an inversion must be made for one survey".into()));
        }
        self.fine = Some(fine);
        Ok(self)
    }

    /// Gives the misfit of stages that have [`MisfitSpec::Own`].
    pub fn own_misfit(mut self, misfit: &'a dyn Misfit) -> Self {
        self.own = Some(misfit);
        self
    }

    /// Gives the standard deviations (nz, nx) of the start, m/s, for regularisers that ask for the prior's confidence.
    /// Errors on another shape and on values that are not above zero.
    pub fn confidence(mut self, deviations: Array2<f64>) -> Result<Self> {
        let shape = self.propagator.survey().map_shape();
        if deviations.dim() != shape || !deviations.iter().all(|v| v.is_finite() && *v > 0.0) {
            let problem = format!("the start's standard deviations must be {} x {} numbers above 0", shape.0, shape.1);
            return Err(Error::Usage(problem));
        }
        self.confidence = Some(deviations);
        Ok(self)
    }

    /// Worker threads of normal matrices; 0, the default, takes one per core.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Counts on after other attempts.
    pub(super) fn after(mut self, earlier: Vec<Finished>) -> Self {
        self.earlier = earlier;
        self
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn observed(&self) -> &'a Observed {
        self.observed
    }

    pub(super) fn survey(&self) -> &Survey {
        self.propagator.survey()
    }

    /// What of the gather counts in a stage. The samples are shared.
    pub(super) fn data(&self, stage: &Stage) -> Observed {
        let mut data = self.observed.clone();
        if let Some(until) = stage.until {
            let samples = (until / self.propagator.survey().dt).ceil() as usize;
            data.mask.nt = data.mask.nt.min(samples.max(1));
        }
        data
    }

    /// Samples of the gather that count.
    pub(super) fn samples(&self) -> usize {
        self.observed.mask.samples()
    }

    pub(super) fn held(&self) -> &[(usize, f64)] {
        &self.held
    }

    pub(super) fn truth_map(&self) -> Option<&'a Array2<f64>> {
        self.truth
    }

    pub(super) fn cancel_flag(&self) -> Option<&'a AtomicBool> {
        self.cancel
    }

    /// What computes normal matrices, made when it is first needed.
    pub(super) fn curvature(&self) -> Result<&Curvature> {
        if let Some(made) = self.curvature.get() {
            return Ok(made);
        }
        let options = CurvatureOptions { threads: self.threads, ..CurvatureOptions::default() };
        let made = Curvature::new(self.propagator.survey(), &options)?;
        Ok(self.curvature.get_or_init(|| made))
    }

    /// The misfit of a stage.
    pub(super) fn misfit(&self, stage: &Stage) -> Result<Box<dyn Misfit + 'a>> {
        match (stage.misfit, self.own) {
            (MisfitSpec::Own, Some(own)) => Ok(Box::new(own)),
            _ => Ok(stage.misfit.build(self.propagator.survey().dt)?),
        }
    }

    /// The propagator of stages that are not refined.
    pub(super) fn coarse(&self) -> &'a dyn Propagator {
        self.propagator
    }

    /// The propagator of a stage.
    pub(super) fn engine(&self, stage: &Stage) -> &'a dyn Propagator {
        self.fine.filter(|_| stage.refined).unwrap_or(self.propagator)
    }

    /// A flag that stops the inversion before its next evaluation once it is set.
    pub fn cancel(mut self, flag: &'a AtomicBool) -> Self {
        self.cancel = Some(flag);
        self
    }

    /// Inverts from a start. What ends it early (limits, the flag) is a [`StopReason`](super::StopReason), not an error.
    ///
    /// Errors when the starting model cannot be made or evaluated, or when a checkpoint cannot be saved.
    pub fn run(&self, start: &Start, observer: &mut dyn Observer) -> Result<Outcome> {
        let model = start.model(self.propagator.survey(), self.observed, self.settings.bounds)?;
        self.drive(self.beginning(model), observer)
    }

    /// The state before anything was evaluated.
    pub(super) fn beginning(&self, model: Model) -> State {
        let nan = f64::NAN;
        let before = self.earlier.last().map(|f| &f.outcome);
        let ledger = before.map_or_else(Ledger::default, |o| Ledger {
            evaluations: o.evaluations,
            iterations: o.iterations,
            normal_matrices: o.normal_matrices,
            curvature_seconds: o.curvature_seconds,
            ..Ledger::default()
        });
        State {
            fingerprint: self.fingerprint(),
            stage: 0,
            start: model.clone(),
            confidence: self.confidence.clone(),
            begin: None,
            step: 0,
            failed: 0,
            stale: 0,
            between: 0,
            entry: Best { model, score: nan, misfit: nan, data_rms: nan },
            reached: None,
            at: None,
            ledger,
            seconds: before.map_or(0.0, |o| o.seconds),
            stages: vec![],
            earlier: self.earlier.clone(),
        }
    }

    /// Continues from a checkpoint. Limits may differ from the interrupted run's; data, stages, bounds, memory, first
    /// step and the propagators' arithmetic must not, else this errors.
    pub fn resume(&self, state: State, observer: &mut dyn Observer) -> Result<Outcome> {
        let other = "the checkpoint belongs to another gather, survey or other settings; give those it was made with";
        if state.fingerprint != self.fingerprint() {
            return Err(Error::Usage(other.into()));
        }
        let shape = self.propagator.survey().map_shape();
        let stages = &self.settings.stages;
        let sound = state.is_sound(shape, stages.len()) && {
            let variables = self.variables(&stages[state.stage], &state)?;
            state.fits(&self.solver(&variables))
        };
        if !sound { Err(Error::Usage(other.into())) } else { self.drive(state, observer) }
    }

    /// Checksum of all that decides the path of an inversion, limits left aside.
    fn fingerprint(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        let s = &self.settings;
        let paths: Vec<_> = s
            .stages
            .iter()
            .map(|g| {
                let when = (g.skip_below, g.only, g.after_progress, g.until, g.abandon_above);
                ((g.misfit, g.smoothing, g.vmin, g.refined, when), (&g.newton, &g.lbfgs, g.round))
            })
            .collect();
        let o = self.observed;
        let engines = (self.propagator.arithmetic(), self.fine.map(|p| p.arithmetic()));
        let words =
            (self.propagator.survey(), paths, s.bounds, s.memory, s.first_step, s.depth_exponent, &self.held, &o.mask);
        hasher.update(format!("{words:?}{engines:?}").as_bytes());
        o.gather.data.iter().for_each(|x| hasher.update(&x.to_le_bytes()));
        hasher.finalize()
    }
}

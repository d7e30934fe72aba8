//! A small survey, its truth, and inversions of it, whole or piecemeal.

use fwi::family::Recipe;
use fwi::invert::{
    Attempt, FirstStart, Inversion, Observer, Outcome, Settings, Start, State, invert_with_fallbacks,
    resume_with_fallbacks,
};
use fwi::wave::{CpuOptions, Fidelity, Precision, build};
use fwi::{Error, Model, Observed, Position, Propagator, Result, Survey, survey};
use ndarray::Array2;
use std::path::Path;

const RECIPE: &str = r#"
name = "small"
about = "A test's"

[[stage]]
name = "directions"
vmin = "tied"
[stage.newton]
noise = [0.3, 0.05, 0.01]
unknowns = { directions = { share = 1e-3 } }
inner = 1
regularisers = [{ kind = "gaussian-process", mean = "start", sigma = 150.0, length = 2.0, white = 20.0 }]

[[stage]]
name = "edges"
vmin = "tied"
[stage.newton]
noise = [0.05, 0.03, 0.02]
polish = 3
regularisers = [{ kind = "tv", scale = 30, epsilon = 2 }, { kind = "gaussian-process", mean = "stage", sigma = 100.0, length = 2.0, white = 100.0 }]

[[stage]]
name = "areas"
vmin = "tied"
[stage.newton]
linear = "squared-slowness"
noise = [0.02, 0.01]
areas = { step = 8, min_area = 6 }
regularisers = [{ kind = "tv", scale = 10, epsilon = 1 }]

[[stage]]
name = "patches"
vmin = "tied"
round = { spacing = 1, step = 8, min_area = 6, accept = 2e-5 }
[stage.newton]
noise = [0.02, 0.02, 0.02, 0.02]
unknowns = { patches = { step = 8, min_area = 6 } }
regularisers = [{ kind = "tv", scale = 30, epsilon = 1 }]
"#;

pub fn small() -> Survey {
    let dt = 1e-3;
    Survey {
        nz: 24,
        nx: 20,
        nt: 300,
        dt,
        sponge: 20,
        sources: [1, 10, 18].map(|x| Position { z: 1, x }).to_vec(),
        receivers: (0..20).map(|x| Position { z: 1, x }).collect(),
        wavelet: survey::ricker(20.0, dt),
        ..Survey::openfwi()
    }
}

/// Three layers, cut by a fault.
pub fn truth() -> Array2<f64> {
    Array2::from_shape_fn((24, 20), |(z, x)| match z + if x > 11 { 3 } else { 0 } {
        0..9 => 1803.0,
        9..16 => 2251.0,
        _ => 2717.0,
    })
}

/// The truth, blurred three times over five cells each way.
pub fn blurred() -> Array2<f64> {
    let (nz, nx) = (24isize, 20isize);
    (0..3).fold(truth(), |map, _| {
        Array2::from_shape_fn((24, 20), |(z, x)| {
            let around = (-2..=2).flat_map(|i| (-2..=2).map(move |j| (i, j)));
            let at = |(i, j): (isize, isize)| {
                map[[(z as isize + i).clamp(0, nz - 1) as usize, (x as isize + j).clamp(0, nx - 1) as usize]]
            };
            around.map(at).sum::<f64>() / 25.0
        })
    })
}

pub struct Bench {
    propagator: Box<dyn Propagator>,
    observed: Observed,
    pub truth: Array2<f64>,
}

impl Bench {
    pub fn new(threads: usize) -> Self {
        Self::of(truth(), small(), threads)
    }

    pub fn of(truth: Array2<f64>, survey: Survey, threads: usize) -> Self {
        let options =
            CpuOptions { precision: Precision::F64, fidelity: Some(Fidelity::Fast), threads, ..CpuOptions::default() };
        let propagator = build(survey, &options).unwrap();
        let gather = propagator.forward(&[Model::from_map(truth.clone())]).unwrap().remove(0);
        Self { propagator, observed: Observed::new(gather), truth }
    }

    pub fn inversion<'b>(&'b self, threads: usize) -> impl Fn(&Settings) -> Result<Inversion<'b>> + 'b {
        move |settings| {
            let inversion = Inversion::new(&*self.propagator, &self.observed, settings.clone())?;
            inversion.threads(threads).truth(&self.truth)
        }
    }
}

pub fn first() -> FirstStart {
    let confidence = Some(Array2::from_elem((24, 20), 80.0));
    FirstStart { start: Start::Map(blurred()), name: "prior".into(), confidence }
}

pub fn recipe() -> Attempt {
    Attempt::new(Recipe::parse(RECIPE, 1e-3).unwrap(), &Settings::default())
}

/// Stops after every so many checkpoints.
pub struct Stopper {
    pub left: usize,
    pub saved: Vec<u8>,
}

impl Observer for Stopper {
    fn checkpoint(&mut self, state: &State) -> Result<()> {
        self.saved = state.to_bytes()?;
        self.left -= 1;
        if self.left == 0 { Err(Error::Usage("killed".into())) } else { Ok(()) }
    }
}

/// An outcome without what depends on the clock.
pub fn timeless(o: &Outcome) -> Outcome {
    let mut o = Outcome { seconds: 0.0, curvature_seconds: 0.0, ..o.clone() };
    o.attempts.iter_mut().for_each(|a| a.seconds = 0.0);
    o
}

/// Killed after every checkpoint and resumed; the outcome, and how many runs it took.
pub fn piecemeal(bench: &Bench, attempts: &[Attempt]) -> (Outcome, usize) {
    let mut stopper = Stopper { left: 1, saved: vec![] };
    let begun = invert_with_fallbacks(attempts, &first(), &bench.inversion(2), &mut stopper);
    assert!(begun.is_err());
    let mut runs = 1;
    loop {
        let state = State::from_bytes(&stopper.saved, Path::new("checkpoint")).unwrap();
        stopper.left = 1;
        match resume_with_fallbacks(attempts, "prior", state, &bench.inversion(2), &mut stopper) {
            Ok(outcome) => return (outcome, runs),
            Err(e) => assert_eq!(e.to_string(), "killed"),
        }
        runs += 1;
    }
}

//! What a benchmark over families measures: one case a gather, figures of many, and the contest's weighted error.

use super::Family;
use crate::invert::Outcome;
use ndarray::Array2;
use serde::{Deserialize, Serialize};

/// Gathers of each family in the test set of the contest on OpenFWI's families (Waveform Inversion, Kaggle, 2025), as its second
/// place counted them: FlatVel 11,928, Style_A 5,663, Style_B 6,337 and 41,890 others. What FlatVel and the others have is
/// spread evenly over their two and six families.
pub fn contest_gathers(family: Family) -> f64 {
    match family {
        Family::FlatVelA | Family::FlatVelB => 11_928.0 / 2.0,
        Family::StyleA => 5_663.0,
        Family::StyleB => 6_337.0,
        _ => 41_890.0 / 6.0,
    }
}

/// Largest error of a cell that counts as exact, m/s.
pub const EXACT: f64 = 0.5;

/// Seconds after which [`Case::soon_mae`] is taken.
pub const SOON: f64 = 120.0;

/// How far a map is from the true one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MapError {
    /// Mean absolute error over all cells, m/s.
    pub mae: f64,
    /// The same over odd columns, as the contest scores, m/s.
    pub odd_mae: f64,
    /// Share of the cells that are at most [`EXACT`] off.
    pub exact: f64,
}

impl MapError {
    /// Of a map against the true one; both (nz, nx) in m/s, of one shape with at least one column.
    pub fn of(map: &Array2<f64>, truth: &Array2<f64>) -> Self {
        let off = || map.indexed_iter().zip(truth).map(|(((_, x), a), b)| (x, (a - b).abs()));
        let mean = |of: &dyn Fn(usize, f64) -> Option<f64>| {
            let (sum, n) = off().filter_map(|(x, e)| of(x, e)).fold((0.0, 0), |(s, n), e| (s + e, n + 1));
            sum / n.max(1) as f64
        };
        Self {
            mae: mean(&|_, e| Some(e)),
            odd_mae: mean(&|x, e| (x % 2 == 1).then_some(e)),
            exact: mean(&|_, e| Some(f64::from(u8::from(e <= EXACT)))),
        }
    }
}

/// How well the standard deviations of cells foretold their errors.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Coverage {
    /// Mean absolute error that they expect, m/s.
    pub expected_mae: f64,
    /// Share of the cells whose error is within one standard deviation; 0.683 where the errors are normal.
    pub within_one: f64,
    /// The same within two; 0.954.
    pub within_two: f64,
}

impl Coverage {
    /// Of standard deviations (nz, nx), m/s, for the errors of a map against the true one, all of one shape.
    pub fn of(deviations: &Array2<f64>, map: &Array2<f64>, truth: &Array2<f64>) -> Self {
        let n = map.len().max(1) as f64;
        let within = |times: f64| {
            let cells = map.iter().zip(truth).zip(deviations);
            cells.filter(|((a, b), s)| (*a - *b).abs() <= times * **s).count() as f64 / n
        };
        let expected_mae = deviations.iter().sum::<f64>() / n * std::f64::consts::FRAC_2_PI.sqrt();
        Self { expected_mae, within_one: within(1.0), within_two: within(2.0) }
    }
}

/// What came of one gather.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Name of the family.
    pub family: String,
    /// Where the map comes from.
    pub maps: String,
    /// Its number there, from 0.
    pub number: u64,
    /// Stands for the map, its gather and all settings.
    pub key: String,
    /// How it was inverted.
    pub recipe: String,
    /// Of the start.
    pub start: MapError,
    /// Of the result.
    pub result: MapError,
    /// Rms of the residual, in the data's units.
    pub data_rms: f64,
    /// The same of the true map: what rounding, or another operator, left in the data. Files of older benches lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise_rms: Option<f64>,
    /// Evaluations (one forward and one adjoint each).
    pub evaluations: u64,
    /// Iterations.
    pub iterations: u64,
    /// Normal matrices of Gauss-Newton steps.
    pub normal_matrices: u64,
    /// Seconds that these steps took besides their evaluations.
    pub curvature_seconds: f64,
    /// Seconds of one evaluation at the start, measured.
    pub evaluation_seconds: f64,
    /// Wall time of the inversion, s.
    pub seconds: f64,
    /// Mean absolute error, m/s, of the map that fitted best [`SOON`] seconds after the start: the result's where that came
    /// sooner, none where no iteration did.
    #[serde(default)]
    pub soon_mae: Option<f64>,
    /// Why it ended.
    pub stop_reason: String,
    /// Of the standard deviations, where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coverage: Option<Coverage>,
}

impl Case {
    /// Evaluations, and as many more as the time of the Gauss-Newton steps buys.
    pub fn equivalent_evaluations(&self) -> f64 {
        self.evaluations as f64 + self.curvature_seconds / self.evaluation_seconds
    }

    /// Takes over what an inversion tells.
    #[expect(clippy::too_many_arguments, reason = "no two of them belong together")]
    pub fn new(
        family: Family,
        maps: String,
        number: u64,
        key: String,
        recipe: String,
        outcome: &Outcome,
        truth: &Array2<f64>,
        evaluation_seconds: f64,
    ) -> Self {
        Self {
            family: family.name().into(),
            maps,
            number,
            key,
            recipe,
            start: MapError::of(&outcome.start.vp, truth),
            result: MapError::of(&outcome.model.vp, truth),
            data_rms: outcome.data_rms,
            noise_rms: None,
            evaluations: outcome.evaluations,
            iterations: outcome.iterations,
            normal_matrices: outcome.normal_matrices,
            curvature_seconds: outcome.curvature_seconds,
            evaluation_seconds,
            seconds: outcome.seconds,
            soon_mae: None,
            stop_reason: outcome.stop.to_string(),
            coverage: None,
        }
    }
}

/// Mean, median and largest of some numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Median; of an even number the mean of the middle two.
    pub median: f64,
    /// Largest.
    pub worst: f64,
}

impl Spread {
    /// Of numbers; `None` where there is none.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut x: Vec<f64> = numbers.into_iter().collect();
        x.sort_by(f64::total_cmp);
        let n = x.len();
        let worst = *x.last()?;
        Some(Self { mean: x.iter().sum::<f64>() / n as f64, median: 0.5 * (x[(n - 1) / 2] + x[n / 2]), worst })
    }
}

/// An error weighted with the contest's mix over the families that were measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Weighted {
    /// Over odd columns, as the contest scores, m/s.
    pub odd_mae: f64,
    /// Over all cells, m/s.
    pub mae: f64,
    /// Share of the contest's gathers that these families make up.
    pub share: f64,
}

/// Families' mean errors, weighted; `None` without cases.
pub fn weighted(cases: &[Case]) -> Option<Weighted> {
    let all: f64 = Family::ALL.into_iter().map(contest_gathers).sum();
    let (mut odd, mut mae, mut gathers) = (0.0, 0.0, 0.0);
    for family in Family::ALL {
        let of = || cases.iter().filter(|c| c.family == family.name());
        let Some(over_odd) = Spread::of(of().map(|c| c.result.odd_mae)) else { continue };
        let over_all = Spread::of(of().map(|c| c.result.mae))?;
        let weight = contest_gathers(family);
        odd += weight * over_odd.mean;
        mae += weight * over_all.mean;
        gathers += weight;
    }
    (gathers > 0.0).then(|| Weighted { odd_mae: odd / gathers, mae: mae / gathers, share: gathers / all })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_over_all_cells_and_odd_columns() {
        let truth = Array2::from_elem((2, 4), 2000.0);
        let map = Array2::from_shape_fn((2, 4), |(_, x)| 2000.0 + [0.5, 4.0, 1.0, 0.0][x]);
        let e = MapError::of(&map, &truth);
        assert_eq!((e.mae, e.odd_mae, e.exact), (5.5 / 4.0, 2.0, 0.5));
        let deviations = Array2::from_shape_fn((2, 4), |(_, x)| [0.5, 2.0, 0.4, 1.0][x]);
        let c = Coverage::of(&deviations, &map, &truth);
        assert_eq!((c.within_one, c.within_two), (0.5, 0.75));
        assert!((c.expected_mae - 0.975 * (2.0 / std::f64::consts::PI).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn spreads() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([3.0, 1.0, 8.0]), Some(Spread { mean: 4.0, median: 3.0, worst: 8.0 }));
        assert_eq!(Spread::of([3.0, 1.0]).unwrap().median, 2.0);
    }

    fn case(family: Family, mae: f64) -> Case {
        let error = MapError { mae, odd_mae: mae + 1.0, exact: 0.0 };
        Case {
            family: family.name().into(),
            maps: "synthetic".into(),
            number: 0,
            key: String::new(),
            recipe: String::new(),
            start: error,
            result: error,
            data_rms: 1e-3,
            noise_rms: None,
            evaluations: 10,
            iterations: 9,
            normal_matrices: 2,
            curvature_seconds: 3.0,
            evaluation_seconds: 0.25,
            seconds: 8.0,
            soon_mae: None,
            stop_reason: String::new(),
            coverage: None,
        }
    }

    #[test]
    fn the_contests_mix() {
        assert_eq!(Family::ALL.into_iter().map(contest_gathers).sum::<f64>().round(), 65_818.0);
        assert_eq!(weighted(&[]), None);
        let both = [case(Family::StyleA, 2.0), case(Family::StyleA, 4.0), case(Family::StyleB, 40.0)];
        let w = weighted(&both).unwrap();
        let mae = (5_663.0 * 3.0 + 6_337.0 * 40.0) / 12_000.0;
        assert!((w.mae - mae).abs() < 1e-9 && (w.odd_mae - mae - 1.0).abs() < 1e-9);
        assert!((w.share - 12_000.0 / 65_818.0).abs() < 1e-9);
        assert_eq!(both[0].equivalent_evaluations(), 22.0);
    }
}

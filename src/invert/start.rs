//! Starting models, and what the first sample tells exactly.
//!
//! When the wavelet's first sample `w` acts, the field is still zero everywhere, so the pressure recorded at the source
//! cell in that step is `(v dt)^2 w`: `v = sqrt(d / w) / dt` there, to rounding.

use crate::{Error, Model, Observed, Position, Result, Survey};
use ndarray::Array2;

/// Where an inversion begins.
///
/// A learned prior predicts a map and enters as [`Start::Map`].
#[derive(Clone, Debug, PartialEq)]
pub enum Start {
    /// Exact velocities at the sources, linear between them along the row, then a gradient with depth.
    Gradient,
    /// A given map, (nz, nx) in m/s; values beyond the bounds are moved onto them.
    Map(Array2<f64>),
}

/// Velocity at the bottom of the gradient start, m/s.
const BOTTOM: f64 = 4000.0;
/// Velocity at the top, m/s, when the first sample tells nothing.
const TOP: f64 = 1800.0;
/// Share of the source's first sample that other receivers may show at that time before it counts as noisy.
const QUIET: f64 = 1e-4;

impl Start {
    /// The starting model within `bounds` (m/s); `vmin` is the smallest velocity of the map.
    ///
    /// Errors when a given map has another shape than the survey's or a value that is not finite.
    pub fn model(&self, survey: &Survey, observed: &Observed, bounds: (f64, f64)) -> Result<Model> {
        let map = match self {
            Self::Gradient => gradient(survey, &source_velocities(survey, observed, bounds), bounds),
            Self::Map(map) if map.dim() != survey.map_shape() => {
                let ((a, b), (nz, nx)) = (map.dim(), survey.map_shape());
                return Err(Error::Usage(format!(
                    "the starting map is {a} x {b} but the survey's grid is {nz} x {nx}"
                )));
            }
            Self::Map(map) => map.clone(),
        };
        if let Some(((z, x), v)) = map.indexed_iter().find(|(_, v)| !v.is_finite()) {
            return Err(Error::Usage(format!(
                "the starting map holds {v} at row {z}, column {x}; give finite velocities in m/s"
            )));
        }
        Ok(Model::from_map(map.mapv(|v| v.clamp(bounds.0, bounds.1))))
    }
}

/// The velocities at source cells that the data give exactly: one entry a cell, m/s.
///
/// Left out are sources without a live receiver in their cell, shots whose other receivers are not silent at that
/// sample (noise, another time origin), and values beyond `bounds`.
pub fn source_velocities(survey: &Survey, observed: &Observed, bounds: (f64, f64)) -> Vec<(Position, f64)> {
    let Some(first) = survey.wavelet.iter().position(|&w| w != 0.0) else { return vec![] };
    if first >= observed.mask.nt {
        return vec![];
    }
    let mut known: Vec<(Position, f64)> = Vec::new();
    for (shot, &source) in survey.sources.iter().enumerate() {
        let sample = |r: usize| observed.gather.data[[shot, first, r]];
        let live = |r: &usize| observed.mask.live[[shot, *r]];
        let receivers = || (0..survey.receivers.len()).filter(live);
        let Some(own) = receivers().find(|&r| survey.receivers[r] == source) else { continue };
        let loudest =
            receivers().filter(|&r| survey.receivers[r] != source).map(|r| sample(r).abs()).fold(0.0, f64::max);
        let v = (sample(own) / survey.wavelet[first]).sqrt() / survey.dt;
        let plausible = v >= bounds.0 && v <= bounds.1 && loudest <= QUIET * sample(own).abs();
        if plausible && known.iter().all(|(p, _)| *p != source) {
            known.push((source, v));
        }
    }
    known
}

/// A map that is exact at the known cells, linear between them along the row and grows linearly with depth below.
fn gradient(survey: &Survey, known: &[(Position, f64)], bounds: (f64, f64)) -> Array2<f64> {
    let mut along: Vec<(usize, f64)> = known.iter().map(|(p, v)| (p.x, *v)).collect();
    along.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    along.dedup_by_key(|a| a.0);
    let row = known.iter().map(|(p, _)| p.z).min().unwrap_or(0);
    let depth = (survey.nz - 1).saturating_sub(row).max(1) as f64;
    let mut map = Array2::from_shape_fn(survey.map_shape(), |(z, x)| {
        let top = interpolate(&along, x).unwrap_or(TOP);
        let share = z.saturating_sub(row) as f64 / depth;
        (top + share * (BOTTOM - top).max(0.0)).clamp(bounds.0, bounds.1)
    });
    for &(p, v) in known {
        map[[p.z, p.x]] = v;
    }
    map
}

/// Piecewise linear through the points (sorted by column), constant outside; nothing without points.
fn interpolate(points: &[(usize, f64)], x: usize) -> Option<f64> {
    let after = points.partition_point(|p| p.0 < x);
    match (after.checked_sub(1).map(|i| points[i]), points.get(after)) {
        (Some((xa, va)), Some(&(xb, vb))) => Some(va + (vb - va) * (x - xa) as f64 / (xb - xa) as f64),
        (Some((_, v)), None) | (None, Some(&(_, v))) => Some(v),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Gather;

    /// First sample of every source as the operator makes it, with the same velocity law at all columns.
    fn gather(survey: &Survey, v: impl Fn(usize) -> f64) -> Gather {
        let mut g = Gather::new(ndarray::Array3::zeros(survey.gather_shape()));
        for (s, p) in survey.sources.iter().enumerate() {
            g.data[[s, 0, p.x]] = (v(p.x) * survey.dt).powi(2) * survey.wavelet[0];
            for r in 0..survey.receivers.len() {
                g.data[[s, 500, r]] = 1.0;
            }
        }
        g
    }

    #[test]
    fn the_first_sample_gives_the_source_row() {
        let survey = Survey::openfwi();
        let observed = Observed::new(gather(&survey, |x| 1700.0 + 10.0 * x as f64));
        let known = source_velocities(&survey, &observed, (1500.0, 4500.0));
        assert_eq!(known.len(), 5);
        let m = Start::Gradient.model(&survey, &observed, (1500.0, 4500.0)).unwrap();
        for x in 0..70 {
            let v = 1700.0 + 10.0 * x as f64;
            assert!((m.vp[[1, x]] - v).abs() < 1e-9 && (m.vp[[0, x]] - v).abs() < 1e-9);
            assert!((m.vp[[69, x]] - BOTTOM).abs() < 1e-9);
        }
        assert!((m.vmin - 1700.0).abs() < 1e-9);
    }

    #[test]
    fn falls_back_where_the_first_sample_tells_nothing() {
        let survey = Survey::openfwi();
        let bounds = (1500.0, 4500.0);
        let clean = gather(&survey, |_| 2000.0);
        let mut noisy = clean.clone();
        noisy.data[[2, 0, 5]] = 1e-3 * noisy.data[[2, 0, 34]];
        assert_eq!(source_velocities(&survey, &Observed::new(noisy), bounds).len(), 4);
        let silent = Observed::new(Gather::new(clean.data.mapv(|x| x.max(0.0))));
        assert!(source_velocities(&survey, &silent, bounds).is_empty());
        let m = Start::Gradient.model(&survey, &silent, bounds).unwrap();
        assert_eq!((m.vp[[0, 3]], m.vp[[69, 3]]), (TOP, BOTTOM));
        let fast = Observed::new(gather(&survey, |_| 9000.0));
        assert!(source_velocities(&survey, &fast, bounds).is_empty());
        let deaf = Survey { receivers: vec![Position { z: 5, x: 5 }], ..survey.clone() };
        let one = Observed::new(Gather::new(ndarray::Array3::ones(deaf.gather_shape())));
        assert!(source_velocities(&deaf, &one, bounds).is_empty());
    }

    #[test]
    fn a_given_map_is_checked_and_brought_within_bounds() {
        let survey = Survey::openfwi();
        let observed = Observed::new(gather(&survey, |_| 2000.0));
        let start = |m: Array2<f64>| Start::Map(m).model(&survey, &observed, (1500.0, 4500.0));
        let mut map = Array2::from_elem((70, 70), 1400.0);
        map[[0, 0]] = 9e9;
        let m = start(map.clone()).unwrap();
        assert_eq!((m.vp[[0, 0]], m.vp[[1, 1]], m.vmin), (4500.0, 1500.0, 1500.0));
        map[[3, 4]] = f64::NAN;
        assert!(start(map).unwrap_err().to_string().contains("row 3, column 4"));
        assert!(start(Array2::zeros((2, 3))).unwrap_err().to_string().contains("2 x 3"));
    }
}

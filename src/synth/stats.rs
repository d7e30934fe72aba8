//! Statistics of velocity maps, and how far two sets of them are apart.
//!
//! A layer is a run of cells down a column whose velocities differ by at most 1 m/s from one to the next. A change is a
//! larger difference between neighbours. Distances are Kolmogorov and Smirnov's: the largest difference between two
//! cumulative distributions, 0 where they agree, 1 where they have nothing in common.

use ndarray::{Array2, ArrayView2};
use std::collections::HashSet;
use std::f64::consts::{PI, TAU};

/// Differences up to this, m/s, are none.
const SAME: f64 = 1.0;
/// Bounds of the value histogram, a bin per m/s, m/s.
const RANGE: (usize, usize) = (1000, 5000);
/// First wavenumbers of the octave bands, cycles per map; the last band has no end.
pub const OCTAVES: [usize; 5] = [1, 2, 4, 8, 16];

/// Numbers counted as whole ones, from 0.
#[derive(Clone, Debug, Default, PartialEq)]
struct Histogram(Vec<u64>);

impl Histogram {
    fn add(&mut self, value: usize) {
        if self.0.len() <= value {
            self.0.resize(value + 1, 0);
        }
        self.0[value] += 1;
    }

    fn total(&self) -> f64 {
        self.0.iter().sum::<u64>() as f64
    }

    /// Mean and standard deviation.
    fn moments(&self) -> (f64, f64) {
        let n = self.total();
        let sum =
            |f: &dyn Fn(f64) -> f64| self.0.iter().enumerate().map(|(v, &c)| c as f64 * f(v as f64)).sum::<f64>() / n;
        let mean = sum(&|v| v);
        (mean, sum(&|v| (v - mean).powi(2)).sqrt())
    }

    fn distance(&self, other: &Self) -> f64 {
        let (mut a, mut b, mut largest) = (0.0, 0.0, 0.0f64);
        for i in 0..self.0.len().max(other.0.len()) {
            a += self.0.get(i).map_or(0.0, |&c| c as f64 / self.total());
            b += other.0.get(i).map_or(0.0, |&c| c as f64 / other.total());
            largest = largest.max((a - b).abs());
        }
        largest
    }
}

/// Kolmogorov and Smirnov's distance of two samples; NaN where one is empty.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    if a.is_empty() || b.is_empty() {
        return f64::NAN;
    }
    let sorted = |v: &[f64]| {
        let mut v = v.to_vec();
        v.sort_unstable_by(f64::total_cmp);
        v
    };
    let (a, b) = (sorted(a), sorted(b));
    let (mut i, mut j, mut largest) = (0, 0, 0.0f64);
    while i < a.len() && j < b.len() {
        let value = a[i].min(b[j]);
        i += a[i..].partition_point(|&v| v <= value);
        j += b[j..].partition_point(|&v| v <= value);
        largest = largest.max((i as f64 / a.len() as f64 - j as f64 / b.len() as f64).abs());
    }
    largest
}

/// Statistics of a set of maps of one shape, gathered map by map.
#[derive(Clone, Debug)]
pub struct Statistics {
    shape: (usize, usize),
    transform: (Fourier, Fourier),
    constant: u64,
    cells: u64,
    whole: u64,
    columns: u64,
    monotone: u64,
    changes: u64,
    values: Histogram,
    layers: Histogram,
    thickness: Histogram,
    /// Per map: distinct velocities, total variation downwards and across, share of sharp changes, share of each octave.
    distinct: Vec<f64>,
    variation: (Vec<f64>, Vec<f64>),
    sharp: Vec<f64>,
    octaves: [Vec<f64>; OCTAVES.len()],
    /// By depth: sums of velocities and of their squares.
    depth: Vec<(f64, f64)>,
    /// Sums of power by radial wavenumber, cycles per map.
    spectrum: Vec<f64>,
}

impl Statistics {
    /// Of no map of shape (nz, nx) yet.
    pub fn new(shape: (usize, usize)) -> Self {
        Self {
            shape,
            transform: (Fourier::new(shape.0), Fourier::new(shape.1)),
            constant: 0,
            cells: 0,
            whole: 0,
            columns: 0,
            monotone: 0,
            changes: 0,
            values: Histogram::default(),
            layers: Histogram::default(),
            thickness: Histogram::default(),
            distinct: vec![],
            variation: (vec![], vec![]),
            sharp: vec![],
            octaves: Default::default(),
            depth: vec![(0.0, 0.0); shape.0],
            spectrum: vec![0.0; shape.0.min(shape.1) / 2 + 1],
        }
    }

    /// Adds a map in m/s.
    ///
    /// # Panics
    /// When it has another shape.
    pub fn add(&mut self, map: ArrayView2<f64>) {
        assert_eq!(map.dim(), self.shape, "maps of one set have one shape");
        let first = map.column(0);
        let same = |a: f64, b: f64| (a - b).abs() <= SAME;
        self.constant += u64::from(map.columns().into_iter().all(|c| c.iter().zip(first).all(|(&a, &b)| same(a, b))));
        self.cells += map.len() as u64;
        self.whole += map.iter().filter(|v| v.fract() == 0.0).count() as u64;
        self.distinct.push(map.iter().map(|v| v.to_bits()).collect::<HashSet<_>>().len() as f64);
        let bin = |v: f64| (v.round() as usize).clamp(RANGE.0, RANGE.1) - RANGE.0;
        map.iter().for_each(|&v| self.values.add(bin(v)));
        for (row, sums) in map.rows().into_iter().zip(&mut self.depth) {
            row.iter().for_each(|v| *sums = (sums.0 + v, sums.1 + v * v));
        }
        let (mut changes, mut sharp) = (0, 0);
        for column in map.columns() {
            let change: Vec<bool> = column.windows(2).into_iter().map(|w| !same(w[0], w[1])).collect();
            let mut thickness = 1;
            for &changed in &change {
                if changed {
                    self.thickness.add(thickness);
                    thickness = 0;
                }
                thickness += 1;
            }
            self.thickness.add(thickness);
            let of_column = change.iter().filter(|&&c| c).count();
            self.layers.add(of_column + 1);
            self.columns += 1;
            self.monotone += u64::from(column.windows(2).into_iter().all(|w| w[1] >= w[0] - SAME));
            changes += of_column;
            let alone = |i: usize| change[i] && !(i > 0 && change[i - 1]) && !change.get(i + 1).is_some_and(|&c| c);
            sharp += (0..change.len()).filter(|&i| alone(i)).count();
        }
        self.changes += changes as u64;
        if changes > 0 {
            self.sharp.push(sharp as f64 / changes as f64);
        }
        let variation = |pairs: ndarray::iter::Windows<f64, ndarray::Ix2>| {
            let differences: Vec<f64> =
                pairs.into_iter().map(|w| (w.first().unwrap() - w.last().unwrap()).abs()).collect();
            differences.iter().sum::<f64>() / differences.len().max(1) as f64
        };
        self.variation.0.push(variation(map.windows((2, 1))));
        self.variation.1.push(variation(map.windows((1, 2))));
        self.add_spectrum(map);
    }

    fn add_spectrum(&mut self, map: ArrayView2<f64>) {
        let power = self.power(map);
        let total: f64 = power[1..].iter().sum();
        self.spectrum.iter_mut().zip(&power).for_each(|(sum, p)| *sum += p);
        for (i, shares) in self.octaves.iter_mut().enumerate() {
            let end = OCTAVES.get(i + 1).map_or(power.len(), |&e| e.min(power.len()));
            let band: f64 = power.get(OCTAVES[i]..end).map_or(0.0, |band| band.iter().sum());
            shares.push(if total > 0.0 { band / total } else { 0.0 });
        }
    }

    /// Power of the map less its mean, under a Hann window, by radial wavenumber in cycles per map.
    fn power(&self, map: ArrayView2<f64>) -> Vec<f64> {
        let (down, across) = &self.transform;
        let mean = map.sum() / map.len() as f64;
        let windowed =
            Array2::from_shape_fn(map.dim(), |(z, x)| (map[[z, x]] - mean) * down.window[z] * across.window[x]);
        // cosine and sine parts of each axis in turn
        let (c, s) = (windowed.dot(&across.cosine), windowed.dot(&across.sine));
        let (cc, cs) = (down.cosine.t().dot(&c), down.cosine.t().dot(&s));
        let (sc, ss) = (down.sine.t().dot(&c), down.sine.t().dot(&s));
        let mut power = vec![0.0; self.spectrum.len()];
        for kz in 0..map.nrows() {
            for kx in 0..map.ncols() {
                let frequency = |k: usize, n: usize| k.min(n - k) as f64;
                let radius = frequency(kz, map.nrows()).hypot(frequency(kx, map.ncols())).round() as usize;
                if let Some(sum) = power.get_mut(radius) {
                    let (re, im) = (cc[[kz, kx]] - ss[[kz, kx]], cs[[kz, kx]] + sc[[kz, kx]]);
                    *sum += (re * re + im * im) / map.len() as f64;
                }
            }
        }
        power
    }

    /// Number of maps.
    pub fn maps(&self) -> usize {
        self.distinct.len()
    }

    /// The statistics by name, with a mean and a standard deviation where there is one; values are in the unit that the
    /// name ends with. Without maps they are not finite.
    pub fn rows(&self) -> Vec<(String, f64, Option<f64>)> {
        let share = |part: u64, whole: u64| 100.0 * part as f64 / whole as f64;
        let plain = |name: &str, value: f64| (name.to_string(), value, None);
        let spread = |name: &str, (mean, sd): (f64, f64)| (name.to_string(), mean, Some(sd));
        let percent = |(mean, sd): (f64, f64)| (100.0 * mean, 100.0 * sd);
        let sums = self.depth.iter().fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
        let mut rows = vec![
            plain("maps", self.maps() as f64),
            plain("horizontally constant maps, %", share(self.constant, self.maps() as u64)),
            spread("distinct velocities in a map", moments(&self.distinct)),
            plain("whole-number velocities, %", share(self.whole, self.cells)),
            spread("layers down a column", self.layers.moments()),
            spread("thickness of a layer, cells", self.thickness.moments()),
            plain("columns that never slow down, %", share(self.monotone, self.columns)),
            spread("velocity, m/s", of_sums(sums, self.cells as f64)),
            spread("total variation in z, m/s a cell", moments(&self.variation.0)),
            spread("total variation in x, m/s a cell", moments(&self.variation.1)),
            spread("sharp changes among those in z, %", percent(moments(&self.sharp))),
        ];
        let last = self.shape.0 - 1;
        let mut depths: Vec<usize> = (0..self.shape.0).step_by(10).chain([last]).collect();
        depths.dedup();
        rows.extend(depths.into_iter().map(|z| spread(&format!("velocity in row {z}, m/s"), self.at_depth(z))));
        for (lo, hi, share) in self.velocity_shares(500) {
            rows.push(plain(&format!("velocities {lo}..{hi} m/s, %"), 100.0 * share));
        }
        for (i, shares) in self.octaves.iter().enumerate() {
            rows.push(spread(&format!("power {}, %", octave(i)), percent(moments(shares))));
        }
        rows
    }

    /// Mean and standard deviation of the velocities in a row, m/s.
    pub fn at_depth(&self, z: usize) -> (f64, f64) {
        of_sums(self.depth[z], (self.maps() * self.shape.1) as f64)
    }

    /// Shares of velocities from 1500 to 4500 m/s, in bins of `width` m/s: ends and share. What lies beyond counts in the
    /// first and the last.
    pub fn velocity_shares(&self, width: usize) -> Vec<(usize, usize, f64)> {
        let (least, most) = (1500, 4500);
        let count =
            |from: usize, to: usize| self.values.0.iter().take(to).skip(from).sum::<u64>() as f64 / self.values.total();
        let bin = |lo: usize| {
            let hi = (lo + width).min(most);
            let from = if lo == least { 0 } else { lo - RANGE.0 };
            let to = if hi == most { usize::MAX } else { hi - RANGE.0 };
            (lo, hi, count(from, to))
        };
        (least..most).step_by(width).map(bin).collect()
    }

    /// Mean power by radial wavenumber, from 1 cycle a map on.
    pub fn spectrum(&self) -> Vec<f64> {
        self.spectrum[1..].iter().map(|p| p / self.maps() as f64).collect()
    }

    /// How far apart two sets are, by name: distributions by Kolmogorov and Smirnov's distance, the mean profile in m/s.
    pub fn distances(&self, other: &Self) -> Vec<(String, f64)> {
        let profile = |z| (self.at_depth(z).0 - other.at_depth(z).0).abs();
        let depth = self.shape.0.min(other.shape.0);
        let mut rows = vec![
            ("distinct velocities in a map".to_string(), distance(&self.distinct, &other.distinct)),
            ("layers down a column".to_string(), self.layers.distance(&other.layers)),
            ("thickness of a layer".to_string(), self.thickness.distance(&other.thickness)),
            ("velocity".to_string(), self.values.distance(&other.values)),
            ("total variation in z".to_string(), distance(&self.variation.0, &other.variation.0)),
            ("total variation in x".to_string(), distance(&self.variation.1, &other.variation.1)),
            ("sharp changes".to_string(), distance(&self.sharp, &other.sharp)),
        ];
        for (i, (a, b)) in self.octaves.iter().zip(&other.octaves).enumerate() {
            rows.push((format!("power {}", octave(i)), distance(a, b)));
        }
        rows.push(("mean profile, m/s apart".into(), (0..depth).map(profile).sum::<f64>() / depth as f64));
        rows
    }
}

/// Mean and standard deviation of `n` numbers from their sum and that of their squares.
fn of_sums((sum, squares): (f64, f64), n: f64) -> (f64, f64) {
    let mean = sum / n;
    (mean, (squares / n - mean * mean).max(0.0).sqrt())
}

/// An octave in words.
fn octave(i: usize) -> String {
    match OCTAVES.get(i + 1) {
        Some(end) => format!("at {}..{end} cycles a map", OCTAVES[i]),
        None => format!("from {} cycles a map", OCTAVES[i]),
    }
}

/// Mean and standard deviation.
fn moments(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (mean, (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt())
}

/// A discrete Fourier transform as matrices (cell, wavenumber), and the Hann window.
#[derive(Clone, Debug)]
struct Fourier {
    cosine: Array2<f64>,
    sine: Array2<f64>,
    window: Vec<f64>,
}

impl Fourier {
    fn new(n: usize) -> Self {
        let phase = |(i, k): (usize, usize)| TAU * ((i * k) % n) as f64 / n as f64;
        Self {
            cosine: Array2::from_shape_fn((n, n), |at| phase(at).cos()),
            sine: Array2::from_shape_fn((n, n), |at| phase(at).sin()),
            window: (0..n).map(|i| (PI * (i as f64 + 0.5) / n as f64).sin().powi(2)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(maps: &[Array2<f64>]) -> Statistics {
        let mut s = Statistics::new((70, 70));
        maps.iter().for_each(|m| s.add(m.view()));
        s
    }

    fn row(s: &Statistics, name: &str) -> (f64, f64) {
        let (_, value, sd) = s.rows().into_iter().find(|r| r.0.starts_with(name)).unwrap();
        (value, sd.unwrap_or(f64::NAN))
    }

    #[test]
    fn layers_are_counted() {
        // 10, 20 and 40 cells of 1500, 2500.5 and 2000 m/s
        let flat = Array2::from_shape_fn((70, 70), |(z, _)| {
            if z < 10 {
                1500.0
            } else if z < 30 {
                2500.5
            } else {
                2000.0
            }
        });
        let mut dipping = flat.clone();
        dipping.slice_mut(ndarray::s![20.., 35..]).fill(4000.0);
        let s = of(&[flat, dipping]);
        assert_eq!(row(&s, "maps").0, 2.0);
        assert_eq!(row(&s, "horizontally constant").0, 50.0);
        assert_eq!(row(&s, "distinct").0, 3.5);
        assert_eq!(row(&s, "layers down").0, 3.0);
        assert_eq!(row(&s, "columns that never").0, 25.0);
        assert!((row(&s, "thickness").0 - 70.0 / 3.0).abs() < 1e-9);
        assert_eq!(row(&s, "sharp changes").0, 100.0);
        assert_eq!(row(&s, "velocity in row 0"), (1500.0, 0.0));
        assert!((row(&s, "whole-number").0 - 100.0 * (1.0 - (20.0 * 1.5 + 10.0 * 0.5) / 140.0)).abs() < 1e-9);
        assert!((row(&s, "velocities 1500..2000").0 - 100.0 / 7.0).abs() < 1e-9);
        assert!((s.velocity_shares(50).iter().map(|b| b.2).sum::<f64>() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn moments_are_those_of_the_rows_beyond_the_histogram_too() {
        let s = of(&[Array2::from_shape_fn((70, 70), |(_, x)| [340.0, 8000.5][x % 2])]);
        assert_eq!(row(&s, "velocity, m/s"), row(&s, "velocity in row 10"));
        assert_eq!(row(&s, "velocity in row 0").0, 4170.25);
    }

    #[test]
    fn a_wave_stands_in_its_octave() {
        let wave =
            |k: f64| Array2::from_shape_fn((70, 70), |(_, x)| 3000.0 + 500.0 * (TAU * k * x as f64 / 70.0).cos());
        let s = of(&[wave(6.0)]);
        assert!(row(&s, "power at 4..8").0 > 95.0, "{:?}", s.rows());
        let peak = s.spectrum().iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
        assert_eq!(peak + 1, 6);
        assert!(row(&of(&[wave(20.0)]), "power from 16").0 > 95.0);
        assert!(row(&s, "total variation in x").0 > 100.0 && row(&s, "total variation in z").0 == 0.0);
    }

    #[test]
    fn distances_tell_sets_apart() {
        let map = |v: f64, n: usize| Array2::from_shape_fn((70, 70), |(z, _)| v + 300.0 * (z * n / 70) as f64);
        let (a, b) = (of(&[map(1600.0, 3), map(1700.0, 4)]), of(&[map(3000.0, 5), map(3100.0, 5)]));
        assert!(a.distances(&a).iter().all(|d| d.1 == 0.0));
        let between = a.distances(&b);
        let of_name = |name: &str| between.iter().find(|d| d.0.starts_with(name)).unwrap().1;
        assert_eq!((of_name("layers"), of_name("velocity")), (1.0, 1.0));
        assert!(of_name("mean profile") > 1000.0);
        assert_eq!(distance(&[1.0, 2.0, 3.0, 4.0], &[1.0, 2.0, 9.0, 9.0]), 0.5);
        assert_eq!(distance(&[1.0, 1.0], &[1.0]), 0.0);
    }
}

//! The acquisition: grid, time axis, sources, receivers, wavelet and sponge; and the limits of the scheme on it.
//!
//! The preset is OpenFWI's: 70 x 70 cells of 10 m padded by 120 cells, 1000 steps of 1 ms, 5 shots and 70 receivers
//! in row 1, a 15 Hz Ricker wavelet.

use crate::{Error, Result};

/// A grid cell of the map: row (depth) and column (distance), both from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// Row, depth in cells.
    pub z: usize,
    /// Column, distance in cells.
    pub x: usize,
}

/// Everything about an acquisition that is not the ground.
#[derive(Clone, Debug, PartialEq)]
pub struct Survey {
    /// Rows of the map (depth).
    pub nz: usize,
    /// Columns of the map (distance).
    pub nx: usize,
    /// Cell size, m.
    pub dx: f64,
    /// Time step, s.
    pub dt: f64,
    /// Number of time samples.
    pub nt: usize,
    /// Width of the sponge on each side, cells (at least 2; 120 in OpenFWI).
    pub sponge: usize,
    /// One source a shot.
    pub sources: Vec<Position>,
    /// Receivers, the same for every shot.
    pub receivers: Vec<Position>,
    /// Source time function, one value a time step, zero beyond its end.
    pub wavelet: Vec<f64>,
}

/// Ricker wavelet of the lab code that made OpenFWI's data: `2 floor(1.1 / (f dt)) + 1` samples, peak in the middle.
///
/// `b = ((c - k) pi f dt)^2`, `w[k] = (1 - 2 b) exp(-b)` with `c` half the length; 147 samples at 15 Hz and 1 ms.
pub fn ricker(frequency: f64, dt: f64) -> Vec<f64> {
    let half = (1.1 / (frequency * dt)).floor() as usize;
    (0..2 * half + 1)
        .map(|k| {
            let b = ((half as f64 - k as f64) * std::f64::consts::PI * frequency * dt).powi(2);
            (1.0 - 2.0 * b) * (-b).exp()
        })
        .collect()
}

impl Survey {
    /// OpenFWI's acquisition, that of the Kaggle contest too.
    pub fn openfwi() -> Self {
        let dt = 1e-3;
        Self {
            nz: 70,
            nx: 70,
            dx: 10.0,
            dt,
            nt: 1000,
            sponge: 120,
            sources: [0, 17, 34, 52, 69].map(|x| Position { z: 1, x }).to_vec(),
            receivers: (0..70).map(|x| Position { z: 1, x }).collect(),
            wavelet: ricker(15.0, dt),
        }
    }

    /// Shape (nz, nx) of the map.
    pub fn map_shape(&self) -> (usize, usize) {
        (self.nz, self.nx)
    }

    /// Shape (shots, time samples, receivers) of a gather.
    pub fn gather_shape(&self) -> (usize, usize, usize) {
        (self.sources.len(), self.nt, self.receivers.len())
    }

    /// Shape (rows, columns) of the padded, periodic grid.
    pub fn padded_shape(&self) -> (usize, usize) {
        (self.nz + 2 * self.sponge, self.nx + 2 * self.sponge)
    }

    /// Wavelet at step `it` (zero beyond its end).
    pub fn wavelet_at(&self, it: usize) -> f64 {
        self.wavelet.get(it).copied().unwrap_or(0.0)
    }

    /// Damping rate per m/s at `i` cells into the sponge (0 at its inner edge), 1/m: `3 ln(1e7) / (2 a) (i dx / a)^2`
    /// with `a` the sponge's width; the sponge's kappa is `dt * vmin` times this.
    pub fn damping(&self, i: usize) -> f64 {
        let a = (self.sponge - 1) as f64 * self.dx;
        3.0 * 1e7f64.ln() / (2.0 * a) * (i as f64 * self.dx / a).powi(2)
    }

    /// Largest velocity that the scheme is stable for with this `vmin`, m/s.
    ///
    /// The most oscillating mode multiplies `alpha` by 32/3; leapfrog with damping kappa is stable while
    /// `32/3 alpha <= 4 - 2 kappa`.
    pub fn stable_velocity(&self, vmin: f64) -> f64 {
        let kappa = self.dt * vmin * self.damping(self.sponge - 1);
        ((4.0 - 2.0 * kappa).max(0.0) * 3.0 / 32.0).sqrt() * self.dx / self.dt
    }

    /// Highest frequency at which the wavelet's spectrum still holds 1% of its peak, Hz.
    pub fn bandwidth(&self) -> f64 {
        let amplitude = |f: f64| {
            let w = 2.0 * std::f64::consts::PI * f * self.dt;
            let (mut re, mut im) = (0.0, 0.0);
            for (k, a) in self.wavelet.iter().enumerate() {
                re += a * (w * k as f64).cos();
                im += a * (w * k as f64).sin();
            }
            re.hypot(im)
        };
        let nyquist = 0.5 / self.dt;
        let n = 500;
        let spectrum: Vec<f64> = (0..=n).map(|i| amplitude(nyquist * i as f64 / n as f64)).collect();
        let peak = spectrum.iter().copied().fold(0.0, f64::max);
        let last = spectrum.iter().rposition(|&a| a >= 0.01 * peak).unwrap_or(0);
        nyquist * last as f64 / n as f64
    }

    /// Checks the acquisition itself: sizes, positions inside the map, finite numbers.
    pub fn validate(&self) -> Result<()> {
        let fail = |m: String| Err(Error::Usage(m));
        if self.nz == 0 || self.nx == 0 || self.nt == 0 {
            return fail(format!(
                "a survey needs at least one cell and one sample, not {} x {} cells and {} samples",
                self.nz, self.nx, self.nt
            ));
        }
        if self.sponge < 2 {
            return fail(format!("the sponge must be at least 2 cells wide, not {}", self.sponge));
        }
        if !(self.dx.is_finite() && self.dx > 0.0 && self.dt.is_finite() && self.dt > 0.0) {
            return fail(format!("dx and dt must be positive and finite, not {} m and {} s", self.dx, self.dt));
        }
        if self.sources.is_empty() || self.receivers.is_empty() {
            return fail("a survey needs at least one source and one receiver".into());
        }
        for (what, list) in [("source", &self.sources), ("receiver", &self.receivers)] {
            if let Some(p) = list.iter().find(|p| p.z >= self.nz || p.x >= self.nx) {
                return fail(format!(
                    "{what} at row {}, column {} lies outside the {} x {} map",
                    p.z, p.x, self.nz, self.nx
                ));
            }
        }
        if self.wavelet.is_empty() || self.wavelet.iter().any(|w| !w.is_finite()) {
            return fail("the wavelet must hold at least one value, and only finite ones".into());
        }
        Ok(())
    }

    /// Checks that `vp` values between `slowest` and `fastest` and this `vmin` give a stable, well sampled run;
    /// the error holds the numbers. At least 3 cells per wavelength are asked at the [bandwidth](Self::bandwidth).
    pub fn check_velocities(&self, slowest: f64, fastest: f64, vmin: f64) -> Result<()> {
        self.check_sampling(self.bandwidth(), slowest, fastest, vmin)
    }

    /// [`Survey::check_velocities`] for a bandwidth that is known already.
    pub(crate) fn check_sampling(&self, band: f64, slowest: f64, fastest: f64, vmin: f64) -> Result<()> {
        if !(slowest.is_finite() && fastest.is_finite() && vmin.is_finite() && slowest > 0.0 && vmin > 0.0) {
            return Err(Error::Numerical(format!(
                "velocities must be positive and finite, not {slowest}..{fastest} m/s with vmin {vmin} m/s"
            )));
        }
        let limit = self.stable_velocity(vmin);
        if fastest > limit {
            return Err(Error::Numerical(format!(
                "unstable: the fastest velocity {fastest:.1} m/s exceeds {limit:.1} m/s, the limit for dx = {} m and dt = {} s; use a smaller dt or larger dx",
                self.dx, self.dt
            )));
        }
        let cells = slowest / (self.dx * band);
        if band > 0.0 && cells < 3.0 {
            return Err(Error::Numerical(format!(
                "undersampled: the slowest velocity {slowest:.1} m/s at the wavelet's {band:.1} Hz gives {cells:.2} cells per wavelength, fewer than 3; use a smaller dx or a lower frequency"
            )));
        }
        Ok(())
    }
}

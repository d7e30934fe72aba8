//! A Gaussian process prior of the map: `m ~ N(mean, C)` with
//!
//! ```text
//! C = S (sigma^2 Kz (x) Kx + white^2 I) S + mean_sigma^2 1 1' + slope_sigma^2 z z'
//! ```
//!
//! `Kz` and `Kx` are squared-exponential kernels down and across, `S` a diagonal of factors per cell, `z` the row counted
//! from the map's middle. The eigenvectors of the Kronecker product are products of those of the two small kernels
//! (Saatci, Scalable Inference for Structured Gaussian Process Models, 2011), so two eigenproblems of order 70, a few
//! milliseconds, stand for one of order 4,900: there is nothing worth keeping on disk between runs. The last two terms enter
//! the precision by the formula of Sherman and Morrison, one after the other.

use super::Regulariser;
use super::neighbours::over_cells;
use crate::curvature::Columns;
use crate::{Error, Model, Result};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use ndarray::Array2;

/// The numbers that define a covariance.
#[derive(Clone, Debug, PartialEq)]
pub struct Covariance {
    /// Standard deviation of the smooth part, m/s (a factor where factors per cell are given).
    pub sigma: f64,
    /// Length of the kernel `exp(-d^2 / (2 length^2))`, cells.
    pub length: f64,
    /// Standard deviation of the part that differs from cell to cell, in the unit of `sigma`. Above 0, or `C` is singular.
    pub white: f64,
    /// Standard deviation of a shift of the whole map, m/s; 0 for none.
    pub mean_sigma: f64,
    /// Standard deviation of a gradient with depth about the middle row, m/s per row; 0 for none.
    pub slope_sigma: f64,
}

impl Covariance {
    /// Errors, in one line, on numbers that make no covariance.
    pub fn validate(&self) -> Result<()> {
        let Self { sigma, length, white, mean_sigma, slope_sigma } = *self;
        let fail = |what: String| Err(Error::Usage(format!("regulariser gaussian-process: {what}")));
        for (what, x) in [("sigma", sigma), ("length", length), ("white", white)] {
            if !(1e-6..1e6).contains(&x) {
                return fail(format!("{what} must lie between 1e-6 and 1e6, not {x}"));
            }
        }
        for (what, x) in [("mean_sigma", mean_sigma), ("slope_sigma", slope_sigma)] {
            if !(0.0..1e6).contains(&x) {
                return fail(format!("{what} must lie between 0 and 1e6, not {x}"));
            }
        }
        Ok(())
    }
}

/// The prior; `value` leaves out the constant `ln det(2 pi C) / 2`. `vmin` is free.
#[derive(Clone, Debug)]
pub struct GaussianProcess {
    covariance: Covariance,
    mean: Array2<f64>,
    /// `S`, row by row.
    factors: Option<Vec<f64>>,
    /// Eigenvectors of the kernels.
    down: Mat<f64>,
    across: Mat<f64>,
    /// Eigenvalues of the smooth part, sigma^2 lz lx, (nz, nx).
    smooth: Array2<f64>,
    /// The precision without the mean and slope terms is this much, as b b', above the one with them.
    excess: Vec<Vec<f64>>,
}

impl GaussianProcess {
    /// About a map (nz, nx) in m/s, with a factor for every cell where given (same shape, above 0). Errors on numbers that
    /// make no sense.
    pub fn new(covariance: Covariance, mean: Array2<f64>, factors: Option<&Array2<f64>>) -> Result<Self> {
        covariance.validate()?;
        let (nz, nx) = mean.dim();
        if nz == 0 || nx == 0 || !mean.iter().all(|v| v.is_finite()) {
            return Err(Error::Usage(format!(
                "regulariser gaussian-process: the mean map ({nz} x {nx}) must be whole and finite"
            )));
        }
        if let Some(f) = factors
            && (f.dim() != mean.dim() || !f.iter().all(|f| (1e-6..1e6).contains(f)))
        {
            return Err(Error::Usage(format!(
                "regulariser gaussian-process: the confidence map must be {nz} x {nx} with values between 1e-6 and 1e6"
            )));
        }
        let (lz, down) = eigen(nz, covariance.length)?;
        let (lx, across) = eigen(nx, covariance.length)?;
        let variance = covariance.sigma.powi(2);
        let smooth = Array2::from_shape_fn((nz, nx), |(z, x)| variance * lz[z] * lx[x]);
        let factors = factors.map(|f| f.iter().copied().collect());
        let (mean_sigma, slope_sigma) = (covariance.mean_sigma, covariance.slope_sigma);
        let mut gp = Self { covariance, mean, factors, down, across, smooth, excess: Vec::new() };
        let middle = 0.5 * (nz as f64 - 1.0);
        let shift = vec![mean_sigma; nz * nx];
        let slope: Vec<f64> = (0..nz * nx).map(|i| slope_sigma * ((i / nx) as f64 - middle)).collect();
        for u in [shift, slope] {
            if u.iter().any(|&x| x != 0.0) {
                let w = gp.precision_times(&u);
                let norm = (1.0 + dot(&u, &w)).sqrt();
                gp.excess.push(w.iter().map(|w| w / norm).collect());
            }
        }
        Ok(gp)
    }

    /// The product of the precision, the inverse of `C`, with numbers for the cells, row by row.
    pub fn precision_times(&self, x: &[f64]) -> Vec<f64> {
        let (nz, nx) = self.mean.dim();
        let white = self.covariance.white.powi(2);
        let mut y = x.to_vec();
        self.unscale(&mut y);
        let mut c = sandwich(self.down.transpose(), &y, self.across.as_ref());
        for z in 0..nz {
            for x in 0..nx {
                c[z * nx + x] /= self.smooth[[z, x]] + white;
            }
        }
        let mut y = sandwich(self.down.as_ref(), &c, self.across.transpose());
        self.unscale(&mut y);
        for b in &self.excess {
            let s = dot(b, x);
            y.iter_mut().zip(b).for_each(|(y, b)| *y -= s * b);
        }
        y
    }

    /// The principal directions of the part in `S`, largest first: those whose variance in the smooth part is at least `share`
    /// of the largest's. The shift and the gradient with depth are not among them.
    pub fn directions(&self, share: f64) -> Directions {
        let nx = self.mean.ncols();
        let largest = self.smooth.iter().copied().fold(0.0, f64::max);
        let mut kept: Vec<(usize, f64)> =
            self.smooth.iter().copied().enumerate().filter(|&(_, l)| l >= share * largest).collect();
        kept.sort_by(|a, b| b.1.total_cmp(&a.1));
        let white = self.covariance.white.powi(2);
        Directions {
            down: self.down.clone(),
            across: self.across.clone(),
            pairs: kept.iter().map(|&(i, _)| (i / nx, i % nx)).collect(),
            scale: kept.iter().map(|&(_, l)| (l + white).sqrt()).collect(),
            weight: self.factors.clone(),
        }
    }

    fn unscale(&self, x: &mut [f64]) {
        if let Some(s) = &self.factors {
            x.iter_mut().zip(s).for_each(|(x, s)| *x /= s);
        }
    }

    fn offset(&self, m: &Model) -> Vec<f64> {
        m.vp.iter().zip(&self.mean).map(|(v, mean)| v - mean).collect()
    }

    /// The eigenvectors across at the cells of a row, over that row's factors.
    fn row_basis(&self, z: usize) -> Mat<f64> {
        let nx = self.mean.ncols();
        let factor = |x: usize| self.factors.as_ref().map_or(1.0, |s| s[z * nx + x]);
        Mat::from_fn(nx, nx, |x, k| self.across[(x, k)] / factor(x))
    }
}

impl Regulariser for GaussianProcess {
    fn describe(&self) -> String {
        let Covariance { sigma, length, white, mean_sigma, slope_sigma } = self.covariance;
        let unit = if self.factors.is_some() { "confidences" } else { "m/s" };
        format!(
            "Gaussian process, {sigma} {unit} over {length} cells and {white} {unit} a cell about its mean, \
             shift {mean_sigma} m/s, slope {slope_sigma} m/s per row"
        )
    }

    fn value(&self, m: &Model) -> f64 {
        let d = self.offset(m);
        0.5 * dot(&d, &self.precision_times(&d))
    }

    fn gradient(&self, m: &Model) -> Model {
        over_cells(m, self.precision_times(&self.offset(m)))
    }

    fn curvature_times(&self, _: &Model, x: &[f64]) -> Vec<f64> {
        let mut y = self.precision_times(&x[..x.len() - 1]);
        y.push(0.0);
        y
    }

    /// Row by row of cells: the block of rows z and z' is `Vx diag(sum over k of Vz[z, k] Vz[z', k] / lambda[k, .]) Vx'`.
    fn curvature(&self, _: &Model, add: &mut dyn FnMut(usize, usize, f64)) {
        let (nz, nx) = self.mean.dim();
        let white = self.covariance.white.powi(2);
        let inverse = Mat::from_fn(nx, nz, |x, k| 1.0 / (self.smooth[[k, x]] + white));
        let bases: Vec<Mat<f64>> = (0..nz).map(|z| self.row_basis(z)).collect();
        let (mut left, mut block) = (Mat::zeros(nx, nx), Mat::zeros(nx, nx));
        for z in 0..nz {
            let products = Mat::from_fn(nz, z + 1, |k, other| self.down[(z, k)] * self.down[(other, k)]);
            let middle = &inverse * &products;
            for other in 0..=z {
                for k in 0..nx {
                    let by = middle[(k, other)];
                    left.col_as_slice_mut(k).iter_mut().zip(bases[z].col_as_slice(k)).for_each(|(l, b)| *l = by * b);
                }
                let right = bases[other].transpose();
                matmul(block.as_mut(), Accum::Replace, left.as_ref(), right, 1.0, Par::Seq);
                for j in 0..nx {
                    let first = if other == z { j } else { 0 };
                    for i in first..nx {
                        let (row, column) = (z * nx + i, other * nx + j);
                        let excess: f64 = self.excess.iter().map(|b| b[row] * b[column]).sum();
                        add(row, column, block[(i, j)] - excess);
                    }
                }
            }
        }
    }
}

/// Principal directions as unknowns: a field is `S` times the sum over `i` of `c_i scale_i v_i w_i'`, `v_i` and `w_i` columns of
/// `down` and `across`. Under the prior the `c_i` are independent with unit variance.
#[derive(Clone, Debug)]
pub struct Directions {
    down: Mat<f64>,
    across: Mat<f64>,
    pairs: Vec<(usize, usize)>,
    scale: Vec<f64>,
    weight: Option<Vec<f64>>,
}

impl Directions {
    /// Number of directions.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// What the normal matrix is to be taken over.
    pub fn columns(&self) -> Columns {
        let narrow = |a: &Mat<f64>| Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)] as f32);
        Columns::Products {
            down: narrow(&self.down),
            across: narrow(&self.across),
            pairs: self.pairs.clone(),
            scale: self.scale.iter().map(|&s| s as f32).collect(),
            weight: self.weight.as_ref().map(|w| w.iter().map(|&w| w as f32).collect()),
        }
    }

    /// The field (nz, nx) in m/s of coefficients, one a direction.
    pub fn apply(&self, coefficients: &[f64]) -> Array2<f64> {
        let (nz, nx) = (self.down.nrows(), self.across.nrows());
        let mut c = vec![0.0; nz * nx];
        for ((&(i, j), s), x) in self.pairs.iter().zip(&self.scale).zip(coefficients) {
            c[i * nx + j] = s * x;
        }
        let mut field = sandwich(self.down.as_ref(), &c, self.across.transpose());
        if let Some(w) = &self.weight {
            field.iter_mut().zip(w).for_each(|(f, w)| *f *= w);
        }
        Array2::from_shape_vec((nz, nx), field).expect("one number a cell")
    }

    /// The transpose of [`Self::apply`]: the derivative with respect to the coefficients from that with respect to the cells.
    pub fn transpose(&self, field: &Array2<f64>) -> Vec<f64> {
        let nx = self.across.nrows();
        let mut f: Vec<f64> = field.iter().copied().collect();
        if let Some(w) = &self.weight {
            f.iter_mut().zip(w).for_each(|(f, w)| *f *= w);
        }
        let c = sandwich(self.down.transpose(), &f, self.across.as_ref());
        self.pairs.iter().zip(&self.scale).map(|(&(i, j), s)| s * c[i * nx + j]).collect()
    }
}

/// `a X b` with `X` and the result row by row.
fn sandwich(a: MatRef<'_, f64>, x: &[f64], b: MatRef<'_, f64>) -> Vec<f64> {
    let x = MatRef::from_row_major_slice(x, a.ncols(), b.nrows());
    let mut half = Mat::zeros(a.nrows(), b.nrows());
    matmul(half.as_mut(), Accum::Replace, a, x, 1.0, Par::Seq);
    let mut out = vec![0.0; a.nrows() * b.ncols()];
    let whole = MatMut::from_row_major_slice_mut(&mut out, a.nrows(), b.ncols());
    matmul(whole, Accum::Replace, half.as_ref(), b, 1.0, Par::Seq);
    out
}

/// Eigenvalues (none below 0) and eigenvectors of the kernel over `n` cells; the same on every run.
fn eigen(n: usize, length: f64) -> Result<(Vec<f64>, Mat<f64>)> {
    let kernel = Mat::from_fn(n, n, |i, j| (-0.5 * ((i as f64 - j as f64) / length).powi(2)).exp());
    let (mut values, mut vectors) = (Diag::zeros(n), Mat::zeros(n, n));
    let scratch = self_adjoint_evd_scratch::<f64>(n, ComputeEigenvectors::Yes, Par::Seq, Default::default());
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    let to = Some(vectors.as_mut());
    self_adjoint_evd(kernel.as_ref(), values.as_mut(), to, Par::Seq, stack, Default::default())
        .map_err(|e| Error::Numerical(format!("the kernel's eigenvectors over {n} cells were not found: {e:?}")))?;
    Ok(((0..n).map(|i| values.column_vector()[i].max(0.0)).collect(), vectors))
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

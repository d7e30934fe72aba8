//! The Cholesky factor of a step's curvature, made in the memory of the matrix.

use super::lbfgs::Metric;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{LltRegularization, cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::cholesky::llt::solve::{solve_in_place, solve_in_place_scratch};
use faer::{Mat, get_global_parallelism};

/// `L` of `L L' = A`: its lower triangle counts.
pub(super) struct Factor {
    lower: Mat<f64>,
}

impl Factor {
    /// The factor of a matrix whose lower triangle counts; where that is not positive definite, its memory.
    pub fn of(mut matrix: Mat<f64>) -> Result<Self, Mat<f64>> {
        let (n, threads) = (matrix.nrows(), get_global_parallelism());
        let mut buffer = MemBuffer::new(cholesky_in_place_scratch::<f64>(n, threads, Default::default()));
        let stack = MemStack::new(&mut buffer);
        let regular = LltRegularization::default();
        match cholesky_in_place(matrix.as_mut(), regular, threads, stack, Default::default()) {
            Ok(_) => Ok(Self { lower: matrix }),
            Err(_) => Err(matrix),
        }
    }

    /// `A^-1 x`.
    pub fn solve(&self, x: &[f64]) -> Vec<f64> {
        let threads = get_global_parallelism();
        let mut y = Mat::from_fn(x.len(), 1, |i, _| x[i]);
        let mut buffer = MemBuffer::new(solve_in_place_scratch::<f64>(x.len(), 1, threads));
        solve_in_place(self.lower.as_ref(), y.as_mut(), threads, MemStack::new(&mut buffer));
        y.col_as_slice(0).to_vec()
    }

    /// Its memory.
    pub fn into_memory(self) -> Mat<f64> {
        self.lower
    }
}

impl Metric for Factor {
    const WHOLE: bool = true;

    fn apply(&self, v: &mut [f64]) {
        v.copy_from_slice(&self.solve(v));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curvature::Symmetric;

    #[test]
    fn factors_solve_and_matrices_that_are_not_positive_definite_have_none() {
        const N: usize = 70;
        let a = Mat::from_fn(N, N, |i, j| (((i * i + 7 * j) % 23) as f64 * 1.37).sin());
        let mut lower = &a * a.transpose() + Mat::<f64>::identity(N, N);
        // what stands above the diagonal means nothing
        (0..N).for_each(|j| (0..j).for_each(|i| lower[(i, j)] = f64::NAN));
        let matrix = Symmetric { lower: lower.clone() };
        let truth: Vec<f64> = (0..N).map(|i| (i as f64 * 0.7).cos()).collect();
        let factor = Factor::of(lower).ok().unwrap();
        let found = factor.solve(&matrix.times(&truth));
        let off = found.iter().zip(&truth).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(off < 1e-6, "{off:e}");

        let mut indefinite = matrix.lower;
        indefinite[(40, 40)] = -1.0;
        assert_eq!(Factor::of(indefinite).err().map(|memory| memory.nrows()), Some(N));
    }
}

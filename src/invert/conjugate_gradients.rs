//! Conjugate gradients, preconditioned by the factor of a similar matrix.

use super::factor::Factor;

/// Share of its first norm that the residual of conjugate gradients must fall to, in the metric of their preconditioner: what is left
/// is less than what the next majorant changes.
const SOLVED: f64 = 0.1;
/// Their iterations, at most: so many take as long as a factor.
const ITERATIONS: usize = 24;

/// Conjugate gradients on the way to the solution of a system, preconditioned by the factor of a similar matrix.
pub(super) struct ConjugateGradients<'f> {
    factor: &'f Factor,
    /// Components of the solution that are known, which stay as they are.
    known: &'f [(usize, f64)],
    pub x: Vec<f64>,
    residual: Vec<f64>,
    pub direction: Vec<f64>,
    /// The residual's squared norm in the metric of the preconditioner.
    rz: f64,
}

impl<'f> ConjugateGradients<'f> {
    /// From a solution so far and its residual.
    pub fn new(factor: &'f Factor, x: Vec<f64>, residual: Vec<f64>, known: &'f [(usize, f64)]) -> Self {
        let mut start = Self { factor, known, x, residual, direction: vec![], rz: 0.0 };
        known.iter().for_each(|&(i, _)| start.residual[i] = 0.0);
        start.direction = start.preconditioned();
        start.rz = dot(&start.residual, &start.direction);
        start
    }

    /// The preconditioned residual, in which what is known has no part.
    fn preconditioned(&self) -> Vec<f64> {
        let mut z = self.factor.solve(&self.residual);
        self.known.iter().for_each(|&(i, _)| z[i] = 0.0);
        z
    }

    /// One iteration, given the matrix's product with the direction; whether there was one, for nothing is left to gain where the
    /// residual is zero or the matrix is not positive along the direction.
    pub fn step(&mut self, mut product: Vec<f64>) -> bool {
        self.known.iter().for_each(|&(i, _)| product[i] = 0.0);
        let along = dot(&self.direction, &product);
        if !(self.rz > 0.0 && along > 0.0) {
            return false;
        }
        let step = self.rz / along;
        self.x.iter_mut().zip(&self.direction).for_each(|(x, d)| *x += step * d);
        self.residual.iter_mut().zip(&product).for_each(|(r, p)| *r -= step * p);
        let z = self.preconditioned();
        let next = dot(&self.residual, &z);
        let kept = next / self.rz;
        self.direction.iter_mut().zip(&z).for_each(|(d, z)| *d = z + kept * *d);
        self.rz = next;
        true
    }
}

/// The solution of a system where the components that are known are as they are. None where conjugate gradients do not find it soon.
pub(super) fn conjugate_gradients(
    times: impl Fn(&[f64]) -> Vec<f64>,
    factor: &Factor,
    right: &[f64],
    known: &[(usize, f64)],
) -> Option<Vec<f64>> {
    let mut x = vec![0.0; right.len()];
    known.iter().for_each(|&(i, value)| x[i] = value);
    let mut residual = right.to_vec();
    if !known.is_empty() {
        residual.iter_mut().zip(times(&x)).for_each(|(r, p)| *r -= p);
    }
    let mut gradients = ConjugateGradients::new(factor, x, residual, known);
    let enough = SOLVED.powi(2) * gradients.rz;
    for _ in 0..ITERATIONS {
        if gradients.rz <= enough {
            return Some(gradients.x);
        }
        let product = times(&gradients.direction);
        if !gradients.step(product) {
            return None;
        }
    }
    (gradients.rz <= enough).then_some(gradients.x)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curvature::Symmetric;
    use faer::Mat;

    const N: usize = 60;

    /// Eigenvalues over twelve decades, and a diagonal about 0.01 as that of a majorant may be.
    fn matrix(majorant: fn(f64) -> f64) -> Symmetric {
        let a = Mat::from_fn(N, N, |i, j| ((i * N + j) as f64 * 1.37).sin() * 10f64.powf(-(j as f64) / 10.0));
        let mut lower = &a * a.transpose();
        (0..N).for_each(|i| lower[(i, i)] += 0.01 * (1.0 + 0.5 * majorant(i as f64)));
        Symmetric { lower }
    }

    #[test]
    fn conjugate_gradients_solve_what_is_like_the_factor_and_keep_what_is_known() {
        let (a, like) = (matrix(f64::sin), matrix(f64::cos));
        let factor = Factor::of(like.lower).ok().unwrap();
        let truth: Vec<f64> = (0..N).map(|i| (i as f64 * 0.7).cos()).collect();
        let known = [(3, truth[3]), (40, truth[40])];
        // what stands in the rows of the known ones does not matter
        let mut right = a.times(&truth);
        (right[3], right[40]) = (1e9, -1e9);
        for known in [&known[..], &[]] {
            let right = if known.is_empty() { a.times(&truth) } else { right.clone() };
            let x = conjugate_gradients(|x| a.times(x), &factor, &right, known).unwrap();
            assert!(known.iter().all(|&(i, v)| x[i] == v));
            let off: Vec<f64> = x.iter().zip(&truth).map(|(a, b)| a - b).collect();
            let (error, first) = (dot(&off, &a.times(&off)).sqrt(), dot(&truth, &a.times(&truth)).sqrt());
            assert!(error < 3.0 * SOLVED * first, "{error:e} of {first:e}");
        }
    }

    #[test]
    fn conjugate_gradients_give_up_on_what_is_unlike_the_factor() {
        let factor = Factor::of(Mat::identity(N, N)).ok().unwrap();
        let lower = Mat::from_fn(N, N, |i, j| if i == j { 10f64.powf(i as f64 / 8.0) } else { 0.0 });
        let matrix = Symmetric { lower };
        assert!(conjugate_gradients(|x| matrix.times(x), &factor, &[1.0; N], &[]).is_none());
    }
}

//! The f64 reference: the operator written down as directly as possible, full grid, full history, one thread.
//! It is never optimised; every other implementation is tested against it.
//!
//! One step, all shifts periodic over the padded grid:
//!
//! ```text
//! p+ = (2 - 5 alpha - kappa) p - (1 - kappa) p- + alpha (4/3 sum of +-1 neighbours - 1/12 sum of +-2 neighbours)
//! p+[src] += (v[src] dt)^2 w[it];   data[it] = p+[receivers]
//! alpha = (v dt / dx)^2;   kappa = dt vmin damp
//! ```
//!
//! The adjoint is the transpose of this recursion, and the gradient its plain derivative (Plessix, 2006, for the method).

use super::{Evaluation, FieldView, Propagator, WavefieldVisitor};
use crate::{Gather, Misfit, Model, Observed, Position, Result, Survey};
use ndarray::{Array2, Array3};

/// The slow, plain f64 propagator: the oracle of the tests.
#[derive(Clone, Debug)]
pub struct Reference {
    survey: Survey,
    bandwidth: f64,
}

/// Coefficients over the padded grid.
struct Grid {
    rows: usize,
    cols: usize,
    pad: usize,
    alpha: Array2<f64>,
    kappa: Array2<f64>,
}

type Field = Array2<f64>;

impl Reference {
    /// A reference propagator; errors on an acquisition that makes no sense.
    pub fn new(survey: Survey) -> Result<Self> {
        survey.validate()?;
        let bandwidth = survey.bandwidth();
        Ok(Self { survey, bandwidth })
    }

    /// Damping rate at a cell: side strips over the full height, top and bottom strips over the inner columns.
    fn damp(&self, z: usize, x: usize) -> f64 {
        let s = self.survey.sponge;
        let depth = |i: usize, n: usize| if i < s { Some(s - 1 - i) } else { i.checked_sub(s + n) };
        depth(x, self.survey.nx).or(depth(z, self.survey.nz)).map_or(0.0, |i| self.survey.damping(i))
    }

    /// The map's cell that a padded cell copies.
    fn inner(&self, z: usize, x: usize) -> (usize, usize) {
        let s = self.survey.sponge;
        (z.saturating_sub(s).min(self.survey.nz - 1), x.saturating_sub(s).min(self.survey.nx - 1))
    }

    fn grid(&self, m: &Model) -> Result<Grid> {
        super::check_model(&self.survey, self.bandwidth, m)?;
        let (rows, cols) = self.survey.padded_shape();
        let alpha = Array2::from_shape_fn((rows, cols), |(z, x)| {
            (m.vp[self.inner(z, x)] * self.survey.dt / self.survey.dx).powi(2)
        });
        let kappa = Array2::from_shape_fn((rows, cols), |(z, x)| self.survey.dt * m.vmin * self.damp(z, x));
        Ok(Grid { rows, cols, pad: self.survey.sponge, alpha, kappa })
    }

    fn source_scale(&self, m: &Model, shot: usize) -> f64 {
        let p = self.survey.sources[shot];
        (m.vp[[p.z, p.x]] * self.survey.dt).powi(2)
    }

    /// All fields `p[it]`, it = 0..nt, of one shot, and its data.
    fn fields(&self, g: &Grid, source: Position, scale: f64, wavelet: &dyn Fn(usize) -> f64) -> Vec<Field> {
        let mut history: Vec<Field> = Vec::with_capacity(self.survey.nt);
        let zero = Field::zeros((g.rows, g.cols));
        for it in 0..self.survey.nt {
            let p = if it > 0 { &history[it - 1] } else { &zero };
            let before = if it > 1 { &history[it - 2] } else { &zero };
            let mut next = g.step(p, before);
            next[g.at(source)] += scale * wavelet(it);
            history.push(next);
        }
        history
    }

    fn record(&self, g: &Grid, history: &[Field], shot: usize, data: &mut Array3<f64>) {
        for (it, p) in history.iter().enumerate() {
            for (r, &rec) in self.survey.receivers.iter().enumerate() {
                data[[shot, it, r]] = p[g.at(rec)];
            }
        }
    }
}

impl Grid {
    fn at(&self, p: Position) -> (usize, usize) {
        (p.z + self.pad, p.x + self.pad)
    }

    /// `4/3 sum(+-1) - 1/12 sum(+-2) - 5 p` at a cell.
    fn laplacian(&self, p: &Field, z: usize, x: usize) -> f64 {
        let at = |dz: isize, dx: isize| {
            let z = (z as isize + dz).rem_euclid(self.rows as isize) as usize;
            let x = (x as isize + dx).rem_euclid(self.cols as isize) as usize;
            p[[z, x]]
        };
        let one = at(-1, 0) + at(1, 0) + at(0, -1) + at(0, 1);
        let two = at(-2, 0) + at(2, 0) + at(0, -2) + at(0, 2);
        4.0 / 3.0 * one - two / 12.0 - 5.0 * p[[z, x]]
    }

    fn step(&self, p: &Field, before: &Field) -> Field {
        Field::from_shape_fn((self.rows, self.cols), |(z, x)| {
            let k = self.kappa[[z, x]];
            (2.0 - k) * p[[z, x]] - (1.0 - k) * before[[z, x]] + self.alpha[[z, x]] * self.laplacian(p, z, x)
        })
    }

    /// Transpose of [`Grid::step`]: what the adjoint field `l` (of step it + 1) and `after` (it + 2) give at step it.
    fn step_transposed(&self, l: &Field, after: &Field) -> Field {
        let weighted = &self.alpha * l;
        Field::from_shape_fn((self.rows, self.cols), |(z, x)| {
            let k = self.kappa[[z, x]];
            (2.0 - k) * l[[z, x]] - (1.0 - k) * after[[z, x]] + self.laplacian(&weighted, z, x)
        })
    }
}

impl Propagator for Reference {
    fn survey(&self) -> &Survey {
        &self.survey
    }

    fn describe(&self) -> String {
        "reference f64, exact, 1 thread".into()
    }

    fn arithmetic(&self) -> String {
        "f64, exact".into()
    }

    fn forward(&self, models: &[Model]) -> Result<Vec<Gather>> {
        models
            .iter()
            .map(|m| {
                let g = self.grid(m)?;
                let mut data = Array3::zeros(self.survey.gather_shape());
                for (shot, &src) in self.survey.sources.iter().enumerate() {
                    let history = self.fields(&g, src, self.source_scale(m, shot), &|it| self.survey.wavelet_at(it));
                    self.record(&g, &history, shot, &mut data);
                }
                Ok(Gather::new(data))
            })
            .collect()
    }

    fn born(&self, models: &[Model], directions: &[Model]) -> Result<Vec<Gather>> {
        super::check_directions(&self.survey, directions, models.len())?;
        let born_one = |(m, dm): (&Model, &Model)| {
            let g = self.grid(m)?;
            let scale = (self.survey.dt / self.survey.dx).powi(2);
            let d_alpha = Field::from_shape_fn((g.rows, g.cols), |(z, x)| {
                let i = self.inner(z, x);
                2.0 * m.vp[i] * dm.vp[i] * scale
            });
            let d_kappa = Field::from_shape_fn((g.rows, g.cols), |(z, x)| self.survey.dt * dm.vmin * self.damp(z, x));
            let mut data = Array3::zeros(self.survey.gather_shape());
            for (shot, &src) in self.survey.sources.iter().enumerate() {
                let history = self.fields(&g, src, self.source_scale(m, shot), &|it| self.survey.wavelet_at(it));
                let d_scale = 2.0 * m.vp[[src.z, src.x]] * dm.vp[[src.z, src.x]] * self.survey.dt.powi(2);
                let zero = Field::zeros((g.rows, g.cols));
                let mut dp: Vec<Field> = Vec::new();
                for it in 0..self.survey.nt {
                    let (q, q_before) =
                        (if it > 0 { &dp[it - 1] } else { &zero }, if it > 1 { &dp[it - 2] } else { &zero });
                    let (p, before) =
                        (if it > 0 { &history[it - 1] } else { &zero }, if it > 1 { &history[it - 2] } else { &zero });
                    let mut next = g.step(q, q_before);
                    for ((z, x), v) in next.indexed_iter_mut() {
                        *v += d_alpha[[z, x]] * g.laplacian(p, z, x) + d_kappa[[z, x]] * (before[[z, x]] - p[[z, x]]);
                    }
                    next[g.at(src)] += d_scale * self.survey.wavelet_at(it);
                    dp.push(next);
                }
                self.record(&g, &dp, shot, &mut data);
            }
            Ok(Gather::new(data))
        };
        models.iter().zip(directions).map(born_one).collect()
    }

    fn misfit_and_gradient(
        &self,
        models: &[Model],
        observed: &[Observed],
        misfit: &dyn Misfit,
    ) -> Result<Vec<Evaluation>> {
        super::same_length("observed gathers", observed.len(), models.len())?;
        models.iter().zip(observed).map(|(m, obs)| self.evaluate(m, obs, misfit)).collect()
    }

    fn wavefields(
        &self,
        model: &Model,
        sources: &[Position],
        wavelet: &[f64],
        every: usize,
        visit: &WavefieldVisitor,
    ) -> Result<()> {
        super::check_wavefields(&self.survey, sources, every)?;
        let g = self.grid(model)?;
        for (i, &source) in sources.iter().enumerate() {
            let history = self.fields(&g, source, 1.0, &|it| wavelet.get(it).copied().unwrap_or(0.0));
            history
                .iter()
                .step_by(every)
                .enumerate()
                .for_each(|(level, field)| visit(i, level, FieldView::F64(field.view())));
        }
        Ok(())
    }

    fn gradient_bytes(&self, _: bool) -> u64 {
        let (rows, cols) = self.survey.padded_shape();
        ((self.survey.nt + 10) * rows * cols * 8) as u64
    }
}

impl Reference {
    fn evaluate(&self, m: &Model, obs: &Observed, misfit: &dyn Misfit) -> Result<Evaluation> {
        let g = self.grid(m)?;
        let sv = &self.survey;
        let mut synthetic = Array3::zeros(sv.gather_shape());
        let mut gradient = Model::zeros(sv.map_shape());
        let mut value = 0.0;
        for (shot, &src) in sv.sources.iter().enumerate() {
            let history = self.fields(&g, src, self.source_scale(m, shot), &|it| sv.wavelet_at(it));
            self.record(&g, &history, shot, &mut synthetic);
            let mut residual = Array2::zeros((sv.nt, sv.receivers.len()));
            let syn = synthetic.index_axis(ndarray::Axis(0), shot);
            value += misfit.evaluate(shot, syn, obs.gather.shot(shot), &obs.mask, residual.view_mut());
            let zero = Field::zeros((g.rows, g.cols));
            let (mut l, mut after) = (zero.clone(), zero.clone());
            let (mut g_alpha, mut g_kappa) = (zero.clone(), zero.clone());
            let mut g_scale = 0.0;
            for it in (0..sv.nt).rev() {
                let mut now = g.step_transposed(&l, &after);
                for (r, &rec) in sv.receivers.iter().enumerate() {
                    now[g.at(rec)] += residual[[it, r]];
                }
                (after, l) = (l, now);
                g_scale += sv.wavelet_at(it) * l[g.at(src)];
                if it > 0 {
                    let (p, before) = (&history[it - 1], if it > 1 { &history[it - 2] } else { &zero });
                    for ((z, x), &lambda) in l.indexed_iter() {
                        g_alpha[[z, x]] += lambda * g.laplacian(p, z, x);
                        g_kappa[[z, x]] += lambda * (before[[z, x]] - p[[z, x]]);
                    }
                }
            }
            for ((z, x), &ga) in g_alpha.indexed_iter() {
                let i = self.inner(z, x);
                gradient.vp[i] += ga * 2.0 * m.vp[i] * (sv.dt / sv.dx).powi(2);
                gradient.vmin += g_kappa[[z, x]] * sv.dt * self.damp(z, x);
            }
            gradient.vp[[src.z, src.x]] += g_scale * 2.0 * m.vp[[src.z, src.x]] * sv.dt.powi(2);
        }
        Ok(Evaluation { value, gradient, data_rms: obs.rms(&Gather::new(synthetic)) })
    }
}

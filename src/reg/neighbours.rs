//! Penalties of the steps between neighbouring cells, which differ by one function of the step alone.

use crate::Model;
use ndarray::Array2;

/// A penalty of one step.
pub(super) struct Penalty {
    /// Its value.
    pub value: f64,
    /// Derivative over step: also the weight of the majoriser that touches here.
    pub weight: f64,
}

/// Cells of every pair of neighbours, counted row by row, and whether the second lies below the first. The neighbour beside a cell
/// of column `x` lies `dips[x]` rows lower, or on its row where there are no dips; it may be outside of the map.
pub(super) fn pairs((nz, nx): (usize, usize), dips: &[isize]) -> impl Iterator<Item = (usize, usize, bool)> {
    (0..nz * nx).flat_map(move |i| {
        let (z, x) = (i / nx, i % nx);
        let below = (i + nx < nz * nx).then_some((i, i + nx, true));
        let row = z.checked_add_signed(dips.get(x).copied().unwrap_or(0)).filter(|row| x + 1 < nx && *row < nz);
        let beside = row.map(|row| (i, row * nx + x + 1, false));
        below.into_iter().chain(beside)
    })
}

/// Sum over all pairs of neighbours; `penalty` gets the step and whether it is one down.
pub(super) fn value(m: &Model, dips: &[isize], penalty: impl Fn(f64, bool) -> Penalty) -> f64 {
    let v = m.to_vec();
    pairs(m.vp.dim(), dips).map(|(i, j, down)| penalty(v[j] - v[i], down).value).sum()
}

/// Derivative of [`value`].
pub(super) fn gradient(m: &Model, dips: &[isize], penalty: impl Fn(f64, bool) -> Penalty) -> Model {
    let v = m.to_vec();
    let mut g = vec![0.0; m.vp.len()];
    for (i, j, down) in pairs(m.vp.dim(), dips) {
        let d = v[j] - v[i];
        let slope = penalty(d, down).weight * d;
        g[j] += slope;
        g[i] -= slope;
    }
    over_cells(m, g)
}

/// Tells the majoriser's weights.
pub(super) fn curvature(
    m: &Model,
    dips: &[isize],
    add: &mut dyn FnMut(usize, usize, f64),
    penalty: impl Fn(f64, bool) -> Penalty,
) {
    let v = m.to_vec();
    for (i, j, down) in pairs(m.vp.dim(), dips) {
        let weight = penalty(v[j] - v[i], down).weight;
        add(i, i, weight);
        add(j, j, weight);
        add(i.max(j), i.min(j), -weight);
    }
}

/// A gradient over the cells of a model, none over `vmin`.
pub(super) fn over_cells(m: &Model, g: Vec<f64>) -> Model {
    Model { vp: Array2::from_shape_vec(m.vp.dim(), g).expect("one number a cell"), vmin: 0.0 }
}

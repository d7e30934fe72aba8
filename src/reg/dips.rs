//! How layers dip from column to column: what a map shows of it, for penalties that follow them.
//!
//! The layers of OpenFWI's curved families lie on each other like the leaves of a bent book: one curve, shifted down, bounds them
//! all, to a few cells. What of it the shallow ones show holds for the deep ones, too, of which the data tell less.

use ndarray::{Array1, Array2};

/// Most cells that layers may dip from a column to the next.
const STEEPEST: isize = 6;
/// Columns on each side whose dips count, too.
const BESIDE: usize = 1;
/// Rows over which what a map shows comes to count for half: what lies deeper is known less well.
const DEPTH: f64 = 20.0;
/// Share of the whole that dipping by a cell must explain to be believed.
const WORTH: f64 = 0.02;

/// Cells that the layers of a map (nz, nx) lie deeper in the next column, for every column but the last: the shift that makes it
/// most alike. Smaller ones are preferred where none is.
pub(super) fn dips(map: &Array2<f64>) -> Vec<isize> {
    let (nz, nx) = map.dim();
    let most = STEEPEST.min(nz as isize / 2);
    let pairs: Vec<Array1<f64>> =
        (0..nx.saturating_sub(1)).map(|x| (-most..=most).map(|s| unlike(map, x, s)).collect()).collect();
    let best = |x: usize| {
        let around = &pairs[x.saturating_sub(BESIDE)..(x + BESIDE + 1).min(pairs.len())];
        let sum = around.iter().fold(Array1::<f64>::zeros(2 * most as usize + 1), |sum, p| sum + p);
        let mean = sum.mean().unwrap_or(0.0);
        let cost = |s: isize| sum[(s + most) as usize] + WORTH * mean * s.unsigned_abs() as f64;
        (-most..=most).min_by(|&a, &b| cost(a).total_cmp(&cost(b)).then(a.abs().cmp(&b.abs()))).unwrap_or(0)
    };
    (0..pairs.len()).map(best).collect()
}

/// How unlike a column and the next one are, shifted: their mean absolute difference, the deeper the less it counts.
fn unlike(map: &Array2<f64>, x: usize, shift: isize) -> f64 {
    let nz = map.nrows() as isize;
    let rows = (-shift).max(0)..nz.min(nz - shift);
    let (sum, weight) = rows.fold((0.0, 0.0), |(sum, weight), z| {
        let w = 1.0 / (1.0 + z as f64 / DEPTH);
        let d = map[[(z + shift) as usize, x + 1]] - map[[z as usize, x]];
        (sum + w * d.abs(), weight + w)
    });
    sum / weight
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_that_bend_are_followed_and_flat_ones_and_none_do_not_dip() {
        let curve = |x: usize| (8.0 * (0.3 * x as f64).sin()).round() as isize;
        let layer = |z: isize| [2000.0, 3500.0, 2500.0, 4000.0, 1800.0][(z.clamp(0, 49) / 10) as usize];
        let map = Array2::from_shape_fn((50, 40), |(z, x)| layer(z as isize - curve(x)));
        let found = dips(&map);
        let right = found.iter().enumerate().filter(|(x, s)| (curve(x + 1) - curve(*x) - **s).abs() <= 1);
        assert!(right.count() == 39, "{found:?}");
        assert!(found.iter().any(|s| *s >= 2) && found.iter().any(|s| *s <= -2), "{found:?}");
        assert_eq!(dips(&Array2::from_shape_fn((50, 40), |(z, _)| layer(z as isize))), vec![0; 39]);
        assert_eq!(dips(&Array2::from_elem((5, 4), 2000.0)), vec![0; 3]);
        assert!(dips(&Array2::from_elem((5, 1), 2000.0)).is_empty());
    }
}

//! What can be said about maps without looking at their gathers.

use ndarray::Array2;

/// The smallest mean absolute error that one velocity growing linearly with depth has over all `maps`, m/s; 0 without maps.
///
/// For a given slope the best velocity at the top is a median, and what is left is convex in the slope.
pub fn best_gradient_mae(maps: &[Array2<f64>]) -> f64 {
    let mut rest: Vec<f64> = Vec::with_capacity(maps.iter().map(|m| m.len()).sum());
    let mut error = |slope: f64| {
        rest.clear();
        rest.extend(maps.iter().flat_map(|m| m.indexed_iter()).map(|((z, _), v)| v - slope * z as f64));
        let middle = rest.len() / 2;
        let top = *rest.select_nth_unstable_by(middle, f64::total_cmp).1;
        rest.iter().map(|v| (v - top).abs()).sum::<f64>() / rest.len() as f64
    };
    if maps.iter().all(|m| m.is_empty()) {
        return 0.0;
    }
    // golden-section search: no map's slope is beyond 3000 m/s over a few cells
    let (mut low, mut high) = (-500.0, 500.0);
    let ratio = (5f64.sqrt() - 1.0) / 2.0;
    let (mut a, mut b) = (high - ratio * (high - low), low + ratio * (high - low));
    let (mut at_a, mut at_b) = (error(a), error(b));
    while high - low > 1e-3 {
        if at_a < at_b {
            (high, b, at_b) = (b, a, at_a);
            a = high - ratio * (high - low);
            at_a = error(a);
        } else {
            (low, a, at_a) = (a, b, at_b);
            b = low + ratio * (high - low);
            at_b = error(b);
        }
    }
    at_a.min(at_b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gradient_fits_itself_and_nothing_else() {
        let line = Array2::from_shape_fn((70, 70), |(z, _)| 1600.0 + 31.0 * z as f64);
        assert!(best_gradient_mae(std::slice::from_ref(&line)) < 0.1);
        let other = line.mapv(|v| v + 100.0);
        let both = best_gradient_mae(&[line.clone(), other]);
        assert!((both - 50.0).abs() < 0.1, "{both}");
        let step = Array2::from_shape_fn((70, 1), |(z, _)| if z < 35 { 2000.0 } else { 3000.0 });
        let brute = |slope: f64| {
            let tops = (1500..3500).map(f64::from);
            let fit = |top: f64| step.indexed_iter().map(|((z, _), v)| (v - top - slope * z as f64).abs()).sum::<f64>();
            tops.map(fit).fold(f64::MAX, f64::min) / 70.0
        };
        let best = (0..400).map(|i| brute(f64::from(i) * 0.1)).fold(f64::MAX, f64::min);
        assert!((best_gradient_mae(std::slice::from_ref(&step)) - best).abs() < 1.0);
    }
}

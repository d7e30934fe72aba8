//! Colour scales: a range of values on a colour map.

use image::Rgb;

/// Cells that hold no finite number, or were left out.
pub(super) const NO_DATA: Rgb<u8> = Rgb([150, 150, 150]);
/// The same where the colour map itself is grey.
pub(super) const NO_DATA_ON_GREY: Rgb<u8> = Rgb([222, 196, 150]);

/// Largest magnitude that is scaled; keeps differences and sums finite.
const HUGE: f64 = 1e290;

/// A perceptually even run of colours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum ColourMap {
    /// Dark blue to yellow, for velocity.
    Viridis,
    /// Blue, white at zero, red: for differences.
    BlueRed,
    /// White to black through grey at zero: for pressure.
    Grey,
}

/// Values `lo..=hi` on a colour map; what lies beyond takes the end colours.
#[derive(Clone, Debug)]
pub(super) struct ColourScale {
    pub(super) map: ColourMap,
    pub(super) lo: f64,
    pub(super) hi: f64,
    /// Whether values beyond the ends exist; the bar then ends in a point.
    pub(super) clipped: bool,
}

impl ColourScale {
    /// From the least to the largest finite value; a constant gets a narrow range about it, nothing 0..1.
    pub(super) fn spanning(map: ColourMap, values: impl IntoIterator<Item = f64>) -> Self {
        let (mut lo, mut hi) = (f64::INFINITY, f64::NEG_INFINITY);
        for v in values.into_iter().filter(|v| v.is_finite()) {
            (lo, hi) = (lo.min(v), hi.max(v));
        }
        if lo > hi {
            (lo, hi) = (0.0, 1.0);
        }
        (lo, hi) = (lo.clamp(-HUGE, HUGE), hi.clamp(-HUGE, HUGE));
        // Below 1e-9 of the magnitude the range is rounding, not structure.
        if hi - lo <= 1e-9 * lo.abs().max(hi.abs()) {
            let margin = if lo == 0.0 && hi == 0.0 { 1.0 } else { 1e-2 * lo.abs().max(hi.abs()) };
            (lo, hi) = (lo - margin, hi + margin);
        }
        Self { map, lo, hi, clipped: false }
    }

    /// Symmetric about zero, clipped at the `percent` percentile of the magnitudes (at their largest where that is zero).
    pub(super) fn symmetric(map: ColourMap, values: impl IntoIterator<Item = f64>, percent: f64) -> Self {
        let (clip, largest) = percentile(values, percent);
        let clip = if clip > 0.0 { clip } else { largest };
        Self::clipped_at(map, clip, largest)
    }

    /// Symmetric about zero with the given ends; `largest` is the largest magnitude among the values.
    pub(super) fn clipped_at(map: ColourMap, clip: f64, largest: f64) -> Self {
        let clip = if clip > 1.0 / HUGE { clip.min(HUGE) } else { 1.0 };
        Self { map, lo: -clip, hi: clip, clipped: largest > clip }
    }

    /// The colour of a value.
    pub(super) fn colour(&self, value: f64) -> Rgb<u8> {
        if !value.is_finite() {
            return if self.map == ColourMap::Grey { NO_DATA_ON_GREY } else { NO_DATA };
        }
        let t = ((value - self.lo) / (self.hi - self.lo)).clamp(0.0, 1.0);
        match self.map {
            ColourMap::Viridis => Rgb(colorous::VIRIDIS.eval_continuous(t).as_array()),
            ColourMap::BlueRed => blue_red(t),
            ColourMap::Grey => Rgb([(255.0 * (1.0 - t)).round() as u8; 3]),
        }
    }
}

/// ColorBrewer's RdBu with its middle, a light grey there, made white.
fn blue_red(t: f64) -> Rgb<u8> {
    const ANCHORS: [[f64; 3]; 5] =
        [[5.0, 48.0, 97.0], [67.0, 147.0, 195.0], [255.0, 255.0, 255.0], [214.0, 96.0, 77.0], [103.0, 0.0, 31.0]];
    let i = ((4.0 * t) as usize).min(3);
    let f = 4.0 * t - i as f64;
    Rgb(std::array::from_fn(|c| (ANCHORS[i][c] * (1.0 - f) + ANCHORS[i + 1][c] * f).round() as u8))
}

/// The given percentile of the finite magnitudes, and the largest of them; zeros where there is none.
pub(super) fn percentile(values: impl IntoIterator<Item = f64>, percent: f64) -> (f64, f64) {
    let mut magnitudes: Vec<f64> = values.into_iter().filter(|v| v.is_finite()).map(f64::abs).collect();
    if magnitudes.is_empty() {
        return (0.0, 0.0);
    }
    let largest = magnitudes.iter().copied().fold(0.0, f64::max);
    let rank = ((magnitudes.len() - 1) as f64 * percent / 100.0).round() as usize;
    let (_, &mut at, _) = magnitudes.select_nth_unstable_by(rank, f64::total_cmp);
    (at, largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_and_middle_take_the_colours_of_the_map() {
        let v = ColourScale::spanning(ColourMap::Viridis, [1500.0, f64::NAN, 4500.0, f64::INFINITY]);
        assert_eq!((v.lo, v.hi), (1500.0, 4500.0));
        assert_eq!(v.colour(1500.0), Rgb([68, 1, 84]));
        assert_eq!(v.colour(9e9), v.colour(4500.0));
        let d = ColourScale::symmetric(ColourMap::BlueRed, [-2.0, 1.0], 100.0);
        assert_eq!((d.lo, d.hi, d.clipped), (-2.0, 2.0, false));
        let (blue, white, red) = (d.colour(-2.0).0, d.colour(0.0).0, d.colour(2.0).0);
        assert!(blue[2] > blue[0] && red[0] > red[2] && white.iter().all(|&c| c == 255));
        let g = ColourScale::clipped_at(ColourMap::Grey, 1.0, 3.0);
        assert!(g.clipped);
        assert_eq!((g.colour(-5.0), g.colour(5.0)), (Rgb([255; 3]), Rgb([0; 3])));
    }

    #[test]
    fn what_is_not_a_number_stands_out() {
        let v = ColourScale::spanning(ColourMap::Viridis, [f64::NAN]);
        assert_eq!(v.colour(f64::NAN), NO_DATA);
        assert_eq!(v.colour(f64::INFINITY), NO_DATA);
        let g = ColourScale::clipped_at(ColourMap::Grey, 1.0, 1.0);
        assert_eq!(g.colour(f64::NAN), NO_DATA_ON_GREY);
    }

    #[test]
    fn a_range_is_never_empty_or_infinite() {
        for values in [vec![], vec![0.0], vec![3000.0; 4], vec![-f64::MAX, f64::MAX], vec![1e-320], vec![5e-324, 0.0]] {
            for s in [
                ColourScale::spanning(ColourMap::Viridis, values.clone()),
                ColourScale::symmetric(ColourMap::Grey, values.clone(), 99.0),
            ] {
                assert!(s.hi > s.lo && (s.hi - s.lo).is_finite(), "{values:?}: {s:?}");
            }
        }
    }

    #[test]
    fn percentile_clips_the_rest() {
        let values = (0..=100).map(|i| if i % 2 == 0 { f64::from(i) } else { -f64::from(i) });
        assert_eq!(percentile(values, 98.0), (98.0, 100.0));
        let mostly_zero = ColourScale::symmetric(ColourMap::Grey, (0..1000).map(|i| f64::from(i / 999)), 99.0);
        assert_eq!((mostly_zero.hi, mostly_zero.clipped), (1.0, false));
    }
}

//! Axes: values to pixels, round tick values, and the words on them.

use super::canvas::{TICK, text_width};

/// A range of values along a panel's side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    pub(super) lo: f64,
    pub(super) hi: f64,
    pub(super) log: bool,
}

/// Whether labels stand side by side or one above the other.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Direction {
    Horizontal,
    Vertical,
}

/// Tick values with their labels, and the power of ten taken out of the labels.
#[derive(Debug, Default)]
pub(super) struct Ticks {
    pub(super) marks: Vec<(f64, String)>,
    pub(super) exponent: i32,
}

impl Axis {
    /// A linear axis; a range that is empty or not finite becomes one unit wide.
    pub(super) fn linear(lo: f64, hi: f64) -> Self {
        if hi - lo > 0.0 && (hi - lo).is_finite() {
            Self { lo, hi, log: false }
        } else {
            Self { lo: 0.0, hi: 1.0, log: false }
        }
    }

    /// The axis of `n` nodes at `first + i * step`, each drawn `step` wide.
    pub(super) fn nodes(first: f64, step: f64, n: usize) -> Self {
        Self::linear(first - 0.5 * step, first + (n as f64 - 0.5) * step)
    }

    /// A logarithmic axis about positive values, at least half a decade wide with some room at both ends.
    pub(super) fn log(lo: f64, hi: f64) -> Self {
        let (a, b) = (lo.log10(), hi.log10());
        if !(a.is_finite() && b.is_finite() && a <= b) {
            return Self { lo: 0.1, hi: 1.0, log: true };
        }
        let margin = (0.05 * (b - a)).max(0.5 * (0.5 - (b - a)));
        Self { lo: 10f64.powf((a - margin).max(-300.0)), hi: 10f64.powf((b + margin).min(300.0)), log: true }
    }

    /// Fraction of the way from `lo` to `hi`.
    pub(super) fn fraction(&self, value: f64) -> f64 {
        if self.log {
            (value / self.lo).ln() / (self.hi / self.lo).ln()
        } else {
            (value - self.lo) / (self.hi - self.lo)
        }
    }

    /// As many round ticks as `length` pixels hold without crowding.
    pub(super) fn ticks(&self, length: u32, direction: Direction) -> Ticks {
        if self.log { self.log_ticks(length) } else { self.linear_ticks(length, direction) }
    }

    fn linear_ticks(&self, length: u32, direction: Direction) -> Ticks {
        let largest = self.lo.abs().max(self.hi.abs());
        let exponent = if (1e-2..1e5).contains(&largest) { 0 } else { largest.log10().floor() as i32 };
        let range = self.hi - self.lo;
        let base = (range / 10.0).log10().floor() as i32;
        for power in base..base + 4 {
            for factor in [1.0, 2.0, 5.0] {
                let step = factor * 10f64.powi(power);
                // A hair of tolerance: an end such as 0.3 is not a whole number of 0.1 in binary.
                let (first, last) = ((self.lo / step - 1e-6).ceil(), (self.hi / step + 1e-6).floor());
                if !(step > 0.0 && last - first < 9.0) {
                    continue;
                }
                let decimals = (exponent - power).clamp(0, 9) as usize;
                let marks: Vec<(f64, String)> = (0..=(last - first) as usize)
                    .map(|i| {
                        let value = (first + i as f64) * step;
                        (value, minus(format!("{:.*}", decimals, value / 10f64.powi(exponent))))
                    })
                    .collect();
                let room = step / range * f64::from(length);
                let need = match direction {
                    Direction::Horizontal => marks.iter().map(|m| text_width(&m.1, TICK)).max().unwrap_or(0) + 16,
                    Direction::Vertical => (2.0 * TICK) as u32,
                };
                if room >= f64::from(need) {
                    return Ticks { marks, exponent };
                }
            }
        }
        Ticks { marks: Vec::new(), exponent }
    }

    /// Decades, thinned when many; 2 and 5 between them when few.
    fn log_ticks(&self, length: u32) -> Ticks {
        let (a, b) = (self.lo.log10(), self.hi.log10());
        let decade = f64::from(length) / (b - a);
        let every = (2.0 * f64::from(TICK) / decade).ceil().max(1.0) as i32;
        let factors: &[f64] = if decade > 8.0 * f64::from(TICK) { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let mut marks = Vec::new();
        for power in (a.floor() as i32..=b.floor() as i32).filter(|p| p.rem_euclid(every) == 0) {
            for &factor in factors {
                let value = factor * 10f64.powi(power);
                if (self.lo..=self.hi).contains(&value) {
                    let label = match power {
                        -3..=3 if factors.len() > 1 => format!("{value:.*}", (-power).max(0) as usize),
                        _ if factor == 1.0 => power_of_ten(power),
                        _ => format!("{factor}×{}", power_of_ten(power)),
                    };
                    marks.push((value, label));
                }
            }
        }
        Ticks { marks, exponent: 0 }
    }

    /// Unlabelled marks at 2..9 times each decade of a logarithmic axis with few decades.
    pub(super) fn minor(&self) -> Vec<f64> {
        let (a, b) = (self.lo.log10(), self.hi.log10());
        if !self.log || b - a > 8.0 {
            return Vec::new();
        }
        (a.floor() as i32..=b.floor() as i32)
            .flat_map(|p| (2..10).map(move |k| f64::from(k) * 10f64.powi(p)))
            .filter(|v| (self.lo..=self.hi).contains(v))
            .collect()
    }
}

/// Width of the widest label, pixels.
pub(super) fn widest(ticks: &Ticks) -> u32 {
    ticks.marks.iter().map(|m| text_width(&m.1, TICK)).max().unwrap_or(0)
}

/// An axis' name with its unit and the power of ten that its labels leave out.
pub(super) fn axis_label(name: &str, unit: &str, exponent: i32) -> String {
    match (unit, exponent) {
        ("", 0) => name.to_string(),
        (_, 0) => format!("{name} ({unit})"),
        ("", _) => format!("{name} (×{})", power_of_ten(exponent)),
        _ => format!("{name} (×{} {unit})", power_of_ten(exponent)),
    }
}

/// `10` with a raised exponent.
pub(super) fn power_of_ten(exponent: i32) -> String {
    let digits = exponent.to_string();
    let raised = digits.chars().map(|c| match c {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        c => char::from_u32('⁰' as u32 + c as u32 - '0' as u32).unwrap_or(c),
    });
    format!("10{}", raised.collect::<String>())
}

/// A number to three significant digits, with a power of ten where it is very large or small.
pub(super) fn number(value: f64) -> String {
    if !value.is_finite() {
        return "n/a".into();
    }
    if value == 0.0 {
        return "0".into();
    }
    // Rust's own rounding to three digits decides the exponent, so 9.996 becomes 10.0 and not 9.10.
    let scientific = format!("{value:.2e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    minus(if (-2..5).contains(&exponent) {
        format!("{:.*}", (2 - exponent).max(0) as usize, value)
    } else {
        format!("{mantissa}×{}", power_of_ten(exponent))
    })
}

/// A true minus sign; no minus before zero.
fn minus(text: String) -> String {
    match text.strip_prefix('-') {
        Some(rest) if rest.chars().all(|c| c == '0' || c == '.') => rest.to_string(),
        Some(rest) => format!("−{rest}"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: Axis, length: u32, direction: Direction) -> Vec<String> {
        axis.ticks(length, direction).marks.into_iter().map(|m| m.1).collect()
    }

    #[test]
    fn ticks_are_round() {
        let map = Axis::nodes(0.0, 10.0, 70);
        assert_eq!(labels(map, 420, Direction::Vertical), ["0", "100", "200", "300", "400", "500", "600"]);
        assert_eq!(labels(map, 280, Direction::Horizontal), ["0", "200", "400", "600"]);
        let sides = Axis::linear(-0.3, 0.3);
        assert_eq!(labels(sides, 300, Direction::Vertical), ["−0.3", "−0.2", "−0.1", "0.0", "0.1", "0.2", "0.3"]);
        let t = Axis::linear(-3e-5, 3e-5).ticks(300, Direction::Vertical);
        assert_eq!((t.exponent, t.marks[0].1.as_str()), (-5, "−3"));
    }

    #[test]
    fn labels_never_overlap() {
        for (lo, hi) in
            [(0.0, 1.0), (-1e30, 1e30), (4499.9999, 4500.0001), (1e-300, 2e-300), (-7.0, 1e9), (0.0, 1e-310)]
        {
            for length in [1, 20, 120, 280, 1000] {
                let axis = Axis::linear(lo, hi);
                let t = axis.ticks(length, Direction::Horizontal);
                for pair in t.marks.windows(2) {
                    let apart = (axis.fraction(pair[1].0) - axis.fraction(pair[0].0)) * f64::from(length);
                    let need = 0.5 * f64::from(text_width(&pair[0].1, TICK) + text_width(&pair[1].1, TICK));
                    assert!(apart > need, "{lo}..{hi} in {length}: {pair:?}");
                }
            }
        }
    }

    #[test]
    fn log_axes_name_decades_and_thin_them() {
        assert_eq!(labels(Axis::log(1e-5, 1e-1), 500, Direction::Vertical), ["10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²", "10⁻¹"]);
        assert_eq!(labels(Axis::log(1e-300, 1e300), 400, Direction::Vertical).len(), 9);
        assert_eq!(labels(Axis::log(0.06, 1.1), 420, Direction::Vertical), ["0.1", "0.2", "0.5", "1"]);
        assert!(labels(Axis::log(3e-3, 3e-3), 400, Direction::Vertical).len() >= 2);
        assert!(Axis::log(0.0, f64::NAN).ticks(400, Direction::Vertical).marks.len() >= 2);
        assert!((Axis::log(1e-4, 1e-2).fraction(1e-3) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn numbers_are_short() {
        let cases =
            [(0.0, "0"), (12.34, "12.3"), (9.12e-6, "9.12×10⁻⁶"), (5e4, "50000"), (2e5, "2.00×10⁵"), (-0.5, "−0.500")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
        assert_eq!(number(9.999), "10.0");
        assert_eq!(number(f64::NAN), "n/a");
        assert_eq!(axis_label("Velocity", "m/s", 6), "Velocity (×10⁶ m/s)");
    }
}

//! Causal windows: the part of the grid that matters at each time.
//!
//! A cell matters at step `m` only if the wave can have reached it from the source and can still reach a receiver
//! before the record ends. Forward, Born and adjoint fields share one window: a path that leaves it cannot come back
//! in time. First-arrival times are solved (eikonal equation, fast sweeping after Zhao, 2005) on blocks of cells on the
//! torus, with the fastest velocity of each block; a slack of a few block crossings covers
//! the blocks' size, the precursors of the difference scheme and the frozen field outside.

use super::grid::Layout;
use super::rows::Segment;
use crate::{Model, Survey};

/// Cells on a side of a block.
pub const BLOCK: usize = 8;

/// Steps that share their segments.
pub const STEPS_PER_BIN: usize = 16;

/// Slack in block crossings: one for where in its block a cell and the source lie, two (16 cells) of true margin. The
/// data deviate by 1e-9 to 1e-10 relative, on maps of 1500 m/s cells beside 4500 m/s ones by up to 9e-7.
const MARGIN: f64 = 3.0;

/// Rows `begin..end` of the grid that share their segments: a band.
#[derive(Clone, Debug)]
pub struct Band {
    /// First row.
    pub begin: usize,
    /// One past the last row.
    pub end: usize,
}

/// The segments of every band for every time bin.
#[derive(Clone, Debug)]
pub struct Windows {
    /// Bands, top to bottom.
    pub bands: Vec<Band>,
    steps_per_bin: usize,
    /// Bins by bands, up to two segments each (an interval on the circle).
    segments: Vec<[Segment; 2]>,
    /// Elements of all segments of a bin.
    sizes: Vec<usize>,
}

impl Windows {
    /// The whole grid at all times.
    pub fn full(layout: &Layout) -> Self {
        let bands = vec![Band { begin: 0, end: layout.rows }];
        let all = Segment { begin: 0, end: layout.width() };
        let sizes = vec![layout.rows * all.len()];
        Self { bands, steps_per_bin: usize::MAX, segments: vec![[all, Segment::default()]], sizes }
    }

    /// The window of one source, from arrival times in steps over the blocks; `line` is the elements in a cache line.
    pub fn causal(
        layout: &Layout,
        line: usize,
        nt: usize,
        slowness: &Slowness,
        from_source: &Arrivals,
        to_receivers: &Arrivals,
    ) -> Self {
        let (bz, bx) = (from_source.rows, from_source.cols);
        let bands: Vec<Band> =
            (0..bz).map(|b| Band { begin: b * BLOCK, end: ((b + 1) * BLOCK).min(layout.rows) }).collect();
        let bins = nt.div_ceil(STEPS_PER_BIN);
        let (mut segments, mut sizes) = (Vec::with_capacity(bins * bz), Vec::with_capacity(bins));
        for bin in 0..bins {
            let first = (bin * STEPS_PER_BIN) as f64;
            let latest_arrival = first + STEPS_PER_BIN as f64;
            let longest_return = nt as f64 - first;
            let mut size = 0;
            for (b, band) in bands.iter().enumerate() {
                let alive = |x: usize| {
                    let i = b * bx + x;
                    let slack = MARGIN * slowness.steps[i];
                    from_source.steps[i] <= latest_arrival + slack && to_receivers.steps[i] <= longest_return + slack
                };
                let mut pair = interval(bx, alive).map(|s| to_lines(s, layout, line));
                if !pair[1].is_empty() && pair[0].end >= pair[1].begin {
                    pair = [Segment { begin: 0, end: layout.width() }, Segment::default()];
                }
                size += (band.end - band.begin) * (pair[0].len() + pair[1].len());
                segments.push(pair);
            }
            sizes.push(size);
        }
        Self { bands, steps_per_bin: STEPS_PER_BIN, segments, sizes }
    }

    /// The window of one source whose field is wanted everywhere, whether or not it reaches a receiver.
    pub fn expanding(layout: &Layout, line: usize, nt: usize, slowness: &Slowness, from_source: &Arrivals) -> Self {
        let anywhere = Arrivals { steps: vec![0.0; from_source.steps.len()], ..*from_source };
        Self::causal(layout, line, nt, slowness, from_source, &anywhere)
    }

    fn bin(&self, step: usize) -> usize {
        step / self.steps_per_bin
    }

    /// Every band with its segments at a step.
    #[inline(always)]
    pub fn at(&self, step: usize) -> impl Iterator<Item = (&Band, &[Segment; 2])> {
        let n = self.bands.len();
        let segments = &self.segments[self.bin(step) * n..][..n];
        self.bands.iter().zip(segments)
    }

    /// Elements of all segments at a step.
    pub fn size(&self, step: usize) -> usize {
        self.sizes[self.bin(step)]
    }

    /// Whether a cell is inside at a step.
    pub fn contains(&self, step: usize, z: usize, x: usize) -> bool {
        self.at(step).any(|(b, s)| (b.begin..b.end).contains(&z) && s.iter().any(|s| (s.begin..s.end).contains(&x)))
    }
}

/// The shortest interval on the circle that holds all true entries, as up to two segments of blocks.
fn interval(n: usize, alive: impl Fn(usize) -> bool) -> [Segment; 2] {
    let none = Segment::default();
    let Some(first) = (0..n).find(|&i| alive(i)) else { return [none; 2] };
    // the longest gap, walking once around from the first true entry
    let (mut best, mut gap_begin, mut run) = (0, first, 0);
    for i in first + 1..=first + n {
        if alive(i % n) {
            if run > best {
                (best, gap_begin) = (run, i - run);
            }
            run = 0;
        } else {
            run += 1;
        }
    }
    if best == 0 {
        return [Segment { begin: 0, end: n }, none];
    }
    let (begin, len) = ((gap_begin + best) % n, n - best);
    if begin + len <= n {
        [Segment { begin, end: begin + len }, none]
    } else {
        [Segment { begin: 0, end: begin + len - n }, Segment { begin, end: n }]
    }
}

/// Blocks to columns, widened to whole cache lines without overlap.
fn to_lines(s: Segment, layout: &Layout, line: usize) -> Segment {
    if s.is_empty() {
        return Segment::default();
    }
    let begin = s.begin * BLOCK / line * line;
    let end = (s.end * BLOCK).min(layout.width()).next_multiple_of(line).min(layout.width());
    Segment { begin, end }
}

/// First-arrival times over the blocks of the torus, in time steps.
#[derive(Clone, Debug)]
pub struct Arrivals {
    /// Rows of blocks.
    pub rows: usize,
    /// Columns of blocks.
    pub cols: usize,
    /// Time of every block, row by row.
    pub steps: Vec<f64>,
}

/// Steps that the wave takes to cross each block of the padded grid at the block's fastest velocity.
pub struct Slowness {
    rows: usize,
    cols: usize,
    steps: Vec<f64>,
}

impl Slowness {
    /// From a model.
    pub fn new(survey: &Survey, layout: &Layout, model: &Model) -> Self {
        let (rows, cols) = (layout.rows.div_ceil(BLOCK), layout.cols.div_ceil(BLOCK));
        let mut steps = Vec::with_capacity(rows * cols);
        let inner = |b: usize, n: usize, all: usize| {
            let clamp = |i: usize| i.saturating_sub(survey.sponge).min(n - 1);
            clamp(b * BLOCK)..=clamp(((b + 1) * BLOCK).min(all) - 1)
        };
        for bz in 0..rows {
            for bx in 0..cols {
                let mut fastest = 0.0f64;
                for z in inner(bz, survey.nz, layout.rows) {
                    for x in inner(bx, survey.nx, layout.cols) {
                        fastest = fastest.max(model.vp[[z, x]]);
                    }
                }
                steps.push(BLOCK as f64 * survey.dx / (fastest * survey.dt));
            }
        }
        Self { rows, cols, steps }
    }

    /// Arrival times from the blocks that hold the given cells of the padded grid.
    pub fn arrivals(&self, from: impl Iterator<Item = (usize, usize)>) -> Arrivals {
        let (nz, nx) = (self.rows, self.cols);
        let mut t = vec![f64::INFINITY; nz * nx];
        for (z, x) in from {
            t[z / BLOCK * nx + x / BLOCK] = 0.0;
        }
        loop {
            let mut changed = false;
            for direction in 0..4 {
                for i in 0..nz {
                    let z = if direction & 1 == 0 { i } else { nz - 1 - i };
                    let (up, down) =
                        (if z == 0 { nz - 1 } else { z - 1 } * nx, if z + 1 == nz { 0 } else { z + 1 } * nx);
                    for j in 0..nx {
                        let x = if direction & 2 == 0 { j } else { nx - 1 - j };
                        let a = t[up + x].min(t[down + x]);
                        let b = t[z * nx + if x == 0 { nx - 1 } else { x - 1 }]
                            .min(t[z * nx + if x + 1 == nx { 0 } else { x + 1 }]);
                        let new = godunov(a, b, self.steps[z * nx + x]);
                        if new < t[z * nx + x] - 1e-9 {
                            t[z * nx + x] = new;
                            changed = true;
                        }
                    }
                }
            }
            if !changed {
                return Arrivals { rows: nz, cols: nx, steps: t };
            }
        }
    }
}

/// Upwind solution of `|grad t| = h` from the smaller neighbours in both directions.
fn godunov(a: f64, b: f64, h: f64) -> f64 {
    let (low, high) = (a.min(b), a.max(b));
    if high - low >= h || high.is_infinite() {
        low + h
    } else {
        0.5 * (low + high + (2.0 * h * h - (high - low).powi(2)).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cover(n: usize, on: &[usize]) -> Vec<usize> {
        interval(n, |i| on.contains(&i)).iter().flat_map(|s| s.begin..s.end).collect()
    }

    #[test]
    fn interval_takes_the_short_way_round() {
        assert_eq!(cover(10, &[]), Vec::<usize>::new());
        assert_eq!(cover(10, &[3]), [3]);
        assert_eq!(cover(10, &[3, 5]), [3, 4, 5]);
        assert_eq!(cover(10, &[0, 9]), [0, 9]);
        assert_eq!(cover(10, &[1, 8]), [0, 1, 8, 9]);
        assert_eq!(cover(4, &[0, 1, 2, 3]), [0, 1, 2, 3]);
    }

    #[test]
    fn arrivals_match_distance_in_a_constant_model() {
        let survey = Survey::openfwi();
        let model = Model::from_map(ndarray::Array2::from_elem((70, 70), 2000.0));
        let layout = Layout::new::<f32>(&survey);
        let t = Slowness::new(&survey, &layout, &model).arrivals([(121, 155)].into_iter());
        for (z, x) in [(10usize, 155usize), (121, 300), (200, 200), (300, 10)] {
            let d = |a: usize, b: usize, n: usize| (a.abs_diff(b).min(n - a.abs_diff(b))) as f64;
            let exact = d(z, 121, 310).hypot(d(x, 155, 310)) / 0.2;
            let got = t.steps[z / BLOCK * t.cols + x / BLOCK];
            assert!((got - exact).abs() < 0.05 * exact + 60.0, "{got} against {exact} at {z}, {x}");
        }
    }

    #[test]
    fn fields_are_whole_in_expanding_windows() {
        use crate::Position;
        use crate::wave::{CpuOptions, Fidelity, FieldView, build};
        use std::sync::Mutex;
        let survey = Survey { nt: 400, ..Survey::openfwi() };
        let vp = |(z, x): (usize, usize)| if (z / 9 + x / 11) % 2 == 0 { 1500.0 } else { 4500.0 };
        let model = Model::from_map(ndarray::Array2::from_shape_fn((70, 70), vp));
        let pulse: Vec<f64> = (0..81).map(|k| (-0.5 * ((f64::from(k) - 40.0) / 9.0).powi(2)).exp()).collect();
        let source = [Position { z: 1, x: 60 }];
        let fields = |fidelity| {
            let options = CpuOptions { fidelity: Some(fidelity), threads: 1, ..CpuOptions::default() };
            let kept = Mutex::new(vec![]);
            let visit = |_: usize, _: usize, p: FieldView| kept.lock().unwrap().push(p.to_f64());
            build(survey.clone(), &options).unwrap().wavefields(&model, &source, &pulse, 40, &visit).unwrap();
            kept.into_inner().unwrap()
        };
        let (whole, windowed) = (fields(Fidelity::Exact), fields(Fidelity::Fast));
        assert_eq!((whole.len(), windowed.len()), (10, 10));
        assert!(windowed[3].iter().filter(|x| **x == 0.0).count() > 10_000, "no window at all");
        for (a, b) in whole.iter().zip(&windowed) {
            let peak = a.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            let e = (a - b).iter().fold(0.0f64, |m, x| m.max(x.abs()));
            assert!(e <= 3e-5 * peak, "{e:e} of {peak:e}");
        }
    }
}

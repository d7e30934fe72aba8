//! Speed of the propagator as ratios against a plain loop in the same run, with a roofline.
//!
//! `cargo bench --bench propagator` (arguments: `-- --rounds 15`). The plain loop is what one would write first: full
//! grid, coefficient arrays over it, auto-vectorised, flush-to-zero on, shots over two threads. The runs are
//! interleaved and the best of all rounds counts, because shared machines are noisy.

use fwi::misfit::L2;
use fwi::wave::cpu::vector::{FlushToZero, Isa, Kernel, Vector, run};
use fwi::wave::{CpuOptions, Fidelity, Precision, build};
use fwi::{Model, Observed, Survey};
use ndarray::Array2;
use std::time::Instant;

const N: usize = 310;
const LD: usize = N + 4;
const THREADS: usize = 2;

/// The plain loop's step; auto-vectorised for the instruction set it is inlined into.
struct PlainShot<'a> {
    alpha: &'a [f32],
    t1: &'a [f32],
    t2: &'a [f32],
    source: usize,
    injection: &'a [f32],
    data: &'a mut [f32],
}

impl Kernel<f32> for PlainShot<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<V: Vector<Elem = f32>>(self) {
        let (mut p, mut o) = (vec![0.0f32; LD * LD], vec![0.0f32; LD * LD]);
        for m in 0..1000 {
            for z in 0..N {
                let i = (z + 2) * LD + 2;
                let row = |d: isize| &p[(i as isize + d) as usize..][..N];
                let (q, l1, r1, l2, r2) = (row(0), row(-1), row(1), row(-2), row(2));
                let ld = LD as isize;
                let (u1, d1, u2, d2) = (row(-ld), row(ld), row(-2 * ld), row(2 * ld));
                let (out, a) = (&mut o[i..][..N], &self.alpha[z * N..][..N]);
                let (t1, t2) = (&self.t1[z * N..][..N], &self.t2[z * N..][..N]);
                for x in 0..N {
                    let lap = 4.0 / 3.0 * (l1[x] + r1[x] + u1[x] + d1[x]) - (l2[x] + r2[x] + u2[x] + d2[x]) / 12.0;
                    out[x] = t1[x] * q[x] - t2[x] * out[x] + a[x] * lap;
                }
            }
            if let Some(w) = self.injection.get(m) {
                o[self.source] += w;
            }
            for z in 2..N + 2 {
                o.copy_within(z * LD + N..z * LD + N + 2, z * LD);
                o.copy_within(z * LD + 2..z * LD + 4, z * LD + N + 2);
            }
            o.copy_within(N * LD..(N + 2) * LD, 0);
            o.copy_within(2 * LD..4 * LD, (N + 2) * LD);
            let r = (1 + 120 + 2) * LD + 120 + 2;
            self.data[m * 70..][..70].copy_from_slice(&o[r..][..70]);
            std::mem::swap(&mut p, &mut o);
        }
    }
}

/// Forward of five shots by the plain loop.
fn plain_forward(survey: &Survey, model: &Model, isa: Isa) -> Vec<f32> {
    let cell = |i: usize| i.saturating_sub(120).min(69);
    let damp = |z: usize, x: usize| {
        let depth = |i: usize| if i < 120 { Some(119 - i) } else { i.checked_sub(190) };
        depth(x).or(depth(z)).map_or(0.0, |i| survey.damping(i)) * survey.dt * model.vmin
    };
    let grid = |f: &dyn Fn(usize, usize) -> f64| (0..N * N).map(|i| f(i / N, i % N) as f32).collect::<Vec<_>>();
    let alpha_at = |z: usize, x: usize| (model.vp[[cell(z), cell(x)]] * survey.dt / survey.dx).powi(2);
    let alpha = grid(&alpha_at);
    let t1 = grid(&|z, x| 2.0 - 5.0 * alpha_at(z, x) - damp(z, x));
    let t2 = grid(&|z, x| 1.0 - damp(z, x));
    let mut data = vec![0.0; 5 * 70_000];
    let queue = std::sync::Mutex::new(survey.sources.iter().zip(data.chunks_mut(70_000)).collect::<Vec<_>>());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let _ftz = FlushToZero::new();
                loop {
                    let Some((s, data)) = queue.lock().unwrap().pop() else { break };
                    let beta = (model.vp[[s.z, s.x]] * survey.dt).powi(2);
                    let injection: Vec<f32> = survey.wavelet.iter().map(|w| (beta * w) as f32).collect();
                    let source = (s.z + 122) * LD + s.x + 122;
                    run(isa, PlainShot { alpha: &alpha, t1: &t1, t2: &t2, source, injection: &injection, data });
                }
            });
        }
    });
    data
}

/// Bytes per second that one thread copies within its second-level cache.
fn l2_copy_rate() -> f64 {
    let (a, mut b) = (vec![1.0f32; 48 << 10], vec![0.0f32; 48 << 10]);
    let mut best = f64::INFINITY;
    for _ in 0..20 {
        let t = Instant::now();
        for _ in 0..200 {
            std::hint::black_box(&mut b).copy_from_slice(std::hint::black_box(&a));
        }
        best = best.min(t.elapsed().as_secs_f64() / 200.0);
    }
    (2 * 4 * a.len()) as f64 / best
}

/// Velocity maps of different speed: how much of the grid a wave reaches depends on it.
fn models() -> Vec<(&'static str, Model)> {
    let layered = Array2::from_shape_fn((70, 70), |(z, _)| 1500.0 + 300.0 * (z / 8) as f64);
    let curved = Array2::from_shape_fn((70, 70), |(z, x)| {
        let depth = z as f64 + 6.0 * (x as f64 * 0.12).sin();
        2000.0 + 450.0 * (depth / 14.0).floor().clamp(0.0, 5.0)
    });
    let fast = Array2::from_elem((70, 70), 4500.0);
    let named = [("layers 1500..3900", layered), ("curved 2000..4250", curved), ("constant 4500", fast)];
    named.map(|(name, map)| (name, Model::from_map(map))).into()
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let rounds = args.iter().position(|a| a == "--rounds").and_then(|i| args[i + 1].parse().ok()).unwrap_or(9);
    let survey = Survey::openfwi();
    let make = |precision, fidelity, threads| {
        let options = CpuOptions { precision, fidelity: Some(fidelity), threads, ..Default::default() };
        build(survey.clone(), &options).expect("the preset fits")
    };
    let fast = make(Precision::F32, Fidelity::Fast, THREADS);
    let exact = make(Precision::F32, Fidelity::Exact, THREADS);
    let exact_one = make(Precision::F32, Fidelity::Exact, 1);
    let double = make(Precision::F64, Fidelity::Exact, THREADS);
    println!("{}", fast.describe());
    for (name, model) in models() {
        let observed = Observed::new(
            exact.forward(&[model.plus(-5.0, &Model { vp: Array2::ones((70, 70)), vmin: 1.0 })]).unwrap().remove(0),
        );
        let mut best = [f64::INFINITY; 7];
        let mut clock = |slot: usize, f: &mut dyn FnMut()| {
            let t = Instant::now();
            f();
            best[slot] = best[slot].min(t.elapsed().as_secs_f64());
        };
        let m = std::slice::from_ref(&model);
        let o = std::slice::from_ref(&observed);
        for _ in 0..rounds {
            clock(0, &mut || drop(plain_forward(&survey, &model, Isa::best())));
            clock(1, &mut || drop(fast.forward(m)));
            clock(2, &mut || drop(fast.misfit_and_gradient(m, o, &L2)));
            clock(3, &mut || drop(exact.forward(m)));
            clock(4, &mut || drop(exact_one.forward(m)));
            clock(5, &mut || drop(double.forward(m)));
        }
        for _ in 0..2 {
            clock(6, &mut || drop(double.misfit_and_gradient(m, o, &L2))); // the first run takes its memory
        }
        let plain = plain_forward(&survey, &model, Isa::best());
        let ours = fast.forward(m).unwrap().remove(0);
        let rms = |f: &dyn Fn(usize) -> f64| ((0..350_000).map(|i| f(i).powi(2)).sum::<f64>() / 350_000.0).sqrt();
        let flat = ours.data.as_slice().unwrap();
        let deviation = rms(&|i| flat[i] - plain[i] as f64) / rms(&|i| plain[i] as f64);
        let [p, f, g, e, e1, d, dg] = best;
        println!("\n{name} (agreement of the two: {deviation:.1e} relative)");
        println!("  plain loop, 5 shots        {:8.2} ms", p * 1e3);
        println!("  forward f32 fast           {:8.2} ms   {:5.2} x the plain loop's speed", f * 1e3, p / f);
        println!("  forward f32, full grid     {:8.2} ms   {:5.2} x", e * 1e3, p / e);
        println!("  forward f64, full grid     {:8.2} ms   {:5.2} x", d * 1e3, p / d);
        println!("  misfit and gradient f32    {:8.2} ms   {:5.2} forwards", g * 1e3, g / f);
        println!("  misfit and gradient f64    {:8.2} ms   {:5.2} forwards", dg * 1e3, dg / d);
        let updates = 5.0 * 1000.0 * (N * N) as f64;
        let (rate, copy) = (updates / e1, l2_copy_rate());
        // read field, previous field and one coefficient row; write one field; the rest stays in the first-level cache
        let bytes = 16.0;
        println!(
            "  roofline, one thread, full grid: {:.2} Gcell/s x {bytes} B = {:.0} GB/s, {:.0}% of the {:.0} GB/s of a cache-resident copy",
            rate / 1e9,
            rate * bytes / 1e9,
            100.0 * rate * bytes / copy,
            copy / 1e9
        );
    }
}

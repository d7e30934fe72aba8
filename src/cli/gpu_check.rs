//! `fwi gpu-check`: a GPU's kernels against the CPU's, every kind and precision, then how fast each of them is.

use super::tell;
use fwi::misfit::{L2, parse};
use fwi::verify::{DataVector, dot_test};
use fwi::wave::cuda::driver::Driver;
use fwi::wave::cuda::{Cuda, CudaOptions, History, Kind, Runtime};
use fwi::wave::{Cpu, CpuOptions, Fidelity, FieldView, Precision, Propagator, build};
use fwi::{Gather, Misfit, Model, Observed, Position, Result, Survey};
use ndarray::Array2;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Check and time a GPU.
#[derive(clap::Args)]
pub struct Args {
    /// Number of the GPU, from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    device: usize,
    /// Least time that each rate is measured for
    #[arg(long, value_name = "DURATION", value_parser = super::options::parse_duration, default_value = "4s")]
    time: Duration,
    /// A small grid and a short record, and no timing: for tools that slow kernels down
    #[arg(long)]
    small: bool,
}

/// Comparisons done and failed so far.
struct Verdict {
    done: usize,
    failed: usize,
}

impl Verdict {
    fn line(&mut self, what: &str, error: f64, limit: f64) -> Result<()> {
        let good = error <= limit;
        self.done += 1;
        self.failed += usize::from(!good);
        let word = if good { "ok" } else { "FAILED" };
        tell(format_args!("  {what:<58} {error:8.1e}  (limit {limit:.0e})  {word}"))
    }
}

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    let survey = match args.small {
        false => Survey::openfwi(),
        true => Survey { nt: 96, sponge: 30, sources: Survey::openfwi().sources[..2].to_vec(), ..Survey::openfwi() },
    };
    let first = Driver::open(args.device)?;
    tell(format_args!("device: {}, kernels: {}", first.limits().name, first.code()))?;
    let mut verdict = Verdict { done: 0, failed: 0 };
    let kinds: &[Kind] = if first.limits().clusters { &[Kind::Cluster, Kind::Steps] } else { &[Kind::Steps] };
    drop(first);
    for &kind in kinds {
        for precision in [Precision::F64, Precision::F32] {
            let kernels = if kind == Kind::Cluster { "clusters" } else { "a launch a step" };
            tell(format_args!("{kernels}, {}:", if precision == Precision::F64 { "f64" } else { "f32" }))?;
            let make = |options: CudaOptions, lanes| -> Result<Box<dyn Propagator>> {
                Ok(Box::new(cuda(&args, &survey, &CudaOptions { kind: Some(kind), ..options }, lanes)?))
            };
            correctness(&make, &survey, precision, &mut verdict)?;
        }
    }
    tell(format_args!("correctness: {} comparisons, {} failed", verdict.done, verdict.failed))?;
    if !args.small {
        timing(&args, &survey, kinds)?;
    }
    Ok(if verdict.failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn cuda(args: &Args, survey: &Survey, options: &CudaOptions, lanes: usize) -> Result<Cuda> {
    Cuda::open(survey.clone(), options, args.device, lanes)
}

/// Layers that dip, a fault, and ripples: every cell differs from its neighbours.
fn model(survey: &Survey, seed: usize) -> Model {
    let (a, b) = (seed as f64 * 0.7, (seed % 5) as f64);
    Model::from_map(Array2::from_shape_fn(survey.map_shape(), |(z, x)| {
        let (z, x) = (z as f64, x as f64);
        let dip = z + 0.15 * x + 4.0 * (0.12 * x + a).sin() + if x > 35.0 + b { 7.0 } else { 0.0 };
        1600.0 + 350.0 * (dip / 12.0).floor().clamp(0.0, 6.0) + 20.0 * (z * 0.9 + x * 1.7 + a).sin()
    }))
}

/// A direction with both signs.
fn direction(survey: &Survey) -> Model {
    let vp = Array2::from_shape_fn(survey.map_shape(), |(z, x)| 1.0 + (z as f64 * 0.3 + x as f64 * 0.2).sin());
    Model { vp, vmin: 1.0 }
}

/// Largest difference over the largest magnitude in f64, norm over norm in f32.
fn difference<'a>(p: Precision, a: impl Iterator<Item = &'a f64>, b: impl Iterator<Item = &'a f64>) -> f64 {
    let (mut most, mut largest, mut squares, mut all) = (0.0f64, 0.0f64, 0.0, 0.0);
    for (x, y) in a.zip(b) {
        if !x.is_finite() {
            return f64::INFINITY;
        }
        most = most.max((x - y).abs());
        largest = largest.max(y.abs());
        squares += (x - y).powi(2);
        all += y * y;
    }
    if p == Precision::F64 { most / largest } else { (squares / all).sqrt() }
}

fn difference_of_models(p: Precision, a: &Model, b: &Model) -> f64 {
    difference(p, a.to_vec().iter(), b.to_vec().iter())
}

/// Makes the propagator under test: how, and with how many lanes.
type Make<'a> = dyn Fn(CudaOptions, usize) -> Result<Box<dyn Propagator>> + 'a;

fn correctness(make: &Make, survey: &Survey, precision: Precision, verdict: &mut Verdict) -> Result<()> {
    let limit = if precision == Precision::F64 { 1e-12 } else { 1e-5 };
    let options = |fidelity| CudaOptions { precision, fidelity: Some(fidelity), ..Default::default() };
    let gpu = make(options(Fidelity::Exact), 1)?;
    // in its own precision: f32 rounds differently from f64 by 1e-5 of the data and more
    let oracle = CpuOptions { precision, fidelity: Some(Fidelity::Exact), ..CpuOptions::default() };
    let reference = build(survey.clone(), &oracle)?;
    let models = [model(survey, 1), model(survey, 2)];
    let data = reference.forward(&models)?;
    let got = gpu.forward(&models)?;
    verdict.line("forward against the CPU", gathers(precision, &got, &data), limit)?;
    if precision == Precision::F32 {
        let other: usize = got.iter().zip(&data).map(|(a, b)| count_different(a, b)).sum();
        verdict.line("samples that differ from the CPU's by a bit", other as f64, 0.0)?;
    }
    let dm = [direction(survey), direction(survey)];
    let born = reference.born(&models, &dm)?;
    verdict.line("Born against the CPU", gathers(precision, &gpu.born(&models, &dm)?, &born), limit)?;
    let observed: Vec<Observed> = data.iter().rev().map(|g| Observed::new(g.clone())).collect();
    for name in ["l2", "lowpass:8", "huber:0.1", "l1:0.05", "student:0.1"] {
        let misfit = parse(name, survey.dt)?;
        let wanted = reference.misfit_and_gradient(&models, &observed, &*misfit)?;
        let got = gpu.misfit_and_gradient(&models, &observed, &*misfit)?;
        let error = got.iter().zip(&wanted).map(|(g, w)| {
            let value = (g.value / w.value - 1.0).abs().max((g.data_rms / w.data_rms - 1.0).abs());
            difference_of_models(precision, &g.gradient, &w.gradient).max(value)
        });
        verdict.line(&format!("gradient of {name} against the CPU"), error.fold(0.0, f64::max), limit)?;
    }
    let dot = dot_test(&*gpu, DataVector::Residual, 0)?;
    verdict.line("dot product <J x, y> = <x, J' y>", dot.relative(), limit)?;
    verdict.line("wavefields against the CPU", wavefields(precision, &*gpu, &*reference, &models[0])?, limit)?;
    drop(gpu);
    let fast = make(options(Fidelity::Fast), 2)?;
    let wanted = reference.misfit_and_gradient(&models, &observed, &L2)?;
    let got = fast.misfit_and_gradient(&models, &observed, &L2)?;
    let error = |got: &[fwi::wave::Evaluation]| {
        let one = |(g, w): (&fwi::wave::Evaluation, &fwi::wave::Evaluation)| {
            difference_of_models(Precision::F32, &g.gradient, &w.gradient)
        };
        got.iter().zip(&wanted).map(one).fold(0.0, f64::max)
    };
    verdict.line("gradient with windows and decimated history", error(&got), 1e-5)?;
    let alone = fast.misfit_and_gradient(&models[1..], &observed[1..], &L2)?;
    let same = alone[0].gradient == got[1].gradient && alone[0].value == got[1].value;
    verdict.line("bits that depend on the batch", f64::from(u8::from(!same)), 0.0)?;
    if precision == Precision::F32 {
        let half = make(CudaOptions { history: History::Half, ..options(Fidelity::Fast) }, 1)?;
        let got = half.misfit_and_gradient(&models, &observed, &L2)?;
        verdict.line("gradient with a history in half precision", error(&got), 1e-3)?;
    }
    Ok(())
}

fn gathers(p: Precision, a: &[Gather], b: &[Gather]) -> f64 {
    a.iter().zip(b).map(|(a, b)| difference(p, a.data.iter(), b.data.iter())).fold(0.0, f64::max)
}

fn count_different(a: &Gather, b: &Gather) -> usize {
    a.data.iter().zip(&b.data).filter(|(a, b)| a.to_bits() != b.to_bits()).count()
}

/// Largest difference of the fields of two sources at every 40th step.
fn wavefields(p: Precision, a: &dyn Propagator, b: &dyn Propagator, m: &Model) -> Result<f64> {
    let sources = [Position { z: 1, x: 3 }, Position { z: 60, x: 40 }];
    let kept: Mutex<Vec<(usize, usize, Array2<f64>)>> = Mutex::default();
    let lock = || kept.lock().unwrap_or_else(|e| e.into_inner());
    let keep = |s: usize, level: usize, field: FieldView| lock().push((s, level, field.to_f64()));
    b.wavefields(m, &sources, &[1.0, 0.5], 40, &keep)?;
    let worst = Mutex::new(0.0f64);
    let levels = lock().len();
    let seen = Mutex::new(0);
    let compare = |s: usize, level: usize, field: FieldView| {
        let list = lock();
        let wanted = list.iter().find(|(i, l, _)| (*i, *l) == (s, level));
        let error = wanted.map_or(f64::INFINITY, |(_, _, w)| difference(p, field.to_f64().iter(), w.iter()));
        let mut worst = worst.lock().unwrap_or_else(|e| e.into_inner());
        *worst = worst.max(error);
        *seen.lock().unwrap_or_else(|e| e.into_inner()) += 1;
    };
    a.wavefields(m, &sources, &[1.0, 0.5], 40, &compare)?;
    let all = seen.into_inner().unwrap_or_else(|e| e.into_inner()) == levels;
    Ok(if all { worst.into_inner().unwrap_or_else(|e| e.into_inner()) } else { f64::INFINITY })
}

/// Rates of every kind of kernel, from threads that keep all lanes busy, and of this machine's CPU.
fn timing(args: &Args, survey: &Survey, kinds: &[Kind]) -> Result<()> {
    let cpu = Cpu::<f32>::new(survey.clone(), &CpuOptions::default())?;
    let (forward, gradient) = rates(&cpu, 1, args.time)?;
    tell(format_args!("{:<58} {:>10} {:>12}", "rates, f32 fast but where it is said", "forward/s", "gradients/s"))?;
    let row = |name: &str, (f, g): (f64, f64)| {
        tell(format_args!(
            "  {name:<56} {f:>10.1} {g:>12.1}   {:.0} and {:.0} times the CPU",
            f / forward,
            g / gradient
        ))
    };
    row(&cpu.describe(), (forward, gradient))?;
    for &kind in kinds {
        let kernels = if kind == Kind::Cluster { "clusters" } else { "a launch a step" };
        let base = CudaOptions { kind: Some(kind), ..CudaOptions::default() };
        for (options, lanes, name) in [
            (CudaOptions { batch: Some(1), ..base.clone() }, 1, "one gather at a time"),
            (base.clone(), 1, "batches, one lane"),
            (base.clone(), 2, "batches, two lanes"),
            (base.clone(), 3, "batches, three lanes"),
            (
                CudaOptions { history: History::Half, ..base.clone() },
                2,
                "batches, two lanes, history in half precision",
            ),
            (CudaOptions { fidelity: Some(Fidelity::Exact), ..base.clone() }, 2, "batches, two lanes, exact"),
            (
                CudaOptions { precision: Precision::F64, fidelity: Some(Fidelity::Fast), ..base.clone() },
                2,
                "batches, two lanes, f64",
            ),
        ] {
            let gpu = cuda(args, survey, &options, lanes)?;
            row(&format!("{kernels}, {name} ({} a launch)", gpu.batch()), rates(&gpu, lanes, args.time)?)?;
        }
    }
    Ok(())
}

/// Forward gathers and gradients a second.
fn rates(p: &dyn Propagator, threads: usize, time: Duration) -> Result<(f64, f64)> {
    let models: Vec<Model> = (0..p.batch()).map(|i| model(p.survey(), i)).collect();
    let data = p.forward(&models[..1])?.remove(0);
    let observed: Vec<Observed> = models.iter().map(|_| Observed::new(data.clone())).collect();
    p.misfit_and_gradient(&models, &observed, &L2 as &dyn Misfit)?; // warm: memory, graphs
    let forward = rate(threads, models.len(), time, || p.forward(&models).map(|_| ()))?;
    let gradient = rate(threads, models.len(), time, || p.misfit_and_gradient(&models, &observed, &L2).map(|_| ()))?;
    Ok((forward, gradient))
}

fn rate(threads: usize, models: usize, time: Duration, work: impl Fn() -> Result<()> + Sync) -> Result<f64> {
    let since = Instant::now();
    let counts: Vec<Result<usize>> = std::thread::scope(|scope| {
        let one = || {
            let mut done = 0;
            while since.elapsed() < time || done == 0 {
                work()?;
                done += models;
            }
            Ok(done)
        };
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        all.into_iter().map(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p))).collect()
    });
    let done: usize = counts.into_iter().sum::<Result<usize>>()?;
    Ok(done as f64 / since.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The CPU in the place of a GPU, in f32 whatever is asked for if `coarse`.
    fn judge(precision: Precision, coarse: bool) -> Verdict {
        let survey =
            Survey { nt: 60, sponge: 12, sources: Survey::openfwi().sources[..2].to_vec(), ..Survey::openfwi() };
        let make = |options: CudaOptions, _| {
            let precision = if coarse { Precision::F32 } else { options.precision };
            build(survey.clone(), &CpuOptions { precision, fidelity: options.fidelity, ..CpuOptions::default() })
        };
        let mut verdict = Verdict { done: 0, failed: 0 };
        correctness(&make, &survey, precision, &mut verdict).unwrap();
        verdict
    }

    #[test]
    fn a_right_propagator_passes_and_a_wrong_one_does_not() {
        let (double, single) = (judge(Precision::F64, false), judge(Precision::F32, false));
        assert_eq!((double.done, double.failed), (11, 0));
        assert_eq!((single.done, single.failed), (13, 0));
        // all but the bits
        assert_eq!(judge(Precision::F64, true).failed, 10);
    }
}

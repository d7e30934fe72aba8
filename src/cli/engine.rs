//! The options of computing, and their resolution into propagators: of the CPU, or of GPUs.

use super::note;
use super::options::{available_memory, parse_size, parse_threads};
use clap::{Args, ValueEnum};
use fwi::misfit::L2;
use fwi::wave::cuda::driver::devices;
use fwi::wave::cuda::{Cuda, CudaOptions, History};
use fwi::wave::{CpuOptions, Dispatch, Evaluation, Fidelity, Precision, Propagator, build};
use fwi::{Error, Model, Observed, Result, Survey};
use ndarray::Array2;
use std::sync::Arc;

/// Bytes that the process takes besides the propagator's fields: code, gathers, optimiser, figures.
pub const BASE_BYTES: u64 = 64 << 20;

/// How to compute.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Computing")]
pub struct Engine {
    /// Worker threads; 0 takes one per core
    #[arg(long, default_value = "0", value_name = "N", value_parser = parse_threads)]
    pub threads: usize,
    /// What computes: auto takes the GPU if one can be used, and the CPU otherwise; cuda:0,1 names GPUs, cuda takes the
    /// first one, and all of them for stacks
    #[arg(long, value_name = "auto|cpu|cuda[:N,..]", default_value = "auto", value_parser = parse_backend)]
    pub backend: Backend,
    /// Floating-point type of the wave fields [default: f32; an inversion ends in f64 where f32 rounding stops it]
    #[arg(long, value_enum)]
    pub precision: Option<PrecisionArg>,
    /// exact: every cell at every step (default with --precision f64); fast: causal windows and a decimated history, which
    /// change data and gradients by less than f32 rounding (default otherwise, also in f64 stages that end inversions)
    #[arg(long, value_enum)]
    pub fidelity: Option<FidelityArg>,
    /// Most memory the process may take, such as 400M or 2G; histories that do not fit are recomputed [default: half
    /// of what is free now]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_memory: Option<u64>,
    /// Most memory to take on each GPU [default: nine tenths of what is free now]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub gpu_memory: Option<u64>,
    /// Type of the wavefield history on a GPU; f16 takes half the memory and changes gradients by 1e-4
    #[arg(long, value_enum, default_value = "f32")]
    pub gpu_history: HistoryArg,
}

/// See [`Engine::backend`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The GPUs if any can be used, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// GPUs by number; all if none is named.
    Cuda(Vec<usize>),
}

/// See [`Engine::gpu_history`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HistoryArg {
    /// Single, as the fields
    F32,
    /// Half
    F16,
}

fn parse_backend(text: &str) -> std::result::Result<Backend, String> {
    let numbers =
        |list: &str| list.split(',').map(|n| n.trim().parse::<usize>()).collect::<std::result::Result<_, _>>();
    let problem = || format!("\"{text}\" is no backend; write auto, cpu, cuda or cuda:0,1");
    match text.trim().to_ascii_lowercase().split_once(':') {
        None if text.eq_ignore_ascii_case("auto") => Ok(Backend::Auto),
        None if text.eq_ignore_ascii_case("cpu") => Ok(Backend::Cpu),
        None if text.eq_ignore_ascii_case("cuda") => Ok(Backend::Cuda(vec![])),
        Some(("cuda", list)) => {
            let mut list: Vec<usize> = numbers(list).map_err(|_| problem())?;
            list.sort_unstable();
            list.dedup();
            Ok(Backend::Cuda(list))
        }
        _ => Err(problem()),
    }
}

/// See [`Engine::precision`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PrecisionArg {
    /// Single: what OpenFWI's data were made in
    F32,
    /// Double
    F64,
}

/// See [`Engine::fidelity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FidelityArg {
    /// Every cell, every step
    Exact,
    /// Causal windows, decimated history
    Fast,
}

impl Engine {
    /// Whether every cell is updated at every step.
    pub fn is_exact(&self) -> bool {
        self.fidelity.map_or(self.is_double(), |f| f == FidelityArg::Exact)
    }

    /// Whether the fields are in f64.
    pub fn is_double(&self) -> bool {
        self.precision == Some(PrecisionArg::F64)
    }

    /// Bytes that fields and data may take: the limit less what any run needs.
    pub fn budget(&self) -> Result<u64> {
        let limit = self.max_memory.unwrap_or_else(|| available_memory().map_or(4 << 30, |free| free / 2));
        limit.checked_sub(BASE_BYTES).ok_or_else(|| {
            let (limit, base) = (limit >> 20, BASE_BYTES >> 20);
            Error::Memory(format!("{limit} MB are less than the {base} MB that any run needs; raise --max-memory"))
        })
    }

    fn precision(&self) -> Precision {
        if self.is_double() { Precision::F64 } else { Precision::F32 }
    }

    fn fidelity(&self) -> Option<Fidelity> {
        self.fidelity.map(|f| match f {
            FidelityArg::Exact => Fidelity::Exact,
            FidelityArg::Fast => Fidelity::Fast,
        })
    }

    /// The CPU's propagator for `survey`.
    fn cpu(&self, survey: Survey) -> Result<Box<dyn Propagator>> {
        let options = CpuOptions {
            precision: self.precision(),
            fidelity: self.fidelity(),
            threads: self.threads,
            max_bytes: self.budget()?,
            isa: None,
        };
        build(survey, &options)
    }

    /// A GPU's propagator, which takes an n-th of the device's memory.
    fn gpu(&self, number: usize, survey: Survey, batch: Option<usize>, lanes: usize, parts: u64) -> Result<Cuda> {
        let options = CudaOptions {
            precision: self.precision(),
            fidelity: self.fidelity(),
            history: if self.gpu_history == HistoryArg::F16 { History::Half } else { History::Full },
            batch,
            max_bytes: self.gpu_memory,
            parts,
            ..CudaOptions::default()
        };
        let gpu = Cuda::open(survey, &options, number, lanes)?;
        self.try_out(&gpu, number)?;
        Ok(gpu)
    }

    /// A gradient by a GPU against the CPU's: a tenth of a second in f32 against hours of wrong results.
    fn try_out(&self, gpu: &Cuda, number: usize) -> Result<()> {
        let survey = gpu.survey();
        let map = |dip: f64| {
            let layer = |z: f64, x: f64| 1700.0 + 450.0 * ((z + dip * x) / 15.0).floor().clamp(0.0, 5.0);
            Model::from_map(Array2::from_shape_fn(survey.map_shape(), |(z, x)| layer(z as f64, x as f64)))
        };
        let cpu = self.cpu(survey.clone())?;
        let observed = [Observed::new(cpu.forward(&[map(0.0)])?.remove(0))];
        let gradient = |p: &dyn Propagator| Ok(p.misfit_and_gradient(&[map(0.1)], &observed, &L2)?.remove(0));
        let (got, wanted): (Evaluation, Evaluation) = (gradient(gpu)?, gradient(&*cpu)?);
        let off = got.gradient.plus(-1.0, &wanted.gradient);
        let error =
            (off.dot(&off) / wanted.gradient.dot(&wanted.gradient)).sqrt().max((got.value / wanted.value - 1.0).abs());
        let limit = if self.gpu_history == HistoryArg::F16 { 1e-2 } else { 1e-4 };
        if error <= limit {
            return Ok(());
        }
        let problem = format!(
            "it computes wrong gradients, off by {error:.1e} of their size; compute with --backend cpu, and report what fwi gpu-check prints"
        );
        Err(Error::device(format!("cuda:{number}"), problem))
    }

    /// The propagator for one model at a time, and nothing that steps in when a GPU is lost: for what is about the device.
    pub fn alone(&self, survey: Survey) -> Result<Box<dyn Propagator>> {
        Ok(match self.first_gpu(&survey)? {
            Some(gpu) => Box::new(gpu),
            None => self.cpu(survey)?,
        })
    }

    /// Lets dense algebra take as many threads as all else.
    fn bind_algebra(&self) {
        faer::set_global_parallelism(match self.threads {
            1 => faer::Par::Seq,
            n => faer::Par::rayon(n),
        });
    }

    /// The propagator for one model at a time; the CPU steps in when a GPU is lost.
    pub fn propagator(&self, survey: Survey) -> Result<Box<dyn Propagator>> {
        self.bind_algebra();
        let Some(gpu) = self.first_gpu(&survey)? else { return self.cpu(survey) };
        let cpu = Arc::from(self.cpu(survey)?);
        Ok(Box::new(Dispatch::new(vec![Arc::new(gpu)], vec![cpu])?.log(|line| note(line))))
    }

    /// The first GPU that was asked for, or none for the CPU.
    fn first_gpu(&self, survey: &Survey) -> Result<Option<Cuda>> {
        let gpu = |number| self.gpu(number, survey.clone(), Some(1), 1, 1).map(Some);
        match &self.backend {
            Backend::Cpu => Ok(None),
            Backend::Cuda(list) => gpu(list.first().copied().unwrap_or(0)),
            Backend::Auto if devices().is_err() => Ok(None),
            Backend::Auto => gpu(0).or_else(|e| {
                note(format_args!("{e}; computing on the CPU"));
                Ok(None)
            }),
        }
    }

    /// All devices behind one queue, for many models at a time: `lanes` streams of each GPU, which share its memory with
    /// `parts - 1` other queues. The CPU steps in when all GPUs are lost.
    pub fn dispatch(&self, survey: &Survey, lanes: usize, parts: u64, log: fn(&str)) -> Result<Dispatch> {
        self.bind_algebra();
        let numbers = match &self.backend {
            Backend::Cpu => vec![],
            Backend::Auto => (0..devices().map_or(0, |d| d.len())).collect(),
            Backend::Cuda(list) if list.is_empty() => (0..devices()?.len()).collect(),
            Backend::Cuda(list) => list.clone(),
        };
        let mut gpus: Vec<Arc<dyn Propagator>> = vec![];
        for number in numbers {
            match self.gpu(number, survey.clone(), None, lanes, parts) {
                Ok(gpu) => gpus.push(Arc::new(gpu)),
                Err(e) if self.backend == Backend::Auto => log(&format!("{e}; going on without it")),
                Err(e) => return Err(e),
            }
        }
        let cpu: Arc<dyn Propagator> = Arc::from(self.cpu(survey.clone())?);
        let (devices, fallback) = if gpus.is_empty() { (vec![cpu], vec![]) } else { (gpus, vec![cpu]) };
        Ok(Dispatch::new(devices, fallback)?.log(log))
    }

    /// The engine of an inversion's refined stages, in f64, unless a precision was asked for.
    pub fn refined(&self) -> Option<Self> {
        let fidelity = self.fidelity.or(Some(FidelityArg::Fast));
        self.precision.is_none().then(|| Self { precision: Some(PrecisionArg::F64), fidelity, ..self.clone() })
    }

    /// What makes data: the CPU in f32, every cell at every step, as OpenFWI's were made.
    pub fn modelling(&self) -> Self {
        let (precision, fidelity) = (Some(PrecisionArg::F32), Some(FidelityArg::Exact));
        Self { backend: Backend::Cpu, precision, fidelity, ..self.clone() }
    }

    /// The same engine with so many bytes for fields and data.
    pub fn with_budget(&self, bytes: u64) -> Self {
        Self { max_memory: Some(bytes.saturating_add(BASE_BYTES)), ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_are_read() {
        assert_eq!(parse_backend("auto"), Ok(Backend::Auto));
        assert_eq!(parse_backend("CPU"), Ok(Backend::Cpu));
        assert_eq!(parse_backend("cuda"), Ok(Backend::Cuda(vec![])));
        assert_eq!(parse_backend("cuda:3,1,3"), Ok(Backend::Cuda(vec![1, 3])));
        for bad in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0"] {
            assert!(parse_backend(bad).unwrap_err().contains("is no backend"), "{bad}");
        }
    }
}

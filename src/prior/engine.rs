//! A checked graph in a runtime, ready to run: tract or ONNX Runtime, behind one trait.

use super::graph::{F16, F32, Graph};
use super::layout::{Layout, Outputs};
use super::runtime::{Loaded, Runtime, one_line};
use crate::io::guard::guarded;
use crate::{Error, Result};
use half::f16;
use ndarray::ArrayD;
use ort::ep;
use ort::logging::LogLevel;
use ort::session::Session;
use ort::value::TensorRef;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tract_onnx::prelude::{
    Datum, DatumType, InferenceFact, InferenceModelExt, IntoRunnable, Tensor, TractResult, TypedRunnableModel, tvec,
};

/// A network that can be run.
pub(super) trait Engine: Send + Sync {
    /// What computes.
    fn describe(&self) -> String;

    /// The floating-point outputs for one input, the numbers of the layout's shape in C order.
    fn run(&self, input: &[f32]) -> Result<Outputs>;
}

/// Loads the graph. Errors: [`Error::Input`] when the runtime does not take it.
pub(super) fn load(graph: &Graph, layout: &Layout, runtime: &Runtime, threads: usize) -> Result<Box<dyn Engine>> {
    Ok(match runtime {
        Runtime::Tract => Box::new(Tract::load(graph, layout)?),
        Runtime::OnnxRuntime(loaded) => Box::new(OnnxRuntime::load(graph, layout, loaded, threads)?),
    })
}

/// Runs what a runtime does with the network; its errors and panics become an [`Error::Input`] about the file, or an
/// [`Error::Memory`].
fn attempt<T>(path: &Path, what: &str, call: impl FnOnce() -> std::result::Result<T, String>) -> Result<T> {
    guarded(call).map_err(|e| {
        let problem = format!("{what}: {}", one_line(&e));
        match out_of_memory(&problem) {
            true => Error::Memory(format!("{}: {problem}; raise --max-memory, or it is broken", path.display())),
            false => Error::input(path, problem),
        }
    })
}

/// Whether a runtime says that memory has run out, in the words of the system, the C++ library, tract or ONNX Runtime.
pub(super) fn out_of_memory(problem: &str) -> bool {
    let words = ["out of memory", "cannot allocate memory", "failed to allocate", "bad_alloc", "bad allocation"];
    let problem = problem.to_ascii_lowercase();
    words.iter().any(|w| problem.contains(w)) || problem.contains("memory allocation of")
}

struct Tract {
    path: PathBuf,
    shape: Vec<usize>,
    half: bool,
    outputs: Vec<String>,
    plan: Arc<TypedRunnableModel>,
}

impl Tract {
    fn load(graph: &Graph, layout: &Layout) -> Result<Self> {
        let cure = "compute it with ONNX Runtime 1.24 or newer (--onnx-runtime PATH), or export it without";
        let fail = |problem: String| Error::input(&layout.path, format!("{}; {cure}", one_line(&problem)));
        if let Some(what) = &graph.tract_gets_wrong {
            return Err(fail(format!("has {what}, which tract computes wrongly")));
        }
        let onnx = tract_onnx::onnx().with_ignore_value_info(true);
        let unknown: Vec<&str> =
            graph.operators.keys().map(|o| &o[..]).filter(|o| !onnx.op_register.0.contains_key(*o)).collect();
        if !unknown.is_empty() {
            return Err(fail(format!("has operators that tract does not know: {}", unknown.join(", "))));
        }
        let kind = if layout.half { DatumType::F16 } else { DatumType::F32 };
        let what = "tract cannot load the network";
        let plan = attempt(&layout.path, what, || {
            let build = || -> TractResult<_> {
                let mut parsed = onnx.parse(&graph.model, None)?;
                if let Some(name) = parsed.unresolved_inputs.first() {
                    return Err(tract_onnx::prelude::TractError::msg(format!("nothing gives {name:?}")));
                }
                let fact = InferenceFact::dt_shape(kind, &layout.shape[..]);
                parsed.model.set_input_fact(0, fact)?;
                parsed.model.into_optimized()?.into_runnable()
            };
            build().map_err(|e| format!("{e:#}"))
        })
        .map_err(|e| match e {
            Error::Input { problem, .. } => fail(problem),
            other => other,
        })?;
        let outputs = graph.outputs.iter().map(|p| p.name.clone()).collect();
        Ok(Self { path: layout.path.clone(), shape: layout.shape.clone(), half: layout.half, outputs, plan })
    }

    fn compute(&self, input: &[f32]) -> TractResult<Outputs> {
        let tensor = if self.half {
            let half: Vec<f16> = input.iter().map(|&x| f16::from_f32(x)).collect();
            Tensor::from_shape(&self.shape, &half)?
        } else {
            Tensor::from_shape(&self.shape, input)?
        };
        let given = self.plan.run(tvec!(tensor.into()))?;
        let mut outputs = Vec::new();
        for (name, value) in self.outputs.iter().zip(given) {
            if ![f32::datum_type(), f16::datum_type(), f64::datum_type()].contains(&value.datum_type()) {
                continue;
            }
            let value = value.cast_to::<f32>()?;
            let numbers = value.to_plain_array_view::<f32>()?.iter().copied().collect();
            let array = ArrayD::from_shape_vec(value.shape(), numbers).expect("as many as the shape says");
            outputs.push((name.clone(), array));
        }
        Ok(outputs)
    }
}

impl Engine for Tract {
    fn describe(&self) -> String {
        "tract".into()
    }

    fn run(&self, input: &[f32]) -> Result<Outputs> {
        attempt(&self.path, "tract cannot run the network", || self.compute(input).map_err(|e| format!("{e:#}")))
    }
}

struct OnnxRuntime {
    path: PathBuf,
    input: String,
    shape: Vec<usize>,
    half: bool,
    version: String,
    device: &'static str,
    // running takes the session mutably
    session: Mutex<Session>,
}

impl OnnxRuntime {
    fn load(graph: &Graph, layout: &Layout, loaded: &Loaded, threads: usize) -> Result<Self> {
        let what = "ONNX Runtime cannot load the network";
        if let Some(port) = graph.outputs.iter().find(|p| ![F32, F16, 11].contains(&p.data_type)) {
            // asked to hand over a sequence or a map, the binding would fail for all outputs
            let problem = format!("output {:?} does not hold floating-point numbers; export it without", port.name);
            return Err(Error::input(&layout.path, problem));
        }
        let bytes = graph.encode();
        let build = |cuda: bool| -> ort::Result<Session> {
            let provider = if cuda {
                ep::CUDA::default().with_tf32(false).build().error_on_failure()
            } else {
                ep::CPU::default().build()
            };
            Session::builder(&loaded.environment)?
                .with_log_level(LogLevel::Fatal)?
                .with_intra_threads(threads)?
                .with_inter_threads(1)?
                // between predictions the cores belong to the wave solver
                .with_intra_op_spinning(false)?
                .with_deterministic_compute(true)?
                .with_execution_providers([provider])?
                .commit_from_memory(&bytes)
        };
        let gpu = if loaded.cuda {
            attempt(&layout.path, what, || build(true).map_err(|e| e.to_string())).ok()
        } else {
            None
        };
        let (device, session) = match gpu {
            Some(session) => ("CUDA", session),
            None => ("CPU", attempt(&layout.path, what, || build(false).map_err(|e| e.to_string()))?),
        };
        Ok(Self {
            path: layout.path.clone(),
            input: layout.input.clone(),
            shape: layout.shape.clone(),
            half: layout.half,
            version: loaded.version.clone(),
            device,
            session: Mutex::new(session),
        })
    }

    fn compute(&self, input: &[f32]) -> ort::Result<Outputs> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let name = &self.input[..];
        let half: Vec<f16>;
        let given = if self.half {
            half = input.iter().map(|&x| f16::from_f32(x)).collect();
            session.run(ort::inputs![name => TensorRef::from_array_view((&self.shape[..], &half[..]))?])?
        } else {
            session.run(ort::inputs![name => TensorRef::from_array_view((&self.shape[..], input))?])?
        };
        let mut outputs = Vec::new();
        for (name, value) in given.iter() {
            let array = if let Ok(a) = value.try_extract_array::<f32>() {
                a.to_owned()
            } else if let Ok(a) = value.try_extract_array::<f16>() {
                a.mapv(f16::to_f32)
            } else {
                value.try_extract_array::<f64>()?.mapv(|y| y as f32)
            };
            outputs.push((name.to_string(), array));
        }
        Ok(outputs)
    }
}

impl Engine for OnnxRuntime {
    fn describe(&self) -> String {
        format!("ONNX Runtime {}, {}", self.version, self.device)
    }

    fn run(&self, input: &[f32]) -> Result<Outputs> {
        attempt(&self.path, "ONNX Runtime cannot run the network", || self.compute(input).map_err(|e| e.to_string()))
    }
}

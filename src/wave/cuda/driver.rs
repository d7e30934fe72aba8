//! A real CUDA device, through the driver API.
//!
//! A [`Driver`] has its own stream in the device's primary context, which every call makes current on its thread. Memory
//! copies wait for the stream; launches and clears do not.

use super::api::{Loaded, driver, one_line};
use super::compile::{self, Code};
use super::device::{Device, check, count};
use super::runtime::{Launch, Limits, Runtime};
use crate::{Error, Result};
use cudarc::driver::sys::*;
use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr::{null, null_mut};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Recorded graphs that are kept; the one not used for longest makes room.
const GRAPHS: usize = 16;

/// A kernel of the loaded module.
struct Kernel {
    function: CUfunction,
    params: usize,
}

/// One CUDA device, opened: see [`Runtime`].
pub struct Driver {
    loaded: &'static Loaded,
    /// "cuda:0", for messages.
    tag: String,
    device: CUdevice,
    context: CUcontext,
    stream: CUstream,
    module: CUmodule,
    kernels: HashMap<String, Kernel>,
    graphs: Mutex<VecDeque<(u64, CUgraphExec)>>,
    limits: Limits,
    code: String,
}

// SAFETY: the driver's handles may be used from any thread on which their context is current; the map of kernels does
// not change after opening, and the graphs are behind a mutex.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}

/// The names of the devices, such as "NVIDIA H100 80GB HBM3 (cuda:0)".
///
/// Errors with [`Error::Device`] when there is no driver, an old one, or no device.
pub fn devices() -> Result<Vec<String>> {
    let loaded = driver()?;
    (0..count(loaded)?).map(|i| Ok(Device::get(loaded, i)?.limits()?.name)).collect()
}

/// What CUDA offers here, in lines for people; opens every device, which compiles the kernels where that was not done yet.
pub fn report() -> Vec<String> {
    let there = driver().and_then(|loaded| Ok((loaded, count(loaded)?)));
    let (loaded, there) = match there {
        Ok(found) => found,
        Err(Error::Device { problem, .. }) => return vec![format!("cuda: none ({problem})")],
        Err(e) => return vec![format!("cuda: none ({e})")],
    };
    let mut version = 0;
    // SAFETY: the pointer is valid; the version stays 0 on failure.
    unsafe { (loaded.api.cuDriverGetVersion)(&mut version) };
    let nvrtc = compile::compiler().map_or_else(|why| why, |c| format!("NVRTC {}.{}", c.version.0, c.version.1));
    let mut lines = vec![format!("cuda: driver for CUDA {}.{}, {nvrtc}", version / 1000, version % 1000 / 10)];
    for i in 0..there {
        lines.push(Device::get(loaded, i).and_then(|d| d.describe()).unwrap_or_else(|e| e.to_string()));
        lines.push(Driver::open(i).map_or_else(|e| e.to_string(), |d| format!("{} kernels: {}", d.tag, d.code)));
    }
    lines
}

impl Driver {
    /// Opens device number `ordinal` and loads the kernels for it.
    ///
    /// Errors with [`Error::Device`] when there is no driver, an old one, no such device, one older than compute capability
    /// 8.0 or one that is lost, and with [`Error::Memory`] when others have taken all its memory.
    pub fn open(ordinal: usize) -> Result<Self> {
        let loaded = driver()?;
        let device = Device::get(loaded, ordinal)?;
        let arch = device.arch();
        if arch < 80 {
            return Err(Error::device(
                device.tag,
                format!(
                    "compute capability {}.{} is too old: 8.0 (Ampere) or later is needed; compute on the CPU",
                    arch / 10,
                    arch % 10
                ),
            ));
        }
        let limits = device.limits()?;
        // what is made so far is given back when a later step fails
        let mut new = Self {
            loaded,
            tag: device.tag,
            device: device.handle,
            context: null_mut(),
            stream: null_mut(),
            module: null_mut(),
            kernels: HashMap::new(),
            graphs: Mutex::default(),
            limits,
            code: String::new(),
        };
        let api = &loaded.api;
        // SAFETY: the device is valid. Waiting threads sleep, for the host has other work; a refusal does no harm.
        unsafe { (api.cuDevicePrimaryCtxSetFlags_v2)(new.device, CUctx_flags::CU_CTX_SCHED_BLOCKING_SYNC as u32) };
        // SAFETY: the pointers are valid, and the context is current when the stream is made.
        let code = unsafe { (api.cuDevicePrimaryCtxRetain)(&mut new.context, new.device) };
        new.check(code, || "open the device".into())?;
        new.enter()?;
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: as above.
        let code = unsafe { (api.cuStreamCreate)(&mut new.stream, flags) };
        new.check(code, || "make a stream".into())?;
        new.load(arch)?;
        new.find_kernels(arch)?;
        Ok(new)
    }

    /// Where the machine code of the kernels came from, in a line for people.
    pub fn code(&self) -> &str {
        &self.code
    }

    fn check(&self, code: u32, doing: impl FnOnce() -> String) -> Result<()> {
        check(self.loaded, &self.tag, code, doing)
    }

    /// Makes the context current on this thread.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained until this is dropped.
        self.check(unsafe { (self.loaded.api.cuCtxSetCurrent)(self.context) }, || "use the device".into())
    }

    fn wait(&self, doing: impl FnOnce() -> String) -> Result<()> {
        // SAFETY: the stream is valid.
        self.check(unsafe { (self.loaded.api.cuStreamSynchronize)(self.stream) }, doing)
    }

    /// Loads machine code, or the PTX where there is none or the driver refuses it.
    fn load(&mut self, arch: u32) -> Result<()> {
        let why = match compile::machine_code(arch, compile::cache_folder().as_deref()) {
            Ok(Code { image, origin }) => match self.load_image(&image) {
                Ok(()) => {
                    self.code = origin;
                    return Ok(());
                }
                Err(e @ Error::Memory(_)) => return Err(e),
                Err(e) => e.to_string(),
            },
            Err(why) => why,
        };
        let ptx = compile::ptx(arch);
        let text = CString::new(ptx).map_err(|_| Error::device(&self.tag, "the PTX holds a zero byte"))?;
        self.load_image(text.as_bytes_with_nul())?;
        let isa = ptx.lines().find_map(|l| l.strip_prefix(".version ")).unwrap_or_default();
        self.code = format!("PTX {isa} of this binary, compiled by the driver ({why})");
        Ok(())
    }

    /// Loads a CUBIN, or PTX that ends in a zero.
    fn load_image(&mut self, image: &[u8]) -> Result<()> {
        let mut log = [0u8; 2048];
        let mut options = [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), (log.len() - 1) as *mut c_void];
        let mut module = null_mut();
        // SAFETY: the image is whole, the buffer as long as is said; a number is passed as a pointer, as is laid down.
        let code = unsafe {
            (self.loaded.api.cuModuleLoadDataEx)(
                &mut module,
                image.as_ptr().cast(),
                2,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        self.check(code, || {
            let said = CStr::from_bytes_until_nul(&log).map(|t| one_line(&t.to_string_lossy())).unwrap_or_default();
            if said.is_empty() { "load the kernels".into() } else { format!("load the kernels ({said})") }
        })?;
        self.module = module;
        Ok(())
    }

    /// Looks all kernels up now: the driver loads each when it is first asked for, which would disturb a recording.
    fn find_kernels(&mut self, arch: u32) -> Result<()> {
        use CUfunction_attribute::{
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as DYNAMIC,
            CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT as CARVEOUT,
            CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as STATIC,
        };
        let entries = compile::entries(compile::ptx(arch)).map_err(|e| Error::device(&self.tag, e))?;
        for entry in entries {
            let name =
                CString::new(entry.name.as_str()).map_err(|_| Error::device(&self.tag, "a kernel has no name"))?;
            let (api, mut function, mut fixed) = (&self.loaded.api, null_mut(), 0);
            // SAFETY: the module is loaded and the name ends in a zero.
            let code = unsafe { (api.cuModuleGetFunction)(&mut function, self.module, name.as_ptr()) };
            self.check(code, || format!("find kernel {}", entry.name))?;
            // Dynamic shared memory beyond 48 KB must be allowed; what a launch asks for then counts, not this.
            // SAFETY: the function is valid.
            let code = unsafe { (api.cuFuncGetAttribute)(&mut fixed, STATIC, function) };
            self.check(code, || format!("examine kernel {}", entry.name))?;
            let most = (self.limits.shared_bytes as c_int).saturating_sub(fixed).max(0);
            // SAFETY: as above.
            let code = unsafe { (api.cuFuncSetAttribute)(function, DYNAMIC, most) };
            self.check(code, || format!("give kernel {} {most} bytes of shared memory", entry.name))?;
            if entry.name.starts_with("cluster_") {
                // all of the cache as shared memory, else only one block may fit; a hint, so a refusal does no harm
                // SAFETY: as above.
                unsafe { (api.cuFuncSetAttribute)(function, CARVEOUT, 100) };
            }
            self.kernels.insert(entry.name, Kernel { function, params: entry.params });
        }
        Ok(())
    }

    fn graphs(&self) -> MutexGuard<'_, VecDeque<(u64, CUgraphExec)>> {
        self.graphs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, graph: CUgraphExec) -> Result<()> {
        // SAFETY: the graph is kept until this is dropped or it makes room, which the driver puts off to its end.
        self.check(unsafe { (self.loaded.api.cuGraphLaunch)(graph, self.stream) }, || "start the recorded work".into())
    }

    /// Records what `record` launches.
    fn record(&self, record: &mut dyn FnMut() -> Result<()>) -> Result<CUgraphExec> {
        let api = &self.loaded.api;
        // other threads may use other devices and streams meanwhile
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is valid.
        self.check(unsafe { (api.cuStreamBeginCapture_v2)(self.stream, mode) }, || "record work".into())?;
        let mut recording = Recording { driver: self, graph: null_mut(), ended: false };
        record()?;
        self.check(recording.end(), || "record work".into())?;
        let mut graph = null_mut();
        // SAFETY: the recorded graph is valid; it may be destroyed when this exists.
        let code = unsafe { (api.cuGraphInstantiateWithFlags)(&mut graph, recording.graph, 0) };
        self.check(code, || "prepare the recorded work".into())?;
        Ok(graph)
    }
}

/// A recording, ended and destroyed whatever happens, so that the stream can be used again.
struct Recording<'a> {
    driver: &'a Driver,
    graph: CUgraph,
    ended: bool,
}

impl Recording<'_> {
    fn end(&mut self) -> u32 {
        self.ended = true;
        // SAFETY: the stream is being recorded; the pointer is valid.
        unsafe { (self.driver.loaded.api.cuStreamEndCapture)(self.driver.stream, &mut self.graph) }
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.end();
        }
        if !self.graph.is_null() {
            // SAFETY: made by the recording and destroyed once.
            unsafe { (self.driver.loaded.api.cuGraphDestroy)(self.graph) };
        }
    }
}

impl Runtime for Driver {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn free_bytes(&self) -> Result<u64> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both pointers are valid.
        let code = unsafe { (self.loaded.api.cuMemGetInfo_v2)(&mut free, &mut total) };
        self.check(code, || "ask for free memory".into())?;
        Ok(free as u64)
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        self.enter()?;
        let mut address = 0;
        // SAFETY: the pointer is valid. The driver refuses to allocate nothing, hence one byte.
        let code = unsafe { (self.loaded.api.cuMemAlloc_v2)(&mut address, bytes.max(1)) };
        self.check(code, || format!("take {:.1} MB", bytes as f64 / f64::from(1 << 20)))?;
        Ok(address)
    }

    fn free(&self, address: u64) {
        // a device that is lost has lost its memory too
        if self.enter().is_ok() && self.wait(String::new).is_ok() {
            // SAFETY: the caller has it from `alloc`, and nothing uses it any more.
            unsafe { (self.loaded.api.cuMemFree_v2)(address) };
        }
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        self.enter()?;
        // SAFETY: the slice lives until the wait below is over; without it, where the device can read the host's memory
        // by itself, the copy could still be reading.
        let code = unsafe { (self.loaded.api.cuMemcpyHtoDAsync_v2)(to, from.as_ptr().cast(), from.len(), self.stream) };
        self.check(code, || "copy to the device".into())?;
        self.wait(|| "copy to the device".into())
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.enter()?;
        // SAFETY: the slice lives until the wait below is over.
        let code =
            unsafe { (self.loaded.api.cuMemcpyDtoHAsync_v2)(to.as_mut_ptr().cast(), from, to.len(), self.stream) };
        self.check(code, || "copy from the device".into())?;
        // errors of kernels that were started before come to light here
        self.wait(|| "finish the work on the device".into())
    }

    fn clear(&self, at: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: the caller's memory; a wrong address is an error of the driver.
        let code = unsafe { (self.loaded.api.cuMemsetD8Async)(at, 0, bytes, self.stream) };
        self.check(code, || "clear memory".into())
    }

    fn launch(&self, kernel: &str, launch: Launch, params: &[u8]) -> Result<()> {
        let refuse = |problem| Err(Error::device(&self.tag, format!("cannot start kernel {kernel}: {problem}")));
        let Some(found) = self.kernels.get(kernel) else {
            return refuse("this device has none of that name".into());
        };
        if params.len() != found.params {
            return refuse(format!("its parameter is {} bytes, not {}", found.params, params.len()));
        }
        self.enter()?;
        let mut list: [*mut c_void; 1] = [params.as_ptr().cast_mut().cast()];
        // SAFETY: the driver copies the parameter, whose size was checked, before it returns, and writes nothing there.
        let code = unsafe {
            (self.loaded.api.cuLaunchKernel)(
                found.function,
                launch.blocks,
                1,
                1,
                launch.threads,
                1,
                1,
                launch.shared.try_into().unwrap_or(u32::MAX),
                self.stream,
                list.as_mut_ptr(),
                null::<*mut c_void>().cast_mut(),
            )
        };
        self.check(code, || format!("start kernel {kernel} ({launch:?})"))
    }

    fn replay(&self, key: u64, record: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.enter()?;
        let kept = {
            let mut graphs = self.graphs();
            let at = graphs.iter().position(|(k, _)| *k == key);
            at.and_then(|at| graphs.remove(at)).inspect(|found| graphs.push_back(*found))
        };
        if let Some((_, graph)) = kept {
            return self.start(graph);
        }
        let graph = self.record(record)?;
        let mut graphs = self.graphs();
        graphs.push_back((key, graph));
        while graphs.len() > GRAPHS {
            if let Some((_, oldest)) = graphs.pop_front() {
                // SAFETY: it is forgotten here; the driver lets one that still runs come to its end.
                unsafe { (self.loaded.api.cuGraphExecDestroy)(oldest) };
            }
        }
        drop(graphs);
        self.start(graph)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.context.is_null() {
            return;
        }
        let api = &self.loaded.api;
        let graphs = std::mem::take(&mut *self.graphs());
        // SAFETY: everything was made by `open` or `record` and is given back once; errors have nobody to go to.
        unsafe {
            (api.cuCtxSetCurrent)(self.context);
            if !self.stream.is_null() {
                (api.cuStreamSynchronize)(self.stream);
            }
            for (_, graph) in graphs {
                (api.cuGraphExecDestroy)(graph);
            }
            if !self.module.is_null() {
                (api.cuModuleUnload)(self.module);
            }
            if !self.stream.is_null() {
                (api.cuStreamDestroy_v2)(self.stream);
            }
            (api.cuDevicePrimaryCtxRelease_v2)(self.device);
        }
    }
}

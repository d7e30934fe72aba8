//! A device that runs the CUDA sources on the CPU: `kernels/` compiled through `tests/shim` by the C++ compiler.

use fwi::wave::cuda::{Launch, Limits, Runtime};
use fwi::{Error, Result};
use libloading::Library;
use std::alloc::{Layout, alloc, dealloc};
use std::collections::HashMap;
use std::ffi::{c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// In which order the fibers of a block run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "not every test that includes this uses all of it")]
pub enum Order {
    Forwards,
    Backwards,
    Shuffled(u32),
}

/// What happens to a device in a test.
#[derive(Default)]
pub struct Fate {
    /// Bytes that are taken now, and at most so far.
    pub taken: AtomicU64,
    pub peak: AtomicU64,
    /// Launches so far, and after how many the device is lost (0 for never).
    pub launches: AtomicUsize,
    pub lost_after: AtomicUsize,
    /// Bytes that were uploaded.
    pub uploaded: AtomicU64,
    /// Pieces of work that were replayed under a known key.
    pub replays: AtomicUsize,
}

/// Kernels with their parameters, in the order in which they were launched.
type Launches = Vec<(String, Vec<u8>)>;

/// A device of the host.
pub struct Host {
    kernels: Arc<Library>,
    order: Order,
    limits: Limits,
    memory: u64,
    blocks: Mutex<HashMap<u64, Layout>>,
    keys: Mutex<HashMap<u64, Launches>>,
    recording: Mutex<Option<Launches>>,
    pub fate: Arc<Fate>,
}

/// The kernels as a library of the host; `Err` says why there is none (no compiler).
pub fn library() -> std::result::Result<Arc<Library>, String> {
    static BUILT: OnceLock<std::result::Result<Arc<Library>, String>> = OnceLock::new();
    BUILT.get_or_init(build).clone()
}

fn build() -> std::result::Result<Arc<Library>, String> {
    if cfg!(not(all(target_arch = "x86_64", target_os = "linux"))) {
        return Err("the host shim runs on x86-64 Linux only".into());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("libkernels-{}.so", std::process::id()));
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let built = Command::new(&compiler)
        .args(["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"])
        .args(["-Wno-unknown-pragmas", "-o"])
        .arg(&out)
        .arg(root.join("tests/shim/shim.cpp"))
        .output()
        .map_err(|e| format!("no C++ compiler ({compiler}: {e}); .ci/setup --tests installs one"))?;
    assert!(built.status.success(), "the kernels do not compile:\n{}", String::from_utf8_lossy(&built.stderr));
    // SAFETY: the library has no initialisers that do anything
    let library = unsafe { Library::new(&out) }.map_err(|e| e.to_string());
    let _ = std::fs::remove_file(&out);
    Ok(Arc::new(library?))
}

impl Host {
    /// A device with `memory` bytes; `clusters` tells whether it has them.
    pub fn new(kernels: Arc<Library>, order: Order, clusters: bool, memory: u64) -> Self {
        let limits = Limits { name: "host (cuda:0)".into(), multiprocessors: 2, shared_bytes: 227 << 10, clusters };
        Self {
            kernels,
            order,
            limits,
            memory,
            blocks: Mutex::default(),
            keys: Mutex::default(),
            recording: Mutex::default(),
            fate: Arc::default(),
        }
    }

    /// Bytes of the kernels' parameters as the C++ compiler has them.
    #[allow(dead_code, reason = "not every test that includes this uses all of it")]
    pub fn params_size(&self) -> usize {
        // SAFETY: declared so in shim.cpp
        unsafe {
            let f = self.kernels.get::<extern "C" fn() -> std::ffi::c_ulong>(b"shim_params_size").unwrap();
            f() as usize
        }
    }

    /// Errors unless the bytes lie within one block that was taken and not given back.
    fn check(&self, address: u64, bytes: usize) {
        let blocks = self.blocks.lock().unwrap();
        let inside = |(&a, l): (&u64, &Layout)| address >= a && address + bytes as u64 <= a + l.size() as u64;
        assert!(blocks.iter().any(inside), "{bytes} bytes at {address:#x} are not in device memory");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        assert!(self.blocks.lock().unwrap().is_empty() || std::thread::panicking(), "device memory was not given back");
    }
}

type LaunchFn = unsafe extern "C" fn(*mut c_void, c_uint, c_uint, c_uint, usize, *const c_void, c_int, c_uint) -> c_int;

impl Runtime for Host {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn free_bytes(&self) -> Result<u64> {
        Ok(self.memory - self.fate.taken.load(Ordering::SeqCst))
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        let layout = Layout::from_size_align(bytes, 256).unwrap();
        let taken = self.fate.taken.fetch_add(bytes as u64, Ordering::SeqCst) + bytes as u64;
        if taken > self.memory {
            self.fate.taken.fetch_sub(bytes as u64, Ordering::SeqCst);
            return Err(Error::Memory("host (cuda:0): the device's memory is exhausted".into()));
        }
        self.fate.peak.fetch_max(taken, Ordering::SeqCst);
        // SAFETY: the layout is not empty
        let address = unsafe { alloc(layout) };
        // what was never written must show
        // SAFETY: just allocated
        unsafe { address.write_bytes(0xff, bytes) };
        self.blocks.lock().unwrap().insert(address as u64, layout);
        Ok(address as u64)
    }

    fn free(&self, address: u64) {
        let layout = self.blocks.lock().unwrap().remove(&address).expect("given back twice, or never taken");
        self.fate.taken.fetch_sub(layout.size() as u64, Ordering::SeqCst);
        // SAFETY: allocated with this layout
        unsafe { dealloc(address as *mut u8, layout) };
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        self.check(to, from.len());
        self.fate.uploaded.fetch_add(from.len() as u64, Ordering::SeqCst);
        // SAFETY: checked
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.check(from, to.len());
        // SAFETY: checked
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn clear(&self, at: u64, bytes: usize) -> Result<()> {
        self.check(at, bytes);
        // SAFETY: checked
        unsafe { (at as *mut u8).write_bytes(0, bytes) };
        Ok(())
    }

    fn launch(&self, kernel: &str, launch: Launch, params: &[u8]) -> Result<()> {
        let count = self.fate.launches.fetch_add(1, Ordering::SeqCst) + 1;
        let end = self.fate.lost_after.load(Ordering::SeqCst);
        if end > 0 && count > end {
            return Err(Error::device("host (cuda:0)", "the device is lost"));
        }
        if let Some(list) = &mut *self.recording.lock().unwrap() {
            list.push((kernel.to_string(), params.to_vec()));
        }
        let (order, seed) = match self.order {
            Order::Forwards => (0, 0),
            Order::Backwards => (1, 0),
            Order::Shuffled(seed) => (2, seed),
        };
        // SAFETY: the shim checks the launch; the kernels are what is tested
        let rc = unsafe {
            let function =
                self.kernels.get::<*mut c_void>(kernel.as_bytes()).unwrap_or_else(|e| panic!("{kernel}: {e}"));
            let run = self.kernels.get::<LaunchFn>(b"shim_launch").unwrap();
            let p = params.as_ptr().cast();
            run(*function, launch.blocks, launch.threads, launch.cluster, launch.shared, p, order, seed)
        };
        assert_eq!(
            rc, 0,
            "{kernel}, {launch:?}: 1 is a barrier that not all threads reach, 2 a senseless launch, 3 an overrun"
        );
        Ok(())
    }

    /// Always does the work, and sees to it that a known key stands for the same work.
    fn replay(&self, key: u64, record: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        *self.recording.lock().unwrap() = Some(vec![]);
        record()?;
        let list = self.recording.lock().unwrap().take().unwrap();
        if let Some(known) = self.keys.lock().unwrap().insert(key, list.clone()) {
            self.fate.replays.fetch_add(1, Ordering::SeqCst);
            assert_eq!(known, list, "a key stands for two pieces of work");
        }
        Ok(())
    }
}

/// Runs the tests; all of them count as ignored where the kernels cannot be compiled.
pub fn run(tests: &[(&str, fn())]) -> ! {
    let args = libtest_mimic::Arguments::from_args();
    let missing = library().err();
    if let Some(why) = &missing {
        println!("skipped: {why}");
    }
    let trial = |&(name, test): &(&str, fn())| {
        let body = move || {
            test();
            Ok(())
        };
        libtest_mimic::Trial::test(name, body).with_ignored_flag(missing.is_some())
    };
    libtest_mimic::run(&args, tests.iter().map(trial).collect()).exit()
}

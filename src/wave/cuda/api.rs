//! The functions of NVIDIA's libraries, found when the program runs, so that one binary serves machines without them.
//!
//! cudarc's own loaders panic where a library or a function is missing, and hold result codes in an enum that codes of
//! later drivers are no values of. Here a missing function is an error and codes are numbers. The signatures are checked
//! against cudarc's when this is compiled, all but the result.

use crate::{Error, Result};
use cudarc::driver::sys::{self, *};
use libloading::Library;
use std::error::Error as _;
use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

/// A struct of functions of the library that `sys` describes, returning their codes as `u32`.
macro_rules! functions {
    ($(#[$doc:meta])* $table:ident, $code:ty; $($f:ident($($argument:ty),*);)*) => {
        $(#[$doc])*
        #[allow(non_snake_case)] // the names of NVIDIA's documentation
        pub(super) struct $table {
            $(pub $f: unsafe extern "C" fn($($argument),*) -> u32,)*
        }

        impl $table {
            /// Finds all functions; the name of one that is missing otherwise.
            pub fn find(library: &libloading::Library) -> std::result::Result<Self, &'static str> {
                // SAFETY: the types are those of the library's header, see below.
                Ok(Self { $($f: unsafe { *library.get(stringify!($f)).map_err(|_| stringify!($f))? },)* })
            }
        }

        $(const _: unsafe fn($($argument),*) -> $code = sys::$f;)*
    };
}
pub(super) use functions;

functions! {
    /// The part of the driver API that is used here.
    Api, CUresult;
    cuInit(c_uint);
    cuDriverGetVersion(*mut c_int);
    cuDeviceGetCount(*mut c_int);
    cuDeviceGet(*mut CUdevice, c_int);
    cuDeviceGetName(*mut c_char, c_int, CUdevice);
    cuDeviceGetAttribute(*mut c_int, CUdevice_attribute, CUdevice);
    cuDeviceTotalMem_v2(*mut usize, CUdevice);
    cuDevicePrimaryCtxSetFlags_v2(CUdevice, c_uint);
    cuDevicePrimaryCtxRetain(*mut CUcontext, CUdevice);
    cuDevicePrimaryCtxRelease_v2(CUdevice);
    cuCtxSetCurrent(CUcontext);
    cuMemGetInfo_v2(*mut usize, *mut usize);
    cuMemAlloc_v2(*mut CUdeviceptr, usize);
    cuMemFree_v2(CUdeviceptr);
    cuMemcpyHtoDAsync_v2(CUdeviceptr, *const c_void, usize, CUstream);
    cuMemcpyDtoHAsync_v2(*mut c_void, CUdeviceptr, usize, CUstream);
    cuMemsetD8Async(CUdeviceptr, c_uchar, usize, CUstream);
    cuStreamCreate(*mut CUstream, c_uint);
    cuStreamDestroy_v2(CUstream);
    cuStreamSynchronize(CUstream);
    cuStreamBeginCapture_v2(CUstream, CUstreamCaptureMode);
    cuStreamEndCapture(CUstream, *mut CUgraph);
    cuGraphInstantiateWithFlags(*mut CUgraphExec, CUgraph, c_ulonglong);
    cuGraphLaunch(CUgraphExec, CUstream);
    cuGraphExecDestroy(CUgraphExec);
    cuGraphDestroy(CUgraph);
    cuModuleLoadDataEx(*mut CUmodule, *const c_void, c_uint, *mut CUjit_option, *mut *mut c_void);
    cuModuleGetFunction(*mut CUfunction, CUmodule, *const c_char);
    cuModuleUnload(CUmodule);
    cuFuncGetAttribute(*mut c_int, CUfunction_attribute, CUfunction);
    cuFuncSetAttribute(CUfunction, CUfunction_attribute, c_int);
    cuLaunchKernel(CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, CUstream, *mut *mut c_void,
        *mut *mut c_void);
}

/// Both of cuGetErrorName and cuGetErrorString, which take any number.
type Words = unsafe extern "C" fn(u32, *mut *const c_char) -> u32;

/// The driver, loaded and initialised.
pub(super) struct Loaded {
    /// Its functions.
    pub api: Api,
    name: Words,
    text: Words,
}

/// Names of the driver's library, the first that is found counts.
const LIBRARIES: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };

/// The driver, loaded once for the process.
///
/// Errors with [`Error::Device`] about "cuda" when there is none, an old one, or one without devices.
pub(super) fn driver() -> Result<&'static Loaded> {
    static LOADED: OnceLock<std::result::Result<Loaded, String>> = OnceLock::new();
    LOADED.get_or_init(load).as_ref().map_err(|problem| Error::device("cuda", problem.clone()))
}

fn load() -> std::result::Result<Loaded, String> {
    let mut reason = None;
    // SAFETY: loading runs the constructors of NVIDIA's library, which ask nothing of us.
    let library = LIBRARIES.iter().find_map(|name| match unsafe { Library::new(*name) } {
        Ok(library) => Some(library),
        Err(e) => {
            // "libcuda.so.1: cannot open shared object file: No such file or directory"
            reason.get_or_insert(e.source().map_or_else(|| e.to_string(), |why| one_line(&why.to_string())));
            None
        }
    });
    let Some(library) = library else {
        let name = LIBRARIES[0];
        return Err(match reason {
            // the loader's own words where the file is there but of no use
            Some(reason) if !(reason.starts_with(name) && reason.contains("No such file")) => format!(
                "no NVIDIA driver: {name} cannot be loaded ({reason}); reinstall the driver, or compute on the CPU"
            ),
            _ => format!("no NVIDIA driver: {name} was not found; install the driver, or compute on the CPU"),
        });
    };
    let found = Api::find(&library).and_then(|api| {
        // SAFETY: both are int (CUresult, const char **) in the header, with the enum an unsigned int.
        let words = |name| unsafe { library.get::<Words>(name).map(|f| *f).map_err(|_| name) };
        Ok(Loaded { api, name: words("cuGetErrorName")?, text: words("cuGetErrorString")? })
    });
    let loaded = found.map_err(|missing| {
        format!("the NVIDIA driver is too old: it has no {missing}; update it to R520 (CUDA 11.8) or later")
    })?;
    std::mem::forget(library); // for the life of the process, as the functions are
    // SAFETY: the flags must be 0.
    match unsafe { (loaded.api.cuInit)(0) } {
        0 => Ok(loaded),
        code => Err(format!("the NVIDIA driver does not start: {}", loaded.words(code))),
    }
}

impl Loaded {
    /// A code of the driver in words: its name, number and text, and the cure where one is known.
    pub fn words(&self, code: u32) -> String {
        let said = |f: Words| {
            let mut text = std::ptr::null();
            // SAFETY: the driver sets the pointer to a static string, or to null where it does not know the code.
            unsafe {
                if f(code, &mut text) != 0 || text.is_null() {
                    return None;
                }
                Some(CStr::from_ptr(text).to_string_lossy().into_owned())
            }
        };
        let name = said(self.name).unwrap_or_else(|| "error".into());
        let text = said(self.text).map_or(String::new(), |t| format!(", {}", one_line(&t)));
        let cure = cure(code).map_or(String::new(), |c| format!("; {c}"));
        format!("{name} ({code}){text}{cure}")
    }
}

/// What to do about a code of the driver. The numbers are those of CUresult in cuda.h.
fn cure(code: u32) -> Option<&'static str> {
    Some(match code {
        3 | 4 | 999 => "reload the driver or restart the machine if this stays",
        34 => "this libcuda is the stub for linking: take the toolkit's stubs folder out of LD_LIBRARY_PATH",
        35 => "update the driver to R520 (CUDA 11.8) or later",
        46 => "another process may use the device exclusively: see nvidia-smi",
        100 => "check nvidia-smi and CUDA_VISIBLE_DEVICES, or compute on the CPU",
        101 => "fwi doctor lists the devices",
        200 | 209 => "this device is not supported by the kernels: compute on the CPU",
        218 | 222 => "update the driver",
        214 | 220 | 226 | 702 | 709 | 710 | 713..=719 | 721 => {
            "the device is lost to this process: start again, and look for Xid lines in dmesg if it happens again"
        }
        700 => {
            "the device is lost to this process: start again, and please report it if it happens again, with the \
             output of compute-sanitizer"
        }
        701 => "the kernel needs more registers or shared memory than the device has",
        802 => "the machine's NVSwitch fabric is not up: start nvidia-fabricmanager, or wait",
        803 | 804 => {
            "the driver's library and its kernel module are of different versions: restart the machine, or remove the \
             libcuda (compat) that is found first"
        }
        _ => return None,
    })
}

/// Words of others, kept to one line.
pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

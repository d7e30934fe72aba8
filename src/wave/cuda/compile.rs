//! Machine code of `kernels/`: compiled by NVRTC for the chip at hand and kept on disk, or as PTX from this binary.
//!
//! NVRTC is NVIDIA's compiler as a library, part of the CUDA toolkit (and of PyPI's nvidia-cuda-nvrtc). It is looked for
//! by name and in `$CUDA_HOME` and `$CUDA_PATH`; `FWI_NVRTC` names its file, or is `off`. Where it is absent or fails, the
//! driver compiles the PTX that `kernels/build.sh` made. Both give the same kernels; NVRTC of a later CUDA may know the
//! chip better.
//!
//! What was compiled lies in `$FWI_CACHE_DIR`, or `fwi` in `$XDG_CACHE_HOME` or `~/.cache`; one file of some 100 KB
//! for each chip, compiler and version of the sources. The folder may be removed at any time.

use super::api::{functions, one_line};
use cudarc::nvrtc::sys::{self, nvrtcProgram, nvrtcResult};
use sha2::{Digest, Sha256};
use std::ffi::{CStr, CString, c_char, c_int};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The CUDA sources by name, `fwi.cu` being the one that includes the others.
pub const SOURCES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/kernel_sources.rs"));

/// PTX for compute capability 8.0 and later: no kernels with clusters.
pub const PTX_SM80: &str = include_str!("../../../kernels/ptx/fwi_sm80.ptx");
/// PTX for compute capability 9.0 and later but 12.0, where clusters have too little shared memory: all kernels.
pub const PTX_SM90: &str = include_str!("../../../kernels/ptx/fwi_sm90.ptx");

/// The PTX for a chip: `arch` is ten times the compute capability, 90 for 9.0.
pub fn ptx(arch: u32) -> &'static str {
    if (90..120).contains(&arch) { PTX_SM90 } else { PTX_SM80 }
}

/// Names the sources: changes whenever one of them does. The first line of the PTX repeats it.
pub fn sources_sha256() -> String {
    let list: String = SOURCES.iter().map(|(name, text)| format!("{}  {name}\n", hex(text))).collect();
    hex(list)
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// A kernel and the size of the struct that is its only parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Bytes of its parameter.
    pub params: usize,
}

/// The kernels that `text`, PTX made by `kernels/build.sh`, holds. The problem where it is something else.
pub fn entries(text: &str) -> Result<Vec<Entry>, String> {
    let mut lines = text.lines();
    let mut found = Vec::new();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix(".visible .entry ") else { continue };
        let name = name.trim_end_matches(['(', ' ']).to_string();
        // ".param .align 8 .b8 NAME_param_0[24]"
        let params = lines
            .next()
            .and_then(|p| p.trim().strip_suffix(']'))
            .filter(|p| p.contains(".b8 "))
            .and_then(|p| p.rsplit_once("_param_0["))
            .and_then(|(_, bytes)| bytes.parse().ok());
        match params {
            Some(params) if lines.next() == Some(")") => found.push(Entry { name, params }),
            _ => return Err(format!("kernel {name} does not take one struct")),
        }
    }
    Ok(found)
}

functions! {
    /// The part of NVRTC that is used here.
    Nvrtc, nvrtcResult;
    nvrtcVersion(*mut c_int, *mut c_int);
    nvrtcCreateProgram(*mut nvrtcProgram, *const c_char, *const c_char, c_int, *const *const c_char,
        *const *const c_char);
    nvrtcCompileProgram(nvrtcProgram, c_int, *const *const c_char);
    nvrtcDestroyProgram(*mut nvrtcProgram);
    nvrtcGetCUBINSize(nvrtcProgram, *mut usize);
    nvrtcGetCUBIN(nvrtcProgram, *mut c_char);
    nvrtcGetProgramLogSize(nvrtcProgram, *mut usize);
    nvrtcGetProgramLog(nvrtcProgram, *mut c_char);
}

/// NVRTC, loaded.
pub struct Compiler {
    functions: Nvrtc,
    /// Its version, such as (13, 0).
    pub version: (i32, i32),
}

/// Machine code and where it came from.
#[derive(Clone, Debug)]
pub struct Code {
    /// A CUBIN.
    pub image: Vec<u8>,
    /// One line for people.
    pub origin: String,
}

/// NVRTC, looked for once; why it cannot be used otherwise.
pub fn compiler() -> Result<&'static Compiler, String> {
    static COMPILER: OnceLock<Result<Compiler, String>> = OnceLock::new();
    COMPILER.get_or_init(find_compiler).as_ref().map_err(Clone::clone)
}

/// Where NVRTC may be, most wanted first. Later than 13 it is found by its plain name only: what it makes may be too new.
fn candidates() -> Vec<PathBuf> {
    let names: &[&str] = if cfg!(windows) {
        &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"]
    } else {
        &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
    };
    let mut found: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
    for root in ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(std::env::var_os) {
        for folder in ["lib64", "lib", "bin"] {
            let folder = Path::new(&root).join(folder);
            found.extend(names.iter().map(|name| folder.join(name)).filter(|file| file.exists()));
        }
    }
    found
}

fn find_compiler() -> Result<Compiler, String> {
    let files = match std::env::var_os("FWI_NVRTC") {
        Some(off) if off == "off" => return Err("NVRTC is switched off by FWI_NVRTC".into()),
        Some(file) => vec![file.into()],
        None => candidates(),
    };
    let Some(library) = files.iter().find_map(|f| load_compiler(f)) else {
        return Err("no NVRTC library was found".into());
    };
    let functions = Nvrtc::find(&library).map_err(|name| format!("the NVRTC library is too old: it has no {name}"))?;
    std::mem::forget(library); // for the life of the process, as the functions are
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both pointers are valid.
    match unsafe { (functions.nvrtcVersion)(&mut major, &mut minor) } {
        0 => Ok(Compiler { functions, version: (major, minor) }),
        code => Err(format!("NVRTC does not start: error {code}")),
    }
}

/// Loads NVRTC and, where a folder is named, the part of it that it looks for by name, and so would not find there.
fn load_compiler(file: &Path) -> Option<libloading::Library> {
    // SAFETY: loading runs the constructors of NVIDIA's library, which ask nothing of us.
    let library = unsafe { libloading::Library::new(file) }.ok()?;
    let prefix = if cfg!(windows) { "nvrtc-builtins64" } else { "libnvrtc-builtins.so" };
    let folder = file.parent().filter(|f| !f.as_os_str().is_empty());
    for entry in folder.and_then(|f| std::fs::read_dir(f).ok()).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            // SAFETY: as above; it stays as long as NVRTC.
            if let Ok(part) = unsafe { libloading::Library::new(entry.path()) } {
                std::mem::forget(part);
            }
        }
    }
    Some(library)
}

/// A program of NVRTC, destroyed in the end.
struct Program<'a>(&'a Nvrtc, nvrtcProgram);

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: made by nvrtcCreateProgram and destroyed once.
        unsafe { (self.0.nvrtcDestroyProgram)(&mut self.1) };
    }
}

/// How the sources are compiled for `arch`; `kernels/build.sh` does likewise.
fn options(arch: u32) -> [String; 3] {
    ["--std=c++17".into(), "--fmad=false".into(), format!("--gpu-architecture=sm_{arch}")]
}

impl Compiler {
    /// Compiles sources, of which `fwi.cu` includes the others, to machine code for `arch`. Errors with the first lines of the compiler's own words.
    pub fn compile(&self, sources: &[(&str, &str)], arch: u32) -> Result<Vec<u8>, String> {
        let c = |text: &str| CString::new(text).map_err(|_| "a source holds a zero byte".to_string());
        let (mut main, mut texts, mut names) = (None, Vec::new(), Vec::new());
        for (name, text) in sources {
            if *name == "fwi.cu" {
                main = Some((c(name)?, c(text)?));
            } else {
                texts.push(c(text)?);
                names.push(c(name)?);
            }
        }
        let (name, text) = main.ok_or("there is no fwi.cu")?;
        let options: Vec<CString> = options(arch).iter().map(|o| c(o)).collect::<Result<_, _>>()?;
        let pointers = |list: &[CString]| list.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (texts_at, names_at, options_at) = (pointers(&texts), pointers(&names), pointers(&options));
        let f = &self.functions;
        let mut program: nvrtcProgram = std::ptr::null_mut();
        // SAFETY: all strings outlive the program, and the lists have as many entries as is said.
        let created = unsafe {
            (f.nvrtcCreateProgram)(
                &mut program,
                text.as_ptr(),
                name.as_ptr(),
                texts_at.len() as c_int,
                texts_at.as_ptr(),
                names_at.as_ptr(),
            )
        };
        if created != 0 {
            return Err(format!("NVRTC cannot create a program: error {created}"));
        }
        let program = Program(f, program);
        // SAFETY: as above; the program is valid.
        let code = unsafe { (f.nvrtcCompileProgram)(program.1, options_at.len() as c_int, options_at.as_ptr()) };
        if code != 0 {
            return Err(format!("NVRTC {}.{}: {}", self.version.0, self.version.1, program.log(code)));
        }
        program.bytes(f.nvrtcGetCUBINSize, f.nvrtcGetCUBIN).ok_or_else(|| "NVRTC gives no machine code".into())
    }
}

impl Program<'_> {
    /// What a pair of functions, one for the size and one for the contents, gives.
    fn bytes(
        &self,
        size: unsafe extern "C" fn(nvrtcProgram, *mut usize) -> u32,
        contents: unsafe extern "C" fn(nvrtcProgram, *mut c_char) -> u32,
    ) -> Option<Vec<u8>> {
        let mut len = 0;
        // SAFETY: the program is valid, and the buffer as long as was asked for.
        unsafe {
            if size(self.1, &mut len) != 0 || len == 0 {
                return None;
            }
            let mut bytes = vec![0u8; len];
            (contents(self.1, bytes.as_mut_ptr().cast()) == 0).then_some(bytes)
        }
    }

    /// The first lines of the log of a failed compilation, in one.
    fn log(&self, code: u32) -> String {
        let log = self.bytes(self.0.nvrtcGetProgramLogSize, self.0.nvrtcGetProgramLog).unwrap_or_default();
        let text = CStr::from_bytes_until_nul(&log).map(CStr::to_string_lossy).unwrap_or_default();
        let text: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).take(3).collect();
        if text.is_empty() { format!("error {code}") } else { one_line(&text.join(" ")) }
    }
}

/// The folder of compiled kernels; none when the environment names no place.
pub fn cache_folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("FWI_CACHE_DIR")
        .or_else(|| set("XDG_CACHE_HOME").map(|d| d.join("fwi")))
        .or_else(|| set("HOME").map(|d| d.join(".cache/fwi")))
}

/// Machine code of the kernels for `arch`, from `cache` or compiled and put there. A cache that cannot be read or
/// written, or holds something else, is as good as none. The reason why there is no machine code otherwise.
pub fn machine_code(arch: u32, cache: Option<&Path>) -> Result<Code, String> {
    let compiler = compiler()?;
    let (major, minor) = compiler.version;
    let by = format!("machine code for sm_{arch} by NVRTC {major}.{minor}");
    let all = format!("{} {:?} {major}.{minor} {}", sources_sha256(), options(arch), env!("CARGO_PKG_VERSION"));
    let file = cache.map(|folder| folder.join(format!("sm{arch}-{}.cubin", &hex(all)[..32])));
    if let Some(image) = file.as_deref().and_then(read_cached) {
        return Ok(Code { image, origin: format!("{by}, kept in {}", file.unwrap_or_default().display()) });
    }
    let image = compiler.compile(SOURCES, arch)?;
    let origin = match file.map(|f| (write_cached(&f, &image), f)) {
        Some((Ok(()), file)) => format!("{by}, compiled now and kept in {}", file.display()),
        Some((Err(e), file)) => format!("{by}, compiled now; {} cannot be written: {e}", file.display()),
        None => format!("{by}, compiled now; no folder to keep it in, set FWI_CACHE_DIR"),
    };
    Ok(Code { image, origin })
}

/// A file of the cache is the SHA-256 of the rest, and the rest.
fn read_cached(file: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(file).ok()?;
    let (sum, image) = bytes.split_at_checked(32)?;
    (!image.is_empty() && Sha256::digest(image)[..] == *sum).then(|| image.to_vec())
}

fn write_cached(file: &Path, image: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    new.write_all(&Sha256::digest(image))?;
    new.write_all(image)?;
    new.as_file().sync_all()?;
    new.persist(file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ptx_belongs_to_the_sources() {
        for text in [PTX_SM80, PTX_SM90] {
            let first = text.lines().next().unwrap_or_default();
            assert_eq!(first, format!("// sources sha256 {}", sources_sha256()), "stale PTX: run kernels/build.sh");
            let entries = entries(text).unwrap();
            assert!(!entries.is_empty() && entries.iter().all(|e| e.params > 0));
        }
        assert!(SOURCES.iter().any(|(name, _)| *name == "fwi.cu"));
    }

    #[test]
    fn kernels_that_do_not_take_one_struct_are_told() {
        let one = ".visible .entry k(\n\t.param .align 8 .b8 k_param_0[24]\n)\n";
        assert_eq!(entries(one).unwrap(), [Entry { name: "k".into(), params: 24 }]);
        let two = ".visible .entry k(\n\t.param .align 8 .b8 k_param_0[24],\n\t.param .u32 k_param_1\n)\n";
        let number = ".visible .entry k(\n\t.param .u64 k_param_0\n)\n";
        assert!(entries(two).is_err() && entries(number).is_err());
    }

    #[test]
    fn a_damaged_cache_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new/sm90.cubin");
        assert_eq!(read_cached(&file), None);
        write_cached(&file, b"machine code").unwrap();
        assert_eq!(read_cached(&file).unwrap(), b"machine code");
        let whole = std::fs::read(&file).unwrap();
        for len in 0..whole.len() {
            std::fs::write(&file, &whole[..len]).unwrap();
            assert_eq!(read_cached(&file), None, "cut at {len}");
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&file, bytes).unwrap();
            assert_eq!(read_cached(&file), None, "changed at {at}");
        }
    }
}

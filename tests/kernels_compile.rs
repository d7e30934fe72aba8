//! The CUDA sources compile to machine code without spills, the committed PTX is what they compile to, and NVRTC compiles them
//! as the library asks it to.
//!
//! The compilers are looked for in the folder `FWI_CUDA_TOOLS`, or `target/cuda`, where `kernels/tools.sh` puts them; where
//! they are absent these tests count as ignored.

mod fake_cuda;

use fwi::wave::cuda::compile::{self, PTX_SM80, PTX_SM90};
use libtest_mimic::{Arguments, Failed, Trial};
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folder of the compiler, if it is there.
fn tools() -> Option<PathBuf> {
    let dir = std::env::var_os("FWI_CUDA_TOOLS").map_or_else(|| root().join("target/cuda"), Into::into);
    dir.join("nvidia/cu13/bin/nvcc").exists().then_some(dir)
}

/// Runs a command; what it wrote, on both outputs.
fn run(command: &mut Command) -> Result<String, Failed> {
    let out = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    let text = [out.stdout, out.stderr].map(|t| String::from_utf8_lossy(&t).into_owned()).concat();
    if out.status.success() { Ok(text) } else { Err(format!("{command:?}: {}\n{text}", out.status).into()) }
}

/// What ptxas says of a kernel.
#[derive(Debug, Default, PartialEq)]
struct Usage {
    kernel: String,
    registers: u64,
    stack: u64,
    spills: u64,
    shared: u64,
}

/// The number before `what` in a line such as "Used 40 registers, 512 bytes smem".
fn number(line: &str, what: &str) -> Option<u64> {
    line[..line.find(what)?].split(|c: char| !c.is_ascii_digit()).rfind(|n| !n.is_empty())?.parse().ok()
}

/// The report of `-Xptxas -v`. A function that is called and not inlined has a stack of its own: it counts with its kernel.
fn usages(report: &str) -> Result<Vec<Usage>, Failed> {
    let mut all: Vec<Usage> = Vec::new();
    for line in report.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let kernel = rest.split('\'').next().unwrap_or_default().to_string();
            all.push(Usage { kernel, registers: u64::MAX, ..Usage::default() });
        }
        let Some(last) = all.last_mut() else { continue };
        if line.contains("bytes stack frame") {
            let field = |what| number(line, what).ok_or_else(|| format!("not understood: {line}"));
            last.stack += field(" bytes stack frame")?;
            last.spills += field(" bytes spill stores")? + field(" bytes spill loads")?;
        }
        if let Some(registers) = number(line, " registers") {
            last.registers = registers;
            last.shared = number(line, " bytes smem").unwrap_or(0);
        }
    }
    match all.iter().find(|u| u.registers == u64::MAX) {
        Some(u) => Err(format!("no registers said for {}:\n{report}", u.kernel).into()),
        None => Ok(all),
    }
}

/// Compiles for one chip, prints what the kernels take, and fails on what goes to local memory.
fn machine_code(tools: &Path, arch: u32, kernels: &str) -> Result<(), Failed> {
    let scratch = tempfile::tempdir()?;
    let report = run(Command::new(tools.join("nvidia/cu13/bin/nvcc"))
        .args(["-std=c++17", "-fmad=false", "-cubin", "-Xptxas", "-v", "-arch", &format!("sm_{arch}"), "-o"])
        .arg(scratch.path().join("fwi.cubin"))
        .arg(root().join("kernels/fwi.cu")))?;
    let usages = usages(&report)?;
    println!("{:<40} target  registers  spilled  stack  static shared (bytes)", "kernel");
    for u in &usages {
        println!("{:<40} sm_{arch:<4} {:>8} {:>8} {:>6}  {:>6}", u.kernel, u.registers, u.spills, u.stack, u.shared);
    }
    let expected = kernels.lines().filter(|l| l.starts_with(".visible .entry")).count();
    if usages.len() != expected || expected == 0 {
        return Err(format!("{} kernels, but the PTX has {expected}", usages.len()).into());
    }
    match usages.iter().find(|u| u.spills + u.stack > 0) {
        Some(u) => Err(format!("sm_{arch}: {} keeps data in local memory: {u:?}", u.kernel).into()),
        None => Ok(()),
    }
}

/// `kernels/build.sh` makes the committed files again, to the byte.
fn ptx(tools: &Path) -> Result<(), Failed> {
    let scratch = tempfile::tempdir()?;
    let said = run(Command::new("bash")
        .arg(root().join("kernels/build.sh"))
        .arg(scratch.path())
        .env("FWI_CUDA_TOOLS", tools.canonicalize()?))?;
    print!("{said}");
    for (name, committed) in [("fwi_sm80.ptx", PTX_SM80), ("fwi_sm90.ptx", PTX_SM90)] {
        if std::fs::read_to_string(scratch.path().join(name))? != committed {
            return Err(format!("kernels/ptx/{name} is not what the sources give: run kernels/build.sh").into());
        }
    }
    Ok(())
}

/// NVRTC's machine code is compiled once and kept; a damaged or impossible cache does no harm.
fn nvrtc(_: &Path) -> Result<(), Failed> {
    let cache = tempfile::tempdir()?;
    let ensure = |ok: bool, what: &str| if ok { Ok(()) } else { Err(Failed::from(what)) };
    let first = compile::machine_code(90, Some(cache.path()))?;
    ensure(first.image.starts_with(b"\x7fELF"), "no machine code")?;
    for entry in compile::entries(PTX_SM90)? {
        let name = entry.name.as_bytes();
        ensure(first.image.windows(name.len()).any(|w| w == name), &format!("no kernel {}", entry.name))?;
    }
    ensure(first.origin.contains("compiled now and kept in"), &first.origin)?;
    let second = compile::machine_code(90, Some(cache.path()))?;
    ensure(!second.origin.contains("now") && second.image == first.image, &second.origin)?;
    let file = std::fs::read_dir(cache.path())?.next().ok_or("nothing was kept")??.path();
    std::fs::write(&file, "damaged")?;
    let third = compile::machine_code(90, Some(cache.path()))?;
    ensure(third.origin.contains("compiled now and kept in"), &third.origin)?;
    let fourth = compile::machine_code(90, Some(&file))?;
    ensure(fourth.origin.contains("cannot be written") && !fourth.image.is_empty(), &fourth.origin)?;
    let wrong =
        compile::compiler()?.compile(&[("fwi.cu", "#include \"a.cuh\"\n"), ("a.cuh", "__device__ int a = b;\n")], 90);
    let said = wrong.err().ok_or("nonsense compiles")?;
    ensure(said.contains("a.cuh(1)") && said.contains("\"b\" is undefined") && !said.contains('\n'), &said)?;
    let unknown = compile::machine_code(9999, None).err().ok_or("sm_9999 compiles")?;
    println!("{}\n{said}\n{unknown}", first.origin);
    Ok(())
}

/// A driver is given machine code, and PTX where it refuses that.
#[cfg(target_os = "linux")]
fn machine_code_or_ptx(tools: &Path) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    fake_cuda::build(folder.path(), &[]);
    for (setting, expected) in [
        ("", "cuda:0 kernels: machine code for sm_90 by NVRTC"),
        ("cubin=209", "cuda:0 kernels: PTX "),
        ("cubin=209", "(cuda:0: cannot load the kernels (a reason of the driver): error (209)"),
    ] {
        let said = run(Command::new(env!("CARGO_BIN_EXE_fwi"))
            .arg("doctor")
            .env("LD_LIBRARY_PATH", folder.path())
            .env("FAKE_CUDA", setting)
            .env("FWI_CACHE_DIR", folder.path().join("cache"))
            .env_remove("FWI_NVRTC")
            .env("CUDA_HOME", tools.join("nvidia/cu13")))?;
        if !said.contains(expected) {
            return Err(said.into());
        }
    }
    Ok(())
}

/// The report is read rightly, spills too: a gate that sees nothing would let all pass.
fn report_is_read() -> Result<(), Failed> {
    let text = "ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'a' for 'sm_80'
ptxas info    : Function properties for a
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, 512 bytes smem, 376 bytes cmem[0]
ptxas info    : Compiling entry function 'b' for 'sm_80'
ptxas info    : Function properties for b
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 376 bytes cmem[0]
";
    let expected = [
        Usage { kernel: "a".into(), registers: 40, stack: 16, spills: 12, shared: 512 },
        Usage { kernel: "b".into(), registers: 8, ..Usage::default() },
    ];
    let found = usages(text)?;
    if found == expected { Ok(()) } else { Err(format!("{found:?}").into()) }
}

fn main() {
    let args = Arguments::from_args();
    let tools = tools();
    if tools.is_none() {
        eprintln!("ignored: no CUDA compilers in FWI_CUDA_TOOLS or target/cuda; kernels/tools.sh puts them there");
    }
    let library = tools.as_ref().map(|dir| dir.join("nvidia/cu13/lib/libnvrtc.so.13"));
    if let (Some(file), None) = (library, std::env::var_os("FWI_NVRTC")) {
        // SAFETY: no other thread runs yet
        unsafe { std::env::set_var("FWI_NVRTC", file) };
    }
    let mut trials = vec![Trial::test("report_is_read", report_is_read)];
    let mut add = |name: &str, body: fn(&Path) -> Result<(), Failed>| {
        let dir = tools.clone();
        let run = move || dir.as_deref().map_or_else(|| Err("no compiler".into()), body);
        trials.push(Trial::test(name, run).with_ignored_flag(tools.is_none()));
    };
    add("sm_80", |dir| machine_code(dir, 80, compile::ptx(80)));
    add("sm_90", |dir| machine_code(dir, 90, compile::ptx(90)));
    add("sm_120", |dir| machine_code(dir, 120, compile::ptx(120)));
    add("committed_ptx", ptx);
    add("nvrtc", nvrtc);
    #[cfg(target_os = "linux")]
    add("machine_code_or_ptx", machine_code_or_ptx);
    libtest_mimic::run(&args, trials).exit();
}

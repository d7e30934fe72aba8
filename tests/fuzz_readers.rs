//! Feeds damaged files of every kind to the readers: nothing may panic or hang, and memory stays within what the file
//! holds. Runs 5 s; `FWI_FUZZ_SECONDS=600 cargo test --release --test fuzz_readers` runs longer, from another seed each
//! time unless `FWI_FUZZ_SEED` says which.
//!
//! The bound: the file's size, what was decompressed (both also as converted to f64, twice while a buffer grows), and
//! 1 MiB.

use fwi::io::{ArrayFile, ArrayWriter, DType, Limits, write_array};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Counts the bytes that are allocated, and their peak.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MIB: usize = 1 << 20;

/// Valid files of every kind; the flag says whether it is a .npy to be deflated into a .npz after damage.
fn seeds(dir: &Path) -> Vec<(String, Vec<u8>, bool)> {
    let mut seeds = Vec::new();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let mut files: Vec<_> = fs::read_dir(data).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let item = ndarray::Array3::from_shape_fn((3, 40, 9), |(i, j, k)| ((i * 400 + j * 9 + k) as f32).sin());
    for name in ["own.npy", "own.h5"] {
        write_array(dir.join(name), item.view()).unwrap();
        files.push(dir.join(name));
    }
    for (name, dtype) in [("stack.npy", DType::F64), ("stack.h5", DType::F32)] {
        let mut writer = ArrayWriter::create(dir.join(name), &[3, 40, 9], dtype, None).unwrap();
        for _ in 0..5 {
            writer.append(item.view()).unwrap();
        }
        writer.finish().unwrap();
        files.push(dir.join(name));
    }
    for path in files.iter().filter(|p| p.extension().is_some_and(|e| e != "py")) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let bytes = fs::read(path).unwrap();
        if name.ends_with(".npy") {
            seeds.push((format!("deflated {name}"), bytes.clone(), true));
        }
        seeds.push((name, bytes, false));
    }
    seeds
}

/// Up to six damages of the kinds that parsers trip over.
fn damage(bytes: &mut Vec<u8>, rng: &mut StdRng) {
    for _ in 0..rng.random_range(1..=6) {
        if bytes.len() < 16 {
            return;
        }
        // Headers are where the lies are told.
        let near = if rng.random_bool(0.7) { bytes.len().min(2048) } else { bytes.len() };
        let at = rng.random_range(0..near - 8);
        match rng.random_range(0..9) {
            0 => bytes[at] = rng.random(),
            1 => bytes[at] ^= 1 << rng.random_range(0..8),
            2 => bytes[at] = b'0' + rng.random_range(0..10),
            3 => {
                let width = [2, 4, 8][rng.random_range(0..3)];
                let value = [0, 1, u64::MAX, 1 << 31, 1 << 40, bytes.len() as u64][rng.random_range(0..6)];
                bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            }
            4 => {
                let digit = (at..near).find(|&i| bytes[i].is_ascii_digit()).unwrap_or(at);
                let digits = vec![b'9'; rng.random_range(1..12)];
                bytes.splice(digit..digit, digits);
            }
            5 => {
                let len = rng.random_range(1..=8.min(bytes.len() - at));
                let from = rng.random_range(0..bytes.len() - len);
                bytes.copy_within(from..from + len, at);
            }
            6 => {
                bytes.remove(at);
            }
            7 if rng.random_bool(0.2) => bytes.truncate(at),
            7 => bytes[at] = bytes[at].wrapping_add(1),
            _ => bytes[at] = b"([{})]'<>|,-OVTF"[rng.random_range(0..16)],
        }
    }
}

fn deflated_npz(entry: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    zip.start_file("a.npy", options).unwrap();
    zip.write_all(entry).unwrap();
    zip.finish().unwrap().into_inner()
}

/// Opens and reads the file; returns whether that went well and the bytes that may have been allocated.
fn read(path: &Path, len: usize, limits: &Limits) -> (Result<(), fwi::Error>, usize) {
    let mut file = match ArrayFile::open(path, limits) {
        Ok(file) => file,
        Err(error) => return (Err(error), len + MIB),
    };
    let n = file.len();
    let result = file.read::<f64>(n.min(1)..n.min(2)).and_then(|_| file.read::<f64>(0..n)).map(drop);
    let grown = size_of::<f64>().div_ceil(file.dtype().size());
    (result, len * (1 + grown) + file.inflated() as usize * (1 + 3 * grown) + MIB)
}

#[test]
fn damaged_files_neither_crash_nor_bloat() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = variable("FWI_FUZZ_SECONDS");
    let clock = Instant::now();
    let nanos = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let seed = variable("FWI_FUZZ_SEED").unwrap_or(if seconds.is_some() { nanos } else { 1 });
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let seeds = seeds(dir.path());
    let path = dir.path().join("damaged");
    let limits = Limits { max_read: 1 << 26, ..Limits::default() };
    let (mut runs, mut good, mut slowest) = (0, 0, (Duration::ZERO, ""));
    while clock.elapsed() < Duration::from_secs(seconds.unwrap_or(5)) {
        let (name, bytes, deflate) = &seeds[rng.random_range(0..seeds.len())];
        let mut bytes = bytes.clone();
        damage(&mut bytes, &mut rng);
        if *deflate {
            bytes = deflated_npz(&bytes);
        }
        // A new file each time: some file systems sync one that is truncated and written again.
        let _ = fs::remove_file(&path);
        fs::write(&path, &bytes).unwrap();
        let (before, start) = (NOW.load(Relaxed), Instant::now());
        PEAK.store(before, Relaxed);
        let (result, allowed) = read(&path, bytes.len(), &limits);
        let (peak, took) = (PEAK.load(Relaxed).saturating_sub(before), start.elapsed());
        runs += 1;
        slowest = slowest.max((took, name.as_str()));
        let mut complaint = None;
        match &result {
            Ok(()) => good += 1,
            Err(error) if error.to_string().contains('\n') => complaint = Some("an error of several lines"),
            Err(_) => {}
        }
        if peak > allowed {
            complaint = Some("more memory than allowed");
        }
        if took > Duration::from_secs(5) {
            complaint = Some("more than 5 s");
        }
        if let Some(complaint) = complaint {
            let kept = std::env::temp_dir().join(format!("fwi-fuzz-{seed}-{runs}"));
            fs::write(&kept, &bytes).unwrap();
            panic!(
                "{complaint}: {name}, {} bytes, peak {peak}, allowed {allowed}, {took:?}, {result:?}; kept as {}",
                bytes.len(),
                kept.display()
            );
        }
    }
    println!("seed {seed}: {runs} damaged files, {good} of them still readable; slowest {slowest:?}");
    // A harness that damages everything beyond recognition, or nothing, would prove nothing.
    assert!(good > runs / 100 && good < runs * 9 / 10, "{good} of {runs} files were readable");
}

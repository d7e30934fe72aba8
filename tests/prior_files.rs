//! Priors' files that are hostile, damaged or reach out of their folder, and the processes that contain them.

mod prior_common;

use fwi::Error;
use fwi::prior::graph::{Graph, GraphLimits};
use fwi::prior::predict_one;
#[cfg(unix)]
use fwi::prior::{Isolated, RuntimeChoice, Source, WorkerLimits};
#[cfg(unix)]
use fwi::{Gather, Observed, Prior, Result};
use prior_common::{expected, fixture, furthest, open, problem, random_gather};
#[cfg(unix)]
use prior_common::{folder_of, full_manifest, worker};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::fs;
use std::path::{Path, PathBuf};
#[cfg(unix)]
use std::time::{Duration, Instant};

/// A copy of the fixture with its weights in another file, which is `content` at `location` (as long as "weights.bin").
fn external(location: &str, prepare: impl FnOnce(&Path)) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("model");
    fs::create_dir(&folder).unwrap();
    let mut bytes = fs::read(fixture("external")).unwrap();
    let at = bytes.windows(11).position(|w| w == b"weights.bin").unwrap();
    assert_eq!(location.len(), 11);
    bytes[at..at + 11].copy_from_slice(location.as_bytes());
    let path = folder.join("external.onnx");
    fs::write(&path, bytes).unwrap();
    prepare(&folder);
    (dir, path)
}

#[test]
fn external_data_stay_in_the_folder() {
    let weights = fs::read(fixture("external").with_file_name("weights.bin")).unwrap();
    let put = |name: &'static str| {
        let weights = weights.clone();
        move |folder: &Path| {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, weights).unwrap();
        }
    };
    for (location, name) in
        [("weights.bin", "weights.bin"), ("sub/abc.bin", "sub/abc.bin"), ("./abcde.bin", "abcde.bin")]
    {
        let (_dir, path) = external(location, put(name));
        let gather = random_gather(4);
        let got = predict_one(&open(&path).unwrap(), &gather).unwrap().velocity;
        assert!(furthest(&got, &expected(&gather, 999)) < 1e-3, "{location}");
    }
    for location in ["../abcd.bin", "a/../bc.bin", "/tmp/ab.bin", "..\\abcd.bin"] {
        let (_dir, path) = external(location, put("../abcd.bin"));
        assert!(problem(&path).contains("only files inside the model's own folder"), "{location}");
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        let outside = |folder: &Path| {
            put("../abcd.bin")(folder);
            symlink("../abcd.bin", folder.join("weights.bin")).unwrap();
        };
        let (_dir, path) = external("weights.bin", outside);
        assert!(problem(&path).contains("links to outside"));
        let (_dir, path) = external("weights.bin", |f| symlink("/dev/zero", f.join("weights.bin")).unwrap());
        assert!(problem(&path).contains("links to outside"));
        let inside = |folder: &Path| {
            put("other.bin")(folder);
            symlink("other.bin", folder.join("weights.bin")).unwrap();
        };
        let (_dir, path) = external("weights.bin", inside);
        open(&path).unwrap();
    }
    let (_dir, path) = external("weights.bin", |_| ());
    assert!(problem(&path).contains("cannot be read"));
    let (_dir, path) = external("weights.bin", |f| fs::create_dir(f.join("weights.bin")).unwrap());
    assert!(problem(&path).contains("no regular file"));
    let (_dir, path) = external("weights.bin", |f| fs::write(f.join("weights.bin"), &weights[..300]).unwrap());
    assert!(problem(&path).contains("which has 300; the file is truncated"));
    let bytes = fs::read(&path).unwrap();
    let strict = GraphLimits { max_external: 299, ..GraphLimits::default() };
    let error = Graph::parse(&bytes, &path, &strict).unwrap_err().to_string();
    assert!(error.contains("longer than the limit"), "{error}");
}

#[test]
fn truncated_and_damaged_files_are_refused_in_words() {
    let limits = GraphLimits::default();
    for name in ["plain", "external", "full", "loop"] {
        let path = fixture(name);
        let whole = fs::read(&path).unwrap();
        for n in 0..whole.len() {
            // the operator sets come last: a file cut within them is whole but for these
            if let Err(e) = Graph::parse(&whole[..n], &path, &limits) {
                assert!(matches!(e, Error::Input { .. }) && !e.to_string().contains('\n'), "{e}");
            } else {
                assert!(n > whole.len() - 16, "{name} cut at {n}");
            }
        }
        let mut rng = StdRng::seed_from_u64(5);
        let mut refused = 0;
        for _ in 0..4000 {
            let mut bytes = whole.clone();
            for _ in 0..rng.random_range(1..5) {
                let at = rng.random_range(0..bytes.len());
                bytes[at] ^= 1 << rng.random_range(0..8);
            }
            refused += u32::from(Graph::parse(&bytes, &path, &limits).is_err());
        }
        assert!((400..4000).contains(&refused), "{name}: {refused}");
    }
}

/// A graph in a node's attribute in a graph, and so on, every length true: no stack runs over.
#[test]
fn deep_nesting_is_refused() {
    let field = |key: u8, content: &[u8]| {
        let mut bytes = vec![key];
        let mut length = content.len();
        while length >= 128 {
            bytes.push(length as u8 | 128);
            length >>= 7;
        }
        bytes.push(length as u8);
        [&bytes, content].concat()
    };
    // ModelProto.graph is field 7, GraphProto.node 1, NodeProto.attribute 5, AttributeProto.g 6
    let nested = |depth| (0..depth).fold(vec![], |graph, _| field(0x0a, &field(0x2a, &field(0x32, &graph))));
    let parse = |depth| {
        let bytes = field(0x3a, &nested(depth));
        Graph::parse(&bytes, Path::new("deep.onnx"), &GraphLimits::default()).map(|_| ()).unwrap_err().to_string()
    };
    // it is well-formed: a shallow one only lacks inputs
    assert!(parse(5).contains("without inputs or outputs"), "{}", parse(5));
    assert!(parse(5000).contains("recursion limit"), "{}", parse(5000));
}

/// Many tensors that name one stretch of a file take no more than the limit.
#[test]
fn external_data_count_as_often_as_they_are_named() {
    let path = fixture("external");
    let bytes = fs::read(&path).unwrap();
    let once = Graph::parse(&bytes, &path, &GraphLimits::default()).unwrap().external_bytes;
    let length = fs::metadata(path.with_file_name("weights.bin")).unwrap().len();
    // a second list of the same weights: fields that repeat are merged
    let model = [&bytes[..], &bytes[..]].concat();
    let limits = |max_external| GraphLimits { max_external, ..GraphLimits::default() };
    assert_eq!(Graph::parse(&model, &path, &limits(2 * length)).unwrap().external_bytes, 2 * once);
    let error = Graph::parse(&model, &path, &limits(length)).unwrap_err().to_string();
    assert!(error.contains("beyond the limit") && once <= length && 2 * once > length, "{error}");
}

#[test]
fn names_of_operators_reach_no_terminal_unchecked() {
    let bytes = fs::read(fixture("magic")).unwrap();
    let at = bytes.windows(5).position(|w| w == b"Magic").unwrap();
    let mut hostile = bytes.clone();
    hostile[at..at + 5].copy_from_slice(b"\x1b[31m");
    let error = Graph::parse(&hostile, Path::new("m.onnx"), &GraphLimits::default()).unwrap_err().to_string();
    assert!(error.contains("name is no text") && !error.contains(char::is_control), "{error}");
}

/// Nobody writes to the pipe: opening it would wait for ever.
#[cfg(unix)]
#[test]
fn a_manifest_that_is_a_pipe_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("manifest.toml");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for path in [dir.path(), &pipe] {
        let error = Source::of(path).unwrap_err().to_string();
        assert!(error.contains("no regular file; expected a manifest"), "{error}");
    }
}

/// The parent is killed while the other end of the child's socket stays open: this test holds it.
#[cfg(unix)]
#[test]
fn a_process_ends_with_its_parent() {
    use std::io::{ErrorKind, Read};
    use std::os::fd::OwnedFd;
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let (program, arguments) = worker();
    let mut parent = std::process::Command::new("sh")
        .args(["-c", "exec 3<&0; \"$0\" \"$1\" <&3 & wait"])
        .arg(program)
        .args(arguments)
        .stdin(OwnedFd::from(theirs))
        .spawn()
        .unwrap();
    let mut wait = |seconds| {
        ours.set_read_timeout(Some(Duration::from_secs(seconds))).unwrap();
        ours.read(&mut [0])
    };
    let error = wait(2).expect_err("both live");
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    parent.kill().unwrap();
    parent.wait().unwrap();
    assert_eq!(wait(3).expect("the child has closed its end"), 0);
}

#[cfg(unix)]
fn isolated(path: &Path, limits: WorkerLimits) -> Result<Isolated> {
    let (program, arguments) = worker();
    Isolated::open(program, arguments, &Source::of(path)?, &RuntimeChoice::Tract, 1, limits)
}

/// Files that pass the first checks and yet are broken reach the runtime, in a process of its own.
#[cfg(unix)]
#[test]
fn damaged_files_harm_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged.onnx");
    let limits = WorkerLimits { memory: 256 << 20, time: Duration::from_secs(20) };
    let gather = random_gather(6);
    let mut rng = StdRng::seed_from_u64(7);
    let (mut refused, mut run) = (0, 0);
    while run < 60 {
        let mut bytes = fs::read(fixture(["plain", "conv_transpose", "full", "f16"][run % 4])).unwrap();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..bytes.len());
            bytes[at] ^= 1 << rng.random_range(0..8);
        }
        if Graph::parse(&bytes, &path, &GraphLimits::default()).is_err() {
            continue;
        }
        run += 1;
        fs::write(&path, bytes).unwrap();
        match isolated(&path, limits).and_then(|p| predict_one(&p, &gather)) {
            Ok(p) => assert!(p.velocity.iter().all(|v| v.is_finite() && *v > 0.0)),
            Err(e @ (Error::Input { .. } | Error::Memory(_))) => {
                assert!(!e.to_string().contains('\n'), "{e}");
                refused += 1;
            }
            Err(e) => panic!("{e:?}"),
        }
    }
    assert!(refused > 10, "{refused}");
}

#[cfg(unix)]
#[test]
fn a_process_of_its_own_gives_the_same() {
    let dir = folder_of("full", &full_manifest("full"));
    let gathers = [random_gather(8), random_gather(9)];
    let (here, apart) = (open(dir.path()).unwrap(), isolated(dir.path(), WorkerLimits::default()).unwrap());
    assert_eq!(here.info(), apart.info());
    assert_eq!(here.predict(&gathers).unwrap(), apart.predict(&gathers).unwrap());
    let short = Observed::new(Gather::new(ndarray::Array3::ones((5, 500, 70))));
    assert!(matches!(predict_one(&apart, &short), Err(Error::Usage(_))));
    predict_one(&apart, &gathers[0]).unwrap();
}

/// A process that has died is started again, for the same network only.
#[cfg(unix)]
#[test]
fn a_process_is_replaced_by_one_of_the_same_network() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::copy(fixture("plain"), at("model.onnx")).unwrap();
    let (program, arguments) = worker();
    // kills the real process when it is told to
    let script = format!(
        "exec 3<&0 0</dev/null; {} {} <&3 & exec 3<&-; until [ -e {} ]; do sleep 0.02; done; kill -9 $!",
        program.display(),
        arguments[0],
        at("die").display()
    );
    let source = Source::of(&at("model.onnx")).unwrap();
    let limits = WorkerLimits::default();
    let start = vec!["-c".into(), script];
    let prior = Isolated::open("/bin/sh".into(), start, &source, &RuntimeChoice::Tract, 1, limits).unwrap();
    let gather = random_gather(8);
    let first = predict_one(&prior, &gather).unwrap();
    let die = || {
        fs::write(at("die"), "").unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while predict_one(&prior, &gather).is_ok() {
            assert!(Instant::now() < deadline, "it lives");
        }
        fs::remove_file(at("die")).unwrap();
    };
    die();
    assert_eq!(predict_one(&prior, &gather).unwrap(), first);
    die();
    fs::copy(fixture("symmetric"), at("model.onnx")).unwrap();
    let error = predict_one(&prior, &gather).unwrap_err().to_string();
    assert!(error.contains("model.onnx") && error.contains("changed while in use"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_process_has_its_limits() {
    let small = WorkerLimits { memory: 400 << 20, ..WorkerLimits::default() };
    let error = isolated(&fixture("huge"), small).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("huge.onnx") && error.to_string().contains("--max-memory"), "{error}");
    let hasty = WorkerLimits { time: Duration::from_micros(100), ..WorkerLimits::default() };
    let error = isolated(&fixture("plain"), hasty).map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::Input { problem, .. } if problem.contains("took more than")), "{error}");
    let source = Source::of(&fixture("plain")).unwrap();
    let start = |program: &str, arguments: &[&str]| {
        let arguments = arguments.iter().map(|a| a.to_string()).collect();
        let limits = WorkerLimits { time: Duration::from_secs(5), ..WorkerLimits::default() };
        Isolated::open(program.into(), arguments, &source, &RuntimeChoice::Tract, 1, limits).map(|_| ()).unwrap_err()
    };
    let error = start("/bin/sh", &["-c", "echo first >&2; echo last words >&2; echo note: run again >&2; kill -9 $$"])
        .to_string();
    assert!(error.contains("signal 9") && error.contains("last words") && !error.contains("first"), "{error}");
    let words = "echo memory allocation of 99 bytes failed >&2; echo skipping backtrace printing >&2; kill -6 $$";
    let error = start("/bin/sh", &["-c", words]);
    assert!(matches!(&error, Error::Memory(m) if m.contains("plain.onnx") && m.contains("--max-memory")), "{error}");
    assert!(start("/nowhere/fwi", &[]).to_string().contains("cannot start"));
}

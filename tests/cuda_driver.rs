//! The driver's side of the CUDA backend, without a GPU: a stand-in for NVIDIA's library takes its calls, see
//! `fake_cuda/libcuda.c`. It is loaded when a program starts, so every test runs in a process of its own.
#![cfg(target_os = "linux")]

mod fake_cuda;

use fwi::Error;
use fwi::wave::cuda::compile::{PTX_SM90, entries};
use fwi::wave::cuda::driver::{Driver, devices};
use fwi::wave::cuda::{Launch, Runtime};
use std::path::Path;
use std::process::{Command, Output};

/// A command that finds the stand-in in `folder` and no NVRTC.
fn with_fake(program: &Path, folder: &Path, setting: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env("LD_LIBRARY_PATH", folder)
        .env("FAKE_CUDA", setting)
        .env("FAKE_CUDA_LOG", folder.join("log"))
        .env("FWI_CACHE_DIR", folder.join("cache"))
        .env("FWI_NVRTC", "off");
    command
}

/// What `fwi doctor` says of CUDA, one line at least, with nothing on standard error and success in the end.
fn doctor(mut command: Command) -> Vec<String> {
    let Output { status, stdout, stderr } = command.arg("doctor").output().unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(String::from_utf8_lossy(&stderr), "");
    let text = String::from_utf8(stdout).unwrap();
    text.lines().filter(|l| l.starts_with("cuda")).map(String::from).collect()
}

/// Runs `body` in a process whose driver is the stand-in, with `setting` for what goes wrong; the calls that it took.
fn on_fake(name: &str, setting: &str, body: fn()) -> String {
    if std::env::var("FAKE_CUDA_TEST").is_ok_and(|t| t == name) {
        body();
        return String::new();
    }
    let folder = tempfile::tempdir().unwrap();
    fake_cuda::build(folder.path(), &[]);
    let out = with_fake(&std::env::current_exe().unwrap(), folder.path(), setting)
        .args([name, "--exact", "--nocapture"])
        .env("FAKE_CUDA_TEST", name)
        .output()
        .unwrap();
    let said = [&out.stdout[..], &out.stderr[..]].map(String::from_utf8_lossy).concat();
    assert!(out.status.success() && said.contains("1 passed"), "{said}");
    // what was taken was given back
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
    for what in ["context", "stream", "memory", "module", "graph", "executable graph"] {
        let count = |sign| log.lines().filter(|l| *l == format!("{what} {sign}1")).count();
        assert_eq!(count('+'), count('-'), "{what} in\n{log}");
    }
    log
}

/// Whether this is the process in which the body ran, which has nothing to check in the end.
fn is_child() -> bool {
    std::env::var_os("FAKE_CUDA_TEST").is_some()
}

#[test]
fn what_is_wrong_with_the_driver_is_one_line() {
    let fwi = Path::new(env!("CARGO_BIN_EXE_fwi"));
    let (whole, empty, broken) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fake_cuda::build(whole.path(), &[]);
    fake_cuda::build(empty.path(), &["-DEMPTY"]);
    for name in ["libcuda.so.1", "libcuda.so"] {
        std::fs::write(broken.path().join(name), "text").unwrap();
    }
    for (folder, setting, expected) in [
        (&empty, "", "the NVIDIA driver is too old: it has no cuInit; update it to R520 (CUDA 11.8) or later"),
        (&broken, "", "no NVIDIA driver: libcuda.so.1 cannot be loaded"),
        (&whole, "init=100", "CUDA_ERROR_NO_DEVICE (100), no CUDA-capable device is detected; check nvidia-smi"),
        (&whole, "init=803", "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803); the driver's library and its kernel module are"),
        (&whole, "init=35", "error (35); update the driver to R520 (CUDA 11.8) or later"),
        (&whole, "init=34", "stub"),
        (&whole, "init=123456", "the NVIDIA driver does not start: error (123456)"),
        (&whole, "devices=0", "the driver shows no device"),
    ] {
        let lines = doctor(with_fake(fwi, folder.path(), setting));
        let [line] = &lines[..] else { panic!("{setting}: {lines:#?}") };
        assert!(line.starts_with("cuda: none (") && line.contains(expected), "{setting}: {line}");
    }
    // as this machine is: without a driver, or with one
    let lines = doctor(Command::new(fwi));
    assert!(lines.len() > 1 || lines[0].starts_with("cuda: none (no NVIDIA driver: "), "{lines:#?}");
}

#[test]
fn the_doctor_describes_devices() {
    let folder = tempfile::tempdir().unwrap();
    fake_cuda::build(folder.path(), &[]);
    let fwi = Path::new(env!("CARGO_BIN_EXE_fwi"));
    let lines = doctor(with_fake(fwi, folder.path(), "devices=2,memory=85899345920"));
    assert_eq!(lines.len(), 5, "{lines:#?}");
    assert_eq!(lines[0], "cuda: driver for CUDA 13.0, NVRTC is switched off by FWI_NVRTC");
    assert_eq!(lines[3], "cuda:1: Fake 1, 80.0 GB, compute capability 9.0, 132 multiprocessors");
    assert!(
        lines[4].starts_with("cuda:1 kernels: PTX ") && lines[4].contains("compiled by the driver"),
        "{}",
        lines[4]
    );
    let lines = doctor(with_fake(fwi, folder.path(), "arch=75"));
    assert!(lines[2].contains("compute capability 7.5 is too old"), "{}", lines[2]);
}

#[test]
fn a_machine_without_devices_is_a_device_error() {
    on_fake("a_machine_without_devices_is_a_device_error", "init=100", || {
        for error in [devices().unwrap_err(), Driver::open(0).err().unwrap()] {
            assert!(matches!(&error, Error::Device { device, .. } if device == "cuda"), "{error}");
            assert_eq!(error.exit_code(), 7);
            assert!(error.to_string().starts_with("cuda: the NVIDIA driver does not start: "), "{error}");
        }
    });
}

#[test]
fn a_device_that_is_not_there_is_a_device_error() {
    on_fake("a_device_that_is_not_there_is_a_device_error", "", || {
        assert_eq!(devices().unwrap(), ["Fake 0 (cuda:0)"]);
        let error = Driver::open(1).err().unwrap();
        assert_eq!(error.to_string(), "cuda:1: there is no such device: this machine has only cuda:0");
    });
}

const LAUNCH: Launch = Launch { blocks: 16, threads: 128, cluster: 1, shared: 200_000 };

#[test]
fn memory_launches_and_recordings() {
    let log = on_fake("memory_launches_and_recordings", "", || {
        let device = Driver::open(0).unwrap();
        let limits = device.limits().clone();
        assert_eq!((limits.name.as_str(), limits.multiprocessors), ("Fake 0 (cuda:0)", 132));
        assert_eq!((limits.shared_bytes, limits.clusters), (232_448, true));

        // memory, also from another thread
        let at = device.alloc(1000).unwrap();
        assert_eq!(device.free_bytes().unwrap(), (1 << 20) - 1000);
        let sent: Vec<u8> = (0..1000).map(|i| i as u8).collect();
        std::thread::scope(|s| s.spawn(|| device.upload(at, &sent).unwrap()).join()).unwrap();
        device.clear(at + 10, 5).unwrap();
        let mut got = vec![1; 1000];
        device.download(at, &mut got).unwrap();
        assert!(got[10..15] == [0; 5] && got[..10] == sent[..10] && got[15..] == sent[15..]);

        // launches, refused where the parameter is of another size
        let kernel = &entries(PTX_SM90).unwrap()[0];
        let params = vec![7; kernel.params];
        device.launch(&kernel.name, LAUNCH, &params).unwrap();
        let error = device.launch(&kernel.name, LAUNCH, &params[1..]).unwrap_err();
        assert!(error.to_string().contains(&format!("{} bytes, not {}", params.len(), params.len() - 1)), "{error}");
        assert!(device.launch("no_such", LAUNCH, &params).unwrap_err().to_string().contains("none of that name"));

        // recorded once, replayed whenever the key comes again
        let mut runs = 0;
        for _ in 0..3 {
            let mut record = || {
                runs += 1;
                device.clear(at, 4)?;
                device.launch(&kernel.name, LAUNCH, &params)
            };
            device.replay(1, &mut record).unwrap();
        }
        assert_eq!(runs, 1);
        // a recording that fails leaves the device usable
        let failed = device.replay(2, &mut || device.launch("no_such", LAUNCH, &params)).unwrap_err();
        assert_eq!(failed.exit_code(), 7);
        let refused = device.replay(2, &mut || device.upload(at, &sent)).unwrap_err();
        assert_eq!(refused.exit_code(), 7);
        device.upload(at, &sent).unwrap();

        // key 1, used last, outlives key 100 among 16
        for key in 100..115 {
            device.replay(key, &mut || device.clear(at, 1)).unwrap();
        }
        device.replay(1, &mut || panic!("key 1 was kept")).unwrap();
        device.replay(115, &mut || device.clear(at, 1)).unwrap();
        let mut again = 0;
        let mut record = || {
            again += 1;
            Ok(())
        };
        device.replay(100, &mut record).unwrap();
        device.replay(1, &mut || panic!("key 1 was kept")).unwrap();
        assert_eq!(again, 1);
        device.free(at);
    });
    if is_child() {
        return;
    }
    let kernel = &entries(PTX_SM90).unwrap()[0].name;
    assert_eq!(log.lines().filter(|l| l.starts_with("launch ")).count(), 1, "{log}");
    assert!(log.contains(&format!("launch {kernel} 16 128 200000 7")) && log.contains("loaded PTX"), "{log}");
    assert_eq!(log.matches("replay 2").count(), 5, "{log}");
    assert_eq!(log.matches("executable graph +1").count(), 18, "{log}");
}

#[test]
fn exhausted_memory_is_a_memory_error() {
    on_fake("exhausted_memory_is_a_memory_error", "memory=1000", || {
        let device = Driver::open(0).unwrap();
        let first = device.alloc(900).unwrap();
        let error = device.alloc(200).unwrap_err();
        assert!(matches!(error, Error::Memory(_)) && error.to_string().starts_with("cuda:0: the device's memory is"));
        device.free(first);
        let second = device.alloc(200).unwrap();
        device.free(second);
    });
}

#[test]
fn a_lost_device_is_a_device_error() {
    on_fake("a_lost_device_is_a_device_error", "sync=700", || {
        let device = Driver::open(0).unwrap();
        let error = device.download(0, &mut []).unwrap_err();
        assert_eq!(error.exit_code(), 7);
        let said = "cuda:0: cannot finish the work on the device: CUDA_ERROR_ILLEGAL_ADDRESS (700); the device is lost";
        assert!(error.to_string().starts_with(said), "{error}");
    });
}

#[test]
fn a_refused_launch_is_a_device_error() {
    on_fake("a_refused_launch_is_a_device_error", "launch=701", || {
        let device = Driver::open(0).unwrap();
        let kernel = &entries(PTX_SM90).unwrap()[0];
        let error = device.launch(&kernel.name, LAUNCH, &vec![0; kernel.params]).unwrap_err();
        assert!(error.to_string().contains(&format!("cannot start kernel {}", kernel.name)), "{error}");
        assert!(error.to_string().contains("(701); the kernel needs more registers"), "{error}");
    });
}

/// Maps, and the commands that compute, with a driver that has `setting` wrong: the exit code and standard error of each.
fn commands(folder: &Path, setting: &str, options: &str) -> Vec<(i32, String)> {
    let vp = ndarray::Array3::from_shape_fn((2, 70, 70), |(i, z, _)| 1600.0f32 + 20.0 * z as f32 + 50.0 * i as f32);
    let file = |name: &str| folder.join(name).display().to_string();
    fwi::io::write_array(file("maps.npy"), vp.view()).unwrap();
    fwi::io::write_array(file("map.npy"), vp.index_axis(ndarray::Axis(0), 0)).unwrap();
    let (maps, map, gathers, gather) = (file("maps.npy"), file("map.npy"), file("gathers.npy"), file("gather.npy"));
    let (one, many) = (file("one"), file("many"));
    let forward = Command::new(env!("CARGO_BIN_EXE_fwi"))
        .args(["forward", &map, "-o", &gather, "--backend", "cpu"])
        .output()
        .unwrap();
    assert!(forward.status.success());
    let lists: [&[&str]; 4] = [
        &["forward", &maps, "-o", &gathers],
        &["check", &gather, &map],
        &["invert", &gather, "-o", &one, "--max-evals", "2", "--force"],
        &["batch", &gather, "-o", &many, "--max-evals", "2", "--force"],
    ];
    let run = |list: &&[&str]| {
        let mut command = with_fake(Path::new(env!("CARGO_BIN_EXE_fwi")), folder, setting);
        let out = command.args(*list).args(options.split_whitespace()).output().unwrap();
        let said = String::from_utf8(out.stderr).unwrap();
        assert!(!said.contains("panicked"), "{list:?}: {said}");
        (out.status.code().unwrap(), said)
    };
    lists.iter().map(run).collect()
}

#[test]
fn every_command_computes_without_a_usable_gpu() {
    let folder = tempfile::tempdir().unwrap();
    fake_cuda::build(folder.path(), &[]);
    // no device, a chip that is too old: the CPU computes, and in the second case says why
    for (setting, why) in
        [("init=100", None), ("arch=75,memory=85899345920", Some("compute capability 7.5 is too old"))]
    {
        for (code, said) in commands(folder.path(), setting, "--backend auto") {
            assert_eq!(code, 0, "{setting}: {said}");
            assert!(why.is_none_or(|why| said.contains(why)), "{setting}: {said}");
        }
        for (code, said) in commands(folder.path(), setting, "--backend cuda") {
            assert_eq!((code, said.lines().count()), (7, 1), "{setting}: {said}");
        }
    }
    // one that is lost over its first work, and one that does not do it (as the stand-in, which has no chip)
    for (setting, why) in
        [("memory=85899345920,sync=719", "is lost"), ("memory=85899345920", "computes wrong gradients")]
    {
        for (code, said) in commands(folder.path(), setting, "--backend auto") {
            assert!(code == 0 && said.contains(why), "{setting}: {said}");
        }
        for (code, said) in commands(folder.path(), setting, "--backend cuda") {
            assert!((code, said.lines().count()) == (7, 1) && said.contains(why), "{setting}: {said}");
        }
    }
}

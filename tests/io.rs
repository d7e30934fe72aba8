//! Reading and writing of array files: every kind round trip, files made by h5py and NumPy, and what is refused.

use fwi::Error;
use fwi::io::{
    ArrayFile, ArrayWriter, DType, Element, Gathers, Limits, Maps, TMP_PREFIX, read_gather, read_map, write_array,
};
use ndarray::{Array2, Array3, Array4, ArrayD, Axis, s};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

const SHAPE: [usize; 4] = [4, 2, 10, 7];

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn counting<T: Element>() -> ArrayD<T> {
    let n = SHAPE.iter().product::<usize>();
    ArrayD::from_shape_vec(SHAPE.to_vec(), (0..n).map(|i| T::from_f64(i as f64)).collect()).unwrap()
}

fn open(path: impl AsRef<Path>) -> Result<ArrayFile, Error> {
    ArrayFile::open(path, &Limits::default())
}

/// Reads all, each item, and a range, backwards too, as both types.
fn check_counting(path: impl AsRef<Path>) {
    let mut file = open(&path).unwrap();
    assert_eq!(file.shape(), SHAPE);
    let (single, double) = (counting::<f32>(), counting::<f64>());
    assert_eq!(file.read::<f32>(0..4).unwrap(), single);
    assert_eq!(file.read::<f64>(0..4).unwrap(), double);
    for range in [3..4, 0..1, 1..3, 2..2, 0..4] {
        let part = double.slice_axis(Axis(0), range.clone().into());
        assert_eq!(file.read::<f64>(range.clone()).unwrap(), part, "{range:?} of {}", path.as_ref().display());
    }
}

#[test]
fn reads_what_h5py_and_numpy_write() {
    let table = [
        ("contiguous.h5", "<f4"),
        ("chunked.h5", "<f4"),
        ("gzip_shuffle.h5", "<f4"),
        ("gzip_shuffle.h5:/gathers", "<f4"),
        ("latest.h5", "<f8"),
        ("fixed_array.h5", "<f4"),
        ("half_big_endian.h5", ">f2"),
        ("int32.h5", "<i4"),
        ("groups.h5:inner/first", "<f4"),
        ("compound.h5", "<f4"),
        ("compound_latest.h5", "<f4"),
        ("stored.npz", "<f4"),
        ("stored.npz:a", "<f4"),
        ("deflated.npz:a", "<f4"),
        ("deflated.npz:f.npy", "<f4"),
        ("fortran.npy", "<f4"),
    ];
    for (name, dtype) in table {
        check_counting(data(name));
        assert_eq!(open(data(name)).unwrap().dtype().to_string(), dtype, "{name}");
    }
    assert_eq!(open(data("stored.npz:b")).unwrap().shape(), [2, 2, 10, 7]);
    // The root's own datasets come first, text is passed over, links count.
    assert_eq!(open(data("groups.h5")).unwrap().shape(), [1, 2, 10, 7]);
    assert_eq!(open(data("groups.h5:/link")).unwrap().shape(), [1, 2, 10, 7]);
}

/// A .npy with the given header text, padded as version `major` asks for.
fn npy(major: u8, header: &str, numbers: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY".to_vec();
    bytes.extend([major, 0]);
    if major == 1 {
        bytes.extend((header.len() as u16).to_le_bytes());
    } else {
        bytes.extend((header.len() as u32).to_le_bytes());
    }
    bytes.extend(header.as_bytes());
    bytes.extend(numbers);
    bytes
}

#[test]
fn reads_every_npy_variant() {
    let dir = tempfile::tempdir().unwrap();
    let count = SHAPE.iter().product::<usize>();
    let encode = |descr: &str, x: usize| -> Vec<u8> {
        let little = match &descr[1..] {
            "f2" => half::f16::from_f32(x as f32).to_le_bytes().to_vec(),
            "f4" => (x as f32).to_le_bytes().to_vec(),
            "f8" => (x as f64).to_le_bytes().to_vec(),
            "i2" => (x as i16).to_le_bytes().to_vec(),
            _ => (x as u64).to_le_bytes().to_vec(),
        };
        if descr.starts_with('>') { little.into_iter().rev().collect() } else { little }
    };
    for major in [1, 2, 3] {
        for fortran in [false, true] {
            for descr in ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", ">i2", "<u8"] {
                let flag = if fortran { "True" } else { "False" };
                let header = format!("{{'descr': '{descr}', 'fortran_order': {flag}, 'shape': (4, 2, 10, 7), }}\n");
                let order: Vec<usize> = if fortran {
                    counting::<f64>().t().iter().map(|&x| x as usize).collect()
                } else {
                    (0..count).collect()
                };
                let numbers: Vec<u8> = order.iter().flat_map(|&x| encode(descr, x)).collect();
                let path = dir.path().join("variant");
                fs::write(&path, npy(major, &header, &numbers)).unwrap();
                check_counting(&path);
            }
        }
    }
}

#[test]
fn reads_long_columns_of_fortran_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("long.npy");
    let n = 40_000;
    let numbers: Vec<u8> = (0..3).flat_map(|c| (0..n).flat_map(move |r| ((3 * r + c) as f32).to_le_bytes())).collect();
    let header = format!("{{'descr': '<f4', 'fortran_order': True, 'shape': ({n}, 3), }}\n");
    fs::write(&path, npy(1, &header, &numbers)).unwrap();
    for range in [0..n, 7..30_000, n - 1..n] {
        let read = open(&path).unwrap().read::<f64>(range.clone()).unwrap();
        assert!(read.iter().enumerate().all(|(i, &x)| x == (3 * range.start + i) as f64), "{range:?}");
    }
}

#[test]
fn round_trips_whole_arrays() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.npy", "a.h5", "a.HDF5"] {
        let path = dir.path().join(name);
        write_array(&path, counting::<f32>().view()).unwrap();
        check_counting(&path);
        assert_eq!(open(&path).unwrap().dtype(), DType::F32);
        // Not in C order.
        let array = counting::<f64>();
        write_array(&path, array.t()).unwrap();
        let read = open(&path).unwrap().read::<f64>(0..7).unwrap();
        assert_eq!(read, array.t());
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
}

#[test]
fn round_trips_stacks() {
    let dir = tempfile::tempdir().unwrap();
    for (name, dtype) in [("a.npy", DType::F32), ("b.npy", DType::F64), ("a.h5", DType::F32), ("b.h5", DType::F64)] {
        for expected in [None, Some(4)] {
            let path = dir.path().join(name);
            let mut writer = ArrayWriter::create(&path, &SHAPE[1..], dtype, expected).unwrap();
            for item in counting::<f64>().outer_iter() {
                writer.append(item).unwrap();
            }
            assert_eq!(writer.written(), 4);
            writer.finish().unwrap();
            check_counting(&path);
            assert_eq!(open(&path).unwrap().dtype(), dtype);
        }
    }
}

#[test]
fn many_items_in_hdf5() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("many.h5");
    let mut writer = ArrayWriter::create(&path, &[3], DType::F32, None).unwrap();
    for i in 0..3000 {
        writer.append(ndarray::arr1(&[i as f32, 0.5, -1.0]).view()).unwrap();
    }
    writer.finish().unwrap();
    let read = open(&path).unwrap().read::<f32>(0..3000).unwrap();
    assert!((0..3000).all(|i| read[[i, 0]] == i as f32 && read[[i, 1]] == 0.5));
}

#[test]
fn an_unfinished_stack_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.npy", "a.h5"] {
        let path = dir.path().join(name);
        fs::write(&path, b"old").unwrap();
        let item = Array2::<f32>::ones((3, 4));
        let mut writer = ArrayWriter::create(&path, &[3, 4], DType::F32, Some(2)).unwrap();
        writer.append(item.view()).unwrap();
        let wrong = writer.append(Array2::<f32>::ones((4, 3)).view()).unwrap_err();
        assert_eq!(wrong.exit_code(), 2);
        let waiting: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(waiting.iter().any(|n| n.to_string_lossy().starts_with(TMP_PREFIX)));
        assert_eq!(writer.finish().unwrap_err().exit_code(), 2);
        drop(ArrayWriter::create(&path, &[3, 4], DType::F32, None).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    for (name, item) in [("a.txt", vec![3]), ("a", vec![3]), ("a.npy", vec![0])] {
        let refused = ArrayWriter::create(dir.path().join(name), &item, DType::F32, None);
        assert_eq!(refused.err().unwrap().exit_code(), 2, "{name}");
    }
}

/// A full disk, played by a limit on the size of files in a process of its own.
#[cfg(target_os = "linux")]
#[test]
fn a_write_that_runs_out_of_room_keeps_the_old_file() {
    if let Some(dir) = std::env::var_os("FWI_TEST_NO_ROOM") {
        let item = Array2::from_shape_fn((200, 500), |(i, j)| ((i * 7919 + j * 104_729) as f64).sin());
        for name in ["a.npy", "a.h5"] {
            let path = Path::new(&dir).join(name);
            let error = write_array(&path, item.view()).unwrap_err();
            assert_eq!(error.exit_code(), 4, "{error}");
            assert!(!error.to_string().contains('\n'));
            let mut writer = ArrayWriter::create(&path, &[200, 500], DType::F64, None).unwrap();
            let error = (0..9).find_map(|_| writer.append(item.view()).err()).unwrap();
            assert_eq!(error.exit_code(), 4, "{error}");
        }
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.npy", "a.h5"] {
        fs::write(dir.path().join(name), b"old").unwrap();
    }
    let run = std::process::Command::new("sh")
        .args([
            "-c",
            "trap '' XFSZ; ulimit -f 100; exec \"$0\" --exact a_write_that_runs_out_of_room_keeps_the_old_file",
        ])
        .arg(std::env::current_exe().unwrap())
        .env("FWI_TEST_NO_ROOM", dir.path())
        .output()
        .unwrap();
    assert!(run.status.success(), "{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(String::from_utf8_lossy(&run.stdout).contains("1 passed"));
    for name in ["a.npy", "a.h5"] {
        assert_eq!(fs::read(dir.path().join(name)).unwrap(), b"old");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

fn deflated_npz(entry: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    zip.start_file("a.npy", options).unwrap();
    zip.write_all(entry).unwrap();
    zip.finish().unwrap().into_inner()
}

#[test]
fn refuses_bad_files_in_one_line() {
    let head = |shape: &str| format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n");
    let descr = |d: &str| format!("{{'descr': {d}, 'fortran_order': False, 'shape': (2,), }}\n");
    let mut long = b"\x93NUMPY\x02\x00".to_vec();
    long.extend([0xff; 6]);
    let gathers = fs::read(data("gzip_shuffle.h5")).unwrap();
    let mut garbage = gathers.clone();
    garbage[8..].iter_mut().enumerate().for_each(|(i, b)| *b = (i * 7) as u8);
    let mut cut_zip = fs::read(data("deflated.npz")).unwrap();
    cut_zip.truncate(cut_zip.len() / 2);
    let mut flipped = fs::read(data("stored.npz")).unwrap();
    let magic = flipped.windows(6).position(|w| w == b"\x93NUMPY").unwrap();
    flipped[magic + 1] ^= 0xff;
    // The datatype of the dataset made a compound or an enumeration with more members than its message can hold.
    let swollen = |name: &str, float: &[u8], class: u8| {
        let mut bytes = fs::read(data(name)).unwrap();
        let at = bytes.windows(float.len()).position(|w| w == float).unwrap();
        // The enumeration's base type lies behind it.
        let head = [class, 0xff, 0xff, 0, 4, 0, 0, 0, 0x13, 0, 0, 0, 4, 0, 0, 0];
        bytes[at..at + 16].copy_from_slice(&head);
        bytes
    };
    let (single, double) = (b"\x11\x20\x1f\0\x04\0\0\0", b"\x11\x20\x3f\0\x08\0\0\0");
    let table: Vec<(&str, Vec<u8>, &str)> = vec![
        ("compound", swollen("gzip_shuffle.h5", single, 0x16), "type 3 claims more than its 24 bytes"),
        ("enumeration", swollen("contiguous.h5", single, 0x38), "type 3 claims more than its 24 bytes"),
        ("compound, newer header", swollen("latest.h5", double, 0x36), "type 3 claims more than its 20 bytes"),
        ("empty", vec![], "is empty"),
        ("text", b"velocity,1500\n".to_vec(), "neither .npy, .npz nor HDF5 (it begins with 76 65 6c"),
        ("magic alone", b"\x93NUMPY".to_vec(), "truncated"),
        ("14 bytes asking for 4 GiB", long, "claims a .npy header of 4294967295 bytes"),
        ("header beyond the end", npy(1, &head("(2,)"), &[])[..40].to_vec(), "the file has 40"),
        ("unknown version", npy(9, &head("(2,)"), &[0; 8]), "version 9.0"),
        ("truncated", npy(1, &head("(3,)"), &[0; 8]), "takes 80 bytes with its header, the file has 76"),
        ("too long", npy(1, &head("(2,)"), &[0; 12]), "disagree"),
        ("overflowing shape", npy(1, &head("(9223372036854775807, 9223372036854775807)"), &[]), "damaged"),
        ("overflow hidden by 0", npy(1, &head("(0, 9223372036854775807, 9223372036854775807)"), &[]), "damaged"),
        ("beyond u64", npy(1, &head("(99999999999999999999999,)"), &[]), "damaged .npy header"),
        ("negative axis", npy(1, &head("(-1, 2)"), &[0; 8]), "damaged .npy header"),
        ("terabytes", npy(1, &head("(1000000, 5, 1000, 70)"), &[0; 8]), " bytes with its header, the file has"),
        ("scalar", npy(1, &head("()"), &[0; 4]), "0 axes"),
        ("no dictionary", npy(1, "[1, 2, 3]\n", &[]), "damaged .npy header"),
        ("nested brackets", npy(1, &"(".repeat(9000), &[]), "damaged .npy header"),
        ("pickle", npy(1, &descr("'|O'"), &[0; 16]), "pickle"),
        ("records", npy(1, &descr("[('a', '<f4')]"), &[0; 8]), "records"),
        ("complex", npy(1, &descr("'<c8'"), &[0; 16]), "'<c8'"),
        ("strings", npy(1, &descr("'<U8'"), &[0; 64]), "'<U8'"),
        ("cut zip", cut_zip, "truncated .npz"),
        ("damaged zip entry", flipped, "entry a.npy: is not in .npy format"),
        ("zip without arrays", b"PK\x05\x06".iter().copied().chain([0; 18]).collect(), "holds no .npy entry"),
        ("zip bomb's header", deflated_npz(&npy(1, &head("(1000000000,)"), &[0; 4096])), "truncated"),
        ("HDF5 garbage", garbage, "HDF5"),
        ("HDF5 magic alone", gathers[..8].to_vec(), "HDF5"),
        ("HDF5 cut", gathers[..gathers.len() / 2].to_vec(), ""),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (what, bytes, expected) in table {
        let path = dir.path().join("bad");
        fs::write(&path, bytes).unwrap();
        let error = open(&path).and_then(|mut file| file.read::<f64>(0..file.len())).expect_err(what);
        let message = error.to_string();
        assert!(matches!(error, Error::Input { .. }), "{what}: {message}");
        assert!(message.contains(expected) && !message.contains('\n'), "{what}: {message}");
    }
    let table = [
        ("sparse.h5", "has holes"),
        ("lzf.h5", "filter"),
        ("contiguous.h5:/no", "root holds [\"gathers\"]"),
        ("groups.h5:comment", "no f2, f4, f8"),
        ("stored.npz:c", "it has a, b"),
        ("deflated.npz", "'<U4'"),
        ("fortran.npy:a", "no entries"),
    ];
    for (name, expected) in table {
        let error = open(data(name)).and_then(|mut file| file.read::<f64>(0..file.len())).expect_err(name);
        let message = error.to_string();
        assert!(message.contains(expected) && !message.contains('\n'), "{name}: {message}");
    }
    assert_eq!(open(dir.path().join("none.npy")).err().unwrap().exit_code(), 4);
    assert_eq!(open(dir.path()).err().unwrap().exit_code(), 3);
    assert_eq!(open("/dev/zero").err().unwrap().exit_code(), 3);
}

#[test]
fn damaged_deflated_data_is_found_by_checksum() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.npz");
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000,), }\n";
    let mut bytes = deflated_npz(&npy(1, header, &[1; 4000]));
    fs::write(&path, &bytes).unwrap();
    assert_eq!(open(&path).unwrap().read::<f32>(0..1000).unwrap()[0], f32::from_le_bytes([1; 4]));
    // The checksum in the central directory.
    let at = bytes.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap() + 16;
    bytes[at] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let error = open(&path).unwrap().read::<f32>(0..1000).unwrap_err().to_string();
    assert!(error.contains("checksum differs"), "{error}");
}

#[test]
fn limits_hold() {
    let path = data("contiguous.h5");
    let small = Limits { max_bytes: 1000, ..Limits::default() };
    let error = ArrayFile::open(&path, &small).err().unwrap();
    assert!(error.to_string().contains("over the limit of 1000"), "{error}");
    let mut file = ArrayFile::open(&path, &Limits { max_read: 1200, ..Limits::default() }).unwrap();
    assert!(file.read::<f64>(1..2).is_ok());
    assert_eq!(file.read::<f64>(0..2).unwrap_err().exit_code(), 5);
    assert_eq!(file.read::<f64>(3..5).unwrap_err().exit_code(), 2);
    let chunks = ArrayFile::open(data("gzip_shuffle.h5"), &Limits { max_read: 100, ..Limits::default() });
    assert!(chunks.err().unwrap().to_string().contains("smaller chunks"));
}

#[test]
fn maps_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("maps.npy");
    let limits = Limits::default();
    let map = Array2::from_shape_fn((6, 5), |(z, x)| 1500.0 + (5 * z + x) as f32);
    let stack = Array3::from_shape_fn((3, 6, 5), |(i, z, x)| map[[z, x]] + i as f32);
    let expected = map.mapv(f64::from);
    write_array(&path, map.view()).unwrap();
    assert_eq!(read_map(&path, (6, 5), &limits).unwrap(), expected);
    write_array(&path, stack.view()).unwrap();
    let maps: Vec<_> = Maps::open(&path, (6, 5), &limits).unwrap().iter().collect::<Result<_, _>>().unwrap();
    assert_eq!(maps.len(), 3);
    assert_eq!(maps[2], &expected + 2.0);
    assert!(read_map(&path, (6, 5), &limits).unwrap_err().to_string().contains("holds 3 velocity maps"));
    write_array(&path, stack.view().insert_axis(Axis(1))).unwrap();
    assert_eq!(Maps::open(&path, (6, 5), &limits).unwrap().get(1).unwrap(), &expected + 1.0);
    assert_eq!(Maps::open(data("maps.npz"), (6, 5), &limits).unwrap().get(2).unwrap()[[5, 4]], 2000.0);
    let error = Maps::open(&path, (70, 70), &limits).err().unwrap().to_string();
    let text = "holds shape (3, 1, 6, 5); expected velocity maps of shape (70, 70) or (n, 70, 70) or (n, 1, 70, 70)";
    assert!(error.contains(text), "{error}");
    for bad in [f32::NAN, f32::INFINITY, 0.0, -1500.0] {
        let mut stack = stack.clone();
        stack[[1, 2, 3]] = bad;
        write_array(&path, stack.view()).unwrap();
        let mut maps = Maps::open(&path, (6, 5), &limits).unwrap();
        assert!(maps.get(0).is_ok());
        let error = maps.get(1).unwrap_err().to_string();
        assert!(error.contains(&format!("map 1 holds {bad} at row 2, column 3")), "{error}");
        assert_eq!(maps.get(3).unwrap_err().exit_code(), 2);
    }
}

#[test]
fn gathers_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gathers.h5");
    let limits = Limits::default();
    let shape = (2, 10, 7);
    let mut file = Gathers::open(data("gzip_shuffle.h5"), shape, &limits).unwrap();
    assert_eq!(file.len(), 4);
    for (i, gather) in file.iter().enumerate() {
        assert_eq!(gather.unwrap().into_dyn(), counting::<f64>().index_axis(Axis(0), i));
    }
    let mut stack = Array4::<f32>::from_elem((2, 2, 10, 7), f32::NAN);
    stack.slice_mut(s![1, 1, .., 6]).fill(0.5);
    write_array(&path, stack.view()).unwrap();
    let mut file = Gathers::open(&path, shape, &limits).unwrap();
    assert!(file.get(1).is_ok());
    assert!(file.get(0).unwrap_err().to_string().contains("gather 0 has no trace that is finite"));
    write_array(&path, stack.index_axis(Axis(0), 1)).unwrap();
    assert_eq!(read_gather(&path, shape, &limits).unwrap()[[1, 0, 6]], 0.5);
    let error = read_gather(&path, (5, 1000, 70), &limits).unwrap_err().to_string();
    assert!(error.contains("holds shape (2, 10, 7)") && error.contains("(5, 1000, 70) or (n, 5, 1000, 70)"), "{error}");
}

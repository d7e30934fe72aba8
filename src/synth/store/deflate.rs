//! HDF5's shuffle and deflate filters for samples of waves, several times as fast as deflating all of it.
//!
//! Of a shuffled float only the plane of signs and exponents can be compressed, the planes of mantissa bytes are noise
//! that costs most of the time and comes out longer. Such stretches are put into the stream as stored blocks (RFC 1951,
//! 3.2.4), and what lies between is deflated on its own. The result is an ordinary zlib stream (RFC 1950).

use flate2::{Compress, Compression, FlushCompress, Status};
use half::f16;

/// Deflate level: higher ones take more time than modelling leaves.
pub(super) const LEVEL: u32 = 1;
/// Bytes that are looked at together.
const STRETCH: usize = 1 << 14;
/// Most bytes of a stored block.
const STORED: usize = 65_535;

/// Numbers as f32 or f16, little-endian, those bytes of equal significance together, deflated.
pub(super) fn packed(values: &[f32], half: bool) -> Vec<u8> {
    match half {
        true => deflated(&shuffled(values, |v| f16::from_f32(v).to_le_bytes())),
        false => deflated(&shuffled(values, f32::to_le_bytes)),
    }
}

fn shuffled<const N: usize>(values: &[f32], bytes_of: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
    let n = values.len();
    let mut bytes = vec![0; n * N];
    for (i, &value) in values.iter().enumerate() {
        let of_value = bytes_of(value);
        (0..N).for_each(|b| bytes[b * n + i] = of_value[b]);
    }
    bytes
}

/// A zlib stream.
fn deflated(bytes: &[u8]) -> Vec<u8> {
    // 32 KiB window, fastest level
    let mut out = vec![0x78, 0x01];
    out.reserve(bytes.len() + bytes.len() / 16 + 256);
    let mut compress = Compress::new(Compression::new(LEVEL), false);
    let stretches: Vec<(&[u8], bool)> = bytes.chunks(STRETCH).map(|s| (s, is_noise(s))).collect();
    let mut at = 0;
    for run in stretches.chunk_by(|a, b| a.1 == b.1) {
        let len: usize = run.iter().map(|s| s.0.len()).sum();
        let part = &bytes[at..at + len];
        at += len;
        if run[0].1 { store(part, &mut out) } else { deflate(part, &mut compress, &mut out) }
    }
    // an empty last block of fixed codes
    out.extend([0x03, 0x00]);
    out.extend(adler32(bytes).to_be_bytes());
    out
}

/// Stored blocks; the stream stands at a whole byte.
fn store(part: &[u8], out: &mut Vec<u8>) {
    for block in part.chunks(STORED) {
        let len = block.len() as u16;
        out.push(0);
        out.extend(len.to_le_bytes());
        out.extend((!len).to_le_bytes());
        out.extend(block);
    }
}

/// Blocks that refer to nothing before them and end at a whole byte.
fn deflate(part: &[u8], compress: &mut Compress, out: &mut Vec<u8>) {
    compress.reset();
    loop {
        let done = compress.total_in() as usize;
        if out.len() == out.capacity() {
            out.reserve(STORED);
        }
        let status = compress.compress_vec(&part[done..], out, FlushCompress::Sync);
        let status = status.expect("deflate takes any bytes");
        // room left over says that the flush is complete
        if compress.total_in() as usize == part.len() && (out.len() < out.capacity() || status == Status::BufError) {
            return;
        }
    }
}

/// Whether Huffman codes would save less than a twentieth: from the chance that two bytes are equal.
fn is_noise(stretch: &[u8]) -> bool {
    let mut counts = [0u64; 256];
    stretch.iter().for_each(|&b| counts[usize::from(b)] += 1);
    let equal: u64 = counts.iter().map(|c| c * c).sum();
    // 256 where all bytes are equally frequent
    equal * 190 < (stretch.len() * stretch.len()) as u64
}

fn adler32(bytes: &[u8]) -> u32 {
    const MODULUS: u32 = 65_521;
    let (mut a, mut b) = (1u32, 0u32);
    // so many additions do not overflow
    for block in bytes.chunks(5552) {
        for &byte in block {
            a += u32::from(byte);
            b += a;
        }
        a %= MODULUS;
        b %= MODULUS;
    }
    b << 16 | a
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::ZlibDecoder;
    use rand::{Rng, SeedableRng, rngs::StdRng};
    use std::io::Read;

    fn inflated(stream: &[u8]) -> Vec<u8> {
        let mut bytes = vec![];
        let mut decoder = ZlibDecoder::new(stream);
        decoder.read_to_end(&mut bytes).unwrap();
        assert_eq!(decoder.total_in() as usize, stream.len(), "bytes follow the stream");
        bytes
    }

    #[test]
    fn any_bytes_come_back() {
        let mut rng = StdRng::seed_from_u64(1);
        for n in [0, 1, 2, STRETCH - 1, STRETCH, STRETCH + 1, 2 * STORED + 3, 400_000] {
            for kind in 0..4 {
                let byte = |i: usize, rng: &mut StdRng| match kind {
                    0 => 0,
                    1 => rng.random(),
                    2 => (i / 1000 % 7) as u8,
                    // now noise, now a pattern
                    _ => {
                        if (i / 50_000).is_multiple_of(2) {
                            rng.random()
                        } else {
                            (i % 11) as u8
                        }
                    }
                };
                let bytes: Vec<u8> = (0..n).map(|i| byte(i, &mut rng)).collect();
                let stream = deflated(&bytes);
                assert!(inflated(&stream) == bytes, "{n} bytes of kind {kind}");
                assert!(stream.len() < n + n / 500 + 64, "{} of {n}, kind {kind}", stream.len());
                assert!(![0, 2].contains(&kind) || stream.len() < n / 20 + 64, "{} of {n}", stream.len());
            }
        }
    }

    #[test]
    fn bytes_are_shuffled_as_hdf5_does() {
        let values = [1.5f32, -2.25, 1e-3];
        for half in [false, true] {
            let bytes = inflated(&packed(&values, half));
            assert_eq!(bytes.len(), if half { 6 } else { 12 });
            let second: Vec<u8> = bytes.iter().skip(1).step_by(3).copied().collect();
            let single = (-2.25f32).to_le_bytes().to_vec();
            assert_eq!(second, if half { f16::from_f32(-2.25).to_le_bytes().to_vec() } else { single });
        }
    }
}

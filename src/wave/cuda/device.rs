//! What the driver tells of a device before it is opened.

use super::api::Loaded;
use super::runtime::Limits;
use crate::{Error, Result};
use cudarc::driver::sys::{CUdevice, CUdevice_attribute};
use std::ffi::{CStr, c_char, c_int};

/// A device that is there, not yet opened.
pub(super) struct Device {
    loaded: &'static Loaded,
    /// "cuda:0", for messages.
    pub tag: String,
    /// The driver's handle.
    pub handle: CUdevice,
}

/// Turns a code of the driver into an error.
pub(super) fn check(loaded: &Loaded, tag: &str, code: u32, doing: impl FnOnce() -> String) -> Result<()> {
    match code {
        0 => Ok(()),
        2 => Err(Error::Memory(format!(
            "{tag}: the device's memory is exhausted (cannot {}); take a smaller batch, or end other programs there",
            doing()
        ))),
        _ => Err(Error::device(tag, format!("cannot {}: {}", doing(), loaded.words(code)))),
    }
}

/// How many devices there are; at least one.
pub(super) fn count(loaded: &Loaded) -> Result<usize> {
    let mut count = 0;
    // SAFETY: the pointer is valid.
    check(loaded, "cuda", unsafe { (loaded.api.cuDeviceGetCount)(&mut count) }, || "count the devices".into())?;
    match usize::try_from(count) {
        Ok(n) if n > 0 => Ok(n),
        _ => Err(Error::device("cuda", format!("the driver shows no device: {}", loaded.words(100)))),
    }
}

impl Device {
    /// Device number `ordinal`, if there is one.
    pub fn get(loaded: &'static Loaded, ordinal: usize) -> Result<Self> {
        let (tag, there) = (format!("cuda:{ordinal}"), count(loaded)?);
        if ordinal >= there {
            let known = if there == 1 { "only cuda:0".into() } else { format!("cuda:0 to cuda:{}", there - 1) };
            return Err(Error::device(tag, format!("there is no such device: this machine has {known}")));
        }
        let mut handle = 0;
        // SAFETY: the pointer is valid.
        let code = unsafe { (loaded.api.cuDeviceGet)(&mut handle, ordinal as c_int) };
        check(loaded, &tag, code, || "get the device".into())?;
        Ok(Self { loaded, tag, handle })
    }

    fn name(&self) -> Result<String> {
        let mut text = [0u8; 256];
        let (at, len) = (text.as_mut_ptr().cast::<c_char>(), text.len() as c_int - 1);
        // SAFETY: the buffer is as long as is said, and ends in a zero that stays.
        let code = unsafe { (self.loaded.api.cuDeviceGetName)(at, len, self.handle) };
        check(self.loaded, &self.tag, code, || "get the device's name".into())?;
        Ok(CStr::from_bytes_until_nul(&text).map(|t| t.to_string_lossy().into_owned()).unwrap_or_default())
    }

    /// An attribute; zero where the driver does not know it.
    fn attribute(&self, which: CUdevice_attribute) -> u32 {
        let mut value = 0;
        // SAFETY: the pointer is valid.
        let code = unsafe { (self.loaded.api.cuDeviceGetAttribute)(&mut value, which, self.handle) };
        if code == 0 { value.try_into().unwrap_or(0) } else { 0 }
    }

    /// Ten times the compute capability.
    pub fn arch(&self) -> u32 {
        use CUdevice_attribute::*;
        10 * self.attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
            + self.attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
    }

    fn multiprocessors(&self) -> u32 {
        self.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
    }

    /// What it offers.
    pub fn limits(&self) -> Result<Limits> {
        use CUdevice_attribute::*;
        Ok(Limits {
            name: format!("{} ({})", self.name()?, self.tag),
            multiprocessors: self.multiprocessors() as usize,
            shared_bytes: self.attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN) as usize,
            clusters: (90..120).contains(&self.arch()) && self.attribute(CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH) != 0,
        })
    }

    /// A line for people.
    pub fn describe(&self) -> Result<String> {
        let mut bytes = 0;
        // SAFETY: the pointer is valid.
        let code = unsafe { (self.loaded.api.cuDeviceTotalMem_v2)(&mut bytes, self.handle) };
        check(self.loaded, &self.tag, code, || "ask for the device's memory".into())?;
        Ok(format!(
            "{}: {}, {:.1} GB, compute capability {}.{}, {} multiprocessors",
            self.tag,
            self.name()?,
            bytes as f64 / f64::from(1u32 << 30),
            self.arch() / 10,
            self.arch() % 10,
            self.multiprocessors()
        ))
    }
}

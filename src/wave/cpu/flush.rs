//! Denormals flushed to zero, thread by thread.

/// Flushes denormals to zero on this thread while it lives: fields start at zero and decay in the sponge, and
/// denormal arithmetic is many times slower.
pub struct FlushToZero {
    before: u64,
}

impl FlushToZero {
    /// Switches flushing on.
    pub fn new() -> Self {
        let before = control();
        set_control(before | FLUSH);
        Self { before }
    }
}

impl Default for FlushToZero {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for FlushToZero {
    fn drop(&mut self) {
        set_control(self.before);
    }
}

#[cfg(target_arch = "x86_64")]
const FLUSH: u64 = 0x8040; // flush-to-zero and denormals-are-zero bits of MXCSR
#[cfg(target_arch = "aarch64")]
const FLUSH: u64 = 1 << 24; // FZ bit of FPCR
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const FLUSH: u64 = 0;

#[cfg(target_arch = "x86_64")]
fn control() -> u64 {
    let mut word = 0u32;
    // SAFETY: stores the control word to a local.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut word, options(nostack)) };
    u64::from(word)
}

#[cfg(target_arch = "x86_64")]
fn set_control(word: u64) {
    let word = word as u32;
    // SAFETY: only the rounding of denormals changes, and only on this thread.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const word, options(nostack)) };
}

#[cfg(target_arch = "aarch64")]
fn control() -> u64 {
    let word: u64;
    // SAFETY: reads a control register.
    unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) word) };
    word
}

#[cfg(target_arch = "aarch64")]
fn set_control(word: u64) {
    // SAFETY: only the rounding of denormals changes, and only on this thread.
    unsafe { std::arch::asm!("msr fpcr, {}", in(reg) word) };
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn control() -> u64 {
    0
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn set_control(_word: u64) {}

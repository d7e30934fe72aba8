//! Turns a panic of a file parser into an error message, without printing it.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `parse`; a panic inside becomes `Err` with its message. The panic hook stays silent on this thread meanwhile.
///
/// What `parse` borrows mutably must not be used again after an error.
pub(crate) fn guarded<R>(parse: impl FnOnce() -> Result<R, String>) -> Result<R, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = take_hook();
        set_hook(Box::new(move |info| {
            if !QUIET.get() {
                previous(info);
            }
        }));
    });
    let outer = QUIET.replace(true);
    let caught = catch_unwind(AssertUnwindSafe(parse));
    QUIET.set(outer);
    caught.unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<&str>().map(|s| s.to_string());
        let message = message.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(format!("is damaged or of an unknown make ({})", message.unwrap_or_else(|| "no reason given".into())))
    })
}

#[cfg(test)]
mod tests {
    use super::guarded;

    #[test]
    fn a_panic_becomes_an_error() {
        let error = guarded(|| if true { panic!("index {}", 7) } else { Ok(()) }).unwrap_err();
        assert_eq!(error, "is damaged or of an unknown make (index 7)");
        assert_eq!(guarded(|| Ok(3)), Ok(3));
    }
}

//! The `fwi` command: see `fwi --help`.

mod cli;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    // a reader that closes the pipe (`fwi doctor | head`) ends the program quietly, as it does others
    #[cfg(unix)]
    let _ = signal_hook::flag::register_conditional_shutdown(
        signal_hook::consts::SIGPIPE,
        128 + signal_hook::consts::SIGPIPE,
        std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true)),
    );
    // a file that outgrows its limit becomes an error with a message, not an end without one
    #[cfg(unix)]
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, std::sync::Arc::default());
    match cli::run(cli::Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            cli::note(format_args!("fwi: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}

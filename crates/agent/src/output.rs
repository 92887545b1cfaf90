//! What commands print.

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use miette::IntoDiagnostic;

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    Text,
    Json,
}

/// Prints a text. Whoever reads no more of it (`| head`) has read enough: that is no error.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Prints a text, and says whether all is well (exit code 0) or not (1); or why it cannot be told (2).
pub(crate) fn answer(answer: miette::Result<(String, bool)>) -> ExitCode {
    let told = answer.and_then(|(text, fine)| print(&text).into_diagnostic().map(|()| fine));
    match told {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(report) => {
            eprintln!("{report:?}");
            ExitCode::from(2)
        }
    }
}

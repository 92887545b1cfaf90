//! podnet-cni: the CNI plugin. The request comes in the environment and on standard input, the answer goes to
//! standard output. Everything else is in the library.

use std::io::Write;
use std::process::ExitCode;

use podnet_cni::{CniVersion, plugin};
use serde_json::Value;

fn main() -> ExitCode {
    let document = match plugin::read_document(std::io::stdin().lock()) {
        Ok(document) => document,
        Err(error) => return print(&error.to_json(CniVersion::NEWEST.as_str()), ExitCode::FAILURE),
    };
    match plugin::run(|name| std::env::var(name).ok(), &document) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(answer)) => print(&answer, ExitCode::SUCCESS),
        Err(error) => print(&error, ExitCode::FAILURE),
    }
}

fn print(answer: &Value, code: ExitCode) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{answer}").and_then(|()| out.flush()) {
        Ok(()) => code,
        Err(error) => {
            eprintln!("podnet-cni: cannot write the answer: {error}");
            ExitCode::FAILURE
        }
    }
}

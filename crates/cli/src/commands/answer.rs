//! Answers what a restore would do, for people or programs.

use std::env;
use std::process::ExitCode;

use nrt_core::restore::Refusal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::source::words;
use crate::exit;

/// Text for people, and the same for programs.
pub(super) type Answer = Result<(String, Value), Refusal>;

/// Prints an answer; `begin` comes before the words of a refusal.
pub(super) fn print(answer: Answer, json: bool, begin: &str) -> ExitCode {
    match answer {
        Ok((text, value)) => {
            if json {
                println!("{value:#}");
            } else {
                print!("{text}");
            }
            ExitCode::SUCCESS
        }
        Err(refusal) => {
            if json {
                let error = json!({ "message": refusal.message, "hint": refusal.hint });
                println!("{:#}", json!({ "error": error }));
            } else {
                exit::print(format_args!("{begin}{}", words(&refusal)));
            }
            ExitCode::FAILURE
        }
    }
}

/// A directory to find the answer in.
pub(super) fn directory(prefix: &str) -> Result<TempDir, Refusal> {
    tempfile::Builder::new().prefix(prefix).tempdir().map_err(|error| {
        Refusal::new(
            format!("no temporary directory can be made: {error}"),
            format!(
                "Make room in \"{}\", or set TMPDIR to another directory.",
                env::temp_dir().display()
            ),
        )
    })
}

//! Shows what the last jobs printed.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use clap::ValueEnum;
use nrt_core::layout;
use nrt_process::files;

use super::server::Server;
use crate::exit;

/// More is never shown of one file.
const MOST: u64 = 4 << 20;

/// Shows the end of what backups, shipping and drills printed last.
///
/// What the server itself says of them is in the server's own log.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    server: Server,
    /// Whose; all of them by default.
    of: Option<Of>,
    #[command(flatten)]
    how: How,
}

/// How much is shown.
#[derive(Debug, clap::Args)]
pub(crate) struct How {
    /// How many lines of each.
    #[arg(long, short = 'n', value_name = "NUMBER", default_value_t = 50)]
    lines: usize,
}

/// Who prints something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Of {
    /// pgBackRest, for the running or last backup.
    Backup,
    /// Shipping.
    Ship,
    /// The running or last drill.
    Drill,
}

impl Of {
    fn file(self) -> &'static str {
        match self {
            Of::Backup => layout::JOB_LOG,
            Of::Ship => layout::SHIP_LOG,
            Of::Drill => layout::DRILL_LOG,
        }
    }
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let of = arguments.of.map_or_else(|| Of::value_variants().to_vec(), |of| vec![of]);
    show(&arguments.server, &of, &arguments.how)
}

/// Shows these.
pub(crate) fn show(server: &Server, of: &[Of], how: &How) -> ExitCode {
    let shown = server.state().and_then(|state| {
        let logs = of.iter().map(|of| text(&state.join(layout::LOG).join(of.file()), how.lines));
        logs.collect::<anyhow::Result<Vec<_>>>()
    });
    match shown {
        Ok(texts) => {
            print!("{}", texts.join("\n"));
            ExitCode::SUCCESS
        }
        Err(error) => exit::failed(&error),
    }
}

fn text(path: &Path, lines: usize) -> anyhow::Result<String> {
    let written = fs::metadata(path).and_then(|it| it.modified());
    let end = files::read_end(path, MOST)
        .map_err(|error| anyhow::anyhow!("read \"{}\": {error}", path.display()))?;
    let end = String::from_utf8_lossy(&end);
    let skipped = end.lines().count().saturating_sub(lines);
    let body: Vec<&str> = end.lines().skip(skipped).collect();
    let when = match written {
        Ok(at) => format!(
            ", {}",
            chrono::DateTime::<chrono::Utc>::from(at).format("%Y-%m-%d %H:%M:%S UTC")
        ),
        Err(_) => String::new(),
    };
    let body = if body.is_empty() { "(nothing)".to_string() } else { body.join("\n") };
    Ok(format!("==> {}{when} <==\n{body}\n", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_stand_below_the_name_of_the_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("job.log");
        let of = |lines| text(&path, lines).expect("it can be read");
        let name = path.display().to_string();
        assert_eq!(of(2), format!("==> {name} <==\n(nothing)\n"));
        fs::write(&path, "one\ntwo\nthree\n").expect("written");
        let shown = of(2);
        assert!(shown.starts_with(&format!("==> {name}, ")), "{shown}");
        assert!(shown.ends_with(" <==\ntwo\nthree\n"), "{shown}");
        assert!(of(10).ends_with(" <==\none\ntwo\nthree\n"));
    }
}

//! Stands in `postgres`' place on the PATH of the official entrypoint: adds our settings, takes the
//! secrets away, and becomes the server.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use nrt_core::layout;
use nrt_core::options::{RCLONE_CONFIG, REPOSITORY};
use nrt_core::restore::Refusal;

use super::variables::Variables;
use super::{BASE, LOGS, SHIM, failed_to_run, one_line, rclone, real_program};

/// Hands the settings from the entrypoint to here: the official entrypoint gives `POSTGRES_DB` a
/// value where it has none, which would name the place off-site.
const SETTINGS: &str = "NRT_BACKUP_SETTINGS";
/// The library that is preloaded.
const LIBRARY: &str = "nrt_backup";
/// The server's list of them.
const PRELOAD: &str = "shared_preload_libraries";

/// Whether this program was called as `postgres`.
pub(crate) fn is_shim(program: &OsStr) -> bool {
    Path::new(program).file_name().is_some_and(|name| name == "postgres")
}

/// Becomes the server.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    let Err(why) = become_server(arguments);
    eprintln!("nrt-backup: {}", one_line(&why));
    ExitCode::FAILURE
}

fn become_server(arguments: &[OsString]) -> Result<std::convert::Infallible, Refusal> {
    let mut variables = Variables::of_process()?;
    let given = variables.get(SETTINGS).unwrap_or("[]");
    let given: Vec<(String, String)> = serde_json::from_str(given).map_err(|error| {
        Refusal::new(format!("{SETTINGS} is not what the entrypoint sets: {error}"), "Unset it.")
    })?;
    variables.forget(SETTINGS);
    variables.forget_remote();
    variables.forget_password();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let rest = std::env::split_paths(&path).filter(|it| it != Path::new(SHIM));
    let path = std::env::join_paths(rest).unwrap_or(path);
    let program = real_program("postgres", &path).ok_or_else(|| {
        Refusal::new("there is no program \"postgres\" on the PATH of this image", BASE)
    })?;
    let mut server = Command::new(&program);
    server.args(arguments);
    if is_server(arguments) {
        let libraries = preloaded(&program, arguments, &variables);
        let ours = ours(Path::new(rclone::CONFIG), libraries.as_deref());
        for (name, value) in ours.into_iter().chain(given) {
            server.arg("-c").arg(format!("{name}={value}"));
        }
        if let Some(data) = variables.get("PGDATA").map(PathBuf::from)
            && let Err(error) = link_logs(&data, Path::new(LOGS))
        {
            eprintln!("nrt-backup: what backups print is not kept in \"{LOGS}\": {error}");
        }
    }
    server.env_clear().envs(variables.all()).env("PATH", path);
    Err(failed_to_run(&program, &server.exec()))
}

/// Whether the arguments start a server, and not one of the other things that the program does.
fn is_server(arguments: &[OsString]) -> bool {
    let first = arguments.first().map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
    let others = ["--single", "--boot", "--check", "--describe-config", "--help", "--version"];
    !others.iter().any(|it| first == *it)
        && !arguments.iter().any(|it| ["-C", "-V", "-?"].iter().any(|known| it == known))
}

/// The libraries that the server would preload without us; `None` if it has no configuration that
/// can be read, of which it will tell by itself.
fn preloaded(program: &Path, arguments: &[OsString], variables: &Variables) -> Option<String> {
    let mut asked = Command::new(program);
    asked.args(arguments).args(["-C", PRELOAD]);
    asked.env_clear().envs(variables.all()).stdin(Stdio::null()).stderr(Stdio::null());
    let output = asked.output().ok().filter(|it| it.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// What every container of the image sets.
fn ours(config: &Path, libraries: Option<&str>) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    let libraries = libraries.unwrap_or_default();
    let is_there = libraries.split(',').any(|it| {
        let name = it.trim().trim_matches('"');
        Path::new(name).file_stem().is_some_and(|stem| stem == LIBRARY)
    });
    if !is_there {
        let separator = if libraries.is_empty() { "" } else { "," };
        settings.push((PRELOAD.to_string(), format!("{libraries}{separator}{LIBRARY}")));
    }
    settings.push((REPOSITORY.name().to_string(), super::REPOSITORY.to_string()));
    if config.exists() {
        settings.push((RCLONE_CONFIG.name().to_string(), config.display().to_string()));
    }
    settings
}

/// The settings, as the entrypoint hands them over.
pub(super) fn handed_over(settings: &[(&str, &str)]) -> (&'static str, String) {
    (SETTINGS, serde_json::json!(settings).to_string())
}

/// Has what children print kept in a volume, where it outlives the container.
fn link_logs(data: &Path, logs: &Path) -> io::Result<()> {
    let state = data.join(layout::STATE_DIRECTORY);
    let link = state.join(layout::LOG);
    if fs::read_link(&link).is_ok_and(|it| it == logs) {
        return Ok(());
    }
    DirBuilder::new().mode(0o700).recursive(true).create(&state)?;
    match fs::symlink_metadata(&link) {
        Ok(found) if found.is_dir() => {
            for entry in fs::read_dir(&link)? {
                let entry = entry?;
                // To another file system.
                fs::copy(entry.path(), logs.join(entry.file_name()))?;
            }
            fs::remove_dir_all(&link)?;
        }
        Ok(_) => fs::remove_file(&link)?,
        Err(_) => {}
    }
    symlink(logs, &link)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn only_a_server_gets_settings() {
        assert!(is_server(&words(&[])));
        assert!(is_server(&words(&["-c", "work_mem=1MB"])));
        for other in [&["--single", "postgres"][..], &["--version"], &["-C", "port"], &["-V"]] {
            assert!(!is_server(&words(other)), "{other:?}");
        }
    }

    #[test]
    fn the_library_is_added_to_those_of_the_operator() {
        let preload = |libraries| {
            let settings = ours(Path::new("/nowhere"), libraries);
            settings.into_iter().find(|(name, _)| name == PRELOAD).map(|(_, value)| value)
        };
        assert_eq!(preload(None).as_deref(), Some("nrt_backup"));
        assert_eq!(preload(Some("")).as_deref(), Some("nrt_backup"));
        let both = preload(Some("pg_stat_statements, auto_explain"));
        assert_eq!(both.as_deref(), Some("pg_stat_statements, auto_explain,nrt_backup"));
        assert_eq!(preload(Some("auto_explain, nrt_backup")), None);
        assert_eq!(preload(Some("\"$libdir/nrt_backup\"")), None);
    }

    #[test]
    fn what_was_printed_before_is_kept() {
        let root = tempfile::tempdir().expect("a directory");
        let (data, logs) = (root.path().join("data"), root.path().join("logs"));
        let log = data.join("nrt_backup/log");
        fs::create_dir_all(&log).expect("made");
        fs::create_dir(&logs).expect("made");
        fs::write(log.join("start.log"), "words").expect("written");
        for _ in 0..2 {
            link_logs(&data, &logs).expect("linked");
            assert_eq!(fs::read_link(&log).expect("a link"), logs);
            assert_eq!(fs::read_to_string(log.join("start.log")).expect("kept"), "words");
        }
    }
}

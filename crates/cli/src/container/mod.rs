//! Makes a container of the image a protected server, or the one that was lost.
//!
//! ```text
//! nrt-backup entrypoint ──► checks every variable            nothing is touched up to here
//!   rclone.conf, directories, RECOVERY_MODE: nrt-backup restore, as the server's user
//!   exec docker-entrypoint.sh                                 the official image's own
//!     its initialisation, with the real programs
//!     exec postgres ──► found first on the PATH: the shim     no secret stays in its environment
//!       exec postgres -c shared_preload_libraries=nrt_backup -c nrt_backup.stanza=..
//! ```
//!
//! The official entrypoint is called, not copied: what it knows of `POSTGRES_*`, of `*_FILE` and of
//! `/docker-entrypoint-initdb.d` goes on working. The server that it starts for its initialisation
//! does not come by the shim, and so takes no backup.

mod directories;
mod rclone;
mod recovery;
mod shim;
mod variables;

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nrt_core::restore::Refusal;
use nrt_core::words;

pub(crate) use rclone::CONFIG as RCLONE_CONFIG;
pub(crate) use shim::{is_shim, run as shim};

use directories::User;
use recovery::Recovery;
use variables::Variables;

/// The official image's entrypoint.
const OFFICIAL: &str = "/usr/local/bin/docker-entrypoint.sh";
/// Where the link `postgres` to this program is.
const SHIM: &str = "/usr/local/lib/nrt-backup";
/// The pgBackRest repository.
const REPOSITORY: &str = "/backup/local";
/// What children of the server print.
const LOGS: &str = "/backup/logs";

/// What the image's tables of variables promise cannot be done.
const BAD_VALUE: u8 = 2;
/// What was asked for failed.
const FAILED: u8 = 1;

/// Why the container ends.
struct End {
    code: u8,
    /// `None` if everything was said already.
    why: Option<Refusal>,
}

impl End {
    fn bad_value(why: Refusal) -> End {
        End { code: BAD_VALUE, why: Some(why) }
    }

    fn failed(why: Refusal) -> End {
        End { code: FAILED, why: Some(why) }
    }
}

/// Runs the container's command.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    let arguments = if arguments.is_empty() { &["postgres".into()] } else { arguments };
    let started = if is_server(arguments) { server(arguments) } else { Err(pass_on(arguments)) };
    let Err(end) = started;
    if let Some(why) = &end.why {
        eprintln!("nrt-backup: {}", one_line(why));
    }
    ExitCode::from(end.code)
}

/// Whether the arguments start the server, as the official entrypoint sees it.
fn is_server(arguments: &[OsString]) -> bool {
    let is_option = |it: &OsString| it.to_string_lossy().starts_with('-');
    let asks = |it: &OsString| {
        ["--help", "-?", "--version", "-V", "--describe-config"].iter().any(|known| it == known)
    };
    let first = arguments.first();
    first.is_some_and(|it| it == "postgres" || is_option(it)) && !arguments.iter().any(asks)
}

/// Runs anything else in the server's place. Returns only if that fails.
fn pass_on(arguments: &[OsString]) -> End {
    let mut official = Command::new(OFFICIAL);
    End::failed(failed_to_run(Path::new(OFFICIAL), &official.args(arguments).exec()))
}

/// Prepares everything and becomes the server. Returns only if that fails.
fn server(arguments: &[OsString]) -> Result<std::convert::Infallible, End> {
    let mut variables = Variables::of_process().map_err(End::bad_value)?;
    let data = PathBuf::from(variables.get("PGDATA").unwrap_or("/var/lib/postgresql/data"));
    // Everything is looked at before anything is done.
    let settings = shim::handed_over(&variables.settings().map_err(End::bad_value)?);
    let config = rclone::given(&variables).map_err(End::bad_value)?;
    let recovery = Recovery::asked(&variables).map_err(End::bad_value)?;
    if recovery.is_none() {
        needs_password(&variables, &data).map_err(End::bad_value)?;
    }
    let user = User::find().map_err(End::failed)?;
    if let Some(recovery) = &recovery {
        recovery.check(&data).map_err(End::bad_value)?;
    }

    for directory in [REPOSITORY, LOGS, rclone::HOME] {
        user.make(Path::new(directory)).map_err(End::failed)?;
    }
    rclone::keep(config.as_deref(), &user).map_err(End::failed)?;
    variables.forget_remote();
    if config.is_none() {
        eprintln!(
            "nrt-backup: no rclone configuration is given: backups stay in \"{REPOSITORY}\" (set \
             RCLONE_CONF_BASE64, or mount {})",
            rclone::MOUNTED[0]
        );
    }
    if let Some(recovery) = recovery {
        recovery.run(&variables, &data, &user, config.is_some())?;
    }
    if data.join("PG_VERSION").exists() {
        // Only a new cluster needs it.
        variables.forget_password();
    }

    let mut path = OsString::from(SHIM);
    path.push(":");
    path.push(variables.get("PATH").unwrap_or("/usr/local/bin:/usr/bin:/bin"));
    let mut official = Command::new(OFFICIAL);
    official.args(arguments).env_clear().envs(variables.all());
    official.env("PATH", path).env(settings.0, settings.1);
    Err(End::failed(failed_to_run(Path::new(OFFICIAL), &official.exec())))
}

/// What is said where something is missing that every such image has.
const BASE: &str = "The image is to be built from the official image of PostgreSQL.";

fn failed_to_run(program: &Path, error: &std::io::Error) -> Refusal {
    Refusal::new(format!("could not run \"{}\": {error}", program.display()), BASE)
}

/// The official entrypoint says the same, in twelve lines, and after directories were made.
fn needs_password(variables: &Variables, data: &Path) -> Result<(), Refusal> {
    let is_given = ["POSTGRES_PASSWORD", "POSTGRES_PASSWORD_FILE"]
        .iter()
        .any(|name| variables.get(name).is_some());
    let trusts = variables.get("POSTGRES_HOST_AUTH_METHOD") == Some("trust");
    if is_given || trusts || data.join("PG_VERSION").exists() {
        return Ok(());
    }
    Err(Refusal::new(
        "POSTGRES_PASSWORD is not set, and a new cluster needs one",
        "Set POSTGRES_PASSWORD, or POSTGRES_PASSWORD_FILE to the path of a file that holds it.",
    ))
}

/// A refusal in one line, as logs are read.
fn one_line(refusal: &Refusal) -> String {
    let text = format!("{}. HINT: {}", refusal.message.trim_end_matches('.'), refusal.hint);
    let text = if refusal.hint.is_empty() { refusal.message.clone() } else { text };
    words::one_line(&text)
}

/// The first program of this name on a PATH that is not this one.
fn real_program(name: &str, path: &OsStr) -> Option<PathBuf> {
    let own = std::env::current_exe().ok();
    std::env::split_paths(path).map(|directory| directory.join(name)).find(|program| {
        program.is_file() && program.canonicalize().ok().as_deref() != own.as_deref()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn only_the_server_is_prepared() {
        for server in [&["postgres"][..], &["-c", "x=y"], &["postgres", "-c", "work_mem=1MB"]] {
            assert!(is_server(&words(server)), "{server:?}");
        }
        for other in [&["bash"][..], &["nrt-backup", "plan"], &["postgres", "--help"], &["-V"]] {
            assert!(!is_server(&words(other)), "{other:?}");
        }
    }

    #[test]
    fn a_new_cluster_needs_a_password_and_another_does_not() {
        let data = tempfile::tempdir().expect("a directory");
        let of = |given: &[(&str, &str)]| {
            let given = given.iter().map(|(name, value)| (name.to_string(), value.to_string()));
            needs_password(&Variables::of(given), data.path())
        };
        assert!(of(&[]).is_err());
        assert!(of(&[("POSTGRES_PASSWORD", "")]).is_err());
        assert!(of(&[("POSTGRES_PASSWORD", "x")]).is_ok());
        assert!(of(&[("POSTGRES_PASSWORD_FILE", "/run/secrets/p")]).is_ok());
        assert!(of(&[("POSTGRES_HOST_AUTH_METHOD", "trust")]).is_ok());
        assert!(of(&[("POSTGRES_HOST_AUTH_METHOD", "md5")]).is_err());
        std::fs::write(data.path().join("PG_VERSION"), "17\n").expect("written");
        assert!(of(&[]).is_ok());
    }

    #[test]
    fn a_refusal_is_one_line() {
        let refusal = Refusal::new("X is \"a\nb\": no", "Do\n  this.");
        assert_eq!(one_line(&refusal), "X is \"a b\": no. HINT: Do this.");
        assert_eq!(one_line(&Refusal::new("no", "")), "no");
    }
}

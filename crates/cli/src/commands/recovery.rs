//! Looks at what a recovery would come from and lead to, and touches nothing.

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use chrono::Utc;
use nrt_core::options::truth;
use nrt_core::restore::Refusal;
use nrt_core::restore::plan::{Overview, windows};
use nrt_core::restore::target::{Target, written};
use serde_json::{Value, json};

use super::answer::{Answer, directory, print};
use super::server::{self, Server};
use super::source::{From, To};
use super::zone::zone;
use nrt_remote::Address;
use nrt_restore::{self as restore, Existing, Kind, Place, Request, Start, Work};

/// Looks at what a recovery would come from and lead to, and touches nothing.
///
/// No server and no cluster need be there: rclone's configuration is enough. Without one, the remote
/// of the server in the data directory is meant. The environment variables are those that start a
/// container in recovery mode.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Shows what a recovery would use: the remote, the target as it is understood, the action.
    ///
    /// No secrets. The remote is not asked. Exit code: 0, or 1 if something of it is wrong.
    ShowConfig(Asked),
    /// Lists the backups that the remote holds, and what can be reached with them.
    ///
    /// Exit code: 0, or 1 if it holds none or cannot be read.
    ListBackups(Asked),
    /// Reaches the remote, and says in a few lines what is there.
    ///
    /// Exit code: 0 if something there can be restored, 1 if not.
    TestConnection(Asked),
    /// Checks everything that a recovery checks before it begins: the remote, the target, every
    /// file that the backup needs, PostgreSQL's programs, the data directory.
    ///
    /// Exit code: 0 if it is ready, 1 if not.
    #[command(name = "prepare", visible_alias = "prepare-recovery")]
    Prepare(Asked),
}

#[derive(Debug, clap::Args)]
struct Asked {
    /// The data directory: the one to restore into, or that of a server whose backups are meant.
    #[arg(short = 'D', long = "pgdata", env = "PGDATA", value_name = "DIRECTORY")]
    data: Option<PathBuf>,
    /// Another cluster in the data directory would be moved aside: RECOVERY_REPLACE=true.
    #[arg(long)]
    replace: bool,
    /// For programs.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    to: To,
    #[command(flatten)]
    from: From,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let (asked, answer): (&Asked, fn(&Asked, &Path) -> Answer) = match &arguments.command {
        Command::ShowConfig(asked) => (asked, show_config),
        Command::ListBackups(asked) => (asked, list_backups),
        Command::TestConnection(asked) => (asked, test_connection),
        Command::Prepare(asked) => (asked, prepare),
    };
    let is_prepared = matches!(arguments.command, Command::Prepare(_));
    let begin = if is_prepared { "not ready: " } else { "" };
    print(answered(asked, answer), asked.json, begin)
}

fn answered(asked: &Asked, answer: fn(&Asked, &Path) -> Answer) -> Answer {
    // What is said on the command line, only root may be able to read.
    if let Some(data) = asked.data.as_ref().filter(|_| !asked.from.is_said()) {
        server::go_on_as_owner(data).map_err(restore::told)?;
    }
    let directory = directory("nrt-recovery-")?;
    answer(asked, directory.path())
}

impl Asked {
    fn data(&self) -> Result<Option<PathBuf>, Refusal> {
        let data = self.data.as_ref().filter(|it| !it.as_os_str().is_empty());
        data.map(|data| restore::whole(data)).transpose()
    }

    /// Where the backups are.
    fn place(&self, work: &Work) -> Result<Place, Refusal> {
        self.from.remote_place(self.data()?.as_deref(), work)
    }

    /// Reads what is there.
    fn found(&self, directory: &Path) -> Result<Found, Refusal> {
        let work = Work::make(directory).map_err(restore::told)?;
        let place = self.place(&work)?;
        let into = self.data()?.unwrap_or_else(|| directory.join("data"));
        let stanza = self.from.stanza.as_deref().filter(|it| !it.is_empty());
        let (catalog, owner) = restore::read_catalog(&place, stanza, &into, &work, None)?;
        let windows = windows(&catalog);
        let overview = Overview::new(&catalog, &windows);
        let owner = owner.map(|it| {
            let at = written(it.heartbeat, zone());
            format!("{}, on timeline {}, last heard of at {at}", it.host, it.timeline)
        });
        Ok(Found { overview, owner })
    }
}

/// What a place holds.
struct Found {
    overview: Overview,
    owner: Option<String>,
}

fn show_config(asked: &Asked, directory: &Path) -> Answer {
    let work = Work::make(directory).map_err(restore::told)?;
    let target = asked.to.target(Utc::now())?;
    let place = asked.place(&work)?;
    let mut rows: Vec<(&str, Value)> = Vec::new();
    match &place.kind {
        Kind::Remote { rclone, config, name, path, cluster, .. } => {
            let address = Address::find(rclone, config, name.as_deref(), path, cluster)?;
            // What was decoded is gone when this ends.
            let given = if config.starts_with(&*work.path().to_string_lossy()) {
                "RCLONE_CONF_BASE64"
            } else {
                config
            };
            rows.push(("rclone_config", json!(given)));
            rows.push(("remote", json!(address.root)));
            rows.push(("path", json!(path)));
            rows.push(("cluster", json!(cluster)));
        }
        Kind::Directory(path) => rows.push(("repository", json!(path))),
        Kind::Own => rows.push(("pgbackrest_config", json!(place.own_config))),
    }
    let stanza = asked.from.stanza.as_ref().filter(|it| !it.is_empty());
    rows.push(("stanza", stanza.map_or(json!("the only one there"), |it| json!(it))));
    rows.push(("data_directory", json!(asked.data()?)));
    rows.push(("target", json!(target.words(zone()))));
    rows.push(("action", json!(target.action)));
    rows.push(("timeline", json!(target.timeline)));
    rows.push(("inclusive", json!(target.inclusive)));
    for variable in ["RECOVERY_MODE", "RECOVERY_REPLACE"] {
        rows.push((variable, json!(env::var(variable).ok().filter(|it| !it.is_empty()))));
    }
    let text = |(name, value): &(&str, Value)| {
        let value = match value {
            Value::Null => "not set".to_string(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        format!("{name:<18} {value}\n")
    };
    let shown = rows.iter().map(text).collect();
    let Target { point, .. } = target;
    rows.push(("point", json!(point)));
    Ok((shown, rows.into_iter().map(|(name, value)| (name.to_string(), value)).collect()))
}

fn list_backups(asked: &Asked, directory: &Path) -> Answer {
    let Found { overview, .. } = asked.found(directory)?;
    Ok((overview.text(zone()), json!(overview)))
}

fn test_connection(asked: &Asked, directory: &Path) -> Answer {
    let Found { overview, owner } = asked.found(directory)?;
    let value = json!({
        "source": overview.source,
        "owner": owner,
        "backups": overview.backups.len(),
        "newest_backup": overview.backups.last(),
        "reaches": overview.windows.last(),
        "complete_until": overview.complete_until,
    });
    Ok((reached(&overview, owner.as_deref()), value))
}

fn reached(overview: &Overview, owner: Option<&str>) -> String {
    let mut lines = vec![format!("\"{}\" is reached", overview.source)];
    lines.extend(owner.map(|owner| format!("owner      {owner}")));
    let newest = overview.backups.last().map_or(String::new(), |it| {
        format!(", the newest one is {}, ended at {}", it.label, written(it.stop_time, zone()))
    });
    lines.push(format!("backups    {}{newest}", overview.backups.len()));
    lines.push(match overview.windows.last() {
        Some(window) => {
            format!("WAL        reaches {} on timeline {}", window.to_lsn, window.timeline)
        }
        None => "WAL        no backup has the WAL that it needs".to_string(),
    });
    if let Some(until) = overview.complete_until {
        let until = written(until, zone());
        lines.push(format!("complete   all commits until {until}, and later ones in that WAL"));
    }
    lines.join("\n") + "\n"
}

fn prepare(asked: &Asked, directory: &Path) -> Answer {
    let target = asked.to.target(Utc::now())?;
    let work = Work::make(directory).map_err(restore::told)?;
    let place = asked.place(&work)?;
    let data = asked.data()?;
    let is_running = data.clone().is_some_and(|data| Server::at(data).is_running());
    // A recovery into the place of a server that runs is for later, or for elsewhere.
    let into = data.clone().filter(|_| !is_running).unwrap_or_else(|| directory.join("data"));
    let request = Request {
        place,
        stanza: asked.from.stanza.clone().filter(|it| !it.is_empty()),
        target,
        existing: if asked.replace || is_true("RECOVERY_REPLACE")? {
            Existing::Replace
        } else {
            Existing::Refuse
        },
        data: into,
        work: Some(directory.to_path_buf()),
        config_file: None,
        tablespaces: Vec::new(),
        tablespaces_below: is_running.then(|| directory.join("tablespaces")),
        databases: Vec::new(),
        bindir: asked.from.bindir.clone(),
        processes: 1,
        start: Start::Recover,
        is_copy: None,
        settings: Vec::new(),
        repository: None,
        original: None,
        rates: data.as_deref().and_then(restore::last_phases),
        is_quiet: true,
        ignore_space: false,
        only_configuration: None,
    };
    let plan = restore::prepare(&request)?;
    let mut text = plan.text(zone());
    if let Some(data) = data.as_ref().filter(|_| is_running) {
        text += &format!(
            "note         a server runs in \"{}\": a restore to there needs it stopped\n",
            data.display()
        );
    }
    text += "ready\n";
    Ok((text, json!({ "ready": true, "server_is_running": is_running, "plan": plan })))
}

fn is_true(variable: &str) -> Result<bool, Refusal> {
    let value = env::var(variable).unwrap_or_default();
    if value.trim().is_empty() {
        return Ok(false);
    }
    truth(&value)
        .ok_or_else(|| Refusal::new(format!("{variable} is \"{value}\""), "Write true or false."))
}

//! The arguments that say where a restore comes from, and what it goes back to.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use nrt_core::encoded;
use nrt_core::layout;
use nrt_core::options::{truth, without_end};
use nrt_core::restore::Refusal;
use nrt_core::restore::target::{Asked, Target};

use super::server;
use super::zone;
use crate::container;
use nrt_restore::{Kind, Place, Work, unusable, whole};

/// The path on a remote below which clusters are kept, unless another one is named.
const REMOTE_PATH: &str = "postgres-backups";

/// Where the backups are.
///
/// Without any of these: the remote or the repository of the server in the data directory, as it
/// was configured last.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Where the backups are")]
pub(crate) struct From {
    /// rclone's configuration file; RCLONE_CONF_BASE64 in the environment is one, too.
    #[arg(long, value_name = "FILE", env = "RCLONE_CONFIG")]
    rclone_config: Option<PathBuf>,
    /// A remote, as remote:path/cluster: short for --remote-name, --remote-path and --name.
    #[arg(long, value_name = "REMOTE:PATH", conflicts_with_all = ["remote_name", "remote_path", "name"])]
    remote: Option<String>,
    /// The remote in rclone's configuration; the first one there by default.
    #[arg(long, value_name = "NAME", env = "RCLONE_REMOTE_NAME")]
    remote_name: Option<String>,
    /// The path on the remote below which clusters are kept.
    #[arg(
        long,
        value_name = "PATH",
        env = "RCLONE_REMOTE_PATH",
        default_value = REMOTE_PATH
    )]
    remote_path: String,
    /// The cluster's directory below that; the stanza's name by default.
    #[arg(long, value_name = "NAME", env = "POSTGRES_DB")]
    name: Option<String>,
    /// A pgBackRest repository on this machine, instead of a remote.
    #[arg(long, value_name = "DIRECTORY")]
    repository: Option<PathBuf>,
    /// Your own pgBackRest configuration: for an encrypted repository, or one that is elsewhere.
    #[arg(long, value_name = "FILE")]
    pgbackrest_config: Option<PathBuf>,
    /// The stanza, if there are several.
    #[arg(long, value_name = "NAME", env = "PGBACKREST_STANZA")]
    pub(crate) stanza: Option<String>,
    /// The directory of PostgreSQL's programs.
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) bindir: Option<PathBuf>,
    /// The pgBackRest program.
    #[arg(long, value_name = "PROGRAM", default_value = "pgbackrest")]
    pgbackrest: PathBuf,
    /// The rclone program.
    #[arg(long, value_name = "PROGRAM", default_value = "rclone")]
    rclone: String,
    /// Files that are fetched at the same time.
    #[arg(long, value_name = "NUMBER", default_value_t = 8)]
    transfers: u32,
    /// Limit in bytes per second, as rclone writes it.
    #[arg(long, value_name = "RATE")]
    bandwidth_limit: Option<String>,
}

impl From {
    /// Whether it says where the backups are, instead of the server in a data directory.
    pub(crate) fn is_said(&self) -> bool {
        let has_value = |it: &OsStr| !it.is_empty();
        let paths = [&self.rclone_config, &self.repository, &self.pgbackrest_config];
        paths.into_iter().flatten().any(|it| has_value(it.as_os_str()))
            || env::var_os(encoded::VARIABLE).is_some_and(|it| has_value(&it))
    }

    /// The same as [`From::place`], but the remote of a server that ships to one.
    pub(crate) fn remote_place(&self, data: Option<&Path>, work: &Work) -> Result<Place, Refusal> {
        let state = data.map(|data| data.join(layout::STATE_DIRECTORY));
        let present: Option<layout::Present> =
            state.filter(|_| !self.is_said()).and_then(|it| server::read(&it, layout::PRESENT));
        match present.and_then(|it| it.remote) {
            Some(plan) => Ok(Place::of_plan(&plan, &self.pgbackrest)),
            None => self.place(data, work),
        }
    }

    /// The place that is meant. A configuration from the environment is decoded into `work`.
    pub(crate) fn place(&self, data: Option<&Path>, work: &Work) -> Result<Place, Refusal> {
        let place = |kind| Place {
            kind,
            own_config: self.pgbackrest_config.clone(),
            pgbackrest: self.pgbackrest.clone(),
            stanza: None,
        };
        if let Some(repository) = &self.repository {
            return Ok(place(Kind::Directory(whole(repository)?)));
        }
        if let Some(config) = self.rclone_config(work)? {
            return Ok(place(self.remote(&config)?));
        }
        if let Some(place) = data.and_then(Place::of_server) {
            return Ok(place);
        }
        if self.pgbackrest_config.is_some() {
            return Ok(place(Kind::Own));
        }
        // What a container was given as a file, before there is a server that knows more.
        if Path::new(container::RCLONE_CONFIG).exists() {
            return Ok(place(self.remote(container::RCLONE_CONFIG)?));
        }
        Err(Refusal::new(
            "it is not said where the backups are",
            "Name rclone's configuration (--rclone-config FILE, or RCLONE_CONF_BASE64 in the \
             environment) or a repository on this machine (--repository DIRECTORY).",
        ))
    }

    fn rclone_config(&self, work: &Work) -> Result<Option<String>, Refusal> {
        let path = self.rclone_config.as_ref();
        if let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) {
            return Ok(Some(whole(path)?.to_string_lossy().into_owned()));
        }
        let Some(encoded) = env::var("RCLONE_CONF_BASE64").ok().filter(|it| !it.is_empty()) else {
            return Ok(None);
        };
        let text = encoded::decode(&encoded)?;
        let path = work.path().join(layout::RCLONE_CONFIG);
        let _ = fs::remove_file(&path);
        let written = fs::File::options()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|error| unusable(&path, &error))?;
        Ok(Some(path.to_string_lossy().into_owned()))
    }

    fn remote(&self, config: &str) -> Result<Kind, Refusal> {
        // A variable of the environment without a value is none.
        let given = |it: &Option<String>| it.clone().filter(|it| !it.is_empty());
        let cluster =
            given(&self.name).or_else(|| given(&self.stanza)).unwrap_or_else(|| "main".to_string());
        let (name, path, cluster) = match &self.remote {
            Some(remote) => {
                let (name, below) = remote.split_once(':').ok_or_else(|| {
                    Refusal::new(
                        format!("\"{remote}\" is no remote"),
                        "Write it as remote:path/cluster, with a remote of rclone's configuration.",
                    )
                })?;
                let below = without_end(below);
                let (path, cluster) = match below.rsplit_once('/') {
                    Some(("", cluster)) => ("/", cluster),
                    Some(parts) => parts,
                    None => ("", below),
                };
                (Some(name.to_string()), path.to_string(), cluster.to_string())
            }
            None => {
                let path = match env::var("RCLONE_REMOTE_PATH") {
                    Ok(empty) if empty.is_empty() && self.remote_path.is_empty() => REMOTE_PATH,
                    _ => without_end(&self.remote_path),
                };
                (given(&self.remote_name), path.to_string(), cluster)
            }
        };
        Ok(Kind::Remote {
            rclone: self.rclone.clone(),
            config: config.to_string(),
            name,
            path,
            cluster,
            transfers: self.transfers.max(1),
            bandwidth_limit: self.bandwidth_limit.clone(),
        })
    }
}

/// What to get back to; without any of these, the newest that there is.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "What to get back to")]
pub(crate) struct To {
    /// The newest that there is.
    #[arg(long)]
    latest: bool,
    /// An instant, such as '2026-11-22 14:30:00+08'; without a zone, in that of TZ or of the machine.
    #[arg(long, value_name = "TIME", env = "RECOVERY_TARGET_TIME")]
    target_time: Option<String>,
    /// A position in the WAL, such as 16/B374D848.
    #[arg(long, value_name = "LSN", env = "RECOVERY_TARGET_LSN")]
    target_lsn: Option<String>,
    /// A transaction.
    #[arg(long, value_name = "XID", env = "RECOVERY_TARGET_XID")]
    target_xid: Option<String>,
    /// A restore point.
    #[arg(long, value_name = "NAME", env = "RECOVERY_TARGET_NAME")]
    target_name: Option<String>,
    /// As soon as the backup is consistent.
    #[arg(long)]
    immediate: bool,
    /// The timeline to follow: latest, current or a number.
    #[arg(long = "target-timeline", alias = "timeline", value_name = "TIMELINE")]
    timeline: Option<String>,
    /// Stop right before the target instead of right after it.
    #[arg(long = "target-exclusive", alias = "exclusive")]
    exclusive: bool,
    /// What happens then: promote, pause or shutdown.
    #[arg(
        long = "target-action",
        alias = "action",
        value_name = "ACTION",
        env = "RECOVERY_TARGET_ACTION"
    )]
    action: Option<String>,
    /// The backup to begin with, instead of the best one.
    #[arg(long, value_name = "LABEL")]
    backup: Option<String>,
    /// Take what can be reached, also if WAL is missing behind that.
    #[arg(long)]
    up_to_gap: bool,
}

impl To {
    /// Reads it.
    pub(crate) fn target(&self, now: DateTime<Utc>) -> Result<Target, Refusal> {
        let asked = Asked {
            latest: self.latest,
            immediate: self.immediate,
            time: self.target_time.clone(),
            xid: self.target_xid.clone(),
            name: self.target_name.clone(),
            lsn: self.target_lsn.clone(),
            timeline: self.timeline.clone(),
            exclusive: self.exclusive || is_false(env::var("RECOVERY_TARGET_INCLUSIVE").ok())?,
            action: self.action.clone(),
            backup: self.backup.clone(),
            up_to_gap: self.up_to_gap,
        };
        asked.target(&zone::given(), now)
    }

    /// Whether anything was said.
    pub(crate) fn is_given(&self) -> bool {
        let texts = [
            &self.target_time,
            &self.target_lsn,
            &self.target_xid,
            &self.target_name,
            &self.timeline,
            &self.backup,
        ];
        self.latest
            || self.immediate
            || self.up_to_gap
            || texts.iter().any(|it| it.as_ref().is_some_and(|text| !text.is_empty()))
    }
}

fn is_false(value: Option<String>) -> Result<bool, Refusal> {
    let value = value.filter(|it| !it.trim().is_empty());
    match value.as_deref().map(|it| (it, truth(it))) {
        None => Ok(false),
        Some((_, Some(is_true))) => Ok(!is_true),
        Some((value, None)) => Err(Refusal::new(
            format!("RECOVERY_TARGET_INCLUSIVE is \"{value}\""),
            "Write true or false.",
        )),
    }
}

/// A refusal, as an operator reads it.
pub(crate) fn words(refusal: &Refusal) -> String {
    if refusal.hint.is_empty() {
        refusal.message.clone()
    } else {
        format!("{}\nHINT: {}", refusal.message, refusal.hint)
    }
}

//! Finds the server that a command is about, by its data directory.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nrt_core::layout;
use serde::de::DeserializeOwned;

/// The server that is meant.
#[derive(Debug, clap::Args)]
pub(crate) struct Server {
    /// The server's data directory.
    #[arg(short = 'D', long = "pgdata", env = "PGDATA", value_name = "DIRECTORY")]
    data: PathBuf,
}

impl Server {
    /// nrt_backup's directory in the data directory.
    ///
    /// # Errors
    ///
    /// If there is none, or it may not be read.
    pub(crate) fn state(&self) -> anyhow::Result<PathBuf> {
        let data = self.data.display();
        if !self.data.join("PG_VERSION").exists() {
            bail!(
                "\"{data}\" is not a data directory, or you may not read it\n\
                 HINT: Name the server's data directory with -D, and run this as the server's user."
            );
        }
        let state = self.data.join(layout::STATE_DIRECTORY);
        fs::read_dir(&state).with_context(|| {
            format!(
                "read \"{}\"\nHINT: nrt_backup makes it when it is preloaded: see \
                 shared_preload_libraries. Run this as the server's user",
                state.display()
            )
        })?;
        Ok(state)
    }

    /// Whether the server runs.
    pub(crate) fn is_running(&self) -> bool {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        let process = text.lines().next().and_then(|line| line.trim().parse::<u32>().ok());
        process.is_some_and(|process| Path::new(&format!("/proc/{process}")).exists())
    }
}

/// Reads a JSON file of the state directory; `None` if it is not there or holds something else.
pub(crate) fn read<T: DeserializeOwned>(state: &Path, name: &str) -> Option<T> {
    serde_json::from_slice(&fs::read(state.join(name)).ok()?).ok()
}

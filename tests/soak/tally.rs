//! Counts what a soak found, and logs what it did.

use std::fmt;
use std::time::Instant;

/// What was counted. Each figure of [`Tally::findings`] has to be 0.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    /// Faults that were made.
    pub(crate) faults: usize,
    /// Hosts that vanished, and were restored or not.
    pub(crate) vanished: usize,
    /// Commits that were acknowledged.
    pub(crate) acknowledged: usize,
    /// Commits that were acknowledged, lay above every claim, and are gone.
    pub(crate) unclaimed: usize,
    /// Acknowledged commits that a claim covered and that are gone.
    pub(crate) lost: usize,
    /// States that one `nrt-backup restore --latest` did not bring back.
    pub(crate) not_back: usize,
    /// Faults after which shipping did not go on by itself.
    pub(crate) stuck: usize,
    /// Statuses that named a later position than the restore reached.
    pub(crate) above: usize,
    /// Rows of an abandoned life in a restored server.
    pub(crate) mixed: usize,
    /// Productions that a clone kept from shipping.
    pub(crate) fenced: usize,
    /// Remotes that `nrt-backup check` finds to differ from the repository.
    pub(crate) different: usize,
    /// Worlds that ended before their last fault for another reason than one of these.
    pub(crate) unplayed: usize,
    /// Each finding in words, with how to repeat it.
    pub(crate) words: Vec<String>,
}

impl Tally {
    /// What has to be 0, and what it is.
    pub(crate) fn findings(&self) -> [(&'static str, usize); 8] {
        [
            ("acknowledged commits lost below the last claim", self.lost),
            ("states that one plain restore --latest does not bring back", self.not_back),
            ("faults after which shipping does not go on by itself", self.stuck),
            ("statuses above what the restore reached", self.above),
            ("rows of an abandoned life in a restored server", self.mixed),
            ("productions fenced by a clone", self.fenced),
            ("remotes that differ from their repository", self.different),
            ("worlds that could not be played to their end", self.unplayed),
        ]
    }

    /// Whether nothing was found.
    pub(crate) fn is_clean(&self) -> bool {
        self.findings().iter().all(|(_, count)| *count == 0)
    }

    /// Adds another world's figures.
    pub(crate) fn add(&mut self, other: Tally) {
        self.faults += other.faults;
        self.vanished += other.vanished;
        self.acknowledged += other.acknowledged;
        self.unclaimed += other.unclaimed;
        self.lost += other.lost;
        self.not_back += other.not_back;
        self.stuck += other.stuck;
        self.above += other.above;
        self.mixed += other.mixed;
        self.fenced += other.fenced;
        self.different += other.different;
        self.unplayed += other.unplayed;
        self.words.extend(other.words);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "{} faults, {} hosts vanished, {} commits acknowledged, {} of them gone above every claim",
            self.faults, self.vanished, self.acknowledged, self.unclaimed
        )?;
        for (what, count) in self.findings() {
            writeln!(out, "{count:>6}  {what}")?;
        }
        Ok(())
    }
}

/// Logs what happens in one world.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    name: String,
    begin: Instant,
}

impl Log {
    /// A log whose lines begin with this name.
    pub(crate) fn new(name: String) -> Log {
        Log { name, begin: Instant::now() }
    }

    /// Prints a line.
    pub(crate) fn line(&self, text: impl fmt::Display) {
        println!("[{} {:>6.1} s] {text}", self.name, self.begin.elapsed().as_secs_f64());
    }
}

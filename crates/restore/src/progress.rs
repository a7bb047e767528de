//! Shows how far a restore is: bars on a terminal, lines elsewhere.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use nrt_core::size::format_size;

/// How often a line is printed where there is no terminal.
const EVERY: Duration = Duration::from_secs(15);

/// How far one part of a restore is.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    name: &'static str,
    total: Option<u64>,
    is_terminal: bool,
    told: Instant,
    begin: Instant,
    is_quiet: bool,
}

impl Progress {
    /// Begins a part that moves so many bytes, if that is known.
    pub(crate) fn begin(name: &'static str, total: Option<u64>, is_quiet: bool) -> Progress {
        let is_terminal = stderr().is_terminal();
        let bar = match total {
            _ if is_quiet || !is_terminal => ProgressBar::hidden(),
            Some(total) => ProgressBar::new(total).with_style(
                ProgressStyle::with_template(
                    "{prefix:>8} [{bar:32}] {bytes:>10} of {total_bytes}, {bytes_per_sec}, {eta}",
                )
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("=> "),
            ),
            None => ProgressBar::new_spinner().with_style(
                ProgressStyle::with_template("{prefix:>8} {spinner} {bytes}")
                    .unwrap_or_else(|_| ProgressStyle::default_spinner()),
            ),
        };
        bar.set_prefix(name);
        let now = Instant::now();
        Progress { bar, name, total, is_terminal, told: now, begin: now, is_quiet }
    }

    /// So many bytes are done.
    pub(crate) fn at(&mut self, bytes: u64) {
        self.bar.set_position(bytes);
        if !self.is_terminal && !self.is_quiet && self.told.elapsed() >= EVERY {
            self.told = Instant::now();
            let of = self.total.map(|total| format!(" of {}", format_size(total)));
            let of = of.unwrap_or_default();
            eprintln!("{:>8}: {}{of}", self.name, format_size(bytes));
        }
    }

    /// Ends the part, which moved so many bytes, and tells how many seconds it took.
    pub(crate) fn end(self, bytes: u64) -> f64 {
        let rate = bytes as f64 / self.begin.elapsed().as_secs_f64().max(0.001);
        self.end_with(bytes, &format!("({}/s)", format_size(rate as u64)))
    }

    /// The same for a part that compared so many bytes with what was there, and moved only some.
    pub(crate) fn end_compared(self, bytes: u64) -> f64 {
        self.end_with(bytes, "(compared with what was there)")
    }

    fn end_with(self, bytes: u64, words: &str) -> f64 {
        let took = self.begin.elapsed().as_secs_f64();
        self.bar.finish_and_clear();
        if !self.is_quiet {
            eprintln!("{:>8}: {} in {took:.1} s {words}", self.name, format_size(bytes));
        }
        took
    }
}

//! Proves the promises: breaks everything at random instants, again and again, and counts what is
//! lost, what does not come back, and what was claimed and is not true.
//!
//! ```text
//! seed ─► Script ─► World: a server, its remote, clients ─► faults ─► the host vanishes ─► restore
//!                     │ Ledger: which commits were acknowledged, outside of the server
//!                     │ Watcher: what nrt.status claimed
//!                     └─► Tally: what of that is not so
//! ```
//!
//! A seed makes the same faults at the same times again. What the machine does between them is not
//! the same: a fault may have to be repeated to be seen again.

mod ledger;
mod machines;
mod random;
mod script;
mod tally;
mod watcher;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{available_parallelism, scope};
use std::time::{Instant, SystemTime};

use tally::{Log, Tally};
use world::Over;

/// Faults of a world, of which several make a long run: a remote and a history that grow without an
/// end would only make it slow.
const FAULTS_PER_WORLD: usize = 60;

const USAGE: &str = "\
usage: soak [--faults N] [--seed S] [--machines 1|2] [--jobs N]
--faults N    so many faults in all (60, or 5 with two machines); a host that vanishes is one
--seed S      repeats the faults of an earlier run; drawn from the clock by default
--machines 2  two machines and one remote: each fault is a clone, a snapshot that is put back, a
              failover, a standby that is promoted by mistake, or a rewind, and the host vanishes
              after each; as root
--jobs N      so many worlds at the same time (two for each core): they wait more than they work";

/// What was asked for.
struct Arguments {
    faults: usize,
    seed: u64,
    machines: usize,
    jobs: usize,
}

fn main() -> ExitCode {
    let Some(arguments) = arguments(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(64);
    };
    if arguments.machines > 1 && !nrt_tests::is_root() {
        eprintln!("soak: only root can mount the disks of two machines");
        return ExitCode::from(64);
    }
    println!(
        "soak: {} faults, seed {}, {} worlds at a time",
        arguments.faults, arguments.seed, arguments.jobs
    );
    let begin = Instant::now();
    let tally = run(&arguments);
    println!(
        "\nIt took {} s. To repeat it: ./dev soak {}",
        begin.elapsed().as_secs(),
        words(&arguments)
    );
    for found in &tally.words {
        println!("FOUND {found}");
    }
    print!("{tally}");
    if tally.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn words(arguments: &Arguments) -> String {
    let Arguments { faults, seed, machines, jobs } = arguments;
    format!("--faults {faults} --seed {seed} --machines {machines} --jobs {jobs}")
}

fn arguments(mut words: impl Iterator<Item = String>) -> Option<Arguments> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let jobs = 2 * available_parallelism().map_or(1, |it| it.get());
    let seed = now.as_secs() % 1_000_000;
    let mut faults = None;
    let mut arguments = Arguments { faults: 0, seed, machines: 1, jobs };
    while let Some(word) = words.next() {
        let value = words.next();
        let number = || value.as_ref()?.parse::<u64>().ok();
        match word.as_str() {
            "--faults" => faults = Some(usize::try_from(number()?).ok()?),
            "--machines" => arguments.machines = usize::try_from(number()?).ok()?,
            "--seed" => arguments.seed = number()?,
            "--jobs" => arguments.jobs = usize::try_from(number()?).ok()?.max(1),
            _ => return None,
        }
    }
    arguments.faults = faults.unwrap_or(if arguments.machines == 1 { 60 } else { 5 });
    (1..=2).contains(&arguments.machines).then_some(arguments)
}

/// Plays worlds, several at a time, until all faults are made. The n-th one has the n-th seed.
fn run(arguments: &Arguments) -> Tally {
    let share = arguments.faults.div_ceil(arguments.jobs).clamp(1, FAULTS_PER_WORLD);
    let worlds = arguments.faults.div_ceil(share);
    let next = AtomicUsize::new(0);
    let total = Mutex::new(Tally::default());
    scope(|scope| {
        for _ in 0..arguments.jobs.min(worlds) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    if number >= worlds {
                        return;
                    }
                    let faults = share.min(arguments.faults - number * share);
                    let seed = arguments.seed + number as u64;
                    let tally = world(seed, faults, arguments.machines);
                    total.lock().expect("no thread panics with it").add(tally);
                }
            });
        }
    });
    total.into_inner().expect("no thread panics with it")
}

/// Plays one world.
fn world(seed: u64, faults: usize, machines: usize) -> Tally {
    let log = Log::new(format!("seed {seed}"));
    let mut tally = Tally::default();
    let again =
        format!("./dev soak --faults {faults} --seed {seed} --machines {machines} --jobs 1");
    guarded(&mut tally, &log, |tally| {
        match machines {
            1 => world::play(seed, faults, &log, tally),
            _ => machines::play(seed, faults, &log, tally),
        }
        Ok(())
    });
    if !tally.is_clean() {
        log.line(format_args!("to repeat it: {again}"));
        tally.words.push(format!("... seed {seed}, to repeat it: {again}"));
    }
    log.line(format_args!("ended with {} faults, {} vanished", tally.faults, tally.vanished));
    tally
}

/// Runs a part of a world. A panic there is a world that could not be played.
pub(crate) fn guarded(
    tally: &mut Tally,
    log: &Log,
    part: impl FnOnce(&mut Tally) -> Result<(), Over>,
) {
    let outcome = catch_unwind(AssertUnwindSafe(|| part(tally)));
    if let Err(panic) = outcome {
        let words = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|it| it.to_string()))
            .unwrap_or_default();
        tally.unplayed += 1;
        log.line(format_args!("FOUND not played to its end: {words}"));
        tally.words.push(format!("not played to its end: {words}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_promises_names_what_is_counted() {
        let page = include_str!("../../docs/promises.md");
        let items = page.lines().filter_map(|line| line.strip_prefix("- "));
        let named: Vec<String> = items.map(|item| item.replace('`', "")).collect();
        for (what, _) in Tally::default().findings() {
            assert!(named.iter().any(|it| it == what), "{what}");
        }
        // Both languages say the same: as many headings, rows and items, in the same order.
        let shape = |page: &str| -> Vec<char> {
            let first = page.lines().filter_map(|line| line.chars().next());
            first.filter(|it| ['#', '|', '-'].contains(it)).collect()
        };
        assert_eq!(shape(page), shape(include_str!("../../docs/promises.zh-CN.md")));
    }
}

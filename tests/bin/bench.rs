//! Measures what the extension costs, and prints it beside the budgets.
//!
//! A missed budget is said in the table and is no failure of the run: how quick a machine is, and
//! what else it does, is not the extension's doing.

#[path = "bench_offsite.rs"]
mod offsite;
#[allow(dead_code, reason = "the tests use the rest of it")]
#[path = "../protected.rs"]
mod protected;
#[path = "bench_restore.rs"]
mod restore;

use std::fs;
use std::process::{Command, ExitCode, Stdio};
use std::thread::{available_parallelism, sleep};
use std::time::{Duration, Instant};

use nrt_tests::{Cluster, Installation, Shutdown, wait_until};

/// Longer than any backup here takes.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a tick of the times in /proc/PID/stat is, on every Linux of today.
const TICK: Duration = Duration::from_millis(10);
const MEBIBYTE: f64 = 1048576.0;
/// When ratios of pairs lie further apart than this, their median says nothing about per cents.
const NOISE: f64 = 0.15;

fn main() -> ExitCode {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let quick = words.iter().position(|word| word == "--quick").map(|place| words.remove(place));
    let effort = if quick.is_some() { QUICK } else { THOROUGH };
    if words.iter().any(|word| !MEASUREMENTS.iter().any(|(known, ..)| known == word)) {
        eprintln!(
            "usage: bench [--quick] [NAME..]\n\
             --quick  a few seconds for each measurement: shows that it works, proves nothing\n\
             NAME     only these of them:"
        );
        for (word, name, _) in MEASUREMENTS {
            eprintln!("         {word:<18} {name}");
        }
        return ExitCode::FAILURE;
    }
    print_conditions(&effort);
    let begin = Instant::now();
    let mut rows = Vec::new();
    for (word, name, measure) in MEASUREMENTS {
        if !words.is_empty() && !words.iter().any(|wanted| wanted == word) {
            continue;
        }
        eprintln!("measuring {name} ...");
        rows.extend(measure(&effort));
    }
    print_table(&rows);
    println!("\nIt took {} s. Load at the end: {}.", begin.elapsed().as_secs(), load_average());
    ExitCode::SUCCESS
}

/// How long to measure and how often.
struct Effort {
    name: &'static str,
    pairs: u32,
    run: u64,
    scale: u32,
    idle: Duration,
    triggers: u32,
    shutdowns: u32,
    losses: u32,
    cuts: u32,
    old_files: u32,
    changes: u32,
    restores: u32,
    restore_scale: u32,
    restore_load: u32,
    growth_run: u64,
    growth_scale: u32,
}

const THOROUGH: Effort = Effort {
    name: "thorough",
    // Many short ones: what else a machine does changes slowly.
    pairs: 25,
    run: 4,
    scale: 10,
    idle: Duration::from_secs(120),
    triggers: 12,
    shutdowns: 6,
    losses: 30,
    cuts: 100,
    old_files: 100_000,
    changes: 7,
    restores: 3,
    restore_scale: 140,
    restore_load: 20,
    // Several backups by growth, and the rests between them.
    growth_run: 900,
    growth_scale: 40,
};

const QUICK: Effort = Effort {
    name: "quick: shows that it works, proves nothing",
    pairs: 2,
    run: 2,
    scale: 2,
    idle: Duration::from_secs(5),
    triggers: 2,
    shutdowns: 1,
    losses: 3,
    cuts: 6,
    old_files: 2_000,
    changes: 2,
    restores: 1,
    restore_scale: 5,
    restore_load: 3,
    growth_run: 20,
    growth_scale: 5,
};

type Measure = fn(&Effort) -> Vec<Row>;

const MEASUREMENTS: [(&str, &str, Measure); 12] = [
    ("pgbench", "the throughput of pgbench", throughput),
    ("idle", "an idle server", idle),
    ("growth", "growth crossing the threshold", growth),
    ("growth-pgbench", "the throughput of pgbench with backups by growth", growth_throughput),
    ("shutdown", "shutdowns with a backup running", shutdowns),
    ("loss", "what is lost when the machine vanishes", offsite::loss),
    ("cut", "remotes that are cut off at any instant", offsite::cut),
    ("mirror", "a small change beside many old files", offsite::mirror),
    ("bytes", "the bytes that an incremental backup sends", offsite::bytes),
    ("shipping-pgbench", "the throughput of pgbench while shipping", offsite::throughput),
    ("shipping-cost", "what shipping itself costs", offsite::cost),
    ("restore", "a restore", restore::restore),
];

/// One line of the result.
struct Row {
    what: &'static str,
    measured: f64,
    unit: &'static str,
    budget: Budget,
    /// The spread and the conditions.
    how: String,
}

#[derive(Clone, Copy)]
enum Budget {
    AtLeast(f64),
    AtMost(f64),
    /// It is only told.
    Told,
}

impl Budget {
    fn is_kept(self, measured: f64) -> bool {
        match self {
            Budget::AtLeast(limit) => measured >= limit,
            Budget::AtMost(limit) => measured <= limit,
            Budget::Told => true,
        }
    }
}

// ------------------------------------------------------------------------------ the measurements

/// pgbench with the extension against pgBackRest archiving by itself, in turns.
fn throughput(effort: &Effort) -> Vec<Row> {
    let what = "pgbench with the extension / with plain pgBackRest archiving";
    let (ratio, how) = compare_throughput(effort, |cluster| cluster);
    vec![Row { what, measured: ratio, unit: "", budget: Budget::AtLeast(0.98), how }]
}

/// The transactions per second with the extension, set up in some way, for each without it.
fn compare_throughput(effort: &Effort, set_up: impl FnOnce(Cluster) -> Cluster) -> (f64, String) {
    let common = |cluster: Cluster| {
        cluster
            .setting("shared_buffers", "256MB")
            .setting("max_wal_size", "8GB")
            .setting("checkpoint_timeout", "1h")
            .setting("autovacuum", "off")
            // Nobody runs a server without it that deserves a backup.
            .setting("fsync", "on")
    };
    let with = set_up(common(Cluster::with_identity("bench-with")))
        .setting("nrt_backup.wal_growth_threshold", "1TB")
        .setting("nrt_backup.full_schedule", "off")
        .setting("nrt_backup.incremental_schedule", "off")
        .started();
    backed_up(&with);
    let plain = archived_by_pgbackrest(common(Cluster::with_identity("bench-plain")), &with);
    for cluster in [&with, &plain] {
        cluster.pgbench(&["--initialize", "--quiet", &format!("--scale={}", effort.scale)]);
    }
    // Nobody's first run is counted.
    run_pgbench(&with, effort.run.min(3), 0);
    run_pgbench(&plain, effort.run.min(3), 0);
    let mut pairs = Vec::new();
    for number in 0..effort.pairs {
        // Whoever comes second may find a warmer or a busier machine: they take turns.
        let run = |cluster| run_pgbench(cluster, effort.run, number);
        let pair = if number % 2 == 0 {
            let with = run(&with);
            (with, run(&plain))
        } else {
            let plain = run(&plain);
            (run(&with), plain)
        };
        eprintln!("  with {}, plain {}: {:.3}", pair.0, pair.1, pair.0.tps / pair.1.tps);
        pairs.push(pair);
    }
    let ratios = Spread::of(pairs.iter().map(|(with, plain)| with.tps / plain.tps));
    let tps = [
        Spread::of(pairs.iter().map(|(with, _)| with.tps)),
        Spread::of(pairs.iter().map(|(_, plain)| plain.tps)),
    ];
    // A server that falls behind puts off work that the other does.
    let waiting = [
        pairs.iter().map(|(with, _)| with.waiting).max().unwrap_or(0),
        pairs.iter().map(|(_, plain)| plain.waiting).max().unwrap_or(0),
    ];
    let noise = if ratios.largest - ratios.smallest > NOISE {
        ";\n    NOISY: the pairs differ by more than the budget is about, which proves nothing"
    } else {
        ""
    };
    let backups =
        with.value("SELECT count(*) FROM nrt.backup_history WHERE trigger = 'wal_growth'");
    assert_eq!(backups, "0", "no backup may run while pgbench does");
    let how = format!(
        "median of {} interleaved pairs of {} s, {ratios:.3}; transactions per second {:.0} and \
         {:.0};\n    at most {} and {} segments waited to be archived at a run's end; scale {}, \
         2 clients, prepared,\n    a checkpoint before each run, fsync on, zst, no backup \
         running{noise}",
        effort.pairs,
        effort.run,
        tps[0].median,
        tps[1].median,
        waiting[0],
        waiting[1],
        effort.scale
    );
    (ratios.median, how)
}

/// What the worker costs where nothing happens.
fn idle(effort: &Effort) -> Vec<Row> {
    let cluster = Cluster::with_identity("bench-idle").started();
    backed_up(&cluster);
    let worker = worker(&cluster);
    let (begin, before) = (Instant::now(), Times::of(worker));
    sleep(effort.idle);
    let (took, after) = (begin.elapsed().as_secs_f64(), Times::of(worker));
    let share = |before: Duration, after: Duration| (after - before).as_secs_f64() / took * 100.0;
    let how = format!("over {took:.0} s with all settings at their defaults");
    let alone = share(before.own, after.own);
    vec![
        Row {
            what: "CPU of the idle worker, of one core",
            measured: alone,
            unit: " %",
            budget: Budget::AtMost(0.1),
            how: how.clone(),
        },
        Row {
            what: "CPU of the idle worker and its children, of one core",
            measured: alone + share(before.children, after.children),
            unit: " %",
            budget: Budget::AtMost(0.1),
            how: format!("{how}; the look once a minute is in it"),
        },
        memory(&cluster, "right after the first backup"),
    ]
}

/// How long after crossing the threshold a backup starts, and what the worker holds after that.
fn growth(effort: &Effort) -> Vec<Row> {
    let interval = 2;
    let cluster = Cluster::with_identity("bench-growth")
        .setting("nrt_backup.wal_growth_threshold", "1MB")
        .setting("nrt_backup.wal_monitor_interval", &interval.to_string())
        .setting("nrt_backup.min_growth_interval", "0")
        .setting("nrt_backup.max_growth_share", "0")
        .setting("checkpoint_completion_target", "0")
        .setting("nrt_backup.full_schedule", "off")
        .setting("nrt_backup.incremental_schedule", "off")
        .setting("autovacuum", "off")
        .started();
    backed_up(&cluster);
    let mut delays = Vec::new();
    for number in 0..effort.triggers {
        // At another place between two looks each time.
        sleep(Duration::from_secs(interval) * number / effort.triggers);
        let rows = cluster.sql(
            "SELECT extract(epoch FROM clock_timestamp());
             SELECT pg_logical_emit_message(true, 'bench', repeat('x', 1200000))",
        );
        let crossed: f64 = rows[0][0].parse().expect("a number of seconds");
        let newest = format!(
            "SELECT extract(epoch FROM h.started_at) FROM nrt.backup_history h, nrt.status s
             WHERE h.trigger = 'wal_growth' AND h.status = 'succeeded' AND s.activity = 'idle'
             ORDER BY h.job OFFSET {number}"
        );
        wait_until("the growth starts a backup", PATIENCE, || !cluster.sql(&newest).is_empty());
        let started: f64 = cluster.value(&newest).parse().expect("a number of seconds");
        delays.push(started - crossed);
    }
    let spread = Spread::of(delays);
    vec![
        Row {
            what: "threshold crossed to backup started",
            measured: spread.largest,
            unit: " s",
            budget: Budget::AtMost(interval as f64 + 1.0),
            how: format!(
                "the longest of {}, {spread:.2}; monitor interval {interval} s",
                effort.triggers
            ),
        },
        memory(&cluster, &format!("after {} backups", effort.triggers + 1)),
    ]
}

/// pgbench where growth starts backups by the defaults against where it starts none, one after the
/// other: a backup of one would be the other's load.
fn growth_throughput(effort: &Effort) -> Vec<Row> {
    let measure = |name: &str, wal_monitor: &str| {
        let cluster = Cluster::with_identity(name)
            .setting("shared_buffers", "256MB")
            .setting("fsync", "on")
            .setting("nrt_backup.wal_monitor", wal_monitor)
            .setting("nrt_backup.full_schedule", "off")
            .setting("nrt_backup.incremental_schedule", "off")
            .started();
        cluster.pgbench(&["--initialize", "--quiet", &format!("--scale={}", effort.growth_scale)]);
        backed_up(&cluster);
        let position = "SELECT pg_current_wal_lsn() - '0/0'";
        let wal = |cluster: &Cluster| cluster.value(position).parse().unwrap_or(0.0) / MEBIBYTE;
        let before = wal(&cluster);
        let run = run_pgbench(&cluster, effort.growth_run, 0);
        let backups = cluster.value(
            "SELECT count(*) FROM nrt.backup_history WHERE trigger = 'wal_growth' AND status <> 'waiting'",
        );
        (run.tps, wal(&cluster) - before, backups)
    };
    let (without, wal_without, none) = measure("bench-growth-off", "off");
    assert_eq!(none, "0", "nobody has asked for a backup");
    let (with, wal_with, backups) = measure("bench-growth-on", "on");
    let how = format!(
        "one run of {} s each, scale {}, 2 clients, all settings of growth at their defaults;\n    \
         {with:.0} and {without:.0} transactions per second, {wal_with:.0} and {wal_without:.0} MB of \
         WAL, {backups} backups by growth",
        effort.growth_run, effort.growth_scale
    );
    vec![Row {
        what: "pgbench with backups by growth / without",
        measured: with / without,
        unit: "",
        budget: Budget::AtLeast(0.95),
        how,
    }]
}

/// How long a fast shutdown takes in the middle of a backup.
fn shutdowns(effort: &Effort) -> Vec<Row> {
    // One slow process: the backup lasts longer than it takes to notice that it runs.
    let cluster = Cluster::with_identity("bench-shutdown")
        .setting("nrt_backup.compress_type", "bz2")
        .setting("nrt_backup.process_max", "1")
        .preload(false)
        .started();
    cluster.pgbench(&["--initialize", "--quiet", "--scale=10"]);
    cluster.stop(Shutdown::Fast);
    let cluster = cluster.preload(true);
    for expected in ["nrt_backup job ", "nrt_backup health: ", "aborting backup due to"] {
        cluster.allow(expected);
    }
    let mut times = Vec::new();
    for _ in 0..effort.shutdowns {
        cluster.start();
        wait_until("a backup copies files", PATIENCE, || {
            cluster.processes().iter().any(|process| process.command.contains("backup:local"))
        });
        times.push(cluster.stop(Shutdown::Fast).as_secs_f64());
        cluster.assert_no_orphans();
    }
    let spread = Spread::of(times);
    vec![Row {
        what: "fast shutdown with a backup running",
        measured: spread.largest,
        unit: " s",
        budget: Budget::AtMost(5.0),
        how: format!("the longest of {}, {spread:.2}; no process left over", effort.shutdowns),
    }]
}

fn memory(cluster: &Cluster, when: &str) -> Row {
    let launcher = cluster.value(
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'logical replication launcher'",
    );
    let plain = Memory::of(launcher.parse().expect("a process number"));
    let worker = Memory::of(worker(cluster));
    Row {
        what: "private memory of the worker beyond the replication launcher's",
        measured: (worker.private - plain.private) / MEBIBYTE,
        unit: " MB",
        budget: Budget::AtMost(8.0),
        how: format!(
            "{when}; private {:.1} and {:.1} MB, anonymous {:.1} and {:.1} MB,\n    \
             proportional {:.1} and {:.1} MB",
            worker.private / MEBIBYTE,
            plain.private / MEBIBYTE,
            worker.anonymous / MEBIBYTE,
            plain.anonymous / MEBIBYTE,
            worker.proportional / MEBIBYTE,
            plain.proportional / MEBIBYTE,
        ),
    }
}

// ------------------------------------------------------------------------------- the servers

/// Waits until the first full backup is there.
fn backed_up(cluster: &Cluster) {
    cluster.sql("CREATE EXTENSION nrt_backup");
    cluster.wait_for(
        "SELECT activity = 'idle' AND last_backup IS NOT NULL FROM nrt.status",
        "t",
        PATIENCE,
    );
}

/// A server whose archive_command is pgBackRest's own, with the options that the other's worker
/// wrote for itself.
fn archived_by_pgbackrest(cluster: Cluster, like: &Cluster) -> Cluster {
    let config = fs::read_to_string(like.state_directory().join("pgbackrest.conf"))
        .expect("the worker wrote it");
    let path = |cluster: &Cluster| cluster.directory().display().to_string();
    let file = cluster.directory().join("pgbackrest.conf");
    fs::write(&file, config.replace(&path(like), &path(&cluster)))
        .expect("the directory was just made");
    cluster.installation().hand_over(&file).expect("the file was just made");
    let config = format!("--config={}", file.display());
    let cluster = cluster
        .preload(false)
        .setting("archive_mode", "on")
        .setting("archive_command", &format!("pgbackrest {config} --stanza=main archive-push %p"))
        .started();
    for command in ["stanza-create", "backup"] {
        let output = cluster
            .installation()
            .command("pgbackrest")
            .args([&config, "--stanza=main", "--type=full", command][..].iter().filter(|word| {
                // The only one of the two that knows types.
                command == "backup" || !word.starts_with("--type")
            }))
            .stdin(Stdio::null())
            .output()
            .expect("pgbackrest is installed");
        assert!(
            output.status.success(),
            "pgbackrest {command}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    cluster
}

/// What came of one run of pgbench.
struct Run {
    /// Transactions per second.
    tps: f64,
    /// Segments that were finished and not archived at its end.
    waiting: u32,
}

impl std::fmt::Display for Run {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{:.0} ({} waiting)", self.tps, self.waiting)
    }
}

/// Runs pgbench with the transactions that belong to a number.
fn run_pgbench(cluster: &Cluster, seconds: u64, number: u32) -> Run {
    let waiting = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'";
    cluster.sql("CHECKPOINT");
    // What the run before left to archive is not this one's load.
    cluster.wait_for(waiting, "0", PATIENCE);
    let (time, seed) = (format!("--time={seconds}"), format!("--random-seed={number}"));
    let told = cluster.pgbench(&["--client=2", "--jobs=2", "--protocol=prepared", &time, &seed]);
    let waiting = cluster.value(waiting).parse().expect("a count");
    let tps = told.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next());
    let tps = tps.and_then(|tps| tps.parse().ok()).unwrap_or_else(|| panic!("no tps in: {told}"));
    Run { tps, waiting }
}

fn worker(cluster: &Cluster) -> i32 {
    cluster.value("SELECT worker_pid FROM nrt.status").parse().expect("the worker runs")
}

// ------------------------------------------------------------------------------- /proc

/// The processor time that a process has used.
struct Times {
    own: Duration,
    /// Of its children that have ended, with theirs.
    children: Duration,
}

impl Times {
    fn of(pid: i32) -> Times {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
        let stat = read("stat").expect("the process runs");
        // The name, which is the second field, may contain blanks and parentheses.
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        let ticks = |first: usize| {
            let field = |index: usize| fields[index].parse::<u32>().expect("a number of ticks");
            TICK * (field(first) + field(first + 1))
        };
        // In nanoseconds, where the kernel keeps them: for one thread alone.
        let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        let exact = read("schedstat").ok().and_then(|text| text.split(' ').next()?.parse().ok());
        let exact = exact.filter(|_| threads == 1);
        Times { own: exact.map_or(ticks(11), Duration::from_nanos), children: ticks(13) }
    }
}

/// The memory of a process, in bytes.
struct Memory {
    /// What no other process shares.
    private: f64,
    /// What came from no file.
    anonymous: f64,
    /// With its share of what is shared.
    proportional: f64,
}

impl Memory {
    fn of(pid: i32) -> Memory {
        let read = |file: &str| {
            fs::read_to_string(format!("/proc/{pid}/{file}")).expect("the process runs")
        };
        let (rollup, status) = (read("smaps_rollup"), read("status"));
        let bytes = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
            number.unwrap_or_else(|| panic!("no {name} for process {pid}")) * 1024.0
        };
        Memory {
            private: bytes(&rollup, "Private_Clean") + bytes(&rollup, "Private_Dirty"),
            anonymous: bytes(&status, "RssAnon"),
            proportional: bytes(&rollup, "Pss"),
        }
    }
}

fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_string()
}

// ------------------------------------------------------------------------------- the result

/// The least, the middle and the most of some numbers.
struct Spread {
    smallest: f64,
    median: f64,
    largest: f64,
}

impl Spread {
    fn of(numbers: impl IntoIterator<Item = f64>) -> Spread {
        let mut numbers: Vec<f64> = numbers.into_iter().collect();
        numbers.sort_by(f64::total_cmp);
        let middle = numbers.len() / 2;
        let median = if numbers.len() % 2 == 1 {
            numbers[middle]
        } else {
            f64::midpoint(numbers[middle - 1], numbers[middle])
        };
        Spread { smallest: numbers[0], median, largest: numbers[numbers.len() - 1] }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = out.precision().unwrap_or(2);
        let Spread { smallest, median, largest } = self;
        write!(out, "{smallest:.digits$} .. {median:.digits$} .. {largest:.digits$}")
    }
}

fn print_conditions(effort: &Effort) {
    let first_line = |command: &mut Command| {
        let output = command.output().map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&output).lines().next().unwrap_or("unknown").to_string()
    };
    let installation = Installation::get();
    let cores = available_parallelism().map_or(1, usize::from);
    println!(
        "{}\n{}",
        first_line(Command::new(installation.program("postgres")).arg("--version")),
        first_line(installation.command("pgbackrest").arg("version"))
    );
    let load = load_average();
    println!("{cores} cores, load {load} at the start; effort: {}", effort.name);
    if load.parse::<f64>().is_ok_and(|load| load > 0.5) {
        println!("The machine does other things, too: take the numbers with care.");
    }
}

fn print_table(rows: &[Row]) {
    println!("\n{:<62} {:>10} {:>10}  of it", "what", "measured", "budget");
    for Row { what, measured, unit, budget, how } in rows {
        let digits = if unit.is_empty() { 3 } else { 2 };
        let (sign, limit) = match budget {
            Budget::AtLeast(limit) => (">=", limit),
            Budget::AtMost(limit) => ("<=", limit),
            Budget::Told => {
                println!("{what:<62} {:>10}", format!("{measured:.digits$}{unit}"));
                println!("    {how}");
                continue;
            }
        };
        let word = if budget.is_kept(*measured) { "ok" } else { "MISSED" };
        println!(
            "{what:<62} {:>10} {:>10} {:>6.2}  {word}",
            format!("{measured:.digits$}{unit}"),
            format!("{sign} {limit}{unit}"),
            measured / limit,
        );
        println!("    {how}");
    }
    let missed = rows.iter().filter(|row| !row.budget.is_kept(row.measured)).count();
    match missed {
        0 => println!("\nAll budgets are kept."),
        _ => println!("\n{missed} of {} budgets MISSED.", rows.len()),
    }
}

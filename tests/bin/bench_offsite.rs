//! Measures what shipping saves, and what it costs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use nrt_core::lsn::Lsn;
use nrt_tests::{Cluster, Commits, Installation, Kind, Remote, Restore, inspect, wait_until};
use tempfile::TempDir;

use super::protected::{own_configuration, quiet};
use super::{Budget, Effort, MEBIBYTE, Memory, PATIENCE, Row, Spread, Times, backed_up};

/// The name that a cluster has off-site.
pub(super) const NAME: &str = "main";

/// Starts a cluster that ships, and waits until its first backup is off-site.
pub(super) fn shipping(cluster: Cluster, remote: &Remote) -> Cluster {
    let cluster = shipping_nowhere(remote.configure(cluster));
    wait_for_offsite(&cluster, 1);
    cluster
}

/// Starts a cluster and waits for its first backup.
fn shipping_nowhere(cluster: Cluster) -> Cluster {
    for words in ["nrt_backup health: ", "nrt_backup job ", "nrt_backup ship", "archiver "] {
        cluster.allow(words);
    }
    let cluster = quiet(cluster).started();
    backed_up(&cluster);
    cluster
}

pub(super) fn wait_for_offsite(cluster: &Cluster, least: u32) {
    cluster.wait_for(
        &format!("SELECT offsite_backups >= {least} AND shipping = 'shipping' FROM nrt.status"),
        "t",
        PATIENCE,
    );
}

/// Waits until everything that is committed now is off-site.
pub(super) fn wait_for_shipped(cluster: &Cluster) {
    let now = cluster.value("SELECT pg_current_wal_flush_lsn()");
    let question = format!("SELECT coalesce(shipped_lsn >= '{now}', false) FROM nrt.status");
    cluster.wait_for(&question, "t", PATIENCE);
}

/// A directory for copies of a remote.
pub(super) fn place() -> TempDir {
    let installation = Installation::get();
    let directory = tempfile::Builder::new()
        .prefix("nrt-copies-")
        .tempdir_in(installation.scratch())
        .expect("the scratch directory can be written to");
    installation.hand_over(directory.path()).expect("it was just made");
    directory
}

/// Numbers that look like random ones, the same each time.
fn scattered(number: u32, below: u64) -> u64 {
    (u64::from(number) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) % below
}

/// Rounds in which the machine vanishes under load at a random instant.
pub(super) fn loss(effort: &Effort) -> Vec<Row> {
    let kinds = [Kind::WebDav, Kind::Sftp, Kind::S3];
    let (mut seconds, mut counts, mut commits_made) = (Vec::new(), Vec::new(), 0);
    for round in 0..effort.losses {
        let kind = kinds[round as usize % kinds.len()];
        let remote = Remote::new("bench-loss", kind);
        let cluster = shipping(Cluster::with_identity("bench-loss"), &remote);
        let mut commits = Commits::begin(&cluster, "t", 4, Duration::from_millis(1));
        sleep(Duration::from_millis(3000 + scattered(round, 3000)));
        let promised: Lsn = cluster
            .value("SELECT coalesce(shipped_lsn, '0/0') FROM nrt.status")
            .parse()
            .expect("an LSN");
        cluster.vanish();
        let copies = place();
        let copy = copies.path().join("copy");
        remote.copy(NAME, &copy);
        let restored = Restore::new("bench-restored", &copy).run();
        let made = commits.made();
        let lost = commits.lost(&restored);
        assert!(lost.iter().all(|it| it.lsn > promised), "what was said to be there is lost");
        let newest = made.iter().map(|it| it.at).max().expect("commits were made");
        let newest_restored = made.iter().filter(|it| !lost.contains(it)).map(|it| it.at).max();
        let took = newest - newest_restored.expect("some commits are off-site");
        eprintln!(
            "  {}: {} of {} commits lost, {:.2} s",
            kind.word(),
            lost.len(),
            made.len(),
            took.as_secs_f64()
        );
        seconds.push(took.as_secs_f64());
        counts.push(lost.len() as f64);
        commits_made += made.len();
    }
    seconds.sort_by(f64::total_cmp);
    let p99 = seconds[((seconds.len() * 99).div_ceil(100)).saturating_sub(1)];
    let (spread, lost) = (Spread::of(seconds), Spread::of(counts));
    let how = format!(
        "{} rounds with WebDAV, SFTP and S3 in turns, {spread:.2} s; {commits_made} commits by 4 \
         clients,\n    lost in a round {lost:.0}; nothing before shipped_lsn, and no row with one \
         before it missing",
        effort.losses
    );
    let row = |what, measured, budget| Row { what, measured, unit: " s", budget, how: how.clone() };
    vec![
        row("lost when the machine vanishes, median", spread.median, Budget::AtMost(1.0)),
        row("lost when the machine vanishes, p99", p99, Budget::AtMost(2.0)),
    ]
}

/// Copies of a remote that was stopped in the middle of whatever was done to it.
pub(super) fn cut(effort: &Effort) -> Vec<Row> {
    let remote = Remote::new("bench-cut", Kind::WebDav);
    let cluster = Cluster::with_identity("bench-cut");
    // Backups expire by number, so that one does with each full backup from the third on.
    own_configuration(
        &cluster,
        &cluster.repository(),
        "compress-type=zst\nrepo1-bundle=y\nexclude=nrt_backup/",
    );
    let cluster = shipping(cluster, &remote);
    let commits = Commits::begin(&cluster, "t", 1, Duration::from_millis(5));
    let (mut instants, mut broken, mut restores, mut backups) = (0, 0, 0, 0);
    while instants < effort.cuts {
        let kind = if backups % 2 == 0 { "full" } else { "incr" };
        cluster.sql(&format!(
            "CREATE TABLE IF NOT EXISTS filler (i int, t text);
             INSERT INTO filler SELECT i, md5(i::text) FROM generate_series(1, 40000) i;
             SELECT nrt_backup_start('{kind}')"
        ));
        backups += 1;
        for _ in 0..10 {
            sleep(Duration::from_millis(scattered(instants, 900)));
            let copies = place();
            let copy = copies.path().join("copy");
            remote.freeze();
            remote.copy(NAME, &copy);
            remote.thaw();
            let found = inspect(&copy);
            let mut is_sound = found.problems.is_empty() && !found.backups.is_empty();
            // A restore takes a hundred times as long.
            if instants % 10 == 7 {
                restores += 1;
                match Restore::new("bench-cut-restored", &copy).try_run() {
                    Ok(restored) => drop(restored),
                    Err(error) => {
                        eprintln!("  {error}");
                        is_sound = false;
                    }
                }
            }
            if !is_sound {
                eprintln!("  instant {instants}: {found:?}");
                broken += 1;
            }
            instants += 1;
        }
        cluster.wait_for("SELECT activity FROM nrt.status", "idle", PATIENCE);
    }
    drop(commits);
    vec![Row {
        what: "copies of a remote cut off at any instant that do not restore",
        measured: f64::from(broken),
        unit: "",
        budget: Budget::AtMost(0.0),
        how: format!(
            "{instants} instants during {backups} backups, full and incremental, two full ones \
             kept; {restores} restored,\n    the others compared with manifests and WAL; WebDAV, \
             which shows files while they are written"
        ),
    }]
}

/// The time and the requests that a backup takes to get off-site after it has ended.
fn change(cluster: &Cluster, remote: &Remote, backups: u32) -> (f64, f64) {
    cluster.sql("INSERT INTO small SELECT generate_series(1, 100)");
    wait_for_shipped(cluster);
    let before = remote.proxy().traffic();
    let info = cluster.repository().join("backup/main/backup.info");
    let listed = || {
        let text = fs::read_to_string(&info).unwrap_or_default();
        text.lines().filter(|line| line.starts_with("20") && line.contains("={")).count()
    };
    let took = thread::scope(|scope| {
        let backup = scope.spawn(|| cluster.sql("SELECT nrt_backup_now('incr')"));
        // Not from its end: beside many files pgBackRest's expire takes seconds after that.
        wait_until("the backup is in the repository", PATIENCE, || listed() >= backups as usize);
        let begin = Instant::now();
        wait_for_offsite(cluster, backups);
        let took = begin.elapsed().as_secs_f64();
        backup.join().expect("it succeeds");
        took
    });
    // What comes a little later belongs to it, too.
    sleep(Duration::from_secs(3));
    (took, remote.proxy().traffic().since(before).requests as f64)
}

/// A small incremental backup beside a hundred thousand old files, and beside none.
pub(super) fn mirror(effort: &Effort) -> Vec<Row> {
    let remotes = [0, effort.old_files].map(|_| Remote::behind_proxy("bench-mirror", Kind::WebDav));
    let clusters = [0, effort.old_files].map(|old| {
        let cluster = Cluster::with_identity("bench-mirror");
        let mut reset =
            cluster.installation().command(cluster.installation().program("pg_resetwal"));
        // Everything before is old.
        reset.args(["-l", "000000010000020000000001", "-D"]).arg(cluster.data());
        assert!(reset.output().is_ok_and(|it| it.status.success()), "pg_resetwal works");
        (cluster, old)
    });
    let mut running = Vec::new();
    for ((cluster, old), remote) in clusters.into_iter().zip(&remotes) {
        // No stanza can be made where files are.
        let cluster = shipping_nowhere(cluster);
        let major = cluster.installation().major();
        for root in [cluster.repository(), remote.files(NAME).join("repository")] {
            old_segments(&root.join(format!("archive/main/{major}-1")), old);
        }
        for root in [cluster.repository(), remote.files(NAME)] {
            own_everything(&root);
        }
        for (name, value) in remote.settings() {
            cluster.set(name, &value);
        }
        cluster.reload();
        wait_for_offsite(&cluster, 1);
        cluster.sql("CREATE TABLE small (i int)");
        running.push(cluster);
    }
    let (mut times, mut requests) = (Vec::new(), Vec::new());
    for number in 0..effort.changes {
        let measured: Vec<(f64, f64)> = running
            .iter()
            .zip(&remotes)
            .map(|(cluster, remote)| change(cluster, remote, number + 2))
            .collect();
        eprintln!("  beside none {:?}, beside many {:?}", measured[0], measured[1]);
        times.push(measured[1].0 / measured[0].0);
        requests.push(measured[1].1 / measured[0].1.max(1.0));
    }
    let (times, requests) = (Spread::of(times), Spread::of(requests));
    let how = |spread: &Spread| {
        format!(
            "median of {} pairs, {spread:.2}; {} old files, WebDAV",
            effort.changes, effort.old_files
        )
    };
    let budget = Budget::AtMost(1.2);
    vec![
        Row {
            what: "an incremental backup off-site, beside old files / beside none",
            measured: times.median,
            unit: "",
            budget,
            how: how(&times),
        },
        Row {
            what: "requests for it, beside old files / beside none",
            measured: requests.median,
            unit: "",
            budget,
            how: how(&requests),
        },
    ]
}

/// Makes files that look like segments which were archived long ago.
fn old_segments(directory: &Path, count: u32) {
    for number in 0..count {
        let (log, segment) = (number / 256, number % 256);
        let part = directory.join(format!("00000001{log:08X}"));
        if segment == 0 {
            fs::create_dir_all(&part).expect("the directory is ours");
        }
        let name = format!("00000001{log:08X}{segment:08X}-{number:040x}.zst");
        fs::write(part.join(name), "old").expect("the directory is ours");
    }
}

fn own_everything(root: &Path) {
    let Some(account) = Installation::get().account() else { return };
    if root.exists() {
        let owner = format!("{}:{}", account.uid, account.gid);
        let status = Command::new("chown").args(["-R", &owner]).arg(root).status();
        assert!(status.is_ok_and(|status| status.success()), "root may do that");
    }
}

/// What an incremental backup sends, against what pgBackRest wrote for it.
pub(super) fn bytes(effort: &Effort) -> Vec<Row> {
    let remote = Remote::behind_proxy("bench-bytes", Kind::WebDav);
    let cluster = shipping(Cluster::with_identity("bench-bytes"), &remote);
    cluster
        .sql("CREATE TABLE big AS SELECT i, md5(i::text) AS t FROM generate_series(1, 400000) i");
    cluster.sql("SELECT nrt_backup_now('full')");
    wait_for_offsite(&cluster, 2);
    let mut ratios = Vec::new();
    for number in 0..effort.changes {
        cluster.sql(&format!(
            "UPDATE big SET t = reverse(t) WHERE i % 97 = {number}; CHECKPOINT; SELECT pg_switch_wal()"
        ));
        wait_for_shipped(&cluster);
        sleep(Duration::from_secs(5));
        let (files, sent) = (tree(&cluster.repository()), remote.proxy().traffic().sent);
        cluster.sql("SELECT nrt_backup_now('incr')");
        wait_for_offsite(&cluster, number + 3);
        wait_for_shipped(&cluster);
        sleep(Duration::from_secs(2));
        let sent = (remote.proxy().traffic().sent - sent) as f64;
        let wrote: u64 = tree(&cluster.repository())
            .into_iter()
            .filter(|it| !files.contains(it))
            .map(|(_, length, _)| length)
            .sum();
        eprintln!("  {:.2} MiB written, {:.2} sent", wrote as f64 / MEBIBYTE, sent / MEBIBYTE);
        ratios.push(sent / wrote as f64);
    }
    let spread = Spread::of(ratios);
    vec![Row {
        what: "bytes sent for an incremental backup / written by pgBackRest",
        measured: spread.median,
        unit: "",
        budget: Budget::AtMost(1.05),
        how: format!(
            "median of {}, {spread:.3}; with its WAL, all of HTTP, and the signs of life meanwhile",
            effort.changes
        ),
    }]
}

/// Every file with its length and the time of its last change, in nanoseconds.
pub(super) fn tree(root: &Path) -> Vec<(PathBuf, u64, std::time::SystemTime)> {
    let (mut found, mut left) = (Vec::new(), vec![root.to_path_buf()]);
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                left.push(entry.path());
            } else if metadata.is_file()
                && let Ok(modified) = metadata.modified()
            {
                found.push((entry.path(), metadata.len(), modified));
            }
        }
    }
    found
}

/// pgbench while every commit goes off-site, against pgBackRest archiving by itself.
pub(super) fn throughput(effort: &Effort) -> Vec<Row> {
    let remote = Remote::new("bench-tps", Kind::WebDav);
    let (ratio, how) = super::compare_throughput(effort, |cluster| {
        for words in ["nrt_backup health: ", "nrt_backup ship"] {
            cluster.allow(words);
        }
        remote.configure(cluster)
    });
    vec![Row {
        what: "pgbench while shipping / with plain pgBackRest archiving",
        measured: ratio,
        unit: "",
        budget: Budget::AtLeast(0.97),
        how: format!("{how};\n    the WebDAV server runs on the same cores, too"),
    }]
}

/// The processor time and the memory of shipping and its rclone.
pub(super) fn cost(effort: &Effort) -> Vec<Row> {
    let remote = Remote::new("bench-cost", Kind::S3);
    let cluster =
        shipping(Cluster::with_identity("bench-cost").setting("max_wal_size", "512MB"), &remote);
    sleep(Duration::from_secs(5));
    let mut rows =
        measure(&cluster, effort.idle, "an idle server", || sleep(Duration::from_millis(200)));
    let begin = Instant::now();
    let mut written = 0.0;
    let mut session = cluster.connect("postgres", "postgres").expect("the server runs");
    rows.extend(measure(&cluster, effort.idle, "5 MB of WAL a second", || {
        // Half of what WAL is, compresses.
        session
            .batch_execute(
                "SELECT pg_logical_emit_message(true, 'bench',
                     string_agg(md5(random()::text), '')) FROM generate_series(1, 15625)",
            )
            .expect("the server runs");
        written += 0.5;
        let due = Duration::from_secs_f64(written / 5.0);
        sleep(due.saturating_sub(begin.elapsed()));
    }));
    rows
}

/// Does something for a while, and tells what shipping took meanwhile.
fn measure(cluster: &Cluster, time: Duration, meanwhile: &str, mut work: impl FnMut()) -> Vec<Row> {
    let pid = |word: &str| {
        let found = cluster.processes().into_iter().filter(|it| it.command.contains(word));
        // Not the leash, which has the same words behind it.
        let found = found.filter(|it| !it.command.contains("leash")).map(|it| it.pid).next();
        found.unwrap_or_else(|| panic!("no process \"{word}\""))
    };
    let pids = [pid("ship"), pid("rclone rcd")];
    let before = pids.map(|pid| Times::of(pid).own);
    let begin = Instant::now();
    while begin.elapsed() < time {
        work();
    }
    let took = begin.elapsed().as_secs_f64();
    let mut rows = Vec::new();
    for (index, what) in ["nrt-backup ship", "rclone"].into_iter().enumerate() {
        let used = (Times::of(pids[index]).own - before[index]).as_secs_f64();
        let memory = Memory::of(pids[index]).private / MEBIBYTE;
        rows.push(Row {
            what: if index == 0 { "CPU of nrt-backup ship, of one core" } else { "CPU of its rclone, of one core" },
            measured: used / took * 100.0,
            unit: " %",
            budget: Budget::Told,
            how: format!("{what}, over {took:.0} s with {meanwhile}; {memory:.1} MiB that no other process shares"),
        });
    }
    rows
}

//! Tells, on a scratch server, how a server backs itself up.
//!
//! The prose is written here, and long paths in the commands are shortened; every other line is
//! what a program printed while this ran. A step that does not happen ends the story with its
//! reason and an exit code that is not 0.

use std::fs;
use std::io::{IsTerminal, Write, stdout};
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nrt_core::lsn::Lsn;
use nrt_tests::{Cluster, Commits, Kind, Load, Remote, Shutdown, processes_mentioning};

/// Longer than any step takes, also where the machine does other things.
const PATIENCE: Duration = Duration::from_secs(90);
const SECOND: Duration = Duration::from_secs(1);
/// The width of the page.
const WIDTH: usize = 100;
/// How long the remote is away.
const OUTAGE: Duration = Duration::from_secs(6);
/// The cluster's name off-site: by default that of the stanza.
const NAME: &str = "main";
/// What a restored server has to hold, too.
const CONTENTS: &str = "SELECT count(*) AS accounts, sum(abalance) AS balance,
       (SELECT count(*) FROM pgbench_history) AS transactions FROM pgbench_accounts";

fn main() -> ExitCode {
    // A reader wants the reason, not the place in this file.
    set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let reason = text.or(payload.downcast_ref::<&str>().copied()).unwrap_or("no reason known");
        eprintln!("\ndemo: a step did not happen: {reason}");
    }));
    match catch_unwind(AssertUnwindSafe(tell)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn tell() {
    let mut story = Story::begin();
    story.unprotected();
    let mut story = story.with_the_extension();
    story.one_line();
    story.what_one_sees();
    story.growth();
    story.by_hand();
    story.by_the_clock();
    story.something_goes_wrong();
    story.proof();
    story.nothing_to_do();
    story.what_happened();
    let remote = story.a_remote();
    let load = story.within_a_second();
    story.the_remote_dies(&remote);
    drop(load);
    story.without_sql();
    let restored = story.the_machine_vanishes(&remote);
    story.end(restored, remote);
}

/// The server that the story is about, and how far the story is.
struct Story {
    cluster: Cluster,
    page: Page,
    began: Instant,
    chapters: u32,
    /// How much of the server's log has been shown.
    log_shown: usize,
}

// The chapters.
impl Story {
    fn begin() -> Story {
        let cluster = Cluster::with_identity("demo")
            .preload(false)
            .setting("fsync", "on")
            // Where nobody writes, nothing shall be written.
            .setting("autovacuum", "off");
        let page = Page { colours: stdout().is_terminal() };
        Story { cluster, page, began: Instant::now(), chapters: 0, log_shown: 0 }
    }

    fn unprotected(&mut self) {
        let version = self.cluster.installation().major();
        self.chapter("A server that nothing protects");
        self.say(&format!("A scratch PostgreSQL {version} with pgbench data, as made by initdb."));
        self.cluster.start();
        self.cluster.pgbench(&["--initialize", "--quiet", "--scale=5"]);
        self.sql(
            "SELECT count(*) AS accounts, pg_size_pretty(pg_database_size('postgres')) AS size,\n\
             \x20      current_setting('archive_mode') AS archive_mode FROM pgbench_accounts",
        );
        self.cluster.stop(Shutdown::Fast);
    }

    /// The same server, with the extension in `shared_preload_libraries` from its next start on.
    fn with_the_extension(self) -> Story {
        Story { cluster: self.cluster.preload(true), ..self }
    }

    fn one_line(&mut self) {
        self.chapter("One line in postgresql.conf");
        self.say(
            "The first line is all that nrt_backup needs. The other two keep its files in the",
        );
        self.say("scratch directory; by default backups go to /var/lib/pgbackrest.");
        let started = Instant::now();
        self.cluster.start();
        let settings = fs::read_to_string(self.cluster.directory().join("settings.conf"));
        let settings = settings.expect("the server has just read it");
        self.show(settings.lines().filter(|line| line.contains("nrt_backup")));
        self.say("The server starts. Its log:");
        self.log_shown = 0;
        self.follow("the first full backup is in the log", |log| {
            log.contains(": full backup ") && log.contains(" finished")
        });
        self.say(&format!(
            "Protected {:.1} seconds after the start: nobody made a stanza, a schedule or a\n\
             pgbackrest.conf. Archiving is on, and pgBackRest itself knows the backup:",
            started.elapsed().as_secs_f64()
        ));
        self.sql("SHOW archive_mode");
        self.page.command("$ pgbackrest --config=$PGDATA/nrt_backup/pgbackrest.conf info");
        let info = self.cluster.pgbackrest(&["info"]);
        assert!(info.status.success(), "pgbackrest info failed: {}", words(&info));
        let info = words(&info);
        assert!(info.contains("full backup: "), "pgbackrest info shows no full backup: {info}");
        self.show(info.lines());
    }

    fn what_one_sees(&mut self) {
        self.chapter("CREATE EXTENSION only adds what one sees");
        self.sql("CREATE EXTENSION nrt_backup");
        self.sql("SELECT * FROM nrt.status \\gx");
        self.expect("nrt.status says that all is well", "SELECT health FROM nrt.status", "ok");
    }

    fn growth(&mut self) {
        self.chapter("Enough WAL, and an incremental backup starts by itself");
        self.say(
            "The defaults are 100MB, looked at once a minute. For a short story, less of both;",
        );
        self.say("then pgbench writes, and nrt.status is read once a second.");
        self.sql("ALTER SYSTEM SET nrt_backup.wal_growth_threshold = '8MB'");
        self.sql("ALTER SYSTEM SET nrt_backup.wal_monitor_interval = '2s'");
        self.say(
            "It waits for a checkpoint that takes its time, so that nobody notices. Here, none.",
        );
        self.sql("ALTER SYSTEM SET checkpoint_completion_target = 0");
        self.sql("SELECT pg_reload_conf()");
        let begun = "SELECT count(*) > 0 FROM nrt.backup_history
                     WHERE trigger = 'wal_growth' AND status IN ('running', 'succeeded')";
        // pgbench's own pace would cross the threshold before one could look.
        let load = self.cluster.load(&["--client=2", "--rate=120", "--time=600"]);
        self.page.command("$ pgbench --client=2 --rate=120 &");
        self.watch("an incremental backup starts by itself", |story| {
            let line = story.cluster.value(
                "SELECT format('%s  %s of 8 MB  %s  %s', to_char(now(), 'HH24:MI:SS'),
                        to_char(coalesce(wal_growth, 0) / 1048576.0, '90.9'),
                        rpad(repeat('#', least(coalesce(wal_growth, 0) * 40 / 8388608, 48)::int),
                             40, '.'),
                        activity)
                 FROM nrt.status",
            );
            story.show([line]);
            story.cluster.value(begun) == "t"
        });
        drop(load);
        self.say("There it goes, and pgbench may rest.");
        self.settled("SELECT count(*) FROM nrt.backup_history WHERE trigger = 'wal_growth'");
        self.sql("SELECT last_backup, last_backup_type, wal_growth, activity FROM nrt.status");
    }

    fn by_hand(&mut self) {
        self.chapter("Or by hand");
        self.sql("UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid <= 1000");
        self.sql("SELECT nrt_backup_now()");
        self.news();
    }

    fn by_the_clock(&mut self) {
        self.chapter("By the clock");
        self.say(
            "The threshold goes back to 100MB, pgbench writes a little, and a crontab line says",
        );
        self.say("when: here every minute.");
        self.sql("ALTER SYSTEM RESET nrt_backup.wal_growth_threshold");
        self.page.command("$ pgbench --client=2 --transactions=150");
        let output = self.cluster.pgbench(&["--client=2", "--transactions=150"]);
        self.show(output.lines().filter(|line| line.contains("processed:")));
        self.sql(CONTENTS);
        self.sql("ALTER SYSTEM SET nrt_backup.incremental_schedule = '* * * * *'");
        self.sql("SELECT pg_reload_conf()");
        let scheduled = "SELECT count(*) > 0 FROM nrt.backup_history
                         WHERE trigger = 'schedule' AND status IN ('running', 'succeeded')";
        self.count_down("a scheduled backup starts", scheduled);
        self.settled(
            "SELECT count(*) FROM nrt.backup_history
             WHERE trigger = 'schedule' AND status = 'succeeded'",
        );
    }

    fn something_goes_wrong(&mut self) {
        self.chapter("Something goes wrong");
        self.say("Somebody takes away the right to use the repository's directory.");
        for expected in ["nrt_backup health: ", "nrt_backup job ", "Permission denied"] {
            self.cluster.allow(expected);
        }
        self.chmod("0");
        self.sql(
            "SELECT check_name, severity, message, hint FROM nrt_check()\n\
             WHERE severity <> 'ok' LIMIT 1 \\gx",
        );
        self.expect("nrt.status is critical", "SELECT health FROM nrt.status", "critical");
        self.say("Whoever asks for a backup now hears why there is none:");
        let refusal = self.refused("SELECT nrt_backup_now()");
        assert!(refusal.contains("HINT:"), "the refusal has no hint: {refusal}");
        self.say("The right is given back. There is nothing to restart or to reset:");
        self.chmod("700");
        self.sql(
            "SELECT check_name, severity, message FROM nrt_check() WHERE check_name = 'stanza'",
        );
        self.say("What is left is the memory of the refused backup, until one succeeds:");
        // The log says all of the above once more.
        self.log_shown = self.cluster.log().len();
        self.sql("SELECT nrt_backup_now()");
        self.news();
        self.sql("SELECT health, activity FROM nrt.status");
        self.expect("nrt.status is well again", "SELECT health FROM nrt.status", "ok");
    }

    fn proof(&mut self) {
        self.chapter("A backup that was never restored is a hope");
        self.say(
            "So it is restored, into a scratch place beside the server, which goes on running:",
        );
        self.say(
            "recovered to the newest state, checked with pg_amcheck and with a query of ours,",
        );
        self.say("and removed. nrt_backup.drill_schedule does that by itself, say every Sunday.");
        let query = "SELECT sum(abalance) FROM pgbench_accounts";
        self.sql(&format!("ALTER SYSTEM SET nrt_backup.drill_query = '{query}'"));
        self.sql("SELECT pg_reload_conf()");
        self.sql("SELECT nrt_drill_now()");
        self.sql(
            "SELECT status, backup, recovered_lsn, rto, checked_relations, query_result\n\
             FROM nrt.drills \\gx",
        );
        let here = self.sql(query);
        let there = self.cluster.value("SELECT query_result FROM nrt.drills");
        assert!(here.contains(&there), "the restored server holds {there}");
        self.say("The restored server answered the same. And nrt.health knows that it was tried:");
        self.sql("SELECT severity, message FROM nrt.health WHERE check_name = 'drill'");
    }

    fn nothing_to_do(&mut self) {
        self.chapter("Nothing new, nothing to do");
        self.say(
            "Nobody has written since the last backup (autovacuum, which would, is off here).",
        );
        self.say("The next scheduled run sees that:");
        let skipped = "SELECT count(*) > 0 FROM nrt.backup_history WHERE status = 'skipped'";
        self.count_down("a scheduled run is skipped", skipped);
        self.sql(
            "SELECT job, trigger, type, status, message FROM nrt.backup_history\n\
             WHERE status = 'skipped' ORDER BY job DESC LIMIT 1",
        );
    }

    fn what_happened(&mut self) {
        self.chapter("What happened, and why");
        self.sql(
            "SELECT job, trigger, type, status, right(label, 16) AS label_ends,\n\
             \x20      pg_size_pretty(wal_growth) AS growth, pg_size_pretty(repository_size) AS added,\n\
             \x20      round(extract(epoch FROM duration), 1) AS seconds\n\
             FROM nrt.backup_history ORDER BY job",
        );
        self.say("From when to when this server can be restored:");
        self.sql(
            "SELECT date_trunc('second', from_time) AS from_time,\n\
             \x20      date_trunc('second', to_time) AS to_time,\n\
             \x20      from_lsn, to_lsn, backups, gap_until FROM nrt.recovery_window",
        );
        self.expect(
            "the recovery window has no gap",
            "SELECT count(*) FROM nrt.recovery_window WHERE gap_until IS NULL",
            "1",
        );
    }

    /// Gives the place off-site.
    fn a_remote(&mut self) -> Remote {
        self.chapter("A backup on the same machine is not a backup");
        self.say(
            "So far this machine holds everything. A remote is anything that rclone reaches; this",
        );
        self.say("one is a WebDAV server in a process of its own, with a user and a password.");
        let remote = Remote::new("demo", Kind::WebDav);
        self.page.command("$ grep -v pass SCRATCH/rclone.conf");
        let config = fs::read_to_string(remote.config()).expect("it was just written");
        self.show(config.lines().filter(|line| !line.starts_with("pass")));
        // Nothing but what is shown shall start a backup from here on.
        self.sql("ALTER SYSTEM RESET nrt_backup.incremental_schedule");
        for (name, value) in remote.settings() {
            let statement = format!("ALTER SYSTEM SET {name} = '{value}'");
            self.sql_without_paths(&statement, &remote.config().display().to_string());
        }
        self.sql("SELECT pg_reload_conf()");
        self.say("The repository goes up, all backups of it, and then the WAL as it is written:");
        let here = self.cluster.value("SELECT count(*) FROM nrt.backups");
        let began = Instant::now();
        self.poll("the backups are off-site", SECOND, |story| {
            let rows = story.cluster.sql(
                "SELECT to_char(clock_timestamp(), 'HH24:MI:SS'), shipping,
                        coalesce(offsite_backups, 0), coalesce(shipped_lsn::text, 'nothing yet')
                 FROM nrt.status",
            );
            story.news();
            let [at, shipping, backups, shipped] = &rows[0][..] else { return false };
            story.show([format!(
                "{at}  {shipping:<9} {backups} of {here} backups off-site  WAL up to: {shipped}"
            )]);
            *backups == here && shipped != "nothing yet"
        });
        self.say(&format!(
            "{:.1} seconds after the reload this server can be restored elsewhere:",
            began.elapsed().as_secs_f64()
        ));
        self.sql("SELECT summary FROM nrt.status");
        remote
    }

    /// Gives the clients, which go on.
    fn within_a_second(&mut self) -> Load {
        self.chapter("Off-site within a second");
        self.say(
            "pgbench writes again. What the remote has not confirmed would be lost if this machine",
        );
        self.say(
            "were gone now: \"behind\" says how long ago, at most, the oldest byte of it was written",
        );
        self.say("(shipping looks once a second), and how many bytes there are.");
        // Without the first one it would empty its history, and the commits are counted in that.
        let load = ["--no-vacuum", "--client=2", "--rate=120", "--time=600"];
        let load = self.cluster.load(&load);
        self.page.command("$ pgbench --client=2 --rate=120 &");
        let began = Instant::now();
        self.poll("the remote keeps up", SECOND, |story| {
            story.lag();
            began.elapsed() > 6 * SECOND
        });
        load
    }

    fn the_remote_dies(&mut self, remote: &Remote) {
        self.chapter("The remote dies, and comes back");
        self.cluster.allow("nrt_backup ship");
        remote.kill();
        let killed = Instant::now();
        self.page.command("$ kill -9 REMOTE");
        let is_critical = "SELECT severity = 'critical' FROM nrt.health
                           WHERE check_name = 'remote'";
        let mut told = false;
        self.poll("nrt.health is red", SECOND, |story| {
            story.lag();
            if !told && story.cluster.value(is_critical) == "t" {
                told = true;
                story.say("nrt.health has it in the remote's own words:");
                story.sql(
                    "SELECT check_name, severity, message, hint FROM nrt.health\n\
                     WHERE severity <> 'ok' \\gx",
                );
                story.say("The commits go on: the server never waits for a remote.");
            }
            told && killed.elapsed() > OUTAGE
        });
        remote.start();
        self.page.command("$ rclone serve webdav ..");
        self.say("The remote is back, and is found at the next try: these are at most 10 seconds");
        self.say("apart. There is nothing to restart or to reset.");
        let is_well = "SELECT health = 'ok' AND ship_lag < '2 s' FROM nrt.status";
        self.poll("it has caught up", SECOND, |story| {
            let is_well = story.cluster.value(is_well) == "t";
            story.lag();
            is_well
        });
        self.sql("SELECT health, summary FROM nrt.status");
    }

    fn without_sql(&mut self) {
        self.chapter("The same on the command line");
        self.say("It asks no database. Its exit code is 0, 1 (warning) or 2 (critical).");
        let status = self.nrt_backup(&["status"]);
        assert!(status.contains("health     ok"), "all should be well: {status}");
        self.say("And this compares every file on the remote with the repository:");
        self.nrt_backup(&["check"]);
    }

    /// Gives the restored server.
    fn the_machine_vanishes(&mut self, remote: &Remote) -> Cluster {
        self.chapter("The machine is gone");
        self.say("Two clients commit, and note each commit that the server acknowledged. Then, in");
        self.say("the middle of it, every process of the server is killed, and both its data and");
        self.say("its repository are deleted.");
        let mut commits = Commits::begin(&self.cluster, "noted", 2, Duration::from_millis(5));
        sleep(4 * SECOND);
        let promised = self.cluster.value("SELECT shipped_lsn FROM nrt.status");
        let promised: Lsn = promised.parse().expect("an LSN");
        self.page.command("$ kill -9 EVERYTHING; rm -rf $PGDATA REPOSITORY");
        self.cluster.vanish();
        self.say("This is left, in another process and perhaps in another city:");
        self.tree(remote);
        self.say("On a new machine, with the package and rclone's configuration, one first looks:");
        let restored = remote
            .configure(Cluster::without_data("restored"))
            .setting("autovacuum", "off")
            .setting("nrt_backup.full_schedule", "off");
        restored.allow("nrt_backup ship");
        restored.allow("nrt_backup health: ");
        // What a package puts there.
        restored.write_settings();
        let from = [
            format!("--rclone-config={}", remote.config().display()),
            format!("--remote={}", remote.place(NAME)),
        ];
        let from: Vec<&str> = from.iter().map(String::as_str).collect();
        self.nrt_backup_for(&restored, &[&["plan"], &from[..]].concat());
        self.say(
            "and then has it back. (--original: we know that the other one is gone; without it",
        );
        self.say(
            "the command waits for a sign of life, and lets a copy of a living server be one.)",
        );
        let began = Instant::now();
        self.nrt_backup_for(
            &restored,
            &[&["restore"], &from[..], &["--original", "--no-start"]].concat(),
        );
        self.page.command("$ pg_ctl start");
        restored.start();
        self.say(&format!(
            "{:.1} seconds after the first look a server runs, and holds all that was confirmed:",
            began.elapsed().as_secs_f64()
        ));
        self.sql_on(&restored, "SELECT count(*) AS commits_of_the_two_clients FROM noted");
        let lost = commits.lost(&restored);
        let broken = lost.iter().filter(|commit| commit.lsn <= promised).count();
        assert_eq!(broken, 0, "commits before {promised} are lost");
        let made = commits.made();
        let last = made.iter().map(|commit| commit.at).max();
        let first_lost = lost.iter().map(|commit| commit.at).min();
        let seconds = last.zip(first_lost).map_or(Duration::ZERO, |(last, lost)| last - lost);
        self.say(&format!(
            "Of {} acknowledged commits {} are lost: those of the last {:.2} seconds.",
            made.len(),
            lost.len(),
            seconds.as_secs_f64()
        ));
        assert!(seconds < Duration::from_secs(5), "that is more than it may be");
        self.say(
            "It is protected again, too: a full backup starts by itself, and when it has taken",
        );
        self.say("the remote over, the history there goes on, on a new timeline.");
        self.nrt_backup_for(&restored, &["takeover"]);
        restored.wait_for(
            "SELECT bool_or(trigger = 'startup' AND status = 'succeeded') FROM nrt.backup_history",
            "t",
            PATIENCE,
        );
        restored.wait_for(
            "SELECT health = 'ok' AND offsite_backups > 1 AND shipped_lsn >= last_backup_lsn
             FROM nrt.status",
            "t",
            PATIENCE,
        );
        self.sql_on(
            &restored,
            "SELECT label, trigger, status, stop_lsn FROM nrt.backup_history\n\
             WHERE trigger = 'startup'",
        );
        self.sql_on(&restored, "SELECT health, summary FROM nrt.status");
        restored
    }

    fn end(mut self, restored: Cluster, remote: Remote) {
        self.chapter("A clean end");
        let took = restored.stop(Shutdown::Fast);
        let Story { cluster, page, began, .. } = self;
        let directories = [
            cluster.directory().to_path_buf(),
            restored.directory().to_path_buf(),
            remote.config().parent().map(PathBuf::from).expect("it is in a directory"),
        ];
        // Also fails if the server's log holds a warning that this story did not cause.
        drop(cluster);
        drop(restored);
        drop(remote);
        for directory in directories {
            let left = processes_mentioning(&directory);
            assert!(left.is_empty(), "processes were left behind: {left:?}");
            assert!(!directory.exists(), "\"{}\" was left behind", directory.display());
        }
        page.say(&format!("The restored server stopped in {} ms.", took.as_millis()));
        page.say("Processes left: none. Directories left: none.");
        page.say(&format!("It took {} seconds.", began.elapsed().as_secs()));
    }
}

// The steps.
impl Story {
    fn chapter(&mut self, title: &str) {
        self.chapters += 1;
        self.page.heading(self.chapters, title, self.began.elapsed());
    }

    fn say(&self, text: &str) {
        self.page.say(text);
    }

    fn show<T: AsRef<str>>(&self, lines: impl IntoIterator<Item = T>) {
        for line in lines {
            self.page.show(line.as_ref());
        }
    }

    /// Runs a statement through psql, in view of the reader, and gives what psql printed.
    fn sql(&self, statement: &str) -> String {
        self.sql_on(&self.cluster, statement)
    }

    fn sql_on(&self, cluster: &Cluster, statement: &str) -> String {
        let output = self.psql(cluster, statement);
        assert!(output.status.success(), "{statement}: {}", words(&output));
        words(&output)
    }

    /// Runs a statement that has to fail, in view of the reader, and gives the error.
    fn refused(&self, statement: &str) -> String {
        let output = self.psql(&self.cluster, statement);
        assert!(!output.status.success(), "{statement} succeeded");
        words(&output)
    }

    /// Runs a statement, with its result on its side where it ends in `\gx`, as in psql.
    fn psql(&self, cluster: &Cluster, statement: &str) -> Output {
        let (sql, aside) = match statement.strip_suffix(" \\gx") {
            Some(sql) => (sql, "expanded=on"),
            None => (statement, "expanded=off"),
        };
        let end = if sql == statement { ";" } else { "" };
        let prompts = std::iter::once("postgres=#").chain(std::iter::repeat("postgres-#"));
        let lines: Vec<&str> = statement.lines().collect();
        for ((number, line), prompt) in lines.iter().enumerate().zip(prompts) {
            let end = if number + 1 == lines.len() { end } else { "" };
            self.page.command(&format!("{prompt} {line}{end}"));
        }
        let columns = format!("columns={}", WIDTH - Page::INDENT.len());
        let mut psql = cluster.client("psql");
        psql.arg("-X");
        for option in ["pager=off", "format=wrapped", "footer=off", aside, &columns] {
            psql.args(["-P", option]);
        }
        let output = run(psql.args(["-c", sql]));
        self.show(words(&output).trim_end().lines());
        output
    }

    /// Runs a statement with a path in it that is shown without its directories.
    fn sql_without_paths(&self, statement: &str, path: &str) {
        let file = path.rsplit('/').next().unwrap_or(path);
        let shown = statement.replace(path, &format!("SCRATCH/{file}"));
        self.page.command(&format!("postgres=# {shown};"));
        self.cluster.sql(statement);
    }

    /// One line about how far the remote is behind.
    fn lag(&mut self) {
        // What was logged before it comes before it.
        self.news();
        let line = self.cluster.value(
            "SELECT format('%s  off-site up to %s behind %s s %s %s %s commits  %s',
                    to_char(clock_timestamp(), 'HH24:MI:SS'), rpad(shipped_lsn::text, 10),
                    to_char(extract(epoch FROM ship_lag), '90.9'),
                    lpad(pg_size_pretty(ship_lag_bytes), 9),
                    rpad(repeat('#', least(ceil(extract(epoch FROM ship_lag)), 12)::int), 12, '.'),
                    lpad((SELECT count(*) FROM pgbench_history)::text, 5), health)
             FROM nrt.status",
        );
        self.show([line]);
    }

    /// Runs nrt-backup for the server, in view of the reader, and gives what it printed.
    fn nrt_backup(&self, arguments: &[&str]) -> String {
        self.nrt_backup_for(&self.cluster, arguments)
    }

    fn nrt_backup_for(&self, cluster: &Cluster, arguments: &[&str]) -> String {
        // A path is shown by its last part.
        let shown = arguments.iter().map(|word| match word.split_once("=/") {
            Some((option, path)) => {
                format!("{option}=SCRATCH/{}", path.rsplit('/').next().unwrap_or(path))
            }
            None => (*word).to_string(),
        });
        let shown: Vec<String> = shown.collect();
        self.page.command(&format!("$ nrt-backup {} -D $PGDATA", shown.join(" ")));
        let installation = cluster.installation();
        let mut command = installation.command(installation.program("nrt-backup"));
        let output = run(command.args(arguments).arg("-D").arg(cluster.data()));
        // Progress comes before what came of it.
        self.show(String::from_utf8_lossy(&output.stderr).lines());
        self.show(String::from_utf8_lossy(&output.stdout).lines());
        assert!(output.status.success(), "nrt-backup ended with {}", output.status);
        words(&output)
    }

    /// Shows what a remote holds.
    fn tree(&self, remote: &Remote) {
        let place = remote.place(NAME);
        self.page.command(&format!("$ rclone tree --level 2 --noreport {place}"));
        let tree = remote.rclone(&["tree", "--level", "2", "--noreport", &place]);
        self.show(tree.lines());
    }

    fn chmod(&self, mode: &str) {
        self.page.command(&format!("$ chmod {mode} REPOSITORY"));
        let output = run(self
            .cluster
            .installation()
            .command("chmod")
            .arg(mode)
            .arg(self.cluster.repository()));
        assert!(output.status.success(), "chmod failed: {}", words(&output));
    }

    fn expect(&self, what: &str, statement: &str, expected: &str) {
        let value = self.cluster.value(statement);
        assert_eq!(value, expected, "{what}");
    }

    /// Shows what the worker has written to the server's log since the last time.
    fn news(&mut self) {
        let log = self.cluster.log();
        let end = log.rfind('\n').map_or(0, |newline| newline + 1);
        let mut of_worker = false;
        for line in log[self.log_shown.min(end)..end].lines() {
            // <TIME|PROCESS|PID|SQLSTATE> MESSAGE
            if let Some((prefix, text)) = line.split_once("> ") {
                let mut fields = prefix.trim_start_matches('<').split('|');
                let time = fields.next().and_then(|time| time.split(' ').nth(1)).unwrap_or("");
                of_worker = fields.next() == Some("nrt_backup worker");
                if of_worker {
                    self.page.log(&format!("{time} {text}"));
                }
            } else if of_worker {
                self.page.log(line);
            }
        }
        self.log_shown = end.max(self.log_shown);
    }

    /// Shows the log until it holds something.
    fn follow(&mut self, what: &str, mut is_there: impl FnMut(&str) -> bool) {
        self.poll(what, Duration::from_millis(100), |story| {
            let log = story.cluster.log();
            is_there(&log)
        });
    }

    /// Looks once a second, and shows the log meanwhile.
    fn watch(&mut self, what: &str, is_true: impl FnMut(&mut Story) -> bool) {
        self.poll(what, SECOND, is_true);
    }

    fn poll(
        &mut self,
        what: &str,
        interval: Duration,
        mut is_true: impl FnMut(&mut Story) -> bool,
    ) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let done = is_true(self);
            self.news();
            if done {
                return;
            }
            assert!(Instant::now() < deadline, "after {} s: {what}", PATIENCE.as_secs());
            sleep(interval);
        }
    }

    /// Waits until no backup runs and the query gives a 1.
    fn settled(&mut self, query: &str) {
        let query = format!("SELECT activity = 'idle' AND ({query}) >= 1 FROM nrt.status");
        self.poll("the backup finishes", Duration::from_millis(100), |story| {
            story.cluster.value(&query) == "t"
        });
    }

    /// Counts the seconds down to the schedule's next run and waits until a query gives true.
    fn count_down(&mut self, what: &str, query: &str) {
        let next = "SELECT to_char(next_run, 'HH24:MI:SS'), \
                    greatest(ceil(extract(epoch FROM next_run - now())), 0)::int \
                    FROM nrt.schedule WHERE type = 'incr' AND next_run < now() + interval '1 minute'";
        let mut told = None;
        self.poll(what, Duration::from_millis(200), |story| {
            if story.cluster.value(query) == "t" {
                story.page.end_of_count_down();
                return true;
            }
            let rows = story.cluster.sql(next);
            if let Some([at, seconds]) = rows.first().map(Vec::as_slice)
                && told.as_ref() != Some(seconds)
            {
                story.page.count_down(at, seconds);
                told = Some(seconds.clone());
            }
            false
        });
    }
}

/// Standard output, with colours where somebody sees them.
struct Page {
    colours: bool,
}

impl Page {
    const INDENT: &str = "  ";
    const BOLD: &str = "1";
    const GREEN: &str = "32";
    const CYAN: &str = "36";

    fn heading(&self, number: u32, title: &str, elapsed: Duration) {
        let seconds = elapsed.as_secs();
        let left = format!("── {number}. {title} ");
        let right = format!(" {}:{:02}", seconds / 60, seconds % 60);
        let rule = WIDTH.saturating_sub(left.chars().count() + right.len());
        println!("\n{}", self.in_colour(Page::BOLD, &format!("{left}{}{right}", "─".repeat(rule))));
    }

    fn say(&self, text: &str) {
        println!("{text}");
    }

    fn command(&self, text: &str) {
        println!("{}{}", Page::INDENT, self.in_colour(Page::CYAN, text));
    }

    fn show(&self, line: &str) {
        for part in folded(line, WIDTH - Page::INDENT.len()) {
            println!("{}{part}", Page::INDENT);
        }
    }

    fn log(&self, line: &str) {
        // The clock may stand on this line.
        self.end_of_count_down();
        for part in folded(line, WIDTH - Page::INDENT.len()) {
            println!("{}{}", Page::INDENT, self.in_colour(Page::GREEN, &part));
        }
    }

    /// One line that changes for somebody who looks on, else a line every ten seconds.
    fn count_down(&self, at: &str, seconds: &str) {
        let text = format!("{}next run at {at}, in {seconds} s", Page::INDENT);
        if self.colours {
            print!("\r{text} \x1b[K");
            // A terminal that is gone is noticed at the next line.
            let _ = stdout().flush();
        } else if seconds.ends_with('0') {
            println!("{text}");
        }
    }

    fn end_of_count_down(&self) {
        if self.colours {
            print!("\r\x1b[K");
        }
    }

    fn in_colour(&self, colour: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_string() }
    }
}

/// Breaks a line that is too long at its blanks; what follows is indented.
fn folded(line: &str, width: usize) -> Vec<String> {
    let mut parts = Vec::new();
    let mut rest = line.to_string();
    while rest.chars().count() > width {
        let limit = rest.char_indices().nth(width).map_or(rest.len(), |(at, _)| at);
        let cut = rest[..limit].rfind(' ').filter(|at| !rest[..*at].trim().is_empty());
        let after = rest.split_off(cut.unwrap_or(limit));
        parts.push(std::mem::replace(&mut rest, format!("      {}", after.trim_start())));
    }
    parts.push(rest);
    parts
}

fn run(command: &mut Command) -> Output {
    let output = command.stdin(std::process::Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// All that a program printed.
fn words(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

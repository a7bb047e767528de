//! One machine and its remote: makes the faults of a script, lets the host vanish, restores it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant, SystemTime};

use nrt_core::lsn::Lsn;
use nrt_core::offsite::Status;
use nrt_core::offsite::owner::{self, Owner};
use nrt_tests::{Cluster, Process, Remote, is_root, kill, wait_until};
use rustix::process::Signal;

use crate::ledger::{self, Claim, Claims, Ledger, Writers};
use crate::script::{Event, Fault, Planned, Round, Script, Target, Vanish, What};
use crate::tally::{Log, Tally};
use crate::watcher::Watcher;

/// The name that the cluster has off-site.
const NAME: &str = "main";
/// Megabytes of the disks that are filled.
const DISK: u32 = 256;
/// How long a restore, or shipping that has to go on, may take. Pauses between tries grow to ten
/// seconds, a server that nobody hears of counts as alive for a minute, and the machine may be busy
/// with other worlds.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);
/// Bytes that a record of WAL has at most here: some pages, or a message of the script's.
const RECORD: u64 = 65_536;
/// How long a process that is to be killed is waited for.
const SEARCH: Duration = Duration::from_secs(3);
/// How often something that is waited for is looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// The first client of machines that are no production: no restored server may have rows of theirs.
pub(crate) const STRANGERS: i32 = 100;

/// Ends a world: what was found is in the tally.
#[derive(Debug)]
pub(crate) struct Over;

/// Plays the world of a seed up to so many faults.
pub(crate) fn play(seed: u64, faults: usize, log: &Log, tally: &mut Tally) {
    let mut script = Script::new(seed, is_root());
    let mut world = World::make(seed, &script, log.clone());
    crate::guarded(tally, log, |tally| world.play(&mut script, faults, tally));
    tally.acknowledged += world.ledger.acknowledged();
    if !tally.is_clean() {
        keep(&[world.cluster.directory(), world.remote.directory()], &seed.to_string(), log);
    }
}

/// Copies directories to where they outlive the soak.
pub(crate) fn keep(directories: &[&Path], name: &str, log: &Log) {
    let place = PathBuf::from(format!("/var/tmp/nrt-soak-{name}"));
    let _ = fs::remove_dir_all(&place);
    let copied = fs::create_dir_all(&place).is_ok()
        && directories.iter().all(|directory| {
            let mut copy = Command::new("cp");
            copy.args(["-a", "--reflink=auto"]).arg(directory).arg(&place);
            copy.status().is_ok_and(|it| it.success())
        });
    match copied {
        true => log.line(format_args!("kept in \"{}\"", place.display())),
        false => log.line(format_args!("not all could be kept in \"{}\"", place.display())),
    }
}

/// A fault that lasts.
struct Lasting {
    fault: Fault,
    /// Processes that stand still.
    frozen: Vec<i32>,
}

/// How the remote's server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    Up,
    Down,
    Frozen,
}

pub(crate) struct World {
    // Fields are dropped in this order: clients before the server, the server before its remote.
    writers: Option<Writers>,
    watcher: Watcher,
    pub(crate) cluster: Cluster,
    pub(crate) remote: Remote,
    pub(crate) log: Log,
    pub(crate) ledger: Ledger,
    server: Server,
    lasting: Vec<Lasting>,
    timeline: u32,
    restores: u32,
    asked: Vec<JoinHandle<()>>,
}

impl World {
    fn make(seed: u64, script: &Script, log: Log) -> World {
        let remote = match is_root() {
            true => Remote::on_tmpfs(&format!("soak-{seed}"), script.remote, DISK),
            false => Remote::new(&format!("soak-{seed}"), script.remote),
        };
        let mut cluster = Cluster::with_segments_of(&format!("soak-{seed}"), script.segment);
        if is_root() {
            cluster = cluster.repository_on_tmpfs(DISK);
        }
        let cluster = configured(remote.configure(cluster), script.interval);
        World::of(cluster, remote, log, script)
    }

    /// A world whose server has not been started yet.
    pub(crate) fn of(cluster: Cluster, remote: Remote, log: Log, script: &Script) -> World {
        log.line(format_args!(
            "a cluster with WAL segments of {} MB and a ship_interval of {} ms, and a remote of the \
             kind {}",
            script.segment,
            script.interval,
            script.remote.word()
        ));
        World {
            writers: None,
            watcher: Watcher::new(cluster.socket()),
            cluster,
            remote,
            log,
            ledger: Ledger::new(0),
            server: Server::Up,
            lasting: Vec::new(),
            timeline: 1,
            restores: 0,
            asked: Vec::new(),
        }
    }

    fn play(&mut self, script: &mut Script, faults: usize, tally: &mut Tally) -> Result<(), Over> {
        self.begin(tally)?;
        let mut left = faults;
        let mut has_vanished = false;
        while left > 0 {
            let round = script.round(left);
            left -= round.faults();
            self.round(&round, tally)?;
            has_vanished = round.vanish.is_some();
        }
        self.compare(tally);
        if !has_vanished {
            self.vanish(Vanish { at: 0, takeover: true }, tally)?;
        }
        self.close();
        Ok(())
    }

    /// Starts the server and its clients, and waits until it ships.
    pub(crate) fn begin(&mut self, tally: &mut Tally) -> Result<(), Over> {
        self.cluster.start();
        begin(&self.cluster);
        self.writers = Some(self.ledger.write(self.cluster.socket()));
        self.open();
        self.ships(tally, "the first start")
    }

    /// Another server is the production from now on; the one that was comes back. Clients wait until
    /// it is [opened](World::open).
    pub(crate) fn move_to(&mut self, cluster: Cluster) -> Cluster {
        self.close();
        self.writers = Some(self.ledger.write(cluster.socket()));
        self.watcher = Watcher::new(cluster.socket());
        std::mem::replace(&mut self.cluster, cluster)
    }

    fn round(&mut self, round: &Round, tally: &mut Tally) -> Result<(), Over> {
        let begin = Instant::now();
        let mut words = Vec::new();
        // What is lifted: when, and which fault of `lasting`.
        let mut lifts: Vec<(Duration, Fault)> = Vec::new();
        let end = round.vanish.map(|it| Duration::from_millis(it.at));
        let mut planned: Vec<Planned> = round.planned.iter().rev().copied().collect();
        loop {
            let next = planned.last().map(|it| Duration::from_millis(it.at));
            let lift = lifts.iter().min_by_key(|(at, _)| *at).copied();
            let (at, what) = match (next, lift) {
                (Some(next), Some((lift, _))) if next <= lift => (next, planned.pop()),
                (Some(next), None) => (next, planned.pop()),
                (_, Some((lift, _))) => (lift, None),
                (None, None) => break,
            };
            if end.is_some_and(|end| end <= at) {
                break;
            }
            sleep(at.saturating_sub(begin.elapsed()));
            match (what.map(|it| it.what), lift) {
                (Some(What::Event(event)), _) => {
                    self.log.line(event);
                    self.event(event);
                }
                (Some(What::Fault(fault, lasts)), _) => {
                    tally.faults += 1;
                    let made = self.fault(fault, lasts);
                    let note = if made { "" } else { ": nothing was there to be hit" };
                    self.log.line(format_args!("fault {}: {fault}{note}", tally.faults));
                    words.push(fault.to_string());
                    if self.lasting.iter().any(|it| it.fault == fault) {
                        lifts.push((begin.elapsed() + Duration::from_millis(lasts), fault));
                    }
                }
                (None, Some(lifted)) => {
                    lifts.retain(|it| *it != lifted);
                    self.lift(lifted.1);
                }
                (None, None) => {}
            }
        }
        if let Some(vanish) = round.vanish {
            sleep(Duration::from_millis(vanish.at).saturating_sub(begin.elapsed()));
            tally.faults += 1;
            return self.vanish(vanish, tally);
        }
        self.lift_all();
        self.start_again();
        self.ships(tally, &words.join(" + "))
    }

    // -------------------------------------------------------------------------- faults and events

    fn event(&mut self, event: Event) {
        match event {
            Event::Backup(kind) => self.ask(format!("select nrt_backup_start('{kind}')")),
            Event::Switch => self.ask("select pg_switch_wal()".to_string()),
            Event::Checkpoint => self.ask("checkpoint".to_string()),
            Event::Write(kilobytes) => self.ask(format!(
                "select pg_logical_emit_message(true, 'soak', repeat(md5(i::text), 32))
                 from generate_series(1, {kilobytes}) i"
            )),
        }
    }

    /// Runs SQL beside everything else: where a process stands still it may wait for long, and where
    /// one dies it fails.
    fn ask(&mut self, sql: String) {
        let socket = self.cluster.socket();
        self.asked.push(thread::spawn(move || {
            if let Some(mut client) = ledger::session(&socket) {
                let _ = client.batch_execute(&sql);
            }
        }));
    }

    /// Makes a fault. `false` where what it hits is not there.
    fn fault(&mut self, fault: Fault, lasts: u64) -> bool {
        match fault {
            Fault::Kill(Target::Postmaster) => {
                self.thaw_processes();
                if self.cluster.is_running() {
                    self.cluster.crash();
                }
                self.start_again();
                true
            }
            Fault::Kill(target) => {
                let found = self.find(target);
                found.iter().for_each(|pid| kill(*pid, Signal::KILL));
                !found.is_empty()
            }
            Fault::Freeze(target) => {
                let found = self.find(target);
                found.iter().for_each(|pid| kill(*pid, Signal::STOP));
                let made = !found.is_empty();
                self.lasting.push(Lasting { fault, frozen: found });
                made
            }
            Fault::Stop(how) => {
                self.thaw_processes();
                if self.cluster.is_running() {
                    self.cluster.stop(how);
                }
                self.start_again();
                true
            }
            Fault::KillBackup(kind) => self.kill_backup(kind, lasts),
            Fault::RemoteDown | Fault::RemoteFrozen => {
                if self.server != Server::Up {
                    return false;
                }
                if fault == Fault::RemoteDown {
                    self.remote.kill();
                    self.server = Server::Down;
                } else {
                    self.remote.freeze();
                    self.server = Server::Frozen;
                }
                self.last(fault)
            }
            Fault::RemoteFull | Fault::RemoteReadOnly | Fault::RepositoryFull => {
                if self.lasting.iter().any(|it| it.fault == fault) {
                    return false;
                }
                match fault {
                    Fault::RemoteFull => self.remote.fill(),
                    Fault::RemoteReadOnly => self.remote.read_only(true),
                    _ => self.cluster.fill_repository(),
                }
                self.last(fault)
            }
        }
    }

    fn last(&mut self, fault: Fault) -> bool {
        self.lasting.push(Lasting { fault, frozen: Vec::new() });
        true
    }

    fn kill_backup(&mut self, kind: &str, lasts: u64) -> bool {
        self.ask(format!("select nrt_backup_start('{kind}')"));
        let is_backup = |it: &Process| {
            it.command.ends_with(" backup")
                && it.command.contains("pgbackrest")
                && !it.command.contains("nrt-backup leash")
        };
        let found = self.search(is_backup);
        if !found.is_empty() {
            sleep(Duration::from_millis(lasts % 1000));
        }
        // It may have ended, or started its helpers.
        let found: Vec<Process> = self.cluster.processes().into_iter().filter(is_backup).collect();
        found.iter().for_each(|it| kill(it.pid, Signal::KILL));
        !found.is_empty()
    }

    /// The process that a fault hits: the oldest one of its kind.
    fn find(&self, target: Target) -> Vec<i32> {
        if target == Target::Postmaster {
            return if self.cluster.is_running() {
                vec![self.cluster.postmaster()]
            } else {
                vec![]
            };
        }
        self.search(|it| is_target(it, target))
    }

    fn search(&self, is_wanted: impl Fn(&Process) -> bool) -> Vec<i32> {
        let deadline = Instant::now() + SEARCH;
        loop {
            let all = self.cluster.processes();
            if let Some(first) = all.iter().find(|it| is_wanted(it)) {
                return vec![first.pid];
            }
            if Instant::now() > deadline {
                return Vec::new();
            }
            sleep(INTERVAL);
        }
    }

    fn lift(&mut self, fault: Fault) {
        let Some(place) = self.lasting.iter().position(|it| it.fault == fault) else { return };
        let lasting = self.lasting.remove(place);
        self.end(&lasting);
    }

    fn end(&mut self, lasting: &Lasting) {
        lasting.frozen.iter().for_each(|pid| kill(*pid, Signal::CONT));
        match lasting.fault {
            Fault::RemoteDown if self.server == Server::Down => {
                self.remote.start();
                self.server = Server::Up;
            }
            Fault::RemoteFrozen if self.server == Server::Frozen => {
                self.remote.thaw();
                self.server = Server::Up;
            }
            Fault::RemoteFull => self.remote.make_room(),
            Fault::RemoteReadOnly => self.remote.read_only(false),
            Fault::RepositoryFull => self.cluster.make_room_in_repository(),
            _ => {}
        }
        self.log.line(format_args!("lifted: {}", lasting.fault));
    }

    fn lift_all(&mut self) {
        while let Some(lasting) = self.lasting.pop() {
            self.end(&lasting);
        }
        for asked in self.asked.drain(..) {
            // One that panicked has said so.
            let _ = asked.join();
        }
    }

    /// Lets all processes go on, before a server is stopped that would wait for them.
    fn thaw_processes(&mut self) {
        let (frozen, left): (Vec<_>, Vec<_>) =
            self.lasting.drain(..).partition(|it| matches!(it.fault, Fault::Freeze(_)));
        self.lasting = left;
        frozen.iter().for_each(|it| self.end(it));
    }

    /// Starts the server as a service manager does, if it does not run.
    fn start_again(&self) {
        start_again(&self.cluster);
    }

    // -------------------------------------------------------------------------- judging

    /// Lets clients write to the server, which may be another one than before.
    pub(crate) fn open(&mut self) {
        self.timeline = timeline(&self.cluster);
        self.ledger.open(self.timeline);
        self.watcher.open();
    }

    /// Lets clients wait.
    pub(crate) fn close(&self) {
        self.ledger.close();
        self.watcher.close();
    }

    /// Waits until what is committed now is off-site.
    pub(crate) fn ships(&self, tally: &mut Tally, after: &str) -> Result<(), Over> {
        tally.above += self.watcher.findings(&self.log, &mut tally.words);
        let begin = Instant::now();
        match ships(&self.cluster, LIMIT) {
            Ok(mark) => {
                let took = begin.elapsed().as_secs_f64();
                self.log.line(format_args!("ships past {mark} after {took:.1} s"));
                Ok(())
            }
            Err(words) => {
                tally.stuck += 1;
                self.found(tally, format!("shipping does not go on after {after}: {words}"));
                Err(Over)
            }
        }
    }

    /// Has the remote compared with the repository. A failure to ship in that moment is no difference:
    /// it is tried again.
    fn compare(&self, tally: &mut Tally) {
        let mut words = String::new();
        for _ in 0..3 {
            let (code, text) = nrt_backup(&self.cluster, "check", &[], "check");
            self.log.line(format_args!("check: exit code {code:?}"));
            if code == Some(0) || code == Some(1) {
                return;
            }
            words = text;
            if ships(&self.cluster, LIMIT).is_err() {
                break;
            }
        }
        tally.different += 1;
        self.found(tally, format!("the remote differs from the repository: {words}"));
    }

    pub(crate) fn found(&self, tally: &mut Tally, words: String) {
        let words = words.trim().to_string();
        self.log.line(format_args!("FOUND {words}"));
        tally.words.push(words);
    }

    /// Kills everything at once, throws the machine's files away, and restores what is off-site.
    pub(crate) fn vanish(&mut self, vanish: Vanish, tally: &mut Tally) -> Result<(), Over> {
        self.close();
        self.cluster.freeze();
        let claims = self.claims();
        self.cluster.cut_power();
        tally.vanished += 1;
        let under: Vec<String> = self.lasting.iter().map(|it| it.fault.to_string()).collect();
        self.log.line(format_args!(
            "the host vanishes{}",
            if under.is_empty() { String::new() } else { format!(" while {}", under.join(", ")) }
        ));
        self.lasting.retain(|it| !matches!(it.fault, Fault::Freeze(_)));
        self.lift_all();
        let gone = self.cluster.directory().join("data.gone");
        let _ = fs::remove_dir_all(&gone);
        fs::rename(self.cluster.data(), &gone).expect("both are in one directory");
        self.cluster.lose_repository();
        self.cluster.write_settings();

        self.restores += 1;
        let config = format!("--rclone-config={}", self.remote.config().display());
        let place = format!("--remote={}", self.remote.place(NAME));
        let arguments = ["--latest", "--no-start", &config, &place];
        let begin = Instant::now();
        let (code, text) =
            nrt_backup(&self.cluster, "restore", &arguments, &format!("restore-{}", self.restores));
        if code != Some(0) {
            tally.not_back += 1;
            self.found(tally, format!("restore --latest, exit code {code:?}: {text}"));
            return Err(Over);
        }
        if let Err(log) = self.cluster.try_start() {
            tally.not_back += 1;
            self.found(tally, format!("the restored server does not start: {log}"));
            return Err(Over);
        }
        let took = begin.elapsed().as_secs_f64();
        self.judge(&text, &gone, &claims, took, tally)?;
        self.open();
        self.takes_the_remote(vanish.takeover.then_some(&[]), "a restore", tally)
    }

    /// Waits until a server ships to a remote that was another one's: because the operator says so,
    /// with these options of `nrt-backup takeover`, or because that one has been silent for long enough.
    pub(crate) fn takes_the_remote(
        &self,
        takeover: Option<&[&str]>,
        after: &str,
        tally: &mut Tally,
    ) -> Result<(), Over> {
        if let Some(options) = takeover {
            let (code, text) = nrt_backup(&self.cluster, "takeover", options, "takeover");
            self.log.line(format_args!("takeover: {code:?}, {}", text.trim()));
        }
        self.ships(tally, after)
    }

    /// All that is claimed at the moment, while everything stands still.
    fn claims(&self) -> Claims {
        let mut claims = Claims::default();
        for (by, lsn) in self.watcher.claims() {
            claims.positions.push(Claim { by, timeline: self.timeline, lsn });
        }
        let ship = fs::read(self.cluster.state_directory().join("ship.json")).ok();
        let status: Option<Status> = ship.and_then(|text| serde_json::from_slice(&text).ok());
        if let Some(shipped) = status.and_then(|it| it.shipped) {
            let (timeline, lsn) = (shipped.timeline, shipped.flushed);
            claims.positions.push(Claim { by: "ship.json", timeline, lsn });
        }
        // Half written files promise nothing, and others than this server promise for themselves.
        let files = self.remote.files(NAME);
        let instance = instance(&self.cluster);
        for by in [owner::FILE, "owner.json.copy"] {
            let text = fs::read(files.join(by)).ok();
            let owner: Option<Owner> = text.and_then(|text| serde_json::from_slice(&text).ok());
            let Some(owner) = owner.filter(|it| Some(&it.instance) == instance.as_ref()) else {
                continue;
            };
            if let Some(shipped) = owner.shipped {
                let (timeline, lsn) = (shipped.timeline, shipped.flushed);
                claims.positions.push(Claim { by: "owner.json", timeline, lsn });
            }
            let until = owner.complete_until.map(SystemTime::from);
            claims.complete_until = claims.complete_until.max(until);
        }
        claims
    }

    /// Compares a restored server, which nobody has written to, with the ledger and the claims.
    fn judge(
        &mut self,
        restore: &str,
        gone: &Path,
        claims: &Claims,
        took: f64,
        tally: &mut Tally,
    ) -> Result<(), Over> {
        let before = (tally.lost, tally.mixed, tally.above, tally.not_back);
        let held = held(&self.cluster);
        let wrong = damage(&self.cluster);
        let mut difference = self.ledger.compare(&held, claims);
        let strangers = held.iter().filter(|(client, _)| *client >= STRANGERS);
        let strangers = strangers.map(|(client, row)| format!("client {client} row {row}"));
        difference.abandoned.extend(strangers);
        let reached = reached(restore);
        self.log.line(format_args!(
            "restored in {took:.1} s to {}: {} rows are there, {} were lost that nobody had claimed",
            reached.map_or("an unknown position".to_string(), |it| it.to_string()),
            difference.kept,
            difference.unclaimed
        ));
        tally.unclaimed += difference.unclaimed;
        if !difference.lost.is_empty() {
            tally.lost += difference.lost.len();
            let some: Vec<&str> = difference.lost.iter().take(5).map(String::as_str).collect();
            let lost = difference.lost.len();
            self.found(
                tally,
                format!("{lost} commits lost: {}; claims {claims:?}", some.join("; ")),
            );
        }
        if !difference.abandoned.is_empty() {
            tally.mixed += difference.abandoned.len();
            let some: Vec<&str> = difference.abandoned.iter().take(5).map(String::as_str).collect();
            self.found(tally, format!("rows of an abandoned life: {}", some.join("; ")));
        }
        if let Some(words) = wrong {
            tally.not_back += 1;
            self.found(tally, format!("the restored server is damaged: {words}"));
        }
        if let Some(reached) = reached {
            for claim in claims.positions.iter().filter(|it| it.timeline == self.timeline) {
                if claim.lsn > reached && is_above(&self.cluster, gone, claim, reached) {
                    tally.above += 1;
                    let Claim { by, timeline, lsn } = claim;
                    let claimed = format!("{by} claimed {lsn} on timeline {timeline}");
                    self.found(tally, format!("restored to {reached}, and yet {claimed}"));
                }
            }
        }
        match before == (tally.lost, tally.mixed, tally.above, tally.not_back) {
            true => Ok(()),
            false => Err(Over),
        }
    }
}

/// Sets what all servers of a soak have.
pub(crate) fn configured(cluster: Cluster, interval: u64) -> Cluster {
    // Faults are made on purpose, and the tally judges.
    cluster.allow("");
    cluster
        .setting("nrt_backup.full_schedule", "off")
        .setting("nrt_backup.incremental_schedule", "off")
        .setting("nrt_backup.wal_monitor", "off")
        .setting("nrt_backup.ship_interval", &interval.to_string())
        .setting("checkpoint_timeout", "30s")
}

/// Makes what the clients write to, in a server that runs, and waits until its first backup is
/// off-site.
pub(crate) fn begin(cluster: &Cluster) {
    cluster.sql("create extension nrt_backup; create extension amcheck");
    cluster.sql(ledger::CREATE_TABLE);
    cluster.wait_for(
        "select coalesce(offsite_backups > 0, false) and shipping = 'shipping' from nrt.status",
        "t",
        LIMIT,
    );
}

/// Starts a server as a service manager does, if it does not run. Processes of the one before may
/// need a moment to end.
pub(crate) fn start_again(cluster: &Cluster) {
    wait_until("the server starts", LIMIT, || cluster.is_running() || cluster.try_start().is_ok());
}

/// Commits something and waits until it is off-site: its position, or why not.
pub(crate) fn ships(cluster: &Cluster, limit: Duration) -> Result<Lsn, String> {
    let deadline = Instant::now() + limit;
    let mut mark: Option<Lsn> = None;
    let mut last = String::new();
    while Instant::now() < deadline {
        sleep(INTERVAL * 2);
        let Some(mut client) = ledger::session(&cluster.socket()) else {
            if !cluster.is_running() {
                last = "the server does not run".to_string();
            }
            continue;
        };
        let mut value = |sql: &str| {
            let row = client.query_one(sql, &[]).map_err(|it| it.to_string())?;
            row.get::<_, Option<String>>(0).ok_or("NULL".to_string())
        };
        let now = match mark {
            Some(mark) => Ok(mark.to_string()),
            None => value("select pg_logical_emit_message(true, 'soak', 'mark')::text")
                .and_then(|_| value("select pg_current_wal_flush_lsn()::text")),
        };
        match now.map(|it| it.parse::<Lsn>().ok()) {
            Ok(Some(now)) => mark = Some(now),
            Ok(None) => last = "no position".to_string(),
            Err(error) => last = error,
        }
        let Some(mark) = mark else { continue };
        match value("select shipped_lsn::text from nrt.status").map(|it| it.parse::<Lsn>()) {
            Ok(Ok(shipped)) if shipped >= mark => return Ok(mark),
            Ok(shipped) => last = format!("{mark} is committed, {shipped:?} is shipped"),
            Err(error) => last = format!("{mark} is committed, shipped is {error}"),
        }
    }
    let health = cluster.try_sql(
        "select check_name || ' ' || severity || ': ' || message from nrt.health
         where severity <> 'ok'",
    );
    Err(format!("{last}; {health:?}"))
}

/// The name of a server's instance, which it gives to the remote.
fn instance(cluster: &Cluster) -> Option<String> {
    let text = fs::read(cluster.state_directory().join("instance.json")).ok()?;
    let instance: serde_json::Value = serde_json::from_slice(&text).ok()?;
    Some(instance["id"].as_str()?.to_string())
}

/// The timeline that a server writes.
pub(crate) fn timeline(cluster: &Cluster) -> u32 {
    let timeline = cluster.value("select timeline_id from pg_control_checkpoint()");
    timeline.parse().expect("a number")
}

/// The rows that a server holds.
pub(crate) fn held(cluster: &Cluster) -> BTreeSet<(i32, i64)> {
    let rows = cluster.sql(&format!("select client, row from {}", ledger::TABLE));
    let number = |text: &String| text.parse::<i64>().expect("a number");
    rows.iter().map(|row| (number(&row[0]) as i32, number(&row[1]))).collect()
}

/// What is wrong with the rows that a server holds, or with their index.
fn damage(cluster: &Cluster) -> Option<String> {
    let table = ledger::TABLE;
    let wrong = cluster.try_sql(&format!(
        "select count(*) from {table}
         where filler is distinct from repeat(md5(row::text), 1 + (row % 20)::int)"
    ));
    match wrong {
        Ok(rows) if rows == [["0"]] => {}
        other => return Some(format!("{other:?}")),
    }
    let index = cluster.try_sql(&format!("select bt_index_check('{table}_pkey', true)"));
    index.err().map(|it| it.to_string())
}

/// Where a restore ended, as it says.
fn reached(restore: &str) -> Option<Lsn> {
    let line = restore.lines().find_map(|line| line.trim().strip_prefix("recovered "))?;
    line.trim().strip_prefix("to ")?.split_whitespace().next()?.parse().ok()
}

/// Whether the WAL of the machine that is gone has a whole record between where the restore ended,
/// which is the beginning of the last record that was replayed, and the claim.
fn is_above(cluster: &Cluster, gone: &Path, claim: &Claim, reached: Lsn) -> bool {
    let installation = cluster.installation();
    let mut dump = installation.command(installation.program("pg_waldump"));
    let output = dump
        .arg(format!("--path={}", gone.join("pg_wal").display()))
        .arg(format!("--timeline={}", claim.timeline))
        .arg(format!("--start={reached}"))
        .arg(format!("--end={}", claim.lsn))
        .output()
        .expect("it is installed");
    let text = String::from_utf8_lossy(&output.stdout);
    let records = text.lines().filter(|it| it.starts_with("rmgr: ")).count();
    match records {
        // The server had recycled it: the last record that was replayed reaches so far at most.
        0 => claim.lsn.0 - reached.0 > RECORD,
        // The first one was replayed, and the last one may go on behind the claim.
        _ => records > 2,
    }
}

/// Whether a process is one that a fault is meant for.
fn is_target(process: &Process, target: Target) -> bool {
    let command = &process.command;
    let is_leash = command.contains("nrt-backup leash");
    match target {
        Target::Worker => command.starts_with("postgres:") && command.contains("nrt_backup worker"),
        Target::Reporter => command.starts_with("postgres: nrt_backup reporter"),
        Target::Leash => is_leash,
        Target::Ship => command.contains("nrt-backup ship") && !is_leash,
        Target::Rclone => command.contains(" rcd"),
        Target::Archiver => command.starts_with("postgres: archiver"),
        Target::Checkpointer => command.starts_with("postgres: checkpointer"),
        Target::Postmaster => false,
    }
}

/// Runs `nrt-backup` for a cluster, as the server's user: its exit code, if it ended in time, and
/// all that it printed, which is also in a file of the cluster's directory.
pub(crate) fn nrt_backup(
    cluster: &Cluster,
    command: &str,
    arguments: &[&str],
    name: &str,
) -> (Option<i32>, String) {
    let file = cluster.directory().join(format!("{name}.log"));
    let out = File::create(&file).expect("the directory is ours");
    let mut program = cluster.command("nrt-backup");
    program.arg(command).arg("-D").arg(cluster.data()).args(arguments).env("TZ", "UTC");
    program.stdin(Stdio::null()).stderr(out.try_clone().expect("a descriptor is to be had"));
    let mut child = program.stdout(out).spawn().expect("it is installed");
    let deadline = Instant::now() + LIMIT;
    let code = loop {
        match child.try_wait().expect("it is our child") {
            Some(status) => break status.code(),
            None if Instant::now() > deadline => {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            None => sleep(INTERVAL),
        }
    };
    (code, fs::read_to_string(&file).unwrap_or_default())
}

//! Two machines and one remote: clones, snapshots that are put back, standbys that are promoted,
//! rewinds. One of the two is the production; what the other one writes may never mix with that.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nrt_tests::{Cluster, Machine, Remote, Shutdown};

use crate::ledger::Ledger;
use crate::random::Random;
use crate::script::{Script, Vanish};
use crate::tally::{Log, Tally};
use crate::world::{self, Over, STRANGERS, World, configured, held, ships, timeline};

/// How long a production may be without its remote while another machine tries to take that.
const UNSHIPPED: Duration = Duration::from_secs(120);
/// What an operator says where a standby with a repository of its own takes its primary's place: that
/// repository has never held the remote's backups, and replaces nothing there by itself.
const NEW_REPOSITORY: Option<&[&str]> = Some(&["--set-aside"]);
/// How long something is waited for that needs no remote.
const SOON: Duration = Duration::from_secs(120);

/// What happens to the production, or beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scenario {
    /// Its disk is copied while it runs, or while it is stopped, and the copy is started.
    Clone { of_stopped: bool, has_same_id: bool },
    /// A snapshot of its disk is put back.
    RollBack { takeover: bool },
    /// It vanishes, and a standby is promoted.
    Failover,
    /// A standby is promoted by mistake.
    PromotedBeside,
    /// A standby is promoted, the production is rewound to follow it, and promoted in turn.
    Rewind,
}

/// The scenario of a number; five in a row are all of them.
fn scenario(number: u64, random: &mut Random) -> Scenario {
    let (one, other) = (random.one_in(2), random.one_in(2));
    match number % 5 {
        0 => Scenario::Clone { of_stopped: one, has_same_id: other },
        1 => Scenario::RollBack { takeover: one },
        2 => Scenario::Failover,
        3 => Scenario::PromotedBeside,
        _ => Scenario::Rewind,
    }
}

/// Plays the world of a seed up to so many scenarios. After each one the production vanishes and is
/// restored.
pub(crate) fn play(seed: u64, scenarios: usize, log: &Log, tally: &mut Tally) {
    let mut script = Script::new(seed, true);
    // What initdb makes by default: disks are copied from one template.
    script.segment = 16;
    let remote = Remote::new(&format!("soak-{seed}"), script.remote);
    let cluster = Cluster::on_disk(&format!("soak-{seed}"));
    let cluster = configured(remote.configure(cluster), script.interval);
    // pg_rewind reads the WAL since the last checkpoint before the fork.
    let cluster = cluster.setting("wal_keep_size", "1GB");
    let first = Machine::new(seed << 8);
    cluster.boot(first.clone());
    let world = World::of(cluster, remote, log.clone(), &script);
    let mut machines = Machines {
        world,
        interval: script.interval,
        production: first,
        seed,
        made: 0,
        runs: 1,
        strangers: STRANGERS,
    };
    let mut random = Random::new(seed);
    crate::guarded(tally, log, |tally| {
        machines.world.begin(tally)?;
        for number in 0..scenarios {
            let scenario = scenario(seed + number as u64, &mut random);
            tally.faults += 1;
            log.line(format_args!("fault {}: {scenario:?}", tally.faults));
            machines.meet(scenario, &mut random, tally)?;
            sleep(Duration::from_millis(random.below(3000)));
            machines.world.vanish(Vanish { at: 0, takeover: !random.one_in(4) }, tally)?;
        }
        machines.world.close();
        Ok(())
    });
    tally.acknowledged += machines.world.ledger.acknowledged();
    if !tally.is_clean() {
        let world = &machines.world;
        let directories = [world.cluster.directory(), world.remote.directory()];
        world::keep(&directories, &seed.to_string(), log);
    }
}

struct Machines {
    world: World,
    interval: u64,
    /// The machine of the production.
    production: Machine,
    seed: u64,
    /// How many machines were made beside the first.
    made: u64,
    /// How often machines were started again.
    runs: u64,
    /// The first client of the next stranger.
    strangers: i32,
}

impl Machines {
    fn meet(
        &mut self,
        scenario: Scenario,
        random: &mut Random,
        tally: &mut Tally,
    ) -> Result<(), Over> {
        // A few seconds, or longer than a silent instance counts as alive.
        let beside = Duration::from_secs(random.between(5, 40) + 50 * random.below(2));
        let before = Duration::from_millis(random.between(500, 6000));
        match scenario {
            Scenario::Clone { of_stopped, has_same_id } => {
                self.clone(of_stopped, has_same_id, beside, tally)
            }
            Scenario::RollBack { takeover } => self.roll_back(before, takeover, tally),
            Scenario::Failover => self.fail_over(before, tally),
            Scenario::PromotedBeside => self.promote_beside(beside, tally),
            Scenario::Rewind => self.rewind(before, tally),
        }
    }

    // -------------------------------------------------------------------------- scenarios

    fn clone(
        &mut self,
        of_stopped: bool,
        has_same_id: bool,
        beside: Duration,
        tally: &mut Tally,
    ) -> Result<(), Over> {
        let production = &self.world.cluster;
        let snapshot = if of_stopped {
            production.stop(Shutdown::Fast);
            let snapshot = production.snapshot();
            production.start();
            snapshot
        } else {
            production.freeze();
            let snapshot = production.snapshot();
            production.thaw();
            snapshot
        };
        let machine = match has_same_id {
            true => self.production.clone(),
            false => self.another(),
        };
        let clone = self.prepared(Cluster::of_snapshot(&snapshot, "clone"));
        clone.boot(self.again(&machine));
        clone.start();
        self.live_beside(clone, beside, "a clone", tally)
    }

    fn roll_back(
        &mut self,
        before: Duration,
        takeover: bool,
        tally: &mut Tally,
    ) -> Result<(), Over> {
        self.world.cluster.freeze();
        let snapshot = self.world.cluster.snapshot();
        self.world.cluster.thaw();
        sleep(before);
        // What is abandoned is off-site.
        self.world.ships(tally, "a snapshot")?;
        self.world.close();
        self.world.cluster.cut_power();
        self.world.cluster.put_back(&snapshot);
        let machine = self.production.clone();
        let machine = self.again(&machine);
        self.world.cluster.boot(machine);
        self.world.cluster.start();
        self.abandon();
        self.world.open();
        let takeover: Option<&[&str]> = takeover.then_some(&[]);
        self.world.takes_the_remote(takeover, "a snapshot was put back", tally)
    }

    fn fail_over(&mut self, before: Duration, tally: &mut Tally) -> Result<(), Over> {
        let (standby, machine) = self.standby();
        sleep(before);
        self.world.close();
        self.world.cluster.cut_power();
        promote(&standby);
        drop(self.world.move_to(standby));
        self.production = machine;
        self.abandon();
        self.world.open();
        self.world.takes_the_remote(NEW_REPOSITORY, "a failover", tally)
    }

    fn promote_beside(&mut self, beside: Duration, tally: &mut Tally) -> Result<(), Over> {
        let (standby, _) = self.standby();
        promote(&standby);
        self.live_beside(standby, beside, "a standby that was promoted", tally)
    }

    fn rewind(&mut self, before: Duration, tally: &mut Tally) -> Result<(), Over> {
        let (standby, machine) = self.standby();
        promote(&standby);
        // What is written to the old primary now is abandoned.
        sleep(before);
        self.world.close();
        self.world.cluster.stop(Shutdown::Fast);
        let old = self.world.move_to(standby);
        let old_machine = std::mem::replace(&mut self.production, machine);
        self.abandon();
        self.world.open();
        self.world.takes_the_remote(NEW_REPOSITORY, "a standby was promoted", tally)?;

        let source = format!(
            "host={} port=5432 user=postgres dbname=postgres",
            self.world.cluster.socket().display()
        );
        let output = old
            .command("pg_rewind")
            .arg("--write-recovery-conf")
            .arg(format!("--source-server={source}"))
            .arg("--target-pgdata")
            .arg(old.data())
            .output()
            .expect("it is installed");
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "pg_rewind: {words}");
        old.boot(self.again(&old_machine));
        old.start();
        follows(&self.world.cluster, &old);
        sleep(before);
        self.world.close();
        self.world.cluster.stop(Shutdown::Fast);
        promote(&old);
        drop(self.world.move_to(old));
        self.production = old_machine;
        self.abandon();
        self.world.open();
        self.world.takes_the_remote(NEW_REPOSITORY, "a rewound primary was promoted", tally)
    }

    // -------------------------------------------------------------------------- their parts

    /// Lets another server live beside the production, with clients of its own, and ends it.
    fn live_beside(
        &mut self,
        other: Cluster,
        beside: Duration,
        what: &str,
        tally: &mut Tally,
    ) -> Result<(), Over> {
        let ledger = Ledger::new(self.strangers);
        self.strangers += 100;
        ledger.open(timeline(&other));
        let writers = ledger.write(other.socket());
        let begin = Instant::now();
        let mut fenced = None;
        while begin.elapsed() < beside && fenced.is_none() {
            let found = self.world.cluster.try_sql("select shipping, summary from nrt.status");
            if let Ok(rows) = found
                && rows.iter().any(|row| row[0] == "fenced")
            {
                fenced = Some(format!("{rows:?}"));
            }
            sleep(Duration::from_millis(500));
        }
        if fenced.is_none() {
            fenced = ships(&self.world.cluster, UNSHIPPED).err();
        }
        drop(writers);
        let count = ledger.acknowledged();
        self.world.log.line(format_args!(
            "{what} lived beside the production for {:.1} s and acknowledged {count} commits",
            begin.elapsed().as_secs_f64()
        ));
        tally.acknowledged += count;
        other.cut_power();
        drop(other);
        if let Some(words) = fenced {
            tally.fenced += 1;
            self.world.found(tally, format!("the production was fenced by {what}: {words}"));
            return Err(Over);
        }
        self.world.ships(tally, &format!("{what} has ended"))
    }

    /// Makes a standby that follows the production, on another machine, and waits until it does.
    fn standby(&mut self) -> (Cluster, Machine) {
        let machine = self.another();
        let standby = Cluster::standby_on_disk(&self.world.cluster, "standby");
        let standby = self.prepared(standby);
        standby.boot(machine.clone());
        standby.start();
        follows(&self.world.cluster, &standby);
        (standby, machine)
    }

    fn prepared(&self, cluster: Cluster) -> Cluster {
        configured(self.world.remote.configure(cluster), self.interval)
            .setting("wal_keep_size", "1GB")
    }

    /// Rows that the production does not hold are gone, whatever was said of them.
    fn abandon(&self) {
        let held: BTreeSet<(i32, i64)> = held(&self.world.cluster);
        let count = self.world.ledger.abandon(&held);
        self.world.log.line(format_args!("{} rows are there, {count} are abandoned", held.len()));
    }

    fn another(&mut self) -> Machine {
        self.made += 1;
        Machine::new((self.seed << 8) + self.made)
    }

    fn again(&mut self, machine: &Machine) -> Machine {
        self.runs += 1;
        machine.again(self.runs)
    }
}

fn promote(standby: &Cluster) {
    standby.sql("select pg_promote(true, 60)");
    standby.wait_for("select pg_is_in_recovery()", "f", SOON);
}

/// Waits until a standby has received what its primary has written by now.
fn follows(primary: &Cluster, standby: &Cluster) {
    let now = primary.value("select pg_current_wal_flush_lsn()");
    let question = format!("select coalesce(pg_last_wal_replay_lsn() >= '{now}', false)");
    standby.wait_for(&question, "t", SOON);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_in_a_row_are_all_scenarios() {
        let mut random = Random::new(3);
        let found: Vec<_> =
            (7..12).map(|it| std::mem::discriminant(&scenario(it, &mut random))).collect();
        assert!(found.iter().enumerate().all(|(place, it)| !found[..place].contains(it)));
    }
}

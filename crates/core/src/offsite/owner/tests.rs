use super::*;
use proptest::prelude::*;

const BEAT: Duration = Duration::from_secs(15);

fn owner(system: u64, instance: &str) -> Owner {
    Owner {
        system_identifier: system.to_string(),
        instance: instance.to_string(),
        host: "db1".to_string(),
        timeline: 1,
        heartbeat: DateTime::UNIX_EPOCH,
        unsettled: false,
        superseded: None,
        aside: None,
        complete_until: None,
        shipped: None,
        tablespaces: BTreeMap::new(),
    }
}

fn known(me: &str) -> Knowledge<'_> {
    Knowledge {
        system_id: 7,
        me,
        promised: None,
        run: "run",
        timeline: Some(1),
        unchanged_for: Duration::ZERO,
        heartbeat: BEAT,
        taking_over: false,
        is_copy: false,
    }
}

fn promised(instance: &str, run: &str, heartbeats: &[i64]) -> Promised {
    Promised {
        instance: instance.to_string(),
        run: run.to_string(),
        heartbeats: heartbeats.iter().map(|it| at(*it)).collect(),
        ..Promised::default()
    }
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).expect("a time")
}

#[test]
fn only_one_instance_writes() {
    let judge = |found: Option<&Owner>, seconds, taking_over| {
        let unchanged_for = Duration::from_secs(seconds);
        judge(found, &Knowledge { unchanged_for, taking_over, ..known("me") })
    };
    let (other, foreign) = (owner(7, "other"), owner(8, "me"));
    assert_eq!(judge(None, 0, false), Verdict::MayClaim);
    assert_eq!(judge(Some(&other), 59, false), Verdict::OtherInstance(other.clone()));
    assert_eq!(judge(Some(&other), 60, false), Verdict::MayClaim);
    assert_eq!(judge(Some(&other), 0, true), Verdict::MayClaim);
    // Two clusters in one place would destroy each other, whatever anybody says.
    assert_eq!(judge(Some(&foreign), 9999, true), Verdict::OtherCluster(foreign.clone()));
}

#[test]
fn an_instance_knows_its_own_heartbeats() {
    let found = Owner { heartbeat: at(30), ..owner(7, "me") };
    let given = promised("me", "run", &[15, 30]);
    let not_given = promised("me", "run", &[15]);
    let another = promised("before", "run", &[15, 30]);
    let judge = |promised, run, seconds| {
        let unchanged_for = Duration::from_secs(seconds);
        judge(Some(&found), &Knowledge { promised, run, unchanged_for, ..known("me") })
    };
    let watch = |seconds| Verdict::Watch(Duration::from_secs(seconds));
    for (promised, run, seconds, expected) in [
        // A process that has ended goes on at once; after a start of the machine it looks first.
        (Some(&given), "run", 0, Verdict::Ours),
        (Some(&given), "next", 0, watch(18)),
        (Some(&given), "next", 17, watch(1)),
        (Some(&given), "next", 18, Verdict::Ours),
        // However silent the other one is, it is another one.
        (Some(&not_given), "run", 9999, Verdict::Clone(found.clone())),
        (Some(&not_given), "next", 9999, Verdict::Clone(found.clone())),
        // A version that kept no promises, or another name's.
        (None, "run", 0, watch(18)),
        (None, "run", 18, Verdict::Ours),
        (Some(&another), "run", 0, watch(18)),
    ] {
        assert_eq!(judge(promised, run, seconds), expected, "{promised:?} {run} {seconds}");
    }
}

#[test]
fn a_later_timeline_is_never_given_up_by_silence() {
    let found = Owner { timeline: 2, ..owner(7, "other") };
    let judge = |timeline, taking_over| {
        let unchanged_for = Duration::from_secs(9999);
        judge(Some(&found), &Knowledge { timeline, taking_over, unchanged_for, ..known("me") })
    };
    assert_eq!(judge(Some(1), false), Verdict::LaterTimeline(found.clone()));
    assert_eq!(judge(Some(2), false), Verdict::MayClaim);
    assert_eq!(judge(Some(3), false), Verdict::MayClaim);
    assert_eq!(judge(Some(1), true), Verdict::MayClaim);
    // The server has not told yet.
    assert_eq!(judge(None, false), Verdict::OtherInstance(found.clone()));
}

#[test]
fn a_copy_takes_nothing_that_it_is_not_told_to_take() {
    let given = promised("me", "run", &[0]);
    let judge = |found: Option<&Owner>, taking_over| {
        let unchanged_for = Duration::from_secs(9999);
        let promised = Some(&given);
        let known =
            Knowledge { promised, unchanged_for, taking_over, is_copy: true, ..known("me") };
        judge(found, &known)
    };
    let (ours, other, foreign) = (owner(7, "me"), owner(7, "other"), owner(8, "other"));
    // The original may be restarting, or have its place emptied.
    for found in [None, Some(&other), Some(&ours)] {
        assert_eq!(judge(found, false), Verdict::Copy(found.cloned()));
    }
    assert_eq!(judge(None, true), Verdict::MayClaim);
    assert_eq!(judge(Some(&other), true), Verdict::MayClaim);
    assert_eq!(judge(Some(&ours), true), Verdict::Ours);
    for taking_over in [false, true] {
        assert_eq!(judge(Some(&foreign), taking_over), Verdict::OtherCluster(foreign.clone()));
    }
}

#[test]
fn one_of_the_two_files_is_enough() {
    let (whole, older) = (owner(7, "me"), owner(7, "older"));
    let text = |owner: &Owner| serde_json::to_vec(owner).expect("JSON");
    let (file, its_copy) = (text(&whole), text(&older));
    let read = |file: Option<&[u8]>, copy: Option<&[u8]>| {
        let get = |name: &str| -> Result<Option<Vec<u8>>, ()> {
            Ok(if name == FILE { file } else { copy }.map(<[u8]>::to_vec))
        };
        Found::read(get).expect("it can be asked")
    };
    assert_eq!(read(Some(&file), Some(&its_copy)), Found::File(whole.clone()));
    for cut in [None, Some(&b""[..]), Some(&file[..20])] {
        assert_eq!(read(cut, Some(&its_copy)), Found::Copy(older.clone()));
        assert_eq!(read(Some(&file), cut), Found::File(whole.clone()));
    }
    assert_eq!(read(None, None), Found::Nobody);
    for (file, copy) in [(Some(&b""[..]), None), (Some(b"x"), Some(&b""[..])), (None, Some(b"x"))] {
        assert!(matches!(read(file, copy), Found::Unreadable(_)));
    }
}

/// A machine with its disk, as the rules see it: it looks at the remote at its own times.
#[derive(Debug, Clone)]
struct Machine {
    id: String,
    run: String,
    promised: Option<Promised>,
    /// What it saw last, and since when.
    seen: Option<(Owner, u64)>,
    /// Since when it has been the owner, by its own belief, and when it gives the next heartbeat.
    holds: Option<(u64, u64)>,
    /// It has read the file, and writes in the next step: others may come between.
    writes: bool,
    looks_at: u64,
}

/// How often an instance that does not own the remote looks.
const LOOK: u64 = 5;
const BEAT_SECONDS: u64 = 15;

impl Machine {
    fn new(id: &str, run: &str) -> Machine {
        Machine {
            id: id.to_string(),
            run: run.to_string(),
            promised: None,
            seen: None,
            holds: None,
            writes: false,
            looks_at: 0,
        }
    }

    /// The same disk in another machine.
    fn cloned(&self, run: &str, now: u64) -> Machine {
        let mut clone = Machine::new(&self.id, run);
        clone.promised = self.promised.clone();
        clone.looks_at = now;
        clone
    }

    /// Its next step at a time. `stamp` makes heartbeats of different machines different.
    fn step(&mut self, now: u64, stamp: i64, remote: &mut Option<Owner>) {
        if self.writes {
            self.writes = false;
            self.promise(stamp);
            *remote = Some(Owner { heartbeat: at(stamp), ..owner(7, &self.id) });
            let since = self.holds.map_or(now, |(since, _)| since);
            self.holds = Some((since, now + BEAT_SECONDS));
            return;
        }
        if now < self.holds.map_or(self.looks_at, |(_, next)| next) {
            return;
        }
        if self.holds.is_some() {
            let is_given = remote.as_ref().is_some_and(|found| {
                found.instance == self.id
                    && self.promised.as_ref().is_some_and(|it| it.has_given(found.heartbeat))
            });
            if is_given {
                self.writes = true;
                return;
            }
            self.holds = None;
            self.seen = None;
        }
        self.looks_at = now + LOOK;
        let since = match (&self.seen, remote.as_ref()) {
            (Some((seen, since)), Some(found)) if seen == found => *since,
            _ => now,
        };
        self.seen = remote.clone().map(|found| (found, since));
        let known = Knowledge {
            promised: self.promised.as_ref(),
            run: &self.run,
            unchanged_for: Duration::from_secs(now - since),
            ..known(&self.id)
        };
        match judge(remote.as_ref(), &known) {
            Verdict::Ours | Verdict::MayClaim => self.writes = true,
            Verdict::Clone(_) => {
                self.id = format!("{}+{}", self.id, self.run);
                self.promised = None;
                self.seen = None;
            }
            _ => {}
        }
    }

    fn promise(&mut self, stamp: i64) {
        let (instance, run) = (self.id.clone(), self.run.clone());
        let promised = self.promised.get_or_insert_with(Promised::default);
        if promised.instance != instance {
            *promised = Promised { instance, ..Promised::default() };
        }
        promised.run = run;
        promised.give(at(stamp));
    }
}

proptest! {
    /// The disk of a living owner is copied at any instant, also between the promise and its
    /// arrival, and started once or twice elsewhere: the owner never loses the remote.
    #[test]
    fn a_clone_never_takes_the_remote_from_a_living_owner(
        copied_at in 2_u64..200,
        start_after in 0_u64..100,
        second_after in 0_u64..100,
        arrives_late in any::<bool>(),
    ) {
        let mut remote = None;
        let mut production = Machine::new("one", "run");
        let mut clones: Vec<Machine> = Vec::new();
        for now in 0..600 {
            let before = remote.clone();
            production.step(now, now as i64 * 10, &mut remote);
            if now == copied_at {
                // The promise is on its disk, and has not arrived yet.
                if arrives_late && production.writes {
                    production.promise(now as i64 * 10 + 1);
                }
                clones.push(production.cloned("second", now + start_after));
                clones.push(production.cloned("third", now + start_after + second_after));
            }
            prop_assert!(production.holds.is_some() || now < 2, "at {now}: {before:?}");
            for (number, clone) in clones.iter_mut().enumerate() {
                if now >= clone.looks_at {
                    clone.step(now, now as i64 * 10 + 2 + number as i64, &mut remote);
                }
                prop_assert!(clone.holds.is_none(), "at {now}: {clone:?}");
            }
        }
        prop_assert!(clones.iter().all(|it| it.id != "one"));
    }

    /// Two machines with the same disk are started, and the owner is gone: one has the remote in
    /// the end, and whoever read the file before the other wrote it leaves within a heartbeat.
    #[test]
    fn of_two_clones_one_has_the_remote(
        first_at in 0_u64..40,
        second_at in 0_u64..40,
        first_goes_first in any::<bool>(),
    ) {
        let mut remote = None;
        let mut gone = Machine::new("one", "run");
        for now in 0..50 {
            gone.step(now, now as i64 * 10, &mut remote);
        }
        let mut clones = [gone.cloned("second", 50 + first_at), gone.cloned("third", 50 + second_at)];
        let mut both = 0;
        for now in 50..400 {
            let order = if first_goes_first { [0, 1] } else { [1, 0] };
            for number in order {
                if now >= clones[number].looks_at {
                    clones[number].step(now, now as i64 * 10 + number as i64, &mut remote);
                }
            }
            if clones.iter().all(|it| it.holds.is_some()) {
                both += 1;
            }
        }
        prop_assert_eq!(clones.iter().filter(|it| it.holds.is_some()).count(), 1);
        prop_assert!(both <= BEAT_SECONDS + 2, "{both} s");
        prop_assert!(clones.iter().any(|it| it.id == "one"));
    }

    /// The disk is put back to an earlier state and the machine started: what the remote says since
    /// then was not promised, and the life before is another one's. That life has given a heartbeat: one
    /// that was copied right after a heartbeat reads the file 15 s later, and writes in the next step.
    #[test]
    fn a_rolled_back_disk_is_another_instance(
        copied_at in 20_u64..200, life in BEAT_SECONDS + 2..200,
    ) {
        let mut remote = None;
        let mut machine = Machine::new("one", "run");
        let mut snapshot = None;
        for now in 0..copied_at + life {
            machine.step(now, now as i64 * 10, &mut remote);
            if now == copied_at {
                snapshot = Some(machine.cloned("second", copied_at + life));
            }
        }
        let mut back = snapshot.expect("it was copied");
        let begin = copied_at + life;
        for now in begin..begin + 300 {
            back.step(now, now as i64 * 10 + 1, &mut remote);
            let waited = now >= begin + BEAT_SECONDS * u64::from(MISSED);
            prop_assert!(back.holds.is_none() || waited, "at {now}");
        }
        prop_assert!(back.holds.is_some());
        prop_assert_ne!(back.id, "one");
    }
}

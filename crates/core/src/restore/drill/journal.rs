//! Reads and renews the journal of drills: a line of JSON for each, in the order of their numbers.

use super::{Drill, Phases};

/// How many drills are kept.
pub const KEPT: usize = 1000;

/// The drills of a journal, oldest first. A line that cannot be read is left out.
pub fn read(text: &[u8]) -> Vec<Drill> {
    text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

/// The journal with `drill` in it, in place of what it said of the same one before; the oldest are
/// left out where there are more than [`KEPT`].
pub fn with(text: &[u8], drill: &Drill) -> String {
    let mut drills = read(text);
    drills.retain(|it| it.number != drill.number);
    drills.push(drill.clone());
    drills.sort_by_key(|it| it.number);
    let excess = drills.len().saturating_sub(KEPT);
    let line = |drill: &Drill| serde_json::to_string(drill).map(|line| line + "\n").ok();
    drills[excess..].iter().filter_map(line).collect()
}

/// How long the last restore on this machine took, for the next one's estimate.
pub fn rates(drills: &[Drill]) -> Option<Phases> {
    let outcomes = drills.iter().rev().filter_map(|drill| drill.outcome.as_ref());
    outcomes.filter(|it| it.recovered.is_some()).map(|it| it.phases).next()
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::tests::{at, success};
    use super::*;
    use crate::kind::Trigger;

    fn drill(number: u64) -> Drill {
        let started = at("2026-03-10T12:00:00");
        Drill {
            number,
            trigger: Trigger::Manual,
            started,
            directory: "/scratch".to_string(),
            outcome: None,
            interrupted: false,
        }
    }

    #[test]
    fn the_last_word_about_a_drill_counts() {
        let mut text = with(b"", &drill(1));
        text = with(text.as_bytes(), &drill(2));
        let ended = Drill { outcome: Some(success(drill(1).started)), ..drill(1) };
        text = with(text.as_bytes(), &ended);
        assert_eq!(read(text.as_bytes()), [ended, drill(2)]);
    }

    #[test]
    fn what_cannot_be_read_is_left_out_and_the_rest_stays() {
        let text = format!("{{\"torn\n{}not JSON\n", with(b"", &drill(7)));
        assert_eq!(read(text.as_bytes()), [drill(7)]);
        assert_eq!(read(with(text.as_bytes(), &drill(8)).as_bytes()), [drill(7), drill(8)]);
    }

    #[test]
    fn the_last_restore_that_came_to_its_end_gives_the_rates() {
        assert_eq!(rates(&[drill(1)]), None);
        let mut slow = success(drill(1).started);
        slow.phases.replay = 100.0;
        let restored = Drill { outcome: Some(slow.clone()), ..drill(2) };
        let failed = super::super::tests::failure("the remote is gone");
        let failed = Outcome::failed(slow.started, slow.ended, String::new(), failed);
        let failed = Drill { outcome: Some(failed), ..drill(3) };
        let first = Drill { outcome: Some(success(slow.started)), ..drill(1) };
        assert_eq!(rates(&[first, restored, failed, drill(4)]), Some(slow.phases));
    }

    #[test]
    fn the_oldest_go() {
        let mut text = String::new();
        for number in 1..=KEPT as u64 + 2 {
            text = with(text.as_bytes(), &drill(number));
            if number % 100 != 0 && number < KEPT as u64 {
                continue;
            }
            let numbers: Vec<u64> = read(text.as_bytes()).iter().map(|it| it.number).collect();
            let first = (number + 1).saturating_sub(KEPT as u64).max(1);
            assert_eq!(numbers, (first..=number).collect::<Vec<_>>());
        }
    }
}

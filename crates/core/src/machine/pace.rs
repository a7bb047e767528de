//! Bounds what backups that the growth of the WAL starts may cost.
//!
//! On a busy server the threshold is crossed again while a backup runs, and each incremental backup
//! copies whatever has changed: without a floor between them they would run all the time. The WAL
//! itself is archived and shipped anyway, so a growth backup only shortens the replay of a restore.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::kind::{BackupType, Trigger};
use crate::pgbackrest::info::Backup;
use crate::settings::Settings;

/// What the last growth backup cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// When it had ended.
    pub ended: DateTime<Utc>,
    /// For how many seconds it copied, without its wait for a checkpoint.
    pub seconds: i64,
}

impl Cost {
    /// The cost of a backup that has ended at `ended`, of which it had waited so long for a
    /// checkpoint. pgBackRest counts whole seconds: what took no time counts as one.
    pub(super) fn of(took: TimeDelta, waited: TimeDelta, ended: DateTime<Utc>) -> Cost {
        Cost { ended, seconds: (took - waited).num_seconds().max(1) }
    }

    /// Before when the growth of the WAL starts no other backup.
    pub(super) fn rests_until(&self, settings: &Settings) -> DateTime<Utc> {
        let share = i64::from(settings.max_growth_share.min(100));
        let rest = match share {
            // No bound.
            0 => 0,
            share => self.seconds.saturating_mul(100 - share) / share,
        };
        let rest = rest.max(settings.min_growth_interval).min(LONGEST_REST.num_seconds());
        self.ended + TimeDelta::seconds(rest)
    }
}

/// However slow a backup was: what made it slow may have passed by then.
const LONGEST_REST: TimeDelta = TimeDelta::days(1);

/// The type of the backup to take where an incremental one is asked for, of a cluster that has these
/// backups, oldest first: a differential one where too many incremental ones would depend on each
/// other. What somebody asks for is taken as asked.
pub(super) fn kind_for<'a>(
    trigger: Trigger,
    backups: impl DoubleEndedIterator<Item = &'a Backup>,
    settings: &Settings,
) -> BackupType {
    let longest = settings.max_incrementals as usize;
    let chain = backups.rev().take_while(|backup| backup.kind == BackupType::Incr);
    if trigger != Trigger::Manual && longest > 0 && chain.take(longest).count() == longest {
        BackupType::Diff
    } else {
        BackupType::Incr
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settings(share: u32, interval: i64) -> Settings {
        Settings { max_growth_share: share, min_growth_interval: interval, ..Settings::defaults() }
    }

    #[test]
    fn the_rest_grows_with_what_the_last_one_cost() {
        let ended = DateTime::UNIX_EPOCH;
        for (share, interval, seconds, rest) in [
            (5, 300, 1, 300),
            (5, 300, 10, 300),
            (5, 300, 16, 304),
            (5, 300, 600, 11_400),
            (5, 0, 2, 38),
            (50, 0, 7, 7),
            (100, 0, 7, 0),
            (0, 0, 7, 0),
            (0, 60, 3600, 60),
            (1, 0, 1 << 40, 86_400),
            (1, 0, i64::MAX, 86_400),
        ] {
            let cost = Cost { ended, seconds };
            let until = cost.rests_until(&settings(share, interval));
            assert_eq!((until - ended).num_seconds(), rest, "{share} % {interval} s {seconds} s");
        }
    }

    #[test]
    fn a_wait_for_the_checkpoint_costs_nothing() {
        let cost = |took, waited| {
            let seconds = TimeDelta::seconds;
            Cost::of(seconds(took), seconds(waited), DateTime::UNIX_EPOCH).seconds
        };
        assert_eq!(cost(280, 270), 10);
        assert_eq!(cost(280, 0), 280);
        assert_eq!(cost(0, 0), 1);
        // The two are measured by different clocks.
        assert_eq!(cost(3, 4), 1);
    }

    proptest! {
        /// However long backups take, no more than the share of the time is spent in them.
        #[test]
        fn no_more_than_the_share_is_spent(
            share in 1u32..=100,
            costs in prop::collection::vec(1i64..800, 1..50),
        ) {
            let settings = settings(share, 0);
            let begin = DateTime::UNIX_EPOCH;
            let (mut now, mut spent) = (begin, 0);
            for seconds in costs {
                now += TimeDelta::seconds(seconds);
                spent += seconds;
                now = Cost { ended: now, seconds }.rests_until(&settings);
                let all = (now - begin).num_seconds();
                // A second of each is lost by whole numbers.
                prop_assert!(spent * 100 <= (all + 50) * i64::from(share), "{spent} of {all}");
            }
        }
    }
}

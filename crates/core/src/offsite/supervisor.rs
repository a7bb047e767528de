//! Decides when a long-lived child that has ended is started again.

use std::time::Duration;

/// The first pause.
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(60);
/// A child that ran this long had started well: the next pause is the first again.
const WELL: Duration = Duration::from_secs(60);

/// Counts the ends of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Supervisor {
    failures: u32,
}

impl Supervisor {
    /// How long to wait before the child, which ran for `ran`, is started again.
    pub fn pause_after(&mut self, ran: Duration) -> Duration {
        if ran >= WELL {
            self.failures = 0;
        }
        let pause = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures += 1;
        pause
    }

    /// How often it has ended without having run well.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_minute_and_begin_again_after_a_good_run() {
        let mut supervisor = Supervisor::default();
        let short = Duration::from_secs(3);
        let pauses: Vec<u64> = (0..8).map(|_| supervisor.pause_after(short).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(supervisor.pause_after(Duration::from_secs(61)).as_secs(), 1);
        assert_eq!(supervisor.pause_after(short).as_secs(), 2);
        for _ in 0..100 {
            assert!(supervisor.pause_after(short) <= LONGEST);
        }
    }
}

//! Holds a restore against its plan: before anything is fetched, and after recovery.
//!
//! ```text
//! check_end      the WAL at the plan's end, which no archive has proved: before anything is moved
//! check_reached  where PostgreSQL ended: before the data directory is handed over
//! ```
//!
//! PostgreSQL takes a damaged record for the end of the WAL, promotes, and says so in its log only.

use std::fs;

use nrt_core::lsn::{Lsn, Segment};
use nrt_core::offsite::tail::{history_name, parse_history};
use nrt_core::restore::catalog::Stretch;
use nrt_core::restore::plan::{Plan, Recovery, surely_there};
use nrt_core::restore::records::{End, Stop, Walk};
use nrt_core::restore::target::Point;
use nrt_core::restore::{Code, Refusal};

use super::Run;
use super::place::unusable;
use super::planning::Planned;
use super::server::{Programs, Told};
use super::wal::{Shelf, Store, Trouble};
use super::waldump::Dump;

/// Where a plan's WAL ends.
fn end_of(plan: &Plan) -> Lsn {
    plan.wal.last().map(|it| it.to).unwrap_or_default()
}

/// The segments at the end of a plan that are not archived.
fn unproved(shelf: &Shelf) -> Vec<Segment> {
    let segments = shelf.segments();
    let is_archived = |it: &&Segment| shelf.archived.contains_key(&it.name(shelf.segment_size));
    let proved = segments.iter().rposition(|it| is_archived(&it)).map_or(0, |place| place + 1);
    segments.get(proved..).unwrap_or_default().to_vec()
}

/// What an operator can do about WAL that ends at `lsn`.
fn ways_on(lsn: Lsn) -> String {
    format!(
        "If another copy of that WAL exists, put it back and run the same command again. \
         --latest --up-to-gap restores what was committed before {lsn}; in a container \
         RECOVERY_UP_TO_GAP=true does."
    )
}

impl Run<'_> {
    /// Refuses a plan whose WAL does not lead to its end, before anything is moved or fetched. With
    /// `--up-to-gap` the plan ends where the WAL does.
    ///
    /// The names of archived segments hold a checksum of their content; this is about what lies
    /// behind them. A record there can be damaged although each object of the tail is whole: the
    /// server may have read it so.
    pub(super) fn check_end(
        &self,
        planned: &mut Planned,
        programs: &Programs,
    ) -> Result<(), Refusal> {
        let up_to_gap = self.request.target.up_to_gap;
        // What a crashed server has left in pg_wal ends wherever PostgreSQL says.
        if planned.plan.recovery != Recovery::End || planned.shelf.pg_wal.is_some() {
            return Ok(());
        }
        let end = end_of(&planned.plan);
        if !up_to_gap
            && planned.plan.target.point == Point::Latest
            && let Some(promised) = planned.owner.as_ref().and_then(|owner| owner.shipped)
            && promised.timeline == planned.plan.timeline
            && end < promised.flushed
        {
            return Err(Refusal::new(
                format!(
                    "the WAL at {} ends at {end}, and its server had called everything up to {} \
                     shipped",
                    planned.plan.source, promised.flushed
                ),
                ways_on(end),
            )
            .of(Code::WalDamaged));
        }
        let backup = planned.catalog.backups.iter().find(|it| it.label == planned.plan.backup);
        let consistent = backup.and_then(|it| it.stop_lsn).unwrap_or(end);
        let promised = surely_there(&planned.catalog, planned.plan.timeline)?;
        let found = match self.walk(planned, &unproved(&planned.shelf)) {
            // What arrived behind the last promise may have been cut on its way.
            Err(Trouble { refusal, reached: Some(reached), .. })
                if reached >= promised.max(consistent) =>
            {
                cut(planned, reached);
                planned.plan.warnings.push(format!(
                    "{}: all had arrived up to {promised}, and the plan ends at {reached}",
                    refusal.message
                ));
                self.walk(planned, &unproved(&planned.shelf))
            }
            found => found,
        };
        let Some(found) = found.map_err(|trouble| trouble.refusal)? else { return Ok(()) };
        let end = end_of(&planned.plan);
        let Stop::Invalid(why) = found.stop else { return Ok(()) };
        if self.is_valid_to_postgres(planned, programs, found.lsn, end)? {
            return Ok(());
        }
        let words = format!(
            "the WAL at {} is damaged: the plan ends at {end}, and the record at {} is not valid \
             ({why})",
            planned.plan.source, found.lsn
        );
        if up_to_gap && found.lsn >= consistent {
            cut(planned, found.lsn);
            planned.plan.warnings.push(format!("{words}: what lies behind is not restored"));
            return Ok(());
        }
        Err(Refusal::new(words, ways_on(found.lsn)).of(Code::WalDamaged))
    }

    /// Where the records end in segments that follow each other up to the plan's end; `None` if
    /// there are none.
    fn walk(&self, planned: &Planned, segments: &[Segment]) -> Result<Option<End>, Trouble> {
        let shelf = &planned.shelf;
        let Some(first) = segments.first() else { return Ok(None) };
        let directory = self.work.look();
        fs::create_dir_all(&directory).map_err(|error| unusable(&directory, &error))?;
        let store = Store { source: &planned.source, shelf, directory: directory.clone() };
        let begins = first.start(shelf.segment_size);
        let mut walk = Walk::new(begins, end_of(&planned.plan), shelf.segment_size);
        for segment in segments {
            let name = segment.name(shelf.segment_size);
            store.get(&name)?;
            let path = directory.join(&name);
            let bytes = fs::read(&path).map_err(|error| unusable(&path, &error))?;
            let _ = fs::remove_file(&path);
            walk.segment(&bytes, segment.start(shelf.segment_size));
            if walk.is_over() {
                break;
            }
        }
        Ok(Some(walk.end()))
    }

    /// Whether PostgreSQL's own program reads a record from `from` on: it decides what is valid, in
    /// versions to come, too.
    fn is_valid_to_postgres(
        &self,
        planned: &Planned,
        programs: &Programs,
        from: Lsn,
        to: Lsn,
    ) -> Result<bool, Refusal> {
        let dump = Dump {
            source: std::sync::Arc::clone(&planned.source),
            shelf: planned.shelf.clone(),
            program: programs.program("pg_waldump"),
            directory: self.work.look(),
        };
        let timeline = planned.plan.timeline;
        dump.has_record(Stretch { timeline, from, to })
    }

    /// Holds the end of recovery against the plan. What the operator should know, where they said
    /// that less is enough.
    pub(super) fn check_reached(
        &self,
        planned: &Planned,
        shelf: &Shelf,
        timeline: u32,
        said: &Told,
    ) -> Result<Option<String>, Refusal> {
        let plan = &planned.plan;
        if plan.recovery != Recovery::End {
            // PostgreSQL fails where it does not come to its target, since version 13.
            return match &said.stopped {
                Some(_) => Ok(None),
                None => Err(self.short(
                    "PostgreSQL does not say that it has stopped at the target".to_string(),
                    said,
                    "The same command tries again.".to_string(),
                )),
            };
        }
        let Some(reached) = self.end_of_replay(timeline)? else {
            return Err(self.short(
                format!("the history file of timeline {timeline} does not say where it begins"),
                said,
                "The same command tries again.".to_string(),
            ));
        };
        let wanted = match unproved(shelf).first() {
            // Nobody but PostgreSQL knows how far a crashed server had come.
            Some(own) if shelf.pg_wal.is_some() => own.start(shelf.segment_size),
            _ => end_of(plan),
        };
        if reached >= wanted {
            return Ok(None);
        }
        let segments: Vec<Segment> = shelf
            .segments()
            .into_iter()
            .filter(|it| it.end(shelf.segment_size) > reached)
            .collect();
        let found = self.walk(planned, &segments).map_err(|trouble| trouble.refusal)?;
        // A record that was being written when the last of it was shipped is no loss.
        if found.is_some_and(|it| it.lsn == reached && it.stop == Stop::CutOff) {
            return Ok(None);
        }
        let words = format!("recovery ended at {reached}, before the end of its plan at {wanted}");
        if self.request.target.up_to_gap {
            return Ok(Some(words));
        }
        Err(self.short(words, said, ways_on(reached)))
    }

    /// Where the recovered server's timeline begins: where the last valid record ends.
    fn end_of_replay(&self, timeline: u32) -> Result<Option<Lsn>, Refusal> {
        let path = self.request.data.join("pg_wal").join(history_name(timeline));
        let text = fs::read_to_string(&path).map_err(|error| unusable(&path, &error))?;
        Ok(parse_history(&text).last().map(|(_, lsn)| *lsn))
    }

    /// Refuses to hand over what ends too early.
    pub(super) fn short(&self, message: String, said: &Told, ways_on: String) -> Refusal {
        let words = said.end.as_ref().map_or(String::new(), |words| format!(": {words}"));
        Refusal::new(
            format!("{message}{words}"),
            format!(
                "{ways_on} PostgreSQL's log is \"{}\". The server was not started.",
                self.work.path().join("recovery.log").display()
            ),
        )
        .of(Code::Short)
    }
}

/// Has a plan end at a position.
fn cut(planned: &mut Planned, end: Lsn) {
    let plan = &mut planned.plan;
    plan.wal.retain(|stretch| stretch.from < end);
    if let Some(last) = plan.wal.last_mut() {
        last.to = last.to.min(end);
    }
    plan.wal_bytes = plan.wal.iter().map(|it| it.to.since(it.from)).sum();
    planned.shelf.stretches.clone_from(&plan.wal);
}

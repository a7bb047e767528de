-- The views of nrt_backup, its role, and who may use what.
--
-- Every view reads files of the state directory and shared memory through a row function; there
-- is no table, and so nothing to dump, to vacuum, or to lose with a database.

CREATE VIEW nrt.health AS
SELECT h.check_name, h.severity, h.message, h.hint
FROM nrt.health_rows() h;
COMMENT ON VIEW nrt.health IS 'Every health check with its severity (ok, warning, critical), what was found, and what to do. SELECT * FROM nrt_check() looks anew.';
COMMENT ON COLUMN nrt.health.check_name IS 'What is checked.';
COMMENT ON COLUMN nrt.health.severity IS 'ok: nothing to do. warning: backups run, but something wants attention. critical: work can be lost.';
COMMENT ON COLUMN nrt.health.message IS 'What was found.';
COMMENT ON COLUMN nrt.health.hint IS 'What to do.';

CREATE VIEW nrt.schedule AS
SELECT s.type, s.crontab, s.time_zone, s.next_run
FROM nrt.schedule_rows() s;
COMMENT ON VIEW nrt.schedule IS 'When backups of each type, and drills, start by the clock.';
COMMENT ON COLUMN nrt.schedule.type IS 'full, diff, incr or drill.';
COMMENT ON COLUMN nrt.schedule.crontab IS 'The schedule as a crontab line; NULL where it is off.';
COMMENT ON COLUMN nrt.schedule.time_zone IS 'The time zone in which the line is read.';
COMMENT ON COLUMN nrt.schedule.next_run IS 'The next run.';

CREATE VIEW nrt.status AS
SELECT nrt.worst_severity() AS health,
       coalesce(
           (SELECT h.message FROM nrt.health h
             WHERE h.severity <> 'ok'
             ORDER BY h.severity = 'critical' DESC
             LIMIT 1),
           CASE WHEN s.activity = 'standby' THEN 'a standby: backups are taken on the primary' END,
           CASE WHEN s.shipping = 'shipping' THEN 'protected off-site: every commit before '
               || s.shipped_lsn || ' can be restored from ' || s.remote END,
           'protected on this machine: every commit before ' || s.archived_lsn
               || ' can be restored; '
               || CASE s.shipping WHEN 'off' THEN 'no remote is configured'
                                  ELSE 'how far the remote reaches is being looked at' END,
           'protected on this machine; no remote is configured') AS summary,
       s.activity,
       s.job, s.job_type, s.job_trigger, s.job_started_at,
       s.last_backup, s.last_backup_type, s.last_backup_at,
       s.last_backup_lsn::pg_lsn AS last_backup_lsn,
       s.wal_growth,
       n.next_run, n.type AS next_run_type,
       s.flushed_lsn::pg_lsn AS flushed_lsn,
       s.archived_lsn::pg_lsn AS archived_lsn,
       greatest(s.flushed_lsn::pg_lsn - s.archived_lsn::pg_lsn, 0)::bigint AS unarchived_bytes,
       s.paused,
       s.remote, s.shipping,
       s.shipped_lsn::pg_lsn AS shipped_lsn,
       s.ship_lag_bytes,
       make_interval(secs => s.ship_lag) AS ship_lag,
       s.offsite_backups,
       s.drilling,
       s.worker_pid
FROM nrt.status_rows() s
LEFT JOIN (SELECT type, next_run FROM nrt.schedule
            WHERE next_run IS NOT NULL ORDER BY next_run LIMIT 1) n ON true;
COMMENT ON VIEW nrt.status IS 'One row that answers: am I safe?';
COMMENT ON COLUMN nrt.status.health IS 'The worst severity in nrt.health: ok, warning or critical.';
COMMENT ON COLUMN nrt.status.summary IS 'The worst check''s message, or how far the cluster is protected.';
COMMENT ON COLUMN nrt.status.activity IS 'What the worker does: starting, idle, waiting, backing up, blocked; or standby, stopped, not loaded.';
COMMENT ON COLUMN nrt.status.job IS 'The running job''s number in nrt.backup_history.';
COMMENT ON COLUMN nrt.status.job_type IS 'The running job''s type: full, diff or incr.';
COMMENT ON COLUMN nrt.status.job_trigger IS 'Why the running job started.';
COMMENT ON COLUMN nrt.status.job_started_at IS 'When the running job started.';
COMMENT ON COLUMN nrt.status.last_backup IS 'pgBackRest''s label of the newest backup.';
COMMENT ON COLUMN nrt.status.last_backup_type IS 'The newest backup''s type.';
COMMENT ON COLUMN nrt.status.last_backup_at IS 'When the newest backup ended.';
COMMENT ON COLUMN nrt.status.last_backup_lsn IS 'Where the newest backup ended.';
COMMENT ON COLUMN nrt.status.wal_growth IS 'Bytes of WAL written since the newest backup, without the padding of forced segment switches.';
COMMENT ON COLUMN nrt.status.next_run IS 'The next run of a schedule.';
COMMENT ON COLUMN nrt.status.next_run_type IS 'The type of that run.';
COMMENT ON COLUMN nrt.status.flushed_lsn IS 'Up to where WAL is on this server''s disk.';
COMMENT ON COLUMN nrt.status.archived_lsn IS 'Up to where WAL is in the repository.';
COMMENT ON COLUMN nrt.status.unarchived_bytes IS 'Bytes of WAL position between the two: what is lost if the data directory is.';
COMMENT ON COLUMN nrt.status.paused IS 'What nrt_pause() has paused: all, backups, shipping or nothing.';
COMMENT ON COLUMN nrt.status.remote IS 'Where the off-site copy is.';
COMMENT ON COLUMN nrt.status.shipping IS 'What shipping does: off without a remote, starting, shipping, fenced, failing, paused, stopped.';
COMMENT ON COLUMN nrt.status.shipped_lsn IS 'Up to where the cluster can be restored from the remote, which has confirmed it.';
COMMENT ON COLUMN nrt.status.ship_lag_bytes IS 'Bytes of WAL position that are not there yet: what is lost if this machine is.';
COMMENT ON COLUMN nrt.status.ship_lag IS 'The age of the oldest of these bytes, or since when that is not known; 0 if there are none, NULL if nothing can be restored from there.';
COMMENT ON COLUMN nrt.status.offsite_backups IS 'Backups that can be restored from the remote.';
COMMENT ON COLUMN nrt.status.drilling IS 'Whether a restore is being tried.';
COMMENT ON COLUMN nrt.status.worker_pid IS 'The worker''s process; pg_cancel_backend on it cancels the running backup.';

CREATE VIEW nrt.backup_history AS
SELECT h.job, h.trigger, h.requested, h.type, h.status, h.attempt,
       h.requested_at, h.started_at, h.finished_at,
       h.finished_at - h.started_at AS duration,
       h.label, h.start_lsn::pg_lsn AS start_lsn, h.stop_lsn::pg_lsn AS stop_lsn,
       h.wal_growth, h.database_size, h.copied_size, h.repository_size,
       h.exit_code, h.message, h.hint
FROM nrt.history_rows() h;
COMMENT ON VIEW nrt.backup_history IS 'Every backup that ran, failed, was skipped or cancelled, and why. Backups taken by hand appear with the trigger external.';
COMMENT ON COLUMN nrt.backup_history.job IS 'The job''s number.';
COMMENT ON COLUMN nrt.backup_history.trigger IS 'Why it started: schedule, wal_growth, manual, startup, missing_base, external.';
COMMENT ON COLUMN nrt.backup_history.requested IS 'The type that was asked for.';
COMMENT ON COLUMN nrt.backup_history.type IS 'The type that was taken: full where nothing was there to build on.';
COMMENT ON COLUMN nrt.backup_history.status IS 'waiting, running, succeeded, failed, cancelled or skipped.';
COMMENT ON COLUMN nrt.backup_history.attempt IS '1 for the first try; a retry after a failure counts on.';
COMMENT ON COLUMN nrt.backup_history.requested_at IS 'When it was asked for.';
COMMENT ON COLUMN nrt.backup_history.started_at IS 'When pgBackRest was started.';
COMMENT ON COLUMN nrt.backup_history.finished_at IS 'When it ended.';
COMMENT ON COLUMN nrt.backup_history.duration IS 'How long pgBackRest ran.';
COMMENT ON COLUMN nrt.backup_history.label IS 'pgBackRest''s name for the backup.';
COMMENT ON COLUMN nrt.backup_history.start_lsn IS 'Where the backup begins.';
COMMENT ON COLUMN nrt.backup_history.stop_lsn IS 'Where the backup ends: from here on the cluster can be restored from it.';
COMMENT ON COLUMN nrt.backup_history.wal_growth IS 'Bytes of WAL written between the backup before and the start of this one.';
COMMENT ON COLUMN nrt.backup_history.database_size IS 'Bytes of the cluster''s files.';
COMMENT ON COLUMN nrt.backup_history.copied_size IS 'Bytes of the files that this backup copied.';
COMMENT ON COLUMN nrt.backup_history.repository_size IS 'Bytes that this backup added to the repository.';
COMMENT ON COLUMN nrt.backup_history.exit_code IS 'pgBackRest''s exit code.';
COMMENT ON COLUMN nrt.backup_history.message IS 'What happened, in pgBackRest''s own words.';
COMMENT ON COLUMN nrt.backup_history.hint IS 'What to do.';

CREATE VIEW nrt.backups AS
SELECT b.label, b.type, b.prior, b.started_at, b.finished_at,
       b.start_lsn::pg_lsn AS start_lsn, b.stop_lsn::pg_lsn AS stop_lsn,
       b.first_wal, b.last_wal,
       b.database_size, b.copied_size, b.repository_size,
       b.damaged, b.pgbackrest_version
FROM nrt.backup_rows() b;
COMMENT ON VIEW nrt.backups IS 'The backups of this cluster that the repository holds.';
COMMENT ON COLUMN nrt.backups.label IS 'pgBackRest''s name for the backup.';
COMMENT ON COLUMN nrt.backups.type IS 'full, diff or incr.';
COMMENT ON COLUMN nrt.backups.prior IS 'The backup that this one builds on.';
COMMENT ON COLUMN nrt.backups.started_at IS 'When it began.';
COMMENT ON COLUMN nrt.backups.finished_at IS 'When it ended.';
COMMENT ON COLUMN nrt.backups.start_lsn IS 'Where it begins.';
COMMENT ON COLUMN nrt.backups.stop_lsn IS 'Where it ends.';
COMMENT ON COLUMN nrt.backups.first_wal IS 'The first WAL segment that it needs.';
COMMENT ON COLUMN nrt.backups.last_wal IS 'The last WAL segment that it needs.';
COMMENT ON COLUMN nrt.backups.database_size IS 'Bytes of the cluster''s files.';
COMMENT ON COLUMN nrt.backups.copied_size IS 'Bytes of the files that it copied.';
COMMENT ON COLUMN nrt.backups.repository_size IS 'Bytes that it added to the repository.';
COMMENT ON COLUMN nrt.backups.damaged IS 'Whether pgBackRest found pages with a wrong checksum; NULL where it did not look.';
COMMENT ON COLUMN nrt.backups.pgbackrest_version IS 'The pgBackRest that took it.';

CREATE VIEW nrt.recovery_window AS
SELECT r.timeline, r.from_time, r.from_lsn::pg_lsn AS from_lsn,
       r.to_time, r.to_lsn::pg_lsn AS to_lsn,
       r.first_backup, r.backups, r.gap_until::pg_lsn AS gap_until
FROM nrt.recovery_rows() r;
COMMENT ON VIEW nrt.recovery_window IS 'From when to when the cluster can be restored: one row for each stretch of WAL without a gap.';
COMMENT ON COLUMN nrt.recovery_window.timeline IS 'The timeline that a restore follows.';
COMMENT ON COLUMN nrt.recovery_window.from_time IS 'When the first backup in it ended.';
COMMENT ON COLUMN nrt.recovery_window.from_lsn IS 'The first position that can be restored.';
COMMENT ON COLUMN nrt.recovery_window.to_time IS 'When the last segment in it was archived.';
COMMENT ON COLUMN nrt.recovery_window.to_lsn IS 'Where the last archived segment ends.';
COMMENT ON COLUMN nrt.recovery_window.first_backup IS 'The backup that its beginning is restored from.';
COMMENT ON COLUMN nrt.recovery_window.backups IS 'How many backups lie in it.';
COMMENT ON COLUMN nrt.recovery_window.gap_until IS 'Where the archive goes on after the gap that ends it; NULL where no gap ends it.';

CREATE VIEW nrt.progress AS
SELECT p.job, p.type, p.trigger, p.started_at, p.percent, p.bytes_done, p.bytes_total
FROM nrt.progress_rows() p;
COMMENT ON VIEW nrt.progress IS 'How far the running backup is; no row where none runs.';
COMMENT ON COLUMN nrt.progress.job IS 'The job''s number in nrt.backup_history.';
COMMENT ON COLUMN nrt.progress.type IS 'full, diff or incr.';
COMMENT ON COLUMN nrt.progress.trigger IS 'Why it started.';
COMMENT ON COLUMN nrt.progress.started_at IS 'When it started.';
COMMENT ON COLUMN nrt.progress.percent IS 'Per cent of the bytes to copy that are copied; pgBackRest counts whole files.';
COMMENT ON COLUMN nrt.progress.bytes_done IS 'Bytes copied.';
COMMENT ON COLUMN nrt.progress.bytes_total IS 'Bytes to copy.';

CREATE VIEW nrt.drills AS
SELECT d.drill, d.trigger, d.started, d.ended, d.status, d.source, d.backup, d.timeline,
       d.recovered_up_to, d.recovered_lsn::pg_lsn AS recovered_lsn,
       make_interval(secs => d.plan + d.fetch + d.restore + d.replay) AS rto,
       make_interval(secs => d.plan) AS plan_time,
       make_interval(secs => d.fetch) AS fetch_time,
       make_interval(secs => d.restore) AS restore_time,
       make_interval(secs => d.replay) AS replay_time,
       make_interval(secs => d."check") AS check_time,
       d.fetched_bytes, d.restored_bytes, d.replayed_bytes,
       make_interval(secs => d.expected) AS expected,
       round(((d.plan + d.fetch + d.restore + d.replay) / nullif(d.expected, 0::float8) - 1::float8)::numeric, 2)
           AS estimate_error,
       d.checked_relations, d.query_result, d.message, d.hint
FROM nrt.drill_rows() d;
COMMENT ON VIEW nrt.drills IS 'Every restore that was tried in a scratch place, the newest first, and what it came to.';
COMMENT ON COLUMN nrt.drills.drill IS 'The drill''s number.';
COMMENT ON COLUMN nrt.drills.trigger IS 'Why it started: schedule, manual, or startup where one was missed.';
COMMENT ON COLUMN nrt.drills.started IS 'When it started.';
COMMENT ON COLUMN nrt.drills.ended IS 'When it ended.';
COMMENT ON COLUMN nrt.drills.status IS 'running, succeeded or failed.';
COMMENT ON COLUMN nrt.drills.source IS 'Where the backup came from: the remote, or a directory.';
COMMENT ON COLUMN nrt.drills.backup IS 'pgBackRest''s label of the backup that it began with.';
COMMENT ON COLUMN nrt.drills.timeline IS 'The timeline of the restored server.';
COMMENT ON COLUMN nrt.drills.recovered_up_to IS 'When the last transaction that was replayed committed; NULL where there was none after the backup.';
COMMENT ON COLUMN nrt.drills.recovered_lsn IS 'Where recovery ended.';
COMMENT ON COLUMN nrt.drills.rto IS 'How long it took until the server could be used; checks are not counted.';
COMMENT ON COLUMN nrt.drills.plan_time IS 'How long it took to find out what there is, and to plan.';
COMMENT ON COLUMN nrt.drills.fetch_time IS 'How long it took to fetch the backups.';
COMMENT ON COLUMN nrt.drills.restore_time IS 'How long pgBackRest''s restore took.';
COMMENT ON COLUMN nrt.drills.replay_time IS 'How long it took to replay WAL, up to the end of recovery.';
COMMENT ON COLUMN nrt.drills.check_time IS 'How long pg_amcheck and nrt_backup.drill_query took.';
COMMENT ON COLUMN nrt.drills.fetched_bytes IS 'Bytes of backups that were fetched from the remote.';
COMMENT ON COLUMN nrt.drills.restored_bytes IS 'Bytes of the restored cluster.';
COMMENT ON COLUMN nrt.drills.replayed_bytes IS 'Bytes of WAL that were replayed.';
COMMENT ON COLUMN nrt.drills.expected IS 'How long the plan had expected rto to be; NULL for the first drill on a machine.';
COMMENT ON COLUMN nrt.drills.estimate_error IS 'How much longer rto was, as a fraction of what was expected; negative if shorter.';
COMMENT ON COLUMN nrt.drills.checked_relations IS 'How many relations pg_amcheck checked; NULL where it is not installed.';
COMMENT ON COLUMN nrt.drills.query_result IS 'What nrt_backup.drill_query returned: the first value of the first row.';
COMMENT ON COLUMN nrt.drills.message IS 'Why it failed.';
COMMENT ON COLUMN nrt.drills.hint IS 'What to do about it.';

CREATE VIEW nrt.settings AS
SELECT o.name, s.setting AS value, s.unit, s.source, o.effect, o.environment, o.help
FROM nrt.option_rows() WITH ORDINALITY AS o (name, environment, effect, help, place)
LEFT JOIN pg_catalog.pg_settings s ON s.name = o.name
ORDER BY o.place;
COMMENT ON VIEW nrt.settings IS 'The settings of nrt_backup: value, where it comes from, and what it means at the moment.';
COMMENT ON COLUMN nrt.settings.name IS 'The setting''s name in postgresql.conf.';
COMMENT ON COLUMN nrt.settings.value IS 'Its value; NULL for paths and programs unless the reader is a superuser or has pg_read_all_settings.';
COMMENT ON COLUMN nrt.settings.unit IS 'The unit of the value.';
COMMENT ON COLUMN nrt.settings.source IS 'Where the value comes from: default, configuration file, ...';
COMMENT ON COLUMN nrt.settings.effect IS 'What it means at the moment.';
COMMENT ON COLUMN nrt.settings.environment IS 'The environment variable that the container maps to it.';
COMMENT ON COLUMN nrt.settings.help IS 'What it is for.';

COMMENT ON SCHEMA nrt IS 'What nrt_backup shows: start with nrt.status.';
COMMENT ON FUNCTION nrt_backup_now(text) IS 'Takes a backup (full, diff or incr), waits for it, and returns its label. Cancelling the statement leaves the backup running.';
COMMENT ON FUNCTION nrt_backup_start(text) IS 'Starts a backup (full, diff or incr) and returns its number in nrt.backup_history at once.';
COMMENT ON FUNCTION nrt_backup_cancel() IS 'Cancels the running backup, or those that wait if none is running; returns whether there was one.';
COMMENT ON FUNCTION nrt_pause(text) IS 'Lets no backup start (backups), or nothing go off-site (shipping), or both (all), until nrt_resume(); returns what is paused now.';
COMMENT ON FUNCTION nrt_resume(text) IS 'Ends what nrt_pause() began, for backups, shipping or all; returns what is still paused.';
COMMENT ON FUNCTION nrt_restore_point(text) IS 'Makes a restore point, remembers it here and off-site, and returns its position, up to which the WAL is on disk then.';
COMMENT ON FUNCTION nrt_restore_plan(timestamptz, pg_lsn, text, text, text, boolean, text) IS 'Tells, step by step, what a restore to a target would do, or why it cannot be reached; without a target, to the newest that there is.';
COMMENT ON FUNCTION nrt_check() IS 'Looks at pgBackRest, the repository, the disks and the configuration now, and returns every health check.';
COMMENT ON FUNCTION nrt_drill_now() IS 'Tries a restore in a scratch place, waits for it, and returns what it came to. Cancelling the statement leaves the drill running.';
COMMENT ON FUNCTION nrt.health_rows() IS 'The rows of nrt.health.';
COMMENT ON FUNCTION nrt.worst_severity() IS 'The worst severity in nrt.health.';
COMMENT ON FUNCTION nrt.status_rows() IS 'The row below nrt.status.';
COMMENT ON FUNCTION nrt.history_rows() IS 'The rows below nrt.backup_history.';
COMMENT ON FUNCTION nrt.backup_rows() IS 'The rows below nrt.backups.';
COMMENT ON FUNCTION nrt.recovery_rows() IS 'The rows below nrt.recovery_window.';
COMMENT ON FUNCTION nrt.progress_rows() IS 'The rows of nrt.progress.';
COMMENT ON FUNCTION nrt.schedule_rows() IS 'The rows of nrt.schedule.';
COMMENT ON FUNCTION nrt.drill_rows() IS 'The rows below nrt.drills.';
COMMENT ON FUNCTION nrt.option_rows() IS 'The options of nrt_backup and what they mean at the moment.';

-- The role outlives DROP EXTENSION, as roles belong to the cluster: it may be there already. Whoever
-- may create roles may have made it, too.
DO $$
DECLARE
    members text;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'nrt_backup_operator') THEN
        CREATE ROLE nrt_backup_operator NOLOGIN;
    ELSIF EXISTS (
        SELECT FROM pg_catalog.pg_roles
         WHERE rolname = 'nrt_backup_operator'
           AND (rolcanlogin OR rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)
    ) THEN
        RAISE EXCEPTION 'the role "nrt_backup_operator" exists, and may do more than nrt_backup lets it'
              USING ERRCODE = 'duplicate_object',
                    HINT = 'If it is nobody''s: ALTER ROLE nrt_backup_operator NOLOGIN NOSUPERUSER '
                           'NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS. Or drop it.';
    ELSE
        SELECT pg_catalog.string_agg(m.member::pg_catalog.regrole::pg_catalog.text, ', ')
          INTO members
          FROM pg_catalog.pg_auth_members m
         WHERE m.roleid = 'nrt_backup_operator'::pg_catalog.regrole;
        IF members IS NOT NULL THEN
            RAISE WARNING 'the role "nrt_backup_operator" has members already, who may take backups now: %', members
                  USING HINT = 'REVOKE nrt_backup_operator FROM those who must not.';
        END IF;
    END IF;
END
$$;
GRANT pg_monitor TO nrt_backup_operator;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA nrt FROM PUBLIC;
REVOKE ALL ON FUNCTION nrt_backup_now(text), nrt_backup_start(text), nrt_backup_cancel(), nrt_check(), nrt_pause(text), nrt_resume(text), nrt_restore_point(text), nrt_restore_plan(timestamptz, pg_lsn, text, text, text, boolean, text), nrt_drill_now() FROM PUBLIC;
REVOKE ALL ON SCHEMA nrt FROM PUBLIC;
GRANT USAGE ON SCHEMA nrt TO pg_monitor;
GRANT SELECT ON ALL TABLES IN SCHEMA nrt TO pg_monitor;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA nrt TO pg_monitor;
GRANT EXECUTE ON FUNCTION nrt_backup_now(text), nrt_backup_start(text), nrt_backup_cancel(), nrt_check(), nrt_pause(text), nrt_resume(text), nrt_restore_point(text), nrt_restore_plan(timestamptz, pg_lsn, text, text, text, boolean, text), nrt_drill_now() TO nrt_backup_operator;

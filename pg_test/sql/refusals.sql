-- What the functions refuse, with SQLSTATE, the value and what to do.
CREATE EXTENSION nrt_backup;
-- Not psql's verbose errors: they tell where in the code an error comes from.
CREATE FUNCTION refused(call text) RETURNS TABLE (code text, message text, detail text, hint text)
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE call;
    message := 'not refused';
    RETURN NEXT;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS code := RETURNED_SQLSTATE, message := MESSAGE_TEXT,
        detail := PG_EXCEPTION_DETAIL, hint := PG_EXCEPTION_HINT;
    RETURN NEXT;
END
$$;

SELECT r.* FROM refused($$SELECT nrt_backup_now('everything')$$) r;
SELECT r.* FROM refused($$SELECT nrt_backup_now('')$$) r;
SELECT r.* FROM refused($$SELECT nrt_backup_now('fuller')$$) r;
SELECT r.* FROM refused($$SELECT nrt_backup_now(' full')$$) r;
SELECT r.* FROM refused($$SELECT nrt_backup_now(NULL)$$) r;
SELECT r.* FROM refused($$SELECT nrt_backup_start('--type=full')$$) r;
SELECT r.* FROM refused($$SELECT nrt_backup_start(NULL)$$) r;
SELECT r.* FROM refused($$SELECT nrt_backup_start(type => '差')$$) r;
SELECT r.* FROM refused($$SELECT nrt_pause('everything')$$) r;
SELECT r.* FROM refused($$SELECT nrt_resume(NULL)$$) r;
SELECT r.* FROM refused($$SELECT nrt_restore_point(NULL)$$) r;
SELECT r.* FROM refused($$SELECT nrt_restore_point('')$$) r;
SELECT r.* FROM refused(format('SELECT nrt_restore_point(%L)', repeat('ä', 32))) r;
SELECT r.* FROM refused($$SELECT nrt_restore_point(E'two\nlines')$$) r;
SELECT nrt_restore_point('once') <= pg_current_wal_flush_lsn() AS on_disk;
SELECT r.code, regexp_replace(r.message, 'made at .*', 'made ...') AS message, r.hint
FROM refused($$SELECT nrt_restore_point('once')$$) r;
-- What needs no look at the backups; the rest nrt-backup plan refuses.
SELECT r.* FROM refused($$SELECT * FROM nrt_restore_plan('infinity')$$) r;
SELECT r.* FROM refused($$SELECT * FROM nrt_restore_plan(target_time => '-infinity')$$) r;
SELECT r.* FROM refused($$SELECT * FROM nrt_restore_plan(inclusive => NULL)$$) r;
SELECT r.code, r.hint FROM refused($$SELECT * FROM nrt_restore_plan(target_lsn => 'x/y')$$) r;
SELECT r.code, length(r.message) < 200 AS short
FROM refused(format('SELECT * FROM nrt_restore_plan(target_name => %L)', repeat('x', 100000))) r;
-- A value that is too long to be told is shortened.
SELECT length(message) < 200 AS short, left(message, 20) AS message FROM refused(format('SELECT nrt_backup_start(%L)', repeat('x', 100000))) r;
-- While backups are paused none is taken, and what is paused is shown.
SELECT nrt_pause('backups') AS paused;
SELECT r.* FROM refused($$SELECT nrt_backup_now()$$) r;
SELECT r.* FROM refused($$SELECT nrt_backup_start('full')$$) r;
SELECT nrt_pause('shipping') AS paused;
SELECT paused, shipping, remote, shipped_lsn, ship_lag FROM nrt.status;
SELECT nrt_resume('backups') AS paused;
SELECT nrt_resume() AS paused;
-- Nothing of this left a trace in the history.
SELECT count(*) FROM nrt.backup_history WHERE trigger = 'manual';

DROP FUNCTION refused(text);
DROP EXTENSION nrt_backup;

-- The settings: names, defaults, units, ranges and who may see them; and the views above them.
CREATE EXTENSION nrt_backup;

SELECT name, vartype, boot_val AS "default", unit, min_val, max_val, context
FROM pg_settings WHERE name LIKE 'nrt\_backup.%' ORDER BY name COLLATE "C";
SELECT name, short_desc FROM pg_settings WHERE name LIKE 'nrt\_backup.%' ORDER BY name COLLATE "C";

-- The view has each of them once, in the order of the documents, and what it says is the server's.
SELECT name, environment, source, unit,
       CASE WHEN name IN ('nrt_backup.repository', 'nrt_backup.lock_path') THEN '(of this run)' ELSE value END AS value
FROM nrt.settings;
SELECT count(*) AS not_the_servers
FROM nrt.settings n FULL JOIN pg_settings s ON s.name = n.name
WHERE (n.name IS NOT NULL OR s.name LIKE 'nrt\_backup.%')
  AND (n.value, n.unit, n.source, n.help) IS DISTINCT FROM (s.setting, s.unit, s.source, s.short_desc);
-- What depends on neither the time nor the machine, nor on whether the first look has ended.
SELECT name, effect FROM nrt.settings
WHERE effect NOT LIKE 'next at %' AND effect NOT LIKE '% cores'
  AND name NOT IN ('nrt_backup.timezone', 'nrt_backup.stanza', 'nrt_backup.name');

-- None can be changed within a session, and no other name is taken.
SET nrt_backup.stanza = 'other';
SET nrt_backup.retention_days = 4;
SET nrt_backup.no_such = 1;

-- The schedules. A session's own time zone changes neither the zone nor the moment of a run.
SELECT type, crontab, time_zone, next_run > now() AS is_ahead FROM nrt.schedule;
CREATE TEMPORARY TABLE before AS SELECT * FROM nrt.schedule;
SET timezone = 'Asia/Tokyo';
SELECT count(*) AS changed FROM (SELECT * FROM nrt.schedule EXCEPT SELECT * FROM before) c;
SELECT effect FROM nrt.settings WHERE name = 'nrt_backup.timezone';

DROP TABLE before;
DROP EXTENSION nrt_backup;

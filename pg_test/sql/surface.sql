-- What the extension brings, and that everything in it explains itself. Catalogs are asked instead
-- of \d: what that prints differs from version to version.
CREATE EXTENSION nrt_backup;

-- Everything that belongs to it. Row types and their arrays are left out: from PostgreSQL 17 on
-- they are members of their own.
SELECT pg_describe_object(classid, objid, objsubid) COLLATE "C" AS object
FROM pg_depend
WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
  AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'nrt_backup')
  AND classid <> 'pg_type'::regclass
ORDER BY object;

-- What nobody has explained: no row may come.
SELECT pg_describe_object(classid, objid, objsubid) AS unexplained
FROM pg_depend
WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
  AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'nrt_backup')
  AND classid <> 'pg_type'::regclass
  AND obj_description(objid, classid::regclass::name) IS NULL;
SELECT attrelid::regclass AS view, attname AS unexplained
FROM pg_attribute
WHERE attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'nrt'::regnamespace AND relkind = 'v')
  AND attnum > 0 AND col_description(attrelid, attnum) IS NULL;
-- A comment ends like a sentence, and no two columns of a view say the same.
SELECT pg_describe_object(classoid, objoid, objsubid) AS object, description
FROM pg_description
WHERE (classoid, objoid) IN (
        SELECT classid, objid FROM pg_depend
        WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
          AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'nrt_backup'))
  AND description !~ '[.?]$';
SELECT objoid::regclass AS view, description
FROM pg_description
WHERE objoid IN (SELECT oid FROM pg_class WHERE relnamespace = 'nrt'::regnamespace)
  AND classoid = 'pg_class'::regclass
GROUP BY 1, 2 HAVING count(*) > 1;

-- The functions that an operator calls.
SELECT oid::regprocedure AS function, pg_get_function_arguments(oid) AS arguments,
       pg_get_function_result(oid) AS result, provolatile AS volatile, proparallel AS parallel,
       proisstrict AS strict, prosecdef AS security_definer
FROM pg_proc
WHERE proname ~ '^nrt_' AND pronamespace = 'public'::regnamespace
ORDER BY 1;

-- What the views show.
SELECT c.relname AS view, a.attnum AS nr, a.attname AS column, format_type(a.atttypid, a.atttypmod) AS type
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
WHERE c.relnamespace = 'nrt'::regnamespace AND c.relkind = 'v'
ORDER BY c.relname COLLATE "C", a.attnum;

-- Every view can be read.
SELECT format('SELECT count(*) >= 0 AS %I FROM nrt.%I', relname, relname)
FROM pg_class WHERE relnamespace = 'nrt'::regnamespace AND relkind = 'v'
ORDER BY relname COLLATE "C" \gexec

-- It goes without a trace, but for the role, and comes back.
DROP EXTENSION nrt_backup;
SELECT count(*) AS left_over FROM pg_namespace WHERE nspname = 'nrt';
SELECT count(*) AS left_over FROM pg_proc WHERE proname ~ '^nrt_';
CREATE EXTENSION nrt_backup SCHEMA pg_catalog;
DROP EXTENSION nrt_backup;
CREATE SCHEMA elsewhere;
CREATE EXTENSION nrt_backup SCHEMA elsewhere;
SELECT count(*) FROM elsewhere.nrt_check() WHERE severity NOT IN ('ok', 'warning', 'critical');
DROP EXTENSION nrt_backup;
DROP SCHEMA elsewhere;

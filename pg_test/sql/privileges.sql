-- Who may do what: the role nrt_backup_operator acts, pg_monitor looks, nobody else does either.
CREATE EXTENSION nrt_backup;

-- Nothing is granted to PUBLIC: no row may come.
WITH granted AS (
    SELECT oid::regprocedure::text AS object, coalesce(proacl, acldefault('f', proowner)) AS acl
    FROM pg_proc
    WHERE pronamespace = 'nrt'::regnamespace OR proname ~ '^nrt_'
    UNION ALL
    SELECT oid::regclass::text, coalesce(relacl, acldefault('r', relowner))
    FROM pg_class
    WHERE relnamespace = 'nrt'::regnamespace
    UNION ALL
    SELECT nspname, coalesce(nspacl, acldefault('n', nspowner)) FROM pg_namespace WHERE nspname = 'nrt'
)
SELECT object, item.privilege_type FROM granted, aclexplode(acl) AS item WHERE item.grantee = 0;

-- Who may call what. An operator is a monitor, too.
SELECT role, count(*) AS functions,
       string_agg(proname, ' ' ORDER BY proname COLLATE "C") FILTER (WHERE pronamespace <> 'nrt'::regnamespace) AS operators
FROM pg_proc, (VALUES ('nrt_backup_operator'), ('pg_monitor')) AS roles (role)
WHERE (pronamespace = 'nrt'::regnamespace OR proname ~ '^nrt_')
  AND has_function_privilege(role, oid, 'EXECUTE')
GROUP BY role ORDER BY role;
SELECT role, count(*) AS views
FROM pg_class, (VALUES ('nrt_backup_operator'), ('pg_monitor')) AS roles (role)
WHERE relnamespace = 'nrt'::regnamespace AND relkind = 'v' AND has_table_privilege(role, oid, 'SELECT')
GROUP BY role ORDER BY role;
-- Nobody but the owner may change a view.
SELECT count(*) AS writable
FROM pg_class, (VALUES ('nrt_backup_operator'), ('pg_monitor')) AS roles (role)
WHERE relnamespace = 'nrt'::regnamespace AND relkind = 'v'
  AND has_table_privilege(role, oid, 'INSERT, UPDATE, DELETE, TRUNCATE');
SELECT rolcanlogin, rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls
FROM pg_roles WHERE rolname = 'nrt_backup_operator';

CREATE ROLE regress_plain;
CREATE ROLE regress_monitor IN ROLE pg_monitor;
CREATE ROLE regress_operator IN ROLE nrt_backup_operator;

SET ROLE regress_plain;
SELECT nrt_backup_now();
SELECT nrt_backup_start('full');
SELECT nrt_backup_cancel();
SELECT * FROM nrt_check();
SELECT nrt_pause();
SELECT nrt_resume();
SELECT nrt_restore_point('a');
SELECT nrt_drill_now();
SELECT * FROM nrt_restore_plan();
SELECT * FROM nrt.status;
SELECT * FROM nrt.settings;
RESET ROLE;

SET ROLE regress_monitor;
SELECT count(*) AS rows FROM nrt.status;
SELECT count(*) > 0 AS rows FROM nrt.settings;
SELECT nrt_backup_now();
SELECT nrt_backup_start('full');
SELECT nrt_backup_cancel();
SELECT * FROM nrt_check();
SELECT nrt_restore_point('a');
SELECT nrt_drill_now();
SELECT * FROM nrt_restore_plan();
RESET ROLE;

SET ROLE regress_operator;
SELECT count(*) AS rows FROM nrt.status;
SELECT count(*) > 5 AS checks FROM nrt_check();
-- May be called, and refuses for another reason.
SELECT nrt_backup_now('nonsense');
SELECT nrt_backup_cancel() IS NOT NULL AS called;
SELECT nrt_pause('shipping') AS paused;
SELECT nrt_resume() AS paused;
SELECT nrt_restore_point('of an operator') <= pg_current_wal_flush_lsn() AS called;
SELECT * FROM nrt_restore_plan(inclusive => NULL);
-- May look, not configure.
ALTER SYSTEM SET nrt_backup.stanza = 'other';
SET nrt_backup.stanza = 'other';
RESET ROLE;

-- A second creation finds the role, and leaves whom it was granted to.
DROP EXTENSION nrt_backup;
CREATE EXTENSION nrt_backup;
SELECT pg_has_role('regress_operator', 'nrt_backup_operator', 'MEMBER') AS still_operator;

-- A refusal of anything else has no such hint, and a name is quoted where it must be.
CREATE ROLE "Plain ""Role";
CREATE FUNCTION foreign_check() RETURNS int LANGUAGE sql AS 'SELECT 1';
REVOKE ALL ON FUNCTION foreign_check() FROM PUBLIC;
SET ROLE "Plain ""Role";
SELECT foreign_check();
SELECT nrt_pause();
RESET ROLE;
DROP FUNCTION foreign_check();
DROP ROLE "Plain ""Role";

DROP ROLE regress_plain, regress_monitor, regress_operator;
DROP EXTENSION nrt_backup;

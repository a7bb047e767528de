//! The container image, as somebody has it who knows nothing but `docker run`.
//!
//! The images, and what they run on, are made by `./dev test containers`.

use std::time::Duration;

use nrt_tests::container::{Container, Ended, Order, Store, Volume, base64, image, podman};
use nrt_tests::wait_until;

/// How long a backup of a small cluster may take on a machine that is busy.
const SOON: Duration = Duration::from_secs(120);
/// Where a container finds the bucket of its cluster.
const BUCKET: &str = "backups";
/// What is in the server's own environment, and in files that only the server's user may read.
const PASSWORD: &str = "not-for-the-log-8c21";

/// A variable's name and value.
type Variable<'a> = (&'a str, &'a str);

fn kept(store: &Store, name: &str) -> Order {
    Order::new(name).database("app").remote(store, BUCKET)
}

fn recovered(store: &Store, bucket: &str, name: &str) -> Order {
    back(Order::new(name).database("app").remote(store, bucket))
}

/// The same, on what its original left behind.
fn back(order: Order) -> Order {
    // The original was alive a moment ago, and might be still: for a minute nothing is shipped, and
    // then there is a minute of WAL to catch up with.
    let order = order.allow("is another's").allow("WAL is behind off-site since");
    order.variable("RECOVERY_MODE", "true")
}

/// Waits until the first backup and all WAL are off-site.
fn wait_until_protected(container: &Container) {
    container.wait_for("select count(*) from nrt.backups where type = 'full'", "1", SOON);
    // Health alone is well, too, while it is not yet known what the remote holds.
    let ships = "select message from nrt.health where check_name = 'shipping'";
    container.wait_for(ships, "WAL goes off-site as it is written", SOON);
    container.wait_for("select health from nrt.status", "ok", SOON);
    container.wait_until_shipped();
}

fn refused(order: &Order, code: i32, parts: &[&str]) {
    let Ended { code: found, said } = order.ended();
    let ours: Vec<&str> = said.lines().filter(|it| it.starts_with("nrt-backup: ")).collect();
    assert_eq!(found, code, "{said}");
    assert_eq!(ours.len(), 1, "one line: {said}");
    for part in parts {
        assert!(ours[0].contains(part), "\"{part}\" is not in: {said}");
    }
    assert!(!said.contains("PostgreSQL init process"), "something was started: {said}");
    assert!(!said.contains("initdb"), "something was started: {said}");
}

/// The whole life of a server: made, backed up, lost, brought back, started again.
#[test]
fn a_lost_server_is_back_with_one_command() {
    let store = Store::new("lost");
    // The example of the image whose place this one takes.
    let original = kept(&store, "original")
        .superuser("owner")
        .variable("WAL_GROWTH_THRESHOLD", "1MB")
        .variable("WAL_MONITOR_INTERVAL", "5")
        // One that comes round would leave nothing to the growth.
        .variable("INCREMENTAL_BACKUP_SCHEDULE", "0 0 29 2 *")
        .started();
    assert_eq!(
        original.value("select count(*) from pg_extension where extname = 'nrt_backup'"),
        "1"
    );
    assert_eq!(original.value("show nrt_backup.name"), "app");
    wait_until_protected(&original);
    original.wait_until_healthy(SOON);
    original.sql(
        "create table test_data as
         select i as id, md5(i::text) as word, now() as made from generate_series(1, 10000) i",
    );
    original.sql("select pg_switch_wal()");
    // The backup takes the checkpoint that it begins with as it comes: this one does not hurry.
    original.sql("alter system set checkpoint_completion_target = 0");
    original.sql("select pg_reload_conf()");
    original.wait_for(
        "select count(*) > 0 from nrt.backup_history
          where type = 'incr' and trigger = 'wal_growth' and status = 'succeeded'",
        "t",
        SOON,
    );
    original.sql("insert into test_data values (10001, 'the last one', now())");
    original.wait_until_shipped();
    let info = original.says(&["pgbackrest", "--stanza=main", "info"]);
    assert!(info.contains("full backup: ") && info.contains("incr backup: "), "{info}");
    original.lose();

    let volumes = [Volume::new("data"), Volume::new("repository")];
    let again = recovered(&store, BUCKET, "again")
        .superuser("owner")
        .option("--volume")
        .option(&volumes[0].at("/var/lib/postgresql/data"))
        .option("--volume")
        .option(&volumes[1].at("/backup/local"));
    let server = again.started();
    let contents = "select count(*), max(word) filter (where id > 10000) from test_data";
    assert_eq!(server.value(contents), "10001 the last one");
    assert_eq!(server.value("select pg_is_in_recovery()"), "f");
    server.sql("insert into test_data values (10002, 'made here', now())");
    // It is a protected server from now on: with a full backup of its own, and its own WAL.
    server.wait_for(
        "select count(*) > 0 from nrt.backup_history
          where type = 'full' and trigger <> 'external' and status = 'succeeded'
            and finished_at > pg_postmaster_start_time()",
        "t",
        SOON,
    );
    server.wait_for("select shipping from nrt.status", "shipping", SOON);
    server.wait_until_shipped();
    server.wait_until_healthy(SOON);
    let ready = server.says(&["nrt-backup", "recovery", "prepare"]);
    assert!(ready.contains("ready"), "it could be lost again: {ready}");

    // Nothing is restored a second time, with the same variables as before.
    let system = server.value("select timeline_id from pg_control_checkpoint()");
    server.stop();
    server.start();
    assert_eq!(server.value(contents), "10002 the last one");
    assert_eq!(server.value("select timeline_id from pg_control_checkpoint()"), system);
    assert!(server.log().contains("was recovered before"), "{}", server.log());
    drop(server);
    // Nor in another container with the same volumes.
    let third = again.started();
    assert_eq!(third.value(contents), "10002 the last one");
    assert_eq!(third.value("select timeline_id from pg_control_checkpoint()"), system);
}

/// Every kind of target, from one and the same history.
#[test]
fn a_server_is_back_as_it_was() {
    let store = Store::new("targets");
    let original = kept(&store, "history").started();
    original.sql("create table t (step int)");
    wait_until_protected(&original);
    original.sql("insert into t values (1)");
    original.sql("select nrt_restore_point('after-one')");
    original.sql("insert into t values (2)");
    let time = original.value("select clock_timestamp() from (select pg_sleep(0.5)) as later");
    original.sql("select pg_sleep(0.5)");
    let xid = original.value("insert into t values (3) returning pg_current_xact_id()");
    original.sql("insert into t values (4)");
    let lsn = original.value("select pg_current_wal_insert_lsn()");
    original.sql("insert into t values (5)");
    original.wait_until_shipped();
    original.lose();

    let exclusive: &[Variable<'_>] =
        &[("RECOVERY_TARGET_XID", &xid), ("RECOVERY_TARGET_INCLUSIVE", "false")];
    let targets: [(&str, &[Variable<'_>], &str); 6] = [
        ("name", &[("RECOVERY_TARGET_NAME", "after-one")], "1"),
        ("time", &[("RECOVERY_TARGET_TIME", &time)], "1 2"),
        ("exclusive", exclusive, "1 2"),
        ("xid", &[("RECOVERY_TARGET_XID", &xid)], "1 2 3"),
        ("lsn", &[("RECOVERY_TARGET_LSN", &lsn)], "1 2 3 4"),
        ("latest", &[], "1 2 3 4 5"),
    ];
    for (name, variables, steps) in targets {
        let bucket = format!("for-{name}");
        store.copy(BUCKET, &bucket);
        let order =
            variables.iter().fold(recovered(&store, &bucket, name), |order, (name, value)| {
                order.variable(name, value)
            });
        let server = order.started();
        assert_eq!(server.value("select step from t order by step"), steps, "{name}");
        assert_eq!(server.value("select pg_is_in_recovery()"), "f", "{name}");
        server.sql("insert into t values (9)");
    }

    // Looked at first, then let go on.
    store.copy(BUCKET, "for-pause");
    let paused = recovered(&store, "for-pause", "pause")
        .variable("RECOVERY_TARGET_XID", &xid)
        .variable("RECOVERY_TARGET_ACTION", "pause")
        .started();
    assert_eq!(paused.value("select step from t order by step"), "1 2 3");
    assert_eq!(paused.value("select pg_is_in_recovery()"), "t");
    paused.value("select pg_wal_replay_resume()");
    paused.wait_for("select pg_is_in_recovery()", "f", SOON);
    paused.sql("insert into t values (9)");
    drop(paused);

    // Ended at the target; started again, it goes on from there.
    store.copy(BUCKET, "for-shutdown");
    let volumes = [Volume::new("data"), Volume::new("repository")];
    let shutdown = recovered(&store, "for-shutdown", "shutdown")
        .variable("RECOVERY_TARGET_XID", &xid)
        .variable("RECOVERY_TARGET_ACTION", "shutdown")
        .option("--volume")
        .option(&volumes[0].at("/var/lib/postgresql/data"))
        .option("--volume")
        .option(&volumes[1].at("/backup/local"));
    let Ended { code, said } = shutdown.ended();
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("the server is not started"), "{said}");
    let server = shutdown.started();
    server.wait_for("select pg_is_in_recovery()", "f", SOON);
    assert_eq!(server.value("select step from t order by step"), "1 2 3");
    server.sql("insert into t values (9)");
    drop(server);

    // What cannot be reached is not replaced by something else.
    let never = recovered(&store, BUCKET, "never").variable("RECOVERY_TARGET_NAME", "never-made");
    let Ended { code, said } = never.ended();
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("never-made") && said.contains("HINT: "), "{said}");
    assert!(!said.contains("database system is ready"), "{said}");
}

/// Two of the same cluster must not write to one place.
#[test]
fn a_copy_beside_its_living_original_harms_nothing() {
    let store = Store::new("beside");
    let original = kept(&store, "living").started();
    original.sql("create table t as select 1 as a");
    wait_until_protected(&original);
    original.wait_until_healthy(SOON);

    let copy = recovered(&store, BUCKET, "copy")
        // It does not archive, and finds so when it wants to back itself up.
        .allow("archive_mode must be enabled")
        .allow("no full backup")
        .started();
    assert_eq!(copy.value("select a from t"), "1");
    copy.sql("insert into t values (666)");
    copy.sql("select pg_switch_wal()");
    assert_eq!(copy.value("show archive_mode"), "off");
    // Nobody is to take it for a server that is backed up.
    wait_until("it says what it is", SOON, || {
        let (is_healthy, words) = copy.health();
        assert!(!is_healthy, "{words}");
        words.contains("this is a copy")
    });
    assert_ne!(copy.value("select shipping from nrt.status"), "shipping");

    original.sql("insert into t values (2)");
    original.wait_until_shipped();
    assert_eq!(original.value("select shipping from nrt.status"), "shipping");
    assert_eq!(original.value("select health from nrt.status"), "ok");
    drop(copy);
    original.wait_until_shipped();
    original.lose();
    let again = recovered(&store, BUCKET, "again").started();
    assert_eq!(again.value("select a from t order by a"), "1 2");
}

#[test]
fn a_cluster_in_the_volume_is_not_replaced_unasked() {
    let store = Store::new("replace");
    let original = kept(&store, "original").started();
    original.sql("create table t as select 'original' as whose");
    wait_until_protected(&original);
    original.lose();

    let data = Volume::new("other");
    let with_data =
        |order: Order| order.option("--volume").option(&data.at("/var/lib/postgresql/data"));
    let other = with_data(Order::new("other").database("app")).started();
    other.sql("create table t as select 'other' as whose");
    other.wait_for("select count(*) from nrt.backups where type = 'full'", "1", SOON);
    other.stop();
    drop(other);
    refused(
        &with_data(recovered(&store, BUCKET, "unasked")),
        2,
        &["RECOVERY_MODE", "holds a cluster already", "RECOVERY_REPLACE=true"],
    );
    let asked = with_data(recovered(&store, BUCKET, "asked").variable("RECOVERY_REPLACE", "true"));
    let server = asked.started();
    assert_eq!(server.value("select whose from t"), "original");
    let kept = server.says(&[
        "find",
        "/var/lib/postgresql",
        "-maxdepth",
        "4",
        "-name",
        "*before-restore-*",
    ]);
    assert!(!kept.trim().is_empty(), "what was there is gone");
}

/// Each in one clear line, by the variable's name, and before anything is made.
#[test]
fn what_cannot_be_meant_is_refused() {
    let new = || Order::new("refused");
    let with = |name: &str, value: &str| new().variable(name, value);
    let remote = base64("[store]\ntype = s3\n");
    let cut_off = &remote[..remote.len() - 3];

    refused(&new().password(None), 2, &["POSTGRES_PASSWORD is not set", "HINT: "]);
    refused(&with("RCLONE_CONF_BASE64", "!"), 2, &["RCLONE_CONF_BASE64", "HINT: "]);
    refused(&with("RCLONE_CONF_BASE64", cut_off), 2, &["RCLONE_CONF_BASE64", "HINT: "]);
    refused(
        &with("RCLONE_CONF_BASE64", &remote).variable("RCLONE_REMOTE_NAME", "stoer"),
        2,
        &["RCLONE_REMOTE_NAME", "stoer", "store"],
    );
    refused(
        &with("BASE_BACKUP_SCHEDULE", "0 25 * * *"),
        2,
        &["BASE_BACKUP_SCHEDULE", "0 25 * * *"],
    );
    refused(&with("INCREMENTAL_BACKUP_SCHEDULE", "often"), 2, &["INCREMENTAL_BACKUP_SCHEDULE"]);
    refused(&with("WAL_GROWTH_THRESHOLD", "a lot"), 2, &["WAL_GROWTH_THRESHOLD", "a lot"]);
    refused(&with("BACKUP_RETENTION_DAYS", "-1"), 2, &["BACKUP_RETENTION_DAYS", "-1"]);
    refused(&with("ENABLE_WAL_MONITOR", "perhaps"), 2, &["ENABLE_WAL_MONITOR", "perhaps"]);
    refused(&with("RECOVERY_MODE", "perhaps"), 2, &["RECOVERY_MODE", "perhaps"]);
    for (name, value) in [
        ("RECOVERY_TARGET_TIME", "yesterday-ish"),
        ("RECOVERY_TARGET_XID", "seven"),
        ("RECOVERY_TARGET_LSN", "16-B374D848"),
        ("RECOVERY_TARGET_ACTION", "dance"),
    ] {
        let order = with("RCLONE_CONF_BASE64", &remote).variable("RECOVERY_MODE", "true");
        refused(&order.variable(name, value), 2, &[name, value]);
    }
    let two = with("RCLONE_CONF_BASE64", &remote).variable("RECOVERY_MODE", "true");
    let two = two.variable("RECOVERY_TARGET_XID", "7").variable("RECOVERY_TARGET_LSN", "0/7");
    refused(&two, 2, &["RECOVERY_TARGET_XID", "RECOVERY_TARGET_LSN"]);
}

/// Neither who may look at processes, nor who reads logs, nor who pulls the image learns one.
#[test]
fn secrets_stay_secret() {
    let store = Store::new("secrets");
    let server = kept(&store, "secrets").password(Some(PASSWORD)).started();
    wait_until_protected(&server);
    server.says(&["nrt-backup", "status"]);
    server.says(&["nrt-backup", "check"]);
    let secrets = [PASSWORD, store.secret(), &base64(&store.configuration())];

    // With the container's own root, who may see everything. The first process's environment is what
    // is left of what the container was given.
    let look = "for file in /proc/[0-9]*/environ /proc/[0-9]*/cmdline; do
                    case $file in /proc/$$/*) continue ;; esac
                    tr '\\0' '\\n' <$file 2>/dev/null
                done";
    let processes = server.says(&["env", "-i", "/bin/bash", "-c", look]);
    assert!(processes.contains("/usr/lib/postgresql/17/bin"), "nothing was seen: {processes}");
    let log = server.log();
    assert!(log.contains("database system is ready"), "nothing was seen: {log}");
    let files = server.says(&[
        "bash",
        "-c",
        "cat /backup/logs/* /var/lib/postgresql/data/*.conf /var/lib/postgresql/data/*.opts \
             /var/lib/postgresql/data/nrt_backup/*.json*",
    ]);
    for secret in secrets {
        for (what, text) in [("processes", &processes), ("log", &log), ("files", &files)] {
            assert!(!text.contains(secret), "{what}: {text}");
        }
    }
    let modes = server.says(&["stat", "-c", "%a %U %n", "/var/lib/nrt-backup/rclone.conf"]);
    assert_eq!(modes.trim(), "600 postgres /var/lib/nrt-backup/rclone.conf");

    let history = podman(&["history", "--no-trunc", "--format", "{{.CreatedBy}}", &image("17")]);
    let described = podman(&["image", "inspect", &image("17")]);
    for said in [history, described] {
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.contains("nrt-backup"), "nothing was seen: {said}");
        // Defaults in an image would win over postgresql.conf.
        for name in ["PASSWORD=", "RCLONE_", "BACKUP_SCHEDULE=", "ca-bundle", "offline"] {
            assert!(!said.contains(name), "{name}: {said}");
        }
    }
}

fn users_of_processes(server: &Container) -> Vec<String> {
    let list = "for it in /proc/[0-9]*; do
                    [ \"$it\" != /proc/$$ ] && stat -c %u \"$it\" 2>/dev/null
                done
                true";
    // The shell that looks is root's, and so are its children.
    let said = server.says(&["bash", "-c", list]);
    said.lines().map(str::to_string).collect()
}

#[test]
fn nothing_that_stays_running_is_root() {
    for (name, user) in [("as-root", None), ("as-postgres", Some("postgres"))] {
        let order = Order::new(name);
        let order = match user {
            Some(user) => order.option("--user").option(user),
            None => order,
        };
        let server = order.started();
        server.wait_for("select count(*) from nrt.backups where type = 'full'", "1", SOON);
        let users = users_of_processes(&server);
        assert!(users.len() > 5, "{users:?}");
        let roots: Vec<_> = users.iter().filter(|it| *it != "999").collect();
        assert!(roots.is_empty(), "{name}: {users:?}");
        // postgres itself is what docker sends its signals to.
        let first = server.says(&["cat", "/proc/1/comm"]);
        assert_eq!(first.trim(), "postgres");
        for directory in ["/backup/local", "/backup/logs", "/var/lib/nrt-backup"] {
            let owner = server.says(&["stat", "-c", "%U", directory]);
            assert_eq!(owner.trim(), "postgres", "{name}: {directory}");
        }
    }
}

#[test]
fn a_stop_is_a_fast_and_clean_shutdown() {
    let store = Store::new("stop");
    let server = kept(&store, "stop").started();
    wait_until_protected(&server);
    // A client that goes on and on does not hold it up.
    server.sql("create table t as select 1 as a");
    let mut client = server.connect().expect("it runs");
    client.batch_execute("begin; insert into t values (2)").expect("it runs");
    let took = server.stop();
    assert!(took < Duration::from_secs(10), "{took:?}");
    let log = server.log();
    assert!(log.contains("received fast shutdown request"), "{log}");
    assert!(log.contains("database system is shut down"), "{log}");
    assert_eq!(server.inspected(".State.ExitCode"), "0");
    drop(client);
    server.start();
    assert!(!server.log().contains("was interrupted"), "{}", server.log());
    assert_eq!(server.value("select a from t"), "1");
}

/// What people do with the official image they can do with this one.
#[test]
fn the_official_image_s_ways_go_on_working() {
    let run = |words: &[&str]| {
        words.iter().fold(Order::new("words").password(None), |it, word| it.argument(word)).ended()
    };
    let Ended { code, said } = run(&["bash", "-c", "echo \"$PG_MAJOR\"; exit 3"]);
    assert_eq!((code, said.trim()), (3, "17"));
    let Ended { code, said } = run(&["postgres", "--version"]);
    assert!(code == 0 && said.starts_with("postgres (PostgreSQL) 17"), "{said}");
    let Ended { code, said } = run(&["nrt-backup", "--version"]);
    assert!(code == 0 && said.starts_with("nrt-backup "), "{said}");

    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("it was just made");
        path.display().to_string()
    };
    let sql = file("20.sql", "create table of_sql as select current_database() as it;\n");
    let script = file(
        "30.sh",
        "psql -v ON_ERROR_STOP=1 --username \"$POSTGRES_USER\" --dbname \"$POSTGRES_DB\" \
         -c 'create table of_sh as select 1 as it'\n",
    );
    let secret = file("secret", "out-of-a-file\n");
    let mut server = Order::new("official")
        .password(None)
        .superuser("somebody")
        .database("shop")
        .variable("POSTGRES_PASSWORD_FILE", "/run/secrets/password")
        .variable("POSTGRES_INITDB_ARGS", "--data-checksums --locale=C")
        .argument("-c")
        .argument("max_connections=33")
        .argument("-c")
        .argument("shared_preload_libraries=pg_stat_statements");
    for (from, to) in [
        (sql, "/docker-entrypoint-initdb.d/20.sql"),
        (script, "/docker-entrypoint-initdb.d/30.sh"),
        (secret, "/run/secrets/password"),
    ] {
        server = server.option("--volume").option(&format!("{from}:{to}:ro"));
    }
    let server = server.password_is("out-of-a-file").started();
    assert_eq!(server.value("select it from of_sql"), "shop");
    assert_eq!(server.value("select it from of_sh"), "1");
    assert_eq!(server.value("show max_connections"), "33");
    assert_eq!(server.value("show data_checksums"), "on");
    assert_eq!(server.value("show shared_preload_libraries"), "pg_stat_statements,nrt_backup");
    server.wait_for("select count(*) from nrt.backups where type = 'full'", "1", SOON);
    // The server of the initialisation backs up nothing.
    let log = server.log();
    let (initialisation, _) = log.split_once("init process complete").expect("it said so");
    assert!(!initialisation.contains("nrt_backup worker"), "{initialisation}");
}

/// A mounted configuration does as well as a variable, at both places.
#[test]
fn the_remote_may_be_a_mounted_file() {
    let store = Store::new("mounted");
    for (number, place) in
        ["/etc/nrt-backup/rclone.conf", "/root/.config/rclone/rclone.conf"].iter().enumerate()
    {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), store.configuration()).expect("it was just made");
        let bucket = format!("bucket{number}");
        let server = Order::new("mounted")
            .variable("RCLONE_REMOTE_PATH", &bucket)
            .option("--volume")
            .option(&format!("{}:{place}:ro", file.path().display()))
            .started();
        wait_until_protected(&server);
        let files = store.files(&bucket);
        assert!(files.iter().any(|it| it.starts_with("main/owner.json ")), "{files:?}");
    }
}

#[test]
fn other_versions_of_postgres_are_protected_too() {
    let store = Store::new("versions");
    for major in ["15", "18"] {
        let order = |order: Order| order.postgres(major).database(&format!("on{major}"));
        let server = order(Order::new("version").remote(&store, BUCKET)).started();
        let version = server.value("show server_version");
        assert!(version.starts_with(major), "{version}");
        server.sql("create table t as select 42 as a");
        wait_until_protected(&server);
        server.wait_until_healthy(SOON);
        server.lose();
        let again = back(order(Order::new("again").remote(&store, BUCKET))).started();
        assert_eq!(again.value("select a from t"), "42");
    }
}

#[test]
fn the_image_holds_what_is_needed_and_no_more() {
    let look = "for it in cc gcc clang cargo rustc make; do
                    if command -v $it; then echo there: $it; fi
                done
                find /src /usr/local/rustup /usr/local/cargo /usr/include/postgresql -type f -size +0 2>/dev/null
                find / -xdev -name '*.rs' -o -xdev -name '*.rlib' -o -xdev -path '/var/lib/apt/lists/*'
                true";
    for major in ["15", "17", "18"] {
        let order = Order::new("look").postgres(major).password(None);
        let found = ["bash", "-c", look].into_iter().fold(order, Order::argument).ended();
        assert_eq!(found, Ended { code: 0, said: String::new() }, "{major}");
    }
    for (field, expected) in [
        ("json .Config.Entrypoint", "[\"nrt-backup\",\"entrypoint\"]"),
        ("json .Config.Cmd", "[\"postgres\"]"),
        ("json .Config.Healthcheck.Test", "[\"CMD\",\"nrt-backup\",\"health\"]"),
        (".Config.StopSignal", "SIGINT"),
    ] {
        let format = format!("{{{{{field}}}}}");
        let output = podman(&["image", "inspect", "--format", &format, &image("17")]);
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), expected, "{field}");
    }
}

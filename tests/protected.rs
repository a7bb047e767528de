//! Makes clusters that the extension protects already: the first full backup is taken.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use nrt_tests::{Cluster, wait_until};

/// Long enough for a backup on a machine that is busy with other tests.
pub(crate) const SOON: Duration = Duration::from_secs(90);

/// A cluster on which a backup starts only because there is none, or because somebody asks.
pub(crate) fn quiet(cluster: Cluster) -> Cluster {
    cluster
        .setting("nrt_backup.full_schedule", "off")
        .setting("nrt_backup.incremental_schedule", "off")
        .setting("nrt_backup.wal_monitor", "off")
}

/// A quiet cluster that runs, has the extension, and has taken its first full backup.
pub(crate) fn protected(name: &str) -> Cluster {
    started(quiet(Cluster::new(name)))
}

/// Starts a cluster and waits for its first full backup.
pub(crate) fn started(cluster: Cluster) -> Cluster {
    let cluster = cluster.started();
    cluster.sql("create extension nrt_backup");
    wait_for_backups(&cluster, 1);
    cluster
}

/// Waits until the repository holds so many backups and nothing runs or waits.
pub(crate) fn wait_for_backups(cluster: &Cluster, count: u32) {
    let question = "select (select count(*) from nrt.backups) || ' ' || activity from nrt.status";
    cluster.wait_for(question, &format!("{count} idle"), SOON);
}

/// The history, with these columns.
pub(crate) fn history(cluster: &Cluster, columns: &str) -> Vec<Vec<String>> {
    cluster.sql(&format!("select {columns} from nrt.backup_history order by job"))
}

/// Finishes the current WAL segment and waits until it is in the repository.
pub(crate) fn archive_segment(cluster: &Cluster) -> String {
    cluster.sql("select pg_logical_emit_message(false, 'nrt', 'something to archive')");
    let segment = cluster.value("select pg_walfile_name(pg_switch_wal())");
    cluster.wait_for(
        &format!("select last_archived_wal >= '{segment}' from pg_stat_archiver"),
        "t",
        SOON,
    );
    segment
}

/// Drops a database. PostgreSQL waits then until each of its processes has let go of its files, so
/// the worker must answer, and no session of its own may hold the database.
pub(crate) fn drop_database(cluster: &Cluster, name: &str) {
    let mut client = cluster.connect("postgres", "postgres").expect("a session");
    // The worker looks around once a minute, and would answer then at the latest.
    for sql in ["set statement_timeout = '20s'", &format!("drop database {name}")] {
        client.simple_query(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

/// Has pgBackRest read everything in the repository and compare it with its checksums.
pub(crate) fn verify(cluster: &Cluster) {
    verified(&cluster.pgbackrest(&["--stanza=main", "--log-level-console=info", "verify"]));
}

/// The same for a configuration of the operator's.
pub(crate) fn verify_with(cluster: &Cluster, config: &Path) {
    let mut pgbackrest = cluster.installation().command("pgbackrest");
    pgbackrest.arg(format!("--config={}", config.display()));
    pgbackrest.args(["--stanza=main", "--log-level-console=info", "verify"]);
    verified(&pgbackrest.output().expect("pgbackrest is installed"));
}

fn verified(output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    let sound = output.status.success() && !text.contains("ERROR") && !text.contains("WARN");
    assert!(sound, "{}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr));
}

/// The messages of one check, once it has this severity.
pub(crate) fn wait_for_health(cluster: &Cluster, check: &str, severity: &str) -> String {
    let question = format!("select severity from nrt.health where check_name = '{check}'");
    cluster.wait_for(&question, severity, SOON);
    cluster.value(&format!("select message from nrt.health where check_name = '{check}'"))
}

/// Has the operator configure pgBackRest, with these lines beside what must be: the file's path.
pub(crate) fn own_configuration(cluster: &Cluster, repository: &Path, global: &str) -> PathBuf {
    let text = format!(
        "[global]\nrepo1-path={}\nrepo1-retention-full=2\nlock-path={}\nlog-level-file=off\n\
         start-fast=y\n{global}\n[main]\npg1-path={}\npg1-socket-path={}\npg1-user=postgres\n",
        repository.display(),
        cluster.lock().display(),
        cluster.data().display(),
        cluster.socket().display()
    );
    let config = cluster.directory().join("own.conf");
    fs::write(&config, text).expect("the directory is ours");
    cluster.set("nrt_backup.pgbackrest_config", &config.display().to_string());
    config
}

/// Waits until no process of the cluster is left that the server does not hold.
pub(crate) fn wait_for_no_orphans(cluster: &Cluster, timeout: Duration) {
    wait_until("nothing has left the server", timeout, || cluster.orphans().is_empty());
}

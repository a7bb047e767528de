//! Shows that a cluster comes back with one command: from a remote after the machine is gone, to
//! any point in time, and that what cannot be reached is refused before anything is touched.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use crate::offsite::{
    AGAIN, NAME, all_well, nrt_backup, owner_of, shipping, wait_for_shipped, words,
};
use crate::restoring::{Place, back_up, from, texts};
use nrt_core::lsn::Lsn;
use nrt_tests::{Cluster, Commits, Kind, Remote, Shutdown, wait_until};

#[test]
fn one_command_brings_a_lost_machine_back() {
    let remote = Remote::new("lost", Kind::WebDav);
    let cluster = shipping(Cluster::with_identity("lost"), &remote);
    let mut commits = Commits::begin(&cluster, "t", 4, Duration::from_millis(2));
    sleep(Duration::from_secs(4));
    let promised: Lsn =
        cluster.value("select shipped_lsn from nrt.status").parse().expect("a position");
    cluster.vanish();
    let restored = Place::new("back").restore(&texts(&from(&remote)));
    let lost = commits.lost(&restored);
    assert!(lost.iter().all(|it| it.lsn > promised), "what was said to be there is lost");
    eprintln!("{} of {} commits lost", lost.len(), commits.made().len());
    assert_eq!(restored.value("select timeline_id from pg_control_checkpoint()"), "2");
}

/// A restore to a target fetches one chain. What else the remote holds comes back and is listed without
/// another backup, so the server is well as soon as its first one is off-site.
#[test]
fn what_a_restore_did_not_fetch_is_listed_again() {
    let remote = Remote::new("listed", Kind::Local);
    let original = shipping(Cluster::with_identity("listed"), &remote);
    original.sql("create table t as select generate_series(1, 10) as i");
    original.sql("select nrt_restore_point('before')");
    let later = [back_up(&original, "full"), back_up(&original, "incr")];
    wait_for_shipped(&original);
    original.vanish();
    let place = Place::new("listed-restored");
    let place = Place { cluster: remote.configure(crate::protected::quiet(place.cluster)) };
    place.cluster.write_settings();
    let remote_arguments = from(&remote);
    let arguments = [&["--target-name=before", "--original"], &texts(&remote_arguments)[..]];
    let restored = place.restore(&arguments.concat());
    let (code, text) = nrt_backup(&restored, &["takeover"]);
    assert_eq!(code, 0, "{text}");
    // The one that the server takes by itself, and the three of the original.
    restored.wait_for("select count(*) from nrt.backups", "4", AGAIN);
    for label in &later {
        let listed = format!("select count(*) from nrt.backups where label = '{label}'");
        assert_eq!(restored.value(&listed), "1");
    }
    all_well(&restored);
    crate::offsite::wait_for_offsite(&restored, 4);
    let taken = "select string_agg(trigger, ' ' order by job) from nrt.backup_history where \
                 status = 'succeeded' and label > '2'";
    assert!(restored.value(taken).ends_with("startup"), "nobody takes another one");
    crate::protected::verify(&restored);
}

/// What is known of one row of the history: what an operator could have written down.
#[derive(Debug, Clone)]
struct Row {
    number: u32,
    /// When it was committed.
    at: String,
    /// The transaction.
    xid: String,
    /// How far the WAL was right after it.
    lsn: String,
}

/// Commits a row, and some time after it in which nothing is.
fn row(cluster: &Cluster, number: u32) -> Row {
    let xid = cluster.value(&format!(
        "insert into history values ({number}) returning pg_current_xact_id()::xid::text"
    ));
    let row = Row {
        number,
        at: cluster.value(&format!(
            "select to_char(pg_xact_commit_timestamp('{xid}'::xid) at time zone 'UTC',
                            'YYYY-MM-DD HH24:MI:SS.US') || '+00'"
        )),
        lsn: cluster.value("select pg_current_wal_flush_lsn()"),
        xid,
    };
    sleep(Duration::from_millis(30));
    row
}

fn rows(cluster: &Cluster, numbers: std::ops::RangeInclusive<u32>) -> Vec<Row> {
    numbers.map(|number| row(cluster, number)).collect()
}

fn held(cluster: &Cluster) -> String {
    cluster.value("select string_agg(number::text, ' ' order by number) from history")
}

/// The same, as text, of what should be there.
fn numbers(ranges: &[std::ops::RangeInclusive<u32>]) -> String {
    let all: Vec<String> = ranges.iter().cloned().flatten().map(|it| it.to_string()).collect();
    all.join(" ")
}

/// A remote with a history of two timelines: rows 1 to 15 with backups of every kind between them
/// on the first, and rows 21 to 26 on the second, which left the first after row 9.
struct History {
    /// The second timeline's server, which ships as long as this lives.
    _cluster: Cluster,
    remote: Remote,
    rows: Vec<Row>,
    first_backup: String,
    incremental: String,
}

impl History {
    fn new(name: &str) -> History {
        let remote = Remote::new(name, Kind::WebDav);
        let first = Cluster::with_identity(name)
            .setting("track_commit_timestamp", "on")
            .setting("autovacuum", "off");
        let first = shipping(first, &remote);
        let first_backup = first.value("select label from nrt.backups");
        first.sql("create table history (number int primary key)");
        let mut all = rows(&first, 1..=3);
        back_up(&first, "diff");
        all.extend(rows(&first, 4..=6));
        let incremental = back_up(&first, "incr");
        all.extend(rows(&first, 7..=9));
        first.sql("select pg_create_restore_point('nine')");
        all.extend(rows(&first, 10..=12));
        back_up(&first, "incr");
        all.extend(rows(&first, 13..=15));
        wait_for_shipped(&first);
        first.vanish();

        let place = Place::new(&format!("{name}-second"));
        place.cluster.set("track_commit_timestamp", "on");
        place.cluster.set("autovacuum", "off");
        let place = Place { cluster: remote.configure(crate::protected::quiet(place.cluster)) };
        place.cluster.write_settings();
        let remote_arguments = from(&remote);
        let arguments = [&["--target-name=nine", "--original"], &texts(&remote_arguments)[..]];
        let second = place.restore(&arguments.concat());
        assert_eq!(held(&second), numbers(&[1..=9]));
        // It takes over: the first is gone.
        let (code, text) = nrt_backup(&second, &["takeover"]);
        assert_eq!(code, 0, "{text}");
        // A full backup is taken by itself, on the new timeline, and the older ones are kept.
        second.wait_for(
            "select count(*) from nrt.backups where type = 'full' and label > '2'",
            "2",
            AGAIN,
        );
        all.extend(rows(&second, 21..=23));
        back_up(&second, "incr");
        all.extend(rows(&second, 24..=26));
        wait_for_shipped(&second);
        all_well(&second);
        History { _cluster: second, remote, rows: all, first_backup, incremental }
    }

    fn row(&self, number: u32) -> &Row {
        self.rows.iter().find(|row| row.number == number).expect("it was made")
    }

    /// Restores to a target beside the running server.
    fn restore(&self, name: &str, arguments: &[&str]) -> Cluster {
        let remote = from(&self.remote);
        let arguments = [arguments, &["--copy"], &texts(&remote)[..]].concat();
        let place = Place::new(name);
        place.cluster.set("track_commit_timestamp", "on");
        place.cluster.write_settings();
        place.restore(&arguments)
    }
}

#[test]
fn every_target_is_reached_exactly() {
    let history = History::new("targets");
    let of = |number: u32| history.row(number);
    let later = |number: u32| {
        let at = &of(number).at;
        let at: chrono::DateTime<chrono::Utc> =
            at.replace(' ', "T").replace("+00", "Z").parse().expect("a time");
        (at + chrono::TimeDelta::milliseconds(5)).format("%Y-%m-%d %H:%M:%S%.6f+00").to_string()
    };
    let cases: Vec<(Vec<String>, String)> = vec![
        (vec!["--latest".into()], numbers(&[1..=9, 21..=26])),
        (vec![format!("--target-time={}", of(24).at)], numbers(&[1..=9, 21..=24])),
        (
            vec![format!("--target-time={}", of(24).at), "--exclusive".into()],
            numbers(&[1..=9, 21..=23]),
        ),
        (vec![format!("--target-time={}", later(5))], numbers(&[1..=5])),
        (vec![format!("--target-time={}", later(14)), "--timeline=1".into()], numbers(&[1..=14])),
        (vec![format!("--target-xid={}", of(22).xid)], numbers(&[1..=9, 21..=22])),
        (vec![format!("--target-xid={}", of(8).xid), "--exclusive".into()], numbers(&[1..=7])),
        (vec![format!("--target-xid={}", of(11).xid), "--timeline=1".into()], numbers(&[1..=11])),
        (vec![format!("--target-lsn={}", of(4).lsn)], numbers(&[1..=4])),
        (
            vec![format!("--target-lsn={}", of(25).lsn), "--exclusive".into()],
            numbers(&[1..=9, 21..=25]),
        ),
        (vec!["--target-name=nine".into(), "--timeline=1".into()], numbers(&[1..=9])),
        (vec!["--latest".into(), "--timeline=1".into()], numbers(&[1..=15])),
        (vec!["--immediate".into()], numbers(&[1..=9, 21..=23])),
        (
            vec!["--immediate".into(), format!("--backup={}", history.incremental)],
            numbers(&[1..=6]),
        ),
        (
            vec!["--latest".into(), format!("--backup={}", history.first_backup)],
            numbers(&[1..=9, 21..=26]),
        ),
    ];
    for (arguments, expected) in cases {
        let restored = history.restore("reached", &texts(&arguments));
        assert_eq!(held(&restored), expected, "{arguments:?}");
        assert_eq!(restored.value("select pg_is_in_recovery()"), "f", "{arguments:?}");
        restored.sql("insert into history values (99)");
        let timeline = restored.value("select timeline_id from pg_control_checkpoint()");
        assert_eq!(timeline, "3", "{arguments:?}: no other timeline has its number");
        assert_eq!(restored.value("show archive_mode"), "off", "a copy archives nothing");
    }
}

#[test]
fn what_cannot_be_reached_is_refused_and_nothing_is_changed() {
    let remote = Remote::new("refused", Kind::WebDav);
    let cluster = shipping(Cluster::with_identity("refused"), &remote);
    cluster.sql("create table t (i int)");
    for _ in 0..3 {
        cluster.sql("insert into t values (1); select pg_switch_wal()");
    }
    wait_for_shipped(&cluster);
    let stop = cluster.value("select stop_lsn from nrt.backups");
    // A sign of life tells how far it has shipped: what is missing before that was there once.
    let now: Lsn = cluster.value("select pg_current_wal_lsn()").parse().expect("a position");
    let promised = || owner_of(&remote).shipped.is_some_and(|it| it.flushed >= now);
    wait_until("it is told off-site how far it reaches", AGAIN, promised);
    cluster.stop(Shutdown::Fast);
    let place = Place::new("untouched");
    let before = place.around();
    let remote_arguments = from(&remote);
    for (arguments, words) in [
        (vec!["--target-lsn=0/5", "--target-xid=700"], vec!["0/5", "700"]),
        (vec!["--target-time=2999-01-01 00:00:00"], vec!["future"]),
        (vec!["--target-time=2001-01-01 00:00:00"], vec!["2001-01-01", "HINT"]),
        (vec!["--target-time=yesterday"], vec!["yesterday"]),
        (vec!["--target-lsn=0/10"], vec!["0/10", "HINT"]),
        (vec!["--target-lsn=FF/10"], vec!["FF/10", "HINT"]),
        (vec!["--target-lsn=1G/3"], vec!["1G/3"]),
        (vec!["--target-xid=999999"], vec!["999999", "HINT"]),
        (vec!["--target-xid=abc"], vec!["abc"]),
        (vec!["--target-name=never"], vec!["never"]),
        (vec!["--timeline=7"], vec!["7"]),
        (vec!["--backup=20200101-000000F"], vec!["20200101-000000F"]),
        (vec!["--action=fly"], vec!["fly"]),
        (vec!["--target-time=2001-01-01", "--remote=nowhere:x/main"], vec!["nowhere"]),
    ] {
        let mut all = texts(&remote_arguments);
        if arguments.iter().any(|it| it.starts_with("--remote")) {
            all.pop();
        }
        all.extend(&arguments);
        for command in ["plan", "restore"] {
            let (code, text) = place.run(command, &all);
            assert_eq!(code, 1, "{command} {arguments:?}: {text}");
            for word in &words {
                assert!(text.contains(word), "{command} {arguments:?}: no {word} in {text}");
            }
        }
        assert_eq!(place.around(), before, "{arguments:?}");
    }

    // A gap: a segment in the middle of the WAL is gone, from the archive or the tail.
    let segment = "000000010000000000000004";
    let files = remote.files(NAME);
    for path in crate::offsite::contents(&files).into_keys() {
        if path.contains(segment) {
            fs::remove_file(files.join(path)).expect("it is there");
        }
    }
    // It remembers what it has listed.
    let anew = || {
        remote.kill();
        remote.start();
    };
    anew();
    let mut all = texts(&remote_arguments);
    all.push("--latest");
    let (code, text) = place.run("plan", &all);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("--up-to-gap") && text.contains("missing"), "{text}");
    // A session that had promised nothing when the machine vanished has lost nothing: the hole is
    // where WAL was on its way.
    let file = remote.files(NAME).join("owner.json");
    let promised = fs::read_to_string(&file).expect("it is there");
    let mut owner: serde_json::Value = serde_json::from_str(&promised).expect("it is whole");
    assert!(owner["shipped"].is_object(), "{promised}");
    owner["shipped"] = serde_json::Value::Null;
    fs::write(&file, owner.to_string()).expect("the directory is ours");
    anew();
    let (code, text) = place.run("plan", &all);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("had not arrived yet"), "{text}");
    fs::write(&file, promised).expect("the directory is ours");
    anew();
    all.push("--up-to-gap");
    let (code, text) = place.run("plan", &all);
    assert_eq!(code, 0, "{text}");

    // Something of the backup itself is gone, and there is no other.
    let label = cluster_label(&remote);
    let data = remote.files(NAME).join(format!("repository/backup/main/{label}"));
    let bundle = crate::offsite::contents(&data).into_keys().find(|it| it != "backup.manifest");
    fs::remove_file(data.join(bundle.expect("there is data"))).expect("it is there");
    anew();
    let (code, text) = place.run("plan", &all);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains(&label), "{text}");
    assert_eq!(place.around(), before);
    assert!(!stop.is_empty());
}

fn cluster_label(remote: &Remote) -> String {
    let backups = remote.files(NAME).join("repository/backup/main");
    let entries = fs::read_dir(backups).expect("it is there").flatten();
    let mut names = entries.map(|it| it.file_name().to_string_lossy().into_owned());
    names.find(|name| name.starts_with('2')).expect("there is a backup")
}

#[test]
fn a_cluster_that_is_there_is_refused_or_moved_aside_or_used() {
    let remote = Remote::new("aside", Kind::WebDav);
    let cluster = shipping(Cluster::with_identity("aside"), &remote);
    cluster.sql("create table t as select generate_series(1, 1000) as i");
    wait_for_shipped(&cluster);
    cluster.stop(Shutdown::Fast);
    let remote_arguments = from(&remote);
    let run = |arguments: &[&str]| {
        let installation = cluster.installation();
        let mut program = installation.command(installation.program("nrt-backup"));
        program.arg("restore").arg("-D").arg(cluster.data()).arg("--no-start").arg("--original");
        let output = program.args(&remote_arguments).args(arguments).output().expect("it runs");
        (output.status.code().expect("nobody kills it"), words(&output))
    };
    let (code, text) = run(&[]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("not empty") && text.contains("--replace"), "{text}");
    let aside = |directory: &Path| {
        let entries = fs::read_dir(directory).expect("it is there").flatten();
        let mut paths = entries.map(|it| it.path());
        paths.find(|it| it.to_string_lossy().contains("before-restore"))
    };
    assert_eq!(aside(cluster.directory()), None);
    let (code, text) = run(&["--replace"]);
    assert_eq!(code, 0, "{text}");
    let old = aside(cluster.directory()).expect("it was moved aside");
    assert!(old.join("PG_VERSION").is_file(), "nothing of it is lost");
    cluster.start();
    assert_eq!(cluster.value("select count(*) from t"), "1000");
    let (code, text) = run(&["--delta"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("a server runs"), "{text}");
    cluster.sql("drop table t");
    cluster.stop(Shutdown::Fast);
    let (code, text) = run(&["--delta", "--timeline=1"]);
    assert_eq!(code, 0, "{text}");
    cluster.start();
    assert_eq!(cluster.value("select count(*) from t"), "1000");
}

#[test]
fn a_running_server_plans_its_own_restore() {
    let cluster = crate::protected::protected("planned");
    cluster.sql("create table t as select generate_series(1, 100) as i");
    let steps = |arguments: &str| {
        cluster.sql(&format!(
            "select step, action, command || ' ' || detail from nrt_restore_plan({arguments})"
        ))
    };
    let label = cluster.value("select label from nrt.backups");
    // pgBackRest knows the end of a backup to the second.
    sleep(Duration::from_millis(1100));
    for arguments in ["", "target_time => now()", "target_lsn => pg_current_wal_flush_lsn()"] {
        let planned = steps(arguments);
        let actions: Vec<&str> = planned.iter().map(|row| row[1].as_str()).collect();
        assert_eq!(actions, ["restore", "recover", "start"], "{arguments}");
        assert!(planned[0][2].contains(&label), "{planned:?}");
    }
    for (arguments, word) in [
        ("target_time => now() + interval '1 day'", "future"),
        ("target_time => '2001-01-01'", "2001-01-01"),
        ("target_time => now(), target_xid => '700'", "two targets"),
        ("target_name => 'never'", "never"),
    ] {
        let refused =
            cluster.try_sql(&format!("select nrt_restore_plan({arguments})")).expect_err(arguments);
        assert!(refused.message.contains(word), "{arguments}: {refused}");
        assert!(!refused.hint.is_empty(), "{arguments}: {refused}");
    }
}

//! Clusters as Debian's postgresql-common makes and starts them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::offsite::{AGAIN, NAME, shipping, wait_for_shipped};
use crate::restoring::{back_up, ended, from, of, texts};
use nrt_tests::{Cluster, Kind, Remote, is_root};

/// The name of the cluster: as `pg_lsclusters` shows it.
const CLUSTER: &str = "shop";
const CONTENT: &str = "select count(*) || ' ' || sum(i) from t";

/// postgresql-common's world of a cluster: its own configurations, and this installation's
/// programs.
struct Debian<'a> {
    cluster: &'a Cluster,
}

impl Debian<'_> {
    /// Whether there is one: its programs start what is in `/usr/lib/postgresql`, in place of which
    /// only root can put another installation.
    fn is_here() -> bool {
        is_root() && Path::new("/usr/bin/pg_ctlcluster").exists()
    }

    fn root(&self) -> PathBuf {
        self.cluster.directory().join("etc")
    }

    fn major(&self) -> String {
        self.cluster.installation().major().to_string()
    }

    fn etc(&self) -> PathBuf {
        self.root().join(self.major()).join(CLUSTER)
    }

    /// Runs one of its programs: all that it said.
    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let installation = self.cluster.installation();
        // The installation under test has the layout of the real one, below another root.
        let ours = installation.program("postgres");
        let ours = ours.ancestors().nth(6).expect("usr/lib/postgresql/MAJOR/bin").display();
        let lib = format!("usr/lib/postgresql/{}", self.major());
        let share = format!("usr/share/postgresql/{}", self.major());
        let script = format!(
            "mount --bind '{ours}/{lib}' '/{lib}' && mount --bind '{ours}/{share}' '/{share}' && \
             exec \"$0\" \"$@\""
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script, program]).args(arguments);
        command.env("PG_CLUSTER_CONF_ROOT", self.root()).env("LC_ALL", "C.UTF-8");
        let (code, text) = ended(command.output().expect("util-linux has it"));
        assert_eq!(code, 0, "{program} {arguments:?}: {text}");
        text
    }

    /// Has `pg_createcluster` make the cluster, as apt does.
    fn create(&self) {
        let (directory, data) = (self.cluster.directory(), self.cluster.data());
        let root = self.root();
        if !root.exists() {
            self.cluster.installation().private_directory(&root).expect("its parent is there");
        }
        let (log, data) = (directory.join("debian.log"), data.display().to_string());
        let (log, socket) =
            (log.display().to_string(), self.cluster.socket().display().to_string());
        let places = ["-d", &data, "-l", &log, "-s", &socket, "-p", "5432"];
        let more = ["-o", "ssl=off", &self.major(), CLUSTER].map(str::to_string);
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        self.run("pg_createcluster", &[&places[..], &more].concat());
    }

    fn control(&self, action: &str) -> String {
        self.run("pg_ctlcluster", &[&self.major(), CLUSTER, action])
    }
}

/// A cluster of `pg_createcluster`, whose `conf.d` is empty.
fn created(name: &str) -> Cluster {
    let cluster = Cluster::without_data(name);
    let debian = Debian { cluster: &cluster };
    debian.create();
    let main = debian.etc().join("postgresql.conf");
    let text = fs::read_to_string(&main).expect("it was just made");
    assert!(text.contains("include_dir = 'conf.d'"), "{text}");
    assert_eq!(fs::read_dir(debian.etc().join("conf.d")).expect("it is there").count(), 0);
    let settings = cluster.directory().join("settings.conf");
    let text = format!("{text}include '{}'\nwork_mem = '5MB'\n", settings.display());
    fs::write(&main, text).expect("we are root");
    // The tests' sessions are root's.
    let hba = debian.etc().join("pg_hba.conf");
    let text = fs::read_to_string(&hba).expect("it was just made");
    fs::write(&hba, format!("local all all trust\n{text}")).expect("we are root");
    cluster.argument(&format!("--config_file={}", main.display()))
}

#[test]
fn a_cluster_of_pg_createcluster_comes_back_as_one() {
    if !Debian::is_here() {
        return;
    }
    let remote = Remote::new("debian", Kind::WebDav);
    let cluster = shipping(created("debian"), &remote);
    let debian = Debian { cluster: &cluster };
    cluster.sql("create table t as select generate_series(1, 1000) as i");
    // The configuration comes back.
    let drill = cluster.value("select nrt_drill_now()");
    assert!(drill.starts_with("restored to "), "{drill}");

    // What is on the remote is what comes back, and a drill says so; a restore does before it
    // touches anything.
    let main = debian.etc().join("postgresql.conf");
    let below = main.strip_prefix("/").expect("it is absolute");
    let there = remote.files(NAME).join("configuration").join(below);
    let kept = fs::read_to_string(&there).expect("it was sent");
    fs::write(&there, format!("{kept}include 'gone.conf'\n")).expect("it can be written");
    let failed = cluster.try_sql("select nrt_drill_now()").expect_err("it must fail").to_string();
    for words in ["the configuration does not come back", "gone.conf", "No such file"] {
        assert!(failed.contains(words), "{words}: {failed}");
    }
    let numbers = "select status || (rto > '0') from nrt.drills limit 1";
    assert_eq!(cluster.value(numbers), "failedtrue");

    cluster.sql("insert into t values (1001)");
    back_up(&cluster, "incr");
    wait_for_shipped(&cluster);
    let content = cluster.value(CONTENT);
    cluster.vanish();
    fs::remove_dir_all(debian.root()).expect("it is ours");
    // A fresh machine, on which apt has made a cluster of the same name.
    fs::create_dir(cluster.repository()).expect("it is gone");
    cluster.installation().hand_over(&cluster.repository()).expect("we are root");
    debian.create();
    let fresh = fs::read_to_string(&main).expect("it is there");
    let remote_arguments = from(&remote);
    let arguments = [&texts(&remote_arguments)[..], &["--replace", "--original"]].concat();
    let restore = || {
        let mut command = of(&cluster, "restore", &arguments);
        command.env("PG_CLUSTER_CONF_ROOT", debian.root());
        ended(command.output().expect("it is installed"))
    };
    let (code, words) = restore();
    assert_eq!(code, 1, "{words}");
    assert!(words.contains("gone.conf") && words.contains("--config-file"), "{words}");
    assert!(!words.contains("fetch "), "{words}");
    assert_eq!(fs::read_to_string(&main).ok().as_ref(), Some(&fresh));
    fs::write(&there, &kept).expect("it can be written");
    let (code, words) = restore();
    assert_eq!(code, 0, "{words}");
    assert!(words.contains(&format!("pg_ctlcluster {} {CLUSTER} starts it", debian.major())));
    assert_eq!(cluster.value(CONTENT), content);

    // As at boot.
    let is_protected = |what: &str| {
        for (setting, value) in [
            ("work_mem", "5MB".to_string()),
            ("shared_preload_libraries", "nrt_backup".to_string()),
            ("archive_mode", "on".to_string()),
            ("config_file", main.display().to_string()),
            ("hba_file", debian.etc().join("pg_hba.conf").display().to_string()),
        ] {
            assert_eq!(cluster.value(&format!("show {setting}")), value, "{what}: {setting}");
        }
        assert_eq!(cluster.value(CONTENT), content, "{what}");
    };
    is_protected("restored");
    debian.control("restart");
    is_protected("started by pg_ctlcluster");
    cluster.wait_for("select shipping from nrt.status", "shipping", AGAIN);
    // As it was, but for the file that lay elsewhere.
    let restored = fs::read_to_string(&main).expect("it is there");
    let changed: Vec<(&str, &str)> =
        kept.lines().zip(restored.lines()).filter(|(old, new)| old != new).collect();
    assert_eq!(kept.lines().count(), restored.lines().count());
    let [(old, new)] = changed[..] else { panic!("{changed:?}") };
    assert!(old.starts_with("include '/") && new.starts_with("include '/"), "{changed:?}");
    assert!(debian.etc().join("conf.d").is_dir() && debian.etc().join("start.conf").is_file());
    let name = |it: fs::DirEntry| it.file_name().to_string_lossy().into_owned();
    let entries = fs::read_dir(debian.etc()).expect("it is there").flatten();
    let before: Vec<String> = entries.map(name).filter(|it| it.starts_with("before-")).collect();
    let [before] = &before[..] else { panic!("{before:?}") };
    let before = fs::read_to_string(debian.etc().join(before).join("postgresql.conf"));
    assert_eq!(before.ok().as_ref(), Some(&fresh), "what was there is kept");
    assert!(!cluster.directory().join("data-configuration").exists());

    // An operator's own configuration stays, and what to do is said.
    debian.control("stop");
    let own = format!("{fresh}max_wal_size = '2GB'\n");
    fs::write(&main, &own).expect("we are root");
    let (code, words) = restore();
    assert_eq!(code, 0, "{words}");
    assert_eq!(fs::read_to_string(&main).ok().as_ref(), Some(&own));
    for said in ["is yours, and was left", "nothing backs it up", "cp -aT --backup=numbered"] {
        assert!(words.contains(said), "{said}: {words}");
    }
    is_started_otherwise(&cluster, &main);
    // By what was said.
    let said = words.split_once("as root: ").and_then(|(_, it)| it.lines().next());
    let mut command = Command::new("sh");
    command.arg("-c").arg(said.expect("there is a command"));
    assert!(command.status().expect("there is a shell").success());
    debian.control("restart");
    is_protected("by hand");
    debian.control("stop");
}

fn is_started_otherwise(cluster: &Cluster, main: &Path) {
    assert_ne!(cluster.value("show config_file"), main.display().to_string());
    assert_eq!(cluster.value("show shared_preload_libraries"), "nrt_backup");
}

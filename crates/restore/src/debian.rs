//! Puts the configuration of a restored cluster where Debian's `pg_ctlcluster` starts it from, also
//! at boot: `/etc/postgresql/VERSION/NAME/`. Files of an operator there are left as they are.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use nrt_core::configuration::{quoted, settings};

/// The main file, by the name that `pg_ctlcluster` looks for.
const MAIN: &str = "postgresql.conf";
/// Where the clusters' configurations are, unless postgresql-common's own variable says otherwise.
const ROOT: &str = "/etc/postgresql";
const ROOT_VARIABLE: &str = "PG_CLUSTER_CONF_ROOT";
/// Where `pg_createcluster` makes data directories.
const DATA_ROOT: &str = "/var/lib/postgresql";
/// Without it this is no machine with postgresql-common.
const PROGRAM: &str = "/usr/bin/pg_ctlcluster";
/// What is about to be installed, in the cluster's directory.
const NEW: &str = ".nrt_backup.new";
/// What was there before is kept in a directory of this name and the time.
const BEFORE: &str = "before-restore-";
/// A server that systemd runs is known to it.
const SYSTEMD: &str = "/run/systemd/system";

/// What `initdb` and `pg_createcluster` write without being asked to. An empty value: any.
const CREATED: [(&str, &str); 29] = [
    ("data_directory", ""),
    ("hba_file", ""),
    ("ident_file", ""),
    ("external_pid_file", ""),
    ("port", ""),
    ("max_connections", "100"),
    ("unix_socket_directories", ""),
    ("ssl", ""),
    ("ssl_cert_file", "/etc/ssl/certs/ssl-cert-snakeoil.pem"),
    ("ssl_key_file", "/etc/ssl/private/ssl-cert-snakeoil.key"),
    ("shared_buffers", "128MB"),
    ("dynamic_shared_memory_type", ""),
    ("max_wal_size", "1GB"),
    ("min_wal_size", "80MB"),
    ("autovacuum_worker_slots", "16"),
    ("password_encryption", ""),
    ("log_file_mode", ""),
    ("log_line_prefix", "%m [%p] %q%u@%d "),
    ("log_timezone", ""),
    ("cluster_name", ""),
    ("stats_temp_directory", ""),
    ("datestyle", ""),
    ("timezone", ""),
    ("lc_messages", ""),
    ("lc_monetary", ""),
    ("lc_numeric", ""),
    ("lc_time", ""),
    ("default_text_search_config", ""),
    ("include_dir", "conf.d"),
];
/// The first words of the lines of `pg_hba.conf` that `pg_createcluster` leaves; a method follows.
const CREATED_HBA: [&str; 7] = [
    "local all postgres",
    "local all all",
    "host all all 127.0.0.1/32",
    "host all all ::1/128",
    "local replication all",
    "host replication all 127.0.0.1/32",
    "host replication all ::1/128",
];

/// A cluster as `pg_ctlcluster` knows it, or will.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DebianCluster {
    version: String,
    name: String,
    directory: PathBuf,
}

/// What came of an installation.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Installed {
    /// The configuration is in the cluster's directory. What was there is kept.
    Yes { kept: Option<PathBuf> },
    /// It is not, for this reason.
    No(String),
}

impl DebianCluster {
    /// The cluster that `pg_ctlcluster` starts in a data directory. `main` is the original's main
    /// file, where it lay outside of the data directory.
    pub(super) fn of(version: &str, data: &Path, main: Option<&Path>) -> Option<DebianCluster> {
        let root = std::env::var_os(ROOT_VARIABLE).map(PathBuf::from);
        if !Path::new(PROGRAM).exists() {
            return None;
        }
        DebianCluster::below(&root.unwrap_or_else(|| ROOT.into()), version, data, main)
    }

    fn below(
        root: &Path,
        version: &str,
        data: &Path,
        main: Option<&Path>,
    ) -> Option<DebianCluster> {
        let cluster = |name: &str| DebianCluster {
            version: version.to_string(),
            name: name.to_string(),
            directory: root.join(version).join(name),
        };
        let entries = fs::read_dir(root.join(version)).into_iter().flatten().flatten();
        let names = entries.map(|it| it.file_name().to_string_lossy().into_owned());
        let known: Vec<DebianCluster> = names.map(|name| cluster(&name)).collect();
        if let Some(found) = known.iter().find(|it| it.serves(data)) {
            return Some(found.clone());
        }
        let name = |directory: &Path| Some(directory.file_name()?.to_string_lossy().into_owned());
        let of_version = |directory: &Path| {
            let parent = directory.parent()?;
            (name(parent)? == version).then(|| name(directory)).flatten()
        };
        let by_data = data.starts_with(DATA_ROOT).then(|| of_version(data)).flatten();
        let named = by_data.or_else(|| of_version(main?.parent()?))?;
        // Another cluster's configuration is not this one's.
        Some(cluster(&named)).filter(|it| !it.main().exists())
    }

    /// The file that a server is started with.
    pub(super) fn main(&self) -> PathBuf {
        self.directory.join(MAIN)
    }

    /// The directory of the configuration.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// As it is named on `pg_ctlcluster`'s command line.
    pub(super) fn words(&self) -> String {
        format!("{} {}", self.version, self.name)
    }

    /// How systemd comes to run a server that was started without it.
    pub(super) fn words_for_systemd(&self) -> Option<String> {
        Path::new(SYSTEMD).exists().then(|| {
            format!(
                "systemd knows nothing of the running server until the next boot, or until you \
                 hand it over: pg_ctlcluster {} stop, then systemctl start postgresql@{}-{}",
                self.words(),
                self.version,
                self.name
            )
        })
    }

    /// How an operator installs by hand what was prepared in `from`.
    pub(super) fn by_hand(&self, from: &Path) -> String {
        let parent = self.directory.parent().unwrap_or(&self.directory);
        format!(
            "mkdir -p '{}' && cp -aT --backup=numbered '{}' '{}'",
            parent.display(),
            from.display(),
            self.directory.display()
        )
    }

    /// Whether its configuration names this data directory.
    fn serves(&self, data: &Path) -> bool {
        let Ok(text) = fs::read_to_string(self.main()) else { return false };
        let named = settings(&text).filter(|it| it.is("data_directory")).last();
        named.is_some_and(|it| {
            let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
            real(Path::new(&it.value)) == real(data)
        })
    }

    /// Whether nobody has changed what `pg_createcluster` had written; there may be nothing.
    fn is_as_created(&self) -> bool {
        if !self.main().exists() {
            // pg_ctlcluster knows of no cluster, or we were interrupted.
            return true;
        }
        let read = |name: &str| match fs::read_to_string(self.directory.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(String::new()),
            text => text.ok(),
        };
        let (Some(main), Some(hba), Some(ident)) =
            (read(MAIN), read("pg_hba.conf"), read("pg_ident.conf"))
        else {
            return false;
        };
        let is_created = |name: &str, value: &str| {
            let is_it = |(known, _): &&(&str, &str)| known.eq_ignore_ascii_case(name);
            CREATED.iter().find(is_it).is_some_and(|(_, known)| known.is_empty() || *known == value)
        };
        let lines = |text: &str| -> Vec<String> {
            let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
            let lines = text.lines().map(|line| words(line.split('#').next().unwrap_or_default()));
            lines.filter(|line| !line.is_empty()).collect()
        };
        let is_created_hba = |line: &String| {
            line.rsplit_once(' ').is_some_and(|(words, method)| {
                CREATED_HBA.contains(&words) && ["peer", "scram-sha-256", "md5"].contains(&method)
            })
        };
        let mut included = fs::read_dir(self.directory.join("conf.d")).into_iter().flatten();
        settings(&main).all(|it| is_created(it.name, &it.value))
            && lines(&hba).iter().all(is_created_hba)
            && lines(&ident).is_empty()
            && !included
                .any(|it| it.is_ok_and(|it| it.path().extension().is_some_and(|it| it == "conf")))
    }

    /// Has `pg_ctlcluster` start the cluster with what was prepared in `from`, unless an operator's
    /// own configuration is there. `check` is asked whether a server could start with it.
    ///
    /// Interrupted, it is begun anew: until the main file is there, `pg_ctlcluster` knows of no
    /// cluster, and what was there before is kept beside it.
    pub(super) fn install(
        &self,
        from: &Path,
        now: DateTime<Utc>,
        check: impl Fn(&Path) -> Result<(), String>,
    ) -> Installed {
        let read = |directory: &Path| fs::read(directory.join(MAIN)).ok();
        if read(&self.directory).is_some() && read(&self.directory) == read(from) {
            return Installed::Yes { kept: self.kept() };
        }
        if !self.is_as_created() {
            return Installed::No(format!(
                "\"{}\" is yours, and was left as it is",
                self.main().display()
            ));
        }
        let kept = self.directory.join(format!("{BEFORE}{}", now.format("%Y%m%d-%H%M%S")));
        match self.exchange(from, &kept) {
            Ok(()) => match check(&self.main()) {
                Ok(()) => Installed::Yes { kept: kept.exists().then_some(kept) },
                Err(words) => {
                    let back = self.take_back(from, &kept);
                    Installed::No(match back {
                        Ok(()) => format!("PostgreSQL cannot read it there: {words}"),
                        Err(error) => format!(
                            "PostgreSQL cannot read it there: {words}; what was there is in \
                             \"{}\": {error}",
                            kept.display()
                        ),
                    })
                }
            },
            Err(error) => Installed::No(format!(
                "\"{}\" cannot be written to: {error}",
                self.directory.display()
            )),
        }
    }

    /// What an interrupted installation has kept.
    fn kept(&self) -> Option<PathBuf> {
        let entries = fs::read_dir(&self.directory).ok()?.flatten();
        let mut kept: Vec<PathBuf> = entries
            .filter(|it| it.file_name().to_string_lossy().starts_with(BEFORE))
            .map(|it| it.path())
            .collect();
        kept.sort();
        kept.pop()
    }

    /// Moves what has the name of a new file into `kept`, and the new files to their places, the
    /// main file last.
    fn exchange(&self, from: &Path, kept: &Path) -> io::Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o755).create(&self.directory)?;
        let new = self.directory.join(NEW);
        if new.exists() {
            fs::remove_dir_all(&new)?;
        }
        // From another file system, perhaps; and whether it can be written to shows before anything
        // is moved.
        copy(from, &new)?;
        for name in names(&new)? {
            let old = self.directory.join(&name);
            if old.symlink_metadata().is_ok() {
                builder.mode(0o700).create(kept)?;
                fs::rename(&old, kept.join(&name))?;
            }
        }
        for name in names(&new)? {
            fs::rename(new.join(&name), self.directory.join(&name))?;
        }
        fs::remove_dir(&new)?;
        File::open(&self.directory)?.sync_all()
    }

    /// Undoes an exchange.
    fn take_back(&self, from: &Path, kept: &Path) -> io::Result<()> {
        for name in names(from)? {
            let new = self.directory.join(&name);
            if new.is_dir() {
                fs::remove_dir_all(&new)?
            } else {
                fs::remove_file(&new)?
            }
            if kept.join(&name).symlink_metadata().is_ok() {
                fs::rename(kept.join(&name), &new)?;
            }
        }
        match fs::remove_dir(kept) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// The lines that a main file lacks to be started by `pg_ctlcluster`, which hands the server its
/// data directory and the path of that file alone.
pub(super) fn completed(text: &str, wanted: &[(&str, PathBuf)]) -> String {
    let is_set = |name: &str| settings(text).any(|it| it.is(name));
    let lacking = wanted.iter().filter(|(name, _)| !is_set(name));
    let lines =
        lacking.map(|(name, path)| format!("{name} = {}\n", quoted(&path.to_string_lossy())));
    text.to_string() + &lines.collect::<String>()
}

/// The names in a directory, the main file last.
fn names(directory: &Path) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    let mut names: Vec<String> =
        entries.iter().map(|it| it.file_name().to_string_lossy().into_owned()).collect();
    names.sort_by_key(|name| (name == MAIN, name.clone()));
    Ok(names)
}

/// Copies a directory, with the modes that Debian gives such files.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o755).create(to)?;
    for name in names(from)? {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() {
            copy(&from, &to)?;
            continue;
        }
        // Every client of the machine may ask for the port.
        let mode = if name == MAIN { 0o644 } else { 0o640 };
        let mut file = File::options().create_new(true).write(true).mode(mode).open(&to)?;
        file.write_all(&fs::read(&from)?)?;
        file.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        root: tempfile::TempDir,
    }

    impl World {
        fn new() -> World {
            World { root: tempfile::tempdir().expect("a directory") }
        }

        fn path(&self, below: &str) -> PathBuf {
            self.root.path().join(below)
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.path(path);
            fs::create_dir_all(path.parent().expect("it has one")).expect("made");
            fs::write(path, text).expect("written");
        }

        fn read(&self, path: &str) -> String {
            fs::read_to_string(self.path(path)).expect("it is there")
        }

        fn of(&self, data: &Path, main: Option<&str>) -> Option<String> {
            let found = DebianCluster::below(&self.path("etc"), "15", data, main.map(Path::new));
            found.map(|it| it.name)
        }

        fn cluster(&self) -> DebianCluster {
            let directory = self.path("etc/15/main");
            DebianCluster { version: "15".to_string(), name: "main".to_string(), directory }
        }
    }

    const FRESH: &str = "data_directory = '/data' # use data\nport = 5433\nmax_connections = 100\n\
         log_line_prefix = '%m [%p] %q%u@%d '\ninclude_dir = 'conf.d'\n";
    const FRESH_HBA: &str = "# comment\nlocal   all   postgres   peer\nhost all all ::1/128 md5\n";

    #[test]
    fn the_cluster_of_a_data_directory_is_found() {
        let world = World::new();
        let data = world.path("data");
        let original = "/etc/postgresql/15/shop/postgresql.conf";
        assert_eq!(world.of(&data, None), None);
        assert_eq!(world.of(&data, Some(original)).as_deref(), Some("shop"));
        let debian = Path::new("/var/lib/postgresql/15/main");
        assert_eq!(world.of(debian, Some(original)).as_deref(), Some("main"));
        assert_eq!(world.of(Path::new("/var/lib/postgresql/16/main"), None), None);
        // Another cluster of that name is served from it.
        world.write("etc/15/shop/postgresql.conf", "data_directory = '/other'\n");
        assert_eq!(world.of(&data, Some(original)), None);
        let text = format!("data_directory = '/other'\ndata_directory = '{}'\n", data.display());
        world.write("etc/15/own/postgresql.conf", &text);
        assert_eq!(world.of(&data, Some(original)).as_deref(), Some("own"));
    }

    #[test]
    fn what_nobody_has_changed_gives_way_and_is_kept() {
        let world = World::new();
        world.write("new/postgresql.conf", "port = 1\n");
        world.write("new/conf.d/a.conf", "work_mem = 1\n");
        world.write("new/pg_hba.conf", "local all all trust\n");
        let cluster = world.cluster();
        let install = |check: Result<(), String>| {
            cluster.install(&world.path("new"), Utc::now(), |_| check.clone())
        };
        assert_eq!(install(Ok(())), Installed::Yes { kept: None });
        assert_eq!(world.read("etc/15/main/conf.d/a.conf"), "work_mem = 1\n");
        // The same once more.
        assert_eq!(install(Ok(())), Installed::Yes { kept: None });

        let fresh = || {
            fs::remove_dir_all(world.path("etc")).expect("removed");
            world.write("etc/15/main/postgresql.conf", FRESH);
            world.write("etc/15/main/pg_hba.conf", FRESH_HBA);
            world.write("etc/15/main/pg_ident.conf", "# none\n");
            world.write("etc/15/main/start.conf", "auto\n");
            fs::create_dir(world.path("etc/15/main/conf.d")).expect("made");
        };
        fresh();
        let Installed::Yes { kept: Some(kept) } = install(Ok(())) else { panic!("not installed") };
        assert_eq!(fs::read_to_string(kept.join(MAIN)).expect("kept"), FRESH);
        assert_eq!(fs::read_to_string(kept.join("pg_hba.conf")).expect("kept"), FRESH_HBA);
        assert_eq!(world.read("etc/15/main/postgresql.conf"), "port = 1\n");
        assert_eq!(world.read("etc/15/main/start.conf"), "auto\n");
        assert!(!world.path("etc/15/main").join(NEW).exists());
        assert_eq!(install(Ok(())), Installed::Yes { kept: Some(kept) });

        // What PostgreSQL could not read is taken back.
        fresh();
        let Installed::No(why) = install(Err("no such file".to_string())) else { panic!("it is") };
        assert!(why.contains("no such file"), "{why}");
        assert_eq!(world.read("etc/15/main/postgresql.conf"), FRESH);
        assert_eq!(world.read("etc/15/main/pg_hba.conf"), FRESH_HBA);
        assert!(!world.path("etc/15/main/conf.d/a.conf").exists());

        // An operator's work stays.
        for (path, text) in [
            ("postgresql.conf", format!("{FRESH}shared_preload_libraries = 'x'\n")),
            ("postgresql.conf", FRESH.replace("= 100", "= 300")),
            ("pg_hba.conf", format!("{FRESH_HBA}host all all 10.0.0.0/8 md5\n")),
            ("pg_ident.conf", "map a b\n".to_string()),
            ("conf.d/own.conf", String::new()),
        ] {
            fresh();
            world.write(&format!("etc/15/main/{path}"), &text);
            let Installed::No(why) = install(Ok(())) else { panic!("{path}") };
            assert!(why.contains("is yours"), "{why}");
            assert_eq!(world.read(&format!("etc/15/main/{path}")), text);
        }
    }

    #[test]
    fn a_main_file_is_completed() {
        let wanted = [("data_directory", PathBuf::from("/d")), ("hba_file", "/h".into())];
        let text = completed("Data_Directory = '/x'\n", &wanted);
        assert_eq!(text, "Data_Directory = '/x'\nhba_file = '/h'\n");
    }
}

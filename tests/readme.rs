//! Runs every command of the README, as it stands there, on containers of the image.
//!
//! Called by `./dev test containers`, which has built the image, in namespaces where podman has no
//! other containers. A program `docker` that calls podman is found first on the PATH. The commands
//! in Chinese are the same ones (see `documents.rs`).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nrt_tests::readme::{Readme, Scene, Way, repository};

/// The image as the README calls it, and as it was built here.
const IMAGE: (&str, &str) = ("ghcr.io/nrt-backup/nrt_backup:17", "localhost/nrt_backup:17");
/// What the README writes where only a real cluster has the right word.
const TIME: &str = "2026-11-22 14:30:00+08";
/// The README's volumes.
const VOLUMES: [&str; 3] = ["data", "repository", "logs"];
/// What compose.yaml has beside the server.
const STORE_IMAGE: &str = "docker.io/rclone/rclone:1.71.0";
/// Where the store of the README's remote listens.
const STORE: &str = "10.88.0.200";
/// How long something may take that is not timed here.
const PATIENCE: Duration = Duration::from_secs(180);

/// What a script came to.
struct Outcome {
    code: i32,
    output: String,
}

/// A machine with a program `docker`, and a directory with the `rclone.conf` of a remote.
struct Host {
    directory: tempfile::TempDir,
    /// Names of containers that it ends with.
    containers: &'static [&'static str],
}

impl Host {
    fn new(containers: &'static [&'static str]) -> Host {
        let directory = tempfile::tempdir().expect("a directory");
        let docker = directory.path().join("bin/docker");
        fs::create_dir(directory.path().join("bin")).expect("made");
        // Docker has this in one program, podman has it in three.
        let words = "#!/bin/bash\n\
             case $1 in\n\
             compose) shift; exec podman-compose \"$@\" ;;\n\
             build) shift; exec buildah bud --format docker --layers \"$@\" ;;\n\
             *) exec podman \"$@\" ;;\n\
             esac\n";
        fs::write(&docker, words).expect("written");
        fs::set_permissions(&docker, fs::Permissions::from_mode(0o755)).expect("changed");
        let host = Host { directory, containers };
        host.good(&format!("docker tag {} {}", IMAGE.1, IMAGE.0));
        host.make_store();
        host
    }

    /// Makes the image that compose.yaml takes for its store, out of what is here.
    fn make_store(&self) {
        let context = self.path("store");
        fs::create_dir(&context).expect("made");
        let server = env!("CARGO_BIN_EXE_s3server");
        fs::copy(server, context.join("s3server")).expect("copied");
        let files = repository().join("tests/containers");
        fs::copy(files.join("store.sh"), context.join("store.sh")).expect("copied");
        let file = files.join("store.Containerfile");
        self.good(&format!(
            "docker build --quiet --tag {STORE_IMAGE} --file {} store",
            file.display()
        ));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs a script in this directory.
    fn run(&self, script: &str) -> Outcome {
        self.run_in(self.directory.path(), script)
    }

    fn run_in(&self, directory: &Path, script: &str) -> Outcome {
        let path = std::env::var("PATH").unwrap_or_default();
        let place = self.path("bin").display().to_string();
        // One pipe for both, as a terminal shows it.
        let output = Command::new("bash")
            .args(["-c", "exec 2>&1; eval \"$1\"", "bash", script])
            .current_dir(directory)
            .env("PATH", format!("{place}:{path}"))
            .output()
            .expect("there is a shell");
        // Podman has something to say of a machine without systemd.
        let own = |line: &&str| !(line.starts_with("time=\"") && line.contains("systemd"));
        let said = String::from_utf8_lossy(&output.stdout);
        let said = said.lines().filter(own).fold(String::new(), |text, line| text + line + "\n");
        Outcome { code: output.status.code().unwrap_or(-1), output: said }
    }

    /// Runs what must succeed.
    fn good(&self, script: &str) -> String {
        let outcome = self.run(script);
        assert_eq!(outcome.code, 0, "{script}\n{}\n{}", outcome.output, self.logs());
        outcome.output
    }

    /// Runs it until it succeeds.
    fn wait(&self, script: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let outcome = self.run(script);
            if outcome.code == 0 {
                return outcome.output;
            }
            assert!(Instant::now() < end, "{script}\n{}\n{}", outcome.output, self.logs());
            sleep(Duration::from_millis(500));
        }
    }

    fn logs(&self) -> String {
        let logs = self.containers.iter().map(|name| {
            let said = self.run(&format!("docker logs --tail 60 {name}")).output;
            format!("---- {name}\n{said}")
        });
        logs.collect()
    }

    /// One value out of the database.
    fn value(&self, container: &str, query: &str) -> String {
        let psql = format!("docker exec -i {container} psql -U postgres -v ON_ERROR_STOP=1 -AtX");
        self.good(&format!("{psql} <<'END'\n{query}\nEND")).trim().to_string()
    }

    /// Waits until what is committed is off-site.
    fn wait_for_remote(&self, container: &str) {
        let position = self.value(container, "SELECT pg_current_wal_insert_lsn()");
        self.wait(&format!(
            "[[ $(docker exec {container} psql -U postgres -AtXc \
             \"SELECT shipped_lsn >= '{position}' FROM nrt.status\") == t ]]"
        ));
    }

    /// Ends and removes containers, with what they have in volumes of no name.
    fn remove(&self, containers: &[&str], volumes: &[&str]) {
        self.good(&format!(
            "docker rm --force --volumes --time 20 --ignore {}",
            containers.join(" ")
        ));
        if !volumes.is_empty() {
            self.good(&format!("docker volume rm --force {}", volumes.join(" ")));
        }
    }

    /// An empty store that speaks S3.
    fn start_store(&self) {
        self.remove(&["store"], &["stored"]);
        self.good(&format!(
            "docker run -d --name store --network podman --ip {STORE} -v stored:/data \
             {STORE_IMAGE} serve s3 --addr :9000 --auth-key reader,secret /data"
        ));
        let conf = format!(
            "[s3]\ntype = s3\nprovider = Other\nendpoint = http://{STORE}:9000\n\
             access_key_id = reader\nsecret_access_key = secret\nforce_path_style = true\n"
        );
        fs::write(self.path("rclone.conf"), conf).expect("written");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let containers = self.containers.join(" ");
        self.run(&format!("docker rm --force --volumes --ignore --time 5 {containers}"));
        self.run(&format!("docker volume rm --force stored {}", VOLUMES.join(" ")));
    }
}

/// What is in the database, to find it again.
struct Kept {
    rows: u32,
    /// When there was one row, and no second one yet.
    time: String,
}

impl Kept {
    fn none() -> Kept {
        Kept { rows: 0, time: String::new() }
    }

    /// Commits two rows and waits until they are off-site.
    fn add(host: &Host) -> Kept {
        host.value("db", "CREATE TABLE kept (number int); INSERT INTO kept VALUES (1);");
        let time = host.value("db", "SELECT pg_sleep(0.1); SELECT clock_timestamp();");
        host.value("db", "SELECT pg_sleep(0.1); INSERT INTO kept VALUES (2);");
        host.wait_for_remote("db");
        Kept { rows: 2, time: time.trim().to_string() }
    }
}

#[test]
fn every_block_and_every_table_of_commands() {
    let readme = Readme::read("README.md");
    let host = Host::new(&["store", "db", "bare"]);
    let kept = run_on_the_host(&host, &readme);
    assert_eq!(host.value("db", "SELECT count(*) FROM kept"), kept.rows.to_string());

    // What the README's examples speak of.
    host.value("db", "CREATE DATABASE shop; CREATE ROLE alice;");
    host.good(
        "docker exec db psql -U postgres -d shop -c \
         'CREATE TABLE orders AS SELECT now() AS created_at'",
    );
    host.wait_for_remote("db");
    run_in_the_container(&host, &readme);
    run_what_is_in_the_text(&host, &readme);
}

/// The `docker run` of the README, one after the other; returns what the last one must have.
fn run_on_the_host(host: &Host, readme: &Readme) -> Kept {
    let mut kept = Kept::none();
    let mut last = String::new();
    let mut seen = 0;
    for block in &readme.blocks {
        match block.way.as_ref().expect("documents.rs looks") {
            Way::Host { scene, exit_code } => {
                seen += 1;
                let is_first = seen == 1;
                match scene {
                    Scene::Anew => kept = Kept::none(),
                    Scene::Elsewhere if kept.rows == 0 => kept = Kept::add(host),
                    _ => {}
                }
                if *scene != Scene::AsItIs || is_first {
                    host.remove(&["db"], &VOLUMES);
                }
                if *scene == Scene::Anew || is_first {
                    host.start_store();
                }
                let script = block.text.replace(TIME, &kept.time);
                if block.text.contains(TIME) {
                    kept.rows = 1;
                }
                let outcome = if *scene == Scene::AsItIs && *exit_code == 0 && !is_first {
                    // Where the original was lost, a minute passes until it ships again.
                    Outcome { code: 0, output: host.wait(&script) }
                } else {
                    host.run(&script)
                };
                assert_eq!(
                    outcome.code,
                    *exit_code,
                    "{script}\n{}\n{}",
                    outcome.output,
                    host.logs()
                );
                last = outcome.output;
                if *scene != Scene::AsItIs || is_first {
                    host.wait("docker exec db nrt-backup health");
                    host.wait("docker healthcheck run db");
                }
                if *scene == Scene::Elsewhere {
                    let rows = host.value("db", "SELECT count(*) FROM kept");
                    assert_eq!(rows, kept.rows.to_string(), "{script}");
                }
            }
            Way::Printed => assert_eq!(last.trim(), block.text.trim()),
            _ => {}
        }
    }
    assert!(seen > 4, "they are not found");
    kept
}

/// Everything else, in the order of the README.
fn run_in_the_container(host: &Host, readme: &Readme) {
    let mut runs: Vec<(usize, Way, Vec<String>)> = Vec::new();
    for block in &readme.blocks {
        let way = block.way.clone().expect("documents.rs looks");
        runs.push((block.line, way, vec![block.text.clone()]));
    }
    for table in readme.tables.iter().filter(|table| table.way.is_some()) {
        let first = table.rows.iter().skip(1).map(|row| row[0].trim_matches('`').to_string());
        runs.push((table.line, table.way.clone().expect("it was looked at"), first.collect()));
    }
    runs.sort_by_key(|(line, ..)| *line);
    for (line, way, texts) in runs {
        for text in texts {
            eprintln!("README.md:{line}: {}", text.lines().next().unwrap_or_default());
            match way {
                Way::Sql => {
                    host.value("db", &text);
                }
                Way::Configuration => configure(host, &text),
                Way::Everyday => everyday(host, &format!("docker exec db {text}"), &text),
                Way::Commands => {
                    let script = format!("docker exec --user postgres db bash -c '{text}'");
                    everyday(host, &script, &text);
                }
                Way::Bare => on_a_bare_machine(host, &text),
                _ => {}
            }
        }
    }
}

/// A command that is good, or warns, where warnings are what it is asked for. Right after a restart
/// of the worker, which is among them, it may have to be asked again.
fn everyday(host: &Host, script: &str, text: &str) {
    let may_warn =
        text.starts_with("nrt-backup status") || text.starts_with("nrt-backup wal status");
    host.wait(&format!("{script}; [[ $? -le {} ]]", i32::from(may_warn)));
}

/// Lines of `postgresql.conf`: the server must take them.
fn configure(host: &Host, lines: &str) {
    let into = "docker exec -i db bash -c 'cat >>\"$PGDATA/postgresql.conf\"'";
    host.good(&format!("{into} <<'END'\n{lines}END"));
    host.value("db", "SELECT pg_reload_conf();");
    let bad = "SELECT name, error FROM pg_file_settings WHERE error IS NOT NULL";
    assert_eq!(host.value("db", bad), "", "{lines}");
}

/// A restore by hand, beside the server that lives.
fn on_a_bare_machine(host: &Host, script: &str) {
    host.good(&format!("docker run -d --name bare --user postgres {} sleep infinity", IMAGE.0));
    host.good("docker cp rclone.conf bare:/etc/rclone.conf");
    host.good("docker exec --user root bare chmod 0644 /etc/rclone.conf");
    host.good(&format!("docker exec -i bare bash -e <<'END'\n{script}END"));
    let rows = host.value("db", "SELECT count(*) FROM kept");
    assert_eq!(host.value("bare", "SELECT count(*) FROM kept"), rows);
    host.remove(&["bare"], &[]);
}

/// Commands and statements within sentences and tables: each exists, with its options.
fn run_what_is_in_the_text(host: &Host, readme: &Readme) {
    let (mut commands, mut statements) = (0, 0);
    for code in readme.inline_code() {
        if let Some(words) = code.strip_prefix("nrt-backup ") {
            let words: Vec<&str> = words.split_whitespace().collect();
            let is_name = |it: &&&str| it.bytes().all(|b| b == b'-' || b.is_ascii_lowercase());
            let names: Vec<&str> = words.iter().take_while(is_name).copied().collect();
            let names: Vec<&str> =
                names.into_iter().take_while(|it| !it.starts_with('-')).collect();
            let help = host.good(&format!("docker exec db nrt-backup {} --help", names.join(" ")));
            for option in words.iter().filter(|it| it.starts_with("--") && **it != "--help") {
                let option = option.split('=').next().unwrap_or(option);
                assert!(help.contains(option), "{code}: no {option} in\n{help}");
            }
            commands += 1;
        } else if code.starts_with("SELECT ") && code.contains("nrt_restore_plan") {
            // The example goes back further than this server does: then it is told how far it can.
            let told = host.run(&format!("docker exec db psql -U postgres -AtXc \"{code}\""));
            let is_told = told.code == 0 || told.output.contains("HINT:");
            assert!(is_told && !told.output.contains("there is no backup"), "{}", told.output);
            statements += 1;
        } else if code.starts_with("SELECT ") || code.starts_with("GRANT ") {
            host.value("db", &code);
            statements += 1;
        }
    }
    assert!(commands > 10 && statements > 5, "they are not found: {commands}, {statements}");
}

#[test]
fn compose_up_and_a_recovery_beside_it() {
    let readme = Readme::read("README.md");
    let host = Host::new(&[]);
    let file = repository().join("compose.yaml");
    let project = host.path("project");
    fs::create_dir(&project).expect("made");
    fs::copy(&file, project.join("compose.yaml")).expect("copied");
    let blocks = readme.blocks.iter().filter(|block| block.way == Some(Way::Compose));
    let blocks: Vec<&str> = blocks.map(|block| block.text.as_str()).collect();
    let [up, recovery] = blocks[..] else { panic!("{blocks:?}") };
    let compose = |script: &str| {
        let outcome = host.run_in(&project, script);
        assert_eq!(outcome.code, 0, "{script}\n{}", outcome.output);
        outcome.output
    };
    // Without systemd nobody asks podman's containers for their health, for which others wait.
    let beats = host.path("beats");
    fs::write(&beats, "").expect("written");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while beats.exists() {
                let all = "for one in $(docker ps -q); do docker healthcheck run $one; done";
                host.run(all);
                sleep(Duration::from_secs(1));
            }
        });
        let _end = Beats(&beats);
        compose(up);
        // By what both kinds of compose note down.
        let of = |service: &str| {
            let label = format!("label=com.docker.compose.service={service}");
            host.good(&format!("docker ps --quiet --filter {label} 2>/dev/null")).trim().to_string()
        };
        let database = &of("db");
        host.wait(&format!("docker exec {database} nrt-backup health"));
        host.value(database, "CREATE TABLE kept AS SELECT generate_series(1, 100) AS number");
        host.wait_for_remote(database);
        compose(recovery);
        let recovered = &of("recovery");
        host.wait(&format!("docker exec {recovered} psql -U postgres -c 'TABLE kept'"));
        assert_eq!(host.value(recovered, "SELECT count(*) FROM kept"), "100");
        assert_eq!(host.value(database, "SELECT count(*) FROM kept"), "100");
        compose("docker compose --profile recovery down --volumes --timeout 20");
    });
}

/// Ends the heartbeat, also when the test fails.
struct Beats<'a>(&'a Path);

impl Drop for Beats<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0);
    }
}

/// The image that is tested was built already: all layers are taken from there.
#[test]
fn the_image_is_built_as_written() {
    let readme = Readme::read("README.md");
    let host = Host::new(&[]);
    let mut blocks = readme.blocks.iter().filter(|block| block.way == Some(Way::Build));
    let block = blocks.next().expect("it is there");
    let outcome = host.run_in(repository(), &block.text);
    assert_eq!(outcome.code, 0, "{}\n{}", block.text, outcome.output);
    host.good("docker image exists nrt_backup:17");
}

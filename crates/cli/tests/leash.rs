//! The leash from its parent's side: what reaches a child, what comes back, and that nothing of
//! it is left, whoever dies first.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nrt_process::{InputAddress, Leashed, Report, Spec};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const NRT_BACKUP: &str = env!("CARGO_BIN_EXE_nrt-backup");

/// Longer than any machine needs for what a test waits for, and than a test may take that must
/// not have waited for something else.
const LONG: Duration = Duration::from_secs(60);

/// A length of sleep that no other process on this machine has, in seconds.
fn unique_sleep() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{}.{:07}{count:03}", 100_000, std::process::id())
}

/// The processes whose command line, each word ended by a zero, is one that is `wanted`. Zombies
/// have none.
fn processes(wanted: impl Fn(&str) -> bool) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc can be read").flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if wanted(&String::from_utf8_lossy(&line)) {
            found.push(process);
        }
    }
    found
}

/// The processes with `word` in their command line: a whole tree, the leash included.
fn running(word: &str) -> Vec<u32> {
    processes(|line| line.contains(word))
}

/// The processes that sleep for `length`.
fn sleepers(length: &str) -> Vec<u32> {
    processes(|line| line == format!("sleep\0{length}\0"))
}

/// Nothing of a tree may be left by the time that its report is there.
fn assert_gone(word: &str) {
    let left = running(word);
    assert!(left.is_empty(), "these outlived their report: {left:?}");
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < deadline, "still waiting for: {what}");
        sleep(Duration::from_millis(5));
    }
}

fn signal(process: u32, signal: Signal) {
    let process = i32::try_from(process).ok().and_then(Pid::from_raw).expect("a process number");
    kill_process(process, signal).expect("the process is there");
}

/// A shell with `script`, patient for longer than a test may take.
fn shell(script: &str) -> Spec {
    Spec {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        log: None,
        directory: "/".into(),
        patience: 2 * LONG,
        time_limit: None,
        input: false,
        answer: false,
    }
}

fn start(spec: &Spec) -> Leashed {
    Leashed::start(Path::new(NRT_BACKUP), spec).expect("the leash starts")
}

fn wait(leashed: &mut Leashed) -> Report {
    let mut report = None;
    until("a report", || {
        report = leashed.try_wait().expect("waiting succeeds");
        report.is_some()
    });
    report.expect("waited for")
}

fn run(spec: &Spec) -> Report {
    wait(&mut start(spec))
}

/// `nrt-backup leash` as a person would run it.
fn by_hand(args: &[&str]) -> Output {
    Command::new(NRT_BACKUP).arg("leash").args(args).output().expect("the command runs")
}

fn report_of(output: &Output) -> Report {
    serde_json::from_slice(&output.stdout).expect("one report, and nothing else")
}

/// A tree with every way to hold out: a child in the background, a child in a session of its own
/// whose parent is gone, and, when `stubborn`, one that ignores SIGTERM. Each is a sleep of
/// `length`; the script is done starting them when all are counted by [`await_tree`].
fn tree(length: &str, stubborn: bool) -> String {
    let stubborn =
        if stubborn { format!("(trap '' TERM; sleep {length}) &") } else { String::new() };
    format!("sleep {length} &\n(setsid sleep {length} &)\n{stubborn}\nsleep {length} &\nwait")
}

fn await_tree(length: &str, count: usize) {
    until("the tree to stand", || sleepers(length).len() == count);
}

#[test]
fn endings_are_passed_on() {
    for (script, exit, signal, output) in [
        ("echo out; echo err >&2; echo out", Some(0), None, "out\nerr\nout\n"),
        ("echo 'ERROR: [056]: words'; exit 56", Some(56), None, "ERROR: [056]: words\n"),
        ("exit 255", Some(255), None, ""),
        ("kill -9 $$", None, Some(9), ""),
        ("kill -TERM $$", None, Some(15), ""),
        ("printf 'sch\\366n\\0\\n'", Some(0), None, "sch\u{fffd}n\u{fffd}\n"),
        ("readlink /proc/self/fd/0; pwd", Some(0), None, "/dev/null\n/\n"),
        // An orphan's end is not the program's.
        ("(sh -c 'exit 9' &); sleep 0.3; exit 4", Some(4), None, ""),
        // The program is done when it ends, whoever still holds its output.
        ("sleep 100000 & echo done", Some(0), None, "done\n"),
    ] {
        let report = run(&shell(script));
        assert_eq!((report.exit, report.signal), (exit, signal), "{script}");
        assert_eq!(report.output, output, "{script}");
        assert!(!report.truncated && !report.timed_out && !report.stopped, "{script}: {report:?}");
    }
}

#[test]
fn a_program_that_cannot_be_run_is_reported() {
    let directory = TempDir::new().expect("a temporary directory");
    let not_executable = directory.path().join("data");
    fs::write(&not_executable, "data").expect("written");
    let good = shell(":");
    let cases: [(Spec, i32, String); 3] = [
        (
            Spec { program: "/no/such".into(), ..good.clone() },
            127,
            "could not run \"/no/such\": No such file or directory".to_owned(),
        ),
        (
            Spec { program: not_executable.clone(), ..good.clone() },
            126,
            format!("could not run \"{}\": Permission denied", not_executable.display()),
        ),
        (
            Spec { directory: "/no/such".into(), ..good },
            126,
            "could not change to directory \"/no/such\": No such file or directory".to_owned(),
        ),
    ];
    for (mut spec, exit, words) in cases {
        let log = directory.path().join(exit.to_string());
        spec.log = Some(log.clone());
        let report = run(&spec);
        assert_eq!((report.exit, report.signal), (Some(exit), None));
        assert!(report.output.starts_with(&words), "{}", report.output);
        let logged = fs::read_to_string(log).expect("the log is there");
        assert!(logged.ends_with(&report.output), "{logged}");
    }
    let error = Leashed::start(Path::new("/no/nrt-backup"), &shell(":")).expect_err("not there");
    assert!(error.to_string().starts_with("could not run \"/no/nrt-backup\": "), "{error}");
}

/// A shell that does not heed SIGTERM and runs `script` with what the test tells it as its input.
/// It stands when this returns.
fn listening(script: &str, directory: &TempDir) -> Leashed {
    let stands = directory.path().join("stands");
    let script = format!("trap '' TERM; : > {}; {script}", stands.display());
    let leashed = start(&Spec { input: true, ..shell(&script) });
    until("the program to run", || stands.exists());
    leashed
}

#[test]
fn what_is_told_arrives_and_ends_when_the_program_is_told_to_stop() {
    let directory = TempDir::new().expect("a temporary directory");
    let script = "while read line; do echo \"got $line\"; done; echo end";
    let mut leashed = listening(script, &directory);
    for line in ["one\n", "two\n"] {
        assert!(leashed.tell(line.as_bytes()).expect("somebody reads"));
    }
    // As another process does.
    let address = leashed.input_address().expect("the kernel knows").expect("it has one");
    assert!(address.tell(b"three\n").expect("somebody reads"));
    assert!(leashed.try_wait().expect("waiting succeeds").is_none());
    leashed.terminate();
    let report = wait(&mut leashed);
    assert_eq!((report.exit, &*report.output), (Some(0), "got one\ngot two\ngot three\nend\n"));
    assert!(report.stopped);
    assert_eq!(leashed.input_address().expect("the kernel knows"), None);
    assert!(address.tell(b"four\n").is_err(), "the pipe is closed");
    // Its number may be another file's by now.
    let other = fs::File::open("/dev/null").expect("it is there");
    let descriptor = other.as_raw_fd().unsigned_abs();
    let error = InputAddress { descriptor, ..address }.tell(b"five\n").expect_err("another file");
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    let error = leashed.tell(b"six\n").expect_err("nobody reads");
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn who_tells_more_than_is_read_is_not_held_up_and_tears_no_line() {
    let directory = TempDir::new().expect("a temporary directory");
    let go = directory.path().join("go");
    let script = format!("while [ ! -e {} ]; do sleep 0.01; done; sort | uniq -c", go.display());
    // Its children do not heed SIGTERM either: what is ignored is inherited.
    let mut leashed = listening(&script, &directory);
    let line = format!("{}\n", "x".repeat(99));
    let mut told = 0;
    while leashed.tell(line.as_bytes()).expect("somebody will read") {
        told += 1;
    }
    assert!(told >= 40, "a pipe holds more than {told} lines");
    let address = leashed.input_address().expect("the kernel knows").expect("it has one");
    assert!(!address.tell(line.as_bytes()).expect("somebody will read"), "it is full for all");
    assert!(leashed.tell("x".repeat(5000).as_bytes()).is_err(), "it could be torn");
    fs::write(&go, "").expect("written");
    leashed.terminate();
    let report = wait(&mut leashed);
    let words: Vec<&str> = report.output.split_whitespace().collect();
    assert_eq!(words, [&told.to_string(), line.trim()]);
}

#[test]
fn a_program_whose_input_ends_still_has_what_runs_below_it() {
    let directory = TempDir::new().expect("a temporary directory");
    let script = "sleep 100000 & while read line; do :; done; kill -0 $! && echo alive";
    let mut leashed = listening(&format!("trap - TERM; {script}"), &directory);
    leashed.end_input();
    let report = wait(&mut leashed);
    assert_eq!((report.exit, &*report.output, report.stopped), (Some(0), "alive\n", false));
}

#[test]
fn a_program_that_has_ended_cannot_be_told() {
    let mut leashed = start(&Spec { input: true, ..shell("exit 3") });
    let address = leashed.input_address().expect("the kernel knows").expect("it has one");
    assert_eq!(wait(&mut leashed).exit, Some(3));
    let error = address.tell(b"{}\n").expect_err("nobody reads");
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    let error = leashed.tell(b"{}\n").expect_err("nobody reads");
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    let mut deaf = start(&shell("sleep 0.1; readlink /proc/self/fd/0"));
    assert!(deaf.tell(b"{}\n").is_err(), "it was started without an input");
    assert_eq!(wait(&mut deaf).output, "/dev/null\n");
}

#[test]
fn a_leash_that_is_none_is_reported() {
    for (program, words) in [("/bin/true", "exit status: 0"), ("/bin/echo", "leash --parent")] {
        let mut leashed = Leashed::start(Path::new(program), &shell(":")).expect("it starts");
        let report = wait(&mut leashed);
        // Above all, its exit code 0 is not the program's.
        assert_eq!((report.exit, report.signal), (None, None));
        assert!(report.output.contains(words), "{}", report.output);
        assert!(report.output.contains("the leash of \"/bin/sh\" ended without a report"));
    }
}

#[test]
fn nothing_of_the_parent_leaks() {
    let leaky = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty())
        .expect("/dev/null can be opened");
    let listed = |spec: &Spec| run(spec).output;
    let direct = Command::new("/bin/ls").arg("/proc/self/fd").output().expect("ls runs").stdout;
    let direct = String::from_utf8(direct).expect("numbers");
    let number = leaky.as_raw_fd().to_string();
    assert!(direct.lines().any(|line| line == number), "nothing leaks that could be stopped");
    // 3 is the directory that ls reads.
    let ls = Spec { program: "/bin/ls".into(), args: vec!["/proc/self/fd".into()], ..shell("") };
    assert_eq!(listed(&ls), "0\n1\n2\n3\n");

    assert!(std::env::vars_os().count() > 1, "nothing leaks that could be stopped");
    let env = Spec {
        program: "env".into(),
        args: Vec::new(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into()), ("LANG".into(), "C.UTF-8".into())],
        ..shell("")
    };
    let mut lines: Vec<String> = listed(&env).lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["LANG=C.UTF-8", "PATH=/usr/bin:/bin"]);
}

#[test]
fn signals_are_at_their_defaults() {
    let status = ["grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"];
    let ignoring = |before: &[&str]| {
        let mut command = Command::new("env");
        command.arg("--ignore-signal").args(before).args(status);
        command.output().expect("env runs")
    };
    let inherited = String::from_utf8_lossy(&ignoring(&[]).stdout).into_owned();
    assert!(
        !inherited.contains("SigIgn:\t0000000000000000"),
        "nothing leaks that could be stopped"
    );
    let report = report_of(&ignoring(&[NRT_BACKUP, "leash", "--"]));
    assert_eq!(report.output, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
}

#[test]
fn stopping_takes_the_whole_tree() {
    for by_signal in [None, Some(Signal::INT), Some(Signal::HUP)] {
        let length = unique_sleep();
        let mut leashed = start(&shell(&tree(&length, false)));
        await_tree(&length, 3);
        match by_signal {
            Some(number) => signal(leashed.id(), number),
            None => leashed.terminate(),
        }
        let report = wait(&mut leashed);
        assert_eq!((report.exit, report.signal, report.stopped), (None, Some(15), true));
        assert_gone(&length);
    }
}

#[test]
fn patience_ends_with_a_kill() {
    let length = unique_sleep();
    let patience = Duration::from_millis(700);
    let mut leashed = start(&Spec { patience, ..shell(&tree(&length, true)) });
    await_tree(&length, 4);
    let told = Instant::now();
    leashed.terminate();
    let report = wait(&mut leashed);
    assert!(told.elapsed() >= patience, "killed without patience");
    assert_eq!((report.signal, report.stopped), (Some(15), true));
    assert_gone(&length);
}

#[test]
fn what_is_left_behind_is_stopped_too() {
    let length = unique_sleep();
    let directory = TempDir::new().expect("a temporary directory");
    let go = directory.path().join("go");
    let script = format!(
        "(trap 'echo bye; exit' TERM; sleep {length} & wait) &
         (setsid sleep {length} &)
         until [ -e {} ]; do sleep 0.01; done; exit 3",
        go.display()
    );
    let mut leashed = start(&shell(&script));
    // A shell that has a trap loses a signal between the fork and the exec of its child.
    await_tree(&length, 2);
    fs::write(go, "").expect("written");
    let report = wait(&mut leashed);
    assert_eq!((report.exit, report.stopped), (Some(3), false));
    assert_eq!(report.output, "bye\n");
    assert_gone(&length);
}

#[test]
fn sigterm_comes_once() {
    let directory = TempDir::new().expect("a temporary directory");
    let ready = directory.path().join("ready");
    let script = format!(
        "trap 'echo term; told=1' TERM; touch {}
         while [ -z \"$told\" ]; do sleep 0.01; done; sleep 0.5; exit 3",
        ready.display()
    );
    let mut leashed = start(&shell(&script));
    until("the trap to be set", || ready.exists());
    leashed.terminate();
    leashed.terminate();
    signal(leashed.id(), Signal::TERM);
    let report = wait(&mut leashed);
    // The shell may have a word to say about the sleep that was stopped with it.
    let count = report.output.lines().filter(|line| *line == "term").count();
    assert_eq!((report.exit, count, report.stopped), (Some(3), 1, true), "{}", report.output);
}

#[test]
fn kill_has_no_patience() {
    let length = unique_sleep();
    let mut leashed = start(&shell(&tree(&length, true)));
    await_tree(&length, 4);
    leashed.kill();
    let report = wait(&mut leashed);
    assert_eq!((report.signal, report.stopped), (Some(9), true));
    assert_gone(&length);
}

#[test]
fn time_is_limited() {
    let length = unique_sleep();
    let limit = Duration::from_millis(400);
    let report = run(&Spec { time_limit: Some(limit), ..shell(&tree(&length, false)) });
    assert_eq!((report.signal, report.timed_out, report.stopped), (Some(15), true, false));
    assert!(Duration::from_millis(report.elapsed_ms) >= limit);
    assert_gone(&length);
    let report = run(&Spec { time_limit: Some(LONG), ..shell("exit 4") });
    assert_eq!((report.exit, report.timed_out), (Some(4), false));
}

#[test]
fn dropping_kills_and_reaps() {
    for stopped in [false, true] {
        let length = unique_sleep();
        let leashed = start(&shell(&tree(&length, true)));
        await_tree(&length, 4);
        let leash = leashed.id();
        if stopped {
            signal(leash, Signal::STOP);
        }
        drop(leashed);
        assert!(!Path::new(&format!("/proc/{leash}")).exists(), "the leash is a zombie");
        if !stopped {
            assert_gone(&length);
            continue;
        }
        // A leash that cannot act takes its group with it. What has a session of its own is out
        // of reach.
        until("the group to be gone", || running(&length).len() == 1);
        signal(running(&length)[0], Signal::KILL);
    }
}

/// Not a test: the parent of a leash in another process, for tests that kill it or start it in
/// odd circumstances. Prints the report.
#[test]
#[ignore = "a part of other tests"]
fn parent() {
    let script = std::env::var("LEASHED_SCRIPT").expect("set by the tests that use this");
    let patience = Duration::from_millis(500);
    let report = run(&Spec { patience, ..shell(&script) });
    println!("\nREPORT {}", serde_json::to_string(&report).expect("a report is JSON"));
}

/// Runs [`parent`], behind the words `before`.
fn parent_of(script: &str, before: &[&str]) -> Command {
    let this = std::env::current_exe().expect("this program has a path");
    let mut words: Vec<OsString> = before.iter().map(OsString::from).collect();
    words.push(this.into());
    words.extend(["--exact", "parent", "--ignored", "--nocapture"].map(OsString::from));
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).env("LEASHED_SCRIPT", script).stdout(Stdio::piped());
    command
}

#[test]
fn a_killed_parent_takes_the_tree_with_it() {
    let length = unique_sleep();
    let mut parent = parent_of(&tree(&length, true), &[]).spawn().expect("this program runs");
    await_tree(&length, 4);
    parent.kill().expect("it runs");
    let killed = Instant::now();
    until("the tree to be gone", || running(&length).is_empty());
    assert!(killed.elapsed() < LONG / 2, "{:?}", killed.elapsed());
    assert_eq!(parent.wait().expect("it ended").signal(), Some(9));
}

#[test]
fn a_killed_leash_takes_its_group_with_it() {
    let length = unique_sleep();
    let mut leashed =
        start(&Spec { program: "sleep".into(), args: vec![length.clone().into()], ..shell("") });
    await_tree(&length, 1);
    signal(leashed.id(), Signal::KILL);
    // Before anybody looks at the leash.
    until("the program to die with the leash", || sleepers(&length).is_empty());
    drop(wait(&mut leashed));

    let length = unique_sleep();
    let mut leashed = start(&shell(&format!("sleep {length} & sleep {length} & wait")));
    await_tree(&length, 2);
    signal(leashed.id(), Signal::KILL);
    let report = wait(&mut leashed);
    until("the group to be gone", || running(&length).is_empty());
    assert_eq!((report.exit, report.signal, report.stopped), (None, Some(9), false));
    let words = "the leash of \"/bin/sh\" ended without a report (signal: 9 (SIGKILL))\n";
    assert_eq!(report.output, words);
    assert_eq!(leashed.try_wait().expect("waiting again succeeds"), Some(report));
}

#[test]
fn a_parent_that_ignores_sigchld_gets_its_report() {
    let ignoring = ["env", "--ignore-signal=CHLD"];
    let output = parent_of("echo words; exit 5", &ignoring).output().expect("env runs");
    let line = BufReader::new(output.stdout.as_slice())
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("REPORT ").map(str::to_owned))
        .expect("a report");
    let report: Report = serde_json::from_str(&line).expect("a report is JSON");
    assert_eq!((report.exit, report.output.as_str()), (Some(5), "words\n"));
}

/// The most memory that a process ever had, in kB.
fn peak_memory(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

#[test]
fn any_amount_of_output_in_little_memory() {
    let directory = TempDir::new().expect("a temporary directory");
    let log: PathBuf = directory.path().join("log");
    let [done, go] = ["done", "go"].map(|name| directory.path().join(name));
    // 110 MB: far more than is kept.
    let script = format!(
        "yes 0123456789 | head -n 10000000; echo the end >&2; touch {}
         until [ -e {} ]; do sleep 0.01; done",
        done.display(),
        go.display()
    );
    let mut leashed = start(&Spec { log: Some(log.clone()), ..shell(&script) });
    until("the output to be written", || done.exists());
    let peak = peak_memory(leashed.id()).expect("the leash runs");
    fs::write(go, "").expect("written");
    let report = wait(&mut leashed);
    assert_eq!((report.exit, report.truncated), (Some(0), true));
    // As many whole lines of 11 bytes as fit into 64 kB with the last line of 8.
    let expected = format!("{}the end\n", "0123456789\n".repeat((64 * 1024 - 8) / 11));
    assert!(report.output == expected, "{} bytes", report.output.len());
    assert!((1..20_000).contains(&peak), "{peak} kB");

    let logged = fs::read(&log).expect("the log is there");
    let head = "0123456789\n".repeat(1024 * 1024 / 11 + 1);
    assert!(logged[..1024 * 1024] == head.as_bytes()[..1024 * 1024], "the beginning of the log");
    let left_out = 110_000_008 - 1024 * 1024 - expected.len();
    let rest = format!("\n... {left_out} bytes left out ...\n{expected}");
    assert!(logged[1024 * 1024..] == *rest.as_bytes(), "the end of the log");
}

#[test]
fn an_answer_comes_apart_from_what_else_is_written() {
    for (script, exit, answer, output) in [
        ("echo out; echo err >&2; echo out", 0, Some("out\nout\n"), "err\n"),
        ("echo err >&2; exit 1", 1, Some(""), "err\n"),
        ("printf 'sch\\366n\\0'; exit 1", 1, Some("sch\u{fffd}n\u{fffd}"), ""),
        ("exec >&-; echo err >&2", 0, Some(""), "err\n"),
        // Half an answer is none.
        ("head -c 300000 /dev/zero", 0, None, "the answer has more than 262144 bytes\n"),
    ] {
        let report = run(&Spec { answer: true, ..shell(script) });
        assert_eq!(report.exit, Some(exit), "{script}");
        assert_eq!((report.answer.as_deref(), &*report.output), (answer, output), "{script}");
    }
    // The longest one, beside as much of the rest.
    let script = "head -c 262144 /dev/zero | tr '\\0' 1; head -c 1000000 /dev/zero >&2";
    let report = run(&Spec { answer: true, ..shell(script) });
    assert_eq!(report.answer.map(|answer| answer.len()), Some(262_144));
    assert!(report.truncated);
    assert_eq!(run(&shell("echo out")).answer, None);
}

#[test]
fn nobody_may_be_listening() {
    let mut leash = Command::new(NRT_BACKUP)
        .args(["leash", "--", "/bin/sh", "-c", "sleep 0.2; exit 5"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command runs");
    drop(leash.stdout.take());
    let output = leash.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(5), b"".as_slice()));
}

#[test]
fn codes_are_those_of_a_shell() {
    for (words, code) in [
        (["/bin/sh", "-c", "exit 63"], 63),
        (["/bin/sh", "-c", "kill -9 $$"], 137),
        (["/no/such", "", ""], 127),
        (["/", "", ""], 126),
    ] {
        let output = by_hand(&[["--"].as_slice(), &words].concat());
        assert_eq!(output.status.code(), Some(code));
        assert_eq!(report_of(&output).shell_code(), u8::try_from(code).expect("a small number"));
    }
}

#[test]
fn nothing_is_run_for_a_parent_that_is_gone() {
    let directory = TempDir::new().expect("a temporary directory");
    let witness = directory.path().join("witness");
    let touch = ["--", "touch", witness.to_str().expect("UTF-8")];
    let report = report_of(&by_hand(&[["--parent", "1"].as_slice(), &touch].concat()));
    assert!(!witness.exists());
    assert_eq!((report.exit, report.signal, report.stopped), (None, None, true));
    let this = std::process::id().to_string();
    let report = report_of(&by_hand(&[["--parent", &this].as_slice(), &touch].concat()));
    assert!(witness.exists(), "{report:?}");
}

#[test]
fn the_leash_is_no_command_for_people() {
    let help = |args: &[&str]| {
        let output = Command::new(NRT_BACKUP).args(args).output().expect("the command runs");
        String::from_utf8(output.stdout).expect("help is UTF-8")
    };
    assert!(!help(&["--help"]).contains("leash"));
    assert!(help(&["leash", "--help"]).contains("--time-limit"));
}

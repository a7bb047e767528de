//! Prepares a child between fork and exec, where only async-signal-safe calls are allowed.
//!
//! This is the one module of the crate with `unsafe`. What runs here after the fork must not
//! allocate, lock or panic: the parent may be a process with threads, and it may be a server.

#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::{FdFlags, fcntl_setfd, read, write};
use rustix::process::{
    Pid, Resource, Signal, getpid, getppid, getrlimit, set_parent_process_death_signal, setsid,
};

/// The highest descriptor that is looked at where `close_range` does not work. The kernel gives
/// out the lowest free number and a backend keeps `max_files_per_process`, 1000, of them open,
/// while the limit may be a billion.
const LAST_DESCRIPTOR: u64 = 65_536;

/// Seals a command off from a PostgreSQL process that is about to start it.
///
/// The child becomes the leader of a session of its own, because the postmaster signals the
/// whole process group of a backend. It gets SIGTERM when the thread that started it ends, and
/// does not start at all when that happened already. It inherits no descriptor beyond the
/// standard three, no ignored signal and no blocked one: PostgreSQL 15 holds relation files open
/// for writing without close-on-exec, and ignores signals that exec passes on. It does not inherit
/// the protection from the kernel's out-of-memory killer that a postmaster often has.
///
/// Do not combine with [`CommandExt::process_group`]: the leader of a group cannot have a
/// session of its own.
pub fn seal(command: &mut Command) {
    prepare(command, Signal::TERM, true);
}

/// Ties a command to the calling process: like [`seal`], but in the session of its parent, and
/// killed when the thread that started it ends.
pub fn tether(command: &mut Command) {
    prepare(command, Signal::KILL, false);
}

fn prepare(command: &mut Command, when_parent_ends: Signal, own_session: bool) {
    let parent = getpid();
    let last_signal = libc::SIGRTMAX();
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).min(LAST_DESCRIPTOR);
    let last_descriptor = RawFd::try_from(limit).unwrap_or(RawFd::MAX);
    let hook = move || {
        end_with_parent(parent, when_parent_ends)?;
        give_up_protection();
        reset_signals(last_signal)?;
        if !close_range_on_exec() {
            close_each_on_exec(last_descriptor);
        }
        if own_session {
            setsid()?;
        }
        Ok(())
    };
    // SAFETY: the hook makes system calls and touches memory of its own stack only; it does not
    // allocate, lock or panic. Its errors are bare error numbers, which need no memory either.
    unsafe { command.pre_exec(hook) };
}

fn end_with_parent(parent: Pid, signal: Signal) -> io::Result<()> {
    set_parent_process_death_signal(Some(signal))?;
    if getppid() != Some(parent) {
        // The parent ended between the fork and the line above, and no signal will come.
        // SAFETY: _exit ends the process at once and runs no handler of the parent's.
        unsafe { libc::_exit(1) };
    }
    Ok(())
}

/// Raises a negative `oom_score_adj` to 0: a service manager protects the postmaster with -900 or
/// -1000, and a child that took all memory would then be the last process to be killed.
///
/// A positive one stays: the caller has made itself the first to go. An error is none of a child's
/// concern: where `/proc` is missing there is nothing to raise.
fn give_up_protection() {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let Ok(file) = open(c"/proc/self/oom_score_adj", flags, Mode::empty()) else { return };
    let mut first = [0_u8; 1];
    if read(&file, &mut first).is_ok_and(|count| count == 1) && first == *b"-" {
        // The kernel takes the number wherever the file is written.
        let _ = write(&file, b"0");
    }
}

/// Gives every signal its default action and blocks none.
fn reset_signals(last_signal: libc::c_int) -> io::Result<()> {
    // The kernel's struct has no more than four words on any machine; all zeros is the default
    // action, no flags, an empty mask. Its mask has a bit for each signal.
    let default = [0_u64; 8];
    let mask_size = (last_signal + 7) / 8;
    for signal in 1..=last_signal {
        // By its number, because the function of the C library refuses the two signals that it
        // keeps for its threads, and its own posix_spawn passes them on ignored. KILL and STOP
        // are refused by the kernel, and cannot have been changed.
        // SAFETY: the kernel reads a valid struct; the call is async-signal-safe.
        unsafe {
            let none = ptr::null_mut::<u64>();
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), none, mask_size);
        }
    }
    // SAFETY: sigemptyset initialises the set which sigprocmask then reads; both are
    // async-signal-safe, and after the fork there is only this thread.
    let outcome = unsafe {
        let mut none: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut())
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Marks all descriptors but the standard three close-on-exec in one call. False where the
/// kernel has no such call (before 5.11) or a container forbids it.
///
/// They are marked, not closed, because the pipe by which [`Command::spawn`] learns of a failed
/// exec is one of them.
fn close_range_on_exec() -> bool {
    let (first, last, flags) = (3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    // SAFETY: with this flag the call touches no memory and closes nothing. By its number,
    // because not every C library that we may be built with has the function.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) == 0 }
}

/// Does the same one by one.
fn close_each_on_exec(last: RawFd) {
    for descriptor in 3..=last {
        // SAFETY: the number is only handed to fcntl, which refuses one that is not open; nothing
        // else runs in this process that could close it meanwhile.
        let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
        let _ = fcntl_setfd(descriptor, FdFlags::CLOEXEC);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, OwnedFd};

    use super::*;

    /// A descriptor as PostgreSQL 15 has many: open for writing, and inherited by exec.
    fn leaky() -> OwnedFd {
        open("/dev/null", OFlags::RDWR, Mode::empty()).expect("/dev/null can be opened")
    }

    fn stdout_of(command: &mut Command) -> String {
        let output = command.output().expect("the test's program runs");
        String::from_utf8(output.stdout).expect("the test's program writes UTF-8")
    }

    /// A shell that prints the numbers of its own descriptors.
    fn list_descriptors() -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "ls /proc/$$/fd; exit"]);
        command
    }

    #[test]
    fn no_descriptor_is_inherited() {
        let kept = leaky();
        let number = kept.as_raw_fd().to_string();
        let plain = stdout_of(&mut list_descriptors());
        assert!(plain.lines().any(|line| line == number), "nothing leaks that could be stopped");

        let mut sealed = list_descriptors();
        seal(&mut sealed);
        assert_eq!(stdout_of(&mut sealed), "0\n1\n2\n");

        let mut tethered = list_descriptors();
        tether(&mut tethered);
        assert_eq!(stdout_of(&mut tethered), "0\n1\n2\n");

        let mut one_by_one = list_descriptors();
        let hook = || {
            close_each_on_exec(1024);
            Ok(())
        };
        // SAFETY: the hook only makes system calls.
        unsafe { one_by_one.pre_exec(hook) };
        assert_eq!(stdout_of(&mut one_by_one), "0\n1\n2\n");
    }

    #[test]
    fn a_failed_exec_is_still_told() {
        let mut command = Command::new("/does/not/exist");
        seal(&mut command);
        let error = command.spawn().expect_err("there is no such program");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    /// The value of `field` in a `/proc/…/status` text.
    fn field<'a>(status: &'a str, field: &str) -> &'a str {
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
        line.trim_start_matches(':').trim()
    }

    #[test]
    fn no_signal_is_inherited() {
        let ignored = [libc::SIGUSR2, libc::SIGURG, libc::SIGTTIN, libc::SIGTTOU, libc::SIGXFSZ];
        for signal in ignored {
            // SAFETY: ignoring a signal runs no code; no other test here depends on these.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        let status = || {
            let mut command = Command::new("cat");
            command.arg("/proc/self/status");
            command
        };
        let plain = stdout_of(&mut status());
        let expected = ignored.iter().fold(0_u64, |bits, signal| bits | 1 << (signal - 1));
        let inherited = u64::from_str_radix(field(&plain, "SigIgn"), 16).expect("hexadecimal");
        assert_eq!(inherited & expected, expected, "nothing leaks that could be stopped");

        let mut sealed = status();
        let block = || {
            // SAFETY: both calls are async-signal-safe and use memory of this stack only.
            unsafe {
                let mut all: libc::sigset_t = mem::zeroed();
                libc::sigfillset(&raw mut all);
                libc::sigprocmask(libc::SIG_SETMASK, &raw const all, ptr::null_mut());
            }
            Ok(())
        };
        // std empties the mask before the hooks run, so it is filled again in a hook before ours.
        // SAFETY: see the hook.
        unsafe { sealed.pre_exec(block) };
        seal(&mut sealed);
        let sealed = stdout_of(&mut sealed);
        assert_eq!(field(&sealed, "SigIgn"), "0000000000000000");
        assert_eq!(field(&sealed, "SigBlk"), "0000000000000000");
        for signal in ignored {
            // SAFETY: restores what was there before.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }

    #[test]
    fn no_protection_from_the_out_of_memory_killer_is_inherited() {
        // The hooks run in the order in which they were added.
        let score = |adjusted: &'static [u8], prepare: fn(&mut Command)| {
            let mut command = Command::new("cat");
            command.arg("/proc/self/oom_score_adj");
            let hook = move || {
                let file = open(c"/proc/self/oom_score_adj", OFlags::WRONLY, Mode::empty())?;
                write(&file, adjusted)?;
                Ok(())
            };
            // SAFETY: the hook only makes system calls.
            unsafe { command.pre_exec(hook) };
            prepare(&mut command);
            let output = command.output().ok()?;
            Some(String::from_utf8_lossy(&output.stdout).trim().to_string())
        };
        let some = |text: &str| Some(text.to_string());
        for prepare in [seal, tether] {
            assert_eq!(score(b"700", prepare), some("700"), "who wants to go first does");
        }
        // Only root may lower it.
        if score(b"-500", |_| {}) == some("-500") {
            for prepare in [seal, tether] {
                assert_eq!(score(b"-500", prepare), some("0"));
            }
        }
    }

    #[test]
    fn a_session_of_its_own_or_the_parents() {
        let ids = || {
            let mut command = Command::new("cat");
            command.arg("/proc/self/stat");
            command
        };
        // pid (comm) state ppid pgrp session
        let ids_of = |command: &mut Command| {
            let stat = stdout_of(command);
            let numbers: Vec<u32> =
                stat.split(' ').filter_map(|number| number.parse().ok()).collect();
            (numbers[0], numbers[2], numbers[3])
        };
        let mut sealed = ids();
        seal(&mut sealed);
        let (process, group, session) = ids_of(&mut sealed);
        assert_eq!((group, session), (process, process));

        let mut tethered = ids();
        tether(&mut tethered);
        let (process, group, _) = ids_of(&mut tethered);
        assert_ne!(group, process);
    }

    #[test]
    fn a_child_of_a_parent_that_ended_does_not_start() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo started"]);
        let other = Pid::from_raw(1).expect("not zero");
        let hook = move || end_with_parent(other, Signal::TERM);
        // SAFETY: the hook only makes system calls.
        unsafe { command.pre_exec(hook) };
        let output = command.output().expect("spawning itself succeeds");
        assert_eq!((output.stdout.as_slice(), output.status.code()), (b"".as_slice(), Some(1)));
    }
}

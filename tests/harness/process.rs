//! Looks at processes through /proc and signals them.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::{Pid, Signal};

/// A process as /proc showed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// The number of its parent; 1 when that is gone.
    pub parent: i32,
    /// The number of the user it runs as.
    pub uid: u32,
    /// Its arguments, or the title that it gave itself, separated by blanks.
    pub command: String,
}

impl Process {
    /// Reads one process, if it is there and neither a zombie nor a kernel thread.
    pub fn read(pid: i32) -> Option<Process> {
        let directory = Path::new("/proc").join(pid.to_string());
        let arguments = fs::read(directory.join("cmdline")).ok()?;
        let words: Vec<_> = arguments
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty())
            .map(String::from_utf8_lossy)
            .collect();
        if words.is_empty() {
            return None;
        }
        Some(Process {
            pid,
            parent: parent_of(pid)?,
            uid: fs::metadata(&directory).ok()?.uid(),
            command: words.join(" "),
        })
    }

    /// Whether `ancestor` is this process, its parent, its parent's parent and so on.
    pub fn descends_from(&self, ancestor: i32) -> bool {
        let mut pid = self.pid;
        while pid > 1 {
            if pid == ancestor {
                return true;
            }
            let Some(parent) = parent_of(pid) else { return false };
            pid = parent;
        }
        false
    }
}

/// All processes that name `path` in their arguments or environment, or work in it.
pub fn processes_mentioning(path: &Path) -> Vec<Process> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let mentions = |file: &str| {
            fs::read(entry.path().join(file)).is_ok_and(|text| contains(&text, path.as_os_str()))
        };
        let works_there =
            || fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(path));
        if (mentions("cmdline") || works_there() || mentions("environ"))
            && let Some(process) = Process::read(pid)
        {
            found.push(process);
        }
    }
    found.sort_by_key(|process: &Process| process.pid);
    found
}

/// Sends a signal; a process that is gone already is no error.
///
/// # Panics
/// If it may not be sent.
pub fn kill(pid: i32, signal: Signal) {
    let target = Pid::from_raw(pid).expect("process numbers are positive");
    match rustix::process::kill_process(target, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("could not send {signal:?} to process {pid}: {error}"),
    }
}

/// The parent, from /proc/PID/stat, whose second field may contain blanks and parentheses.
fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = &stat[stat.rfind(')')? + 1..];
    after_name.split_whitespace().nth(1)?.parse().ok()
}

fn contains(text: &[u8], part: &OsStr) -> bool {
    text.windows(part.len()).any(|window| window == part.as_bytes())
}

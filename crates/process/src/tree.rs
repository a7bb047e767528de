//! Finds the processes below a process.

use std::fs;

use rustix::process::Pid;

/// Returns every descendant of `root`, whatever group or session it moved to.
///
/// Read from the parents of all processes and not from `/proc/…/children`, which a kernel may be
/// built without. Processes come and go meanwhile, so a caller that wants all of them repeats
/// until there are none.
pub(crate) fn descendants(root: Pid) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let processes: Vec<(Pid, Pid)> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|number: i32| Some((Pid::from_raw(number)?, parent(number)?)))
        .collect();
    let mut found = vec![root];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        // Every process is somebody's child once, so without the root there is no circle, even
        // when a number was used again while they were read.
        let below = |(child, of): &&(Pid, Pid)| *of == parent && *child != root;
        found.extend(processes.iter().filter(below).map(|(child, _)| *child));
        next += 1;
    }
    found.split_off(1)
}

fn parent(process: i32) -> Option<Pid> {
    parse_parent(&fs::read(format!("/proc/{process}/stat")).ok()?)
}

/// Reads the parent out of `pid (name) state parent …`. The name is whatever the process likes,
/// brackets and bytes that are not UTF-8 included, so it is skipped from the end.
fn parse_parent(stat: &[u8]) -> Option<Pid> {
    let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let fields = str::from_utf8(&stat[after_name..]).ok()?;
    Pid::from_raw(fields.split_ascii_whitespace().nth(1)?.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_read_whatever_the_name() {
        for (stat, expected) in [
            (b"12 (sh) S 7 12 12 0 -1".as_slice(), Some(7)),
            (b"12 (a) S 99 b) R 8 1 1", Some(8)),
            (b"12 (\xff\xfe ) ) Z 9 1 1", Some(9)),
            // The first process, and those that the kernel started, have no parent.
            (b"1 (init) S 0 1 1", None),
            (b"", None),
            (b"12 (cut", None),
        ] {
            assert_eq!(parse_parent(stat).map(|pid| pid.as_raw_nonzero().get()), expected);
        }
    }
}

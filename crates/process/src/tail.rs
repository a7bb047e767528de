//! Keeps the end of a program's output, and its beginning in a log file, in little memory.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// How much of the end is kept.
pub(crate) const TAIL: usize = 64 * 1024;

/// How much of the beginning goes to a log file as it comes.
const HEAD: u64 = 1024 * 1024;

/// The last [`TAIL`] bytes of a stream.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    /// More than what is asked for, so that bytes are moved rarely.
    kept: Vec<u8>,
    total: u64,
}

impl Tail {
    /// Takes the next bytes of the stream.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        // One byte more than the tail tells whether the tail begins with a line.
        let wanted = TAIL + 1;
        if bytes.len() >= wanted {
            self.kept.clear();
            self.kept.extend_from_slice(&bytes[bytes.len() - wanted..]);
            return;
        }
        self.kept.extend_from_slice(bytes);
        if self.kept.len() > 2 * wanted {
            self.kept.drain(..self.kept.len() - wanted);
        }
    }

    /// Whether the stream was longer than what is kept.
    pub(crate) fn is_truncated(&self) -> bool {
        self.total > TAIL as u64
    }

    /// The last `count` bytes, at most [`TAIL`].
    fn last(&self, count: usize) -> &[u8] {
        &self.kept[self.kept.len() - count.min(TAIL).min(self.kept.len())..]
    }

    /// The kept bytes without the beginning of a line that was cut off; the cut line itself when
    /// it is the only one.
    fn whole_lines(&self) -> &[u8] {
        if !self.is_truncated() {
            return &self.kept;
        }
        let with_one_before = &self.kept[self.kept.len() - TAIL - 1..];
        match with_one_before.iter().position(|byte| *byte == b'\n') {
            Some(end) if end + 1 < with_one_before.len() => &with_one_before[end + 1..],
            _ => self.last(TAIL),
        }
    }

    /// The kept bytes as text that PostgreSQL can store: bytes that are not UTF-8, and zeros,
    /// become U+FFFD.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(self.whole_lines()).replace('\0', "\u{fffd}")
    }
}

/// What a program wrote: the end of it for the report, and beginning and end in a log file.
///
/// A log that cannot be written is not an error: the program is worth more than its log, and the
/// disk may be full because of just what the program is about to mend.
#[derive(Debug)]
pub(crate) struct Output {
    /// The end of it.
    pub(crate) tail: Tail,
    log: Option<File>,
}

impl Output {
    /// Begins with nothing; appends to `log` if there is one.
    pub(crate) fn new(log: Option<&Path>) -> Output {
        let open =
            |path: &Path| OpenOptions::new().create(true).append(true).mode(0o600).open(path);
        Output { tail: Tail::default(), log: log.and_then(|path| open(path).ok()) }
    }

    /// Takes the next bytes that the program wrote.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let room = HEAD.saturating_sub(self.tail.total);
        self.tail.push(bytes);
        let head = &bytes[..bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
        self.write(head);
    }

    /// Writes the end to the log, when it is not there yet, and hands back the tail.
    pub(crate) fn finish(mut self) -> Tail {
        let missing = self.tail.total.saturating_sub(HEAD);
        if missing > TAIL as u64 {
            let end = self.tail.whole_lines().to_vec();
            let left_out = missing - end.len() as u64;
            self.write(format!("\n... {left_out} bytes left out ...\n").as_bytes());
            self.write(&end);
        } else {
            let end = self.tail.last(usize::try_from(missing).unwrap_or(TAIL)).to_vec();
            self.write(&end);
        }
        self.tail
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(log) = &mut self.log {
            let _ = log.write_all(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbered lines of changing length, `count` bytes long; the last line may be cut.
    fn lines(count: usize) -> Vec<u8> {
        let mut text = Vec::new();
        for number in 0.. {
            if text.len() >= count {
                break;
            }
            text.extend(format!("{number}{}\n", "x".repeat(number % 97)).bytes());
        }
        text.truncate(count);
        text
    }

    /// `bytes` in pieces whose sizes look random, up to `largest`.
    fn pieces(bytes: &[u8], largest: usize) -> impl Iterator<Item = &[u8]> {
        let mut state = 12345_usize;
        let mut rest = bytes;
        std::iter::from_fn(move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (piece, after) = rest.split_at_checked(1 + (state >> 33) % largest)?;
            rest = after;
            Some(piece)
        })
    }

    fn push_all(bytes: &[u8], largest: usize, mut push: impl FnMut(&[u8])) {
        let mut pushed = 0;
        for piece in pieces(bytes, largest) {
            push(piece);
            pushed += piece.len();
        }
        push(&bytes[pushed..]);
    }

    #[test]
    fn the_tail_is_the_end_in_whole_lines() {
        for count in [0, 1, TAIL - 1, TAIL, TAIL + 1, TAIL + 50, 3 * TAIL + 7, 1_000_000] {
            for largest in [100, 5000, 300_000] {
                let bytes = lines(count);
                let mut tail = Tail::default();
                push_all(&bytes, largest, |piece| tail.push(piece));

                // What a reader of the whole text would call it: the lines that fit, from the end.
                let mut start = bytes.len();
                for line in bytes.split_inclusive(|byte| *byte == b'\n').rev() {
                    if bytes.len() - start + line.len() > TAIL {
                        break;
                    }
                    start -= line.len();
                }
                assert_eq!(tail.text().as_bytes(), &bytes[start..], "{count} bytes by {largest}");
                assert_eq!(tail.is_truncated(), count > TAIL);
            }
        }
    }

    #[test]
    fn one_long_line_is_kept_from_its_end() {
        let mut tail = Tail::default();
        tail.push(&b"a".repeat(TAIL));
        tail.push(&b"b".repeat(TAIL - 1));
        tail.push(b"\n");
        assert_eq!(tail.text(), format!("{}\n", "b".repeat(TAIL - 1)));
    }

    #[test]
    fn anything_becomes_text() {
        for (bytes, text) in [
            (b"sch\xc3\xb6n".as_slice(), "schön"),
            (b"sch\xf6n", "sch\u{fffd}n"),
            (b"a\0b", "a\u{fffd}b"),
            (b"\xff\xfe", "\u{fffd}\u{fffd}"),
        ] {
            let mut tail = Tail::default();
            tail.push(bytes);
            assert_eq!(tail.text(), text);
        }
    }

    #[test]
    fn the_log_has_the_beginning_and_the_end() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let head = usize::try_from(HEAD).expect("fits");
        for count in [0, 10, head, head + 1, head + TAIL, head + TAIL + 1, 3 * head] {
            let path = directory.path().join(count.to_string());
            let bytes = lines(count);
            let mut output = Output::new(Some(&path));
            push_all(&bytes, 100_000, |piece| output.push(piece));
            let tail = output.finish();
            let log = std::fs::read(&path).expect("the log is there");
            if count <= head + TAIL {
                assert!(log == bytes, "{count} bytes fit, and the log has {}", log.len());
                continue;
            }
            let end = tail.text();
            let left_out = count - head - end.len();
            let rest = format!("\n... {left_out} bytes left out ...\n{end}");
            assert!(log[..head] == bytes[..head], "{count}: the beginning");
            assert!(log[head..] == *rest.as_bytes(), "{count}: the end");
            assert!(bytes.ends_with(end.as_bytes()), "{count}: the end is the end");
        }
    }

    #[test]
    fn a_log_is_appended_to_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("log");
        for word in ["one\n", "two\n"] {
            let mut output = Output::new(Some(&path));
            output.push(word.as_bytes());
            output.finish();
        }
        assert_eq!(std::fs::read_to_string(&path).expect("the log is there"), "one\ntwo\n");
        let mode = std::fs::metadata(&path).expect("the log is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_log_that_cannot_be_written_changes_nothing() {
        for path in ["/dev/full", "/does/not/exist/log", "/"] {
            let mut output = Output::new(Some(Path::new(path)));
            output.push(b"words\n");
            assert_eq!(output.finish().text(), "words\n");
        }
    }
}

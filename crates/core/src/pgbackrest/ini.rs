//! Proves `backup.info`, `archive.info` and manifests by the checksum that pgBackRest writes into them.
//!
//! The last line of such a file is `backrest-checksum` in section `[backrest]`: the SHA-1 of all other
//! lines, rendered as one JSON object of sections. Every version that writes format 5 does so.

use sha1::{Digest, Sha1};

/// OpenSSL's salted format: an encrypted file of pgBackRest begins with these bytes.
const ENCRYPTED: &[u8] = b"Salted__";

/// Whether a file is as pgBackRest wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Integrity {
    /// The checksum in it is the checksum of its content.
    Whole,
    /// It is encrypted: its content cannot be proved without the passphrase.
    Encrypted,
    /// It is empty, cut off, changed, or another kind of file.
    Damaged,
}

/// Compares the content of an info file or a manifest with the checksum in it.
pub fn integrity(content: &[u8]) -> Integrity {
    if content.len() > ENCRYPTED.len() && content.starts_with(ENCRYPTED) {
        return Integrity::Encrypted;
    }
    let Ok(text) = std::str::from_utf8(content) else { return Integrity::Damaged };
    // A cut in the middle of the last line loses at least the line's end.
    if !text.ends_with('\n') {
        return Integrity::Damaged;
    }
    match read(text) {
        (computed, Some(written)) if computed == written => Integrity::Whole,
        _ => Integrity::Damaged,
    }
}

/// The checksum that pgBackRest writes into a file with this content.
pub fn checksum(text: &str) -> String {
    read(text).0
}

/// The checksum of a text, and the one that is written in it.
fn read(text: &str) -> (String, Option<String>) {
    let mut hasher = Sha1::new();
    let mut written = None;
    let mut section = "";
    let mut last_section = None;
    hasher.update("{");
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
            section = name;
            continue;
        }
        let Some((key, value)) = key_and_value(line) else { continue };
        if (section, key) == ("backrest", "backrest-checksum") {
            written = serde_json::from_str(value).ok();
            continue;
        }
        if last_section == Some(section) {
            hasher.update(",");
        } else {
            hasher.update(if last_section.is_some() { "},\"" } else { "\"" });
            hasher.update(section);
            hasher.update("\":{");
            last_section = Some(section);
        }
        hasher.update("\"");
        hasher.update(key);
        hasher.update("\":");
        hasher.update(value);
    }
    hasher.update("}}");
    let computed = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    (computed, written)
}

/// Splits a line at the first equals sign that a JSON value follows: a file's name may hold one, too.
pub(super) fn key_and_value(line: &str) -> Option<(&str, &str)> {
    let is_json = |value: &str| serde_json::from_str::<serde::de::IgnoredAny>(value).is_ok();
    line.match_indices('=')
        .map(|(at, _)| (&line[..at], &line[at + 1..]))
        .find(|(_, value)| is_json(value))
}

#[cfg(test)]
mod tests {
    use super::super::fixtures;
    use super::*;

    #[test]
    fn proves_what_each_version_has_written() {
        for version in fixtures::RECORDED {
            for name in ["archive.info", "backup.info"] {
                let text = fixtures::text(version, &format!("repository/{name}"));
                assert_eq!(integrity(text.as_bytes()), Integrity::Whole, "{version} {name}");
                // Neither a cut at any line nor a change of one byte goes unnoticed.
                for (at, _) in text.match_indices('\n').step_by(7) {
                    let cut = &text.as_bytes()[..at];
                    assert_eq!(integrity(cut), Integrity::Damaged, "{version} {name} {at}");
                    let mut changed = text.clone().into_bytes();
                    changed[at - 1] ^= 1;
                    assert_eq!(integrity(&changed), Integrity::Damaged, "{version} {name} {at}");
                }
            }
        }
    }

    #[test]
    fn tells_encrypted_files_from_damaged_ones() {
        assert_eq!(integrity(b"Salted__12345678abc"), Integrity::Encrypted);
        for damaged in [
            b"".as_slice(),
            b"Salted__",
            b"\0\0\0\0\0\0\0\0\0\0\0\0",
            b"[backrest]\nbackrest-format=5\n",
            b"\xff\xfe\n",
        ] {
            assert_eq!(integrity(damaged), Integrity::Damaged, "{damaged:?}");
        }
        let text = "[db]\ndb-id=1\n";
        let whole = format!("{text}\n[backrest]\nbackrest-checksum=\"{}\"\n", checksum(text));
        assert_eq!(integrity(whole.as_bytes()), Integrity::Whole);
    }

    #[test]
    fn a_name_may_hold_an_equals_sign() {
        assert_eq!(key_and_value("a=b={\"x\":1}"), Some(("a=b", "{\"x\":1}")));
        assert_eq!(key_and_value("a={\"x\":\"=1\"}"), Some(("a", "{\"x\":\"=1\"}")));
        assert_eq!(key_and_value("no value"), None);
    }
}

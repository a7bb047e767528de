//! Says which names a stanza and a backup can have.

/// The longest name of a stanza that we take. It becomes a part of file names.
const LONGEST_STANZA: usize = 63;

/// Refuses a name that cannot be a stanza's, with the reason.
///
/// pgBackRest itself takes more; we keep to what is safe in a path, in an object's name at any
/// remote, in an option and in an INI section.
pub fn valid_stanza_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("the name is empty".to_string());
    }
    if name.len() > LONGEST_STANZA {
        return Err(format!("the name has {} bytes; {LONGEST_STANZA} are allowed", name.len()));
    }
    let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if let Some(bad) = name.chars().find(|c| !allowed(c)) {
        return Err(format!(
            "the character {bad:?} is not allowed; use letters, digits, \"_\", \"-\" and \".\""
        ));
    }
    if name.starts_with(['-', '.']) {
        return Err("the name must begin with a letter, a digit or \"_\"".to_string());
    }
    if name == "global" {
        return Err("\"global\" is the name of a section in pgBackRest's configuration".to_string());
    }
    Ok(())
}

/// Whether a text is the label of a backup: `20260822-030000F` for a full one,
/// `20260822-030000F_20260822-090000I` (or `D`) for one that builds on it.
pub fn valid_label(label: &str) -> bool {
    let instant = |text: &str| {
        text.len() == 15
            && text
                .char_indices()
                .all(|(at, c)| if at == 8 { c == '-' } else { c.is_ascii_digit() })
    };
    let named = |text: &str, kinds: &[char]| text.strip_suffix(kinds).is_some_and(instant);
    match label.split_once('_') {
        None => named(label, &['F']),
        Some((full, later)) => named(full, &['F']) && named(later, &['D', 'I']),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_only_harmless_stanza_names() {
        for good in ["main", "a", "0", "_x", "my-db.prod_2", "Global", &"x".repeat(63)] {
            assert_eq!(valid_stanza_name(good), Ok(()), "{good:?}");
        }
        for (bad, reason) in [
            ("", "empty"),
            ("-main", "begin"),
            (".hidden", "begin"),
            ("..", "begin"),
            ("a/b", "'/'"),
            ("a b", "' '"),
            ("a\nb", "'\\n'"),
            ("a:b", "':'"),
            ("a]", "']'"),
            ("dépôt", "'é'"),
            ("global", "section"),
            (&"x".repeat(64), "64 bytes"),
        ] {
            let message = valid_stanza_name(bad).expect_err(bad);
            assert!(message.contains(reason), "{bad:?}: {message}");
        }
    }

    #[test]
    fn tells_labels_from_other_names() {
        for good in [
            "20261122-164804F",
            "20261122-164804F_20261122-164808D",
            "20261122-164804F_20261122-164810I",
        ] {
            assert!(valid_label(good), "{good}");
        }
        for bad in [
            "",
            "latest",
            "20261122-164804",
            "20261122-164804I",
            "20261122-164804F_",
            "20261122-164804F_20261122-164808F",
            "20261122-164804I_20261122-164808I",
            "20261122-164804F_20261122-164808I_20261122-164809I",
            "20261122_164804F",
            "20261122-16480éF",
            "../20261122-164804F",
            " 20261122-164804F",
        ] {
            assert!(!valid_label(bad), "{bad:?}");
        }
    }
}

//! Keeps secrets out of words: what a remote says about a failure is shown to everybody.

use std::fmt;

/// Values of an rclone configuration that nobody may read.
#[derive(Clone, Default)]
pub(crate) struct Secrets(Vec<String>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} secrets", self.0.len())
    }
}

/// Parts of the names under which rclone's backends keep what is secret.
const SECRET: [&str; 9] =
    ["pass", "secret", "token", "key", "credential", "auth", "sas", "bearer", "cookie"];
/// Anything shorter would hide innocent words.
const SHORTEST: usize = 4;

impl Secrets {
    /// Collects the secrets of a configuration.
    pub(crate) fn of(configuration: &str) -> Secrets {
        let mut values: Vec<String> = Vec::new();
        for line in configuration.lines() {
            let Some((name, value)) = line.split_once('=') else { continue };
            let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
            if SECRET.iter().any(|part| name.contains(part)) {
                values.push(value.to_string());
                // A token is a JSON document; an error may quote one field of it.
                values.extend(value.split('"').map(str::to_string).filter(|it| it.len() > 15));
            }
        }
        values.retain(|value| value.len() >= SHORTEST);
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        Secrets(values)
    }

    /// The words with every secret replaced.
    pub(crate) fn hide(&self, words: &str) -> String {
        self.0.iter().fold(words.to_string(), |words, secret| words.replace(secret, "***"))
    }
}

/// The first remote of a configuration.
pub(crate) fn first_remote(configuration: &str) -> Option<String> {
    sections(configuration).next()
}

/// The names of the remotes, in the order of the file.
pub(crate) fn sections(configuration: &str) -> impl Iterator<Item = String> {
    configuration.lines().filter_map(|line| {
        let name = line.trim().strip_prefix('[')?.strip_suffix(']')?;
        Some(name.to_string())
    })
}

/// The value of an option of a remote.
pub(crate) fn option_of(configuration: &str, remote: &str, option: &str) -> Option<String> {
    let mut inside = false;
    for line in configuration.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
            inside = name == remote;
        } else if inside
            && let Some((name, value)) = line.split_once('=')
            && name.trim() == option
        {
            return Some(value.trim().to_string());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIGURATION: &str = "# x\n[s3]\ntype = s3\nprovider = Other\n\
        secret_access_key = wJalrXUtnFEMI\naccess_key_id = AKIA123456\n\n[drive]\ntype = drive\n\
        token = {\"access_token\":\"ya29.abcdefghijklmnop\",\"expiry\":\"2026\"}\n[c]\ntype = crypt\n\
        password = abc\n";

    #[test]
    fn no_secret_is_repeated() {
        let secrets = Secrets::of(CONFIGURATION);
        let words = secrets.hide("401 for AKIA123456/wJalrXUtnFEMI at s3, ya29.abcdefghijklmnop");
        assert_eq!(words, "401 for ***/*** at s3, ***");
        assert_eq!(secrets.hide("provider Other, an abc"), "provider Other, an abc");
        assert!(!format!("{secrets:?}").contains("AKIA"));
    }

    #[test]
    fn finds_its_way_in_a_configuration() {
        assert_eq!(first_remote(CONFIGURATION).as_deref(), Some("s3"));
        assert_eq!(sections(CONFIGURATION).count(), 3);
        assert_eq!(option_of(CONFIGURATION, "c", "type").as_deref(), Some("crypt"));
        assert_eq!(option_of(CONFIGURATION, "s3", "token"), None);
        assert_eq!(first_remote(""), None);
    }
}

//! Keeps secrets out of words: what a remote says about a failure is shown to everybody.

use std::fmt;

use nrt_process::only_for_rclone;

/// Values of rclone's configuration and environment that nobody may read.
#[derive(Clone, Default)]
pub struct Secrets(Vec<String>);

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
    /// Collects the secrets among options, and those of rclone's environment.
    pub fn of<'a>(options: impl Iterator<Item = (&'a str, &'a str)>) -> Secrets {
        let mut secrets = Secrets::default();
        for (name, value) in options {
            secrets.add(name, value);
        }
        for (name, value) in only_for_rclone(std::env::vars_os()) {
            secrets.add(&name.to_string_lossy(), &value.to_string_lossy());
        }
        secrets.0.sort_by_key(|value| std::cmp::Reverse(value.len()));
        secrets
    }

    fn add(&mut self, name: &str, value: &str) {
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
        if !SECRET.iter().any(|part| name.contains(part)) {
            return;
        }
        self.0.extend(Some(value.to_string()).filter(|it| it.len() >= SHORTEST));
        // A token is a JSON document; an error may quote one field of it.
        self.0.extend(value.split('"').map(str::to_string).filter(|it| it.len() > 15));
    }

    /// The words with every secret replaced.
    pub fn hide(&self, words: &str) -> String {
        self.0.iter().fold(words.to_string(), |words, secret| words.replace(secret, "***"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_repeated() {
        let token = r#"{"access_token":"ya29.abcdefghijklmnop","expiry":"2026"}"#;
        let options = [
            ("type", "s3"),
            ("provider", "Other"),
            ("secret_access_key", "wJalrXUtnFEMI"),
            ("access_key_id", "AKIA123456"),
            ("token", token),
            ("password", "abc"),
        ];
        let secrets = Secrets::of(options.into_iter());
        let words = secrets.hide("401 for AKIA123456/wJalrXUtnFEMI at s3, ya29.abcdefghijklmnop");
        assert_eq!(words, "401 for ***/*** at s3, ***");
        assert_eq!(secrets.hide("provider Other, an abc"), "provider Other, an abc");
        assert!(!format!("{secrets:?}").contains("AKIA"));
    }
}

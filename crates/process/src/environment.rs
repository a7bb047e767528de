//! Chooses which environment variables a child may see.

use std::ffi::{OsStr, OsString};

/// Passed on as they are, when they are set.
const PASSED: &[&str] = &[
    "HOME",
    "USER",
    "LOGNAME",
    "TZ",
    "TZDIR",
    "TMPDIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
];

/// Passed on to rclone alone, by the beginnings of their names: what says who a machine is in a
/// cloud, for remotes with `env_auth = true`.
const CLOUDS: &[&str] = &[
    // Keys, profiles, web identity and containers of Amazon, and of others with its protocol.
    "AWS_",
    "ECS_CONTAINER_METADATA_",
    "GOOGLE_",
    "CLOUDSDK_",
    "GCE_METADATA_",
    "AZURE_",
    // Managed identities of Azure.
    "IDENTITY_",
    "MSI_",
    // OpenStack.
    "OS_",
    "OCI_",
];

/// Passed on to rclone alone: what opens its configuration, an agent's socket, tickets.
const FOR_RCLONE: &[&str] = &[
    "RCLONE_CONFIG_PASS",
    "RCLONE_PASSWORD_COMMAND",
    "SSH_AUTH_SOCK",
    "KRB5CCNAME",
    "KRB5_CONFIG",
];

/// Where programs are looked for when the parent has no PATH of its own.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Returns the environment of a child whose parent has the variables `vars`.
///
/// It is a list of what may pass, not of what may not: `PGBACKREST_*` would override the
/// configuration that we wrote, `PG*` would connect elsewhere, and `AWS_*`, `RCLONE_*` and the
/// operator's own variables may be secrets: see [`allowed_for_rclone`]. Messages are always in English and UTF-8, because
/// programs read them.
pub fn allowed(vars: impl Iterator<Item = (OsString, OsString)>) -> Vec<(OsString, OsString)> {
    let mut path = OsString::from(DEFAULT_PATH);
    let mut environment = Vec::new();
    for (name, value) in vars {
        // An empty PATH means the current directory to some programs.
        if name == "PATH" && !value.is_empty() {
            path = value;
        } else if PASSED.iter().any(|passed| name == OsStr::new(passed)) {
            environment.push((name, value));
        }
    }
    environment.push(("PATH".into(), path));
    environment.push(("LANG".into(), "C.UTF-8".into()));
    environment.push(("LC_ALL".into(), "C.UTF-8".into()));
    environment
}

/// Returns the environment of a child that reads and writes local times in `zone`.
///
/// pgBackRest names backups by local time and refuses a name that is not later than the newest one:
/// it must run in one time zone, whatever the server's is.
pub fn allowed_in_zone(
    vars: impl Iterator<Item = (OsString, OsString)>,
    zone: &str,
) -> Vec<(OsString, OsString)> {
    let mut environment = allowed(vars);
    environment.retain(|(name, _)| name != "TZ");
    environment.push(("TZ".into(), zone.into()));
    environment
}

/// Returns the environment of rclone, and of a process of ours that runs rclone: what [`allowed`]
/// returns, and the identities and passwords that are rclone's alone.
///
/// `RCLONE_*` options stay out: `RCLONE_DRY_RUN`, say, would have nothing sent.
pub fn allowed_for_rclone(
    vars: impl Iterator<Item = (OsString, OsString)>,
) -> Vec<(OsString, OsString)> {
    let vars: Vec<_> = vars.collect();
    let mut environment = allowed(vars.iter().cloned());
    environment.extend(only_for_rclone(vars.into_iter()));
    environment
}

/// Returns the variables that rclone alone may see. Their values may be secrets.
pub fn only_for_rclone(
    vars: impl Iterator<Item = (OsString, OsString)>,
) -> impl Iterator<Item = (OsString, OsString)> {
    vars.filter(|(name, _)| {
        let name = name.to_string_lossy();
        FOR_RCLONE.iter().any(|it| *it == name) || CLOUDS.iter().any(|it| name.starts_with(it))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_pass_to_rclone_alone() {
        let given = [
            ("AWS_SECRET_ACCESS_KEY", "s"),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "/t"),
            ("AZURE_CLIENT_ID", "a"),
            ("GOOGLE_APPLICATION_CREDENTIALS", "/g"),
            ("RCLONE_CONFIG_PASS", "p"),
            ("RCLONE_DRY_RUN", "true"),
            ("RCLONE_CONF_BASE64", "secret"),
            ("RCLONE_CONFIG", "/secret"),
            ("PGPASSWORD", "secret"),
            ("PATH", "/bin"),
        ];
        let vars = || given.into_iter().map(|(name, value)| (name.into(), value.into()));
        let names = |vars: Vec<(OsString, OsString)>| {
            let mut names: Vec<_> = vars.into_iter().map(|(name, _)| name).collect();
            names.sort();
            names
        };
        let everybody = ["LANG", "LC_ALL", "PATH"];
        assert_eq!(names(allowed(vars())), everybody);
        let rclone = [
            "AWS_SECRET_ACCESS_KEY",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AZURE_CLIENT_ID",
            "GOOGLE_APPLICATION_CREDENTIALS",
            "LANG",
            "LC_ALL",
            "PATH",
            "RCLONE_CONFIG_PASS",
        ];
        assert_eq!(names(allowed_for_rclone(vars())), rclone);
    }

    /// The environment as `NAME=value` lines, sorted.
    fn lines(vars: &[(&str, &str)]) -> Vec<String> {
        let vars = vars.iter().map(|(name, value)| (name.into(), value.into()));
        let mut lines: Vec<String> = allowed(vars)
            .into_iter()
            .map(|(name, value)| format!("{}={}", name.display(), value.display()))
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn only_the_allowed_pass() {
        let given = [
            ("HOME", "/var/lib/postgresql"),
            ("LANG", "de_DE.UTF-8"),
            ("LC_ALL", "C"),
            ("LC_MESSAGES", "fr_FR"),
            ("PATH", "/opt/bin:/bin"),
            ("PGBACKREST_REPO1_PATH", "/elsewhere"),
            ("PGHOST", "elsewhere"),
            ("PGDATA", "/data"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("RCLONE_CONF_BASE64", "secret"),
            ("RCLONE_CONFIG", "/secret"),
            ("LD_PRELOAD", "/tmp/evil.so"),
            ("TZ", ""),
            ("https_proxy", "http://proxy:3128"),
            ("NO_PROXY", "localhost"),
            ("homes", "x"),
        ];
        assert_eq!(
            lines(&given),
            [
                "HOME=/var/lib/postgresql",
                "LANG=C.UTF-8",
                "LC_ALL=C.UTF-8",
                "NO_PROXY=localhost",
                "PATH=/opt/bin:/bin",
                "TZ=",
                "https_proxy=http://proxy:3128",
            ]
        );
    }

    #[test]
    fn the_time_zone_is_the_callers_choice() {
        let vars = [("TZ", "America/New_York"), ("HOME", "/h")];
        let vars = || vars.into_iter().map(|(name, value)| (name.into(), value.into()));
        let zones = |zone| {
            let environment = allowed_in_zone(vars(), zone).into_iter();
            environment.filter(|(name, _)| name == "TZ").map(|(_, zone)| zone).collect::<Vec<_>>()
        };
        assert_eq!(zones("UTC"), ["UTC"]);
        assert_eq!(zones("UTC-02:00"), ["UTC-02:00"]);
    }

    #[test]
    fn a_path_is_always_there() {
        let default =
            ["LANG=C.UTF-8", "LC_ALL=C.UTF-8", "PATH=/usr/local/bin:/usr/bin:/bin"].as_slice();
        assert_eq!(lines(&[]), default);
        assert_eq!(lines(&[("PATH", "")]), default);
    }
}

//! Takes rclone's configuration from where a container may be given it.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use nrt_core::encoded;
use nrt_core::options::REMOTE_NAME;
use nrt_core::restore::Refusal;

use super::directories::User;
use super::variables::{Variables, bad};

/// The server's own directory, in the container and in no volume: what is given stays outside.
pub(super) const HOME: &str = "/var/lib/nrt-backup";
/// rclone's configuration as the server uses it.
pub(crate) const CONFIG: &str = "/var/lib/nrt-backup/rclone.conf";
/// The same as it was given: rclone changes its file, where a token is renewed.
const GIVEN: &str = "/var/lib/nrt-backup/rclone.conf.given";
/// Where a file may be mounted: ours, and where the root of an image would have it.
pub(super) const MOUNTED: [&str; 2] =
    ["/etc/nrt-backup/rclone.conf", "/root/.config/rclone/rclone.conf"];

/// rclone's configuration, if one is given.
///
/// # Errors
///
/// Why it cannot be used. No part of it is repeated.
pub(super) fn given(variables: &Variables) -> Result<Option<String>, Refusal> {
    let text = match variables.get(encoded::VARIABLE) {
        Some(value) => Some(encoded::decode(value)?),
        None => mounted(&MOUNTED)?,
    };
    let name = REMOTE_NAME.environment.unwrap_or_default();
    match (&text, variables.get(name)) {
        (Some(text), remote) => check(text, name, remote)?,
        (None, Some(remote)) => {
            return Err(bad(
                name,
                remote,
                "But no rclone configuration is given: set RCLONE_CONF_BASE64, or mount one.",
            ));
        }
        (None, None) => {}
    }
    Ok(text)
}

fn mounted(paths: &[&str]) -> Result<Option<String>, Refusal> {
    for path in paths {
        match fs::read_to_string(path) {
            Ok(text) => return Ok(Some(text)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            // Nobody but root may look into root's home, where nothing is then.
            Err(error)
                if error.kind() == ErrorKind::PermissionDenied && fs::metadata(path).is_err() => {}
            Err(error) => {
                return Err(Refusal::new(
                    format!("the mounted \"{path}\" cannot be read: {error}"),
                    "Mount a file, and let the container's user read it (it may be root's where \
                     the container is started as root).",
                ));
            }
        }
    }
    Ok(None)
}

/// Looks whether the remote that is named is there.
fn check(text: &str, variable: &str, remote: Option<&str>) -> Result<(), Refusal> {
    if text.contains("RCLONE_ENCRYPT_V0:") {
        return Err(Refusal::new(
            "rclone's configuration is encrypted with a password",
            "Give it as \"rclone config show\" prints it; it is kept with mode 0600.",
        ));
    }
    let section = |line: &str| Some(line.trim().strip_prefix('[')?.strip_suffix(']')?.to_string());
    let names: Vec<String> = text.lines().filter_map(section).collect();
    if names.is_empty() {
        return Err(Refusal::new(
            "rclone's configuration names no remote",
            "It begins with a remote's name in brackets, like [s3]: see rclone config.",
        ));
    }
    match remote.filter(|remote| !names.iter().any(|name| name == remote)) {
        Some(remote) => {
            let there = names.join(", ");
            Err(bad(variable, remote, &format!("rclone's configuration has: {there}.")))
        }
        None => Ok(()),
    }
}

/// Writes the configuration for the server, unless the same was given when rclone may have
/// renewed tokens in it.
pub(super) fn keep(text: Option<&str>, user: &User) -> Result<(), Refusal> {
    let Some(text) = text else {
        // What is not given any more must not stay behind.
        for path in [CONFIG, GIVEN] {
            let _ = fs::remove_file(path);
        }
        return Ok(());
    };
    let is_known = fs::read_to_string(GIVEN).is_ok_and(|given| given == text);
    if !(is_known && Path::new(CONFIG).exists()) {
        for path in [CONFIG, GIVEN] {
            user.write(Path::new(path), text)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remote_that_is_named_must_be_there() {
        let text = "# mine\n[s3]\ntype = s3\n\n [drive] \ntype = drive\n";
        assert_eq!(check(text, "R", None), Ok(()));
        assert_eq!(check(text, "R", Some("drive")), Ok(()));
        let refusal = check(text, "R", Some("azure")).expect_err("there is none");
        assert_eq!(refusal.message, "R is \"azure\"");
        assert!(refusal.hint.contains("s3, drive"), "{refusal:?}");
        assert!(check("type = s3\n", "R", None).is_err());
        assert!(check("# Encrypted\nRCLONE_ENCRYPT_V0:\nabc\n", "R", None).is_err());
    }

    #[test]
    fn the_first_file_that_is_mounted_is_taken() {
        let root = tempfile::tempdir().expect("a directory");
        let paths = ["a", "b"].map(|name| root.path().join(name).to_string_lossy().into_owned());
        let paths = [paths[0].as_str(), paths[1].as_str()];
        assert_eq!(mounted(&paths), Ok(None));
        fs::write(paths[1], "[b]\n").expect("written");
        assert_eq!(mounted(&paths), Ok(Some("[b]\n".to_string())));
        // A bind mount whose source is not there is made as a directory.
        fs::create_dir(paths[0]).expect("made");
        assert!(mounted(&paths).is_err());
    }
}

//! Takes rclone's configuration from where a container may be given it.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;

use nrt_core::encoded;
use nrt_core::layout;
use nrt_core::options::REMOTE_NAME;
use nrt_core::restore::Refusal;

use super::directories::User;
use super::variables::{Variables, bad};
use nrt_remote::Remotes;

/// The server's own directory, in the container and in no volume: what is given stays outside.
pub(super) const HOME: &str = "/var/lib/nrt-backup";
/// rclone's configuration as the server uses it.
pub(crate) const CONFIG: &str = layout::CONTAINER_RCLONE_CONFIG;
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

/// Looks whether the remote that is named is there. rclone itself is asked.
fn check(text: &str, variable: &str, remote: Option<&str>) -> Result<(), Refusal> {
    let file = tempfile::NamedTempFile::new().and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        Ok(file)
    });
    let file = file.map_err(|error| {
        Refusal::new(
            format!("rclone's configuration cannot be written for rclone to read: {error}"),
            "Let the container write to its directory for temporary files (TMPDIR).",
        )
    })?;
    let path = file.path().to_string_lossy().into_owned();
    let remotes = Remotes::read("rclone", &path).map_err(|failure| {
        let message = failure.message.replace(&format!("\"{path}\""), "rclone's configuration");
        Refusal::new(message, failure.hint)
    })?;
    if remotes.first().is_none() {
        return Err(Refusal::new(
            "rclone's configuration names no remote",
            "It begins with a remote's name in brackets, like [s3]: see rclone config.",
        ));
    }
    match remote.filter(|remote| !remotes.names().any(|name| name == *remote)) {
        Some(remote) => {
            let there = remotes.names().collect::<Vec<_>>().join(", ");
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
        assert!(refusal.hint.contains("drive, s3"), "{refusal:?}");
        assert_eq!(check("\u{feff}[s3]\r\ntype = s3\r\n", "R", Some("s3")), Ok(()));
        assert!(check("\n", "R", None).is_err_and(|it| it.message.contains("names no remote")));
        let refusal = check("# x\nRCLONE_ENCRYPT_V0:\nabc\n", "R", None).expect_err("encrypted");
        assert_eq!(refusal.message, "rclone's configuration is encrypted with a password");
        assert!(refusal.hint.contains("RCLONE_CONFIG_PASS"), "{refusal:?}");
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

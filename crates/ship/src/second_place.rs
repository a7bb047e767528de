//! Judges whether a remote on this machine is a second place for what it is to keep safe.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nrt_core::inventory::Failure;
use nrt_core::offsite::Plan;

use nrt_remote::Ground;

/// Judges where `root`, a place on a remote, lies.
///
/// `Ok(Some(_))` says that one file system holds the cluster, its repository and the remote:
/// shipping works, and protects from no loss of a disk.
///
/// # Errors
///
/// The place is inside the data directory or the repository. What is shipped there would be a part
/// of what is backed up, and is deleted with it.
pub(super) fn judge(
    plan: &Plan,
    repository: &Path,
    ground: &Ground,
    root: &str,
) -> Result<Option<Failure>, Failure> {
    let data = Path::new(&plan.data_directory);
    let hint = "Choose a remote on another machine, or nrt_backup.remote_path on another disk.";
    for place in &ground.local {
        let place = real(Path::new(place));
        for (what, holder) in [("the data directory", data), ("the repository", repository)] {
            if place.starts_with(real(holder)) {
                return Err(Failure {
                    message: format!(
                        "\"{root}\" is the directory \"{}\" inside {what}: this is no second place, \
                         and nothing is shipped there",
                        place.display()
                    ),
                    hint: hint.to_string(),
                });
            }
        }
    }
    let (here, there) = (device(data), device(repository));
    let is_same = !ground.elsewhere
        && !ground.local.is_empty()
        && here.is_some()
        && here == there
        && ground.local.iter().all(|place| device(Path::new(place)) == here);
    Ok(is_same.then(|| Failure {
        message: format!(
            "\"{root}\" is on the same file system as the data directory and the repository: this \
             is no second place, and is lost together with them"
        ),
        hint: hint.to_string(),
    }))
}

/// The path without links, also of a directory that is still to be made.
fn real(path: &Path) -> PathBuf {
    let found = path.ancestors().find_map(|it| Some((it, fs::canonicalize(it).ok()?)));
    found.map_or_else(
        || path.to_path_buf(),
        |(existing, real)| match path.strip_prefix(existing) {
            Ok(rest) if !rest.as_os_str().is_empty() => real.join(rest),
            _ => real,
        },
    )
}

/// The file system of a directory, or of the one in which it is to be made.
fn device(path: &Path) -> Option<u64> {
    path.ancestors().find_map(|it| fs::metadata(it).ok()).map(|it| it.dev())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_file_system_is_a_second_place() {
        let root = tempfile::tempdir().expect("a directory");
        let plan = crate::tests::plan(root.path());
        let repository = root.path().join("repository");
        for directory in ["data", "repository", "mnt"] {
            fs::create_dir(root.path().join(directory)).expect("made");
        }
        std::os::unix::fs::symlink(root.path().join("data"), root.path().join("link"))
            .expect("made");
        let judged = |places: &[&str], elsewhere| {
            let local = places.iter().map(|it| root.path().join(it).to_string_lossy().into_owned());
            let ground = Ground { is_encrypted: false, local: local.collect(), elsewhere };
            judge(&plan, &repository, &ground, "nas:pg/main")
        };
        for (inside, what) in [
            ("data/nrt_backup/mnt/nas", "inside the data directory"),
            ("link/x", "inside the data directory"),
            ("repository", "inside the repository"),
        ] {
            let failure = judged(&["mnt", inside], true).expect_err(inside);
            assert!(failure.message.contains(what), "{failure:?}");
        }
        let same = judged(&["mnt/pg/main"], false).expect("outside").expect("the same disk");
        assert!(same.message.contains("this is no second place"), "{same:?}");
        // A name that only begins like the data directory's.
        assert!(judged(&["database"], false).is_ok_and(|it| it.is_some()));
        // A union with a remote that is elsewhere.
        assert_eq!(judged(&["mnt"], true), Ok(None));
        assert_eq!(judged(&[], false), Ok(None));
        let ground =
            Ground { is_encrypted: false, local: vec!["/proc/x".to_string()], elsewhere: false };
        assert_eq!(judge(&plan, &repository, &ground, "proc:x"), Ok(None));
    }
}

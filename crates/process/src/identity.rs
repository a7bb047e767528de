//! Tells a data directory from every copy of it.
//!
//! Two files of the state directory name the instance:
//!
//! | file | copies have it | says |
//! | --- | --- | --- |
//! | [`CARRIED`] | yes | the instance that wrote the state directory |
//! | [`BOUND`] | no: pg_basebackup leaves out names that begin with `pgsql_tmp`, pg_rewind removes them | the same instance, its machine, and the directory's inode and birth time |
//!
//! The state directory belongs to this instance if both files name it, and the second one names
//! this machine and this directory. A copy of the files by any other program has another inode or
//! birth time. A copy of the whole disk has the same: its heartbeats tell the two apart
//! (`nrt_core::offsite::owner`).
//!
//! A directory of a version that knew only [`CARRIED`] keeps its name if the inode is the same.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};

use crate::files::write_atomically;

/// The file that travels with every copy.
pub const CARRIED: &str = "instance.json";
/// The file that pg_basebackup and pg_rewind do not copy.
pub const BOUND: &str = "pgsql_tmp_instance.json";

/// The machine's id, as systemd and D-Bus keep it.
const MACHINE_ID: &str = "/etc/machine-id";
/// The id of the running kernel: another one after each start of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The content of [`CARRIED`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Carried {
    /// The instance.
    id: String,
    /// The inode of the state directory: all that earlier versions knew an instance by.
    directory: u64,
    /// Whether [`BOUND`] was written, too. Earlier versions did not.
    #[serde(default)]
    is_bound: bool,
}

/// The content of [`BOUND`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Bound {
    /// The instance.
    id: String,
    /// The name that it had before, which [`CARRIED`] still has when a renewal was interrupted.
    #[serde(default)]
    former: Option<String>,
    /// Where it lives.
    place: Place,
}

/// What tells one place from another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    /// SHA-1 of the machine's id. A container may have none.
    machine: Option<String>,
    /// The state directory's inode.
    directory: u64,
    /// When the state directory was made, in nanoseconds since 1970. Some file systems do not know.
    made: Option<u64>,
}

impl Place {
    fn of(state: &Path) -> io::Result<Place> {
        let found = fs::metadata(state)?;
        let made = found.created().ok();
        let made = made.and_then(|it| it.duration_since(SystemTime::UNIX_EPOCH).ok());
        Ok(Place {
            machine: machine(),
            directory: found.ino(),
            made: made.and_then(|it| u64::try_from(it.as_nanos()).ok()),
        })
    }

    /// Whether both are the same place. What one of them does not know proves nothing.
    fn is(&self, other: &Place) -> bool {
        fn agrees<T: PartialEq>(one: Option<&T>, other: Option<&T>) -> bool {
            one.zip(other).is_none_or(|(one, other)| one == other)
        }
        self.directory == other.directory
            && agrees(self.machine.as_ref(), other.machine.as_ref())
            && agrees(self.made.as_ref(), other.made.as_ref())
    }
}

/// The machine's id as nobody can read it back. An image of a machine has none before its first
/// start, and says "uninitialized" then.
fn machine() -> Option<String> {
    let text = fs::read_to_string(MACHINE_ID).ok()?;
    let id = text.trim();
    let is_id = id.len() == 32 && id.bytes().all(|it| it.is_ascii_hexdigit());
    is_id.then(|| {
        let hash = Sha1::new_with_prefix(b"nrt_backup instance ").chain_update(id).finalize();
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    })
}

/// Whose a state directory is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Whose {
    /// This instance's.
    Ours(String),
    /// This instance's, as an earlier version named it.
    Earlier(String),
    /// Another instance's: it was copied.
    Another,
    /// No instance has named it yet.
    Unnamed,
}

fn judge(carried: Option<&Carried>, bound: Option<&Bound>, here: &Place) -> Whose {
    match (carried, bound) {
        (None, None) => Whose::Unnamed,
        (Some(carried), Some(bound)) => {
            let is_named = carried.id == bound.id || bound.former.as_ref() == Some(&carried.id);
            if is_named && bound.place.is(here) {
                Whose::Ours(bound.id.clone())
            } else {
                Whose::Another
            }
        }
        (Some(carried), None) if !carried.is_bound && carried.directory == here.directory => {
            Whose::Earlier(carried.id.clone())
        }
        // A name was being given when the server ended.
        (None, Some(bound)) if bound.former.is_none() && bound.place.is(here) => Whose::Unnamed,
        _ => Whose::Another,
    }
}

fn read<T: DeserializeOwned>(file: &Path) -> io::Result<Option<T>> {
    match fs::read(file) {
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn whose(state: &Path) -> io::Result<(Whose, Place)> {
    let here = Place::of(state)?;
    let carried = read(&state.join(CARRIED))?;
    let bound = read(&state.join(BOUND))?;
    Ok((judge(carried.as_ref(), bound.as_ref(), &here), here))
}

/// Writes both files. The one that copies do not have goes first: until the other one names the
/// same instance, the directory belongs to `former`, or to nobody.
fn name(state: &Path, id: &str, former: Option<String>, place: Place) -> io::Result<()> {
    let directory = place.directory;
    let bound = Bound { id: id.to_string(), former, place };
    write_atomically(&state.join(BOUND), &serde_json::to_vec(&bound)?)?;
    let carried = Carried { id: id.to_string(), directory, is_bound: true };
    write_atomically(&state.join(CARRIED), &serde_json::to_vec(&carried)?)
}

/// The instance whose state directory this is; none if it is another's, or nobody has named it.
///
/// # Errors
///
/// What the file system says.
pub fn own(state: &Path) -> io::Result<Option<String>> {
    Ok(match whose(state)?.0 {
        Whose::Ours(id) => Some(id),
        _ => None,
    })
}

/// An instance, and whether it has found another one's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// The instance.
    pub id: String,
    /// The state directory was another instance's.
    pub was_another: bool,
}

/// Makes a state directory this instance's. `forget` removes what is another instance's there: it is
/// called before the directory has a new name, so that whatever interrupts it, it is called again.
///
/// # Errors
///
/// What the file system says, or `forget`.
pub fn settle(state: &Path, forget: impl FnOnce() -> io::Result<()>) -> io::Result<Settled> {
    let (whose, here) = whose(state)?;
    let was_another = whose == Whose::Another;
    let id = match whose {
        Whose::Ours(id) => return Ok(Settled { id, was_another }),
        Whose::Earlier(id) => id,
        Whose::Unnamed => random()?,
        Whose::Another => {
            forget()?;
            random()?
        }
    };
    name(state, &id, None, here)?;
    Ok(Settled { id, was_another })
}

/// Gives this instance another name, where a copy of the whole machine has the same. What is in the
/// state directory stays.
///
/// # Errors
///
/// What the file system says.
pub fn renew(state: &Path) -> io::Result<String> {
    let (whose, here) = whose(state)?;
    let former = match whose {
        Whose::Ours(id) => Some(id),
        _ => None,
    };
    let id = random()?;
    name(state, &id, former, here)?;
    Ok(id)
}

/// Names the run of the machine, and the file system that holds the state directory in it. While
/// both stay the same, the files were not put back to an earlier state by a copy of the disk that
/// was started elsewhere.
///
/// # Errors
///
/// What the file system says.
pub fn run_of_machine(state: &Path) -> io::Result<String> {
    let boot = fs::read_to_string(BOOT_ID)?;
    Ok(format!("{}/{}", boot.trim(), fs::metadata(state)?.dev()))
}

/// A name that nobody else has, or guesses.
///
/// # Errors
///
/// What the kernel says.
pub fn random() -> io::Result<String> {
    let mut bytes = [0_u8; 16];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(machine: Option<&str>, directory: u64, made: Option<u64>) -> Place {
        Place { machine: machine.map(str::to_string), directory, made }
    }

    fn carried(id: &str, directory: u64, is_bound: bool) -> Carried {
        Carried { id: id.to_string(), directory, is_bound }
    }

    #[test]
    fn only_the_directory_itself_is_the_instances() {
        let here = place(Some("m"), 7, Some(1));
        let bound = |id: &str, former: Option<&str>, place: Place| Bound {
            id: id.to_string(),
            former: former.map(str::to_string),
            place,
        };
        let ours = |id: &str| Whose::Ours(id.to_string());
        let judged = |carried: Option<Carried>, bound: Option<Bound>| {
            judge(carried.as_ref(), bound.as_ref(), &here)
        };
        let a = carried("a", 7, true);
        assert_eq!(judged(None, None), Whose::Unnamed);
        assert_eq!(judged(Some(a.clone()), Some(bound("a", None, here.clone()))), ours("a"));
        // pg_basebackup, and pg_rewind: the same inode on another fresh disk, too.
        assert_eq!(judged(Some(a.clone()), None), Whose::Another);
        // pg_rewind that leaves the target's own file.
        assert_eq!(
            judged(Some(carried("b", 9, true)), Some(bound("a", None, here.clone()))),
            Whose::Another
        );
        // A copy of all files: to another directory, machine, or disk.
        for other in [
            place(Some("m"), 8, Some(1)),
            place(Some("n"), 7, Some(1)),
            place(Some("m"), 7, Some(2)),
        ] {
            assert_eq!(judged(Some(a.clone()), Some(bound("a", None, other))), Whose::Another);
        }
        // What is not known proves nothing.
        for known in [place(None, 7, Some(1)), place(Some("m"), 7, None), place(None, 7, None)] {
            assert_eq!(judged(Some(a.clone()), Some(bound("a", None, known))), ours("a"));
        }
        // The first start with this version, and a copy of such a directory.
        assert_eq!(judged(Some(carried("a", 7, false)), None), Whose::Earlier("a".to_string()));
        assert_eq!(judged(Some(carried("a", 8, false)), None), Whose::Another);
        // Renewals and first names that were interrupted.
        let renewed = bound("b", Some("a"), here.clone());
        assert_eq!(judged(Some(a), Some(renewed.clone())), ours("b"));
        assert_eq!(judged(None, Some(renewed)), Whose::Another);
        assert_eq!(judged(None, Some(bound("a", None, here.clone()))), Whose::Unnamed);
    }

    #[test]
    fn a_copy_forgets_and_gets_a_name_of_its_own() {
        let root = tempfile::tempdir().expect("a directory");
        let [one, other] = ["one", "other"].map(|name| root.path().join(name));
        for state in [&one, &other] {
            fs::create_dir(state).expect("made");
        }
        let never = || -> io::Result<()> { panic!("nothing is another's") };
        let first = settle(&one, never).expect("named");
        assert!(!first.was_another);
        assert_eq!(own(&one).expect("read"), Some(first.id.clone()));
        assert_eq!(settle(&one, never).expect("named"), first);
        // As pg_basebackup does it, and as cp does.
        for names in [&[CARRIED][..], &[CARRIED, BOUND]] {
            for name in names {
                fs::copy(one.join(name), other.join(name)).expect("copied");
            }
            assert_eq!(own(&other).expect("read"), None);
            let mut forgotten = false;
            // What cannot be forgotten now is forgotten the next time.
            let refused = settle(&other, || Err(io::Error::other("not now")));
            assert!(refused.is_err());
            let settled = settle(&other, || {
                forgotten = true;
                Ok(())
            });
            let settled = settled.expect("named");
            assert!(forgotten && settled.was_another && settled.id != first.id);
            assert_eq!(own(&other).expect("read"), Some(settled.id));
        }
        let renewed = renew(&one).expect("renewed");
        assert_ne!(renewed, first.id);
        assert_eq!(settle(&one, never).expect("named").id, renewed);
    }

    #[test]
    fn names_differ() {
        let (one, other) = (random().expect("random"), random().expect("random"));
        assert_eq!(one.len(), 32);
        assert_ne!(one, other);
    }

    #[test]
    fn the_first_start_with_this_version_keeps_the_name() {
        let state = tempfile::tempdir().expect("a directory");
        let directory = fs::metadata(state.path()).expect("there").ino();
        let text = format!("{{\"id\":\"abc\",\"directory\":{directory}}}");
        fs::write(state.path().join(CARRIED), text).expect("written");
        let settled = settle(state.path(), || panic!("it is ours")).expect("named");
        assert_eq!(settled, Settled { id: "abc".to_string(), was_another: false });
        assert_eq!(own(state.path()).expect("read").as_deref(), Some("abc"));
    }
}

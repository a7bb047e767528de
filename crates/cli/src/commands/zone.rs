//! Finds the time zone in which somebody at this machine writes a time.
//!
//! As the C library does it: `TZ`, else what `/etc/localtime` is. It reads no `/etc/timezone`, but
//! other programs do: where the two differ, nobody knows which one is meant.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use chrono::{Offset, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;

/// The machine's own zone: a file, whose name is known if it is a link.
const LOCALTIME: &str = "/etc/localtime";
/// Links that are followed.
const LINKS: usize = 8;

/// The time zone of the environment, for what is printed: UTC, where it is not known.
pub(crate) fn zone() -> Tz {
    given().unwrap_or(Tz::UTC)
}

/// The time zone of the environment, for what is read: `TZ`, or the machine's. `Err` says why it is
/// not known.
pub(crate) fn given() -> Result<Tz, String> {
    let variable = env::var_os("TZ").map(|it| it.to_string_lossy().into_owned());
    of(variable.as_deref(), Path::new("/"))
}

/// The same with this `TZ`, where the machine's files are below `root`.
fn of(variable: Option<&str>, root: &Path) -> Result<Tz, String> {
    let Some(variable) = variable else { return of_machine(root) };
    let name = variable.strip_prefix(':').unwrap_or(variable);
    if name.is_empty() {
        return Ok(Tz::UTC);
    }
    if name == LOCALTIME {
        return of_machine(root);
    }
    let found = if name.starts_with('/') { linked(root, name) } else { name.parse().ok() };
    found.ok_or_else(|| format!("TZ is {variable:?}, which is no name of a time zone"))
}

fn of_machine(root: &Path) -> Result<Tz, String> {
    let text = fs::read_to_string(within(root, Path::new("/etc/timezone"))).unwrap_or_default();
    let said = text.lines().map(str::trim).find(|line| !line.is_empty());
    let (found, words) = if let Some(zone) = linked(root, LOCALTIME) {
        if zone.name().ends_with("UTC") && !is_utc(root) {
            return Err(format!("{LOCALTIME} leads to {zone}, but holds another zone"));
        }
        (zone, format!("{LOCALTIME} leads to {zone}"))
    } else if fs::symlink_metadata(within(root, Path::new(LOCALTIME))).is_err() {
        (Tz::UTC, format!("there is no {LOCALTIME}, which means UTC"))
    } else {
        return copied(root, said);
    };
    match said {
        Some(said) if !is_same(found, said) => {
            Err(format!("{words}, but /etc/timezone says {said}"))
        }
        _ => Ok(found),
    }
}

/// The zone that a path is or leads to, by its name in the database.
fn linked(root: &Path, path: &str) -> Option<Tz> {
    let mut path = PathBuf::from(path);
    for _ in 0..LINKS {
        let known = path.to_str()?.split_once("zoneinfo/").and_then(|(_, it)| it.parse().ok());
        if known.is_some() {
            return known;
        }
        let link = fs::read_link(within(root, &path)).ok()?;
        path = path.parent()?.join(link);
    }
    None
}

/// The zone of a file that is no link: it tells no name, but may be a copy of the one that was said.
fn copied(root: &Path, said: Option<&str>) -> Result<Tz, String> {
    let words = format!("{LOCALTIME} is no link that names it");
    let Some(said) = said else { return Err(words) };
    let content = fs::read(within(root, Path::new(LOCALTIME))).ok();
    match said.parse() {
        Ok(zone) if content.is_some() && content == entry(root, said) => Ok(zone),
        _ => Err(format!("{words}, and not known to be {said}, which /etc/timezone says")),
    }
}

/// Whether a name means the same zone: UTC is Etc/UTC, too. The files do not tell: where a
/// container has the machine's `/etc/localtime` mounted, that lies over what the link leads to.
fn is_same(zone: Tz, name: &str) -> bool {
    let Ok(other) = name.parse::<Tz>() else { return false };
    let now = Utc::now();
    // Over two years, each month.
    let mut instants = (-12..=12).map(|month| now + TimeDelta::days(30 * month));
    instants.all(|at| {
        zone.offset_from_utc_datetime(&at.naive_utc()).fix()
            == other.offset_from_utc_datetime(&at.naive_utc()).fix()
    })
}

/// Whether the machine's own zone is UTC, as the end of the file says.
fn is_utc(root: &Path) -> bool {
    let content = fs::read(within(root, Path::new(LOCALTIME))).unwrap_or_default();
    // Where there is no database, the link alone counts.
    content.is_empty() || content.ends_with(b"\nUTC0\n")
}

/// What the database holds of a zone.
fn entry(root: &Path, name: &str) -> Option<Vec<u8>> {
    fs::read(within(root, &Path::new("/usr/share/zoneinfo").join(name))).ok()
}

fn within(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const BERLIN: &str = "TZif2\nCET-1CEST,M3.5.0,M10.5.0/3\n";

    /// A machine with a database of zones.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Machine {
            let machine = Machine(tempfile::tempdir().expect("a directory"));
            for (name, content) in [
                ("UTC", "TZif2\nUTC0\n"),
                ("Etc/UTC", "TZif2\nUTC0\n"),
                ("Europe/Berlin", BERLIN),
                ("Asia/Shanghai", "TZif2\nCST-8\n"),
            ] {
                machine.file(&format!("usr/share/zoneinfo/{name}"), content);
            }
            machine.file("etc/hostname", "here");
            machine
        }

        fn file(&self, path: &str, content: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().expect("it is below the root")).expect("made");
            fs::write(path, content).expect("written");
        }

        fn timezone(self, content: &str) -> Machine {
            self.file("etc/timezone", content);
            self
        }

        fn localtime(self, content: &str) -> Machine {
            self.file("etc/localtime", content);
            self
        }

        fn link(self, path: &str, target: &str) -> Machine {
            symlink(target, self.0.path().join(path)).expect("linked");
            self
        }

        fn zone(&self, variable: Option<&str>) -> Result<Tz, String> {
            of(variable, self.0.path())
        }
    }

    fn berlin() -> Machine {
        Machine::new().link("etc/localtime", "/usr/share/zoneinfo/Europe/Berlin")
    }

    #[test]
    fn the_variable_wins_over_the_machine() {
        let machine = berlin();
        for (variable, zone) in [
            ("Asia/Shanghai", Tz::Asia__Shanghai),
            (":Asia/Shanghai", Tz::Asia__Shanghai),
            ("/usr/share/zoneinfo/Asia/Shanghai", Tz::Asia__Shanghai),
            (":/etc/localtime", Tz::Europe__Berlin),
            ("UTC", Tz::UTC),
            ("", Tz::UTC),
        ] {
            assert_eq!(machine.zone(Some(variable)), Ok(zone), "{variable:?}");
        }
        for variable in ["CET-1CEST", "Europe/Berln", "/etc/hostname", "<+08>-8", "/nowhere"] {
            let words = machine.zone(Some(variable)).expect_err(variable);
            assert!(words.contains(&format!("{variable:?}")), "{words}");
        }
    }

    #[test]
    fn a_link_names_the_zone_of_the_machine() {
        assert_eq!(berlin().zone(None), Ok(Tz::Europe__Berlin));
        assert_eq!(berlin().timezone("Europe/Berlin\n").zone(None), Ok(Tz::Europe__Berlin));
        let relative = Machine::new().link("etc/localtime", "../usr/share/zoneinfo/Asia/Shanghai");
        assert_eq!(relative.zone(None), Ok(Tz::Asia__Shanghai));
        let twice = Machine::new()
            .link("etc/localtime", "zone")
            .link("etc/zone", "/usr/share/zoneinfo/Asia/Shanghai");
        assert_eq!(twice.zone(None), Ok(Tz::Asia__Shanghai));
        assert_eq!(twice.zone(Some(":/etc/zone")), Ok(Tz::Asia__Shanghai));
        let around = Machine::new().link("etc/localtime", "localtime");
        assert!(around.zone(None).is_err());
    }

    #[test]
    fn what_two_files_say_differently_is_not_known() {
        let words = berlin().timezone("Etc/UTC\n").zone(None).expect_err("they differ");
        assert!(words.contains("Europe/Berlin") && words.contains("Etc/UTC"), "{words}");
        let words = Machine::new().timezone("Europe/Berlin\n").zone(None).expect_err("no link");
        assert!(words.contains("Europe/Berlin") && words.contains("UTC"), "{words}");
        // A container has the machine's /etc/localtime mounted where its own link leads to.
        let mounted = || {
            let machine = Machine::new().link("etc/localtime", "../usr/share/zoneinfo/Etc/UTC");
            assert_eq!(machine.zone(None), Ok(Tz::Etc__UTC));
            machine.file("usr/share/zoneinfo/Etc/UTC", BERLIN);
            machine
        };
        for machine in [mounted(), mounted().timezone("Europe/Berlin\n")] {
            let words = machine.zone(None).expect_err("it is another one");
            assert!(words.contains("Etc/UTC"), "{words}");
        }
        // Names of the same.
        let utc = Machine::new().link("etc/localtime", "/usr/share/zoneinfo/UTC");
        assert_eq!(utc.timezone("Etc/UTC\n").zone(None), Ok(Tz::UTC));
    }

    #[test]
    fn a_file_that_is_no_link_is_compared() {
        let copied = || Machine::new().localtime(BERLIN);
        assert_eq!(copied().timezone("Europe/Berlin\n").zone(None), Ok(Tz::Europe__Berlin));
        let words = copied().timezone("Etc/UTC\n").zone(None).expect_err("it is another one");
        assert!(words.contains("/etc/localtime") && words.contains("Etc/UTC"), "{words}");
        assert!(copied().zone(None).is_err());
        assert!(Machine::new().localtime("other").timezone("Mars/North\n").zone(None).is_err());
    }

    #[test]
    fn nothing_at_all_is_utc() {
        assert_eq!(Machine::new().zone(None), Ok(Tz::UTC));
        assert_eq!(Machine::new().timezone("Etc/UTC\n").zone(None), Ok(Tz::UTC));
    }
}

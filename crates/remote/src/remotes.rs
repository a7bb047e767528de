//! Asks rclone what its configuration holds: the remotes, their options, and what each rests on.
//!
//! rclone alone reads its file rightly: it may begin with a byte order mark, be encrypted, or name
//! a remote twice. `rclone config dump` prints all of it as JSON, which is kept in memory only.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use nrt_core::inventory::Failure;
use nrt_process::{allowed_for_rclone, capture};

use super::rclone::{missing, on_path};
use super::words::Secrets;

/// How long rclone may take to print its configuration. A password command may ask somebody.
const LIMIT: Duration = Duration::from_secs(60);
/// More than the longest configuration.
const LONGEST: usize = 16 << 20;
/// How many remotes may rest on one another.
const DEEPEST: usize = 16;
/// What an encrypted configuration holds.
const ENCRYPTED: &[u8] = b"RCLONE_ENCRYPT_V0:";
/// The backend of directories of this machine.
const LOCAL: &str = "local";
/// Backends that tell a path with a slash at its beginning from the same path without one.
const WITH_RELATIVE_PATHS: [&str; 2] = [LOCAL, "sftp"];

type Options = BTreeMap<String, String>;

/// The remotes of a configuration, with their options.
pub struct Remotes {
    /// By name.
    options: BTreeMap<String, Options>,
    /// The first one in the file.
    first: Option<String>,
}

/// What a place on a remote rests on.
#[derive(Debug, PartialEq, Eq)]
pub struct Ground {
    /// Whether rclone encrypts all that is written there.
    pub is_encrypted: bool,
    /// The directories of this machine where it lies, as far as it lies on this machine.
    pub local: Vec<String>,
    /// Whether any of it lies elsewhere.
    pub elsewhere: bool,
}

impl Ground {
    const ELSEWHERE: Ground = Ground { is_encrypted: false, local: Vec::new(), elsewhere: true };
}

impl Remotes {
    /// Asks the program `rclone` what the file `config` holds.
    ///
    /// # Errors
    ///
    /// The file cannot be read, here or by rclone. Nothing of its content is repeated.
    pub fn read(rclone: &str, config: &str) -> Result<Remotes, Failure> {
        let content = fs::read(config).map_err(|error| Failure {
            message: format!("\"{config}\" cannot be read: {error}"),
            hint: "See that the server's user may read rclone's configuration \
                   (nrt_backup.rclone_config)."
                .to_string(),
        })?;
        let dump = ask(rclone, config, &content, "dump")?;
        let options = serde_json::from_slice(&dump).map_err(|error| Failure {
            message: format!("what rclone prints of \"{config}\" cannot be read: {error}"),
            hint: format!("Try \"rclone config dump --config {config}\" as the server's user."),
        })?;
        let mut remotes = Remotes { options, first: None };
        remotes.first = match remotes.options.len() {
            0 | 1 => remotes.options.keys().next().cloned(),
            // JSON has no order.
            _ => {
                let shown = ask(rclone, config, &content, "show")?;
                let shown = String::from_utf8_lossy(&shown).into_owned();
                let name =
                    |line: &str| Some(line.strip_prefix('[')?.strip_suffix(']')?.to_string());
                shown.lines().filter_map(name).find(|it| remotes.options.contains_key(it))
            }
        };
        Ok(remotes)
    }

    /// The names of the remotes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.options.keys().map(String::as_str)
    }

    /// The first remote of the file.
    pub fn first(&self) -> Option<&str> {
        self.first.as_deref()
    }

    /// The values that nobody may read.
    pub fn secrets(&self) -> Secrets {
        let options = self.options.values().flatten();
        Secrets::of(options.map(|(name, value)| (name.as_str(), value.as_str())))
    }

    /// The OAuth tokens of the remotes, by the remotes' names.
    pub fn tokens(&self) -> BTreeMap<String, String> {
        let token = |(name, options): (&String, &Options)| {
            Some((name.clone(), options.get("token").filter(|it| !it.is_empty())?.clone()))
        };
        self.options.iter().filter_map(token).collect()
    }

    /// What the place `path` on the remote `name` rests on.
    ///
    /// # Errors
    ///
    /// A path on this machine that is relative: rclone would take it as one below its working
    /// directory, which is ours.
    pub fn ground(&self, name: &str, path: &str) -> Result<Ground, Failure> {
        self.ground_of(name, path, DEEPEST)
    }

    /// Whether the remote tells "/path" from "path".
    pub fn has_relative_paths(&self, name: &str) -> bool {
        WITH_RELATIVE_PATHS.contains(&self.kind(name))
    }

    fn kind(&self, name: &str) -> &str {
        self.option(name, "type")
    }

    fn option(&self, name: &str, option: &str) -> &str {
        let value = self.options.get(name).and_then(|options| options.get(option));
        value.map_or("", String::as_str)
    }

    fn ground_of(&self, name: &str, path: &str, depth: usize) -> Result<Ground, Failure> {
        // rclone itself refuses remotes that rest on each other.
        let Some(depth) = depth.checked_sub(1) else { return Ok(Ground::ELSEWHERE) };
        let below = |base: &str| self.ground_of_text(base, path, depth);
        match self.kind(name) {
            LOCAL => directory(name, path),
            "crypt" => Ok(Ground { is_encrypted: true, ..below(self.option(name, "remote"))? }),
            "alias" | "cache" | "chunker" | "compress" | "hasher" => {
                below(self.option(name, "remote"))
            }
            "union" | "combine" => {
                let upstreams = words(self.option(name, "upstreams"));
                let mut ground = Ground {
                    is_encrypted: !upstreams.is_empty(),
                    local: Vec::new(),
                    elsewhere: upstreams.is_empty(),
                };
                for upstream in &upstreams {
                    let base = match self.kind(name) {
                        // How a union writes there.
                        "union" => [":ro", ":nc", ":writeback"]
                            .iter()
                            .find_map(|suffix| upstream.strip_suffix(suffix))
                            .unwrap_or(upstream),
                        _ => upstream.split_once('=').map_or(upstream.as_str(), |(_, base)| base),
                    };
                    let one = below(base)?;
                    ground.is_encrypted &= one.is_encrypted;
                    ground.local.extend(one.local);
                    ground.elsewhere |= one.elsewhere;
                }
                Ok(ground)
            }
            _ => Ok(Ground::ELSEWHERE),
        }
    }

    /// The same for a place as rclone writes it, and `path` below that.
    fn ground_of_text(&self, base: &str, path: &str, depth: usize) -> Result<Ground, Failure> {
        let joined = |base: &str| match (base.trim_end_matches('/'), path.trim_matches('/')) {
            ("", below) if base.starts_with('/') => format!("/{below}"),
            ("", below) => below.to_string(),
            (base, "") => base.to_string(),
            (base, below) => format!("{base}/{below}"),
        };
        match base.split_once(':') {
            // A backend without a name, with its options behind commas.
            Some(("", rest)) => match rest.split_once(':') {
                Some((kind, below)) if kind.split(',').next() == Some(LOCAL) => {
                    directory(LOCAL, &joined(below))
                }
                _ => Ok(Ground::ELSEWHERE),
            },
            Some((name, below)) if !name.contains('/') => {
                let name = name.split(',').next().unwrap_or(name);
                self.ground_of(name, &joined(below), depth)
            }
            _ => directory(LOCAL, &joined(base)),
        }
    }
}

/// A directory of this machine as a place.
fn directory(name: &str, path: &str) -> Result<Ground, Failure> {
    if path.starts_with('/') {
        let local = vec![path.to_string()];
        return Ok(Ground { is_encrypted: false, local, elsewhere: false });
    }
    Err(Failure {
        message: format!(
            "the path \"{path}\" on \"{name}\" is relative, and directories of this machine need an \
             absolute one"
        ),
        hint: "Write the path with a slash at its beginning: nrt_backup.remote_path = \
               '/mnt/…', --remote-path or --remote, or the remote that rclone's configuration names."
            .to_string(),
    })
}

/// The words of a list as rclone writes it: with quotes around those that hold blanks.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quoted) = (String::new(), false);
    for c in text.chars().chain([' ']) {
        match c {
            '"' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => {
                words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
            }
            c => word.push(c),
        }
    }
    words
}

/// Runs `rclone config` with a subcommand that prints the configuration.
fn ask(rclone: &str, config: &str, content: &[u8], what: &str) -> Result<Vec<u8>, Failure> {
    let environment = allowed_for_rclone(std::env::vars_os());
    let program: PathBuf = on_path(rclone, &environment);
    let args = ["config", what, "--config", config, "--ask-password=false"].map(OsString::from);
    let captured = capture(&program, &args, &environment, LIMIT, LONGEST)
        .map_err(|error| missing(rclone, &error))?;
    if captured.exit == Some(0) {
        return Ok(captured.stdout);
    }
    let is_encrypted = content.windows(ENCRYPTED.len()).any(|it| it == ENCRYPTED);
    // What else rclone says may quote a line of the file.
    let (why, hint) = match (is_encrypted, captured.stderr.as_str()) {
        (true, said) if said.contains("password command failed") => (
            "is encrypted, and RCLONE_PASSWORD_COMMAND fails",
            "See that the server's user may run that command, and that it prints the password.",
        ),
        (true, said) if said.contains("wrong password") => (
            "is encrypted, and the password that is given does not fit",
            "Mend RCLONE_CONFIG_PASS, or what RCLONE_PASSWORD_COMMAND prints, in the environment \
             of the server or of this command, and start that again.",
        ),
        (true, _) => (
            "is encrypted with a password",
            "Set RCLONE_CONFIG_PASS or RCLONE_PASSWORD_COMMAND in the environment of the server or \
             of this command and start that again, or give the configuration as \"rclone config \
             show\" prints it.",
        ),
        (false, _) if captured.timed_out => {
            ("was not read by rclone within a minute", "See that its file system does not hang.")
        }
        (false, _) => (
            "cannot be read by rclone",
            "\"rclone config dump\" with this configuration, as the server's user, says why.",
        ),
    };
    Err(Failure { message: format!("\"{config}\" {why}"), hint: hint.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What rclone makes of a configuration.
    fn read(content: &[u8]) -> Result<Remotes, Failure> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("rclone.conf");
        fs::write(&path, content).expect("written");
        Remotes::read("rclone", &path.to_string_lossy())
    }

    fn ground(remotes: &Remotes, name: &str, path: &str) -> (bool, Vec<String>) {
        let ground = remotes.ground(name, path).expect("a place");
        (ground.is_encrypted, ground.local)
    }

    #[test]
    fn a_byte_order_mark_hides_no_remote() {
        let remotes = read(
            b"\xef\xbb\xbf[secret]\r\ntype = crypt\r\nremote = plain:c\r\npassword = abcdefgh\r\n\r\n\
              [plain]\r\ntype = alias\r\nremote = /srv/b\r\n",
        )
        .expect("read");
        assert_eq!(remotes.first(), Some("secret"));
        assert_eq!(remotes.names().collect::<Vec<_>>(), ["plain", "secret"]);
        let local = vec!["/srv/b/c/pg/main".to_string()];
        assert_eq!(ground(&remotes, "secret", "pg/main"), (true, local));
        let hidden = remotes.secrets().hide("401 for abcdefgh");
        assert_eq!(hidden, "401 for ***");
    }

    #[test]
    fn what_a_remote_rests_on() {
        let remotes = read(
            b"; order is by the file\n[z]\ntype = alias\nremote = sealed:\n\
              [sealed]\ntype=crypt\nremote = disk:/srv/x\n[disk]\ntype = local\n\
              [near]\ntype = alias\nremote = relative/path\n\
              [inline]\ntype = hasher\nremote = :local,case_sensitive=true:/srv/y\n\
              [two]\ntype = union\nupstreams = sealed:a \"disk:/srv/b c:ro\"\n\
              [both]\ntype = combine\nupstreams = one=sealed:a two=z:b\n\
              [far]\ntype = sftp\nhost = h\n[loop]\ntype = alias\nremote = loop:\n",
        )
        .expect("read");
        let local = |paths: &[&str]| paths.iter().map(|it| it.to_string()).collect::<Vec<_>>();
        assert_eq!(remotes.first(), Some("z"));
        assert_eq!(ground(&remotes, "z", "pg/main"), (true, local(&["/srv/x/pg/main"])));
        assert_eq!(ground(&remotes, "disk", "/mnt/pg/main"), (false, local(&["/mnt/pg/main"])));
        assert_eq!(ground(&remotes, "inline", "pg"), (false, local(&["/srv/y/pg"])));
        let both = local(&["/srv/x/a/pg", "/srv/b c/pg"]);
        assert_eq!(ground(&remotes, "two", "pg"), (false, both));
        let both = local(&["/srv/x/a/pg", "/srv/x/b/pg"]);
        assert_eq!(ground(&remotes, "both", "pg"), (true, both));
        assert_eq!(ground(&remotes, "far", "/pg"), (false, local(&[])));
        assert_eq!(ground(&remotes, "loop", "/pg"), (false, local(&[])));
        for (name, path) in [("disk", "mnt/pg"), ("near", "/pg")] {
            let failure = remotes.ground(name, path).expect_err("relative");
            assert!(failure.message.contains("is relative"), "{failure:?}");
        }
        assert!(remotes.has_relative_paths("far") && remotes.has_relative_paths("disk"));
        assert!(!remotes.has_relative_paths("z"));
    }

    #[test]
    fn what_cannot_be_read_is_told_without_its_content() {
        let failure = read(b"[x]\ntype = s3\nsecret wJalrXUtnFEMI\n").err().expect("no option");
        assert!(failure.message.contains("cannot be read by rclone"), "{failure:?}");
        assert!(!format!("{failure:?}").contains("wJalr"), "{failure:?}");
        // Its password is "sesame".
        let failure = read(SEALED.as_bytes()).err().expect("encrypted");
        assert!(failure.message.ends_with("is encrypted with a password"), "{failure:?}");
        assert!(failure.hint.contains("RCLONE_CONFIG_PASS"), "{failure:?}");
        assert_eq!(read(b"").expect("nothing").first(), None);
        assert!(Remotes::read("rclone", "/none/rclone.conf").is_err());
        let failure = read(b"").and_then(|_| Remotes::read("/none/rclone", "/dev/null"));
        assert!(failure.is_err_and(|it| it.message.contains("rclone is missing")));
    }

    const SEALED: &str = "# Encrypted rclone configuration File\n\nRCLONE_ENCRYPT_V0:\n\
        zC3t5a8iRlqtiofbBZlYQ8W36zfvDwn2QLd2oDG3pmmH+3cVKipBl3Icvlun5diUuHUGSDbAbONwftbmrRMb\n";
}

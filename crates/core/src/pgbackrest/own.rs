//! Reads an operator's own pgBackRest configuration, as far as it matters here.

/// The values of `exclude` that are in force when `stanza` is backed up.
pub fn exclusions(config: &str, stanza: &str) -> Vec<String> {
    values(config, stanza, "backup", "exclude")
}

/// The value of an option that is in force when `command` runs for `stanza`.
pub fn option(config: &str, stanza: &str, command: &str, name: &str) -> Option<String> {
    values(config, stanza, command, name).pop()
}

/// The value of an option that is in force when `stanza` is backed up. pgBackRest still takes a name
/// without the repository's number.
pub fn backup_option(config: &str, stanza: &str, name: &str) -> Option<String> {
    let names = [name.to_string(), name.replacen("repo1-", "repo-", 1)];
    names.iter().find_map(|name| option(config, stanza, "backup", name))
}

/// The repository's directory, where it is one of this machine. `/var/lib/pgbackrest` is pgBackRest's
/// default.
pub fn local_repository(config: &str, stanza: &str) -> Option<String> {
    let option = |name: &str| backup_option(config, stanza, name);
    let is_here =
        option("repo1-type").is_none_or(|kind| kind == "posix") && option("repo1-host").is_none();
    is_here.then(|| option("repo1-path").unwrap_or_else(|| "/var/lib/pgbackrest".to_string()))
}

/// The values of an option that are in force when `command` runs for `stanza`.
///
/// The most particular section that has any counts, and the others' are not added to it.
fn values(config: &str, stanza: &str, command: &str, name: &str) -> Vec<String> {
    let sections = [
        format!("{stanza}:{command}"),
        stanza.to_string(),
        format!("global:{command}"),
        "global".to_string(),
    ];
    let values = |section: &String| {
        let mut within = false;
        let mut values = Vec::new();
        for line in config.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            if let Some(name) = line.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
                within = name == section;
            } else if let Some((option, value)) = line.split_once('=')
                && within
                && option.trim() == name
            {
                values.push(value.trim().to_string());
            }
        }
        values
    };
    sections.iter().map(values).find(|values| !values.is_empty()).unwrap_or_default()
}

/// What must be excluded on the command line, which replaces what the configuration says, so that
/// `directory` of the data directory is in no backup: nothing where the configuration sees to it.
pub fn exclusions_with(config: &str, stanza: &str, directory: &str) -> Vec<String> {
    let mut all = exclusions(config, stanza);
    if all.iter().any(|it| it.trim_end_matches('/') == directory) {
        return Vec::new();
    }
    all.push(format!("{directory}/"));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_of_this_machine_is_that_of_the_stanza() {
        let text = "[other]\nrepo1-path=/other\nrepo1-host=far\n[global]\nrepo-path=/general\n\
                    # repo1-host=near\n[main]\nrepo1-path=/main\n[store]\nrepo1-type=s3\n";
        assert_eq!(local_repository(text, "main").as_deref(), Some("/main"));
        assert_eq!(local_repository(text, "other"), None);
        assert_eq!(local_repository(text, "store"), None);
        assert_eq!(local_repository(text, "third").as_deref(), Some("/general"));
        assert_eq!(local_repository("", "main").as_deref(), Some("/var/lib/pgbackrest"));
        assert_eq!(backup_option(text, "other", "repo1-path").as_deref(), Some("/other"));
    }

    #[test]
    fn the_most_particular_section_counts() {
        let general = "[global]\nexclude=a/\nexclude = b\n# exclude=c\n";
        let backup = "[global:backup]\nexclude=d/\nstart-fast=y\n";
        let stanza = "[main]\nexclude=e/\npg1-path=/data\n";
        let both = "[main:backup]\nexclude=f/\n[other]\nexclude=g/\n";
        for (config, expected) in [
            (String::new(), [].as_slice()),
            ("[other]\nexclude=g/\n[global:restore]\nexclude=h\n".to_string(), &[]),
            (general.to_string(), &["a/", "b"]),
            (format!("{general}{backup}"), &["d/"]),
            (format!("{general}{stanza}{backup}"), &["e/"]),
            (format!("{both}{general}{stanza}{backup}"), &["f/"]),
            // A section may come twice.
            (format!("{general}[main]\npg1-port=1\n[global]\nexclude=z\n"), &["a/", "b", "z"]),
        ] {
            assert_eq!(exclusions(&config, "main"), expected, "{config}");
        }
    }

    #[test]
    fn the_directory_is_added_where_it_is_missing() {
        let with = |config: &str| exclusions_with(config, "main", "nrt_backup");
        assert_eq!(with("[global]\nexclude=a/\n"), ["a/", "nrt_backup/"]);
        assert_eq!(with(""), ["nrt_backup/"]);
        for config in
            ["[global]\nexclude=nrt_backup/\n", "[main]\nexclude=a/\nexclude=nrt_backup\n"]
        {
            assert_eq!(with(config), [""; 0], "{config}");
        }
        // There it does not count: another section hides it.
        let hidden = "[global]\nexclude=nrt_backup/\n[main]\nexclude=a/\n";
        assert_eq!(with(hidden), ["a/", "nrt_backup/"]);
    }
}

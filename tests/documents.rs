//! Holds the documents against each other and against the code: what can be said without a server.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use base64::Engine;
use nrt_core::options;
use nrt_tests::readme::{Readme, Table, Way, repository};

const ENGLISH: &str = "README.md";
const CHINESE: &str = "README.zh-CN.md";

/// What the container that this one takes the place of could be told, with its defaults.
const OF_THE_ORIGINAL: [(&str, &str); 20] = [
    ("POSTGRES_USER", "postgres"),
    ("POSTGRES_PASSWORD", ""),
    ("POSTGRES_DB", "POSTGRES_USER"),
    // Which is main, unless another cluster has that one.
    ("PGBACKREST_STANZA", ""),
    ("BACKUP_RETENTION_DAYS", "3"),
    ("BASE_BACKUP_SCHEDULE", "0 3 * * *"),
    ("INCREMENTAL_BACKUP_SCHEDULE", "0 */6 * * *"),
    ("RCLONE_CONF_BASE64", ""),
    ("RCLONE_REMOTE_NAME", ""),
    ("RCLONE_REMOTE_PATH", "postgres-backups"),
    ("RECOVERY_MODE", "false"),
    ("WAL_GROWTH_THRESHOLD", "100MB"),
    ("WAL_MONITOR_INTERVAL", "60 s"),
    ("ENABLE_WAL_MONITOR", "on"),
    ("MIN_WAL_GROWTH_FOR_BACKUP", "1MB"),
    ("RECOVERY_TARGET_TIME", ""),
    ("RECOVERY_TARGET_NAME", ""),
    ("RECOVERY_TARGET_XID", ""),
    ("RECOVERY_TARGET_LSN", ""),
    ("RECOVERY_TARGET_ACTION", "promote"),
];

fn both() -> [(&'static str, Readme); 2] {
    [ENGLISH, CHINESE].map(|name| (name, Readme::read(name)))
}

fn text_of(name: &str) -> String {
    fs::read_to_string(repository().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The table whose head has this word in it.
fn table<'a>(readme: &'a Readme, setting: &str) -> &'a Table {
    let is_it = |table: &&Table| table.rows.iter().any(|row| row[0] == format!("`{setting}`"));
    readme.tables.iter().find(is_it).unwrap_or_else(|| panic!("no table has `{setting}`"))
}

fn bare(cell: &str) -> &str {
    cell.trim_matches('`')
}

#[test]
fn both_languages_have_the_same_commands() {
    let [(_, english), (_, chinese)] = both();
    let of = |readme: &Readme| -> Vec<(Option<Way>, String, String)> {
        let blocks = readme.blocks.iter();
        blocks.map(|it| (it.way.clone(), it.language.clone(), it.text.clone())).collect()
    };
    assert_eq!(of(&english), of(&chinese));
    assert!(english.blocks.len() > 15, "they are not found: {}", english.blocks.len());
    // The same code within the text, in whatever order the language wants it.
    let codes = |readme: &Readme| readme.inline_code().into_iter().collect::<BTreeSet<String>>();
    let (english, chinese) = (codes(&english), codes(&chinese));
    let only: Vec<_> = english.symmetric_difference(&chinese).collect();
    assert!(only.is_empty(), "only in one of both: {only:?}");
}

#[test]
fn both_languages_have_the_same_structure() {
    let [(_, english), (_, chinese)] = both();
    let levels = |it: &Readme| it.headings.iter().map(|(level, _)| *level).collect::<Vec<_>>();
    assert_eq!(levels(&english), levels(&chinese));
    let shape = |it: &Readme| -> Vec<(Option<Way>, Vec<usize>)> {
        let tables = it.tables.iter();
        tables.map(|it| (it.way.clone(), it.rows.iter().map(Vec::len).collect())).collect()
    };
    assert_eq!(shape(&english), shape(&chinese));
}

/// What is in a table's first columns, and no language.
#[test]
fn both_languages_have_the_same_settings_and_variables() {
    let [(_, english), (_, chinese)] = both();
    for (name, columns) in [("nrt_backup.stanza", 3), ("RECOVERY_MODE", 2)] {
        let of = |readme| -> Vec<Vec<String>> {
            let rows = table(readme, name).rows.iter().skip(1);
            rows.map(|row: &Vec<String>| row[..columns].to_vec()).collect()
        };
        assert_eq!(of(&english), of(&chinese));
        for row in table(&chinese, name).rows.iter().skip(1) {
            let help = &row[columns];
            assert!(help.ends_with('。'), "{}: \"{help}\" is no Chinese sentence", row[0]);
        }
    }
    let commands = |it: &Readme| -> Vec<String> {
        let tables = it.tables.iter().filter(|it| it.way.is_some());
        tables.flat_map(|it| it.rows.iter().skip(1)).map(|row| row[0].clone()).collect()
    };
    assert_eq!(commands(&english), commands(&chinese));
}

#[test]
fn everything_that_can_be_run_says_how() {
    for (name, readme) in both() {
        for block in &readme.blocks {
            let way = block.way.as_ref();
            let way = way.unwrap_or_else(|| panic!("{name}:{}: how is it run?", block.line));
            assert!(!way.is_of_table(), "{name}:{}: no table follows", block.line);
            let is_code = !matches!(way, Way::Printed | Way::Example | Way::Configuration);
            assert_eq!(is_code, !block.language.is_empty(), "{name}:{}", block.line);
        }
        for table in &readme.tables {
            let is_command = |row: &Vec<String>| {
                row[0].starts_with("`nrt-backup ") || row[0].starts_with("`pgbackrest ")
            };
            let has_commands = table.rows.iter().any(is_command);
            let is_run = table.way.as_ref().is_some_and(Way::is_of_table);
            assert_eq!(has_commands, is_run, "{name}:{}: how is it run?", table.line);
        }
    }
}

#[test]
fn every_command_of_dev_is_there() {
    let dev = text_of("dev");
    for (name, readme) in both() {
        let blocks = readme.blocks.iter().filter(|it| it.way == Some(Way::Dev));
        let lines: Vec<String> =
            blocks.flat_map(|it| it.text.lines().map(str::to_string)).collect();
        assert!(!lines.is_empty());
        let inline = readme.inline_code().into_iter().filter(|it| it.starts_with("./dev "));
        for line in lines.into_iter().chain(inline) {
            let command = line.strip_prefix("./dev ").and_then(|it| it.split(' ').next());
            let function = format!("\ndev_{}() {{\n", command.unwrap_or("?"));
            assert!(dev.contains(&function), "{name}: {line}");
        }
    }
}

#[test]
fn every_variable_is_there_with_its_default() {
    let readme = Readme::read(ENGLISH);
    let mut found = BTreeMap::new();
    for row in table(&readme, "nrt_backup.stanza").rows.iter().skip(1) {
        found.insert(bare(&row[1]), bare(&row[2]));
    }
    // What is said there of POSTGRES_DB is the container's.
    for row in table(&readme, "RECOVERY_MODE").rows.iter().skip(1) {
        found.insert(bare(&row[0]), bare(&row[1]));
    }
    for (name, default) in OF_THE_ORIGINAL {
        assert_eq!(found.get(name), Some(&default), "{name}");
    }
    assert_eq!(found.get("RECOVERY_TARGET_INCLUSIVE"), Some(&"true"));
}

#[test]
fn the_variables_are_those_of_the_code() {
    let readme = Readme::read(ENGLISH);
    let rows = table(&readme, "RECOVERY_MODE").rows.iter().skip(1);
    let known: BTreeSet<&str> = rows.map(|row| bare(&row[0])).collect();
    let code = sources(&repository().join("crates/cli/src/container"));
    let read: BTreeSet<&str> = code
        .split('"')
        .skip(1)
        .step_by(2)
        .filter(|it| {
            it.starts_with("RECOVERY_") && it.bytes().all(|b| b == b'_' || b.is_ascii_uppercase())
        })
        .collect();
    assert!(read.len() > 7, "they are not found: {read:?}");
    let recovery = known.iter().copied().filter(|it| it.starts_with("RECOVERY_")).collect();
    assert_eq!(read, recovery);
}

/// The code below a directory, without its tests.
fn sources(directory: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(directory).expect("the sources are there") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            text.push_str(&sources(&path));
        } else {
            let code = fs::read_to_string(&path).expect("it is text");
            text.push_str(code.split("#[cfg(test)]").next().unwrap_or_default());
        }
    }
    text
}

#[test]
fn every_link_leads_somewhere() {
    for (name, readme) in both() {
        let anchors: BTreeSet<String> = readme.headings.iter().map(|(_, it)| anchor(it)).collect();
        let mut seen = 0;
        for link in readme.prose.split("](").skip(1) {
            let link = link.split(')').next().unwrap_or_default();
            if link.starts_with("https://") {
                continue;
            }
            seen += 1;
            match link.strip_prefix('#') {
                Some(wanted) => assert!(anchors.contains(wanted), "{name}: {link} of {anchors:?}"),
                None => assert!(repository().join(link).exists(), "{name}: {link}"),
            }
        }
        assert!(seen > 5, "{name}: they are not found");
    }
}

/// What GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    let text = heading.to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn compose_sets_what_the_container_knows() {
    let text = text_of("compose.yaml");
    let readme = Readme::read(ENGLISH);
    let rows = table(&readme, "RECOVERY_MODE").rows.iter().skip(1);
    let mut known: BTreeSet<&str> = rows.map(|row| bare(&row[0])).collect();
    known.extend(options::ALL.iter().filter_map(|option| option.environment));
    let set: Vec<&str> = text
        .lines()
        .filter_map(|line| Some(line.trim_start().split_once(": ")?.0))
        .filter(|name| name.bytes().all(|it| it == b'_' || it.is_ascii_uppercase()))
        .collect();
    assert!(set.contains(&"RECOVERY_MODE") && set.contains(&"POSTGRES_PASSWORD"), "{set:?}");
    for name in set {
        // rclone's own, for the store.
        assert!(known.contains(name) || name.starts_with("RCLONE_CONFIG_STORE_"), "{name}");
    }
}

/// What nobody can read says what stands above it.
#[test]
fn compose_has_the_configuration_that_it_shows() {
    let text = text_of("compose.yaml");
    let shown: String = text
        .lines()
        .filter_map(|line| line.strip_prefix("  #   "))
        .map(|line| format!("{line}\n"))
        .collect();
    assert!(shown.starts_with("[store]\n"), "{shown}");
    let encoded = text.split("${RCLONE_CONF_BASE64:-").nth(1).and_then(|it| it.split('}').next());
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded.expect("it is there"));
    assert_eq!(String::from_utf8(decoded.expect("base64")).as_deref(), Ok(shown.as_str()));
    let key = |name: &str| {
        let line = shown.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|it| it.strip_prefix(" = ")).expect("a key")
    };
    let both = format!("{},{}", key("access_key_id"), key("secret_access_key"));
    assert!(text.contains(&format!("      - {both}\n")), "the store has other keys than {both}");
}

#[test]
fn what_is_supported_is_published() {
    let dev = text_of("dev");
    let majors = dev.split("supported_majors='").nth(1).and_then(|it| it.split('\'').next());
    let majors: Vec<&str> = majors.expect("dev says them").split(' ').collect();
    let publish = text_of(".github/workflows/publish.yml");
    let lists: Vec<Vec<&str>> = publish
        .split("        postgres:\n")
        .skip(1)
        .map(|list| {
            let items = list.lines().map_while(|line| line.strip_prefix("          - "));
            items.map(|it| it.trim_matches('"')).collect()
        })
        .collect();
    assert_eq!(lists, [majors.clone(), majors.clone()]);
    for (name, readme) in both() {
        let tags: Vec<String> = majors.iter().map(|major| format!("`{major}`")).collect();
        let has = |row: &Vec<String>| tags.iter().all(|tag| row[0].contains(tag.as_str()));
        let tables = &readme.tables;
        assert!(tables.iter().any(|table| table.rows.iter().any(has)), "{name}: {tags:?}");
    }
}

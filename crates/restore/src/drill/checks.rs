//! Looks whether a restored server holds what it should.

use std::path::Path;

use nrt_core::inventory::Failure;
use nrt_core::restore::drill::Order;
use nrt_core::words::{beginning, last_words};
use nrt_process::identity::random;

use crate::{Private, Programs};

/// Exit code of pg_amcheck when it has found damage.
const DAMAGED: i32 = 2;
/// How much of what it says about it is repeated, in bytes.
const SHOWN: usize = 500;

/// Takes from the restored catalogs what would run code of its own as soon as somebody connects:
/// libraries that a role or a database loads, and event triggers.
///
/// Functions that the data itself calls, of an operator class or a view, stay. Whoever can write to
/// the place that drills restore from can therefore run code as the server's user; only encryption
/// keeps them from that.
pub(super) fn disarm(server: &Private, order: &Order) -> Result<(), Failure> {
    let ask = |database: &str, query: &str| server.ask(&order.superuser, database, query);
    ask("template1", "DELETE FROM pg_catalog.pg_db_role_setting")?;
    let databases = "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn";
    for database in ask("template1", databases)?.lines() {
        ask(database, "UPDATE pg_catalog.pg_event_trigger SET evtenabled = 'D'")?;
    }
    Ok(())
}

/// Has every relation checked. The number of them, or `None` where amcheck is not installed.
pub(super) fn amcheck(
    server: &Private,
    programs: &Programs,
    order: &Order,
) -> Result<Option<u64>, Failure> {
    if !programs.program("pg_amcheck").is_file() {
        return Ok(None);
    }
    // Not the operator's database, which may not be there.
    let known = "SELECT 1 FROM pg_catalog.pg_available_extensions WHERE name = 'amcheck'";
    if server.ask(&order.superuser, "template1", known)?.is_empty() {
        return Ok(None);
    }
    let jobs = order.processes.to_string();
    let words = ["--all", "--install-missing", "--progress", "--jobs", &jobs];
    let said = server.run_as_superuser("pg_amcheck", &order.superuser, "template1", &words)?;
    match said.exit {
        Some(0) => Ok(relations(&said.stderr)),
        Some(DAMAGED) => Err(Failure {
            message: format!(
                "the restored cluster is damaged: {}",
                beginning(one_line(&String::from_utf8_lossy(&said.stdout)), SHOWN)
            ),
            hint: "Run pg_amcheck on the original, too. If that is sound, take a full backup with \
                   SELECT nrt_backup_now('full') and try again."
                .to_string(),
        }),
        _ => Err(Failure {
            message: format!("pg_amcheck failed: {}", last_words(&said.stderr)),
            hint: "See the file log/drill.log in the state directory.".to_string(),
        }),
    }
}

/// Runs the operator's query: the first value of the first row.
pub(super) fn query(server: &Private, order: &Order, query: &str) -> Result<String, Failure> {
    let reader = reader(server, order)?;
    let words = ["-XAtq", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-c", query];
    let said = server.run("psql", &reader, &order.database, &words, "")?;
    if said.exit != Some(0) {
        return Err(Failure {
            message: format!("nrt_backup.drill_query failed: {}", last_words(&said.stderr)),
            hint: format!(
                "It runs in the database \"{}\" as a role that may read everything and is no \
                 superuser.",
                order.database
            ),
        });
    }
    judge(&String::from_utf8_lossy(&said.stdout))
}

/// Makes the role that the query runs as. What it reads may be a view of somebody who wrote it so
/// that it does more than that: a superuser would run it with all rights, unattended.
fn reader(server: &Private, order: &Order) -> Result<String, Failure> {
    let number = random().map_err(|error| Failure {
        message: format!("the system gives no random numbers: {error}"),
        hint: "Try again.".to_string(),
    })?;
    // None of the original's.
    let role = format!("nrt_drill_{number}");
    let statements = format!(
        "CREATE ROLE {role} LOGIN BYPASSRLS IN ROLE pg_read_all_data, pg_monitor; \
         GRANT CONNECT ON DATABASE \"{}\" TO {role}",
        order.database.replace('"', "\"\"")
    );
    server.ask(&order.superuser, "template1", &statements)?;
    Ok(role)
}

fn judge(output: &str) -> Result<String, Failure> {
    let value = output.lines().next().unwrap_or_default();
    let value = value.split('\t').next().unwrap_or_default();
    let found = match value {
        "" => "nothing",
        "f" => "false",
        value => return Ok(value.to_string()),
    };
    Err(Failure {
        message: format!("nrt_backup.drill_query returned {found} on the restored server"),
        hint: "What was restored lacks what the query looks for. Run the query on the original: \
               it may be the query that is wrong."
            .to_string(),
    })
}

/// The number of relations in the last line of pg_amcheck's progress: `77/77 relations (100%), …`.
fn relations(progress: &str) -> Option<u64> {
    let line = progress.lines().rev().find(|line| line.contains(" relations ("))?;
    line.trim().split('/').next()?.parse().ok()
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join("; ")
}

/// Refuses a disk without room for what is needed, or of which less than a tenth would stay free.
pub(super) fn room(
    directory: &Path,
    (total, free): (u64, u64),
    needed: u64,
) -> Result<(), Failure> {
    let spare = total / 10;
    if free >= needed.saturating_add(spare) {
        return Ok(());
    }
    let size = nrt_core::size::format_size;
    Err(Failure {
        message: format!(
            "there is no room for a drill in \"{}\": it needs {}, {} of {} are free, and a tenth \
             has to stay so",
            directory.display(),
            size(needed),
            size(free),
            size(total)
        ),
        hint: "Set nrt_backup.drill_directory to a directory on a larger disk.".to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations_are_counted_by_the_last_line() {
        let progress = "  0/77 relations (  0%),    0/1234 pages (  0%)\n\
                        77/77 relations (100%), 1234/1234 pages (100%)\n";
        assert_eq!(relations(progress), Some(77));
        assert_eq!(relations(""), None);
        assert_eq!(relations("pg_amcheck: in database \"postgres\"\n"), None);
    }

    #[test]
    fn a_query_says_yes_by_any_value_but_false() {
        for (output, value) in [
            ("t\n", "t"),
            ("0\n", "0"),
            ("2026-03-10\tx\nmore\n", "2026-03-10"),
            ("false positives\n", "false positives"),
        ] {
            assert_eq!(judge(output).as_deref(), Ok(value));
        }
        for (output, word) in
            [("", "nothing"), ("\n", "nothing"), ("\tx\n", "nothing"), ("f\n", "false")]
        {
            let failure = judge(output).expect_err("refused");
            assert!(failure.message.contains(&format!("returned {word} on")), "{failure:?}");
        }
    }

    #[test]
    fn a_tenth_of_the_disk_stays_free() {
        let here = Path::new("/scratch");
        for (total, free, needed, fits) in [
            (1000, 600, 500, true),
            (1000, 599, 500, false),
            (1000, 100, 0, true),
            (1000, 99, 0, false),
            (1000, 1000, u64::MAX, false),
        ] {
            assert_eq!(room(here, (total, free), needed).is_ok(), fits, "{total} {free} {needed}");
        }
        let words = room(here, (100 << 30, 20 << 30), 30 << 30).expect_err("refused").message;
        assert!(words.contains("it needs 30 GB, 20 GB of 100 GB are free"), "{words}");
    }
}

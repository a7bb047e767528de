//! One file per subcommand.

mod answer;
pub(crate) mod archive_push;
pub(crate) mod backup;
pub(crate) mod check;
pub(crate) mod drill;
pub(crate) mod entrypoint;
pub(crate) mod health;
pub(crate) mod leash;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod look;
pub(crate) mod plan;
pub(crate) mod recovery;
pub(crate) mod restore;
mod server;
pub(crate) mod ship;
pub(crate) mod source;
pub(crate) mod status;
pub(crate) mod takeover;
pub(crate) mod wal;
pub(crate) mod wal_get;
pub(crate) mod zone;

use serde::Serialize;

/// Prints a report, for programs or for people.
fn show<T: Serialize + ?Sized>(report: &T, json: bool, text: impl FnOnce(&T) -> String) {
    if json {
        println!("{}", serde_json::to_string_pretty(report).unwrap_or_default());
    } else {
        print!("{}", text(report));
    }
}

/// Rows in columns, below a head.
fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let head = head.iter().map(|it| (*it).to_string()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|it| it.chars().count()).max().unwrap_or(0)
    };
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate();
        let cells = cells.map(|(column, it)| format!("{it:width$}", width = width(column)));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string() + "\n"
    };
    rows.iter().map(line).collect()
}

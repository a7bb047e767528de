//! One file per subcommand.

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

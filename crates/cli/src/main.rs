//! The command `nrt-backup`: what nrt_backup does outside of PostgreSQL.

mod commands;
mod container;
mod exit;

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Keeps a PostgreSQL server backed up and provably restorable.
#[derive(Debug, Parser)]
#[command(name = "nrt-backup", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Backup(commands::backup::Arguments),
    List(commands::list::Arguments),
    Plan(commands::plan::Arguments),
    Restore(commands::restore::Arguments),
    Status(commands::status::Arguments),
    Check(commands::check::Arguments),
    Takeover(commands::takeover::Arguments),
    Drill(commands::drill::Arguments),
    Entrypoint(commands::entrypoint::Arguments),
    Wal(commands::wal::Arguments),
    Recovery(commands::recovery::Arguments),
    Logs(commands::logs::Arguments),
    Health(commands::health::Arguments),
    // The server calls these; an operator has no use for them.
    #[command(hide = true)]
    Leash(commands::leash::Arguments),
    #[command(hide = true)]
    Look(commands::look::Arguments),
    #[command(hide = true)]
    WalGet(commands::wal_get::Arguments),
    #[command(hide = true)]
    Ship(commands::ship::Arguments),
    // pgBackRest insists that its name stands in archive_command.
    #[command(hide = true, name = "pgbackrest-archive-push")]
    ArchivePush(commands::archive_push::Arguments),
}

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    if let [program, arguments @ ..] = words.as_slice()
        && container::is_shim(program)
    {
        return container::shim(arguments);
    }
    let arguments = match Arguments::try_parse_from(&words) {
        Ok(arguments) => arguments,
        Err(error) => {
            let words: Vec<&OsStr> = words.iter().map(OsString::as_os_str).collect();
            match commands::wal_get::misread(&words) {
                Some(code) => {
                    // Nobody may be there to read it.
                    let _ = error.print();
                    return code;
                }
                None => return exit::usage(&error),
            }
        }
    };
    match arguments.command {
        Command::Backup(arguments) => commands::backup::run(&arguments),
        Command::List(arguments) => commands::list::run(&arguments),
        Command::Plan(arguments) => commands::plan::run(&arguments),
        Command::Restore(arguments) => commands::restore::run(&arguments),
        Command::WalGet(arguments) => commands::wal_get::run(&arguments),
        Command::Status(arguments) => commands::status::run(&arguments),
        Command::Check(arguments) => commands::check::run(&arguments),
        Command::Takeover(arguments) => commands::takeover::run(&arguments),
        Command::Drill(arguments) => commands::drill::run(&arguments),
        Command::Entrypoint(arguments) => commands::entrypoint::run(&arguments),
        Command::Wal(arguments) => commands::wal::run(&arguments),
        Command::Recovery(arguments) => commands::recovery::run(&arguments),
        Command::Logs(arguments) => commands::logs::run(&arguments),
        Command::Health(arguments) => commands::health::run(&arguments),
        Command::Leash(arguments) => commands::leash::run(arguments),
        Command::Ship(arguments) => commands::ship::run(&arguments),
        Command::Look(arguments) => commands::look::run(&arguments),
        Command::ArchivePush(arguments) => commands::archive_push::run(&arguments),
    }
}

//! The command `nrt-backup`: what nrt_backup does outside of PostgreSQL.

mod commands;
mod ship;

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
    Status(commands::status::Arguments),
    Check(commands::check::Arguments),
    Takeover(commands::takeover::Arguments),
    // The server calls these; an operator has no use for them.
    #[command(hide = true)]
    Leash(commands::leash::Arguments),
    #[command(hide = true)]
    Look(commands::look::Arguments),
    #[command(hide = true)]
    Ship(commands::ship::Arguments),
    // pgBackRest insists that its name stands in archive_command.
    #[command(hide = true, name = "pgbackrest-archive-push")]
    ArchivePush(commands::archive_push::Arguments),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Status(arguments) => commands::status::run(&arguments),
        Command::Check(arguments) => commands::check::run(&arguments),
        Command::Takeover(arguments) => commands::takeover::run(&arguments),
        Command::Leash(arguments) => commands::leash::run(arguments),
        Command::Ship(arguments) => commands::ship::run(&arguments),
        Command::Look(arguments) => commands::look::run(&arguments),
        Command::ArchivePush(arguments) => commands::archive_push::run(&arguments),
    }
}

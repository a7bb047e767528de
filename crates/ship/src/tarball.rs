//! Sends a full backup as one tar archive, with its WAL and the info files: unpacked anywhere, it
//! is a repository of that one backup, and any pgBackRest restores it.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use nrt_core::inventory::Failure;
use nrt_core::lsn::Segment;
use nrt_core::pgbackrest::info::Backup;
use nrt_process::{allowed, allowed_for_rclone, tether};

use super::archive::{newest_id, segment_of};
use super::repository::names;
use super::state::Shared;
use super::wait_for;
use nrt_remote::{Remote, failure};

/// The archive's path on the remote.
pub(crate) fn path(label: &str) -> String {
    format!("full-backups/{label}.tar")
}

/// Packs and sends a backup that is on the remote already, in one stream.
pub(crate) fn send(
    shared: &Shared,
    remote: &Remote,
    backup: &Backup,
    path: &str,
) -> Result<(), Failure> {
    let problem = |error: io::Error| Failure {
        message: format!("backup {} cannot be sent as one tar archive: {error}", backup.label),
        hint: "It is tried again; nrt_backup.portable_tar = off does without.".to_string(),
    };
    let list = remote.outbox().join(remote.spool_name());
    let outcome = members(shared, backup)
        .and_then(|members| fs::write(&list, members.join("\n")))
        .and_then(|()| stream(shared, remote, &list, &format!("{path}.partial")));
    let _ = fs::remove_file(&list);
    outcome.map_err(problem)?;
    // Only a whole one gets the name.
    remote
        .rename(&format!("{path}.partial"), path)
        .map_err(|refusal| failure("a tar archive cannot be named", &refusal))
}

/// What the archive holds, as paths below the repository.
fn members(shared: &Shared, backup: &Backup) -> io::Result<Vec<String>> {
    let stanza = &shared.plan.stanza;
    let size = shared.plan.segment_size;
    let number = |name: &Option<String>| Some(Segment::parse(name.as_deref()?, size)?.number);
    let wal = number(&backup.archive_start).zip(number(&backup.archive_stop));
    let mut members = vec![
        format!("archive/{stanza}/archive.info"),
        format!("backup/{stanza}/backup.info"),
        format!("backup/{stanza}/{}", backup.label),
    ];
    let archive = format!("archive/{stanza}");
    let ids = names(&shared.repository.join(&archive))?;
    if let (Some((first, last)), Some(id)) = (wal, newest_id(ids.iter())) {
        for group in names(&shared.repository.join(&archive).join(&id))? {
            let directory = format!("{archive}/{id}/{group}");
            if !shared.repository.join(&directory).is_dir() {
                continue;
            }
            let needed = names(&shared.repository.join(&directory))?.into_iter().filter(|name| {
                segment_of(name, size).is_some_and(|it| {
                    (first..=last).contains(&it.number) && Some(it.timeline) == backup.timeline
                })
            });
            members.extend(needed.map(|name| format!("{directory}/{name}")));
        }
    }
    Ok(members)
}

/// Runs `tar | rclone rcat`.
fn stream(shared: &Shared, remote: &Remote, list: &Path, path: &str) -> io::Result<()> {
    let plan = &shared.plan;
    let (reader, writer) = io::pipe()?;
    let mut tar = Command::new("tar");
    tar.args(["--create", "--directory"]).arg(&shared.repository).arg("--files-from").arg(list);
    tar.env_clear().envs(allowed(std::env::vars_os()));
    tar.stdin(Stdio::null()).stdout(writer).stderr(Stdio::null());
    tether(&mut tar);
    let mut rclone = Command::new(&plan.rclone);
    rclone.arg("rcat").arg("--config").arg(&remote.config).arg("--ask-password=false");
    if let Some(limit) = &plan.bandwidth_limit {
        rclone.arg("--bwlimit").arg(limit);
    }
    rclone.arg(format!("{}/{path}", remote.root));
    rclone.env_clear().envs(allowed_for_rclone(std::env::vars_os()));
    rclone.stdin(reader).stdout(Stdio::null()).stderr(Stdio::null());
    tether(&mut rclone);
    let mut packing = tar.spawn()?;
    // The command holds the pipe's other end open: rclone would wait for ever.
    drop(tar);
    let mut sending = rclone.spawn()?;
    drop(rclone);
    let packed = wait_for(shared, &mut packing)?;
    if !packed.success() {
        // What was sent so far must not look whole.
        let _ = sending.kill();
    }
    let sent = wait_for(shared, &mut sending)?;
    if packed.success() && sent.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("tar ended with {packed}, rclone with {sent}")))
}

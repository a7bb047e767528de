//! Makes machines that can be cloned and put back: each with a disk and an identity of its own.
//!
//! A disk is an image that is mounted where a cluster has its directory. A copy of the image has the
//! same inodes and times, as a clone of a virtual machine has. An identity is what PostgreSQL's
//! processes find in `/etc/machine-id` and as the kernel's boot id: files that are mounted over these
//! for them alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::cluster::{Cluster, succeed, template};
use crate::installation::{Account, Installation};

/// Megabytes that a disk may grow to.
const MEGABYTES: u32 = 3072;

/// An image of a file system.
#[derive(Debug)]
pub(crate) struct Disk {
    image: PathBuf,
}

impl Disk {
    fn new(installation: &Installation) -> Disk {
        let disk = Disk::unused(installation);
        succeed(Command::new("truncate").arg(format!("--size={MEGABYTES}M")).arg(&disk.image));
        succeed(Command::new("mkfs.ext4").args(["-q", "-m0", "-Enodiscard"]).arg(&disk.image));
        disk
    }

    fn unused(installation: &Installation) -> Disk {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        Disk { image: installation.scratch().join(format!("nrt-disk-{process}-{number}.img")) }
    }

    fn copy(&self, installation: &Installation) -> Disk {
        let copy = Disk::unused(installation);
        copy.replace(&self.image);
        copy
    }

    fn replace(&self, image: &Path) {
        let mut copy = Command::new("cp");
        copy.args(["--sparse=always", "--reflink=auto"]).arg(image).arg(&self.image);
        succeed(&mut copy);
    }

    pub(crate) fn mount(&self, directory: &Path) {
        succeed(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(directory));
    }

    /// Lazily: the last process that has a file open there may take a moment to go.
    pub(crate) fn unmount(&self, directory: &Path) {
        let unmounted = Command::new("umount").arg("--lazy").arg(directory).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("could not unmount \"{}\"", directory.display());
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The kernel keeps it until nobody has it mounted.
        let _ = fs::remove_file(&self.image);
    }
}

/// A copy of a cluster's disk at one instant.
#[derive(Debug)]
pub struct Snapshot {
    disk: Disk,
}

/// What a machine is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The content of `/etc/machine-id`: 32 hexadecimal digits.
    id: String,
    /// The content of `/proc/sys/kernel/random/boot_id`.
    boot: String,
}

impl Machine {
    /// The machine of a number, in its first run.
    pub fn new(number: u64) -> Machine {
        Machine { id: format!("{number:032x}"), boot: boot_id(number, 1) }
    }

    /// The same machine after it was started again, for the `run`-th time.
    #[must_use]
    pub fn again(&self, run: u64) -> Machine {
        let number = u64::from_str_radix(&self.id[16..], 16).expect("it was made from a number");
        Machine { id: self.id.clone(), boot: boot_id(number, run) }
    }

    /// A command that finds this machine's identity, and runs as the servers do.
    pub(crate) fn command(&self, installation: &Installation, program: &Path) -> Command {
        /// Both files are mounted before the command becomes the program, in the same process.
        const SCRIPT: &str = "mount --bind \"$1\" /etc/machine-id &&
            mount --bind \"$2\" /proc/sys/kernel/random/boot_id && shift 2 && exec \"$@\"";
        let Account { uid, gid } = installation.account().expect("only root can mount a file");
        let file = |what: &str, text: &str| {
            let path = installation.scratch().join(format!("nrt-{what}-{text}"));
            if !path.exists() {
                // A server that has it mounted never sees half of it.
                let unfinished = path.with_extension(format!("{:?}", std::thread::current().id()));
                let written = fs::write(&unfinished, format!("{text}\n"));
                written
                    .and_then(|()| fs::rename(&unfinished, &path))
                    .expect("the scratch directory is ours");
            }
            path
        };
        let mut command = Command::new("unshare");
        command.env_clear().env("PATH", installation.path(None)).env("LC_ALL", "C.UTF-8");
        command
            .current_dir("/")
            .args(["--mount", "sh", "-c", SCRIPT, "sh"])
            .arg(file("machine", &self.id))
            .arg(file("boot", &self.boot))
            .arg("setpriv")
            .args([format!("--reuid={uid}"), format!("--regid={gid}")])
            .arg("--clear-groups")
            .arg(program);
        command
    }
}

fn boot_id(machine: u64, run: u64) -> String {
    format!("{machine:08x}-0000-4000-8000-{run:012x}")
}

// Only root can mount a disk: ask `is_root` first.
impl Cluster {
    /// Makes a cluster on a disk of its own.
    pub fn on_disk(name: &str) -> Cluster {
        let installation = Installation::get();
        let cluster = Cluster::on(name, Some(Disk::new(installation)));
        let mut copy = installation.command("cp");
        succeed(copy.arg("-a").arg(template(installation)).arg(cluster.data()));
        cluster
    }

    /// Makes a standby, on a disk of its own, that follows a running primary.
    pub fn standby_on_disk(primary: &Cluster, name: &str) -> Cluster {
        let disk = Disk::new(primary.installation());
        let cluster = Cluster::on(name, Some(disk));
        cluster.copy_from(primary);
        cluster
    }

    /// Copies the disk, as it is now. What writes to it should stand still.
    pub fn snapshot(&self) -> Snapshot {
        succeed(Command::new("sync").arg("--file-system").arg(self.directory()));
        let disk = self.disk.as_ref().expect("it was made on a disk");
        Snapshot { disk: disk.copy(self.installation()) }
    }

    /// Makes a cluster whose disk is a copy of a snapshot. Its settings are not copied.
    pub fn of_snapshot(snapshot: &Snapshot, name: &str) -> Cluster {
        let disk = snapshot.disk.copy(Installation::get());
        let cluster = Cluster::on(name, Some(disk));
        cluster.forget_processes();
        cluster
    }

    /// Puts a snapshot in the place of the disk. Nothing of the cluster runs.
    pub fn put_back(&self, snapshot: &Snapshot) {
        let disk = self.disk.as_ref().expect("it was made on a disk");
        disk.unmount(self.directory());
        // Another file: the old one may be held for a moment by who had it mounted.
        fs::remove_file(&disk.image).expect("it is ours");
        disk.replace(&snapshot.disk.image);
        disk.mount(self.directory());
        self.forget_processes();
    }

    /// On another machine, or after a start, the numbers of processes mean nothing.
    fn forget_processes(&self) {
        for file in ["data/postmaster.pid", "socket/.s.PGSQL.5432", "socket/.s.PGSQL.5432.lock"] {
            let _ = fs::remove_file(self.directory().join(file));
        }
    }
}

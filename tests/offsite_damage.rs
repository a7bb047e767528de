//! Shows that damage in the repository never reaches the remote, that it is named, and that the
//! repository is repaired from the remote.

use std::fs;
use std::path::{Path, PathBuf};

use crate::offsite::{
    AGAIN, NAME, all_well, contents, copied, kill_shipping, nrt_backup, shipping, wait_for_offsite,
    wait_for_shipped,
};
use crate::protected::{archive_segment, own_configuration, quiet, verify, wait_for_health};
use crate::restoring::{Place, back_up, from, texts};
use nrt_core::pgbackrest::ini::{Integrity, integrity};
use nrt_tests::{Cluster, Kind, Remote, inspect, wait_until};

/// Cuts a file off.
fn cut(path: &Path, bytes: u64) {
    let file = fs::File::options().write(true).open(path).expect("it is there");
    file.set_len(bytes).expect("it is longer");
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).expect("it is there")
}

#[test]
fn damage_in_the_repository_never_reaches_the_remote_and_is_repaired_from_it() {
    let remote = Remote::new("damage", Kind::Local);
    let cluster = shipping(Cluster::with_identity("damage"), &remote);
    cluster.sql("create table t as select generate_series(1, 1000) as i");
    let full = back_up(&cluster, "full");
    wait_for_offsite(&cluster, 2);
    all_well(&cluster);
    let there = remote.files(NAME).join("repository/backup/main");
    let here = |path: &str| cluster.repository().join("backup/main").join(path);
    // pgBackRest's own files are what its checksum is of.
    let manifest = format!("{full}/backup.manifest");
    for path in ["backup.info", &manifest] {
        assert_eq!(integrity(&read(&here(path))), Integrity::Whole, "{path}");
    }
    let whole = contents(&there);
    let bundle = format!("{full}/bundle/1");
    let right = read(&here(&bundle));

    // Cut off, and one byte changed: a check names it, and leaves the remote's as it is.
    let mut changed = right.clone();
    changed[right.len() / 2] ^= 1;
    for damaged in [&right[..1_200_000], &changed] {
        fs::write(here(&bundle), damaged).expect("the directory is ours");
        let (code, text) = nrt_backup(&cluster, &["check"]);
        assert!(code == 2 && text.contains(&bundle), "{code}: {text}");
        assert!(text.contains("damaged in the repository and whole on the remote"), "{text}");
        assert!(text.contains("nrt-backup check --repair"), "{text}");
        let message = wait_for_health(&cluster, "mirror", "critical");
        assert!(message.contains(&bundle), "{message}");
        assert!(contents(&there) == whole, "something was changed on the remote");
        let (code, text) = nrt_backup(&cluster, &["check", "--repair"]);
        assert!(code == 1 && text.contains(&bundle), "{code}: {text}");
        assert!(read(&here(&bundle)) == right, "it is not repaired");
        all_well(&cluster);
    }

    // A session that begins anew replaces neither a manifest nor the list of the backups.
    let (info, copy) = (here("backup.info"), here("backup.info.copy"));
    let before = [here(&manifest), info.clone(), copy.clone()].map(|path| read(&path));
    cut(&here(&manifest), 1000);
    cluster.sql("select nrt_pause('shipping')");
    wait_for_health(&cluster, "remote", "warning");
    cluster.sql("select nrt_resume('shipping')");
    wait_for_health(&cluster, "remote", "ok");
    let message = wait_for_health(&cluster, "mirror", "critical");
    assert!(message.contains(&manifest) && message.contains("in the repository"), "{message}");
    cut(&info, 0);
    cut(&copy, 0);
    kill_shipping(&cluster);
    wait_until("the list is missed", AGAIN, || {
        let words = "select message from nrt.health where check_name = 'mirror'";
        cluster.value(words).contains("backup.info\" and its copy are damaged")
    });
    cluster.sql("insert into t values (1001)");
    assert!(contents(&there) == whole, "something was changed on the remote");
    let (code, text) = nrt_backup(&cluster, &["check", "--repair"]);
    assert!(code == 1 && text.contains("backup.info"), "{code}: {text}");
    let after = [here(&manifest), info.clone(), copy].map(|path| read(&path));
    assert!(after == before, "not all is repaired");
    wait_for_offsite(&cluster, 2);
    wait_for_shipped(&cluster);
    all_well(&cluster);

    // A backup that is lost, and that pgBackRest forgets at the next one.
    fs::remove_dir_all(here(&full)).expect("it is there");
    cluster.allow("missing");
    cluster.sql("select nrt_backup_now('full')");
    let message = wait_for_health(&cluster, "mirror", "critical");
    assert!(message.contains(&full) && message.contains("missing in the repository"), "{message}");
    let is_whole = || {
        let now = contents(&there.join(&full));
        let prefix = format!("{full}/");
        let mut of_it =
            whole.iter().filter_map(|(path, it)| Some((path.strip_prefix(&prefix)?, it)));
        of_it.all(|(path, content)| now.get(path) == Some(content))
    };
    assert!(is_whole(), "something of the lost backup was deleted");
    let listed = String::from_utf8(read(&there.join("backup.info"))).expect("it is text");
    assert!(listed.contains(&full), "{listed}");
    let (_, text) = nrt_backup(&cluster, &["check", "--repair"]);
    assert!(text.contains(&full), "{text}");
    assert!(here(&manifest).is_file() && read(&here(&bundle)) == right, "{text}");
    // pgBackRest finds it again at the next one.
    cluster.sql("select nrt_backup_now('incr')");
    wait_for_offsite(&cluster, 4);
    all_well(&cluster);
    assert!(is_whole());
    verify(&cluster);
    let (code, text) = nrt_backup(&cluster, &["check"]);
    assert_eq!(code, 0, "{text}");

    // The host vanishes while it replaces both lists there: their copies are whole.
    wait_for_shipped(&cluster);
    cluster.vanish();
    cut(&there.join("backup.info"), 100);
    let archive: PathBuf = remote.files(NAME).join("repository/archive/main/archive.info");
    fs::remove_file(archive).expect("it is there");
    let (_directory, copy) = copied(&remote);
    assert_eq!(inspect(&copy).problems, [""; 0]);
    let arguments = from(&remote);
    for missing in [false, true] {
        if missing {
            fs::remove_file(there.join("backup.info")).expect("it is there");
        }
        let place = Place::new("by-copies");
        let (code, text) = place.run("plan", &[&texts(&arguments)[..], &["--latest"]].concat());
        assert!(code == 0 && text.contains("which needs"), "{code}: {text}");
        let restored = [&texts(&arguments)[..], &["--original"]].concat();
        let restored = if missing { place.restore(&restored) } else { continue };
        assert_eq!(restored.value("select count(*) from t"), "1001");
    }
}

/// Where pgBackRest encrypts the repository, nobody can prove which side is right. The remote's stays.
#[test]
fn damage_in_an_encrypted_repository_never_reaches_the_remote() {
    let remote = Remote::new("cipher-damage", Kind::Local);
    let cluster = quiet(Cluster::with_identity("cipher-damage"));
    let cipher = "repo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=not-to-be-guessed";
    own_configuration(
        &cluster,
        &cluster.repository(),
        &format!("{cipher}\nrepo1-bundle=y\nexclude=nrt_backup/"),
    );
    let cluster = shipping(cluster, &remote);
    cluster.sql("create table t as select generate_series(1, 1000) as i");
    let full = back_up(&cluster, "full");
    archive_segment(&cluster);
    wait_for_offsite(&cluster, 2);
    let there = remote.files(NAME).join("repository/backup/main");
    let here = |path: &str| cluster.repository().join("backup/main").join(path);
    let whole = contents(&there);
    for path in [format!("{full}/bundle/1"), format!("{full}/backup.manifest")] {
        let right = read(&here(&path));
        cut(&here(&path), right.len() as u64 / 2);
        for arguments in [&["check"][..], &["check", "--repair"]] {
            let (code, text) = nrt_backup(&cluster, arguments);
            assert!(code == 2 && text.contains(&path), "{code}: {text}");
            assert!(text.contains("nothing tells which one is"), "{text}");
            assert!(contents(&there) == whole, "{path}: something was changed on the remote");
        }
        kill_shipping(&cluster);
        archive_segment(&cluster);
        wait_for_shipped(&cluster);
        assert!(contents(&there) == whole, "{path}: something was changed on the remote");
        let message = wait_for_health(&cluster, "mirror", "critical");
        assert!(message.contains(&path), "{message}");
        fs::write(here(&path), right).expect("the directory is ours");
    }
}

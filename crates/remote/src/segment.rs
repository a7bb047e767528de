//! Reads segments as pgBackRest archives them, and compares them with the hash in their names.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

use nrt_core::pgbackrest::archive::StoredName;
use sha1::{Digest, Sha1};

/// The largest segment that PostgreSQL can have. Nothing is unpacked any further.
const LARGEST: u64 = 1 << 30;
/// With this begins what pgBackRest has encrypted.
const ENCRYPTED: &[u8] = b"Salted__";

/// What a stored segment's content says of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// It is what its name says.
    Whole,
    /// It is cut off, or something else.
    Broken,
    /// Nothing: it is encrypted, or cannot be read, or its name has no hash.
    Unknown,
}

/// Compares a file with the hash in the name, or path, that it has in the archive.
pub fn prove(file: &Path, name: &str) -> Proof {
    let Some(hash) = hash_in(name) else { return Proof::Unknown };
    let opened = File::open(file).and_then(|mut file| {
        let mut begin = Vec::new();
        file.by_ref().take(ENCRYPTED.len() as u64).read_to_end(&mut begin)?;
        file.rewind()?;
        Ok((file, begin))
    });
    let Ok((file, begin)) = opened else { return Proof::Unknown };
    if begin == ENCRYPTED {
        return Proof::Unknown;
    }
    let mut hasher = Sha1::new();
    let read = unpacked(name, BufReader::new(file))
        .and_then(|it| io::copy(&mut it.take(LARGEST + 1), &mut hasher));
    if read.is_ok() && written(hasher) == hash { Proof::Whole } else { Proof::Broken }
}

/// The SHA-1 of something, as pgBackRest writes it.
pub fn hash_of(bytes: &[u8]) -> String {
    written(Sha1::new_with_prefix(bytes))
}

/// What a hasher has computed, as pgBackRest writes it.
pub fn written(hasher: Sha1) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The hash that pgBackRest has put into an archived segment's name.
pub fn hash_in(path: &str) -> Option<&str> {
    path.rsplit('/').next().and_then(StoredName::parse).map(|it| it.hash)
}

/// Unpacks what was packed, as the name's end says: `size` bytes, or one more where it is longer.
pub fn unpack(path: &str, packed: &[u8], size: u64) -> io::Result<Vec<u8>> {
    let limit = size + 1;
    let mut bytes = Vec::with_capacity(usize::try_from(size.min(LARGEST)).unwrap_or_default());
    unpacked(path, packed)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A reader that unpacks what pgBackRest has packed, as the name's end says.
pub fn unpacked<'a>(path: &str, packed: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match path.rsplit_once('.').map(|(_, end)| end) {
        Some("zst") => Box::new(zstd::Decoder::new(packed)?),
        Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(packed)),
        Some("lz4") => Box::new(lz4_flex::frame::FrameDecoder::new(packed)),
        Some("bz2") => Box::new(bzip2::read::MultiBzDecoder::new(packed)),
        _ => Box::new(packed),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    const SIZE: u64 = 1 << 20;

    #[test]
    fn unpacks_whatever_pgbackrest_packs() {
        let content = b"WAL ".repeat(5000);
        let gz = {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
            encoder.write_all(&content).expect("packed");
            encoder.finish().expect("packed")
        };
        let lz4 = {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
            encoder.write_all(&content).expect("packed");
            encoder.finish().expect("packed")
        };
        let bz2 = {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), Default::default());
            encoder.write_all(&content).expect("packed");
            encoder.finish().expect("packed")
        };
        let zst = zstd::encode_all(&content[..], 1).expect("packed");
        for (name, packed) in
            [("a.gz", gz), ("a.lz4", lz4), ("a.bz2", bz2), ("a.zst", zst), ("a", content.clone())]
        {
            assert_eq!(unpack(name, &packed, SIZE).expect("unpacked"), content, "{name}");
        }
        assert!(unpack("a.zst", b"no zstd", SIZE).is_err());
        // What grows without end is cut off, and is no segment then.
        assert_eq!(unpack("a", &content, 10).expect("unpacked").len(), 11);
    }

    #[test]
    fn a_name_has_its_hash() {
        let hash = "0123456789abcdef0123456789abcdef01234567";
        let name = format!("15-1/0000000100000000/000000010000000000000003-{hash}.zst");
        assert_eq!(hash_in(&name), Some(hash));
        assert_eq!(hash_in("15-1/00000002.history"), None);
    }

    #[test]
    fn a_segment_is_proved_by_the_hash_in_its_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("any");
        let content: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let packed = zstd::encode_all(&content[..], 1).expect("packed");
        let name = format!("000000010000000000000003-{}", hash_of(&content));
        let packed_name = format!("{name}.zst");
        let proof = |name: &str, content: &[u8]| {
            fs::write(&file, content).expect("written");
            prove(&file, name)
        };
        assert_eq!(proof(&name, &content), Proof::Whole);
        assert_eq!(proof(&packed_name, &packed), Proof::Whole);
        let half = |whole: &[u8]| whole[..whole.len() / 2].to_vec();
        assert_eq!(proof(&name, &half(&content)), Proof::Broken);
        assert_eq!(proof(&packed_name, &half(&packed)), Proof::Broken);
        assert_eq!(proof(&packed_name, b""), Proof::Broken);
        assert_eq!(proof(&packed_name, b"Salted__12345678"), Proof::Unknown);
        assert_eq!(proof("000000010000000000000003.00000028.backup", &packed), Proof::Unknown);
        assert_eq!(prove(&directory.path().join("none"), &packed_name), Proof::Unknown);
    }
}

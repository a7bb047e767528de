//! Walks the records of WAL, and finds where they stop being valid.
//!
//! PostgreSQL takes the first record that is not valid for the end of the WAL. A restore has to tell
//! that end from damage: a record that goes on behind the last byte that is there was being written,
//! and any other one is damaged.
//!
//! The format is the same since PostgreSQL 9.5: pages with a header each, records of which a
//! CRC-32C is kept, the byte order of the machine.

use crate::lsn::{Lsn, Segment};

/// Bytes of a page's header, and of the first one of a segment.
const HEADER: usize = 24;
const LONG_HEADER: usize = 40;
/// Bytes of a record's header.
const RECORD: usize = 24;
/// Records begin at multiples of this.
const ALIGNED: usize = 8;
/// Flags of a page: it begins with the rest of a record, it has the long header, and the record
/// before it was given up in a crash.
const CONTINUES: u16 = 0x0001;
const IS_LONG: u16 = 0x0002;
const GIVES_UP: u16 = 0x0008;
/// The record that ends a segment early: its resource manager, and its kind.
const SWITCH: (u8, u8) = (0, 0x40);
/// No record is longer.
const LONGEST: usize = 1 << 30;

/// Why a walk ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// All that is there are whole records.
    Whole,
    /// The record goes on behind the last byte that is there.
    CutOff,
    /// It is no valid record: why.
    Invalid(&'static str),
}

/// Where the valid records end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Where the last valid record ends, as PostgreSQL tells it.
    pub lsn: Lsn,
    /// What is there.
    pub stop: Stop,
}

/// A record of which more is wanted.
#[derive(Debug)]
struct Open {
    start: Lsn,
    total: usize,
    bytes: Vec<u8>,
}

/// Walks segments that follow each other.
#[derive(Debug)]
pub struct Walk {
    segment_size: u64,
    /// Bytes behind this are not there.
    limit: Lsn,
    /// Bytes of a page; known after the first one.
    page: usize,
    /// The number with which every page begins.
    magic: Option<u16>,
    /// Where the last valid record ended.
    end: Lsn,
    /// Where the last valid record began.
    previous: Option<Lsn>,
    open: Option<Open>,
    /// Bytes of a record that began before the walk.
    skipped: usize,
    /// What lies before this follows a switch to the next segment.
    switched_to: Lsn,
    stop: Option<Stop>,
}

impl Walk {
    /// A walk up to `limit` that begins with the first record of the segment of `from`.
    pub fn new(from: Lsn, limit: Lsn, segment_size: u64) -> Walk {
        let start = Segment::of(1, from, segment_size).start(segment_size);
        Walk {
            segment_size,
            limit,
            page: 0,
            magic: None,
            end: start,
            previous: None,
            open: None,
            skipped: 0,
            switched_to: Lsn::default(),
            stop: None,
        }
    }

    /// Whether nothing more has to be read.
    pub fn is_over(&self) -> bool {
        self.stop.is_some()
    }

    /// Takes in the next segment.
    pub fn segment(&mut self, bytes: &[u8], start: Lsn) {
        if self.is_over() || start >= self.limit {
            return;
        }
        let size = bytes.get(36..40).and_then(|it| it.try_into().ok()).map(u32::from_ne_bytes);
        let size = size.and_then(|it| usize::try_from(it).ok()).unwrap_or(0);
        if !size.is_power_of_two() || !(1024..=65536).contains(&size) {
            self.stop.get_or_insert(Stop::Invalid("its segment has no valid header"));
            return;
        }
        self.page = size;
        for (number, page) in bytes.chunks(size).enumerate() {
            let at = Lsn(start.0 + (number * size) as u64);
            if self.is_over() || at >= self.limit {
                return;
            }
            if at >= self.switched_to {
                self.take_page(page, at);
            }
        }
    }

    /// Where the valid records end.
    pub fn end(self) -> End {
        let whole = if self.open.is_some() { Stop::CutOff } else { Stop::Whole };
        End { lsn: self.end, stop: self.stop.unwrap_or(whole) }
    }

    fn take_page(&mut self, page: &[u8], at: Lsn) {
        let number = |place: usize| {
            let bytes = page.get(place..place + 4).and_then(|it| it.try_into().ok());
            bytes.map_or(0, u32::from_ne_bytes)
        };
        let there = usize::try_from(self.limit.since(at)).unwrap_or(usize::MAX).min(page.len());
        if there < HEADER {
            return;
        }
        let short = |place: usize| {
            let bytes = page.get(place..place + 2).and_then(|it| it.try_into().ok());
            bytes.map_or(0, u16::from_ne_bytes)
        };
        let (magic, flags, rest) = (short(0), short(2), number(16) as usize);
        let address = page.get(8..16).and_then(|it| it.try_into().ok()).map(u64::from_ne_bytes);
        if magic == 0 || *self.magic.get_or_insert(magic) != magic || address != Some(at.0) {
            self.stop = Some(Stop::Invalid("a page that belongs to it has no valid header"));
            return;
        }
        let mut place = if flags & IS_LONG == 0 { HEADER } else { LONG_HEADER };
        if flags & GIVES_UP != 0 {
            self.open = None;
        }
        if let Some(open) = &self.open {
            if flags & CONTINUES == 0 || rest != open.total - open.bytes.len() {
                self.stop = Some(Stop::Invalid("the next page does not continue it"));
                return;
            }
        } else if flags & CONTINUES != 0 {
            if self.previous.is_some() {
                self.stop = Some(Stop::Invalid("the next page continues another record"));
                return;
            }
            // The record began before the walk.
            self.skipped = rest;
        } else {
            self.skipped = 0;
        }
        if self.skipped > 0 {
            let skipped = self.skipped.min(there.saturating_sub(place));
            self.skipped -= skipped;
            place = aligned(place + skipped);
            self.end = Lsn(at.0 + place as u64);
        }
        while self.stop.is_none() && place < there {
            if self.open.is_none() {
                let total = number(place) as usize;
                if !(RECORD..=LONGEST).contains(&total) {
                    self.stop = Some(Stop::Invalid("its length is not valid"));
                    return;
                }
                let start = Lsn(at.0 + place as u64);
                self.open = Some(Open { start, total, bytes: Vec::new() });
            }
            let Some(open) = &mut self.open else { return };
            let wanted = open.total - open.bytes.len();
            let taken = wanted.min(there - place);
            open.bytes.extend_from_slice(page.get(place..place + taken).unwrap_or_default());
            self.check_header();
            place = aligned(place + taken);
            if taken == wanted && self.stop.is_none() {
                self.finish_record(Lsn(at.0 + place as u64));
                if Lsn(at.0 + place as u64) < self.switched_to {
                    return;
                }
            }
        }
    }

    /// Judges a record's header as soon as it is there: its length counts where the rest is not.
    fn check_header(&mut self) {
        let Some(open) = self.open.as_ref().filter(|it| it.bytes.len() >= RECORD) else { return };
        let before = open.bytes.get(8..16).and_then(|it| it.try_into().ok());
        let before = before.map(u64::from_ne_bytes);
        if self.previous.is_some_and(|known| before != Some(known.0)) {
            self.stop = Some(Stop::Invalid("it does not follow the record before it"));
        }
    }

    fn finish_record(&mut self, end: Lsn) {
        let Some(open) = self.open.take() else { return };
        let known = open.bytes.get(20..24).and_then(|it| it.try_into().ok());
        let (head, body) = open.bytes.split_at(RECORD);
        let sum = crc32c(&[body, head.get(..20).unwrap_or_default()]);
        if known.map(u32::from_ne_bytes) != Some(sum) {
            self.stop = Some(Stop::Invalid("its checksum is wrong"));
            return;
        }
        self.previous = Some(open.start);
        self.end = end;
        let kind = (head.get(17).copied(), head.get(16).copied());
        if let (Some(manager), Some(info)) = kind
            && (manager, info & 0xf0) == SWITCH
        {
            self.end = Segment::of(1, open.start, self.segment_size).end(self.segment_size);
            self.switched_to = self.end;
        }
    }
}

fn aligned(place: usize) -> usize {
    place.next_multiple_of(ALIGNED)
}

/// The tables of a CRC-32C, by which eight bytes are taken in at once.
const TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0_u32; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ 0x82F6_3B78 } else { value >> 1 };
            bit += 1;
        }
        tables[0][byte] = value;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[table - 1][byte];
            tables[table][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
}

/// The CRC-32C of parts that follow each other.
fn crc32c(parts: &[&[u8]]) -> u32 {
    let mut sum = !0_u32;
    for part in parts {
        let (eights, rest) = part.as_chunks::<8>();
        for eight in eights {
            let word = u64::from_le_bytes(*eight) ^ u64::from(sum);
            sum = (0..8).fold(0, |found, place| {
                found ^ TABLES[7 - place][((word >> (8 * place)) & 0xff) as usize]
            });
        }
        for byte in rest {
            sum = (sum >> 8) ^ TABLES[0][((sum ^ u32::from(*byte)) & 0xff) as usize];
        }
    }
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;
    const PAGE: usize = 8192;

    /// Writes records as PostgreSQL does, from the beginning of a segment on.
    struct Writer {
        bytes: Vec<u8>,
        start: Lsn,
        previous: Lsn,
        /// Where each record begins, and where it ends.
        records: Vec<(usize, usize)>,
    }

    impl Writer {
        fn new(number: u64) -> Writer {
            let start = Lsn(number * SIZE);
            Writer { bytes: Vec::new(), start, previous: Lsn(8), records: Vec::new() }
        }

        fn header(&mut self, rest: usize) {
            let at = self.start.0 + self.bytes.len() as u64;
            let is_long = at.is_multiple_of(SIZE);
            let mut flags = if rest > 0 { CONTINUES } else { 0 };
            flags |= if is_long { IS_LONG } else { 0 };
            self.bytes.extend(0xD110_u16.to_ne_bytes());
            self.bytes.extend(flags.to_ne_bytes());
            self.bytes.extend(1_u32.to_ne_bytes());
            self.bytes.extend(at.to_ne_bytes());
            self.bytes.extend((rest as u32).to_ne_bytes());
            self.bytes.extend([0; 4]);
            if is_long {
                self.bytes.extend(7_u64.to_ne_bytes());
                self.bytes.extend((SIZE as u32).to_ne_bytes());
                self.bytes.extend((PAGE as u32).to_ne_bytes());
            }
        }

        fn record(&mut self, body: &[u8], (manager, info): (u8, u8)) {
            if self.bytes.len().is_multiple_of(PAGE) {
                self.header(0);
            }
            let begins = self.bytes.len();
            let mut head = ((RECORD + body.len()) as u32).to_ne_bytes().to_vec();
            head.extend(5_u32.to_ne_bytes());
            head.extend(self.previous.0.to_ne_bytes());
            head.extend([info, manager, 0, 0]);
            let sum = crc32c(&[body, &head]);
            head.extend(sum.to_ne_bytes());
            head.extend(body);
            self.previous = Lsn(self.start.0 + begins as u64);
            let mut left = head.as_slice();
            while !left.is_empty() {
                if self.bytes.len().is_multiple_of(PAGE) {
                    self.header(left.len());
                }
                let room = PAGE - self.bytes.len() % PAGE;
                let (now, later) = left.split_at(room.min(left.len()));
                self.bytes.extend(now);
                left = later;
            }
            self.bytes.resize(aligned(self.bytes.len()), 0);
            self.records.push((begins, self.bytes.len()));
        }

        fn switch(&mut self) {
            self.record(&[], SWITCH);
            let end = self.bytes.len().next_multiple_of(SIZE as usize);
            self.bytes.resize(end, 0);
        }

        fn at(&self, place: usize) -> Lsn {
            Lsn(self.start.0 + place as u64)
        }

        /// Walks what lies before `limit`, from the segment `skipped` on.
        fn walk(&self, limit: usize, skipped: usize) -> End {
            let limit = self.at(limit);
            let mut walk = Walk::new(self.at(skipped * SIZE as usize), limit, SIZE);
            for (number, segment) in self.bytes.chunks(SIZE as usize).enumerate().skip(skipped) {
                let start = self.at(number * SIZE as usize);
                let mut segment = segment.to_vec();
                segment.resize(SIZE as usize, 0);
                let there = usize::try_from(limit.since(start)).expect("small");
                segment.get_mut(there..).unwrap_or_default().fill(0);
                walk.segment(&segment, start);
            }
            walk.end()
        }
    }

    fn written() -> Writer {
        let mut writer = Writer::new(3);
        let mut length = 1;
        while writer.bytes.len() < 2 * SIZE as usize {
            writer.record(&vec![length as u8; length % 30_011], (10, 0x20));
            length += 97;
        }
        writer
    }

    #[test]
    fn a_checksum_is_the_one_of_everybody() {
        assert_eq!(crc32c(&[b"123456789"]), 0xE306_9283);
        assert_eq!(crc32c(&[b"1234", b"", b"56789"]), 0xE306_9283);
        let long: Vec<u8> = (0..100).collect();
        assert_eq!(crc32c(&[&long]), crc32c(&[&long[..33], &long[33..]]));
    }

    #[test]
    fn ends_where_the_last_whole_record_does() {
        let writer = written();
        for (number, &(begins, ends)) in writer.records.iter().enumerate() {
            if number % 23 == 0 {
                let whole = End { lsn: writer.at(ends), stop: Stop::Whole };
                assert_eq!(writer.walk(ends, 0), whole, "{number}");
                let before = number.checked_sub(1).map_or(0, |it| writer.records[it].1);
                for cut in [begins + 8, begins + (ends - begins) / 2, ends - 8] {
                    if cut < ends && cut > begins && cut % PAGE >= LONG_HEADER {
                        let found = writer.walk(cut, 0);
                        let expected = End { lsn: writer.at(before), stop: Stop::CutOff };
                        assert_eq!(found, expected, "{number} {begins} {cut} {ends}");
                    }
                }
            }
        }
        // From a later segment on, in which a record that began before it goes on.
        let &(_, ends) = writer.records.last().expect("there are some");
        assert_eq!(writer.walk(ends, 1), End { lsn: writer.at(ends), stop: Stop::Whole });
    }

    #[test]
    fn what_is_damaged_is_never_cut_off() {
        let writer = written();
        let &(_, limit) = writer.records.last().expect("there are some");
        for (number, &(begins, ends)) in writer.records.iter().enumerate().skip(1).step_by(5) {
            let before = writer.records[number - 1].1;
            for place in [begins, begins + 8, begins + 17, begins + 20, ends - 9] {
                if place >= ends || place % PAGE < LONG_HEADER {
                    continue;
                }
                let mut damaged =
                    Writer { bytes: writer.bytes.clone(), records: Vec::new(), ..Writer::new(3) };
                damaged.bytes[place] ^= 0x55;
                let found = damaged.walk(limit, 0);
                if number + 1 < writer.records.len() {
                    let lsn = writer.at(before);
                    assert_eq!(found.lsn, lsn, "{number} {begins} {place} {ends} {found:?}");
                    assert!(matches!(found.stop, Stop::Invalid(_)), "{number} {place} {found:?}");
                }
            }
            if number > 60 {
                break;
            }
        }
    }

    #[test]
    fn zeros_are_no_end_but_behind_a_switch() {
        let mut writer = Writer::new(3);
        writer.record(b"one", (10, 0));
        let end = writer.bytes.len();
        writer.switch();
        let next = End { lsn: writer.at(SIZE as usize), stop: Stop::Whole };
        assert_eq!(writer.walk(SIZE as usize, 0), next);
        writer.record(b"two", (10, 0));
        let ends = writer.bytes.len();
        assert_eq!(writer.walk(ends, 0), End { lsn: writer.at(ends), stop: Stop::Whole });
        writer.bytes.truncate(end);
        let found = writer.walk(SIZE as usize, 0);
        assert_eq!((found.lsn, matches!(found.stop, Stop::Invalid(_))), (writer.at(end), true));
    }
}

//! Refuses HDF5 metadata that claim more than the bytes they lie in can hold: `hdf5-reader` allocates from the claim.

use hdf5_reader::error::Error;
use hdf5_reader::storage::{FileStorage, Storage, StorageBuffer};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Mutex;

/// Messages (attributes and the like) an object header of the old form may claim.
const MAX_MESSAGES: u16 = 512;
/// As in the reader.
const MAX_NESTING: usize = 32;
/// Levels of a B-tree of version 2; three hold more than half a million records.
const MAX_DEPTH: u64 = 16;
/// Bytes of a message's head in object headers of version 1; in version 2 it has 4, or 6 with the order of creation.
const OLD_HEAD: usize = 8;

/// A file whose metadata are looked through before the reader sees them.
pub(super) struct Guarded {
    file: FileStorage,
    seen: Mutex<Seen>,
}

impl Guarded {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self { file: FileStorage::open(path)?, seen: Mutex::default() })
    }
}

impl Storage for Guarded {
    fn len(&self) -> u64 {
        self.file.len()
    }

    fn read_range(&self, offset: u64, len: usize) -> Result<StorageBuffer, Error> {
        let bytes = self.file.read_range(offset, len)?;
        let mut seen = self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        seen.check(offset, &bytes).map_err(Error::InvalidData)?;
        Ok(bytes)
    }
}

/// What earlier reads tell about later ones.
#[derive(Default)]
struct Seen {
    /// Position of the superblock, which addresses count from, and the bytes of an address and of a length.
    superblock: Option<(u64, usize, usize)>,
    /// Offset, messages and bytes that follow of the last prefix of an object header of version 1. Such a header is
    /// read twice: its prefix of 16 bytes, and then the whole of it.
    prefix: (u64, u64, u64),
    /// Offset, length and message head of the blocks that continue object headers.
    continued: HashSet<(u64, u64, usize)>,
}

impl Seen {
    fn check(&mut self, offset: u64, bytes: &[u8]) -> Result<(), String> {
        let len = bytes.len() as u64;
        if self.superblock.is_none() && bytes.starts_with(b"\x89HDF\r\n\x1a\n") && bytes.len() > 14 {
            let at = if bytes[8] < 2 { 13 } else { 9 };
            self.superblock = Some((offset, bytes[at].into(), bytes[at + 1].into()));
        }
        for head in [OLD_HEAD, 4, 6] {
            if self.continued.contains(&(offset, len, head)) {
                // A block of version 2 has a signature and a checksum.
                let edge = if head == OLD_HEAD { 0 } else { 4 };
                self.messages(bytes.get(edge..bytes.len().saturating_sub(edge)).unwrap_or_default(), head)?;
            }
        }
        let (at, messages, rest) = self.prefix;
        if at == offset && len == 16 + rest {
            if messages > MAX_MESSAGES.into() {
                return Err(format!("object header of {messages} messages; {MAX_MESSAGES} are read"));
            }
            self.messages(&bytes[16..], OLD_HEAD)?;
        }
        if len == 16 && bytes[0] == 1 {
            self.prefix = (offset, number(&bytes[2..4]), number(&bytes[8..12]));
        }
        if bytes.starts_with(b"OHDR\x02")
            && let Some(&flags) = bytes.get(5)
        {
            let width = 1 << (flags & 3);
            let start = 6 + usize::from(flags & 0x20) / 2 + usize::from(flags & 0x10) / 4;
            let size = bytes.get(start..start + width).map_or(0, number);
            let start = start + width;
            if len.checked_sub(start as u64 + 4) == Some(size) {
                self.messages(&bytes[start..bytes.len() - 4], if flags & 4 == 0 { 4 } else { 6 })?;
            }
        }
        self.btree(bytes)
    }

    /// The header of a B-tree of version 2, whose nodes the format's library makes for far fewer than 256 records.
    fn btree(&self, bytes: &[u8]) -> Result<(), String> {
        let Some((_, address, length)) = self.superblock else { return Ok(()) };
        if bytes.starts_with(b"BTHD") && bytes.len() == 22 + address + length {
            let (node, record, depth) = (number(&bytes[6..10]), number(&bytes[10..12]), number(&bytes[12..14]));
            let records = number(&bytes[16 + address..18 + address]);
            if record == 0 || node / record > 255 || records * record > node || depth > MAX_DEPTH {
                return Err(format!(
                    "B-tree of {records} records of {record} bytes in a node of {node}, depth {depth}"
                ));
            }
        }
        Ok(())
    }

    /// Messages of an object header, without those that refer to another one.
    fn messages(&mut self, mut block: &[u8], head: usize) -> Result<(), String> {
        let (base, address, length) = self.superblock.unwrap_or((0, 8, 8));
        while let Some((start, rest)) = block.split_at_checked(head) {
            let at = if head == OLD_HEAD { 2 } else { 1 };
            let (kind, size, flags) = (number(&start[..at]), number(&start[at..at + 2]), start[at + 2]);
            // A message that is cut off, the reader refuses.
            let Some((body, rest)) = rest.split_at_checked(size as usize) else { return Ok(()) };
            block = rest;
            let fits = match kind {
                _ if flags & 2 != 0 => true,
                3 => Description::new(body).walk(0).is_some(),
                7 => body.get(6..8).is_none_or(|slots| number(slots) as usize * 3 * length <= body.len()),
                12 => attribute_type(body).is_none_or(|body| Description::new(body).walk(0).is_some()),
                16 if body.len() >= address + length => {
                    let (offset, length) = (number(&body[..address]), number(&body[address..address + length]));
                    self.continued.insert((base.saturating_add(offset), length, head));
                    true
                }
                _ => true,
            };
            if !fits {
                return Err(format!("header message of type {kind} claims more than its {size} bytes hold"));
            }
        }
        Ok(())
    }
}

/// Where the datatype of an attribute begins.
fn attribute_type(message: &[u8]) -> Option<&[u8]> {
    let name = number(message.get(2..4)?) as usize;
    match message[0] {
        1 => message.get(8 + name.next_multiple_of(8)..),
        2 => message.get(8 + name..),
        3 => message.get(9 + name..),
        _ => None,
    }
}

/// A datatype, walked as the reader parses it; `None` where it does not fit into its message.
struct Description<'a> {
    rest: &'a [u8],
    /// Bytes of the message that no member has claimed.
    room: usize,
}

impl<'a> Description<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, room: bytes.len() }
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    fn claim(&mut self, members: usize, bytes: usize) -> Option<()> {
        self.room = self.room.checked_sub(members.checked_mul(bytes)?)?;
        Some(())
    }

    /// A name with its terminator, padded in the older versions.
    fn name(&mut self, version: u8) -> Option<()> {
        let len = self.rest.iter().position(|&byte| byte == 0)? + 1;
        self.take(if version < 3 { len.next_multiple_of(8) } else { len })?;
        Some(())
    }

    fn walk(&mut self, depth: usize) -> Option<()> {
        let head = self.take(8).filter(|_| depth <= MAX_NESTING)?;
        let (class, version) = (head[0] & 15, head[0] >> 4);
        let (members, size) = (number(&head[1..3]) as usize, number(&head[4..8]) as usize);
        let body = match class {
            0 | 4 => 4,
            1 => 12,
            2 => 2,
            5 => usize::from(head[1]).next_multiple_of(8),
            6 => {
                // An empty name, an offset and the head of a type.
                self.claim(members, 10)?;
                let offset = match version {
                    0 | 2 => 4,
                    1 => 32,
                    _ => 1 + usize::from(size > 0xff) + usize::from(size > 0xffff) + usize::from(size > 0xff_ffff),
                };
                for _ in 0..members {
                    self.name(version)?;
                    self.take(offset)?;
                    self.walk(depth + 1)?;
                }
                0
            }
            8 => {
                self.walk(depth + 1)?;
                self.claim(members, size.checked_add(1)?)?;
                for _ in 0..members {
                    self.name(version)?;
                }
                members.checked_mul(size)?
            }
            9 => return self.walk(depth + 1),
            10 => {
                let axes = usize::from(self.take(1)?[0]);
                self.take(if version < 3 { 3 + 8 * axes } else { 4 * axes })?;
                return self.walk(depth + 1);
            }
            _ => 0,
        };
        self.take(body)?;
        Some(())
    }
}

fn number(little_endian: &[u8]) -> u64 {
    little_endian.iter().rev().fold(0, |number, &byte| (number << 8) | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A compound of version 3 with `members`, the first of them nested `depth` times around a number.
    fn compound(members: u8, depth: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..depth {
            bytes.extend([0x36, members, 0, 0, 4, 0, 0, 0, b'a', 0, 0]);
        }
        bytes.extend([0x10, 0, 0, 0, 4, 0, 0, 0, 0, 0, 32, 0]);
        bytes
    }

    #[test]
    fn members_must_fit_at_every_depth() {
        let walk = |bytes: &[u8]| Description::new(bytes).walk(0);
        assert_eq!(walk(&compound(1, 1)), Some(()));
        assert_eq!(walk(&compound(1, MAX_NESTING)), Some(()));
        assert_eq!(walk(&compound(1, MAX_NESTING + 1)), None);
        // Each level's claim alone would fit.
        let mut nested = compound(9, 10);
        nested.resize(200, 0);
        assert_eq!(walk(&nested), None);
        for len in 0..compound(1, 3).len() {
            assert_eq!(walk(&compound(1, 3)[..len]), None, "{len} bytes");
        }
    }

    #[test]
    fn continued_headers_are_followed() {
        let mut seen = Seen { superblock: Some((512, 8, 8)), ..Seen::default() };
        let mut header = vec![1, 0, 2, 0, 1, 0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(seen.check(600, &header), Ok(()));
        header.extend([16, 0, 16, 0, 0, 0, 0, 0]);
        header.extend([1000u64.to_le_bytes(), 48u64.to_le_bytes()].concat());
        assert_eq!(seen.check(600, &header), Ok(()));
        // An attribute "k" of version 3 whose type is a compound.
        let attribute = |members| {
            let mut block = vec![12, 0, 40, 0, 0, 0, 0, 0, 3, 0, 1, 0, 23, 0, 4, 0, 0, b'k'];
            block.extend(compound(members, 1));
            block.resize(48, 0);
            block
        };
        assert_eq!(seen.check(1512, &attribute(1)), Ok(()));
        assert!(seen.check(1512, &attribute(200)).is_err());
        assert_eq!(seen.check(1000, &attribute(200)), Ok(()), "not a header");
    }

    #[test]
    fn btree_nodes_must_hold_their_records() {
        let seen = Seen { superblock: Some((0, 8, 8)), ..Seen::default() };
        let tree = |record: u8, depth: u8, records: u16| {
            let mut bytes = [b"BTHD\0\x05\0\x02\0\0".as_slice(), &[record, 0, depth, 0, 100, 40], &[0; 22]].concat();
            bytes[24..26].copy_from_slice(&records.to_le_bytes());
            seen.btree(&bytes)
        };
        assert_eq!(tree(11, 1, 45), Ok(()));
        for (record, depth, records) in [(11, 1, 65535), (11, 200, 45), (0, 1, 45), (1, 1, 45)] {
            assert!(tree(record, depth, records).is_err(), "{record} {depth} {records}");
        }
    }
}

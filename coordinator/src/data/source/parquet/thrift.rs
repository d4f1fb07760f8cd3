//! Thrift's compact protocol, as far as a structure can be looked through without being built.
//!
//! Reads what the `parquet` crate reads, byte for byte: known fields by their number whatever type they say, integers cut to
//! their width.

use std::io::{self, Read};

/// Deepest nesting of what is skipped, as in the `parquet` crate.
const DEEPEST: u8 = 64;

/// Longest unsigned integer, in bytes.
const LONGEST: u32 = 10;

const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
const I16: u8 = 4;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const STRUCT: u8 = 12;
const UUID: u8 = 13;

/// What a visitor did with a field.
pub(super) enum Visit {
    /// It read it.
    Read,
    /// Nothing.
    Skip,
}

/// A reader that counts what it reads.
pub(super) struct Compact<R> {
    input: R,
    read: u64,
}

impl<R: Read> Compact<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, read: 0 }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> u64 {
        self.read
    }

    /// Visits the fields of a structure by their numbers.
    pub(super) fn structure(&mut self, visit: &mut dyn FnMut(&mut Self, i16) -> io::Result<Visit>) -> io::Result<()> {
        let mut id = 0_i16;
        loop {
            let header = self.byte()?;
            if header & 0xF == 0 {
                return Ok(());
            }
            id = self.field(id, header)?;
            match visit(self, id)? {
                Visit::Read => {}
                Visit::Skip => self.skip(header & 0xF, DEEPEST)?,
            }
        }
    }

    /// Length of a list, before its elements.
    pub(super) fn list(&mut self) -> io::Result<u32> {
        self.list_header().map(|(_, length)| length)
    }

    pub(super) fn i32(&mut self) -> io::Result<i32> {
        // What does not fit is cut off.
        self.integer().map(|n| n as i32)
    }

    fn field(&mut self, last: i16, header: u8) -> io::Result<i16> {
        match i16::from(header >> 4) {
            0 => self.integer().map(|n| n as i16),
            delta => last.checked_add(delta).ok_or_else(|| malformed("a field's number")),
        }
    }

    fn list_header(&mut self) -> io::Result<(u8, u32)> {
        let header = self.byte()?;
        let length = match header >> 4 {
            15 => self.length()?,
            length => u32::from(length),
        };
        Ok((header & 0xF, length))
    }

    fn length(&mut self) -> io::Result<u32> {
        let length = self.unsigned()?;
        u32::try_from(length).ok().filter(|n| i32::try_from(*n).is_ok()).ok_or_else(|| malformed("a length"))
    }

    /// A signed integer, zigzag.
    fn integer(&mut self) -> io::Result<i64> {
        let n = self.unsigned()?;
        Ok((n >> 1) as i64 ^ -((n & 1) as i64))
    }

    fn unsigned(&mut self) -> io::Result<u64> {
        let mut n = 0;
        for place in 0..LONGEST {
            let byte = self.byte()?;
            n |= u64::from(byte & 0x7F) << (7 * place);
            if byte & 0x80 == 0 {
                return Ok(n);
            }
        }
        Err(malformed("an integer"))
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.input.read_exact(&mut byte)?;
        self.read += 1;
        Ok(byte[0])
    }

    fn bytes(&mut self, count: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.input.by_ref().take(count), &mut io::sink())?;
        self.read += skipped;
        if skipped == count { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn skip(&mut self, kind: u8, depth: u8) -> io::Result<()> {
        let Some(below) = depth.checked_sub(1) else { return Err(malformed("its nesting")) };
        match kind {
            TRUE | FALSE => Ok(()),
            BYTE => self.bytes(1),
            I16..=I64 => self.unsigned().map(drop),
            DOUBLE => self.bytes(8),
            UUID => self.bytes(16),
            BINARY => {
                let length = self.unsigned()?;
                self.bytes(length)
            }
            LIST | SET => {
                let (kind, length) = self.list_header()?;
                refuse_endless(kind, length)?;
                (0..length).try_for_each(|_| self.skip(kind, below))
            }
            MAP => {
                let length = self.length()?;
                let kinds = if length > 0 { self.byte()? } else { 0 };
                [kinds >> 4, kinds & 0xF].into_iter().try_for_each(|kind| refuse_endless(kind, length))?;
                (0..length).try_for_each(|_| {
                    self.skip(kinds >> 4, below)?;
                    self.skip(kinds & 0xF, below)
                })
            }
            STRUCT => loop {
                let header = self.byte()?;
                if header & 0xF == 0 {
                    return Ok(());
                }
                self.field(0, header)?;
                self.skip(header & 0xF, below)?;
            },
            _ => Err(malformed("a type")),
        }
    }
}

/// Booleans in a collection take no bytes here, so nothing would bound how many there are. No file has any.
fn refuse_endless(kind: u8, length: u32) -> io::Result<()> {
    if length > 0 && matches!(kind, TRUE | FALSE) { Err(malformed("a collection of booleans")) } else { Ok(()) }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} is malformed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A structure with one field, which nobody wants.
    fn skipped(field: &[u8]) -> io::Result<()> {
        let bytes = [field, &[0]].concat();
        Compact::new(&bytes[..]).structure(&mut |_, _| Ok(Visit::Skip))
    }

    #[test]
    fn what_takes_no_bytes_cannot_be_many() {
        let most = [0xFF, 0xFF, 0xFF, 0xFF, 0x07];
        let of_booleans = [&[0x19, 0xF0 | TRUE][..], &most].concat();
        let of_such_lists = [&[0x19, 0xF0 | LIST][..], &most, &[0xF0 | FALSE], &most].concat();
        let map = [&[0x10 | MAP][..], &most, &[TRUE << 4 | FALSE]].concat();
        for field in [of_booleans, of_such_lists, map] {
            let error = skipped(&field).unwrap_err();
            assert!(error.to_string().contains("booleans"), "{error}");
        }
        // None at all, a boolean by itself, and a list of what has bytes.
        for field in [&[0x19, TRUE][..], &[0x10 | TRUE], &[0x19, 0x20 | BYTE, 7, 8]] {
            skipped(field).unwrap();
        }
    }
}

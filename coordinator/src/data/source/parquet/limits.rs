//! What a Parquet file says of its own sizes, checked before memory is taken for it.
//!
//! Footer and page headers are looked through for the numbers that the `parquet` crate allocates by. A page that is decompressed
//! has the size that its header says, or is refused. What is not bounded is how often one row repeats a long value of a
//! dictionary, within the values that a column may have.

use super::MAGIC;
use super::thrift::{Compact, Visit};
use ::parquet::basic::Compression;
use ::parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Longest footer, in bytes.
const LONGEST_FOOTER: u64 = 16 << 20;
/// Most elements of a schema.
const MOST_ELEMENTS: u32 = 10_000;
/// Deepest nesting of a schema.
const DEEPEST: usize = 64;
/// Most bytes of pages that may be in memory at once: of each column its dictionary and its largest page.
const AT_ONCE: u64 = 1 << 30;
/// A dictionary is kept as slices, 32 bytes for a value that takes at least 4, beside its page.
const DICTIONARY: u64 = 9;
/// Most values in a row group of a column of lists: one row may hold them all.
const MOST_VALUES: u64 = 1 << 25;
/// PLAIN, dictionaries (2 and 8), RLE and DELTA_BINARY_PACKED by their numbers in the format. The others (6, 7 and 9 today) take
/// memory by numbers that no header tells.
const ENCODINGS: &[i32] = &[0, 2, 3, 5, 8];

const BUFFER: usize = 4096;

/// Checks what stands before the row groups are known: the footer's length, and the tree of its schema.
pub(super) fn footer(file: &File) -> Result<(), String> {
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    let mut tail = [0; 8];
    let at = length.checked_sub(8).filter(|at| *at >= 4).ok_or("it is cut off")?;
    file.read_exact_at(&mut tail, at).map_err(|error| error.to_string())?;
    let (size, magic) = tail.split_at(4);
    if magic != MAGIC {
        return Err("it does not end as a Parquet file does: it is cut off, or encrypted".into());
    }
    let size = size.iter().rev().fold(0, |size, byte| size << 8 | u64::from(*byte));
    let start = at.checked_sub(size).filter(|start| *start >= 4).ok_or("its footer is longer than the file")?;
    if size > LONGEST_FOOTER {
        return Err(format!("its footer has {size} bytes, more than {LONGEST_FOOTER}"));
    }
    let mut compact = Compact::new(BufReader::with_capacity(BUFFER, Section::new(file, start, size)));
    let schema = compact.structure(&mut |compact, field| match field {
        2 => schema(compact).map(|()| Visit::Read),
        _ => Ok(Visit::Skip),
    });
    schema.map_err(|error| format!("its footer is damaged: {error}"))
}

/// The elements of a schema stand in the order of a walk through its tree, each with the number of its children.
fn schema<R: Read>(compact: &mut Compact<R>) -> io::Result<()> {
    let refuse = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    let count = compact.list()?;
    if count > MOST_ELEMENTS {
        return refuse("its schema has too many columns");
    }
    // Children to come, of every element from the root to the one before.
    let mut open: Vec<u32> = Vec::new();
    for element in 0..count {
        let mut children = 0;
        compact.structure(&mut |compact, field| match field {
            5 => compact.i32().map(|n| children = n).map(|()| Visit::Read),
            _ => Ok(Visit::Skip),
        })?;
        while open.pop_if(|left| *left == 0).is_some() {}
        if let Some(left) = open.last_mut() {
            *left -= 1;
        }
        match u32::try_from(children) {
            Ok(children) if children < count - element => open.push(children),
            _ => return refuse("its schema is no tree"),
        }
        if open.len() > DEEPEST {
            return refuse("its schema is nested too deeply");
        }
    }
    if count < 2 { refuse("its schema has no columns") } else { Ok(()) }
}

/// Checks the pages of a row group.
pub(super) fn row_group(file: &File, group: &RowGroupMetaData) -> Result<(), String> {
    let rows = u64::try_from(group.num_rows()).map_err(|_| "its number of rows is negative")?;
    let mut at_once = 0;
    for column in group.columns() {
        let pages = Pages::of(file, column).map_err(|e| format!("column `{}`: {e}", column.column_path().string()))?;
        at_once += pages.at_once;
        let lists = column.column_descr().max_rep_level() > 0;
        if pages.values < rows || (!lists && pages.values > rows) {
            let (name, values) = (column.column_path().string(), pages.values);
            return Err(format!("column `{name}` has {values} values for {rows} rows"));
        }
        if lists && pages.values > MOST_VALUES {
            let (name, values) = (column.column_path().string(), pages.values);
            return Err(format!(
                "column `{name}` has {values} values, more than {MOST_VALUES}: write the file with smaller row groups"
            ));
        }
    }
    if at_once > AT_ONCE {
        let (takes, allowed) = (at_once >> 20, AT_ONCE >> 20);
        return Err(format!(
            "its pages take {takes} MiB at once, more than {allowed}: write the file with smaller pages"
        ));
    }
    Ok(())
}

/// What the page headers of a column say.
#[derive(Default)]
struct Pages {
    /// Values, nulls among them.
    values: u64,
    /// Bytes of the largest page, packed and unpacked, and of the dictionary.
    at_once: u64,
}

impl Pages {
    fn of(file: &File, column: &ColumnChunkMetaData) -> Result<Self, String> {
        known(column.compression())?;
        let Range { start: mut at, end } = place(column).ok_or("its place in the file is none")?;
        let (mut pages, mut dictionary, mut largest) = (Self::default(), 0, 0);
        while at < end {
            let mut compact = Compact::new(BufReader::with_capacity(BUFFER, Section::new(file, at, end - at)));
            let page = Page::read(&mut compact).map_err(|error| format!("a page header is damaged: {error}"))?;
            at += compact.position() + page.packed;
            if at > end {
                return Err("a page is longer than its column".into());
            }
            match page.part {
                Part::Values { values, encoding } => {
                    if !ENCODINGS.contains(&encoding) {
                        return Err(format!("encoded as {encoding}, which is not known (PLAIN and dictionaries are)"));
                    }
                    pages.values += values;
                    largest = page.bytes().max(largest);
                }
                Part::Dictionary { values } => {
                    if values > page.unpacked {
                        return Err(format!("a dictionary of {values} values in {} bytes", page.unpacked));
                    }
                    dictionary = (page.packed + page.unpacked * DICTIONARY).max(dictionary);
                }
                Part::Other => largest = page.bytes().max(largest),
            }
        }
        pages.at_once = dictionary + largest;
        Ok(pages)
    }
}

fn known(compression: Compression) -> Result<(), String> {
    match compression {
        Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::GZIP(_) | Compression::ZSTD(_) => Ok(()),
        other => {
            let name = other.to_string();
            let name = name.split('(').next().unwrap_or_default();
            Err(format!("compressed as {name}; known are Snappy, gzip and Zstandard"))
        }
    }
}

/// Where the pages of a column are.
fn place(column: &ColumnChunkMetaData) -> Option<Range<u64>> {
    let start = u64::try_from(column.dictionary_page_offset().unwrap_or(column.data_page_offset())).ok()?;
    let length = u64::try_from(column.compressed_size()).ok()?;
    Some(start..start.checked_add(length)?)
}

/// The header of a page.
struct Page {
    /// Bytes in the file.
    packed: u64,
    /// Bytes when it is decompressed.
    unpacked: u64,
    part: Part,
}

enum Part {
    Values { values: u64, encoding: i32 },
    Dictionary { values: u64 },
    Other,
}

impl Page {
    fn read<R: Read>(compact: &mut Compact<R>) -> io::Result<Self> {
        let (mut kind, mut unpacked, mut packed) = (-1, -1, -1);
        // Headers of the three kinds: number of values, and encoding.
        let (mut plain, mut dictionary, mut second) = ((-1, -1), (-1, -1), (-1, -1));
        compact.structure(&mut |compact, field| {
            match field {
                1 => kind = compact.i32()?,
                2 => unpacked = compact.i32()?,
                3 => packed = compact.i32()?,
                5 => plain = pair(compact, 2)?,
                7 => dictionary = pair(compact, 2)?,
                8 => second = pair(compact, 4)?,
                _ => return Ok(Visit::Skip),
            }
            Ok(Visit::Read)
        })?;
        let size = |n: i32| u64::try_from(n).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "no size"));
        let values =
            |(values, encoding): (i32, i32)| Ok::<_, io::Error>(Part::Values { values: size(values)?, encoding });
        let part = match kind {
            0 => values(plain)?,
            2 => Part::Dictionary { values: size(dictionary.0)? },
            3 => values(second)?,
            _ => Part::Other,
        };
        Ok(Self { packed: size(packed)?, unpacked: size(unpacked)?, part })
    }

    fn bytes(&self) -> u64 {
        self.packed + self.unpacked
    }
}

/// Fields 1 and `other` of a page's second header.
fn pair<R: Read>(compact: &mut Compact<R>, other: i16) -> io::Result<(i32, i32)> {
    let mut pair = (-1, -1);
    compact.structure(&mut |compact, field| {
        match field {
            1 => pair.0 = compact.i32()?,
            n if n == other => pair.1 = compact.i32()?,
            _ => return Ok(Visit::Skip),
        }
        Ok(Visit::Read)
    })?;
    Ok(pair)
}

/// A part of a file.
struct Section<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl<'a> Section<'a> {
    fn new(file: &'a File, at: u64, left: u64) -> Self {
        Self { file, at, left }
    }
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..wanted], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

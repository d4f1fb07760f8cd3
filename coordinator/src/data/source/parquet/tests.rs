//! Files that pyarrow wrote (`scripts/make_parquet_fixtures.py`), whole, cut off, damaged, and with sizes that are lies.

use super::super::reader;
use super::limits;
use crate::data::DataError;
use ::parquet::basic::{Compression, ZstdLevel};
use ::parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use ::parquet::schema::parser::parse_message_type;
use ::parquet::schema::types::SchemaDescriptor;
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data/parquet").join(name)
}

fn values(path: &Path) -> Result<Vec<Value>, DataError> {
    let mut values = Vec::new();
    reader::for_each(path, &mut |row| {
        values.push(row.value.unwrap());
        Ok(true)
    })?;
    Ok(values)
}

/// A file of these bytes.
fn written(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rows.parquet");
    fs::write(&path, bytes).unwrap();
    (directory, path)
}

/// The reason why these bytes cannot be read.
fn reason(bytes: &[u8]) -> String {
    let (_directory, path) = written(bytes);
    match values(&path) {
        Err(DataError::Unreadable { path: named, reason }) => {
            assert_eq!(named, path);
            reason
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn rows_are_those_of_the_same_rows_as_jsonl() {
    let names = [
        "pairs-snappy",
        "pairs-zstd-v2",
        "pairs-gzip",
        "pairs-plain",
        "messages-snappy",
        "messages-zstd",
        "alpaca-nulls",
        "other-columns",
        "checksums",
        "empty",
    ];
    for name in names {
        let rows = values(&fixture(&format!("{name}.parquet"))).unwrap();
        let expected = fs::read_to_string(fixture(&format!("{name}.jsonl"))).unwrap();
        let rows: Vec<_> = rows.iter().map(Value::to_string).collect();
        let expected: Vec<_> = expected.lines().map(|row| row.parse::<Value>().unwrap().to_string()).collect();
        // As text: the order of the fields counts, for it is the order in which messages name them.
        assert_eq!(rows, expected, "{name}");
        assert_eq!(rows.is_empty(), name == "empty");
    }
}

#[test]
fn rows_are_counted_over_row_groups_and_no_more_are_read_than_are_wanted() {
    let path = fixture("pairs-snappy.parquet");
    let mut origins = Vec::new();
    reader::for_each(&path, &mut |row| {
        origins.push(row.origin.to_string());
        Ok(origins.len() < 6)
    })
    .unwrap();
    assert_eq!(origins.len(), 6);
    assert_eq!(origins[5], format!("{}, row 5", path.display()));
}

#[test]
fn what_is_not_read_is_named() {
    let name = |name: &str| reason(&fs::read(fixture(name)).unwrap());
    let brotli = name("refused-brotli.parquet");
    assert_eq!(brotli, "row group 0: column `prompt`: compressed as BROTLI; known are Snappy, gzip and Zstandard");
    let delta = name("refused-delta.parquet");
    assert_eq!(delta, "row group 0: column `prompt`: encoded as 7, which is not known (PLAIN and dictionaries are)");
    let packed = zstd::encode_all(File::open(fixture("pairs-plain.parquet")).unwrap(), 3).unwrap();
    assert_eq!(reason(&packed), "a Parquet file is compressed within: unpack it before it is read");
}

#[test]
fn a_file_that_is_cut_off_is_refused_wherever_it_ends() {
    for name in ["pairs-snappy.parquet", "messages-zstd.parquet"] {
        let whole = fs::read(fixture(name)).unwrap();
        for length in (4..whole.len()).step_by(3) {
            reason(&whole[..length]);
        }
    }
    assert_eq!(reason(b"PAR1"), "it is cut off");
    assert_eq!(
        reason(b"PAR1 and then something else"),
        "it does not end as a Parquet file does: it is cut off, or encrypted"
    );
}

/// Whatever is in a file, it is read or refused, and is given no more memory than it has rows for.
#[test]
fn a_damaged_file_is_read_or_refused() {
    let (mut read, mut refused) = (0, 0);
    for name in ["pairs-snappy.parquet", "pairs-zstd-v2.parquet", "messages-zstd.parquet", "other-columns.parquet"] {
        let whole = fs::read(fixture(name)).unwrap();
        let rows = values(&fixture(name)).unwrap().len();
        let (_directory, path) = written(&whole);
        for at in (4..whole.len()).step_by(5) {
            let mut damaged = whole.clone();
            damaged[at] ^= [0x01, 0x80, 0xFF][at % 3];
            fs::write(&path, damaged).unwrap();
            match values(&path) {
                Ok(values) => {
                    assert!(values.len() <= rows, "{name}, byte {at}");
                    read += 1;
                }
                Err(DataError::Unreadable { .. }) => refused += 1,
                Err(other) => panic!("{name}, byte {at}: {other}"),
            }
        }
    }
    // What hits text and statistics goes unseen, for the files have no checksums.
    assert!(read > 100 && refused > 100, "{read} read, {refused} refused");
}

#[test]
fn damage_is_seen_where_pages_have_checksums() {
    let whole = fs::read(fixture("checksums.parquet")).unwrap();
    let at = whole.windows(6).position(|bytes| bytes == b"short?").unwrap();
    let mut damaged = whole;
    damaged[at] ^= 1;
    assert!(reason(&damaged).contains("CRC checksum mismatch"), "{}", reason(&damaged));
}

// What follows writes Thrift's compact protocol by hand: a field's number as the difference to the one before.

fn unsigned(mut n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

fn i32_field(delta: u8, n: i32) -> Vec<u8> {
    let zigzag = ((n << 1) ^ (n >> 31)) as u32;
    [vec![delta << 4 | 5], unsigned(zigzag.into())].concat()
}

/// A file whose footer has a schema of elements with these numbers of children.
fn schema(children: &[i32]) -> Vec<u8> {
    let elements = children.iter().flat_map(|n| [i32_field(5, *n), vec![0]].concat());
    let footer: Vec<u8> = [vec![0x29, 0xFC], unsigned(children.len() as u64), elements.collect(), vec![0]].concat();
    let length = u32::try_from(footer.len()).unwrap().to_le_bytes();
    [b"PAR1", footer.as_slice(), &length, b"PAR1"].concat()
}

#[test]
fn a_footer_is_checked_before_it_is_built() {
    let no_tree = "its footer is damaged: its schema is no tree";
    assert_eq!(reason(&schema(&[i32::MAX, 0])), no_tree);
    assert_eq!(reason(&schema(&[2, 0])), no_tree);
    assert_eq!(reason(&schema(&[1, -1])), no_tree);
    assert_eq!(reason(&schema(&[0])), "its footer is damaged: its schema has no columns");
    assert_eq!(reason(&schema(&[1; 5000])), "its footer is damaged: its schema is nested too deeply");
    assert_eq!(reason(&schema(&[0; 20_000])), "its footer is damaged: its schema has too many columns");
    // A tree, and no more is looked at: the `parquet` crate misses the rest.
    assert!(!reason(&schema(&[3, 1, 0, 0])).contains("schema is"), "{}", reason(&schema(&[3, 1, 0, 0])));
    let longer = [b"PAR1".as_slice(), &[0xFF, 0xFF, 0xFF, 0x7F], b"PAR1"].concat();
    assert_eq!(reason(&longer), "its footer is longer than the file");
}

struct Header {
    kind: i32,
    unpacked: i32,
    packed: usize,
    values: i32,
    encoding: i32,
}

const HEADER: Header = Header { kind: 0, unpacked: 8, packed: 8, values: 2, encoding: 0 };
const DICTIONARY: Header = Header { kind: 2, ..HEADER };

impl Header {
    /// The header, and a page of zeros.
    fn bytes(&self) -> Vec<u8> {
        let sizes = [i32_field(1, self.kind), i32_field(1, self.unpacked), i32_field(1, self.packed as i32)].concat();
        let own = [if self.kind == 2 { 0x4C } else { 0x2C }];
        let rest = [i32_field(1, self.values), i32_field(1, self.encoding), vec![0, 0]].concat();
        [&sizes, &own[..], &rest, &vec![0; self.packed]].concat()
    }
}

fn refusal(column: &str, pages: &[Header], rows: i64) -> Result<(), String> {
    refusal_of(column, &pages.iter().flat_map(Header::bytes).collect::<Vec<_>>(), rows)
}

/// What a row group of one column with these pages and so many rows is refused for.
fn refusal_of(column: &str, bytes: &[u8], rows: i64) -> Result<(), String> {
    let (_directory, path) = written(bytes);
    let message = parse_message_type(&format!("message m {{ {column} binary c; }}")).unwrap();
    let schema = Arc::new(SchemaDescriptor::new(Arc::new(message)));
    let chunk = ColumnChunkMetaData::builder(schema.column(0))
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_total_compressed_size(bytes.len() as i64)
        .set_data_page_offset(0)
        .build()
        .unwrap();
    let group = RowGroupMetaData::builder(schema).set_num_rows(rows).add_column_metadata(chunk).build().unwrap();
    limits::row_group(&File::open(path).unwrap(), &group)
}

#[test]
fn pages_are_checked_before_they_are_decompressed() {
    let wanted = |unpacked| Header { unpacked, ..HEADER };
    let values = |values| Header { values, ..HEADER };
    let error = |column, pages: &[Header], rows| refusal(column, pages, rows).unwrap_err();

    refusal("required", &[HEADER, HEADER], 4).unwrap();
    refusal("required", &[DICTIONARY, Header { encoding: 8, ..HEADER }], 2).unwrap();
    refusal("repeated", &[HEADER, HEADER], 1).unwrap();
    // A page at a time.
    refusal("required", &[wanted(1 << 29), wanted(1 << 29), wanted(1 << 29)], 6).unwrap();

    let smaller = "MiB at once, more than 1024: write the file with smaller pages";
    assert!(error("required", &[wanted(i32::MAX)], 2).ends_with(smaller));
    assert!(error("required", &[Header { unpacked: 1 << 28, ..DICTIONARY }, HEADER], 2).ends_with(smaller));
    assert_eq!(error("required", &[wanted(-1)], 2), "column `c`: a page header is damaged: no size");
    assert_eq!(
        error("required", &[Header { values: 9, ..DICTIONARY }, HEADER], 2),
        "column `c`: a dictionary of 9 values in 8 bytes"
    );
    assert_eq!(error("required", &[HEADER], 1 << 60), "column `c` has 2 values for 1152921504606846976 rows");
    assert_eq!(error("required", &[HEADER], 1), "column `c` has 2 values for 1 rows");
    assert_eq!(error("repeated", &[HEADER], 3), "column `c` has 2 values for 3 rows");
    assert_eq!(error("required", &[HEADER], -1), "its number of rows is negative");
    assert!(error("repeated", &[values(i32::MAX)], 3).ends_with("write the file with smaller row groups"));
    let longer = Header { packed: 9, ..HEADER }.bytes();
    assert_eq!(
        refusal_of("required", &longer[..longer.len() - 1], 2).unwrap_err(),
        "column `c`: a page is longer than its column"
    );
    assert!(error("required", &[Header { encoding: 9, ..HEADER }], 2).starts_with("column `c`: encoded as 9"));
}

//! The bytes of a cached prepared set.
//!
//! ```text
//! "BALLASTP"  format version (u32)
//! header      u64 length, JSON: manifest and warnings
//! samples     u64 count, then each: u32 ids, u32 ranges, the ids, the ranges as pairs
//! held-out    the same
//! prompts     u64 count, then each: u32 ids, u32 bytes of text, the ids, the text
//! probes      the same
//! rows        u64 length, Zstandard frame of JSONL
//! checksum    SHA-256 of all before it
//! ```
//!
//! All integers are little-endian. Nothing is believed before the checksum matched, and everything is checked after.

use super::prepared::{Manifest, Probe};
use super::tokenize::Sample;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::ops::Range;

/// Changes whenever the same input would give other samples, or the file another layout.
pub(super) const FORMAT_VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"BALLASTP";
const CHECKSUM: usize = 32;

/// What a cache file holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stored {
    pub(super) header: Header,
    pub(super) samples: Vec<Sample>,
    pub(super) heldout: Vec<Sample>,
    pub(super) heldout_prompts: Vec<Probe>,
    pub(super) probes: Vec<Probe>,
    /// Compressed rows.
    pub(super) rows: Vec<u8>,
}

/// The part that is JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) manifest: Manifest,
    pub(super) warnings: Vec<String>,
}

/// Writes a set.
pub(super) fn encode(stored: &Stored) -> Result<Vec<u8>, serde_json::Error> {
    let mut out = MAGIC.to_vec();
    out.extend(FORMAT_VERSION.to_le_bytes());
    put_bytes(&mut out, &serde_json::to_vec(&stored.header)?);
    for samples in [&stored.samples, &stored.heldout] {
        out.extend((samples.len() as u64).to_le_bytes());
        samples.iter().for_each(|sample| put_sample(&mut out, sample));
    }
    for probes in [&stored.heldout_prompts, &stored.probes] {
        out.extend((probes.len() as u64).to_le_bytes());
        probes.iter().for_each(|probe| put_probe(&mut out, probe));
    }
    put_bytes(&mut out, &stored.rows);
    let checksum = Sha256::digest(&out);
    out.extend(checksum);
    Ok(out)
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
}

fn put_sample(out: &mut Vec<u8>, sample: &Sample) {
    put_counts(out, sample.ids.len(), sample.loss.len());
    sample.ids.iter().for_each(|id| out.extend(id.to_le_bytes()));
    for range in &sample.loss {
        out.extend(range.start.to_le_bytes());
        out.extend(range.end.to_le_bytes());
    }
}

fn put_probe(out: &mut Vec<u8>, probe: &Probe) {
    put_counts(out, probe.ids.len(), probe.text.len());
    probe.ids.iter().for_each(|id| out.extend(id.to_le_bytes()));
    out.extend(probe.text.as_bytes());
}

/// Two counts of a record; no line of data is long enough to overflow one.
fn put_counts(out: &mut Vec<u8>, first: usize, second: usize) {
    for count in [first, second] {
        out.extend(u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
    }
}

/// Reads a set; the error says what is wrong with the bytes.
pub(super) fn decode(bytes: &[u8]) -> Result<Stored, String> {
    let (body, checksum) = bytes.split_last_chunk::<CHECKSUM>().ok_or("it is too short")?;
    if Sha256::digest(body).as_slice() != checksum {
        return Err("its checksum does not match".into());
    }
    decode_body(body)
}

/// Reads all but the checksum.
fn decode_body(body: &[u8]) -> Result<Stored, String> {
    let mut reader = Reader(body);
    if reader.take(MAGIC.len())? != MAGIC {
        return Err("it is no prepared set".into());
    }
    let version = reader.u32()?;
    if version != FORMAT_VERSION {
        return Err(format!("it has format version {version}, not {FORMAT_VERSION}"));
    }
    let header = serde_json::from_slice(reader.bytes()?).map_err(|e| format!("its header: {e}"))?;
    let samples = reader.list(Reader::sample)?;
    let heldout = reader.list(Reader::sample)?;
    let heldout_prompts = reader.list(Reader::probe)?;
    let probes = reader.list(Reader::probe)?;
    let rows = reader.bytes()?.to_vec();
    if !reader.0.is_empty() {
        return Err("bytes are left over".into());
    }
    Ok(Stored { header, samples, heldout, heldout_prompts, probes, rows })
}

/// The bytes not read yet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or("it ends too early")?;
        self.0 = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, String> {
        let (taken, rest) = self.0.split_first_chunk().ok_or("it ends too early")?;
        self.0 = rest;
        Ok(u32::from_le_bytes(*taken))
    }

    fn u64(&mut self) -> Result<u64, String> {
        let (taken, rest) = self.0.split_first_chunk().ok_or("it ends too early")?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*taken))
    }

    fn bytes(&mut self) -> Result<&'a [u8], String> {
        let length = usize::try_from(self.u64()?).map_err(|_| "it ends too early")?;
        self.take(length)
    }

    fn list<T>(&mut self, item: fn(&mut Self) -> Result<T, String>) -> Result<Vec<T>, String> {
        let count = self.u64()?;
        // A count is believed only as far as its items are really there.
        (0..count).map(|_| item(self)).collect()
    }

    fn u32s(&mut self, count: usize) -> Result<Vec<u32>, String> {
        let bytes = self.take(count.checked_mul(4).ok_or("it ends too early")?)?;
        Ok(bytes.chunks_exact(4).filter_map(|c| c.first_chunk()).map(|c| u32::from_le_bytes(*c)).collect())
    }

    fn sample(&mut self) -> Result<Sample, String> {
        let (ids, ranges) = (self.u32()? as usize, self.u32()? as usize);
        let ids = self.u32s(ids)?;
        let bounds = self.u32s(ranges.checked_mul(2).ok_or("it ends too early")?)?;
        let loss: Vec<Range<u32>> =
            bounds.chunks_exact(2).filter_map(|pair| pair.first_chunk()).map(|&[start, end]| start..end).collect();
        // 0, then every start and end, ends at the length: strictly rising where a range begins and ends.
        let mut before = 1;
        for range in &loss {
            if range.start < before || range.start >= range.end || range.end as usize > ids.len() {
                return Err("a loss range lies outside its sample".into());
            }
            before = range.end;
        }
        Ok(Sample { ids, loss })
    }

    fn probe(&mut self) -> Result<Probe, String> {
        let (ids, text) = (self.u32()? as usize, self.u32()? as usize);
        let ids = self.u32s(ids)?;
        let text = String::from_utf8(self.take(text)?.to_vec()).map_err(|_| "a text is not UTF-8")?;
        Ok(Probe { text, ids })
    }
}

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

#[cfg(test)]
mod tests {
    use super::super::prepared::{MANIFEST_KIND, Stats};
    use super::*;
    use crate::config::LookAhead;
    use proptest::prelude::*;

    fn stored(lengths: &[u32], text: &str, rows: Vec<u8>) -> Stored {
        let manifest = Manifest {
            kind: MANIFEST_KIND.into(),
            format_version: FORMAT_VERSION,
            key: "key".into(),
            lookahead: LookAhead::default(),
            tokenizer_sha256: "t".into(),
            template_sha256: "c".into(),
            samples_sha256: "s".into(),
            stats: Stats { mean_tokens: 1.0 / 3.0, ..Stats::default() },
        };
        let sample =
            |&n: &u32| Sample { ids: (0..n).collect(), loss: if n > 2 { vec![1..2, 2..n] } else { Vec::new() } };
        let probe = Probe { text: text.into(), ids: lengths.to_vec() };
        Stored {
            header: Header { manifest, warnings: vec![text.into()] },
            samples: lengths.iter().map(sample).collect(),
            heldout: lengths.iter().take(1).map(sample).collect(),
            heldout_prompts: vec![probe.clone(), Probe::default()],
            probes: vec![probe],
            rows,
        }
    }

    fn damaged(change: impl Fn(&mut Stored)) -> String {
        let mut set = stored(&[5], "", Vec::new());
        change(&mut set);
        decode(&encode(&set).unwrap()).unwrap_err()
    }

    #[test]
    fn ranges_outside_their_sample_are_refused() {
        for loss in [vec![0..2], vec![2..2], vec![2..6], vec![1..3, 2..4], vec![3..4, 1..2]] {
            let error = damaged(|set| set.samples[0].loss = loss.clone());
            assert_eq!(error, "a loss range lies outside its sample");
        }
    }

    #[test]
    fn other_files_are_told_from_sets() {
        assert_eq!(decode(b"short").unwrap_err(), "it is too short");
        let sealed = |body: &[u8]| [body, Sha256::digest(body).as_slice()].concat();
        assert_eq!(decode(&sealed(b"NOT A SET")).unwrap_err(), "it is no prepared set");
        let newer = [MAGIC.as_slice(), &9_u32.to_le_bytes()].concat();
        assert_eq!(decode(&sealed(&newer)).unwrap_err(), "it has format version 9, not 1");
        let mut longer = encode(&stored(&[5], "", Vec::new())).unwrap();
        longer.truncate(longer.len() - CHECKSUM);
        longer.push(0);
        assert_eq!(decode(&sealed(&longer)).unwrap_err(), "bytes are left over");
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            lengths in prop::collection::vec(0..20_u32, 0..8), text in ".{0,10}", rows in prop::collection::vec(any::<u8>(), 0..50),
        ) {
            let set = stored(&lengths, &text, rows);
            prop_assert_eq!(decode(&encode(&set).unwrap()), Ok(set));
        }

        /// Any change of any byte is noticed by the checksum.
        #[test]
        fn no_damage_goes_unnoticed(at in any::<prop::sample::Index>(), flip in 1..=255_u8, cut in any::<bool>()) {
            let mut bytes = encode(&stored(&[5, 3], "text", vec![1, 2, 3])).unwrap();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= flip }
            prop_assert!(decode(&bytes).is_err());
        }

        /// Bytes that carry a right checksum and yet lie: refused or read, never a panic, never memory beyond the file.
        #[test]
        fn hostile_bytes_are_refused_or_read(at in any::<prop::sample::Index>(), bytes in prop::collection::vec(any::<u8>(), 1..12)) {
            let mut body = encode(&stored(&[5, 3], "text", vec![1, 2, 3])).unwrap();
            body.truncate(body.len() - CHECKSUM);
            let at = at.index(body.len());
            let end = (at + bytes.len()).min(body.len());
            body[at..end].copy_from_slice(&bytes[..end - at]);
            if let Ok(set) = decode_body(&body) {
                prop_assert!(set.samples.iter().map(|s| s.ids.len()).sum::<usize>() * 4 <= body.len());
            }
        }
    }
}

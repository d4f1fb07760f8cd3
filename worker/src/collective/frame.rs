//! The one frame of the ring: a header of fixed size, then little-endian numbers.
//!
//! Both ends know every frame that is due, so a receiver compares the header with the one it expects before it reads
//! the payload: no length from the wire ever decides how much memory is taken.

use sha2::{Digest, Sha256};

/// Bytes of a header.
pub(super) const HEADER_LEN: usize = 68;
/// Bytes covered by the checksum: all before it.
const CHECKED_LEN: usize = HEADER_LEN - 4;
const MAGIC: [u8; 4] = *b"BLST";
const VERSION: u16 = 1;
/// Largest payload of any ballast, in bytes; a longer one is refused by its header alone.
pub(super) const MAX_PAYLOAD: usize = 1 << 22;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A neighbour introduces itself; `total` is the world size, `offset` its rank.
    Hello = 1,
    /// The connection stands; `total` and `offset` as in `Hello`.
    Welcome = 2,
    /// The connection is not wanted: the header tells who this is.
    Refused = 3,
    /// Part of a sum of integers.
    Sum = 4,
    /// Part of a maximum of integers.
    Max = 5,
    /// Part of a sum of f32.
    SumReals = 6,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Hello, Self::Welcome, Self::Refused, Self::Sum, Self::Max, Self::SumReals];
}

/// Header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// Round of the ring algorithm: reduce-scatter, then all-gather. 0 in a handshake.
    pub(super) round: u32,
    /// Bytes of payload.
    pub(super) length: u32,
    /// Hash of the run's id.
    pub(super) run: u64,
    /// Generation, coordinator's part.
    pub(super) epoch: u64,
    /// Generation, number within the epoch.
    pub(super) number: u64,
    /// Number of the reduction within the generation.
    pub(super) sequence: u64,
    /// Elements of the whole vector.
    pub(super) total: u64,
    /// First element of this frame.
    pub(super) offset: u64,
}

/// What is wrong with a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It does not come from ballast.
    #[error("it does not begin as a frame of ballast")]
    Magic,
    /// It comes from another version.
    #[error("frame version {0}, expected {VERSION}")]
    Version(u16),
    /// Its kind is unknown.
    #[error("unknown kind of frame {0}")]
    Kind(u8),
    /// Its payload is longer than any.
    #[error("a payload of {0} bytes, more than the {MAX_PAYLOAD} that are allowed")]
    TooLong(u32),
    /// A field is not what is due now.
    #[error("{field} is {found}, expected {expected}")]
    Unexpected {
        /// The header's field.
        field: &'static str,
        /// What came.
        found: String,
        /// What was due.
        expected: String,
    },
    /// It was damaged on the way.
    #[error("its checksum does not match")]
    Checksum,
}

impl Header {
    /// Reads a header; also returns the frame's checksum.
    pub(super) fn decode(bytes: &[u8; HEADER_LEN]) -> Result<(Self, u32), FrameError> {
        let mut fields = Fields(bytes);
        if fields.take() != MAGIC {
            return Err(FrameError::Magic);
        }
        let version = u16::from_le_bytes(fields.take());
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let [kind, reserved] = fields.take();
        let kind = Kind::ALL.into_iter().find(|k| *k as u8 == kind).ok_or(FrameError::Kind(kind))?;
        if reserved != 0 {
            return Err(unexpected("reserved byte", reserved, 0));
        }
        let round = u32::from_le_bytes(fields.take());
        let length = u32::from_le_bytes(fields.take());
        if length as usize > MAX_PAYLOAD {
            return Err(FrameError::TooLong(length));
        }
        let [run, epoch, number, sequence, total, offset] = std::array::from_fn(|_| u64::from_le_bytes(fields.take()));
        let checksum = u32::from_le_bytes(fields.take());
        Ok((Self { kind, round, length, run, epoch, number, sequence, total, offset }, checksum))
    }

    /// Names the first field in which a frame differs from the one that is due.
    pub(super) fn expect(&self, due: &Self) -> Result<(), FrameError> {
        if self.kind != due.kind {
            return Err(unexpected("kind", format!("{:?}", self.kind), format!("{:?}", due.kind)));
        }
        let fields = [
            ("run", self.run, due.run),
            ("generation epoch", self.epoch, due.epoch),
            ("generation number", self.number, due.number),
            ("sequence", self.sequence, due.sequence),
            ("round", self.round.into(), due.round.into()),
            ("total", self.total, due.total),
            ("offset", self.offset, due.offset),
            ("length", self.length.into(), due.length.into()),
        ];
        match fields.into_iter().find(|(_, found, expected)| found != expected) {
            Some((field, found, expected)) => Err(unexpected(field, found, expected)),
            None => Ok(()),
        }
    }

    /// Writes this header over the first [`HEADER_LEN`] bytes of a frame whose payload stands behind them already.
    pub(super) fn seal(&self, frame: &mut [u8]) {
        let (header, payload) = frame.split_at_mut(HEADER_LEN);
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            header[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&MAGIC);
        put(&VERSION.to_le_bytes());
        put(&[self.kind as u8, 0]);
        put(&self.round.to_le_bytes());
        put(&self.length.to_le_bytes());
        for field in [self.run, self.epoch, self.number, self.sequence, self.total, self.offset] {
            put(&field.to_le_bytes());
        }
        let sum = checksum(&header[..CHECKED_LEN], payload);
        header[CHECKED_LEN..].copy_from_slice(&sum.to_le_bytes());
    }

    /// A whole frame without payload.
    pub(super) fn sealed(&self) -> [u8; HEADER_LEN] {
        let mut frame = [0; HEADER_LEN];
        self.seal(&mut frame);
        frame
    }
}

/// Compares a frame's checksum with its bytes.
pub(super) fn verify(frame: &[u8], expected: u32) -> Result<(), FrameError> {
    let (header, payload) = frame.split_at(HEADER_LEN);
    if checksum(&header[..CHECKED_LEN], payload) == expected { Ok(()) } else { Err(FrameError::Checksum) }
}

/// The run as frames carry it.
pub(super) fn run_hash(run_id: &str) -> u64 {
    Fields(&Sha256::digest(run_id)).u64()
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(payload);
    hasher.finalize()
}

fn unexpected(field: &'static str, found: impl ToString, expected: impl ToString) -> FrameError {
    FrameError::Unexpected { field, found: found.to_string(), expected: expected.to_string() }
}

/// Takes fields off the front. Callers hold as many bytes as they take; what is missing reads as zeros.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header {
            kind: Kind::Sum,
            round: 3,
            length: 24,
            run: run_hash("run"),
            epoch: 1,
            number: 2,
            sequence: 7,
            total: 100,
            offset: 50,
        }
    }

    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; HEADER_LEN];
        frame.extend_from_slice(payload);
        header().seal(&mut frame);
        frame
    }

    fn decode(frame: &[u8]) -> Result<Header, FrameError> {
        let (header, sum) = Header::decode(frame.first_chunk().unwrap())?;
        header.expect(&self::header())?;
        verify(frame, sum)?;
        Ok(header)
    }

    #[test]
    fn a_frame_survives_the_wire() {
        assert_eq!(decode(&frame(&[9; 24])), Ok(header()));
    }

    #[test]
    fn hostile_headers_are_named() {
        let patch = |at: usize, bytes: &[u8]| {
            let mut frame = frame(&[9; 24]);
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            decode(&frame).unwrap_err().to_string()
        };
        assert_eq!(patch(0, b"HTTP"), "it does not begin as a frame of ballast");
        assert_eq!(patch(4, &[9, 0]), "frame version 9, expected 1");
        assert_eq!(patch(6, &[77]), "unknown kind of frame 77");
        assert_eq!(patch(6, &[5]), "kind is Max, expected Sum");
        assert_eq!(patch(7, &[1]), "reserved byte is 1, expected 0");
        assert_eq!(patch(8, &[4]), "round is 4, expected 3");
        assert_eq!(patch(12, &[255; 4]), "a payload of 4294967295 bytes, more than the 4194304 that are allowed");
        assert_eq!(patch(12, &[32]), "length is 32, expected 24");
        assert!(patch(16, &[0; 8]).starts_with("run is 0, expected "));
        assert_eq!(patch(24, &[2]), "generation epoch is 2, expected 1");
        assert_eq!(patch(32, &[1]), "generation number is 1, expected 2");
        assert_eq!(patch(40, &[8]), "sequence is 8, expected 7");
        assert_eq!(patch(48, &[101]), "total is 101, expected 100");
        assert_eq!(patch(56, &[0]), "offset is 0, expected 50");
        assert_eq!(patch(64, &[0; 4]), "its checksum does not match");
        assert_eq!(patch(HEADER_LEN, &[8]), "its checksum does not match");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in any::<[u8; 34]>(), tail in any::<[u8; 34]>(), ours in any::<bool>()) {
            let mut raw = [0; HEADER_LEN];
            raw[..34].copy_from_slice(&bytes);
            raw[34..].copy_from_slice(&tail);
            if ours {
                raw[..8].copy_from_slice(&[b'B', b'L', b'S', b'T', 1, 0, 4, 0]);
            }
            if let Ok((header, sum)) = Header::decode(&raw) {
                prop_assert!(header.length as usize <= MAX_PAYLOAD);
                let again = Header::decode(&header.sealed()).unwrap().0;
                prop_assert_eq!(again, header);
                prop_assert_eq!(verify(&raw, sum).is_ok(), header.sealed() == raw);
            }
        }

        #[test]
        fn every_flipped_bit_is_noticed(at in 0..HEADER_LEN + 24, bit in 0..8) {
            let mut frame = frame(&[9; 24]);
            frame[at] ^= 1_u8 << bit;
            prop_assert!(decode(&frame).is_err());
        }
    }
}

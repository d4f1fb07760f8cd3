//! Training states as streams: a header, then the files in order, cut into pieces.

use super::compute::Downloaded;
use crate::trainer::ExportedState;
use ballast_proto::v1::{Generation, StateFile, StateHeader};
use ballast_proto::{ErrorCode, Failure};
use bytes::Bytes;
use sha2::{Digest, Sha256};

/// Bytes of one piece: well below the message limit of gRPC.
const PIECE: usize = 1 << 20;

/// Header and pieces of a state, as they are uploaded.
pub(super) fn disassemble(
    worker_id: u64,
    generation: Generation,
    state: ExportedState,
) -> (StateHeader, impl Iterator<Item = Bytes> + Send) {
    let files: Vec<(String, Bytes)> = state.files.into_iter().map(|(name, data)| (name, Bytes::from(data))).collect();
    let header = StateHeader {
        worker_id,
        generation: Some(generation),
        step: state.step,
        state_sha256: Bytes::copy_from_slice(&state.state_sha256),
        files: files
            .iter()
            .map(|(name, data)| StateFile { name: name.clone(), size: data.len() as u64, sha256: sha256(data) })
            .collect(),
    };
    let pieces = files
        .into_iter()
        .flat_map(|(_, data)| (0..data.len()).step_by(PIECE).map(move |at| data.slice(at..data.len().min(at + PIECE))));
    (header, pieces)
}

/// Puts a downloaded state together. Memory grows with what has arrived, not with what a header claims.
#[derive(Debug)]
pub(super) struct Assembler {
    state_sha256: Bytes,
    files: Vec<StateFile>,
    bytes: Vec<u8>,
    expected: u64,
}

impl Assembler {
    /// Refuses a header that is not the one asked for.
    pub(super) fn new(header: StateHeader, generation: Generation, step: u64) -> Result<Self, Failure> {
        if header.generation != Some(generation) || header.step != step {
            let found = header.generation.map_or_else(|| "none".to_owned(), |g| g.to_string());
            return Err(malformed(format!(
                "step {} of generation {found}, not step {step} of {generation}",
                header.step
            )));
        }
        let expected = header
            .files
            .iter()
            .try_fold(0_u64, |sum, file| sum.checked_add(file.size))
            .ok_or_else(|| malformed("files of impossible sizes".into()))?;
        Ok(Self { state_sha256: header.state_sha256, files: header.files, bytes: Vec::new(), expected })
    }

    /// Takes the next piece.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), Failure> {
        self.bytes.extend_from_slice(piece);
        if self.bytes.len() as u64 > self.expected {
            return Err(malformed(format!("more than the {} bytes announced", self.expected)));
        }
        Ok(())
    }

    /// The state, once all bytes are there and the files' hashes match.
    pub(super) fn finish(self) -> Result<Downloaded, Failure> {
        if self.bytes.len() as u64 != self.expected {
            return Err(malformed(format!("{} of {} bytes", self.bytes.len(), self.expected)));
        }
        let mut rest = Bytes::from(self.bytes);
        let files = self.files.into_iter().map(|file| {
            // All sizes together are the length of `rest`.
            let data = rest.split_to(file.size as usize);
            if sha256(&data) == file.sha256 {
                Ok((file.name, data))
            } else {
                Err(malformed(format!("{} does not match its sha256", file.name)))
            }
        });
        Ok(Downloaded { state_sha256: self.state_sha256, files: files.collect::<Result<_, _>>()? })
    }
}

fn sha256(data: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&Sha256::digest(data))
}

fn malformed(what: String) -> Failure {
    Failure::new(ErrorCode::BadMessage, format!("state from the coordinator: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GENERATION: Generation = Generation { epoch: 1, number: 2 };

    fn state(files: &[Vec<u8>]) -> ExportedState {
        let files = files.iter().enumerate().map(|(i, data)| (format!("file-{i}"), data.clone())).collect();
        ExportedState { step: 7, state_sha256: [3; 32], files }
    }

    fn assemble(header: StateHeader, pieces: impl Iterator<Item = Bytes>) -> Result<Vec<(String, Bytes)>, Failure> {
        let mut assembler = Assembler::new(header, GENERATION, 7)?;
        for piece in pieces {
            assembler.push(&piece)?;
        }
        Ok(assembler.finish()?.files)
    }

    proptest! {
        #[test]
        fn what_is_taken_apart_can_be_put_together(
            files in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..4)
        ) {
            let (header, pieces) = disassemble(1, GENERATION, state(&files));
            let back: Vec<Vec<u8>> =
                assemble(header, pieces).unwrap().into_iter().map(|(_, data)| data.to_vec()).collect();
            prop_assert_eq!(back, files);
        }
    }

    #[test]
    fn large_files_travel_in_pieces() {
        let data = vec![5; 2 * PIECE + 1];
        let (header, pieces) = disassemble(1, GENERATION, state(&[data.clone(), vec![1]]));
        let pieces: Vec<Bytes> = pieces.collect();
        assert_eq!(pieces.iter().map(Bytes::len).collect::<Vec<_>>(), [PIECE, PIECE, 1, 1]);
        assert_eq!(assemble(header, pieces.into_iter()).unwrap()[0].1, data);
    }

    #[test]
    fn anything_but_the_announced_bytes_is_refused() {
        let parts = || {
            let (header, pieces) = disassemble(1, GENERATION, state(&[vec![1, 2, 3]]));
            (header, pieces.collect::<Vec<_>>())
        };
        let refusal = |(header, pieces): (StateHeader, Vec<Bytes>)| {
            let error = assemble(header, pieces.into_iter()).unwrap_err();
            assert_eq!(error.code, ErrorCode::BadMessage);
            error.message
        };
        let (mut header, pieces) = parts();
        header.step = 8;
        assert_eq!(
            refusal((header, pieces)),
            "state from the coordinator: step 8 of generation 1.2, not step 7 of 1.2"
        );
        let (mut header, pieces) = parts();
        header.generation = None;
        assert!(refusal((header, pieces)).contains("step 7 of generation none"));
        let (header, _) = parts();
        assert_eq!(refusal((header, vec![])), "state from the coordinator: 0 of 3 bytes");
        let (header, _) = parts();
        let surplus = vec![Bytes::from_static(&[1, 2, 3, 4])];
        assert_eq!(refusal((header, surplus)), "state from the coordinator: more than the 3 bytes announced");
        let (header, _) = parts();
        let damaged = vec![Bytes::from_static(&[1, 2, 4])];
        assert_eq!(refusal((header, damaged)), "state from the coordinator: file-0 does not match its sha256");
        let (mut header, pieces) = parts();
        header.files[0].size = u64::MAX;
        header.files.push(StateFile { size: 4, ..header.files[0].clone() });
        assert_eq!(refusal((header, pieces)), "state from the coordinator: files of impossible sizes");
    }
}

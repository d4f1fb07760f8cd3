//! One hash for a base model, wherever it lies.
//!
//! It covers every file that bears weights or meaning, by its name within the model, in the order of the names. Files
//! are hashed in chunks, in parallel, so it is not the digest that `sha256sum` prints.

use crate::mapped::MappedFile;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

/// Bytes hashed by one task. Part of the definition: another value gives another hash.
const CHUNK: usize = 16 << 20;

/// The hash (hex) of files given with their names within the model.
pub(crate) fn of_files(files: &[(&str, &MappedFile)]) -> String {
    let parts: Vec<(&str, &[u8])> = files.iter().map(|(name, file)| (*name, file.bytes())).collect();
    of_parts(&parts)
}

fn of_parts(parts: &[(&str, &[u8])]) -> String {
    let mut parts = parts.to_vec();
    parts.sort_unstable();
    let chunks: Vec<&[u8]> = parts.iter().flat_map(|(_, bytes)| bytes.chunks(CHUNK)).collect();
    let mut digests = chunks.par_iter().map(Sha256::digest).collect::<Vec<_>>().into_iter();
    let mut whole = Sha256::new();
    for (name, bytes) in parts {
        // Lengths first, so that no two models are spelled alike.
        for length in [name.len(), bytes.len()] {
            whole.update((length as u64).to_le_bytes());
        }
        whole.update(name);
        for digest in digests.by_ref().take(bytes.len().div_ceil(CHUNK)) {
            whole.update(digest);
        }
    }
    hex::encode(whole.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_matter_but_everything_else_does() {
        let hash = of_parts(&[("a", b"x"), ("b", b"y")]);
        assert_eq!(hash, of_parts(&[("b", b"y"), ("a", b"x")]));
        assert_ne!(hash, of_parts(&[("a", b"y"), ("b", b"x")]));
        assert_ne!(hash, of_parts(&[("a", b"xb"), ("", b"y")]));
        assert_ne!(of_parts(&[("a", b"")]), of_parts(&[]));
    }

    #[test]
    fn chunks_are_part_of_the_definition() {
        let long = vec![7; CHUNK + 1];
        let mut by_hand = Sha256::new();
        by_hand.update(1u64.to_le_bytes());
        by_hand.update((CHUNK as u64 + 1).to_le_bytes());
        by_hand.update("m");
        by_hand.update(Sha256::digest(&long[..CHUNK]));
        by_hand.update(Sha256::digest(&long[CHUNK..]));
        assert_eq!(of_parts(&[("m", &long)]), hex::encode(by_hand.finalize()));
    }
}

//! The counter-based generator behind dropout masks and adapter initialization.

/// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): four random words from a
/// counter and a key, the same on every device.
#[derive(Clone, Copy, Debug)]
pub struct Philox {
    key: [u32; 2],
}

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

impl Philox {
    /// A generator with this key.
    #[must_use]
    pub fn new(key: [u32; 2]) -> Self {
        Self { key }
    }

    /// The generator of the dropout masks of one step: key = (fold of the seed's halves, low half of the step).
    #[must_use]
    pub fn dropout(seed: u64, step: u64) -> Self {
        Self::new([(seed ^ (seed >> 32)) as u32, step as u32])
    }

    /// Four words of the dropout mask: channels `4 * quad .. 4 * quad + 4` of one row.
    #[must_use]
    pub fn mask(&self, quad: u32, position: u32, sample: u64, module: u32) -> [u32; 4] {
        self.words([quad, position, sample as u32, module])
    }

    /// Ten rounds.
    #[must_use]
    pub fn words(&self, counter: [u32; 4]) -> [u32; 4] {
        let (mut c, mut k) = (counter, self.key);
        for round in 0..10 {
            if round > 0 {
                k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
            }
            let a = u64::from(MULTIPLIERS[0]) * u64::from(c[0]);
            let b = u64::from(MULTIPLIERS[1]) * u64::from(c[2]);
            c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
        }
        c
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with Random123.
    #[test]
    fn known_answers() {
        assert_eq!(Philox::new([0, 0]).words([0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            Philox::new([u32::MAX; 2]).words([u32::MAX; 4]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }
}

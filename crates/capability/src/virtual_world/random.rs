//! Numbers that look random and are the same in every run.

use std::sync::atomic::{AtomicU64, Ordering};

/// The step of SplitMix64 (Steele, Lea, Flood 2014): the golden ratio in 64 bits.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Numbers that look random and are the same in every run. All instances of a test draw
/// from one sequence, so that two requests do not draw the same.
#[derive(Default)]
pub struct VirtualRandom {
    state: AtomicU64,
}

impl VirtualRandom {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self { state: AtomicU64::new(seed) }
    }

    pub(super) fn number(&self) -> u64 {
        let state = self.state.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn bytes(&self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count.next_multiple_of(8));
        while bytes.len() < count {
            bytes.extend_from_slice(&self.number().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_gives_the_same_sequence() {
        let random = VirtualRandom::new(1_234_567);
        // The first numbers of the published generator for this seed.
        assert_eq!(random.number(), 6_457_827_717_110_365_317);
        assert_eq!(random.number(), 3_203_168_211_198_807_973);
        assert_eq!(VirtualRandom::new(7).bytes(11), VirtualRandom::new(7).bytes(11));
        assert_ne!(VirtualRandom::new(7).bytes(11), VirtualRandom::new(8).bytes(11));
        assert_eq!(random.bytes(11).len(), 11);
    }
}

//! Random numbers that are the same in every run.

/// A generator (SplitMix64): good enough to choose apps by, and reproducible.
pub(crate) struct Random(u64);

/// Chooses among ranks 0, 1, 2 …: rank `n` comes 1 / (n + 1) ^ s as often as rank 0.
pub(crate) struct Zipf {
    /// How much of the whole weight lies at or before each rank.
    cumulated: Vec<f64>,
}

impl Random {
    /// A generator whose sequence `seed` decides.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 random bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 up to and without 1.
    pub(crate) fn share(&mut self) -> f64 {
        // As many bits as a double keeps.
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A number below `count`, or 0 if that is 0.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        ((self.share() * count as f64) as usize).min(count.saturating_sub(1))
    }

    /// Puts values into a random order (Fisher and Yates).
    pub(crate) fn shuffle<Value>(&mut self, values: &mut [Value]) {
        for last in (1..values.len()).rev() {
            values.swap(last, self.below(last + 1));
        }
    }
}

impl Zipf {
    /// Ranks below `count`, with exponent `s`.
    pub(crate) fn new(count: usize, s: f64) -> Self {
        let mut sum = 0.0;
        let cumulated = (0..count)
            .map(|rank| {
                sum += 1.0 / ((rank + 1) as f64).powf(s);
                sum
            })
            .collect();
        Self { cumulated }
    }

    /// A rank.
    pub(crate) fn rank(&self, random: &mut Random) -> usize {
        let whole = self.cumulated.last().copied().unwrap_or(0.0);
        let chosen = random.share() * whole;
        self.cumulated.partition_point(|&before| before <= chosen).min(self.cumulated.len().saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_come_as_often_as_they_should() {
        let zipf = Zipf::new(3, 1.0);
        let mut random = Random::new(1);
        let mut counts = [0_u32; 3];
        for _ in 0..110_000 {
            counts[zipf.rank(&mut random)] += 1;
        }
        // 1, 1/2 and 1/3 of 11/6.
        for (count, expected) in counts.into_iter().zip([60_000, 30_000, 20_000]) {
            assert!(count.abs_diff(expected) < expected / 50, "{counts:?}");
        }
    }

    #[test]
    fn shuffling_keeps_every_value() {
        let mut values = (0..100).collect::<Vec<_>>();
        Random::new(7).shuffle(&mut values);
        assert_ne!(values, (0..100).collect::<Vec<_>>());
        values.sort_unstable();
        assert_eq!(values, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn numbers_stay_below() {
        let mut random = Random::new(3);
        assert!((0..1000).all(|_| random.below(7) < 7));
        assert_eq!(random.below(0), 0);
    }
}

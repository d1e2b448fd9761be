//! A histogram of durations with bounded memory and bounded error.

/// Bits of a value that are kept below its highest bit: values in one bucket
/// differ by less than 1/128, far below the noise of any machine this runs on.
const PRECISION_BITS: u32 = 7;
/// Values below this are counted exactly.
const EXACT_COUNT: u64 = 1 << PRECISION_BITS;
/// The buckets that 64-bit values need at that precision: 58 KiB.
const BUCKET_COUNT: usize = ((64 - PRECISION_BITS as usize) + 1) << PRECISION_BITS;

/// Counts of values by size; logarithmic outside, linear inside each octave.
#[derive(Clone)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
}

impl Histogram {
    /// A histogram without values.
    pub(crate) fn new() -> Self {
        Self { buckets: vec![0; BUCKET_COUNT], count: 0 }
    }

    /// Counts one value.
    pub(crate) fn record(&mut self, value: u64) {
        if let Some(bucket) = self.buckets.get_mut(index(value)) {
            *bucket += 1;
            self.count += 1;
        }
    }

    /// Adds all counts of another histogram.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
    }

    /// How many values were counted.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The smallest value that at least `share` (0 to 1) of all values do not
    /// exceed, rounded down to its bucket; 0 where nothing was counted.
    pub(crate) fn quantile(&self, share: f64) -> u64 {
        let rank = ((self.count as f64 * share).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            seen += bucket;
            if seen >= rank {
                return lower_edge(index);
            }
        }
        0
    }

    /// The distribution as points: a value, and which share of all values (in
    /// percent) is larger. The largest value is left out: none is larger.
    pub(crate) fn tail(&self) -> Vec<(u64, f64)> {
        let mut left = self.count;
        let occupied = self.buckets.iter().enumerate().filter(|(_, bucket)| **bucket > 0);
        occupied
            .filter_map(|(index, bucket)| {
                left -= bucket;
                (left > 0).then(|| (lower_edge(index), 100.0 * left as f64 / self.count as f64))
            })
            .collect()
    }
}

/// The bucket that counts `value`.
fn index(value: u64) -> usize {
    let octave = value.max(EXACT_COUNT).ilog2() - PRECISION_BITS;
    // Below the exact limit the octave is 0 and this is the value itself; above
    // it, the bits under the highest one count up from where the octave begins.
    ((u64::from(octave) << PRECISION_BITS) + (value >> octave)) as usize
}

/// The smallest value that `index` counts.
fn lower_edge(index: usize) -> u64 {
    let index = index as u64;
    let octave = (index >> PRECISION_BITS).saturating_sub(1);
    (index - (octave << PRECISION_BITS)) << octave
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_bucket_holds_its_values_within_the_precision(value: u64) {
            let edge = lower_edge(index(value));
            prop_assert!(edge <= value);
            prop_assert!(value - edge <= value / EXACT_COUNT);
        }

        #[test]
        fn buckets_are_ordered(left: u64, right: u64) {
            let (less, more) = (left.min(right), left.max(right));
            prop_assert!(index(less) <= index(more));
        }

        #[test]
        fn every_value_has_a_bucket(value: u64) {
            prop_assert!(index(value) < BUCKET_COUNT);
        }
    }

    #[test]
    fn quantiles_of_a_known_set() {
        let mut histogram = Histogram::new();
        for value in 1..=100 {
            histogram.record(value);
        }
        assert_eq!(histogram.count(), 100);
        assert_eq!(histogram.quantile(0.5), 50);
        assert_eq!(histogram.quantile(0.99), 99);
        assert_eq!(histogram.quantile(1.0), 100);
    }

    #[test]
    fn the_tail_is_what_is_larger() {
        let mut histogram = Histogram::new();
        for value in [10, 10, 20, 30] {
            histogram.record(value);
        }
        assert_eq!(histogram.tail(), [(10, 50.0), (20, 25.0)]);
        assert!(Histogram::new().tail().is_empty());
    }

    #[test]
    fn merged_counts_add_up() {
        let mut left = Histogram::new();
        left.record(3);
        let mut right = Histogram::new();
        right.record(5);
        left.merge(&right);
        assert_eq!(left.count(), 2);
        assert_eq!(left.quantile(1.0), 5);
    }

    #[test]
    fn nothing_counted() {
        assert_eq!(Histogram::new().quantile(0.99), 0);
    }
}

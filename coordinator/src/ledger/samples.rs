//! Sample indices, written compactly: `3 17-19 40`.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::fmt;

/// Distinct sample indices in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SampleSet(Vec<u32>);

impl SampleSet {
    /// The set of these indices; `None` when one occurs twice.
    #[must_use]
    pub fn new(samples: impl IntoIterator<Item = u32>) -> Option<Self> {
        let mut samples: Vec<u32> = samples.into_iter().collect();
        samples.sort_unstable();
        if samples.windows(2).any(|pair| pair[0] == pair[1]) { None } else { Some(Self(samples)) }
    }

    /// The indices, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    fn from_text(text: &str) -> Option<Self> {
        let mut samples: Vec<u32> = Vec::new();
        for run in text.split_ascii_whitespace() {
            let (first, last) = run.split_once('-').unwrap_or((run, run));
            let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
            // A damaged range must not make a vast set.
            if last < first || last - first > 1 << 24 || samples.last().is_some_and(|previous| *previous >= first) {
                return None;
            }
            samples.extend(first..=last);
        }
        Some(Self(samples))
    }
}

impl fmt::Display for SampleSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut space = "";
        for run in self.0.chunk_by(|a, b| a + 1 == *b) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            if first == last {
                write!(f, "{space}{first}")?
            } else {
                write!(f, "{space}{first}-{last}")?
            }
            space = " ";
        }
        Ok(())
    }
}

impl Serialize for SampleSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SampleSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_text(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is no ascending list of samples")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_compact_and_duplicates_refused() {
        assert_eq!(SampleSet::new([19, 3, 40, 17, 18]).unwrap().to_string(), "3 17-19 40");
        assert_eq!(SampleSet::new([]).unwrap().to_string(), "");
        assert_eq!(SampleSet::new([1, 2, 1]), None);
        for bad in ["x", "3 3", "5-4", "4 1", "0-4294967295", "-1"] {
            assert_eq!(SampleSet::from_text(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn text_reads_back(samples in proptest::collection::btree_set(any::<u32>(), 0..50)) {
            let set = SampleSet::new(samples).unwrap();
            prop_assert_eq!(SampleSet::from_text(&set.to_string()), Some(set));
        }
    }
}

//! The part of base2histogram 0.2.3 that openraft 0.10 is compiled against, counting samples and nothing else.
//!
//! The original fills tables of 26 MiB when the first histogram is made: half of an empty replica's memory, for figures
//! that openraft shows nobody unless its feature `runtime-stats` is on. With that feature this does not compile, so the
//! figures cannot be asked for and be wrong.

use std::fmt;
use std::marker::PhantomData;

/// Counts samples.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    samples: u64,
    slots: PhantomData<T>,
}

impl<T> Histogram<T> {
    /// An empty one.
    pub fn new() -> Self {
        Histogram {
            samples: 0,
            slots: PhantomData,
        }
    }

    /// Adds a sample.
    pub fn record(&mut self, _value: u64) {
        self.samples += 1;
    }

    /// Adds the same sample several times.
    pub fn record_n(&mut self, _value: u64, count: u64) {
        self.samples += count;
    }

    /// How many samples; no percentiles.
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.samples,
            ..PercentileStats::default()
        }
    }
}

/// What a histogram says in short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "as in the original")]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[samples: {}]", self.samples)
    }
}

/// Draws nothing; cannot be shown.
#[derive(Clone, Debug, Default)]
pub struct AsciiChart;

impl AsciiChart {
    /// An empty one.
    pub fn new() -> Self {
        AsciiChart
    }

    /// Leaves the histogram out.
    #[must_use]
    pub fn add(self, _name: &str, _histogram: Histogram) -> Self {
        self
    }
}

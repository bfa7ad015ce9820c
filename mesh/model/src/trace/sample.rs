//! Which traces are recorded (OpenTelemetry's samplers `always_on`, `always_off`, `traceidratio` and `parentbased_…`).

use std::{fmt, str::FromStr};

use super::{TraceId, Wish};

/// Decides which traces are recorded. Everybody who has the same ratio records the same traces.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// Whether the caller's decision holds, if he made one.
    pub heeds_caller: bool,
    /// How many are recorded of the others.
    pub ratio: Ratio,
}

impl Sampler {
    /// Whether `trace` is recorded.
    pub fn records(&self, wish: Wish, trace: TraceId) -> bool {
        match wish {
            Wish::Record | Wish::Debug if self.heeds_caller => true,
            Wish::Drop if self.heeds_caller => false,
            Wish::Open | Wish::Drop | Wish::Record | Wish::Debug => self.ratio.takes(trace),
        }
    }
}

/// A share of all traces, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio(f64);

/// What is no ratio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("accepted: a number from 0 to 1, such as 0.01 for one of a hundred")]
pub struct InvalidRatio;

impl Ratio {
    /// All.
    pub const ALL: Self = Self(1.0);
    /// None.
    pub const NONE: Self = Self(0.0);

    /// By the last 64 bits of its name but the very last, as OpenTelemetry's libraries do it.
    fn takes(self, trace: TraceId) -> bool {
        let bits = (trace.bits() & u128::from(u64::MAX)) >> 1;
        let high = u32::try_from(bits >> 32).unwrap_or(u32::MAX);
        let low = u32::try_from(bits & u128::from(u32::MAX)).unwrap_or(u32::MAX);
        let place = (f64::from(high) * 4_294_967_296.0 + f64::from(low)) / 9_223_372_036_854_775_808.0;
        self.0 >= 1.0 || place < self.0
    }
}

impl FromStr for Ratio {
    type Err = InvalidRatio;

    fn from_str(text: &str) -> Result<Self, InvalidRatio> {
        let ratio: f64 = text.trim().parse().map_err(|_| InvalidRatio)?;
        if (0.0..=1.0).contains(&ratio) { Ok(Self(ratio)) } else { Err(InvalidRatio) }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

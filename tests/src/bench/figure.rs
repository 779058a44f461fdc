//! What a figure is called, what is wanted of it, and whether it is so.

use serde::Serialize;

/// A figure's name and target.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Figure {
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    pub(super) target: Target,
}

/// What is wanted, in the figure's unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Target {
    AtMost(f64),
    AtLeast(f64),
    /// Nothing: it is there to compare.
    Nothing,
}

impl Figure {
    /// Less is better.
    pub(super) const fn at_most(name: &'static str, target: f64, unit: &'static str) -> Figure {
        Figure { name, unit, target: Target::AtMost(target) }
    }

    /// More is better.
    pub(super) const fn at_least(name: &'static str, target: f64, unit: &'static str) -> Figure {
        Figure { name, unit, target: Target::AtLeast(target) }
    }

    /// Without a target.
    pub(super) const fn plain(name: &'static str, unit: &'static str) -> Figure {
        Figure { name, unit, target: Target::Nothing }
    }

    /// The figure of a run: the times of two as a ratio, throughput the other way round.
    pub(super) fn of(&self, measured: f64, native: f64) -> f64 {
        match self.target {
            Target::AtMost(_) | Target::Nothing => measured / native,
            Target::AtLeast(_) => native / measured,
        }
    }

    /// The target for people; empty if there is none.
    pub(super) fn wanted(&self) -> String {
        let (sign, target) = match self.target {
            Target::AtMost(target) => ("<=", target),
            Target::AtLeast(target) => (">=", target),
            Target::Nothing => return String::new(),
        };
        format!("{sign} {target} {}", self.unit)
    }

    /// Whether a value is as wanted.
    pub(super) fn verdict(&self, value: f64) -> &'static str {
        let met = match self.target {
            Target::AtMost(target) => value <= target,
            Target::AtLeast(target) => value >= target,
            Target::Nothing => return "",
        };
        if met { "met" } else { "MISSED" }
    }

    /// A value for people, with three digits that say something.
    pub(super) fn show(&self, value: f64) -> String {
        let digits = match value {
            value if value < 10.0 => 2,
            value if value < 100.0 => 1,
            _ => 0,
        };
        format!("{value:.digits$} {}", self.unit)
    }
}

/// The middle one.
pub(super) fn median(values: &[f64]) -> f64 {
    percentile(values, 50)
}

/// The value that this part (of 100) of the others does not exceed; NaN of nothing.
pub(super) fn percentile(values: &[f64], part: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() * part / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_look_the_right_way() {
        let less = Figure::at_most("a", 2.0, "s");
        assert_eq!((less.verdict(2.0), less.verdict(2.1)), ("met", "MISSED"));
        let more = Figure::at_least("b", 0.95, "x");
        assert_eq!((more.verdict(0.95), more.verdict(0.9)), ("met", "MISSED"));
        assert_eq!(more.wanted(), ">= 0.95 x");
    }

    #[test]
    fn percentiles() {
        let values = [5.0, 1.0, 3.0, 2.0, 4.0];
        assert_eq!((median(&values), percentile(&values, 90), percentile(&values, 100)), (3.0, 5.0, 5.0));
        assert!(median(&[]).is_nan());
    }
}

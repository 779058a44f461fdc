//! Whether this node does what its desired state wants.

use crate::volume::Report;
use std::collections::BTreeMap;

/// Why not, one line for each reason; empty: it does.
pub(super) fn reasons(
    presto: bool,
    wanted: Option<&[String]>,
    reports: &BTreeMap<String, Report>,
) -> Vec<String> {
    let mut reasons = Vec::new();
    if !presto {
        reasons.push("presto is not attached".to_owned());
    }
    let Some(wanted) = wanted else {
        reasons.push("there is no desired state yet".to_owned());
        return reasons;
    };
    for name in wanted {
        match reports.get(name) {
            None => reasons.push(format!("volume {name}: not started yet")),
            Some(report) => {
                reasons.extend(report.not_ready().map(|reason| format!("volume {name}: {reason}")));
            }
        }
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Report {
        Report { alive: true, served: true, ..Report::default() }
    }

    #[test]
    fn every_reason_has_its_line() {
        let wanted = ["ns/a", "ns/b", "ns/c", "ns/d"].map(str::to_owned);
        let mut reports = BTreeMap::from([("ns/a".to_owned(), well())]);
        reports.insert("ns/b".into(), Report { fault: "the disk is full".into(), ..well() });
        reports.insert("ns/c".into(), Report { served: false, ..well() });
        assert_eq!(
            reasons(false, Some(&wanted), &reports),
            [
                "presto is not attached",
                "volume ns/b: the disk is full",
                "volume ns/c: presto does not serve it",
                "volume ns/d: not started yet",
            ]
        );
        assert_eq!(reasons(true, None, &reports), ["there is no desired state yet"]);
        assert!(reasons(true, Some(&["ns/a".to_owned()]), &reports).is_empty());
        assert!(reasons(true, Some(&[]), &reports).is_empty(), "a node without volumes is ready for them");
    }
}

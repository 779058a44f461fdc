//! Rules that more than one type has, in CEL (Kubernetes' `x-kubernetes-validations`). Each message says what to write
//! instead. The same holds for manifests without Kubernetes: `manifest/check.rs`.

use kube::core::Rule;

/// The object's own name is a DNS label: it is a directory on nodes and a part of host names.
pub(crate) fn name() -> Rule {
    let rule = format!("self.metadata.name.size() <= 63 && self.metadata.name.matches('{LABEL}')");
    Rule::new(rule).message("metadata.name must be a DNS label: write at most 63 of a-z, 0-9 and \"-\"")
}

/// The field is a DNS label.
pub(crate) fn dns_label(field: &str) -> Rule {
    let message = format!(
        "{field} must be a DNS label: write at most 63 of a-z, 0-9 and \"-\", with a letter or digit at both ends"
    );
    Rule::new(format!("self.matches('{LABEL}')")).message(message.as_str())
}

/// The field of this object is as it was, or as absent as it was.
pub(crate) fn same_for_ever(field: &str, instead: &str) -> Rule {
    let rule = format!(
        "has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})"
    );
    Rule::new(rule).message(format!("{field} cannot be changed: {instead}").as_str())
}

const LABEL: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";

/// What happened does not change.
pub(crate) fn frozen_spec() -> Rule {
    Rule::new("self.spec == oldSelf.spec")
        .message("a Conflict says what happened and cannot be edited: see `intermezzo conflicts`")
}

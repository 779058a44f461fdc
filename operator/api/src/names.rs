//! What may be a name: one rule for volumes, replicators, namespaces and nodes, that of a DNS label (RFC 1123).

/// Longest DNS label.
pub const MAX: usize = 63;

/// Says why `name` is not a DNS label; `Ok` if it is one.
///
/// # Errors
/// The first rule that the name breaks, as a sentence for people.
pub fn dns_label(name: &str) -> Result<(), String> {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if name.is_empty() {
        return Err("a name must not be empty".into());
    }
    if name.len() > MAX {
        return Err(format!("\"{name}\" has {} characters; at most {MAX} are allowed", name.len()));
    }
    if let Some(bad) = name.chars().find(|c| !edge(*c) && *c != '-') {
        return Err(format!("\"{name}\" contains {bad:?}; allowed are a-z, 0-9 and \"-\""));
    }
    if !name.starts_with(edge) || !name.ends_with(edge) {
        return Err(format!("\"{name}\" must begin and end with a letter or digit"));
    }
    Ok(())
}

/// Splits `namespace/name`, or `name` in the namespace `default`; both parts must be DNS labels.
///
/// # Errors
/// What is wrong with it, as a sentence for people.
pub fn volume(text: &str) -> Result<(String, String), String> {
    let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
    dns_label(namespace)?;
    dns_label(name)?;
    Ok((namespace.to_owned(), name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        for good in ["a", "node-7", "0", &"x".repeat(63)] {
            assert_eq!(dns_label(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "ä", &"x".repeat(64)] {
            assert!(dns_label(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn volume_names_default_their_namespace() {
        assert_eq!(volume("home"), Ok(("default".into(), "home".into())));
        assert_eq!(volume("team/home"), Ok(("team".into(), "home".into())));
        assert!(volume("a/b/c").is_err());
    }
}

//! The kernel's command line, as far as it is about the root file system.

use std::time::Duration;

use anyhow::{Result, bail};

/// How long the disk is waited for, unless the command line says so.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the command line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Where the disk is.
    pub source: Source,
    /// `rootflags=volume=`: which of the disk's volumes.
    pub volume: Option<String>,
    /// `rootflags=lower=`: type of the disk's file system; else it is looked at.
    pub lower: Option<String>,
    /// `rootflags=data=...` and the like: options of the disk's file system.
    pub options: Vec<String>,
    /// `init=`.
    pub init: Option<String>,
    /// `rootwait=`: how long the disk is waited for.
    pub patience: Duration,
}

/// How the disk is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// By its device node.
    Device(String),
    /// By the id of the file system on it.
    Uuid(String),
    /// By the label of the file system on it.
    Label(String),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Device(path) => write!(f, "{path}"),
            Source::Uuid(uuid) => write!(f, "UUID={uuid}"),
            Source::Label(label) => write!(f, "LABEL={label}"),
        }
    }
}

/// Whether an emergency shell is wanted, also where nothing else can be understood.
pub fn wants_shell(line: &str) -> bool {
    words(line).iter().any(|word| word == "intermezzo.shell")
}

/// Reads the command line.
///
/// # Errors
/// A sentence that says what to change.
pub fn parse(line: &str) -> Result<Request> {
    let words = words(line);
    // The last one counts, as in the kernel.
    let value = |name: &str| {
        words
            .iter()
            .filter_map(|word| word.split_once('='))
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| value)
            .next_back()
    };
    match value("rootfstype") {
        Some("intermezzo") => {}
        Some(other) => bail!(
            "rootfstype={other} on the kernel's command line, but this initramfs is for rootfstype=intermezzo: boot with that, \
             or with another initramfs"
        ),
        None => bail!("the kernel's command line has no rootfstype=intermezzo: add it"),
    }
    let source = match value("root") {
        None | Some("") => {
            bail!(
                "the kernel's command line has no root=: add root=/dev/NAME, root=UUID=... or root=LABEL=..."
            )
        }
        Some(source) => parse_source(source)?,
    };
    let patience = match value("rootwait") {
        None => PATIENCE,
        Some(text) => match text.parse() {
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => bail!("rootwait={text} is not a number of seconds"),
        },
    };
    let mut request = Request {
        source,
        volume: None,
        lower: None,
        options: Vec::new(),
        init: value("init").map(str::to_owned),
        patience,
    };
    for flag in value("rootflags").unwrap_or_default().split(',').filter(|flag| !flag.is_empty()) {
        match flag.split_once('=') {
            Some(("volume", "")) => bail!("rootflags=volume= is empty: rootflags=volume=NAMESPACE/NAME"),
            Some(("volume", name)) => request.volume = Some(name.to_owned()),
            Some(("lower", kind)) => request.lower = Some(kind.to_owned()),
            _ => request.options.push(flag.to_owned()),
        }
    }
    Ok(request)
}

fn parse_source(text: &str) -> Result<Source> {
    Ok(match text.split_once('=') {
        Some(("UUID", uuid)) => Source::Uuid(uuid.to_lowercase()),
        Some(("LABEL", label)) => Source::Label(label.to_owned()),
        None if text.starts_with("/dev/") => Source::Device(text.to_owned()),
        _ if text.starts_with("intermezzo:") => bail!(
            "root={text}: a root file system without a disk is not possible yet; name the disk that holds the cache: \
             root=/dev/NAME, root=UUID=... or root=LABEL=..."
        ),
        _ => bail!("root={text} names no disk: root=/dev/NAME, root=UUID=... or root=LABEL=..."),
    })
}

/// Words may be quoted.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for character in line.trim().chars() {
        match character {
            '"' => quoted = !quoted,
            space if space.is_whitespace() && !quoted => words.push(String::new()),
            other => words.last_mut().into_iter().for_each(|word| word.push(other)),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_line_is_understood() {
        let line = "BOOT_IMAGE=/vmlinuz console=ttyS0 root=/dev/sda1 ro rootfstype=ext4 rootfstype=intermezzo \
                    rootflags=volume=team/root,data=journal init=\"/lib/my init\" rootwait=5\n";
        let request = parse(line).unwrap();
        assert_eq!(request.source, Source::Device("/dev/sda1".to_owned()));
        assert_eq!(request.volume.as_deref(), Some("team/root"));
        assert_eq!(request.options, ["data=journal"]);
        assert_eq!(request.init.as_deref(), Some("/lib/my init"));
        assert_eq!(request.patience, Duration::from_secs(5));
        let by = |source: &str| parse(&format!("rootfstype=intermezzo root={source}")).unwrap().source;
        assert_eq!(by("UUID=ABCD-12"), Source::Uuid("abcd-12".to_owned()));
        assert_eq!(by("LABEL=node"), Source::Label("node".to_owned()));
        assert!(wants_shell("quiet intermezzo.shell") && !wants_shell(line));
    }

    #[test]
    fn a_wrong_line_says_what_to_change() {
        for (line, why) in [
            ("root=/dev/vda", "no rootfstype=intermezzo: add it"),
            ("root=/dev/vda rootfstype=ext4", "is for rootfstype=intermezzo"),
            ("rootfstype=intermezzo", "add root=/dev/NAME"),
            ("rootfstype=intermezzo root=vda", "names no disk"),
            ("rootfstype=intermezzo root=PARTUUID=1", "names no disk"),
            ("rootfstype=intermezzo root=intermezzo:a/b@c", "without a disk is not possible yet"),
            ("rootfstype=intermezzo root=/dev/vda rootwait=x", "not a number of seconds"),
            ("rootfstype=intermezzo root=/dev/vda rootflags=volume=", "rootflags=volume=NAMESPACE/NAME"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(why), "{line}: {error}");
        }
    }
}

//! The question "is it safe yet?", asked by an annotation on a Volume: every node's agent answers for what it had when it
//! heard the question, in the `reached` of its status. So nobody's clock matters, and no status is taken for newer than it is.

use kube::Resource;

use crate::Volume;

/// The annotation: [`Ask`] as text.
pub const ANNOTATION: &str = "intermezzo.dev/wait";

/// How far what was written must have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Durable at the server.
    Server,
    /// Durable at the server and at every Replicator.
    Everywhere,
}

/// One question: how far, and a number that tells it from others. As text `server/NUMBER` or `all/NUMBER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// How far.
    pub scope: Scope,
    /// Of chance.
    pub number: u64,
}

impl std::fmt::Display for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scope = match self.scope {
            Scope::Server => "server",
            Scope::Everywhere => "all",
        };
        write!(f, "{scope}/{:016x}", self.number)
    }
}

impl Ask {
    /// Reads one; `None`: it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Ask> {
        let (scope, number) = text.split_once('/')?;
        let scope = match scope {
            "server" => Scope::Server,
            "all" => Scope::Everywhere,
            _ => return None,
        };
        let digits = number.len() == 16 && number.bytes().all(|byte| byte.is_ascii_hexdigit());
        Some(Ask { scope, number: u64::from_str_radix(number, 16).ok().filter(|_| digits)? })
    }

    /// The one that a Volume carries.
    #[must_use]
    pub fn of(volume: &Volume) -> Option<Ask> {
        Ask::parse(volume.meta().annotations.as_ref()?.get(ANNOTATION)?)
    }

    /// Hands it on with a Volume.
    pub fn put(self, volume: &mut Volume) {
        volume.meta_mut().annotations.get_or_insert_default().insert(ANNOTATION.to_owned(), self.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_anything_else_is_no_question() {
        for scope in [Scope::Server, Scope::Everywhere] {
            let ask = Ask { scope, number: 0x2a };
            assert_eq!(Ask::parse(&ask.to_string()), Some(ask));
        }
        for bad in [
            "",
            "all",
            "all/",
            "all/2a",
            "some/000000000000002a",
            "all/000000000000002A0",
            "all/+00000000000002a",
        ] {
            assert_eq!(Ask::parse(bad), None, "{bad}");
        }
    }
}

//! What is wrong with manifests, for people: file, object, field, reason.

use std::fmt;
use std::path::{Path, PathBuf};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// File it is in.
    pub file: PathBuf,
    /// `Kind namespace/name`, or which document of the file; empty when it is about the file.
    pub object: String,
    /// Path of the field, such as `spec.server.nodeName`; empty when it is about the object.
    pub field: String,
    /// What is wrong, and what to do where that is known.
    pub reason: String,
}

impl Problem {
    pub(super) fn file(file: &Path, reason: impl fmt::Display) -> Problem {
        Problem {
            file: file.to_owned(),
            object: String::new(),
            field: String::new(),
            reason: reason.to_string(),
        }
    }

    pub(super) fn document(file: &Path, number: usize, field: &str, reason: impl fmt::Display) -> Problem {
        let object = format!("document {number}");
        Problem { file: file.to_owned(), object, field: field.to_owned(), reason: reason.to_string() }
    }

    pub(super) fn object(
        file: &Path,
        kind: &str,
        id: &str,
        field: &str,
        reason: impl fmt::Display,
    ) -> Problem {
        Problem {
            file: file.to_owned(),
            object: format!("{kind} {id}"),
            field: field.to_owned(),
            reason: reason.to_string(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file.display())?;
        for part in [&self.object, &self.field] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.reason)
    }
}

/// Everything that is wrong; never empty when it is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    pub(super) fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn or<T>(self, value: T) -> Result<T, Problems> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }

    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Problems {
        Problems(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

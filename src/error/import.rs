//! Errors of files of the reference implementation.

use std::fmt;

use super::text::{Excerpt, Message};

/// An error in reading a state dict.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The bytes are in none of the formats, or in one but damaged.
    #[error("{}", Line(.0))]
    Format(String),
    /// A pickle that is cut off, inconsistent, or beyond what the restricted reader takes.
    #[error("pickle, byte {offset}: {}", Line(problem))]
    Pickle {
        /// The place in the pickle, in bytes counted from zero.
        offset: usize,
        /// The problem there.
        problem: String,
    },
    /// The file is sound, but what it holds is no state dict.
    #[error("{}", Line(.0))]
    Content(String),
    /// A tensor is missing or misshapen, or holds what it must not.
    #[error("tensor `{}`: {}", Excerpt(name), Line(problem))]
    Tensor {
        /// Its name.
        name: String,
        /// The problem.
        problem: String,
    },
    /// Tensors that belong to no layer of the architecture.
    #[error("{count} tensors that nothing uses: {}", Line(.names))]
    Unused {
        /// Their number.
        count: usize,
        /// The first few names.
        names: String,
    },
}

/// At most 400 characters of a message that quotes a file, escapes counted as they are written.
struct Line<'a>(&'a str);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut escaped = String::new();
        for c in self.0.chars().take(401) {
            if c.is_control() { escaped.extend(c.escape_default()) } else { escaped.push(c) }
        }
        Message(&escaped).fmt(f)
    }
}

#[cfg(feature = "import")]
impl ImportError {
    pub(crate) fn tensor(name: &str, problem: impl Into<String>) -> Self {
        Self::Tensor { name: name.to_owned(), problem: problem.into() }
    }
}

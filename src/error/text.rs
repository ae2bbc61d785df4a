//! Texts of files and numbers of things, as messages show them.

use std::fmt;

/// At most 60 characters of a text from a file, control characters escaped.
pub(crate) struct Excerpt<'a>(pub(crate) &'a str);

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        shorten(self.0, 60, f)
    }
}

/// At most 400 characters of a message that quotes a file, control characters escaped.
pub(crate) struct Message<'a>(pub(crate) &'a str);

impl fmt::Display for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        shorten(self.0, 400, f)
    }
}

fn shorten(text: &str, most: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut characters = text.chars();
    for c in characters.by_ref().take(most) {
        if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
    }
    if characters.next().is_some() { write!(f, "…") } else { Ok(()) }
}

/// At most eight entries of an array's shape, written as NumPy writes it.
pub(crate) struct Dimensions<'a>(pub(crate) &'a [u64]);

impl fmt::Display for Dimensions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "(")?;
        for (i, d) in self.0.iter().take(8).enumerate() {
            write!(f, "{}{d}", if i > 0 { ", " } else { "" })?;
        }
        write!(f, "{})", if self.0.len() > 8 { ", …" } else { "" })
    }
}

/// Sentences after a colon: one on the same line, several on a line each.
pub(crate) struct Listed<'a>(pub(crate) &'a [String]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = self.0 {
            return write!(f, " {only}; ");
        }
        self.0.iter().try_for_each(|sentence| write!(f, "\n  {sentence}"))?;
        writeln!(f)
    }
}

/// The names of columns, in a sentence.
pub(crate) struct Known<'a>(pub(crate) &'a [String]);

impl fmt::Display for Known<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str(": the columns have no names");
        }
        f.write_str("; there are ")?;
        for (i, name) in self.0.iter().take(20).enumerate() {
            write!(f, "{}`{}`", if i > 0 { ", " } else { "" }, Excerpt(name))?;
        }
        if self.0.len() > 20 { f.write_str(", …") } else { Ok(()) }
    }
}

/// A word for none, one or several names, and the first of them.
pub(crate) struct Names<'a>(
    pub(crate) &'a [String],
    pub(crate) &'static str,
    pub(crate) &'static str,
    pub(crate) &'static str,
);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(names, none, one, several) = self;
        match names.len() {
            0 => return f.write_str(none),
            1 => write!(f, "{one} ")?,
            _ => write!(f, "{several} ")?,
        }
        for (i, name) in names.iter().take(8).enumerate() {
            write!(f, "{}`{}`", if i > 0 { ", " } else { "" }, Excerpt(name))?;
        }
        if names.len() > 8 { write!(f, " and {} more", names.len() - 8) } else { Ok(()) }
    }
}

/// `count` and a noun in the right number.
pub(crate) struct Count(pub(crate) usize, pub(crate) &'static str);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{}", self.0, self.1, if self.0 == 1 { "" } else { "s" })
    }
}

//! What pictures are like that become one set: their sizes, their colours, and what reading them took.
//!
//! Surveys of parts, joined in the order of the pictures, are the survey of all.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::picture::Picture;
use super::{ImageError, ImageSet, ImageSize};
use crate::error::{Count, DataError, Excerpt};

/// How many of something, and the name of the first.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct Tally {
    count: usize,
    first: String,
}

impl Tally {
    fn add(&mut self, name: &str) {
        if self.count == 0 {
            name.clone_into(&mut self.first);
        }
        self.count += 1;
    }

    fn join(&mut self, other: &Self) {
        if self.count == 0 {
            self.first.clone_from(&other.first);
        }
        self.count += other.count;
    }
}

/// What some pictures are like.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Heights and widths, behind cutting and padding.
    sizes: BTreeMap<[usize; 2], Tally>,
    gray: Tally,
    deep: Tally,
    transparent: Tally,
    /// Those that were cut or padded.
    fitted: Tally,
}

/// A survey on its way to another process: the sizes, then gray, deep, transparent and fitted ones.
#[derive(Serialize, Deserialize)]
struct Message(Vec<([usize; 2], Tally)>, [Tally; 4]);

impl Survey {
    /// Takes a picture, which is cut or padded to a height and width if these are given.
    pub(super) fn add(
        &mut self,
        name: &str,
        picture: Picture,
        wanted: Option<[usize; 2]>,
    ) -> Result<ImageSet, DataError> {
        let Picture { set, deep, transparent } = picture;
        let found = set.size();
        let set = brought(set, wanted)?;
        for (tally, counts) in [
            (&mut self.deep, deep),
            (&mut self.transparent, transparent),
            (&mut self.gray, set.channels() == 1),
            (&mut self.fitted, set.size() != found),
        ] {
            if counts {
                tally.add(name);
            }
        }
        self.sizes.entry([set.height(), set.width()]).or_default().add(name);
        Ok(set)
    }

    /// Takes the survey of the pictures that follow.
    pub(super) fn join(&mut self, next: &Self) {
        for (size, tally) in &next.sizes {
            self.sizes.entry(*size).or_default().join(tally);
        }
        self.gray.join(&next.gray);
        self.deep.join(&next.deep);
        self.transparent.join(&next.transparent);
        self.fitted.join(&next.fitted);
    }

    fn count(&self) -> usize {
        self.sizes.values().map(|tally| tally.count).sum()
    }

    /// Whether there are pictures of several sizes, which make no set.
    pub(super) fn is_mixed(&self) -> bool {
        self.sizes.len() > 1
    }

    /// Whether a picture has colours: then all have three channels, else one.
    pub(super) fn has_colours(&self) -> bool {
        self.gray.count < self.count()
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let sizes = self.sizes.iter().map(|(size, tally)| (*size, tally.clone())).collect();
        let tallies = [&self.gray, &self.deep, &self.transparent, &self.fitted].map(Tally::clone);
        // numbers and texts: there is nothing that could fail
        serde_json::to_vec(&Message(sizes, tallies)).unwrap_or_default()
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let Message(sizes, [gray, deep, transparent, fitted]) = serde_json::from_slice(bytes).ok()?;
        Some(Self { sizes: sizes.into_iter().collect(), gray, deep, transparent, fitted })
    }

    /// The size of all pictures.
    pub(super) fn one_size(&self) -> Result<[usize; 2], ImageError> {
        let of = |(size, tally): (&[usize; 2], &Tally)| (*size, tally.count, tally.first.clone());
        let mut sizes: Vec<_> = self.sizes.iter().map(of).collect();
        sizes.sort_by_key(|(_, count, _)| std::cmp::Reverse(*count));
        match sizes.as_slice() {
            [(size, ..)] => Ok(*size),
            _ => Err(ImageError::Sizes { sizes }),
        }
    }

    /// What became of pictures that were not as the others, in sentences.
    pub(super) fn conversions(&self) -> Vec<String> {
        let all = self.count();
        let mut notes = Vec::new();
        let mut note = |tally: &Tally, what: &str| {
            if tally.count > 0 {
                let (count, first) = (Count(tally.count, "picture"), Excerpt(&tally.first));
                notes.push(format!("{count} of {all} {what} (`{first}` the first)"));
            }
        };
        note(&self.deep, "had 16 bits a channel, rounded to 8");
        note(&self.transparent, "transparent in places, put on white");
        if self.has_colours() {
            note(&self.gray, "gray among those in colours, taken as colours");
        }
        note(&self.fitted, "cut or padded about the centre to the size that was asked for");
        notes
    }
}

/// A picture cut or padded to a height and width, if these are given.
pub(super) fn brought(set: ImageSet, wanted: Option<[usize; 2]>) -> Result<ImageSet, DataError> {
    match wanted {
        Some([height, width]) if [set.height(), set.width()] != [height, width] => {
            set.adapted(ImageSize { height, width, channels: set.channels() })
        }
        _ => Ok(set),
    }
}

/// Gray as red, green and blue.
pub(super) fn repeated(gray: &[u8]) -> Vec<u8> {
    gray.iter().flat_map(|&v| [v; 3]).collect()
}

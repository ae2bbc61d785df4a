//! The files of MNIST and its kin (Fashion-MNIST, EMNIST, KMNIST) in a folder.
//!
//! | what | names |
//! |---|---|
//! | yann.lecun.com, torchvision | `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte` |
//! | unpacked by 7-zip | `train-images.idx3-ubyte` |
//! | NIST | `emnist-letters-train-images-idx3-ubyte`, `emnist-letters-test-labels-idx1-ubyte` |
//! | Kaggle | any of them in a folder of its own name |
//!
//! all with or without `.gz`, in any case. A file with such a name is one of them whatever is in it, so that a failed
//! download is told; other names count if they say what the file is and the file begins as IDX does. Without any such
//! name the one file that begins as images in IDX do is the training set.

use std::fs;

use super::files::{Parts, Series};
use super::folder::{ImageData, Source, same_size};
use super::listing::{Entry, Listing, beginning, within};
use super::records::Found;
use super::{ImageError, ImageSet, idx};
use crate::error::DataError;

/// What a file is for, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Purpose {
    test: bool,
    labels: bool,
    /// What stands before, in lower case.
    prefix: String,
}

impl Purpose {
    /// By the words of a name, which the format's own ending may follow; says whether it does.
    fn of(name: &str) -> Option<(Self, bool)> {
        let name = name.to_lowercase().replace(['.', '_'], "-");
        let name = name.strip_suffix("-gz").unwrap_or(&name);
        let (stem, format) = match ["-idx1-ubyte", "-idx3-ubyte", "-idx4-ubyte"].iter().find(|e| name.ends_with(**e)) {
            Some(ending) => (&name[..name.len() - ending.len()], true),
            None => (name, false),
        };
        let (stem, labels) = match (stem.strip_suffix("-images"), stem.strip_suffix("-labels")) {
            (Some(stem), _) => (stem, false),
            (None, Some(stem)) => (stem, true),
            (None, None) => return None,
        };
        let parts = [("train", false), ("training", false), ("t10k", true), ("test", true), ("testing", true)];
        parts.into_iter().find_map(|(part, test)| {
            let prefix = stem.strip_suffix(part)?;
            let whole = prefix.is_empty() || prefix.ends_with('-');
            whole.then(|| (Self { test, labels, prefix: prefix.to_owned() }, format))
        })
    }

    fn name(&self) -> &'static str {
        match (self.test, self.labels) {
            (false, false) => "training images",
            (false, true) => "training labels",
            (true, false) => "test images",
            (true, true) => "test labels",
        }
    }
}

/// A file of images and, where it is there, that of their labels.
struct Labelled {
    images: Entry,
    labels: Option<Entry>,
}

impl Labelled {
    fn read(&self) -> Result<ImageSet, DataError> {
        let images = self.images.load(idx::read_images)?;
        let Some(labels) = &self.labels else { return Ok(images) };
        let values = labels.load(idx::read_labels)?;
        images.with_labels(values).map_err(|e| within(&labels.path, e))
    }

    fn find(&self) -> Result<Series, DataError> {
        Ok(Series { files: vec![Found::idx(&self.images)?], labels: self.labels.clone() })
    }
}

/// Whether a name is that of one of the files.
pub(super) fn is_part(name: &str) -> bool {
    Purpose::of(name).is_some()
}

/// The files of one such data set.
pub(super) struct Mnist {
    training: Option<Labelled>,
    test: Option<Labelled>,
    notes: Vec<String>,
}

impl Mnist {
    pub(super) fn find(listing: &Listing) -> Result<Option<Self>, DataError> {
        let mut found: Vec<(Purpose, Entry)> = Vec::new();
        for entry in &listing.files {
            match Purpose::of(&entry.name) {
                Some((purpose, true)) => found.push((purpose, entry.clone())),
                Some((purpose, false)) if beginning(&entry.path).is_ok_and(|bytes| idx::begins(&bytes)) => {
                    found.push((purpose, entry.clone()));
                }
                _ => {}
            }
        }
        // a folder for each file, with the file in it
        for folder in listing.folders.iter().filter(|folder| Purpose::of(&folder.name).is_some()) {
            for entry in Listing::of(&folder.path)?.files {
                if let Some((purpose, _)) = Purpose::of(&entry.name) {
                    found.push((purpose, entry));
                }
            }
        }
        if !found.iter().any(|(purpose, _)| !purpose.labels) {
            found = by_contents(listing);
        }
        let Some((first, of)) = found.iter().find(|(purpose, _)| !purpose.labels) else { return Ok(None) };
        if let Some((_, other)) = found.iter().find(|(purpose, _)| purpose.prefix != first.prefix) {
            return Err(ImageError::TwoSets { first: of.name.clone(), second: other.name.clone() }.into());
        }
        let mut notes = Vec::new();
        let mut only = |test, labels| -> Result<Option<Entry>, DataError> {
            let mut of: Vec<_> = found.iter().filter(|(p, _)| (p.test, p.labels) == (test, labels)).collect();
            // one that is there twice is one
            while let [.., (_, first), (purpose, second)] = of.as_slice() {
                if !same_contents(first, second)? {
                    let (what, first, second) = (purpose.name(), first.name.clone(), second.name.clone());
                    return Err(ImageError::TwoFiles { what, first, second }.into());
                }
                notes.push(format!("`{}` is there twice with the same contents", crate::error::Excerpt(&second.name)));
                of.pop();
            }
            Ok(of.first().map(|(_, entry)| entry.clone()))
        };
        let training = only(false, false)?;
        let test = only(true, false)?;
        let training_labels = only(false, true)?;
        let test_labels = only(true, true)?;
        Ok(Some(Self {
            training: training.map(|images| Labelled { images, labels: training_labels }),
            test: test.map(|images| Labelled { images, labels: test_labels }),
            notes,
        }))
    }
}

/// The files of a folder that begin as IDX does; unless there are many, which are something else.
fn by_contents(listing: &Listing) -> Vec<(Purpose, Entry)> {
    /// More files than such a data set has.
    const MOST: usize = 32;
    if listing.files.len() > MOST {
        return Vec::new();
    }
    let purpose = |entry: &Entry| {
        let labels = idx::rank(&beginning(&entry.path).ok()?)? == 1;
        Some((Purpose { test: false, labels, prefix: String::new() }, entry.clone()))
    };
    listing.files.iter().filter_map(purpose).collect()
}

/// Whether two files are the same to the byte.
fn same_contents(first: &Entry, second: &Entry) -> Result<bool, DataError> {
    let size = |entry: &Entry| fs::metadata(&entry.path).map(|m| m.len()).map_err(|e| within(&entry.path, e.into()));
    if size(first)? != size(second)? {
        return Ok(false);
    }
    first.load(|bytes| second.load(|other| Ok(bytes == other)))
}

impl Mnist {
    fn training(&self) -> Result<&Labelled, ImageError> {
        self.training.as_ref().ok_or_else(|| ImageError::OnlyTest { test: self.a_name().to_owned() })
    }
}

impl Source for Mnist {
    fn a_name(&self) -> &str {
        self.training.as_ref().or(self.test.as_ref()).map_or("", |labelled| &labelled.images.name)
    }

    fn read(&self) -> Result<ImageData, DataError> {
        let training = self.training()?;
        let set = training.read()?;
        let notes = self.notes.clone();
        let Some(test) = &self.test else { return Ok(ImageData { training: set, test: None, notes }) };
        let test_set = test.read()?;
        same_size((&training.images.name, set.size()), (&test.images.name, test_set.size()))?;
        Ok(ImageData { training: set, test: Some(test_set), notes })
    }

    fn find(&self) -> Result<(Parts, Vec<String>), DataError> {
        let of = self.training()?;
        let training = of.find()?;
        let mut test = None;
        if let Some(labelled) = &self.test {
            let series = labelled.find()?;
            same_size((&of.images.name, training.size()?), (&labelled.images.name, series.size()?))?;
            test = Some(series);
        }
        Ok((Parts::Records { training, test }, self.notes.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purposes_are_told_by_names() {
        for (name, test, labels, prefix, format) in [
            ("train-images-idx3-ubyte", false, false, "", true),
            ("t10k-labels.idx1-ubyte.gz", true, true, "", true),
            ("TRAIN-IMAGES.IDX3-UBYTE", false, false, "", true),
            ("emnist-letters-test-images-idx3-ubyte.gz", true, false, "emnist-letters-", true),
            ("train-images-idx3-ubyte-train-images-idx3-ubyte", false, false, "train-images-idx3-ubyte-", true),
            ("fashion_train_images_idx3_ubyte", false, false, "fashion-", true),
            ("train-images.gz", false, false, "", false),
            ("train_labels", false, true, "", false),
        ] {
            let purpose = Purpose { test, labels, prefix: prefix.to_owned() };
            assert_eq!(Purpose::of(name), Some((purpose, format)), "{name}");
        }
        for name in
            ["train-images-idx3-ubyte.sha256", "images", "retrain-images-idx3-ubyte", "train.bin", "qmnist-train"]
        {
            assert_eq!(Purpose::of(name), None, "{name}");
        }
    }
}

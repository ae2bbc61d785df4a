//! The parts of a data set among the files of a folder. [`open`](super::open()) has the rules.

use super::listing::{Entry, Listing};
use super::mnist::{self, Mnist};
use super::{ImageError, ImageSet, ImageSize, cifar, pictures};
use crate::error::{DataError, Excerpt};
use std::path::Path;

/// Folders in folders with nothing else in them that are gone into.
const DEPTH: usize = 4;

/// The images of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageData {
    /// The images for training and validation.
    pub training: ImageSet,
    /// The data set's own test images, of the same size, where they come with it.
    pub test: Option<ImageSet>,
    /// Sentences on what was decided in reading them: classes, conversions, what was left out.
    pub notes: Vec<String>,
}

/// Reads the data set of a folder; pictures are cut or padded to a height and width if these are given.
pub(super) fn open(folder: &Path, size: Option<[usize; 2]>) -> Result<ImageData, DataError> {
    let mut here = Listing::of(folder)?;
    let mut notes = Vec::new();
    while let Some(only) = wrapped(&here).filter(|_| notes.len() < DEPTH) {
        notes.push(format!("the data are those of the folder `{}` in it", Excerpt(&only.name)));
        here = Listing::of(&only.path)?;
    }
    if let Some(mut data) = read(&here, size)? {
        data.notes.splice(0..0, notes);
        return Ok(data);
    }
    let python = ["data_batch_1", "cifar-10-batches-py", "cifar-100-python"];
    let is_python = |entry: &Entry| python.contains(&&*entry.name);
    if here.files.iter().chain(&here.folders).any(is_python) {
        return Err(ImageError::PythonCifar.into());
    }
    Err(ImageError::NoImages { found: here.summary() }.into())
}

/// The only folder of a folder without files, as archives have it; unless it is a part of a data set itself.
fn wrapped(here: &Listing) -> Option<Entry> {
    let run = |entry: &Entry| Listing::of(&entry.path).is_ok_and(|listing| listing.is_run());
    match (here.files.as_slice(), here.folders.as_slice()) {
        ([], [only]) if !pictures::is_test(&only.name) && !mnist::is_part(&only.name) && !run(only) => {
            Some(only.clone())
        }
        _ => None,
    }
}

fn read(here: &Listing, size: Option<[usize; 2]>) -> Result<Option<ImageData>, DataError> {
    let below10 = here.below("cifar-10-batches-bin")?;
    let below100 = here.below("cifar-100-binary")?;
    let mut found: Vec<Box<dyn Source + '_>> = Vec::new();
    if let Some(mnist) = Mnist::find(here)? {
        found.push(Box::new(mnist));
    }
    for listing in [Some(here), below10.as_ref()].into_iter().flatten() {
        found.extend(Cifar10::find(listing).map(|set| Box::new(set) as Box<dyn Source>));
    }
    for listing in [Some(here), below100.as_ref()].into_iter().flatten() {
        found.extend(Cifar100::find(listing).map(|set| Box::new(set) as Box<dyn Source>));
    }
    match &found[..] {
        [] => pictures::read(here, size),
        [only] => only.read().map(Some),
        [first, second, ..] => {
            Err(ImageError::TwoSets { first: first.a_name().to_owned(), second: second.a_name().to_owned() }.into())
        }
    }
}

/// The files of one data set.
pub(super) trait Source {
    /// The name of one of them.
    fn a_name(&self) -> &str;

    fn read(&self) -> Result<ImageData, DataError>;
}

struct Cifar10<'a> {
    batches: [Option<&'a Entry>; 5],
    test: Option<&'a Entry>,
}

impl<'a> Cifar10<'a> {
    fn find(listing: &'a Listing) -> Option<Self> {
        let batches = [1, 2, 3, 4, 5].map(|i| listing.file(&format!("data_batch_{i}.bin")));
        let test = listing.file("test_batch.bin");
        (batches.iter().any(Option::is_some) || test.is_some()).then_some(Self { batches, test })
    }
}

impl Source for Cifar10<'_> {
    fn a_name(&self) -> &str {
        self.batches.iter().flatten().next().copied().or(self.test).map_or("", |entry| &entry.name)
    }

    fn read(&self) -> Result<ImageData, DataError> {
        // a part of the training set would pass for the whole
        let missing = self.batches.iter().zip(1..).filter(|(batch, _)| batch.is_none());
        let missing: Vec<_> = missing.map(|(_, i)| format!("data_batch_{i}.bin")).collect();
        if missing.len() == 5 {
            return Err(ImageError::OnlyTest { test: self.a_name().to_owned() }.into());
        }
        if !missing.is_empty() {
            return Err(ImageError::Batches { missing: missing.join(", ") }.into());
        }
        let mut pixels = Vec::new();
        let mut labels = Vec::new();
        let mut size = None;
        for batch in self.batches.iter().flatten() {
            let (its, bytes, numbers) = batch.load(cifar::read10)?.into_parts();
            pixels.extend(bytes);
            labels.extend(numbers.unwrap_or_default());
            size = Some(its);
        }
        // one of the batches is there
        let ImageSize { height, width, channels } = size.ok_or(ImageError::Zero { what: "number of images" })?;
        let training = ImageSet::new(height, width, channels, pixels, Some(labels))?;
        let test = self.test.map(|entry| entry.load(cifar::read10)).transpose()?;
        Ok(ImageData { training, test, notes: Vec::new() })
    }
}

struct Cifar100<'a> {
    training: Option<&'a Entry>,
    test: Option<&'a Entry>,
}

impl<'a> Cifar100<'a> {
    fn find(listing: &'a Listing) -> Option<Self> {
        let (training, test) = (listing.file("train.bin"), listing.file("test.bin"));
        (training.is_some() || test.is_some()).then_some(Self { training, test })
    }
}

impl Source for Cifar100<'_> {
    fn a_name(&self) -> &str {
        self.training.or(self.test).map_or("", |entry| &entry.name)
    }

    fn read(&self) -> Result<ImageData, DataError> {
        let Some(training) = self.training else {
            return Err(ImageError::OnlyTest { test: self.a_name().to_owned() }.into());
        };
        let training = training.load(cifar::read100)?;
        let test = self.test.map(|entry| entry.load(cifar::read100)).transpose()?;
        Ok(ImageData { training, test, notes: Vec::new() })
    }
}

/// Refuses files with images of different sizes.
pub(super) fn same_size(first: (&str, ImageSize), second: (&str, ImageSize)) -> Result<(), ImageError> {
    if first.1 == second.1 {
        return Ok(());
    }
    Err(ImageError::Mixed {
        first: first.0.to_owned(),
        first_size: first.1,
        second: second.0.to_owned(),
        second_size: second.1,
    })
}

//! The parts of a data set among the files of a folder. [`open`](super::open()) has the rules.

use super::files::{Parts, Series};
use super::listing::{Entry, Listing};
use super::mnist::{self, Mnist};
use super::records::Found;
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
    let (here, notes) = enter(folder)?;
    let data = with_source(&here, |source| match source {
        Some(source) => source.read().map(Some),
        None => pictures::find(&here)?.map(|pictures| pictures.read(size)).transpose(),
    })?;
    let mut data = data.map_or_else(|| Err(nothing(&here)), Ok)?;
    data.notes.splice(0..0, notes);
    Ok(data)
}

/// Finds the files of a folder's data set, with sentences on what was decided.
pub(super) fn find(folder: &Path) -> Result<(Parts, Vec<String>), DataError> {
    let (here, mut notes) = enter(folder)?;
    let found = with_source(&here, |source| match source {
        Some(source) => source.find().map(Some),
        None => Ok(pictures::find(&here)?.map(|pictures| (Parts::Pictures(pictures), Vec::new()))),
    })?;
    let (parts, said) = found.map_or_else(|| Err(nothing(&here)), Ok)?;
    notes.extend(said);
    Ok((parts, notes))
}

/// The listing of the folder that has the data, with sentences on folders that were gone into.
fn enter(folder: &Path) -> Result<(Listing, Vec<String>), DataError> {
    let mut here = Listing::of(folder)?;
    let mut notes = Vec::new();
    while let Some(only) = wrapped(&here).filter(|_| notes.len() < DEPTH) {
        notes.push(format!("the data are those of the folder `{}` in it", Excerpt(&only.name)));
        here = Listing::of(&only.path)?;
    }
    Ok((here, notes))
}

/// The error of a folder without images.
fn nothing(here: &Listing) -> DataError {
    let python = ["data_batch_1", "cifar-10-batches-py", "cifar-100-python"];
    let is_python = |entry: &Entry| python.contains(&&*entry.name);
    if here.files.iter().chain(&here.folders).any(is_python) {
        return ImageError::PythonCifar.into();
    }
    ImageError::NoImages { found: here.summary() }.into()
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

/// Shows the one data set whose files are in a folder, if there is one.
fn with_source<T>(
    here: &Listing,
    show: impl FnOnce(Option<&dyn Source>) -> Result<T, DataError>,
) -> Result<T, DataError> {
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
        [] => show(None),
        [only] => show(Some(&**only)),
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

    /// Reads the headers alone, with sentences on what was decided.
    fn find(&self) -> Result<(Parts, Vec<String>), DataError>;
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

impl Cifar10<'_> {
    fn check(&self) -> Result<(), ImageError> {
        // a part of the training set would pass for the whole
        let missing = self.batches.iter().zip(1..).filter(|(batch, _)| batch.is_none());
        let missing: Vec<_> = missing.map(|(_, i)| format!("data_batch_{i}.bin")).collect();
        match missing.len() {
            0 => Ok(()),
            5 => Err(ImageError::OnlyTest { test: self.a_name().to_owned() }),
            _ => Err(ImageError::Batches { missing: missing.join(", ") }),
        }
    }
}

impl Source for Cifar10<'_> {
    fn a_name(&self) -> &str {
        self.batches.iter().flatten().next().copied().or(self.test).map_or("", |entry| &entry.name)
    }

    fn read(&self) -> Result<ImageData, DataError> {
        self.check()?;
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

    fn find(&self) -> Result<(Parts, Vec<String>), DataError> {
        self.check()?;
        let found = |entry: &Entry| Found::cifar(entry, cifar::CLASSES[0]);
        let training = self.batches.iter().flatten().copied().map(found).collect::<Result<_, _>>()?;
        let test = self.test.map(found).transpose()?.map(|file| Series::of(vec![file]));
        Ok((Parts::Records { training: Series::of(training), test }, Vec::new()))
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

impl Cifar100<'_> {
    fn training(&self) -> Result<&Entry, ImageError> {
        self.training.ok_or_else(|| ImageError::OnlyTest { test: self.a_name().to_owned() })
    }
}

impl Source for Cifar100<'_> {
    fn a_name(&self) -> &str {
        self.training.or(self.test).map_or("", |entry| &entry.name)
    }

    fn read(&self) -> Result<ImageData, DataError> {
        let training = self.training()?.load(cifar::read100)?;
        let test = self.test.map(|entry| entry.load(cifar::read100)).transpose()?;
        Ok(ImageData { training, test, notes: Vec::new() })
    }

    fn find(&self) -> Result<(Parts, Vec<String>), DataError> {
        let found = |entry: &Entry| Ok::<_, DataError>(Series::of(vec![Found::cifar(entry, cifar::CLASSES[1])?]));
        Ok((Parts::Records { training: found(self.training()?)?, test: self.test.map(found).transpose()? }, Vec::new()))
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

//! The parts of a data set among the files of a folder. [`open`](super::open()) has the rules.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{ImageError, ImageSet, ImageSize, cifar, idx, png};
use crate::error::DataError;

/// The images of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageData {
    /// The images for training and validation.
    pub training: ImageSet,
    /// The data set's own test images, of the same size, where they come with it.
    pub test: Option<ImageSet>,
}

/// An error with the path it is about, unless it has one.
pub(super) fn within(path: &Path, error: DataError) -> DataError {
    match error {
        DataError::File { .. } => error,
        error => DataError::File { path: path.to_owned(), source: Box::new(error) },
    }
}

/// A file or a folder, by its name.
struct Entry {
    name: String,
    path: PathBuf,
}

impl Entry {
    fn load<T>(&self, reader: impl FnOnce(&[u8]) -> Result<T, DataError>) -> Result<T, DataError> {
        fs::read(&self.path)
            .map_err(DataError::from)
            .and_then(|bytes| reader(&bytes))
            .map_err(|e| within(&self.path, e))
    }
}

/// The contents of a folder, in the order of the names.
struct Listing {
    files: Vec<Entry>,
    folders: Vec<Entry>,
}

impl Listing {
    fn of(folder: &Path) -> io::Result<Self> {
        let mut paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        let entries = paths.into_iter().map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Entry { name, path }
        });
        let (folders, files) = entries.partition(|entry| entry.path.is_dir());
        Ok(Self { files, folders })
    }

    fn file(&self, name: &str) -> Option<&Entry> {
        self.files.iter().find(|entry| entry.name == name)
    }

    /// The listing of a folder in this one.
    fn below(&self, name: &str) -> Result<Option<Self>, DataError> {
        let Some(entry) = self.folders.iter().find(|entry| entry.name == name) else { return Ok(None) };
        Ok(Some(Self::of(&entry.path).map_err(|e| within(&entry.path, e.into()))?))
    }
}

/// Reads the data set of a folder.
pub(super) fn open(folder: &Path) -> Result<ImageData, DataError> {
    let here = Listing::of(folder)?;
    let below10 = here.below("cifar-10-batches-bin")?;
    let below100 = here.below("cifar-100-binary")?;
    let mut found: Vec<Box<dyn Source + '_>> = Vec::new();
    if let Some(mnist) = Mnist::find(&here)? {
        found.push(Box::new(mnist));
    }
    for listing in [Some(&here), below10.as_ref()].into_iter().flatten() {
        found.extend(Cifar10::find(listing).map(|set| Box::new(set) as Box<dyn Source>));
    }
    for listing in [Some(&here), below100.as_ref()].into_iter().flatten() {
        found.extend(Cifar100::find(listing).map(|set| Box::new(set) as Box<dyn Source>));
    }
    match &found[..] {
        [] => pictures(&here),
        [only] => only.read(),
        [first, second, ..] => {
            Err(ImageError::TwoSets { first: first.a_name().to_owned(), second: second.a_name().to_owned() }.into())
        }
    }
}

/// The files of one data set.
trait Source {
    /// The name of one of them.
    fn a_name(&self) -> &str;

    fn read(&self) -> Result<ImageData, DataError>;
}

/// A file of images and, where it is there, that of their labels.
struct Labelled<'a> {
    images: &'a Entry,
    labels: Option<&'a Entry>,
}

impl Labelled<'_> {
    fn read(&self) -> Result<ImageSet, DataError> {
        let images = self.images.load(idx::read_images)?;
        let Some(labels) = self.labels else { return Ok(images) };
        let values = labels.load(idx::read_labels)?;
        images.with_labels(values).map_err(|e| within(&labels.path, e))
    }
}

struct Mnist<'a> {
    training: Option<Labelled<'a>>,
    test: Option<Labelled<'a>>,
}

impl<'a> Mnist<'a> {
    fn find(listing: &'a Listing) -> Result<Option<Self>, ImageError> {
        let mut prefix: Option<(&str, &Entry)> = None;
        let mut only = |what, ending| -> Result<Option<&'a Entry>, ImageError> {
            let prefix_of = |entry: &'a Entry| {
                let name = entry.name.strip_suffix(".gz").unwrap_or(&entry.name);
                name.strip_suffix(ending).map(|prefix| (prefix, entry))
            };
            let mut matching = listing.files.iter().filter_map(prefix_of);
            let Some((its, entry)) = matching.next() else { return Ok(None) };
            if let Some((_, other)) = matching.next() {
                return Err(ImageError::TwoFiles { what, first: entry.name.clone(), second: other.name.clone() });
            }
            let (first, of) = *prefix.get_or_insert((its, entry));
            if first == its {
                Ok(Some(entry))
            } else {
                Err(ImageError::TwoSets { first: of.name.clone(), second: entry.name.clone() })
            }
        };
        let training = only("training images", "train-images-idx3-ubyte")?;
        let test = only("test images", "t10k-images-idx3-ubyte")?;
        if training.is_none() && test.is_none() {
            return Ok(None);
        }
        let training_labels = only("training labels", "train-labels-idx1-ubyte")?;
        let test_labels = only("test labels", "t10k-labels-idx1-ubyte")?;
        Ok(Some(Self {
            training: training.map(|images| Labelled { images, labels: training_labels }),
            test: test.map(|images| Labelled { images, labels: test_labels }),
        }))
    }
}

impl Source for Mnist<'_> {
    fn a_name(&self) -> &str {
        self.training.as_ref().or(self.test.as_ref()).map_or("", |labelled| &labelled.images.name)
    }

    fn read(&self) -> Result<ImageData, DataError> {
        let Some(training) = &self.training else {
            return Err(ImageError::OnlyTest { test: self.a_name().to_owned() }.into());
        };
        let set = training.read()?;
        let Some(test) = &self.test else { return Ok(ImageData { training: set, test: None }) };
        let test_set = test.read()?;
        same_size((&training.images.name, set.size()), (&test.images.name, test_set.size()))?;
        Ok(ImageData { training: set, test: Some(test_set) })
    }
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
        let ImageSize { height, width, channels } = size.ok_or(ImageError::NoImages)?;
        let training = ImageSet::new(height, width, channels, pixels, Some(labels))?;
        Ok(ImageData { training, test: self.test.map(|entry| entry.load(cifar::read10)).transpose()? })
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
        Ok(ImageData { training, test: self.test.map(|entry| entry.load(cifar::read100)).transpose()? })
    }
}

/// The PNG files of the folders `train` and `test`, or of the folder itself.
fn pictures(here: &Listing) -> Result<ImageData, DataError> {
    let (train, test) = (here.below("train")?, here.below("test")?);
    let training = match &train {
        Some(listing) => read_pictures(listing)?,
        None => read_pictures(here)?,
    };
    let test = test.as_ref().map(read_pictures).transpose()?.flatten();
    match (training, test) {
        (Some((name, training)), Some((test_name, test))) => {
            same_size((name, training.size()), (test_name, test.size()))?;
            Ok(ImageData { training, test: Some(test) })
        }
        (Some((_, training)), None) => Ok(ImageData { training, test: None }),
        (None, Some((test, _))) => Err(ImageError::OnlyTest { test: format!("test/{test}") }.into()),
        (None, None) => Err(ImageError::NoImages.into()),
    }
}

/// All PNG files of a folder, and the name of the first.
fn read_pictures(listing: &Listing) -> Result<Option<(&str, ImageSet)>, DataError> {
    let is_png = |entry: &&Entry| entry.path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png"));
    let mut entries = listing.files.iter().filter(is_png);
    let Some(first) = entries.next() else { return Ok(None) };
    let (size, mut pixels, _) = first.load(png::read)?.into_parts();
    for entry in entries {
        let (its, bytes, _) = entry.load(png::read)?.into_parts();
        same_size((&first.name, size), (&entry.name, its))?;
        pixels.extend(bytes);
    }
    Ok(Some((&first.name, ImageSet::new(size.height, size.width, size.channels, pixels, None)?)))
}

fn same_size(first: (&str, ImageSize), second: (&str, ImageSize)) -> Result<(), ImageError> {
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

//! The pictures of a folder: PNG and JPEG files, in it or in a folder for each class, for training and for testing.
//!
//! What makes one set of pictures that are not alike is said in notes: fewer bits, a background, gray among colours, one
//! size for all if it is asked for.

use super::folder::ImageData;
use super::listing::{Entry, Listing};
use super::picture::{self, Picture};
use super::survey::{Survey, repeated};
use super::{ImageError, ImageSet};
use crate::error::{Count, DataError, Excerpt};

const TRAINING: [&str; 2] = ["train", "training"];
const TEST: [&str; 2] = ["test", "testing"];
const VALIDATION: [&str; 4] = ["val", "valid", "validation", "dev"];
/// Folders below that of a class that are looked into.
const DEPTH: usize = 4;
/// Labels are bytes.
const MOST_CLASSES: usize = 256;
/// Names in a note.
const SHOWN: usize = 10;

/// Picture files, each with the number of its class where there are classes.
#[derive(Debug)]
struct Collection {
    files: Vec<(Entry, usize)>,
    /// The folders' names, sorted.
    classes: Vec<String>,
}

/// The picture files of a folder, for training and for testing.
#[derive(Debug)]
pub(super) struct Pictures {
    training: Collection,
    /// With the name of their folder.
    test: Option<(String, Collection)>,
    /// The names of the classes, sorted; one class alone is none to learn.
    names: Vec<String>,
    notes: Vec<String>,
}

/// The classes of pictures.
#[derive(Debug, Default)]
pub(super) struct Labels {
    pub(super) names: Option<Vec<String>>,
    pub(super) training: Option<Vec<u8>>,
    pub(super) test: Option<Vec<u8>>,
}

/// Finds the pictures of a folder; `None` if there are none.
pub(super) fn find(here: &Listing) -> Result<Option<Pictures>, DataError> {
    let mut notes = Vec::new();
    let training_folder = here.folder(&TRAINING);
    let validation = training_folder.and_then(|_| here.folder(&VALIDATION));
    let test_folder = match (here.folder(&TEST), validation) {
        (Some(test), Some(other)) => {
            notes.push(format!(
                "the folder `{}` is left out: part of the training images validates",
                Excerpt(&other.name)
            ));
            Some(test)
        }
        (None, Some(other)) => {
            notes.push(format!("the pictures in `{}` are taken as test images", Excerpt(&other.name)));
            Some(other)
        }
        (test, None) => test,
    };
    let skipped = [training_folder, test_folder].map(|entry| entry.map_or("", |entry| &*entry.name));
    let training = match training_folder {
        Some(folder) => collect(&Listing::of(&folder.path)?, [""; 2], &mut notes)?,
        None => collect(here, skipped, &mut notes)?,
    };
    let test = match test_folder {
        Some(folder) => collect(&Listing::of(&folder.path)?, [""; 2], &mut notes)?.map(|test| (folder, test)),
        None => None,
    };
    let (training, test) = match (training, test) {
        (None, None) => return Ok(None),
        (None, Some((folder, test))) => {
            let file = test.files.first().map_or("", |(entry, _)| &*entry.name);
            return Err(ImageError::OnlyTest { test: format!("{}/{file}", folder.name) }.into());
        }
        (Some(training), test) => (training, test.map(|(folder, test)| (folder.name.clone(), test))),
    };
    // a test set may lack classes, but one class alone is none to learn
    let mut names = training.classes.clone();
    if let [name] = names.as_slice() {
        notes.push(format!("all pictures are in the folder `{}`, so there are no classes", Excerpt(name)));
        names.clear();
    }
    Ok(Some(Pictures { training, test, names, notes }))
}

impl Pictures {
    /// The files of the training pictures.
    pub(super) fn training(&self) -> &[(Entry, usize)] {
        &self.training.files
    }

    /// The files of the test pictures, if there are any.
    pub(super) fn test(&self) -> Option<&[(Entry, usize)]> {
        self.test.as_ref().map(|(_, test)| &*test.files)
    }

    /// The labels of the pictures, and with what was decided before what a survey of the pictures says.
    pub(super) fn labels(mut self, survey: &Survey) -> Result<(Labels, Vec<String>), ImageError> {
        self.notes.extend(survey.conversions());
        let (names, mut notes) = (self.names, self.notes);
        if names.len() > MOST_CLASSES {
            notes.push(format!(
                "{} folders are more than {MOST_CLASSES} classes: the images have no labels",
                names.len()
            ));
        }
        if !(2..=MOST_CLASSES).contains(&names.len()) {
            return Ok((Labels::default(), notes));
        }
        let mut labels = Labels::default();
        if let Some((folder, test)) = self.test.filter(|(_, test)| !test.classes.is_empty()) {
            let numbers = numbers_among(&names, &test.classes, &folder)?;
            labels.test = Some(test.files.iter().map(|(_, class)| numbers[*class]).collect());
        }
        let training: Vec<u8> = self.training.files.iter().map(|(_, class)| *class as u8).collect();
        notes.push(class_note(&names, &training));
        Ok((Labels { training: Some(training), names: Some(names), ..labels }, notes))
    }

    /// Reads the pictures, cut or padded to a height and width if these are given.
    pub(super) fn read(self, size: Option<[usize; 2]>) -> Result<ImageData, DataError> {
        let training = Stock::of(self.training(), size)?;
        let test = self.test().map(|files| Stock::of(files, size)).transpose()?;
        let mut survey = Survey::default();
        for stock in [Some(&training), test.as_ref()].into_iter().flatten() {
            survey.join(&stock.survey);
        }
        let (size, colours) = (survey.one_size()?, survey.has_colours());
        let (labels, notes) = self.labels(&survey)?;
        let labelled = |stock: Stock, own: Option<Vec<u8>>| {
            let set = stock.into_set(size, colours)?;
            match (own, &labels.names) {
                (Some(own), Some(names)) => set.with_labels(own)?.with_class_names(names.clone()),
                _ => Ok(set),
            }
        };
        let test = test.map(|stock| labelled(stock, labels.test.clone())).transpose()?;
        Ok(ImageData { training: labelled(training, labels.training.clone())?, test, notes })
    }
}

/// Whether a folder of this name holds test images.
pub(super) fn is_test(name: &str) -> bool {
    TEST.iter().chain(&VALIDATION).any(|test| name.eq_ignore_ascii_case(test))
}

/// The picture files of a folder, or those of the folders in it, each of them a class.
fn collect(listing: &Listing, skipped: [&str; 2], notes: &mut Vec<String>) -> Result<Option<Collection>, DataError> {
    let others: Vec<_> = listing.files.iter().filter(|f| picture::OTHERS.contains(&&*f.extension())).collect();
    if let Some(first) = others.first() {
        let (count, first) = (Count(others.len(), "picture"), Excerpt(&first.name));
        notes.push(format!("left out: {count} of other formats than PNG and JPEG (`{first}` the first)"));
    }
    let direct = pictures(listing);
    if !direct.is_empty() {
        let beside = |folder: &&Entry| {
            let holds = Listing::of(&folder.path).is_ok_and(|l| !l.is_run() && !pictures(&l).is_empty());
            holds && !skipped.contains(&&*folder.name)
        };
        if let Some(folder) = listing.folders.iter().find(beside) {
            let name = Excerpt(&folder.name);
            notes.push(format!("left out: pictures in folders that are beside pictures (`{name}` the first)"));
        }
        return Ok(Some(Collection { files: direct.into_iter().map(|file| (file, 0)).collect(), classes: Vec::new() }));
    }
    let mut folders = Vec::new();
    for folder in listing.folders.iter().filter(|folder| !skipped.contains(&&*folder.name)) {
        let mut files = Vec::new();
        gather(&Listing::of(&folder.path)?, DEPTH, &mut files)?;
        if !files.is_empty() {
            folders.push((folder.name.clone(), files));
        }
    }
    if folders.is_empty() {
        return Ok(None);
    }
    let mut collection = Collection { files: Vec::new(), classes: Vec::new() };
    for (class, (name, files)) in folders.into_iter().enumerate() {
        collection.files.extend(files.into_iter().map(|file| (file, class)));
        collection.classes.push(name);
    }
    Ok(Some(collection))
}

fn pictures(listing: &Listing) -> Vec<Entry> {
    listing.files.iter().filter(|file| picture::READ.contains(&&*file.extension())).cloned().collect()
}

/// The picture files of a folder and of those in it; not those of runs.
fn gather(listing: &Listing, depth: usize, files: &mut Vec<Entry>) -> Result<(), DataError> {
    if listing.is_run() {
        return Ok(());
    }
    files.extend(pictures(listing));
    if depth > 0 {
        for folder in &listing.folders {
            gather(&Listing::of(&folder.path)?, depth - 1, files)?;
        }
    }
    Ok(())
}

/// Pictures on their way to a set.
#[derive(Debug, Default)]
struct Stock {
    survey: Survey,
    /// One, or three once a picture has colours.
    channels: usize,
    /// Those of the first size only, unless all are brought to one.
    pixels: Vec<u8>,
}

impl Stock {
    fn of(files: &[(Entry, usize)], wanted: Option<[usize; 2]>) -> Result<Self, DataError> {
        let mut stock = Self { channels: 1, ..Self::default() };
        for (entry, _) in files {
            stock.add(&entry.name, entry.load(picture::read)?, wanted)?;
        }
        Ok(stock)
    }

    fn add(&mut self, name: &str, picture: Picture, wanted: Option<[usize; 2]>) -> Result<(), DataError> {
        let set = self.survey.add(name, picture, wanted)?;
        // with two sizes there will be no set
        if self.survey.is_mixed() {
            self.pixels = Vec::new();
            return Ok(());
        }
        let channels = set.channels();
        if channels > self.channels {
            self.pixels = repeated(&self.pixels);
            self.channels = channels;
        }
        if channels < self.channels {
            self.pixels.extend(repeated(set.bytes()));
        } else {
            self.pixels.extend_from_slice(set.bytes());
        }
        Ok(())
    }

    fn into_set(self, [height, width]: [usize; 2], colours: bool) -> Result<ImageSet, DataError> {
        let pixels = if colours && self.channels == 1 { repeated(&self.pixels) } else { self.pixels };
        ImageSet::new(height, width, if colours { 3 } else { self.channels }, pixels, None)
    }
}

/// The number of each of some classes among others.
fn numbers_among(names: &[String], of: &[String], folder: &str) -> Result<Vec<u8>, ImageError> {
    let number = |class: &String| {
        let at = names.iter().position(|name| name == class);
        at.map(|at| at as u8).ok_or_else(|| ImageError::ClassFolder { folder: folder.to_owned(), class: class.clone() })
    };
    of.iter().map(number).collect()
}

fn class_note(names: &[String], labels: &[u8]) -> String {
    let mut counts = vec![0_usize; names.len()];
    for &label in labels {
        counts[usize::from(label)] += 1;
    }
    let shown = names.iter().zip(&counts).take(SHOWN).map(|(name, count)| format!("`{}` ({count})", Excerpt(name)));
    let more = (names.len() > SHOWN).then(|| "…".to_owned());
    let shown: Vec<_> = shown.chain(more).collect();
    format!("{} classes by folders, numbered from 0: {}", names.len(), shown.join(", "))
}

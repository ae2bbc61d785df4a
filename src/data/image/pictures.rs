//! The pictures of a folder: PNG and JPEG files, in it or in a folder for each class, for training and for testing.
//!
//! What makes one set of pictures that are not alike is said in notes: fewer bits, a background, gray among colours, one
//! size for all if it is asked for.

use std::collections::BTreeMap;

use super::folder::ImageData;
use super::listing::{Entry, Listing};
use super::picture::{self, Picture};
use super::{ImageError, ImageSet, ImageSize};
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
struct Collection {
    files: Vec<(Entry, usize)>,
    /// The folders' names, sorted.
    classes: Vec<String>,
}

/// Reads the pictures of a folder, cut or padded to a height and width if these are given; `None` if there are none.
pub(super) fn read(here: &Listing, size: Option<[usize; 2]>) -> Result<Option<ImageData>, DataError> {
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
        (Some(training), test) => (training, test),
    };
    // a test set may lack classes, but one class alone is none to learn
    let mut names = training.classes;
    if let [name] = names.as_slice() {
        notes.push(format!("all pictures are in the folder `{}`, so there are no classes", Excerpt(name)));
        names.clear();
    }
    let mut stocks = vec![Stock::of(&training.files, size)?];
    if let Some((_, test)) = &test {
        stocks.push(Stock::of(&test.files, size)?);
    }
    let size = one_size(&stocks)?;
    notes.extend(conversions(&stocks));
    let colours = stocks.iter().any(|stock| stock.channels == 3);
    let mut sets = Vec::new();
    for stock in stocks {
        sets.push(stock.into_set(size, colours)?);
    }
    if names.len() > MOST_CLASSES {
        notes.push(format!("{} folders are more than {MOST_CLASSES} classes: the images have no labels", names.len()));
    }
    let classes = (2..=MOST_CLASSES).contains(&names.len());
    let test_set = match (sets.pop(), &test) {
        (Some(set), Some((folder, test))) if classes && !test.classes.is_empty() => {
            let numbers = numbers_among(&names, &test.classes, &folder.name)?;
            let labels = test.files.iter().map(|(_, class)| numbers[*class]).collect();
            Some(set.with_labels(labels)?.with_class_names(names.clone())?)
        }
        (Some(set), Some(_)) => Some(set),
        (set, _) => {
            sets.extend(set);
            None
        }
    };
    let mut set = sets.pop().ok_or(ImageError::NoImages { found: here.summary() })?;
    if classes {
        let labels: Vec<u8> = training.files.iter().map(|(_, class)| *class as u8).collect();
        notes.push(class_note(&names, &labels));
        set = set.with_labels(labels)?.with_class_names(names)?;
    }
    Ok(Some(ImageData { training: set, test: test_set, notes }))
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

/// How many of something, and the name of the first.
#[derive(Debug, Default, Clone)]
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

/// Pictures on their way to a set.
#[derive(Debug, Default)]
struct Stock {
    count: usize,
    /// One, or three once a picture has colours.
    channels: usize,
    /// Those of the first size only, unless all are brought to one.
    pixels: Vec<u8>,
    sizes: BTreeMap<[usize; 2], Tally>,
    gray: Tally,
    deep: Tally,
    transparent: Tally,
    /// Those that were cut or padded.
    fitted: Tally,
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
        let Picture { mut set, deep, transparent } = picture;
        for (tally, counts) in
            [(&mut self.deep, deep), (&mut self.transparent, transparent), (&mut self.gray, set.channels() == 1)]
        {
            if counts {
                tally.add(name);
            }
        }
        if let Some([height, width]) = wanted
            && [set.height(), set.width()] != [height, width]
        {
            self.fitted.add(name);
            set = set.adapted(ImageSize { height, width, channels: set.channels() })?;
        }
        self.count += 1;
        self.sizes.entry([set.height(), set.width()]).or_default().add(name);
        // with two sizes there will be no set
        if self.sizes.len() > 1 {
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

/// Gray as red, green and blue.
fn repeated(gray: &[u8]) -> Vec<u8> {
    gray.iter().flat_map(|&v| [v; 3]).collect()
}

/// The size of all pictures.
fn one_size(stocks: &[Stock]) -> Result<[usize; 2], ImageError> {
    let mut sizes = BTreeMap::<[usize; 2], Tally>::new();
    for (size, tally) in stocks.iter().flat_map(|stock| &stock.sizes) {
        sizes.entry(*size).or_default().join(tally);
    }
    let mut sizes: Vec<_> = sizes.into_iter().map(|(size, tally)| (size, tally.count, tally.first)).collect();
    sizes.sort_by_key(|(_, count, _)| std::cmp::Reverse(*count));
    match sizes.as_slice() {
        [(size, ..)] => Ok(*size),
        _ => Err(ImageError::Sizes { sizes }),
    }
}

/// What became of pictures that were not as the others, in sentences.
fn conversions(stocks: &[Stock]) -> Vec<String> {
    let sum = |tally: fn(&Stock) -> &Tally| {
        let mut all = Tally::default();
        for stock in stocks {
            all.join(tally(stock));
        }
        all
    };
    let all: usize = stocks.iter().map(|stock| stock.count).sum();
    let mut notes = Vec::new();
    let mut note = |tally: Tally, what: &str| {
        if tally.count > 0 {
            let (count, first) = (Count(tally.count, "picture"), Excerpt(&tally.first));
            notes.push(format!("{count} of {all} {what} (`{first}` the first)"));
        }
    };
    note(sum(|s| &s.deep), "had 16 bits a channel, rounded to 8");
    note(sum(|s| &s.transparent), "transparent in places, put on white");
    let gray = sum(|s| &s.gray);
    if gray.count < all {
        note(gray, "gray among those in colours, taken as colours");
    }
    note(sum(|s| &s.fitted), "cut or padded about the centre to the size that was asked for");
    notes
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

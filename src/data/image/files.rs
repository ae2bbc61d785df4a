//! Images that stay in their files and are read by their numbers.
//!
//! Of a path the listing and the headers are read first ([`ImageFiles::find`]), which says how many images there are of which size,
//! then what has to be known before any image can be read by its number ([`FoundImages::open`]): the labels, and of pictures, which
//! may differ, what all of them are like. For that each is decoded once; the processes of a group divide them. Pictures are decoded
//! again whenever they are needed, which takes far less time than a step of training on them.
//!
//! Invariant: image i has the bytes that [`open`](super::open()) gives it.

use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::folder;
use super::listing::{Entry, beginning, within};
use super::open::{Format, cut_note};
use super::pictures::{Labels, Pictures};
use super::records::{Found, Records};
use super::survey::{Survey, brought, repeated};
use super::{ImageError, ImageSet, ImageSize, cifar, idx, picture};
use crate::data::large::{ImageRows, State, StoredRows};
use crate::error::{DataError, Error, GroupError};
use crate::group::{Group, collective};

/// Images of one size that stay in their files, with their labels.
///
/// The files must not change meanwhile: their lengths and the times of their last changes are looked at with every reading.
#[derive(Debug)]
pub struct ImageFiles {
    size: ImageSize,
    count: usize,
    files: Files,
    labels: Option<Vec<u8>>,
    class_names: Option<Vec<String>>,
}

#[derive(Debug)]
enum Files {
    /// Of images of a size, which are cut or padded if theirs is another.
    Records(Vec<Records>, ImageSize),
    /// A file an image, cut or padded to a height and width if these are given.
    Pictures(Vec<(PathBuf, State)>, Option<[usize; 2]>),
}

/// The images of a path, before any is read.
#[derive(Debug)]
pub struct FoundImages {
    path: PathBuf,
    data: Parts,
    size: Option<[usize; 2]>,
    notes: Vec<String>,
}

/// The images of a path that stay in their files.
#[derive(Debug)]
pub struct OpenedImages {
    /// The images for training and validation.
    pub training: ImageFiles,
    /// The data set's own test images, of the same size, where they come with it.
    pub test: Option<ImageFiles>,
    /// Sentences on what was decided in reading them.
    pub notes: Vec<String>,
}

/// Files that have images one after the other.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) files: Vec<Found>,
    /// A file of labels beside them.
    pub(super) labels: Option<Entry>,
}

/// The parts of a data set.
#[derive(Debug)]
pub(super) enum Parts {
    Records { training: Series, test: Option<Series> },
    Pictures(Pictures),
}

impl Series {
    pub(super) fn of(files: Vec<Found>) -> Self {
        Self { files, labels: None }
    }

    fn count(&self) -> usize {
        self.files.iter().map(|file| file.layout.count).sum()
    }

    /// The size of all images.
    pub(super) fn size(&self) -> Result<ImageSize, ImageError> {
        let Some(first) = self.files.first() else { return Err(ImageError::Zero { what: "number of images" }) };
        for other in &self.files {
            folder::same_size((first.name(), first.layout.size), (other.name(), other.layout.size))?;
        }
        Ok(first.layout.size)
    }

    fn open(self, wanted: Option<[usize; 2]>) -> Result<ImageFiles, DataError> {
        let (own, count) = (self.size()?, self.count());
        let mut labels = match &self.labels {
            Some(entry) => Some(entry.load(|bytes| match idx::read_labels(bytes)? {
                labels if labels.len() == count => Ok(labels),
                labels => Err(ImageError::Labels { labels: labels.len(), images: count }.into()),
            })?),
            None => None,
        };
        let mut records = Vec::new();
        for file in self.files {
            let (file, of_records) = file.open()?;
            records.push(file);
            if let Some(own) = of_records {
                labels.get_or_insert_default().extend(own);
            }
        }
        let size = wanted.map_or(own, |[height, width]| ImageSize { height, width, ..own });
        Ok(ImageFiles { size, count, files: Files::Records(records, own), labels, class_names: None })
    }
}

impl ImageFiles {
    /// Looks for images under a path, as [`open_sized`](super::open_sized) does, without reading any but the first picture of a
    /// folder. Nothing of what cannot be read by numbers: a single picture, arrays of anything but bytes in C order.
    ///
    /// # Errors
    /// Returns [`DataError::File`] with the path and the cause: no images, a damaged header, a file longer or shorter than its header
    /// says, and what else [`open`](super::open()) refuses.
    pub fn find(path: impl AsRef<Path>, size: Option<[usize; 2]>) -> Result<Option<FoundImages>, DataError> {
        let path = path.as_ref();
        let found = if path.is_dir() { folder::find(path).map(Some) } else { find_file(path, size) };
        let found = found.map_err(|error| within(path, error))?;
        Ok(found.map(|(data, notes)| FoundImages { path: path.to_owned(), data, size, notes }))
    }

    /// The first images, at most so many.
    #[must_use]
    pub fn first(self, most: usize) -> Self {
        let count = self.count.min(most);
        let labels = self.labels.map(|mut labels| {
            labels.truncate(count);
            labels
        });
        Self { count, labels, ..self }
    }

    /// Adds the bytes of consecutive images, `[n, h, w, c]`.
    fn read_bytes(&self, images: Range<usize>, out: &mut Vec<u8>) -> Result<(), DataError> {
        match &self.files {
            Files::Records(files, own) => {
                let mut first = 0;
                let mut bytes = Vec::new();
                for file in files {
                    let next = first + file.layout.count;
                    let part = images.start.clamp(first, next) - first..images.end.clamp(first, next) - first;
                    if !part.is_empty() {
                        file.read(part, &mut bytes)?;
                    }
                    first = next;
                }
                if *own == self.size {
                    out.append(&mut bytes);
                } else if !bytes.is_empty() {
                    let set = ImageSet::new(own.height, own.width, own.channels, bytes, None)?;
                    out.extend(set.adapted(self.size)?.into_bytes());
                }
                Ok(())
            }
            Files::Pictures(files, wanted) => files[images].iter().try_for_each(|(path, state)| {
                let mut read = || {
                    let bytes = read_picture(path, state)?;
                    let set = brought(picture::read(&bytes)?.set, *wanted)?;
                    let is_repeated = set.channels() < self.size.channels;
                    let bytes = if is_repeated { repeated(set.bytes()) } else { set.into_bytes() };
                    out.extend(bytes);
                    Ok(())
                };
                read().map_err(|error| within(path, error))
            }),
        }
    }
}

/// Finds the images of a file.
fn find_file(path: &Path, size: Option<[usize; 2]>) -> Result<Option<(Parts, Vec<String>)>, DataError> {
    let entry = Entry::of(path.to_owned());
    let mut notes = Vec::new();
    let file = match Format::of(path, &beginning(path)?) {
        Some(Format::Idx) => Found::idx(&entry)?,
        Some(Format::Cifar10) => Found::cifar(&entry, cifar::CLASSES[0])?,
        Some(Format::Cifar100) => Found::cifar(&entry, cifar::CLASSES[1])?,
        Some(Format::Npy) => {
            let Some((file, note)) = Found::npy(&entry, size)? else { return Ok(None) };
            notes.extend(note);
            file
        }
        Some(Format::Picture) | None => return Ok(None),
    };
    Ok(Some((Parts::Records { training: Series::of(vec![file]), test: None }, notes)))
}

/// The bytes of a file that must be what it was.
fn read_picture(path: &Path, state: &State) -> Result<Vec<u8>, DataError> {
    let mut file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => DataError::Changed,
        _ => error.into(),
    })?;
    if State::of(&file)? != *state {
        return Err(DataError::Changed);
    }
    let mut bytes = Vec::with_capacity(state.length as usize);
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl StoredRows for ImageFiles {
    fn rows(&self) -> usize {
        self.count
    }

    fn width(&self) -> usize {
        self.size.height * self.size.width * self.size.channels
    }

    fn columns(&self) -> Option<&[String]> {
        None
    }

    fn images(&self) -> Option<ImageRows<'_>> {
        Some(ImageRows { size: self.size, labels: self.labels.as_deref(), class_names: self.class_names.as_deref() })
    }

    fn read(&self, rows: Range<usize>, out: &mut Vec<f64>) -> Result<(), DataError> {
        let mut bytes = Vec::with_capacity(rows.len() * self.width());
        self.read_bytes(rows.clone(), &mut bytes)?;
        if bytes.len() != rows.len() * self.width() {
            return Err(DataError::Changed);
        }
        out.extend(bytes.into_iter().map(f64::from));
        Ok(())
    }
}

impl OpenedImages {
    /// The training images, and the test images after them, with labels where both have them.
    pub fn all(self) -> ImageFiles {
        let Self { training: mut all, test, .. } = self;
        let Some(then) = test else { return all };
        match (&mut all.files, then.files) {
            (Files::Records(files, _), Files::Records(more, _)) => files.extend(more),
            (Files::Pictures(files, _), Files::Pictures(more, _)) => files.extend(more),
            // the parts of a data set are of one kind
            _ => return all,
        }
        all.count += then.count;
        all.labels = all.labels.zip(then.labels).map(|(a, b)| [a, b].concat());
        all.class_names = all.class_names.filter(|_| all.labels.is_some());
        all
    }
}

impl FoundImages {
    /// The most bytes that the training images have together, and the test images, where there are any. Pictures are counted as
    /// if all were as large as the first one, and coloured.
    ///
    /// # Errors
    /// Returns [`DataError::File`] for a first picture that cannot be read.
    pub fn most_bytes(&self) -> Result<(usize, Option<usize>), DataError> {
        let sized = |own: ImageSize| {
            let [height, width] = self.size.unwrap_or([own.height, own.width]);
            height.saturating_mul(width).saturating_mul(own.channels)
        };
        match &self.data {
            Parts::Records { training, test } => {
                let each = sized(training.size()?);
                let all = |part: &Series| part.count().saturating_mul(each);
                Ok((all(training), test.as_ref().map(all)))
            }
            Parts::Pictures(pictures) => {
                let Some((first, _)) = pictures.training().first() else { return Ok((0, None)) };
                let each = sized(ImageSize { channels: 3, ..first.load(picture::read)?.set.size() });
                let all = |files: &[(Entry, usize)]| files.len().saturating_mul(each);
                Ok((all(pictures.training()), pictures.test().map(all)))
            }
        }
    }

    /// Opens the images: IDX under gzip is unpacked into a temporary file, labels are read, and every picture is decoded once; the
    /// ranks of a group each decode a part of them.
    ///
    /// # Errors
    /// Returns [`Error::Data`] for files that cannot be read or that their reader refuses, for pictures of several sizes, and for
    /// labels that do not fit the images, after telling the other ranks; [`Error::Group`] if another rank ended or did not answer.
    pub fn open(self, group: Option<&dyn Group>) -> Result<OpenedImages, Error> {
        let opened = self.open_parts(group);
        if let (Some(group), Err(error)) = (group, &opened)
            && !matches!(error, Error::Group(_))
        {
            group.abort(&error.to_string());
        }
        opened
    }

    fn open_parts(self, group: Option<&dyn Group>) -> Result<OpenedImages, Error> {
        let Self { path, data, size, notes } = self;
        let at = |error: DataError| within(&path, error);
        match data {
            Parts::Records { training, test } => {
                let mut opened = open_records(training, test, size).map_err(at)?;
                opened.notes.splice(0..0, notes);
                Ok(opened)
            }
            Parts::Pictures(pictures) => {
                let listed = |files: &[(Entry, usize)]| files.iter().map(state_of).collect::<Result<Vec<_>, _>>();
                let training = listed(pictures.training())?;
                let test = pictures.test().map(listed).transpose()?;
                let all: Vec<&(PathBuf, State)> = training.iter().chain(test.iter().flatten()).collect();
                let survey = survey(&all, size, group)?;
                let mut opened = label(pictures, (training, test), &survey, size).map_err(|e| at(e.into()))?;
                opened.notes.splice(0..0, notes);
                Ok(opened)
            }
        }
    }
}

fn open_records(training: Series, test: Option<Series>, wanted: Option<[usize; 2]>) -> Result<OpenedImages, DataError> {
    let own = training.size()?;
    let training = training.open(wanted)?;
    let test = test.map(|test| test.open(wanted)).transpose()?;
    let notes = (training.size != own).then(|| cut_note(training.count, own)).into_iter().collect();
    Ok(OpenedImages { training, test, notes })
}

/// Gives the files of pictures, for training and for testing, what the survey of all of them says.
fn label(
    pictures: Pictures,
    (training, test): (Vec<(PathBuf, State)>, Option<Vec<(PathBuf, State)>>),
    survey: &Survey,
    wanted: Option<[usize; 2]>,
) -> Result<OpenedImages, ImageError> {
    let [height, width] = survey.one_size()?;
    let size = ImageSize { height, width, channels: if survey.has_colours() { 3 } else { 1 } };
    let (Labels { names, training: own, test: of_test }, notes) = pictures.labels(survey)?;
    let of = |files: Vec<(PathBuf, State)>, labels: Option<Vec<u8>>| ImageFiles {
        size,
        count: files.len(),
        files: Files::Pictures(files, wanted),
        class_names: names.clone().filter(|_| labels.is_some()),
        labels,
    };
    Ok(OpenedImages { training: of(training, own), test: test.map(|files| of(files, of_test)), notes })
}

fn state_of((entry, _): &(Entry, usize)) -> Result<(PathBuf, State), DataError> {
    let state = File::open(&entry.path).and_then(|file| State::of(&file));
    Ok((entry.path.clone(), state.map_err(|error| within(&entry.path, error.into()))?))
}

/// What pictures are like; each rank of a group decodes a part of them.
fn survey(files: &[&(PathBuf, State)], wanted: Option<[usize; 2]>, group: Option<&dyn Group>) -> Result<Survey, Error> {
    let of = |files: &[&(PathBuf, State)]| {
        let mut survey = Survey::default();
        for (path, state) in files {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let mut add = || survey.add(&name, picture::read(&read_picture(path, state)?)?, wanted);
            add().map_err(|error| within(path, error))?;
        }
        Ok::<_, DataError>(survey)
    };
    let Some(group) = group else { return Ok(of(files)?) };
    let part = |rank: usize| rank * files.len() / group.size();
    let own = of(&files[part(group.rank())..part(group.rank() + 1)])?;
    let mut all = Survey::default();
    for bytes in collective::gather(group, own.to_bytes())? {
        let next = Survey::from_bytes(&bytes);
        all.join(&next.ok_or_else(|| GroupError::Transport("bytes that are no survey of pictures".into()))?);
    }
    Ok(all)
}

//! Errors of images, with their places.

use std::fmt;

use super::text::{Count, Dimensions, Excerpt, Message};

/// The size of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ImageSize {
    /// The height, in pixels.
    pub height: usize,
    /// The width, in pixels.
    pub width: usize,
    /// The number of channels.
    pub channels: usize,
}

impl fmt::Display for ImageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { height, width, channels } = self;
        write!(f, "{height}x{width} pixels with {channels} channel{}", if *channels == 1 { "" } else { "s" })
    }
}

/// At most four bytes in hexadecimal, as `xxd` shows them.
struct Bytes<'a>(&'a [u8]);

impl fmt::Display for Bytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().take(4).enumerate() {
            write!(f, "{}{byte:02x}", if i > 0 { " " } else { "" })?;
        }
        Ok(())
    }
}

/// At most six sizes of pictures, with their numbers.
struct Sizes<'a>(&'a [([usize; 2], usize, String)]);

impl fmt::Display for Sizes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, ([height, width], count, first)) in self.0.iter().take(6).enumerate() {
            let before = if i > 0 { ", " } else { "" };
            write!(f, "{before}`{}` has {height}x{width} pixels ({})", Excerpt(first), Count(*count, "picture"))?;
        }
        if self.0.len() > 6 { write!(f, ", and there are {} other sizes", self.0.len() - 6) } else { Ok(()) }
    }
}

/// An error of images.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// No image, no pixel or no channel.
    #[error("the {what} is 0: at least one image of at least one pixel and one channel is needed")]
    Zero {
        /// The number that is zero.
        what: &'static str,
    },
    /// Sizes that multiply to more than any memory holds.
    #[error("images of {size} are too large")]
    TooLarge {
        /// The size.
        size: ImageSize,
    },
    /// The number of values is no multiple of an image's size.
    #[error("{values} values are not a whole number of images of {size}")]
    Length {
        /// The number of values.
        values: usize,
        /// The size of one image.
        size: ImageSize,
    },
    /// Labels and images differ in number.
    #[error("there are {} for {}: the labels belong to other images, or a file is damaged", Count(*labels, "label"), Count(*images, "image"))]
    Labels {
        /// The number of labels.
        labels: usize,
        /// The number of images.
        images: usize,
    },
    /// Names of classes that are not those of the labels.
    #[error(
        "{}: {}",
        Count(*names, "class name"),
        most.map_or_else(|| "the images have no labels".to_owned(), |most| format!("one of the labels is {most}"))
    )]
    ClassNames {
        /// The number of names.
        names: usize,
        /// The largest label, where there are labels.
        most: Option<u8>,
    },
    /// There is no image of this number.
    #[error("there is no image {index} (counted from 0) among {}", Count(*images, "image"))]
    Index {
        /// The number, counted from zero.
        index: usize,
        /// The number of images.
        images: usize,
    },
    /// Fewer images than the operation needs.
    #[error("there is 1 image, but at least 2 are needed to set some aside for validation")]
    TooFew,
    /// A continuous value that is not in [0, 1].
    #[error(
        "the value at [image {image}, channel {channel}, row {row}, column {column}] (counted from 0) is {value}: the values of continuous images lie between 0 and 1, and a table has an array of the shape (rows, columns)"
    )]
    Value {
        /// The image, counted from zero.
        image: usize,
        /// The channel, counted from zero.
        channel: usize,
        /// The row of pixels, counted from zero.
        row: usize,
        /// The column of pixels, counted from zero.
        column: usize,
        /// The value.
        value: f64,
    },

    /// The first bytes are not those of the format.
    #[error(
        "the file begins with {} instead of {expected}: it is not {what}{}",
        if found.is_empty() { "nothing".to_owned() } else { Bytes(found).to_string() },
        looks.map_or_else(String::new, |looks| format!(", but looks like {looks}"))
    )]
    Magic {
        /// At most four bytes of the file's beginning.
        found: Vec<u8>,
        /// The bytes of the format, in words.
        expected: &'static str,
        /// The format.
        what: &'static str,
        /// What the file looks like, where that is known.
        looks: Option<&'static str>,
    },
    /// The file ends before its data begin.
    #[error("the file ends within its {header} header")]
    CutHeader {
        /// The format.
        header: &'static str,
    },
    /// The sizes in a header multiply to more than any file holds.
    #[error("the header's sizes, {}, are too large for any file: the header is damaged", Dimensions(shape))]
    Overflow {
        /// The sizes.
        shape: Vec<u64>,
    },
    /// More or less data than the header announces.
    #[error(
        "the header announces {expected} bytes of data, but {} follow it: the file is {}",
        found.map_or_else(|| "more".to_owned(), |found| found.to_string()),
        if found.is_some_and(|found| found < *expected) { "cut short" } else { "damaged, or holds something else too" }
    )]
    DataLength {
        /// The bytes that the header announces.
        expected: u64,
        /// The bytes that there are, or `None` for compressed data that go on beyond what was announced.
        found: Option<u64>,
    },
    /// A header that announces more than the compressed data can hold.
    #[error(
        "the header announces {expected} bytes of data, which {compressed} compressed bytes cannot hold: the file is cut short or damaged"
    )]
    Expansion {
        /// The bytes that the header announces.
        expected: u64,
        /// The size of the compressed file.
        compressed: u64,
    },
    /// A stream that gzip refuses.
    #[error("the compressed data are damaged or cut short: {}", Message(problem))]
    Gzip {
        /// The problem.
        problem: String,
    },

    /// Not a whole number of records.
    #[error(
        "the file has {bytes} bytes, which is no whole number of records of {record} bytes: it is not CIFAR-{classes} in binary form, or cut short"
    )]
    CifarLength {
        /// The file's size.
        bytes: usize,
        /// The size of a record.
        record: usize,
        /// The number of classes that gives the format its name.
        classes: u8,
    },
    /// A label beyond the classes.
    #[error(
        "record {record} (counted from 0) has the label {label}, but there are {classes} classes: the file is damaged or another format"
    )]
    CifarLabel {
        /// The record, counted from zero.
        record: usize,
        /// Its label.
        label: u8,
        /// The number of classes.
        classes: u8,
    },

    /// A PNG file that cannot be decoded.
    #[error("not a readable PNG file: {}", Message(problem))]
    Png {
        /// The problem.
        problem: String,
    },
    /// Sixteen bits a channel.
    #[error("the image has 16 bits a channel: convert it to 8, for example with `magick in.png -depth 8 out.png`")]
    Png16,
    /// A pixel that is not opaque.
    #[error("the pixel in row {row}, column {column} (counted from 0) is transparent: put the image on a background")]
    Transparent {
        /// The row of the first such pixel, counted from zero.
        row: usize,
        /// Its column, counted from zero.
        column: usize,
    },
    /// A PNG file of more than one picture.
    #[error("the file is an animation: save one picture a file")]
    Animated,
    /// A JPEG file that cannot be decoded.
    #[error("not a readable JPEG file: {}", Message(problem))]
    Jpeg {
        /// The problem.
        problem: String,
    },
    /// A JPEG file larger than this library reads.
    #[error("the image has {height}x{width} pixels, more than {} MB: cut it or scale it down", most / 1_000_000)]
    JpegTooLarge {
        /// The height in pixels.
        height: usize,
        /// The width in pixels.
        width: usize,
        /// The most bytes that are read.
        most: u64,
    },
    /// A PNG file larger than this library reads.
    #[error("the image has {height}x{width} pixels, more than {} MB: cut it or scale it down", most / 1_000_000)]
    PngTooLarge {
        /// The height in pixels.
        height: u32,
        /// The width in pixels.
        width: u32,
        /// The most bytes that are read.
        most: usize,
    },
    /// A number of channels that PNG files do not have.
    #[error("a PNG file has 1 or 3 channels, not {channels}")]
    PngChannels {
        /// The number of channels.
        channels: usize,
    },

    /// An NPY array of something other than bytes.
    #[error(
        "the array's type is {}, but images are bytes: scale them to 0 to 255 and convert with array.astype('u1')",
        Excerpt(dtype)
    )]
    NpyType {
        /// The type, as the header has it.
        dtype: String,
    },
    /// An NPY array of bytes that is not a set of images.
    #[error(
        "the array's shape is {}: images have (number, height, width, channels) or (number, height, width), with at least one of each",
        Dimensions(shape)
    )]
    NpyShape {
        /// The shape.
        shape: Vec<u64>,
    },
    /// An NPY array of something other than floats.
    #[error("the array's type is {}, but continuous images are float32 or float64 between 0 and 1", Excerpt(dtype))]
    StackType {
        /// The type, as the header has it.
        dtype: String,
    },
    /// An NPY array of floats that is not a stack of images.
    #[error(
        "the array's shape is {}: continuous images have (number, channels, height, width), with at least one of each",
        Dimensions(shape)
    )]
    StackShape {
        /// The shape.
        shape: Vec<u64>,
    },

    /// An NPY array whose axes may be those of images in two ways.
    #[error(
        "the array's shape is {}: it may be {first} or {second}; --image-size HEIGHTxWIDTH says which in the program, and \
         np.moveaxis brings the channels where they belong",
        Dimensions(shape)
    )]
    Ambiguous {
        /// The shape.
        shape: Vec<u64>,
        /// A reading of it, in words.
        first: String,
        /// Another one.
        second: String,
    },
    /// An NPY array with numbers that are neither bytes nor between 0 and 1.
    #[error(
        "the value {value} of the array is neither a whole number from 0 to 255 nor between 0 and 1: scale the array to one of them"
    )]
    NpyValue {
        /// The first such value.
        value: f64,
    },

    /// A value of an image of bytes that is none.
    #[error("the value {value} of an image is no whole number from 0 to 255: images are rows of bytes")]
    Byte {
        /// The first such value.
        value: f64,
    },

    /// Neither images nor a folder of them.
    #[error(
        "the file holds no images: it is neither IDX (MNIST), nor CIFAR (a name that ends in .bin), nor PNG or JPEG, nor an NPY array{}",
        looks.map_or_else(String::new, |looks| format!(", but looks like {looks}"))
    )]
    NotImages {
        /// What the file looks like, where that is known.
        looks: Option<&'static str>,
    },
    /// More images in a stream than are kept in memory.
    #[error("more than {} GiB of images in a stream, which are kept in memory to its end: give the file itself", most >> 30)]
    Stream {
        /// The most bytes that are read.
        most: u64,
    },
    /// Pictures one after the other in a stream.
    #[error("several pictures one after the other, of which a stream holds but one: give the folder that they are in")]
    SeveralPictures,
    /// A folder without images.
    #[error(
        "the folder holds no images ({found}): it needs MNIST's files (train-images-idx3-ubyte or the like, with or without .gz), or CIFAR's (data_batch_1.bin to data_batch_5.bin, or train.bin), or PNG and JPEG files in itself, in a folder for each class, or in a folder train"
    )]
    NoImages {
        /// What is in the folder, in words.
        found: String,
    },
    /// CIFAR as Python's pickles.
    #[error("these are CIFAR's files for Python: get its \"binary version\", data_batch_1.bin to data_batch_5.bin")]
    PythonCifar,
    /// A test set with a class of its own.
    #[error(
        "the folder `{}` has a folder `{}`, a class that the training images do not have",
        Excerpt(folder),
        Excerpt(class)
    )]
    ClassFolder {
        /// The test folder.
        folder: String,
        /// The folder of the class.
        class: String,
    },
    /// A folder with a test set and no training set.
    #[error(
        "the folder holds test images ({}) but no training images: add them, or give the file itself to read it alone",
        Excerpt(test)
    )]
    OnlyTest {
        /// The name of the file or folder with the test images.
        test: String,
    },
    /// Two files that could both be meant.
    #[error("`{}` and `{}` are both {what}: keep one of them in the folder", Excerpt(first), Excerpt(second))]
    TwoFiles {
        /// The purpose of both.
        what: &'static str,
        /// A file's name.
        first: String,
        /// The other's.
        second: String,
    },
    /// Files of one folder that belong to different data sets.
    #[error(
        "`{}` and `{}` belong to different data sets: keep one of them in the folder, or give both the same prefix",
        Excerpt(first),
        Excerpt(second)
    )]
    TwoSets {
        /// A file's name.
        first: String,
        /// The other's.
        second: String,
    },
    /// CIFAR-10 without all its batches.
    #[error("the folder lacks {missing} of the five batches of CIFAR-10: add them, or give one file to read it alone")]
    Batches {
        /// The names that are missing.
        missing: String,
    },
    /// Files with images of different sizes.
    #[error(
        "`{}` has {first_size}, but `{}` has {second_size}: all images must have one size and number of channels",
        Excerpt(first),
        Excerpt(second)
    )]
    Mixed {
        /// A file's name.
        first: String,
        /// The size of its images.
        first_size: ImageSize,
        /// The other's name.
        second: String,
        /// The size of its images.
        second_size: ImageSize,
    },
    /// Pictures of different sizes.
    #[error(
        "{}: all must have one size, so bring them to one before, or cut or pad all of them about the centre: --image-size {}x{} in the program, `image_size` of `ReadOptions` in the library",
        Sizes(sizes),
        sizes.first().map_or(0, |size| size.0[0]),
        sizes.first().map_or(0, |size| size.0[1])
    )]
    Sizes {
        /// The sizes (height and width), each with the number of pictures and the name of the first, the most frequent
        /// one first.
        sizes: Vec<([usize; 2], usize, String)>,
    },
    /// Labels under a path that should hold images.
    #[error("the file holds labels: give the file of the images (train-images-idx3-ubyte)")]
    OnlyLabels,
}

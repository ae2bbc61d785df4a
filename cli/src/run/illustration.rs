//! The pictures of a run: three panels for two columns, a grid of samples for images.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::Result;
use resflow::backend::{Backend, Key};
use resflow::config::ModelConfig;
use resflow::data::Table;
use resflow::flow::PreparedFlow;
use resflow::invert::Inversion;

use crate::data::{Data, model_size};
use crate::picture::canvas::Axes;
use crate::picture::curve;
use crate::picture::image_grid;
use crate::picture::plane;
use crate::picture::png::write_png;
use crate::run::directory::{IMAGE_PICTURES, PICTURES, RunDirectory};
use crate::run::metrics::{Bits, Entry};

/// Images along a side of the grid.
const SIDE: usize = 10;
/// Images that are drawn at once, between looks at the clock.
const PIECE: usize = 20;
/// Images that an estimate of the cost is measured with.
const PROBE: usize = 8;

/// What is drawn of a run.
#[derive(Debug)]
pub(crate) enum Illustration {
    Nothing,
    /// The points of the data's picture.
    Plane(Vec<[f64; 2]>),
    /// Samples in a grid; of a density given the class with so many columns of contexts, a row of each class in turn.
    Images {
        classes: Option<usize>,
    },
}

impl Illustration {
    /// That of a run on some data.
    pub(crate) fn of(data: &Data) -> Self {
        let plane = |table: &Table| match table.width() {
            2 => Self::Plane(plane::points(table)),
            _ => Self::Nothing,
        };
        match data {
            Data::Density(density) => plane(&density.sample(Key::new(0).named("picture"), plane::POINTS)),
            Data::Large(table) if table.images().is_some() => Self::Images { classes: None },
            Data::Large(table) => match table.sample(plane::POINTS, Key::new(0).named("picture")) {
                Ok(points) => plane(&points),
                // the run itself says why they cannot be read
                Err(_) => Self::Nothing,
            },
            Data::Stored(opened) => match (data.table(), opened.data.samples().context_width()) {
                (None, context) => Self::Images { classes: context },
                // a density for every context is no picture
                (Some(_), Some(_)) => Self::Nothing,
                (Some(table), None) => plane(table),
            },
        }
    }

    /// The files.
    pub(crate) fn names(&self) -> &'static [&'static str] {
        match self {
            Self::Nothing => &[],
            Self::Plane(_) => &PICTURES,
            Self::Images { .. } => &IMAGE_PICTURES,
        }
    }

    /// The time that [`draw`](Self::draw) takes for a flow, from a small part of it.
    pub(crate) fn estimate<B: Backend>(&self, flow: &PreparedFlow<B>) -> Result<Duration> {
        match self {
            Self::Nothing => Ok(Duration::ZERO),
            Self::Plane(data) => plane::estimate(flow, &Axes::around(data)),
            Self::Images { classes } => {
                let start = Instant::now();
                draw_images(flow, *classes, 0..PROBE, Key::new(0))?;
                Ok(start.elapsed().mul_f64((SIDE * SIDE) as f64 / PROBE as f64) + Duration::from_millis(100))
            }
        }
    }

    /// Draws what belongs to the run's end. Samples stop at the deadline.
    pub(crate) fn draw<B: Backend>(
        &self,
        flow: &PreparedFlow<B>,
        model: &ModelConfig,
        entries: &[Entry],
        key: Key,
        deadline: Option<Instant>,
        directory: &RunDirectory,
    ) -> Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::Plane(data) => plane::draw(flow, data, key, deadline, directory.root()),
            Self::Images { classes } => {
                let [samples, curve] = IMAGE_PICTURES.map(|name| directory.picture(name));
                let training = line(entries, |b| Some(b.train_bits_per_dim));
                if let Some(picture) =
                    curve::draw(&training, &line(entries, |b| b.val_bits_per_dim), model.is_variational())
                {
                    write_png(&picture, &curve)?;
                }
                let Some(config) = model.images() else { return Ok(()) };
                let mut values: Vec<f64> = Vec::new();
                for piece in 0..SIDE * SIDE / PIECE {
                    if piece > 0 && deadline.is_some_and(|d| Instant::now() >= d) {
                        break;
                    }
                    let (images, key) = (piece * PIECE..(piece + 1) * PIECE, key.named("picture").split(piece as u64));
                    values.extend(draw_images(flow, *classes, images, key)?);
                }
                write_png(&image_grid::draw(&values, model_size(config), config.bits, SIDE)?, &samples)
            }
        }
    }
}

/// Draws the images of these numbers in the grid; of so many classes those of a row have one.
fn draw_images<B: Backend>(
    flow: &PreparedFlow<B>,
    classes: Option<usize>,
    images: Range<usize>,
    key: Key,
) -> Result<Vec<f64>> {
    let how = Inversion::for_backend::<B>();
    let drawn = match classes {
        None => flow.sample(images.len(), key, &how)?,
        Some(classes) => {
            let mut contexts = vec![0.0; images.len() * classes];
            images.enumerate().for_each(|(i, image)| contexts[i * classes + image / SIDE % classes] = 1.0);
            flow.condition(&Table::new(None, classes, contexts)?)?.sample_by(1, key, &how)?
        }
    };
    Ok(drawn.samples.into_values())
}

/// The finite values of logged steps, over the steps.
fn line(entries: &[Entry], value: fn(&Bits) -> Option<f64>) -> Vec<[f64; 2]> {
    let points = entries.iter().filter_map(|e| Some([e.step as f64, value(e.bits.as_ref()?)?]));
    points.filter(|p| p[1].is_finite()).collect()
}

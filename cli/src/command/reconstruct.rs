//! `resflow reconstruct`: images beside their round trip x → z → x̂.

use anyhow::{Context as _, Result};
use resflow::backend::{Backend, Element as _, Shape};
use resflow::config::ImageConfig;
use resflow::data::image::ImageSet;
use resflow::data::{ReadOptions, Table, Values};
use resflow::invert::{Inversion, Status};
use resflow::transform::dequantise;
use resflow::with_device;

use crate::arguments::Reconstruct;
use crate::command::decoded::report_inversion;
use crate::data::given::classes_given;
use crate::data::{Data, model_size};
use crate::evaluate;
use crate::failure::usage;
use crate::model::Stored;
use crate::output::{extension, print, spare_inputs};
use crate::picture::image_grid;
use crate::picture::png::write_png;

pub(crate) fn run(arguments: &Reconstruct) -> Result<()> {
    if extension(&arguments.out) != "png" {
        let out = arguments.out.display();
        return Err(usage(format_args!("--out {out}: the file's name must end in .png")));
    }
    let stored = Stored::open(&arguments.model)?;
    spare_inputs(&[("--out", Some(&arguments.out))], &[&arguments.data, stored.path()])?;
    let options = ReadOptions { image_size: arguments.size.image_size, ..ReadOptions::default() };
    let data = Data::open_file(&arguments.data, &options)?;
    with_device!(arguments.model.arithmetic.open(stored.precision)?, |backend| {
        reconstruct(arguments, &stored, data, backend)
    })
}

fn reconstruct<B: Backend>(arguments: &Reconstruct, stored: &Stored, data: Data, backend: B) -> Result<()> {
    let flow = stored.flow(backend)?;
    let name = arguments.data.display().to_string();
    let Some(config) = flow.config().images() else {
        return Err(usage(format_args!("{}: not a model of images", stored.path().display())));
    };
    let (size, d) = (model_size(config), flow.dimension());
    let n = usize::from(arguments.n);
    let data = classes_given(arguments.part.of(data, &name, flow.config(), Some(n))?, stored, &name)?;
    let contexts = data.samples().context().cloned();
    let x = match data.into_values() {
        Values::Tabular(table) => table,
        Values::Images(set) => dequantised(flow.backend(), &set, config, arguments.seed)?,
    };
    let prepared = flow.prepare();
    let key = evaluate::key(arguments.seed).split(0);
    let at = contexts.as_ref().map(|contexts| prepared.condition(contexts)).transpose()?;
    let encoded = match &at {
        Some(at) => at.encode(&x, key),
        None => prepared.encode(&x, key),
    };
    let encoded = encoded.context(name)?;
    // a round trip is to show how far the inverse comes: to the floor of the arithmetic
    let usual = Inversion::for_backend::<B>();
    let how = usual.with_accuracy(usual.accuracy() / 10.0)?;
    let mut back = match &at {
        Some(at) => at.decode(&encoded.latents, &how)?,
        None => prepared.decode(&encoded.latents, &how)?,
    };
    for report in &mut back.reports {
        if report.status == Status::FloatFloor {
            report.status = Status::Converged;
        }
    }
    let residual = report_inversion(&back.reports, &how)?.residual();

    let errors = x.values().iter().zip(back.samples.values()).map(|(x, again)| (x - again).abs());
    let (largest, sum) = errors.fold((0.0, 0.0), |(m, s): (f64, f64), e| (m.max(e), s + e));
    let pairs = x.values().chunks_exact(d).zip(back.samples.values().chunks_exact(d));
    let both: Vec<f64> = pairs.flat_map(|(x, again)| x.iter().chain(again).copied()).collect();
    // pairs side by side, about as many images across as down
    let columns = 2 * image_grid::columns(x.rows().div_ceil(2));
    let columns = columns.min(2 * x.rows());
    write_png(&image_grid::draw(&both, size, config.bits, columns)?, &arguments.out)?;
    print(&format!(
        "{}: {} images, each left of its round trip\n\
         largest error {largest:.2e}, mean {:.2e} (of values from 0 to 1); in latent space {:.1e}\n",
        arguments.out.display(),
        x.rows(),
        sum / x.values().len() as f64,
        residual
    ))
}

/// The images as `resflow score` sees the first ones with the same seed, in the order (C, H, W).
fn dequantised<B: Backend>(backend: &B, set: &ImageSet, config: &ImageConfig, seed: u64) -> Result<Table> {
    let shape = Shape::from([set.len(), set.height(), set.width(), set.channels()]);
    let key = evaluate::key(seed).split(0).named("dequantise");
    let x = backend
        .download(&dequantise(backend, set.bytes(), shape, config.bits, key, 0))
        .map_err(resflow::Error::from)?;
    let values: Vec<f64> = x.into_iter().map(B::Elem::to_f64).collect();
    let d = set.height() * set.width() * set.channels();
    Ok(Table::new(None, d, image_grid::planes(&values, set.size()))?)
}

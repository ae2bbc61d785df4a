//! `resflow encode`: rows or images to latent space, with log dets.

mod large;

use anyhow::{Context as _, Result};
use resflow::backend::Backend;
use resflow::with_device;

use crate::arguments::Encode;
use crate::cluster;
use crate::command::coordinates::{Rows, check_output, finite, latent_names, with_rows, write};
use crate::data::Data;
use crate::data::given::classes_given;
use crate::evaluate::{self, Latent};
use crate::failure::{usage, warn};
use crate::model::Stored;
use crate::output::spare_inputs;

pub(crate) fn run(arguments: &Encode) -> Result<()> {
    check_output(&arguments.output)?;
    let stored = Stored::open(&arguments.model)?;
    let output = &arguments.output;
    let outputs = [("--out", Some(&*output.out)), ("--log-det", output.log_det.as_deref())];
    spare_inputs(&outputs, &[&arguments.data, stored.path()])?;
    let mut options = arguments.reading.options();
    options.model = stored.columns(arguments.matching, None);
    options.image_size = arguments.size.image_size;
    if options.model.is_some()
        && stored.given().is_none()
        && let Some(rows) = arguments.largeness.open(&arguments.data, &options, cluster::group().as_deref())?
    {
        return with_device!(arguments.model.arithmetic.open(stored.precision)?, |backend| {
            large::encode(arguments, &stored, &*rows, backend)
        });
    }
    let part = (arguments.part, arguments.rows);
    if let Some(model) = stored.config().filter(|model| model.images().is_some())
        && let Some(images) = arguments.largeness.open_for(&arguments.data, &options, part, &model)?
    {
        return with_device!(arguments.model.arithmetic.open(stored.precision)?, |backend| {
            large::encode(arguments, &stored, &images, backend)
        });
    }
    arguments.resuming.check_in_memory(arguments.data.display())?;
    let data = stored.split(Data::open_file(&arguments.data, &options)?, &arguments.data.display().to_string())?;
    with_device!(arguments.model.arithmetic.open(stored.precision)?, |backend| {
        encode(arguments, &stored, data, backend)
    })
}

fn encode<B: Backend>(arguments: &Encode, stored: &Stored, data: Data, backend: B) -> Result<()> {
    let flow = stored.flow(backend)?;
    let (model, d) = (flow.config(), flow.dimension());
    let name = arguments.data.display().to_string();
    if data.table().is_some() && model.rows().is_some() && arguments.rows.is_some() {
        return Err(usage("--rows is for images; a file is encoded whole"));
    }
    let dropped = data.dropped().to_vec();
    let data = arguments.part.of(data, &name, model, arguments.rows.map(|n| n as usize))?;
    let data = classes_given(data, stored, &name)?;
    let key = evaluate::key(arguments.output.seed);
    let latent = evaluate::encode(&cluster::prepare(&flow)?, model, data.samples(), key).context(name)?;
    let lost = latent.z.chunks_exact(d).filter(|r| !finite(r)).count();
    tell(lost, latent.astray, latent.log_det.len());
    let Latent { mut z, mut log_det, mut standard_error, .. } = latent;
    with_rows(&mut z, d, &dropped);
    with_rows(&mut log_det, 1, &dropped);
    with_rows(&mut standard_error, 1, &dropped);
    // decoding asks for the categories again
    let rows = Rows { names: latent_names(d), values: z, categories: data.categories(), dropped: &dropped };
    write(&arguments.output, None, rows, &log_det, &standard_error)
}

/// Warns of rows without a latent, and of those whose latents are of little use.
fn tell(lost: usize, astray: usize, rows: usize) {
    if lost > 0 {
        warn(format_args!("{lost} of {rows} rows have no finite latent point"));
    }
    if astray > 0 {
        warn(format_args!("{astray} of {rows} rows are so far out that their latents do not lead back to them"));
    }
}

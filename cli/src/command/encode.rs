//! `resflow encode`: rows or images to latent space, with log dets.

use anyhow::{Context as _, Result};
use resflow::backend::Backend;

use crate::arguments::Encode;
use crate::command::coordinates::{check_output, finite, latent_names, write};
use crate::data::Dataset;
use crate::device::with_backend;
use crate::evaluate::{self, Latent};
use crate::failure::{usage, warn};
use crate::model::Stored;

pub(crate) fn run(arguments: &Encode) -> Result<()> {
    check_output(&arguments.output)?;
    let stored = Stored::open(&arguments.model)?;
    let dataset = Dataset::open_file(&arguments.data)?;
    with_backend!(stored.precision, &arguments.model.arithmetic, |backend| {
        encode(arguments, &stored, dataset, backend)
    })
}

fn encode<B: Backend>(arguments: &Encode, stored: &Stored, dataset: Dataset, backend: B) -> Result<()> {
    let flow = stored.flow(backend)?;
    let (model, d) = (flow.config(), flow.dimension());
    let name = arguments.data.display().to_string();
    if matches!(dataset, Dataset::Table(_)) && model.rows().is_some() && arguments.rows.is_some() {
        return Err(usage("--rows is for images; a file is encoded whole"));
    }
    let data = arguments.part.of(dataset, &name, model, arguments.rows.map(|n| n as usize))?;
    let key = evaluate::key(arguments.output.seed);
    let latent = evaluate::encode(&flow.prepare(), model, data.samples(), key).context(name)?;
    let lost = latent.z.chunks_exact(d).filter(|r| !finite(r)).count();
    if lost > 0 {
        warn(format_args!("{lost} of {} rows have no finite latent point", latent.log_det.len()));
    }
    let Latent { z, log_det, standard_error } = latent;
    write(&arguments.output, None, latent_names(d), z, &log_det, &standard_error)
}

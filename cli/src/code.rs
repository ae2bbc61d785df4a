//! `resflow encode` and `resflow decode`: rows to latent space and back, with log dets.

use std::path::Path;

use anyhow::{Context as _, Result};
use resflow::backend::{Backend, Key};
use resflow::data::{Table, csv};
use resflow::invert::Inversion;

use crate::arguments::{Decode, Encode};
use crate::failure::{usage, warn};
use crate::model::{Stored, column_names, with_backend};
use crate::output::{extension, print, write_file};
use crate::rows;
use crate::sample::report_inversion;

/// The columns beside the coordinates.
const LOG_DET: &str = "log_det";
const ERROR: &str = "se";

pub(crate) fn encode(arguments: &Encode) -> Result<()> {
    check_output(&arguments.out)?;
    let stored = Stored::open(&arguments.model)?;
    let table = rows::read(&arguments.data)?;
    with_backend!(stored.precision, arguments.model.arithmetic.threads, |backend| {
        let flow = stored.flow(backend)?;
        let encoded = flow.prepare().encode(&table, key(arguments.seed)).context(arguments.data.display().to_string())?;
        let lost = encoded.rows.values().chunks_exact(flow.dimension()).filter(|r| !finite(r)).count();
        if lost > 0 {
            warn(format_args!("{lost} of {} rows have no finite latent point", table.rows()));
        }
        let errors = &encoded.standard_error;
        write(&arguments.out, latent_names(flow.dimension()), encoded.rows.values(), &encoded.log_det, errors)
    })
}

pub(crate) fn decode(arguments: &Decode) -> Result<()> {
    check_output(&arguments.out)?;
    let stored = Stored::open(&arguments.model)?;
    let table = rows::read(&arguments.z)?;
    with_backend!(stored.precision, arguments.model.arithmetic.threads, |backend| {
        decode_with(arguments, &stored, table, backend)
    })
}

fn decode_with<B: Backend>(arguments: &Decode, stored: &Stored, table: Table, backend: B) -> Result<()> {
    let flow = stored.flow(backend)?.prepare_named();
    let z = latent(table, flow.dimension).context(arguments.z.display().to_string())?;
    let how = Inversion::for_backend::<B>();
    let decoded = flow.prepared.decode(&z, &how).context(arguments.z.display().to_string())?;
    let d = flow.dimension;
    // log dets are those of the way forth at x, negated; rows without a finite x have none
    let rows: Vec<&[f64]> = decoded.rows.values().chunks_exact(d).collect();
    let good: Vec<usize> = (0..rows.len()).filter(|&i| finite(rows[i])).collect();
    let mut log_det = vec![f64::NAN; rows.len()];
    let mut error = vec![f64::NAN; rows.len()];
    if !good.is_empty() {
        let x = Table::new(None, d, good.iter().flat_map(|&i| rows[i].iter().copied()).collect())?;
        let again = flow.prepared.encode(&x, key(arguments.seed))?;
        for (k, &i) in good.iter().enumerate() {
            log_det[i] = -again.log_det[k];
            error[i] = again.standard_error[k];
        }
    }
    write(&arguments.out, flow.columns, decoded.rows.values(), &log_det, &error)?;
    report_inversion(&decoded.reports, decoded.residual, &how)
}

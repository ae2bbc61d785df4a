//! `resflow import`: a state dict of the reference implementation as a model file.

use anyhow::{Context as _, Result};
use resflow::Flow;
use resflow::backend::Backend;
use resflow::device::{Device, DeviceOptions, Precision};
use resflow::import::{StateDict, Weights};
use resflow::lipschitz::PowerIteration;
use resflow::with_device;

use crate::arguments::Import;
use crate::failure::{say, usage};
use crate::output::{extension, print, spare_inputs};
use crate::settings::Settings;

pub(crate) fn run(arguments: &Import) -> Result<()> {
    let (state, out) = (&arguments.state, &arguments.out);
    if extension(out) != "safetensors" {
        return Err(usage(format_args!("--out {}: the file's name must end in .safetensors", out.display())));
    }
    if matches!(state.try_exists(), Ok(false)) {
        return Err(usage(format_args!("{}: file not found", state.display())));
    }
    spare_inputs(&[("--out", Some(out))], &[state, &arguments.config])?;
    let config = Settings::architecture(&arguments.config)?;
    let weights = if arguments.ema { Weights::Ema } else { Weights::Current };
    let dict = StateDict::read_at(state, weights, arguments.key.as_deref());
    let dict = dict.with_context(|| state.display().to_string())?;
    for note in &dict.notes {
        say(format_args!("note: {}: {note}", state.display()));
    }
    let found = dict.architecture(&config);
    if let (Some(found), true) = (found.images(), found != config) {
        let begins =
            if found.first_activation { "begins with an activation" } else { "does not begin with an activation" };
        say(format_args!("note: {}: the very first block {begins}, whatever the configuration says", state.display()));
    }
    let precision = if dict.precision() == "f64" { Precision::F64 } else { Precision::F32 };
    with_device!(Device::open(&DeviceOptions::cpu(precision))?, |backend| {
        let mut flow = Flow::from_state_dict(backend, &config, dict).with_context(|| state.display().to_string())?;
        if arguments.ema {
            // the stored singular vectors are those of the weights, not of their average
            converge(&mut flow);
        }
        finish(&flow, precision, arguments)
    })
}

fn converge<B: Backend>(flow: &mut Flow<B>) {
    flow.update_spectral_norms(PowerIteration::converge::<B>());
}

fn finish<B: Backend>(flow: &Flow<B>, precision: Precision, arguments: &Import) -> Result<()> {
    // as it is, and not sealed: its numbers are the reference's
    flow.to_archive()?.write(&arguments.out)?;
    let out = arguments.out.display();
    print(&format!(
        "{out}: {} parameters in {} blocks, {}, Lip(g) ≤ {:.4} by power iteration\nnext:\n  resflow inspect {out}\n",
        flow.parameters(),
        flow.config().blocks(),
        precision.name(),
        flow.lipschitz_estimate()?,
    ))
}

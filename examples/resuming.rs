//! A run that is interrupted and goes on: the resumed run makes the same steps, bit for bit, as one that was not.
//!
//! ```sh
//! cargo run --release --example resuming
//! ```

use std::ops::ControlFlow;

use resflow::backend::Key;
use resflow::checkpoint::Archive;
use resflow::config::FlowConfig;
use resflow::data::ToyDensity;
use resflow::train::{Budget, TrainConfig, Trainer};
use resflow::{Flow, NdArray};

type Cpu = NdArray<f32>;

fn trainer() -> Result<Trainer<Cpu>, resflow::Error> {
    let config = FlowConfig { blocks: 4, ..FlowConfig::new(2) };
    let flow = Flow::new(Cpu::new(), config, Key::new(0))?;
    Trainer::new(flow, ToyDensity::Moons, &TrainConfig::default(), Budget::Steps(60), Key::new(1))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let checkpoint = folder.path().join("checkpoint.safetensors");

    // an observer stops the run after 25 steps: Ctrl-C, a job's time limit, a full disk
    let mut first = trainer()?;
    first.run(|step, _validation| if step.step < 25 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })?;
    first.to_archive()?.write(&checkpoint)?;
    println!("stopped after step {}, {}", first.steps_done(), checkpoint.display());

    // another process: the same data, and all the rest from the file
    let mut second = Trainer::resume(Cpu::new(), &Archive::read(&checkpoint)?, ToyDensity::Moons)?;
    second.run(|_, _| ())?;
    println!(
        "resumed to step {}, best validation {:.4} nats",
        second.steps_done(),
        second.best_nll().unwrap_or(f64::NAN)
    );

    let mut whole = trainer()?;
    whole.run(|_, _| ())?;
    assert_eq!(second.model().to_archive()?.tensors, whole.model().to_archive()?.tensors);
    println!("the same model, to the bit, as that of a run without interruption");
    Ok(())
}

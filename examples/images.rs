//! A flow over images: a small multi-scale model, bits per dimension, samples as bytes, a round trip.
//!
//! ```sh
//! cargo run --release --example images             # pictures of its own
//! cargo run --release --example images -- mnist/   # MNIST's files, or a folder of PNG files of one size
//! ```

use resflow::backend::Key;
use resflow::config::{ImageConfig, ModelConfig};
use resflow::data::image::ImageSet;
use resflow::data::{Dataset, open};
use resflow::train::{Budget, TrainConfig, Trainer};
use resflow::transform::quantise;
use resflow::{Flow, NdArray};

/// Bright discs on dark ground, 8 × 8 pixels.
fn discs() -> Result<ImageSet, resflow::Error> {
    let image = |i: usize| {
        let (x, y) = (2.0 + (i % 5) as f64, 2.0 + (i / 5 % 5) as f64);
        (0..64).map(move |p| {
            let distance = ((p % 8) as f64 - x).hypot((p / 8) as f64 - y);
            (230.0 / (1.0 + (3.0 * (distance - 2.0)).exp())) as u8 + (i * 7 + p) as u8 % 16
        })
    };
    Ok(ImageSet::new(8, 8, 1, (0..500).flat_map(image).collect(), None)?)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let data = match std::env::args().nth(1) {
        Some(path) => open(path)?.data,
        None => Dataset::from(discs()?),
    };

    // the default architecture for images of this size, made smaller
    let ModelConfig::Images(config) = ModelConfig::for_shape(&data.sample_shape())? else {
        return Err("these are no images of bytes".into());
    };
    let blocks = config.blocks.iter().map(|_| 1).collect();
    let config = ImageConfig { blocks, filters: 16, fully_connected: 1, fully_connected_width: 32, ..config };
    let train = TrainConfig { batch: 32, warmup: 20, ..TrainConfig::for_model(&config.clone().into()) };

    let flow = Flow::new(NdArray::<f32>::new(), &config, Key::new(0))?;
    println!("{} parameters", flow.parameters());
    let mut trainer = Trainer::new(flow, data, &train, Budget::Steps(60), Key::new(1))?;
    trainer.run(|step, validation| {
        if let Some(validation) = validation {
            let bits = config.to_bits_per_dim(-validation.nll);
            println!("step {}: {bits:.2} bits/dim on images that were set aside", step.step);
        }
    })?;

    let model = trainer.model();
    let samples = model.sample(4, Key::new(2))?;
    println!("samples, largest residual {:.1e}; the first one:", samples.residual);
    let bytes: Vec<u8> = samples.samples.row(0).iter().map(|&x| quantise(x, config.bits)).collect();
    for line in bytes.chunks(config.width).take(config.height) {
        let shades: String = line.iter().map(|&b| [' ', '.', ':', 'o', '#'][usize::from(b) * 5 / 256]).collect();
        println!("  {shades}");
    }

    let few = trainer.validation_samples().select(&[0, 1, 2])?;
    let prepared = model.prepare();
    let latents = prepared.encode(&few, Key::new(3))?.latents;
    let back = prepared.decode(&latents, &resflow::invert::Inversion::for_backend::<NdArray<f32>>())?;
    println!("round trip of three images: largest residual {:.1e}", back.residual);
    Ok(())
}

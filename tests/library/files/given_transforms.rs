//! Flows of given transforms are read as they were written, or refused when they are made.

use std::num::NonZeroUsize;

use resflow::NdArray;
use resflow::backend::Key;
use resflow::config::ImageConfig;
use resflow::flow::Flow;

type Cpu = NdArray<f64>;

fn cpu() -> Cpu {
    Cpu::with_threads(NonZeroUsize::MIN).expect("one thread")
}

fn images() -> ImageConfig {
    let small = ImageConfig { height: 8, width: 8, channels: 1, filters: 2, blocks: vec![2], ..ImageConfig::default() };
    ImageConfig { fully_connected: 0, ..small }
}

/// A flow of given transforms has no classifier: with classes in its configuration it must be refused when it is made, or be
/// one that loads.
#[test]
fn transforms_with_a_configuration_of_classes() {
    let hybrid = ImageConfig { classes: 3, head_width: 2, ..images() };
    let transforms = Flow::new(cpu(), &hybrid, Key::new(1)).expect("valid").transforms().to_vec();
    if let Ok(flow) = Flow::from_transforms(cpu(), &hybrid, transforms) {
        let archive = flow.to_archive().expect("stored");
        assert!(Flow::from_archive(cpu(), &archive).is_ok(), "written, but not read");
    }
}

/// The singular vectors of a listed flow stay those of the larger images that it was resized from.
#[test]
fn a_listed_flow_resized_to_smaller_images() {
    let mut transforms = Flow::new(cpu(), images(), Key::new(1)).expect("valid").transforms().to_vec();
    let last = transforms.len() - 1;
    transforms.swap(1, last);
    let flow = Flow::from_transforms(cpu(), images(), transforms.clone()).expect("samples pass");
    assert!(Flow::from_archive(cpu(), &flow.to_archive().expect("stored")).is_ok());
    transforms.push(transforms[last].clone());
    let flow = Flow::from_transforms(cpu(), images(), transforms).expect("samples pass").resized(4, 4).expect("a size");
    let archive = flow.to_archive().expect("stored");
    assert_eq!(archive.document["model"]["format"], 3);
    let again = Flow::from_archive(cpu(), &archive).expect("written, but not read");
    assert_eq!(again.stages().expect("built in"), flow.stages().expect("built in"));
}

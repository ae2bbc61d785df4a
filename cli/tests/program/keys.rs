//! Numbers of the program repeated by the library, with the keys that `--help` tells.

use resflow::backend::Key;
use resflow::data::Table;
use resflow::invert::Inversion;
use resflow::{Flow, NdArray};

use crate::binary::{Folder, TINY, csv};

type Cpu = NdArray<f32>;

#[test]
fn score_encode_and_sample() {
    let folder = Folder::new();
    folder.write("data.csv", csv(90));
    // of an identity nothing would be estimated
    let roulette = "start = \"random\"\nevaluation = \"roulette:law=geometric,p=0.3,exact=2\"\n[train]\n";
    folder.write("roulette.toml", TINY.replace("[train]\n", roulette));
    folder.succeed("fit data.csv --out run --config roulette.toml --steps 10");
    let flow = Flow::load(Cpu::new(), folder.path("run/model.safetensors")).expect("a model").prepare();
    let data = resflow::data::read(folder.path("data.csv")).expect("a table");
    let key = Key::new(7).named("score");

    folder.succeed("score run data.csv --seed 7 --out scores.csv");
    let score = flow.log_prob(&data, key).expect("log p");
    assert!(score.standard_error.iter().all(|&e| e > 0.0), "estimated, so that the key matters");
    let expected: Vec<_> = score.values.iter().zip(&score.standard_error).map(|(&v, &e)| vec![v, e]).collect();
    // beside the percentiles
    let scores: Vec<_> = folder.table("scores.csv").1.iter().map(|row| row[..2].to_vec()).collect();
    assert_eq!(scores, expected);

    folder.succeed("encode run data.csv --seed 7 --out z.npy --log-det log_det.csv");
    let encoded = flow.normal_scores(flow.encode(&data, key).expect("z")).expect("no device fault");
    assert_eq!(read(&folder, "z.npy").values(), encoded.latents.values());
    let log_det: Vec<f64> = folder.table("log_det.csv").1.iter().map(|row| row[0]).collect();
    assert_eq!(log_det, encoded.log_det);

    folder.succeed("sample run -n 20 --seed 7 --out x.npy");
    let sampled = flow.sample(20, Key::new(7), &Inversion::for_backend::<Cpu>()).expect("x");
    assert_eq!(read(&folder, "x.npy").values(), sampled.samples.values());
}

fn read(folder: &Folder, name: &str) -> Table {
    resflow::data::read(folder.path(name)).expect(name)
}

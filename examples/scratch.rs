use resflow::backend::Key;
use resflow::config::FlowConfig;
use resflow::data::ToyDensity;
use resflow::estimator::*;
use resflow::train::*;
use resflow::{Flow, NdArray};
use std::num::NonZeroUsize;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let threads: usize = args[1].parse().unwrap();
    for (d, hidden, blocks) in [(2usize, vec![64usize, 64, 64], 8usize), (43, vec![128, 128], 10)] {
        let mut config = FlowConfig { blocks, hidden, coefficient: 0.9, ..FlowConfig::new(d) };
        config.training = Estimator::RussianRoulette(RussianRoulette::new(Law::ShiftedGeometric { p: 0.5 }, 2).unwrap());
        let b = NdArray::<f32>::with_threads(NonZeroUsize::new(threads).unwrap()).unwrap();
        let flow = Flow::new(b, &config, Key::new(0)).unwrap();
        let source = if d == 2 { Source::Density(ToyDensity::Moons) } else {
            let mut v = vec![0.0f64; 43 * 5000];
            resflow::backend::Noise::Normal.fill(Key::new(3), 0, &mut v);
            Source::Table(resflow::data::Table::new(None, 43, v).unwrap()) };
        let mut t = Trainer::new(flow, source, &TrainConfig::default(), Budget::Steps(1000), Key::new(1)).unwrap();
        for _ in 0..10 { t.step().unwrap(); }
        let n = 100;
        let s = std::time::Instant::now();
        let mut times = vec![];
        let mut terms = 0;
        for _ in 0..n { let s = std::time::Instant::now(); terms += t.step().unwrap().terms; times.push(s.elapsed().as_secs_f64()); }
        let dt = s.elapsed().as_secs_f64();
        times.sort_by(f64::total_cmp);
        println!("d={d} threads {threads}: {:.0} samples/s mean, {:.0} median, terms per block {:.2}", 500.0 * n as f64 / dt, 500.0 / times[n / 2], terms as f64 / n as f64 / blocks as f64);
    }
}

//! Memory of training: one activation a block boundary and what one block needs, whatever number of terms was drawn
//! (Chen et al. 2019, §3.2). And of reading: a small file does not take much, whatever it promises or expands to.

use std::io::Write as _;

use crate::common::{Cpu, Net, cpu, normal};
use crate::gradient_memory::{peak, peak_of};
use crate::memory;
use flate2::{Compression, write::GzEncoder};
use resflow::backend::{Backend as _, Key};
use resflow::batch::Batch;
use resflow::bijection::{Ask, Bijection, Cotangents, Draw, Memory};
use resflow::block::{InvertedBlock, MonotoneBlock};
use resflow::config::{Family, ImageConfig, Nonlinearity};
use resflow::data::image::idx;
use resflow::estimator::{Estimator, Truncated};
use resflow::invert::{Inversion, Method};

fn bytes(blocks: usize, terms: usize, memory: Memory) -> f64 {
    peak(blocks, terms, memory).expect("a gradient") as f64
}

#[test]
fn neumann_does_not_grow_with_the_terms() {
    for memory in [Memory::Recompute, Memory::Store] {
        let (few, many) = (bytes(2, 3, memory), bytes(2, 30, memory));
        assert!(many < 1.05 * few, "{memory:?}: {few} bytes for 3 terms, {many} for 30");
    }
    let (few, many) = (bytes(2, 3, Memory::Unroll), bytes(2, 30, Memory::Unroll));
    assert!(many > 3.0 * few, "differentiated: {few} bytes for 3 terms, {many} for 30");
}

#[test]
fn a_block_costs_its_boundary() {
    // x, u, v and the output of the ActNorm behind it, and the gradients of its parameters
    let boundary = 5.0 * 28.0 * 28.0 * 4.0 + 12.0 * (64.0 * 64.0 + 20.0 * 64.0) * 4.0;
    let grows = |memory| (bytes(12, 4, memory) - bytes(4, 4, memory)) / 8.0;
    let (recomputed, kept) = (grows(Memory::Recompute), grows(Memory::Store));
    assert!(recomputed < boundary, "a block more takes {recomputed} bytes, its boundary {boundary}");
    assert!(kept > 5.0 * recomputed, "{kept} bytes kept, {recomputed} recomputed");
}

/// A dense block keeps no more than any other, and a term takes nothing.
#[test]
fn a_dense_block_costs_its_boundary() {
    let dense = |blocks: usize, terms: usize, memory| {
        let residual = ImageConfig { blocks: vec![blocks], filters: 64, fully_connected: 0, ..ImageConfig::default() };
        peak_of(&residual.of(Family::Dense), terms, memory).expect("a gradient") as f64
    };
    let (growth, c) = (22.0, 1.0);
    let weights = 9.0 * growth / 2.0 * (3.0 * c + 3.0 * growth) + c + 3.0 * growth;
    let boundary = 5.0 * 28.0 * 28.0 * 4.0 + 12.0 * 1.1 * weights * 4.0;
    let grows = |memory| (dense(12, 4, memory) - dense(4, 4, memory)) / 8.0;
    let (recomputed, kept) = (grows(Memory::Recompute), grows(Memory::Store));
    assert!(recomputed < boundary, "a block more takes {recomputed} bytes, its boundary {boundary}");
    assert!(kept > 3.0 * recomputed, "{kept} bytes kept, {recomputed} recomputed");
    let (few, many) = (dense(2, 3, Memory::Recompute), dense(2, 30, Memory::Recompute));
    assert!(many < 1.05 * few, "{few} bytes for 3 terms, {many} for 30");
}

/// An IDX file of `images` images of 28 × 28 by its header and of `zeros` bytes in fact, compressed.
fn compressed(images: u32, zeros: usize) -> Vec<u8> {
    let mut file = GzEncoder::new(Vec::new(), Compression::best());
    for word in [0x803, images, 28, 28] {
        file.write_all(&word.to_be_bytes()).expect("memory");
    }
    for _ in 0..zeros >> 12 {
        file.write_all(&[0; 1 << 12]).expect("memory");
    }
    file.finish().expect("memory")
}

#[test]
fn gzip_bombs_take_little_memory() {
    // 64 MiB behind one image; a promise of 3 TB without data; 2 GiB promised and 64 MiB there
    for (images, zeros) in [(1, 64 << 20), (u32::MAX, 0), (2_800_000, 64 << 20)] {
        let bytes = compressed(images, zeros);
        let (read, held) = memory::peak(|| idx::read_images(&bytes));
        assert!(read.is_err(), "{images} images of {zeros} bytes");
        assert!(held < 1 << 20, "{held} bytes held for a file of {}", bytes.len());
    }
}

/// A block whose forward pass is a solve keeps its solution, and no iterate: the peak of a forward and a backward pass does not
/// grow with the iterations of either solve, nor with the terms of the series, by as much as one of them.
#[test]
fn solves_keep_no_iterate() {
    const ROWS: usize = 256;
    const D: usize = 24;
    let net = Net {
        seed: 3,
        widths: vec![D, 40, D],
        activation: Nonlinearity::Tanh,
        leading: false,
        kappa: 0.97,
        stretch: vec![3.0, 3.0],
        iterations: None,
    };
    let run = |monotone: bool, accuracy: f64, terms: usize, keep| {
        let b = cpu();
        let g = Box::new(net.sequence(&b));
        let block: Box<dyn Bijection<Cpu>> = if monotone {
            Box::new(MonotoneBlock::new(g, &[D]).expect("a contraction"))
        } else {
            Box::new(InvertedBlock::new(g, &[D]).expect("a contraction"))
        };
        let prepared = block.prepare(&b);
        // rows that are alike end together: where they do not, buffers of every number of rows that are left stay with the backend
        let x = b.take_rows(&normal(&b, Key::new(1), [1, D]), &[0; ROWS]);
        let series = Estimator::Truncated(Truncated::new(terms).expect("terms"));
        let draw = Draw { estimator: &series, key: Key::new(2) };
        let how = Inversion::for_backend::<Cpu>().with_method(Method::FixedPoint);
        let solver = how.and_then(|how| how.with_accuracy(accuracy)).expect("in range");
        let ask = Ask { solver, ..Ask::gradient::<Cpu>(draw, keep) };
        let (evaluations, bytes) = memory::peak(|| {
            let mapped = prepared.forward(&b, &Batch::new(x.clone()), &ask).expect("no device fault");
            let cotangents = Cotangents { x: x.clone(), log_det: b.full(0.0, [ROWS, 1].into()), context: None };
            let (mut grads, mut reports) = (vec![None; 4], mapped.reports);
            let tape = mapped.tape.expect("kept");
            prepared.backward_reported(&b, tape, cotangents, &mut grads, &mut reports).expect("no device fault");
            reports.expect("a solve has reports").iter().map(|r| r.iterations).max()
        });
        (evaluations.expect("samples"), bytes)
    };
    let iterate = ROWS * D * size_of::<f64>();
    for monotone in [false, true] {
        for keep in [Memory::Store, Memory::Recompute] {
            let ((few, less), (many, more)) = (run(monotone, 1e-4, 3, keep), run(monotone, 1e-13, 3, keep));
            assert!(many > 2 * few, "{few} evaluations and {many}");
            assert!(less > iterate, "{less} bytes cannot hold the solution");
            assert!(more < less + iterate, "{keep:?}: {less} bytes for {few} evaluations, {more} for {many}");
            let (_, long) = run(monotone, 1e-4, 40, keep);
            assert!(long < less + iterate, "{keep:?}: {less} bytes for 3 terms, {long} for 40");
        }
    }
}

//! Noise: element e is a function of the key and e, the same on every backend.
//!
//! Shards draw their rows by address and resumed runs draw the same batch again, so a stream must not depend on how it
//! is cut. Expected false alarms: none, the reference is exact.

use proptest::prelude::*;
use resflow_backend::{Backend, Element, Key, Noise, Shape};

use crate::draw::{check, download, seed, shape};
use crate::reference::Array;
use crate::tolerance::{NORMAL, assert_close, assert_same_bits};

/// First elements at, before and after the borders of Philox blocks, of 32-bit words and of the block counter's words.
fn first() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => 0u64..9,
        3 => 0u64..1_000_000,
        1 => (1u64 << 32) - 9..(1 << 32) + 9,
        // the block number passes 2³² here
        1 => (1u64 << 34) - 9..(1 << 34) + 9,
        1 => 1u64 << 40..1 << 50,
    ]
}

fn reference<B: Backend>(noise: Noise, key: Key, first: u64, shape: Shape) -> Array {
    let mut out = vec![B::Elem::ZERO; shape.elements()];
    noise.fill(key, first, &mut out);
    Array::new(shape, out.into_iter().map(Element::to_f64).collect())
}

/// Every distribution is [`Noise::fill`]: bit for bit, normals to a few units.
pub fn noise<B: Backend>(backend: &B) {
    for noise in Noise::ALL {
        let case = |shape: Shape, seed, first| {
            let got = download(backend, &backend.noise(Key::new(seed), noise, first, shape));
            let want = reference::<B>(noise, Key::new(seed), first, shape);
            if noise == Noise::Normal {
                assert_close::<B::Elem>("noise", &got, &want, &want.map(|x| 1.0 + x.abs()), NORMAL);
            } else {
                assert_same_bits("noise", &got, &want);
            }
        };
        check(&format!("noise {noise:?}"), (shape(), seed(), first()), |(shape, seed, first)| case(shape, seed, first));
        case([70_003].into(), 1, 2);
        case([33, 16, 16, 3].into(), u64::MAX, 5);
    }
}

/// A slice of a stream is the stream's slice, bit for bit, normals included.
pub fn noise_slices<B: Backend>(backend: &B) {
    for noise in Noise::ALL {
        let case = (seed(), first(), 0u64..300, 0usize..200);
        check(&format!("noise {noise:?} in slices"), case, |(seed, first, skip, length)| {
            let key = Key::new(seed);
            let whole = backend.noise(key, noise, first, [500].into());
            let part = backend.noise(key, noise, first + skip, [length].into());
            let want = download(backend, &backend.narrow(&whole, 0, skip as usize, length));
            assert_same_bits("noise", &download(backend, &part), &want);
        });
        // rows of a batch of images, as shards draw them
        let key = Key::new(99);
        let whole = download(backend, &backend.noise(key, noise, 0, [7, 3, 5, 2].into()));
        for row in 0..7 {
            let shard = backend.noise(key, noise, row as u64 * 30, [1, 3, 5, 2].into());
            assert_same_bits("noise", &download(backend, &shard), &whole.narrow(0, row, 1));
        }
    }
}

/// Different keys give different streams.
pub fn noise_keys<B: Backend>(backend: &B) {
    for noise in Noise::ALL {
        let draw = |key: Key| download(backend, &backend.noise(key, noise, 0, [64].into()));
        // equal by chance in 2⁻⁶⁴ of pairs of keys; both words of the key count
        for other in [Key::new(6), Key::new(5 + (1 << 32)), Key::new(5).split(0)] {
            assert_ne!(draw(Key::new(5)), draw(other), "noise: {noise:?} of two keys");
        }
    }
}

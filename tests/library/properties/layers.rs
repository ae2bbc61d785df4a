//! Every layer and chain of layers: the adjoint identity ⟨J dx, gy⟩ = ⟨dx, Jᵀgy⟩, and Taylor's theorem. With the step
//! halved, |f(x + hδ) − f(x)| falls by 2 and |f(x + hδ) − f(x) − h Df δ| by 4, in x, in the tangents and in every
//! parameter, with the soft normalisation on and off and with u, v converged or not. Random cases, no statistics: a
//! false alarm would need a second derivative that happens to vanish in six random directions at once.

use crate::common::derivatives::*;
use crate::common::*;
use proptest::prelude::*;
use resflow::backend::{Backend, Key};
use resflow::config::Nonlinearity;

const ROWS: usize = 6;
proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn linear_layers(
        seed: u64, i in 1_usize..12, o in 1_usize..12, kappa in 0.3..0.99, stretch in stretch(),
        iterations in proptest::option::of(0_usize..4), tangents in tangents(),
    ) {
        let (b, key) = (cpu(), Key::new(seed));
        let layer = linear(&b, i, o, kappa, stretch, iterations, key);
        let x = normal(&b, key.named("x"), [ROWS, i]);
        if iterations.is_none() {
            adjoint(&b, &layer, &x, key)?;
        }
        derivatives(&b, &layer, &x, tangents, key)?;
    }

    #[test]
    fn activations(
        seed: u64, width in 1_usize..8, which in proptest::sample::select(&Nonlinearity::ALL[..]),
        spread in 0.1..4.0, tangents in tangents(),
    ) {
        let (b, key) = (cpu(), Key::new(seed));
        let layer = activation(&b, which, key);
        let x = away_from_kinks(&b, &b.affine(normal(&b, key.named("x"), [ROWS, width]), spread, 0.0));
        adjoint(&b, &*layer, &x, key)?;
        derivatives(&b, &*layer, &x, tangents, key)?;
    }

    #[test]
    fn chains_are_adjoint(net in nets(1..=8, &Nonlinearity::ALL, false)) {
        let b = cpu();
        let net = Net { iterations: None, ..net };
        adjoint(&b, &net.sequence(&b), &normal(&b, net.key().named("x"), [ROWS, net.dimension()]), net.key())?;
    }

    #[test]
    fn chains_obey_taylor(net in nets(1..=8, &SMOOTH, false), tangents in tangents()) {
        let b = cpu();
        let x = normal(&b, net.key().named("x"), [ROWS, net.dimension()]);
        derivatives(&b, &net.sequence(&b), &x, tangents, net.key())?;
    }
}

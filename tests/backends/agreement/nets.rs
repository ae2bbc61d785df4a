//! One block's g: its value and its derivatives, every parameter's gradient among them.

use resflow::backend::{Backend, Key, Shape};
use resflow::batch::Batch;
use resflow::layer::{Derivatives, Layer, LayerGrads, Saved};
use resflow::module::Grad;

use crate::agreement::model::{Model, dense, each_block, normals, pictures, upload, with_rows};
use crate::agreement::record::{Record, agreement, host};
use crate::agreement::tolerance::Quantity;
use crate::common::asking::count_grads;

/// A model, rows and tangents.
type Case = (Model, usize, usize);

agreement!(dense_nets: 16 of (dense(), 1_usize..=33, 0_usize..=2) => derivatives(Case));
agreement!(image_nets: 12 of (pictures(), 1_usize..=4, 0_usize..=2) => derivatives(Case));

fn derivatives<B: Backend>(b: &B, (model, n, tangents): &Case) -> Record {
    let mut record = Record::new(model.dimension());
    each_block(&model.load(b), |l, net, row| {
        let key = model.key.named("net").split(l as u64);
        one(b, &mut record, &format!("links.{l} "), net, key, with_rows(*n, row), *tangents);
    });
    record
}

fn one<B: Backend>(
    b: &B,
    record: &mut Record,
    name: &str,
    net: &dyn Layer<B>,
    key: Key,
    shape: Shape,
    tangents: usize,
) {
    let normal = |what: &str| upload(b, &normals(key.named(what), shape.elements()), shape);
    let prepared = net.prepare(b);
    let (x, dx, gy) = (normal("x"), normal("dx"), normal("gy"));
    record.tensor(
        b,
        Quantity::Value,
        format!("{name}g"),
        &prepared.forward(b, &Batch::new(x.clone()), Derivatives::None).0,
    );
    let (_, first) = prepared.forward(b, &Batch::new(x.clone()), Derivatives::First);
    let (y, second) = prepared.forward(b, &Batch::new(x.clone()), Derivatives::Second);
    record.tensor(b, Quantity::Value, format!("{name}g, all kept"), &y);
    for (how, saved) in [("", &first), (", all kept", &second)] {
        record.tensor(b, Quantity::Derivative, format!("{name}jvp{how}"), &prepared.jvp(b, saved, &dx).0);
        record.tensor(b, Quantity::Derivative, format!("{name}vjp{how}"), &prepared.vjp(b, saved, gy.clone()));
    }
    let kept: Vec<Saved<B>> =
        (0..tangents).map(|m| prepared.keep_tangent(b, &second, &normal(&format!("tangent {m}")))).collect();
    let gdy = (0..tangents).map(|m| normal(&format!("gdy {m}"))).collect();
    let mut grads: Vec<Grad<B>> = vec![None; count_grads(net)];
    let (gx, gdx) = prepared.tangent_vjp(
        b,
        &second,
        &kept.iter().collect::<Vec<_>>(),
        gy,
        gdy,
        LayerGrads { trained: &mut grads, context: &mut None },
    );
    record.tensor(b, Quantity::Derivative, format!("{name}gx"), &gx);
    for (m, gdx) in gdx.iter().enumerate() {
        record.tensor(b, Quantity::Derivative, format!("{name}gdx {m}"), gdx);
    }
    prepared.finish_gradients(b, &mut grads);
    let (mut values, mut parts, mut grads) = (Vec::new(), Vec::new(), grads.into_iter());
    net.visit("", &mut |path, _, role| {
        if role.is_trained() {
            let start = values.len();
            values.extend(host(b, grads.next().flatten().as_ref().expect("a gradient of every parameter")));
            parts.push((path.to_owned(), start..values.len()));
        }
    });
    record.parts(Quantity::Gradient, &format!("{name}gradient of "), values, parts);
}

//! Nets layer by layer.

use crate::{Backend, Binary, Net, NetForward, NetLayer, Over, Reduce, SeriesState, TermWeights};

/// Applies a product of matrices, `[rows, c]` to `[rows, o]`, to the last axis of x.
fn by_rows<B: Backend>(backend: &B, x: &B::Tensor, product: impl FnOnce(&B::Tensor) -> B::Tensor) -> B::Tensor {
    let shape = backend.shape(x);
    if shape.rank() == 2 {
        return product(x);
    }
    let y = product(&matrix(backend, x));
    backend.reshape(&y, shape.with_channels(backend.shape(&y)[1]))
}

/// Samples `[n, …, c]` as a matrix `[n·…, c]`.
fn matrix<B: Backend>(backend: &B, x: &B::Tensor) -> B::Tensor {
    let shape = backend.shape(x);
    if shape.rank() == 2 {
        return x.clone();
    }
    let rows: usize = shape.iter().rev().skip(1).product();
    backend.reshape(x, [rows, shape.channels()].into())
}

/// What an activation keeps of x and its derivatives there.
fn of_activation<T: Clone>(x: &T, mut derivatives: Vec<T>, order: usize) -> Vec<T> {
    match order {
        0 => Vec::new(),
        1 => vec![derivatives.swap_remove(1)],
        _ => {
            derivatives.insert(0, x.clone());
            derivatives
        }
    }
}

/// [`Backend::net_forward`] layer by layer, an affine layer of rows together with an activation that follows.
pub fn net_forward<B: Backend>(
    backend: &B,
    net: &Net<B::Tensor>,
    x: &B::Tensor,
    order: usize,
) -> NetForward<B::Tensor> {
    let (mut value, mut kept) = (x.clone(), Vec::with_capacity(net.layers.len()));
    let of_affine = |value: B::Tensor| if order == 2 { vec![value] } else { Vec::new() };
    let mut layers = net.layers.iter().peekable();
    while let Some(layer) = layers.next() {
        let rows = backend.shape(&value).rank() == 2;
        match (layer, layers.peek()) {
            (NetLayer::Linear { transposed, bias, .. }, Some(NetLayer::Activation { function, parameter })) if rows => {
                layers.next();
                let (y, orders) =
                    backend.linear_activation(&value, transposed, bias, *function, parameter.as_ref(), order);
                kept.push(of_affine(value));
                value = orders[0].clone();
                kept.push(of_activation(y.as_ref().unwrap_or(&value), orders, order));
            }
            (NetLayer::Linear { transposed, bias, .. }, _) => {
                let y = by_rows(backend, &value, |x| backend.linear(x, transposed, bias));
                kept.push(of_affine(std::mem::replace(&mut value, y)));
            }
            (NetLayer::Convolution { kernel, bias, padding }, _) => {
                let y = backend.binary(Binary::Add, backend.conv2d(&value, kernel, *padding), bias);
                kept.push(of_affine(std::mem::replace(&mut value, y)));
            }
            (NetLayer::Activation { function, parameter }, _) => {
                let orders = backend.activation(*function, parameter.as_ref(), &value, order);
                let y = orders[0].clone();
                kept.push(of_activation(&value, orders, order));
                value = y;
            }
        }
    }
    NetForward { y: value, kept }
}

/// A tangent behind a layer; `slopes` begins with those of the layer, if it is an activation.
fn push_forward<'a, B: Backend>(
    backend: &B,
    layer: &NetLayer<B::Tensor>,
    slopes: &mut impl Iterator<Item = &'a B::Tensor>,
    dx: &B::Tensor,
) -> B::Tensor {
    match layer {
        NetLayer::Linear { transposed, .. } => by_rows(backend, dx, |dx| backend.matmul(dx, false, transposed, false)),
        NetLayer::Convolution { kernel, padding, .. } => backend.conv2d(dx, kernel, *padding),
        NetLayer::Activation { .. } => backend.binary(Binary::Mul, dx.clone(), slopes.next().expect("counted")),
    }
}

/// [`Backend::net_tangents`] layer by layer.
pub fn net_tangents<B: Backend>(
    backend: &B,
    net: &Net<B::Tensor>,
    slopes: &[&B::Tensor],
    dx: &B::Tensor,
) -> Vec<B::Tensor> {
    assert_eq!(slopes.len(), net.activations(), "net_tangents: slopes of other activations");
    let mut slopes = slopes.iter().copied();
    let Some((_, layers)) = net.layers.split_last() else { return Vec::new() };
    let mut tangents = vec![dx.clone()];
    for layer in layers {
        tangents.push(push_forward(backend, layer, &mut slopes, &tangents[tangents.len() - 1]));
    }
    tangents
}

/// [`Backend::net_jvp`] by the tangents, and the last layer.
pub fn net_jvp<B: Backend>(
    backend: &B,
    net: &Net<B::Tensor>,
    slopes: &[&B::Tensor],
    dx: &B::Tensor,
) -> (B::Tensor, Vec<B::Tensor>) {
    let tangents = backend.net_tangents(net, slopes, dx);
    let dy = match (net.layers.last(), tangents.last()) {
        (Some(layer), Some(dx)) => push_forward(backend, layer, &mut slopes.last().copied().into_iter(), dx),
        _ => dx.clone(),
    };
    (dy, tangents)
}

/// A cotangent before a layer; `slopes` begins with those of the layer, if it is an activation.
fn pull_back<'a, B: Backend>(
    backend: &B,
    layer: &NetLayer<B::Tensor>,
    slopes: &mut impl Iterator<Item = &'a B::Tensor>,
    gy: B::Tensor,
) -> B::Tensor {
    match layer {
        NetLayer::Linear { weight, .. } => by_rows(backend, &gy, |gy| backend.matmul(gy, false, weight, false)),
        NetLayer::Convolution { kernel, padding, .. } => {
            let shape = backend.shape(&gy);
            backend.conv2d_input(&gy, kernel, *padding, [shape[1], shape[2]])
        }
        NetLayer::Activation { .. } => backend.binary(Binary::Mul, gy, slopes.next().expect("counted")),
    }
}

/// [`Backend::net_vjp`] layer by layer.
pub fn net_vjp<B: Backend>(backend: &B, net: &Net<B::Tensor>, slopes: &[&B::Tensor], gy: B::Tensor) -> B::Tensor {
    assert_eq!(slopes.len(), net.activations(), "net_vjp: slopes of other activations");
    let mut slopes = slopes.iter().rev().copied();
    net.layers.iter().rev().fold(gy, |gy, layer| pull_back(backend, layer, &mut slopes, gy))
}

/// [`Backend::net_series`] term by term.
pub fn net_series<B: Backend>(
    backend: &B,
    net: &Net<B::Tensor>,
    slopes: &[&B::Tensor],
    first: usize,
    weights: TermWeights<'_, B::Tensor>,
    probe: &B::Tensor,
    negligible: f64,
    mut state: SeriesState<B::Tensor>,
) -> SeriesState<B::Tensor> {
    for index in 0..weights.terms() {
        state.power = backend.net_vjp(net, slopes, state.power);
        state = backend.series_term(first + index, weights.term(index), probe, negligible, state);
        if backend.known_zero(&state.power) {
            break;
        }
    }
    state
}

/// [`Backend::net_pullback`] layer by layer.
pub fn net_pullback<B: Backend>(
    backend: &B,
    net: &Net<B::Tensor>,
    kept: &[&[B::Tensor]],
    tangents: &[Vec<&B::Tensor>],
    mut gy: B::Tensor,
    mut gdy: Vec<B::Tensor>,
    grads: &mut [Option<B::Tensor>],
) -> (B::Tensor, Vec<B::Tensor>) {
    net.check_pullback(kept, tangents, gdy.len(), grads.len());
    let mut end = grads.len();
    for (l, layer) in net.layers.iter().enumerate().rev() {
        let start = end - layer.trained();
        let own = &mut grads[start..end];
        end = start;
        match layer {
            NetLayer::Activation { function, parameter } => {
                let dx: Vec<_> = tangents.iter().map(|t| t[l].clone()).collect();
                let (x, derivatives) = kept[l].split_first().expect("checked");
                let out = backend.activation_reverse(*function, parameter.as_ref(), x, derivatives, &dx, gy, gdy);
                if let Some(gradient) = out.parameter {
                    accumulate(backend, &mut own[0], &gradient);
                }
                (gy, gdy) = (out.gx, out.gdx);
            }
            NetLayer::Linear { .. } | NetLayer::Convolution { .. } => {
                add_weight_gradient(backend, layer, &mut own[0], &gy, &kept[l][0]);
                for (gdy, tangent) in gdy.iter().zip(tangents) {
                    add_weight_gradient(backend, layer, &mut own[0], gdy, tangent[l]);
                }
                accumulate(backend, &mut own[1], &backend.reduce(Reduce::Sum, Over::Channel, &gy));
                let back = |g: B::Tensor| pull_back(backend, layer, &mut std::iter::empty(), g);
                (gy, gdy) = (back(gy), gdy.into_iter().map(back).collect());
            }
        }
    }
    (gy, gdy)
}

fn accumulate<B: Backend>(backend: &B, sum: &mut Option<B::Tensor>, gradient: &B::Tensor) {
    *sum = Some(match sum.take() {
        None => gradient.clone(),
        Some(sum) => backend.axpy(1.0, gradient, sum),
    });
}

/// Adds the gradient of an affine layer's weight, from that of its output and its input.
fn add_weight_gradient<B: Backend>(
    backend: &B,
    layer: &NetLayer<B::Tensor>,
    sum: &mut Option<B::Tensor>,
    gradient: &B::Tensor,
    input: &B::Tensor,
) {
    *sum = Some(match (layer, sum.take()) {
        (NetLayer::Convolution { kernel, padding, .. }, None) => {
            let extents = backend.shape(kernel);
            backend.conv2d_kernel(input, gradient, *padding, [extents[1], extents[2]])
        }
        (NetLayer::Convolution { padding, .. }, Some(sum)) => backend.conv2d_kernel_add(sum, input, gradient, *padding),
        (_, None) => backend.matmul(&matrix(backend, gradient), true, &matrix(backend, input), false),
        (_, Some(sum)) => backend.matmul_add(sum, &matrix(backend, gradient), true, &matrix(backend, input), false),
    });
}

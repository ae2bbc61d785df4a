//! ln|det| and inverses of small matrices by Gauss and Jordan's elimination with partial pivoting: a thread a matrix up to
//! four rows, a workgroup a matrix up to [`LARGEST`]; larger ones go through the host, in double precision.

use resflow_backend::{BackendError, Shape};

use crate::device::Gpu;
use crate::kernel::{Kernel, Source, WORKGROUP, each, each_group, groups};
use crate::tensor::Tensor;

/// The most rows of a matrix that is inverted on the device.
const LARGEST: usize = 32;
/// The most rows of a matrix that one thread inverts.
const TINY: u32 = 4;
/// Threads for a larger one.
const THREADS: u32 = 64;

/// The kernels of this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Lu {
    /// A thread for each matrix of so many rows.
    Thread(u32),
    /// A workgroup for each matrix.
    Group,
}

impl Kernel for Lu {
    fn source(&self) -> Source {
        let (body, shared) = match *self {
            Self::Thread(d) => (each(&thread(d)), 0),
            Self::Group => (group(), 4 * (2 * LARGEST * LARGEST + 1) as u32),
        };
        Source {
            reads: vec!["a"],
            writes: vec!["log_det", "inverse"],
            params: vec!["n: u32", "d: u32"],
            body,
            shared,
            ..Source::default()
        }
    }
    #[cfg(test)]
    fn variants() -> Vec<Self> {
        (1..=TINY).map(Self::Thread).chain([Self::Group]).collect()
    }
}

fn thread(d: u32) -> String {
    let (size, width) = (d * d, 2 * d);
    format!(
        "  var m: array<f32, {all}>;
  for (var r = 0u; r < {d}u; r = r + 1u) {{
    for (var c = 0u; c < {d}u; c = c + 1u) {{
      m[r * {width}u + c] = a[p.a + i * {size}u + r * {d}u + c];
      m[r * {width}u + {d}u + c] = truth(r == c);
    }}
  }}
  var total = 0.0;
  var singular = false;
  for (var k = 0u; k < {d}u; k = k + 1u) {{
    var best = k;
    for (var r = k + 1u; r < {d}u; r = r + 1u) {{
      if (abs(m[r * {width}u + k]) > abs(m[best * {width}u + k])) {{ best = r; }}
    }}
    let pivot = m[best * {width}u + k];
    if (is_zero(pivot)) {{ singular = true; }}
    total = total + logarithm(abs(pivot));
    for (var c = 0u; c < {width}u; c = c + 1u) {{
      let low = m[k * {width}u + c];
      m[k * {width}u + c] = m[best * {width}u + c] / pivot;
      if (best != k) {{ m[best * {width}u + c] = low; }}
    }}
    for (var r = 0u; r < {d}u; r = r + 1u) {{
      if (r != k) {{
        let factor = m[r * {width}u + k];
        for (var c = 0u; c < {width}u; c = c + 1u) {{
          m[r * {width}u + c] = m[r * {width}u + c] - factor * m[k * {width}u + c];
        }}
      }}
    }}
  }}
  log_det[i] = select(total, -infinity(), singular);
  for (var r = 0u; r < {d}u; r = r + 1u) {{
    for (var c = 0u; c < {d}u; c = c + 1u) {{
      inverse[i * {size}u + r * {d}u + c] = select(m[r * {width}u + {d}u + c], not_a_number(), singular);
    }}
  }}",
        all = size * 2
    )
}

fn group() -> String {
    let width = 2 * LARGEST;
    let declaration = format!("var<workgroup> m: array<f32, {}>;\nvar<workgroup> best: u32;\n", 2 * LARGEST * LARGEST);
    declaration
        + &each_group(
            THREADS,
            &format!(
                "  let d = p.d;
  let size = d * d;
  for (var e = thread; e < size; e = e + {THREADS}u) {{
    let r = e / d;
    let c = e % d;
    m[r * {width}u + c] = a[p.a + item * size + e];
    m[r * {width}u + d + c] = truth(r == c);
  }}
  var total = 0.0;
  var singular = false;
  for (var k = 0u; k < d; k = k + 1u) {{
    workgroupBarrier();
    if (thread == 0u) {{
      var largest = k;
      for (var r = k + 1u; r < d; r = r + 1u) {{
        if (abs(m[r * {width}u + k]) > abs(m[largest * {width}u + k])) {{ largest = r; }}
      }}
      best = largest;
    }}
    workgroupBarrier();
    let row = best;
    let pivot = m[row * {width}u + k];
    if (is_zero(pivot)) {{ singular = true; }}
    total = total + logarithm(abs(pivot));
    workgroupBarrier();
    for (var c = thread; c < 2u * d; c = c + {THREADS}u) {{
      let low = m[k * {width}u + c];
      m[k * {width}u + c] = m[row * {width}u + c] / pivot;
      if (row != k) {{ m[row * {width}u + c] = low; }}
    }}
    workgroupBarrier();
    // column by column; column k holds the factors and goes last
    for (var c = thread; c < 2u * d; c = c + {THREADS}u) {{
      if (c != k) {{
        let above = m[k * {width}u + c];
        for (var r = 0u; r < d; r = r + 1u) {{
          if (r != k) {{ m[r * {width}u + c] = m[r * {width}u + c] - m[r * {width}u + k] * above; }}
        }}
      }}
    }}
  }}
  workgroupBarrier();
  if (thread == 0u) {{ log_det[item] = select(total, -infinity(), singular); }}
  for (var e = thread; e < size; e = e + {THREADS}u) {{
    let value = m[(e / d) * {width}u + d + e % d];
    inverse[item * size + e] = select(value, not_a_number(), singular);
  }}"
            ),
        )
}

impl Gpu {
    pub(crate) fn lu(&self, a: &Tensor) -> (Tensor, Tensor) {
        let shape = a.shape();
        assert!(shape.rank() == 3 && shape[1] == shape[2], "lu: square matrices [n, d, d], not {shape}");
        let (n, d) = (shape[0], shape[1]);
        if d == 0 {
            return (self.full(0.0, [n, 1].into()), self.output(&[a], shape));
        }
        if d > LARGEST {
            return self
                .lu_on_host(a, n, d)
                .unwrap_or_else(|fault| (self.failed(fault.clone(), [n, 1].into()), self.failed(fault, shape)));
        }
        let (log_det, inverse) = (self.output(&[a], [n, 1].into()), self.output(&[a], shape));
        let (kernel, per_group) = match d as u32 {
            tiny @ 1..=TINY => (Lu::Thread(tiny), WORKGROUP as usize),
            _ => (Lu::Group, 1),
        };
        self.launch(&kernel, &[a], &[&log_det, &inverse], &[n as u32, d as u32], groups(n, per_group));
        (log_det, inverse)
    }

    fn lu_on_host(&self, a: &Tensor, n: usize, d: usize) -> Result<(Tensor, Tensor), BackendError> {
        let matrices = self.download(a)?;
        let (mut log_dets, mut inverses) = (Vec::with_capacity(n), Vec::with_capacity(matrices.len()));
        for matrix in matrices.chunks_exact(d * d) {
            let lu = nalgebra::DMatrix::from_row_iterator(d, d, matrix.iter().map(|&x| f64::from(x))).lu();
            log_dets.push((0..d).map(|i| lu.u()[(i, i)].abs().ln()).sum::<f64>() as f32);
            match lu.try_inverse() {
                // column-major storage: the transpose is row-major
                Some(inverse) => inverses.extend(inverse.transpose().iter().map(|&x| x as f32)),
                None => inverses.extend(std::iter::repeat_n(f32::NAN, d * d)),
            }
        }
        let up = |data: &[f32], shape: Shape| self.upload(bytemuck::cast_slice(data), shape);
        Ok((up(&log_dets, [n, 1].into()), up(&inverses, [n, d, d].into())))
    }
}

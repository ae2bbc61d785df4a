//! Noise on the device: Philox4x32-10 (Salmon et al. 2011), the stream of [`Noise`] element for element.

use resflow_backend::{Key, Noise, Shape};

use crate::device::Gpu;
use crate::kernel::{Kernel, Source, WORKGROUP, each, groups};
use crate::tensor::Tensor;

const PHILOX: &str = "
// the upper word of a product
fn high(a: u32, b: u32) -> u32 {
  let al = a & 0xffffu; let ah = a >> 16u; let bl = b & 0xffffu; let bh = b >> 16u;
  let low = al * bl;
  let middle = ah * bl + (low >> 16u);
  let other = al * bh + (middle & 0xffffu);
  return ah * bh + (middle >> 16u) + (other >> 16u);
}
fn philox(counter: vec4<u32>, start: vec2<u32>) -> vec4<u32> {
  var c = counter;
  var key = start;
  for (var round = 0u; round < 10u; round = round + 1u) {
    let h0 = high(0xD2511F53u, c.x); let l0 = 0xD2511F53u * c.x;
    let h1 = high(0xCD9E8D57u, c.z); let l1 = 0xCD9E8D57u * c.z;
    c = vec4<u32>(h1 ^ c.y ^ key.x, l1, h0 ^ c.w ^ key.y, l0);
    key = key + vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
  }
  return c;
}
";

const UNIFORM: &str = "
fn value(w: u32) -> f32 { return f32(w >> 8u) * (1.0 / 16777216.0); }
fn four(w: vec4<u32>) -> vec4<f32> { return vec4<f32>(value(w.x), value(w.y), value(w.z), value(w.w)); }
";

const RADEMACHER: &str = "
fn four(w: vec4<u32>) -> vec4<f32> { return select(vec4<f32>(1.0), vec4<f32>(-1.0), (w >> vec4<u32>(31u)) == vec4<u32>(1u)); }
";

// Box and Muller; 1 − u and the angle's quadrant are exact in integers
const NORMAL: &str = "
fn pair(w0: u32, w1: u32) -> vec2<f32> {
  let radius = sqrt(-2.0 * logarithm(f32(16777216u - (w0 >> 8u)) * (1.0 / 16777216.0)));
  let turn = w1 >> 8u;
  let quadrant = (turn + 0x200000u) >> 22u;
  let r = f32(i32(turn) - i32(quadrant << 22u)) * (6.283185307179586 / 16777216.0);
  let s = sine_core(r);
  let c = cosine_core(r);
  let q = quadrant & 3u;
  let odd = (q & 1u) == 1u;
  let cosine = select(c, s, odd) * select(1.0, -1.0, q == 1u || q == 2u);
  let sine = select(s, c, odd) * select(1.0, -1.0, q >= 2u);
  return radius * vec2<f32>(cosine, sine);
}
fn four(w: vec4<u32>) -> vec4<f32> { return vec4<f32>(pair(w.x, w.y), pair(w.z, w.w)); }
";

/// What noise is for among the counters of a key, see `Key`.
const DOMAIN: u32 = 2;

/// The kernel of this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Draw(Noise);

impl Kernel for Draw {
    fn source(&self) -> Source {
        let four = match self.0 {
            Noise::Rademacher => RADEMACHER,
            Noise::Uniform => UNIFORM,
            Noise::Normal => NORMAL,
        };
        // thread i makes the four elements of one block; `skip` of the first block's lie before the draw
        let main = each(&format!(
            "  let low = p.block_low + i;
  let block = vec4<u32>(low, p.block_high + select(0u, 1u, low < i), {DOMAIN}u, 0u);
  let values = four(philox(block, vec2<u32>(p.key_low, p.key_high)));
  for (var j = 0u; j < 4u; j = j + 1u) {{
    let at = 4u * i + j;
    if (at >= p.skip && at - p.skip < p.elements) {{ out[at - p.skip] = values[j]; }}
  }}"
        ));
        Source {
            writes: vec!["out"],
            params: vec![
                "n: u32",
                "elements: u32",
                "skip: u32",
                "block_low: u32",
                "block_high: u32",
                "key_low: u32",
                "key_high: u32",
            ],
            body: [PHILOX, four, &main].concat(),
            ..Source::default()
        }
    }

    #[cfg(test)]
    fn variants() -> Vec<Self> {
        Noise::ALL.map(Self).to_vec()
    }
}

impl Gpu {
    pub(crate) fn noise(&self, key: Key, noise: Noise, first: u64, shape: Shape) -> Tensor {
        let out = self.output(&[], shape);
        let skip = (first % 4) as usize;
        let blocks = (skip + shape.elements()).div_ceil(4);
        let (block, key) = (first / 4, key.seed());
        let params = [
            blocks as u32,
            shape.elements() as u32,
            skip as u32,
            block as u32,
            (block >> 32) as u32,
            key as u32,
            (key >> 32) as u32,
        ];
        self.launch(&Draw(noise), &[], &[&out], &params, groups(blocks, WORKGROUP as usize));
        out
    }
}

// Elementary functions, since those built in are as accurate as the driver likes: each within a few ulp of f32. NaN and
// infinity are told by their bits: a comparison with NaN may be optimised away.
fn is_nan(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u; }
fn is_finite(x: f32) -> bool { return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u; }
fn is_zero(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) == 0u; }
// not constants: the compiler refuses to evaluate them
fn infinity() -> f32 { var bits = 0x7f800000u; return bitcast<f32>(bits); }
fn not_a_number() -> f32 { var bits = 0x7fc00000u; return bitcast<f32>(bits); }
fn truth(yes: bool) -> f32 { return select(0.0, 1.0, yes); }

fn larger(a: f32, b: f32) -> f32 {
  if (is_nan(a)) { return a; }
  if (is_nan(b) || b > a) { return b; }
  return a;
}
fn smaller(a: f32, b: f32) -> f32 {
  if (is_nan(a)) { return a; }
  if (is_nan(b) || b < a) { return b; }
  return a;
}
fn ordered(a: f32, b: f32) -> bool { return !is_nan(a) && !is_nan(b); }

// e^r − 1 for |r| ≤ ln(2)/2 (the polynomial of Moshier's Cephes, expf)
fn exp_core(r: f32) -> f32 {
  var y = fma(1.9875691500e-4, r, 1.3981999507e-3);
  y = fma(y, r, 8.3334519073e-3);
  y = fma(y, r, 4.1665795894e-2);
  y = fma(y, r, 1.6666665459e-1);
  y = fma(y, r, 5.0000001201e-1);
  return fma(y * r, r, r);
}
fn power_of_two(n: i32) -> f32 { return bitcast<f32>(u32(n + 127) << 23u); }
fn exponential(x: f32) -> f32 {
  if (is_nan(x)) { return x; }
  let c = clamp(x, -110.0, 100.0);
  let n = floor(fma(c, 1.44269504, 0.5));
  // ln 2 in two parts, the first of few bits, so that its multiples are exact
  let r = fma(n, 2.12194440e-4, fma(n, -0.693359375, c));
  let k = i32(n);
  let half = k / 2;
  return (1.0 + exp_core(r)) * power_of_two(half) * power_of_two(k - half);
}
fn exponential_minus_one(x: f32) -> f32 {
  if (abs(x) < 0.34) { return exp_core(x); }
  return exponential(x) - 1.0;
}

// ln(1 + f) for √½ − 1 ≤ f ≤ √2 − 1, plus e ln 2 (Cephes, logf)
fn ln_core(f: f32, e: f32) -> f32 {
  let z = f * f;
  var y = fma(7.0376836292e-2, f, -1.1514610310e-1);
  y = fma(y, f, 1.1676998740e-1);
  y = fma(y, f, -1.2420140846e-1);
  y = fma(y, f, 1.4249322787e-1);
  y = fma(y, f, -1.6668057665e-1);
  y = fma(y, f, 2.0000714765e-1);
  y = fma(y, f, -2.4999993993e-1);
  y = fma(y, f, 3.3333331174e-1);
  y = y * f * z;
  y = fma(e, -2.12194440e-4, y);
  y = fma(z, -0.5, y);
  return fma(e, 0.693359375, f + y);
}
fn logarithm(x: f32) -> f32 {
  if (is_nan(x)) { return x; }
  if (is_zero(x)) { return -infinity(); }
  var bits = bitcast<u32>(x);
  if (bits >= 0x80000000u) { return not_a_number(); }
  if (!is_finite(x)) { return x; }
  var e = -126;
  // a subnormal number is its bits times 2^-149; arithmetic may take it for zero
  if (bits < 0x00800000u) { bits = bitcast<u32>(f32(bits)); e = -275; }
  e = e + i32(bits >> 23u);
  var m = bitcast<f32>((bits & 0x007fffffu) | 0x3f000000u);
  if (m < 0.707106781) { e = e - 1; m = m + m; }
  return ln_core(m - 1.0, f32(e));
}
fn logarithm_of_one_plus(x: f32) -> f32 {
  if (x > -0.29 && x < 0.41) { return ln_core(x, 0.0); }
  return logarithm(1.0 + x);
}

fn hyperbolic_tangent(x: f32) -> f32 {
  if (is_nan(x)) { return x; }
  let a = min(abs(x), 10.0);
  let e = exponential_minus_one(-2.0 * a);
  let t = -e / (2.0 + e);
  return select(t, -t, x < 0.0);
}

// sine and cosine of |r| ≤ π/4
fn sine_core(r: f32) -> f32 {
  let z = r * r;
  var y = fma(-1.9515295891e-4, z, 8.3321608736e-3);
  y = fma(y, z, -1.6666654611e-1);
  return fma(y * z, r, r);
}
fn cosine_core(r: f32) -> f32 {
  let z = r * r;
  var y = fma(2.443315711809948e-5, z, -1.388731625493765e-3);
  y = fma(y, z, 4.166664568298827e-2);
  return fma(y * z, z, fma(-0.5, z, 1.0));
}
// sin(x + shift·π/2)
fn circular(x: f32, shift: i32) -> f32 {
  if (!is_finite(x)) { return not_a_number(); }
  if (abs(x) > 1.0e6) { return select(sin(x), cos(x), shift == 1); }
  // n in two parts of few bits, and π/2 in three, the first two of few bits: their products are exact
  let n = floor(fma(x, 0.636619772, 0.5));
  let high = trunc(n * 0.0009765625) * 1024.0;
  let low = n - high;
  var r = fma(low, -1.5703125, fma(high, -1.5703125, x));
  r = fma(low, -4.8375129699707e-4, fma(high, -4.8375129699707e-4, r));
  r = fma(n, -7.54978995489e-8, r);
  let quadrant = (i32(n) + shift) & 3;
  let y = select(sine_core(r), cosine_core(r), (quadrant & 1) == 1);
  return select(y, -y, quadrant >= 2);
}

//! Loops compiled for several instruction sets, chosen at run time, and elementary functions that vectorise.
//!
//! The bodies are plain Rust without fused multiply-adds, so all instruction sets give the same bits. What AVX-512 has of its own, and
//! rounds otherwise, is products and LipSwish.
//! Polynomials: Moshier's Cephes 2.2 (netlib.org/cephes, single precision), expf and logf. Bounds in ulp were found over
//! all numbers of the stated range; an ulp is the step from the exact value, rounded to f32, to the next larger size.
#![allow(unsafe_code)]

/// The instruction set that loops run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// The best that this machine has.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
            {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2") {
                return Self::Avx2;
            }
        }
        Self::Plain
    }

    /// All levels that this machine has.
    #[cfg(test)]
    pub(crate) fn available() -> Vec<Self> {
        let mut levels = vec![Self::Plain];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") {
                levels.push(Self::Avx2);
            }
            if Self::detect() == Self::Avx512 {
                levels.push(Self::Avx512);
            }
        }
        levels
    }

    /// Runs a loop compiled for this level. Everything that the closure calls must be `#[inline(always)]`.
    #[inline(always)]
    pub(crate) fn run<R>(self, work: impl FnOnce() -> R) -> R {
        match self {
            Self::Plain => work(),
            // SAFETY: a level is only constructed by `detect` and `available`, after the features were found.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { avx2(work) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { avx512(work) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
fn avx512<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// Defines a function whose body is compiled for every level; its first parameter chooses.
macro_rules! kernel {
    ($(#[$meta:meta])* $visibility:vis fn $name:ident<$E:ident>($($arg:ident: $t:ty),* $(,)?) $(-> $r:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(unsafe_code)]
        $visibility fn $name<$E: $crate::CpuElement>(level: $crate::simd::Level, $($arg: $t),*) $(-> $r)? {
            #[inline(always)]
            fn plain<$E: $crate::CpuElement>($($arg: $t),*) $(-> $r)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2<$E: $crate::CpuElement>($($arg: $t),*) $(-> $r)? { plain($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
            fn avx512<$E: $crate::CpuElement>($($arg: $t),*) $(-> $r)? { plain($($arg),*) }
            match level {
                $crate::simd::Level::Plain => plain($($arg),*),
                // SAFETY: such a level exists only where its features were found.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Level::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Level::Avx512 => unsafe { avx512($($arg),*) },
            }
        }
    };
}
pub(crate) use kernel;

/// 2ⁿ and eʳ − 1 for x = n ln 2 + r with |r| ≤ ln2/2, x clamped to [−87, 87].
#[inline(always)]
fn reduced_exp(x: f32) -> (f32, f32) {
    // adding 1.5·2²³ leaves the nearest integer in the low bits
    const MAGIC: f32 = 12_582_912.0;
    let x = if x > 87.0 { 87.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    // ln 2 in two parts, the first short enough for n·ln2 to be exact
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
    // Taylor coefficients adjusted on |r| ≤ ln2/2
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    (f32::from_bits(shifted.to_bits().wrapping_add(127) << 23), p * (r * r) + r)
}

/// eˣ within 1 ulp, clamped to [−87, 87], so that it never overflows and 1/(1 + eˣ) is never subnormal.
#[inline(always)]
pub(crate) fn exp_f32(x: f32) -> f32 {
    let (scale, q) = reduced_exp(x);
    (q + 1.0) * scale
}

/// eˣ − 1 within 2 ulp, clamped as [`exp_f32`].
#[inline(always)]
pub(crate) fn exp_m1_f32(x: f32) -> f32 {
    let (scale, q) = reduced_exp(x);
    // the sign of −0 is lost in r
    (q * scale + (scale - 1.0)).copysign(x)
}

/// tanh x within 3 ulp: −q/(2 + q) for q = e^{−2|x|} − 1.
#[inline(always)]
pub(crate) fn tanh_f32(x: f32) -> f32 {
    let q = exp_m1_f32(-2.0 * x.abs());
    (q / (q + 2.0)).copysign(x)
}

/// ln(1 + t) + high + low for t in [√½ − 1, √2 − 1].
#[inline(always)]
fn reduced_ln(t: f32, high: f32, low: f32) -> f32 {
    let p = 7.037_683_6e-2;
    let p = p * t - 1.151_461e-1;
    let p = p * t + 1.167_699_84e-1;
    let p = p * t - 1.242_014_1e-1;
    let p = p * t + 1.424_932_3e-1;
    let p = p * t - 1.666_805_7e-1;
    let p = p * t + 2.000_071_4e-1;
    let p = p * t - 2.499_999_4e-1;
    let p = p * t + 3.333_333e-1;
    let z = t * t;
    t + (t * z * p + low - 0.5 * z) + high
}

/// ln(1 + x) within 1.5 ulp for x in [0, 1] alone.
#[inline(always)]
pub(crate) fn ln_1p_f32(x: f32) -> f32 {
    // 1 + x or half of it is 1 + t with t in [√½ − 1, √2 − 1]
    let halve = x > std::f32::consts::SQRT_2 - 1.0;
    let t = if halve { 0.5 * x - 0.5 } else { x };
    let [high, low] = if halve { [0.693_359_4, -2.121_944_4e-4] } else { [0.0; 2] };
    reduced_ln(t, high, low)
}

/// ln x within 1.5 ulp; −∞ below the smallest normal number, of negative ones too.
#[inline(always)]
pub(crate) fn ln_f32(x: f32) -> f32 {
    // x = 2ⁿ m with m in [√½, √2), whose lower end has these bits
    const ROOT: u32 = 0x3f35_04f3;
    let bits = x.to_bits();
    let exponent = (bits.wrapping_sub(ROOT) as i32) >> 23;
    let m = f32::from_bits(bits.wrapping_sub((exponent << 23) as u32));
    let n = exponent as f32;
    let value = reduced_ln(m - 1.0, n * 0.693_359_4, n * -2.121_944_4e-4);
    let value = if x < f32::MIN_POSITIVE { f32::NEG_INFINITY } else { value };
    // infinity and NaN
    if x <= f32::MAX { value } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Function<T> = fn(T) -> T;
    const FUNCTIONS: [Function<f32>; 4] = [exp_f32, exp_m1_f32, tanh_f32, ln_1p_f32];

    /// That f is within so many ulp of the exact function over ± every 499th number up to `most`.
    fn assert_ulp(f: Function<f32>, exact: Function<f64>, bound: f64, most: f32, signs: &[f32]) {
        for bits in (0..=most.to_bits()).step_by(499) {
            for sign in signs {
                let x = sign * f32::from_bits(bits);
                let want = exact(f64::from(x));
                let size = (want as f32).abs();
                let error = (f64::from(f(x)) - want).abs() / f64::from(size.next_up() - size);
                assert!(error <= bound, "{x:e}: {error} ulp");
            }
        }
    }

    #[test]
    fn errors_in_ulp() {
        let both = [1.0, -1.0];
        assert_ulp(exp_f32, f64::exp, 1.0, 87.0, &both);
        assert_ulp(exp_m1_f32, f64::exp_m1, 2.0, 87.0, &both);
        assert_ulp(tanh_f32, f64::tanh, 3.0, 87.0, &both);
        assert_ulp(ln_1p_f32, f64::ln_1p, 1.5, 1.0, &[1.0]);
        let ln = |x: f32| if x < f32::MIN_POSITIVE { 0.0 } else { ln_f32(x) };
        let exact = |x: f64| if x < f64::from(f32::MIN_POSITIVE) { 0.0 } else { x.ln() };
        assert_ulp(ln, exact, 1.5, f32::MAX, &[1.0]);
    }

    #[test]
    fn special_values() {
        assert_eq!(exp_f32(0.0), 1.0);
        assert_eq!(ln_1p_f32(0.0), 0.0);
        assert_eq!([ln_f32(1.0), ln_f32(0.0), ln_f32(f32::INFINITY)], [0.0, f32::NEG_INFINITY, f32::INFINITY]);
        for f in [exp_m1_f32, tanh_f32] {
            for x in [0.0, -0.0, f32::from_bits(1), 1e-30, -1e-30] {
                assert_eq!(f(x).to_bits(), x.to_bits());
            }
        }
        for x in [80.0, 1e30, f32::MAX, f32::INFINITY] {
            assert!(exp_f32(x).is_finite() && exp_f32(-x) > 0.0 && exp_m1_f32(x).is_finite());
            assert_eq!([exp_m1_f32(-x), tanh_f32(x), tanh_f32(-x)], [-1.0, 1.0, -1.0]);
        }
        // any NaN, also one whose payload reaches the low bits
        for nan in [f32::NAN, -f32::NAN, f32::from_bits(0x7fff_ffff)] {
            assert!(FUNCTIONS.iter().chain(&[ln_f32 as Function<f32>]).all(|f| f(nan).is_nan()));
        }
    }

    #[test]
    fn levels_agree_bit_for_bit() {
        let x: Vec<f32> = (0..1000).map(|i| (i as f32 - 500.0) * 0.037).collect();
        let at = |level: Level| {
            level.run(|| {
                let all = |x: f32| {
                    [exp_f32(x), exp_m1_f32(x), tanh_f32(x), ln_1p_f32(x.abs() * 0.05), ln_f32(x)].map(f32::to_bits)
                };
                x.iter().map(|&x| all(x)).collect::<Vec<_>>()
            })
        };
        for level in Level::available() {
            assert_eq!(at(level), at(Level::Plain), "{level:?}");
        }
    }
}

//! Loops compiled for several instruction sets, chosen at run time, and an exponential that vectorises.
//!
//! The bodies are plain Rust without fused multiply-adds, so all instruction sets give the same bits.
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
    ($(#[$meta:meta])* fn $name:ident<$E:ident>($($arg:ident: $t:ty),* $(,)?) $(-> $r:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(unsafe_code)]
        fn $name<$E: $crate::CpuElement>(level: $crate::simd::Level, $($arg: $t),*) $(-> $r)? {
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

/// eˣ in f32 to about 2 ulp, clamped to [−87, 87], so that it never overflows and 1/(1 + eˣ) is never subnormal.
#[inline(always)]
pub(crate) fn exp_f32(x: f32) -> f32 {
    // adding 1.5·2²³ leaves the nearest integer in the low bits
    const MAGIC: f32 = 12_582_912.0;
    let x = if x > 87.0 { 87.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    // ln 2 in two parts, the first short enough for n·ln2 to be exact
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
    // Taylor coefficients adjusted on |r| ≤ ln2/2 (Cephes expf)
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * (r * r) + r + 1.0;
    f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_within_two_ulp() {
        let mut worst = 0.0_f64;
        for i in -86_000..=86_000 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            worst = worst.max(((f64::from(exp_f32(x)) - exact) / exact).abs());
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst:e}");
        assert_eq!(exp_f32(0.0), 1.0);
        assert!(exp_f32(1e30).is_finite() && exp_f32(-1e30) > 0.0);
    }

    #[test]
    fn levels_agree_bit_for_bit() {
        let x: Vec<f32> = (0..1000).map(|i| (i as f32 - 500.0) * 0.037).collect();
        let at = |level: Level| level.run(|| x.iter().map(|&x| exp_f32(x).to_bits()).collect::<Vec<_>>());
        for level in Level::available() {
            assert_eq!(at(level), at(Level::Plain), "{level:?}");
        }
    }
}

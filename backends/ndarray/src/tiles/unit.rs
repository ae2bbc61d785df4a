//! What multiplies bf16 here: Intel's matrix unit (AMX), with its configuration for a thread, or else AVX-512's dot products of
//! pairs (AVX512_BF16).
//!
//! The compiler has no stable intrinsics for the matrix unit, so its instructions are written out. Between two blocks of assembly no
//! number lives in a tile; only the configuration does, from [`Multiplier::enter`] to the drop.
#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::marker::PhantomData;
use std::sync::OnceLock;

/// The number by which Linux knows the tiles' registers.
const TILE_DATA: u64 = 18;
/// The tiles' registers and configuration among those that the system saves.
const SAVED: u64 = 0x6_0000;

/// What multiplies bf16 on a processor.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// Eight tiles of 16 rows by 64 bytes.
    Matrices,
    /// Sums of two products in each lane of a vector.
    Pairs(Pairs),
}

/// What this process may use, the faster if there are both: asked of the processor and of the system once, and only if it is wanted,
/// since a process that has the permission for tiles needs larger stacks for its signals.
pub(crate) fn kind() -> Option<Kind> {
    static FOUND: OnceLock<Option<Kind>> = OnceLock::new();
    *FOUND.get_or_init(
        || {
            if is_there() && is_permitted() { Some(Kind::Matrices) } else { Pairs::find().map(Kind::Pairs) }
        },
    )
}

/// That the processor has eight tiles of 16 rows by 64 bytes and products of bf16, and that the system saves them.
#[allow(unused_unsafe)] // asking the processor is safe from Rust 1.94 on
fn is_there() -> bool {
    let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
    // SAFETY: every x86-64 processor answers.
    let (most, first) = unsafe { (__cpuid(0).eax, __cpuid(1).ecx) };
    if !avx512 || most < 0x1d || first >> 27 & 1 == 0 {
        return false;
    }
    // SAFETY: every x86-64 processor answers.
    let features = unsafe { __cpuid_count(7, 0) }.edx;
    if features >> 22 & 1 == 0 || features >> 24 & 1 == 0 {
        return false;
    }
    // SAFETY: the bit of leaf 1 above says that the system has enabled `xgetbv`.
    if unsafe { enabled() } & SAVED != SAVED {
        return false;
    }
    // SAFETY: every x86-64 processor answers.
    let palette = unsafe { __cpuid_count(0x1d, 1) };
    let (row_bytes, tiles, rows) = (palette.ebx & 0xffff, palette.ebx >> 16, palette.ecx & 0xffff);
    row_bytes == 64 && tiles == 8 && rows == 16
}

/// # Safety
/// The system must have enabled `xgetbv`.
#[target_feature(enable = "xsave")]
unsafe fn enabled() -> u64 {
    // SAFETY: by the caller's promise.
    unsafe { _xgetbv(0) }
}

/// Asks Linux for the tiles' registers, for all threads of the process.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_PRCTL: u64 = 158;
    const REQUEST_PERMISSION: u64 = 0x1023;
    let answer: i64;
    // SAFETY: this call of the system reads and writes no memory of the process; the system changes rcx and r11 alone.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => answer, in("rdi") REQUEST_PERMISSION, in("rsi") TILE_DATA,
             out("rcx") _, out("r11") _, options(nostack));
    }
    answer == 0
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// The configuration of eight tiles of 16 rows by 64 bytes.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static WHOLE: Configuration = {
    let mut c = Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    let mut tile = 0;
    while tile < 8 {
        c.row_bytes[tile] = 64;
        c.rows[tile] = 16;
        tile += 1;
    }
    c
};

/// Tiles that are configured for this thread, as long as this lives.
#[derive(Debug)]
pub(crate) struct Configured(
    // a configuration is a thread's own
    PhantomData<*const ()>,
);

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: the unit is there, since `enter` found it.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// What multiplies bf16, ready for this thread. That one exists says that the processor has it.
#[derive(Debug)]
pub(crate) enum Multiplier {
    Matrices(Configured),
    Pairs(Pairs),
}

/// The proof that AVX512_BF16 was found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pairs(());

impl Pairs {
    pub(super) fn find() -> Option<Self> {
        // the compiler takes the third to mean the second
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512bf16");
        found.then_some(Self(()))
    }
}

impl Multiplier {
    /// Makes what is here ready for this thread.
    ///
    /// # Panics
    /// If there is nothing.
    pub(crate) fn enter() -> Self {
        match kind() {
            Some(Kind::Matrices) => {
                // SAFETY: the unit is there and permitted, and the configuration is one of palette 1.
                unsafe { asm!("ldtilecfg [{0}]", in(reg) &raw const WHOLE, options(nostack, readonly)) };
                Self::Matrices(Configured(PhantomData))
            }
            Some(Kind::Pairs(found)) => Self::Pairs(found),
            None => panic!("products of bf16 where nothing makes them"),
        }
    }
}

//! Kernels: what one is, what it binds and is passed, and building blocks of its text in WGSL.
//!
//! A kernel is a small value in the file of its operation, a variant with all that its text depends on, and implements
//! [`Kernel`]. Whatever launches and caches kernels knows no more of them than that.
//!
//! A kernel reads some tensors, writes others and takes a few numbers. All of the latter travel as immediates, in a struct `P`
//! that begins with the offset of each tensor read (in elements, named like the tensor), so that a kernel addresses
//! `x[p.x + i]`; tensors written are whole buffers.

use std::any::{Any, TypeId, type_name};
use std::fmt::{Debug, Write as _};
use std::hash::{Hash, Hasher};

/// The most bytes of immediates that every supported device takes.
pub(crate) const IMMEDIATES: u32 = 128;

/// Threads of a workgroup wherever nothing else is said.
pub(crate) const WORKGROUP: u32 = 256;

/// The most turns that all loops of one thread may take together: llvmpipe of Mesa 22 ends loops silently after 65,535, and
/// other drivers reset a device that is busy for too long.
pub(crate) const TURNS: usize = 50_000;

/// The workgroups of a dispatch.
pub(crate) type Groups = [u32; 3];

/// The functions of `math.wgsl` that kernels share.
const MATH: &str = include_str!("math.wgsl");

/// A kernel; equal values of one type are one kernel, with one text.
pub(crate) trait Kernel: Identity {
    /// The text, and what goes with it. Asked for once: a pipeline is kept.
    fn source(&self) -> Source;

    /// Every variant there is, for validation without a device.
    #[cfg(test)]
    fn variants() -> Vec<Self>
    where
        Self: Sized;
}

/// What lets kernels of all types be keys of one map. Every kernel that is a plain value has it.
pub(crate) trait Identity: Any + Send + Sync {
    /// The operation and the variant, for labels and messages.
    fn label(&self) -> String;
    /// Whether the other one is of the same type and equal.
    fn is(&self, other: &dyn Kernel) -> bool;
    /// Feeds the type and the value to a hash.
    fn feed(&self, state: &mut dyn Hasher);
    /// A copy to be kept.
    fn kept(&self) -> Box<dyn Kernel>;
}

impl<K: Kernel + Copy + Debug + Eq + Hash> Identity for K {
    fn label(&self) -> String {
        // the module, which is named after the operation
        let module = type_name::<K>().rsplit("::").nth(1).unwrap_or_default();
        format!("{module}: {self:?}")
    }

    fn is(&self, other: &dyn Kernel) -> bool {
        (other as &dyn Any).downcast_ref::<K>() == Some(self)
    }

    fn feed(&self, mut state: &mut dyn Hasher) {
        TypeId::of::<K>().hash(&mut state);
        self.hash(&mut state);
    }

    fn kept(&self) -> Box<dyn Kernel> {
        Box::new(*self)
    }
}

impl Debug for dyn Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.label())
    }
}

impl PartialEq for dyn Kernel {
    fn eq(&self, other: &Self) -> bool {
        self.is(other)
    }
}

impl Eq for dyn Kernel {}

impl Hash for dyn Kernel {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.feed(state);
    }
}

/// The text of a kernel, in parts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Source {
    /// Directives that must come first.
    pub(crate) enables: &'static str,
    /// Tensors read; `name:u32` for one of integers.
    pub(crate) reads: Vec<&'static str>,
    /// Tensors written.
    pub(crate) writes: Vec<&'static str>,
    /// Fields of `P` after the offsets, as in WGSL.
    pub(crate) params: Vec<&'static str>,
    /// Functions and the entry point `main`.
    pub(crate) body: String,
    /// Bytes of workgroup memory, which no validation counts.
    pub(crate) shared: u32,
}

impl Source {
    /// The whole module.
    pub(crate) fn module(&self) -> String {
        let mut text = format!("{}\nstruct P {{", self.enables);
        let names = |list: &[&'static str]| -> Vec<(&'static str, &'static str)> {
            list.iter().map(|name| name.split_once(':').unwrap_or((name, "f32"))).collect()
        };
        let (reads, writes) = (names(&self.reads), names(&self.writes));
        for (name, _) in &reads {
            let _ = write!(text, " {name}: u32,");
        }
        for field in &self.params {
            let _ = write!(text, " {field},");
        }
        text.push_str(" }\nvar<immediate> p: P;\n");
        let bindings = reads.iter().map(|r| (r, "read")).chain(writes.iter().map(|w| (w, "read_write")));
        for (at, ((name, kind), access)) in bindings.enumerate() {
            let _ = writeln!(text, "@group(0) @binding({at}) var<storage, {access}> {name}: array<{kind}>;");
        }
        text + MATH + &self.body
    }

    /// Bytes of `P`.
    pub(crate) fn immediates(&self) -> u32 {
        4 * (self.reads.len() + self.params.len()) as u32
    }
}

/// The entry point of a kernel whose thread `i < p.n` runs `statements`.
pub(crate) fn each(statements: &str) -> String {
    format!(
        "@compute @workgroup_size({WORKGROUP})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {{
  let i = (group.y * groups.x + group.x) * {WORKGROUP}u + thread;
  if (i >= p.n) {{ return; }}
{statements}
}}
"
    )
}

/// The entry point of a kernel whose workgroup `item < p.n` runs `statements`, with the number of its thread in `thread`.
pub(crate) fn each_group(size: u32, statements: &str) -> String {
    format!(
        "@compute @workgroup_size({size})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {{
  let item = group.y * groups.x + group.x;
  if (item >= p.n) {{ return; }}
{statements}
}}
"
    )
}

/// How the elements of rows are divided among threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Division {
    /// A thread for each row.
    Thread,
    /// A workgroup of so many threads for each row.
    Group(u32),
}

impl Division {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 3] = [Self::Thread, Self::Group(64), Self::Group(WORKGROUP)];

    /// What suits rows of so many elements.
    pub(crate) fn of(width: usize) -> Self {
        match width {
            0..=32 => Self::Thread,
            33..=512 => Self::Group(64),
            _ => Self::Group(WORKGROUP),
        }
    }

    /// Whether a thread can go over its share of a row of so many elements.
    pub(crate) fn suits(width: usize) -> bool {
        (1..=WORKGROUP as usize * TURNS).contains(&width)
    }

    /// The workgroups for so many rows.
    pub(crate) fn groups(self, rows: usize) -> Groups {
        groups(rows, if self == Self::Thread { WORKGROUP as usize } else { 1 })
    }

    /// A kernel over rows `item < p.n` of `p.width` elements, `p.total` in all: `value` of type `kind` begins as `start`,
    /// `gather` changes it for the element `at`, values of threads are combined by `combine` of `a` and `b`, and `finish`
    /// uses the `total`; it may go over its share of the row, which is from `first` to `end` by `step`, and one thread
    /// `leads`. Returns the text and the bytes of workgroup memory.
    pub(crate) fn rows(self, [kind, start, gather, combine, finish]: [&str; 5]) -> (String, u32) {
        let share = format!(
            "  let begin = item * p.width;
  let end = min(begin + p.width, p.total);
  let first = begin + thread_in_row;
  var value = {start};
  for (var at = first; at < end; at = at + step) {{ {gather} }}
"
        );
        match self {
            Self::Thread => {
                let share = share.replace("item", "i").replace("thread_in_row", "0u");
                let finish = finish.replace("item", "i");
                (each(&format!("  let step = 1u;\n{share}  let leads = true;\n  let total = value;\n{finish}")), 0)
            }
            Self::Group(size) => {
                let share = share.replace("thread_in_row", "thread");
                let body = format!(
                    "  let step = {size}u;\n{share}  let leads = thread == 0u;\n  let total = combined(thread, value);\n{finish}"
                );
                let bytes = match kind {
                    _ if kind.starts_with("vec3") => 16,
                    _ if kind.starts_with("vec2") => 8,
                    _ => 4,
                };
                (tree("combined", "parts", kind, size, combine) + &each_group(size, &body), bytes * size)
            }
        }
    }
}

/// A fixed tree over the workgroup's `size` values in `var<workgroup> name`, combined by `a` and `b`; every thread gets the
/// result. The order depends on nothing but the size.
pub(crate) fn tree(function: &str, name: &str, kind: &str, size: u32, combine: &str) -> String {
    format!(
        "var<workgroup> {name}: array<{kind}, {size}>;
fn {function}(thread: u32, value: {kind}) -> {kind} {{
  {name}[thread] = value;
  workgroupBarrier();
  for (var stride = {half}u; stride > 0u; stride = stride / 2u) {{
    if (thread < stride) {{ let a = {name}[thread]; let b = {name}[thread + stride]; {name}[thread] = {combine}; }}
    workgroupBarrier();
  }}
  let total = {name}[0];
  workgroupBarrier();
  return total;
}}
",
        half = size / 2
    )
}

/// As many workgroups as `count` items need, in a grid that no device refuses; kernels skip what is too many.
pub(crate) fn groups(count: usize, items_per_group: usize) -> Groups {
    const MOST: usize = 65_535;
    let needed = count.div_ceil(items_per_group);
    if needed <= MOST {
        [needed as u32, 1, 1]
    } else {
        let rows = needed.div_ceil(MOST);
        [needed.div_ceil(rows) as u32, rows as u32, 1]
    }
}

/// The bits of a number, to be passed as an immediate of type `f32`.
pub(crate) fn bits(x: f64) -> u32 {
    (x as f32).to_bits()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn grids_cover_their_items() {
        for count in [0, 1, 255, 256, 257, 65_535 * 256, 65_535 * 256 + 1, 1 << 29] {
            let [x, y, z] = groups(count, 256);
            assert!(x <= 65_535 && y <= 65_535 && z == 1);
            assert!(u64::from(x) * u64::from(y) * 256 >= count as u64, "{count}");
        }
    }

    /// Two kernels whose values look alike.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    struct One(u32);
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    struct Other(u32);

    impl Kernel for One {
        fn source(&self) -> Source {
            Source::default()
        }

        fn variants() -> Vec<Self> {
            Vec::new()
        }
    }

    impl Kernel for Other {
        fn source(&self) -> Source {
            Source::default()
        }

        fn variants() -> Vec<Self> {
            Vec::new()
        }
    }

    #[test]
    fn keys_are_told_apart_by_type_and_value() {
        let mut map: HashMap<Box<dyn Kernel>, u32> = HashMap::new();
        let kernels: [&dyn Kernel; 4] = [&One(1), &One(2), &Other(1), &Other(2)];
        for (at, kernel) in kernels.into_iter().enumerate() {
            assert_eq!(map.get(kernel), None, "{kernel:?}");
            map.insert(kernel.kept(), at as u32);
        }
        for (at, kernel) in kernels.into_iter().enumerate() {
            assert_eq!(map.get(kernel), Some(&(at as u32)), "{kernel:?}");
        }
        assert_eq!(Other(2).label(), "tests: Other(2)");
    }
}

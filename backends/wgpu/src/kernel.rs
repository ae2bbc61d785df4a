//! Kernels: what they bind, what they are passed, and their text in WGSL.
//!
//! A kernel reads some tensors, writes others and takes a few numbers. All of the latter travel as immediates, in a struct `P`
//! that begins with the offset of each tensor read (in elements, named like the tensor), so that a kernel addresses
//! `x[p.x + i]`; tensors written are whole buffers.

use std::fmt::Write as _;

use crate::{activation, adam, elementwise, fixed_point, layout, lu, noise, power, product, reduce, series};

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
                let bytes = if kind.starts_with("vec3") { 16 } else { 4 };
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

/// Every kernel of this backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kernel {
    Elementwise(elementwise::Elementwise),
    Layout(layout::Layout),
    Reduce(reduce::Reduction),
    Product(product::Product),
    Noise(resflow_backend::Noise),
    Activation(activation::Fused),
    Lu(lu::Lu),
    Series(series::Term),
    FixedPoint(Division),
    Power,
    Adam,
}

impl Kernel {
    /// The text of the kernel.
    pub(crate) fn source(self) -> Source {
        match self {
            Self::Elementwise(kernel) => kernel.source(),
            Self::Layout(kernel) => kernel.source(),
            Self::Reduce(kernel) => kernel.source(),
            Self::Product(kernel) => kernel.source(),
            Self::Noise(kernel) => noise::source(kernel),
            Self::Activation(kernel) => kernel.source(),
            Self::Lu(kernel) => kernel.source(),
            Self::Series(kernel) => kernel.source(),
            Self::FixedPoint(division) => fixed_point::source(division),
            Self::Power => power::source(),
            Self::Adam => adam::source(),
        }
    }

    /// Every variant there is, for validation without a device.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![Self::Power, Self::Adam];
        all.extend(Division::ALL.map(Self::FixedPoint));
        all.extend(elementwise::Elementwise::all().into_iter().map(Self::Elementwise));
        all.extend(layout::Layout::ALL.map(Self::Layout));
        all.extend(reduce::Reduction::all().into_iter().map(Self::Reduce));
        all.extend(product::Product::all().into_iter().map(Self::Product));
        all.extend(resflow_backend::Noise::ALL.map(Self::Noise));
        all.extend(activation::Fused::all().into_iter().map(Self::Activation));
        all.extend(lu::Lu::all().map(Self::Lu));
        all.extend(series::Term::all().into_iter().map(Self::Series));
        all
    }
}

#[cfg(test)]
mod tests {
    use naga::back::{hlsl, msl, spv};
    use naga::valid::{Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};

    use super::*;

    /// Parses, validates and translates a kernel to what Vulkan, Metal and DX12 compile, without a device.
    fn translate(kernel: Kernel) {
        let source = kernel.source();
        let text = source.module();
        let cooperative = !source.enables.is_empty();
        let mut options = naga::front::wgsl::Options::new();
        options.capabilities = Capabilities::all();
        let parsed = naga::front::wgsl::Frontend::new_with_options(options).parse(&text);
        let module = parsed.unwrap_or_else(|e| panic!("{kernel:?}: {}\n{text}", e.emit_to_string(&text)));
        let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
        validator.subgroup_stages(ShaderStages::COMPUTE).subgroup_operations(SubgroupOperationSet::all());
        let info = validator.validate(&module);
        let info = info.unwrap_or_else(|e| panic!("{kernel:?}: {}\n{text}", e.emit_to_string(&text)));

        let options = spv::Options { lang_version: (1, 6), capabilities: None, ..spv::Options::default() };
        let words = spv::write_vec(&module, &info, &options, None).unwrap_or_else(|e| panic!("{kernel:?}: {e}"));
        assert!(!words.is_empty());
        let options = msl::Options { lang_version: (3, 1), fake_missing_bindings: true, ..msl::Options::default() };
        msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
            .unwrap_or_else(|e| panic!("{kernel:?}: {e}"));
        // DX12 has no cooperative matrices
        if !cooperative {
            let options = hlsl::Options {
                shader_model: hlsl::ShaderModel::V6_2,
                fake_missing_bindings: true,
                immediates_target: Some(hlsl::BindTarget::default()),
                ..hlsl::Options::default()
            };
            let (mut out, pipeline) = (String::new(), hlsl::PipelineOptions::default());
            hlsl::Writer::new(&mut out, &options, &pipeline)
                .write(&module, &info, None)
                .unwrap_or_else(|e| panic!("{kernel:?}: {e}"));
            assert!(!out.is_empty());
        }
        assert!(source.immediates() <= IMMEDIATES, "{kernel:?}: {} bytes of immediates", source.immediates());
        assert!(source.reads.len() + source.writes.len() <= 8, "{kernel:?} binds more than every device can");
        // what every device has, but for tiles that are made for what theirs has
        assert!(cooperative || source.shared <= 16 << 10, "{kernel:?}: {} bytes of workgroup memory", source.shared);
        // single components of a vector in workgroup memory are never written: others of it may be lost
        assert!(!text.contains("% 4u] ="), "{kernel:?} writes a component of a shared vector");
        // what a kernel says of its workgroup memory is what it declares
        let mut layouter = naga::proc::Layouter::default();
        layouter.update(module.to_ctx()).expect("types have layouts");
        let workgroup = module.global_variables.iter().filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup);
        let declared: u32 = workgroup.map(|(_, v)| layouter[v.ty].size).sum();
        assert_eq!(source.shared, declared, "{kernel:?}: bytes of workgroup memory");
    }

    #[test]
    fn every_kernel_translates_for_every_api() {
        let all = Kernel::all();
        assert!(all.len() > 200, "{} kernels", all.len());
        all.into_iter().for_each(translate);
    }

    #[test]
    fn grids_cover_their_items() {
        for count in [0, 1, 255, 256, 257, 65_535 * 256, 65_535 * 256 + 1, 1 << 29] {
            let [x, y, z] = groups(count, 256);
            assert!(x <= 65_535 && y <= 65_535 && z == 1);
            assert!(u64::from(x) * u64::from(y) * 256 >= count as u64, "{count}");
        }
    }
}

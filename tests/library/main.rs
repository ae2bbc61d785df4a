//! The library on the CPU: [`files`] good and bad, [`pitfalls`] of other implementations, [`properties`] of any network. One program,
//! since they are made of the same generic code, which each would compile again.
#![cfg(feature = "cpu")]

#[path = "../common/mod.rs"]
mod common;
mod files;
#[path = "../common/gradient_memory.rs"]
mod gradient_memory;
// counts what each thread holds, so that tests beside it do not disturb it
#[path = "../common/memory.rs"]
mod memory;
#[path = "../common/mutation.rs"]
mod mutation;
#[path = "../common/pickling.rs"]
mod pickling;
mod pitfalls;
mod properties;

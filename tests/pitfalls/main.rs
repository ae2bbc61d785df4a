//! What other implementations get wrong; bad input of every entry point; hybrid models; the memory of training and reading.
#![cfg(feature = "cpu")]

mod bad_input;
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/gradient_memory.rs"]
mod gradient_memory;
mod hybrid;
mod images;
// counts what each thread holds, so that tests beside it do not disturb it
#[path = "../common/memory.rs"]
mod memory;
mod peak_memory;
mod rows;
mod stopping;
mod training;

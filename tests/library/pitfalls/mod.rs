//! What other implementations get wrong; bad input of every entry point; hybrid models; the memory of training and reading.

mod bad_input;
mod hybrid;
mod images;
mod peak_memory;
mod rows;
mod stopping;
mod training;

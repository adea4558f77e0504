mod bundle;
mod cli;
mod error;
mod executor;
mod linux;
mod log;
mod seam;
mod state;

fn main() {}

//! A command that has another component greet for it.

#[path = "../greeted.rs"]
mod bindings;

struct Greeted;
bindings::export!(Greeted with_types_in bindings);

impl bindings::exports::wasi::cli::run::Guest for Greeted {
    fn run() -> Result<(), ()> {
        let name = std::env::args().nth(1).unwrap_or("nobody".to_owned());
        println!("{}", bindings::runw::guests::greeting::greet(&name));
        Ok(())
    }
}

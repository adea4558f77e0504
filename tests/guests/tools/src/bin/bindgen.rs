//! `bindgen c|go|rust WIT WORLD OUT`: what a guest in that language includes to speak the world.

use std::path::Path;

use anyhow::{Result, bail};
use wit_bindgen_core::{Files, WorldGenerator, wit_parser::Resolve};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [language, wit, world, out] = words[..] else { bail!("usage: bindgen c|go|rust WIT WORLD OUT") };
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(wit)?;
    let world = resolve.select_world(&[package], Some(world))?;
    let mut generator: Box<dyn WorldGenerator> = match language {
        "c" => wit_bindgen_c::Opts::default().build(),
        "go" => wit_bindgen_go::Opts::default().build(),
        "rust" => Box::new(wit_bindgen_rust::Opts { generate_all: true, ..Default::default() }.build()),
        _ => bail!("no bindings for {language}"),
    };
    let mut files = Files::default();
    generator.generate(&mut resolve, world, &mut files)?;
    for (name, bytes) in files.iter() {
        let path = Path::new(out).join(name);
        std::fs::create_dir_all(path.parent().expect("it has OUT"))?;
        std::fs::write(path, bytes)?;
    }
    Ok(())
}

//! Puts the templates of `templates/` into the crate, file by file.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

fn main() -> io::Result<()> {
    let crate_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let templates_dir = crate_dir.join("../../templates");
    println!("cargo::rerun-if-changed={}", templates_dir.display());
    let mut files = Vec::new();
    collect(&templates_dir, &mut files)?;
    files.sort();
    let mut code = "static FILES: &[(&str, &[u8])] = &[\n".to_owned();
    for path in files {
        println!("cargo::rerun-if-changed={}", path.display());
        let name = path.strip_prefix(&templates_dir).map_err(io::Error::other)?;
        let path = path.canonicalize()?;
        code.push_str(&format!("    ({name:?}, include_bytes!({path:?})),\n"));
    }
    code.push_str("];\n");
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let path = out_dir.join("templates.rs");
    // As a new file: copies of a target folder may share the old one by hard links.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::write(path, code),
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            println!("cargo::rerun-if-changed={}", path.display());
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

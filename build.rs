//! Compiles the gRPC contract without protoc, and keeps its descriptors for reflection.

use std::{env, error::Error, fs, path::PathBuf};

const FILES: [&str; 2] = ["redlock/v1/lock.proto", "redlock/v1/operator.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_source_info(true).include_imports(true).open_files(FILES)?;
    // A program that is only a client is spared the server's half.
    let serves = env::var_os("CARGO_FEATURE_SERVER").is_some();
    tonic_prost_build::configure().bytes(".").build_server(serves).compile_fds(compiler.file_descriptor_set())?;
    // tonic-prost-build leaves `file_descriptor_set_path` aside when it is given descriptors.
    let descriptors = PathBuf::from(env::var("OUT_DIR")?).join("redlock.descriptors");
    fs::write(descriptors, compiler.encode_file_descriptor_set())?;
    Ok(())
}

//! Compiles what is used of etcd's gRPC contract, without protoc.

use std::error::Error;

const FILES: [&str; 2] = ["etcd/lease.proto", "etcd/lock.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure().build_client(false).build_server(false).compile_fds(descriptors)?;
    Ok(())
}

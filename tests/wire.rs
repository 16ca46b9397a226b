//! The checked-in protobuf code is what the `.proto` files say.

use std::path::Path;

/// Goal: nobody needs `protoc`, and nobody edits generated code. `SANDKEEPER_BLESS=1 cargo test --test wire` writes it anew.
#[test]
fn the_generated_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = protox::compile([root.join("proto/sandkeeper/v1/keeper.proto")], [root.join("proto")])
        .expect("the proto files compile");
    let out = tempfile::tempdir().expect("a scratch directory");
    let mut config = prost_build::Config::new();
    config.btree_map(["."]).enable_type_names().type_name_domain(["."], "type.googleapis.com");
    let grpc = "#[cfg(feature = \"grpc\")]";
    tonic_prost_build::configure()
        .client_mod_attribute(".", grpc)
        .server_mod_attribute(".", grpc)
        .out_dir(out.path())
        .compile_fds_with_config(files, config)
        .expect("code for the proto files");
    let name = "sandkeeper.v1.rs";
    let made = std::fs::read_to_string(out.path().join(name)).expect("the generated file");
    let kept = root.join("src/wire/generated").join(name);
    if std::env::var_os("SANDKEEPER_BLESS").is_some() {
        std::fs::write(&kept, &made).expect("the kept file");
    }
    let kept = std::fs::read_to_string(&kept).expect("the kept file");
    assert!(
        made == kept,
        "src/wire/generated/{name} is out of date; run SANDKEEPER_BLESS=1 cargo test --test wire"
    );
}

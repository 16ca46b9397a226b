//! What the README shows is what runs.

/// The example of the README is `examples/embed.rs` from its first import on, so that it is compiled and run as it stands.
#[test]
fn the_readme_shows_the_embedding_example_as_it_is() {
    let readme = include_str!("../README.md");
    let example = include_str!("../examples/embed.rs");
    let shown = readme.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next());
    let code = example.find("use ").map(|at| &example[at..]);
    assert_eq!(shown, code, "copy examples/embed.rs, from its first use on, into the README");
}

/// Every file that the README points to is there.
#[test]
fn the_readme_points_to_files_that_exist() {
    let readme = include_str!("../README.md");
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let links = readme.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let missing: Vec<_> = links
        .filter(|link| !link.contains(':') && !link.starts_with('#') && !root.join(link).exists())
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

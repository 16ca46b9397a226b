//! C16: names that are none. For every test of a door that names come in by.

/// Each is to be refused, as a namespace and as an ID.
pub(crate) fn hostile_names() -> Vec<String> {
    let short = [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/abs",
        "a\0b",
        "a\nb",
        "-a",
        "-dash",
        "a-",
        "a..b",
        "a-_b",
        " ",
        "a b",
        "\u{430}bc",
        "w\u{435}b",
        "a\u{202e}b",
        "a@b",
        "a:b",
        "a%2fb",
        "caf\u{e9}",
        "{",
        "}",
    ];
    short.map(str::to_owned).into_iter().chain([77, 10_000].map(|length| "a".repeat(length))).collect()
}

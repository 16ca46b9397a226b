//! Text of others on a terminal: on one line, and in the order in which it is.

/// Escapes what would break the line, move the cursor, or turn the direction of reading.
pub(super) fn escaped(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        push(&mut out, c);
        out
    })
}

/// The same for text of several lines, which stays so.
pub(super) fn escaped_lines(text: &str) -> String {
    text.lines().map(escaped).collect::<Vec<_>>().join("\n")
}

fn push(out: &mut String, c: char) {
    match c {
        // `escape_debug` is for what is between quotes; this is not.
        '"' | '\'' | '\\' => out.push(c),
        c => out.extend(c.escape_debug()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_mislead_is_escaped_and_all_else_stays() {
        assert_eq!(escaped("a \"b\" \\ ü ✂ 'c'"), "a \"b\" \\ ü ✂ 'c'");
        assert_eq!(escaped("a\nb\tc\x1b[31m"), "a\\nb\\tc\\u{1b}[31m");
        assert_eq!(escaped("web\u{202e}gpj"), "web\\u{202e}gpj");
        assert_eq!(escaped_lines("a\u{202e}\nb\r"), "a\\u{202e}\nb\\r");
    }
}

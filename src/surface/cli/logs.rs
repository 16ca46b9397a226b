//! What a sandbox's main process has written.

use std::io;
use std::time::Duration;

use serde::Serialize;

use super::arguments::Logs;
use super::failure::Failure;
use super::json;
use super::session::{Session, print_json};
use crate::wire::generated::LogsResponse;

/// A line of `logs --json`.
#[derive(Serialize)]
struct Line<'a> {
    at: Option<String>,
    stream: &'a str,
    /// Text; what is not UTF-8 is replaced.
    data: std::borrow::Cow<'a, str>,
}

pub(super) async fn logs(session: &Session, which: &Logs) -> Result<(), Failure> {
    let key = session.key(&which.id)?;
    let mut client = session.client.clone();
    let mut log = session.answer(Some(Duration::ZERO), client.logs(&key, which.follow, which.tail)).await?;
    let (mut stdout, mut stderr) = (Stamped::default(), Stamped::default());
    while let Some(piece) = log.next().await? {
        if session.json {
            let data = String::from_utf8_lossy(&piece.data);
            let line = Line { at: json::moment(piece.at.as_ref()), stream: &piece.stream, data };
            print_json(&line)?;
            continue;
        }
        let (stamped, out): (_, &mut dyn io::Write) = match piece.stream.as_str() {
            "stderr" => (&mut stderr, &mut io::stderr()),
            _ => (&mut stdout, &mut io::stdout()),
        };
        let bytes = if which.timestamps { stamped.stamp(&piece) } else { piece.data };
        out.write_all(&bytes)?;
        out.flush()?;
    }
    Ok(())
}

/// One of the outputs, whose lines begin with when they were written.
#[derive(Default)]
struct Stamped {
    within_a_line: bool,
}

impl Stamped {
    fn stamp(&mut self, piece: &LogsResponse) -> Vec<u8> {
        let at = json::moment(piece.at.as_ref()).unwrap_or_else(|| "-".to_owned());
        let mut bytes = Vec::with_capacity(piece.data.len() + at.len() + 1);
        for line in piece.data.split_inclusive(|byte| *byte == b'\n') {
            if !self.within_a_line {
                bytes.extend_from_slice(at.as_bytes());
                bytes.push(b' ');
            }
            bytes.extend_from_slice(line);
            self.within_a_line = !line.ends_with(b"\n");
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_comes_in_pieces_has_one_stamp() {
        let mut stamped = Stamped::default();
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let mut text = Vec::new();
        for (seconds, data) in [(0, "a\nb"), (1, "c"), (2, "\nd\n"), (3, "")] {
            let piece = LogsResponse { at: at(seconds), stream: "stdout".into(), data: data.into() };
            text.extend(stamped.stamp(&piece));
        }
        let text =
            String::from_utf8(text).unwrap().replace("1970-01-01T00:00:0", "").replace(".000000000Z", "");
        assert_eq!(text, "0 a\n0 bc\n2 d\n");
    }
}

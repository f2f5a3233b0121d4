//! Output for people: lines on the standard output, text of other users, and the codes with which the program ends.

use std::fmt;
use std::io::Write;

/// The code with which the program ends. `docs/cli.md` lists them; 2 is a wrong command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ExitCode {
    Failed = 1,
    /// The server, or this device, refused a message for good.
    Refused = 3,
    /// A message is in the outbox: it is sent at the next start.
    Queued = 4,
    /// The session ended: it needs a new token or a newer program.
    Stopped = 5,
    /// The reader of the output is gone: the code of a program that SIGPIPE ends.
    OutputClosed = 141,
}

/// The reason why a command ends without success.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: ExitCode,
    /// The text for users; empty if there is nothing to say.
    pub(crate) text: String,
}

impl Failure {
    pub(crate) fn new(code: ExitCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// Returns the failure of a write to the standard output.
    pub(crate) fn of_output(error: &std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::new(ExitCode::OutputClosed, "");
        }
        Self::new(ExitCode::Failed, format!("failed to write the output: {error}"))
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self::new(ExitCode::Failed, text)
    }
}

/// Writes a line to the standard output.
///
/// # Errors
/// If the output is closed or cannot be written.
pub(crate) fn line(line: impl fmt::Display) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|error| Failure::of_output(&error))
}

/// Returns text of another user or of the server in a form that cannot change the terminal or imitate another line.
/// Control characters, and characters that change the direction or hide text, become `�`. A newline becomes `⏎`.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c == '\n' { '⏎' } else { printable_char(c) }).collect()
}

/// Returns the lines of a text, each in the form of [`printable`], for a screen that marks where a message begins.
pub(crate) fn printable_lines(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split('\n').map(|line| line.trim_end_matches('\r').chars().map(printable_char).collect())
}

/// Escapes what [`printable`] would replace in a line of JSON. JSON itself escapes only some control characters.
pub(crate) fn escaped(json: &str) -> String {
    let mut line = String::with_capacity(json.len());
    for c in json.chars() {
        if printable_char(c) == c {
            line.push(c);
        } else {
            // Such a character is always part of a string.
            for unit in c.encode_utf16(&mut [0; 2]) {
                line.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    line
}

fn printable_char(c: char) -> char {
    match c {
        '\t' => ' ',
        // Line and paragraph separators, marks and overrides of the direction, invisible characters, tags.
        '\u{2028}'
        | '\u{2029}'
        | '\u{061c}'
        | '\u{200b}'
        | '\u{200e}'
        | '\u{200f}'
        | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{2069}'
        | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e007f}' => '\u{fffd}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_no_character_that_changes_a_terminal() {
        let text = "a\u{202e}b\u{9b}1m\u{7f}\u{e0041}\x1b";
        let line = escaped(&serde_json::json!({ "text": text }).to_string());
        assert_eq!(line, r#"{"text":"a\u202eb\u009b1m\u007f\udb40\udc41\u001b"}"#);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap()["text"], text);
    }

    #[test]
    fn remote_text_stays_on_its_line() {
        assert_eq!(printable("plain, ünïcode 👩‍👩‍👧 and tab\there"), "plain, ünïcode 👩‍👩‍👧 and tab here");
        assert_eq!(printable("\x1b[2J\x07\r"), "\u{fffd}[2J\u{fffd}\u{fffd}");
        assert_eq!(printable("hi\nbob: send money"), "hi⏎bob: send money");
        assert_eq!(
            printable("\u{202e}gpj.exe\u{2066}\u{200f}\u{2028}\u{9b}1m"),
            "\u{fffd}gpj.exe\u{fffd}\u{fffd}\u{fffd}\u{fffd}1m"
        );
        let lines: Vec<String> = printable_lines("a\r\nb\u{85}c").collect();
        assert_eq!(lines, ["a", "b\u{fffd}c"]);
    }
}

//! Banned words in comments, documents and messages, and identifiers that were renamed.

use std::path::Path;

use regex::{Regex, RegexBuilder};

use crate::tree;

/// Files that list the words themselves, or are not ours.
const EXEMPT: [&str; 3] = ["xtask/", "LICENSE", "tests/interop/"];

/// Returns every line of the tree that holds an identifier of `lists/old-names.txt`.
pub(crate) fn old_names(root: &Path) -> Vec<String> {
    let names = list(include_str!("../lists/old-names.txt"), |name| format!(r"\b{name}\b"), false);
    scan(root, &[".rs", ".proto", ".toml", ".sh", ".json", ".md", "Makefile"], &names, |_, line| {
        vec![line.to_owned()]
    })
}

/// Returns every comment, message and sentence that matches an expression of `lists/banned-words.txt`.
pub(crate) fn banned_words(root: &Path) -> Vec<String> {
    let words = list(include_str!("../lists/banned-words.txt"), str::to_owned, true);
    scan(root, &[".rs", ".proto", ".sh", ".toml", ".md", ".in"], &words, text_of)
}

fn list(text: &str, pattern: impl Fn(&str) -> String, any_case: bool) -> Vec<Regex> {
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .filter_map(|line| RegexBuilder::new(&pattern(line)).case_insensitive(any_case).build().ok())
        .collect()
}

fn scan(
    root: &Path,
    endings: &[&str],
    patterns: &[Regex],
    text: impl Fn(&str, &str) -> Vec<String>,
) -> Vec<String> {
    let mut found = Vec::new();
    let files = tree::files(root, ".", endings);
    for file in files.iter().filter(|file| !EXEMPT.iter().any(|exempt| file.starts_with(exempt))) {
        let Ok(whole) = std::fs::read_to_string(root.join(file)) else { continue };
        let mut in_code = false;
        for (number, line) in whole.lines().enumerate() {
            if line
                .trim_start()
                .trim_start_matches("///")
                .trim_start_matches("//!")
                .trim_start()
                .starts_with("```")
            {
                in_code = !in_code;
            }
            for part in if in_code { Vec::new() } else { text(file, line) } {
                for pattern in patterns.iter().filter(|pattern| pattern.is_match(&part)) {
                    found.push(format!("{file}:{}: `{pattern}` in: {}", number + 1, part.trim()));
                }
            }
        }
    }
    found
}

/// Returns the parts of a line that are prose: comments and messages of code, everything but code of documents.
fn text_of(file: &str, line: &str) -> Vec<String> {
    if file.ends_with(".md") {
        return vec![without_code(line)];
    }
    let mark = if file.ends_with(".rs") || file.ends_with(".proto") { "//" } else { "#" };
    let comment = line.find(mark).filter(|at| *at == 0 || line[..*at].ends_with([' ', '\t']));
    let code = comment.map_or(line, |at| &line[..at]);
    let mut parts: Vec<String> = comment
        .map(|at| without_code(line[at..].trim_start_matches(['/', '!', '#', ' '])))
        .into_iter()
        .collect();
    // Messages: string literals with a space.
    if file.ends_with(".rs") {
        parts.extend(code.split('"').skip(1).step_by(2).filter(|text| text.contains(' ')).map(str::to_owned));
    }
    parts
}

/// Replaces `code` in backquotes by a placeholder.
fn without_code(text: &str) -> String {
    let parts = text.split('`').enumerate();
    parts.map(|(at, part)| if at % 2 == 0 { part } else { "CODE" }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_messages_and_sentences_are_searched_and_code_is_not() {
        assert_eq!(text_of("a.rs", "let told = 1; // It is told."), ["It is told."]);
        assert_eq!(text_of("a.rs", "fail(\"nobody waits\", \"told\")"), ["nobody waits"]);
        assert_eq!(text_of("a.rs", "/// Returns `told`."), ["Returns CODE."]);
        assert_eq!(text_of("a.md", "The `told` one."), ["The CODE one."]);
        assert_eq!(text_of("a.sh", "echo # a word"), ["a word"]);
    }

    #[test]
    fn every_expression_compiles() {
        let words = include_str!("../lists/banned-words.txt");
        let count = words.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count();
        assert_eq!(list(words, str::to_owned, true).len(), count);
        assert!(list(words, str::to_owned, true).iter().any(|word| word.is_match("Nobody waits for it")));
    }
}

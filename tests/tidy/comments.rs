//! Extracts comments and string literals from Rust source.

use proc_macro2::{Span, TokenStream, TokenTree};

/// A block of comment lines, or a string literal.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Passage {
    /// The line of its first character, from 1.
    pub(crate) line: usize,
    /// On one line, with single spaces.
    pub(crate) text: String,
}

/// All comments, doc comments included. Lines that follow each other are one passage.
pub(crate) fn comments(text: &str) -> Vec<Passage> {
    let mut rest = text.as_bytes().to_vec();
    blank(text, tokens(text), &mut rest);
    let rest = String::from_utf8(rest).expect("whole tokens were blanked");
    let mut passages: Vec<Passage> = Vec::new();
    let mut last = 0;
    for (index, line) in rest.lines().enumerate() {
        let words = line.trim().trim_start_matches(['/', '!', '*']).trim_end_matches(['*', '/']);
        let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
        if words.is_empty() {
            continue;
        }
        match passages.last_mut() {
            Some(passage) if last == index => {
                passage.text.push(' ');
                passage.text.push_str(&words);
            }
            _ => passages.push(Passage { line: index + 1, text: words }),
        }
        last = index + 1;
    }
    passages
}

/// All string literals, without their quotes. Continued lines are joined.
pub(crate) fn strings(text: &str) -> Vec<Passage> {
    let mut passages = Vec::new();
    collect_strings(text, tokens(text), &mut passages);
    passages
}

fn tokens(text: &str) -> TokenStream {
    text.parse().expect("a file that was parsed before")
}

fn is_comment(text: &str, span: Span) -> bool {
    let source = &text[span.byte_range()];
    source.starts_with("//") || source.starts_with("/*")
}

/// Overwrites all tokens but doc comments with spaces.
fn blank(text: &str, tokens: TokenStream, rest: &mut [u8]) {
    for token in tokens {
        // A doc comment is an attribute whose tokens all span the comment.
        if is_comment(text, token.span()) {
            continue;
        }
        if let TokenTree::Group(group) = &token {
            cover(group.span_open(), rest);
            cover(group.span_close(), rest);
            blank(text, group.stream(), rest);
        } else {
            cover(token.span(), rest);
        }
    }
}

fn cover(span: Span, rest: &mut [u8]) {
    rest[span.byte_range()].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
}

fn collect_strings(text: &str, tokens: TokenStream, passages: &mut Vec<Passage>) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => collect_strings(text, group.stream(), passages),
            TokenTree::Literal(literal) if !is_comment(text, literal.span()) => {
                let source = &text[literal.span().byte_range()];
                if source.contains('"') {
                    let words = source.replace("\\\n", " ");
                    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
                    passages.push(Passage { line: literal.span().start().line, text: words });
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r##"//! A heading
//! of two lines.

/// An item.
fn main() {
    let here = "no // comment"; // a trailing one, é
    /* a block */
    let raw = r#"a "raw"
        string"#;
    call(here, "continued \
        line");
}
"##;

    #[test]
    fn comments_of_every_kind_are_found_and_strings_are_none() {
        let found: Vec<_> = comments(TEXT).into_iter().map(|passage| (passage.line, passage.text)).collect();
        let wanted = [(1, "A heading of two lines."), (4, "An item."), (6, "a trailing one, é a block")];
        assert_eq!(found, wanted.map(|(line, text)| (line, text.to_owned())));
    }

    #[test]
    fn strings_are_found_on_one_line() {
        let found: Vec<_> = strings(TEXT).into_iter().map(|passage| (passage.line, passage.text)).collect();
        let wanted = [(6, "\"no // comment\""), (8, "r#\"a \"raw\" string\"#"), (10, "\"continued line\"")];
        assert_eq!(found, wanted.map(|(line, text)| (line, text.to_owned())));
    }
}

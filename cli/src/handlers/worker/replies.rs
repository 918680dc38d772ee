//! Lines of a process, each an answer or an array of them: [`replies`].

use serde_json::value::RawValue;

use crate::handlers::gather::Asked;
use crate::handlers::json::{RequestState, Said, said, trimmed};

/// What a line holds.
#[derive(Debug, Default)]
pub(super) struct LineReplies {
    pub(super) answers: Vec<(u64, Asked)>,
    /// The answers came in an array, which is complete.
    pub(super) is_array: bool,
    pub(super) is_ready: bool,
    /// Something in it is no answer, and is ignored.
    pub(super) is_stray: bool,
    /// Something in it is an invalid answer: to which request, and why.
    pub(super) wrong: Option<(Option<u64>, String)>,
}

/// Reads a line; an array of answers only where `arrays` are expected.
pub(super) fn replies(
    line: &[u8],
    arrays: bool,
    is_any_open: bool,
    state: impl Fn(u64) -> RequestState,
) -> LineReplies {
    let mut replies = LineReplies::default();
    let items: Option<Vec<&RawValue>> = match trimmed(line).starts_with(b"[") {
        true if arrays => serde_json::from_slice(trimmed(line)).ok(),
        _ => None,
    };
    replies.is_array = items.is_some();
    let lines: Vec<&[u8]> = match &items {
        Some(items) => items.iter().map(|item| item.get().as_bytes()).collect(),
        None => vec![line],
    };
    for line in lines {
        match said(line, is_any_open, &state) {
            Said::Nothing => {}
            Said::Ready => replies.is_ready = true,
            Said::Stray => replies.is_stray = true,
            Said::Answer(id, answer) => replies.answers.push((id, answer)),
            Said::Wrong(id, why) => drop(replies.wrong.get_or_insert((id, why))),
        }
    }
    replies
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str, arrays: bool) -> LineReplies {
        replies(line.as_bytes(), arrays, true, |id| match id {
            5..=7 => RequestState::Open,
            ..5 => RequestState::Past,
            _ => RequestState::Unknown,
        })
    }

    fn ids(replies: &LineReplies) -> Vec<u64> {
        replies.answers.iter().map(|(id, _)| *id).collect()
    }

    #[test]
    fn an_array_holds_answers_in_any_order_where_arrays_are_sent() {
        let line = r#" [{"id":7,"ok":true}, {"id":5,"ok":false,"retry":false}, {"id":2,"ok":true}, 3]"#;
        let replies = read(line, true);
        assert_eq!((ids(&replies), replies.is_array, replies.is_stray), (vec![7, 5], true, true));
        assert!(replies.wrong.is_none() && replies.answers[1].1.is_err());
        let replies = read(line, false);
        assert!(replies.answers.is_empty() && replies.is_stray && !replies.is_array);
        assert_eq!(ids(&read(r#"{"id":6,"ok":true}"#, true)), [6]);
    }

    #[test]
    fn an_invalid_answer_does_not_hide_the_valid_ones() {
        let replies = read(r#"[{"id":5,"ok":true},{"id":6,"ok":"yes"},{"id":9,"ok":true}]"#, true);
        assert_eq!(ids(&replies), [5]);
        assert_eq!(replies.wrong.unwrap().0, Some(6));
        assert!(read("[{\"id\":5,", true).is_stray);
    }
}

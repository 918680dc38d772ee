//! Canonical order of the members of a JSON object: by name.

/// The range of a member, counted from the first one's start; its comma is part of it.
#[derive(Clone, Copy)]
pub(super) struct Member {
    start: u32,
    end: u32,
}

impl Member {
    fn of<'o>(&self, object: &'o [u8]) -> &'o [u8] {
        object.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

/// Sorts the `count` members that `out` ends with, from `start` on. `None`: two have the same name, or they have more than
/// 4 GiB.
///
/// Only here is memory needed for each member, and none while members come in order, as programs write them that sort them.
pub(super) fn sort(
    out: &mut Vec<u8>,
    start: usize,
    count: usize,
    members: &mut Vec<Member>,
    sorted: &mut Vec<u8>,
) -> Option<()> {
    let object = &out[start..];
    members.clear();
    members.reserve_exact(count);
    let mut at = 0;
    while at < object.len() {
        let end = member_end(object, at);
        members.push(Member { start: u32::try_from(at).ok()?, end: u32::try_from(end).ok()? });
        at = end;
    }
    // Different names differ before the end of either, its quote included; what comes behind decides nothing.
    members.sort_unstable_by(|one, other| one.of(object).cmp(other.of(object)));
    let name = |member: &Member| {
        let member = member.of(object);
        &member[..string_end(member, 1)]
    };
    if members.windows(2).any(|pair| name(&pair[0]) == name(&pair[1])) {
        return None;
    }
    sorted.clear();
    sorted.reserve_exact(object.len());
    members.iter().for_each(|member| sorted.extend_from_slice(member.of(object)));
    out.truncate(start);
    out.extend_from_slice(sorted);
    Some(())
}

/// Where the member that begins at `at` ends, behind its comma. The text is a canonical form.
fn member_end(object: &[u8], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while let Some(byte) = object.get(at) {
        at += 1;
        match byte {
            b'"' => at = string_end(object, at),
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => break,
            _ => {}
        }
    }
    at
}

/// Where the string ends whose opening quote is just before `at`, behind its closing quote.
fn string_end(text: &[u8], mut at: usize) -> usize {
    while let Some(byte) = text.get(at) {
        at += 1;
        match byte {
            b'"' => return at,
            b'\\' => at += 1,
            _ => {}
        }
    }
    text.len()
}

//! What a server may answer: [`Replies`]. The client believes each length that it is told, and makes room for it.

use std::io;

/// The longest string, as Redis has it (`proto-max-bulk-len`); no reply to our scripts comes near.
const LONGEST_STRING: u64 = 512 << 20;
/// The longest line: an error, a status or a number.
const LONGEST_LINE: usize = 64 << 10;
/// The most values of one reply, and their bytes.
const MOST_VALUES: u64 = 1 << 20;
const LONGEST_REPLY: u64 = LONGEST_STRING + (1 << 20);

/// Follows the replies on one connection.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    /// The line so far: its type, and what may be a length.
    line: Vec<u8>,
    /// Bytes of lines that are too long to be lengths.
    long: usize,
    /// Bytes still to come of a string.
    string: u64,
    /// Values still to come of the reply, and what it has come to.
    left: u64,
    values: u64,
    bytes: u64,
}

impl Replies {
    /// Looks at more bytes of the server's.
    ///
    /// # Errors
    /// No Redis answers so.
    pub(crate) fn look(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while let Some((first, rest)) = bytes.split_first() {
            if self.string > 0 {
                let skipped = usize::try_from(self.string).unwrap_or(usize::MAX).min(bytes.len());
                self.string -= skipped as u64;
                self.bytes += skipped as u64;
                bytes = &bytes[skipped..];
                continue;
            }
            bytes = rest;
            self.bytes += 1;
            if *first == b'\n' {
                self.end_of_line()?;
            } else if self.line.len() < 24 {
                self.line.push(*first);
            } else {
                self.long += 1;
            }
            if self.long > LONGEST_LINE || self.bytes > LONGEST_REPLY {
                return Err(refused("an endless reply"));
            }
        }
        Ok(())
    }

    fn end_of_line(&mut self) -> io::Result<()> {
        let line = std::mem::take(&mut self.line);
        self.long = 0;
        if self.left == 0 {
            (self.left, self.values, self.bytes) = (1, 0, 0);
        }
        self.left -= 1;
        self.values += 1;
        let Some((kind, length)) = line.split_first() else { return Ok(()) };
        let length =
            std::str::from_utf8(length).ok().and_then(|length| length.trim_end().parse::<i64>().ok());
        // No value at all has the length -1; what is no length the client finds.
        let length = length.and_then(|length| u64::try_from(length).ok()).unwrap_or(0);
        match kind {
            b'$' | b'!' | b'=' if length > LONGEST_STRING => Err(refused("a string of more than 512 MiB")),
            b'$' | b'!' | b'=' => {
                // "$-1" has nothing behind it, "$0" a line end.
                self.string = if line.get(1) == Some(&b'-') { 0 } else { length + 2 };
                Ok(())
            }
            b'*' | b'~' | b'>' | b'%' | b'|' => {
                let each = if matches!(kind, b'%' | b'|') { 2 } else { 1 };
                self.left = self.left.saturating_add(length.saturating_mul(each));
                if self.left.saturating_add(self.values) > MOST_VALUES {
                    return Err(refused("a reply of more than a million values"));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn refused(what: &str) -> io::Error {
    let what = format!("the server sent {what}; check that it is Redis and that nobody is in between");
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_refused(bytes: &[u8], pieces: usize) -> bool {
        let mut replies = Replies::default();
        bytes.chunks(pieces).any(|piece| replies.look(piece).is_err())
    }

    #[test]
    fn replies_pass_however_long_a_connection_lasts() {
        let replies = [
            &b"+OK\r\n"[..],
            b"-ERR no\r\n",
            b":7\r\n",
            b"$-1\r\n",
            b"$0\r\n\r\n",
            b"$12\r\n*2147483647\r\r\n",
            b"*3\r\n$1\r\na\r\n*-1\r\n*2\r\n:1\r\n:2\r\n",
            b"*0\r\n",
        ]
        .concat();
        for pieces in [1, 3, 7, 1000] {
            assert!(!is_refused(&replies.repeat(100), pieces), "{pieces}");
        }
        // Each reply counts for itself.
        let mut all = Replies::default();
        let array = [&b"*1000\r\n"[..], &b":1\r\n".repeat(1000)].concat();
        assert!((0..5_000).all(|_| all.look(&array).is_ok()));
    }

    #[test]
    fn what_no_server_answers_is_refused() {
        let deep = b"*2\r\n".repeat(MOST_VALUES as usize);
        for bytes in [
            &b"$99999999999\r\n"[..],
            b"$536870913\r\n",
            b"*2147483647\r\n",
            b"*9223372036854775807\r\n*9223372036854775807\r\n",
            &deep,
            &[b'+'; LONGEST_LINE + 30],
            &[b'$'; LONGEST_LINE + 30],
        ] {
            assert!(is_refused(bytes, 1000), "{:?}", String::from_utf8_lossy(&bytes[..10]));
        }
        let mut replies = Replies::default();
        replies.look(b"*10\r\n$300000000\r\n").unwrap();
        let piece = [b'x'; 1 << 20];
        assert!((0..1000).any(|number| {
            let bytes: &[u8] = if number == 288 { b"xxxxxxxxxxxxxxxx\r\n$300000000\r\n" } else { &piece };
            replies.look(bytes).is_err()
        }));
    }
}

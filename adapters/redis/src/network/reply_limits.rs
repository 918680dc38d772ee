//! Limits on the size of replies: [`ReplyLimits`]. The `redis` crate allocates whatever length a reply announces.

use std::io;

/// The longest string in bytes, as in Redis (`proto-max-bulk-len`); replies to scripts are far smaller.
const LONGEST_STRING: u64 = 512 << 20;
/// The longest line in bytes: an error, a status or a number.
const LONGEST_LINE: usize = 64 << 10;
/// The most values in one reply, and the most bytes.
const MOST_VALUES: u64 = 1 << 20;
const LONGEST_REPLY: u64 = LONGEST_STRING + (1 << 20);

/// Tracks the replies on one connection.
#[derive(Debug, Default)]
pub(crate) struct ReplyLimits {
    /// The current line: its type, and the digits of a length.
    line: Vec<u8>,
    /// Bytes of the current line beyond those of a length.
    long: usize,
    /// Remaining bytes of the current string.
    string: u64,
    /// Remaining values of the current reply, and its values and bytes so far.
    left: u64,
    values: u64,
    bytes: u64,
}

impl ReplyLimits {
    /// Checks the next bytes from the server.
    ///
    /// # Errors
    /// They exceed a limit, which no Redis server does.
    pub(crate) fn check(&mut self, mut bytes: &[u8]) -> io::Result<()> {
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
        // A null value has the length -1; an invalid length is left to the client.
        let length = length.and_then(|length| u64::try_from(length).ok()).unwrap_or(0);
        match kind {
            b'$' | b'!' | b'=' if length > LONGEST_STRING => Err(refused("a string of more than 512 MiB")),
            b'$' | b'!' | b'=' => {
                // Nothing follows "$-1"; a line end follows "$0".
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
    let what = format!("the server sent {what}; check that it is Redis, without a proxy in between");
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_refused(bytes: &[u8], pieces: usize) -> bool {
        let mut replies = ReplyLimits::default();
        bytes.chunks(pieces).any(|piece| replies.check(piece).is_err())
    }

    #[test]
    fn valid_replies_pass_on_a_long_connection() {
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
        // Each reply is counted separately.
        let mut all = ReplyLimits::default();
        let array = [&b"*1000\r\n"[..], &b":1\r\n".repeat(1000)].concat();
        assert!((0..5_000).all(|_| all.check(&array).is_ok()));
    }

    #[test]
    fn replies_beyond_the_limits_are_refused() {
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
        let mut replies = ReplyLimits::default();
        replies.check(b"*10\r\n$300000000\r\n").unwrap();
        let piece = [b'x'; 1 << 20];
        assert!((0..1000).any(|number| {
            let bytes: &[u8] = if number == 288 { b"xxxxxxxxxxxxxxxx\r\n$300000000\r\n" } else { &piece };
            replies.check(bytes).is_err()
        }));
    }
}

//! Validates a SQL statement before SQLite compiles it: their number, the first keyword, the parameters.

use onceward::adapter::StatementParameter;

/// Keywords of statements that have an effect and do not end the transaction.
const EFFECTS: [&str; 5] = ["INSERT", "UPDATE", "DELETE", "REPLACE", "WITH"];

/// Checks that `sql` is a single statement with known parameters. It recognises strings, quoted names and comments, and leaves
/// everything else to SQLite.
///
/// # Errors
/// The reason why it cannot be used.
pub(super) fn validate(sql: &str) -> Result<(), String> {
    let mut first = None;
    let mut ended = false;
    for token in Tokens(sql) {
        if ended && token != Token::End {
            return Err("it is more than one statement; use a trigger for what must be done together".into());
        }
        match token {
            Token::End => ended = first.is_some(),
            Token::Parameter(name) => {
                let number = name.strip_prefix('$').map(|rest| &rest[..digits(rest)]).unwrap_or_default();
                if !number.parse().is_ok_and(|number| StatementParameter::from_number(number).is_some()) {
                    return Err(format!(
                        "it has the parameter \"{name}\"; there are $1 (payload), $2 (key), $3 (attempt) and $4 (fence)"
                    ));
                }
            }
            Token::Word(_) | Token::Other => {}
        }
        if let (None, Token::Word(_) | Token::Other) = (&first, &token) {
            first = Some(token);
        }
    }
    match first {
        None => {
            Err("it is empty; give one, for example \"INSERT INTO charges (payload) VALUES ($1)\"".into())
        }
        Some(Token::Word(word)) if EFFECTS.iter().any(|known| word.eq_ignore_ascii_case(known)) => Ok(()),
        Some(_) => Err(format!("it must begin with one of {}", EFFECTS.join(", "))),
    }
}

#[derive(Debug, PartialEq)]
enum Token<'a> {
    Word(&'a str),
    Parameter(&'a str),
    End,
    Other,
}

struct Tokens<'a>(&'a str);

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            self.0 = self.0.trim_start();
            let first = self.0.chars().next()?;
            let (length, token) = match first {
                '-' if self.0.starts_with("--") => (self.0.find('\n').unwrap_or(self.0.len()), None),
                '/' if self.0.starts_with("/*") => {
                    (self.0[2..].find("*/").map_or(self.0.len(), |end| end + 4), None)
                }
                // A doubled quote starts another quoted part at once, with the same result.
                '\'' | '"' | '`' => (quoted(self.0, first), Some(Token::Other)),
                '[' => (quoted(self.0, ']'), Some(Token::Other)),
                ';' => (1, Some(Token::End)),
                '$' | '?' | ':' | '@' => {
                    let length = 1 + word(&self.0[1..]);
                    (length, Some(Token::Parameter(&self.0[..length])))
                }
                _ if word(self.0) > 0 => {
                    let length = word(self.0);
                    (length, Some(Token::Word(&self.0[..length])))
                }
                _ => (first.len_utf8(), Some(Token::Other)),
            };
            self.0 = &self.0[length..];
            if token.is_some() {
                return token;
            }
        }
    }
}

fn quoted(text: &str, end: char) -> usize {
    text[1..].find(end).map_or(text.len(), |at| at + 2)
}

fn word(text: &str) -> usize {
    text.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '$'))).unwrap_or(text.len())
}

fn digits(text: &str) -> usize {
    text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_statement_with_known_parameters_is_taken() {
        for sql in [
            "INSERT INTO charges VALUES ($1, $2, $3, $4)",
            " insert into charges values ($1); -- done\n ; /* ; */ ",
            "-- why; not\nUPDATE t SET a = ';' WHERE \"b;$9\" = [c;:d] AND `e;` = 'it''s; ?'",
            "WITH x AS (SELECT $1) INSERT INTO t SELECT * FROM x",
            "DELETE FROM t WHERE id = json_extract($1, '$.id')",
            "REPLACE INTO t VALUES (1) -- no end",
        ] {
            assert_eq!(validate(sql), Ok(()), "{sql}");
        }
    }

    #[test]
    fn what_has_no_effect_or_ends_the_transaction_is_refused() {
        for sql in
            ["SELECT 1", "COMMIT", "rollback", "PRAGMA foreign_keys = ON", "'INSERT'", "INSERTS INTO t", "é"]
        {
            assert!(validate(sql).unwrap_err().contains("must begin with"), "{sql}");
        }
        for sql in ["", " ; ", "-- INSERT", "/* INSERT"] {
            assert!(validate(sql).unwrap_err().contains("empty"), "{sql:?}");
        }
    }

    #[test]
    fn a_second_statement_is_refused_wherever_it_hides() {
        for sql in [
            "INSERT INTO t VALUES (1); COMMIT",
            "DELETE FROM t;/**/COMMIT",
            "DELETE FROM t;--\n'x'",
            "DELETE FROM t; $1",
        ] {
            assert!(validate(sql).unwrap_err().contains("more than one"), "{sql}");
        }
    }

    #[test]
    fn a_parameter_that_no_message_fills_is_refused_and_named() {
        for name in ["$5", "$0", "$", "?", "?1", ":key", "@key", "$payload", "$99999999999"] {
            let wrong = validate(&format!("INSERT INTO t VALUES ($1,{name})")).unwrap_err();
            assert!(wrong.contains(&format!("\"{name}\"")), "{wrong}");
        }
    }
}

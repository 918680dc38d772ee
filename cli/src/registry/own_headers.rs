//! Finds out whose `onceward-` headers are believed, and reads the secrets that ours are sealed with.

use std::path::Path;

use onceward::{Error, HeaderTrust, OwnHeaders, OwnSecrets};
use onceward_plugin::files::secret_in;

use crate::config::{self, Config, Secret};

/// What source, pipeline and dead letters are given.
///
/// # Errors
/// [`Error`] if a secret's file cannot be read, or a secret is too short.
pub(crate) fn own_headers(config: &Config) -> Result<OwnHeaders, Error> {
    let key = &config.key;
    let secrets = match secret(config, "secret", key.secret.as_ref(), key.secret_file.as_deref())? {
        None => None,
        Some(secret) => {
            let secrets = OwnSecrets::new(secret.expose().as_bytes())?;
            let previous = (key.previous_secret.as_ref(), key.previous_secret_file.as_deref());
            Some(match self::secret(config, "previous_secret", previous.0, previous.1)? {
                None => secrets,
                Some(previous) => secrets.with_previous(previous.expose().as_bytes())?,
            })
        }
    };
    let trust = match config.own_headers() {
        config::OwnHeaders::Ignore => HeaderTrust::Ignore,
        config::OwnHeaders::Authenticated => HeaderTrust::Authenticated,
        config::OwnHeaders::Trusted => HeaderTrust::Trusted,
    };
    OwnHeaders::new(trust, secrets)
}

fn secret(
    config: &Config,
    name: &str,
    given: Option<&Secret>,
    file: Option<&Path>,
) -> Result<Option<Secret>, Error> {
    match file {
        Some(file) => secret_in(&config.resolve(file), &format!("key.{name}_file")).map(Some),
        None => Ok(given.cloned()),
    }
}

#[cfg(test)]
mod tests {
    use onceward::Message;
    use onceward::own_headers::LETTER;

    use super::*;

    fn parse(key: &str, policy: &str) -> Config {
        let text = format!(
            "scope = 'a'\n[source.file]\npath = 'x'\n[store.memory]\n[handler.stdout]\n[dead_letter]\nto = 'd'\n[key]\n\
             from = ['json:/id']\n{key}\n[policy]\n{policy}\n"
        );
        Config::parse(&text, &|_| None).unwrap()
    }

    #[test]
    fn secrets_are_read_from_the_configuration_or_from_files() {
        let folder = tempfile::tempdir().unwrap();
        let (file, previous) = (folder.path().join("secret"), folder.path().join("previous"));
        std::fs::write(&file, "0123456789abcdef\n").unwrap();
        std::fs::write(&previous, "fedcba9876543210\r\n").unwrap();
        let policy = "own_headers = 'authenticated'";
        let of = |key: String| own_headers(&parse(&key, policy)).unwrap();
        let written = of("secret = '0123456789abcdef'".into());
        let read = of(format!(
            "secret_file = '{}'\nprevious_secret_file = '{}'",
            file.display(),
            previous.display()
        ));
        let before = of("secret = 'fedcba9876543210'".into());
        let message = |own: &OwnHeaders| {
            let letter = Message::builder("").header("onceward-scope", "a");
            let (name, value) =
                own.seal(&LETTER, &Message::builder("").header("onceward-scope", "a").build()).unwrap();
            letter.header(name, value).build()
        };
        assert!(read.believes(&LETTER, &message(&written)) && written.believes(&LETTER, &message(&read)));
        assert!(read.believes(&LETTER, &message(&before)) && !before.believes(&LETTER, &message(&read)));
    }

    #[test]
    fn a_file_is_believed_by_default_and_sealed_with_the_secret() {
        let own = own_headers(&parse("secret = '0123456789abcdef'", "")).unwrap();
        assert_eq!((own.trust(), own.seals()), (HeaderTrust::Trusted, true));
        let own = own_headers(&parse("", "own_headers = 'ignore'")).unwrap();
        assert_eq!((own.trust(), own.seals()), (HeaderTrust::Ignore, false));
    }

    #[test]
    fn a_file_that_is_missing_or_holds_too_little_is_an_error_without_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        let of = || own_headers(&parse(&format!("secret_file = '{}'", file.display()), "")).unwrap_err();
        assert!(of().to_string().contains("key.secret_file"), "{}", of());
        std::fs::write(&file, "short canary").unwrap();
        assert!(!format!("{:?}", of()).contains("canary"));
    }
}

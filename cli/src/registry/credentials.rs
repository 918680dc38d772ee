//! Credentials for those who connect: from the configuration or a file, never printed.

use std::path::Path;

use onceward::{Error, ErrorKind};

#[cfg(feature = "rabbitmq")]
use crate::config::Address;
use crate::config::{Config, Credentials, Secret};

/// A user's name and password, each where it is given outside the URL.
#[derive(Debug, Default)]
pub(super) struct Login {
    pub(super) username: Option<String>,
    pub(super) password: Option<Secret>,
}

impl Login {
    /// Reads the password file, if there is one. `table` is where the credentials stand.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if that file cannot be read.
    pub(super) fn read(config: &Config, table: &str, given: Credentials<'_>) -> Result<Self, Error> {
        let password = match given.password_file {
            None => given.password.cloned(),
            Some(file) => Some(password_in(&config.resolve(file), table)?),
        };
        Ok(Self { username: given.username.map(str::to_owned), password })
    }

    /// `address` with this login in it.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if `address` is a URL that has no place for one.
    #[cfg(feature = "rabbitmq")]
    pub(super) fn within(&self, address: &Address) -> Result<String, Error> {
        let refused = |what| Error::new(ErrorKind::Config, "put the credentials into the URL", what);
        let mut url = url::Url::parse(address.expose()).map_err(|_| refused("it is no URL; correct it"))?;
        let without = |()| refused("it has no host; write scheme://host:port/…");
        if let Some(username) = &self.username {
            url.set_username(username).map_err(without)?;
        }
        if let Some(password) = &self.password {
            url.set_password(Some(password.expose())).map_err(without)?;
        }
        Ok(url.into())
    }
}

/// The password in the file at `path`; `table` is where the file is named.
///
/// # Errors
/// [`ErrorKind::Config`] if it cannot be read.
pub(super) fn password_in(path: &Path, table: &str) -> Result<Secret, Error> {
    secret_in(path, &format!("{table}.password_file"))
}

/// The secret in the file at `path`, which `key` of the configuration names; line ends behind it do not belong to it.
///
/// # Errors
/// [`ErrorKind::Config`] if it cannot be read.
pub(super) fn secret_in(path: &Path, key: &str) -> Result<Secret, Error> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let what = format!(
            "{} cannot be read ({}); make it a text file that this user may read",
            path.display(),
            crate::handlers::text::io_words(&error)
        );
        Error::new(ErrorKind::Config, format!("read {key}"), what)
    })?;
    Ok(Secret::from(text.trim_end_matches(['\r', '\n']).to_owned()))
}

/// The certificates in the file at `path`, which `key` of the configuration names.
///
/// # Errors
/// [`ErrorKind::Config`] if it cannot be read.
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(super) fn certificates(config: &Config, key: &str, path: &Path) -> Result<Vec<u8>, Error> {
    let path = config.resolve(path);
    std::fs::read(&path).map_err(|error| {
        let what = format!(
            "{} cannot be read ({}); make it readable for this user",
            path.display(),
            crate::handlers::text::io_words(&error)
        );
        Error::new(ErrorKind::Config, format!("read {key}"), what)
    })
}

#[cfg(all(test, feature = "rabbitmq"))]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_escaped_within_a_url() {
        let address = Address::from("amqp://rabbit.example:5672/%2f".to_owned());
        let login =
            Login { username: Some("a b".to_owned()), password: Some(Secret::from("p@ss/w:rd".to_owned())) };
        assert_eq!(login.within(&address).unwrap(), "amqp://a%20b:p%40ss%2Fw%3Ard@rabbit.example:5672/%2f");
        assert_eq!(Login::default().within(&address).unwrap(), address.expose());
    }
}

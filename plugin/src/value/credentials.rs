//! Credentials: from the configuration or from a file, never printed.

use std::path::{Path, PathBuf};

use onceward::{Error, ErrorKind};

use super::{Address, Secret};
use crate::Context;
use crate::files::password_in;

/// The credentials of a client, where they are not in its URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials<'a> {
    /// The user name.
    pub username: Option<&'a str>,
    /// The password.
    pub password: Option<&'a Secret>,
    /// A file that holds the password; read for each new connection, trailing line ends removed.
    pub password_file: Option<&'a Path>,
}

impl Credentials<'_> {
    /// True if any of the three is given.
    pub fn is_given(&self) -> bool {
        self.username.is_some() || self.password.is_some() || self.password_file.is_some()
    }

    /// The password file as the configuration means it, with the key that names it.
    pub fn secret_file(&self, context: &Context<'_>) -> Option<(String, PathBuf)> {
        Some((context.key("password_file"), context.resolve(self.password_file?)))
    }
}

/// A user's name and password, each where it is given outside the URL.
#[derive(Debug, Default)]
pub struct Login {
    /// The user name.
    pub username: Option<String>,
    /// The password.
    pub password: Option<Secret>,
}

impl Login {
    /// Reads the password file, if there is one.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if that file cannot be read.
    pub fn read(context: &Context<'_>, given: Credentials<'_>) -> Result<Self, Error> {
        let password = match given.password_file {
            None => given.password.cloned(),
            Some(file) => Some(password_in(&context.resolve(file), context.table())?),
        };
        Ok(Self { username: given.username.map(str::to_owned), password })
    }

    /// `address` with this login in it, percent-encoded.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if `address` is a URL that has no place for a login.
    pub fn within(&self, address: &Address) -> Result<String, Error> {
        let refused = |what| Error::new(ErrorKind::Config, "put the credentials into the URL", what);
        let mut url =
            url::Url::parse(address.expose()).map_err(|_| refused("it is not a URL; correct it"))?;
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

#[cfg(test)]
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

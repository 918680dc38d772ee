//! The options of a connection to RabbitMQ, which all tables share.

use std::path::{Path, PathBuf};

use onceward::Error;
use onceward_plugin::value::{Address, Credentials, Login};
use onceward_plugin::{Checked, Context, Exposure, check};

use crate::RabbitmqEndpoint;

/// Declares a table with the options of a connection, before its own.
macro_rules! broker_table {
    ($(#[$meta:meta])* $name:ident [$($shared:ident),*] { $($body:tt)* }) => {
        onceward_plugin::table! {
            $(#[$meta])*
            $name [credentials, $($shared),*] {
                /// The URL of the broker: `amqp://host:5672/%2f`, or `amqps://…` for TLS.
                pub url: onceward_plugin::value::Address,
                /// The certificates, PEM, of the authorities that may have signed the broker's; the system's by default.
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub ca_file: Option<std::path::PathBuf>,
                /// Allows a login to another host without TLS. Only for private networks.
                #[serde(default)]
                pub allow_plaintext: bool,
                $($body)*
            }
        }

        impl $name {
            fn connection(&self) -> $crate::plugin::connection::RabbitmqConnection<'_> {
                $crate::plugin::connection::RabbitmqConnection {
                    url: &self.url,
                    ca_file: self.ca_file.as_deref(),
                    credentials: self.credentials(),
                    allow_plaintext: self.allow_plaintext,
                }
            }
        }

        impl onceward_plugin::Secrets for $name {
            fn exposure(&self) -> Option<onceward_plugin::Exposure> {
                self.connection().exposure()
            }

            fn secret_files(&self, context: &onceward_plugin::Context<'_>) -> Vec<(String, std::path::PathBuf)> {
                self.connection().secret_files(context)
            }
        }
    };
}
pub(super) use broker_table;

/// The options of a connection, whichever table they are in.
#[derive(Clone, Copy)]
pub(super) struct RabbitmqConnection<'a> {
    pub(super) url: &'a Address,
    pub(super) ca_file: Option<&'a Path>,
    pub(super) credentials: Credentials<'a>,
    pub(super) allow_plaintext: bool,
}

impl RabbitmqConnection<'_> {
    pub(super) fn check(&self, context: &Context<'_>) -> Checked {
        check::url(context, "url", self.url, &["amqp", "amqps"])?;
        if self.ca_file.is_some() && self.url.has_scheme(&["amqp"]) {
            return Err(context.problem(
                "ca_file",
                format!("is for TLS, and {} is without it", context.key("url")),
                "write amqps:// in the URL, or remove ca_file",
            ));
        }
        check::credentials(context, self.credentials, Some(self.url))
    }

    pub(super) fn exposure(&self) -> Option<Exposure> {
        let has_login = self.credentials.is_given() || check::has_login(self.url);
        (has_login && check::is_remote(self.url, &["amqp"])).then_some(Exposure {
            option: "url",
            problem: "is amqp:// on another host, so that user and password could be read on the way",
            fix: "write amqps://, with the broker's authority in ca_file if the system does not know it",
            is_allowed: self.allow_plaintext,
        })
    }

    pub(super) fn secret_files(&self, context: &Context<'_>) -> Vec<(String, PathBuf)> {
        self.credentials.secret_file(context).into_iter().collect()
    }

    pub(super) fn endpoint(&self, context: &Context<'_>) -> Result<RabbitmqEndpoint, Error> {
        let login = Login::read(context, self.credentials)?;
        let mut endpoint = RabbitmqEndpoint::new(login.within(self.url)?);
        // It is read again for each new connection.
        endpoint.password_file = self.credentials.password_file.map(|file| context.resolve(file));
        endpoint.allow_plaintext = self.allow_plaintext;
        endpoint.ca_file = self.ca_file.map(|file| context.resolve(file));
        Ok(endpoint)
    }

    /// The broker in a form that is equal for equal brokers.
    pub(super) fn server(&self) -> String {
        check::plain_url(self.url.expose())
    }
}

//! The options of a connection to Pub/Sub, which all tables share.

use std::path::{Path, PathBuf};

use onceward_plugin::value::HookUrl;
use onceward_plugin::{Checked, Context, Exposure, check, choice};

use crate::{PubsubCredentials, PubsubEndpoint};

choice! {
    /// The credentials that requests carry.
    PubsubLogin {
        /// Application Default Credentials: the file in `GOOGLE_APPLICATION_CREDENTIALS`, those of `gcloud`, or the
        /// machine's metadata server.
        #[default]
        ApplicationDefault,
        /// None, as emulators expect it.
        Anonymous,
    }
}

/// Declares a table with the options of a connection, before its own.
macro_rules! pubsub_table {
    ($(#[$meta:meta])* $name:ident [$($shared:ident),*] { $($body:tt)* }) => {
        onceward_plugin::table! {
            $(#[$meta])*
            $name [$($shared),*] {
                /// The project of names that are not full.
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub project: Option<String>,
                /// Another endpoint than Google's global one, such as a regional one or that of an emulator. Without it,
                /// the environment variable `PUBSUB_EMULATOR_HOST` is honoured.
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub endpoint: Option<onceward_plugin::value::HookUrl>,
                /// The credentials: `application-default`, or `anonymous` for an emulator.
                #[serde(default)]
                pub credentials: $crate::plugin::Login,
                /// A JSON file with the key of a service account, instead of `credentials`.
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub credentials_file: Option<std::path::PathBuf>,
                /// Allows access tokens and messages to another host without TLS (an endpoint of http://). Only for networks
                /// where no third party can read or answer.
                #[serde(default)]
                pub allow_plaintext: bool,
                $($body)*
            }
        }

        impl $name {
            fn connection(&self) -> $crate::plugin::connection::PubsubConnection<'_> {
                $crate::plugin::connection::PubsubConnection {
                    project: self.project.as_deref(),
                    endpoint: self.endpoint.as_ref(),
                    credentials: self.credentials,
                    credentials_file: self.credentials_file.as_deref(),
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
pub(super) use pubsub_table;

/// The options of a connection, whichever table they are in.
#[derive(Clone, Copy)]
pub(super) struct PubsubConnection<'a> {
    pub(super) project: Option<&'a str>,
    pub(super) endpoint: Option<&'a HookUrl>,
    pub(super) credentials: PubsubLogin,
    pub(super) credentials_file: Option<&'a Path>,
    pub(super) allow_plaintext: bool,
}

impl PubsubConnection<'_> {
    pub(super) fn check(&self, context: &Context<'_>) -> Checked {
        if let Some(project) = self.project {
            check::text(context, "project", project)?;
            if project.contains('/') {
                return Err(context.problem(
                    "project",
                    "is not the id of a project",
                    "write the id alone, without projects/",
                ));
            }
        }
        if self.credentials_file.is_some() && self.credentials == PubsubLogin::Anonymous {
            let fix = "remove one of the two";
            return Err(context.problem(
                "credentials_file",
                "is given although credentials are anonymous",
                fix,
            ));
        }
        match self.endpoint {
            Some(endpoint) => check::url(context, "endpoint", endpoint.address(), &["http", "https"]),
            None => Ok(()),
        }
    }

    /// An access token is valid for an hour for anyone who reads it.
    pub(super) fn exposure(&self) -> Option<Exposure> {
        check::is_remote(self.endpoint?.address(), &["http"]).then_some(Exposure {
            option: "endpoint",
            problem: "is http:// on another host, so that access tokens and messages could be read on the way",
            fix: "write https://",
            is_allowed: self.allow_plaintext,
        })
    }

    pub(super) fn secret_files(&self, context: &Context<'_>) -> Vec<(String, PathBuf)> {
        let file = self.credentials_file.map(|file| (context.key("credentials_file"), context.resolve(file)));
        file.into_iter().collect()
    }

    pub(super) fn endpoint(&self, context: &Context<'_>) -> PubsubEndpoint {
        let mut endpoint = PubsubEndpoint::default();
        endpoint.project = self.project.map(str::to_owned);
        endpoint.url = self.endpoint.map(|url| url.expose().to_owned());
        endpoint.allow_plaintext = self.allow_plaintext;
        endpoint.credentials = match (self.credentials_file, self.credentials) {
            (Some(file), _) => PubsubCredentials::KeyFile(context.resolve(file)),
            (None, PubsubLogin::Anonymous) => PubsubCredentials::Anonymous,
            (None, PubsubLogin::ApplicationDefault) => PubsubCredentials::ApplicationDefault,
        };
        endpoint
    }

    /// The server, in a form that is equal for equal servers.
    pub(super) fn server(&self) -> String {
        self.endpoint.map_or_else(|| "pubsub.googleapis.com".to_owned(), |url| check::plain_url(url.expose()))
    }

    /// The server for descriptions, without secrets.
    pub(super) fn describe(&self) -> String {
        self.endpoint.map_or_else(|| "pubsub".to_owned(), |url| format!("pubsub:{}", url.redacted()))
    }
}

/// Refuses a name that is neither full nor short, or is short without a project.
pub(super) fn check_name(
    context: &Context<'_>,
    option: &str,
    collection: crate::connection::names::Collection,
    name: &str,
    project: Option<&str>,
) -> Checked {
    check::text(context, option, name)?;
    if collection.full_name(name, project).is_ok() {
        return Ok(());
    }
    let fix = format!("write projects/PROJECT/{}/NAME, or NAME alone with a project", collection.word());
    Err(context.problem(option, "is not a name that Pub/Sub has", fix))
}

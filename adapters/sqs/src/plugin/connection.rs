//! The options of a connection to SQS, which all tables share.

use onceward_plugin::value::{Address, HookUrl};
use onceward_plugin::{Checked, Context, Exposure, check};

use crate::SqsEndpoint;

/// Declares a table with the options of a connection, before its own.
macro_rules! sqs_table {
    ($(#[$meta:meta])* $name:ident [$($shared:ident),*] { $($body:tt)* }) => {
        onceward_plugin::table! {
            $(#[$meta])*
            $name [$($shared),*] {
                /// The AWS region; by default the one of the standard AWS chain.
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub region: Option<String>,
                /// Another endpoint than AWS's, such as that of an emulator.
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub endpoint: Option<onceward_plugin::value::HookUrl>,
                /// Allows signed requests and messages to another host without TLS (an endpoint of http://). Only for networks
                /// where no third party can read or answer.
                #[serde(default)]
                pub allow_plaintext: bool,
                $($body)*
            }
        }

        impl $name {
            fn connection(&self) -> $crate::plugin::connection::SqsConnection<'_> {
                $crate::plugin::connection::SqsConnection {
                    region: self.region.as_deref(),
                    endpoint: self.endpoint.as_ref(),
                    allow_plaintext: self.allow_plaintext,
                }
            }
        }
    };
}
pub(super) use sqs_table;

/// The options of a connection, whichever table they are in.
#[derive(Clone, Copy)]
pub(super) struct SqsConnection<'a> {
    pub(super) region: Option<&'a str>,
    pub(super) endpoint: Option<&'a HookUrl>,
    pub(super) allow_plaintext: bool,
}

impl SqsConnection<'_> {
    pub(super) fn check(&self, context: &Context<'_>) -> Checked {
        if let Some(region) = self.region {
            check::text(context, "region", region)?;
        }
        match self.endpoint {
            Some(endpoint) => check::url(context, "endpoint", endpoint.address(), &["http", "https"]),
            None => Ok(()),
        }
    }

    /// Each request is signed, and could be replayed by any party that reads it. Without an endpoint every request goes to AWS,
    /// whatever the queue's URL says; an http:// URL is then a mistake, and reported as one.
    pub(super) fn exposure(&self, queue_url: Option<&Address>) -> Option<Exposure> {
        let (option, address) = match (self.endpoint, queue_url) {
            (Some(endpoint), _) => ("endpoint", endpoint.address()),
            (None, Some(queue_url)) => ("queue_url", queue_url),
            (None, None) => return None,
        };
        check::is_remote(address, &["http"]).then_some(Exposure {
            option,
            problem: "is http:// on another host, so that signed requests, session tokens and messages could be read on the way",
            fix: "write https://",
            is_allowed: self.allow_plaintext,
        })
    }

    pub(super) fn endpoint(&self) -> SqsEndpoint {
        let mut endpoint = SqsEndpoint::default();
        endpoint.region = self.region.map(str::to_owned);
        endpoint.allow_plaintext = self.allow_plaintext;
        endpoint.url = self.endpoint.map(|url| url.expose().to_owned());
        endpoint
    }
}

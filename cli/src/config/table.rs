//! Fields that several tables share. They are repeated in each by a macro, because `flatten` would lose the line of an
//! unknown field.

use std::collections::BTreeMap;
use std::path::Path;

use super::address::Address;
use super::duration::HumanDuration;
use super::secret::Secret;

/// Seconds as a default, for serde's `default = "…"`.
pub(super) const fn secs<const N: u64>() -> HumanDuration {
    HumanDuration::from_secs(N)
}

/// A whole number as a default.
pub(super) const fn count<const N: u32>() -> u32 {
    N
}

/// How a client proves who it is, where that is not in its URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials<'a> {
    /// The user's name.
    pub username: Option<&'a str>,
    /// The password itself.
    pub password: Option<&'a Secret>,
    /// A file that holds the password; read when connecting, trailing line ends removed.
    pub password_file: Option<&'a Path>,
}

impl Credentials<'_> {
    /// True if any of them is given.
    pub(super) fn is_given(&self) -> bool {
        self.username.is_some() || self.password.is_some() || self.password_file.is_some()
    }
}

/// A handler's program, and what it gets of the environment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HandlerProgram<'a> {
    /// The program and its arguments.
    pub command: &'a [Address],
    /// Variables that are set.
    pub env: &'a BTreeMap<String, Secret>,
    /// Variables that are passed on, beside the usual ones.
    pub inherit_env: &'a [String],
}

/// The limits that every store keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreLimits {
    /// How long a completed key is remembered.
    pub ttl: HumanDuration,
    /// How long a claim lasts without renewal.
    pub lease: HumanDuration,
    /// How long one call to the store may take.
    pub timeout: HumanDuration,
}

/// Declares one table: its own fields, and those it shares, named in brackets (`credentials`, `store`, `handler`, `program`; and, with
/// credentials, what a client needs of a broker: `rabbitmq`, `kafka`, `sqs`).
macro_rules! table {
    ($(#[$meta:meta])* $name:ident [$($shared:ident),*] { $($body:tt)* }) => {
        table! { @grow [$(#[$meta])*] $name [$($shared)*] { $($body)* } }
    };
    (@grow [$($meta:tt)*] $name:ident [credentials $($rest:ident)*] { $($body:tt)* }) => {
        table! { @grow [$($meta)*] $name [$($rest)*] {
            $($body)*
            /// The user's name, where it is not in the URL.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub username: Option<String>,
            /// The password, where it is not in the URL.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub password: Option<$crate::config::Secret>,
            /// A file that holds the password, instead of `password`.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub password_file: Option<std::path::PathBuf>,
        } }
        impl $name {
            /// How the client proves who it is, where that is not in the URL.
            pub fn credentials(&self) -> $crate::config::Credentials<'_> {
                $crate::config::Credentials {
                    username: self.username.as_deref(),
                    password: self.password.as_ref(),
                    password_file: self.password_file.as_deref(),
                }
            }
        }
    };
    (@grow [$($meta:tt)*] $name:ident [rabbitmq $($rest:ident)*] { $($body:tt)* }) => {
        table! { @grow [$($meta)*] $name [credentials $($rest)*] {
            /// Where the broker is: `amqp://host:5672/%2f`, or `amqps://…` for TLS.
            pub url: $crate::config::Address,
            /// The certificates, PEM, of the authorities that may have signed the broker's; the system's where it is left out.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub ca_file: Option<std::path::PathBuf>,
            /// True lets a login go readably, or to whoever answers, to another host than this: without TLS. Only
            /// for networks where nobody else can be.
            #[serde(default)]
            pub allow_plaintext: bool,
            $($body)*
        } }
        impl $name {
            /// The broker, apart from what is asked of it.
            pub fn broker(&self) -> $crate::config::RabbitmqBroker<'_> {
                $crate::config::RabbitmqBroker {
                    url: &self.url,
                    ca_file: self.ca_file.as_deref(),
                    credentials: self.credentials(),
                    allow_plaintext: self.allow_plaintext,
                }
            }
        }
    };
    (@grow [$($meta:tt)*] $name:ident [kafka $($rest:ident)*] { $($body:tt)* }) => {
        table! { @grow [$($meta)*] $name [credentials $($rest)*] {
            /// The first brokers to ask, each `host:port`.
            pub brokers: Vec<$crate::config::Address>,
            /// Properties handed to librdkafka as they are, such as `ssl.ca.location`. Those that would break the
            /// acknowledgement rule are refused.
            #[serde(default, skip_serializing_if = "super::properties::Properties::is_empty")]
            pub properties: $crate::config::Properties,
            /// True lets a login go readably, or to whoever answers, to another host than this: without TLS, or with TLS that
            /// verifies nobody. Only
            /// for networks where nobody else can be.
            #[serde(default)]
            pub allow_plaintext: bool,
            $($body)*
        } }
        impl $name {
            /// The cluster, apart from what is asked of it.
            pub fn cluster(&self) -> $crate::config::KafkaCluster<'_> {
                $crate::config::KafkaCluster {
                    brokers: &self.brokers,
                    properties: &self.properties,
                    credentials: self.credentials(),
                    allow_plaintext: self.allow_plaintext,
                }
            }
        }
    };
    (@grow [$($meta:tt)*] $name:ident [sqs $($rest:ident)*] { $($body:tt)* }) => {
        table! { @grow [$($meta)*] $name [$($rest)*] {
            /// The AWS region; the standard AWS chain decides when it is left out.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub region: Option<String>,
            /// Another endpoint than AWS's, such as that of an emulator.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub endpoint: Option<$crate::config::Address>,
            /// True lets signed requests and messages go readably to another host than this: an endpoint of http://. Only for
            /// networks where nobody else can be.
            #[serde(default)]
            pub allow_plaintext: bool,
            $($body)*
        } }
        impl $name {
            /// Where SQS is, apart from what is asked of it.
            pub fn place(&self) -> $crate::config::SqsPlace<'_> {
                $crate::config::SqsPlace {
                    region: self.region.as_deref(),
                    endpoint: self.endpoint.as_ref(),
                    allow_plaintext: self.allow_plaintext,
                }
            }
        }
    };
    (@grow [$($meta:tt)*] $name:ident [store $($rest:ident)*] { $($body:tt)* }) => {
        table! { @grow [$($meta)*] $name [$($rest)*] {
            $($body)*
            /// How long a completed key is remembered, from 1s to 3650d. It must cover the time in which a broker or a
            /// person may deliver a message again; the default is a day more than Kafka keeps records by default.
            #[serde(default = "super::table::secs::<691_200>")]
            pub ttl: $crate::config::HumanDuration,
            /// How long a claim lasts without renewal, in the store's time, from 100ms to 12h.
            #[serde(default = "super::table::secs::<30>")]
            pub lease: $crate::config::HumanDuration,
            /// How long one call to the store may take, from 1ms to 10m, shorter than the lease. After it the outcome
            /// is unknown, and the call is repeated with the same token.
            #[serde(default = "super::table::secs::<5>")]
            pub timeout: $crate::config::HumanDuration,
        } }
        impl $name {
            pub(crate) fn limits(&self) -> $crate::config::StoreLimits {
                $crate::config::StoreLimits { ttl: self.ttl, lease: self.lease, timeout: self.timeout }
            }
        }
    };
    (@grow [$($meta:tt)*] $name:ident [program $($rest:ident)*] { $($body:tt)* }) => {
        table! { @grow [$($meta)*] $name [$($rest)*] {
            /// The program and its arguments. No shell is involved. It runs in the directory of the configuration file.
            pub command: Vec<$crate::config::Address>,
            /// Variables for its environment, such as { REGION = "eu" }. Their values are never printed.
            #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
            pub env: std::collections::BTreeMap<String, $crate::config::Secret>,
            /// Variables that are passed on from this program's own environment, besides PATH, HOME, USER, LOGNAME, LANG,
            /// LANGUAGE, LC_…, TZ and TMPDIR. "*" stands for all but those that ${…} in this file uses,
            /// which are passed by their names only.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            pub inherit_env: Vec<String>,
            $($body)*
        } }
        impl $name {
            /// What runs, apart from how it is used.
            pub fn program(&self) -> $crate::config::HandlerProgram<'_> {
                $crate::config::HandlerProgram {
                    command: &self.command,
                    env: &self.env,
                    inherit_env: &self.inherit_env,
                }
            }
        }
    };
    (@grow [$($meta:tt)*] $name:ident [handler $($rest:ident)*] { $($body:tt)* }) => {
        table! { @grow [$($meta)*] $name [$($rest)*] {
            $($body)*
            /// How long one attempt may take, from 1ms to 12h.
            #[serde(default = "super::table::secs::<30>")]
            pub timeout: $crate::config::HumanDuration,
        } }
    };
    (@grow [$($meta:tt)*] $name:ident [] { $($body:tt)* }) => {
        $($meta)*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $($body)* }
    };
}
pub(super) use table;

/// Declares a closed set of values written as text in kebab case, the default marked by the caller with `#[default]`.
macro_rules! choice {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident,)* }) => {
        $(#[$meta])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
        )]
        #[serde(rename_all = "kebab-case")]
        pub enum $name { $($(#[$variant_meta])* $variant,)* }
    };
}
pub(super) use choice;

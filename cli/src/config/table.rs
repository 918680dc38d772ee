//! Fields that several tables share. They are repeated in each by a macro, because `flatten` would lose the line of an
//! unknown field.

use std::path::Path;

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

/// Declares one table: its own fields, and those it shares, named in brackets (`credentials`, `store`, `handler`).
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
    (@grow [$($meta:tt)*] $name:ident [store $($rest:ident)*] { $($body:tt)* }) => {
        table! { @grow [$($meta)*] $name [$($rest)*] {
            $($body)*
            /// How long a completed key is remembered, from 1s to 3650d. It must cover the time in which a broker or a
            /// person may deliver a message again.
            #[serde(default = "super::table::secs::<604_800>")]
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

//! [`table!`] and [`choice!`]: declare the tables and choices of a configuration.

/// Declares a table of the configuration file as a type: its fields are the options, their doc comments the reference.
///
/// Unknown options are refused with their line. Fields that many tables have are named in brackets, because serde's `flatten`
/// would lose the line of an unknown option:
///
/// | name | fields | method |
/// |---|---|---|
/// | `credentials` | `username`, `password`, `password_file` | `credentials()` |
/// | `store` | `ttl`, `lease`, `timeout`, `audit_retention` | `limits()`, `set_limits()` of `HasStoreLimits` |
/// | `handler` | `timeout` | |
///
/// ```
/// onceward_plugin::table! {
///     /// A pigeon loft.
///     PigeonSource [credentials] {
///         /// The loft.
///         pub loft: String,
///     }
/// }
/// let source = PigeonSource { loft: "north".into(), username: None, password: None, password_file: None };
/// assert!(!source.credentials().is_given());
/// ```
#[macro_export]
macro_rules! table {
    ($(#[$meta:meta])* $name:ident { $($body:tt)* }) => {
        $crate::table! { @grow [$(#[$meta])*] $name [] { $($body)* } }
    };
    ($(#[$meta:meta])* $name:ident [$($shared:ident),* $(,)?] { $($body:tt)* }) => {
        $crate::table! { @grow [$(#[$meta])*] $name [$($shared)*] { $($body)* } }
    };
    (@grow [$($meta:tt)*] $name:ident [credentials $($rest:ident)*] { $($body:tt)* }) => {
        $crate::table! { @grow [$($meta)*] $name [$($rest)*] {
            $($body)*
            /// The user name, where it is not in the URL.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub username: Option<String>,
            /// The password, where it is not in the URL.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub password: Option<$crate::value::Secret>,
            /// A file that holds the password, instead of `password`. It is read again for each new connection.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub password_file: Option<std::path::PathBuf>,
        } }
        impl $name {
            /// The credentials, where they are not in the URL.
            pub fn credentials(&self) -> $crate::value::Credentials<'_> {
                $crate::value::Credentials {
                    username: self.username.as_deref(),
                    password: self.password.as_ref(),
                    password_file: self.password_file.as_deref(),
                }
            }
        }
    };
    (@grow [$($meta:tt)*] $name:ident [store $($rest:ident)*] { $($body:tt)* }) => {
        $crate::table! { @grow [$($meta)*] $name [$($rest)*] {
            $($body)*
            /// How long a completed key is remembered, from 1s to 3650d. It must cover the time in which a broker or a
            /// person may deliver a message again; the default is a day more than Kafka keeps records by default.
            #[serde(default = "::onceward_plugin::default::secs::<691_200>")]
            pub ttl: $crate::value::HumanDuration,
            /// How long a claim lasts without renewal, in the store's time, from 100ms to 12h.
            #[serde(default = "::onceward_plugin::default::secs::<30>")]
            pub lease: $crate::value::HumanDuration,
            /// How long one call to the store may take, from 1ms to 10m, shorter than the lease. After it the outcome
            /// is unknown, and the call is repeated with the same token.
            #[serde(default = "::onceward_plugin::default::secs::<5>")]
            pub timeout: $crate::value::HumanDuration,
            /// How long entries of the audit trail are kept, from 1d to 3650d: who redrove or purged letters, or changed keys. The
            /// memory store has no trail.
            #[serde(default = "::onceward_plugin::default::secs::<31_536_000>")]
            pub audit_retention: $crate::value::HumanDuration,
        } }
        impl $crate::HasStoreLimits for $name {
            fn limits(&self) -> $crate::StoreLimits {
                $crate::StoreLimits {
                    ttl: self.ttl,
                    lease: self.lease,
                    timeout: self.timeout,
                    audit_retention: self.audit_retention,
                }
            }

            fn set_limits(&mut self, limits: $crate::StoreLimits) {
                (self.ttl, self.lease, self.timeout) = (limits.ttl, limits.lease, limits.timeout);
                self.audit_retention = limits.audit_retention;
            }
        }
    };
    (@grow [$($meta:tt)*] $name:ident [handler $($rest:ident)*] { $($body:tt)* }) => {
        $crate::table! { @grow [$($meta)*] $name [$($rest)*] {
            $($body)*
            /// How long one attempt may take, from 1ms to 12h.
            #[serde(default = "::onceward_plugin::default::secs::<30>")]
            pub timeout: $crate::value::HumanDuration,
        } }
    };
    (@grow [$($meta:tt)*] $name:ident [] { $($body:tt)* }) => {
        $($meta)*
        #[derive(
            Debug, Clone, PartialEq, $crate::serde::Serialize, $crate::serde::Deserialize, $crate::schemars::JsonSchema,
        )]
        #[serde(crate = "::onceward_plugin::serde", deny_unknown_fields)]
        #[schemars(crate = "::onceward_plugin::schemars")]
        pub struct $name { $($body)* }
    };
}

/// Declares a closed set of values, written as text in kebab case. The default is marked with `#[default]`.
///
/// ```
/// onceward_plugin::choice! {
///     /// How a pigeon flies.
///     Route {
///         /// Straight.
///         #[default]
///         Direct,
///         /// Along the coast.
///         AlongTheCoast,
///     }
/// }
/// assert_eq!(Route::default(), Route::Direct);
/// ```
#[macro_export]
macro_rules! choice {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident,)* }) => {
        $(#[$meta])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, Default,
            $crate::serde::Serialize, $crate::serde::Deserialize, $crate::schemars::JsonSchema,
        )]
        #[serde(crate = "::onceward_plugin::serde", rename_all = "kebab-case")]
        #[schemars(crate = "::onceward_plugin::schemars")]
        pub enum $name { $($(#[$variant_meta])* $variant,)* }
    };
}

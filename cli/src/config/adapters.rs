//! Generates the tables of all adapters from their registration in `plugins.rs`: [`register!`].

use onceward_plugin::{FindingDoc, LogRule, StoreFacts};

/// One table of the configuration and the cargo feature that brings it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapter {
    /// The table, such as `store.memory`.
    pub table: String,
    /// The cargo feature that brings it; none where it is always there.
    pub feature: Option<&'static str>,
    /// True where this build has it.
    pub is_compiled_in: bool,
}

/// The role of an adapter, which decides the tables it brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// `[source.NAME]`, `[handler.publish.NAME]` and `[outbox.NAME]`.
    Broker,
    /// `[source.NAME]`.
    Source,
    /// `[store.NAME]`.
    Store,
}

/// An adapter as it is registered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Registered {
    /// Its name in the configuration.
    pub name: &'static str,
    /// Its role.
    pub role: Role,
    /// The cargo feature that brings it; none where it is always there.
    pub feature: Option<&'static str>,
    /// True where this build has it.
    pub is_compiled_in: bool,
    /// The capabilities of a store of this build.
    pub store: Option<StoreFacts>,
    /// How the log lines of its client library are filtered.
    pub log: &'static [LogRule],
    /// What the codes of its findings mean.
    pub findings: &'static [FindingDoc],
}

impl Registered {
    pub(super) fn tables(self) -> impl Iterator<Item = Adapter> {
        let parents: &[&str] = match self.role {
            Role::Broker => &["source", "handler.publish", "outbox"],
            Role::Source => &["source"],
            Role::Store => &["store"],
        };
        parents.iter().map(move |parent| Adapter {
            table: format!("{parent}.{}", self.name),
            feature: self.feature,
            is_compiled_in: self.is_compiled_in,
        })
    }
}

/// Declares the tables of all adapters, and lists the adapters.
macro_rules! register {
    (
        brokers { $($broker:ident: $Broker:ident = $broker_crate:ident if $broker_feature:literal,)* }
        sources { $($source:ident: $Source:ident = $source_crate:ident,)* }
        stores { $($store:ident: $Store:ident = $store_crate:ident if $store_feature:literal,)* }
        internal stores { $($own:ident: $Own:ident = $own_type:path,)* }
    ) => {
        /// The adapters, in the order in which `--version` lists them.
        pub(crate) const REGISTERED: &[$crate::config::adapters::Registered] = &[
            $($crate::config::adapters::Registered {
                name: stringify!($broker),
                role: $crate::config::adapters::Role::Broker,
                feature: Some($broker_feature),
                is_compiled_in: cfg!(feature = $broker_feature),
                store: None,
                #[cfg(feature = $broker_feature)]
                log: $broker_crate::plugin::LOG_RULES,
                #[cfg(not(feature = $broker_feature))]
                log: &[],
                #[cfg(feature = $broker_feature)]
                findings: $broker_crate::plugin::FINDINGS,
                #[cfg(not(feature = $broker_feature))]
                findings: &[],
            },)*
            $($crate::config::adapters::Registered {
                name: stringify!($source),
                role: $crate::config::adapters::Role::Source,
                feature: None,
                is_compiled_in: true,
                store: None,
                log: &[],
                findings: $source_crate::plugin::FINDINGS,
            },)*
            $($crate::config::adapters::Registered {
                name: stringify!($store),
                role: $crate::config::adapters::Role::Store,
                feature: Some($store_feature),
                is_compiled_in: cfg!(feature = $store_feature),
                #[cfg(feature = $store_feature)]
                log: $store_crate::plugin::LOG_RULES,
                #[cfg(not(feature = $store_feature))]
                log: &[],
                #[cfg(feature = $store_feature)]
                findings: $store_crate::plugin::FINDINGS,
                #[cfg(not(feature = $store_feature))]
                findings: &[],
                #[cfg(feature = $store_feature)]
                store: Some($store_crate::plugin::FACTS),
                #[cfg(not(feature = $store_feature))]
                store: None,
            },)*
            $($crate::config::adapters::Registered {
                name: stringify!($own),
                role: $crate::config::adapters::Role::Store,
                feature: None,
                is_compiled_in: true,
                store: None,
                log: &[],
                findings: &[],
            },)*
        ];

        register! { @choice
            /// Where messages come from: exactly one of these tables.
            Source: SourcePlugin {
                $([feature = $broker_feature] $broker $Broker($broker_crate::plugin::Source),)*
                $([] $source $Source($source_crate::plugin::Source),)*
            }
        }

        register! { @choice
            /// A confirmed publish to another broker: exactly one of these tables.
            PublishTarget: TargetPlugin {
                $([feature = $broker_feature] $broker $Broker($broker_crate::plugin::Target),)*
            }
        }

        register! { @choice
            /// Where keys are remembered: exactly one of these tables.
            Store: StorePlugin {
                $([feature = $store_feature] $store $Store($store_crate::plugin::Store),)*
                $([] $own $Own($own_type),)*
            }
        }

        /// What `onceward outbox relay` does. The outbox itself is the store's, and needs no table.
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct OutboxConfig {
            /// How long rows that were published are kept, up to 3650d.
            pub keep: HumanDuration,
            $(
                /// The broker to publish to, instead of the source's own. At most one may be named.
                #[cfg(feature = $broker_feature)]
                #[serde(skip_serializing_if = "Option::is_none")]
                pub $broker: Option<$broker_crate::plugin::Relay>,
            )*
        }

        impl Default for OutboxConfig {
            fn default() -> Self {
                Self {
                    keep: HumanDuration::from_secs(3_600),
                    $(#[cfg(feature = $broker_feature)] $broker: None,)*
                }
            }
        }

        impl OutboxConfig {
            /// All brokers that are named, each with its table. More than one is refused.
            pub(crate) fn targets(&self) -> Vec<(&'static str, &dyn RelayPlugin)> {
                #[allow(unused_mut, reason = "a build may have no broker")]
                let mut targets: Vec<(&'static str, &dyn RelayPlugin)> = Vec::new();
                $(
                    #[cfg(feature = $broker_feature)]
                    if let Some(relay) = &self.$broker {
                        targets.push((concat!("outbox.", stringify!($broker)), relay));
                    }
                )*
                targets
            }
        }
    };
    (@choice $(#[$meta:meta])* $Name:ident: $Plugin:ident {
        $([$($cfg:meta)?] $name:ident $Variant:ident($table:ty),)*
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(rename_all = "lowercase")]
        pub enum $Name {
            $(
                #[allow(missing_docs, reason = "the table describes itself")]
                $(#[cfg($cfg)])?
                $Variant($table),
            )*
        }

        impl $Name {
            /// The name of the table, which is the adapter's.
            pub fn name(&self) -> &'static str {
                match *self {
                    $($(#[cfg($cfg)])? Self::$Variant(_) => stringify!($name),)*
                }
            }

            /// The table, as the adapter's plugin.
            pub fn plugin(&self) -> &dyn $Plugin {
                match *self {
                    $($(#[cfg($cfg)])? Self::$Variant(ref table) => table,)*
                }
            }

            #[allow(dead_code, reason = "not every role has derived defaults")]
            pub(crate) fn plugin_mut(&mut self) -> &mut dyn $Plugin {
                match *self {
                    $($(#[cfg($cfg)])? Self::$Variant(ref mut table) => table,)*
                }
            }
        }
    };
}
pub(crate) use register;

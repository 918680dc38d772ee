//! The resource of OpenTelemetry, which identifies this process: [`resource`].

use std::sync::LazyLock;

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;

use crate::config::Lookup;

/// Distinguishes the processes of one service, whose metrics would replace each other: a random UUID, the same for all
/// signals.
static INSTANCE: LazyLock<String> = LazyLock::new(|| {
    // Version 4, variant 1.
    let random = fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let digits = format!("{random:032x}");
    [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]).join("-")
});

/// The attributes of `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`, and by default the service `onceward` and an
/// instance of its own.
pub(super) fn resource(env: Lookup<'_>) -> Resource {
    let given = env("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let is_given = |key: &str| {
        given.split(',').filter_map(|entry| entry.split_once('=')).any(|(name, _)| name.trim() == key)
    };
    let has_name = env("OTEL_SERVICE_NAME").is_some_and(|name| !name.trim().is_empty());
    let mut resource = Resource::builder();
    if !has_name && !is_given("service.name") {
        resource = resource.with_service_name("onceward");
    }
    if !is_given("service.instance.id") {
        resource = resource.with_attribute(KeyValue::new("service.instance.id", INSTANCE.clone()));
    }
    resource.build()
}

#[cfg(test)]
mod tests {
    use opentelemetry::Key;

    use super::*;

    #[test]
    fn each_process_is_an_instance_of_its_own_unless_it_is_named() {
        let id =
            |resource: &Resource| resource.get(&Key::new("service.instance.id")).map(|id| id.to_string());
        let own = id(&resource(&|_| None)).expect("an id");
        let parts: Vec<_> = own.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert!(own[14..].starts_with('4') && own[19..].starts_with(['8', '9', 'a', 'b']), "{own}");
        assert_eq!(id(&resource(&|_| None)), Some(own), "it is that of the process");
        let named = |name: &str| {
            (name == "OTEL_RESOURCE_ATTRIBUTES").then(|| "a=b, service.instance.id=seven".to_owned())
        };
        // The library reads the attribute from the environment itself.
        assert_eq!(id(&resource(&named)), None);
    }
}

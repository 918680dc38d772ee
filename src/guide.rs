//! Guide chapters, from `docs/guide`; their examples are doctests.

/// Declares one documented module for each chapter. The link targets of `guide_links.md` come first, and the first definition
/// of a link counts: a chapter's own targets are for readers of its file.
macro_rules! chapters {
    ($($name:ident = $file:literal;)+) => {$(
        #[doc = include_str!("guide_links.md")]
        #[doc = ""]
        #[doc = include_str!(concat!("../docs/guide/", $file))]
        pub mod $name {}
    )+};
}

chapters! {
    install = "install.md";
    keys = "keys.md";
    times = "times.md";
    lifecycle = "lifecycle.md";
    transactions = "transactions.md";
    testing = "testing.md";
    writing_a_store = "writing-a-store.md";
    writing_a_broker = "writing-a-broker.md";
    migrating = "migrating.md";
    comparison = "comparison.md";
    deployment = "deployment.md";
    faq = "faq.md";
}

//! Stores behind an `Arc`, of a known type or as a trait object: [`SharedStore`].

use std::sync::Arc;

use super::{Store, StoreAdmin};

/// A store behind an `Arc`: of a known type, or `Arc<dyn Store>` where the type is chosen at run time.
pub trait SharedStore: Clone + Send + Sync + 'static {
    /// The store as a trait object.
    fn as_store(&self) -> Arc<dyn Store>;
}

impl<S: Store> SharedStore for Arc<S> {
    fn as_store(&self) -> Arc<dyn Store> {
        self.clone()
    }
}

impl SharedStore for Arc<dyn StoreAdmin> {
    fn as_store(&self) -> Arc<dyn Store> {
        Arc::<dyn StoreAdmin>::clone(self)
    }
}

impl SharedStore for Arc<dyn Store> {
    fn as_store(&self) -> Arc<dyn Store> {
        self.clone()
    }
}

//! Read positions of sources without a broker: [`CheckpointStore`].

use async_trait::async_trait;

use crate::error::Error;
use crate::key::Scope;

/// How far a source has been read: everything before it is settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which incarnation of the source the offset counts in; a source with another identity starts from its beginning.
    pub incarnation: String,
    /// The offset of the first unsettled byte or record.
    pub offset: u64,
    /// What the adapter needs to recognise the incarnation again.
    pub evidence: String,
}

/// Keeps [`Checkpoint`]s by (scope, source).
#[async_trait]
pub trait CheckpointStore: Send + Sync + 'static {
    /// The last saved checkpoint of `source`.
    ///
    /// # Errors
    /// [`Error`] if the store cannot answer.
    async fn load_checkpoint(&self, scope: &Scope, source: &str) -> Result<Option<Checkpoint>, Error>;

    /// Saves a checkpoint. It is durable on return: losing one costs only re-reading, never a message.
    ///
    /// # Errors
    /// [`Error`] if the store cannot answer; saving again is harmless.
    async fn save_checkpoint(
        &self,
        scope: &Scope,
        source: &str,
        checkpoint: &Checkpoint,
    ) -> Result<(), Error>;
}

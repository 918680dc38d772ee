//! A source for measurements, created beside that of the configuration: [`TemporarySource`].

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use onceward::{Error, ErrorKind, Publisher};

use crate::{Context, SourcePlugin};

/// An empty source that [`SourcePlugin::temporary`] has created, of the same kind and with the same options as the one it stands
/// beside. Nothing but its creator knows its name.
///
/// ```
/// # async fn measure(temporary: onceward_plugin::TemporarySource) -> Result<(), onceward::Error> {
/// use onceward::Outgoing;
///
/// let message = Outgoing { destination: temporary.destination.clone(), ..Outgoing::default() };
/// for published in temporary.publisher.publish(&[message]).await {
///     published?;
/// }
/// temporary.remove().await
/// # }
/// ```
#[must_use = "what was created has to be removed"]
pub struct TemporarySource {
    /// The queue, topic or file, without secrets, for a person who has to remove it by hand.
    pub place: String,
    /// The table of the configuration with the temporary place in it. It is opened as any other source.
    pub table: Box<dyn SourcePlugin>,
    /// Fills it.
    pub publisher: Arc<dyn Publisher>,
    /// The temporary place, as `publisher` understands it.
    pub destination: String,
    /// Headers and ids of published messages arrive. False for a format that has neither.
    pub carries_headers: bool,
    /// Two messages with the same id are both delivered. False for a broker that drops copies itself.
    pub delivers_copies: bool,
    removal: BoxFuture<'static, Result<(), Error>>,
}

impl TemporarySource {
    /// A source in which headers arrive and copies are delivered. `removal` deletes all that was created; it is not started before
    /// [`remove`](Self::remove).
    pub fn new(
        place: String,
        table: Box<dyn SourcePlugin>,
        publisher: Arc<dyn Publisher>,
        destination: String,
        removal: impl Future<Output = Result<(), Error>> + Send + 'static,
    ) -> Self {
        Self {
            place,
            table,
            publisher,
            destination,
            carries_headers: true,
            delivers_copies: true,
            removal: Box::pin(removal),
        }
    }

    /// Removes the source with the messages in it.
    ///
    /// # Errors
    /// [`Error`] if it may be left; [`place`](Self::place) names it.
    ///
    /// # Cancel safety
    /// A dropped call may have removed any part.
    pub async fn remove(self) -> Result<(), Error> {
        self.removal.await
    }
}

impl fmt::Debug for TemporarySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TemporarySource").field("place", &self.place).finish_non_exhaustive()
    }
}

/// The answer of a source that has no temporary one.
pub(crate) fn unsupported(context: &Context<'_>) -> Error {
    let what = "this kind of source cannot create a temporary one; measure with another source";
    Error::new(ErrorKind::Config, format!("create a temporary source beside [{}]", context.table()), what)
}

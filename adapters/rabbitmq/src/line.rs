//! The confirmed way to the broker that publisher and wait queues share: [`Line`].

use std::sync::Arc;
use std::time::Duration;

use lapin::Connection;
use onceward::{Error, ErrorKind};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::confirm::{OPERATION, cut, open_channel};
use crate::connection::Connect;
use crate::error;
use crate::outgoing::Letter;
use crate::round::Round;
use crate::suspects::Suspects;

/// How often a blocked connection is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// A connection of its own with a confirming channel, opened again as needed. One batch is under way at a time: what a
/// broker returns cannot be told apart otherwise.
pub(crate) struct Line {
    connect: Arc<dyn Connect>,
    /// How long a batch may take, waiting for the one before, connecting and a blocked broker included.
    pub(crate) limit: Duration,
    /// Taken out while a batch is under way, so that one that is given up leaves no confirms behind for the next.
    open: Mutex<Option<Open>>,
    suspects: Suspects,
}

struct Open {
    connection: Connection,
    /// `None`: it was given up, with the confirms that nobody waits for any more, or the broker closed it.
    channel: Option<lapin::Channel>,
}

/// What a batch is made for.
pub(crate) struct Terms<'a> {
    pub(crate) connection: &'a Connection,
    /// The largest frame in bytes.
    pub(crate) frame_max: usize,
}

/// A letter, or why there is none.
pub(crate) type Letters = Vec<Result<Letter, Error>>;

impl Line {
    /// Connects.
    pub(crate) async fn open(connect: Arc<dyn Connect>, limit: Duration) -> Result<Self, Error> {
        let open = Open::new(&*connect, None).await?;
        Ok(Self { connect, limit, open: Mutex::new(Some(open)), suspects: Suspects::default() })
    }

    /// Makes and sends a batch of `count` letters; one result for each, in order. The line is kept only if all went well
    /// with it: a connection that fails says so to those who wait before its own state does.
    ///
    /// # Cancel safety
    /// A dropped call may or may not have sent any of the batch.
    pub(crate) async fn publish(
        &self,
        count: usize,
        make: impl AsyncFnOnce(Terms<'_>) -> Letters,
    ) -> Vec<Result<(), Error>> {
        let all = |error: &Error| (0..count).map(|_| Err(error.clone())).collect();
        let late = |why: &str| {
            let limit = self.limit;
            error::timeout(
                OPERATION,
                format!("no confirm within {limit:?}: {why}; it is repeated with the same id"),
            )
        };
        let deadline = Instant::now() + self.limit;
        let Ok(mut slot) = tokio::time::timeout_at(deadline, self.open.lock()).await else {
            return all(&late("the batches before this one are still under way"));
        };
        let open = match tokio::time::timeout_at(deadline, Open::new(&*self.connect, slot.take())).await {
            Ok(Ok(open)) => open,
            Ok(Err(error)) => return all(&error),
            Err(_) => return all(&late("the broker cannot be reached")),
        };
        // On a blocked connection nothing is written; what is sent would pile up in memory, to be repeated anyway.
        while open.connection.status().blocked() {
            if Instant::now() + LOOK >= deadline {
                *slot = Some(open);
                return all(&blocked());
            }
            tokio::time::sleep(LOOK).await;
        }
        let Open { connection, channel } = open;
        let frame_max = match connection.configuration().frame_max() {
            0 => usize::MAX,
            bytes => usize::try_from(bytes).unwrap_or(usize::MAX),
        };
        let made = make(Terms { connection: &connection, frame_max });
        let letters = match tokio::time::timeout_at(deadline, made).await {
            Ok(letters) => letters,
            Err(_) => return all(&late("the broker has not answered")),
        };
        let mut round = Round::new(&connection, channel, &self.suspects, &letters);
        let in_time = tokio::time::timeout_at(deadline, round.run()).await.is_ok();
        let (channel, results) = round.end();
        let is_blocked = connection.status().blocked();
        if connection.status().connected() && (in_time || is_blocked) {
            // A late batch's channel goes, and with it the confirms that nobody waits for any more.
            *slot = Some(Open { connection, channel: channel.filter(|_| in_time) });
        }
        let missing = || if is_blocked { blocked() } else { late("the broker has not confirmed it") };
        results.into_iter().map(|result| result.unwrap_or_else(|| Err(missing()))).collect()
    }
}

fn blocked() -> Error {
    let what = "the broker blocks publishers because it is short of memory or disk; see its alarms";
    Error::new(ErrorKind::Throttled, OPERATION, what)
}

impl Open {
    /// The former one as far as it is open, or a new one.
    async fn new(connect: &dyn Connect, former: Option<Self>) -> Result<Self, Error> {
        match former {
            Some(Self { connection, channel }) if connection.status().connected() => {
                let channel = channel.filter(|channel| channel.status().connected());
                Ok(Self { connection, channel })
            }
            _ => {
                let connection = connect.connect().await?.connection;
                let channel = Some(open_channel(&connection).await.map_err(cut)?);
                Ok(Self { connection, channel })
            }
        }
    }
}

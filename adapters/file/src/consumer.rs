//! Delivers the lines of a file or of standard input: [`FileConsumer`].

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use async_trait::async_trait;
use onceward::adapter::{Acker, Capabilities, CheckpointStore, Consumer, Delivery};
use onceward::telemetry::SourceHealth;
use onceward::{Error, ErrorKind, Scope};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::acker::FileAcker;
use crate::config::FileConfig;
use crate::error;
use crate::file_source::attach::{self, AttachCause, AttachedFile, PathKind};
use crate::file_source::content;
use crate::file_source::incarnation;
use crate::message::LineDecoder;
use crate::progress::redelivery::reread;
use crate::progress::{CheckpointTarget, ProgressHandle};
use crate::reader::{LineBatch, Reader, ReaderEvent};

/// Batches read ahead. Two keep the reader busy while one is handled.
const READ_AHEAD: usize = 2;

/// Consumes a file line by line with a saved offset, or a stream without one.
///
/// Each line that is not empty is a message; see the [crate documentation](crate) for details. A file may have only one
/// consumer in each scope: two would overwrite each other's offset.
pub struct FileConsumer {
    config: FileConfig,
    capabilities: Capabilities,
    shared: Arc<ProgressHandle>,
    health: Arc<SourceHealth>,
    events: mpsc::Receiver<ReaderEvent>,
    at_end: Arc<AtomicBool>,
    /// Lines read and not yet delivered.
    ready: Option<LineBatch>,
    /// The next file, once every line of the current one is settled.
    next: Option<Box<AttachedFile>>,
    ended: bool,
}

impl FileConsumer {
    /// Opens the source and resumes at the offset that `checkpoints` stores for the scope and the absolute path.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if the configuration is invalid, the path names a directory or (without
    /// [`follow`](FileConfig::follow)) does not exist, or the file does not contain lines of text (compressed, UTF-16);
    /// [`ErrorKind::Denied`] without permission to read it; the error of `checkpoints` if it cannot load.
    pub async fn open(
        config: FileConfig,
        scope: Scope,
        checkpoints: Arc<dyn CheckpointStore>,
    ) -> Result<Self, Error> {
        config.check()?;
        let path = config.path.clone();
        if config.is_standard_input() {
            return Self::stream(config, || Ok(Box::new(io::stdin())));
        }
        let kind = blocking({
            let path = path.clone();
            move || attach::kind(&path)
        });
        match kind.await? {
            PathKind::Stream if config.follow => {
                return Err(error::config(
                    "read",
                    &path,
                    "it is a pipe or a device, follow = true needs a file; leave follow out",
                ));
            }
            PathKind::Stream => {
                return Self::stream(config, move || Ok(Box::new(std::fs::File::open(path)?)));
            }
            PathKind::Missing if !config.follow => {
                return Err(error::config(
                    "read",
                    &path,
                    "there is no such file; check the path, or set follow = true to wait for it",
                ));
            }
            PathKind::Missing | PathKind::File => {}
        }
        Self::file(config, scope, checkpoints).await
    }

    /// Reads `source` instead of the configured path, as standard input is read: once, to its end, without an offset. The path
    /// is only a name, for [`Message::origin`](onceward::Message::origin) and logs.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] if the configuration is invalid; [`ErrorKind::Unavailable`] if no thread can be started.
    pub fn from_reader(config: FileConfig, source: impl Read + Send + 'static) -> Result<Self, Error> {
        config.check()?;
        if config.follow {
            return Err(error::config("read", &config.path, "a reader cannot be followed; leave follow out"));
        }
        Self::stream(config, || Ok(Box::new(source)))
    }

    async fn file(
        config: FileConfig,
        scope: Scope,
        checkpoints: Arc<dyn CheckpointStore>,
    ) -> Result<Self, Error> {
        let absolute =
            std::path::absolute(&config.path).map_err(|error| error::io("find", &config.path, error))?;
        let source = absolute.to_string_lossy().into_owned();
        let checkpoint = checkpoints.load_checkpoint(&scope, &source).await?;
        let (path, follow) = (config.path.clone(), config.follow);
        let (attached, checkpoint) = blocking(move || {
            let attached = attach::attach(&path, checkpoint.as_ref(), follow)?;
            if let Some(attached) = &attached {
                content::check(&attached.file, &path)?;
            }
            Ok((attached, checkpoint))
        })
        .await?;
        let kept = CheckpointTarget { checkpoints, scope, source };
        Self::start(config, Some(kept), "".into(), |reader| move || reader.read_files(attached, checkpoint))
    }

    fn stream(
        config: FileConfig,
        open: impl FnOnce() -> io::Result<Box<dyn Read + Send>> + Send + 'static,
    ) -> Result<Self, Error> {
        let incarnation: Arc<str> = incarnation::stream_name()?.into();
        let of_reader = Arc::clone(&incarnation);
        Self::start(config, None, incarnation, |reader| move || reader.read_stream(open, of_reader))
    }

    fn start<R: FnOnce() + Send + 'static>(
        config: FileConfig,
        kept: Option<CheckpointTarget>,
        incarnation: Arc<str>,
        run: impl FnOnce(Reader) -> R,
    ) -> Result<Self, Error> {
        let origin: Arc<str> = config.path.to_string_lossy().into();
        let decoder = LineDecoder {
            format: config.format,
            limit: config.max_message_bytes,
            origin: Arc::clone(&origin),
            incarnation,
            own_headers: config.own_headers.clone(),
        };
        let shared = ProgressHandle::new(kept, decoder);
        let (sender, events) = mpsc::channel(READ_AHEAD);
        let at_end = Arc::new(AtomicBool::new(false));
        let reader = Reader {
            path: config.path.clone(),
            config: config.clone(),
            origin,
            events: sender,
            at_end: Arc::clone(&at_end),
        };
        thread::Builder::new().name("onceward-file".into()).spawn(run(reader)).map_err(|error| {
            let what = "the operating system cannot start a thread";
            Error::new(ErrorKind::Unavailable, format!("read {}", config.path.display()), what)
                .with_source(error)
        })?;
        let mut capabilities = Capabilities::default();
        capabilities.finite = !config.follow;
        capabilities.reports_idle = true;
        capabilities.ordered = true;
        Ok(Self {
            config,
            capabilities,
            shared,
            health: Arc::default(),
            events,
            at_end,
            ready: None,
            next: None,
            ended: false,
        })
    }

    /// The lines that are due for redelivery, if there are any.
    async fn redeliver(&mut self) -> Result<Option<Vec<Delivery>>, Error> {
        let (due, file, decoder) = {
            let progress = self.shared.lock();
            let due = progress.due(Instant::now(), self.config.batch_messages, self.config.batch_bytes);
            (due, progress.current.file.clone(), progress.current.decoder.clone())
        };
        if due.is_empty() {
            return Ok(None);
        }
        let path = self.config.path.clone();
        // They stay pending until they are delivered: a dropped call loses none.
        let read = blocking(move || reread(&path, file.as_deref(), &decoder, due)).await?;
        let mut deliveries = Vec::with_capacity(read.len());
        let mut progress = self.shared.lock();
        for (waiting, message) in read {
            match message {
                Some(message) => {
                    if let Some(tag) = progress.deliver_again(waiting.mark) {
                        deliveries.push(Delivery { message, tag });
                    }
                }
                None => {
                    tracing::error!(
                        path = %self.config.path.display(),
                        offset = waiting.mark.start,
                        "line to be retried is no longer in the file and is lost; \
                         only append to a file that is read"
                    );
                    progress.give_up(waiting.mark);
                }
            }
        }
        Ok((!deliveries.is_empty()).then_some(deliveries))
    }

    /// Delivers a batch.
    fn hand_over(&mut self, batch: LineBatch) -> Vec<Delivery> {
        let mut progress = self.shared.lock();
        let deliveries = batch
            .lines
            .into_iter()
            .map(|line| {
                let tag = progress.deliver(line.mark, line.unfinished, &line.message);
                Delivery { message: line.message, tag }
            })
            .collect();
        progress.read_to(batch.to);
        deliveries
    }

    fn announce(&self, attached: &AttachedFile) {
        let path = self.config.path.display();
        match &attached.cause {
            AttachCause::First => tracing::debug!(%path, "file opened at its beginning"),
            AttachCause::Resumed => {
                tracing::debug!(%path, offset = attached.offset, "file resumed at the saved offset");
            }
            AttachCause::Renamed(to) => tracing::info!(
                %path,
                renamed_to = %to.display(),
                offset = attached.offset,
                "file was renamed since the last run and is finished first"
            ),
            AttachCause::Rotated => tracing::info!(%path, "file rotated; reading the new one"),
            AttachCause::Changed(noticed) => tracing::warn!(
                %path,
                %noticed,
                "file was replaced or rewritten; reading it from the beginning"
            ),
        }
    }
}

#[async_trait]
impl Consumer for FileConsumer {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn acker(&self) -> Arc<dyn Acker> {
        Arc::new(FileAcker { shared: Arc::clone(&self.shared) })
    }

    /// Waits for the next lines. At the end of a finite source it waits until every delivery is settled, since each may have to
    /// be redelivered, and then returns `None`. Settle from another task.
    async fn receive(&mut self) -> Result<Option<Vec<Delivery>>, Error> {
        loop {
            if let Some(deliveries) = self.redeliver().await? {
                return Ok(Some(deliveries));
            }
            if let Some(batch) = &self.ready {
                if let Err(error) = self.shared.save_evidence(batch).await {
                    self.health.set_down(error.to_string());
                    return Err(error);
                }
                self.health.set_up();
                if let Some(batch) = self.ready.take() {
                    return Ok(Some(self.hand_over(batch)));
                }
            }
            let (unsettled, due) = {
                let progress = self.shared.lock();
                (progress.unsettled(), progress.next_due())
            };
            if unsettled == 0 {
                if let Some(attached) = &self.next {
                    self.shared.attach(attached).await;
                    self.announce(attached);
                    self.next = None;
                    continue;
                }
                if self.ended {
                    return Ok(None);
                }
            }
            let may_read = !self.ended && self.next.is_none();
            tokio::select! {
                biased;
                () = self.shared.changed.notified() => {}
                () = until(due) => {}
                event = self.events.recv(), if may_read => match event {
                    Some(ReaderEvent::Attached(attached)) => {
                        self.health.set_up();
                        self.next = Some(attached);
                    }
                    Some(ReaderEvent::Batch(batch)) => {
                        self.health.set_up();
                        self.health.received();
                        self.ready = Some(batch);
                    }
                    Some(ReaderEvent::End) => self.ended = true,
                    Some(ReaderEvent::Failed(error)) => {
                        self.health.set_down(error.to_string());
                        return Err(error);
                    }
                    None => return Err(Error::new(
                        ErrorKind::Internal,
                        format!("read {}", self.config.path.display()),
                        "its reader has ended; open the source again",
                    )),
                },
            }
        }
    }

    fn health(&self) -> Option<Arc<SourceHealth>> {
        Some(Arc::clone(&self.health))
    }

    async fn is_idle(&mut self) -> Option<bool> {
        let nothing_read =
            self.ready.is_none() && self.events.is_empty() && self.at_end.load(Ordering::Acquire);
        Some((nothing_read || self.ended) && self.shared.lock().has_no_pending_redelivery())
    }

    async fn close(&mut self) -> Result<(), Error> {
        self.events.close();
        let saved = self.shared.save().await;
        self.shared.lock().close();
        saved
    }
}

impl Drop for FileConsumer {
    fn drop(&mut self) {
        // Another consumer may have taken over the file: a late ack must not overwrite its offset.
        self.shared.lock().close();
    }
}

impl std::fmt::Debug for FileConsumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileConsumer").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Completes at `due`, or never.
async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Runs blocking file work on a thread for it.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        Error::new(ErrorKind::Internal, "read a file", "the task that reads it was stopped")
            .with_source(error)
    })?
}

//! Passwords in files that may be replaced while clients run: [`PasswordFile`] and [`PasswordRefresh`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use onceward::Error;
use rdkafka::ClientContext;
use rdkafka::client::Client;

use crate::client::native;
use crate::error;

/// How often a client reads its file. librdkafka has no callback for passwords.
const REFRESH_INTERVAL: Duration = Duration::from_secs(2);

/// The path of a password, and the user it belongs to.
#[derive(Debug)]
pub(crate) struct PasswordFile {
    pub(crate) path: PathBuf,
    pub(crate) username: String,
}

impl PasswordFile {
    /// Reads the current password, without a trailing line end.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](onceward::ErrorKind::Config) if the file is not readable or no text.
    pub(crate) fn read(&self) -> Result<String, Error> {
        let text = std::fs::read_to_string(&self.path).map_err(|failed| {
            let what = format!(
                "reading {} failed ({}); make it a text file that this user may read",
                self.path.display(),
                failed.kind()
            );
            error::config_error("read the file with the Kafka password", what)
        })?;
        Ok(text.trim_end_matches(['\r', '\n']).to_owned())
    }
}

/// Keeps the password of one client equal to that in its file.
pub(crate) struct PasswordRefresh {
    file: Option<Arc<PasswordFile>>,
    current: Option<String>,
    next: Instant,
    is_readable: bool,
}

impl PasswordRefresh {
    /// Creates the refresh of a new client. Without a file it does nothing.
    pub(crate) fn new(file: Option<Arc<PasswordFile>>) -> Self {
        Self { file, current: None, next: Instant::now(), is_readable: true }
    }

    /// Returns true if the file is due to be read.
    pub(crate) fn is_due(&self) -> bool {
        self.file.is_some() && Instant::now() >= self.next
    }

    /// Reads the file if that is due, and gives a changed password to the client. New connections use it; open ones stay.
    /// Blocks on the file system.
    pub(crate) fn run_if_due<C: ClientContext>(&mut self, client: &Client<C>) {
        if !self.is_due() {
            return;
        }
        let Some(file) = &self.file else { return };
        self.next = Instant::now() + REFRESH_INTERVAL;
        match file.read() {
            Ok(password) if self.current.as_ref() != Some(&password) => {
                match native::set_credentials(client, &file.username, &password) {
                    Ok(()) => self.current = Some(password),
                    Err(error) => {
                        tracing::warn!(
                            error,
                            "setting the Kafka password failed; the previous one stays in use"
                        )
                    }
                }
                self.is_readable = true;
            }
            Ok(_) => self.is_readable = true,
            // The file may be in the middle of being replaced.
            Err(error) if self.is_readable => {
                self.is_readable = false;
                tracing::warn!(%error, "reading the Kafka password failed; the previous one stays in use");
            }
            Err(_) => {}
        }
    }
}

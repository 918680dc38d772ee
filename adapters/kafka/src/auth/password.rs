//! A password in a file that may be replaced while clients run: [`PasswordFile`], and what a client was given: [`Renewal`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use onceward::Error;
use rdkafka::ClientContext;
use rdkafka::client::Client;

use crate::client::native;
use crate::error;

/// How often a client looks at its file. librdkafka does not ask for a password when it connects.
const EVERY: Duration = Duration::from_secs(2);

/// Where a password is, and whose it is.
#[derive(Debug)]
pub(crate) struct PasswordFile {
    pub(crate) path: PathBuf,
    pub(crate) username: String,
}

impl PasswordFile {
    /// The password as it is now, without the line end.
    ///
    /// # Errors
    /// `Config` if the file cannot be read.
    pub(crate) fn read(&self) -> Result<String, Error> {
        let text = std::fs::read_to_string(&self.path).map_err(|failed| {
            let what = format!(
                "{} cannot be read ({}); make it a text file that this user may read",
                self.path.display(),
                failed.kind()
            );
            error::config("read the file with the Kafka password", what)
        })?;
        Ok(text.trim_end_matches(['\r', '\n']).to_owned())
    }
}

/// What one client was given of a file, and when it looks again.
pub(crate) struct Renewal {
    file: Option<Arc<PasswordFile>>,
    given: Option<String>,
    next: Instant,
    is_readable: bool,
}

impl Renewal {
    /// Of a client that has nothing yet. Without a file there is never anything to do.
    pub(crate) fn new(file: Option<Arc<PasswordFile>>) -> Self {
        Self { file, given: None, next: Instant::now(), is_readable: true }
    }

    /// True if it is time to look.
    pub(crate) fn is_due(&self) -> bool {
        self.file.is_some() && Instant::now() >= self.next
    }

    /// Gives the client the password of the file, if it is time and another one than before. It holds for connections that are
    /// made from then on; those that are open stay. Reads a file.
    pub(crate) fn look<C: ClientContext>(&mut self, client: &Client<C>) {
        if !self.is_due() {
            return;
        }
        let Some(file) = &self.file else { return };
        self.next = Instant::now() + EVERY;
        match file.read() {
            Ok(password) if self.given.as_ref() != Some(&password) => {
                match native::set_login(client, &file.username, &password) {
                    Ok(()) => self.given = Some(password),
                    Err(error) => {
                        tracing::warn!(error, "the Kafka password cannot be set; the last one is used")
                    }
                }
                self.is_readable = true;
            }
            Ok(_) => self.is_readable = true,
            // A file that is being replaced: the last password may still hold, and the broker tells if not.
            Err(error) if self.is_readable => {
                self.is_readable = false;
                tracing::warn!(%error, "the Kafka password cannot be read; the last one is used");
            }
            Err(_) => {}
        }
    }
}

//! The context that all clients of a consumer or publisher share: [`SharedContext`].

use std::sync::Arc;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;

use crate::auth::password::{PasswordFile, PasswordRefresh};
use crate::client::diagnosis::ConnectionDiagnosis;

/// Implements the callbacks of [`ClientContext`] that forward to the field `$inner`, except `log` and `error`.
macro_rules! forward_client_context {
    ($inner:ident) => {
        const ENABLE_REFRESH_OAUTH_TOKEN: bool = C::ENABLE_REFRESH_OAUTH_TOKEN;

        fn stats(&self, statistics: rdkafka::Statistics) {
            self.$inner.stats(statistics);
        }

        fn stats_raw(&self, statistics: &[u8]) {
            self.$inner.stats_raw(statistics);
        }

        fn generate_oauth_token(
            &self,
            config: Option<&str>,
        ) -> Result<rdkafka::client::OAuthToken, Box<dyn std::error::Error>> {
            self.$inner.generate_oauth_token(config)
        }
    };
}
pub(crate) use forward_client_context;

/// The user's context `C`: all clients log and obtain tokens through it. Connection failures are recorded beside it.
pub(crate) struct SharedContext<C> {
    user: Arc<C>,
    pub(crate) diagnosis: Arc<ConnectionDiagnosis>,
    password: Option<Arc<PasswordFile>>,
}

impl<C> SharedContext<C> {
    pub(crate) fn new(user: C) -> Self {
        Self { user: Arc::new(user), diagnosis: Arc::default(), password: None }
    }

    /// Sets the file that holds the password of the clients.
    pub(crate) fn with_password(mut self, file: Option<Arc<PasswordFile>>) -> Self {
        self.password = file;
        self
    }

    /// Returns the password refresh of one new client.
    pub(crate) fn password_refresh(&self) -> PasswordRefresh {
        PasswordRefresh::new(self.password.clone())
    }
}

impl<C> Clone for SharedContext<C> {
    fn clone(&self) -> Self {
        let (user, diagnosis) = (Arc::clone(&self.user), Arc::clone(&self.diagnosis));
        Self { user, diagnosis, password: self.password.clone() }
    }
}

impl<C: ClientContext> ClientContext for SharedContext<C> {
    forward_client_context!(user);

    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.user.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.diagnosis.record(&error, reason);
        self.user.error(error, reason);
    }
}

impl<C: ClientContext> ConsumerContext for SharedContext<C> {}

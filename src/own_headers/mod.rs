//! The `onceward-` headers that are believed, and how ours are distinguished from foreign ones: [`OwnHeaders`].
//!
//! Dead letters and retries carry headers that name a key, a generation, a position. Any sender of messages can write
//! headers of the same names. With a secret, the messages we publish also carry a message authentication code (MAC)
//! over those headers and the payload, and only headers with a valid one are believed.

mod seal;
mod secret;

use std::sync::Arc;

use bytes::Bytes;

pub use seal::{LETTER, Seal};
pub use secret::{LEAST_SECRET_BYTES, OwnSecrets};

use crate::error::{Error, ErrorKind};
use crate::message::Message;

/// Which `onceward-` headers of deliveries are believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeaderTrust {
    /// None: they are headers like any other.
    #[default]
    Ignore,
    /// Those with a valid MAC under one of our secrets.
    Authenticated,
    /// All. Only where no one but the operator can write to the source: anyone who can chooses the key and the
    /// generation of its messages.
    Trusted,
}

/// Which `onceward-` headers are believed, and the secrets that ours are sealed with. The default believes none and
/// seals nothing.
///
/// A consumer's adapter and its [`PipelineConfig`](crate::PipelineConfig) are to be given the same.
///
/// ```
/// use onceward::own_headers::{LETTER, OwnHeaders, OwnSecrets};
/// use onceward::Message;
/// # fn main() -> Result<(), onceward::Error> {
/// let own = OwnHeaders::authenticated(OwnSecrets::new(b"at least 16 bytes of chance")?);
/// let letter = Message::builder("pay 7").header("onceward-scope", "billing").build();
/// assert!(!own.believes(&LETTER, &letter), "anybody can write this");
/// let (name, value) = own.seal(&LETTER, &letter).expect("there is a secret");
/// let sealed = Message::builder("pay 7").header("onceward-scope", "billing").header(name, value).build();
/// assert!(own.believes(&LETTER, &sealed));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnHeaders {
    trust: HeaderTrust,
    secrets: Option<Arc<OwnSecrets>>,
}

impl OwnHeaders {
    /// Believes as configured by `trust`; with `secrets`, ours are sealed in either case.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for [`HeaderTrust::Authenticated`] without secrets.
    pub fn new(trust: HeaderTrust, secrets: Option<OwnSecrets>) -> Result<Self, Error> {
        if trust == HeaderTrust::Authenticated && secrets.is_none() {
            let what = "only authenticated headers are to be believed, and there is no secret to authenticate them \
                        with; give one, or ignore the headers";
            return Err(Error::new(ErrorKind::Config, "tell our own headers from others'", what));
        }
        Ok(Self { trust, secrets: secrets.map(Arc::new) })
    }

    /// Believes what is sealed with one of `secrets`.
    pub fn authenticated(secrets: OwnSecrets) -> Self {
        Self { trust: HeaderTrust::Authenticated, secrets: Some(Arc::new(secrets)) }
    }

    /// Believes all, and seals nothing.
    pub fn trusted() -> Self {
        Self { trust: HeaderTrust::Trusted, secrets: None }
    }

    /// The trust in headers.
    pub fn trust(&self) -> HeaderTrust {
        self.trust
    }

    /// True if what is published is sealed.
    pub fn seals(&self) -> bool {
        self.secrets.is_some()
    }

    /// True if the headers of `message` that `seal` covers are to be believed.
    pub fn believes(&self, seal: &Seal, message: &Message) -> bool {
        let headers = || message.headers().map(|(name, value)| (name, &value[..]));
        self.believes_parts(seal, headers, payload(message))
    }

    /// As [`believes`](Self::believes), for adapters whose message is not made yet. `payload` is `None` for a null payload.
    pub fn believes_parts<'h, I>(&self, seal: &Seal, headers: impl Fn() -> I, payload: Option<&[u8]>) -> bool
    where
        I: Iterator<Item = (&'h str, &'h [u8])>,
    {
        match (self.trust, &self.secrets) {
            (HeaderTrust::Trusted, _) => true,
            (HeaderTrust::Authenticated, Some(secrets)) => seal.is_valid(secrets, headers, payload),
            (HeaderTrust::Authenticated, None) | (HeaderTrust::Ignore, _) => false,
        }
    }

    /// The header, name and value, that makes the headers of `message` that `seal` covers believable; `None` without a
    /// secret. Only for headers that come from this process or were believed.
    pub fn seal(&self, seal: &Seal, message: &Message) -> Option<(&'static str, Bytes)> {
        let headers = || message.headers().map(|(name, value)| (name, &value[..]));
        self.seal_parts(seal, headers, payload(message))
    }

    /// As [`seal`](Self::seal), for what is no [`Message`].
    pub fn seal_parts<'h, I>(
        &self,
        seal: &Seal,
        headers: impl Fn() -> I,
        payload: Option<&[u8]>,
    ) -> Option<(&'static str, Bytes)>
    where
        I: Iterator<Item = (&'h str, &'h [u8])>,
    {
        let secrets = self.secrets.as_deref()?;
        Some((seal.header, seal.value(secrets, headers, payload).into()))
    }
}

/// True if `name` begins with `prefix` as handlers see names: regardless of letter case, and with all characters but
/// letters and digits equal. The broker's metadata of a message has names with a prefix of its own, and no producer's
/// header may pass for it.
///
/// ```
/// use onceward::own_headers::passes_for;
/// assert!(passes_for("AMQP_User.Id", "amqp-") && !passes_for("amqpuser", "amqp-"));
/// ```
pub fn passes_for(name: &str, prefix: &str) -> bool {
    let plain = |own: char| if own.is_ascii_alphanumeric() { own.to_ascii_lowercase() } else { '-' };
    let mut name = name.chars().map(plain);
    prefix.chars().map(plain).all(|wanted| name.next() == Some(wanted))
}

fn payload(message: &Message) -> Option<&[u8]> {
    (!message.has_null_payload()).then_some(&message.payload()[..])
}

#[cfg(test)]
mod tests;

//! Further ways into a broker: behind a proxy, over TLS, with a password. [`Listener`].

use std::net::{Ipv4Addr, SocketAddr};

use crate::ports::free_port;

/// How clients come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// As they are, unencrypted.
    Plain,
    /// Over TLS.
    Tls,
    /// With a password (PLAIN or SCRAM-SHA-512), or any unsigned token (OAUTHBEARER), unencrypted.
    Password,
    /// The same over TLS.
    PasswordOverTls,
}

/// How a broker identifies itself, and which clients it authenticates if a [`Listener`] requires it.
#[derive(Clone, Copy, Debug)]
pub struct Secrets<'a> {
    /// The broker's key, followed by its certificate, PEM.
    pub identity: &'a str,
    /// The only user.
    pub user: &'a str,
    /// Their password.
    pub password: &'a str,
}

/// A listener besides the one that every broker has, on a free port of the loopback.
#[derive(Clone, Copy, Debug)]
pub struct Listener {
    security: Security,
    port: u16,
    advertised: u16,
}

impl Listener {
    /// On a free port.
    ///
    /// # Panics
    /// No port is free.
    #[must_use]
    pub fn new(security: Security) -> Self {
        let port = free_port().expect("a free port");
        Self { security, port, advertised: port }
    }

    /// Makes the broker advertise another port of the loopback to clients: that of a proxy in front of it.
    #[must_use]
    pub fn advertised(self, port: u16) -> Self {
        Self { advertised: port, ..self }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// What clients call `bootstrap.servers`. It is a name, since certificates are made for names.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        format!("localhost:{}", self.advertised)
    }
}

/// The part of the broker's configuration that is about listeners: the one named PLAINTEXT at `plain`, the controller's, and
/// `further`. The identity is in `identity.pem`, in the broker's folder.
pub(super) fn lines(
    plain: u16,
    controller: u16,
    further: &[Listener],
    secrets: Option<Secrets<'_>>,
) -> String {
    let mut listeners = format!("PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{controller}");
    let mut advertised = format!("PLAINTEXT://127.0.0.1:{plain}");
    let mut protocols = "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT".to_owned();
    let mut more = String::new();
    for (number, listener) in further.iter().enumerate() {
        let name = format!("FURTHER{number}");
        listeners += &format!(",{name}://127.0.0.1:{}", listener.port);
        advertised += &format!(",{name}://localhost:{}", listener.advertised);
        let protocol = match listener.security {
            Security::Plain => "PLAINTEXT",
            Security::Tls => "SSL",
            Security::Password => "SASL_PLAINTEXT",
            Security::PasswordOverTls => "SASL_SSL",
        };
        protocols += &format!(",{name}:{protocol}");
        if let (Security::Password | Security::PasswordOverTls, Some(secrets)) = (listener.security, secrets)
        {
            let prefix = format!("listener.name.{}", name.to_lowercase());
            let module = "org.apache.kafka.common.security";
            more += &format!(
                "{prefix}.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512,OAUTHBEARER\n\
                 {prefix}.plain.sasl.jaas.config={module}.plain.PlainLoginModule required user_{}=\"{}\";\n\
                 {prefix}.scram-sha-512.sasl.jaas.config={module}.scram.ScramLoginModule required;\n\
                 {prefix}.oauthbearer.sasl.jaas.config={module}.oauthbearer.OAuthBearerLoginModule required;\n",
                secrets.user, secrets.password
            );
        }
    }
    if secrets.is_some() {
        more += "ssl.keystore.type=PEM\nssl.keystore.location=identity.pem\n";
    }
    format!(
        "listeners={listeners}\nadvertised.listeners={advertised}\nlistener.security.protocol.map={protocols}\n\
         inter.broker.listener.name=PLAINTEXT\ncontroller.listener.names=CONTROLLER\n{more}"
    )
}

/// What the storage has to be formatted with, so that the user can come in by SCRAM.
pub(super) fn user(secrets: Option<Secrets<'_>>) -> Vec<String> {
    let user = secrets.map(|own| format!("SCRAM-SHA-512=[name={},password={}]", own.user, own.password));
    user.into_iter().flat_map(|user| ["--add-scram".to_owned(), user]).collect()
}

//! Certificates for servers with TLS, made for one test: [`Authority`].

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// Signs certificates. Only programs that are configured to trust it do.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// A new one of this name.
    ///
    /// # Panics
    /// The name is not valid in a certificate.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let mut params = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    /// Its certificate, PEM: what clients have to trust.
    #[must_use]
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A key, followed by its certificate for `host`, PEM.
    ///
    /// # Panics
    /// The host's name is not valid in a certificate.
    #[must_use]
    pub fn identity(&self, host: &str) -> String {
        let key = KeyPair::generate().expect("a key");
        let certificate = named(host).signed_by(&key, &self.0).expect("a certificate");
        format!("{}{}", key.serialize_pem(), certificate.pem())
    }
}

/// OpenSSL takes a certificate for its own issuer's where both have the same subject.
fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

//! Owner tokens and their source of randomness.

use std::fmt;

/// Names one claim: 128 fresh random bits for every claim, never per worker. It is a capability (its holder can
/// complete the claim), so `Debug` shows only its beginning.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct OwnerToken([u8; 16]);

impl OwnerToken {
    /// A token from its 16 bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// All 32 hexadecimal digits, for handing the token to a handler.
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Debug for OwnerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnerToken({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

/// A source of owner tokens: the operating system, or a seed for replayable simulations.
pub struct Entropy {
    pool: Box<[u8; POOL]>,
    used: usize,
    seeded: Option<fastrand::Rng>,
}

/// One system call serves 256 tokens.
const POOL: usize = 4096;

impl Entropy {
    /// Tokens from the operating system's generator.
    pub fn system() -> Self {
        Self { pool: Box::new([0; POOL]), used: POOL, seeded: None }
    }

    /// The same tokens for the same seed. For simulations only: two processes with one seed would share tokens.
    pub fn seeded(seed: u64) -> Self {
        Self { pool: Box::new([0; POOL]), used: POOL, seeded: Some(fastrand::Rng::with_seed(seed)) }
    }

    /// A fresh token.
    ///
    /// # Panics
    /// If the operating system has no randomness, without which claims cannot be distinguished.
    pub fn token(&mut self) -> OwnerToken {
        if self.used == POOL {
            match &mut self.seeded {
                Some(rng) => rng.fill(&mut self.pool[..]),
                None => getrandom::fill(&mut self.pool[..]).expect("the operating system gives random bytes"),
            }
            self.used = 0;
        }
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.pool[self.used..self.used + 16]);
        self.used += 16;
        OwnerToken(bytes)
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entropy").field("seeded", &self.seeded.is_some()).finish_non_exhaustive()
    }
}

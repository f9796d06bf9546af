//! Passwords: hashed slowly, compared slowly, a few at a time.
//!
//! **What.** Argon2id in the form of PHC strings, which name their own parameters: these can be raised later, and old hashes still compare.
//!
//! **Why bounded.** One hash costs 19 MiB and tens of milliseconds of a core; without a bound whoever sends passwords
//! takes the machine.
//!
//! **Invariants.** A user that does not exist costs the same work as one that does. No password is logged, kept or returned.

use std::sync::Arc;
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

/// Hashes at once: leaves cores to everybody else. Memory: 19 MiB each.
const HASHES_MAX: usize = 2;
/// Longest wait for a place: after that the caller is told to come again.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Random bytes in a hash, as RFC 9106 recommends.
const SALT_BYTES: usize = 16;
/// What the password of nobody is compared with: made with today's parameters, of a password that was thrown away.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5IGF0IGFsbCAxNg$F5tJJtYOCmbbSWtoJrcUIFnbVbFpAWpuEXOvgUcKPkw";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// All places are taken.
    #[error("too many passwords are being checked")]
    Busy,
    /// The hash cannot be made or read.
    #[error("cannot hash a password: {0}")]
    Hash(String),
}

/// Makes and compares hashes. Cheap to clone; all clones share the places.
#[derive(Clone, Debug)]
pub struct Passwords {
    places: Arc<Semaphore>,
}

impl Default for Passwords {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(HASHES_MAX)) }
    }
}

impl Passwords {
    /// What the store keeps of a password.
    ///
    /// # Errors
    /// [`PasswordError`].
    pub async fn hash(&self, password: String) -> Result<String, PasswordError> {
        let password = Zeroizing::new(password);
        let salt: [u8; SALT_BYTES] = rand::random();
        self.work(move || {
            let hash = Argon2::default().hash_password_with_salt(password.as_bytes(), &salt);
            hash.map(|hash| hash.to_string()).map_err(|error| PasswordError::Hash(error.to_string()))
        })
        .await
    }

    /// Whether `password` is the one of `hash`; without a hash the answer is no, as late as ever.
    ///
    /// # Errors
    /// [`PasswordError`].
    pub async fn is_right(&self, password: String, hash: Option<String>) -> Result<bool, PasswordError> {
        let password = Zeroizing::new(password);
        self.work(move || {
            let known = hash.is_some();
            let hash = hash.as_deref().unwrap_or(NOBODY);
            match Argon2::default().verify_password(password.as_bytes(), hash) {
                Ok(()) => Ok(known),
                Err(argon2::password_hash::Error::PasswordInvalid) => Ok(false),
                Err(error) => Err(PasswordError::Hash(error.to_string())),
            }
        })
        .await
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, PasswordError> + Send + 'static,
    ) -> Result<T, PasswordError> {
        let place = tokio::time::timeout(WAIT_MAX, Arc::clone(&self.places).acquire_owned()).await;
        let place = place.map_err(|_| PasswordError::Busy)?.map_err(|_| PasswordError::Busy)?;
        // The place stays taken until the work ends, also when nobody waits for it any more.
        let done = tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        });
        done.await.map_err(|error| PasswordError::Hash(error.to_string()))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hash_fits_its_password_alone_and_shows_nothing_of_it() {
        let passwords = Passwords::default();
        let hash = passwords.hash("correct horse".to_owned()).await.unwrap();
        assert!(!hash.contains("horse"));
        assert_ne!(hash, passwords.hash("correct horse".to_owned()).await.unwrap(), "salted");
        assert!(passwords.is_right("correct horse".to_owned(), Some(hash.clone())).await.unwrap());
        assert!(!passwords.is_right("correct Horse".to_owned(), Some(hash)).await.unwrap());
        assert!(!passwords.is_right("nobody".to_owned(), None).await.unwrap());
    }

    /// Equal parameters are equal work.
    #[tokio::test]
    async fn nobody_costs_as_much_as_somebody() {
        let parameters = |hash: &str| hash.split('$').take(4).map(str::to_owned).collect::<Vec<_>>();
        let hash = Passwords::default().hash("correct horse".to_owned()).await.unwrap();
        assert_eq!(parameters(NOBODY), parameters(&hash));
        assert_eq!(NOBODY.len(), hash.len());
    }

    #[tokio::test]
    async fn no_more_than_two_are_hashed_at_once() {
        let passwords = Passwords::default();
        let running = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let one = |_| {
            let running = Arc::clone(&running);
            passwords.work(move || {
                let now = running.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
                std::thread::yield_now();
                running.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                Ok(now)
            })
        };
        let most = futures::future::try_join_all((0..64).map(one)).await.unwrap().into_iter().max();
        assert!(most <= Some(HASHES_MAX), "{most:?}");
    }
}

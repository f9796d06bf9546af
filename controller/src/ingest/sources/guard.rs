//! Turns a host into addresses that may be connected to.
//!
//! **What.** [`Guard::addresses`] resolves a name once, asks [`Rules`] for every address, and gives them to be connected to
//! as they are.
//!
//! **Why every address.** A name with one public and one private address is either a mistake or an attack; which of them a
//! connection would take is chance.
//!
//! **Why one answer for a name.** That it is unknown, and that it has an address that is not open, are told in the same words and
//! tried again alike: apart, they would say which names the controller's network has. The log tells.
//!
//! **Why the resolver is a trait.** A name whose answers change is what this is there against, and a test needs one.
//!
//! **Invariants.** The addresses that were checked are the ones that are connected to; nothing resolves the name again.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use super::FetchError;
use crate::logic::source::{Host, Rules, Source, SourceError};

/// Longest wait for an answer of the resolver.
const RESOLVE_MAX: Duration = Duration::from_secs(10);
/// Addresses of a name that are looked at: more is no mirror.
const ADDRESSES_MAX: usize = 32;

/// Says which addresses a name has.
pub trait Resolve: Send + Sync + std::fmt::Debug {
    /// All of them.
    fn resolve(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// The resolver of the operating system.
#[derive(Clone, Copy, Debug)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Guard {
    rules: Rules,
    resolver: Arc<dyn Resolve>,
}

impl Guard {
    /// A guard that holds to `rules`.
    #[must_use]
    pub fn new(rules: Rules, resolver: Arc<dyn Resolve>) -> Self {
        Self { rules, resolver }
    }

    /// Checks what shows without resolving: the port, and an address that stands in the URL.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn check_literal(&self, source: &Source) -> Result<(), SourceError> {
        self.rules.check_port(source.port)?;
        match &source.host {
            Host::Ip(ip) => self.rules.check_address(&source.host, *ip),
            Host::Name(_) => Ok(()),
        }
    }

    /// The addresses of a source's host, all of them open.
    ///
    /// # Errors
    /// [`FetchError::Refused`] if an address in the URL is not; [`FetchError::Later`] if a name has none, or one that is not.
    pub async fn addresses(&self, source: &Source) -> Result<Vec<SocketAddr>, FetchError> {
        self.check_literal(source)?;
        let ips = match &source.host {
            Host::Ip(ip) => vec![*ip],
            Host::Name(name) => self.open(&source.host, name).await.map_err(|why| {
                tracing::info!(host = name, why, "a name of a source has no address that imports may reach");
                FetchError::Later(format!(
                    "{name} has no address that imports may reach; an administrator can open more with import_allow"
                ))
            })?,
        };
        Ok(ips.into_iter().map(|ip| SocketAddr::new(ip, source.port)).collect())
    }

    /// The addresses of a name, or why it has none that are open: for the log alone.
    async fn open(&self, host: &Host, name: &str) -> Result<Vec<IpAddr>, String> {
        let ips = self.resolve(name).await?;
        for ip in &ips {
            self.rules.check_address(host, *ip).map_err(|error| error.to_string())?;
        }
        Ok(ips)
    }

    /// The addresses of a name that an administrator configured: they are not checked.
    ///
    /// # Errors
    /// [`FetchError::Later`] if it has none now.
    pub async fn trusted(&self, name: &str, port: u16) -> Result<Vec<SocketAddr>, FetchError> {
        let literal = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let ips = match literal {
            Ok(ip) => vec![ip],
            Err(_) => self.resolve(name).await.map_err(FetchError::Later)?,
        };
        Ok(ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
    }

    async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        let asked = tokio::time::timeout(RESOLVE_MAX, self.resolver.resolve(name.to_owned())).await;
        match asked {
            Ok(Ok(ips)) if ips.len() > ADDRESSES_MAX => {
                Err(format!("{name} has more than {ADDRESSES_MAX} addresses"))
            }
            Ok(Ok(ips)) if !ips.is_empty() => Ok(ips),
            Ok(_) => Err(format!("{name} has no address")),
            Err(_) => Err(format!("no name server answers for {name}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use super::*;

    /// Answers one after the other, as a name server of an attacker does.
    #[derive(Debug)]
    struct Fickle(Mutex<VecDeque<Vec<IpAddr>>>);

    impl Resolve for Fickle {
        fn resolve(&self, _: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
            let next = self.0.lock().unwrap().pop_front();
            Box::pin(async move { next.ok_or_else(|| io::Error::other("asked too often")) })
        }
    }

    #[tokio::test]
    async fn one_closed_address_among_many_closes_the_name() {
        let answers = [vec!["1.1.1.1", "169.254.169.254"], vec!["1.1.1.1"], vec![]];
        let answers = answers.map(|ips| ips.into_iter().map(|ip| ip.parse().unwrap()).collect());
        let resolver = Arc::new(Fickle(Mutex::new(answers.into())));
        let guard = Guard::new(Rules::new(&[], &[80]).unwrap(), resolver);
        let source = Source::parse("http://fickle.example/x").unwrap();
        assert!(matches!(guard.addresses(&source).await, Err(FetchError::Later(_))));
        let open = guard.addresses(&source).await.unwrap();
        assert_eq!(open, ["1.1.1.1:80".parse().unwrap()], "as they were checked");
        assert!(matches!(guard.addresses(&source).await, Err(FetchError::Later(_))), "no address");
        assert!(matches!(guard.addresses(&source).await, Err(FetchError::Later(_))), "no answer");
        let port = Source::parse("http://fickle.example:22/x").unwrap();
        assert!(matches!(guard.addresses(&port).await, Err(FetchError::Refused(_))), "asks nobody");
    }

    /// IN-2: whoever may import learns of no name whether it is known to the controller's name server.
    #[tokio::test]
    async fn an_unknown_name_and_a_closed_one_answer_alike() {
        let closed =
            ["10.0.0.1", "127.0.0.1", "169.254.169.254", "fd00::1"].map(|ip| vec![ip.parse().unwrap()]);
        let many = vec!["1.1.1.1".parse().unwrap(); ADDRESSES_MAX + 1];
        let answers: VecDeque<_> = closed.into_iter().chain([many, vec![]]).collect();
        let asked = answers.len() + 1;
        let guard = Guard::new(Rules::new(&[], &[80]).unwrap(), Arc::new(Fickle(Mutex::new(answers))));
        let source = Source::parse("http://db.internal/x").unwrap();
        let mut said = Vec::new();
        for _ in 0..asked {
            match guard.addresses(&source).await {
                Err(FetchError::Later(text)) => said.push(text),
                other => panic!("{other:?}"),
            }
        }
        said.dedup();
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with("db.internal has no address that imports may reach"), "{said:?}");
    }
}

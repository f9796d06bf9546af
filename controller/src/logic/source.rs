//! Which URLs an image may be fetched from, and which addresses they may lead to.
//!
//! **What.** [`Source::parse`] reads a URL strictly, [`Source::redirected`] follows a redirect, [`Rules`] say which ports and
//! addresses are open. What to do about an answer says [`super::fetch`].
//!
//! **Why stricter than the standard.** Browsers read `2130706433`, `0x7f.1` and `127。0。0。1` as 127.0.0.1. Nobody who means
//! well writes them; refused as texts, they need not be understood alike by us, a resolver and a library.
//!
//! **Why addresses and not names.** A name is what its owner says at that moment. The shell resolves once, asks here for
//! **every** address, and connects to one of them; so an answer that changes in between changes nothing.
//!
//! **Invariants**, each with a test of the same name:
//! 1. `an_address_in_disguise_is_refused`
//! 2. `only_public_addresses_are_open_unless_allowed`
//! 3. `a_redirect_is_checked_like_the_first_url`
//! 4. `no_secret_is_shown`
//!
//! Addresses are values here (`core::net`); nothing is connected.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::collections::BTreeSet;

use hearth_protocol::api::source::URL_BYTES_MAX;
use url::Url;

/// Redirects that are followed: mirrors need two or three.
pub const REDIRECTS_MAX: usize = 5;
/// Longest user or password, bytes.
const SECRET_BYTES_MAX: usize = 255;

/// Why a URL is not fetched.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SourceError {
    /// The text is no URL that we take.
    #[error("{0}")]
    Url(&'static str),
    /// The port is not open for imports.
    #[error("port {port} is not open for imports; an administrator can add it to import_ports")]
    Port {
        /// Which.
        port: u16,
    },
    /// The address is not open for imports. The caller is told of an address that stands in a URL alone: which one a name has,
    /// and whether it has any, would map the network for a stranger.
    #[error(
        "{host} leads to an address that imports may not reach ({why}); an administrator can open it with import_allow"
    )]
    Address {
        /// As it stands in the URL.
        host: String,
        /// What kind of address.
        why: &'static str,
    },
    /// Too many redirects.
    #[error("the source redirects more than {REDIRECTS_MAX} times")]
    Redirects,
    /// The same URL again.
    #[error("the source redirects in a circle")]
    Circle,
    /// From an encrypted connection to a plain one.
    #[error("the source redirects from https to http, which anybody on the way could change")]
    Downgrade,
}

/// How the bytes come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scheme {
    /// HTTP.
    Http,
    /// HTTP over TLS.
    Https,
    /// FTP.
    Ftp,
    /// FTP over TLS: at once on port 990, by `AUTH TLS` elsewhere.
    Ftps,
    /// An object of a configured store.
    S3,
}

impl Scheme {
    const fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https | Self::S3 => 443,
            Self::Ftp | Self::Ftps => 21,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Ftp => "ftp",
            Self::Ftps => "ftps",
            Self::S3 => "s3",
        }
    }
}

/// The host of a URL; for S3 the bucket.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Host {
    /// A DNS name in lower case.
    Name(String),
    /// An address in its usual spelling.
    Ip(IpAddr),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ip(IpAddr::V4(ip)) => ip.fmt(f),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
        }
    }
}

/// A URL that may be asked for, if ports and addresses are open.
#[derive(Clone, Eq, PartialEq)]
pub struct Source {
    /// How the bytes come.
    pub scheme: Scheme,
    /// From where.
    pub host: Host,
    /// At which port.
    pub port: u16,
    /// Who asks, and the password.
    pub login: Option<(String, String)>,
    /// HTTP: as it is sent, with its leading slash. FTP: the decoded path. S3: the object.
    pub path: String,
    /// HTTP: what follows the question mark; it may be a signature.
    pub query: Option<String>,
}

impl fmt::Debug for Source {
    /// Never with secrets: this may end in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({})", self.shown())
    }
}

const fn bad<T>(why: &'static str) -> Result<T, SourceError> {
    Err(SourceError::Url(why))
}

impl Source {
    /// Reads a URL.
    ///
    /// # Errors
    /// [`SourceError::Url`] with what is wrong; the text is not repeated, because it may hold a password.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        if text.len() > URL_BYTES_MAX {
            return bad("the URL is longer than 2048 bytes");
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace() || matches!(c, '\\' | '#')) {
            return bad("the URL holds a blank, a control character, a backslash or #");
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return bad("not a URL: it begins with http://, https://, ftp://, ftps:// or s3://");
        };
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "ftp" => Scheme::Ftp,
            "ftps" => Scheme::Ftps,
            "s3" => Scheme::S3,
            _ => return bad("not a scheme that images come by: http, https, ftp, ftps and s3 are"),
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if scheme == Scheme::S3 {
            return object(authority, path);
        }
        let (login, place) = match authority.rsplit_once('@') {
            Some((login, place)) => (Some(read_login(login)?), place),
            None => (None, authority),
        };
        let (host, port) = read_place(place)?;
        let port = port.unwrap_or_else(|| scheme.port());
        let (path, query) = match scheme {
            Scheme::Http | Scheme::Https => web_path(scheme, &host, path)?,
            _ => (file_path(path)?, None),
        };
        Ok(Self { scheme, host, port, login, path, query })
    }

    /// Where a redirect leads, the `n`th of this fetch (from 1). A login goes along to the same host and port alone.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn redirected(&self, location: &str, n: usize) -> Result<Self, SourceError> {
        if n > REDIRECTS_MAX {
            return Err(SourceError::Redirects);
        }
        // A scheme stands before the path: `://` behind one of these is part of a path or a query.
        let scheme = location.split_once("://").map(|(scheme, _)| scheme);
        let relative = scheme.is_none_or(|scheme| scheme.contains(['/', '?', '#']));
        let target = if location.starts_with("//") {
            format!("{}:{location}", self.scheme.as_str())
        } else if relative {
            // The library would read a backslash as a slash, and so a path as a host.
            if location.contains('\\') {
                return bad("the source redirects to something that is no URL");
            }
            let base = self.web_url().ok_or(SourceError::Url("only http and https redirect"))?;
            let joined = base.join(location);
            joined.map_err(|_| SourceError::Url("the source redirects to something that is no URL"))?.into()
        } else {
            location.to_owned()
        };
        let target = target.split_once('#').map_or(target.as_str(), |(target, _)| target);
        let mut next = Self::parse(target)?;
        if next.login.is_some() {
            return bad("the source redirects to a URL with a user, which no honest one does");
        }
        match (self.scheme, next.scheme) {
            (Scheme::Https, Scheme::Http) => return Err(SourceError::Downgrade),
            (Scheme::Http | Scheme::Https, Scheme::Http | Scheme::Https) => {}
            _ => return bad("the source redirects to something that is neither http nor https"),
        }
        if (&next.host, next.port, next.scheme) == (&self.host, self.port, self.scheme) {
            next.login.clone_from(&self.login);
        }
        Ok(next)
    }

    /// The URL that is asked for, without the login; `None` for other schemes than http and https.
    #[must_use]
    pub fn web_url(&self) -> Option<Url> {
        if !matches!(self.scheme, Scheme::Http | Scheme::Https) {
            return None;
        }
        let query = self.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
        let Self { scheme, host, port, path, .. } = self;
        Url::parse(&format!("{}://{host}:{port}{path}{query}", scheme.as_str())).ok()
    }

    /// The URL as it may be seen by everybody: `***` stands for what is hidden.
    #[must_use]
    pub fn shown(&self) -> String {
        let login = if self.login.is_some() { "***@" } else { "" };
        let port = if self.port == self.scheme.port() { String::new() } else { format!(":{}", self.port) };
        let slash = if self.path.starts_with('/') { "" } else { "/" };
        let query = if self.query.is_some() { "?***" } else { "" };
        let Self { scheme, host, path, .. } = self;
        format!("{}://{login}{host}{port}{slash}{path}{query}", scheme.as_str())
    }

    /// Whether [`Source::shown`] leaves something out.
    #[must_use]
    pub const fn hides(&self) -> bool {
        self.login.is_some() || self.query.is_some()
    }
}

fn object(bucket: &str, path: &str) -> Result<Source, SourceError> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(fits) {
        return bad("an object is s3://BUCKET/OBJECT; a bucket's name is 3 to 63 of a-z 0-9 . -");
    }
    let key = path.strip_prefix('/').unwrap_or_default();
    if key.is_empty() || key.ends_with('/') || key.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return bad("an object is s3://BUCKET/OBJECT; this names no object");
    }
    let (host, path) = (Host::Name(bucket.to_owned()), key.to_owned());
    Ok(Source { scheme: Scheme::S3, host, port: Scheme::S3.port(), login: None, path, query: None })
}

fn read_login(text: &str) -> Result<(String, String), SourceError> {
    if text.contains('@') {
        return bad("there is more than one @ before the path: write one in a password as %40");
    }
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    let (user, password) = (decoded(user)?, decoded(password)?);
    if user.is_empty() || user.len() > SECRET_BYTES_MAX || password.len() > SECRET_BYTES_MAX {
        return bad("user and password have at most 255 bytes, and a user at least one");
    }
    Ok((user, password))
}

/// Percent-decodes; what comes out is a line of text.
fn decoded(text: &str) -> Result<String, SourceError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit =
            || rest.next().and_then(|b| char::from(b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
        match (digit(), digit()) {
            (Some(high), Some(low)) => bytes.push(high << 4 | low),
            _ => return bad("a % in the URL is not followed by two hex digits"),
        }
    }
    match String::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => Ok(text),
        _ => bad("user, password or path hold control characters or are no UTF-8"),
    }
}

fn read_place(place: &str) -> Result<(Host, Option<u16>), SourceError> {
    let (host, port) = if let Some(rest) = place.strip_prefix('[') {
        let Some((ip, port)) = rest.split_once(']') else {
            return bad("the [ of an IPv6 address is not closed");
        };
        let Ok(ip) = ip.parse::<Ipv6Addr>() else {
            return bad("what stands in [ ] is no IPv6 address (no zone either)");
        };
        (Host::Ip(ip.into()), port)
    } else {
        let at = place.find(':').unwrap_or(place.len());
        let (host, port) = place.split_at(at);
        (read_host(host)?, port)
    };
    if port.is_empty() {
        return Ok((host, None));
    }
    let digits = port.strip_prefix(':').unwrap_or_default();
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    match digits.parse() {
        Ok(port) if plain && port > 0 => Ok((host, Some(port))),
        _ => bad("what follows the host is no port"),
    }
}

fn read_host(text: &str) -> Result<Host, SourceError> {
    // The standard library takes four plain decimal numbers and nothing else.
    if let Ok(ip) = text.parse::<Ipv4Addr>() {
        return Ok(Host::Ip(ip.into()));
    }
    let fits = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if text.len() > 253 || !text.split('.').all(fits) {
        return bad("the host is no DNS name of letters, digits, - and . (write other alphabets as xn--…)");
    }
    let last = text.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    let hex = last.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit()));
    if hex || last.bytes().all(|b| b.is_ascii_digit()) {
        return bad("the host is an address in disguise: write IPv4 addresses as four decimal numbers");
    }
    Ok(Host::Name(text.to_ascii_lowercase()))
}

/// Path and query as they are sent.
fn web_path(scheme: Scheme, host: &Host, path: &str) -> Result<(String, Option<String>), SourceError> {
    let Ok(url) = Url::parse(&format!("{}://{host}{path}", scheme.as_str())) else {
        return bad("the URL cannot be read");
    };
    // Two readers of one text must agree on the host.
    let agreed = match (url.host(), host) {
        (Some(url::Host::Domain(read)), Host::Name(name)) => read == name,
        (Some(url::Host::Ipv4(read)), Host::Ip(ip)) => IpAddr::V4(read) == *ip,
        (Some(url::Host::Ipv6(read)), Host::Ip(ip)) => IpAddr::V6(read) == *ip,
        _ => false,
    };
    if !agreed {
        return bad("the host of the URL can be read in two ways");
    }
    Ok((url.path().to_owned(), url.query().map(str::to_owned)))
}

/// A path for FTP: it becomes one line of a command.
fn file_path(path: &str) -> Result<String, SourceError> {
    if path.contains('?') {
        return bad("a URL of FTP has no ?: write one in a name as %3F");
    }
    let path = decoded(path.strip_prefix('/').unwrap_or_default())?;
    if path.is_empty() || path.ends_with('/') {
        return bad("the URL names no file");
    }
    Ok(path)
}

/// Addresses of one kind.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    /// Anybody's.
    Public,
    /// Of a network that is not the internet.
    Private(&'static str),
    /// Of this machine, of one wire, or of nobody.
    Special(&'static str),
}

/// An address block, `address/bits`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Block {
    address: IpAddr,
    bits: u32,
}

impl Block {
    const fn v4(a: u8, b: u8, c: u8, bits: u32) -> Self {
        Self { address: IpAddr::V4(Ipv4Addr::new(a, b, c, 0)), bits }
    }

    const fn v6(a: u16, b: u16, bits: u32) -> Self {
        Self { address: IpAddr::V6(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0)), bits }
    }

    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address.parse::<IpAddr>().ok()?, Some(bits.parse().ok()?)),
            None => (text.parse().ok()?, None),
        };
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(most);
        (bits <= most).then_some(Self { address, bits })
    }

    fn holds(&self, ip: IpAddr) -> bool {
        match (self.address, ip) {
            (IpAddr::V4(block), IpAddr::V4(ip)) => {
                (u32::from(block) ^ u32::from(ip)).checked_shr(32 - self.bits).unwrap_or(0) == 0
            }
            (IpAddr::V6(block), IpAddr::V6(ip)) => {
                (u128::from(block) ^ u128::from(ip)).checked_shr(128 - self.bits).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// From the registries of IANA for special addresses (RFC 6890 and its successors). The first match counts.
const KINDS: [(Block, Kind); 24] = [
    (Block::v4(0, 0, 0, 8), Kind::Special("this network")),
    (Block::v4(10, 0, 0, 8), Kind::Private("private")),
    (Block::v4(100, 64, 0, 10), Kind::Private("carrier-grade NAT")),
    (Block::v4(127, 0, 0, 8), Kind::Special("loopback")),
    (Block::v4(169, 254, 0, 16), Kind::Special("link-local, where clouds keep their metadata")),
    (Block::v4(172, 16, 0, 12), Kind::Private("private")),
    (Block::v4(192, 0, 0, 24), Kind::Special("reserved")),
    (Block::v4(192, 0, 2, 24), Kind::Special("documentation")),
    (Block::v4(192, 88, 99, 24), Kind::Special("6to4 relay")),
    (Block::v4(192, 168, 0, 16), Kind::Private("private")),
    (Block::v4(198, 18, 0, 15), Kind::Special("benchmarks")),
    (Block::v4(198, 51, 100, 24), Kind::Special("documentation")),
    (Block::v4(203, 0, 113, 24), Kind::Special("documentation")),
    (Block::v4(224, 0, 0, 4), Kind::Special("multicast")),
    (Block::v4(240, 0, 0, 4), Kind::Special("reserved")),
    (Block::v6(0x2001, 0xdb8, 32), Kind::Special("documentation")),
    (Block::v6(0x2001, 0, 23), Kind::Special("reserved, or an IPv4 address inside")),
    (Block::v6(0x2002, 0, 16), Kind::Special("6to4, an IPv4 address inside")),
    (Block::v6(0x3fff, 0, 20), Kind::Special("documentation")),
    (Block::v6(0x2000, 0, 3), Kind::Public),
    (Block::v6(0xfc00, 0, 7), Kind::Private("private")),
    (Block::v6(0xfe80, 0, 10), Kind::Special("link-local")),
    (Block::v6(0xff00, 0, 8), Kind::Special("multicast")),
    // Loopback, unspecified, NAT64 and whatever else is not 2000::/3.
    (Block::v6(0, 0, 0), Kind::Special("not of the public internet")),
];

fn kind(ip: IpAddr) -> Kind {
    KINDS.iter().find(|(block, _)| block.holds(ip)).map_or(Kind::Public, |(_, kind)| *kind)
}

/// What imports may reach.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rules {
    blocks: Vec<Block>,
    names: Vec<String>,
    ports: BTreeSet<u16>,
}

impl Rules {
    /// `allow` holds addresses and blocks, which are open whatever they are, and DNS names, which may lead to private
    /// addresses but never to this machine or one wire.
    ///
    /// # Errors
    /// The first entry that is neither.
    pub fn new(allow: &[String], ports: &[u16]) -> Result<Self, String> {
        let mut rules = Self { ports: ports.iter().copied().collect(), ..Self::default() };
        for entry in allow {
            if let Some(block) = Block::parse(entry) {
                rules.blocks.push(block);
            } else if let Ok(Host::Name(name)) = read_host(entry) {
                rules.names.push(name);
            } else {
                return Err(entry.clone());
            }
        }
        Ok(rules)
    }

    /// Whether a port is open.
    ///
    /// # Errors
    /// [`SourceError::Port`].
    pub fn check_port(&self, port: u16) -> Result<(), SourceError> {
        if self.ports.contains(&port) { Ok(()) } else { Err(SourceError::Port { port }) }
    }

    /// Whether `host` may be reached at `ip`. Ask for every address that a name has.
    ///
    /// # Errors
    /// [`SourceError::Address`].
    pub fn check_address(&self, host: &Host, ip: IpAddr) -> Result<(), SourceError> {
        // An IPv4 address in IPv6 clothes is that IPv4 address.
        let ip = ip.to_canonical();
        if self.blocks.iter().any(|block| block.holds(ip)) {
            return Ok(());
        }
        let named = matches!(host, Host::Name(name) if self.names.contains(name));
        match kind(ip) {
            Kind::Public => Ok(()),
            Kind::Private(_) if named => Ok(()),
            Kind::Private(why) | Kind::Special(why) => {
                Err(SourceError::Address { host: host.to_string(), why })
            }
        }
    }
}

#[cfg(test)]
mod tests;

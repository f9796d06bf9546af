//! `ftp://` and `ftps://` (RFC 959, 2428, 3659, 4217): as much of a client as fetching one file needs.
//!
//! **What.** Logs in, asks for size and time, and reads the file in passive mode from a byte on (`REST`).
//!
//! **Why our own.** The client library there is reads a line of a server into memory until it ends, resolves and connects
//! by itself, and knows no TLS from the first byte. Here lines and answers are bounded, and every connection goes to the
//! address that was checked.
//!
//! **Invariants.** A data connection goes to the address of the control connection, whatever the server names, and to no
//! well-known port. Nothing from the URL that is sent holds a line end ([`Source::parse`]).

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::BytesMut;
use hearth_protocol::api::source::SourceFacts;
use rustls_pki_types::ServerName;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::http::{dripping, silent};
use super::{FetchError, LOOK_BYTES, Sources, looks_like, tls};
use crate::clock;
use crate::ingest::intake::Intake;
use crate::logic::fetch::{Flow, Patience};
use crate::logic::ftp::{Reply, Replying, extended_port, passive_port};
use crate::logic::source::{Host, Scheme, Source};

/// Longest line of an answer, bytes.
const LINE_BYTES_MAX: u64 = 4096;
/// Ports below are those of well-known services: no data is there.
const DATA_PORT_MIN: u16 = 1024;
/// Port of FTP over TLS from the first byte.
const PORT_TLS_AT_ONCE: u16 = 990;
/// One read of a data connection.
const READ_BYTES: usize = 256 << 10;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

type Wire = Box<dyn Stream>;

/// A session that is logged in.
struct Session {
    control: BufReader<Wire>,
    peer: SocketAddr,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    patience: Patience,
}

/// What the server says of the file.
struct Facts {
    size_bytes: Option<u64>,
    mark: String,
}

/// One try; see [`Sources::fetch`].
pub(super) async fn fetch(sources: &Sources, source: &Source, intake: &mut Intake) -> Result<(), FetchError> {
    let mut session = Session::open(sources, source).await?;
    let facts = session.facts(&source.path).await?;
    let at = intake.at_bytes();
    if at == 0 {
        intake.announce(&facts.mark, facts.size_bytes).await?;
    } else if facts.mark.is_empty() || facts.mark != intake.upload().mark {
        return Err(FetchError::Changed);
    }
    let mut data = session.retrieve(&source.path, at).await?;
    let mut flow = Flow::new(session.patience.window);
    let begun = clock::monotonic();
    let mut buf = BytesMut::with_capacity(READ_BYTES);
    loop {
        buf.reserve(READ_BYTES);
        let read = tokio::time::timeout(session.patience.silence, data.read_buf(&mut buf)).await;
        let read = read.map_err(|_| silent(session.patience.silence))?;
        let n = read.map_err(|error| FetchError::Later(format!("the data connection broke off: {error}")))?;
        if n == 0 {
            break;
        }
        if !flow.add(n as u64, clock::monotonic().duration_since(begun)) {
            return Err(dripping());
        }
        intake.push(buf.split().freeze()).await?;
    }
    drop(data);
    match facts.size_bytes {
        Some(size) if intake.at_bytes() < size => {
            Err(FetchError::Later("the source ended the file early".to_owned()))
        }
        Some(_) => Ok(()),
        // Only the server's word tells the end of the file from the end of the connection.
        None => session.expect(&[226, 250]).await.map(drop),
    }
}

/// See [`Sources::check`].
pub(super) async fn check(sources: &Sources, source: &Source) -> Result<SourceFacts, FetchError> {
    let mut session = Session::open(sources, source).await?;
    let facts = session.facts(&source.path).await?;
    let resumable = !facts.mark.is_empty() && session.restart(0).await.is_ok();
    let data = session.retrieve(&source.path, 0).await?;
    let mut head = Vec::new();
    let read = data.take(LOOK_BYTES as u64).read_to_end(&mut head).await;
    read.map_err(|error| FetchError::Later(format!("the data connection broke off: {error}")))?;
    Ok(SourceFacts {
        url: source.shown(),
        final_url: None,
        size_bytes: facts.size_bytes,
        resumable,
        content_type: None,
        looks_like: looks_like(&head).to_owned(),
    })
}

impl Session {
    async fn open(sources: &Sources, source: &Source) -> Result<Self, FetchError> {
        let patience = sources.config.patience;
        let addresses = sources.guard.addresses(source).await?;
        let (tcp, peer) = connect(&addresses, patience).await?;
        let tls = match source.scheme {
            Scheme::Ftps => {
                let config = tls::client_config(sources.config.ca_file.as_deref())?;
                Some((TlsConnector::from(Arc::new(config)), server_name(&source.host)?))
            }
            _ => None,
        };
        let at_once = source.port == PORT_TLS_AT_ONCE;
        let wire: Wire = match &tls {
            Some(tls) if at_once => encrypted(tls, Box::new(tcp), patience).await?,
            _ => Box::new(tcp),
        };
        let mut session = Self { control: BufReader::new(wire), peer, tls, patience };
        session.expect(&[220]).await?;
        if session.tls.is_some() {
            session = session.secured(at_once).await?;
        }
        let (user, password) = source.login.clone().unwrap_or_else(|| ("anonymous".into(), "hearth@".into()));
        if session.command(&format!("USER {user}"), &[230, 331]).await?.code == 331 {
            session.command(&format!("PASS {password}"), &[230, 202]).await?;
        }
        session.command("TYPE I", &[200]).await?;
        Ok(session)
    }

    /// Encrypts the control connection, unless it is, and asks for encrypted data.
    async fn secured(mut self, at_once: bool) -> Result<Self, FetchError> {
        if !at_once {
            self.command("AUTH TLS", &[234]).await?;
            if !self.control.buffer().is_empty() {
                // What was said in the clear must not be taken for what is said in private.
                return Err(FetchError::Never("the server spoke before TLS began".to_owned()));
            }
            let Self { control, peer, tls, patience } = self;
            let wire = control.into_inner();
            let wire = match &tls {
                Some(tls) => encrypted(tls, wire, patience).await?,
                None => wire,
            };
            self = Self { control: BufReader::new(wire), peer, tls, patience };
        }
        self.command("PBSZ 0", &[200]).await?;
        self.command("PROT P", &[200]).await?;
        Ok(self)
    }

    async fn facts(&mut self, path: &str) -> Result<Facts, FetchError> {
        let size = self.ask(&format!("SIZE {path}")).await?;
        if size.code == 550 {
            return Err(FetchError::Never("the server has no such file, or not for this user".to_owned()));
        }
        let size_bytes = (size.code == 213).then(|| size.text.trim().parse().ok()).flatten();
        let time = self.ask(&format!("MDTM {path}")).await?;
        let mark = match (size_bytes, time.code) {
            (Some(size), 213) => format!("{size} {}", time.text.trim().chars().take(40).collect::<String>()),
            _ => String::new(),
        };
        Ok(Facts { size_bytes, mark })
    }

    async fn restart(&mut self, at: u64) -> Result<(), FetchError> {
        self.command(&format!("REST {at}"), &[350]).await.map(drop)
    }

    /// Opens the data connection and begins the file at byte `at`.
    async fn retrieve(&mut self, path: &str, at: u64) -> Result<Wire, FetchError> {
        let port = self.data_port().await?;
        let (data, _) = connect(&[SocketAddr::new(self.peer.ip(), port)], self.patience).await?;
        if at > 0 && self.restart(at).await.is_err() {
            return Err(FetchError::Changed);
        }
        self.command(&format!("RETR {path}"), &[125, 150]).await?;
        match &self.tls {
            Some(tls) => encrypted(tls, Box::new(data), self.patience).await,
            None => Ok(Box::new(data)),
        }
    }

    async fn data_port(&mut self) -> Result<u16, FetchError> {
        let extended = self.ask("EPSV").await?;
        let port = if extended.code == 229 {
            extended_port(&extended.text)
        } else {
            passive_port(&self.command("PASV", &[227]).await?.text)
        };
        let port = port.filter(|port| *port >= DATA_PORT_MIN);
        port.ok_or_else(|| FetchError::Never("the server named no usable port for the data".to_owned()))
    }

    async fn command(&mut self, line: &str, good: &[u16]) -> Result<Reply, FetchError> {
        let reply = self.ask(line).await?;
        if good.contains(&reply.code) {
            return Ok(reply);
        }
        // Not the line itself: it may hold a password.
        let what = line.split(' ').next().unwrap_or_default();
        let text: String = reply.text.chars().filter(|c| !c.is_control()).take(120).collect();
        let why = format!("the server answered {} to {what}: {text}", reply.code);
        Err(if reply.code >= 500 { FetchError::Never(why) } else { FetchError::Later(why) })
    }

    async fn ask(&mut self, line: &str) -> Result<Reply, FetchError> {
        debug_assert!(!line.contains(['\r', '\n']), "a URL with line ends is refused");
        let line = format!("{line}\r\n");
        let sent = async {
            self.control.write_all(line.as_bytes()).await?;
            self.control.flush().await
        };
        let sent = tokio::time::timeout(self.patience.silence, sent).await;
        sent.map_err(|_| silent(self.patience.silence))?
            .map_err(|error| FetchError::Later(format!("the connection to the server broke off: {error}")))?;
        self.reply().await
    }

    async fn expect(&mut self, good: &[u16]) -> Result<Reply, FetchError> {
        let reply = self.reply().await?;
        if good.contains(&reply.code) {
            return Ok(reply);
        }
        Err(FetchError::Later(format!("the server answered {}", reply.code)))
    }

    /// Reads an answer of one or many lines.
    async fn reply(&mut self) -> Result<Reply, FetchError> {
        let silence = self.patience.silence;
        let read = tokio::time::timeout(silence, read_reply(&mut self.control)).await;
        read.map_err(|_| silent(silence))?
    }
}

async fn read_reply(control: &mut (impl tokio::io::AsyncBufRead + Unpin)) -> Result<Reply, FetchError> {
    let mut replying = Replying::default();
    loop {
        let mut line = Vec::new();
        let read = (&mut *control).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await;
        let n = read
            .map_err(|error| FetchError::Later(format!("the connection to the server broke off: {error}")))?;
        if n == 0 || line.last() != Some(&b'\n') {
            return Err(FetchError::Later(
                "the server ended the connection, or sent a line without end".to_owned(),
            ));
        }
        let read = replying.line(&String::from_utf8_lossy(&line));
        if let Some(reply) = read.map_err(|error| FetchError::Never(error.to_string()))? {
            return Ok(reply);
        }
    }
}

fn server_name(host: &Host) -> Result<ServerName<'static>, FetchError> {
    match host {
        Host::Ip(ip) => Ok(ServerName::from(*ip)),
        Host::Name(name) => ServerName::try_from(name.clone())
            .map_err(|_| FetchError::Never("the host's name cannot stand in a certificate".to_owned())),
    }
}

async fn connect(
    addresses: &[SocketAddr],
    patience: Patience,
) -> Result<(TcpStream, SocketAddr), FetchError> {
    let mut why = "it has no address".to_owned();
    for address in addresses {
        match tokio::time::timeout(patience.connect, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => return Ok((tcp, *address)),
            Ok(Err(error)) => why = error.kind().to_string(),
            Err(_) => why = "no answer".to_owned(),
        }
    }
    Err(FetchError::Later(format!("cannot reach the source: {why}")))
}

async fn encrypted(
    (connector, name): &(TlsConnector, ServerName<'static>),
    wire: Wire,
    patience: Patience,
) -> Result<Wire, FetchError> {
    let hands = tokio::time::timeout(patience.silence, connector.connect(name.clone(), wire)).await;
    let hands = hands.map_err(|_| silent(patience.silence))?;
    let wire = hands.map_err(|error| FetchError::Later(format!("no TLS with the source: {error}")))?;
    Ok(Box::new(wire))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_of_one_and_many_lines_are_read_and_bounded() {
        use crate::logic::ftp::LINES_MAX;
        let read = async |bytes: &[u8]| read_reply(&mut BufReader::new(bytes)).await;
        let reply = |code, text: &str| Reply { code, text: text.to_owned() };
        assert_eq!(read(b"220 hello\r\n").await.unwrap(), reply(220, " hello"));
        assert_eq!(read(b"220\r\n").await.unwrap(), reply(220, ""));
        let many = b"230-line\r\n 230 indented\r\n221 another number\r\nno number\r\n230 end\r\n";
        assert_eq!(read(many).await.unwrap(), reply(230, " end"));
        for bad in [b"".as_slice(), b"SSH-2.0\r\n", b"220", b"\xff\xff\xff\xff\r\n", b"220-x\r\n"] {
            assert!(read(bad).await.is_err(), "{bad:?}");
        }
        assert!(read(&b"220 ".iter().chain(&[b'x'; 10_000]).copied().collect::<Vec<_>>()).await.is_err());
        assert!(read(&b"220-x\r\n".repeat(LINES_MAX + 1)).await.is_err());
    }
}

//! A BitTorrent tracker over HTTP, as small as a bench needs.
//!
//! **What.** Answers announces with the compact list of all others of the same torrent.
//! **Why our own.** Debian's opentracker serves only torrents on a list; this one is in no package.
//! **Invariants.** It prints a line for each new peer. It ends with the process; nothing is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result};

/// Longest request line.
const LINE_BYTES_MAX: u64 = 8 << 10;
/// Who is silent for so long is not waited for.
const READ_WAIT_MAX: Duration = Duration::from_secs(10);
/// Seconds between two announces of a peer.
const INTERVAL_S: u32 = 5;

/// Compact addresses, by the hash of the torrent as it stands in the address.
type Swarms = Mutex<BTreeMap<String, BTreeSet<[u8; 6]>>>;

/// Serves until the process ends.
pub(crate) fn serve(address: &str) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
    let swarms = Swarms::default();
    std::thread::scope(|scope| {
        for stream in listener.incoming().flatten() {
            let swarms = &swarms;
            scope.spawn(move || {
                if let Err(error) = answer(swarms, &stream) {
                    eprintln!("a request failed: {error:#}");
                }
            });
        }
    });
    Ok(())
}

fn answer(swarms: &Swarms, mut stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(READ_WAIT_MAX))?;
    let mut line = String::new();
    BufReader::new(std::io::Read::take(stream, LINE_BYTES_MAX)).read_line(&mut line)?;
    let query = line.split(' ').nth(1).and_then(|path| path.split_once('?')).context("no query")?.1;
    let field = |name: &str| {
        query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    };
    let IpAddr::V4(ip) = stream.peer_addr()?.ip() else { anyhow::bail!("the bed speaks IPv4") };
    let port: u16 = field("port").context("no port")?.parse()?;
    let mut own = [0; 6];
    own[..4].copy_from_slice(&ip.octets());
    own[4..].copy_from_slice(&port.to_be_bytes());
    let torrent = field("info_hash").context("no info_hash")?.to_owned();
    let others: Vec<u8> = {
        let mut swarms = swarms.lock().map_err(|_| anyhow::anyhow!("another request panicked"))?;
        let peers = swarms.entry(torrent).or_default();
        let others = peers.iter().filter(|peer| **peer != own).flatten().copied().collect();
        if field("event") == Some("stopped") {
            peers.remove(&own);
        } else if peers.insert(own) {
            println!("peer {ip}:{port}");
        }
        others
    };
    let mut body = format!("d8:intervali{INTERVAL_S}e12:min intervali{INTERVAL_S}e5:peers{}:", others.len())
        .into_bytes();
    body.extend_from_slice(&others);
    body.push(b'e');
    let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    Ok(stream.write_all(&body)?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    fn announce(swarms: &Swarms, query: &str) -> Vec<u8> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(format!("GET /announce?{query} HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
        let (server, _) = listener.accept().unwrap();
        answer(swarms, &server).unwrap();
        drop(server);
        let mut said = Vec::new();
        // What the server has not read resets the connection; the answer came before.
        drop(client.read_to_end(&mut said));
        let start = said.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
        said.split_off(start)
    }

    #[test]
    fn a_peer_is_told_of_the_others_of_its_torrent() {
        let swarms = Swarms::default();
        assert!(announce(&swarms, "info_hash=a&port=1&event=started").ends_with(b"5:peers0:e"));
        assert!(announce(&swarms, "info_hash=b&port=2").ends_with(b"5:peers0:e"));
        assert!(announce(&swarms, "info_hash=a&port=513").ends_with(b"5:peers6:\x7f\0\0\x01\0\x01e"));
        assert!(
            announce(&swarms, "info_hash=a&port=1&event=stopped")
                .ends_with(b"5:peers6:\x7f\0\0\x01\x02\x01e")
        );
        assert!(announce(&swarms, "info_hash=a&port=513").ends_with(b"5:peers0:e"));
    }
}

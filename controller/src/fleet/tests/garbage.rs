//! Bytes that are no protocol: each ends its own connection and nothing else.

use hearth_protocol::message::control::PART_ENTRIES_MAX;

use super::*;

/// `n` bytes that nothing packs, others for each `seed`.
fn noise(seed: u32, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// The first packet of a QUIC connection, sealed as it should be, with `hello` where the TLS handshake begins.
fn first_packet(seed: u32, hello: &[u8]) -> Vec<u8> {
    let suite = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().unwrap();
    let id = noise(seed, 8);
    let keys = rustls::quic::Keys::initial(
        rustls::quic::Version::V1,
        suite,
        suite.quic.unwrap(),
        &id,
        rustls::Side::Client,
    );
    let tag = keys.local.packet.tag_len();
    // A CRYPTO frame from offset 0, then padding up to the size that the first packet must have.
    let mut payload = vec![0x06, 0x00];
    payload.extend((0x4000 | u16::try_from(hello.len()).unwrap()).to_be_bytes());
    payload.extend(hello);
    payload.resize(1200, 0);
    // Long header, Initial, four bytes of packet number; version 1; ids; no token; length; number 0.
    let mut packet = vec![0xc3, 0, 0, 0, 1, 8];
    packet.extend(&id);
    packet.extend([0, 0]);
    packet.extend((0x4000 | u16::try_from(4 + payload.len() + tag).unwrap()).to_be_bytes());
    let number = packet.len();
    packet.extend([0; 4]);
    let seal = keys.local.packet.encrypt_in_place(0, &packet, &mut payload).unwrap();
    packet.extend(payload);
    packet.extend(seal.as_ref());
    let sample = packet[number + 4..number + 4 + keys.local.header.sample_len()].to_vec();
    let (head, rest) = packet.split_at_mut(number);
    keys.local.header.encrypt_in_place(&sample, &mut head[0], &mut rest[..4]).unwrap();
    packet
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_on_the_port_harms_nobody() {
    let place = Place::new().await;
    let agent = place.agent("cn-1").await;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for n in 0..2000_u32 {
        let mut datagram = noise(n, 1300);
        // Half of them look like the first packet of a connection.
        datagram[0] |= if n.is_multiple_of(2) { 0xc0 } else { 0x40 };
        socket.send_to(&datagram, place.address).unwrap();
    }
    for n in [0, 1, 20, 1500] {
        socket.send_to(&noise(n, n as usize), place.address).unwrap();
    }
    let _live = agent.session(&place).await;
    until("the agent is up after all that", || async { place.fleet.online_count() == 1 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_where_tls_begins_ends_that_handshake_alone() {
    let place = Place::new().await;
    let agent = place.agent("cn-1").await;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    // A ClientHello that is none, one whose length is a lie, an alert, and plain noise.
    let lies: [Vec<u8>; 4] = [
        [&[1, 0, 1, 0], noise(1, 256).as_slice()].concat(),
        [&[1, 0xff, 0xff, 0xff], noise(2, 900).as_slice()].concat(),
        vec![21, 3, 3, 0, 2, 2, 40],
        noise(3, 1000),
    ];
    for (seed, hello) in (100..).zip(&lies) {
        socket.send_to(&first_packet(seed, hello), place.address).unwrap();
        // The packet is a real one: it is answered, with an acknowledgement or with the end of the connection.
        let n = socket.recv(&mut [0; 2048]).unwrap();
        assert!(n > 0, "{seed}");
    }
    let _live = agent.session(&place).await;
    until("the agent is up after all that", || async { place.fleet.online_count() == 1 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_protocol_is_refused_in_the_handshake() {
    let place = Place::new().await;
    let agent = place.agent("cn-1").await;
    for alpn in [b"h3".as_slice(), b"hearth/2", b"hearth", &[0xff; 200]] {
        let refused = agent.connect(&place, alpn, None).await.err().unwrap();
        assert!(refused.contains("protocol"), "{refused}");
    }
    agent.session(&place).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_a_stream_ends_its_session_and_the_next_one_works() {
    let place = Place::new().await;
    let agent = place.agent("cn-1").await;
    let lies = [
        b"\xff\xff\xff\xff\x01\x01".to_vec(),
        b"\x04\0\0\0\x99\x99abcd".to_vec(),
        b"\x01\0\0\0\x03\x01\x07".to_vec(),
        noise(7, 300_000),
    ];
    for bytes in &lies {
        // After the greeting, instead of it, and at the enrolment door.
        let mut live = agent.session(&place).await;
        drop(live.writer.write_all(bytes).await);
        tokio::time::timeout(SOON, live.connection.closed()).await.unwrap();
        for alpn in [ALPN, ALPN_ENROL] {
            let connection = agent.connect(&place, alpn, None).await.unwrap();
            let (mut writer, _reader) = connection.open_bi().await.unwrap();
            drop(writer.write_all(bytes).await);
            drop(writer.finish());
            tokio::time::timeout(SOON * 2, connection.closed()).await.unwrap();
        }
    }
    until("those are gone", || async { place.fleet.online_count() == 0 }).await;
    let _live = agent.session(&place).await;
    until("the agent is up after all that", || async { place.fleet.online_count() == 1 }).await;
    place.agent("cn-2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inventory_without_an_end_ends_its_session() {
    let place = Place::new().await;
    let agent = place.agent("cn-1").await;
    let mut live = agent.greet(&place, agent.hello(), None).await.unwrap();
    let entry = |n: usize| {
        let content = ContentId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes());
        observed(content, ObservedState::Present(EntryStatus::Caching))
    };
    live.observe(Some(false), vec![]).await;
    // Changes in between, with no part ever after them.
    for first in (0..=crate::fleet::inbox::INVENTORY_ENTRIES_MAX).step_by(PART_ENTRIES_MAX) {
        let entries = (first..first + PART_ENTRIES_MAX).map(entry).collect();
        let part = ObservedV1 { location: live.location, inventory_last: None, entries };
        // Refused once the session is over.
        drop(send(&mut live.writer, &ToController::from(part)).await);
    }
    tokio::time::timeout(SOON, live.connection.closed()).await.expect("the session ends");
}

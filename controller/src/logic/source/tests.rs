//! URLs and addresses, honest and hostile.

use proptest::prelude::*;

use super::*;

fn open() -> Rules {
    Rules::new(&[], &[80, 443]).unwrap()
}

#[test]
fn honest_urls_are_read() {
    let shown = |text: &str| Source::parse(text).unwrap().shown();
    assert_eq!(shown("https://cloud.example/a/b%20c.qcow2"), "https://cloud.example/a/b%20c.qcow2");
    assert_eq!(shown("HTTP://Cloud.Example:8080/x"), "http://cloud.example:8080/x");
    assert_eq!(shown("http://[2001:db8::1]:8080"), "http://[2001:db8::1]:8080/");
    assert!(Source::parse("https://镜像.example/x").is_err(), "a host is written in ASCII");
}

#[test]
fn paths_and_logins_are_decoded_for_ftp() {
    let source = Source::parse("ftp://me:p%40ss%3A@files.example:2121/dir/a%20b.img").unwrap();
    assert_eq!((source.port, source.path.as_str()), (2121, "dir/a b.img"));
    assert_eq!(source.login, Some(("me".into(), "p@ss:".into())));
    let object = Source::parse("s3://images/debian/12 x.qcow2".replace(' ', "+").as_str()).unwrap();
    assert_eq!((object.host.to_string().as_str(), object.path.as_str()), ("images", "debian/12+x.qcow2"));
    let other = Source::parse("https://mirror.example/系统.img").unwrap();
    assert_eq!(other.path, "/%E7%B3%BB%E7%BB%9F.img");
}

#[test]
fn an_address_in_disguise_is_refused() {
    for host in [
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "127.0.0.1.",
        "127.0.0.01",
        "127.0.0.0x1",
        "1.2.3.4.5",
        "localhost.",
        "127。0。0。1",
        "１２７.0.0.1",
        "%31%32%37.0.0.1",
        "[::1%25eth0]",
        "[fe80::1%eth0]",
        "[::ffff:127.0.0.1",
        "::1",
        "a..b",
        "-_-",
        "",
        "a b",
        "127.0.0.1\\@example.org",
        "example.org@127.0.0.1@example.org",
        "example.org:80:80",
        "example.org:0",
        "example.org:+80",
        "example.org:65536",
        "example.org:",
    ] {
        for scheme in ["http", "ftp", "ftps"] {
            assert!(Source::parse(&format!("{scheme}://{host}/x")).is_err(), "{scheme} {host}");
        }
    }
    // What is left of an honest address in IPv6 clothes is the address.
    for host in ["[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::1]", "127.0.0.1", "[::]", "0.0.0.0"] {
        let source = Source::parse(&format!("http://{host}/x")).unwrap();
        let Host::Ip(ip) = source.host else { panic!("{host}") };
        assert!(open().check_address(&source.host, ip).is_err(), "{host}");
    }
}

#[test]
fn what_is_no_source_is_refused() {
    for text in [
        "",
        "x",
        "/etc/passwd",
        "file:///etc/passwd",
        "gopher://example.org/x",
        "http:/example.org/x",
        "javascript://x/y",
        "http://example.org/x#y",
        "http://example.org/x y",
        "http://example.org/\r\nhost: x",
        "ftp://example.org/a%0d%0aDELE b",
        "ftp://u%0aser@example.org/a",
        "ftp://example.org/dir/",
        "ftp://example.org/%zz",
        "ftp://example.org/a?b",
        "s3://",
        "s3://b/x",
        "s3://bucket",
        "s3://bucket/",
        "s3://bucket/a/../b",
        "s3://key:secret@bucket/x",
        "s3://bucket:80/x",
    ] {
        assert!(Source::parse(text).is_err(), "{text:?}");
    }
    assert!(Source::parse(&format!("http://example.org/{}", "x".repeat(URL_BYTES_MAX))).is_err());
}

#[test]
fn only_public_addresses_are_open_unless_allowed() {
    let name = Host::Name("mirror.example".into());
    let check = |rules: &Rules, ip: &str| rules.check_address(&name, ip.parse().unwrap()).is_ok();
    for ip in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "198.20.0.1", "2606:4700::1111", "::ffff:1.1.1.1"] {
        assert!(check(&open(), ip), "{ip}");
    }
    let private = ["10.1.2.3", "172.31.255.255", "192.168.0.1", "100.64.0.1", "fd00::1", "::ffff:10.0.0.1"];
    let special = [
        "0.0.0.0",
        "127.0.0.1",
        "169.254.169.254",
        "192.0.0.8",
        "192.0.2.1",
        "198.18.0.1",
        "203.0.113.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "3fff::1",
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ];
    for ip in private.iter().chain(&special) {
        assert!(!check(&open(), ip), "{ip}");
    }
    // A name opens private networks alone; an address or block opens what it says.
    let named = Rules::new(&["mirror.example".into()], &[]).unwrap();
    assert!(private.iter().all(|ip| check(&named, ip)));
    assert!(special.iter().all(|ip| !check(&named, ip)));
    let other = Host::Name("mirror.example.evil.example".into());
    assert!(named.check_address(&other, "10.0.0.1".parse().unwrap()).is_err());
    let block = Rules::new(&["10.0.0.0/8".into(), "127.0.0.1".into(), "fd00::/8".into()], &[]).unwrap();
    assert!(["10.9.9.9", "127.0.0.1", "fd12::1", "::ffff:10.0.0.1"].iter().all(|ip| check(&block, ip)));
    assert!(["127.0.0.2", "192.168.0.1", "fc00::1"].iter().all(|ip| !check(&block, ip)));
    let all = Rules::new(&["0.0.0.0/0".into(), "::/0".into()], &[]).unwrap();
    assert!(special.iter().all(|ip| check(&all, ip)));
    for wrong in ["10.0.0.0/33", "10.0.0/8", "https://x", "a_b", "", "0x7f.1"] {
        assert_eq!(Rules::new(&[wrong.into()], &[]), Err(wrong.to_owned()));
    }
}

#[test]
fn a_port_must_be_open() {
    assert_eq!(open().check_port(443), Ok(()));
    assert_eq!(open().check_port(22), Err(SourceError::Port { port: 22 }));
}

#[test]
fn a_redirect_is_checked_like_the_first_url() {
    let from = Source::parse("https://u:p@a.example/dir/x").unwrap();
    let to = |location: &str| from.redirected(location, 1);
    assert_eq!(
        to("y?sig=1").unwrap().shown(),
        "https://***@a.example/dir/y?***",
        "a login stays with its host"
    );
    assert_eq!(to("/y#part").unwrap().path, "/y");
    // What looks like a scheme further behind is none.
    for relative in
        ["get?u=https://mirror.example/x", "get#u=https://mirror.example/x", "get/https://m.example/x"]
    {
        let next = to(relative).unwrap();
        assert_eq!(next.host, from.host, "{relative}");
        assert!(next.path.starts_with("/dir/get"), "{relative}: {}", next.path);
    }
    let other = to("//b.example/y").unwrap();
    assert_eq!((other.shown().as_str(), other.login), ("https://b.example/y", None));
    assert_eq!(to("https://a.example:8443/y").unwrap().login, None);
    assert_eq!(to("http://a.example/y"), Err(SourceError::Downgrade));
    assert_eq!(from.redirected("y", REDIRECTS_MAX + 1), Err(SourceError::Redirects));
    for bad in [
        "ftp://a.example/y",
        "file:///etc/passwd",
        "https://0x7f.1/",
        "//2130706433/",
        "https://x@b.example/",
        "/\\evil.example/",
        "\\\\evil.example/",
        "https:/\\evil.example/",
    ] {
        assert!(to(bad).is_err(), "{bad}: {:?}", to(bad));
    }
    let plain = Source::parse("http://a.example/x").unwrap();
    assert_eq!(plain.redirected("https://a.example/x", 1).unwrap().scheme, Scheme::Https);
}

#[test]
fn no_secret_is_shown() {
    let source = Source::parse("https://user:hunter2@a.example/x?token=hunter2").unwrap();
    for text in [source.shown(), format!("{source:?}")] {
        assert!(!text.contains("hunter2") && !text.contains("user") && text.contains("***@"), "{text}");
    }
    assert!(source.hides() && !Source::parse("https://a.example/x").unwrap().hides());
    let error = Source::parse("https://user:hunter2@a b/x").unwrap_err().to_string();
    assert!(!error.contains("hunter2"));
}

proptest! {
    /// Whatever text comes: a host that is accepted is a plain name or the address it reads as, and shows no login.
    #[test]
    fn any_text_is_refused_or_means_one_host(text in "(http|ftp|https)://[0-9a-fx.:@%\\[\\]/-]{1,24}") {
        if let Ok(source) = Source::parse(&text) {
            match &source.host {
                Host::Ip(ip) => prop_assert!(text.contains(&ip.to_string()) || ip.is_ipv6()),
                Host::Name(name) => {
                    prop_assert!(name.parse::<IpAddr>().is_err());
                    // What the standard of browsers reads as an address never passes as a name.
                    let web = Url::parse(&format!("http://{name}/")).unwrap();
                    prop_assert!(matches!(web.host(), Some(url::Host::Domain(_))), "{name}");
                }
            }
            prop_assert!(source.login.is_none() || source.shown().contains("***@"));
        }
    }

    /// A block and a bit-by-bit comparison agree.
    #[test]
    fn a_block_holds_what_shares_its_first_bits(a: u32, b: u32, bits in 0_u32..=32) {
        let block = Block { address: IpAddr::V4(a.into()), bits };
        let slow = (0..bits).all(|n| (a >> (31 - n)) & 1 == (b >> (31 - n)) & 1);
        prop_assert_eq!(block.holds(IpAddr::V4(b.into())), slow);
    }
}

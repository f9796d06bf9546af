//! What strangers say on the way of an import: URLs, the heads of HTTP answers, the answers of FTP servers.
#![no_main]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "the controller's files are built here without the controller"
)]

// By path, because with the whole controller a build of the targets would take as long as the controller's.
#[path = "../../../controller/src/logic/fetch.rs"]
mod fetch;
#[path = "../../../controller/src/logic/ftp.rs"]
mod ftp;
#[path = "../../../controller/src/logic/source.rs"]
mod source;

use source::Source;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input);
    if let Ok(source) = Source::parse(&text) {
        let shown = source.shown();
        if let Some((_, password)) = &source.login {
            // A short one may stand in a name by chance.
            assert!(password.len() < 16 || !shown.contains(password.as_str()), "{shown}");
        }
        assert_eq!(Source::parse(&text).ok().as_ref(), Some(&source));
    }
    let _ = fetch::content_range(&text);
    let mut replying = ftp::Replying::default();
    for (n, line) in text.split_inclusive('\n').enumerate() {
        assert!(n <= ftp::LINES_MAX);
        match replying.line(line) {
            Ok(None) => {}
            Ok(Some(reply)) => {
                assert!(reply.code >= 100);
                let _ = (ftp::extended_port(&reply.text), ftp::passive_port(&reply.text));
                break;
            }
            Err(_) => break,
        }
    }
    let _ = (ftp::extended_port(&text), ftp::passive_port(&text));
});

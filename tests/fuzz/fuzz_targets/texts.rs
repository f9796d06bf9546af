//! Texts with a form of their own: ids, digests, join tokens, words.
#![no_main]
use hearth_protocol::digest::ContentId;
use hearth_protocol::id::ImageId;
use hearth_protocol::message::enrol::JoinToken;
use hearth_protocol::words::{DiskFormat, EntryStatus};

libfuzzer_sys::fuzz_target!(|input: &str| {
    if let Ok(id) = input.parse::<ImageId>() {
        assert_eq!(id.to_string(), input);
    }
    if let Ok(digest) = input.parse::<ContentId>() {
        assert_eq!(digest.to_string(), input);
    }
    if let Ok(token) = input.parse::<JoinToken>() {
        assert_eq!(token.to_string(), input);
    }
    if let Ok(word) = input.parse::<DiskFormat>() {
        assert_eq!(word.to_string(), input);
    }
    if let Err(error) = input.parse::<EntryStatus>() {
        assert!(error.to_string().len() < 1024);
    }
});

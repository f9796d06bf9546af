//! Requests and answers on the local socket.
//!
//! **What.** One JSON object per line in each direction, `{"op": …}` in, `{"ok": …}` or `{"error": …}` out.
//! **Why the words are those of the design.** A script reads the same states here, in the API and on the console.
//! **Invariants.** Unknown operations and fields are refused, so a typo never does something else.

use std::path::PathBuf;

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::LeaseId;
use hearth_protocol::message::control::{Hold, Lease};
use hearth_protocol::passphrase::Passphrase;
use hearth_protocol::words::{ConsumerKind, ContentKind};
use serde::{Deserialize, Serialize};

/// Longest request line, bytes: protects the agent from a client that never ends its line.
pub const REQUEST_BYTES_MAX: usize = 8 * 1024;
/// Longest wait, seconds: a day. A script that waits longer should ask again.
pub const WAIT_S_MAX: u64 = 24 * 3600;

/// What a script asks. `target` is a content id, at least 8 digits of one, an image id or an image name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The cache's figures and its entries, or one of them.
    Status {
        /// One entry only.
        #[serde(default)]
        target: Option<String>,
    },
    /// The path of an active content.
    Path {
        /// Which.
        target: String,
        /// Wait that long for it to become active, seconds; 0 does not wait.
        #[serde(default)]
        wait_s: u64,
    },
    /// A lease, and the path.
    Lease {
        /// Which.
        target: String,
        /// Kind of consumer.
        kind: ConsumerKind,
        /// Its name, for example the VM's.
        consumer: String,
        /// Wait that long for the content to become active, seconds; 0 does not wait.
        #[serde(default)]
        wait_s: u64,
    },
    /// Ends a lease.
    Release {
        /// Which.
        lease: LeaseId,
    },
    /// What opens the encrypted image of a lease.
    Key {
        /// The lease, which the asker holds.
        lease: LeaseId,
    },
    /// All leases.
    Leases {},
    /// Pins a content on this host, or takes the pin away.
    Pin {
        /// Which.
        target: String,
        /// `false` unpins.
        pinned: bool,
    },
    /// Removes a content that nobody holds or uses.
    Evict {
        /// Which.
        target: String,
    },
    /// Hashes a content from disk now.
    Verify {
        /// Which.
        target: String,
    },
}

/// A line that comes back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It was done.
    Ok(Reply),
    /// It was not.
    Error(Refusal),
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Reply {
    /// Answer to `status`.
    Status(Status),
    /// Answer to `path`.
    Path {
        /// Where consumers find the bytes.
        path: PathBuf,
    },
    /// Answer to `lease`.
    Lease {
        /// The lease; give its id to `release`.
        lease: Lease,
        /// Where consumers find the bytes.
        path: PathBuf,
    },
    /// Answer to `key`.
    Key {
        /// The lease.
        lease: Lease,
        /// What opens the image, for QEMU's `--object secret`.
        passphrase: Passphrase,
    },
    /// Answer to `leases`.
    Leases {
        /// All of them.
        leases: Vec<Lease>,
    },
    /// Answer to everything else.
    Done {
        /// For people.
        text: String,
    },
}

/// The cache and its entries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// How the agent stands with its controller, for people.
    pub controller: String,
    /// Bytes the cache may allocate.
    pub budget_bytes: u64,
    /// Bytes it has allocated or reserved.
    pub used_bytes: u64,
    /// Free bytes of the file system.
    pub free_bytes: u64,
    /// Bytes that must stay free.
    pub floor_bytes: u64,
    /// Not empty: the cache takes nothing new, for this reason.
    pub degraded: String,
    /// Entries in order of content id.
    pub entries: Vec<EntryRow>,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EntryRow {
    /// The content.
    pub content: ContentId,
    /// Names of images with these bytes, as far as the agent knows them.
    pub images: Vec<String>,
    /// What the bytes are.
    pub kind: ContentKind,
    /// Word for its state, as everywhere in Hearth.
    pub status: String,
    /// Why, if it failed.
    pub reason: String,
    /// Size as a guest sees it, bytes.
    pub raw_bytes: u64,
    /// Raw bytes that are there and verified.
    pub done_bytes: u64,
    /// Raw bytes of all chunks.
    pub data_bytes: u64,
    /// Stored bytes that came over the network.
    pub moved_bytes: u64,
    /// Raw bytes taken from other contents of this cache.
    pub reused_bytes: u64,
    /// Bytes allocated on disk.
    pub allocated_bytes: u64,
    /// Live leases.
    pub leases: u32,
    /// Last use, milliseconds since the epoch; 0 if never.
    pub last_used_unix_ms: u64,
    /// The controller's hold.
    pub hold: Hold,
    /// Whether it is pinned on this host.
    pub pinned: bool,
    /// Path for consumers, if active.
    pub path: Option<PathBuf>,
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub code: Code,
    /// For people: what and where.
    pub message: String,
    /// For people: what to do next; may be empty.
    pub hint: String,
}

/// Kinds of refusal. Each has the exit code of the command line.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The agent failed; its log says more.
    Failed,
    /// The request is not one, or a value is outside its limits.
    Usage,
    /// No such content or lease here.
    NotFound,
    /// The content is not active, or did not become so in the time given.
    NotActive,
    /// The content is held, leased or open.
    InUse,
    /// The agent does not answer. Made by the client alone.
    Unreachable,
    /// Too many connections at once.
    Busy,
}

impl Code {
    /// Exit code of `hearth-agent` for this refusal.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::NotActive => 4,
            Self::InUse => 5,
            Self::Unreachable => 6,
            Self::Busy => 7,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_documented_form_and_a_typo_is_refused() {
        let text = r#"{"op":"lease","target":"debian","kind":"vm","consumer":"web-1","wait_s":30}"#;
        let request: Request = serde_json::from_str(text).unwrap();
        let (target, consumer) = ("debian".to_owned(), "web-1".to_owned());
        let expected = Request::Lease { target, kind: ConsumerKind::Vm, consumer, wait_s: 30 };
        assert_eq!(request, expected);
        for wrong in [
            r#"{"op":"lease","target":"x","kind":"vm","consumer":"y","wait":30}"#,
            r#"{"op":"remove","target":"x"}"#,
            r#"{"op":"leases","x":1}"#,
            "[]",
        ] {
            assert!(serde_json::from_str::<Request>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_answer_has_the_documented_form() {
        let answer = Answer::Ok(Reply::Path { path: "/x".into() });
        assert_eq!(serde_json::to_string(&answer).unwrap(), r#"{"ok":{"what":"path","path":"/x"}}"#);
        let refusal = Refusal { code: Code::InUse, message: "m".to_owned(), hint: String::new() };
        let text = serde_json::to_string(&Answer::Error(refusal)).unwrap();
        assert_eq!(text, r#"{"error":{"code":"in_use","message":"m","hint":""}}"#);
    }
}

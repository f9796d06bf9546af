//! The subcommands of `hearth-agent` that ask a running agent.
//!
//! **What.** [`LocalCommand`] for the command line, and [`run`], which asks, prints, and returns the exit code.
//!
//! Exit codes: 0 done; 1 the agent failed; 2 usage; 3 not found; 4 not active (yet), also when a wait ran out; 5 in use;
//! 6 the agent cannot be reached; 7 the agent is busy.
//!
//! **Why blocking.** One question and one answer: a runtime would only slow a hook down.
//! **Invariants.** `path` and `lease` print the path alone on the last line, so that a script can take it; one that is not there
//! (the folder for consumers is not mounted) is never printed, and the lease on it ends.

use std::io::{self, BufRead as _, BufReader, Read as _, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use hearth_protocol::id::LeaseId;
use hearth_protocol::words::ConsumerKind;

use super::message::{Answer, Code, Refusal, Reply, Request, Status, WAIT_S_MAX};

/// Longest answer that is read: a status with 50,000 entries.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Shown below `hearth-agent key --help`.
const KEY_EXAMPLES: &str = "Example: a machine's disk over an encrypted image, encrypted with the same passphrase:
  umask 077; hearth-agent key \"$LEASE\" > /run/vm-17.key
  qemu-img create -f qcow2 -F qcow2 --object secret,id=key,file=/run/vm-17.key \\
    -b \"json:{\\\"driver\\\":\\\"qcow2\\\",\\\"encrypt.key-secret\\\":\\\"key\\\",\\\"file.filename\\\":\\\"$IMAGE\\\"}\" \\
    -o encrypt.format=luks,encrypt.key-secret=key /var/lib/vms/vm-17.qcow2
Keep the file with the passphrase on a tmpfs such as /run, and remove it when the machine runs.";

/// Questions to a running agent.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum LocalCommand {
    /// Show the cache and its entries.
    Status {
        /// Content id, at least 8 of its digits, image id or image name.
        target: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the path of a cached image.
    Path {
        /// Content id, at least 8 of its digits, image id or image name.
        target: String,
        /// Wait until it is active, at most this many seconds.
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "3600", value_parser = clap::value_parser!(u64).range(0..=WAIT_S_MAX))]
        wait: Option<u64>,
    },
    /// Take a lease, so that the image is not evicted, and print lease and path.
    Lease {
        /// Content id, at least 8 of its digits, image id or image name.
        target: String,
        /// Name of the consumer, for example the VM's.
        consumer: String,
        /// Kind of consumer.
        #[arg(long, default_value_t = ConsumerKind::Vm)]
        kind: ConsumerKind,
        /// Wait until the image is active, at most this many seconds.
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "3600", value_parser = clap::value_parser!(u64).range(0..=WAIT_S_MAX))]
        wait: Option<u64>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// End a lease.
    Release {
        /// The lease.
        lease: LeaseId,
    },
    /// Print what opens the encrypted image of a lease, without a line end.
    ///
    /// The file is a qcow2 with LUKS inside. It opens with
    ///   --object secret,id=key,file=FILE --image-opts driver=qcow2,encrypt.key-secret=key,file.filename=PATH
    /// and an overlay of it is to be encrypted too; see the example.
    #[command(verbatim_doc_comment, after_help = KEY_EXAMPLES)]
    Key {
        /// The lease, as `lease` printed it.
        lease: LeaseId,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// List the leases.
    Leases {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Keep an image on this host until it is unpinned.
    Pin {
        /// Content id, at least 8 of its digits, image id or image name.
        target: String,
    },
    /// Take this host's pin away.
    Unpin {
        /// Content id, at least 8 of its digits, image id or image name.
        target: String,
    },
    /// Remove an image that nobody holds or uses.
    Evict {
        /// Content id, at least 8 of its digits, image id or image name.
        target: String,
    },
    /// Hash an image from disk now.
    Verify {
        /// Content id, at least 8 of its digits, image id or image name.
        target: String,
    },
}

impl LocalCommand {
    /// The request, and whether JSON is printed.
    fn request(&self) -> (Request, bool) {
        match self.clone() {
            Self::Status { target, json } => (Request::Status { target }, json),
            Self::Path { target, wait } => (Request::Path { target, wait_s: wait.unwrap_or(0) }, false),
            Self::Lease { target, consumer, kind, wait, json } => {
                (Request::Lease { target, kind, consumer, wait_s: wait.unwrap_or(0) }, json)
            }
            Self::Release { lease } => (Request::Release { lease }, false),
            Self::Key { lease, json } => (Request::Key { lease }, json),
            Self::Leases { json } => (Request::Leases {}, json),
            Self::Pin { target } => (Request::Pin { target, pinned: true }, false),
            Self::Unpin { target } => (Request::Pin { target, pinned: false }, false),
            Self::Evict { target } => (Request::Evict { target }, false),
            Self::Verify { target } => (Request::Verify { target }, false),
        }
    }
}

/// Asks the agent behind `socket`, prints the answer to `out` or the refusal to `err`, and returns the exit code.
///
/// # Errors
/// Only if `out` or `err` cannot be written.
pub fn run(
    command: &LocalCommand,
    socket: &Path,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<u8> {
    let (request, json) = command.request();
    match ask(socket, &request).and_then(|reply| there(socket, reply)) {
        Ok(reply) if json => {
            serde_json::to_writer_pretty(&mut *out, &reply)?;
            writeln!(out)?;
            Ok(0)
        }
        Ok(reply) => print(&reply, out).map(|()| 0),
        Err(refusal) => {
            writeln!(err, "error: {}", refusal.message)?;
            if !refusal.hint.is_empty() {
                writeln!(err, "hint: {}", refusal.hint)?;
            }
            Ok(refusal.code.exit_code())
        }
    }
}

/// The reply, unless it names a path that is not there: a machine could not be started from it. Looked for here, as the
/// hypervisor would see it: the agent lives in a view of the file system of its own.
fn there(socket: &Path, reply: Reply) -> Result<Reply, Refusal> {
    let (Reply::Path { path } | Reply::Lease { path, .. }) = &reply else { return Ok(reply) };
    let is_missing =
        std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    if !is_missing {
        return Ok(reply);
    }
    let refusal = Refusal {
        code: Code::Failed,
        message: format!("the image is cached, but {} is not there", path.display()),
        hint: "mount the folder for consumers (systemctl start var-lib-hearth-images.mount); without the mount, set \
               consumer_dir in agent.toml to `objects` in the cache_dir"
            .to_owned(),
    };
    if let Reply::Lease { lease, .. } = &reply {
        ask(socket, &Request::Release { lease: lease.lease })?;
    }
    Err(refusal)
}

/// One question, one answer.
///
/// # Errors
/// The agent's refusal, or one with [`Code::Unreachable`].
pub fn ask(socket: &Path, request: &Request) -> Result<Reply, Refusal> {
    match exchange(socket, request) {
        Ok(Answer::Ok(reply)) => Ok(reply),
        Ok(Answer::Error(refusal)) => Err(refusal),
        Err(error) => Err(Refusal {
            code: Code::Unreachable,
            message: format!("the agent behind {} cannot be reached: {error}", socket.display()),
            hint: match error.kind() {
                io::ErrorKind::PermissionDenied => "you must be root or in the socket's group",
                _ => "is it running? `systemctl status hearth-agent`",
            }
            .to_owned(),
        }),
    }
}

fn exchange(socket: &Path, request: &Request) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "it closed the connection without an answer",
        ));
    }
    Ok(serde_json::from_str(&answer)?)
}

fn print(reply: &Reply, out: &mut dyn Write) -> io::Result<()> {
    match reply {
        Reply::Status(status) => print_status(status, out),
        Reply::Path { path } => writeln!(out, "{}", path.display()),
        Reply::Lease { lease, path } => writeln!(out, "{}\n{}", lease.lease, path.display()),
        // As QEMU reads it from a file: a line end would be part of it.
        Reply::Key { passphrase, .. } => write!(out, "{}", passphrase.reveal()).and_then(|()| out.flush()),
        Reply::Leases { leases } => {
            writeln!(out, "{:36}  {:16}  {:8}  CONSUMER", "LEASE", "CONTENT", "KIND")?;
            for lease in leases {
                let content = short(&lease.content.to_string());
                writeln!(out, "{:36}  {content:16}  {:8}  {}", lease.lease, lease.kind, lease.consumer)?;
            }
            Ok(())
        }
        Reply::Done { text } => writeln!(out, "{text}"),
    }
}

fn print_status(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    let mib = |bytes: u64| bytes >> 20;
    writeln!(out, "controller: {}", status.controller)?;
    writeln!(
        out,
        "cache: {} of {} MiB used, {} MiB free on disk ({} MiB must stay free)",
        mib(status.used_bytes),
        mib(status.budget_bytes),
        mib(status.free_bytes),
        mib(status.floor_bytes)
    )?;
    if !status.degraded.is_empty() {
        writeln!(out, "READ-ONLY: {}", status.degraded)?;
    }
    writeln!(
        out,
        "\n{:16}  {:13}  {:>5}  {:>10}  {:>6}  IMAGES",
        "CONTENT", "STATUS", "DONE", "ALLOCATED", "LEASES"
    )?;
    for entry in &status.entries {
        let percent = entry.done_bytes.saturating_mul(100).checked_div(entry.data_bytes).unwrap_or(100);
        let content = short(&entry.content.to_string());
        let allocated = format!("{} MiB", mib(entry.allocated_bytes));
        let images = entry.images.join(", ");
        let pin = if entry.pinned { " [pinned here]" } else { "" };
        let reason = if entry.reason.is_empty() { String::new() } else { format!(" ({})", entry.reason) };
        writeln!(
            out,
            "{content:16}  {:13}  {percent:>4}%  {allocated:>10}  {:>6}  {images}{pin}{reason}",
            entry.status, entry.leases
        )?;
    }
    Ok(())
}

fn short(id: &str) -> String {
    id.chars().take(16).collect()
}

//! The attributes of an image as options, for `import` and `set` alike.

use clap::Args;
use hearth_protocol::words::{Architecture, DiskDriver, NetworkDriver, OsType};

use crate::size;

/// What an image says of itself and may be changed later.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Attributes")]
pub(crate) struct Attributes {
    /// x86_64 or aarch64
    #[arg(long)]
    pub(crate) architecture: Option<Architecture>,
    /// linux, windows, macos, vmware or other
    #[arg(long)]
    pub(crate) os_type: Option<OsType>,
    /// For example Debian; see `hearth image distributions`
    #[arg(long)]
    pub(crate) distribution: Option<String>,
    /// Version of the distribution
    #[arg(long, value_name = "TEXT")]
    pub(crate) os_version: Option<String>,
    /// For people
    #[arg(long)]
    pub(crate) description: Option<String>,
    /// Smallest disk of a machine made of it
    #[arg(long, value_name = "SIZE", value_parser = size::parse_bytes)]
    pub(crate) min_disk: Option<u64>,
    /// Smallest memory of a machine made of it
    #[arg(long, value_name = "SIZE", value_parser = size::parse_bytes)]
    pub(crate) min_memory: Option<u64>,
    /// How a machine sees its disks: auto, virtio, scsi, pvscsi, ide or sata
    #[arg(long, value_name = "WORD")]
    pub(crate) disk_driver: Option<DiskDriver>,
    /// How a machine sees its network: auto, virtio, e1000 or vmxnet3
    #[arg(long, value_name = "WORD")]
    pub(crate) network_driver: Option<NetworkDriver>,
    /// Language of the operating system, for example zh_CN
    #[arg(long, value_name = "TEXT")]
    pub(crate) os_language: Option<String>,
    /// Application platform that is installed
    #[arg(long, value_name = "TEXT")]
    pub(crate) app_platform: Option<String>,
    /// Whether a password can be set for machines made of it
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) password_enabled: Option<bool>,
    /// Free property; may be given again
    #[arg(long = "property", value_name = "NAME=VALUE", value_parser = parse_property)]
    pub(crate) properties: Vec<(String, String)>,
}

fn parse_property(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = pair.ok_or_else(|| format!("{text:?} is no property: write NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_pairs() {
        assert_eq!(parse_property("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(parse_property("a").is_err() && parse_property("=b").is_err());
    }
}

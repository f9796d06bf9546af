//! `hearth image list`: filters, orders, and what is cached where.

use clap::Args;
use hearth_protocol::api::image::{Image, ImagePage};
use hearth_protocol::words::{
    Architecture, DiskFormat, ImageKind, ImageSort, ImageStatus, ImageView, OsType, ShareStatus, SortOrder,
    Virtualisation, Visibility,
};

use super::{SEE, grid};
use crate::args::Session;
use crate::client::Client;
use crate::failure::Exit;
use crate::log::back;
use crate::names;
use crate::output::Cell;
use crate::size;
use crate::when::{Moment, parse_past};

/// List images.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image list
  hearth image list --status killed
  hearth image list --view shared --share-status pending
  hearth image list --search debian -o csv
  hearth image list --tag prod --os-type linux --sort size --order desc
  hearth image list --created-after 7d --count
  hearth image list --at cn-north-1       # which of them are cached there")]
pub(crate) struct List {
    #[command(flatten)]
    filter: Filter,
    /// Only say how many there are; exact up to 10,000
    #[arg(long)]
    count: bool,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// Which images, and in which order.
#[derive(Debug, Args)]
pub(crate) struct Filter {
    /// Only images whose name or description holds this, or whose status begins with it
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// Only images whose name holds this
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// Only with this tag; given again: with all of them
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Only this status: queued, saving, importing, active, deactivated, killed, pending_delete
    #[arg(long)]
    status: Option<ImageStatus>,
    /// Only this kind: disk or iso
    #[arg(long)]
    kind: Option<ImageKind>,
    /// Only this format: raw, qcow2, vmdk, vhd, vhdx or iso
    #[arg(long)]
    disk_format: Option<DiskFormat>,
    /// Only this operating system: linux, windows, macos, vmware or other
    #[arg(long)]
    os_type: Option<OsType>,
    /// Only this architecture: x86_64 or aarch64
    #[arg(long)]
    architecture: Option<Architecture>,
    /// Only what was built for this: kvm, vmware, hyperv, xen or other
    #[arg(long, value_name = "WORD")]
    virtualisation: Option<Virtualisation>,
    /// Only private, shared or public ones
    #[arg(long)]
    visibility: Option<Visibility>,
    /// Only this part: all, featured, public, private (your own), shared (with you)
    #[arg(long)]
    view: Option<ImageView>,
    /// With --view shared: pending, accepted (default) or rejected
    #[arg(long, value_name = "STATUS")]
    share_status: Option<ShareStatus>,
    /// Only of this domain, by name or id
    #[arg(long, value_name = "DOMAIN")]
    domain: Option<String>,
    /// Only of this project, by name or id
    #[arg(long, value_name = "PROJECT")]
    project: Option<String>,
    /// Only protected ones; false: only the others
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    protected: Option<bool>,
    /// Only disks of at least this size
    #[arg(long, value_name = "SIZE", value_parser = size::parse_bytes)]
    size_min: Option<u64>,
    /// Only disks of at most this size
    #[arg(long, value_name = "SIZE", value_parser = size::parse_bytes)]
    size_max: Option<u64>,
    /// Made from here on: a duration back from now (7d), a date (UTC) or RFC 3339
    #[arg(long, value_name = "WHEN", value_parser = parse_past)]
    created_after: Option<Moment>,
    /// Made before this
    #[arg(long, value_name = "WHEN", value_parser = parse_past)]
    created_before: Option<Moment>,
    /// Changed from here on
    #[arg(long, value_name = "WHEN", value_parser = parse_past)]
    updated_after: Option<Moment>,
    /// Last changed before this
    #[arg(long, value_name = "WHEN", value_parser = parse_past)]
    updated_before: Option<Moment>,
    /// By name, size, created, updated or status (default: created)
    #[arg(long, value_name = "KEY")]
    sort: Option<ImageSort>,
    /// asc or desc (default: newest, largest, or A first)
    #[arg(long)]
    order: Option<SortOrder>,
    /// Say in CACHED whether each is cached at this location (name or id)
    #[arg(long, value_name = "LOCATION")]
    at: Option<String>,
}

impl List {
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let mut query = self.filter.query(&session.client).await?;
        if self.count {
            query.extend([("count", Some("true".to_owned())), ("limit", Some("1".to_owned()))]);
            let page: ImagePage = session.client.get(&["images"], &query).await?;
            session.out.facts(&page.count, vec![("images", Cell::maybe(page.count))])?;
            return Ok(Exit::Ok);
        }
        let images: Vec<Image> = session.client.list(&["images"], &query, self.limit).await?;
        session.out.list(&images, &grid(&images))?;
        if images.is_empty() {
            session.out.remark(&format!("No image matches. {SEE}."))?;
        }
        Ok(Exit::Ok)
    }
}

impl Filter {
    /// As the API takes it.
    ///
    /// # Errors
    /// A name of a domain or project that is not found.
    pub(super) async fn query(&self, client: &Client) -> anyhow::Result<Vec<(&'static str, Option<String>)>> {
        fn text<T: ToString>(value: Option<T>) -> Option<String> {
            value.map(|value| value.to_string())
        }
        let domain = match &self.domain {
            Some(domain) => Some(names::domain_id(client, domain).await?),
            None => None,
        };
        let project = names::maybe_project(client, self.project.as_deref()).await?;
        let mut query = vec![
            ("q", self.search.clone()),
            ("name_contains", self.name.clone()),
            ("status", text(self.status)),
            ("kind", text(self.kind)),
            ("format", text(self.disk_format)),
            ("os_type", text(self.os_type)),
            ("architecture", text(self.architecture)),
            ("virtualisation", text(self.virtualisation)),
            ("visibility", text(self.visibility)),
            ("view", text(self.view)),
            ("share_status", text(self.share_status)),
            ("domain", text(domain)),
            ("project", text(project)),
            ("protected", text(self.protected)),
            ("size_min", text(self.size_min)),
            ("size_max", text(self.size_max)),
            ("created_after", self.created_after.map(back)),
            ("created_before", self.created_before.map(back)),
            ("updated_after", self.updated_after.map(back)),
            ("updated_before", self.updated_before.map(back)),
            ("sort", text(self.sort)),
            ("order", text(self.order)),
            ("at", self.at.clone()),
        ];
        query.extend(self.tags.iter().map(|tag| ("tag", Some(tag.clone()))));
        Ok(query)
    }
}

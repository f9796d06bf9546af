//! `hearth image set` and the verbs that switch something.
//!
//! **Invariants.** `set` changes the revision that it read: whoever was faster is not overwritten.

use clap::Args;
use hearth_protocol::api::image::Image;
use hearth_protocol::api::image_update::{Edit, ImageUpdate};

use super::attributes::Attributes;
use super::facts;
use crate::args::Session;
use crate::failure::{Exit, Failure};
use crate::names;

/// Change what an image says of itself.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image set noble --name noble-2 --description 'with nginx'
  hearth image set noble --os-type linux --distribution Ubuntu --os-version 24.04
  hearth image set noble --property team=db --remove-property owner
  hearth image set noble --clear description,min-disk
  hearth image set noble --min-disk 20GiB --revision 7    # only if nobody changed it since

Tags: `hearth image tag` and `hearth image untag`, also on many images.")]
pub(crate) struct Set {
    /// Name or id
    image: String,
    /// New name
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    attributes: Attributes,
    /// Take a free property away; may be given again
    #[arg(long = "remove-property", value_name = "NAME")]
    removed: Vec<String>,
    /// Empty these attributes
    #[arg(long, value_name = "ATTRIBUTE", value_delimiter = ',', value_enum)]
    clear: Vec<Clear>,
    /// Only if the record has this revision (default: the one that is there now)
    #[arg(long, value_name = "N")]
    revision: Option<u64>,
}

/// What can be emptied.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum Clear {
    Description,
    Architecture,
    OsType,
    Distribution,
    OsVersion,
    MinDisk,
    MinMemory,
    DiskDriver,
    NetworkDriver,
    OsLanguage,
    AppPlatform,
    PasswordEnabled,
    Tags,
    Properties,
}

/// Give images tags.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image tag noble --tag prod
  hearth image tag noble jammy --tag prod --tag db")]
pub(crate) struct Tag {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
    /// Tag, 1 to 64 characters; may be given again
    #[arg(long = "tag", required = true, value_name = "TAG")]
    pub(crate) tags: Vec<String>,
}

/// Take tags away from images.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image untag noble jammy --tag prod")]
pub(crate) struct Untag {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
    /// Tag, whatever its case; may be given again
    #[arg(long = "tag", required = true, value_name = "TAG")]
    pub(crate) tags: Vec<String>,
}

macro_rules! switches {
    ($($(#[$doc:meta])* $name:ident, $examples:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Args)]
        #[command(after_help = $examples)]
        pub(crate) struct $name {
            /// Names or ids
            #[arg(required = true, value_name = "IMAGE")]
            pub(crate) images: Vec<String>,
        }
    )*};
}

switches! {
    /// Refuse deletion of images.
    Protect, "Examples:\n  hearth image protect noble jammy";
    /// Allow deletion of images again.
    Unprotect, "Examples:\n  hearth image unprotect noble";
    /// Close images to users.
    Deactivate, "Examples:\n  hearth image deactivate noble";
    /// Open deactivated images to users again.
    Reactivate, "Examples:\n  hearth image reactivate noble";
}

impl Set {
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let image = names::image(&session.client, &self.image).await?;
        let revision = self.revision.unwrap_or(image.revision);
        let update = self.update(&image)?;
        let path = ["images", &image.id.to_string()];
        let image: Image = session.client.patch(&path, &update, revision).await?;
        session.out.facts(&image, facts(&image))?;
        Ok(Exit::Ok)
    }

    fn update(self, image: &Image) -> Result<ImageUpdate, Failure> {
        let mut properties = image.properties.clone();
        properties.extend(self.attributes.properties.clone());
        properties.retain(|name, _| !self.removed.contains(name));
        let attributes = self.attributes;
        let mut update = ImageUpdate {
            name: self.name.into(),
            description: attributes.description.into(),
            architecture: attributes.architecture.into(),
            os_type: attributes.os_type.into(),
            distribution: attributes.distribution.into(),
            version: attributes.os_version.into(),
            min_disk_bytes: attributes.min_disk.into(),
            min_memory_bytes: attributes.min_memory.into(),
            disk_driver: attributes.disk_driver.into(),
            network_driver: attributes.network_driver.into(),
            os_language: attributes.os_language.into(),
            app_platform: attributes.app_platform.into(),
            password_enabled: attributes.password_enabled.into(),
            properties: if properties == image.properties { Edit::Keep } else { Edit::Set(properties) },
            ..ImageUpdate::default()
        };
        self.clear.into_iter().for_each(|field| field.apply(&mut update));
        if update.is_empty() {
            return Err(Failure::new(Exit::Usage, "nothing is to be changed")
                .hint("name an attribute, for example --description; `hearth image set --help` lists them"));
        }
        Ok(update)
    }
}

impl Clear {
    fn apply(self, update: &mut ImageUpdate) {
        match self {
            Self::Description => update.description = Edit::Clear,
            Self::Architecture => update.architecture = Edit::Clear,
            Self::OsType => update.os_type = Edit::Clear,
            Self::Distribution => update.distribution = Edit::Clear,
            Self::OsVersion => update.version = Edit::Clear,
            Self::MinDisk => update.min_disk_bytes = Edit::Clear,
            Self::MinMemory => update.min_memory_bytes = Edit::Clear,
            Self::DiskDriver => update.disk_driver = Edit::Clear,
            Self::NetworkDriver => update.network_driver = Edit::Clear,
            Self::OsLanguage => update.os_language = Edit::Clear,
            Self::AppPlatform => update.app_platform = Edit::Clear,
            Self::PasswordEnabled => update.password_enabled = Edit::Clear,
            Self::Tags => update.tags = Edit::Clear,
            Self::Properties => update.properties = Edit::Clear,
        }
    }
}

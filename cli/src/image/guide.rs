//! `hearth image guide`: how images are made and converted, printed without a controller.

use clap::Args;

use crate::failure::Exit;
use crate::output;

/// The page of the documentation, as it was when this program was built.
const PAGE: &str = include_str!("../../../docs/making-images.md");

/// Where refusals and empty lists send people.
pub(crate) const SEE: &str = "`hearth image guide` tells how to make and convert images";

/// Tell how to make and convert images.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image guide
  hearth image guide | less")]
pub(crate) struct Guide {}

impl Guide {
    /// Prints the page.
    pub(crate) fn run(&self) -> anyhow::Result<Exit> {
        output::print(PAGE)?;
        Ok(Exit::Ok)
    }
}

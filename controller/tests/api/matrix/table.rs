//! Who may do what, once more: written from the text of the design, not from the code.
//!
//! **What.** One line per action. A new action gets its line in [`TABLE`]; one that changes a thing of a new kind also
//! gets a target in `world`.
//! **Why twice.** A rule that is wrong in the code is wrong in a test that asks the code. Here it must be wrong twice.

use hearth_protocol::words::Role;

/// Where a caller's role holds, as seen from the project that owns what is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum From {
    System,
    OwnDomain,
    OtherDomain,
    OwnProject,
    /// Another project of the domain.
    Sibling,
    /// A project of another domain.
    Foreign,
}

impl From {
    pub(crate) const ALL: [Self; 6] =
        [Self::System, Self::OwnDomain, Self::OtherDomain, Self::OwnProject, Self::Sibling, Self::Foreign];

    const fn is_project(self) -> bool {
        matches!(self, Self::OwnProject | Self::Sibling | Self::Foreign)
    }

    /// Whether the owning project lies inside.
    pub(crate) const fn owns(self) -> bool {
        matches!(self, Self::System | Self::OwnDomain | Self::OwnProject)
    }

    /// Whether the owning domain lies inside.
    pub(crate) const fn manages(self) -> bool {
        matches!(self, Self::System | Self::OwnDomain)
    }
}

/// Who may see the image that is asked for, beside its owner.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Seen {
    Private,
    SharedWithCaller,
    SharedWithOthers,
    Public,
}

impl Seen {
    pub(crate) const ALL: [Self; 4] =
        [Self::Private, Self::SharedWithCaller, Self::SharedWithOthers, Self::Public];

    /// Whether a caller may see the image.
    pub(crate) const fn by(self, from: From) -> bool {
        from.owns() || matches!(self, Self::SharedWithCaller | Self::Public)
    }
}

/// Over what a role must hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Of {
    /// One's own matters: everybody's.
    Own,
    /// The whole system.
    System,
    /// What lies in one's own domains: not for a role in a project.
    OwnDomains,
    /// Whatever lies in the owning project.
    Project,
    /// The owning domain, or what only its administrators touch.
    Domain,
    /// The owning domain, which those who lie in it may look at.
    DomainLook,
    /// An image that is looked at.
    ImageLook,
    /// An image that is changed.
    Image,
    /// A token of the owning project that gets another secret.
    Secret,
}

/// What must happen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Expect {
    /// It is done, or refused for another reason than rights.
    Allow,
    /// 403.
    Deny,
    /// 404, exactly like what does not exist.
    Hide,
}

use Of::{Domain, DomainLook, Image, ImageLook, Own, OwnDomains, Project, Secret, System};
use Role::{Admin, Member, Reader};

/// One line per action: its name, the least role, and over what it must hold.
pub(crate) const TABLE: &[(&str, Role, Of)] = &[
    // Everybody about themselves.
    ("token.whoami", Reader, Own),
    ("token.logout", Reader, Own),
    ("token.rotate", Reader, Secret),
    ("user.change_password", Reader, Own),
    // Nobody gives away more than they have.
    ("token.list", Admin, Own),
    ("token.create", Admin, Project),
    ("token.revoke", Admin, Project),
    // Domains are the system's; projects, users and grants are a domain's.
    ("domain.list", Reader, Own),
    ("domain.show", Reader, DomainLook),
    ("domain.create", Admin, System),
    ("domain.update", Admin, System),
    ("domain.delete", Admin, System),
    ("project.list", Reader, Own),
    ("project.show", Reader, Project),
    ("project.create", Admin, Domain),
    ("project.update", Admin, Domain),
    ("project.delete", Admin, Domain),
    ("user.list", Reader, OwnDomains),
    ("user.show", Reader, Domain),
    ("user.create", Admin, Domain),
    ("user.update", Admin, Domain),
    ("user.delete", Admin, Domain),
    ("user.set_password", Admin, Domain),
    ("grant.list", Admin, Own),
    ("grant.create", Admin, Domain),
    ("grant.revoke", Admin, Domain),
    // Images: seen by the owner, by all, or by those they are shared with; changed by members of the owner.
    ("image.list", Reader, Own),
    ("image.show", Reader, ImageLook),
    ("image.download", Member, ImageLook),
    ("image.create", Member, Project),
    ("image.publish", Admin, System),
    ("image.publish_own", Member, Image),
    ("image.upload", Member, Image),
    ("image.retry", Member, Image),
    ("image.delete", Member, Image),
    ("image.log", Reader, Image),
    ("image.link", Member, Image),
    ("image.link_list", Member, Image),
    ("image.link_revoke", Member, Image),
    ("operation.show", Reader, Own),
    ("image.launch", Member, ImageLook),
    ("image.destroy", Member, Image),
    ("image.restore", Member, Image),
    ("image.cancel", Member, Image),
    ("image.update", Member, Image),
    ("image.protect", Member, Image),
    ("image.unprotect", Member, Image),
    ("image.deactivate", Admin, Image),
    ("image.reactivate", Admin, Image),
    ("image.batch", Member, Own),
    ("image.feature", Admin, System),
    ("image.owner", Admin, Image),
    ("variant.create", Member, Image),
    ("variant.delete", Member, Image),
    ("share.list", Reader, Image),
    ("share.create", Member, Image),
    ("share.beyond", Admin, System),
    ("share.remove", Member, Image),
    ("share.accept", Member, Image),
    ("share.reject", Member, Image),
    ("quota.show", Reader, Project),
    ("quota.update", Admin, System),
    ("usage.read", Reader, Own),
    ("host_image.list", Reader, Own),
    ("host_image.show", Reader, Image),
    ("host_image.create", Member, Project),
    ("host_image.publish", Admin, System),
    ("host_image.update", Member, Image),
    ("host_image.protect", Member, Image),
    ("host_image.delete", Member, Image),
    // Hosts, copies, jobs, the log: read by the system's readers, changed by its administrators.
    ("cache.list", Reader, System),
    ("cache.create", Admin, System),
    ("cache.remove", Admin, System),
    ("cache.pin", Admin, System),
    ("location.list", Reader, System),
    ("location.update", Admin, System),
    ("location.remove", Admin, System),
    ("join_token.list", Reader, System),
    ("join_token.create", Admin, System),
    ("join_token.revoke", Admin, System),
    ("prewarm.list", Reader, System),
    ("prewarm.create", Admin, System),
    ("prewarm.steer", Admin, System),
    ("operation.list", Reader, System),
    ("operation.verify", Reader, System),
    ("system.show", Reader, System),
    ("event.read", Reader, System),
    ("metrics.read", Reader, System),
    ("transfers.steer", Admin, System),
];

/// Routes that need no token.
pub(crate) const OPEN: &[&str] =
    &["/healthz", "/readyz", "/api/v1/openapi.json", "/api/v1/login", "/d/{link}/{name}"];

/// Actions that change the images of the world, which all cases share: here it is asked who may not; that who may can is
/// proved by the tests of each.
pub(crate) const CHANGES: &[&str] = &[
    "image.launch",
    "image.destroy",
    "image.restore",
    "image.cancel",
    "image.update",
    "image.protect",
    "image.unprotect",
    "image.deactivate",
    "image.reactivate",
    "image.publish",
    "image.publish_own",
    "image.feature",
    "image.owner",
    "image.link",
    "variant.create",
    "variant.delete",
    "quota.update",
];

/// Whether an action follows a rule of its own, which tests of its own judge: `sharing` and `worlds` (who may answer an offer),
/// `host_rights`, and `oplog` (the log of a public image is its owner's alone).
pub(crate) fn has_tests_of_its_own(action: &str) -> bool {
    ["share.", "host_image."].iter().any(|noun| action.starts_with(noun)) || action == "image.log"
}

/// The line of an action.
pub(crate) fn line(action: &str) -> Option<(Role, Of)> {
    TABLE.iter().find(|(name, ..)| *name == action).map(|(_, role, of)| (*role, *of))
}

/// What must happen when a role that holds `from` there asks for an action with this line.
pub(crate) fn expect((least, of): (Role, Of), role: Role, from: From, seen: Seen) -> Expect {
    let strength = |role| match role {
        Reader => 0,
        Member => 1,
        Admin => 2,
    };
    // The door: refused before anybody looks at what is asked for.
    let at_the_door = strength(role) < strength(least)
        || (of == System && from != From::System)
        || (matches!(of, Domain | OwnDomains) && from.is_project());
    if at_the_door {
        return Expect::Deny;
    }
    let of_those_who_see = |sees, may| match (sees, may) {
        (false, _) => Expect::Hide,
        (true, true) => Expect::Allow,
        (true, false) => Expect::Deny,
    };
    match of {
        Own | OwnDomains | System => Expect::Allow,
        Project => of_those_who_see(from.owns(), true),
        Domain => of_those_who_see(from.manages(), true),
        DomainLook => of_those_who_see(from.owns() || from == From::Sibling, true),
        ImageLook => of_those_who_see(seen.by(from), true),
        Image => of_those_who_see(seen.by(from), from.owns()),
        Secret => of_those_who_see(from.owns(), role == Admin),
    }
}

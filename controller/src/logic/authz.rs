//! Who may do what: the one decision that every route asks.
//!
//! **What.** [`authorize`] takes who asks, what they want to do and to what, and answers with a [`Decision`]. The
//! rights table is [`Action::rule`]: one row per action; a route cannot be registered without an action.
//!
//! **Why one pure function.** Checks that are spread over handlers are forgotten in one of them. Here the whole
//! table is tested against an independent one, and nothing but its arguments can change an answer: no header, no
//! clock, no database.
//!
//! **Invariants**, each with a test of the same name:
//! 1. `what_the_table_does_not_allow_is_denied`
//! 2. `an_image_that_may_not_be_seen_is_hidden_not_denied`: its existence shows in no answer.
//! 3. `nobody_makes_a_token_that_may_do_more_than_its_maker`
//! 4. `nobody_takes_over_a_user_who_may_do_more`: whoever sets a password can log in with it.
//! 6. `an_offered_image_is_known_but_not_used`: until it is accepted.
//! 5. `what_lies_outside_the_scope_is_hidden_but_what_it_lies_in_is_not`: ids of others cannot be tried out.

use hearth_protocol::id::{DomainId, ProjectId};
use hearth_protocol::words::{Role, ShareStatus, Visibility};

/// Where a principal's role holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scope {
    /// Everywhere.
    System,
    /// In this domain and all its projects.
    Domain(DomainId),
    /// In this project alone.
    Project(DomainId, ProjectId),
}

impl Scope {
    /// Whether everything that is inside `other` is inside `self` too.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        match (self, other) {
            (Self::System, _) => true,
            (Self::Domain(mine), Self::Domain(domain) | Self::Project(domain, _)) => mine == domain,
            (Self::Project(domain, project), Self::Project(other_domain, other)) => {
                (domain, project) == (other_domain, other)
            }
            (Self::Domain(_) | Self::Project(..), _) => false,
        }
    }
}

/// Who asks: what a valid token says, and nothing that the request says about itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Principal {
    /// The role.
    pub role: Role,
    /// Where it holds.
    pub scope: Scope,
}

macro_rules! actions {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $role:ident, $over:ident;)*) => {
        /// Everything that can be asked of the controller over HTTP.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub enum Action {
            $($(#[$doc])* $name,)*
        }

        impl Action {
            /// Every action.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// `noun.verb`, as the operation log and refusals name it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The row of the rights table: the least role, and over what it must hold.
            #[must_use]
            pub const fn rule(self) -> (Role, Over) {
                match self { $(Self::$name => (Role::$role, Over::$over),)* }
            }
        }
    };
}

/// Over what a role must hold for an action.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Over {
    /// Any scope: the answer shows the caller's own matters only.
    Own,
    /// The system.
    System,
    /// The domain in which the resource lies: a role in a project is not enough.
    Domain,
    /// What the resource belongs to; an image that is public or shared may be read from everywhere.
    Owner,
}

// Bytes of images are more than their records: reading them takes a member. System-wide matters (hosts, copies,
// jobs, the log) are read by system readers and changed by system administrators.
actions! {
    /// One's own token's record.
    WhoAmI = "token.whoami", Reader, Own;
    /// The end of one's own token.
    Logout = "token.logout", Reader, Own;
    /// Another secret for one's own token; for a program's, whoever may end it and make it anew.
    TokenRotate = "token.rotate", Reader, Own;
    /// Another password for oneself.
    PasswordChange = "user.change_password", Reader, Own;
    /// Tokens inside one's scope.
    TokenList = "token.list", Admin, Own;
    /// A new token.
    TokenCreate = "token.create", Admin, Owner;
    /// The end of a token.
    TokenRevoke = "token.revoke", Admin, Owner;
    /// Domains that one manages or lies in.
    DomainList = "domain.list", Reader, Own;
    /// One domain.
    DomainShow = "domain.show", Reader, Owner;
    /// A new domain.
    DomainCreate = "domain.create", Admin, System;
    /// Name and state of a domain.
    DomainUpdate = "domain.update", Admin, System;
    /// The end of a domain.
    DomainDelete = "domain.delete", Admin, System;
    /// Projects inside one's scope.
    ProjectList = "project.list", Reader, Own;
    /// One project.
    ProjectShow = "project.show", Reader, Owner;
    /// A new project.
    ProjectCreate = "project.create", Admin, Domain;
    /// Name and state of a project.
    ProjectUpdate = "project.update", Admin, Domain;
    /// The end of a project.
    ProjectDelete = "project.delete", Admin, Domain;
    /// Users of one's domains.
    UserList = "user.list", Reader, Domain;
    /// One user.
    UserShow = "user.show", Reader, Domain;
    /// A new user.
    UserCreate = "user.create", Admin, Domain;
    /// Name and state of a user.
    UserUpdate = "user.update", Admin, Domain;
    /// The end of a user.
    UserDelete = "user.delete", Admin, Domain;
    /// A password for somebody else.
    UserPassword = "user.set_password", Admin, Domain;
    /// Grants inside one's scope.
    GrantList = "grant.list", Admin, Own;
    /// A role for a user.
    GrantCreate = "grant.create", Admin, Domain;
    /// The end of a grant.
    GrantRevoke = "grant.revoke", Admin, Domain;
    /// Images that one may see.
    ImageList = "image.list", Reader, Own;
    /// The record of one image.
    ImageShow = "image.show", Reader, Owner;
    /// A new record.
    ImageCreate = "image.create", Member, Owner;
    /// A public image.
    ImagePublish = "image.publish", Admin, System;
    /// One's own image made public, where the setting lets members do that.
    ImagePublishOwn = "image.publish_own", Member, Owner;
    /// The mark of what is recommended.
    ImageFeature = "image.feature", Admin, System;
    /// Another owner; the new one must lie inside the scope too.
    ImageOwner = "image.owner", Admin, Owner;
    /// The bytes of a new image.
    ImageUpload = "image.upload", Member, Owner;
    /// The original's bytes.
    ImageDownload = "image.download", Member, Owner;
    /// A machine of it at a location, which caches it there.
    ImageLaunch = "image.launch", Member, Owner;
    /// The disk of an image in another format.
    VariantCreate = "variant.create", Member, Owner;
    /// The end of such a file.
    VariantDelete = "variant.delete", Member, Owner;
    /// Another try of an import.
    ImageRetry = "image.retry", Member, Owner;
    /// The end of an image: into the recycle bin.
    ImageDelete = "image.delete", Member, Owner;
    /// What was done to an image; its owner's matter, also of a public one.
    ImageLog = "image.log", Reader, Owner;
    /// A new download link, which needs no token.
    ImageLink = "image.link", Member, Owner;
    /// Records of an image's download links.
    ImageLinkList = "image.link_list", Member, Owner;
    /// The end of a download link.
    ImageLinkRevoke = "image.link_revoke", Member, Owner;
    /// Host images that one may see.
    HostImageList = "host_image.list", Reader, Own;
    /// The record of one host image.
    HostImageShow = "host_image.show", Reader, Owner;
    /// A new host image.
    HostImageCreate = "host_image.create", Member, Owner;
    /// A public host image, or one that no longer is.
    HostImagePublish = "host_image.publish", Admin, System;
    /// Name and facts of a host image.
    HostImageUpdate = "host_image.update", Member, Owner;
    /// Protection from deletion.
    HostImageProtect = "host_image.protect", Member, Owner;
    /// The end of a host image.
    HostImageDelete = "host_image.delete", Member, Owner;
    /// The end of an image for good.
    ImageDestroy = "image.destroy", Member, Owner;
    /// The way back out of the recycle bin.
    ImageRestore = "image.restore", Member, Owner;
    /// The end of an image that is still being made.
    ImageCancel = "image.cancel", Member, Owner;
    /// What a record says.
    ImageUpdate = "image.update", Member, Owner;
    /// Protection from deletion.
    ImageProtect = "image.protect", Member, Owner;
    /// The end of that protection.
    ImageUnprotect = "image.unprotect", Member, Owner;
    /// An image that is closed to users.
    ImageDeactivate = "image.deactivate", Admin, Owner;
    /// One that is opened again.
    ImageReactivate = "image.reactivate", Admin, Owner;
    /// One action on many images; each asks for its own right.
    ImageBatch = "image.batch", Member, Own;
    /// With whom an image is shared.
    ShareList = "share.list", Reader, Owner;
    /// More receivers of an image.
    ShareCreate = "share.create", Member, Owner;
    /// Receivers beyond the domain.
    ShareBeyond = "share.beyond", Admin, System;
    /// Fewer receivers.
    ShareRemove = "share.remove", Member, Owner;
    /// A shared image taken into the receiver's lists.
    ShareAccept = "share.accept", Member, Owner;
    /// A shared image kept out of them.
    ShareReject = "share.reject", Member, Owner;
    /// What a project may have.
    QuotaShow = "quota.show", Reader, Owner;
    /// Another limit.
    QuotaUpdate = "quota.update", Admin, System;
    /// What projects inside one's scope have stored.
    UsageRead = "usage.read", Reader, Own;
    /// Where an image is cached.
    CacheList = "cache.list", Reader, System;
    /// Copies made by hand.
    CacheCreate = "cache.create", Admin, System;
    /// The end of a copy.
    CacheRemove = "cache.remove", Admin, System;
    /// The hold of a copy.
    CachePin = "cache.pin", Admin, System;
    /// Locations.
    LocationList = "location.list", Reader, System;
    /// Facts and state of a location.
    LocationUpdate = "location.update", Admin, System;
    /// The end of a location and its certificate.
    LocationRemove = "location.remove", Admin, System;
    /// Records of join tokens.
    JoinTokenList = "join_token.list", Reader, System;
    /// A new join token.
    JoinTokenCreate = "join_token.create", Admin, System;
    /// The end of a join token.
    JoinTokenRevoke = "join_token.revoke", Admin, System;
    /// Prewarm jobs.
    PrewarmList = "prewarm.list", Reader, System;
    /// A new prewarm job.
    PrewarmCreate = "prewarm.create", Admin, System;
    /// Pause, resume, cancel, retry.
    PrewarmSteer = "prewarm.steer", Admin, System;
    /// The operation log.
    OperationList = "operation.list", Reader, System;
    /// One operation: any for the system, else those on one's own images.
    OperationShow = "operation.show", Reader, Own;
    /// The check of its chain.
    OperationVerify = "operation.verify", Reader, System;
    /// Facts of the controller.
    SystemShow = "system.show", Reader, System;
    /// What changes.
    EventRead = "event.read", Reader, System;
    /// Figures for monitoring.
    MetricsRead = "metrics.read", Reader, System;
    /// Stop and start of all transfers.
    TransfersSteer = "transfers.steer", Admin, System;
}

/// To what something is done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Resource {
    /// Nothing that belongs to a tenant: system-wide matters, or a list that is cut to what the caller may see.
    Whole,
    /// An image, or a host image.
    Image {
        /// Owner.
        domain: DomainId,
        /// Owner.
        project: ProjectId,
        /// Who may see it.
        visibility: Visibility,
        /// The strongest share that reaches the caller (its project, its domain, for a domain also its projects); `None`:
        /// none does.
        share: Option<ShareStatus>,
    },
    /// A domain, or a place in it for projects and users.
    Domain(DomainId),
    /// A project, or a place in it for new images.
    Project {
        /// Its domain.
        domain: DomainId,
        /// Itself.
        project: ProjectId,
    },
    /// A token with these rights.
    Token(Principal),
    /// A user. Who would change one asks once for each of its grants.
    User {
        /// Its domain.
        domain: DomainId,
        /// What it may do by one of its grants.
        holds: Option<Principal>,
    },
    /// A grant of these rights.
    Grant(Principal),
}

/// What [`authorize`] says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Decision {
    /// Go on.
    Allow,
    /// Refuse, and say so.
    Deny,
    /// Answer as if it did not exist.
    Hide,
}

/// Decides whether `principal` may do `action` to `resource`. What no rule allows is denied.
#[must_use]
pub fn authorize(principal: Principal, action: Action, resource: &Resource) -> Decision {
    let (role, over) = action.rule();
    let enough = includes(principal.role, role);
    match (over, resource) {
        (Over::Own, Resource::Whole) => allow_if(enough),
        (Over::System, Resource::Whole) => allow_if(enough && principal.scope == Scope::System),
        (Over::Owner, Resource::Project { domain, project }) => {
            if !principal.scope.covers(Scope::Project(*domain, *project)) {
                return Decision::Hide;
            }
            allow_if(enough)
        }
        (Over::Owner, Resource::Token(given)) => give(principal, action, *given, enough),
        (Over::Domain, Resource::Grant(given)) => {
            give(principal, action, *given, enough && may_ever(principal, action))
        }
        (Over::Owner, Resource::Domain(domain)) => {
            let known = Scope::Domain(*domain).covers(principal.scope) || principal.scope == Scope::System;
            if known { allow_if(enough) } else { Decision::Hide }
        }
        (Over::Domain, Resource::Whole) => allow_if(enough && may_ever(principal, action)),
        (Over::Domain, Resource::Domain(domain)) => {
            let inside = Scope::Domain(*domain).covers(principal.scope);
            manage(principal, *domain, inside, enough)
        }
        (Over::Domain, Resource::Project { domain, project }) => {
            let known = principal.scope.covers(Scope::Project(*domain, *project));
            manage(principal, *domain, known, enough)
        }
        (Over::Domain, Resource::User { domain, holds }) => {
            let more = holds.is_some_and(|held| {
                !(principal.scope.covers(held.scope) && includes(principal.role, held.role))
            });
            manage(principal, *domain, false, enough && !more)
        }
        (Over::Owner, Resource::Image { domain, project, visibility, share }) => {
            let owned = principal.scope.covers(Scope::Project(*domain, *project));
            if !owned && action == Action::ImageLog {
                // Who works on a public image is nobody else's business, not even whether somebody does.
                return Decision::Hide;
            }
            let share = share.filter(|_| *visibility == Visibility::Shared);
            let usable = *visibility == Visibility::Public || share == Some(ShareStatus::Accepted);
            if !owned && !usable && share.is_none() {
                return Decision::Hide;
            }
            let allowed = match action {
                _ if owned => true,
                Action::ShareList | Action::ShareAccept | Action::ShareReject => share.is_some(),
                // Who is to answer an offer must see what is offered.
                Action::ImageShow | Action::HostImageShow => true,
                action => usable && reads(action),
            };
            allow_if(enough && allowed)
        }
        _ => Decision::Deny,
    }
}

/// The rule for what carries rights: nobody gives or takes more than they have.
fn give(principal: Principal, action: Action, given: Principal, enough: bool) -> Decision {
    if !principal.scope.covers(given.scope) {
        // Whoever is in a domain knows that it exists, and the system. Anything else might as well not.
        let makes = matches!(action, Action::TokenCreate | Action::GrantCreate);
        let known = makes && given.scope.covers(principal.scope);
        return if known { Decision::Deny } else { Decision::Hide };
    }
    allow_if(enough && includes(principal.role, given.role))
}

/// The rule for what lies in a domain: the domain's role decides; others may at most know that it exists.
fn manage(principal: Principal, domain: DomainId, known: bool, enough: bool) -> Decision {
    match (principal.scope.covers(Scope::Domain(domain)), known) {
        (true, _) => allow_if(enough),
        (false, true) => Decision::Deny,
        (false, false) => Decision::Hide,
    }
}

/// Whether `principal` may do `action` to anything at all: the check in front of every route, before anything of
/// the request but its head is read.
#[must_use]
pub fn may_ever(principal: Principal, action: Action) -> bool {
    let (role, over) = action.rule();
    let high_enough = match over {
        Over::System => principal.scope == Scope::System,
        Over::Domain => !matches!(principal.scope, Scope::Project(..)),
        Over::Own | Over::Owner => true,
    };
    includes(principal.role, role) && high_enough
}

/// Which images a plain list shows: what one may use, not what is only offered.
#[must_use]
pub fn lists_image(principal: Principal, image: &Resource) -> bool {
    let Resource::Image { domain, project, visibility, share } = image else { return false };
    let owned = principal.scope.covers(Scope::Project(*domain, *project));
    let accepted = *visibility == Visibility::Shared && *share == Some(ShareStatus::Accepted);
    authorize(principal, Action::ImageShow, image) == Decision::Allow
        && (owned || accepted || *visibility == Visibility::Public)
}

const fn allow_if(condition: bool) -> Decision {
    if condition { Decision::Allow } else { Decision::Deny }
}

/// Whether `mine` is at least `needed`: admin includes member includes reader.
const fn includes(mine: Role, needed: Role) -> bool {
    matches!(
        (mine, needed),
        (Role::Admin, _) | (Role::Member, Role::Member | Role::Reader) | (Role::Reader, Role::Reader)
    )
}

/// Actions on an image that leave it as it is.
const fn reads(action: Action) -> bool {
    matches!(action, Action::ImageShow | Action::ImageDownload | Action::ImageLaunch | Action::HostImageShow)
}

#[cfg(test)]
mod tests;

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
//! 4. `what_lies_outside_the_scope_is_hidden_but_what_it_lies_in_is_not`: ids of others cannot be tried out.

use hearth_protocol::id::{DomainId, ProjectId};
use hearth_protocol::words::{Role, Visibility};

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
    /// What the resource belongs to; an image that is public or shared may be read from everywhere.
    Owner,
}

// Bytes of images are more than their records: reading them takes a member. System-wide matters (hosts, copies,
// jobs, the log) are read by system readers and changed by system administrators.
actions! {
    /// One's own token's record.
    WhoAmI = "token.whoami", Reader, Own;
    /// Tokens inside one's scope.
    TokenList = "token.list", Admin, Own;
    /// A new token.
    TokenCreate = "token.create", Admin, Owner;
    /// The end of a token.
    TokenRevoke = "token.revoke", Admin, Owner;
    /// Images that one may see.
    ImageList = "image.list", Reader, Own;
    /// The record of one image.
    ImageShow = "image.show", Reader, Owner;
    /// A new record.
    ImageCreate = "image.create", Member, Owner;
    /// A public image.
    ImagePublish = "image.publish", Admin, System;
    /// The bytes of a new image.
    ImageUpload = "image.upload", Member, Owner;
    /// Bytes that the controller gets by itself.
    ImageFetch = "image.fetch", Member, Owner;
    /// A look at a source without fetching it.
    SourceCheck = "source.check", Member, Own;
    /// The original's bytes.
    ImageDownload = "image.download", Member, Owner;
    /// Another try of an import.
    ImageRetry = "image.retry", Member, Owner;
    /// The end of an image.
    ImageDelete = "image.delete", Member, Owner;
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
    /// An image.
    Image {
        /// Owner.
        domain: DomainId,
        /// Owner.
        project: ProjectId,
        /// Who may see it.
        visibility: Visibility,
        /// Whether it is shared with the caller's project.
        shared_with_caller: bool,
    },
    /// A place for new images.
    Project {
        /// Its domain.
        domain: DomainId,
        /// Itself.
        project: ProjectId,
    },
    /// A token with these rights.
    Token(Principal),
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
        (Over::Owner, Resource::Token(token)) => {
            if !principal.scope.covers(token.scope) {
                // Whoever is in a domain knows that it exists, and the system. Anything else might as well not.
                let known = action == Action::TokenCreate && token.scope.covers(principal.scope);
                return if known { Decision::Deny } else { Decision::Hide };
            }
            allow_if(enough && includes(principal.role, token.role))
        }
        (Over::Owner, Resource::Image { domain, project, visibility, shared_with_caller }) => {
            let owned = principal.scope.covers(Scope::Project(*domain, *project));
            let shown = *visibility == Visibility::Public
                || (*visibility == Visibility::Shared && *shared_with_caller);
            if !owned && !shown {
                return Decision::Hide;
            }
            allow_if(enough && (owned || reads(action)))
        }
        _ => Decision::Deny,
    }
}

/// Whether `principal` may do `action` to anything at all: the check in front of every route, before anything of
/// the request but its head is read.
#[must_use]
pub fn may_ever(principal: Principal, action: Action) -> bool {
    let (role, over) = action.rule();
    includes(principal.role, role) && (over != Over::System || principal.scope == Scope::System)
}

/// Which images a list shows.
#[must_use]
pub fn sees_image(principal: Principal, image: &Resource) -> bool {
    authorize(principal, Action::ImageShow, image) == Decision::Allow
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
    matches!(action, Action::ImageShow | Action::ImageDownload)
}

#[cfg(test)]
mod tests;

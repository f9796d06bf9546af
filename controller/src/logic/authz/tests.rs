//! The rights table against an independent one, over the full product.

use super::*;

const DOMAINS: [DomainId; 2] = [DomainId::from_bytes([1; 16]), DomainId::from_bytes([2; 16])];
const PROJECTS: [ProjectId; 3] =
    [ProjectId::from_bytes([11; 16]), ProjectId::from_bytes([12; 16]), ProjectId::from_bytes([13; 16])];

/// The project that owns what the tests ask for is the first of the first domain.
const HOME: Scope = Scope::Project(DOMAINS[0], PROJECTS[0]);

fn scopes() -> [Scope; 6] {
    [
        Scope::System,
        Scope::Domain(DOMAINS[0]),
        Scope::Domain(DOMAINS[1]),
        HOME,
        Scope::Project(DOMAINS[0], PROJECTS[1]),
        Scope::Project(DOMAINS[1], PROJECTS[2]),
    ]
}

fn principals() -> impl Iterator<Item = Principal> {
    scopes().into_iter().flat_map(|scope| Role::ALL.iter().map(move |role| Principal { role: *role, scope }))
}

fn image(visibility: Visibility, share: Option<ShareStatus>) -> Resource {
    Resource::Image { domain: DOMAINS[0], project: PROJECTS[0], visibility, share }
}

fn shares() -> impl Iterator<Item = Option<ShareStatus>> {
    ShareStatus::ALL.iter().copied().map(Some).chain([None])
}

/// Written from the text of the design, not from the code: who is "inside" the home project.
fn at_home(principal: Principal) -> bool {
    [Scope::System, Scope::Domain(DOMAINS[0]), HOME].contains(&principal.scope)
}

#[test]
fn what_the_table_does_not_allow_is_denied() {
    let mut asked = 0;
    for principal in principals() {
        for action in Action::ALL {
            let decision = authorize(principal, *action, &Resource::Whole);
            let name = action.as_str();
            let system = principal.scope == Scope::System;
            let reads_system = ["join_token.list", "operation.list", "market.list"].contains(&name)
                || ["operation.verify", "system.show", "event.read", "metrics.read"].contains(&name);
            let expected = match name {
                "token.whoami" | "token.logout" | "token.rotate" | "user.change_password" => true,
                "image.list" | "operation.show" | "host_image.list" | "usage.read" | "domain.list"
                | "project.list" | "key.list" => true,
                "token.list" | "grant.list" => principal.role == Role::Admin,
                "domain.create" | "domain.update" | "domain.delete" => {
                    system && principal.role == Role::Admin
                }
                // Users are a domain's matter; what is done to one names it.
                "user.list" | "user.show" => !matches!(principal.scope, Scope::Project(..)),
                _ if ["project.", "user.", "grant."].iter().any(|noun| name.starts_with(noun))
                    && name != "project.show" =>
                {
                    !matches!(principal.scope, Scope::Project(..)) && principal.role == Role::Admin
                }
                "image.batch" | "source.check" => principal.role != Role::Reader,
                // Of the fleet, a domain's administrators have a part: their lists, and places for what they make.
                "cache.list" | "location.list" | "prewarm.list" => {
                    system || principal.role == Role::Admin && matches!(principal.scope, Scope::Domain(_))
                }
                "location.remove" | "location.assign" => system && principal.role == Role::Admin,
                _ if ["cache.", "location.", "prewarm."].iter().any(|noun| name.starts_with(noun)) => {
                    principal.role == Role::Admin && !matches!(principal.scope, Scope::Project(..))
                }
                _ if reads_system => system,
                "image.publish" | "host_image.publish" | "image.feature" | "share.beyond"
                | "quota.update" | "transfers.steer" | "key.rotate" => {
                    system && principal.role == Role::Admin
                }
                _ if name.starts_with("join_token.") || name.starts_with("market.") => {
                    system && principal.role == Role::Admin
                }
                // What belongs to somebody is never allowed without saying whose it is.
                _ => false,
            };
            assert_eq!(decision == Decision::Allow, expected, "{principal:?} {name}");
            assert!(
                expected <= may_ever(principal, *action),
                "{principal:?} {name}: the first check is the stricter"
            );
            asked += 1;
        }
    }
    assert_eq!(asked, 18 * Action::ALL.len());
}

#[test]
fn the_log_of_somebody_elses_image_is_hidden_however_public_the_image_is() {
    for principal in principals() {
        for visibility in [Visibility::Private, Visibility::Shared, Visibility::Public] {
            for action in [Action::ImageLog, Action::HostImageLog] {
                let decision = authorize(principal, action, &image(visibility, Some(ShareStatus::Accepted)));
                let expected = if at_home(principal) { Decision::Allow } else { Decision::Hide };
                assert_eq!(decision, expected, "{principal:?} {visibility}");
            }
        }
    }
}

#[test]
fn an_image_that_may_not_be_seen_is_hidden_not_denied() {
    let actions = [
        Action::ImageShow,
        Action::ImageDownload,
        Action::ImageUpload,
        Action::ImageFetch,
        Action::ImageRetry,
        Action::ImageDelete,
        Action::HostImageShow,
        Action::HostImageUpdate,
        Action::HostImageProtect,
        Action::HostImageDelete,
        Action::ImageDestroy,
        Action::ImageRestore,
        Action::ImageCancel,
        Action::ImageUpdate,
        Action::ImageProtect,
        Action::ImageUnprotect,
        Action::ImageDeactivate,
        Action::ImageReactivate,
    ];
    for principal in principals() {
        for action in actions {
            for visibility in Visibility::ALL {
                for share in shares() {
                    let share_counts = *visibility == Visibility::Shared && share.is_some();
                    let seen = at_home(principal) || *visibility == Visibility::Public || share_counts;
                    let usable = at_home(principal)
                        || *visibility == Visibility::Public
                        || share == Some(ShareStatus::Accepted);
                    let may = match action {
                        Action::ImageShow | Action::HostImageShow => true,
                        Action::ImageDownload => principal.role != Role::Reader && usable,
                        Action::ImageDeactivate | Action::ImageReactivate => {
                            principal.role == Role::Admin && at_home(principal)
                        }
                        _ => principal.role != Role::Reader && at_home(principal),
                    };
                    let expected = match (seen, may) {
                        (false, _) => Decision::Hide,
                        (true, true) => Decision::Allow,
                        (true, false) => Decision::Deny,
                    };
                    let decision = authorize(principal, action, &image(*visibility, share));
                    assert_eq!(decision, expected, "{principal:?} {action:?} {visibility:?} {share:?}");
                }
            }
        }
    }
}

#[test]
fn images_are_made_by_members_of_the_project_alone() {
    let place = Resource::Project { domain: DOMAINS[0], project: PROJECTS[0] };
    for principal in principals() {
        let expected = match (at_home(principal), principal.role) {
            (false, _) => Decision::Hide,
            (true, Role::Reader) => Decision::Deny,
            (true, _) => Decision::Allow,
        };
        assert_eq!(authorize(principal, Action::ImageCreate, &place), expected, "{principal:?}");
        assert_eq!(authorize(principal, Action::HostImageCreate, &place), expected, "{principal:?}");
    }
}

#[test]
fn nobody_makes_a_token_that_may_do_more_than_its_maker() {
    for maker in principals() {
        for made in principals() {
            let decision = authorize(maker, Action::TokenCreate, &Resource::Token(made));
            assert_eq!(
                decision == Decision::Allow,
                maker.role == Role::Admin && maker.scope.covers(made.scope)
            );
            if decision != Decision::Allow {
                continue;
            }
            // Whatever the new token may do, its maker may do.
            for action in Action::ALL {
                assert!(may_ever(made, *action) <= may_ever(maker, *action), "{maker:?} {made:?} {action:?}");
                for resource in [image(Visibility::Private, None), Resource::Whole, Resource::Token(made)] {
                    if authorize(made, *action, &resource) == Decision::Allow {
                        assert_eq!(
                            authorize(maker, *action, &resource),
                            Decision::Allow,
                            "{maker:?} {action:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_token_outside_the_scope_is_hidden_from_who_would_revoke_it() {
    let stranger = Resource::Token(Principal { role: Role::Reader, scope: Scope::Domain(DOMAINS[1]) });
    let admin = Principal { role: Role::Admin, scope: Scope::Domain(DOMAINS[0]) };
    assert_eq!(authorize(admin, Action::TokenRevoke, &stranger), Decision::Hide);
}

#[test]
fn what_lies_outside_the_scope_is_hidden_but_what_it_lies_in_is_not() {
    let made = |scope| Resource::Token(Principal { role: Role::Reader, scope });
    for maker in principals().filter(|maker| maker.role == Role::Admin) {
        for scope in scopes() {
            let expected = match (maker.scope, scope) {
                (Scope::System, _) => Decision::Allow,
                (_, Scope::System) => Decision::Deny,
                (mine, theirs) if mine == theirs => Decision::Allow,
                (Scope::Domain(mine), Scope::Project(theirs, _)) if mine == theirs => Decision::Allow,
                (Scope::Project(mine, _), Scope::Domain(theirs)) if mine == theirs => Decision::Deny,
                _ => Decision::Hide,
            };
            assert_eq!(
                authorize(maker, Action::TokenCreate, &made(scope)),
                expected,
                "{maker:?} for {scope:?}"
            );
        }
    }
}

/// SH-4: who was offered an image knows it and answers; who accepted uses it; nobody else changes it.
#[test]
fn an_offered_image_is_known_but_not_used() {
    let stranger = Scope::Project(DOMAINS[1], PROJECTS[2]);
    for role in Role::ALL {
        let receiver = Principal { role: *role, scope: stranger };
        let ask = |action, share| authorize(receiver, action, &image(Visibility::Shared, share));
        for share in shares() {
            let known = share.is_some();
            let hidden = |allowed: bool| match (known, allowed) {
                (false, _) => Decision::Hide,
                (true, true) => Decision::Allow,
                (true, false) => Decision::Deny,
            };
            let may_change = *role != Role::Reader;
            assert_eq!(ask(Action::ImageShow, share), hidden(true));
            assert_eq!(ask(Action::ShareList, share), hidden(true));
            assert_eq!(ask(Action::ShareAccept, share), hidden(may_change));
            assert_eq!(ask(Action::ShareReject, share), hidden(may_change));
            let accepted = share == Some(ShareStatus::Accepted);
            assert_eq!(ask(Action::ImageDownload, share), hidden(may_change && accepted));
            for action in [Action::ShareCreate, Action::ShareRemove, Action::ImageDelete, Action::ImageOwner]
            {
                assert_eq!(ask(action, share), hidden(false), "{action:?}");
            }
            assert_eq!(lists_image(receiver, &image(Visibility::Shared, share)), accepted);
        }
        assert!(lists_image(receiver, &image(Visibility::Public, None)));
        assert!(!lists_image(receiver, &image(Visibility::Private, Some(ShareStatus::Accepted))));
        // A public image is answered by nobody: there is no share.
        assert_eq!(
            authorize(receiver, Action::ShareAccept, &image(Visibility::Public, None)),
            Decision::Deny
        );
    }
}

/// SH-1, SH-7: users see public images and do not change them.
#[test]
fn a_public_image_of_others_is_read_only() {
    let user = Principal { role: Role::Admin, scope: Scope::Project(DOMAINS[0], PROJECTS[1]) };
    for action in Action::ALL.iter().filter(|action| action.rule().1 == Over::Owner) {
        let decision = authorize(user, *action, &image(Visibility::Public, None));
        assert_eq!(decision == Decision::Allow, reads(*action), "{action:?}");
    }
}

#[test]
fn nobody_takes_over_a_user_who_may_do_more() {
    let changes = [Action::UserUpdate, Action::UserDelete, Action::UserPassword];
    for who in principals() {
        for action in changes {
            let ask = |holds| authorize(who, action, &Resource::User { domain: DOMAINS[0], holds });
            let manages = [Scope::System, Scope::Domain(DOMAINS[0])].contains(&who.scope);
            let expected = match (manages, who.role) {
                (false, _) => Decision::Hide,
                (true, Role::Admin) => Decision::Allow,
                (true, _) => Decision::Deny,
            };
            assert_eq!(ask(None), expected, "{who:?} {action:?}");
            for holds in principals() {
                let allowed = ask(Some(holds)) == Decision::Allow;
                let covered = who.scope.covers(holds.scope) && who.role == Role::Admin;
                assert_eq!(allowed, manages && covered, "{who:?} {action:?} {holds:?}");
            }
        }
    }
}

#[test]
fn grants_are_given_like_tokens_but_not_by_projects() {
    for who in principals() {
        for given in principals() {
            for action in [Action::GrantCreate, Action::GrantRevoke] {
                let allowed = authorize(who, action, &Resource::Grant(given)) == Decision::Allow;
                let in_project = matches!(who.scope, Scope::Project(..));
                let covered = who.role == Role::Admin && who.scope.covers(given.scope);
                assert_eq!(allowed, covered && !in_project, "{who:?} {action:?} {given:?}");
            }
        }
    }
}

#[test]
fn a_domain_manages_its_projects_and_a_project_sees_itself() {
    let home = Resource::Project { domain: DOMAINS[0], project: PROJECTS[0] };
    for who in principals() {
        let show = authorize(who, Action::ProjectShow, &home);
        assert_eq!(show, if at_home(who) { Decision::Allow } else { Decision::Hide }, "{who:?}");
        for action in [Action::ProjectUpdate, Action::ProjectDelete] {
            let manages = who.role == Role::Admin && at_home(who) && who.scope != HOME;
            let expected = match (at_home(who), manages) {
                (false, _) => Decision::Hide,
                (true, true) => Decision::Allow,
                (true, false) => Decision::Deny,
            };
            assert_eq!(authorize(who, action, &home), expected, "{who:?} {action:?}");
        }
        let lies_in = who.scope == Scope::System || Scope::Domain(DOMAINS[0]).covers(who.scope);
        let show = authorize(who, Action::DomainShow, &Resource::Domain(DOMAINS[0]));
        assert_eq!(show, if lies_in { Decision::Allow } else { Decision::Hide }, "{who:?}");
        let place = authorize(who, Action::UserCreate, &Resource::Domain(DOMAINS[0]));
        let expected = match (lies_in, who.role, who.scope) {
            (false, ..) => Decision::Hide,
            (true, Role::Admin, Scope::System | Scope::Domain(_)) => Decision::Allow,
            _ => Decision::Deny,
        };
        assert_eq!(place, expected, "{who:?}");
    }
}

/// CA-0: the system's people meet every location; administrators of a domain those of the domain; nobody else any.
#[test]
fn administrators_of_a_domain_reach_its_locations_and_no_others() {
    let fleet: Vec<Action> =
        Action::ALL.iter().copied().filter(|action| action.rule().1 == Over::Fleet).collect();
    assert_eq!(fleet.len(), 9);
    for who in principals() {
        for action in &fleet {
            let changes = !action.as_str().ends_with(".list");
            for domain in [None, Some(DOMAINS[0]), Some(DOMAINS[1])] {
                let expected = match (who.scope, who.role) {
                    (Scope::System, Role::Admin) => Decision::Allow,
                    (Scope::System, _) => {
                        if changes {
                            Decision::Deny
                        } else {
                            Decision::Allow
                        }
                    }
                    (Scope::Domain(mine), Role::Admin) if Some(mine) == domain => Decision::Allow,
                    (Scope::Domain(_), Role::Admin) => Decision::Hide,
                    _ => Decision::Deny,
                };
                let decision = authorize(who, *action, &Resource::Location(domain));
                assert_eq!(decision, expected, "{who:?} {action:?} {domain:?}");
            }
        }
        let assigns = authorize(who, Action::LocationAssign, &Resource::Location(Some(DOMAINS[0])));
        assert_eq!(assigns == Decision::Allow, who.scope == Scope::System && who.role == Role::Admin);
        assert!(may_launch_at(who, None));
        let inside = who.scope == Scope::System || Scope::Domain(DOMAINS[0]).covers(who.scope);
        assert_eq!(may_launch_at(who, Some(DOMAINS[0])), inside, "{who:?}");
    }
}

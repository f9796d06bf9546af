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

fn image(visibility: Visibility, shared_with_caller: bool) -> Resource {
    Resource::Image { domain: DOMAINS[0], project: PROJECTS[0], visibility, shared_with_caller }
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
            let reads_system =
                ["cache.list", "location.list", "join_token.list", "prewarm.list", "operation.list"]
                    .contains(&name)
                    || ["operation.verify", "system.show", "event.read", "metrics.read"].contains(&name);
            let expected = match name {
                "token.whoami" | "image.list" => true,
                "token.list" => principal.role == Role::Admin,
                "source.check" => principal.role != Role::Reader,
                _ if reads_system => system,
                "image.publish" | "transfers.steer" => system && principal.role == Role::Admin,
                _ if ["cache.", "location.", "join_token.", "prewarm."]
                    .iter()
                    .any(|noun| name.starts_with(noun)) =>
                {
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
fn an_image_that_may_not_be_seen_is_hidden_not_denied() {
    let actions = [
        Action::ImageShow,
        Action::ImageDownload,
        Action::ImageUpload,
        Action::ImageFetch,
        Action::ImageRetry,
        Action::ImageDelete,
    ];
    for principal in principals() {
        for action in actions {
            for visibility in Visibility::ALL {
                for shared in [false, true] {
                    let seen = at_home(principal)
                        || *visibility == Visibility::Public
                        || (*visibility == Visibility::Shared && shared);
                    let may = match action {
                        Action::ImageShow => true,
                        Action::ImageDownload => principal.role != Role::Reader,
                        _ => principal.role != Role::Reader && at_home(principal),
                    };
                    let expected = match (seen, may) {
                        (false, _) => Decision::Hide,
                        (true, true) => Decision::Allow,
                        (true, false) => Decision::Deny,
                    };
                    let decision = authorize(principal, action, &image(*visibility, shared));
                    assert_eq!(decision, expected, "{principal:?} {action:?} {visibility:?} shared {shared}");
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
                for resource in [image(Visibility::Private, false), Resource::Whole, Resource::Token(made)] {
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

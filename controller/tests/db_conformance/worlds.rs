//! Random worlds of domains, projects, images and shares: every list, every look-up and every right agree with a slow,
//! obvious model.

use std::collections::{BTreeMap, BTreeSet};

use hearth_controller::db::image_list::ImageFilter;
use hearth_controller::db::images::Image;
use hearth_controller::db::shares::{Reach, View};
use hearth_controller::db::tokens::Scope;
use hearth_controller::db::{Db, PageRequest, new_id};
use hearth_controller::logic::authz::{self, Action, Decision, Principal, Resource, authorize, lists_image};
use hearth_controller::logic::sharing::Receiver;
use hearth_protocol::id::{DomainId, ImageId, ProjectId};
use hearth_protocol::words::{Role, ShareStatus};
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use sqlx::Executor as _;

use crate::engines::Place;
use crate::fixture::{image_of, op};

/// Worlds per engine; each has its seed in the message of a failed comparison.
const WORLDS: u64 = 6;
const IMAGES: usize = 14;

/// What the model knows of an image.
#[derive(Clone, Debug)]
struct Known {
    id: ImageId,
    name: String,
    domain: DomainId,
    project: ProjectId,
    public: bool,
    featured: bool,
    deleted: bool,
    binned: bool,
    shares: BTreeMap<Receiver, ShareStatus>,
}

#[derive(Debug, Default)]
struct World {
    projects: Vec<(DomainId, ProjectId)>,
    images: Vec<Known>,
}

impl World {
    fn domains(&self) -> BTreeSet<DomainId> {
        self.projects.iter().map(|(domain, _)| *domain).collect()
    }

    fn scopes(&self) -> Vec<Scope> {
        let domains = self.domains().into_iter().map(Scope::Domain);
        let projects = self.projects.iter().map(|(domain, project)| Scope::Project(*domain, *project));
        [Scope::System].into_iter().chain(domains).chain(projects).collect()
    }

    /// What is said to the shares that reach a scope.
    fn said(&self, scope: Scope, image: &Known) -> Vec<ShareStatus> {
        let reaches = |receiver: &Receiver| match (scope, receiver) {
            (Scope::System, _) => true,
            (Scope::Domain(mine) | Scope::Project(mine, _), Receiver::Domain(theirs)) => mine == *theirs,
            (Scope::Project(_, mine), Receiver::Project(theirs)) => mine == *theirs,
            (Scope::Domain(mine), Receiver::Project(theirs)) => self.projects.contains(&(mine, *theirs)),
        };
        if image.public || image.binned || image.deleted {
            return Vec::new();
        }
        image.shares.iter().filter(|(receiver, _)| reaches(receiver)).map(|(_, status)| *status).collect()
    }

    fn owns(scope: Scope, image: &Known) -> bool {
        match scope {
            Scope::System => true,
            Scope::Domain(domain) => image.domain == domain,
            Scope::Project(_, project) => image.project == project,
        }
    }

    fn may_use(&self, scope: Scope, image: &Known) -> bool {
        let has = image.public && !image.binned;
        Self::owns(scope, image) || has || self.said(scope, image).contains(&ShareStatus::Accepted)
    }

    fn knows(&self, scope: Scope, image: &Known) -> bool {
        self.may_use(scope, image) || !self.said(scope, image).is_empty()
    }

    fn shows(&self, scope: Scope, view: View, image: &Known) -> bool {
        let own = matches!(scope, Scope::Project(_, project) if project == image.project);
        // The recycle bin is in no list that does not ask for it.
        !image.deleted
            && !image.binned
            && match view {
                View::All => self.may_use(scope, image),
                View::Featured => self.may_use(scope, image) && image.featured,
                View::Public => image.public,
                View::Private => Self::owns(scope, image) && !image.public,
                View::Shared(status) => self.said(scope, image).contains(&status) && !own,
            }
    }
}

fn one_of<'a, T>(random: &mut StdRng, all: &'a [T]) -> &'a T {
    &all[random.random_range(0..all.len())]
}

/// Makes a world through the store's own calls, and the model beside it.
async fn world(place: &Place, db: &Db, random: &mut StdRng) -> World {
    let mut world = World::default();
    for _ in 0..3 {
        let domain: DomainId = new_id();
        db.create_domain(domain, &domain.to_string(), &op("domain.create")).await.unwrap();
        for n in 0..random.random_range(1..=3) {
            let project = new_id();
            db.create_project(project, domain, &format!("p{n}"), &op("project.create")).await.unwrap();
            world.projects.push((domain, project));
        }
    }
    for n in 0..IMAGES {
        let (domain, project) = *one_of(random, &world.projects);
        // Some names stand in several projects.
        let name = format!("image-{}", n % 9);
        let is_taken = |known: &Known| known.project == project && known.name == name;
        let name = if world.images.iter().any(is_taken) { format!("other-{n}") } else { name };
        let id = image_of(db, domain, project, &name).await;
        let shares = BTreeMap::new();
        let (public, featured, deleted, binned) = (false, false, false, false);
        let mut known = Known { id, name, domain, project, public, featured, deleted, binned, shares };
        live(place, db, random, &world, &mut known).await;
        world.images.push(known);
    }
    world
}

/// What happens to one image.
async fn live(place: &Place, db: &Db, random: &mut StdRng, world: &World, known: &mut Known) {
    let seen = |db: Db, id| async move { db.image(id).await.unwrap().unwrap() };
    let reach = Reach { by_system: true, receivers_max: 100 };
    for _ in 0..random.random_range(0..6) {
        let (domain, project) = *one_of(random, &world.projects);
        let receiver =
            if random.random_ratio(1, 3) { Receiver::Domain(domain) } else { Receiver::Project(project) };
        if receiver == Receiver::Project(known.project) {
            continue;
        }
        let image: Image = seen(db.clone(), known.id).await;
        db.add_shares(&image, &BTreeSet::from([receiver]), reach, &op("share.create")).await.unwrap();
        known.shares.entry(receiver).or_insert_with(|| receiver.first_status());
        if let (Receiver::Project(project), true) = (receiver, random.random_ratio(2, 3)) {
            let status = *one_of(random, &[ShareStatus::Accepted, ShareStatus::Rejected]);
            db.answer_share(known.id, project, status, &op("share.answer")).await.unwrap();
            known.shares.insert(receiver, status);
        }
    }
    let image = seen(db.clone(), known.id).await;
    if random.random_ratio(1, 4) {
        db.set_featured(&image, true, None, &op("image.feature")).await.unwrap();
        known.featured = true;
    }
    match random.next_u32() % 8 {
        0 | 1 => {
            db.publish_image(&image, None, &op("image.publish")).await.unwrap();
            (known.public, known.shares) = (true, BTreeMap::new());
        }
        2 => {
            db.remove_shares(&image, None, &op("share.remove")).await.unwrap();
            known.shares.clear();
        }
        3 => {
            db.delete_image(known.id, None, &op("image.delete")).await.unwrap();
            known.deleted = true;
        }
        4 => {
            let bin = format!("UPDATE image SET status = 'pending_delete' WHERE id = '{}'", known.id);
            place.connect().await.execute(sqlx::AssertSqlSafe(bin)).await.unwrap();
            known.binned = true;
        }
        // No call makes such a row; should there be one, it is its owner's alone.
        5 => {
            let bin = format!(
                "UPDATE image SET status = 'pending_delete', visibility = 'public' WHERE id = '{}'",
                known.id
            );
            place.connect().await.execute(sqlx::AssertSqlSafe(bin)).await.unwrap();
            (known.public, known.binned) = (true, true);
        }
        _ => {}
    }
}

/// Every image of a list, page by page.
async fn listed(db: &Db, scope: Scope, view: View) -> Vec<ImageId> {
    let (mut ids, mut page) = (Vec::new(), PageRequest::first(3));
    loop {
        let filter = ImageFilter { view, ..ImageFilter::default() };
        let found = db.images(scope, &filter, &page).await.unwrap();
        ids.extend(found.items.iter().map(|image| image.id));
        let Some(next) = found.next else { return ids };
        page.cursor = Some(next);
    }
}

fn principal(scope: Scope, role: Role) -> Principal {
    let scope = match scope {
        Scope::System => authz::Scope::System,
        Scope::Domain(domain) => authz::Scope::Domain(domain),
        Scope::Project(domain, project) => authz::Scope::Project(domain, project),
    };
    Principal { role, scope }
}

async fn compare(db: &Db, world: &World, scope: Scope, seed: u64) {
    let answered = ShareStatus::ALL.iter().map(|status| View::Shared(*status));
    let views = [View::All, View::Featured, View::Public, View::Private].into_iter().chain(answered);
    for view in views {
        let shown: Vec<&Known> =
            world.images.iter().filter(|image| world.shows(scope, view, image)).collect();
        // Newest first, and as many rows as there are: nothing is left out or doubled between pages.
        let expected: Vec<ImageId> = shown.iter().rev().map(|image| image.id).collect();
        assert_eq!(listed(db, scope, view).await, expected, "seed {seed} {scope:?} {view:?}");
        for name in world.images.iter().map(|image| &image.name).collect::<BTreeSet<_>>() {
            let named = db.images_named_in(scope, view, name).await.unwrap();
            let named: Vec<ImageId> = named.iter().map(|image| image.id).collect();
            let expected = shown.iter().filter(|image| image.name == *name).map(|image| image.id);
            assert_eq!(named, expected.collect::<Vec<_>>(), "seed {seed} {scope:?} {view:?} {name}");
        }
    }
    for known in &world.images {
        single(db, world, scope, known, seed).await;
    }
}

/// One image, asked for by its id, by every role.
async fn single(db: &Db, world: &World, scope: Scope, known: &Known, seed: u64) {
    let text = format!("seed {seed} {scope:?} {known:?}");
    let usable = !known.deleted && world.may_use(scope, known);
    assert_eq!(db.image_seen_by(scope, known.id).await.unwrap().is_some(), usable, "{text}");
    let found = db.image_known_to(scope, known.id).await.unwrap();
    let Some((image, share)) = found else {
        assert!(known.deleted || known.binned && !World::owns(scope, known), "{text}");
        return;
    };
    let visibility = image.facts.visibility;
    let resource = Resource::Image { domain: image.domain, project: image.project, visibility, share };
    let is_known = world.knows(scope, known);
    let owned = World::owns(scope, known);
    for role in Role::ALL {
        let principal = principal(scope, *role);
        let decide = |allowed: bool| match (is_known, allowed) {
            (false, _) => Decision::Hide,
            (true, true) => Decision::Allow,
            (true, false) => Decision::Deny,
        };
        let member = *role != Role::Reader;
        let offered = owned || !world.said(scope, known).is_empty();
        for (action, allowed) in [
            (Action::ImageShow, true),
            (Action::ImageDownload, member && usable),
            (Action::ImageDelete, member && owned),
            (Action::ShareCreate, member && owned),
            (Action::ShareAccept, member && offered),
            (Action::ShareList, offered),
            (Action::ImageOwner, *role == Role::Admin && owned),
        ] {
            assert_eq!(authorize(principal, action, &resource), decide(allowed), "{action:?} {role} {text}");
        }
        assert_eq!(lists_image(principal, &resource), usable, "{role} {text}");
    }
}

/// SH-2, SH-6, SH-7: lists, look-ups by name, single images and rights agree, whatever the world looks like.
async fn lists_look_ups_and_rights_agree_with_a_plain_model(place: Place) {
    let db = place.open().await;
    for seed in 0..WORLDS {
        let world = world(&place, &db, &mut StdRng::seed_from_u64(seed)).await;
        for scope in world.scopes().into_iter().filter(|scope| *scope != Scope::System || seed == 0) {
            compare(&db, &world, scope, seed).await;
        }
        // The next world must not see this one's public images.
        for known in world.images.iter().filter(|known| !known.deleted) {
            let bring_back = format!(
                "UPDATE image SET status = 'active', visibility = 'private' WHERE id = '{}'",
                known.id
            );
            place.connect().await.execute(sqlx::AssertSqlSafe(bring_back)).await.unwrap();
            db.delete_image(known.id, None, &op("image.delete")).await.unwrap();
        }
    }
}

crate::on_both_engines! { lists_look_ups_and_rights_agree_with_a_plain_model }

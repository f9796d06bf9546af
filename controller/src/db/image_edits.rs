//! The catalog: how image records come to be and what people change in them.
//!
//! **What.** [`Db::create_image`] and [`Db::update_image`], with what is derived from a record: its pieces and tags for the
//! search, and the row in the log that says what became what.
//! **Why the change is a closure.** It is applied to the record as it is inside the transaction, and once more if the
//! transaction is repeated: nothing that another editor wrote is overwritten by what was read before.
//! **Invariants.** `revision` counts edits; an edit that changes nothing is none. In the recycle bin only name and description
//! change. The log shows exactly the fields that changed.

use hearth_protocol::id::{ImageId, ProjectId};
use hearth_protocol::words::{ImageStatus, Visibility};
use serde_json::{Map, Value, json};

use super::changes::Change;
use super::error::DbError;
use super::grams::fold;
use super::images::{Image, ImageFacts, NewImage};
use super::keys::NewKey;
use super::markets::NewImport;
use super::operations::Draft;
use super::sql::{Stmt, sql, to_json};
use super::store::{Db, Tx};
use super::uploads::NewFetch;
use crate::logic::quota::Figures;

/// What may be edited in the recycle bin (manual S3: in any state).
const ALWAYS_EDITABLE: &[&str] = &["name", "description"];

/// One live image per project and folded name; the id frees the name of a deleted one.
pub(super) fn name_key(project: ProjectId, name: &str) -> String {
    format!("{project} {}", fold(name))
}

/// Binds the facts in the order in which both statements below name them.
fn bound(stmt: Stmt, facts: &ImageFacts) -> Stmt {
    let word = |word: Option<&'static str>| word.unwrap_or_default();
    let stmt = stmt.bind(&facts.name).bind(fold(&facts.name)).bind(facts.visibility);
    let stmt = stmt.bind(word(facts.architecture.map(|word| word.as_str())));
    let stmt = stmt.bind(word(facts.os_type.map(|word| word.as_str())));
    let stmt = stmt.bind(&facts.distribution).bind(&facts.version);
    let stmt = stmt.bind(&facts.description).bind(fold(&facts.description));
    let stmt = stmt.bind(facts.min_disk_bytes).bind(facts.min_memory_bytes);
    let stmt = stmt.bind(facts.disk_driver).bind(facts.network_driver);
    let stmt = stmt.bind(&facts.os_language).bind(&facts.app_platform).bind(facts.password_enabled);
    stmt.bind(facts.protected).bind(to_json(&facts.tags)).bind(to_json(&facts.properties))
}

/// The facts as the log shows them; what is not known is `null`.
fn logged(facts: &ImageFacts) -> Map<String, Value> {
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    let size = |bytes: u64| (bytes > 0).then_some(bytes);
    let all = json!({
        "name": facts.name,
        "visibility": facts.visibility,
        "architecture": facts.architecture,
        "os_type": facts.os_type,
        "distribution": text(&facts.distribution),
        "version": text(&facts.version),
        "description": text(&facts.description),
        "min_disk_bytes": size(facts.min_disk_bytes),
        "min_memory_bytes": size(facts.min_memory_bytes),
        "disk_driver": facts.disk_driver,
        "network_driver": facts.network_driver,
        "os_language": text(&facts.os_language),
        "app_platform": text(&facts.app_platform),
        "password_enabled": facts.password_enabled,
        "protected": facts.protected,
        "tags": facts.tags,
        "properties": facts.properties,
    });
    let Value::Object(all) = all else { return Map::new() };
    all
}

/// The fields that differ: as they were, and as they are.
fn changes(before: &ImageFacts, after: &ImageFacts) -> (Map<String, Value>, Map<String, Value>) {
    let (mut before, mut after) = (logged(before), logged(after));
    let same: Vec<String> = before
        .iter()
        .filter(|(field, value)| after.get(*field) == Some(value))
        .map(|(f, _)| f.clone())
        .collect();
    for field in same {
        before.remove(&field);
        after.remove(&field);
    }
    (before, after)
}

/// What is made in one transaction with an image.
#[derive(Clone, Debug, Default)]
pub struct Together {
    /// The new key that encrypts it, and the key's row in the log.
    pub key: Option<(NewKey, Draft)>,
    /// The entry of a market that it is made of.
    pub entry: Option<NewImport>,
    /// How its file comes.
    pub fetch: Option<NewFetch>,
}

/// Refuses an edit that is based on another revision.
pub(super) fn must_be_current(image: &Image, if_match: Option<u64>) -> Result<(), DbError> {
    match if_match.filter(|expected| *expected != image.revision) {
        None => Ok(()),
        Some(expected) => {
            let key = image.id.to_string();
            Err(DbError::Revision { what: "image", key, found: image.revision, expected })
        }
    }
}

impl Tx<'_> {
    /// Makes the search find an image by what it says now.
    async fn put_search(&mut self, id: ImageId, facts: &ImageFacts) -> Result<(), DbError> {
        self.put_grams(id, &facts.name, &facts.description).await?;
        self.delete_tags(id).await?;
        let folded: std::collections::BTreeSet<String> = facts.tags.iter().map(|tag| fold(tag)).collect();
        for tag in folded {
            let insert = "INSERT INTO image_tag (image_id, tag_folded) VALUES ($1, $2)";
            self.run(sql("image_tag", insert).bind(id).bind(tag)).await?;
        }
        Ok(())
    }

    /// Makes the search forget an image's tags.
    pub(super) async fn delete_tags(&mut self, id: ImageId) -> Result<(), DbError> {
        self.run(sql("image_tag", "DELETE FROM image_tag WHERE image_id = $1").bind(id)).await.map(|_| ())
    }
}

impl Db {
    /// Makes the record of an image, `queued` and without bytes.
    ///
    /// # Errors
    /// [`DbError::Exists`] if the project has an image of this name, [`DbError::Quota`], or a failed statement.
    pub async fn create_image(&self, new: &NewImage, op: &Draft) -> Result<(), DbError> {
        self.create_image_with(new, &Together::default(), op).await
    }

    /// As [`Self::create_image`], together with what goes with it: all of it is there, or nothing.
    ///
    /// # Errors
    /// As [`Self::create_image`]; [`DbError::Exists`] also if the project has a key of that name; [`DbError::NotFound`] if the
    /// image's key is not its project's; [`DbError::State`] if its entry of a market was imported before.
    pub async fn create_image_with(
        &self,
        new: &NewImage,
        together: &Together,
        op: &Draft,
    ) -> Result<(), DbError> {
        let insert = "INSERT INTO image (name, name_folded, visibility, architecture, os_type, distribution, version, \
             description, description_folded, min_disk_bytes, min_memory_bytes, disk_driver, network_driver, \
             os_language, app_platform, password_enabled, protected, tags, properties, id, name_key, kind, format, \
             container_format, domain_id, project_id, expected, virtualisation, disk_bytes, status, percent, reason, \
             original_kept, revision, created_us, updated_us) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, \
             $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, 'queued', 0, \
             '', 0, 1, $30, $30)";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let facts = &new.facts;
                if let Some(entry) = &together.entry {
                    tx.note_import(new.id, entry).await?;
                }
                // It may be deleted at this moment.
                tx.live_project(new.project).await?;
                if facts.visibility != Visibility::Public {
                    tx.admit(new.project, Figures::one_image(0)).await?;
                }
                let stmt = bound(sql("image", insert), facts).bind(new.id);
                let stmt = stmt.bind(name_key(new.project, &facts.name)).bind(new.kind).bind(new.format);
                let stmt = stmt.bind(&new.container_format).bind(new.domain).bind(new.project);
                let stmt = stmt.bind(to_json(&new.expected));
                let stmt = stmt.bind(new.fixed.virtualisation.map_or("", |word| word.as_str()));
                let stmt = stmt.bind(new.fixed.disk_bytes).bind(tx.now_us());
                let inserted = tx.run(stmt).await;
                inserted.map_err(|error| error.or_exists("image", &facts.name))?;
                tx.put_search(new.id, facts).await?;
                if let Some((key, op)) = &together.key {
                    tx.put_key(key).await?;
                    tx.record(op).await?;
                }
                if let Some(key) = new.fixed.key {
                    tx.use_key(new.id, new.project, key).await?;
                }
                tx.changed(Change::Image(new.id));
                tx.record(op).await?;
                match &together.fetch {
                    Some(fetch) => tx.open_fetch(fetch).await.map(drop),
                    None => Ok(()),
                }
            })
        })
        .await
    }

    /// Edits an image: `edit` changes the facts it is shown. It may be called several times. The log row gets what became
    /// what; where nothing changed, nothing is written.
    ///
    /// # Errors
    /// [`DbError::NotFound`]; [`DbError::Revision`] unless `if_match` (if given) is the revision in the store;
    /// [`DbError::Exists`] for a name that is taken; [`DbError::State`] for more than name and description in the recycle
    /// bin; or a failed statement.
    pub async fn update_image(
        &self,
        id: ImageId,
        if_match: Option<u64>,
        edit: impl Fn(&mut ImageFacts) + Send + Sync,
        op: &Draft,
    ) -> Result<Image, DbError> {
        let edit = &edit;
        self.write_tx(move |tx| {
            Box::pin(async move {
                let image = tx.live_image(id).await?;
                must_be_current(&image, if_match)?;
                let mut facts = image.facts.clone();
                edit(&mut facts);
                let (before, after) = changes(&image.facts, &facts);
                if after.is_empty() {
                    return Ok(image);
                }
                update_in(tx, &image, &facts, after.keys()).await?;
                tx.record(&op.clone().with(json!({ "before": before, "after": after }))).await?;
                tx.image(id).await
            })
        })
        .await
    }
}

async fn update_in(
    tx: &mut Tx<'_>,
    image: &Image,
    facts: &ImageFacts,
    mut fields: impl Iterator<Item = &String>,
) -> Result<(), DbError> {
    let update = "UPDATE image SET name = $1, name_folded = $2, visibility = $3, architecture = $4, os_type = $5, \
         distribution = $6, version = $7, description = $8, description_folded = $9, min_disk_bytes = $10, \
         min_memory_bytes = $11, disk_driver = $12, network_driver = $13, os_language = $14, app_platform = $15, \
         password_enabled = $16, protected = $17, tags = $18, properties = $19, name_key = $20, updated_us = $21, \
         revision = revision + 1 WHERE id = $22";
    let binned = image.status == ImageStatus::PendingDelete;
    if binned && !fields.all(|field| ALWAYS_EDITABLE.contains(&field.as_str())) {
        return Err(DbError::State {
            what: "image",
            key: image.facts.name.clone(),
            state: "in the recycle bin".to_owned(),
            allowed: "only its name and description can be changed there; restore it first",
        });
    }
    let key = if binned { image.id.to_string() } else { name_key(image.project, &facts.name) };
    let stmt = bound(sql("image", update), facts).bind(key).bind(tx.now_us()).bind(image.id);
    tx.run(stmt).await.map_err(|error| error.or_exists("image", &facts.name))?;
    tx.put_search(image.id, facts).await?;
    tx.changed(Change::Image(image.id));
    Ok(())
}

#[cfg(test)]
mod tests {
    use hearth_protocol::words::OsType;

    use super::*;

    #[test]
    fn the_log_shows_exactly_what_changed() {
        let before = ImageFacts { description: "old".to_owned(), ..ImageFacts::named("a") };
        let after = ImageFacts {
            description: String::new(),
            os_type: Some(OsType::Windows),
            tags: ["prod".to_owned()].into(),
            ..before.clone()
        };
        let (was, is) = changes(&before, &after);
        assert_eq!(Value::Object(was), json!({ "description": "old", "os_type": null, "tags": [] }));
        assert_eq!(Value::Object(is), json!({ "description": null, "os_type": "windows", "tags": ["prod"] }));
        assert_eq!(changes(&after, &after), (Map::new(), Map::new()));
    }
}

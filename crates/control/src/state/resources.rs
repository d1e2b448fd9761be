//! Resources and the links that apps have to them.

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{Actor, State, is_taken, known, now_ms, record, sql_int, stored, unsigned};
use crate::{
    error::{Error, Result},
    model::{Link, ResourceLink, ResourceSummary},
    names::{AppId, AppName, Label, ResourceId, TeamId, TeamName},
    platform::{AppKey, LinkedResource, Resource, ResourceKind},
};

/// A label that an app needs a resource for.
#[derive(Clone, Debug)]
pub(crate) struct Needed {
    pub(crate) kind: ResourceKind,
    pub(crate) label: Label,
    /// The name of the resource that is made if the label has no link.
    pub(crate) name: Label,
    pub(crate) quota_bytes: u64,
}

const RESOURCE_COLUMNS: &str =
    "resources.id, resources.kind, resources.team_id, teams.name, resources.name, resources.quota_bytes";

impl State {
    /// Makes a resource.
    pub(crate) async fn create_resource(
        &self,
        actor: Actor,
        team: TeamId,
        kind: ResourceKind,
        name: Label,
        quota_bytes: u64,
        max_count: u64,
    ) -> Result<ResourceId> {
        self.write(move |db| {
            let id = insert_resource(db, team, kind, &name, quota_bytes, max_count)?;
            record(db, &actor, Some(team), "resource.create", name.as_str(), Some(kind.as_str()))?;
            Ok(id)
        })
        .await
    }

    /// Makes sure that every label has a resource. Returns all resources of the app.
    pub(crate) async fn link_needed(
        &self,
        actor: Actor,
        app: AppKey,
        needed: Vec<Needed>,
        max_count: u64,
    ) -> Result<Vec<LinkedResource>> {
        self.write(move |db| {
            for need in needed {
                let is_linked: bool = db
                    .prepare_cached(
                        "SELECT EXISTS (SELECT 1 FROM links WHERE app_id = ?1 AND kind = ?2 AND label = ?3)",
                    )?
                    .query_row(
                        params![sql_int(app.id.0), need.kind.as_str(), need.label.as_str()],
                        |row| row.get(0),
                    )?;
                if is_linked {
                    continue;
                }
                // A resource that outlived an app of the same name is taken up again.
                let id = match find(db, app.team_id, need.kind, &need.name)? {
                    Some(resource) => resource.id,
                    None => {
                        let id = insert_resource(
                            db,
                            app.team_id,
                            need.kind,
                            &need.name,
                            need.quota_bytes,
                            max_count,
                        )?;
                        record(
                            db,
                            &actor,
                            Some(app.team_id),
                            "resource.create",
                            need.name.as_str(),
                            Some(need.kind.as_str()),
                        )?;
                        id
                    }
                };
                insert_link(db, app.id, need.kind, &need.label, &id)?;
            }
            linked(db, &app)
        })
        .await
    }

    /// A resource by its name.
    pub(crate) async fn resource(&self, team: TeamId, kind: ResourceKind, name: Label) -> Result<Resource> {
        self.read(move |db| find(db, team, kind, &name)?.ok_or_else(|| missing(kind))).await
    }

    /// A team's resources, in the order of kind and name.
    pub(crate) async fn resources(
        &self,
        team: TeamId,
        kind: Option<ResourceKind>,
        after: Option<(ResourceKind, String)>,
        limit: usize,
    ) -> Result<Vec<ResourceSummary>> {
        self.read(move |db| {
            let (after_kind, after_name) = match &after {
                Some((kind, name)) => (kind.as_str(), name.as_str()),
                None => ("", ""),
            };
            let mut statement = db.prepare_cached(
                "SELECT id, kind, name, quota_bytes, created_ms FROM resources
                 WHERE team_id = ?1 AND NOT is_going AND (kind, name) > (?2, ?3)
                 AND (?4 IS NULL OR kind = ?4)
                 ORDER BY kind, name LIMIT ?5",
            )?;
            let rows = statement.query_map(
                params![
                    sql_int(team.0),
                    after_kind,
                    after_name,
                    kind.map(ResourceKind::as_str),
                    i64::try_from(limit).unwrap_or(i64::MAX)
                ],
                summary,
            )?;
            rows.map(|row| with_links(db, row?)).collect()
        })
        .await
    }

    /// One resource with its links.
    pub(crate) async fn resource_summary(
        &self,
        team: TeamId,
        kind: ResourceKind,
        name: Label,
    ) -> Result<ResourceSummary> {
        self.read(move |db| {
            let found = db
                .query_row(
                    "SELECT id, kind, name, quota_bytes, created_ms FROM resources
                     WHERE team_id = ?1 AND kind = ?2 AND name = ?3 AND NOT is_going",
                    params![sql_int(team.0), kind.as_str(), name.as_str()],
                    summary,
                )
                .optional()?;
            with_links(db, found.ok_or_else(|| missing(kind))?)
        })
        .await
    }

    /// Gives a resource another name or quota.
    pub(crate) async fn change_resource(
        &self,
        actor: Actor,
        resource: Resource,
        name: Option<Label>,
        quota_bytes: Option<u64>,
    ) -> Result<Resource> {
        self.write(move |db| {
            let name = name.unwrap_or_else(|| resource.name.clone());
            let quota_bytes = quota_bytes.unwrap_or(resource.quota_bytes);
            let changed = db.execute(
                "UPDATE resources SET name = ?2, quota_bytes = ?3 WHERE id = ?1 AND NOT is_going",
                params![resource.id.as_str(), name.as_str(), sql_int(quota_bytes)],
            );
            match changed {
                Ok(0) => return Err(missing(resource.kind)),
                Ok(_) => {}
                Err(error) if is_taken(&error) => return Err(Error::Exists { noun: resource.kind.noun() }),
                Err(error) => return Err(error.into()),
            }
            let detail = format!("name {name}, quota {quota_bytes} bytes");
            let subject = resource.name.as_str();
            record(db, &actor, Some(resource.team_id), "resource.change", subject, Some(&detail))?;
            Ok(Resource { name, quota_bytes, ..resource })
        })
        .await
    }

    /// Begins to remove a resource that no app has.
    pub(crate) async fn begin_removal(&self, actor: Actor, resource: Resource) -> Result<()> {
        self.write(move |db| {
            let links = links_of(db, &resource.id)?;
            if let Some(link) = links.first() {
                return Err(Error::Conflict {
                    message: format!("app `{}` has it under the label `{}`", link.app, link.label),
                    hint: Some("unlink it first".to_owned()),
                });
            }
            db.execute("UPDATE resources SET is_going = 1 WHERE id = ?1", [resource.id.as_str()])?;
            record(
                db,
                &actor,
                Some(resource.team_id),
                "resource.remove",
                resource.name.as_str(),
                Some(resource.kind.as_str()),
            )
        })
        .await
    }

    /// Ends the removal.
    pub(crate) async fn end_removal(&self, id: ResourceId) -> Result<()> {
        self.write(move |db| {
            db.execute("DELETE FROM resources WHERE id = ?1 AND is_going", [id.as_str()])?;
            Ok(())
        })
        .await
    }

    /// Resources whose removal was begun.
    pub(crate) async fn removals(&self) -> Result<Vec<Resource>> {
        self.read(|db| {
            let mut statement = db.prepare(&format!(
                "SELECT {RESOURCE_COLUMNS} FROM resources JOIN teams ON teams.id = team_id WHERE is_going"
            ))?;
            let rows = statement.query_map([], |row| resource(row, 0))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    /// An app's links.
    pub(crate) async fn links(&self, app: AppKey) -> Result<Vec<Link>> {
        self.read(move |db| {
            let links = linked(db, &app)?;
            Ok(links
                .into_iter()
                .map(|link| Link {
                    kind: link.resource.kind,
                    label: link.label,
                    resource: link.resource.name,
                })
                .collect())
        })
        .await
    }

    /// Puts a resource behind a label, in place of the one that was there.
    pub(crate) async fn set_link(
        &self,
        actor: Actor,
        app: AppKey,
        label: Label,
        resource: Resource,
    ) -> Result<()> {
        self.write(move |db| {
            let is_there: bool = db.query_row(
                "SELECT EXISTS (SELECT 1 FROM resources WHERE id = ?1 AND NOT is_going)",
                [resource.id.as_str()],
                |row| row.get(0),
            )?;
            if !is_there {
                return Err(missing(resource.kind));
            }
            insert_link(db, app.id, resource.kind, &label, &resource.id)?;
            let detail = format!("{} {} as {label}", resource.kind, resource.name);
            record(db, &actor, Some(app.team_id), "link.set", app.name.as_str(), Some(&detail))
        })
        .await
    }

    /// Takes a resource away from a label.
    pub(crate) async fn remove_link(
        &self,
        actor: Actor,
        app: AppKey,
        kind: ResourceKind,
        label: Label,
    ) -> Result<()> {
        self.write(move |db| {
            let removed = db.execute(
                "DELETE FROM links WHERE app_id = ?1 AND kind = ?2 AND label = ?3",
                params![sql_int(app.id.0), kind.as_str(), label.as_str()],
            )?;
            if removed == 0 {
                return Err(Error::NotFound { noun: "link" });
            }
            let detail = format!("{kind} {label}");
            record(db, &actor, Some(app.team_id), "link.remove", app.name.as_str(), Some(&detail))
        })
        .await
    }
}

/// The resources behind an app's labels.
pub(super) fn linked(db: &Connection, app: &AppKey) -> Result<Vec<LinkedResource>> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT label, {RESOURCE_COLUMNS} FROM links
         JOIN resources ON resources.id = resource_id
         JOIN teams ON teams.id = resources.team_id
         WHERE app_id = ?1 ORDER BY links.kind, label"
    ))?;
    let rows = statement.query_map([sql_int(app.id.0)], |row| {
        Ok(LinkedResource {
            label: stored(Label::new(&row.get::<_, String>(0)?))?,
            resource: resource(row, 1)?,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn find(db: &Connection, team: TeamId, kind: ResourceKind, name: &Label) -> Result<Option<Resource>> {
    let found = db
        .prepare_cached(&format!(
            "SELECT {RESOURCE_COLUMNS} FROM resources JOIN teams ON teams.id = team_id
             WHERE team_id = ?1 AND kind = ?2 AND resources.name = ?3 AND NOT is_going"
        ))?
        .query_row(params![sql_int(team.0), kind.as_str(), name.as_str()], |row| resource(row, 0))
        .optional()?;
    Ok(found)
}

fn insert_resource(
    db: &Connection,
    team: TeamId,
    kind: ResourceKind,
    name: &Label,
    quota_bytes: u64,
    max_count: u64,
) -> Result<ResourceId> {
    let held: i64 = db
        .prepare_cached("SELECT count(*) FROM resources WHERE team_id = ?1")?
        .query_row([sql_int(team.0)], |row| row.get(0))?;
    if unsigned(held) >= max_count {
        return Err(Error::Quota { what: "number of resources", limit: max_count });
    }
    let id = ResourceId::random()?;
    let made = db.execute(
        "INSERT INTO resources (id, team_id, kind, name, quota_bytes, created_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            id.as_str(),
            sql_int(team.0),
            kind.as_str(),
            name.as_str(),
            sql_int(quota_bytes),
            sql_int(now_ms())
        ],
    );
    match made {
        Ok(_) => Ok(id),
        Err(error) if is_taken(&error) => Err(Error::Exists { noun: kind.noun() }),
        Err(error) => Err(error.into()),
    }
}

fn insert_link(
    db: &Connection,
    app: AppId,
    kind: ResourceKind,
    label: &Label,
    id: &ResourceId,
) -> Result<()> {
    db.prepare_cached(
        "INSERT INTO links (app_id, kind, label, resource_id) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT DO UPDATE SET resource_id = excluded.resource_id",
    )?
    .execute(params![sql_int(app.0), kind.as_str(), label.as_str(), id.as_str()])?;
    Ok(())
}

fn links_of(db: &Connection, id: &ResourceId) -> Result<Vec<ResourceLink>> {
    let mut statement = db.prepare_cached(
        "SELECT apps.name, label FROM links JOIN apps ON apps.id = app_id
         WHERE resource_id = ?1 ORDER BY apps.name, label",
    )?;
    let rows = statement.query_map([id.as_str()], |row| {
        Ok(ResourceLink {
            app: stored(AppName::new(&row.get::<_, String>(0)?))?,
            label: stored(Label::new(&row.get::<_, String>(1)?))?,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn with_links(db: &Connection, mut resource: ResourceSummary) -> Result<ResourceSummary> {
    resource.links = links_of(db, &resource.id)?;
    Ok(resource)
}

fn missing(kind: ResourceKind) -> Error {
    Error::NotFound { noun: kind.noun() }
}

fn resource(row: &Row<'_>, first: usize) -> rusqlite::Result<Resource> {
    Ok(Resource {
        id: stored(ResourceId::new(&row.get::<_, String>(first)?))?,
        kind: known(ResourceKind::parse(&row.get::<_, String>(first + 1)?))?,
        team_id: TeamId(unsigned(row.get(first + 2)?)),
        team: stored(TeamName::new(&row.get::<_, String>(first + 3)?))?,
        name: stored(Label::new(&row.get::<_, String>(first + 4)?))?,
        quota_bytes: unsigned(row.get(first + 5)?),
    })
}

fn summary(row: &Row<'_>) -> rusqlite::Result<ResourceSummary> {
    Ok(ResourceSummary {
        id: stored(ResourceId::new(&row.get::<_, String>(0)?))?,
        kind: known(ResourceKind::parse(&row.get::<_, String>(1)?))?,
        name: stored(Label::new(&row.get::<_, String>(2)?))?,
        quota_bytes: unsigned(row.get(3)?),
        used_bytes: None,
        created_ms: unsigned(row.get(4)?),
        links: Vec::new(),
    })
}

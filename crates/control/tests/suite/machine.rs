//! A machine in memory: it stores what it is given, and fails or stops where a test says.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Mutex,
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture, stream};
use rusqlite::types::ValueRef;
use wisp_control::{
    AppHealth, AppKey, AppUsage, ByteStream, Change, ChangeKind, Deployment, DomainProof, ImageDescription,
    Kept, LogQuery, LogRecord, LogStream, Platform, PlatformError, PlatformResult, Repository, Resource,
    ResourceKind, SqlAnswer, SqlStatement,
    model::{CertificateStatus, GarbageItem, GarbageKind},
    names::{AppId, ChangeNumber, Digest, Host, ReleaseNumber, ResourceId, TeamName},
};

#[derive(Default)]
pub(crate) struct Machine {
    images: Mutex<HashMap<(Repository, Digest), ImageDescription>>,
    stores: Mutex<HashMap<ResourceId, BTreeMap<String, Bytes>>>,
    databases: Mutex<HashMap<ResourceId, rusqlite::Connection>>,
    /// What serves.
    pub(crate) serving: Mutex<HashMap<AppId, Deployment>>,
    applied: Mutex<HashMap<AppId, ChangeNumber>>,
    /// Every call that a step makes.
    pub(crate) calls: Mutex<Vec<&'static str>>,
    /// The call that fails.
    pub(crate) fails_in: Mutex<Option<&'static str>>,
    /// The call that never comes back, as if the process had ended there.
    pub(crate) stops_in: Mutex<Option<&'static str>>,
    /// Domains that DNS says are the team's.
    pub(crate) proven: Mutex<BTreeSet<String>>,
}

impl Machine {
    pub(crate) fn push(&self, repository: &Repository, digest: &Digest, description: ImageDescription) {
        self.images.lock().unwrap().insert((repository.clone(), digest.clone()), description);
    }

    pub(crate) fn released(&self, app: AppId) -> Option<ReleaseNumber> {
        self.serving.lock().unwrap().get(&app).map(|deployment| deployment.release)
    }

    async fn call(&self, name: &'static str) -> PlatformResult<()> {
        self.calls.lock().unwrap().push(name);
        if *self.stops_in.lock().unwrap() == Some(name) {
            std::future::pending::<()>().await;
        }
        match *self.fails_in.lock().unwrap() == Some(name) {
            true => {
                Err(PlatformError::failed("WISP-E9999", format!("{name} fails")).with_hint("stop the test"))
            }
            false => Ok(()),
        }
    }

    fn store<T>(&self, resource: &Resource, work: impl FnOnce(&mut BTreeMap<String, Bytes>) -> T) -> T {
        assert_eq!(resource.kind, ResourceKind::KeyValue);
        work(self.stores.lock().unwrap().get_mut(&resource.id).expect("the store was provisioned"))
    }

    fn database<T>(&self, resource: &Resource, work: impl FnOnce(&rusqlite::Connection) -> T) -> T {
        assert_eq!(resource.kind, ResourceKind::Sqlite);
        work(self.databases.lock().unwrap().get(&resource.id).expect("the database was provisioned"))
    }
}

fn refused(error: impl std::fmt::Display) -> PlatformError {
    PlatformError::refused("WISP-E9998", error.to_string())
}

impl Platform for Machine {
    fn describe_image<'a>(
        &'a self,
        repository: &'a Repository,
        digest: &'a Digest,
    ) -> BoxFuture<'a, PlatformResult<ImageDescription>> {
        let found = self.images.lock().unwrap().get(&(repository.clone(), digest.clone())).cloned();
        let found = found.ok_or_else(|| PlatformError::not_found("WISP-E9997", "there is no such image"));
        async { found }.boxed()
    }

    fn compile<'a>(&'a self, _: &'a Deployment) -> BoxFuture<'a, PlatformResult<()>> {
        self.call("compile").boxed()
    }

    fn provision<'a>(&'a self, resource: &'a Resource) -> BoxFuture<'a, PlatformResult<()>> {
        async {
            self.call("provision").await?;
            match resource.kind {
                ResourceKind::KeyValue => {
                    self.stores.lock().unwrap().entry(resource.id.clone()).or_default();
                }
                ResourceKind::Sqlite => {
                    let open = || rusqlite::Connection::open_in_memory().unwrap();
                    self.databases.lock().unwrap().entry(resource.id.clone()).or_insert_with(open);
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn migrate<'a>(&'a self, _: &'a Deployment) -> BoxFuture<'a, PlatformResult<u64>> {
        self.call("migrate").map(|result| result.map(|()| 0)).boxed()
    }

    fn check<'a>(&'a self, _: &'a Deployment) -> BoxFuture<'a, PlatformResult<()>> {
        self.call("check").boxed()
    }

    fn apply<'a>(&'a self, change: &'a Change) -> BoxFuture<'a, PlatformResult<()>> {
        async {
            let app = match &change.kind {
                ChangeKind::Put(deployment) => deployment.app.id,
                ChangeKind::Remove(app) => app.id,
            };
            // Only a new release fails to be applied, so that the one before can be put back.
            let is_new = match &change.kind {
                ChangeKind::Put(deployment) => self.released(app).is_some_and(|now| now < deployment.release),
                ChangeKind::Remove(_) => false,
            };
            if is_new {
                self.call("apply").await?;
            }
            let mut applied = self.applied.lock().unwrap();
            if applied.get(&app).is_some_and(|last| *last >= change.number) {
                return Ok(());
            }
            applied.insert(app, change.number);
            let mut serving = self.serving.lock().unwrap();
            match &change.kind {
                ChangeKind::Put(deployment) => serving.insert(app, deployment.as_ref().clone()),
                ChangeKind::Remove(_) => serving.remove(&app),
            };
            Ok(())
        }
        .boxed()
    }

    fn drain<'a>(
        &'a self,
        _: &'a AppKey,
        _: ReleaseNumber,
        _: Duration,
    ) -> BoxFuture<'a, PlatformResult<u64>> {
        self.call("drain").map(|result| result.map(|()| 0)).boxed()
    }

    fn destroy<'a>(&'a self, resource: &'a Resource) -> BoxFuture<'a, PlatformResult<()>> {
        async {
            self.stores.lock().unwrap().remove(&resource.id);
            self.databases.lock().unwrap().remove(&resource.id);
            Ok(())
        }
        .boxed()
    }

    fn forget<'a>(&'a self, _: &'a AppKey) -> BoxFuture<'a, PlatformResult<()>> {
        self.call("forget").boxed()
    }

    fn forget_team<'a>(&'a self, team: &'a TeamName) -> BoxFuture<'a, PlatformResult<()>> {
        async {
            self.images.lock().unwrap().retain(|(repository, _), _| repository.team != *team);
            Ok(())
        }
        .boxed()
    }

    fn collect_garbage<'a>(
        &'a self,
        kept: &'a Kept,
        is_only_asked: bool,
    ) -> BoxFuture<'a, PlatformResult<Vec<GarbageItem>>> {
        async move {
            let mut images = self.images.lock().unwrap();
            let going: Vec<_> =
                images.keys().filter(|image| !kept.images.contains(*image)).cloned().collect();
            let mut items = Vec::new();
            for (repository, digest) in going {
                let name = format!("{repository} {digest}");
                items.push(GarbageItem { kind: GarbageKind::Manifest, name, bytes: 0 });
                if !is_only_asked {
                    images.remove(&(repository, digest));
                }
            }
            Ok(items)
        }
        .boxed()
    }

    fn usage<'a>(&'a self, resource: &'a Resource) -> BoxFuture<'a, PlatformResult<u64>> {
        let used = match resource.kind {
            ResourceKind::KeyValue => {
                self.store(resource, |store| store.values().map(Bytes::len).sum::<usize>())
            }
            ResourceKind::Sqlite => 0,
        };
        async move { Ok(used as u64) }.boxed()
    }

    fn key_value_get<'a>(
        &'a self,
        resource: &'a Resource,
        key: &'a str,
    ) -> BoxFuture<'a, PlatformResult<Option<Bytes>>> {
        async { Ok(self.store(resource, |store| store.get(key).cloned())) }.boxed()
    }

    fn key_value_set<'a>(
        &'a self,
        resource: &'a Resource,
        key: &'a str,
        value: Bytes,
    ) -> BoxFuture<'a, PlatformResult<()>> {
        async {
            self.store(resource, |store| store.insert(key.to_owned(), value));
            Ok(())
        }
        .boxed()
    }

    fn key_value_delete<'a>(
        &'a self,
        resource: &'a Resource,
        key: &'a str,
    ) -> BoxFuture<'a, PlatformResult<()>> {
        async {
            self.store(resource, |store| store.remove(key));
            Ok(())
        }
        .boxed()
    }

    fn key_value_list<'a>(
        &'a self,
        resource: &'a Resource,
        prefix: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, PlatformResult<Vec<String>>> {
        async move {
            Ok(self.store(resource, |store| {
                store
                    .keys()
                    .filter(|key| key.starts_with(prefix) && after.is_none_or(|after| key.as_str() > after))
                    .take(limit)
                    .cloned()
                    .collect()
            }))
        }
        .boxed()
    }

    fn sql<'a>(
        &'a self,
        resource: &'a Resource,
        statement: &'a SqlStatement,
    ) -> BoxFuture<'a, PlatformResult<SqlAnswer>> {
        async {
            self.database(resource, |db| {
                let mut prepared = db.prepare(&statement.text).map_err(refused)?;
                if !statement.may_write && !prepared.readonly() {
                    return Err(refused("this writes"));
                }
                let columns: Vec<String> = prepared.column_names().map(ToOwned::to_owned).collect();
                let mut found = prepared.query([]).map_err(refused)?;
                let mut rows = Vec::new();
                while let Some(row) = found.next().map_err(refused)? {
                    let cell = |index| match row.get_ref_unwrap(index) {
                        ValueRef::Integer(number) => number.into(),
                        ValueRef::Text(text) => String::from_utf8_lossy(text).into(),
                        _ => serde_json::Value::Null,
                    };
                    rows.push((0..columns.len()).map(cell).collect());
                }
                Ok(SqlAnswer { columns, rows, changed_rows: db.changes(), is_truncated: false })
            })
        }
        .boxed()
    }

    fn export<'a>(&'a self, resource: &'a Resource) -> BoxFuture<'a, PlatformResult<ByteStream>> {
        async {
            let text = self.store(resource, |store| {
                let texts: BTreeMap<_, _> =
                    store.iter().map(|(key, value)| (key, String::from_utf8_lossy(value))).collect();
                serde_json::to_vec(&texts).unwrap()
            });
            Ok(stream::iter([Ok(Bytes::from(text))]).boxed())
        }
        .boxed()
    }

    fn import<'a>(&'a self, resource: &'a Resource, data: ByteStream) -> BoxFuture<'a, PlatformResult<()>> {
        async {
            let text = data.try_collect::<Vec<Bytes>>().await?.concat();
            let texts: BTreeMap<String, String> = serde_json::from_slice(&text).map_err(refused)?;
            self.store(resource, |store| {
                *store = texts.into_iter().map(|(key, value)| (key, Bytes::from(value))).collect();
            });
            Ok(())
        }
        .boxed()
    }

    fn logs<'a>(&'a self, app: &'a AppKey, _: &'a LogQuery) -> BoxFuture<'a, PlatformResult<LogStream>> {
        async move {
            let record = LogRecord {
                at_ms: 1,
                stream: "stdout".to_owned(),
                component: None,
                request: None,
                trace: None,
                text: format!("{app} says hello"),
                fields: serde_json::Map::new(),
            };
            Ok(stream::iter([Ok(record)]).boxed())
        }
        .boxed()
    }

    fn proves_domain<'a>(&'a self, proof: &'a DomainProof) -> BoxFuture<'a, PlatformResult<bool>> {
        let is_proven = self.proven.lock().unwrap().contains(proof.host.as_str());
        async move { Ok(is_proven) }.boxed()
    }

    fn certificate<'a>(&'a self, _: &'a Host) -> BoxFuture<'a, PlatformResult<Option<CertificateStatus>>> {
        async { Ok(None) }.boxed()
    }

    fn health<'a>(&'a self, app: &'a AppKey) -> BoxFuture<'a, PlatformResult<AppHealth>> {
        let state = if self.released(app.id).is_some() { "serving" } else { "stopped" };
        async move { Ok(AppHealth { state: state.to_owned(), message: None }) }.boxed()
    }

    fn measure<'a>(&'a self, apps: &'a [AppKey]) -> BoxFuture<'a, PlatformResult<Vec<AppUsage>>> {
        let usage = |app: &AppKey| AppUsage { app: app.to_string(), ..AppUsage::default() };
        let usages = apps.iter().map(usage).collect();
        async move { Ok(usages) }.boxed()
    }

    fn ailments(&self) -> BoxFuture<'_, Vec<String>> {
        async { Vec::new() }.boxed()
    }
}

//! Operations: long work in steps that survives the process.
//!
//! How far an operation has come is written before and after each step. Every step may be
//! taken twice, so a process that finds a step begun begins it again.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    access::Caller,
    control::{Control, needed},
    error::{Error, Result},
    model::{ErrorBody, Operation, OperationKind, Progress},
    names::{OperationId, ReleaseNumber, TeamName},
    plan,
    platform::{AppKey, Change, ChangeKind},
    state::{Actor, Keyed, Needed, NewOperation, NewRelease, OperationRow},
};

/// The steps that bring an image to serve.
const DEPLOY: [&str; 7] = ["validate", "compile", "provision", "migrate", "check", "swap", "drain"];

/// The steps that bring other variables to serve.
const CONFIGURE: [&str; 4] = ["validate", "check", "swap", "drain"];

/// The steps that bring an earlier release to serve: it was compiled and checked when it was
/// made.
const ROLLBACK: [&str; 3] = ["validate", "swap", "drain"];

/// The steps that remove an app.
const REMOVE: [&str; 2] = ["stop", "erase"];

/// How long requests may go on with the release before, until nobody waits for them any more.
/// They are not ended.
const MAX_DRAIN: Duration = Duration::from_secs(30);

/// What is to be done.
pub(crate) enum Work {
    Deploy(NewRelease),
    Configure(NewRelease, String),
    Rollback(ReleaseNumber),
    Remove,
}

/// Takes an operation out of those that run, however it ends.
struct Running {
    control: Arc<Control>,
    id: OperationId,
}

impl Control {
    /// Goes on with what ran when the process ended. Call it once the snapshot runs.
    pub async fn resume(self: &Arc<Self>) -> Result<usize> {
        self.state.forget_running_keys().await?;
        for resource in self.state.removals().await? {
            let control = Arc::clone(self);
            tokio::spawn(async move {
                if let Err(error) = control.finish_removal(&resource).await {
                    tracing::error!(%error, id = %resource.id, "a resource cannot be removed");
                }
            });
        }
        let operations = self.state.all_running().await?;
        let count = operations.len();
        for operation in operations {
            let app = self.state.app_by_id(operation.app).await?.key;
            tracing::info!(id = %operation.id, %app, "going on with an operation");
            self.spawn(operation.id.clone(), app, operation);
        }
        Ok(count)
    }

    /// Begins an operation of an app.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        caller: &Caller,
        keyed: Option<Keyed>,
        app: AppKey,
        work: Work,
    ) -> Result<Operation> {
        if *self.is_stopping.borrow() {
            return Err(Error::Stopping);
        }
        let (kind, steps, action): (_, &'static [&'static str], _) = match &work {
            Work::Deploy(_) => (OperationKind::Deploy, &DEPLOY, "release.create"),
            Work::Configure(..) => (OperationKind::Configure, &CONFIGURE, "variables.change"),
            Work::Rollback(_) => (OperationKind::Rollback, &ROLLBACK, "release.rollback"),
            Work::Remove => (OperationKind::Remove, &REMOVE, "app.remove"),
        };
        let (new_release, release, detail) = match work {
            Work::Deploy(release) => (Some(release), None, None),
            Work::Configure(release, detail) => (Some(release), None, Some(detail)),
            Work::Rollback(number) => (None, Some(number), None),
            Work::Remove => (None, None, None),
        };
        let id = OperationId::random()?;
        let new = NewOperation {
            id: id.clone(),
            app: app.clone(),
            kind,
            new_release,
            release,
            steps,
            keyed,
            action,
            detail,
        };
        self.state.begin(Actor::from(caller), new).await?;
        let row = self.state.operation(app.team_id, id.clone()).await?;
        let view = self.operation_view(&app.team, row.clone());
        self.spawn(id, app, row);
        Ok(view)
    }

    /// An operation as the API says it.
    pub(crate) fn operation_view(&self, team: &TeamName, row: OperationRow) -> Operation {
        Operation {
            url: self.url_of(team, &row.app_name),
            id: row.id,
            kind: row.kind,
            app: row.app_name,
            release: row.release,
            progress: row.progress,
            steps: row.steps,
            error: row.error,
            created_ms: row.created_ms,
            ended_ms: row.ended_ms,
            created_by: row.created_by,
        }
    }

    /// Tells when something happens to an operation; nothing if it does not run here.
    pub(crate) fn watch(&self, id: &OperationId) -> Option<watch::Receiver<u64>> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.get(id).map(watch::Sender::subscribe)
    }

    /// Removes the data of a resource that is going, then its name.
    pub(crate) async fn finish_removal(&self, resource: &crate::platform::Resource) -> Result<()> {
        self.platform.destroy(resource).await?;
        self.state.end_removal(resource.id.clone()).await
    }

    fn spawn(self: &Arc<Self>, id: OperationId, app: AppKey, row: OperationRow) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), watch::Sender::new(0));
        let running = Running { control: Arc::clone(self), id };
        tokio::spawn(async move {
            if let Err(error) = running.run(&app, &row).await {
                // The state does not work: the next process goes on with it.
                tracing::error!(%error, id = %running.id, %app, "an operation cannot go on");
            }
        });
    }
}

impl Running {
    /// Takes the steps that were not taken.
    async fn run(&self, app: &AppKey, row: &OperationRow) -> Result<()> {
        let state = &self.control.state;
        let mut finished = None;
        for (position, step) in row.steps.iter().enumerate() {
            if step.progress == Progress::Done {
                continue;
            }
            state.advance(self.id.clone(), finished.take(), Some(position)).await?;
            self.notify();
            let begun = Instant::now();
            let result = self.step(&step.name, app, row).await;
            let duration_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            match result {
                Ok(detail) => finished = Some((position, duration_us, detail)),
                Err(error) => {
                    let body = ErrorBody {
                        code: error.code().to_owned(),
                        message: format!("step `{}` failed: {error}", step.name),
                        hint: error.hint(),
                    };
                    tracing::warn!(id = %self.id, %app, step = step.name, %error, "an operation failed");
                    let failed = Some(duration_us);
                    state.set_step(self.id.clone(), position, Progress::Failed, failed, None).await?;
                    state.fail(self.id.clone(), app.id, row.release, body, self.kept_count(app)).await?;
                    self.notify();
                    return Ok(());
                }
            }
        }
        state.advance(self.id.clone(), finished, None).await?;
        match row.kind {
            OperationKind::Remove => state.erase_app(self.id.clone(), app.id).await?,
            _ => state.finish(self.id.clone(), app.id, self.kept_count(app)).await?,
        }
        self.notify();
        Ok(())
    }

    /// Takes one step. Says what is worth saying about it.
    async fn step(&self, name: &str, app: &AppKey, row: &OperationRow) -> Result<Option<String>> {
        let control = &self.control;
        if row.kind == OperationKind::Remove {
            return match name {
                "stop" => self.stop(app).await,
                _ => self.forget(app).await,
            };
        }
        let release = row.release.ok_or_else(|| Error::State("an operation has no release".to_owned()))?;
        let parts = control.state.deployment(app.id, release).await?;
        match name {
            "validate" => self.validate(parts).await,
            "compile" => {
                control.platform.compile(&control.deployment(parts).await?).await?;
                Ok(None)
            }
            "provision" => self.provision(app, &parts.description).await,
            "migrate" => {
                let count = control.platform.migrate(&control.deployment(parts).await?).await?;
                Ok((count > 0).then(|| format!("{count} migrations")))
            }
            "check" => {
                control.platform.check(&control.deployment(parts).await?).await?;
                Ok(None)
            }
            "swap" => self.swap(app, release, row.previous).await,
            "drain" => {
                let left = control.platform.drain(app, release, MAX_DRAIN).await?;
                Ok((left > 0).then(|| format!("{left} requests go on with the release before")))
            }
            other => Err(Error::State(format!("step `{other}` is of a later version"))),
        }
    }

    /// The policy may have changed since the release was asked for.
    async fn validate(&self, parts: crate::state::DeploymentParts) -> Result<Option<String>> {
        let policy = self.control.policy_of(&parts.app.team);
        let description = parts.description.clone();
        let deployment = self.control.deployment(parts).await?;
        let mut values = HashMap::new();
        for (name, variable) in &deployment.variables {
            values.insert(name, variable.open()?);
        }
        let verdict = plan::judge(&policy, Some(&description), &description, |name| {
            let set = values.get(&name.to_owned()).map(|value| value.to_string());
            let default = || {
                let variable = description.variables.iter().find(|variable| variable.name == name)?;
                variable.default.clone()
            };
            set.or_else(default)
        });
        match verdict.refused.is_empty() {
            true => Ok(None),
            false => Err(Error::Refused(verdict.refused)),
        }
    }

    async fn provision(
        &self,
        app: &AppKey,
        description: &crate::description::ImageDescription,
    ) -> Result<Option<String>> {
        let control = &self.control;
        let policy = control.policy_of(&app.team);
        let before = control.state.links(app.clone()).await?.len();
        let needed = needed(app, description, &policy)
            .into_iter()
            .map(|need| Needed {
                quota_bytes: policy.quotas().bytes_of(need.kind),
                kind: need.kind,
                label: need.label,
                name: need.name,
            })
            .collect();
        let limit = policy.quotas().resources;
        let links = control.state.link_needed(Actor::itself(), app.clone(), needed, limit).await?;
        for link in &links {
            control.platform.provision(&link.resource).await?;
        }
        let made = links.len().saturating_sub(before);
        Ok((made > 0).then(|| format!("{made} new resources")))
    }

    /// Lets the release serve. If the machine cannot, the one before goes on.
    async fn swap(
        &self,
        app: &AppKey,
        release: ReleaseNumber,
        previous: Option<ReleaseNumber>,
    ) -> Result<Option<String>> {
        let Err(error) = self.point_to(app, Some(release)).await else { return Ok(None) };
        if let Err(second) = self.point_to(app, previous).await {
            tracing::error!(%app, %second, "the release before cannot be put back");
        }
        Err(error)
    }

    async fn point_to(&self, app: &AppKey, release: Option<ReleaseNumber>) -> Result<()> {
        let control = &self.control;
        let number = control.state.swap(app.clone(), release).await?;
        control.announce(number);
        let kind = match release {
            Some(release) => {
                let parts = control.state.deployment(app.id, release).await?;
                ChangeKind::Put(Box::new(control.deployment(parts).await?))
            }
            None => ChangeKind::Remove(app.clone()),
        };
        Ok(control.platform.apply(&Change { number, kind }).await?)
    }

    /// Takes the app off the machine. If that cannot be, it is as it was.
    async fn stop(&self, app: &AppKey) -> Result<Option<String>> {
        let control = &self.control;
        let number = control.state.append_removal(app.clone()).await?;
        control.announce(number);
        let change = Change { number, kind: ChangeKind::Remove(app.clone()) };
        if let Err(error) = control.platform.apply(&change).await {
            control.state.keep_app(app.id).await?;
            control.refresh(app.clone()).await?;
            return Err(error.into());
        }
        Ok(None)
    }

    async fn forget(&self, app: &AppKey) -> Result<Option<String>> {
        // What is left behind only takes room; the app is gone all the same.
        if let Err(error) = self.control.platform.forget(app).await {
            tracing::warn!(%app, %error, "what was kept of an app that is gone cannot be removed");
            return Ok(Some("some files could not be removed".to_owned()));
        }
        Ok(None)
    }

    /// How many releases of the app are kept.
    fn kept_count(&self, app: &AppKey) -> u64 {
        self.control.policy_of(&app.team).quotas().kept_releases
    }

    fn notify(&self) {
        let running = self.control.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watch) = running.get(&self.id) {
            watch.send_modify(|count| *count += 1);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.control.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

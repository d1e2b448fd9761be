//! The control plane as one object: what the API and the process around it call.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::{
    access::{Caller, Role, Scope, Scopes},
    credential,
    description::ImageDescription,
    error::{Error, Result},
    model::{NewResource, NewToken, Plan, Token},
    names::{AppName, ChangeNumber, Digest, Host, Label, OperationId, TeamId, TeamName, TokenId, UserId},
    plan,
    platform::{
        AppKey, Change, ChangeKind, Deployment, LinkedResource, Platform, Repository, ResourceKind, Snapshot,
        VariableValue,
    },
    policy::{Policy, TeamPolicy},
    seal::Key,
    state::{
        Actor, AppRow, DeploymentParts, NewInvitation, NewTokenRow, SignedIn, State, StoredChange,
        StoredVariable, now_ms,
    },
};

/// How long the link of the first start works. A new start makes a new one.
const FIRST_LINK_LIFE_MS: u64 = 24 * 60 * 60 * 1_000;

/// How exactly it is known when a token was used: each use would be a write otherwise.
const USED_PRECISION_MS: u64 = 60 * 1_000;

/// Teams whose keys are kept in memory. Each takes a read and an unwrapping to get again.
const MAX_KEYS_COUNT: usize = 10_000;

/// What the answer cache and the certificates are sealed as.
const CERTIFICATE: &str = "certificate";

/// Where the control plane keeps what it owns, and how it is reached.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The file of the state.
    pub state: PathBuf,
    /// The file with the key that secrets are wrapped with. Made if it is not there.
    pub envelope_key: PathBuf,
    /// The key itself, as hexadecimal digits, instead of the file: from
    /// [`ENVELOPE_KEY_VARIABLE`](crate::ENVELOPE_KEY_VARIABLE).
    pub envelope_key_text: Option<String>,
    /// The operator's policy, if there is one.
    pub policy: Option<PathBuf>,
    /// The domain below which apps answer, such as `localhost`.
    pub domain: String,
    /// Where the API is reached from outside, such as `http://localhost:3000`. Apps are
    /// reached by the same scheme and port.
    pub public_url: String,
}

/// What somebody wants to do with a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistryAction {
    /// Read.
    Pull,
    /// Write or delete.
    Push,
}

/// The control plane.
pub struct Control {
    pub(crate) state: State,
    pub(crate) platform: Arc<dyn Platform>,
    pub(crate) settings: Settings,
    envelope: Key,
    policy: RwLock<Arc<Policy>>,
    keys: Mutex<HashMap<TeamId, Arc<Key>>>,
    /// Operations that run in this process; the value counts what happened to them.
    pub(crate) running: Mutex<HashMap<OperationId, watch::Sender<u64>>>,
    /// Whether no more operations may begin.
    pub(crate) is_stopping: watch::Sender<bool>,
    last_change: watch::Sender<ChangeNumber>,
    /// Held by who collects garbage.
    pub(crate) collecting: tokio::sync::Mutex<()>,
    /// Wrong codes that somebody typed, and since when they are counted.
    attempts: Mutex<HashMap<UserId, (u64, u32)>>,
}

impl Control {
    /// Opens the state. Nothing runs yet: take the [`snapshot`](Self::snapshot), then
    /// [`resume`](Self::resume).
    ///
    /// # Errors
    /// When the state, the key or the policy cannot be used.
    pub async fn open(settings: Settings, platform: Arc<dyn Platform>) -> Result<Arc<Self>> {
        if Host::new(&format!("app.team.{}", settings.domain)).is_err() {
            return Err(Error::invalid(format!("`{}` is no domain", settings.domain)));
        }
        let envelope = Key::envelope(&settings.envelope_key, settings.envelope_key_text.as_deref())?;
        let policy = match &settings.policy {
            Some(path) => Policy::read(path)?,
            None => Policy::default(),
        };
        let state = State::open(&settings.state).await?;
        let (_, last) = state.changes(ChangeNumber(0), 0).await?;
        Ok(Arc::new(Self {
            state,
            platform,
            settings,
            envelope,
            policy: RwLock::new(Arc::new(policy)),
            keys: Mutex::default(),
            running: Mutex::default(),
            is_stopping: watch::Sender::new(false),
            last_change: watch::Sender::new(last),
            collecting: tokio::sync::Mutex::default(),
            attempts: Mutex::default(),
        }))
    }

    /// A link that makes whoever opens it the operator, once. Nothing if there is one already.
    pub async fn sign_in_link(&self) -> Result<Option<String>> {
        if self.state.has_users().await? {
            return Ok(None);
        }
        self.state.forget_operator_invitations().await?;
        let code = credential::random_hex()?;
        let invitation = NewInvitation {
            hash: credential::hash(&code),
            user: None,
            team: None,
            role: Role::Owner,
            is_operator: true,
            expires_ms: now_ms().saturating_add(FIRST_LINK_LIFE_MS),
        };
        self.state.invite(Actor::itself(), invitation).await?;
        Ok(Some(self.link(&code)))
    }

    /// Everything that shall run now.
    pub async fn snapshot(&self) -> Result<Snapshot> {
        // The number first: what changes in between is in both, and numbers only go up.
        let (_, last) = self.state.changes(ChangeNumber(0), 0).await?;
        let mut deployments = Vec::new();
        for parts in self.state.current_deployments().await? {
            deployments.push(self.deployment(parts).await?);
        }
        Ok(Snapshot { last, deployments })
    }

    /// Changes after a number, in order, for a node that follows the stream.
    pub async fn changes_after(&self, after: ChangeNumber, limit: usize) -> Result<Vec<Change>> {
        let (changes, _) = self.state.changes(after, limit).await?;
        let mut found = Vec::with_capacity(changes.len());
        for StoredChange { number, is_removal, app, release } in changes {
            let kind = match release.filter(|_| !is_removal) {
                Some(_) => match self.state.current_deployment(app.id).await {
                    Ok(Some(parts)) => ChangeKind::Put(Box::new(self.deployment(parts).await?)),
                    Ok(None) | Err(Error::NotFound { .. }) => ChangeKind::Remove(app),
                    Err(error) => return Err(error),
                },
                None => ChangeKind::Remove(app),
            };
            found.push(Change { number, kind });
        }
        Ok(found)
    }

    /// The number of the last change, whenever there is another one.
    pub fn follow(&self) -> watch::Receiver<ChangeNumber> {
        self.last_change.subscribe()
    }

    /// Whether somebody with this credential may use a repository. What they may not see does
    /// not exist.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`], [`Error::NotFound`] or [`Error::Forbidden`].
    pub async fn authorize_repository(
        &self,
        secret: &str,
        from: &str,
        team: &str,
        app: &str,
        action: RegistryAction,
    ) -> Result<Repository> {
        let caller = self.authenticate(secret, from).await?;
        let not_found = || Error::NotFound { noun: "repository" };
        let (Ok(team), Ok(app)) = (TeamName::new(team), AppName::new(app)) else {
            return Err(not_found());
        };
        let (_, scopes) = self.reach(&caller, &team).await?.ok_or_else(not_found)?;
        let scope = match action {
            RegistryAction::Pull => Scope::RegistryPull,
            RegistryAction::Push => Scope::RegistryPush,
        };
        check_scope(&caller, scopes, scope)?;
        Ok(Repository { team, app })
    }

    /// Whether a host name leads to an app: whether a certificate may be asked for it.
    pub async fn serves_host(&self, host: &str) -> Result<bool> {
        let Ok(host) = Host::new(host) else { return Ok(false) };
        let Some(own) =
            host.as_str().strip_suffix(&self.settings.domain).and_then(|own| own.strip_suffix('.'))
        else {
            return self.state.has_domain(host).await;
        };
        let Some((app, team)) = own.split_once('.') else { return Ok(false) };
        let (Ok(app), Ok(team)) = (AppName::new(app), TeamName::new(team)) else { return Ok(false) };
        self.state.has_app(team, app).await
    }

    /// What is kept under a name for whoever gets certificates.
    pub async fn certificate(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let sealed = self.state.certificate(name.to_owned()).await?;
        let open = |sealed: Vec<u8>| self.envelope.open(&format!("{CERTIFICATE} {name}"), &sealed);
        Ok(sealed.map(open).transpose()?.map(|value| value.to_vec()))
    }

    /// Every name that something is kept under.
    pub async fn certificate_names(&self) -> Result<Vec<String>> {
        self.state.certificates().await
    }

    /// Keeps something under a name, sealed; or nothing any more.
    pub async fn set_certificate(&self, name: &str, value: Option<&[u8]>) -> Result<()> {
        let sealed = value.map(|value| self.envelope.seal(&format!("{CERTIFICATE} {name}"), value));
        self.state.set_certificate(name.to_owned(), sealed.transpose()?).await
    }

    /// Writes a copy of the state, as of now, to a file that is not there yet. What was
    /// acknowledged before is in it.
    pub async fn copy_state_to(&self, path: &std::path::Path) -> Result<()> {
        self.state.copy_to(path).await
    }

    /// Reads the policy again, and tells the machine what it grants now.
    ///
    /// # Errors
    /// When the file is wrong: the policy stays as it was.
    pub async fn reload_policy(self: &Arc<Self>) -> Result<()> {
        let Some(path) = self.settings.policy.clone() else { return Ok(()) };
        let policy = tokio::task::spawn_blocking(move || Policy::read(&path))
            .await
            .map_err(|error| Error::State(error.to_string()))??;
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
        for app in self.state.apps_that_serve(None).await? {
            let key = match self.state.app_by_id(app).await {
                Ok(row) => row.key,
                Err(Error::NotFound { .. }) => continue,
                Err(error) => return Err(error),
            };
            match self.refresh(key.clone()).await {
                // It goes on as it was; the others are told all the same.
                Err(Error::Platform(error)) => {
                    tracing::warn!(app = %key, code = error.code, "what the policy grants now: {error}");
                }
                refreshed => refreshed?,
            }
        }
        Ok(())
    }

    /// Lets no more operations begin, and waits for those that run, for as long as `at_most`.
    /// Returns how many still do; the next process goes on with them.
    pub async fn stop(&self, at_most: Duration) -> usize {
        self.is_stopping.send_replace(true);
        let all_done = async {
            loop {
                let next = {
                    let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
                    running.values().next().map(watch::Sender::subscribe)
                };
                let Some(mut next) = next else { return };
                // The sender goes away when the operation is over.
                while next.changed().await.is_ok() {}
            }
        };
        drop(tokio::time::timeout(at_most, all_done).await);
        self.running.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Who a token belongs to.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`] if it does not hold.
    pub async fn authenticate(&self, secret: &str, from: &str) -> Result<Caller> {
        let token = self.state.token(credential::hash(secret)).await?.ok_or(Error::Unauthenticated)?;
        let now = now_ms();
        if token.used_ms.is_none_or(|used_ms| used_ms.saturating_add(USED_PRECISION_MS) < now) {
            self.state.touch_token(token.id.clone()).await?;
        }
        Ok(Caller {
            user: token.user,
            is_operator: token.is_operator,
            token: token.id,
            scopes: token.scopes,
            team: token.team,
            token_role: token.role,
            from: from.to_owned(),
        })
    }

    /// The team that the caller knows by this name, and what they may do in it.
    pub(crate) async fn reach(&self, caller: &Caller, team: &TeamName) -> Result<Option<(TeamId, Scopes)>> {
        if caller.team.as_ref().is_some_and(|(_, only)| only != team) {
            return Ok(None);
        }
        let (id, role) = match (&caller.user, &caller.team) {
            (Some((user, _)), _) => match self.state.team_of_user(*user, team.clone()).await? {
                Some(found) => found,
                None => return Ok(None),
            },
            (None, Some((id, _))) => (*id, caller.token_role),
            (None, None) => return Ok(None),
        };
        Ok(Some((id, caller.scopes.and(role.scopes()))))
    }

    /// Makes a token for a person or a team.
    pub(crate) async fn issue(
        &self,
        actor: Actor,
        owner: TokenOwner,
        name: Label,
        scopes: Scopes,
        expires_ms: Option<u64>,
    ) -> Result<NewToken> {
        let secret = credential::random_token()?;
        let id = TokenId::random()?;
        let row = NewTokenRow {
            id: id.clone(),
            hash: credential::hash(&secret),
            name: name.clone(),
            user: owner.user.as_ref().map(|user| user.user),
            team: owner.team.as_ref().map(|(team, _)| *team),
            role: owner.role,
            scopes,
            expires_ms,
        };
        let created_ms = self.state.create_token(actor, row).await?;
        Ok(NewToken {
            token: Token {
                id,
                name,
                team: owner.team.map(|(_, team)| team),
                user: owner.user.map(|user| user.name),
                scopes: scopes.iter().collect(),
                created_ms,
                expires_ms,
                used_ms: None,
            },
            secret,
        })
    }

    /// Makes a function that makes a team's data key from its id.
    pub(crate) fn data_key_maker(
        self: &Arc<Self>,
    ) -> impl FnOnce(TeamId) -> Result<Vec<u8>> + Send + 'static {
        let control = Arc::clone(self);
        move |team| Ok(control.envelope.new_wrapped(&data_key_of(team))?.1)
    }

    /// What a team may do.
    pub(crate) fn policy_of(&self, team: &TeamName) -> Arc<TeamPolicy> {
        Arc::clone(self.policy().of(team))
    }

    /// What all teams may do.
    pub(crate) fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where an app answers by itself.
    pub(crate) fn host_of(&self, team: &TeamName, app: &AppName) -> Result<Host> {
        Ok(Host::new(&format!("{app}.{team}.{}", self.settings.domain))?)
    }

    /// The address of an app.
    pub(crate) fn url_of(&self, team: &TeamName, app: &AppName) -> String {
        let url = url::Url::parse(&self.settings.public_url);
        let host = format!("{app}.{team}.{}", self.settings.domain);
        match url {
            Ok(url) => match url.port() {
                Some(port) => format!("{}://{host}:{port}", url.scheme()),
                None => format!("{}://{host}", url.scheme()),
            },
            Err(_) => format!("http://{host}"),
        }
    }

    /// The link with a code in it.
    pub(crate) fn link(&self, code: &str) -> String {
        format!("{}/sign-in?code={code}", self.settings.public_url.trim_end_matches('/'))
    }

    /// Notes a wrong code, and refuses whoever has typed too many.
    pub(crate) fn count_attempt(&self, user: UserId) -> Result<()> {
        const MAX_ATTEMPTS_COUNT: u32 = 20;
        const WINDOW_MS: u64 = 60 * 1_000;
        const MAX_COUNTED: usize = 10_000;
        let now = now_ms();
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        if attempts.len() >= MAX_COUNTED {
            attempts.retain(|_, (since_ms, _)| since_ms.saturating_add(WINDOW_MS) > now);
        }
        let (since_ms, count) = attempts.entry(user).or_insert((now, 0));
        if since_ms.saturating_add(WINDOW_MS) <= now {
            (*since_ms, *count) = (now, 0);
        }
        *count += 1;
        match *count > MAX_ATTEMPTS_COUNT {
            true => Err(Error::TooManyAttempts { retry_after: Duration::from_millis(WINDOW_MS) }),
            false => Ok(()),
        }
    }

    /// Seals a value that belongs to the server itself.
    pub(crate) fn seal(&self, belongs_to: &str, value: &[u8]) -> Result<Vec<u8>> {
        self.envelope.seal(belongs_to, value)
    }

    /// Opens what [`seal`](Self::seal) sealed.
    pub(crate) fn open_sealed(&self, belongs_to: &str, sealed: &[u8]) -> Result<Vec<u8>> {
        Ok(self.envelope.open(belongs_to, sealed)?.to_vec())
    }

    /// Makes a variable as it is kept.
    pub(crate) async fn store_variable(
        &self,
        team: TeamId,
        name: &str,
        value: &str,
        is_secret: bool,
    ) -> Result<StoredVariable> {
        let value = match is_secret {
            true => self.team_key(team).await?.seal(&secret_of(team, name), value.as_bytes())?,
            false => value.as_bytes().to_vec(),
        };
        Ok(StoredVariable { name: name.to_owned(), value, is_secret })
    }

    /// Everything that a release needs to run.
    pub(crate) async fn deployment(&self, parts: DeploymentParts) -> Result<Deployment> {
        let team = parts.app.team_id;
        let mut variables = std::collections::BTreeMap::new();
        let declared = &parts.description.variables;
        for variable in parts.variables {
            let mut value = self.value_of(team, variable.clone()).await?;
            value.is_secret |= declared.iter().any(|one| one.name == variable.name && one.is_secret);
            variables.insert(variable.name, value);
        }
        let mut hosts = vec![self.host_of(&parts.app.team, &parts.app.name)?];
        hosts.extend(parts.domains);
        let policy = self.policy_of(&parts.app.team);
        // What the operator puts behind a label goes before what was behind it. What this version
        // does not have is refused to a new release; one that serves goes on with what it had.
        let is_own = |link: &LinkedResource| {
            let mut files = policy.grants().files.iter();
            !files.any(|file| file.kind == link.resource.kind && file.label == link.label)
        };
        Ok(Deployment {
            grants: Arc::clone(policy.grants()),
            links: parts.links.into_iter().filter(is_own).collect(),
            app: parts.app,
            release: parts.release,
            image: parts.image,
            configuration: parts.configuration,
            variables,
            hosts,
        })
    }

    /// What a release of this image would change.
    pub(crate) async fn plan(
        &self,
        app: &AppRow,
        image: &Digest,
        given: &HashMap<String, String>,
    ) -> Result<(Plan, ImageDescription)> {
        let repository = Repository { team: app.key.team.clone(), app: app.key.name.clone() };
        let next = self.platform.describe_image(&repository, image).await?;
        let current = match app.current {
            Some(number) => self.state.release(app.key.id, number).await?.description,
            None => None,
        };
        let mut values = HashMap::new();
        for variable in self.state.variables(app.configuration).await? {
            let name = variable.name.clone();
            values.insert(name, self.value_of(app.key.team_id, variable).await?.open()?);
        }
        values.extend(given.iter().map(|(name, value)| (name.clone(), Zeroizing::new(value.clone()))));
        let policy = self.policy_of(&app.key.team);
        let verdict = plan::judge(&policy, current.as_ref(), &next, |name| {
            let default = || {
                let variable = next.variables.iter().find(|variable| variable.name == name)?;
                variable.default.clone()
            };
            values.get(name).map(|value| value.to_string()).or_else(default)
        });
        let missing = next
            .variables
            .iter()
            .filter(|variable| variable.is_required && !values.contains_key(&variable.name));
        let linked = self.state.links(app.key.clone()).await?;
        let new_resources = needed(&app.key, &next, &policy)
            .into_iter()
            .filter(|need| !linked.iter().any(|link| link.kind == need.kind && link.label == need.label))
            .collect();
        let plan = Plan {
            image: image.clone(),
            current: app.current,
            changes: plan::differences(current.as_ref(), &next),
            refused: verdict.refused,
            approvals: verdict.approvals,
            new_resources,
            backends: plan::backends(&policy, &next),
            missing_variables: missing.map(|variable| variable.name.clone()).collect(),
        };
        Ok((plan, next))
    }

    /// Tells the machine that what belongs to an app's release has changed: domains, links,
    /// grants.
    pub(crate) async fn refresh(&self, app: AppKey) -> Result<()> {
        let Some(number) = self.state.append_refresh(app.clone()).await? else { return Ok(()) };
        self.announce(number);
        let Some(parts) = self.state.current_deployment(app.id).await? else { return Ok(()) };
        let deployment = self.deployment(parts).await?;
        let change = Change { number, kind: ChangeKind::Put(Box::new(deployment)) };
        Ok(self.platform.apply(&change).await?)
    }

    /// Tells those who follow the stream that there is another change.
    pub(crate) fn announce(&self, number: ChangeNumber) {
        self.last_change.send_if_modified(|last| {
            let is_newer = number > *last;
            *last = number.max(*last);
            is_newer
        });
    }

    /// A variable's value as it is kept; a secret is not opened.
    async fn value_of(&self, team: TeamId, variable: StoredVariable) -> Result<VariableValue> {
        let StoredVariable { name, value, is_secret } = variable;
        if is_secret {
            let key = self.team_key(team).await?;
            return Ok(VariableValue::sealed(key, secret_of(team, &name), value));
        }
        let text = std::str::from_utf8(&value);
        let text = text.map_err(|_| Error::State("a variable is not UTF-8".to_owned()))?;
        Ok(VariableValue::plain(text, false))
    }

    async fn team_key(&self, team: TeamId) -> Result<Arc<Key>> {
        let known = self.keys.lock().unwrap_or_else(PoisonError::into_inner).get(&team).cloned();
        if let Some(key) = known {
            return Ok(key);
        }
        let wrapped = self.state.data_key(team).await?;
        let key = Arc::new(self.envelope.unwrap_key(&data_key_of(team), &wrapped)?);
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.len() >= MAX_KEYS_COUNT {
            keys.clear();
        }
        keys.insert(team, Arc::clone(&key));
        Ok(key)
    }
}

/// Who a token stands for.
pub(crate) struct TokenOwner {
    pub(crate) user: Option<SignedIn>,
    pub(crate) team: Option<(TeamId, TeamName)>,
    pub(crate) role: Role,
}

/// The resources that an app's labels ask for, leaving out those that the policy gives another
/// backend.
pub(crate) fn needed(app: &AppKey, description: &ImageDescription, policy: &TeamPolicy) -> Vec<NewResource> {
    let of_kind = |kind| {
        plan::labels(description, kind)
            .into_iter()
            .filter(move |label| policy.backend(kind, label).is_none())
            .filter_map(move |label| {
                let name = Label::new(&format!("{}.{label}", app.name)).ok()?;
                Some(NewResource { kind, label: Label::new(label).ok()?, name })
            })
    };
    ResourceKind::ALL.into_iter().flat_map(of_kind).collect()
}

/// Refuses whoever lacks a scope, and says whether it is the role or the token.
pub(crate) fn check_scope(caller: &Caller, scopes: Scopes, scope: Scope) -> Result<()> {
    match scopes.contains(scope) {
        true => Ok(()),
        false => Err(Error::Forbidden { scope: scope.as_str(), is_role: caller.scopes.contains(scope) }),
    }
}

fn data_key_of(team: TeamId) -> String {
    format!("data key of team {team}")
}

fn secret_of(team: TeamId, name: &str) -> String {
    format!("secret {name} of team {team}")
}

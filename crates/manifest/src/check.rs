//! From a manifest as it is written to the app that it means: names exist,
//! grammars are kept, defaults are filled in. Everything that is wrong is
//! noted; the app is made only if nothing is.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indexmap::{IndexMap, IndexSet};

use crate::allowed_hosts::{AllowedHost, Chained, MAX_ALLOWED_HOSTS_COUNT, translate_allowed_http_hosts};
use crate::decode::{At, Context, Entries, Required, Span};
use crate::diagnostics::{Rule, most_similar};
use crate::id::{ComponentId, InvalidName, Label, TriggerId, VariableName};
use crate::model::{
    App, Build, Component, Dependency, DependencyName, DependencySource, Executor, FileMount, FreeTable,
    HttpRoute, HttpTarget, HttpTrigger, InheritConfiguration, Inheritable, Limits, MiddlewareSource,
    OtherTrigger, PackageName, RedisTrigger, RegistryPackage, Reuse, Sha256Digest, Source, StaticResponse,
    Target, Trigger, TriggerKind, Variable, WagiSettings, WispAppSettings, WispComponentSettings,
};
use crate::raw;
use crate::route::{RoutePattern, RouteTable};
use crate::template::Template;

/// The most components of one app: ten times those of the largest app known.
pub const MAX_COMPONENTS_COUNT: usize = 1024;

/// The most triggers of one app: a few for each component.
pub const MAX_TRIGGERS_COUNT: usize = 4096;

/// The longest `request_timeout` and `idle_timeout`: a week. Longer ones are
/// mistyped.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Checks a manifest. `None`: there was an error, which has been noted.
pub(crate) fn check(
    manifest: At<raw::Manifest>,
    context: &mut Context,
    directory: &Path,
    profile: Option<&str>,
) -> Option<App> {
    let At { value: manifest, span } = manifest;
    let components = manifest.component.unwrap_or(Entries(Vec::new()));
    let variables = manifest.variables.unwrap_or(Entries(Vec::new()));
    let mut checker = Checker {
        variable_names: variables.0.iter().map(|(name, _)| name.value.clone()).collect(),
        component_ids: components.0.iter().map(|(id, _)| id.value.clone()).collect(),
        context,
        profile,
        profiles: BTreeSet::new(),
        chained: Vec::new(),
    };

    let variables = checker.within("variables", |checker| checker.variables(&variables));

    let application = manifest.application.0.map(|application| application.value);
    let wisp = application
        .as_ref()
        .and_then(|application| application.tool.as_ref())
        .and_then(|tools| tools.wisp.as_ref());
    let limits = checker.within("application.tool.wisp.limits", |checker| {
        checker.limits(wisp.and_then(|wisp| wisp.limits.as_ref()))
    });
    let probe = checker
        .within("application.tool.wisp", |checker| checker.probe(wisp.and_then(|wisp| wisp.probe.as_ref())));
    let migrations = checker.within("application.tool.wisp", |checker| {
        checker.migrations(wisp.and_then(|wisp| wisp.migrations.as_ref()))
    });
    let wisp = WispAppSettings { limits, probe, migrations };
    let targets = checker.within("application", |checker| {
        checker.targets(application.as_ref().and_then(|application| application.targets.as_deref()))
    });

    let triggers = manifest.trigger.map(|triggers| triggers.0).unwrap_or_default();
    checker.count("triggers", triggers.len(), MAX_TRIGGERS_COUNT, span);
    checker.count("components", components.0.len(), MAX_COMPONENTS_COUNT, span);
    let redis_address =
        application.as_ref().and_then(|application| checker.application_triggers(application));
    let (triggers, inline) = checker.triggers(triggers, redis_address.as_ref());

    let mut checked_components = IndexMap::new();
    let mut first_spans: HashMap<ComponentId, Span> = HashMap::new();
    let inline = inline.into_iter().map(|(id, component)| (id, Some(component)));
    for (id, component) in components.0.into_iter().chain(inline) {
        let checked_id = checker.component_id(&id);
        if let Some(checked_id) = &checked_id
            && let Some(first) = first_spans.insert(checked_id.clone(), id.span)
        {
            let rule = Rule::DuplicateId { what: "components", id: checked_id.to_string() };
            checker.context.error_with(id.span, rule, vec![(first, "the other one".to_owned())]);
        }
        let Some(component) = component else { continue };
        let checked = checker.within("component", |checker| {
            checker.within_key(&id.value, |checker| checker.component(checked_id, component.value, limits))
        });
        if let Some(checked) = checked {
            checked_components.insert(checked.id.clone(), checked);
        }
    }

    if let Some(profile) = profile
        && !checker.profiles.contains(profile)
    {
        let known = checker.profiles.iter().cloned().collect();
        let profile = profile.to_owned();
        checker.context.error_nowhere(Rule::UnknownProfile { profile, known });
    }
    checker.report_shadowed(&triggers);
    let triggers: Vec<Trigger> = triggers.into_iter().map(|(trigger, _)| trigger).collect();
    checker.report_unchainable(&triggers);

    if checker.context.errors_count() > 0 {
        return None;
    }
    let application = application?;
    let (trigger_settings, tools) = free_settings(&application);
    Some(App {
        name: application.name.0?.value.into(),
        version: application.version,
        description: application.description,
        authors: application.authors.unwrap_or_default(),
        targets,
        variables,
        triggers,
        trigger_settings,
        components: checked_components,
        wisp,
        tools,
        directory: directory.to_owned(),
        file: PathBuf::new(),
        profile: profile.map(str::to_owned),
    })
}

fn free_settings(
    application: &raw::Application,
) -> (IndexMap<String, FreeTable>, IndexMap<String, FreeTable>) {
    let settings = application.trigger.iter().flat_map(Entries::iter);
    let unknown = settings.filter(|(name, _)| !matches!(name.value.as_str(), "http" | "redis"));
    let settings = unknown.map(|(name, table)| (name.value.clone(), table.value.0.clone()));
    let tools = application.tool.iter().flat_map(|tools| tools.others.iter().cloned());
    (settings.collect(), tools.collect())
}

/// A component that a trigger defines in place, and the name that it got.
type InlineComponent = (At<String>, At<raw::Component>);

struct Checker<'c> {
    context: &'c mut Context,
    profile: Option<&'c str>,
    /// The names in `[variables]`, also of broken ones.
    variable_names: IndexSet<String>,
    /// The ids in `[component]`, also of broken ones.
    component_ids: IndexSet<String>,
    /// All profiles of all components.
    profiles: BTreeSet<String>,
    /// The components that others want to reach by chaining.
    chained: Vec<At<ComponentId>>,
}

impl Checker<'_> {
    /// Does something further down, so that messages name the place.
    fn within<R>(&mut self, path: &'static str, action: impl FnOnce(&mut Self) -> R) -> R {
        self.context.enter_path(path);
        let result = action(self);
        self.context.leave();
        result
    }

    /// The same for a key that the text gives.
    fn within_key<R>(&mut self, key: &str, action: impl FnOnce(&mut Self) -> R) -> R {
        self.context.enter(key);
        let result = action(self);
        self.context.leave();
        result
    }

    fn count(&mut self, what: &str, found: usize, limit: usize, span: Span) {
        if found > limit {
            self.context.error(span, Rule::TooMany { what: what.to_owned(), found, limit });
        }
    }

    fn variables(&mut self, variables: &Entries<raw::Variable>) -> IndexMap<VariableName, Variable> {
        let mut checked = IndexMap::new();
        for (name, _) in &variables.0 {
            self.variable_name(name);
        }
        for (name, variable) in variables.iter() {
            let required = variable.required.as_ref().is_some_and(|required| required.value);
            let fault = match (&variable.default, required) {
                (Some(_), true) => Some("a default although it is required"),
                (None, false) if !variable.is_damaged => Some("no default and is not required"),
                _ => None,
            };
            if let Some(fault) = fault {
                let rule = Rule::VariableDefault { name: name.value.clone(), fault };
                self.context.error(name.span, rule);
            }
            if let Ok(name) = VariableName::new(&name.value) {
                let variable = Variable {
                    default: variable.default.as_ref().map(|default| default.value.clone()),
                    required,
                    secret: variable.secret.unwrap_or_default(),
                    description: variable.description.clone(),
                };
                checked.insert(name, variable);
            }
        }
        checked
    }

    fn variable_name(&mut self, name: &At<String>) -> Option<VariableName> {
        let checked = VariableName::new(&name.value);
        self.name(name, "a variable", checked, |name| {
            let name = snake_case(name);
            VariableName::new(&name).is_ok().then_some(name)
        })
    }

    fn component_id(&mut self, id: &At<String>) -> Option<ComponentId> {
        let checked = ComponentId::new(&id.value);
        self.name(id, "a component", checked, |id| {
            let id = snake_case(id).replace('_', "-");
            ComponentId::new(&id).is_ok().then_some(id)
        })
    }

    fn label(&mut self, label: &At<String>, what: &'static str) -> Option<Label> {
        let checked = Label::new(&label.value);
        self.name(label, what, checked, |label| {
            let label = snake_case(label);
            Label::new(&label).is_ok().then_some(label)
        })
    }

    fn name<T>(
        &mut self,
        name: &At<String>,
        what: &'static str,
        checked: Result<T, InvalidName>,
        suggest: impl FnOnce(&str) -> Option<String>,
    ) -> Option<T> {
        match checked {
            Ok(checked) => Some(checked),
            Err(reason) => {
                let suggestion = suggest(&name.value);
                let name_text = name.value.chars().take(100).collect();
                let rule = Rule::InvalidName { name: name_text, what, reason, suggestion };
                self.context.error(name.span, rule);
                None
            }
        }
    }

    /// A component that something refers to.
    fn reference(&mut self, id: &At<String>) -> Option<ComponentId> {
        if !self.component_ids.contains(&id.value) {
            let rule = Rule::UnknownComponent {
                id: id.value.clone(),
                similar: most_similar(&id.value, self.component_ids.iter().map(String::as_str)),
                has_components: !self.component_ids.is_empty(),
            };
            self.context.error(id.span, rule);
            return None;
        }
        // A bad id is noted where the component is.
        ComponentId::new(&id.value).ok()
    }

    fn template(&mut self, text: &At<String>) -> Option<Template> {
        let template = match Template::parse(&text.value) {
            Ok(template) => template,
            Err(reason) => {
                let span = self.context.part_of(text, reason.range(&text.value));
                self.context.error(span, Rule::Template { reason });
                return None;
            }
        };
        let mut from = 0;
        for name in template.variables() {
            let start = text.value[from..].find("{{").map_or(from, |start| from + start);
            let end = text.value[start..].find("}}").map_or(start, |end| start + end + 2);
            from = end;
            if !self.variable_names.contains(name.as_str()) {
                let rule = Rule::UndefinedVariable {
                    name: name.to_string(),
                    similar: most_similar(name.as_str(), self.variable_names.iter().map(String::as_str)),
                };
                let span = self.context.part_of(text, start..end);
                self.context.error(span, rule);
            }
        }
        Some(template)
    }

    /// Checks `[application.trigger.*]`, and gives the default Redis server.
    fn application_triggers(&mut self, application: &raw::Application) -> Option<At<String>> {
        let mut address = None;
        for (name, settings) in application.trigger.iter().flat_map(Entries::iter) {
            let table = &settings.value.0;
            let (known, span) = match name.value.as_str() {
                "http" => ("base", settings.span),
                "redis" => ("address", settings.span),
                _ => continue,
            };
            for key in table.keys().filter(|key| *key != known) {
                let rule = Rule::UnknownKey {
                    key: key.clone(),
                    place: crate::diagnostics::Place(format!("application.trigger.{}", name.value)),
                    similar: most_similar(key, [known]),
                    known: vec![known],
                };
                self.context.warning(span, rule);
            }
            match (name.value.as_str(), table.get(known)) {
                (_, None) => {}
                ("http", Some(serde_json::Value::String(base))) if base == "/" => {
                    let rule = Rule::Deprecated {
                        what: "`base` has no effect any more".to_owned(),
                        instead: "remove it".to_owned(),
                    };
                    self.context.warning(span, rule);
                }
                ("http", Some(_)) => self.within("application.trigger.http.base", |checker| {
                    let hint = "remove it and put the path in front of each route";
                    checker.context.invalid(span, "there is no common base path", Some(hint));
                }),
                (_, Some(serde_json::Value::String(text))) => {
                    address = Some(At { value: text.clone(), span });
                }
                (_, Some(_)) => self.within("application.trigger.redis.address", |checker| {
                    checker.context.invalid(span, "a string is needed", None);
                }),
            }
        }
        address
    }

    /// Checks the triggers, and takes the components out of them that they
    /// define in place. Beside each trigger stands what to point at.
    fn triggers(
        &mut self,
        triggers: Vec<At<raw::Trigger>>,
        redis_address: Option<&At<String>>,
    ) -> (Vec<(Trigger, Span)>, Vec<InlineComponent>) {
        let mut ids = TriggerIds::default();
        for trigger in &triggers {
            let Some(id) = trigger.value.id() else { continue };
            if let Err(reason) = TriggerId::new(&id.value) {
                let name = id.value.chars().take(100).collect();
                let rule = Rule::InvalidName { name, what: "a trigger", reason, suggestion: None };
                self.context.error(id.span, rule);
            }
            if let Some(first) = ids.taken.insert(id.value.clone(), id.span) {
                let rule = Rule::DuplicateId { what: "triggers", id: id.value.clone() };
                self.context.error_with(id.span, rule, vec![(first, "the other one".to_owned())]);
            }
        }
        let mut inline = Vec::new();
        let mut checked = Vec::new();
        for trigger in triggers {
            let type_name = trigger.value.type_name().to_owned();
            let id = ids.choose(&trigger.value, trigger.span);
            let checked_trigger = self.within("trigger", |checker| {
                checker.within_key(&type_name, |checker| {
                    checker.trigger(&id, trigger, redis_address, &mut inline)
                })
            });
            if let (Some((kind, span)), Ok(id)) = (checked_trigger, TriggerId::new(&id)) {
                checked.push((Trigger { id, kind }, span));
            }
        }
        (checked, inline)
    }

    fn trigger(
        &mut self,
        id: &str,
        trigger: At<raw::Trigger>,
        redis_address: Option<&At<String>>,
        inline: &mut Vec<InlineComponent>,
    ) -> Option<(TriggerKind, Span)> {
        let span = trigger.span;
        match trigger.value {
            raw::Trigger::Http(http) => {
                let route_span = http.route.as_ref().map_or(span, |route| route.span);
                let http = self.http_trigger(id, span, http, inline)?;
                Some((TriggerKind::Http(http), route_span))
            }
            raw::Trigger::Redis(redis) => {
                let component =
                    redis.component.0.and_then(|component| self.component_spec(id, component, false, inline));
                let channel = redis.channel.0.and_then(|channel| self.template(&channel));
                let address = match redis.address.as_ref().or(redis_address) {
                    Some(address) => self.template(address),
                    None => {
                        if !redis.is_damaged {
                            let rule =
                                Rule::MissingKey { key: "address".to_owned(), place: self.context.place() };
                            self.context.error(span, rule);
                        }
                        None
                    }
                };
                let redis = RedisTrigger { component: component?, channel: channel?, address: address? };
                Some((TriggerKind::Redis(redis), span))
            }
            raw::Trigger::Other(other) => {
                let groups = other.components.map(|groups| groups.0).unwrap_or_default();
                let mut specs: Vec<(Option<String>, At<raw::ComponentSpec>)> = Vec::new();
                specs.extend(other.component.map(|component| (None, component)));
                for (role, group) in groups {
                    let Some(group) = group else { continue };
                    let members = match group.value {
                        raw::ComponentSpecs::Many(members) => members,
                        raw::ComponentSpecs::Reference(id) => {
                            vec![At { value: raw::ComponentSpec::Reference(id.value), span: id.span }]
                        }
                        raw::ComponentSpecs::Inline(component) => vec![At {
                            span: component.span,
                            value: raw::ComponentSpec::Inline(Box::new(component.value)),
                        }],
                    };
                    specs.extend(members.into_iter().map(|member| (Some(role.value.clone()), member)));
                }
                let is_one_of_several = specs.len() > 1;
                let mut component = None;
                let mut components: IndexMap<String, Vec<ComponentId>> = IndexMap::new();
                for (role, spec) in specs {
                    let Some(id) = self.component_spec(id, spec, is_one_of_several, inline) else {
                        continue;
                    };
                    match role {
                        None => component = Some(id),
                        Some(role) => components.entry(role).or_default().push(id),
                    }
                }
                let trigger_type = other.trigger_type;
                let other = OtherTrigger { trigger_type, component, components, table: other.table };
                Some((TriggerKind::Other(other), span))
            }
        }
    }

    fn http_trigger(
        &mut self,
        id: &str,
        span: Span,
        http: raw::HttpTrigger,
        inline: &mut Vec<InlineComponent>,
    ) -> Option<HttpTrigger> {
        let route = http.route.0.and_then(|route| self.http_route(&route));
        let middleware = http.dependencies.and_then(|dependencies| dependencies.middleware);
        let middleware: Vec<MiddlewareSource> = middleware
            .unwrap_or_default()
            .iter()
            .filter_map(|middleware| self.middleware(middleware))
            .collect();
        let executor = self.executor(http.executor.as_ref());
        let target = match (http.component, http.static_response) {
            (Some(component), None) => {
                let component = self.component_spec(id, component, false, inline);
                component.map(|component| HttpTarget::Component { component, executor })
            }
            (None, Some(response)) => self.static_response(&response).map(HttpTarget::Static),
            (Some(component), Some(response)) => {
                let rule = Rule::Exclusive {
                    place: self.context.subject(),
                    reason: "both `component` and `static_response` are given, but only one can \
                             answer"
                        .to_owned(),
                };
                let related = vec![(component.span, "the component".to_owned())];
                self.context.error_with(response.span, rule, related);
                None
            }
            (None, None) => {
                if !http.is_damaged {
                    let rule = Rule::Exclusive {
                        place: self.context.subject(),
                        reason: "either `component` or `static_response` is needed".to_owned(),
                    };
                    self.context.error(span, rule);
                }
                None
            }
        };
        Some(HttpTrigger { route: route?, target: target?, middleware })
    }

    fn http_route(&mut self, route: &At<raw::Route>) -> Option<HttpRoute> {
        match &route.value {
            raw::Route::Pattern(pattern) => match RoutePattern::parse(pattern) {
                Ok(pattern) => Some(HttpRoute::Pattern(pattern)),
                Err(reason) => {
                    self.context.error(route.span, Rule::Route { reason });
                    None
                }
            },
            raw::Route::Private(private) => {
                let private = private.private.as_ref()?;
                if !private.value {
                    self.within("route.private", |checker| {
                        let hint = "give the route as a string, such as `route = \"/...\"`";
                        checker.context.invalid(private.span, "can only be `true`", Some(hint));
                    });
                }
                Some(HttpRoute::Private)
            }
        }
    }

    fn executor(&mut self, executor: Option<&At<raw::Executor>>) -> Executor {
        let Some(At { value: raw::Executor::Wagi(wagi), .. }) = executor else {
            return Executor::Http;
        };
        let defaults = WagiSettings::default();
        if let Some(entrypoint) = &wagi.entrypoint {
            let rule = Rule::Deprecated {
                what: "`entrypoint` is deprecated".to_owned(),
                instead: "remove it; commands start at `_start`".to_owned(),
            };
            self.context.warning(entrypoint.span, rule);
        }
        Executor::Wagi(WagiSettings {
            argv: wagi.argv.clone().unwrap_or(defaults.argv),
            entrypoint: wagi
                .entrypoint
                .as_ref()
                .map_or(defaults.entrypoint, |entrypoint| entrypoint.value.clone()),
        })
    }

    fn static_response(&mut self, response: &At<raw::StaticResponse>) -> Option<StaticResponse> {
        const FINAL_STATUS_CODES: std::ops::RangeInclusive<u16> = 200..=999;
        let errors_before = self.context.errors_count();
        self.within("static_response", |checker| {
            if let Some(status) = &response.status_code
                && !FINAL_STATUS_CODES.contains(&status.value)
            {
                let reason = format!("`{}` is no status of a response", status.value);
                let hint = "use a number from 200 to 999";
                checker.within("status_code", |checker| {
                    checker.context.invalid(status.span, reason, Some(hint));
                });
            }
            for (name, value) in response.headers.iter().flat_map(Entries::iter) {
                checker.within("headers", |checker| {
                    checker.within_key(&name.value, |checker| {
                        if !is_header_name(&name.value) {
                            checker.context.invalid(name.span, "is no name for a header", None);
                        }
                        if value.value.chars().any(|found| found != '\t' && found.is_control()) {
                            let reason = "a header has no control characters";
                            checker.context.invalid(value.span, reason, None);
                        }
                    });
                });
            }
        });
        if self.context.errors_count() > errors_before {
            return None;
        }
        let headers = response.headers.iter().flat_map(Entries::iter);
        Some(StaticResponse {
            status_code: response.status_code.as_ref().map_or(200, |status| status.value),
            headers: headers.map(|(name, value)| (name.value.clone(), value.value.clone())).collect(),
            body: response.body.clone(),
        })
    }

    /// A component by name or in place; in the latter case it gets a name and
    /// is put aside.
    fn component_spec(
        &mut self,
        trigger_id: &str,
        spec: At<raw::ComponentSpec>,
        is_one_of_several: bool,
        inline: &mut Vec<InlineComponent>,
    ) -> Option<ComponentId> {
        let span = spec.span;
        match spec.value {
            raw::ComponentSpec::Reference(id) => self.reference(&At { value: id, span }),
            raw::ComponentSpec::Inline(component) => {
                let is_free = |id: &str| ComponentId::new(id).is_ok() && !self.component_ids.contains(id);
                let natural = format!("{trigger_id}-component");
                let id = match !is_one_of_several && is_free(&natural) {
                    true => Some(natural),
                    false => (1..).map(|n| format!("inline-component{n}")).find(|id| is_free(id)),
                }?;
                self.component_ids.insert(id.clone());
                let checked = ComponentId::new(&id).ok();
                inline.push((At { value: id, span }, At { value: *component, span }));
                checked
            }
        }
    }

    fn component(
        &mut self,
        id: Option<ComponentId>,
        component: raw::Component,
        default_limits: Limits,
    ) -> Option<Component> {
        let mut component = component;
        self.apply_profile(&mut component);

        let source = component.source.0.as_ref().and_then(|source| self.source(source));
        let variables = self.within("variables", |checker| {
            let mut checked = IndexMap::new();
            for (name, value) in component.variables.iter().flat_map(Entries::iter) {
                let text = At { value: value.value.clone(), span: value.span };
                let template = checker.template(&text);
                if let (Some(name), Some(template)) = (checker.variable_name(name), template) {
                    checked.insert(name, template);
                }
            }
            checked
        });
        let environment =
            self.within("environment", |checker| checker.environment(component.environment.as_ref()));
        let files = self.within("files", |checker| {
            let files = component.files.iter().flatten();
            files.filter_map(|file| checker.file(file)).collect()
        });
        let allowed_outbound_hosts = self.allowed_hosts(&component);
        let mut labels = |labels: &Option<Vec<At<String>>>, what: &'static str| -> Vec<Label> {
            labels.iter().flatten().filter_map(|label| self.label(label, what)).collect()
        };
        let key_value_stores = labels(&component.key_value_stores, "a key-value store");
        let sqlite_databases = labels(&component.sqlite_databases, "a database");
        let targets = component.targets.as_ref().map(|targets| self.targets(Some(targets)));
        let build = self.within("build", |checker| checker.build(component.build.as_ref()));
        let dependencies =
            self.within("dependencies", |checker| checker.dependencies(component.dependencies.as_ref()));
        let inherits_all =
            component.dependencies_inherit_configuration.as_ref().is_some_and(|inherits| inherits.value);
        if inherits_all {
            self.report_inherited_twice(&component);
        }
        let (wisp, others) = match component.tool.take() {
            Some(tools) => (tools.wisp, tools.others),
            None => (None, Vec::new()),
        };
        let wisp = self.within("tool.wisp", |checker| checker.wisp_component(wisp.as_ref()));

        Some(Component {
            id: id?,
            source: source?,
            description: component.description,
            variables,
            environment,
            files,
            exclude_files: component
                .exclude_files
                .unwrap_or_default()
                .into_iter()
                .map(|pattern| pattern.value)
                .collect(),
            allowed_outbound_hosts,
            key_value_stores,
            sqlite_databases,
            ai_models: component.ai_models.unwrap_or_default(),
            targets,
            build,
            dependencies,
            dependencies_inherit_configuration: inherits_all,
            wisp: WispComponentSettings { limits: wisp.limits.or(default_limits), ..wisp },
            tools: others.into_iter().collect(),
        })
    }

    /// Puts what the chosen profile says in the place of what the component
    /// says.
    fn apply_profile(&mut self, component: &mut raw::Component) {
        let Some(profiles) = component.profile.take() else { return };
        self.profiles.extend(profiles.0.iter().map(|(name, _)| name.value.clone()));
        for (name, profile) in profiles.0 {
            let Some(profile) = profile else { continue };
            let profile = profile.value;
            if self.profile == Some(name.value.as_str()) {
                if profile.source.is_some() {
                    component.source = Required(profile.source);
                }
                merge(&mut component.environment, profile.environment);
                merge(&mut component.dependencies, profile.dependencies);
                if let Some(build) = profile.build {
                    match &mut component.build {
                        Some(base) => base.command = build.command,
                        None => {
                            component.build = Some(raw::Build {
                                command: build.command,
                                workdir: None,
                                watch: None,
                                is_damaged: false,
                            });
                        }
                    }
                }
            } else {
                // What is not used now must not fail only when it is.
                self.within("profile", |checker| {
                    checker.within_key(&name.value, |checker| {
                        if let Some(source) = &profile.source {
                            checker.source(source);
                        }
                        checker.within("environment", |checker| {
                            checker.environment(profile.environment.as_ref());
                        });
                        checker.within("dependencies", |checker| {
                            checker.dependencies(profile.dependencies.as_ref());
                        });
                        let build = profile.build.map(|build| raw::Build {
                            command: build.command,
                            workdir: None,
                            watch: None,
                            is_damaged: false,
                        });
                        checker.within("build", |checker| checker.build(build.as_ref()));
                    });
                });
            }
        }
    }

    fn source(&mut self, source: &At<raw::Source>) -> Option<Source> {
        self.within("source", |checker| match &source.value {
            raw::Source::Path(path) => checker.path(path, source.span).map(|path| Source::Path(path.into())),
            raw::Source::Url(download) => {
                let (url, digest) = checker.download(&download.url, &download.digest)?;
                Some(Source::Url { url, digest })
            }
            raw::Source::Registry(registry) => {
                let package = registry.package.as_ref().and_then(|text| checker.package(text));
                let version = registry.version.as_ref().and_then(|text| {
                    let version = semver::Version::parse(&text.value);
                    checker.parsed(text, "version", version, "write for example `1.2.3`")
                });
                Some(Source::Registry(RegistryPackage {
                    registry: registry.registry.clone(),
                    package: package?,
                    version: version?,
                }))
            }
        })
    }

    fn path<'p>(&mut self, path: &'p str, span: Span) -> Option<&'p str> {
        let is_usable = !path.is_empty() && !path.contains('\0');
        if !is_usable {
            self.context.invalid(span, "is no path of a file", None);
        }
        is_usable.then_some(path)
    }

    fn parsed<T, E: std::fmt::Display>(
        &mut self,
        text: &At<String>,
        step: &'static str,
        parsed: Result<T, E>,
        hint: &str,
    ) -> Option<T> {
        match parsed {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                let reason = format!("`{}` cannot be read: {error}", text.value);
                self.within(step, |checker| checker.context.invalid(text.span, reason, Some(hint)));
                None
            }
        }
    }

    fn url(&mut self, text: &At<String>) -> Option<url::Url> {
        const HINT: &str = "write for example `https://example.com/a.wasm`";
        let url = self.parsed(text, "url", url::Url::parse(&text.value), HINT)?;
        if !matches!(url.scheme(), "http" | "https") {
            self.within("url", |checker| {
                let reason = format!("`{}` is not a scheme of downloads", url.scheme());
                checker.context.invalid(text.span, reason, Some(HINT));
            });
            return None;
        }
        Some(url)
    }

    fn download(
        &mut self,
        url: &Required<At<String>>,
        digest: &Required<At<String>>,
    ) -> Option<(url::Url, Sha256Digest)> {
        let url = url.as_ref().and_then(|url| self.url(url));
        let digest = digest.as_ref().and_then(|text| {
            let digest = Sha256Digest::parse(&text.value);
            if digest.is_none() {
                self.within("digest", |checker| {
                    let hint = "write `sha256:` and 64 hexadecimal digits";
                    let reason = format!("`{}` is no SHA-256 digest", text.value);
                    checker.context.invalid(text.span, reason, Some(hint));
                });
            }
            digest
        });
        Some((url?, digest?))
    }

    fn package(&mut self, text: &At<String>) -> Option<PackageName> {
        let package = parse_package(&text.value);
        if package.is_none() {
            self.within("package", |checker| {
                let reason = format!("`{}` is no package", text.value);
                checker.context.invalid(text.span, reason, Some("write `namespace:name`"));
            });
        }
        package
    }

    fn targets(&mut self, targets: Option<&[At<raw::Target>]>) -> Vec<Target> {
        let mut checked = Vec::new();
        for target in targets.unwrap_or_default() {
            checked.extend(self.within("targets", |checker| match &target.value {
                raw::Target::Named(name) => {
                    checker.path(name, target.span).map(|name| Target::Named(name.to_owned()))
                }
                raw::Target::Url(url) => checker.url(url.url.as_ref()?).map(Target::Url),
                raw::Target::Path(path) => {
                    let path = path.path.as_ref()?;
                    let checked = checker.path(&path.value, path.span);
                    checked.map(|path| Target::Path(path.into()))
                }
            }));
        }
        checked
    }

    fn environment(&mut self, environment: Option<&Entries<String>>) -> IndexMap<String, String> {
        let mut checked = IndexMap::new();
        for (name, value) in environment.into_iter().flat_map(Entries::iter) {
            if name.value.is_empty() || name.value.contains(['=', '\0']) {
                let reason = format!("`{}` is no name for an environment variable", name.value);
                self.context.invalid(name.span, reason, None);
            }
            if value.value.contains('\0') {
                let reason = format!("the value of `{}` has a zero byte in it", name.value);
                self.context.invalid(value.span, reason, None);
            }
            checked.insert(name.value.clone(), value.value.clone());
        }
        checked
    }

    fn file(&mut self, file: &At<raw::FileMount>) -> Option<FileMount> {
        match &file.value {
            raw::FileMount::Pattern(pattern) => {
                self.path(pattern, file.span).map(|pattern| FileMount::Pattern(pattern.to_owned()))
            }
            raw::FileMount::Placement(placement) => {
                let source = placement.source.as_ref();
                let source = source.and_then(|source| self.path(&source.value, source.span));
                let destination = placement.destination.as_ref()?;
                let is_absolute = destination.value.starts_with('/')
                    && !destination.value.contains('\0')
                    && destination.value.split('/').all(|step| step != "..");
                if !is_absolute {
                    self.within("destination", |checker| {
                        let reason = format!("`{}` is no absolute path", destination.value);
                        let hint = "start with `/` and use no `..`";
                        checker.context.invalid(destination.span, reason, Some(hint));
                    });
                    return None;
                }
                let destination = destination.value.clone();
                Some(FileMount::Placement { source: source?.into(), destination })
            }
        }
    }

    fn allowed_hosts(&mut self, component: &raw::Component) -> Vec<Template> {
        let mut entries: Vec<At<String>> = component.allowed_outbound_hosts.clone().unwrap_or_default();
        if let Some(legacy) = &component.allowed_http_hosts
            && let Some(first) = legacy.first()
        {
            let rule = Rule::Deprecated {
                what: "`allowed_http_hosts` is deprecated".to_owned(),
                instead: "use `allowed_outbound_hosts`".to_owned(),
            };
            self.context.warning(first.span, rule);
            if let Some(new) = entries.first() {
                let rule = Rule::Exclusive {
                    place: self.context.subject(),
                    reason: "both `allowed_outbound_hosts` and `allowed_http_hosts` are given".to_owned(),
                };
                let related = vec![(new.span, "the other list".to_owned())];
                self.context.error_with(first.span, rule, related);
            }
            for host in legacy {
                match translate_allowed_http_hosts([host.value.as_str()], false) {
                    Ok(translated) => {
                        entries.extend(translated.into_iter().map(|value| At { value, span: host.span }))
                    }
                    Err(reason) => self.context.error(host.span, Rule::AllowedHost { reason }),
                }
            }
        }
        if let Some(first) = entries.first() {
            self.count("allowed hosts", entries.len(), MAX_ALLOWED_HOSTS_COUNT, first.span);
        }
        let mut templates = Vec::new();
        for entry in &entries {
            let Some(template) = self.template(entry) else { continue };
            // What has variables in it is checked when they have values, and
            // what is empty then counts as left out.
            if let Some(literal) = template.as_literal()
                && !literal.trim().is_empty()
            {
                match AllowedHost::parse(literal) {
                    Ok(host) => {
                        if let Some(Chained::Component(id)) = host.chained() {
                            self.chained.push(At { value: id, span: entry.span });
                        }
                    }
                    Err(reason) => self.context.error(entry.span, Rule::AllowedHost { reason }),
                }
            }
            templates.push(template);
        }
        templates
    }

    fn build(&mut self, build: Option<&raw::Build>) -> Option<Build> {
        let build = build?;
        let commands = build.command.as_ref()?;
        let listed = match &commands.value {
            raw::Commands::One(command) => std::slice::from_ref(command),
            raw::Commands::Many(commands) => commands,
        };
        if listed.is_empty() || listed.iter().any(|command| command.trim().is_empty()) {
            self.within("command", |checker| {
                checker.context.invalid(commands.span, "there is an empty command", None);
            });
        }
        let workdir = build.workdir.as_ref();
        Some(Build {
            commands: listed.to_vec(),
            workdir: workdir.map(|workdir| workdir.value.clone().into()),
            watch: build.watch.clone().unwrap_or_default(),
        })
    }

    fn dependencies(
        &mut self,
        dependencies: Option<&Entries<raw::Dependency>>,
    ) -> IndexMap<DependencyName, Dependency> {
        let mut checked: IndexMap<DependencyName, Dependency> = IndexMap::new();
        let mut names: Vec<(DependencyName, Span)> = Vec::new();
        for (name, dependency) in dependencies.into_iter().flat_map(Entries::iter) {
            let Some(parsed) = parse_dependency_name(&name.value) else {
                let reason = format!("`{}` does not name an import", name.value);
                let hint = "write `namespace:name`, `namespace:name/interface@version` or a \
                            plain name of words with `-` between them";
                self.context.invalid(name.span, reason, Some(hint));
                continue;
            };
            for (other, span) in &names {
                if may_satisfy_the_same(&parsed, other) {
                    let rule =
                        Rule::DependencyConflict { first: other.to_string(), second: parsed.to_string() };
                    let related = vec![(*span, "the other one".to_owned())];
                    self.context.error_with(name.span, rule, related);
                }
            }
            names.push((parsed.clone(), name.span));
            let dependency =
                self.within_key(&name.value, |checker| checker.dependency(name, &parsed, dependency));
            if let Some(dependency) = dependency {
                checked.insert(parsed, dependency);
            }
        }
        checked
    }

    fn dependency(
        &mut self,
        name: &At<String>,
        parsed: &DependencyName,
        dependency: &At<raw::Dependency>,
    ) -> Option<Dependency> {
        let (source, export, inherit) = match &dependency.value {
            raw::Dependency::Version(version) => {
                let version = At { value: version.clone(), span: dependency.span };
                (self.registry_dependency(name, parsed, &version, None, None), None, None)
            }
            raw::Dependency::Registry(registry) => {
                let source = registry.version.as_ref().and_then(|version| {
                    let package = registry.package.as_ref();
                    let host = registry.registry.clone();
                    self.registry_dependency(name, parsed, version, package, host)
                });
                (source, registry.export.as_ref(), registry.inherit_configuration.as_ref())
            }
            raw::Dependency::Path(file) => {
                let path = file.path.as_ref();
                let path = path.and_then(|path| self.path(&path.value, path.span));
                let source = path.map(|path| DependencySource::Path(path.into()));
                (source, file.export.as_ref(), file.inherit_configuration.as_ref())
            }
            raw::Dependency::Url(download) => {
                let source = self.download(&download.url, &download.digest);
                let source = source.map(|(url, digest)| DependencySource::Url { url, digest });
                (source, download.export.as_ref(), download.inherit_configuration.as_ref())
            }
            raw::Dependency::Component(component) => {
                let id = component.component.as_ref().and_then(|id| self.reference(id));
                let source = id.map(DependencySource::Component);
                (source, component.export.as_ref(), component.inherit_configuration.as_ref())
            }
        };
        if let (Some(export), DependencyName::Package { interface: None, .. }) = (export, parsed) {
            let reason = "a dependency on a whole package uses all of its exports";
            let hint = "name one interface in the key, or remove `export`";
            self.within("export", |checker| {
                checker.context.invalid(export.span, reason, Some(hint));
            });
        }
        let inherit = inherit.and_then(|inherit| self.inherit(inherit));
        Some(Dependency { source: source?, export: export.map(|text| text.value.clone()), inherit })
    }

    fn registry_dependency(
        &mut self,
        name: &At<String>,
        parsed: &DependencyName,
        version: &At<String>,
        package: Option<&At<String>>,
        registry: Option<String>,
    ) -> Option<DependencySource> {
        let package = match (package, parsed) {
            (Some(package), _) => self.package(package),
            (None, DependencyName::Package { package, .. }) => Some(package.clone()),
            (None, DependencyName::Plain(_)) => {
                let rule = Rule::MissingKey { key: "package".to_owned(), place: self.context.place() };
                self.context.error(name.span, rule);
                None
            }
        };
        let requirement = semver::VersionReq::parse(&version.value);
        let version = self.parsed(version, "version", requirement, "write for example `>=1.2` or `=1.2.3`");
        Some(DependencySource::Registry { registry, package: package?, version: version? })
    }

    fn inherit(&mut self, inherit: &At<raw::Inherit>) -> Option<InheritConfiguration> {
        let listed = match &inherit.value {
            raw::Inherit::Flag(true) => return Some(InheritConfiguration::All),
            raw::Inherit::Flag(false) => return Some(InheritConfiguration::None),
            raw::Inherit::Some(listed) => listed,
        };
        let mut permissions = Vec::new();
        for name in listed {
            let known = INHERITABLE.iter().find(|(known, _)| *known == name.value);
            match known {
                Some((_, permission)) => permissions.push(*permission),
                None => self.within("inherit_configuration", |checker| {
                    let similar = most_similar(&name.value, INHERITABLE.iter().map(|(known, _)| *known));
                    let hint = match similar {
                        Some(similar) => format!("did you mean `{similar}`?"),
                        None => {
                            let known = INHERITABLE.map(|(known, _)| format!("`{known}`"));
                            format!("use {}", known.join(", "))
                        }
                    };
                    let reason = format!("`{}` cannot be inherited", name.value);
                    checker.context.invalid(name.span, reason, Some(&hint));
                }),
            }
        }
        Some(InheritConfiguration::Some(permissions))
    }

    /// The coarse switch and the fine one say the same thing twice, perhaps
    /// differently.
    fn report_inherited_twice(&mut self, component: &raw::Component) {
        let Some(switch) = &component.dependencies_inherit_configuration else { return };
        let dependencies = component.dependencies.iter().flat_map(Entries::iter);
        let fine = dependencies.filter_map(|(_, dependency)| match &dependency.value {
            raw::Dependency::Version(_) => None,
            raw::Dependency::Path(path) => path.inherit_configuration.as_ref(),
            raw::Dependency::Url(url) => url.inherit_configuration.as_ref(),
            raw::Dependency::Component(component) => component.inherit_configuration.as_ref(),
            raw::Dependency::Registry(registry) => registry.inherit_configuration.as_ref(),
        });
        let related: Vec<(Span, String)> = fine.map(|inherit| (inherit.span, "here".to_owned())).collect();
        if related.is_empty() {
            return;
        }
        let rule = Rule::Exclusive {
            place: self.context.subject(),
            reason: "`dependencies_inherit_configuration` is given although a dependency says \
                     what it inherits"
                .to_owned(),
        };
        self.context.error_with(switch.span, rule, related);
    }

    fn middleware(&mut self, middleware: &At<raw::Middleware>) -> Option<MiddlewareSource> {
        self.within("dependencies.middleware", |checker| {
            let (source, inherit) =
                match &middleware.value {
                    raw::Middleware::Component(component) => {
                        let id = component.component.as_ref().and_then(|id| checker.reference(id));
                        (id.map(DependencySource::Component), &component.inherit_configuration)
                    }
                    raw::Middleware::Path(file) => {
                        let path = file.path.as_ref();
                        let path = path.and_then(|path| checker.path(&path.value, path.span));
                        let source = path.map(|path| DependencySource::Path(path.into()));
                        (source, &file.inherit_configuration)
                    }
                    raw::Middleware::Url(download) => {
                        let source = checker.download(&download.url, &download.digest);
                        let source = source.map(|(url, digest)| DependencySource::Url { url, digest });
                        (source, &download.inherit_configuration)
                    }
                    raw::Middleware::Registry(registry) => {
                        let package = registry.package.as_ref().and_then(|text| checker.package(text));
                        let version = registry.version.as_ref().and_then(|text| {
                            let version = semver::VersionReq::parse(&text.value);
                            checker.parsed(text, "version", version, "write for example `>=1.2`")
                        });
                        let registry_host = registry.registry.clone();
                        let source = package.zip(version).map(|(package, version)| {
                            DependencySource::Registry { registry: registry_host, package, version }
                        });
                        (source, &registry.inherit_configuration)
                    }
                };
            let inherit = inherit.as_ref().and_then(|inherit| checker.inherit(inherit));
            Some(MiddlewareSource { source: source?, inherit })
        })
    }

    fn wisp_component(&mut self, wisp: Option<&raw::WispComponent>) -> WispComponentSettings {
        let Some(wisp) = wisp else { return WispComponentSettings::default() };
        let reuse = wisp.reuse.as_ref().and_then(|reuse| match &reuse.value {
            raw::Reuse::Flag(true) => Some(Reuse::default()),
            raw::Reuse::Flag(false) => None,
            raw::Reuse::Settings(settings) => self.within("reuse", |checker| {
                let defaults = Reuse::default();
                let max_requests = checker.positive("max_requests", settings.max_requests.as_ref());
                let idle_timeout = settings.idle_timeout.as_ref();
                let idle_timeout = checker.duration("idle_timeout", idle_timeout);
                Some(Reuse {
                    max_requests: max_requests.unwrap_or(defaults.max_requests),
                    idle_timeout: idle_timeout.unwrap_or(defaults.idle_timeout),
                })
            }),
        });
        let limits = self.within("limits", |checker| checker.limits(wisp.limits.as_ref()));
        let omits_spin_headers = wisp.spin_headers.as_ref().is_some_and(|has| !has.value);
        WispComponentSettings { reuse, omits_spin_headers, limits }
    }

    fn limits(&mut self, limits: Option<&raw::Limits>) -> Limits {
        let Some(limits) = limits else { return Limits::default() };
        Limits {
            memory_bytes: self.positive("memory_bytes", limits.memory_bytes.as_ref()),
            table_elements: self.positive("table_elements", limits.table_elements.as_ref()),
            cpu_time: self.duration("cpu_time", limits.cpu_time.as_ref()),
            request_timeout: self.duration("request_timeout", limits.request_timeout.as_ref()),
            max_concurrent_requests: self
                .positive("max_concurrent_requests", limits.max_concurrent_requests.as_ref()),
            request_body_bytes: self.positive("request_body_bytes", limits.request_body_bytes.as_ref()),
            response_body_bytes: self.positive("response_body_bytes", limits.response_body_bytes.as_ref()),
            max_handles: self.positive("max_handles", limits.max_handles.as_ref()),
            max_outbound_requests: self
                .positive("max_outbound_requests", limits.max_outbound_requests.as_ref()),
            max_outbound_connections: self
                .positive("max_outbound_connections", limits.max_outbound_connections.as_ref()),
            log_bytes: self.positive("log_bytes", limits.log_bytes.as_ref()),
            log_bytes_per_second: self.positive("log_bytes_per_second", limits.log_bytes_per_second.as_ref()),
        }
    }

    fn probe(&mut self, path: Option<&At<String>>) -> Option<String> {
        let path = path?;
        let is_path = path.value.starts_with('/') && path.value.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_path {
            self.within("probe", |checker| {
                checker.context.invalid(path.span, "must be a path", Some("write for example `/health`"));
            });
            return None;
        }
        Some(path.value.clone())
    }

    fn migrations(&mut self, folder: Option<&At<String>>) -> Option<PathBuf> {
        let folder = folder?;
        let path = Path::new(&folder.value);
        let is_inside = !folder.value.is_empty()
            && path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if !is_inside {
            self.within("migrations", |checker| {
                let hint = Some("write for example `migrations`");
                checker.context.invalid(folder.span, "must be a folder beside the manifest", hint);
            });
            return None;
        }
        Some(path.to_owned())
    }

    fn positive<T: Copy + Default + PartialEq>(
        &mut self,
        step: &'static str,
        number: Option<&At<T>>,
    ) -> Option<T> {
        let number = number?;
        if number.value == T::default() {
            self.within(step, |checker| {
                checker.context.invalid(number.span, "must be more than zero", None);
            });
            return None;
        }
        Some(number.value)
    }

    fn duration(&mut self, step: &'static str, text: Option<&At<String>>) -> Option<Duration> {
        let text = text?;
        let duration =
            parse_duration(&text.value).filter(|duration| !duration.is_zero() && *duration <= MAX_TIMEOUT);
        if duration.is_none() {
            self.within(step, |checker| {
                let reason = format!("`{}` is no duration up to a week", text.value);
                let hint = "write a number and `ms`, `s`, `m` or `h`, such as `30s`";
                checker.context.invalid(text.span, reason, Some(hint));
            });
        }
        duration
    }

    fn report_shadowed(&mut self, triggers: &[(Trigger, Span)]) {
        let routes: Vec<(&RoutePattern, &TriggerId, Span)> = triggers
            .iter()
            .filter_map(|(trigger, span)| match &trigger.kind {
                TriggerKind::Http(HttpTrigger { route: HttpRoute::Pattern(route), .. }) => {
                    Some((route, &trigger.id, *span))
                }
                _ => None,
            })
            .collect();
        let table = RouteTable::new(routes.iter().map(|(route, ..)| ((*route).clone(), ())));
        for shadowed in table.1 {
            let (route, _, span) = routes[shadowed.shadowed];
            let (_, winner, winner_span) = routes[shadowed.by];
            let rule =
                Rule::ShadowedRoute { route: route.to_string(), winner: format!("trigger `{winner}`") };
            let related = vec![(winner_span, "this one wins".to_owned())];
            self.context.warning_with(span, rule, related);
        }
    }

    fn report_unchainable(&mut self, triggers: &[Trigger]) {
        let with_http: IndexSet<&ComponentId> = triggers
            .iter()
            .filter(|trigger| matches!(trigger.kind, TriggerKind::Http(_)))
            .flat_map(|trigger| trigger.kind.components())
            .collect();
        for id in std::mem::take(&mut self.chained) {
            if with_http.contains(&id.value) {
                continue;
            }
            let rule = match self.component_ids.contains(id.value.as_str()) {
                true => Rule::NotChainable { id: id.value.to_string() },
                false => Rule::UnknownComponent {
                    id: id.value.to_string(),
                    similar: most_similar(id.value.as_str(), self.component_ids.iter().map(String::as_str)),
                    has_components: true,
                },
            };
            self.context.warning(id.span, rule);
        }
    }
}

const INHERITABLE: [(&str, Inheritable); 7] = [
    ("ai_models", Inheritable::AiModels),
    ("allowed_outbound_hosts", Inheritable::AllowedOutboundHosts),
    ("environment", Inheritable::Environment),
    ("files", Inheritable::Files),
    ("key_value_stores", Inheritable::KeyValueStores),
    ("sqlite_databases", Inheritable::SqliteDatabases),
    ("variables", Inheritable::Variables),
];

impl raw::Trigger {
    fn id(&self) -> Option<&At<String>> {
        match self {
            Self::Http(http) => http.id.as_ref(),
            Self::Redis(redis) => redis.id.as_ref(),
            Self::Other(other) => other.id.as_ref(),
        }
    }

    fn type_name(&self) -> &str {
        match self {
            Self::Http(_) => "http",
            Self::Redis(_) => "redis",
            Self::Other(other) => &other.trigger_type,
        }
    }

    fn component(&self) -> Option<&raw::ComponentSpec> {
        match self {
            Self::Http(http) => http.component.as_ref().map(|component| &component.value),
            Self::Redis(redis) => redis.component.as_ref().map(|component| &component.value),
            Self::Other(other) => other.component.as_ref().map(|component| &component.value),
        }
    }
}

/// Gives names to triggers that have none.
#[derive(Default)]
struct TriggerIds {
    taken: HashMap<String, Span>,
    /// How far each type's numbers have been tried.
    last_number: HashMap<String, usize>,
}

impl TriggerIds {
    fn choose(&mut self, trigger: &raw::Trigger, span: Span) -> String {
        if let Some(id) = trigger.id() {
            return id.value.clone();
        }
        let type_name = trigger.type_name();
        let natural = match trigger.component() {
            Some(raw::ComponentSpec::Reference(component)) => {
                Some(format!("{component}-{type_name}-trigger"))
            }
            _ => None,
        };
        let id = natural.filter(|id| !self.taken.contains_key(id)).unwrap_or_else(|| {
            let number = self.last_number.entry(type_name.to_owned()).or_default();
            loop {
                *number += 1;
                let id = format!("{type_name}-trigger{number}");
                if !self.taken.contains_key(&id) {
                    break id;
                }
            }
        });
        self.taken.insert(id.clone(), span);
        id
    }
}

/// Adds entries, in the place of those that have the same key.
fn merge<T>(base: &mut Option<Entries<T>>, added: Option<Entries<T>>) {
    let Some(added) = added else { return };
    let base = base.get_or_insert_with(|| Entries(Vec::new()));
    for (key, value) in added.0 {
        match base.0.iter_mut().find(|(existing, _)| existing.value == key.value) {
            Some(existing) => *existing = (key, value),
            None => base.0.push((key, value)),
        }
    }
}

/// Lower-case words with `_` between them, for a hint about a bad name.
fn snake_case(name: &str) -> String {
    let mut words = String::new();
    for character in name.chars().take(crate::id::MAX_NAME_BYTES) {
        let is_word = character.is_ascii_alphanumeric();
        let starts_word = character.is_ascii_uppercase()
            && words.chars().next_back().is_some_and(|last| last.is_ascii_lowercase());
        if (!is_word || starts_word) && !words.ends_with('_') {
            words.push('_');
        }
        if is_word {
            words.push(character.to_ascii_lowercase());
        }
    }
    words.trim_matches('_').to_owned()
}

/// A token of HTTP.
fn is_header_name(name: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(is_token)
}

fn is_kebab_case(name: &str) -> bool {
    ComponentId::new(name).is_ok()
}

fn parse_package(text: &str) -> Option<PackageName> {
    let (namespace, name) = text.split_once(':')?;
    (is_kebab_case(namespace) && is_kebab_case(name))
        .then(|| PackageName { namespace: namespace.to_owned(), name: name.to_owned() })
}

fn parse_dependency_name(text: &str) -> Option<DependencyName> {
    if !text.contains(':') {
        return is_kebab_case(text).then(|| DependencyName::Plain(text.to_owned()));
    }
    let (path, version) = match text.split_once('@') {
        Some((path, version)) => (path, Some(semver::Version::parse(version).ok()?)),
        None => (text, None),
    };
    let (package, interface) = match path.split_once('/') {
        Some((package, interface)) if is_kebab_case(interface) => (package, Some(interface.to_owned())),
        Some(_) => return None,
        None => (path, None),
    };
    Some(DependencyName::Package { package: parse_package(package)?, interface, version })
}

/// Whether some import could be satisfied by either.
fn may_satisfy_the_same(first: &DependencyName, second: &DependencyName) -> bool {
    let (
        DependencyName::Package { package, interface, version },
        DependencyName::Package {
            package: other_package,
            interface: other_interface,
            version: other_version,
        },
    ) = (first, second)
    else {
        return first == second;
    };
    let are_different_versions = version
        .as_ref()
        .zip(other_version.as_ref())
        .is_some_and(|(version, other)| compatible_with(version) != compatible_with(other));
    let are_different_interfaces =
        interface.as_ref().zip(other_interface.as_ref()).is_some_and(|(interface, other)| interface != other);
    package == other_package && !are_different_versions && !are_different_interfaces
}

/// What two versions have in common if and only if they are compatible.
fn compatible_with(version: &semver::Version) -> (u64, u64, u64, &str) {
    match version {
        _ if !version.pre.is_empty() => (version.major, version.minor, version.patch, version.pre.as_str()),
        semver::Version { major: 0, minor: 0, patch, .. } => (0, 0, *patch, ""),
        semver::Version { major: 0, minor, .. } => (0, *minor, 0, ""),
        semver::Version { major, .. } => (*major, 0, 0, ""),
    }
}

/// A whole number and a unit: `250ms`.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let unit_start = text.find(|character: char| !character.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit_start);
    let number: u64 = number.parse().ok()?;
    match unit.trim() {
        "ns" => Some(Duration::from_nanos(number)),
        "us" => Some(Duration::from_micros(number)),
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(60 * 60).map(Duration::from_secs),
        _ => None,
    }
}

#![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "tests")]

use std::ffi::OsString;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::{BoxFuture, FutureExt};
use proptest::prelude::*;
use wasmtime::component::{ComponentType, Lift};
use wisp_manifest::model::Variable;
use wisp_manifest::template::Template;

use super::*;
use crate::testing::Guest;
use crate::{Flavor, Grants};

/// A value that must not turn up in any message.
const SECRET: &str = "hunter2";

fn name(name: &str) -> VariableName {
    VariableName::new(name).unwrap()
}

fn variables(declared: &[(&str, Option<&str>)]) -> IndexMap<VariableName, Variable> {
    let variable = |default: Option<&str>| Variable {
        default: default.map(str::to_owned),
        required: default.is_none(),
        secret: false,
        description: None,
    };
    declared.iter().map(|(key, default)| (name(key), variable(*default))).collect()
}

fn templates(texts: &[(&str, &str)]) -> IndexMap<VariableName, Template> {
    texts.iter().map(|(key, text)| (name(key), Template::parse(text).unwrap())).collect()
}

fn command_line(values: &[(&str, &str)]) -> StaticValues {
    StaticValues::from_command_line(values.iter().map(|(key, value)| (name(key), Value::from(*value))))
}

fn environment(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(key, value)| (key.into(), value.into())).collect()
}

/// Counts up each time it is asked, and fails from the fourth time on.
struct Counter(Arc<AtomicUsize>);

impl Provider for Counter {
    fn name(&self) -> &str {
        "counter"
    }

    fn is_constant(&self) -> bool {
        false
    }

    fn get<'a>(&'a self, variable: &'a VariableName) -> BoxFuture<'a, Result<Option<Value>, Error>> {
        async move {
            tokio::task::yield_now().await;
            match self.0.fetch_add(1, Ordering::Relaxed) + 1 {
                _ if variable.as_str() != "counted" => Ok(None),
                count @ ..4 => Ok(Some(count.to_string().into())),
                _ => Err(Error::VariableProvider {
                    name: variable.to_string(),
                    provider: "counter".into(),
                    cause: "it is tired".into(),
                }),
            }
        }
        .boxed()
    }
}

#[tokio::test]
async fn the_first_provider_that_has_a_value_wins() {
    let directory = tempfile::tempdir().unwrap();
    let dotenv = directory.path().join(".env");
    std::fs::write(&dotenv, "SPIN_VARIABLE_D=file\nSPIN_VARIABLE_C=file\n").unwrap();
    let environment =
        environment(&[("SPIN_VARIABLE_C", "environment"), ("SPIN_VARIABLE_A", "environment"), ("E", "x")]);
    let providers = Providers::new()
        .then(command_line(&[("a", "command line"), ("undeclared", "no harm")]))
        .then(StaticValues::from_runtime_config([
            ("a".into(), "config".into()),
            ("b".into(), "config".into()),
        ]))
        .then(Environment::with_environment(None, Some(&dotenv), environment).unwrap());
    let declared =
        variables(&[("a", None), ("b", Some("default")), ("c", None), ("d", None), ("e", Some("default"))]);
    let resolver = Resolver::new(&declared, providers).await.unwrap();
    for (variable, value) in
        [("a", "command line"), ("b", "config"), ("c", "environment"), ("d", "file"), ("e", "default")]
    {
        assert_eq!(resolver.get(&name(variable)).await.unwrap().expose(), value, "{variable}");
    }
    let error = resolver.get(&name("undeclared")).await.unwrap_err();
    assert_eq!(error.code(), "WISP-E0321");
}

#[tokio::test]
async fn providers_of_an_app_are_assembled_in_their_order() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join(".env"), "SPIN_VARIABLE_D='default file'\n").unwrap();
    std::fs::write(directory.path().join("mine.env"), "MINE_C='own file'\nMINE_D='own file'\n").unwrap();
    let values = |pairs: &[(&str, &str)]| ProviderConfig::Static {
        values: pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
    };
    let configured = [
        values(&[("a", "first"), ("b", "first")]),
        values(&[("b", "second"), ("c", "second")]),
        ProviderConfig::Environment { prefix: Some("MINE".into()), dotenv_path: Some("mine.env".into()) },
    ];
    let assemble = |configured: &[ProviderConfig]| {
        Providers::assemble([(name("a"), "command line".into())], configured, directory.path())
    };
    let declared = variables(&[("a", None), ("b", None), ("c", None), ("d", None)]);
    let resolver = Resolver::new(&declared, assemble(&configured).unwrap()).await.unwrap();
    for (variable, value) in [("a", "command line"), ("b", "first"), ("c", "second"), ("d", "own file")] {
        assert_eq!(resolver.get(&name(variable)).await.unwrap().expose(), value, "{variable}");
    }
    let resolver = Resolver::new(&variables(&[("d", None)]), assemble(&[]).unwrap()).await.unwrap();
    assert_eq!(resolver.get(&name("d")).await.unwrap().expose(), "default file");

    let secret = values(&[("a", SECRET)]);
    assert!(!format!("{secret:?} {:?}", assemble(&configured)).contains(SECRET));
    for (config, kind) in
        [(ProviderConfig::Vault, "vault"), (ProviderConfig::AzureKeyVault, "azure_key_vault")]
    {
        let error = assemble(&[config]).unwrap_err();
        assert_eq!(error.code(), "WISP-E0324");
        assert!(error.to_string().contains(kind) && error.hint().unwrap().contains("static"));
    }
}

#[tokio::test]
async fn all_missing_variables_are_named_at_once_with_the_ways_to_set_them() {
    let declared = variables(&[("api_key", None), ("x", Some("")), ("db_url", None)]);
    let error = Resolver::new(&declared, Providers::new()).await.unwrap_err();
    assert_eq!(error.code(), "WISP-E0320");
    assert_eq!(error.to_string(), "variables `api_key`, `db_url` are required and have no value");
    let hint = error.hint().unwrap();
    for way in ["--variable api_key=", "SPIN_VARIABLE_API_KEY", ".env", "[[variables_provider]]", "default"] {
        assert!(hint.contains(way), "{hint}");
    }
}

#[test]
fn misspelt_names_are_found() {
    let providers = Providers::new()
        .then(command_line(&[("a", "1"), ("apikey", "2")]))
        .then(Environment::with_environment(None, None, environment(&[("SPIN_VARIABLE_X", "3")])).unwrap())
        .then(StaticValues::from_runtime_config([("Not a name".into(), "4".into())]));
    let found = resolver::undeclared(&variables(&[("a", None), ("api_key", None)]), &providers);
    assert_eq!(found, [("Not a name", "runtime configuration"), ("apikey", "command line")]);
}

#[tokio::test]
async fn a_component_reads_its_own_variables_only() {
    let resolver = Resolver::new(
        &variables(&[("host", Some("example.com")), ("token", None)]),
        Providers::new().then(command_line(&[("token", SECRET)])),
    )
    .await
    .unwrap();
    let own = templates(&[("url", "https://{{ host }}/{{ token }}"), ("plain", "text"), ("empty", "")]);
    let grant = Grant::new("hello", &own, Arc::new(resolver)).await.unwrap();
    assert_eq!(grant.get("url").await.unwrap().expose(), "https://example.com/hunter2");
    assert_eq!(grant.get("plain").await.unwrap().expose(), "text");
    assert_eq!(grant.get("empty").await.unwrap().expose(), "");
    let all = grant.get_all().await.unwrap();
    assert_eq!(all.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["url", "plain", "empty"]);

    for undefined in ["host", "token", "nothing"] {
        assert_eq!(grant.get(undefined).await.unwrap_err().code(), "WISP-E0321", "{undefined}");
    }
    let long = "x!".repeat(1_000_000);
    for invalid in ["4x", "a!b", "", "A", "invalid-name", &long] {
        let error = grant.get(invalid).await.unwrap_err();
        assert_eq!(error.code(), "WISP-E0322", "{invalid}");
        assert!(error.to_string().len() < 500);
    }
    assert!(!format!("{grant:?} {all:?} {:?}", grant.resolver()).contains(SECRET));
}

#[tokio::test]
async fn templates_are_checked_before_the_first_request() {
    let resolver = Arc::new(Resolver::new(&variables(&[("a", Some("1"))]), Providers::new()).await.unwrap());
    let undeclared = templates(&[("x", "{{ a }}{{ b }}")]);
    let error = Grant::new("hello", &undeclared, resolver.clone()).await.unwrap_err();
    assert_eq!(error.to_string(), "variable `b` is not declared by the app");

    let large = variables(&[("a", Some(&"x".repeat(600_000)))]);
    let resolver = Arc::new(Resolver::new(&large, Providers::new()).await.unwrap());
    let error = Grant::new("hello", &templates(&[("x", "{{ a }}{{ a }}")]), resolver).await.unwrap_err();
    assert_eq!(error.code(), "WISP-E0325");
    assert!(error.to_string().len() < 200);
}

#[tokio::test]
async fn a_provider_that_changes_its_mind_is_asked_each_time_and_only_where_it_matters() {
    let count = Arc::new(AtomicUsize::new(0));
    let providers = Providers::new().then(command_line(&[("fixed", "f")])).then(Counter(count.clone()));
    let declared = variables(&[("fixed", None), ("counted", None)]);
    let resolver = Arc::new(Resolver::new(&declared, providers).await.unwrap());
    assert_eq!(count.load(Ordering::Relaxed), 1, "`fixed` is decided before the counter's turn");

    let own = templates(&[("both", "{{ fixed }}{{ counted }}{{ counted }}"), ("only", "{{ fixed }}")]);
    let grant = Grant::new("hello", &own, resolver).await.unwrap();
    assert_eq!(grant.get("both").await.unwrap().expose(), "f33");
    assert_eq!(grant.get("only").await.unwrap().expose(), "f");
    let error = grant.get("both").await.unwrap_err();
    assert_eq!(error.to_string(), "cannot get variable `counted` from the counter: it is tired");
    assert_eq!(grant.get("only").await.unwrap().expose(), "f");
}

#[tokio::test]
async fn values_for_the_templates_of_other_families() {
    let declared = variables(&[("a", Some("1")), ("b", Some("2"))]);
    let resolver = Resolver::new(&declared, Providers::new()).await.unwrap();
    let template = Template::parse("https://{{ a }}").unwrap();
    assert_eq!(resolver.resolve_template(&template).await.unwrap(), "https://1");
    let values = resolver.values_for([&template]).await.unwrap();
    assert_eq!(values.get(&name("a")).unwrap(), "1");
    assert!(values.get(&name("b")).is_err());
}

#[tokio::test]
async fn environment_prefix_and_encoding() {
    let variable = name("api_key");
    let with = |prefix: Option<&str>, pairs: &[(&str, &str)]| {
        Environment::with_environment(prefix, None, environment(pairs)).unwrap()
    };
    let pairs = [("SPIN_VARIABLE_API_KEY", "1"), ("MINE_API_KEY", "2"), ("_API_KEY", "3")];
    for (prefix, value) in [(None, "1"), (Some("MINE"), "2"), (Some(""), "3")] {
        let found = with(prefix, &pairs).get(&variable).await.unwrap().unwrap();
        assert_eq!(found.expose(), value);
    }
    assert_eq!(with(Some("OTHER"), &pairs).get(&variable).await.unwrap(), None);

    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStringExt;
        let broken = ("SPIN_VARIABLE_API_KEY".into(), OsString::from_vec(vec![0xff]));
        let environment = Environment::with_environment(None, None, [broken]).unwrap();
        assert_eq!(environment.get(&variable).await.unwrap_err().code(), "WISP-E0323");
    }
}

#[tokio::test]
async fn dotenv_files() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(".env");
    let read = |text: &[u8]| {
        std::fs::write(&path, text).unwrap();
        Environment::with_environment(Some("V"), Some(&path), [])
    };
    let text = b"# a comment\n\nV_A=plain # and another\nexport V_B=\"two words\"\nV_C='as # it is'\nOTHER=x\nV_D=\n";
    let environment = read(text).unwrap();
    for (variable, value) in [("a", "plain"), ("b", "two words"), ("c", "as # it is"), ("d", "")] {
        let found = environment.get(&name(variable)).await.unwrap().unwrap();
        assert_eq!(found.expose(), value, "{variable}");
    }
    assert!(!format!("{environment:?}").contains("two words"));

    let error = read(format!("V_A=1\nV_B='{SECRET}\n").as_bytes()).unwrap_err();
    assert_eq!(error.code(), "WISP-E0327");
    assert!(!format!("{error} {error:?}").contains(SECRET), "{error}");
    let error = read(format!("V_A=1\n\nV_B=my {SECRET}\n").as_bytes()).unwrap_err();
    assert!(error.to_string().contains("line 3") && !error.to_string().contains(SECRET), "{error}");
    assert!(read(b"V_A=\xff").unwrap_err().to_string().contains("UTF-8"));
    assert!(read(&vec![b'#'; MAX_FILE_BYTES as usize]).is_ok());
    assert!(read(&vec![b'#'; MAX_FILE_BYTES as usize + 1]).unwrap_err().to_string().contains("more than"));
    // One that is not there is no error: the default is looked for in every app.
    let missing = Environment::with_environment(None, Some(&directory.path().join("nothing")), []).unwrap();
    assert_eq!(missing.get(&name("a")).await.unwrap(), None);
}

#[test]
fn flags() {
    let directory = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| std::fs::write(directory.path().join(file), text).unwrap();
    write("key.pem", "line 1\nline 2\n");
    write("values.json", r#"{"a": "1", "b": "x=y"}"#);
    write("values.toml", "a = \"1\"\nb = '''x=y'''\n");
    let parse = |argument: &str| {
        parse_flag(argument, directory.path()).map(|values| {
            values
                .into_iter()
                .map(|(key, value)| (key.to_string(), value.expose().to_owned()))
                .collect::<Vec<_>>()
        })
    };
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(parse("a=b").unwrap(), [pair("a", "b")]);
    assert_eq!(parse("a=").unwrap(), [pair("a", "")]);
    assert_eq!(parse("a=b=@c").unwrap(), [pair("a", "b=@c")]);
    assert_eq!(parse("a= b ").unwrap(), [pair("a", " b ")]);
    assert_eq!(parse("a=@key.pem").unwrap(), [pair("a", "line 1\nline 2\n")]);
    for file in ["@values.json", "@values.toml"] {
        assert_eq!(parse(file).unwrap(), [pair("a", "1"), pair("b", "x=y")]);
    }
    let absolute = format!("a=@{}", directory.path().join("key.pem").display());
    assert_eq!(parse_flag(&absolute, Path::new("/nowhere")).unwrap().len(), 1);
}

#[test]
fn bad_flags_say_what_is_wrong_and_keep_the_value_to_themselves() {
    let directory = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| std::fs::write(directory.path().join(file), text).unwrap();
    write("broken.json", &format!("{{\"a\": \"{SECRET}\""));
    write("number.json", r#"{"a": 1}"#);
    write("broken.toml", &format!("a = 1\nb = \"{SECRET}"));
    write("name.toml", &format!("A-B = \"{SECRET}\""));
    write("values.yaml", SECRET);
    for (argument, part) in [
        (SECRET, "neither a `=`"),
        ("", "neither a `=`"),
        ("=hunter2", "must not be empty"),
        ("API-KEY=hunter2", "`-` is not allowed"),
        ("a=@missing", "no such file"),
        ("@missing.json", "no such file"),
        ("@values.yaml", "`.json`"),
        ("@broken.json", "line 1"),
        ("@number.json", "names and texts"),
        ("@broken.toml", "line"),
        ("@name.toml", "`A-B` is no variable's name"),
        ("@", "`.json`"),
    ] {
        let error = parse_flag(argument, directory.path()).unwrap_err();
        assert!(error.to_string().contains(part), "{argument}: {error}");
        assert!(!format!("{error} {error:?} {:?}", error.hint()).contains(SECRET), "{argument}: {error}");
    }
}

/// The errors of all versions that have names for the same three failures.
#[derive(ComponentType, Lift, Debug, PartialEq)]
#[component(variant)]
enum GuestError {
    #[component(name = "invalid-name")]
    InvalidName(String),
    #[component(name = "undefined")]
    Undefined(String),
    #[component(name = "provider")]
    Provider(String),
    #[component(name = "other")]
    Other(String),
}

/// The errors of the oldest version.
#[derive(ComponentType, Lift, Debug, PartialEq)]
#[component(variant)]
enum OldGuestError {
    #[component(name = "provider")]
    Provider(String),
    #[component(name = "invalid-key")]
    InvalidKey(String),
    #[component(name = "invalid-schema")]
    InvalidSchema(String),
    #[component(name = "other")]
    Other(String),
}

/// The errors of `wasi:config`.
#[derive(ComponentType, Lift, Debug, PartialEq)]
#[component(variant)]
enum ConfigError {
    #[component(name = "upstream")]
    Upstream(String),
    #[component(name = "io")]
    Io(String),
}

/// Grants with a variable that has a value and one whose provider fails.
async fn grants() -> Grants {
    let providers = Providers::new()
        .then(command_line(&[("good", "morning")]))
        // The fourth call comes from the guest.
        .then(Counter(Arc::new(AtomicUsize::new(1))));
    let declared = variables(&[("good", None), ("counted", None)]);
    let resolver = Arc::new(Resolver::new(&declared, providers).await.unwrap());
    let own = templates(&[("greeting", "good {{ good }}"), ("bad", "{{ counted }}")]);
    Grants { variables: Grant::new("hello", &own, resolver).await.unwrap(), ..Grants::default() }
}

#[tokio::test]
async fn guests_of_every_version() {
    let get = |interface, function| Guest {
        interface,
        result: "(result string (error $error))",
        error_cases: r#"(case "invalid-name" string) (case "undefined" string) (case "provider" string)
            (case "other" string)"#,
        imports: r#"(export "get" (func (param "name" string) (result (result string (error $error)))))"#,
        functions: function,
        body: "(call $get (local.get $address) (local.get $length) (i32.const 16))",
        ..Guest::default()
    };
    let plain = get("fermyon:spin/variables@2.0.0", &[("get", "get", "(param i32 i32 i32)")]);
    let async_imports = plain.imports.replace("(func", "(func async");
    let concurrent = Guest {
        is_async: true,
        interface: "spin:variables/variables@3.0.0",
        imports: &async_imports,
        ..plain
    };
    for (guest, flavor) in
        [(&plain, Flavor::Plain), (&plain, Flavor::Concurrent), (&concurrent, Flavor::Concurrent)]
    {
        let ask = async |name: &str| -> Result<String, GuestError> {
            guest.call(flavor, grants().await, name).await
        };
        assert_eq!(ask("greeting").await, Ok("good morning".into()));
        assert!(matches!(ask("good").await, Err(GuestError::Undefined(_))));
        assert!(matches!(ask("4x").await, Err(GuestError::InvalidName(_))));
        assert!(matches!(ask("a!b").await, Err(GuestError::InvalidName(_))));
        assert!(matches!(ask("bad").await, Err(GuestError::Provider(text)) if text.contains("tired")));
    }
}

#[tokio::test]
async fn guests_of_the_oldest_version() {
    let guest = Guest {
        interface: "fermyon:spin/config",
        result: "(result string (error $error))",
        error_cases: r#"(case "provider" string) (case "invalid-key" string) (case "invalid-schema" string)
            (case "other" string)"#,
        imports: r#"(export "get-config" (func (param "key" string) (result (result string (error $error)))))"#,
        functions: &[("get", "get-config", "(param i32 i32 i32)")],
        body: "(call $get (local.get $address) (local.get $length) (i32.const 16))",
        ..Guest::default()
    };
    let ask = async |name: &str| -> Result<String, OldGuestError> {
        guest.call(Flavor::Plain, grants().await, name).await
    };
    assert_eq!(ask("greeting").await, Ok("good morning".into()));
    assert!(matches!(ask("good").await, Err(OldGuestError::Provider(_))));
    assert!(matches!(ask("4x").await, Err(OldGuestError::InvalidKey(_))));
    assert!(matches!(ask("bad").await, Err(OldGuestError::Other(_))));
}

#[tokio::test]
async fn guests_of_wasi_config() {
    let guest = Guest {
        interface: "wasi:config/store@0.2.0-draft-2024-09-27",
        result: "(result (option string) (error $error))",
        error_cases: r#"(case "upstream" string) (case "io" string)"#,
        imports: r#"(export "get" (func
            (param "key" string) (result (result (option string) (error $error)))))"#,
        functions: &[("get", "get", "(param i32 i32 i32)")],
        body: "(call $get (local.get $address) (local.get $length) (i32.const 16))",
        ..Guest::default()
    };
    let ask = async |name: &str| -> Result<Option<String>, ConfigError> {
        guest.call(Flavor::Plain, grants().await, name).await
    };
    assert_eq!(ask("greeting").await, Ok(Some("good morning".into())));
    assert_eq!(ask("good").await, Ok(None));
    assert_eq!(ask("4x").await, Ok(None));
    assert!(matches!(ask("bad").await, Err(ConfigError::Upstream(_))));

    let get_all = Guest {
        result: "(result (list (tuple string string)) (error $error))",
        imports: r#"(export "get-all" (func (result (result (list (tuple string string)) (error $error)))))"#,
        functions: &[("get-all", "get-all", "(param i32)")],
        body: "(call $get-all (i32.const 16))",
        ..guest
    };
    let mut grants = grants().await;
    let all: Result<Vec<(String, String)>, ConfigError> = get_all.call(Flavor::Plain, grants, "").await;
    assert!(matches!(all, Err(ConfigError::Upstream(_))), "one of them cannot be had");
    let resolver = Arc::new(Resolver::new(&variables(&[]), Providers::new()).await.unwrap());
    let own = templates(&[("b", "1"), ("a", "2")]);
    grants = Grants { variables: Grant::new("hello", &own, resolver).await.unwrap(), ..Grants::default() };
    let all: Result<Vec<(String, String)>, ConfigError> = get_all.call(Flavor::Plain, grants, "").await;
    assert_eq!(all, Ok(vec![("b".into(), "1".into()), ("a".into(), "2".into())]));
}

proptest! {
    #[test]
    fn flags_never_panic_and_keep_what_follows_the_equals_sign(key in "[a-z]{1,8}", value in "[^@].*|") {
        let parsed = parse_flag(&format!("{key}={value}"), Path::new("/nonexistent")).unwrap();
        prop_assert_eq!(parsed[0].0.as_str(), key);
        prop_assert_eq!(parsed[0].1.expose(), value);
    }

    #[test]
    fn any_argument_is_an_error_or_values(argument in ".{0,64}") {
        let _ = parse_flag(&argument, Path::new("/nonexistent"));
    }
}

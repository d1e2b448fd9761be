//! `wisp new` and `wisp add`: begin an app, or add a component to one.

use std::{
    io::{IsTerminal as _, stderr, stdin},
    path::{Path, PathBuf},
};

use clap::Args;
use dialoguer::{Input, Select};
use wisp_develop::{
    IndexMap,
    template::{Catalog, Purpose, Question, Request, Template},
};

use super::{
    common::{parse_pair, user_data_dir},
    templates::installed_dir,
};
use crate::{error::Error, output};

/// Begin an app from a template.
///
/// Asks for what it is not told, unless standard input is no terminal. `wisp templates
/// list` names the templates.
#[derive(Args)]
pub(crate) struct New {
    /// What the app is called.
    name: Option<String>,

    #[command(flatten)]
    template: TemplateFlags,

    /// The folder to make [default: the app's name].
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,

    /// Use the current folder.
    #[arg(long, conflicts_with = "output")]
    init: bool,

    /// Leave no `.gitignore`.
    #[arg(long)]
    no_vcs: bool,
}

/// Add a component to an app, from a template.
#[derive(Args)]
pub(crate) struct Add {
    /// What the component is called.
    name: Option<String>,

    #[command(flatten)]
    template: TemplateFlags,

    /// The manifest of the app, or its folder.
    #[arg(short, long, value_name = "PATH", default_value = "spin.toml")]
    file: PathBuf,

    /// The folder to make [default: the component's name, beside the manifest].
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

#[derive(Args)]
struct TemplateFlags {
    /// The template.
    #[arg(short, long, value_name = "ID")]
    template: Option<String>,

    /// Offer only templates with this tag.
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,

    /// Take the template from this folder, archive or git repository.
    #[arg(long, value_name = "DIR|URL")]
    from: Option<String>,

    /// The branch or tag of that repository.
    #[arg(long, value_name = "NAME", requires = "from")]
    branch: Option<String>,

    /// A value that the template asks for.
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    value: Vec<(String, String)>,

    /// A TOML file with such values.
    #[arg(long, value_name = "FILE")]
    values_file: Option<PathBuf>,

    /// Ask nothing: what is not given has its default.
    #[arg(short, long)]
    accept_defaults: bool,

    /// Replace files that are in the way.
    #[arg(long)]
    allow_overwrite: bool,
}

impl New {
    pub(crate) fn run(&self) -> Result<(), Error> {
        let catalog = self.template.catalog()?;
        let template = self.template.choose(&catalog, Purpose::New)?;
        let name = self.template.name(self.name.as_deref(), "the app")?;
        let output = match (&self.output, self.init) {
            (_, true) => PathBuf::from("."),
            (Some(output), false) => output.clone(),
            (None, false) => PathBuf::from(&name),
        };
        let request = Request {
            name,
            values: self.template.values(template, Purpose::New)?,
            output,
            manifest: None,
            with_gitignore: !self.no_vcs,
            may_overwrite: self.template.allow_overwrite,
        };
        template.render(&request)?.write()?;
        let place = request.output.display();
        output::note(&format!("Created `{}` from the template `{}` in {place}", request.name, template.id()));
        let enter = if self.init { String::new() } else { format!("cd {place} && ") };
        output::note(&format!("  {enter}wisp build --up"));
        Ok(())
    }
}

impl Add {
    pub(crate) fn run(&self) -> Result<(), Error> {
        let catalog = self.template.catalog()?;
        let template = self.template.choose(&catalog, Purpose::Add)?;
        let name = self.template.name(self.name.as_deref(), "the component")?;
        let manifest_dir = if self.file.is_dir() {
            self.file.as_path()
        } else {
            self.file.parent().unwrap_or(Path::new(""))
        };
        let request = Request {
            output: self.output.clone().unwrap_or_else(|| manifest_dir.join(&name)),
            name,
            values: self.template.values(template, Purpose::Add)?,
            manifest: Some(self.file.clone()),
            with_gitignore: false,
            may_overwrite: self.template.allow_overwrite,
        };
        template.render(&request)?.write()?;
        output::note(&format!(
            "Added `{}` from the template `{}` to {}",
            request.name,
            template.id(),
            self.file.display()
        ));
        Ok(())
    }
}

impl TemplateFlags {
    fn catalog(&self) -> Result<Catalog, Error> {
        Ok(match &self.from {
            Some(from) => Catalog::fetch(from, self.branch.as_deref())?,
            None => Catalog::open(Some(&installed_dir(&user_data_dir())))?,
        })
    }

    fn may_ask(&self) -> bool {
        !self.accept_defaults && stdin().is_terminal() && stderr().is_terminal()
    }

    fn choose<'catalog>(
        &self,
        catalog: &'catalog Catalog,
        purpose: Purpose,
    ) -> Result<&'catalog Template, Error> {
        if let Some(id) = &self.template {
            let template = catalog.get(id)?;
            if !template.supports(purpose) {
                let known: Vec<_> =
                    catalog.matching(purpose, &[]).iter().map(|known| format!("`{}`", known.id())).collect();
                return Err(Error::Missing {
                    what: format!("another template: `{id}` is not for this"),
                    hint: format!("there are {}", known.join(", ")),
                });
            }
            return Ok(template);
        }
        let templates = catalog.matching(purpose, &self.tag);
        match &templates[..] {
            [] => Err(Error::Missing {
                what: "a template with these tags".into(),
                hint: "`wisp templates list` shows all".into(),
            }),
            [only] => Ok(only),
            _ if !self.may_ask() => Err(Error::Missing {
                what: "a template".into(),
                hint: "name one with `--template`; `wisp templates list` shows all".into(),
            }),
            several => {
                let lines: Vec<_> = several
                    .iter()
                    .map(|template| format!("{:<18} {}", template.id(), template.description()))
                    .collect();
                let chosen = Select::new()
                    .with_prompt("Template")
                    .items(&lines)
                    .default(0)
                    .interact()
                    .map_err(asking)?;
                Ok(several[chosen])
            }
        }
    }

    fn name(&self, given: Option<&str>, of: &str) -> Result<String, Error> {
        match given {
            Some(name) => Ok(name.to_owned()),
            None if self.may_ask() => {
                Input::new().with_prompt(format!("Name of {of}")).interact_text().map_err(asking)
            }
            None => Err(Error::Missing {
                what: format!("a name for {of}"),
                hint: "give it as the first argument".into(),
            }),
        }
    }

    /// Values from the file, over them those of flags; the rest is asked for.
    fn values(&self, template: &Template, purpose: Purpose) -> Result<IndexMap<String, String>, Error> {
        let mut values = IndexMap::new();
        if let Some(path) = &self.values_file {
            let text =
                std::fs::read_to_string(path).map_err(|cause| Error::Read { path: path.clone(), cause })?;
            values.extend(wisp_develop::template::parse_values(path, &text)?);
        }
        values.extend(self.value.iter().cloned());
        let questions = template.questions(purpose);
        if let Some(unknown) =
            values.keys().find(|name| !questions.iter().any(|question| question.name == *name))
        {
            let known: Vec<_> = questions.iter().map(|question| format!("`{}`", question.name)).collect();
            return Err(Error::Missing {
                what: format!("the template `{}` to know `{unknown}`", template.id()),
                hint: format!("it asks for {}", known.join(", ")),
            });
        }
        if self.may_ask() {
            for question in questions {
                if !values.contains_key(question.name) {
                    values.insert(question.name.to_owned(), ask(&question)?);
                }
            }
        }
        Ok(values)
    }
}

fn ask(question: &Question<'_>) -> Result<String, Error> {
    let parameter = question.parameter;
    if let Some(allowed) = &parameter.allowed_values {
        let default = parameter.default.as_ref();
        let first = allowed.iter().position(|value| Some(value) == default).unwrap_or(0);
        let chosen = Select::new().with_prompt(&parameter.prompt).items(allowed).default(first).interact();
        return Ok(allowed[chosen.map_err(asking)?].clone());
    }
    let mut input = Input::<String>::new()
        .with_prompt(&parameter.prompt)
        .validate_with(|value: &String| question.check(value).map_err(|error| error.to_string()));
    if let Some(default) = &parameter.default {
        input = input.default(default.clone()).allow_empty(default.is_empty());
    }
    input.interact_text().map_err(asking)
}

/// The terminal went away, or the person did.
fn asking(error: dialoguer::Error) -> Error {
    let dialoguer::Error::IO(cause) = error;
    Error::Read { path: "the terminal".into(), cause }
}

//! `wisp templates`: what `wisp new` can begin with.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use wisp_develop::template::{self, Catalog, Purpose};

use super::common::{Format, user_data_dir};
use crate::{error::Error, output};

/// List templates, and keep those of others.
#[derive(Args)]
pub(crate) struct Templates {
    #[command(subcommand)]
    command: TemplatesCommand,
}

#[derive(Subcommand)]
enum TemplatesCommand {
    /// List the templates.
    List(List),
    /// Keep the templates of a folder, an archive or a git repository.
    Install(Install),
    /// Remove templates that were installed.
    Uninstall(Uninstall),
}

#[derive(Args)]
struct List {
    /// Only those with this tag.
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,

    /// How they are printed.
    #[arg(long, value_name = "FORMAT", default_value = "plain")]
    format: Format,
}

#[derive(Args)]
#[group(id = "source", required = true, multiple = false)]
struct Source {
    /// A git repository.
    #[arg(long, value_name = "URL")]
    git: Option<String>,

    /// A folder.
    #[arg(long, value_name = "DIR")]
    dir: Option<String>,

    /// An archive: `.tar` or `.tar.gz`.
    #[arg(long, value_name = "FILE")]
    tar: Option<String>,
}

#[derive(Args)]
struct Install {
    #[command(flatten)]
    source: Source,

    /// The branch or tag of the repository.
    #[arg(long, value_name = "NAME", requires = "git")]
    branch: Option<String>,

    /// Replace those that are there already.
    #[arg(long)]
    upgrade: bool,
}

#[derive(Args)]
struct Uninstall {
    /// Their names.
    #[arg(required = true)]
    id: Vec<String>,
}

impl Templates {
    pub(crate) fn run(&self) -> Result<(), Error> {
        let folder = installed_dir(&user_data_dir());
        match &self.command {
            TemplatesCommand::List(list) => list.run(&folder),
            TemplatesCommand::Install(install) => install.run(&folder),
            TemplatesCommand::Uninstall(uninstall) => {
                for id in &uninstall.id {
                    template::uninstall(&folder, id)?;
                    output::note(&format!("Removed `{id}`"));
                }
                Ok(())
            }
        }
    }
}

impl List {
    fn run(&self, folder: &Path) -> Result<(), Error> {
        let catalog = Catalog::open(Some(folder))?;
        let has = |tags: &[String], tag: &String| tags.iter().any(|known| known.eq_ignore_ascii_case(tag));
        let templates = catalog.iter().filter(|one| self.tag.iter().all(|tag| has(one.tags(), tag)));
        match self.format {
            Format::Plain => {
                let text: String =
                    templates.map(|one| format!("{:<18} {}\n", one.id(), one.description())).collect();
                output::data(&text);
            }
            Format::Json => {
                let list: Vec<_> = templates
                    .map(|one| {
                        serde_json::json!({
                            "id": one.id(),
                            "description": one.description(),
                            "tags": one.tags(),
                            "origin": one.origin().to_string(),
                            "new": one.supports(Purpose::New),
                            "add": one.supports(Purpose::Add),
                            "parameters": one.questions(Purpose::New).iter().map(|question| {
                                serde_json::json!({
                                    "name": question.name,
                                    "prompt": question.parameter.prompt,
                                    "default": question.parameter.default,
                                    "allowed_values": question.parameter.allowed_values,
                                })
                            }).collect::<Vec<_>>(),
                        })
                    })
                    .collect();
                output::data(&format!("{}\n", serde_json::Value::from(list)));
            }
        }
        Ok(())
    }
}

impl Install {
    fn run(&self, folder: &Path) -> Result<(), Error> {
        let from = [&self.source.git, &self.source.dir, &self.source.tar].into_iter().flatten().next();
        let from = from.map_or("", String::as_str);
        let catalog = Catalog::fetch(from, self.branch.as_deref())?;
        catalog.install(folder, self.upgrade)?;
        for template in catalog.iter() {
            output::note(&format!("Installed `{}`: {}", template.id(), template.description()));
        }
        Ok(())
    }
}

/// Where installed templates are kept.
pub(crate) fn installed_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("wisp").join("templates")
}

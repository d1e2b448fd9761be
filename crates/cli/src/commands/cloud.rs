//! Commands that ask a server. Each is a thin client of its API; the only thing that one
//! knows is how to ask and how the answer reads.

use clap::Subcommand;

use super::{
    api, apps, audit, domains, kv, login, logs, releases, resources, sql, team, token, top, variables,
};
use crate::error::Error;

/// Commands that ask a server.
#[derive(Subcommand)]
pub(crate) enum Cloud {
    /// Sign in to a server.
    Login(login::Login),
    /// Forget the sign-in to a server.
    Logout(login::Logout),
    /// Show who you are on the server, and what you may do.
    Whoami(login::Whoami),
    /// Teams and who belongs to them.
    Team(team::Team),
    /// Tokens for scripts and pipelines.
    Token(token::Token),
    /// List the apps of a team.
    Apps(apps::Apps),
    /// Show an app: where it answers, how it is, what belongs to it.
    Info(apps::Info),
    /// Remove an app. Its resources stay.
    Rm(apps::Remove),
    /// List the releases of an app.
    Releases(releases::Releases),
    /// Go back to an earlier release.
    Rollback(releases::Rollback),
    /// Variables of an app. A change makes a new release.
    Variables(variables::Variables),
    /// Variables of an app that nobody can read.
    Secrets(variables::Secrets),
    /// Domains of an app.
    Domains(domains::Domains),
    /// Key-value stores and databases of a team, and which apps have them.
    Resources(resources::Resources),
    /// Look into a key-value store, and change it.
    Kv(kv::KeyValue),
    /// Run an SQL statement in a database.
    Sql(sql::Sql),
    /// Show who did what in a team.
    Audit(audit::Audit),
    /// Show what an app logged.
    Logs(logs::Logs),
    /// Show what the apps of a team are doing.
    Top(top::Top),
    /// Send a request to the server's API.
    Api(api::Api),
}

impl Cloud {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<(), Error> {
        match self {
            Self::Login(command) => command.run(),
            Self::Logout(command) => command.run(),
            Self::Whoami(command) => command.run(),
            Self::Team(command) => command.run(),
            Self::Token(command) => command.run(),
            Self::Apps(command) => command.run(),
            Self::Info(command) => command.run(),
            Self::Rm(command) => command.run(),
            Self::Releases(command) => command.run(),
            Self::Rollback(command) => command.run(),
            Self::Variables(command) => command.run(),
            Self::Secrets(command) => command.run(),
            Self::Domains(command) => command.run(),
            Self::Resources(command) => command.run(),
            Self::Kv(command) => command.run(),
            Self::Sql(command) => command.run(),
            Self::Audit(command) => command.run(),
            Self::Logs(command) => command.run(),
            Self::Top(command) => command.run(),
            Self::Api(command) => command.run(),
        }
    }
}

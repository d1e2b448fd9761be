//! `wisp team`: teams and who belongs to them.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::json;
use wisp_control::model::{Invitation, Member, Team as Answer};

use crate::{
    client::{Client, Credentials, FormatFlag, ServerFlags, block_on, confirm, moment, show, table},
    error::Error,
    output,
};

/// Teams and who belongs to them.
#[derive(Args)]
pub(crate) struct Team {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    server: ServerFlags,
}

#[derive(Subcommand)]
enum Command {
    /// List your teams.
    List(FormatFlag),
    /// Make a team. Only the operator can.
    Create {
        /// Its name.
        name: String,
        /// Who owns it [default: you].
        #[arg(long, value_name = "USER")]
        owner: Option<String>,
    },
    /// Choose the team that is meant when no other is named.
    Use {
        /// Its name.
        name: String,
    },
    /// List who belongs to the team.
    Members(FormatFlag),
    /// Make a link by which somebody joins the team.
    Invite {
        /// What they are in the team: viewer, deployer or owner.
        #[arg(long, default_value = "deployer")]
        role: String,
        #[command(flatten)]
        format: FormatFlag,
    },
    /// Give a member another role.
    Role {
        /// The member.
        user: String,
        /// viewer, deployer or owner.
        role: String,
    },
    /// Take a member out of the team.
    RemoveMember {
        /// The member.
        user: String,
    },
    /// Remove a team that has no apps and no resources.
    Remove {
        /// Its name.
        name: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

impl Team {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<(), Error> {
        let client = Client::new(&self.server)?;
        block_on(self.ask(&client))
    }

    async fn ask(&self, client: &Client) -> Result<(), Error> {
        match &self.command {
            Command::List(format) => {
                let teams: Vec<Answer> = client.list(client.at(&["teams"])).await?;
                show(format.format, &teams, |teams| {
                    let row = |team: &Answer| {
                        let role = team.role.map_or("", |role| role.as_str());
                        [team.name.to_string(), role.to_owned()]
                    };
                    table(["name", "role"], teams.iter().map(row).collect())
                });
            }
            Command::Create { name, owner } => {
                let mut body = json!({ "name": name });
                if let Some(owner) = owner {
                    body["owner"] = json!(owner);
                }
                let _: Answer = client.call(Method::POST, client.at(&["teams"]), Some(&body)).await?;
                output::note(&format!("made team {name}"));
            }
            Command::Use { name } => {
                let _: Answer = client.get(client.at(&["teams", name])).await?;
                let mut credentials = Credentials::read()?;
                let known =
                    credentials.servers.get_mut(client.server().as_str()).ok_or(Error::NotSignedIn)?;
                known.team = Some(name.clone());
                credentials.write()?;
                output::note(&format!("team {name} is meant from now on"));
            }
            Command::Members(format) => {
                let members: Vec<Member> = client.list(client.at_team(&["members"]).await?).await?;
                show(format.format, &members, |members| {
                    let row = |member: &Member| [member.user.to_string(), member.role.to_string()];
                    table(["user", "role"], members.iter().map(row).collect())
                });
            }
            Command::Invite { role, format } => {
                let url = client.at_team(&["invitations"]).await?;
                let made: Invitation = client.call(Method::POST, url, Some(&json!({ "role": role }))).await?;
                show(format.format, &made, |made| format!("{}\n", made.link));
                output::note(&format!("it works once and ends {}", moment(made.expires_ms)));
            }
            Command::Role { user, role } => {
                let url = client.at_team(&["members", user]).await?;
                let _: Member = client.call(Method::PUT, url, Some(&json!({ "role": role }))).await?;
                output::note(&format!("{user} is {role} now"));
            }
            Command::RemoveMember { user } => {
                let url = client.at_team(&["members", user]).await?;
                client.send(Method::DELETE, url, None::<&()>).await?;
                output::note(&format!("{user} belongs to the team no more"));
            }
            Command::Remove { name, yes } => {
                confirm(&format!("remove team {name}?"), *yes)?;
                client.send(Method::DELETE, client.at(&["teams", name]), None::<&()>).await?;
                output::note(&format!("removed team {name}"));
            }
        }
        Ok(())
    }
}

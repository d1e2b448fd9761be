//! Who may do what: roles of members, scopes of tokens.
//!
//! Somebody may do what their role in the team has *and* the token they use was made for.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::names::{TeamId, TeamName, TokenId, UserId, UserName};

/// Something that a token may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum Scope {
    /// See apps, releases, operations, resources, domains, and variables that are no secrets.
    #[serde(rename = "apps:read")]
    AppsRead,
    /// Make, deploy, configure and remove apps.
    #[serde(rename = "apps:deploy")]
    AppsDeploy,
    /// Set and remove secrets. Nobody can read them.
    #[serde(rename = "secrets:write")]
    SecretsWrite,
    /// Read logs.
    #[serde(rename = "logs:read")]
    LogsRead,
    /// Read what is in key-value stores and databases.
    #[serde(rename = "data:read")]
    DataRead,
    /// Change what is in them.
    #[serde(rename = "data:write")]
    DataWrite,
    /// Make, link, rename and remove resources.
    #[serde(rename = "resources:write")]
    ResourcesWrite,
    /// Pull images.
    #[serde(rename = "registry:pull")]
    RegistryPull,
    /// Push and delete images.
    #[serde(rename = "registry:push")]
    RegistryPush,
    /// Members, invitations, the team's tokens, its audit log.
    #[serde(rename = "team:admin")]
    TeamAdmin,
    /// Make and end one's own tokens.
    #[serde(rename = "user:admin")]
    UserAdmin,
    /// The whole server: teams, users. Only operators have it.
    #[serde(rename = "server:admin")]
    ServerAdmin,
}

/// What somebody is in a team.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sees apps and logs.
    Viewer,
    /// Also deploys, and works with data.
    Deployer,
    /// Also decides who belongs to the team.
    Owner,
}

/// A set of [`Scope`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes(u16);

/// Who is asking, after their token was looked at.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The person, or nobody for a token that belongs to a team.
    pub user: Option<(UserId, UserName)>,
    /// Whether the person operates the server.
    pub is_operator: bool,
    /// The token.
    pub token: TokenId,
    /// What the token may be used for.
    pub scopes: Scopes,
    /// The only team that the token is for, if it is for one.
    pub team: Option<(TeamId, TeamName)>,
    /// The role that a token of a team has there.
    pub token_role: Role,
    /// Where the request comes from, for the audit log.
    pub from: String,
}

impl Scope {
    /// All scopes.
    pub const ALL: [Self; 12] = [
        Self::AppsRead,
        Self::AppsDeploy,
        Self::SecretsWrite,
        Self::LogsRead,
        Self::DataRead,
        Self::DataWrite,
        Self::ResourcesWrite,
        Self::RegistryPull,
        Self::RegistryPush,
        Self::TeamAdmin,
        Self::UserAdmin,
        Self::ServerAdmin,
    ];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AppsRead => "apps:read",
            Self::AppsDeploy => "apps:deploy",
            Self::SecretsWrite => "secrets:write",
            Self::LogsRead => "logs:read",
            Self::DataRead => "data:read",
            Self::DataWrite => "data:write",
            Self::ResourcesWrite => "resources:write",
            Self::RegistryPull => "registry:pull",
            Self::RegistryPush => "registry:push",
            Self::TeamAdmin => "team:admin",
            Self::UserAdmin => "user:admin",
            Self::ServerAdmin => "server:admin",
        }
    }

    /// Reads what [`as_str`](Self::as_str) writes.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text)
    }

    fn bit(self) -> u16 {
        1 << (self as u16)
    }
}

impl Scopes {
    /// No scope.
    pub const NONE: Self = Self(0);

    /// Every scope.
    pub fn all() -> Self {
        Scope::ALL.into_iter().collect()
    }

    /// Whether a scope is among them.
    pub fn contains(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }

    /// Those that are in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether all of these are in `other`.
    pub fn are_within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.contains(*scope))
    }

    /// Reads what `Display` writes; what is unknown, of a later version, is left out.
    pub(crate) fn parse(text: &str) -> Self {
        text.split_ascii_whitespace().filter_map(Scope::parse).collect()
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | scope.bit()))
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, scope) in self.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            write!(formatter, "{space}{}", scope.as_str())?;
        }
        Ok(())
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl Role {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Deployer => "deployer",
            Self::Owner => "owner",
        }
    }

    /// Reads what [`as_str`](Self::as_str) writes.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Viewer, Self::Deployer, Self::Owner].into_iter().find(|role| role.as_str() == text)
    }

    /// What somebody of this role may do in the team.
    pub fn scopes(self) -> Scopes {
        let viewer = [Scope::AppsRead, Scope::LogsRead, Scope::RegistryPull];
        let deployer = [
            Scope::AppsDeploy,
            Scope::SecretsWrite,
            Scope::DataRead,
            Scope::DataWrite,
            Scope::ResourcesWrite,
            Scope::RegistryPush,
        ];
        let of_deployer = deployer.iter().filter(|_| self >= Self::Deployer);
        let of_owner = [Scope::TeamAdmin];
        let of_owner = of_owner.iter().filter(|_| self >= Self::Owner);
        viewer.iter().chain(of_deployer).chain(of_owner).copied().collect()
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl Caller {
    /// How the audit log calls them.
    pub fn name(&self) -> String {
        match (&self.user, &self.team) {
            (Some((_, user)), _) => user.to_string(),
            (None, Some((_, team))) => format!("token of {team}"),
            (None, None) => "nobody".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_contain_each_other() {
        assert!(Role::Viewer.scopes().are_within(Role::Deployer.scopes()));
        assert!(Role::Deployer.scopes().are_within(Role::Owner.scopes()));
        assert!(!Role::Owner.scopes().contains(Scope::ServerAdmin));
        assert!(!Role::Viewer.scopes().contains(Scope::DataRead));
    }

    #[test]
    fn scopes_are_read_as_written() {
        let all = Scopes::all();
        assert_eq!(Scopes::parse(&all.to_string()), all);
        assert_eq!(Scopes::parse("apps:read later:scope"), [Scope::AppsRead].into_iter().collect());
    }
}

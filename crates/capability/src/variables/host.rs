//! The interfaces that guests read variables through.

use wasmtime::component::{Accessor, HasSelf, Linker};

use super::Value;
use crate::{Error, Flavor, Host};

mod plain {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "wisp:host/variables",
        imports: { default: async },
    });
}

mod concurrent {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "wisp:host/variables-concurrent",
    });
}

use concurrent::spin::variables::variables as variables3;
use plain::fermyon::spin::config as variables1;
use plain::fermyon::spin2_0_0::variables as variables2;
use plain::wasi::config::store as wasi_config;

pub(crate) fn add_to_linker(linker: &mut Linker<Host>, flavor: Flavor) -> wasmtime::Result<()> {
    variables1::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
    variables2::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
    wasi_config::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
    if flavor.is_concurrent() {
        variables3::add_to_linker::<_, HasSelf<_>>(linker, |host| host)?;
    }
    Ok(())
}

impl variables1::Host for Host {
    async fn get_config(&mut self, key: String) -> Result<String, variables1::Error> {
        self.grants.variables.get(&key).await.map(text).map_err(|error| {
            let message = error.to_string();
            match error {
                Error::VariableName { .. } => variables1::Error::InvalidKey(message),
                Error::VariableUndefined { .. } => variables1::Error::Provider(message),
                _ => variables1::Error::Other(message),
            }
        })
    }
}

impl variables2::Host for Host {
    async fn get(&mut self, name: String) -> Result<String, variables2::Error> {
        self.grants.variables.get(&name).await.map(text).map_err(|error| {
            let message = error.to_string();
            match error {
                Error::VariableName { .. } => variables2::Error::InvalidName(message),
                Error::VariableUndefined { component: Some(_), .. } => variables2::Error::Undefined(message),
                _ => variables2::Error::Provider(message),
            }
        })
    }
}

impl variables3::Host for Host {}

impl<T> variables3::HostWithStore<T> for HasSelf<Host> {
    async fn get(accessor: &Accessor<T, Self>, name: String) -> Result<String, variables3::Error> {
        let grants = accessor.with(|mut access| access.get().grants.clone());
        grants.variables.get(&name).await.map(text).map_err(|error| {
            let message = error.to_string();
            match error {
                Error::VariableName { .. } => variables3::Error::InvalidName(message),
                Error::VariableUndefined { component: Some(_), .. } => variables3::Error::Undefined(message),
                _ => variables3::Error::Provider(message),
            }
        })
    }
}

impl wasi_config::Host for Host {
    async fn get(&mut self, key: String) -> Result<Option<String>, wasi_config::Error> {
        match self.grants.variables.get(&key).await {
            Ok(value) => Ok(Some(text(value))),
            Err(Error::VariableName { .. } | Error::VariableUndefined { component: Some(_), .. }) => Ok(None),
            Err(error) => Err(wasi_config::Error::Upstream(error.to_string())),
        }
    }

    async fn get_all(&mut self) -> Result<Vec<(String, String)>, wasi_config::Error> {
        match self.grants.variables.get_all().await {
            Ok(all) => Ok(all.into_iter().map(|(name, value)| (name.to_string(), text(value))).collect()),
            Err(error) => Err(wasi_config::Error::Upstream(error.to_string())),
        }
    }
}

fn text(value: Value) -> String {
    value.expose().to_owned()
}

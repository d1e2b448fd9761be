//! Requests that never leave the process: to other components of the app.

use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use futures::future::BoxFuture;
use http::{Request, Response};
use wasmtime_wasi_http::{Error as HttpError, WasiBody};

/// How many components may have called each other to bring a request about.
/// Deeper than any sensible chain, and few enough that a circle of components
/// does not take up all instances before it is found.
pub const MAX_LOCAL_DEPTH_COUNT: u8 = 16;

/// Whom a request within the app is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalTarget {
    /// The component with this id: `http://ID.spin.internal/…`.
    Component(String),
    /// Whichever component the app's own routes lead to: `http://self.alt/…`.
    Route,
}

/// How many components have called each other to bring a request about. In the
/// extensions of a request that [`LocalDispatch`] gets; a trigger hands it on
/// with [`Host::set_local_depth`](crate::Host::set_local_depth).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalDepth(u8);

/// Runs requests within the app: the HTTP trigger.
pub trait LocalDispatch: Send + Sync {
    /// Answers a request that was checked against the allow-list already. Its
    /// extensions hold a [`LocalDepth`].
    fn dispatch(
        &self,
        target: LocalTarget,
        request: Request<WasiBody>,
    ) -> BoxFuture<'static, Result<Response<WasiBody>, HttpError>>;
}

/// Where an app's trigger makes itself known to the app's components.
///
/// Components are set up before the trigger that runs them, and the trigger
/// owns them: so it is told later, and held weakly.
#[derive(Clone, Default)]
pub struct LocalSlot {
    dispatch: Arc<OnceLock<Weak<dyn LocalDispatch>>>,
}

impl LocalSlot {
    /// Makes the trigger known. Only the first call counts.
    pub fn set(&self, dispatch: Weak<dyn LocalDispatch>) {
        // A second trigger of the same app would answer the same.
        drop(self.dispatch.set(dispatch));
    }

    pub(super) fn get(&self) -> Option<Arc<dyn LocalDispatch>> {
        self.dispatch.get().and_then(Weak::upgrade)
    }
}

impl LocalDepth {
    /// One call further, unless that is too far.
    pub(super) fn deeper(self) -> Option<Self> {
        (self.0 < MAX_LOCAL_DEPTH_COUNT).then_some(Self(self.0 + 1))
    }
}

impl fmt::Display for LocalTarget {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Component(component) => formatter.write_str(component),
            Self::Route => formatter.write_str("self"),
        }
    }
}

//! Clocks and random numbers of a virtual world, as guests call them.

use std::{sync::Arc, time::Duration};

use wasmtime::component::{Accessor, HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::{
    p2::{self, DynPollable, Pollable, subscribe},
    p3,
};

use super::{VirtualRandom, VirtualTime, VirtualWorld};
use crate::{Flavor, Host};

/// The most random bytes that one call gives; as Wasmtime has it.
const MAX_RANDOM_BYTES: u64 = 64 << 20;

/// Time and random numbers of one instance.
struct View<'host> {
    world: &'host VirtualWorld,
    table: &'host mut ResourceTable,
}

/// Tells the linker what [`View`] is.
struct HasView;

/// A pollable that is ready when a virtual time has come.
struct Deadline {
    time: Arc<VirtualTime>,
    until_ns: u64,
    is_past: bool,
}

/// Puts clocks and random numbers of the instance's world in the place of the machine's,
/// in a linker that has all of WASI. The time of day is in the instance's context.
pub(crate) fn add_to_linker(linker: &mut Linker<Host>, flavor: Flavor) -> wasmtime::Result<()> {
    fn view(host: &mut Host) -> View<'_> {
        View { world: &host.grants.world, table: &mut host.table }
    }
    linker.allow_shadowing(true);
    p2::bindings::clocks::monotonic_clock::add_to_linker::<_, HasView>(linker, view)?;
    p2::bindings::random::random::add_to_linker::<_, HasView>(linker, view)?;
    p2::bindings::random::insecure::add_to_linker::<_, HasView>(linker, view)?;
    p2::bindings::random::insecure_seed::add_to_linker::<_, HasView>(linker, view)?;
    if flavor.is_concurrent() {
        p3::bindings::clocks::monotonic_clock::add_to_linker::<_, HasView>(linker, view)?;
        p3::bindings::random::random::add_to_linker::<_, HasView>(linker, view)?;
        p3::bindings::random::insecure::add_to_linker::<_, HasView>(linker, view)?;
        p3::bindings::random::insecure_seed::add_to_linker::<_, HasView>(linker, view)?;
    }
    linker.allow_shadowing(false);
    Ok(())
}

impl HasData for HasView {
    type Data<'host> = View<'host>;
}

impl View<'_> {
    fn time(&self) -> wasmtime::Result<&Arc<VirtualTime>> {
        let time = self.world.time.as_ref();
        time.ok_or_else(|| wasmtime::Error::msg("the instance's world has no time"))
    }

    fn random(&self) -> wasmtime::Result<&VirtualRandom> {
        let random = self.world.random.as_deref();
        random.ok_or_else(|| wasmtime::Error::msg("the instance's world has no random numbers"))
    }

    fn random_bytes(&self, count: u64) -> wasmtime::Result<Vec<u8>> {
        let count = usize::try_from(count).ok().filter(|_| count <= MAX_RANDOM_BYTES);
        let count = count.ok_or_else(|| {
            wasmtime::Error::msg(format!("more than {MAX_RANDOM_BYTES} random bytes in one call"))
        })?;
        Ok(self.random()?.bytes(count))
    }

    fn subscribe(&mut self, duration: Duration) -> wasmtime::Result<Resource<DynPollable>> {
        let time = self.time()?.clone();
        let until_ns = time.after(duration);
        let deadline = self.table.push(Deadline { time, until_ns, is_past: duration.is_zero() })?;
        subscribe(self.table, deadline)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Deadline {
    async fn ready(&mut self) {
        if std::mem::take(&mut self.is_past) {
            // A guest that polls in a loop must let others have their turn, once.
            tokio::task::yield_now().await;
        }
        // Only while it is polled: one that nobody waits for must not move the clock.
        self.time.sleep_until(self.until_ns).await;
    }
}

impl p2::bindings::clocks::monotonic_clock::Host for View<'_> {
    fn now(&mut self) -> wasmtime::Result<u64> {
        Ok(self.time()?.monotonic_ns())
    }

    fn resolution(&mut self) -> wasmtime::Result<u64> {
        Ok(1)
    }

    fn subscribe_instant(&mut self, when: u64) -> wasmtime::Result<Resource<DynPollable>> {
        let duration = self.time()?.until(when);
        self.subscribe(duration)
    }

    fn subscribe_duration(&mut self, duration: u64) -> wasmtime::Result<Resource<DynPollable>> {
        self.subscribe(Duration::from_nanos(duration))
    }
}

impl p3::bindings::clocks::monotonic_clock::Host for View<'_> {
    fn now(&mut self) -> wasmtime::Result<u64> {
        Ok(self.time()?.monotonic_ns())
    }

    fn get_resolution(&mut self) -> wasmtime::Result<u64> {
        Ok(1)
    }
}

impl<T> p3::bindings::clocks::monotonic_clock::HostWithStore<T> for HasView {
    async fn wait_until(store: &Accessor<T, Self>, when: u64) -> wasmtime::Result<()> {
        let sleep = store.with(|mut access| {
            let view = access.get();
            let time = view.time()?;
            Ok::<_, wasmtime::Error>(time.sleep(time.until(when)))
        })?;
        sleep.await;
        Ok(())
    }

    async fn wait_for(store: &Accessor<T, Self>, duration: u64) -> wasmtime::Result<()> {
        let sleep = store.with(|mut access| {
            Ok::<_, wasmtime::Error>(access.get().time()?.sleep(Duration::from_nanos(duration)))
        })?;
        sleep.await;
        Ok(())
    }
}

impl p2::bindings::random::random::Host for View<'_> {
    fn get_random_bytes(&mut self, count: u64) -> wasmtime::Result<Vec<u8>> {
        self.random_bytes(count)
    }

    fn get_random_u64(&mut self) -> wasmtime::Result<u64> {
        Ok(self.random()?.number())
    }
}

impl p2::bindings::random::insecure::Host for View<'_> {
    fn get_insecure_random_bytes(&mut self, count: u64) -> wasmtime::Result<Vec<u8>> {
        self.random_bytes(count)
    }

    fn get_insecure_random_u64(&mut self) -> wasmtime::Result<u64> {
        Ok(self.random()?.number())
    }
}

impl p2::bindings::random::insecure_seed::Host for View<'_> {
    fn insecure_seed(&mut self) -> wasmtime::Result<(u64, u64)> {
        let random = self.random()?;
        Ok((random.number(), random.number()))
    }
}

impl p3::bindings::random::random::Host for View<'_> {
    fn get_random_bytes(&mut self, max_count: u64) -> wasmtime::Result<Vec<u8>> {
        self.random_bytes(max_count.min(MAX_RANDOM_BYTES))
    }

    fn get_random_u64(&mut self) -> wasmtime::Result<u64> {
        Ok(self.random()?.number())
    }
}

impl p3::bindings::random::insecure::Host for View<'_> {
    fn get_insecure_random_bytes(&mut self, max_count: u64) -> wasmtime::Result<Vec<u8>> {
        self.random_bytes(max_count.min(MAX_RANDOM_BYTES))
    }

    fn get_insecure_random_u64(&mut self) -> wasmtime::Result<u64> {
        Ok(self.random()?.number())
    }
}

impl p3::bindings::random::insecure_seed::Host for View<'_> {
    fn get_insecure_seed(&mut self) -> wasmtime::Result<(u64, u64)> {
        let random = self.random()?;
        Ok((random.number(), random.number()))
    }
}

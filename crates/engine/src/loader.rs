//! From source bytes to a component that can be instantiated.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use wasmtime::component::Component;

use crate::{
    Digest, EngineConfig, Error, Flavor, ImageStore, MemoryPool,
    epoch::EpochTicker,
    image_store::Image,
    memory::{MemoryImage, MemoryPools, snapshot},
    normalize,
};

/// The largest source that is accepted. The largest real guests (Python with
/// scientific libraries) are about 60 MB.
const MAX_SOURCE_BYTES: u64 = 256 << 20;

/// Loads components, for all flavors, with one store of compiled images.
#[derive(Clone)]
pub struct Engine {
    flavors: [wasmtime::Engine; Flavor::ALL.len()],
    images: Option<ImageStore>,
    memories: Arc<MemoryPools>,
    _ticker: Arc<EpochTicker>,
}

/// A component that is ready to be linked.
#[derive(Clone)]
pub struct LoadedComponent {
    /// The component, mapped or compiled.
    pub component: Component,
    /// The engine it belongs to.
    pub flavor: Flavor,
    /// Where its memory comes from, unless that is Wasmtime's pool. Instantiate
    /// within its [`MemoryPool::scope`].
    pub memory: Option<Arc<MemoryPool>>,
    /// The digest of its source.
    pub digest: Digest,
    /// Where its native code came from.
    pub origin: Origin,
}

/// Where a component's native code came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Mapped from the store.
    Mapped,
    /// Compiled just now, in this time.
    Compiled(Duration),
}

impl Engine {
    /// Starts the engine. Without a store, components are compiled at every load.
    ///
    /// # Errors
    /// [`Error::Configuration`] if the operating system refuses the address space
    /// of the pool or the thread that preempts guests.
    pub fn new(config: &EngineConfig, images: Option<ImageStore>) -> Result<Self, Error> {
        let [plain, concurrent, plain_snapshot, concurrent_snapshot] = Flavor::ALL;
        let flavors = [
            config.engine(plain)?,
            config.engine(concurrent)?,
            config.engine(plain_snapshot)?,
            config.engine(concurrent_snapshot)?,
        ];
        let memories = Arc::<MemoryPools>::default();
        let ticker = EpochTicker::start(flavors.to_vec(), memories.clone())
            .map_err(|cause| Error::Configuration { cause: cause.into() })?;
        Ok(Self { flavors, images, memories, _ticker: ticker })
    }

    /// The Wasmtime engine of a flavor, to make linkers and stores with.
    pub fn wasmtime(&self, flavor: Flavor) -> &wasmtime::Engine {
        &self.flavors[flavor as usize]
    }

    /// Loads a component from the bytes of its source. Blocks while compiling.
    ///
    /// # Errors
    /// By the step that failed: not WebAssembly, invalid, cannot be adapted, does
    /// not compile, cannot be stored.
    pub fn load(&self, source: &[u8]) -> Result<LoadedComponent, Error> {
        self.load_with_digest(source, Digest::of(source), || {})
    }

    fn load_with_digest(
        &self,
        source: &[u8],
        digest: Digest,
        before_compiling: impl FnOnce(),
    ) -> Result<LoadedComponent, Error> {
        if let Some(loaded) = self.load_image(digest) {
            return Ok(loaded);
        }
        before_compiling();
        let started = std::time::Instant::now();
        let normalized = normalize::normalize(source)?;
        let (flavor, component, contents) = match snapshot::extract(&normalized.component)? {
            None => (normalized.flavor, normalized.component, None),
            Some(extracted) => {
                (normalized.flavor.with_snapshot(), extracted.component.into(), Some(extracted.contents))
            }
        };
        let engine = self.wasmtime(flavor);
        let code =
            engine.precompile_component(&component).map_err(|error| explain_failure(&component, &error))?;
        let image = Image { code: &code, contents: contents.as_deref() };
        let origin = || Origin::Compiled(started.elapsed());
        if let Some(images) = &self.images {
            images.insert(&digest, engine, flavor, &image)?;
            if let Some((component, memory)) = images.load(&digest, engine, flavor) {
                let memory = memory.map(|image| self.memories.pool(image));
                return Ok(LoadedComponent { component, flavor, memory, digest, origin: origin() });
            }
        }
        let memory = contents
            .map(|contents| MemoryImage::copy(&contents))
            .transpose()
            .map_err(|cause| Error::Configuration { cause: cause.into() })?
            .map(|image| self.memories.pool(image));
        // SAFETY: these bytes come from this very engine's compiler.
        let component = unsafe { Component::deserialize(engine, code) }
            .map_err(|error| Error::Compile { message: format!("{error:#}") })?;
        Ok(LoadedComponent { component, flavor, memory, digest, origin: origin() })
    }

    fn load_image(&self, digest: Digest) -> Option<LoadedComponent> {
        let images = self.images.as_ref()?;
        Flavor::ALL.into_iter().find_map(|flavor| {
            let (component, memory) = images.load(&digest, self.wasmtime(flavor), flavor)?;
            let memory = memory.map(|image| self.memories.pool(image));
            Some(LoadedComponent { component, flavor, memory, digest, origin: Origin::Mapped })
        })
    }

    /// Loads a component from a file.
    ///
    /// # Errors
    /// As [`Engine::load`], and [`Error::Read`] or [`Error::TooLarge`].
    pub fn load_file(&self, path: &Path) -> Result<LoadedComponent, Error> {
        self.load(&read_source(path)?)
    }

    /// Loads several components at once, as many at a time as there are cores.
    /// Files of equal content are loaded once. Results are in the order of `paths`.
    ///
    /// `before_compiling` is called with the position of each file that is about to
    /// be compiled, which may take seconds, and its size in bytes.
    pub fn load_files(
        &self,
        paths: &[PathBuf],
        before_compiling: impl Fn(usize, usize) + Sync,
    ) -> Vec<Result<LoadedComponent, Arc<Error>>> {
        type Slot = Arc<Mutex<Option<Result<LoadedComponent, Arc<Error>>>>>;

        let mut slots: HashMap<Digest, Slot> = HashMap::new();
        let mut work: Vec<(Slot, usize, Digest, Vec<u8>)> = Vec::new();
        let mut results: Vec<Result<Slot, Arc<Error>>> = Vec::with_capacity(paths.len());
        for (position, path) in paths.iter().enumerate() {
            results.push(read_source(path).map_err(Arc::new).map(|source| {
                let digest = Digest::of(&source);
                let slot = slots.entry(digest).or_insert_with(|| {
                    let slot = Slot::default();
                    work.push((slot.clone(), position, digest, source));
                    slot
                });
                slot.clone()
            }));
        }
        let next = AtomicUsize::new(0);
        let cores = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            for _ in 0..cores.min(work.len()) {
                scope.spawn(|| {
                    while let Some((slot, position, digest, source)) =
                        work.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        let announce = || before_compiling(*position, source.len());
                        let loaded = self.load_with_digest(source, *digest, announce).map_err(Arc::new);
                        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(loaded);
                    }
                });
            }
        });
        results
            .into_iter()
            .map(|slot| {
                let slot = slot?;
                let loaded = slot.lock().unwrap_or_else(PoisonError::into_inner).clone();
                loaded.unwrap_or_else(|| {
                    Err(Arc::new(Error::Compile { message: "the compiler stopped unexpectedly".into() }))
                })
            })
            .collect()
    }
}

fn read_source(path: &Path) -> Result<Vec<u8>, Error> {
    let read_error = |cause| Error::Read { path: path.to_owned(), cause };
    let size_bytes = fs::metadata(path).map_err(read_error)?.len();
    if size_bytes > MAX_SOURCE_BYTES {
        return Err(Error::TooLarge { path: path.to_owned(), size_bytes, max_bytes: MAX_SOURCE_BYTES });
    }
    fs::read(path).map_err(read_error)
}

/// Tells invalid input from a failure of the compiler.
fn explain_failure(component: &[u8], error: &wasmtime::Error) -> Error {
    let mut validator = wasmparser::Validator::new_with_features(wasmparser::WasmFeatures::all());
    match validator.validate_all(component) {
        Err(invalid) => Error::Invalid { message: invalid.to_string() },
        Ok(_) => Error::Compile { message: format!("{error:#}") },
    }
}

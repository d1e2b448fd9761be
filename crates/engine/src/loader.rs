//! From source bytes to a component that can be instantiated.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs::File,
    io::Read as _,
    ops::Deref,
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
    Digest, EngineConfig, Error, FileIdentity, Flavor, ImageStore, MappedImage, MappedTotals, Pulse, compile,
    cores::cores_count,
    debugger::Registration,
    epoch::EpochTicker,
    image_store::{Image, Mapped},
    images::MappedImages,
    memory::{
        MemoryImage, MemoryPools,
        snapshot::{self, Contents, LARGE_CONTENTS_BYTES},
    },
    normalize::{self, Normalized},
    rewind,
};

/// Loads components, for all flavors, with one store of compiled images.
#[derive(Clone)]
pub struct Engine {
    flavors: [wasmtime::Engine; Flavor::ALL.len()],
    images: Option<ImageStore>,
    mapped: Arc<MappedImages>,
    memories: Arc<MemoryPools>,
    ticker: Arc<EpochTicker>,
    max_source_bytes: u64,
    max_compile_time: Duration,
    /// Whether debuggers are told about images.
    has_debug_info: bool,
}

/// A component that is ready to be linked.
#[derive(Clone, Debug)]
pub struct LoadedComponent {
    /// Its image, which others may use as well.
    pub image: Arc<MappedImage>,
    /// Where its native code came from.
    pub origin: Origin,
    /// The file that it was loaded from, if it was one.
    pub source: Option<FileIdentity>,
}

/// Where a component's native code came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Mapped from the store.
    Mapped,
    /// Compiled just now, in this time.
    Compiled(Duration),
}

impl Deref for LoadedComponent {
    type Target = MappedImage;

    fn deref(&self) -> &MappedImage {
        &self.image
    }
}

/// A source of which at least the digest is known.
struct Known {
    digest: Digest,
    identity: Option<FileIdentity>,
    /// Its bytes, if they had to be read.
    bytes: Option<Vec<u8>>,
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
        let memories = MemoryPools::new(config.rewinds);
        let ticker = EpochTicker::start(flavors.to_vec(), memories.clone())
            .map_err(|cause| Error::Configuration { cause: cause.into() })?;
        Ok(Self {
            flavors,
            images,
            mapped: Arc::default(),
            memories,
            ticker,
            max_source_bytes: config.max_source_bytes,
            max_compile_time: config.max_compile_time,
            has_debug_info: config.debug_info,
        })
    }

    /// The Wasmtime engine of a flavor, to make linkers and stores with.
    pub fn wasmtime(&self, flavor: Flavor) -> &wasmtime::Engine {
        &self.flavors[flavor as usize]
    }

    /// What is mapped at the moment.
    pub fn mapped(&self) -> MappedTotals {
        self.mapped.totals()
    }

    /// Where whoever runs guests says so: it keeps the clock that preempts them awake.
    pub fn pulse(&self) -> &Pulse {
        self.ticker.pulse()
    }

    /// Loads a component from the bytes of its source. Blocks while compiling.
    ///
    /// # Errors
    /// By the step that failed: not WebAssembly, invalid, cannot be adapted, does
    /// not compile, cannot be stored.
    pub fn load(&self, source: &[u8]) -> Result<LoadedComponent, Error> {
        self.load_with_digest(source, Digest::of(source), || {})
    }

    /// Loads a component from a file, if that takes neither reading it nor verifying
    /// an image nor compiling: the file and the image are those that were read and
    /// verified before. Takes some 100 microseconds. `None` says nothing more than that
    /// [`Engine::load_file`] has to be called, where blocking does no harm.
    pub fn load_known(&self, path: &Path) -> Option<LoadedComponent> {
        let images = self.images.as_ref()?;
        let identity = FileIdentity::at(path).ok()?;
        let digest = images.sources().digest(&identity)?;
        let image = match self.mapped.get(&digest) {
            Some(image) => image,
            None => {
                let flavor = images.verified_flavor(&digest)?;
                let mapped = images.load_verified(&digest, self.wasmtime(flavor), flavor)?;
                self.insert(mapped, flavor, digest)
            }
        };
        Some(LoadedComponent { image, origin: Origin::Mapped, source: Some(identity) })
    }

    /// Loads a component from a file. Blocks while reading, verifying, compiling.
    ///
    /// # Errors
    /// As [`Engine::load`], and [`Error::Read`] or [`Error::TooLarge`].
    pub fn load_file(&self, path: &Path) -> Result<LoadedComponent, Error> {
        let known = self.know(path)?;
        self.load_source(path, &known, |_| {})
    }

    /// Finds the digest of a file's content, by reading it if need be.
    fn know(&self, path: &Path) -> Result<Known, Error> {
        if let Some(images) = &self.images
            && let Ok(identity) = FileIdentity::at(path)
            && let Some(digest) = images.sources().digest(&identity)
        {
            return Ok(Known { digest, identity: Some(identity), bytes: None });
        }
        self.read(path)
    }

    fn read(&self, path: &Path) -> Result<Known, Error> {
        let (identity, is_settled, bytes) = read_source(path, self.max_source_bytes)?;
        let digest = Digest::of(&bytes);
        if let (Some(images), true) = (&self.images, is_settled) {
            images.sources().insert(&identity, digest);
        }
        Ok(Known { digest, identity: Some(identity), bytes: Some(bytes) })
    }

    fn load_source(
        &self,
        path: &Path,
        known: &Known,
        before_compiling: impl FnOnce(usize),
    ) -> Result<LoadedComponent, Error> {
        let mut loaded = match &known.bytes {
            Some(bytes) => self.load_with_digest(bytes, known.digest, || before_compiling(bytes.len()))?,
            None => match self.mapped.alone(known.digest, || self.load_image(known.digest)) {
                Some(loaded) => loaded,
                None => {
                    let Known { digest, identity, bytes } = self.read(path)?;
                    let bytes = bytes.unwrap_or_default();
                    let loaded = self.load_with_digest(&bytes, digest, || before_compiling(bytes.len()))?;
                    return Ok(LoadedComponent { source: identity, ..loaded });
                }
            },
        };
        loaded.source = known.identity;
        Ok(loaded)
    }

    fn load_with_digest(
        &self,
        source: &[u8],
        digest: Digest,
        before_compiling: impl FnOnce(),
    ) -> Result<LoadedComponent, Error> {
        self.mapped.alone(digest, || {
            if let Some(loaded) = self.load_image(digest) {
                return Ok(loaded);
            }
            if self.images.as_ref().is_some_and(ImageStore::is_signed) {
                return Err(Error::Unsigned { reason: "it has to be compiled first".into() });
            }
            before_compiling();
            self.compile(source, digest)
        })
    }

    fn compile(&self, source: &[u8], digest: Digest) -> Result<LoadedComponent, Error> {
        let started = std::time::Instant::now();
        let (flavor, can_rewind, code, contents) = {
            let (source, engines) = (source.to_vec(), self.flavors.clone());
            let is_debugged = self.has_debug_info;
            compile::compile(self.max_compile_time, move || {
                let normalized = normalize::normalize(&source)?;
                let Prepared { flavor, component, contents, can_rewind } =
                    if is_debugged { Prepared::as_it_is(normalized) } else { prepare(normalized)? };
                let code = engines[flavor as usize]
                    .precompile_component(&component)
                    .map_err(|error| explain_failure(&component, &error))?;
                Ok((flavor, can_rewind, code, contents))
            })?
        };
        let engine = self.wasmtime(flavor);
        let image = Image { code: &code, contents: contents.as_ref(), can_rewind };
        let loaded = |mapped| LoadedComponent {
            image: self.insert(mapped, flavor, digest),
            origin: Origin::Compiled(started.elapsed()),
            source: None,
        };
        if let Some(images) = &self.images {
            images.insert(&digest, engine, flavor, &image)?;
            if let Some(mapped) = images.load(&digest, engine, flavor) {
                return Ok(loaded(mapped));
            }
        }
        let image_bytes = (code.len() + contents.as_ref().map_or(0, |contents| contents.bytes.len())) as u64;
        let memory = contents
            .as_ref()
            .map(|contents| Ok((MemoryImage::copy(&contents.bytes, contents.address)?, can_rewind)))
            .transpose()
            .map_err(|cause: std::io::Error| Error::Configuration { cause: cause.into() })?;
        // SAFETY: these bytes come from this very engine's compiler.
        let component = unsafe { Component::deserialize(engine, code) }
            .map_err(|error| Error::Compile { message: format!("{error:#}") })?;
        Ok(loaded(Mapped { component, memory, image_bytes }))
    }

    /// An image that is mapped already, or is in the store and sound.
    fn load_image(&self, digest: Digest) -> Option<LoadedComponent> {
        let loaded = |image| LoadedComponent { image, origin: Origin::Mapped, source: None };
        if let Some(image) = self.mapped.get(&digest) {
            return Some(loaded(image));
        }
        let images = self.images.as_ref()?;
        Flavor::ALL.into_iter().find_map(|flavor| {
            let mapped = images.load(&digest, self.wasmtime(flavor), flavor)?;
            Some(loaded(self.insert(mapped, flavor, digest)))
        })
    }

    fn insert(&self, mapped: Mapped, flavor: Flavor, digest: Digest) -> Arc<MappedImage> {
        let memory = mapped.memory.map(|(image, can_rewind)| self.memories.pool(image, can_rewind));
        let registration = self.has_debug_info.then(|| Registration::of(&mapped.component)).flatten();
        self.mapped.insert(mapped.component, (memory, registration), flavor, digest, mapped.image_bytes)
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
        let mut work: Vec<(Slot, usize, Known)> = Vec::new();
        let mut results: Vec<Result<Slot, Arc<Error>>> = Vec::with_capacity(paths.len());
        for (position, path) in paths.iter().enumerate() {
            results.push(self.know(path).map_err(Arc::new).map(|known| {
                let slot = slots.entry(known.digest).or_insert_with(|| {
                    let slot = Slot::default();
                    work.push((slot.clone(), position, known));
                    slot
                });
                slot.clone()
            }));
        }
        let next = AtomicUsize::new(0);
        let cores = cores_count();
        thread::scope(|scope| {
            for _ in 0..cores.min(work.len()) {
                scope.spawn(|| {
                    while let Some((slot, position, known)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let announce = |size_bytes| before_compiling(*position, size_bytes);
                        let loaded = self.load_source(&paths[*position], known, announce).map_err(Arc::new);
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

/// Compiles a source into an image in a folder, for a process that does nothing else:
/// what that process takes can be bounded from outside. Returns the image's path, which
/// begins with the digest of what was read. `config` is the one of the engine that will
/// map the image, but for the number of instances.
///
/// # Errors
/// As [`Engine::load_file`].
pub fn compile_file(config: &EngineConfig, source: &Path, folder: &Path) -> Result<PathBuf, Error> {
    let config = EngineConfig { max_instances_count: 1, ..config.clone() };
    let images = ImageStore::open(folder)?;
    let engine = Engine::new(&config, Some(images.clone()))?;
    let loaded = engine.load_file(source)?;
    Ok(images.path(&loaded.digest, engine.wasmtime(loaded.flavor), loaded.flavor))
}

/// A component as it will be compiled.
struct Prepared<'source> {
    flavor: Flavor,
    component: Cow<'source, [u8]>,
    /// What its memory begins with, if our own pool will provide that.
    contents: Option<Contents>,
    can_rewind: bool,
}

impl<'source> Prepared<'source> {
    /// With every byte of code where the debug information says.
    fn as_it_is(Normalized { component, flavor }: Normalized<'source>) -> Self {
        Self { flavor, component, contents: None, can_rewind: false }
    }
}

/// Decides where a component's memory will come from, and whether its instances will
/// be rewound.
fn prepare(normalized: Normalized<'_>) -> Result<Prepared<'_>, Error> {
    let Normalized { component, flavor } = normalized;
    if let Some(extracted) = snapshot::extract(&component)? {
        let contents = Some(extracted.contents);
        if let Some(component) = rewind::prepare(&extracted.component)? {
            let flavor = flavor.with_snapshot();
            return Ok(Prepared { flavor, component: component.into(), contents, can_rewind: true });
        }
        if extracted.data_bytes >= LARGE_CONTENTS_BYTES {
            let (flavor, component) = (flavor.with_snapshot(), extracted.component.into());
            return Ok(Prepared { flavor, component, contents, can_rewind: false });
        }
    }
    Ok(Prepared { flavor, component, contents: None, can_rewind: false })
}

/// Reads a source, and says which file it was before it was read, and whether that
/// identity can be relied upon.
fn read_source(path: &Path, max_bytes: u64) -> Result<(FileIdentity, bool, Vec<u8>), Error> {
    let read_error = |cause| Error::Read { path: path.to_owned(), cause };
    let mut file = File::open(path).map_err(read_error)?;
    let identity = FileIdentity::of(&file).map_err(read_error)?;
    let is_settled = identity.is_settled();
    let size_bytes = identity.size_bytes();
    if size_bytes > max_bytes {
        return Err(Error::TooLarge { path: path.to_owned(), size_bytes, max_bytes });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size_bytes).unwrap_or(0));
    file.read_to_end(&mut bytes).map_err(read_error)?;
    Ok((identity, is_settled, bytes))
}

/// Tells invalid input from a failure of the compiler.
fn explain_failure(component: &[u8], error: &wasmtime::Error) -> Error {
    let mut validator = wasmparser::Validator::new_with_features(wasmparser::WasmFeatures::all());
    match validator.validate_all(component) {
        Err(invalid) => Error::Invalid { message: invalid.to_string() },
        Ok(_) => Error::Compile { message: format!("{error:#}") },
    }
}

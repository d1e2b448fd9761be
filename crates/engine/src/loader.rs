//! From source bytes to a component that can be instantiated.

use std::{
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
    time::{Duration, Instant},
};

use wasmtime::component::Component;

use crate::{
    Digest, EngineConfig, Error, FileIdentity, Flavor, ImageStore, MappedImage, MappedTotals, Pulse,
    code::Beginning,
    compile,
    debugger::Registration,
    epoch::EpochTicker,
    image_store::{Found, FoundCode, Image, ImageCode, SharedCode},
    images::{MappedCode, MappedImages, Parts},
    memory::{MemoryImage, MemoryPools, snapshot::Contents},
    split::{Compiled, Split},
    threads::cores_count,
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
    /// The code was compiled before, for a component that begins with something else.
    /// To find that out, and to store what this one begins with, took this time.
    Shared(Duration),
    /// Compiled just now, in this time.
    Compiled(Duration),
}

impl Deref for LoadedComponent {
    type Target = MappedImage;

    fn deref(&self) -> &MappedImage {
        &self.image
    }
}

/// An image that was just made.
struct Made {
    flavor: Flavor,
    code: MadeCode,
    contents: Option<Contents>,
    can_rewind: bool,
    origin: Origin,
}

enum MadeCode {
    Own(Vec<u8>),
    Shared(EnsuredCode),
}

/// Code that images share, and what an image has to say that refers to it.
struct EnsuredCode {
    digest: Digest,
    beginning: Arc<Beginning>,
    /// Not if another store lends it.
    mapped: Option<Arc<MappedCode>>,
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
                let engine = self.wasmtime(flavor);
                let found = images.load_verified(&digest, engine, flavor)?;
                self.insert(found, flavor, digest, |code| {
                    self.code(code, flavor, || images.load_verified_code(code, engine, flavor))
                })?
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
            self.compile(source, digest, before_compiling)
        })
    }

    /// Makes an image, and loads it.
    fn compile(
        &self,
        source: &[u8],
        digest: Digest,
        before_compiling: impl FnOnce(),
    ) -> Result<LoadedComponent, Error> {
        let made = self.make(source, digest, before_compiling)?;
        let (flavor, origin) = (made.flavor, made.origin);
        let found = self.images.as_ref().and_then(|images| {
            let found = images.load(&digest, self.wasmtime(flavor), flavor)?;
            self.insert(found, flavor, digest, |code| self.find_code(code, flavor))
        });
        let image = found.map_or_else(|| self.keep(made, digest), Ok)?;
        Ok(LoadedComponent { image, origin, source: None })
    }

    /// Makes an image of a source, and puts it into the store if there is one. Code that
    /// is there already is not compiled again.
    fn make(&self, source: &[u8], digest: Digest, before_compiling: impl FnOnce()) -> Result<Made, Error> {
        let started = Instant::now();
        let (source, is_debugged) = (source.to_vec(), self.has_debug_info);
        let split = compile::beside(self.max_compile_time, move || Split::of(source, is_debugged))?;
        let mut made = match split.shares_code() {
            true => self.make_sharing(split, before_compiling)?,
            false => {
                before_compiling();
                let Compiled { flavor, code, contents, can_rewind, .. } = self.compile_split(split)?;
                let origin = Origin::Compiled(Duration::ZERO);
                Made { flavor, code: MadeCode::Own(code), contents, can_rewind, origin }
            }
        };
        if let Some(images) = &self.images {
            let (code, beginning) = match &made.code {
                MadeCode::Own(code) => (ImageCode::Here(code), None),
                MadeCode::Shared(code) => (ImageCode::Shared(code.digest), Some(&code.beginning)),
            };
            let contents = made.contents.as_ref();
            let image = Image { code, contents, beginning, can_rewind: made.can_rewind };
            images.insert(&digest, self.wasmtime(made.flavor), made.flavor, &image)?;
        }
        if let Origin::Shared(time) | Origin::Compiled(time) = &mut made.origin {
            *time = started.elapsed();
        }
        Ok(made)
    }

    /// The same for a component that may share its code with others.
    fn make_sharing(&self, split: Split, before_compiling: impl FnOnce()) -> Result<Made, Error> {
        let Some(first) = split.candidate()? else {
            return Err(Error::Compile { message: "there is nothing to compile".into() });
        };
        self.mapped.alone_with_code(first.digest, || {
            let flavor = split.flavor.with_snapshot();
            let mut next = Some(first);
            while let Some(candidate) = next {
                let mapped = self.find_code(&candidate.digest, flavor);
                let can_rewind = match &mapped {
                    Some(code) => Some(code.can_rewind),
                    None => self.images.as_ref().and_then(|images| {
                        images.lent_code(&candidate.digest, self.wasmtime(flavor), flavor)
                    }),
                };
                if let Some(can_rewind) = can_rewind {
                    let (digest, beginning) = (candidate.digest, candidate.beginning);
                    let code = MadeCode::Shared(EnsuredCode { digest, beginning, mapped });
                    let (contents, origin) = (split.into_contents(), Origin::Shared(Duration::ZERO));
                    return Ok(Made { flavor, code, contents, can_rewind, origin });
                }
                next = split.candidate_after(&candidate)?;
            }
            before_compiling();
            let Compiled { flavor, code, contents, can_rewind, shared } = self.compile_split(split)?;
            let origin = Origin::Compiled(Duration::ZERO);
            let code = match shared {
                None => MadeCode::Own(code),
                Some((digest, beginning)) => {
                    let mapped = Some(self.keep_code(code, can_rewind, digest, flavor)?);
                    MadeCode::Shared(EnsuredCode { digest, beginning, mapped })
                }
            };
            Ok(Made { flavor, code, contents, can_rewind, origin })
        })
    }

    fn compile_split(&self, split: Split) -> Result<Compiled, Error> {
        let engines = self.flavors.clone();
        compile::compile(self.max_compile_time, move || {
            split.compile(|component, flavor| {
                engines[flavor as usize]
                    .precompile_component(component)
                    .map_err(|error| explain_failure(component, &error))
            })
        })
    }

    /// Takes in code that was just compiled for images to share.
    fn keep_code(
        &self,
        code: Vec<u8>,
        can_rewind: bool,
        digest: Digest,
        flavor: Flavor,
    ) -> Result<Arc<MappedCode>, Error> {
        let engine = self.wasmtime(flavor);
        if let Some(images) = &self.images {
            let code = ImageCode::Here(&code);
            let image = Image { code, contents: None, beginning: None, can_rewind };
            images.insert_code(&digest, engine, flavor, &image)?;
            if let Some(code) = self.find_code(&digest, flavor) {
                return Ok(code);
            }
        }
        let image_bytes = code.len() as u64;
        let component = deserialize(engine, &code)?;
        Ok(self.mapped.insert_code(SharedCode { component, can_rewind, image_bytes }, flavor, digest))
    }

    /// Maps an image that could not be stored.
    fn keep(&self, made: Made, digest: Digest) -> Result<Arc<MappedImage>, Error> {
        let Made { flavor, code, contents, can_rewind, .. } = made;
        let contents_bytes = contents.as_ref().map_or(0, |contents| contents.bytes.len() as u64);
        let (component, code, beginning, code_bytes) = match code {
            MadeCode::Own(code) => {
                (deserialize(self.wasmtime(flavor), &code)?, None, None, code.len() as u64)
            }
            MadeCode::Shared(EnsuredCode { mapped: Some(code), beginning, .. }) => {
                (code.component.clone(), Some(code), Some(beginning), 0)
            }
            MadeCode::Shared(_) => {
                return Err(Error::Compile { message: "its code is in another store".into() });
            }
        };
        let memory = contents
            .map(|contents| MemoryImage::copy(&contents.bytes, contents.address, beginning))
            .transpose()
            .map_err(|cause| Error::Configuration { cause: cause.into() })?
            .map(|image| self.memories.pool(image, can_rewind));
        let registration = self.has_debug_info.then(|| Registration::of(&component)).flatten();
        let image_bytes = code_bytes + contents_bytes;
        let parts = Parts { component, code, memory, registration, image_bytes };
        Ok(self.mapped.insert(parts, flavor, digest))
    }

    /// An image that is mapped already, or is in the store and sound.
    fn load_image(&self, digest: Digest) -> Option<LoadedComponent> {
        let loaded = |image| LoadedComponent { image, origin: Origin::Mapped, source: None };
        if let Some(image) = self.mapped.get(&digest) {
            return Some(loaded(image));
        }
        let images = self.images.as_ref()?;
        Flavor::ALL.into_iter().find_map(|flavor| {
            let found = images.load(&digest, self.wasmtime(flavor), flavor)?;
            Some(loaded(self.insert(found, flavor, digest, |code| self.find_code(code, flavor))?))
        })
    }

    /// Code that is mapped already, or is in the store and sound.
    fn find_code(&self, digest: &Digest, flavor: Flavor) -> Option<Arc<MappedCode>> {
        self.code(digest, flavor, || self.images.as_ref()?.load_code(digest, self.wasmtime(flavor), flavor))
    }

    fn code(
        &self,
        digest: &Digest,
        flavor: Flavor,
        load: impl FnOnce() -> Option<SharedCode>,
    ) -> Option<Arc<MappedCode>> {
        let mapped = self.mapped.code(digest, flavor);
        mapped.or_else(|| Some(self.mapped.insert_code(load()?, flavor, *digest)))
    }

    /// Takes in an image that was found; `None` if its code is not.
    fn insert(
        &self,
        found: Found,
        flavor: Flavor,
        digest: Digest,
        find_code: impl FnOnce(&Digest) -> Option<Arc<MappedCode>>,
    ) -> Option<Arc<MappedImage>> {
        let Found { code, memory, image_bytes } = found;
        let (component, code) = match code {
            FoundCode::Own(component) => (component, None),
            FoundCode::Shared(digest) => {
                let code = find_code(&digest)?;
                (code.component.clone(), Some(code))
            }
        };
        let memory = memory.map(|(image, can_rewind)| self.memories.pool(image, can_rewind));
        let registration = self.has_debug_info.then(|| Registration::of(&component)).flatten();
        let parts = Parts { component, code, memory, registration, image_bytes };
        Some(self.mapped.insert(parts, flavor, digest))
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
/// map the image, but for the number of instances. If `lender`, another store's folder,
/// has the code that the image needs, the image refers to that; else it is beside it.
///
/// # Errors
/// As [`Engine::load_file`].
pub fn compile_file(
    config: &EngineConfig,
    source: &Path,
    folder: &Path,
    lender: Option<&Path>,
) -> Result<PathBuf, Error> {
    let config = EngineConfig { max_instances_count: 1, ..config.clone() };
    let images = ImageStore::open(folder)?.borrowing(lender);
    let engine = Engine::new(&config, Some(images.clone()))?;
    let (_, _, bytes) = read_source(source, config.max_source_bytes)?;
    let digest = Digest::of(&bytes);
    let flavor = engine.make(&bytes, digest, || {})?.flavor;
    Ok(images.path(&digest, engine.wasmtime(flavor), flavor))
}

/// Code that lies in no file.
fn deserialize(engine: &wasmtime::Engine, code: &[u8]) -> Result<Component, Error> {
    // SAFETY: these bytes come from this very engine's compiler.
    unsafe { Component::deserialize(engine, code) }
        .map_err(|error| Error::Compile { message: format!("{error:#}") })
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

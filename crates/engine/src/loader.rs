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
    Compiler, Digest, EngineConfig, EngineKind, Error, FileIdentity, Flavor, ImageStore, MappedImage,
    MappedTotals, Pulse, Tier,
    code::{Beginning, LEAST_SHARED_BYTES},
    compile::{self, Begun, Urgency},
    debugger::Registration,
    engines::Engines,
    epoch::EpochTicker,
    image_store::{Found, FoundCode, Image, ImageCode, SharedCode},
    images::{MappedCode, MappedImages, Parts},
    memory::{MemoryImage, MemoryPools, snapshot::Contents},
    split::Split,
    threads::{self, cores_count},
};

/// Loads components, for all flavors, with one store of compiled images.
#[derive(Clone)]
pub struct Engine {
    engines: Arc<Engines>,
    compiler: Compiler,
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
    kind: EngineKind,
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
    /// Its content, if it had to be read.
    source: Option<Source>,
}

/// The content of a source. It is given away once, so that its memory is free as soon as
/// possible: others need it.
struct Source {
    size_bytes: usize,
    content: Mutex<Option<Content>>,
}

enum Content {
    Bytes(Arc<Vec<u8>>),
    /// Taking it apart was begun before it was known whether that is needed.
    Begun(Begun<Split>),
}

/// How an image is to be made.
#[derive(Clone, Copy)]
enum Wanted {
    /// In the tier that the configuration says: somebody waits for it.
    Soon,
    /// Optimized, while others are served.
    Optimized,
}

impl Source {
    fn new(size_bytes: usize, content: Content) -> Self {
        Self { size_bytes, content: Mutex::new(Some(content)) }
    }

    fn take(&self) -> Option<Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Wanted {
    fn urgency(self) -> Urgency {
        match self {
            Self::Soon => Urgency::Awaited,
            Self::Optimized => Urgency::Background,
        }
    }
}

impl Engine {
    /// Starts the engine. Without a store, components are compiled at every load.
    ///
    /// # Errors
    /// [`Error::Configuration`] if the operating system refuses the address space
    /// of the pool or the thread that preempts guests.
    pub fn new(config: &EngineConfig, images: Option<ImageStore>) -> Result<Self, Error> {
        let engines = Arc::new(Engines::new(config)?);
        let memories = MemoryPools::new(config.rewinds);
        let ticker = EpochTicker::start(engines.clone(), memories.clone())
            .map_err(|cause| Error::Configuration { cause: cause.into() })?;
        Ok(Self {
            engines,
            compiler: config.compiler(),
            images,
            mapped: Arc::default(),
            memories,
            ticker,
            max_source_bytes: config.max_source_bytes,
            max_compile_time: config.max_compile_time,
            has_debug_info: config.debug_info,
        })
    }

    /// The Wasmtime engine of a flavor for optimized code, to make linkers and stores with.
    /// A component that was loaded knows its own.
    pub fn wasmtime(&self, flavor: Flavor) -> &wasmtime::Engine {
        self.engines.optimized(flavor)
    }

    pub(crate) fn engines(&self) -> &Engines {
        &self.engines
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
        let digest = Digest::of(source);
        let source = Source::new(source.len(), Content::Bytes(Arc::new(source.to_vec())));
        self.load_with_digest(&source, digest, || {})
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
                let kind = images.verified_kind(&digest)?;
                if !self.compiler.tiers().contains(&kind.tier) {
                    return None;
                }
                let found = images.load_verified(&digest, &self.engines, kind)?;
                self.insert(found, kind, digest, |code| {
                    self.code(code, kind, || images.load_verified_code(code, &self.engines, kind))
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

    /// Loads a component with optimized code that was loaded from a file with code of the
    /// baseline tier. If there is no such code, it is compiled: behind what is compiled
    /// because somebody waits for it, who is not kept from it. The baseline code is removed
    /// from the store; who has it mapped keeps it. `None` if the file was changed since.
    ///
    /// # Errors
    /// As [`Engine::load_file`].
    pub fn optimize(&self, path: &Path, digest: &Digest) -> Result<Option<LoadedComponent>, Error> {
        let known = self.know(path)?;
        if known.digest != *digest {
            return Ok(None);
        }
        let optimized = self.mapped.alone(*digest, Tier::Optimized, || {
            if let Some(loaded) = self.load_image(*digest, &[Tier::Optimized]) {
                return Ok(Some(loaded));
            }
            let (source, read) = match known.source {
                Some(source) => (source, known.digest),
                None => self.read(path).map(|(source, known)| (source, known.digest))?,
            };
            if read != *digest {
                return Ok(None);
            }
            self.compile(&source, read, Wanted::Optimized, || {}).map(Some)
        })?;
        if let (Some(images), Some(optimized)) = (&self.images, &optimized) {
            images.remove_baseline(digest, &self.engines, optimized.kind.flavor);
        }
        Ok(optimized)
    }

    /// Finds the digest of a file's content, by reading it if need be.
    fn know(&self, path: &Path) -> Result<Known, Error> {
        if let Some(images) = &self.images
            && let Ok(identity) = FileIdentity::at(path)
            && let Some(digest) = images.sources().digest(&identity)
        {
            return Ok(Known { digest, identity: Some(identity), source: None });
        }
        let (source, known) = self.read(path)?;
        Ok(Known { source: Some(source), ..known })
    }

    fn read(&self, path: &Path) -> Result<(Source, Known), Error> {
        let (identity, is_settled, bytes) = read_source(path, self.max_source_bytes)?;
        let bytes = Arc::new(bytes);
        // A person waits. That there is an image of what was never read is rare.
        let content = if self.compiler == Compiler::Tiered && bytes.len() >= LEAST_SHARED_BYTES {
            Content::Begun(self.take_apart(bytes.clone())?)
        } else {
            Content::Bytes(bytes.clone())
        };
        let (source, digest) = (Source::new(bytes.len(), content), Digest::of(&bytes));
        if let (Some(images), true) = (&self.images, is_settled) {
            images.sources().insert(&identity, digest);
        }
        Ok((source, Known { digest, identity: Some(identity), source: None }))
    }

    fn take_apart(&self, source: Arc<Vec<u8>>) -> Result<Begun<Split>, Error> {
        let is_debugged = self.has_debug_info;
        compile::beside(move || Split::of(source, is_debugged))
    }

    fn load_source(
        &self,
        path: &Path,
        known: &Known,
        before_compiling: impl FnOnce(usize),
    ) -> Result<LoadedComponent, Error> {
        let load = |source: &Source, digest| {
            self.load_with_digest(source, digest, || before_compiling(source.size_bytes))
        };
        let (loaded, identity) = match &known.source {
            Some(source) => (load(source, known.digest)?, known.identity),
            None => match self.load_alone(known.digest) {
                Some(loaded) => (loaded, known.identity),
                None => {
                    let (source, Known { digest, identity, .. }) = self.read(path)?;
                    (load(&source, digest)?, identity)
                }
            },
        };
        Ok(LoadedComponent { source: identity, ..loaded })
    }

    /// An image that is there.
    fn load_alone(&self, digest: Digest) -> Option<LoadedComponent> {
        let tiers = self.compiler.tiers();
        self.mapped.alone(digest, self.turn(), || self.load_image(digest, tiers))
    }

    /// Whoever loads a component takes a turn with those who make it, except with who
    /// optimizes it.
    fn turn(&self) -> Tier {
        self.compiler.tier(true)
    }

    fn load_with_digest(
        &self,
        source: &Source,
        digest: Digest,
        before_compiling: impl FnOnce(),
    ) -> Result<LoadedComponent, Error> {
        self.mapped.alone(digest, self.turn(), || {
            if let Some(loaded) = self.load_image(digest, self.compiler.tiers()) {
                return Ok(loaded);
            }
            if self.images.as_ref().is_some_and(ImageStore::is_signed) {
                return Err(Error::Unsigned { reason: "it has to be compiled first".into() });
            }
            self.compile(source, digest, Wanted::Soon, before_compiling)
        })
    }

    /// Makes an image, and loads it.
    fn compile(
        &self,
        source: &Source,
        digest: Digest,
        wanted: Wanted,
        before_compiling: impl FnOnce(),
    ) -> Result<LoadedComponent, Error> {
        let made = self.make(source, digest, wanted, before_compiling)?;
        let (kind, origin) = (made.kind, made.origin);
        let found = self.images.as_ref().and_then(|images| {
            let found = images.load(&digest, &self.engines, kind)?;
            self.insert(found, kind, digest, |code| self.find_code(code, kind))
        });
        let image = found.map_or_else(|| self.keep(made, digest), Ok)?;
        Ok(LoadedComponent { image, origin, source: None })
    }

    /// Makes an image of a source, and puts it into the store if there is one. Code that
    /// is there already is not compiled again.
    fn make(
        &self,
        source: &Source,
        digest: Digest,
        wanted: Wanted,
        before_compiling: impl FnOnce(),
    ) -> Result<Made, Error> {
        let started = Instant::now();
        let begun = match source.take() {
            Some(Content::Begun(begun)) => begun,
            Some(Content::Bytes(bytes)) => self.take_apart(bytes)?,
            None => return Err(Error::Compile { message: "it was compiled already".into() }),
        };
        let mut split = begun.wait(self.max_compile_time)?;
        let mut made = match split.shared.take() {
            Some((code, beginning)) => {
                self.make_sharing(digest, split, code, beginning, wanted, before_compiling)?
            }
            None => {
                before_compiling();
                let (code, kind) = self.compile_split(&split, wanted)?;
                let Split { contents, can_rewind, .. } = split;
                let (code, origin) = (MadeCode::Own(code), Origin::Compiled(Duration::ZERO));
                let made = Made { kind, code, contents, can_rewind, origin };
                self.store(&digest, &made)?;
                made
            }
        };
        if let Origin::Shared(time) | Origin::Compiled(time) = &mut made.origin {
            *time = started.elapsed();
        }
        Ok(made)
    }

    /// The same for a component that may share its code with others: what that is found
    /// by, and what the component begins with.
    fn make_sharing(
        &self,
        source: Digest,
        split: Split,
        digest: Digest,
        beginning: Arc<Beginning>,
        wanted: Wanted,
        before_compiling: impl FnOnce(),
    ) -> Result<Made, Error> {
        let (turn, tiers) = match wanted {
            Wanted::Soon => (self.turn(), self.compiler.tiers()),
            Wanted::Optimized => (Tier::Optimized, [Tier::Optimized].as_slice()),
        };
        let made = |kind, contents, can_rewind, mapped, origin| Made {
            kind,
            code: MadeCode::Shared(EnsuredCode { digest, beginning, mapped }),
            contents,
            can_rewind,
            origin,
        };
        self.mapped.alone_with_code(digest, turn, || {
            for kind in tiers.iter().map(|tier| EngineKind { flavor: split.flavor, tier: *tier }) {
                let mapped = self.find_code(&digest, kind);
                let lent =
                    || self.images.as_ref().and_then(|images| images.lent_code(&digest, &self.engines, kind));
                let can_rewind = mapped.as_ref().map_or_else(lent, |code| Some(code.can_rewind));
                if let Some(can_rewind) = can_rewind {
                    let origin = Origin::Shared(Duration::ZERO);
                    let made = made(kind, split.contents, can_rewind, mapped, origin);
                    self.store(&source, &made)?;
                    return Ok(made);
                }
            }
            before_compiling();
            let (code, kind) = self.compile_split(&split, wanted)?;
            let Split { contents, can_rewind, .. } = split;
            let mut made = made(kind, contents, can_rewind, None, Origin::Compiled(Duration::ZERO));
            // Most of the time is writing both.
            let (stored, mapped) = threads::both(
                || self.store(&source, &made),
                || self.keep_code(code, can_rewind, digest, kind),
            );
            stored?;
            if let MadeCode::Shared(code) = &mut made.code {
                code.mapped = Some(mapped?);
            }
            Ok(made)
        })
    }

    /// Puts an image into the store if there is one.
    fn store(&self, source: &Digest, made: &Made) -> Result<(), Error> {
        let Some(images) = &self.images else { return Ok(()) };
        let (code, beginning) = match &made.code {
            MadeCode::Own(code) => (ImageCode::Here(code), None),
            MadeCode::Shared(code) => (ImageCode::Shared(code.digest), Some(&code.beginning)),
        };
        let Made { contents, can_rewind, .. } = made;
        let image = Image { code, contents: contents.as_ref(), beginning, can_rewind: *can_rewind };
        images.insert(source, &self.engines, made.kind, &image)
    }

    /// Compiles, and tells for which engine.
    fn compile_split(&self, split: &Split, wanted: Wanted) -> Result<(Vec<u8>, EngineKind), Error> {
        let (component, flavor, engines) = (split.component.clone(), split.flavor, self.engines.clone());
        let tier = match wanted {
            // Baseline code knows no lines.
            Wanted::Soon if !split.has_lines => self.compiler.tier(split.is_large),
            Wanted::Soon | Wanted::Optimized => Tier::Optimized,
        };
        compile::compile(self.max_compile_time, wanted.urgency(), split.is_large, move || {
            if tier == Tier::Baseline {
                let kind = EngineKind { flavor, tier };
                let baseline = engines.get(kind)?;
                match baseline.precompile_component(&component) {
                    Ok(code) => return Ok((code, kind)),
                    // What is wrong with the component, the other compiler says.
                    Err(error) => tracing::debug!("not compiled by the baseline compiler: {error:#}"),
                }
            }
            let code = engines.optimized(flavor).precompile_component(&component);
            let code = code.map_err(|error| explain_failure(&component, &error))?;
            Ok((code, flavor.optimized()))
        })
    }

    /// Takes in code that was just compiled for images to share.
    fn keep_code(
        &self,
        code: Vec<u8>,
        can_rewind: bool,
        digest: Digest,
        kind: EngineKind,
    ) -> Result<Arc<MappedCode>, Error> {
        if let Some(images) = &self.images {
            let code = ImageCode::Here(&code);
            let image = Image { code, contents: None, beginning: None, can_rewind };
            images.insert_code(&digest, &self.engines, kind, &image)?;
            if let Some(code) = self.find_code(&digest, kind) {
                return Ok(code);
            }
        }
        let image_bytes = code.len() as u64;
        let component = deserialize(self.engines.get(kind)?, &code)?;
        Ok(self.mapped.insert_code(SharedCode { component, can_rewind, image_bytes }, kind, digest))
    }

    /// Maps an image that could not be stored.
    fn keep(&self, made: Made, digest: Digest) -> Result<Arc<MappedImage>, Error> {
        let Made { kind, code, contents, can_rewind, .. } = made;
        let contents_bytes = contents.as_ref().map_or(0, |contents| contents.bytes.len() as u64);
        let (component, code, beginning, code_bytes) = match code {
            MadeCode::Own(code) => {
                (deserialize(self.engines.get(kind)?, &code)?, None, None, code.len() as u64)
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
        Ok(self.mapped.insert(parts, kind, digest))
    }

    /// An image of one of these tiers that is mapped already, or is in the store and sound.
    fn load_image(&self, digest: Digest, tiers: &[Tier]) -> Option<LoadedComponent> {
        let loaded = |image| LoadedComponent { image, origin: Origin::Mapped, source: None };
        if let Some(image) = self.mapped.get(&digest).filter(|image| tiers.contains(&image.kind.tier)) {
            return Some(loaded(image));
        }
        let images = self.images.as_ref()?;
        let kinds =
            tiers.iter().flat_map(|tier| Flavor::ALL.map(|flavor| EngineKind { flavor, tier: *tier }));
        kinds.into_iter().find_map(|kind| {
            let found = images.load(&digest, &self.engines, kind)?;
            Some(loaded(self.insert(found, kind, digest, |code| self.find_code(code, kind))?))
        })
    }

    /// Code that is mapped already, or is in the store and sound.
    fn find_code(&self, digest: &Digest, kind: EngineKind) -> Option<Arc<MappedCode>> {
        self.code(digest, kind, || self.images.as_ref()?.load_code(digest, &self.engines, kind))
    }

    fn code(
        &self,
        digest: &Digest,
        kind: EngineKind,
        load: impl FnOnce() -> Option<SharedCode>,
    ) -> Option<Arc<MappedCode>> {
        let mapped = self.mapped.code(digest, kind);
        mapped.or_else(|| Some(self.mapped.insert_code(load()?, kind, *digest)))
    }

    /// Takes in an image that was found; `None` if its code is not.
    fn insert(
        &self,
        found: Found,
        kind: EngineKind,
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
        Some(self.mapped.insert(parts, kind, digest))
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
    let compiler = Compiler::Optimized;
    let config = EngineConfig { max_instances_count: 1, compiler, ..config.clone() };
    let images = ImageStore::open(folder)?.borrowing(lender);
    let engine = Engine::new(&config, Some(images.clone()))?;
    let (source, Known { digest, .. }) = engine.read(source)?;
    let kind = engine.make(&source, digest, Wanted::Soon, || {})?.kind;
    Ok(images.path(&digest, engine.engines(), kind))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::{
        fs,
        task::{Context, Poll, Waker},
    };

    use wasmtime::{
        Store, Trap,
        component::{Instance, Linker},
    };

    use super::*;
    use crate::{InstanceLimits, Limiter, code::LEAST_SHARED_BYTES, preempt};

    /// A component that has no data to be kept apart. What makes it large is a section that
    /// is only copied.
    fn source(padding_bytes: usize, fields: &str) -> Vec<u8> {
        let padding = "x".repeat(padding_bytes);
        wat::parse_str(format!(
            r#"(component
                (@custom "padding" "{padding}")
                (core module $module
                    (memory (export "memory") 1)
                    (table 1 funcref)
                    (func (export "spin") (loop (br 0)))
                    (func $recurse (export "recurse") (call $recurse))
                    (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
                    (func (export "past-the-end") (i32.store (i32.const 65536) (i32.const 1)))
                    ;; Instances of it are not rewound.
                    (func (export "set") (table.set (i32.const 0) (ref.null func)))
                    {fields})
                (core instance $instance (instantiate $module))
                (func (export "spin") (canon lift (core func $instance "spin")))
                (func (export "recurse") (canon lift (core func $instance "recurse")))
                (func (export "grow") (param "pages" u32) (result s32)
                    (canon lift (core func $instance "grow")))
                (func (export "past-the-end") (canon lift (core func $instance "past-the-end"))))"#
        ))
        .unwrap()
    }

    /// Something that Winch does not compile.
    const TAIL_CALL: &str = "(func $called) (func (return_call $called))";

    fn engine(compiler: Compiler, images: Option<&Path>) -> Engine {
        let config = EngineConfig { compiler, pooling: false, ..EngineConfig::default() };
        Engine::new(&config, images.map(|folder| ImageStore::open(folder).unwrap())).unwrap()
    }

    fn tier(engine: &Engine, source: &[u8]) -> Tier {
        engine.load(source).unwrap().kind.tier
    }

    #[test]
    fn what_is_large_or_has_to_be_is_of_the_baseline_tier_if_it_can() {
        let (small, large) = (source(0, ""), source(LEAST_SHARED_BYTES, ""));
        let impossible = source(LEAST_SHARED_BYTES, TAIL_CALL);
        let lines = source(LEAST_SHARED_BYTES, r#"(@custom ".debug_line" "")"#);
        let tiers = |compiler| {
            let engine = engine(compiler, None);
            [&small, &large, &impossible, &lines].map(|source| tier(&engine, source))
        };
        let (optimized, baseline) = (Tier::Optimized, Tier::Baseline);
        assert_eq!(tiers(Compiler::Optimized), [optimized; 4]);
        assert_eq!(tiers(Compiler::Tiered), [optimized, baseline, optimized, optimized]);
        assert_eq!(tiers(Compiler::Baseline), [baseline, baseline, optimized, optimized]);
        let debugged =
            EngineConfig { compiler: Compiler::Baseline, debug_info: true, ..EngineConfig::default() };
        assert_eq!(tier(&Engine::new(&debugged, None).unwrap(), &large), Tier::Optimized);
    }

    #[test]
    fn what_is_invalid_is_so_for_both_compilers() {
        let invalid = b"\0asm\x0d\0\x01\0 and no component";
        let error = engine(Compiler::Baseline, None).load(invalid).unwrap_err();
        assert_eq!(error.code(), engine(Compiler::Optimized, None).load(invalid).unwrap_err().code());
    }

    #[test]
    fn an_image_of_the_baseline_tier_is_found_until_there_is_an_optimized_one() {
        let folder = tempfile::tempdir().unwrap();
        let (path, images) = (folder.path().join("app.wasm"), folder.path().join("images"));
        let files = || {
            let names = fs::read_dir(&images).unwrap().map(|entry| entry.unwrap().file_name());
            let names = names.map(|name| name.into_string().unwrap());
            names.filter(|name| name.ends_with(".cwasm")).collect::<Vec<_>>()
        };
        fs::write(&path, source(LEAST_SHARED_BYTES, "")).unwrap();
        let tiered = || engine(Compiler::Tiered, Some(&images));
        let made = tiered().load_file(&path).unwrap();
        assert!(made.kind.tier == Tier::Baseline && matches!(made.origin, Origin::Compiled(_)));
        assert!(files().iter().all(|name| name.ends_with("-plain-baseline.cwasm")), "{:?}", files());

        let engine = tiered();
        let baseline = engine.load_file(&path).unwrap();
        assert!(baseline.kind.tier == Tier::Baseline && matches!(baseline.origin, Origin::Mapped));
        let optimized = engine.optimize(&path, &baseline.digest).unwrap().unwrap();
        assert!(optimized.kind.tier == Tier::Optimized && matches!(optimized.origin, Origin::Compiled(_)));
        assert_eq!(files().len(), 1, "{:?}", files());

        // Whoever loads it from now on, while the first one is still used, and after.
        assert_eq!(engine.load_file(&path).unwrap().kind.tier, Tier::Optimized);
        drop(baseline);
        let again = engine.optimize(&path, &optimized.digest).unwrap().unwrap();
        assert!(Arc::ptr_eq(&again.image, &optimized.image));
        for compiler in [Compiler::Tiered, Compiler::Optimized] {
            let loaded = self::engine(compiler, Some(&images)).load_file(&path).unwrap();
            assert!(loaded.kind.tier == Tier::Optimized && matches!(loaded.origin, Origin::Mapped));
        }
    }

    #[test]
    fn a_file_that_was_changed_is_not_optimized() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.wasm");
        fs::write(&path, source(LEAST_SHARED_BYTES, "")).unwrap();
        let engine = engine(Compiler::Tiered, None);
        let loaded = engine.load_file(&path).unwrap();
        fs::write(&path, source(LEAST_SHARED_BYTES, "(func)")).unwrap();
        assert!(engine.optimize(&path, &loaded.digest).unwrap().is_none());
    }

    struct Guest {
        store: Store<Limiter>,
        instance: Instance,
    }

    impl Guest {
        fn new(loaded: &LoadedComponent) -> Self {
            let engine = loaded.component.engine();
            let limits = InstanceLimits { memory_bytes: 4 << 16, ..InstanceLimits::default() };
            let mut store = Store::new(engine, Limiter::new(limits, None));
            store.limiter(|limiter| limiter);
            preempt(&mut store);
            let linker = Linker::new(engine);
            let instance = ready(linker.instantiate_async(&mut store, &loaded.component)).unwrap();
            Self { store, instance }
        }

        /// Whether a call gives way that does not end.
        fn gives_way(&mut self, name: &str) -> bool {
            let function = self.instance.get_typed_func::<(), ()>(&mut self.store, name).unwrap();
            let mut call = std::pin::pin!(function.call_async(&mut self.store, ()));
            call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()
        }

        /// How a call ends.
        fn trap(&mut self, name: &str) -> Trap {
            let function = self.instance.get_typed_func::<(), ()>(&mut self.store, name).unwrap();
            let error = ready(function.call_async(&mut self.store, ())).unwrap_err();
            let trace = error.downcast_ref::<wasmtime::WasmBacktrace>().unwrap();
            assert!(!trace.frames().is_empty());
            *error.downcast_ref().unwrap()
        }
    }

    /// Polls until the end, however often that gives way.
    fn ready<T>(future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        loop {
            if let Poll::Ready(ready) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return ready;
            }
        }
    }

    #[test]
    fn limits_hold_for_code_of_both_tiers() {
        for compiler in [Compiler::Optimized, Compiler::Baseline] {
            let engine = engine(compiler, None);
            let loaded = engine.load(&source(0, "")).unwrap();
            engine.pulse().beat();
            assert!(Guest::new(&loaded).gives_way("spin"));
            assert_eq!(Guest::new(&loaded).trap("recurse"), Trap::StackOverflow);
            assert_eq!(Guest::new(&loaded).trap("past-the-end"), Trap::MemoryOutOfBounds);
            let Guest { mut store, instance } = Guest::new(&loaded);
            let grow = instance.get_typed_func::<(u32,), (i32,)>(&mut store, "grow").unwrap();
            for (pages, answer) in [(3, 1), (1, -1)] {
                assert_eq!(ready(grow.call_async(&mut store, (pages,))).unwrap(), (answer,));
            }
        }
    }
}

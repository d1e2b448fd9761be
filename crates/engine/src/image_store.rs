//! Compiled images on disk.
//!
//! An image is a file `DIGEST-ENGINE-FLAVOR.cwasm`: the source's digest, the
//! engine's compatibility hash, the flavor; of the baseline tier it is one
//! `DIGEST-ENGINE-FLAVOR-baseline.cwasm`. (The hash is that of the engine for optimized
//! code, so that nobody has to make the other one to learn that there is no image; Wasmtime
//! compares its own with what the file says.) Its contents are what Wasmtime
//! serialised, then the initial contents of the component's memory if that is a
//! snapshot (at the start of a page, so that it can be mapped), then the initial values
//! of its variables, then a trailer:
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | where the memory's contents begin in the file, little-endian |
//! | 8 | their length; 0 if there are none |
//! | 8 | their address in the memory |
//! | 8 | how many bytes larger the memory is than the code says |
//! | 8 | the length of the variables' values, which follow the memory's contents |
//! | 8 | 1 if instances can be rewound, plus 2 if the code is in a file of its own |
//! | 32 | the digest of that code, else zeros |
//! | 32 | BLAKE3 checksum of all bytes before it |
//! | 8 | `WISPIMG3` |
//!
//! Code that images share (see [`crate::code`]) is a file `code-DIGEST-ENGINE-FLAVOR.cwasm`
//! of the same form, with the digest of what was compiled, and with nothing but code in it.
//! The images that refer to it have none.
//!
//! Loading native code that is not what the compiler wrote is undefined
//! behaviour, so nothing is mapped before its checksum was compared. The file is
//! opened once and both read and mapped through that one descriptor: a file
//! renamed over it in between changes nothing.
//!
//! # What is known is not read again
//!
//! A checksum costs a read of the whole image, several times what mapping it does.
//! So the store remembers the [`FileIdentity`] of each image that it verified, for as
//! long as the process runs, and maps an image at once whose identity is still that.
//! For the same reason it remembers the digests of sources by their identity. Both are
//! remembered across starts, in `sources.index` and `verified.index`, lists of fixed records
//! beside the images (see [`FileIndex`]); that an image was verified, until the operating
//! system is started again, and not in a store of signed images.
//!
//! Both cost some 100 bytes an image in memory, whether it is mapped or not.
//!
//! # Signed images
//!
//! In a store that was opened with a key, 64 bytes of signature over the file's name and
//! the checksum follow, and `WISPSIG1`. Such a store maps nothing that lacks them, code
//! that is shared included.

use std::{
    collections::HashMap,
    fs::{self, File},
    hash::{Hash, Hasher},
    io::{self, Read as _, Seek as _, Write as _},
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use wasmtime::{Engine, component::Component};

use crate::{
    Digest, EngineKind, Error, FileIdentity, Flavor, SigningKey, Tier, VerifyingKey,
    code::Beginning,
    engines::Engines,
    file_index::FileIndex,
    memory::{self, MemoryImage, Place, snapshot::Contents},
    signature::SIGNATURE_BYTES,
    threads,
};

/// Ends every whole image; the digit counts versions of the trailer.
const TRAILER_MAGIC: &[u8; 8] = b"WISPIMG3";

/// What is known about the memory, and where the code is: six numbers and a digest.
const FACTS_BYTES: usize = 6 * size_of::<u64>() + size_of::<Digest>();

/// The trailer: the facts, a checksum and the magic.
const TRAILER_BYTES: usize = FACTS_BYTES + blake3::OUT_LEN + TRAILER_MAGIC.len();

/// Bits of the facts' last number.
const CAN_REWIND: u64 = 1;
const HAS_SHARED_CODE: u64 = 2;

/// Ends every signed image.
const SIGNED_MAGIC: &[u8; 8] = b"WISPSIG1";

/// What follows the trailer of a signed image.
const SIGNED_TRAILER_BYTES: usize = SIGNATURE_BYTES + SIGNED_MAGIC.len();

/// Begins the names of files with code that images share.
const CODE_PREFIX: &str = "code-";

/// Ends the names of files of the baseline tier, before the extension.
const BASELINE_SUFFIX: &str = "-baseline";

/// From this size on an image's checksum is computed while it is written.
const LARGE_BYTES: usize = 1 << 20;

/// Counts changes to what is made of a source before it is compiled: an image made
/// by an older version must not be found.
const NORMALIZER_VERSION: u32 = 7;

/// What is written for one component.
pub(crate) struct Image<'bytes> {
    pub(crate) code: ImageCode<'bytes>,
    /// What its memory begins with, where that was taken out of it.
    pub(crate) contents: Option<&'bytes Contents>,
    /// What its code does not say, where that is shared.
    pub(crate) beginning: Option<&'bytes Arc<Beginning>>,
    /// Whether its instances can be rewound.
    pub(crate) can_rewind: bool,
}

/// An image's native code.
pub(crate) enum ImageCode<'bytes> {
    /// As Wasmtime serialised it.
    Here(&'bytes [u8]),
    /// In a file of its own.
    Shared(Digest),
}

/// An image that was found to be sound, and mapped.
pub(crate) struct Found {
    pub(crate) code: FoundCode,
    /// What its memory begins with, and whether instances can be rewound.
    pub(crate) memory: Option<(MemoryImage, bool)>,
    pub(crate) image_bytes: u64,
}

/// An image's code.
pub(crate) enum FoundCode {
    Own(Component),
    /// To be loaded as well.
    Shared(Digest),
}

/// Code that images share, mapped.
pub(crate) struct SharedCode {
    pub(crate) component: Component,
    pub(crate) can_rewind: bool,
    pub(crate) image_bytes: u64,
}

/// What an image says about its component.
#[derive(Clone, Debug, Default)]
struct Facts {
    can_rewind: bool,
    /// Where its memory's contents are, if they are in it.
    place: Option<Place>,
    shared: Option<Arc<SharedFacts>>,
}

/// What an image says whose code is in another file.
#[derive(Debug)]
struct SharedFacts {
    code: Digest,
    beginning: Arc<Beginning>,
}

/// The name of the list of sources whose digests are known.
const SOURCE_INDEX_NAME: &str = "sources.index";

/// The name of the list of images that were verified.
const VERIFIED_INDEX_NAME: &str = "verified.index";

/// A folder of compiled images. Several processes may share one.
#[derive(Clone, Debug)]
pub struct ImageStore {
    folder: PathBuf,
    /// Whoever has to have signed an image.
    key: Option<VerifyingKey>,
    verified: Arc<Known>,
    verified_codes: Arc<Known>,
    sources: Arc<FileIndex>,
    /// The checksums of images that were verified by earlier processes. Whoever could alter
    /// an image could alter that as well: it is not there if images have to be signed.
    verified_before: Option<Arc<FileIndex>>,
    /// Engines whose compatibility hash is known: a handful. To compute it takes longer
    /// than to open a file.
    engines: Arc<Mutex<Vec<KnownEngine>>>,
    /// A folder in which code that images share may be as well. It is referred to, and
    /// whoever takes in the images verifies it.
    lender: Option<PathBuf>,
}

/// Files that were verified in this process.
type Known = Mutex<HashMap<ShortDigest, Verified>>;

/// What a file in the store is found by.
#[derive(Clone, Copy)]
enum Name<'digest> {
    /// The image of a source.
    Image(&'digest Digest),
    /// Code that images share.
    Code(&'digest Digest),
}

/// An engine and its compatibility hash.
type KnownEngine = (Engine, Arc<str>);

/// Half of a digest: enough to tell images apart, since what is found by it must
/// also have the right file name.
type ShortDigest = [u8; 16];

/// A file that was verified in this process.
#[derive(Clone, Debug)]
struct Verified {
    identity: FileIdentity,
    kind: EngineKind,
    facts: Facts,
}

/// A file that holds what the compiler wrote.
struct Sound {
    path: PathBuf,
    file: File,
    verified: Verified,
}

impl ImageStore {
    /// Opens the store in `folder`, which is created if absent.
    ///
    /// # Errors
    /// [`Error::ImageStore`] if the folder cannot be created.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, Error> {
        let folder = folder.into();
        fs::create_dir_all(&folder).map_err(|cause| Error::ImageStore { path: folder.clone(), cause })?;
        let sources = Arc::new(FileIndex::open(folder.join(SOURCE_INDEX_NAME)));
        let verified_before = FileIndex::of_this_boot(folder.join(VERIFIED_INDEX_NAME)).map(Arc::new);
        let (verified, verified_codes) = (Arc::default(), Arc::default());
        Ok(Self {
            folder,
            key: None,
            verified,
            verified_codes,
            sources,
            verified_before,
            lender: None,
            engines: Arc::default(),
        })
    }

    /// The same, and maps only what the owner of the key signed. An engine with this
    /// store compiles nothing.
    ///
    /// # Errors
    /// As [`ImageStore::open`].
    pub fn open_signed(folder: impl Into<PathBuf>, key: VerifyingKey) -> Result<Self, Error> {
        Ok(Self { key: Some(key), verified_before: None, ..Self::open(folder)? })
    }

    /// A store whose images may refer to code in another store's folder.
    pub(crate) fn borrowing(self, lender: Option<&Path>) -> Self {
        Self { lender: lender.map(Path::to_owned), ..self }
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether only signed images are mapped.
    pub(crate) fn is_signed(&self) -> bool {
        self.key.is_some()
    }

    /// Whether there is an image of a source that would be mapped, and its code, both
    /// optimized. Reads them unless they are known.
    pub fn has(&self, source: &Digest, engine: &crate::Engine) -> bool {
        Flavor::ALL.into_iter().map(Flavor::optimized).any(|kind| {
            let engines = engine.engines();
            self.load(source, engines, kind).is_some_and(|found| match found.code {
                FoundCode::Own(_) => true,
                FoundCode::Shared(code) => self.load_code(&code, engines, kind).is_some(),
            })
        })
    }

    /// Where the optimized images of a source for an engine are or would be.
    pub fn paths(&self, source: &Digest, engine: &crate::Engine) -> Vec<PathBuf> {
        let kinds = Flavor::ALL.into_iter().map(Flavor::optimized);
        kinds.map(|kind| self.path(source, engine.engines(), kind)).collect()
    }

    /// Where the code of an image is or would be in this store, if the image is one that
    /// shares it. Reads the image's trailer, and takes its word.
    pub fn code_path_of(&self, image: &Path) -> Option<PathBuf> {
        let code = Trailer::read(&File::open(image).ok()?).ok()?.code?;
        Some(self.folder.join(code_name(&code, image)?))
    }

    /// Whether a file in a store is code that images share, by its name.
    pub fn is_shared_code(path: &Path) -> bool {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(CODE_PREFIX))
    }

    /// Signs an image that [`compile_file`](crate::compile_file) made, and takes it in,
    /// with the code that was compiled for it. It is on disk when this returns. False if
    /// its code was not compiled because this store has it, and it has not, or not as it
    /// was signed: then nothing was taken in, and what is not sound is gone.
    ///
    /// # Errors
    /// [`Error::Unsigned`] if it is no whole image of that source, and
    /// [`Error::ImageStore`].
    pub fn adopt(&self, image: &Path, source: &Digest, key: &SigningKey) -> Result<bool, Error> {
        let name = image.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !name.strip_prefix(&source.to_string()).is_some_and(|rest| rest.starts_with('-')) {
            return Err(Error::Unsigned { reason: "what was compiled is not what was asked for".into() });
        }
        let (facts, file, checksum) = verify_made(image)?;
        if let Some(shared) = &facts.shared {
            let code_name = code_name(&shared.code, image)
                .ok_or_else(|| Error::Unsigned { reason: "its code cannot be named".into() })?;
            let code = image.with_file_name(&code_name);
            if code.exists() {
                let (_, file, checksum) = verify_made(&code)?;
                self.take_in(file, &code_name, &checksum, key)?;
            } else if !self.has_sound_code(&shared.code, &code_name) {
                return Ok(false);
            }
        }
        self.take_in(file, name, &checksum, key)?;
        Ok(true)
    }

    /// Copies a file into the store and signs it.
    fn take_in(&self, mut from: File, name: &str, checksum: &[u8], key: &SigningKey) -> Result<(), Error> {
        let path = self.folder.join(name);
        let written = (|| {
            let mut file = tempfile::Builder::new().prefix(".writing-").tempfile_in(&self.folder)?;
            from.rewind()?;
            io::copy(&mut from, file.as_file_mut())?;
            file.write_all(&key.sign(name, checksum))?;
            file.write_all(SIGNED_MAGIC)?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            File::open(&self.folder)?.sync_all()
        })();
        written.map_err(|cause| Error::ImageStore { path, cause })
    }

    /// Whether the store has this code as it was signed; removes it if it is altered.
    fn has_sound_code(&self, code: &Digest, file_name: &str) -> bool {
        let path = self.folder.join(file_name);
        let is_of = |flavor: &Flavor| file_name.ends_with(&format!("-{}.cwasm", flavor.name()));
        let (Ok(file), Some(flavor)) = (File::open(&path), Flavor::ALL.into_iter().find(is_of)) else {
            return false;
        };
        match self.verify(Name::Code(code), path.clone(), file, flavor.optimized()) {
            Ok((sound, is_settled)) => {
                if is_settled {
                    self.remember(Name::Code(code), sound.verified);
                }
                true
            }
            Err(reason) => {
                tracing::warn!(path = %path.display(), reason, "compiled code is damaged, compiling again");
                // If it cannot be removed, it is replaced.
                drop(fs::remove_file(&path));
                false
            }
        }
    }

    /// The digests of sources by their files' identity.
    pub(crate) fn sources(&self) -> &FileIndex {
        &self.sources
    }

    /// The kind of an image that was verified in this process.
    pub(crate) fn verified_kind(&self, source: &Digest) -> Option<EngineKind> {
        Some(self.known(Name::Image(source))?.kind)
    }

    fn known(&self, name: Name<'_>) -> Option<Verified> {
        let (known, digest) = self.known_by(name);
        known.lock().unwrap_or_else(PoisonError::into_inner).get(&short(digest)).cloned()
    }

    fn remember(&self, name: Name<'_>, verified: Verified) {
        let (known, digest) = self.known_by(name);
        known.lock().unwrap_or_else(PoisonError::into_inner).insert(short(digest), verified);
    }

    fn known_by<'digest>(&self, name: Name<'digest>) -> (&Known, &'digest Digest) {
        match name {
            Name::Image(source) => (&self.verified, source),
            Name::Code(code) => (&self.verified_codes, code),
        }
    }

    /// Maps an image if it was verified in this process and its file is still the
    /// same; `None` says nothing about whether there is one.
    pub(crate) fn load_verified(
        &self,
        source: &Digest,
        engines: &Engines,
        kind: EngineKind,
    ) -> Option<Found> {
        map(self.open_known(Name::Image(source), engines, kind)?, engines.get(kind).ok()?).ok()
    }

    /// The same for code that images share.
    pub(crate) fn load_verified_code(
        &self,
        code: &Digest,
        engines: &Engines,
        kind: EngineKind,
    ) -> Option<SharedCode> {
        map_code(&self.open_known(Name::Code(code), engines, kind)?, engines.get(kind).ok()?).ok()
    }

    fn open_known(&self, name: Name<'_>, engines: &Engines, kind: EngineKind) -> Option<Sound> {
        let verified = self.known(name).filter(|known| known.kind == kind)?;
        let path = self.path_of(name, engines, kind);
        let file = File::open(&path).ok()?;
        let is_same = FileIdentity::of(&file).ok()? == verified.identity;
        is_same.then_some(Sound { path, file, verified })
    }

    /// Where the image of `source` for an engine is or would be.
    pub(crate) fn path(&self, source: &Digest, engines: &Engines, kind: EngineKind) -> PathBuf {
        self.path_of(Name::Image(source), engines, kind)
    }

    fn path_of(&self, name: Name<'_>, engines: &Engines, kind: EngineKind) -> PathBuf {
        self.folder.join(file_name(name, &self.compatibility(engines.optimized(kind.flavor)), kind))
    }

    /// Removes what there is of a source in the baseline tier, and the code with it:
    /// others that refer to it find optimized code of the same digest.
    pub(crate) fn remove_baseline(&self, source: &Digest, engines: &Engines, flavor: Flavor) {
        let path = self.path(source, engines, EngineKind { flavor, tier: Tier::Baseline });
        // What cannot be removed takes room, and is not used.
        if let Some(code) = self.code_path_of(&path) {
            drop(fs::remove_file(code));
        }
        drop(fs::remove_file(path));
    }

    fn compatibility(&self, engine: &Engine) -> Arc<str> {
        let mut engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = engines.iter().find(|(known, _)| Engine::same(known, engine)) {
            return known.clone();
        }
        let computed: Arc<str> = compatibility(engine).into();
        engines.push((engine.clone(), computed.clone()));
        computed
    }

    /// Maps an image if the store holds a sound one; `None` if it must be compiled.
    pub(crate) fn load(&self, source: &Digest, engines: &Engines, kind: EngineKind) -> Option<Found> {
        self.load_with(Name::Image(source), engines, kind, map)
    }

    /// Maps code that images share if the store holds it; `None` if it must be compiled.
    pub(crate) fn load_code(&self, code: &Digest, engines: &Engines, kind: EngineKind) -> Option<SharedCode> {
        self.load_with(Name::Code(code), engines, kind, |sound, engine| map_code(&sound, engine))
    }

    /// Whether instances of code can be rewound that this store has not, and another one
    /// lends, as it says itself.
    pub(crate) fn lent_code(&self, code: &Digest, engines: &Engines, kind: EngineKind) -> Option<bool> {
        let compatibility = self.compatibility(engines.optimized(kind.flavor));
        let path = self.lender.as_ref()?.join(file_name(Name::Code(code), &compatibility, kind));
        let numbers = Trailer::read(&File::open(path).ok()?).ok()?;
        Some(numbers.can_rewind)
    }

    fn load_with<T>(
        &self,
        name: Name<'_>,
        engines: &Engines,
        kind: EngineKind,
        map: impl FnOnce(Sound, &Engine) -> Result<T, String>,
    ) -> Option<T> {
        let path = self.path_of(name, engines, kind);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "compiled image cannot be opened, compiling again");
                return None;
            }
        };
        let mapped = self.verify(name, path.clone(), file, kind).and_then(|(sound, is_settled)| {
            let verified = is_settled.then(|| sound.verified.clone());
            let mapped = map(sound, engines.get(kind).map_err(|error| error.to_string())?)?;
            if let Some(verified) = verified {
                self.remember(name, verified);
            }
            Ok(mapped)
        });
        mapped
            .inspect_err(|reason| {
                let then = if self.is_signed() { "it is not used" } else { "compiling again" };
                tracing::warn!(path = %path.display(), reason, "compiled image is damaged, {then}");
            })
            .ok()
    }

    /// Verifies a file unless it is known; tells whether its identity can be relied upon.
    fn verify(
        &self,
        name: Name<'_>,
        path: PathBuf,
        mut file: File,
        kind: EngineKind,
    ) -> Result<(Sound, bool), String> {
        let identity = FileIdentity::of(&file).map_err(|error| format!("it cannot be read: {error}"))?;
        let mut is_settled = identity.is_settled();
        let verified = match self.known(name) {
            Some(known) if known.identity == identity && known.kind == kind => known,
            _ => {
                let file_name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let key = self.key.as_ref().map(|key| (key, file_name));
                let before = self.verified_before.as_ref();
                let known = before.and_then(|before| before.take(&identity));
                let (facts, checksum) = verify(&mut file, identity.size_bytes(), key, known)?;
                let checksum = Digest::from_bytes(checksum);
                if known == Some(checksum) {
                    // Whoever wrote it down was certain.
                    is_settled = true;
                } else if let (Some(before), true) = (before, is_settled) {
                    before.write_down(&identity, checksum);
                }
                Verified { identity, kind, facts }
            }
        };
        Ok((Sound { path, file, verified }, is_settled))
    }

    /// Writes an image so that whoever looks sees it whole or not at all.
    pub(crate) fn insert(
        &self,
        source: &Digest,
        engines: &Engines,
        kind: EngineKind,
        image: &Image<'_>,
    ) -> Result<(), Error> {
        self.insert_as(Name::Image(source), engines, kind, image)
    }

    /// The same for code that images share.
    pub(crate) fn insert_code(
        &self,
        code: &Digest,
        engines: &Engines,
        kind: EngineKind,
        image: &Image<'_>,
    ) -> Result<(), Error> {
        self.insert_as(Name::Code(code), engines, kind, image)
    }

    fn insert_as(
        &self,
        name: Name<'_>,
        engines: &Engines,
        kind: EngineKind,
        image: &Image<'_>,
    ) -> Result<(), Error> {
        let path = self.path_of(name, engines, kind);
        let (identity, facts, checksum) = write_atomically(&self.folder, &path, image)
            .map_err(|cause| Error::ImageStore { path, cause })?;
        // However young it is: nobody else writes to a file in place.
        if let Some(before) = &self.verified_before {
            before.write_down(&identity, Digest::from_bytes(*checksum.as_bytes()));
        }
        self.remember(name, Verified { identity, kind, facts });
        Ok(())
    }
}

fn file_name(name: Name<'_>, compatibility: &str, kind: EngineKind) -> String {
    let (prefix, digest) = match name {
        Name::Image(source) => ("", source),
        Name::Code(code) => (CODE_PREFIX, code),
    };
    let suffix = match kind.tier {
        Tier::Optimized => "",
        Tier::Baseline => BASELINE_SUFFIX,
    };
    format!("{prefix}{digest}-{compatibility}-{}{suffix}.cwasm", kind.flavor.name())
}

/// The name of the code that an image refers to: it is for the same engine and flavor.
fn code_name(code: &Digest, image: &Path) -> Option<String> {
    let (_, rest) = image.file_name()?.to_str()?.split_once('-')?;
    Some(format!("{CODE_PREFIX}{code}-{rest}"))
}

/// Verifies an image that somebody else made and that is not signed.
fn verify_made(image: &Path) -> Result<(Facts, File, [u8; blake3::OUT_LEN]), Error> {
    let failed = |cause| Error::ImageStore { path: image.to_owned(), cause };
    let mut file = File::open(image).map_err(failed)?;
    let length_bytes = file.metadata().map_err(failed)?.len();
    let (facts, checksum) =
        verify(&mut file, length_bytes, None, None).map_err(|reason| Error::Unsigned { reason })?;
    Ok((facts, file, checksum))
}

fn short(digest: &Digest) -> ShortDigest {
    let mut short = ShortDigest::default();
    short.copy_from_slice(&digest.as_bytes()[..size_of::<ShortDigest>()]);
    short
}

/// Maps an image.
fn map(sound: Sound, engine: &Engine) -> Result<Found, String> {
    let Sound { path, file, verified: Verified { identity, kind, facts } } = sound;
    let image_bytes = identity.size_bytes();
    if let Some(shared) = facts.shared {
        let place = facts.place.ok_or("its memory is not in it")?;
        let image = MemoryImage::apart(&file, path, identity, place, shared.beginning.clone())
            .map_err(|error| format!("it cannot be mapped: {error}"))?;
        let memory = Some((image, facts.can_rewind));
        return Ok(Found { code: FoundCode::Shared(shared.code), memory, image_bytes });
    }
    let component = map_component(&file, engine, kind.flavor, image_bytes)?;
    let memory = facts
        .place
        .map(|place| {
            MemoryImage::in_image(&component, path, identity, place)
                .map(|image| (image, facts.can_rewind))
                .ok_or("its memory is not in it")
        })
        .transpose()?;
    Ok(Found { code: FoundCode::Own(component), memory, image_bytes })
}

/// Maps code that images share.
fn map_code(sound: &Sound, engine: &Engine) -> Result<SharedCode, String> {
    let Verified { identity, kind, facts } = &sound.verified;
    let image_bytes = identity.size_bytes();
    let component = map_component(&sound.file, engine, kind.flavor, image_bytes)?;
    Ok(SharedCode { component, can_rewind: facts.can_rewind, image_bytes })
}

/// Maps the code in a file that is known to hold what the compiler wrote.
fn map_component(
    file: &File,
    engine: &Engine,
    flavor: Flavor,
    image_bytes: u64,
) -> Result<Component, String> {
    // SAFETY: the callers have compared the checksum of this very file, now or when it
    // had the same identity, so these are the bytes that `insert` was given by the
    // compiler; and the engine's own header check (inside) refuses an image of another
    // engine version or configuration.
    unsafe {
        if memory::code::IS_USED && flavor.has_snapshot() {
            memory::code::map(engine, file, usize::try_from(image_bytes).unwrap_or(usize::MAX))
        } else {
            // Through the descriptor, so that what is mapped is what was verified.
            let descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
            Component::deserialize_file(engine, descriptor).map_err(|error| error.to_string())
        }
    }
}

/// Returns the identity of what was written, what it says, and the checksum.
fn write_atomically(
    folder: &Path,
    path: &Path,
    image: &Image<'_>,
) -> io::Result<(FileIdentity, Facts, blake3::Hash)> {
    let mut facts = Facts { can_rewind: image.can_rewind, ..Facts::default() };
    let code: &[u8] = match &image.code {
        ImageCode::Here(code) => code,
        ImageCode::Shared(code) => {
            let beginning = image.beginning.cloned().unwrap_or_default();
            facts.shared = Some(Arc::new(SharedFacts { code: *code, beginning }));
            &[]
        }
    };
    let (mut padding, mut contents) = (Vec::new(), [].as_slice());
    if let Some(Contents { bytes, address }) = image.contents {
        let start_bytes = code.len().next_multiple_of(memory::page_bytes());
        padding.resize(start_bytes - code.len(), 0);
        contents = bytes;
        let (offset_bytes, length_bytes) = (start_bytes as u64, bytes.len());
        facts.place = Some(Place { offset_bytes, length_bytes, address: *address });
    }
    let variables = facts.shared.as_ref().map_or([].as_slice(), |shared| &shared.beginning.variables);
    let trailer = Trailer::of(&facts).to_bytes();
    let parts = [code, &padding, contents, variables, &trailer];

    let temporary = tempfile::Builder::new().prefix(".writing-").tempfile_in(folder)?;
    let mut file = temporary.as_file();
    let checksum = || {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(part);
        }
        hasher.finalize()
    };
    let mut write = || parts.iter().try_for_each(|part| file.write_all(part));
    let is_large = parts.iter().map(|part| part.len()).sum::<usize>() >= LARGE_BYTES;
    let (checksum, written) = if is_large { threads::both(checksum, write) } else { (checksum(), write()) };
    written?;
    file.write_all(checksum.as_bytes())?;
    file.write_all(TRAILER_MAGIC)?;
    // Not synced: what a power cut leaves of it fails its checksum and is compiled again,
    // while waiting for the disk would take longer than compiling a small component.
    let file = temporary.persist(path)?;
    Ok((FileIdentity::of(&file)?, facts, checksum))
}

/// The facts as they are written.
#[derive(Clone, Copy, Default)]
struct Trailer {
    offset_bytes: u64,
    length_bytes: u64,
    address: u64,
    extra_bytes: u64,
    variables_bytes: u64,
    can_rewind: bool,
    code: Option<Digest>,
}

impl Trailer {
    fn of(facts: &Facts) -> Self {
        let mut trailer = Self { can_rewind: facts.can_rewind, ..Self::default() };
        if let Some(place) = facts.place {
            trailer.offset_bytes = place.offset_bytes;
            trailer.length_bytes = place.length_bytes as u64;
            trailer.address = place.address as u64;
        }
        if let Some(shared) = &facts.shared {
            trailer.code = Some(shared.code);
            trailer.extra_bytes = shared.beginning.extra_bytes as u64;
            trailer.variables_bytes = shared.beginning.variables.len() as u64;
        }
        trailer
    }

    fn to_bytes(self) -> Vec<u8> {
        let bits = if self.can_rewind { CAN_REWIND } else { 0 }
            | if self.code.is_some() { HAS_SHARED_CODE } else { 0 };
        let numbers = [
            self.offset_bytes,
            self.length_bytes,
            self.address,
            self.extra_bytes,
            self.variables_bytes,
            bits,
        ];
        let mut bytes: Vec<u8> = numbers.into_iter().flat_map(u64::to_le_bytes).collect();
        bytes.extend_from_slice(&self.code.map_or([0; 32], |code| *code.as_bytes()));
        bytes
    }

    fn from_bytes(bytes: &[u8; FACTS_BYTES]) -> Self {
        let (numbers, digest) = bytes.split_at(FACTS_BYTES - size_of::<Digest>());
        let mut numbers = numbers
            .chunks_exact(size_of::<u64>())
            .map(|bytes| bytes.try_into().map_or(u64::MAX, u64::from_le_bytes));
        let mut next = || numbers.next().unwrap_or(0);
        let (offset_bytes, length_bytes, address) = (next(), next(), next());
        let (extra_bytes, variables_bytes, bits) = (next(), next(), next());
        let code = digest.try_into().ok().filter(|_| bits & HAS_SHARED_CODE != 0).map(Digest::from_bytes);
        let can_rewind = bits & CAN_REWIND != 0;
        Self { offset_bytes, length_bytes, address, extra_bytes, variables_bytes, can_rewind, code }
    }

    /// Reads what a file says, signed or not, without verifying it.
    fn read(file: &File) -> io::Result<Self> {
        let absent = || io::Error::from(io::ErrorKind::InvalidData);
        let mut end_bytes = file.metadata()?.len();
        let mut magic = [0; 8];
        file.read_exact_at(&mut magic, end_bytes.checked_sub(8).ok_or_else(absent)?)?;
        if &magic == SIGNED_MAGIC {
            end_bytes = end_bytes.checked_sub(SIGNED_TRAILER_BYTES as u64).ok_or_else(absent)?;
            file.read_exact_at(&mut magic, end_bytes.checked_sub(8).ok_or_else(absent)?)?;
        }
        let start_bytes = end_bytes.checked_sub(TRAILER_BYTES as u64).ok_or_else(absent)?;
        let mut facts = [0; FACTS_BYTES];
        file.read_exact_at(&mut facts, start_bytes)?;
        if &magic == TRAILER_MAGIC { Ok(Self::from_bytes(&facts)) } else { Err(absent()) }
    }

    /// What the trailer says about the `body_bytes` before it, which were verified.
    fn facts(self, file: &File, body_bytes: u64) -> Result<Facts, String> {
        let contents_end = self.offset_bytes.checked_add(self.length_bytes);
        let variables_end = contents_end.and_then(|end| end.checked_add(self.variables_bytes));
        if variables_end.is_none_or(|end| end > body_bytes) {
            return Err("its memory is not in it".into());
        }
        let number = |number: u64| usize::try_from(number).map_err(|_| "its memory is too large".to_owned());
        let mut facts = Facts { can_rewind: self.can_rewind, ..Facts::default() };
        if self.length_bytes > 0 {
            let (length_bytes, address) = (number(self.length_bytes)?, number(self.address)?);
            facts.place = Some(Place { offset_bytes: self.offset_bytes, length_bytes, address });
        }
        if let Some(code) = self.code {
            let mut variables = vec![0; number(self.variables_bytes)?].into_boxed_slice();
            file.read_exact_at(&mut variables, contents_end.unwrap_or(0))
                .map_err(|error| format!("it cannot be read: {error}"))?;
            let beginning = Arc::new(Beginning { extra_bytes: number(self.extra_bytes)?, variables });
            facts.shared = Some(Arc::new(SharedFacts { code, beginning }));
        }
        Ok(facts)
    }
}

/// Compares the file's checksum, unless it is known that it has this one, and who signed it
/// if a key is given; on success nothing but the compiler wrote it. Tells what it says about
/// its component, and the checksum.
fn verify(
    file: &mut File,
    length_bytes: u64,
    key: Option<(&VerifyingKey, &str)>,
    known: Option<Digest>,
) -> Result<(Facts, [u8; blake3::OUT_LEN]), String> {
    let read_error = |error: io::Error| format!("it cannot be read: {error}");
    let signature_bytes = if key.is_some() { SIGNED_TRAILER_BYTES } else { 0 };
    let Some(body_bytes) = length_bytes.checked_sub((TRAILER_BYTES + signature_bytes) as u64) else {
        return Err("it is truncated".into());
    };
    let mut facts = [0; FACTS_BYTES];
    let mut checksum = [0; blake3::OUT_LEN];
    let mut magic = [0; TRAILER_MAGIC.len()];
    let mut place_bytes = body_bytes;
    for part in [facts.as_mut_slice(), &mut checksum, &mut magic] {
        file.read_exact_at(part, place_bytes).map_err(read_error)?;
        place_bytes += part.len() as u64;
    }
    if &magic != TRAILER_MAGIC {
        return Err("its trailer is missing".into());
    }
    if known.is_none_or(|known| *known.as_bytes() != checksum) {
        let mut hasher = blake3::Hasher::new();
        if hasher.update_reader(file.take(body_bytes)).map_err(read_error)?.count() < body_bytes {
            return Err("it is truncated".into());
        }
        if checksum != *hasher.update(&facts).finalize().as_bytes() {
            return Err("its checksum differs".into());
        }
    }
    if let Some((key, name)) = key {
        let mut signed = [0; SIGNED_TRAILER_BYTES];
        file.read_exact_at(&mut signed, place_bytes).map_err(read_error)?;
        let (signature, magic) = signed.split_at(SIGNATURE_BYTES);
        if magic != SIGNED_MAGIC || !key.has_signed(name, &checksum, signature) {
            return Err("it is not signed by this control plane".into());
        }
    }
    Ok((Trailer::from_bytes(&facts).facts(file, body_bytes)?, checksum))
}

/// The engine's compatibility hash: its version, settings and the processor.
fn compatibility(engine: &Engine) -> String {
    let mut hasher = StableHasher(blake3::Hasher::new());
    NORMALIZER_VERSION.hash(&mut hasher);
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hex::encode(&hasher.0.finalize().as_bytes()[..8])
}

/// A `Hasher` that gives the same result in every process.
struct StableHasher(blake3::Hasher);

impl Hasher for StableHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0.finalize().as_bytes()[..8]);
        u64::from_le_bytes(first)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::EngineConfig;

    const PLAIN: EngineKind = EngineKind { flavor: Flavor::Plain, tier: Tier::Optimized };

    struct Fixture {
        _folder: tempfile::TempDir,
        store: ImageStore,
        engines: Engines,
        digest: Digest,
        path: PathBuf,
    }

    /// A store with one sound image in it.
    fn fixture() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let store = ImageStore::open(folder.path().join("images")).unwrap();
        let config = EngineConfig { pooling: false, ..EngineConfig::default() };
        let engines = Engines::new(&config).unwrap();
        let source = wat::parse_str("(component)").unwrap();
        let digest = Digest::of(&source);
        let image = engines.optimized(Flavor::Plain).precompile_component(&source).unwrap();
        store
            .insert(
                &digest,
                &engines,
                PLAIN,
                &Image { code: ImageCode::Here(&image), contents: None, beginning: None, can_rewind: false },
            )
            .unwrap();
        let path = store.path(&digest, &engines, PLAIN);
        Fixture { _folder: folder, store, engines, digest, path }
    }

    impl Fixture {
        /// Whether a process that knows nothing yet loads the image.
        fn loads(&self) -> bool {
            let store = ImageStore::open(&self.store.folder).unwrap();
            store.load(&self.digest, &self.engines, PLAIN).is_some()
        }
    }

    #[test]
    fn what_an_earlier_process_verified_is_not_read_again() {
        let fixture = fixture();
        let is_sound = |store: &ImageStore| {
            let file = File::open(&fixture.path).unwrap();
            store.verify(Name::Image(&fixture.digest), fixture.path.clone(), file, PLAIN).is_ok()
        };
        let another = || ImageStore::open(&fixture.store.folder).unwrap();
        let checksum = || {
            let bytes = fs::read(&fixture.path).unwrap();
            let end = bytes.len() - TRAILER_MAGIC.len();
            Digest::from_bytes(bytes[end - blake3::OUT_LEN..end].try_into().unwrap())
        };
        let identity = || FileIdentity::at(&fixture.path).unwrap();
        let written = another().verified_before.unwrap().take(&identity());
        assert_eq!(written, Some(checksum()), "whoever wrote it wrote that down");

        // What was altered is noticed by whoever reads it, and by nobody else.
        let mut bytes = fs::read(&fixture.path).unwrap();
        bytes[100] ^= 1;
        fs::write(&fixture.path, bytes).unwrap();
        assert!(!is_sound(&another()));
        another().verified_before.unwrap().write_down(&identity(), checksum());
        assert!(is_sound(&another()));
        another().verified_before.unwrap().write_down(&identity(), Digest::of(b"another checksum"));
        assert!(!is_sound(&another()));

        // Signed images are always read.
        let key = SigningKey::open(&fixture.store.folder.join("image.key")).unwrap();
        let signed = ImageStore::open_signed(&fixture.store.folder, key.verifying_key()).unwrap();
        assert!(signed.verified_before.is_none());
    }

    #[test]
    fn a_sound_image_loads() {
        assert!(fixture().loads());
    }

    #[test]
    fn a_verified_image_is_not_read_again_until_its_file_changes() {
        let fixture = fixture();
        let known =
            |store: &ImageStore| store.load_verified(&fixture.digest, &fixture.engines, PLAIN).is_some();
        assert!(known(&fixture.store), "whoever wrote it knows it");
        let other = ImageStore::open(&fixture.store.folder).unwrap();
        assert!(!known(&other), "nobody else does");
        // The same bytes in another file.
        let copy = fixture.path.with_extension("copy");
        fs::copy(&fixture.path, &copy).unwrap();
        fs::rename(&copy, &fixture.path).unwrap();
        assert!(!known(&fixture.store));
        fs::remove_file(&fixture.path).unwrap();
        assert!(!known(&fixture.store));
    }

    #[test]
    fn an_absent_image_does_not() {
        let fixture = fixture();
        fs::remove_file(&fixture.path).unwrap();
        assert!(!fixture.loads());
    }

    #[test]
    fn no_altered_byte_goes_unnoticed() {
        let fixture = fixture();
        let sound = fs::read(&fixture.path).unwrap();
        // Every 97th byte, and all of the trailer.
        let positions = (0..sound.len()).step_by(97).chain(sound.len() - TRAILER_BYTES..sound.len());
        for position in positions {
            let mut altered = sound.clone();
            altered[position] ^= 1;
            fs::write(&fixture.path, altered).unwrap();
            assert!(!fixture.loads(), "byte {position} altered");
        }
    }

    #[test]
    fn no_truncation_goes_unnoticed() {
        let fixture = fixture();
        let sound = fs::read(&fixture.path).unwrap();
        for length in [0, 1, TRAILER_BYTES - 1, TRAILER_BYTES, sound.len() / 2, sound.len() - 1] {
            fs::write(&fixture.path, &sound[..length]).unwrap();
            assert!(!fixture.loads(), "cut to {length} bytes");
        }
    }

    #[test]
    fn only_what_the_key_signed_is_loaded_and_under_no_other_name() {
        let fixture = fixture();
        let folder = fixture._folder.path().join("signed");
        let key = SigningKey::open(&fixture._folder.path().join("keys/image.key")).unwrap();
        let again = SigningKey::open(&fixture._folder.path().join("keys/image.key")).unwrap();
        assert_eq!(key.verifying_key(), again.verifying_key());
        let stranger = SigningKey::open(&fixture._folder.path().join("other.key")).unwrap();
        let loads = |key: &SigningKey, digest: &Digest| {
            let store = ImageStore::open_signed(&folder, key.verifying_key()).unwrap();
            store.load(digest, &fixture.engines, PLAIN).is_some()
        };
        let signed = ImageStore::open_signed(&folder, key.verifying_key()).unwrap();
        assert!(signed.adopt(&fixture.path, &fixture.digest, &key).unwrap());
        assert!(loads(&key, &fixture.digest));
        assert!(!loads(&stranger, &fixture.digest));
        let path = signed.path(&fixture.digest, &fixture.engines, PLAIN);
        let sound = fs::read(&path).unwrap();
        for position in (0..sound.len()).step_by(97).chain(sound.len() - SIGNED_TRAILER_BYTES..sound.len()) {
            let mut altered = sound.clone();
            altered[position] ^= 1;
            fs::write(&path, altered).unwrap();
            assert!(!loads(&key, &fixture.digest), "byte {position} altered");
        }
        // Sound, and not signed at all.
        fs::copy(&fixture.path, &path).unwrap();
        assert!(!loads(&key, &fixture.digest));
        let other = Digest::of(b"other");
        fs::write(signed.path(&other, &fixture.engines, PLAIN), &sound).unwrap();
        assert!(!loads(&key, &other));
        assert!(signed.adopt(&fixture.path, &other, &key).is_err());
    }

    #[test]
    fn an_image_of_another_engine_is_not_loaded() {
        let fixture = fixture();
        let other = EngineConfig { pooling: false, debug_info: true, ..EngineConfig::default() };
        let other = Engines::new(&other).unwrap();
        assert!(fixture.store.load(&fixture.digest, &other, PLAIN).is_none());
        // Also when somebody renames it to what that engine looks for.
        fs::copy(&fixture.path, fixture.store.path(&fixture.digest, &other, PLAIN)).unwrap();
        assert!(fixture.store.load(&fixture.digest, &other, PLAIN).is_none());
    }
}
